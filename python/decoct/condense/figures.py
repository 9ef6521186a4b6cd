"""Figures of the report: curves as inline SVG that follows the page's colours, picture grids as PNG."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .._extras import require

if TYPE_CHECKING:
    from .report import Curve, Table

# Drawn in these colours, then replaced by the page's variables, so that light and dark need one drawing.
_INK, _MUTED, _GRID = "#010203", "#010204", "#010205"
_SERIES = [f"#0102{number:02x}" for number in range(16, 22)]
_VARIABLES = {_INK: "var(--ink)", _MUTED: "var(--muted)", _GRID: "var(--line)"} | {
    color: f"var(--series-{number})" for number, color in enumerate(_SERIES)
}
_MARKERS = "osD^vP"
SHOWN_PER_CLASS = 10
SHOWN_CLASSES = 20


@dataclass(frozen=True)
class Grid:
    """A picture grid as a data URI with its size in pixels and what it shows."""

    uri: str
    width: int
    height: int
    text: str


def budget_figure(results: Table, learner: str) -> str:
    """Accuracy over the number of rows, one line a kind of set; full data as a level."""
    figure, axes = _axes()
    rows = [row for row in results.rows if row.learner == learner]
    names = list(dict.fromkeys(row.name for row in sorted(rows, key=lambda row: row.role != "condensed")))
    series = [name for name in names if any(row.name == name and row.role != "full" for row in rows)]
    for number, name in enumerate(series):
        points = sorted((row for row in rows if row.name == name), key=lambda row: row.size)
        color = _SERIES[number % len(_SERIES)]
        axes.errorbar(
            [row.size for row in points],
            [row.mean for row in points],
            yerr=[row.std for row in points],
            color=color,
            marker=_MARKERS[number % len(_MARKERS)],
            markersize=6,
            linewidth=2.4 if points[0].role == "condensed" else 1.4,
            capsize=2.5,
            elinewidth=1,
            label=name,
            zorder=3 + (points[0].role == "condensed"),
        )
    _full_level(axes, rows)
    sizes = sorted({row.size for row in rows if row.role != "full"})
    axes.set_xscale("log")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set_xlim(sizes[0] / 1.6, sizes[-1] * 1.6)
    axes.set_xlabel(f"{results.unit} in the set")
    return _svg(figure, axes, "budget")


def time_figure(results: Table, curves: Sequence[Curve], learner: str) -> str:
    """Accuracy over the wall time of condensation; random sets and full data as levels."""
    figure, axes = _axes()
    rows = [row for row in results.rows if row.learner == learner]
    end = max(max(curve.seconds) for curve in curves)
    for number, curve in enumerate(curves):
        axes.plot(
            curve.seconds,
            curve.accuracies,
            color=_SERIES[number % len(_SERIES)],
            marker=_MARKERS[number % len(_MARKERS)],
            markersize=5,
            linewidth=2.2,
            label=curve.label,
            zorder=4,
        )
        level = next((row for row in rows if row.name == "random" and row.size == curve.size), None)
        if level is not None:
            axes.axhline(
                level.mean, color=_SERIES[number % len(_SERIES)], linewidth=1.2, linestyle=(0, (1, 2))
            )
            axes.annotate(
                f"random, {level.size}", (1, level.mean), xycoords=("axes fraction", "data"),
                xytext=(-3, 2.5), textcoords="offset points", ha="right", va="bottom", fontsize=8,
                color=_MUTED,
            )  # fmt: skip
    _full_level(axes, rows)
    axes.set_xlim(0, end * 1.04 if end else 1)
    axes.set_xlabel("seconds of condensation")
    return _svg(figure, axes, "time")


def picture_grid(images: Tensor, labels: Tensor, classes: Sequence[str]) -> Grid:
    """Images (M, C, H, W) with values in [0, 1] as a grid: one column a class, at most ten rows."""
    ids = labels.argmax(dim=1) if labels.is_floating_point() else labels
    columns = [images[ids == label][:SHOWN_PER_CLASS] for label in range(min(len(classes), SHOWN_CLASSES))]
    columns = [column for column in columns if len(column)]
    channels, height, width = images.shape[1:]
    scale = max(1, math.ceil(64 / max(height, width)))
    gap = max(2, scale // 2)
    rows = max(len(column) for column in columns)
    step_y, step_x = height * scale + gap, width * scale + gap
    canvas = torch.zeros(rows * step_y - gap, len(columns) * step_x - gap, 4)
    for place, column in enumerate(columns):
        for row, image in enumerate(column):
            tile = image.clamp(0, 1).repeat_interleave(scale, 1).repeat_interleave(scale, 2)
            tile = tile[:3] if channels >= 3 else tile[:1].expand(3, -1, -1)
            area = canvas[
                row * step_y : row * step_y + height * scale, place * step_x : place * step_x + width * scale
            ]
            area[..., :3] = tile.permute(1, 2, 0)
            area[..., 3] = 1
    buffer = io.BytesIO()
    require("matplotlib.image").imsave(buffer, (canvas * 255).round().to(torch.uint8).numpy(), format="png")
    shown = sum(len(column) for column in columns)
    text = f"{shown} of {len(images)} shown" if shown < len(images) else f"{len(images)}, one column a class"
    uri = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return Grid(uri, canvas.shape[1], canvas.shape[0], text)


def _axes() -> tuple[Any, Any]:
    # The figure class alone: no pyplot, so no global state and no display.
    figure = require("matplotlib.figure").Figure(figsize=(4.6, 3.5), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_GRID)
    axes.tick_params(colors=_MUTED, labelsize=9, length=0)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.xaxis.label.set_color(_MUTED)
    axes.set_title("accuracy, %", loc="left", fontsize=9, color=_MUTED)
    return figure, axes


def _full_level(axes: Any, rows: Sequence[Any]) -> None:
    full = next((row for row in rows if row.role == "full"), None)
    if full is not None:
        axes.axhline(full.mean, color=_MUTED, linewidth=1.2, linestyle=(0, (5, 3)), zorder=2)
        axes.annotate(
            f"full data, {full.size}", (0, full.mean), xycoords=("axes fraction", "data"), xytext=(3, 2.5),
            textcoords="offset points", ha="left", va="bottom", fontsize=8, color=_MUTED,
        )  # fmt: skip
        low, high = axes.get_ylim()
        axes.set_ylim(low, max(high, full.mean + 0.07 * (full.mean - low)))


def _svg(figure: Any, axes: Any, salt: str) -> str:
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        figure.legend(
            handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9, labelcolor=_INK,
            handlelength=2.2, columnspacing=1.2,
        )  # fmt: skip
    buffer = io.StringIO()
    settings = {"svg.fonttype": "none", "svg.hashsalt": f"decoct {salt}", "font.family": "sans-serif"}
    with require("matplotlib").rc_context(settings):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:xlink)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r'(<svg[^>]*?)\swidth="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?)\sheight="[^"]*"', r"\1", text, count=1)
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 var(--font)", text)
    for color, variable in _VARIABLES.items():
        text = text.replace(color, variable)
    return text.replace("<svg", '<svg role="img"', 1)
