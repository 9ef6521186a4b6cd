"""Data sets: what every format gives, and the error of every kind of unusable file."""

from __future__ import annotations

import gzip
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from decoct.tasks import load
from decoct.tasks.data import from_arrays

RNG = np.random.default_rng(0)


def write_idx(path: Path, array: np.ndarray, *, compress: bool = False, cut: int = 0) -> None:
    data = (
        b"\x00\x00\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    )
    data = data[: len(data) - cut]
    if compress:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(data))
    else:
        path.write_bytes(data)


def idx_folder(folder: Path, *, compress: bool, classes: int = 10) -> dict[str, np.ndarray]:
    arrays = {
        "train-images-idx3-ubyte": RNG.integers(0, 256, (6 * classes, 5, 4), dtype=np.uint8),
        "train-labels-idx1-ubyte": np.tile(np.arange(classes, dtype=np.uint8), 6),
        "t10k-images-idx3-ubyte": RNG.integers(0, 256, (2 * classes, 5, 4), dtype=np.uint8),
        "t10k-labels-idx1-ubyte": np.tile(np.arange(classes, dtype=np.uint8), 2),
    }
    for name, array in arrays.items():
        write_idx(folder / name, array, compress=compress)
    return arrays


def write_npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def table(rows: int = 30, columns: int = 3) -> tuple[np.ndarray, np.ndarray]:
    return RNG.standard_normal((rows, columns)), np.arange(rows) % 3


def test_digits_are_normalised_by_their_training_split() -> None:
    digits = load("digits")
    assert digits.kind == "image"
    assert digits.shape == (1, 8, 8)
    assert len(digits.train_x) + len(digits.test_x) == 1797
    assert digits.classes == tuple("0123456789")
    assert digits.train_x.dtype == torch.float32
    assert digits.train_y.dtype == torch.int64
    assert abs(digits.train_x.mean().item()) < 1e-5
    assert abs(digits.train_x.std().item() - 1) < 1e-4
    assert abs(digits.test_x.mean().item()) > 1e-5  # its own mean was not used
    assert digits.value_range == (0.0, 1.0)
    raw = digits.denormalise(digits.train_x) * 16
    torch.testing.assert_close(raw, raw.round(), atol=1e-4, rtol=0)
    pictures = digits.pictures(digits.train_x)
    assert (pictures.min().item(), pictures.max().item()) == pytest.approx((0, 1), abs=1e-6)
    share = torch.bincount(digits.test_y) / (torch.bincount(digits.train_y) + torch.bincount(digits.test_y))
    torch.testing.assert_close(share, torch.full((10,), 0.2), atol=0.005, rtol=0)


def test_a_split_depends_on_its_seed_alone() -> None:
    first, again, other = load("digits", seed=3), load("digits", seed=3), load("digits", seed=4)
    assert first.hashes() == again.hashes()
    assert first.hashes()["train"] != other.hashes()["train"]
    assert first.source == {
        "name_or_path": "digits",
        "data_dir": None,
        "label": None,
        "seed": 3,
        "test_fraction": 0.2,
    }
    assert load(**first.source).hashes() == first.hashes()  # type: ignore[arg-type]


@pytest.mark.parametrize("compress", [False, True])
def test_idx_files(tmp_path: Path, compress: bool) -> None:
    arrays = idx_folder(tmp_path, compress=compress)
    data = load("fashion-mnist", data_dir=tmp_path)
    assert data.shape == (1, 5, 4)
    assert data.classes[9] == "ankle boot"
    raw = (data.denormalise(data.train_x) * 255).round().numpy()
    np.testing.assert_array_equal(raw[:, 0], arrays["train-images-idx3-ubyte"])
    np.testing.assert_array_equal(data.test_y.numpy(), arrays["t10k-labels-idx1-ubyte"])


def test_mnist_has_numbers_as_classes(tmp_path: Path) -> None:
    idx_folder(tmp_path, compress=True)
    assert load("mnist", data_dir=tmp_path).classes == tuple("0123456789")


