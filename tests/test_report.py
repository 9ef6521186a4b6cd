"""The report: one file with every row in it, and nothing outside it needed."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.image
import pytest
import torch

from decoct.condense import report
from decoct.condense.figures import picture_grid
from decoct.tasks import Results, Row


def row(name: str, size: int, mean: float, learner: str = "convnet", seeds: int = 5) -> Row:
    return Row(name, size, learner, "quick", mean, 0.4, seeds, 1, 1.0, (mean,) * seeds)


RESULTS = Results(
    "digits",
    "images",
    [
        row("condensed, mmd", 10, 88.0), row("random", 10, 66.6), row("condensed, mmd", 100, 96.4),
        row("k-means centroids", 100, 97.1), row("random", 100, 92.5), row("full data", 1438, 98.8),
        row("random", 10, 61.3, "logistic_regression", 1),
    ],
)  # fmt: skip
CURVES = [report.Curve("condensed, 100 images", 100, [0.0, 2.0, 5.0], [92.0, 95.0, 96.4])]
METADATA = {
    "command": "decoct condense digits --out '<b>here</b>'",
    "data_hashes": {"train": "ab" * 32},
    "seed": 0,
}


def pictures() -> list[report.Pictures]:
    y = torch.arange(20) % 10
    return [
        report.Pictures(
            "20 images", torch.rand(20, 1, 8, 8), torch.rand(20, 1, 8, 8), y, [str(i) for i in range(10)]
        )
    ]


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[list[str]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.cells and self.cells[-1] and self.lasttag in ("td", "th", "span"):
            self.cells[-1][-1] += data


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report")
    path = report.write(folder, RESULTS, pictures(), CURVES, METADATA)
    assert path == folder / "report.html"
    assert [entry.name for entry in folder.iterdir()] == ["report.html"]
    return path.read_text(encoding="utf-8")


def test_nothing_outside_the_file_is_needed(html: str) -> None:
    assert not re.search(r"https?:|ftp:|[\"'(]//", html)
    assert "@import" not in html
    for tag, attributes in Page(html).tags:
        assert tag not in ("script", "link", "iframe", "object")
        for name in ("src", "href", "srcset", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/png;base64,", "#")), (tag, name, value)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))


def test_every_row_is_shown_the_losing_ones_too(html: str) -> None:
    cells = [[re.sub(r"\s+", " ", cell).strip() for cell in line] for line in Page(html).cells]
    assert cells[0] == ["set", "ConvNet", "logistic regression"]
    order = [line[0] for line in cells[1:]]
    assert order == [
        "10 images", "condensed, mmd", "random",
        "100 images", "k-means centroids", "condensed, mmd", "random",
        "1438 images (all)", "full data",
    ]  # fmt: skip
    assert ["random", "66.6 ± 0.4 (5)", "61.3 (1)"] in cells
    assert ["condensed, mmd", "96.4 ± 0.4 (5)", "\u2013"] in cells
    assert ["full data", "98.8 ± 0.4 (5)", "\u2013"] in cells


def test_the_best_of_each_size_is_marked(html: str) -> None:
    best = re.findall(r'<td class="best">([\d.]+)', html)
    assert best == ["88.0", "61.3", "97.1"]


def test_headline_and_concession(html: str) -> None:
    text = Page(html).text.replace("\u00a0", " ")
    assert RESULTS.headline() in text
    assert "At 100 images a plain selection wins: k-means centroids (97.1 %)" in text


def test_command_and_facts_are_shown_and_escaped(html: str) -> None:
    assert "&lt;b&gt;here&lt;/b&gt;" in html
    assert "<b>here" not in html
    text = Page(html).text
    assert METADATA["command"] in text
    assert "data_hashes.train" in text
    assert "ab" * 32 in text


def test_curves_follow_the_page_colours(html: str) -> None:
    figures = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    assert len(figures) == 2
    assert "seconds of condensation" in figures[0]
    assert "images in the set" in figures[1]
    for figure in figures:
        assert "viewBox" in figure.split(">")[0]
        assert not re.search(r"(fill|stroke): #(?!ffffff|000000)", figure)
        assert "var(--series-0)" in figure
    # Identifiers of one drawing must not be taken for those of the other.
    names = [set(re.findall(r'id="([^"]+)"', figure)) for figure in figures]
    references = [set(re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", figure)) for figure in figures]
    for own, used, other in zip(names, references, reversed(names), strict=True):
        assert used <= own
        assert not used & other


def test_light_and_dark_define_the_same_colours(html: str) -> None:
    light, dark = re.findall(r":root \{(.*?)\}", html, flags=re.DOTALL)
    defined = [set(re.findall(r"(--[a-z0-9-]+):", block)) for block in (light, dark)]
    assert defined[0] - {"--font"} == defined[1]
    assert set(re.findall(r"var\((--[a-z0-9-]+)\)", html)) <= defined[0]


def test_a_report_is_repeatable_and_replaced_whole(tmp_path: Path) -> None:
    torch.manual_seed(1)
    items = pictures()
    first = report.write(tmp_path, RESULTS, items, CURVES, METADATA).read_bytes()
    assert report.write(tmp_path, RESULTS, items, CURVES, METADATA).read_bytes() == first


def test_vectors_have_no_pictures_and_curves_may_be_absent(tmp_path: Path) -> None:
    only = Results("table", "rows", [row("condensed, dm", 6, 90.0, "mlp")])
    html = report.write(tmp_path, only, [], [], {}).read_text(encoding="utf-8")
    assert "Before and after" not in html
    assert html.count("<svg") == 1
    assert "6 rows" in html
    full = report.write(tmp_path, Results("t", "rows", [row("full data", 60, 90.0)]), [], [], {})
    assert "<svg" not in full.read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="at least one row"):
        report.write(tmp_path, Results("t"), [], [], {})


def decode(uri: str) -> torch.Tensor:
    data = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
    return torch.from_numpy(matplotlib.image.imread(io.BytesIO(data)).copy())


def test_grids_show_each_class_in_its_column() -> None:
    y = torch.tensor([0, 0, 1, 2])
    images = torch.tensor([0.0, 0.25, 0.5, 1.0]).reshape(4, 1, 1, 1).expand(4, 1, 8, 8)
    grid = picture_grid(images, y, ["a", "b", "c"])
    pixels = decode(grid.uri)
    assert pixels.shape == (grid.height, grid.width, 4)
    assert (grid.height, grid.width) == (2 * 68 - 4, 3 * 68 - 4)
    for line, column, value in ((0, 0, 0.0), (1, 0, 0.25), (0, 1, 0.5), (0, 2, 1.0)):
        centre = pixels[line * 68 + 32, column * 68 + 32]
        torch.testing.assert_close(centre, torch.tensor([value] * 3 + [1.0]), atol=0.003, rtol=0)
    assert pixels[100, 100, 3] == 0  # class b has one image: below it the page shows through
    assert grid.text == "4, one column a class"


def test_grids_of_colour_pictures_and_large_sets() -> None:
    y = torch.arange(30).repeat_interleave(12)
    images = torch.zeros(360, 3, 40, 40)
    images[:, 1] = 2.0  # beyond white is white
    grid = picture_grid(images, y, [str(label) for label in range(30)])
    assert grid.text == "200 of 360 shown"
    assert decode(grid.uri)[5, 5].tolist() == [0.0, 1.0, 0.0, 1.0]