def test_a_missing_set_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("decoct.tasks.data.FASHION_MNIST_FOLDER", tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match=r"apt install dataset-fashion-mnist.*--data-dir"):
        load("fashion-mnist")
    with pytest.raises(FileNotFoundError, match=r"mnist is not on this machine: give the folder.*--data-dir"):
        load("mnist")
    with pytest.raises(FileNotFoundError, match="not a folder"):
        load("mnist", data_dir=tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="train-images-idx3-ubyte"):
        load("mnist", data_dir=tmp_path)


def test_damaged_idx_files(tmp_path: Path) -> None:
    arrays = idx_folder(tmp_path, compress=False)
    images = tmp_path / "train-images-idx3-ubyte"
    write_idx(images, arrays[images.name], cut=7)
    with pytest.raises(ValueError, match=r"states \(60, 5, 4\), 1200 bytes; the file holds 1193"):
        load("mnist", data_dir=tmp_path)
    images.write_bytes(b"\x00\x00\x08\x03\x00\x00")
    with pytest.raises(ValueError, match="header is incomplete"):
        load("mnist", data_dir=tmp_path)
    images.write_bytes(b"\x89PNG....")
    with pytest.raises(ValueError, match="expected an IDX file of unsigned bytes"):
        load("mnist", data_dir=tmp_path)
    write_idx(images, arrays["train-labels-idx1-ubyte"])
    with pytest.raises(ValueError, match="expected 3 dimensions"):
        load("mnist", data_dir=tmp_path)
    images.unlink()
    write_idx(images, arrays[images.name], compress=True)
    whole = (tmp_path / "train-images-idx3-ubyte.gz").read_bytes()
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="not a complete gzip file"):
        load("mnist", data_dir=tmp_path)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"plain text")
    with pytest.raises(ValueError, match="not a complete gzip file"):
        load("mnist", data_dir=tmp_path)


def test_idx_labels_of_another_length(tmp_path: Path) -> None:
    arrays = idx_folder(tmp_path, compress=False)
    write_idx(tmp_path / "train-labels-idx1-ubyte", arrays["train-labels-idx1-ubyte"][:-1])
    with pytest.raises(ValueError, match="y has 59 labels for 60 rows"):
        load("mnist", data_dir=tmp_path)


def test_npz_with_its_own_test_split(tmp_path: Path) -> None:
    x, _ = table()
    y = np.array(["a", "b", "c"] * 10)
    path = write_npz(tmp_path / "mine.npz", x=x, y=y, x_test=x[:6] + 1, y_test=y[:6])
    data = load(path)
    assert (data.name, data.kind, data.classes) == ("mine", "vector", ("a", "b", "c"))
    assert len(data.train_x) == 30
    torch.testing.assert_close(data.test_x - data.train_x[:6], (1 / data.std).expand(6, 3), atol=1e-5, rtol=0)
    np.testing.assert_allclose(data.mean.numpy(), x.mean(0), rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((30, 5, 4), (1, 5, 4)), ((30, 3, 5, 4), (3, 5, 4)), ((30, 5, 4, 3), (3, 5, 4)), ((30, 7), (7,))],
)
def test_npz_shapes(tmp_path: Path, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    path = write_npz(tmp_path / "mine.npz", x=RNG.standard_normal(shape), y=np.arange(30) % 3)
    assert load(path).shape == expected


def test_channels_keep_their_own_statistics() -> None:
    x = RNG.standard_normal((30, 3, 4, 4)) * np.array([1.0, 10.0, 100.0])[:, None, None]
    data = from_arrays("colours", {"x": x, "y": np.arange(30) % 3})
    torch.testing.assert_close(data.train_x.std(dim=(0, 2, 3)), torch.ones(3), atol=0.01, rtol=0)


def test_eight_bit_images_are_fractions() -> None:
    x = RNG.integers(0, 256, (30, 4, 4), dtype=np.uint8)
    x[0, 0, 0], x[1, 0, 0], x[2, 0, 0], x[3, 0, 0] = 0, 255, 0, 255
    data = from_arrays("bytes", {"x": x, "y": np.arange(30) % 3})
    low, high = data.value_range
    assert 0 <= low < 0.1
    assert 0.9 < high <= 1


def test_constant_columns_stay_finite() -> None:
    x, y = table()
    x[:, 1] = 0.1
    data = from_arrays("constant", {"x": x, "y": y})
    assert data.std[1] == 1
    torch.testing.assert_close(data.train_x[:, 1], torch.zeros(len(data.train_x)), atol=1e-6, rtol=0)


def test_large_offsets_keep_their_digits() -> None:
    x, y = table()
    data = from_arrays("years", {"x": x + 1e8, "y": y}, seed=1)
    plain = from_arrays("years", {"x": x, "y": y}, seed=1)
    torch.testing.assert_close(data.train_x, plain.train_x, atol=1e-5, rtol=0)


def test_every_class_is_on_both_sides_of_a_split() -> None:
    y = np.array([0] * 3 + [1] * 50)
    data = from_arrays("rare", {"x": RNG.standard_normal((53, 2)), "y": y}, test_fraction=0.9)
    assert torch.bincount(data.train_y)[0] == 2
    assert torch.bincount(data.test_y)[0] == 1


GOOD_X, GOOD_Y = table()
NAN_X = GOOD_X.copy()
NAN_X[4, 1] = np.nan
INF_X = GOOD_X.copy()
INF_X[7, 0] = np.inf
BAD_ARRAYS = {
    "NaN": ({"x": NAN_X, "y": GOOD_Y}, r"x holds NaN or infinite values in 1 of 30 rows \(first: 4\)"),
    "Inf": ({"x": INF_X, "y": GOOD_Y}, r"in 1 of 30 rows \(first: 7\)"),
    "lengths": ({"x": GOOD_X, "y": GOOD_Y[:-2]}, "y has 28 labels for 30 rows"),
    "labels NaN": ({"x": GOOD_X, "y": np.where(GOOD_Y == 0, np.nan, 1.0)}, "missing .NaN. labels"),
    "fractions": ({"x": GOOD_X, "y": GOOD_Y + 0.5}, "class labels, got fractions such as 0.5"),
    "two-dimensional labels": ({"x": GOOD_X, "y": np.eye(3)[GOOD_Y]}, r"one label a row, \(N,\), got shape"),
    "complex labels": ({"x": GOOD_X, "y": GOOD_Y + 0j}, "integers or text, got complex128"),
    "one class": ({"x": GOOD_X, "y": np.zeros(30, int)}, "at least two classes, got 1"),
    "one row": ({"x": GOOD_X, "y": np.array([0] * 29 + [1])}, r"at least 3 rows.*class '1' has 1"),
    "text rows": ({"x": GOOD_X.astype(str), "y": GOOD_Y}, "x must hold numbers"),
    "flat rows": ({"x": GOOD_X[:, 0], "y": GOOD_Y}, r"x must be \(N, D\)"),
    "no columns": ({"x": GOOD_X[:, :0], "y": GOOD_Y}, r"got shape \(30, 0\)"),
    "test shape": (
        {"x": GOOD_X, "y": GOOD_Y, "x_test": GOOD_X[:, :2], "y_test": GOOD_Y},
        r"rows of x_test have shape \(2,\), those of x \(3,\)",
    ),
    "test labels": (
        {"x": GOOD_X, "y": GOOD_Y, "x_test": GOOD_X, "y_test": GOOD_Y + 1},
        r"y_test holds labels that y does not: \[3\]",
    ),
    "one row, own test": (
        {"x": GOOD_X, "y": np.array([0] * 29 + [1]), "x_test": GOOD_X, "y_test": np.zeros(30, int)},
        "at least 2 rows, to train on: class '1' has 1",
    ),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_unusable_arrays(tmp_path: Path, case: str) -> None:
    arrays, message = BAD_ARRAYS[case]
    with pytest.raises(ValueError, match=message):
        load(write_npz(tmp_path / "bad.npz", **arrays))


def test_unusable_archives(tmp_path: Path) -> None:
    x, y = table()
    with pytest.raises(ValueError, match=r"expected arrays x and y, got \['x'\]: y missing"):
        load(write_npz(tmp_path / "a.npz", x=x))
    with pytest.raises(ValueError, match="x_test and y_test come together"):
        load(write_npz(tmp_path / "b.npz", x=x, y=y, x_test=x))
    with pytest.raises(ValueError, match="not Python objects"):
        load(write_npz(tmp_path / "c.npz", x=x, y=np.array([{}] * 30, dtype=object)))
    (tmp_path / "d.npz").write_bytes(b"nothing like an archive")
    with pytest.raises(ValueError, match=r"d\.npz"):
        load(tmp_path / "d.npz")
    whole = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "e.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"e\.npz: not a readable \.npz archive"):
        load(tmp_path / "e.npz")


def csv_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "table.csv"
    path.write_text(text, encoding="utf-8")
    return path


GOOD_CSV = "age, kind ,size\n" + "".join(f"{20 + i},{'xy'[i % 2]},{i / 7}\n" for i in range(12))


def test_csv(tmp_path: Path) -> None:
    data = load(csv_file(tmp_path, "\ufeff" + GOOD_CSV), label="kind")
    assert data.columns == ("age", "size")
    assert data.classes == ("x", "y")
    raw = data.denormalise(torch.cat([data.train_x, data.test_x]))
    rows = sorted(zip(raw[:, 0].tolist(), torch.cat([data.train_y, data.test_y]).tolist(), strict=True))
    assert [round(age) for age, _ in rows] == list(range(20, 32))
    assert [label for _, label in rows] == [0, 1] * 6


BAD_CSV = {
    "no label named": (GOOD_CSV, None, r"which column holds the label.*columns: age, kind, size"),
    "another label": (GOOD_CSV, "sort", r"label column 'sort' not found; columns: age, kind, size"),
    "empty cell": (GOOD_CSV.replace("20,x,0.0", "20,x,"), "kind", "line 2, column 'size' is empty"),
    "text cell": (GOOD_CSV.replace("21,y", "old,y"), "kind", "line 3, column 'age' holds 'old'"),
    "missing label": (GOOD_CSV.replace("21,y", "21,"), "kind", "line 3 has no label"),
    "NaN": (GOOD_CSV.replace("21,y", "nan,y"), "kind", "x holds NaN or infinite values in 1 of 12 rows"),
    "ragged": (GOOD_CSV + "1,x\n", "kind", "line 14 has 2 cells, the header has 3"),
    "header alone": ("age,kind\n", "kind", "expected a header line and rows, got 1 lines"),
    "repeated name": ("a,a,kind\n1,2,x\n", "kind", "repeats a column name"),
    "label alone": ("kind\nx\ny\n", "kind", "at least one column beside"),
}


@pytest.mark.parametrize("case", BAD_CSV)
def test_unusable_csv(tmp_path: Path, case: str) -> None:
    text, label, message = BAD_CSV[case]
    with pytest.raises(ValueError, match=message):
        load(csv_file(tmp_path, text), label=label)


def test_csv_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(b"a,b\n\xff\xfe\xff,1\n")
    with pytest.raises(ValueError, match="not a comma-separated text file"):
        load(path, label="b")


def test_unusable_arguments(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"expected digits, fashion-mnist, mnist, FILE\.npz or FILE\.csv, got"
    ):
        load("cifar")
    with pytest.raises(FileNotFoundError, match=re.escape("nowhere.npz")):
        load(tmp_path / "nowhere.npz")
    with pytest.raises(ValueError, match="test_fraction must lie between 0 and 1, got 1"):
        load("digits", test_fraction=1)
    with pytest.raises(ValueError, match=r"label names a column of a \.csv file"):
        load("digits", label="kind")
    with pytest.raises(ValueError, match="data_dir is for fashion-mnist and mnist"):
        load("digits", data_dir=tmp_path)
