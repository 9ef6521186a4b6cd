"""Real data sets as tensors: built-in ones by name, a user's own from .npz, .csv or IDX files."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._extras import require
from .files import Array, read_csv, read_idx_folder, read_npz

FASHION_MNIST_FOLDER = Path("/usr/share/datasets/fashion-mnist")
FASHION_MNIST_CLASSES = (
    "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
NAMES = ("digits", "fashion-mnist", "mnist")


@dataclass(frozen=True)
class Dataset:
    """A classification data set, normalised with the mean and standard deviation of its training split, or so
    that bounds that were given become -1 and 1.

    train_x, test_x: float32, images (N, C, H, W) or vectors (N, D); train_y, test_y: int64 in 0..classes-1.
    mean, std: float32, one entry a channel (images) or a column (vectors); a constant channel has std 1.
    value_range: lowest and highest value before normalisation, over the training split (images: what black
    and white are).  source: the arguments of `load` that give the same data set again.
    """

    name: str
    kind: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: tuple[str, ...]
    mean: Tensor
    std: Tensor
    value_range: tuple[float, float]
    columns: tuple[str, ...] = ()
    source: dict[str, Any] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one row: (C, H, W) or (D,)."""
        return tuple(self.train_x.shape[1:])

    @property
    def counts(self) -> list[int]:
        """Training rows of each class."""
        return [int(count) for count in torch.bincount(self.train_y, minlength=len(self.classes))]

    def rows_of(self, label: int) -> Tensor:
        """Training rows of one class, in the order of the data set."""
        return self.train_x[self.train_y == label]

    def denormalise(self, x: Tensor) -> Tensor:
        """Undo the normalisation: values in the data's own units."""
        shape = (-1, 1, 1) if self.kind == "image" else (-1,)
        return x * self.std.to(x).reshape(shape) + self.mean.to(x).reshape(shape)

    def metadata(self) -> dict[str, Any]:
        """What a run records to find the same data again, and to know it."""
        return {"dataset": self.name, "source": dict(self.source), "data_hashes": self.hashes()}

    def pictures(self, x: Tensor) -> Tensor:
        """Rows as images with values in [0, 1], black and white where the training split has them."""
        low, high = self.value_range
        return ((self.denormalise(x) - low) / max(high - low, 1e-12)).clamp(0, 1)

    def hashes(self) -> dict[str, str]:
        """SHA-256 of the training and the test split, rows and labels, as they are used."""
        result = {}
        for split, x, y in (("train", self.train_x, self.train_y), ("test", self.test_x, self.test_y)):
            digest = hashlib.sha256(str(tuple(x.shape)).encode())
            digest.update(x.contiguous().numpy().data)
            digest.update(y.contiguous().numpy().data)
            result[split] = digest.hexdigest()
        return result


def load(
    name_or_path: str | Path,
    *,
    data_dir: str | Path | None = None,
    label: str | None = None,
    seed: int = 0,
    test_fraction: float = 0.2,
    bounds: Sequence[float] | None = None,
) -> Dataset:
    """Load a data set by name or from a file.

    name_or_path: "digits" (scikit-learn's 1797 images of 8 x 8), "fashion-mnist", "mnist", or a file: .npz
    with arrays x and y (and optionally x_test, y_test), or .csv with a header line.
    data_dir: folder of IDX files (gzip-compressed or plain) for the MNIST family.
    label: name of the label column of a .csv file.
    seed, test_fraction: of the stratified split, where the data brings no test set of its own.
    bounds: (low, high), known beforehand, of the values (8-bit images: as fractions of 255); they are clipped
    to them; these normalise the rows, instead of statistics, which would tell something about the rows.

    Raises FileNotFoundError where a file is missing, and ValueError where one cannot be used: what is wrong
    with it and where.
    """
    if not 0.0 < test_fraction < 1.0:
        raise ValueError(f"load: test_fraction must lie between 0 and 1, got {test_fraction}")
    name = str(name_or_path)
    suffix = Path(name).suffix.lower()
    if label is not None and suffix != ".csv":
        raise ValueError(f"load: label names a column of a .csv file, got {name!r}")
    if data_dir is not None and name not in ("fashion-mnist", "mnist"):
        raise ValueError(f"load: data_dir is for fashion-mnist and mnist, got {name!r}")

    classes: tuple[str, ...] | None = None
    columns: list[str] = []
    title = name
    if name == "digits":
        datasets = require("sklearn.datasets")
        bunch = datasets.load_digits()
        arrays = {"x": (bunch.images / 16.0)[:, None], "y": bunch.target}
    elif name in ("fashion-mnist", "mnist"):
        arrays = read_idx_folder(_idx_folder(name, data_dir))
        classes = FASHION_MNIST_CLASSES if name == "fashion-mnist" else None
    elif suffix in (".npz", ".csv"):
        path = Path(name).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"load: no such file: {path}")
        if suffix == ".npz":
            arrays = read_npz(path)
        else:
            arrays, columns = read_csv(path, label)
        title = path.stem
    else:
        raise ValueError(f"load: expected {', '.join(NAMES)}, FILE.npz or FILE.csv, got {name!r}")

    source: dict[str, Any] = {
        "name_or_path": str(Path(name).expanduser().resolve()) if suffix in (".npz", ".csv") else name,
        "data_dir": None if data_dir is None else str(Path(data_dir).expanduser().resolve()),
        "label": label,
        "seed": seed,
        "test_fraction": test_fraction,
    }
    if bounds is not None:
        source["bounds"] = list(bounds)
    return from_arrays(
        title,
        arrays,
        classes=classes,
        columns=tuple(columns),
        source=source,
        seed=seed,
        test_fraction=test_fraction,
        bounds=bounds,
    )


def from_arrays(
    name: str,
    arrays: dict[str, Array],
    *,
    classes: tuple[str, ...] | None = None,
    columns: tuple[str, ...] = (),
    source: dict[str, Any] | None = None,
    seed: int = 0,
    test_fraction: float = 0.2,
    bounds: Sequence[float] | None = None,
) -> Dataset:
    """Build a Dataset from arrays x and y (and x_test, y_test); see `load` for the rules and errors.

    x: (N, D), (N, H, W), (N, C, H, W) or (N, H, W, C) with C of 1 or 3; 8-bit values are read as fractions
    of 255.
    y: (N,) integers or text.
    """
    x = _rows(name, "x", arrays["x"])
    labels = _labels(name, "y", arrays["y"], len(x))
    values, y = np.unique(labels, return_inverse=True)
    if len(values) < 2:
        raise ValueError(f"{name}: expected at least two classes, got {len(values)}: {list(values)}")
    if classes is None or len(classes) != len(values):
        classes = tuple(str(value) for value in values)
    if "x_test" in arrays:
        test_x = _rows(name, "x_test", arrays["x_test"])
        test_labels = _labels(name, "y_test", arrays["y_test"], len(test_x))
        if test_x.shape[1:] != x.shape[1:]:
            raise ValueError(
                f"{name}: rows of x_test have shape {test_x.shape[1:]}, those of x {x.shape[1:]}"
            )
        strange = sorted(set(test_labels.tolist()) - set(values.tolist()))
        if strange:
            raise ValueError(f"{name}: y_test holds labels that y does not: {strange}")
        test_y = np.searchsorted(values, test_labels)
        _enough_rows(name, y, classes, least=2, why="to train on")
    else:
        _enough_rows(name, y, classes, least=3, why="two to train on and one to test")
        train, test = _stratified_split(y, test_fraction, seed)
        x, y, test_x, test_y = x[train], y[train], x[test], y[test]

    image = x.ndim == 4
    axes = (0, 2, 3) if image else (0,)
    if bounds is not None:
        low, high = bounds
        if not -np.inf < low < high < np.inf:
            raise ValueError(f"{name}: bounds must be finite, the lower first, got {low} and {high}")
        x, test_x = x.clip(low, high), test_x.clip(low, high)
    mean = x.mean(axis=axes, dtype=np.float64)
    std = x.std(axis=axes, dtype=np.float64)
    # A column that never changes carries nothing; dividing by its rounding noise would blow up test rows.
    std[std <= 8 * np.finfo(x.dtype).eps * np.abs(mean)] = 1.0
    value_range = float(x.min()), float(x.max())
    if bounds is not None:
        mean, std = np.full_like(mean, (low + high) / 2), np.full_like(std, (high - low) / 2)
        value_range = float(low), float(high)
    shape = (-1, 1, 1) if image else (-1,)

    def normalise(rows: Array) -> Tensor:
        result = (rows - mean.reshape(shape).astype(rows.dtype)) / std.reshape(shape).astype(rows.dtype)
        return torch.from_numpy(np.ascontiguousarray(result, dtype=np.float32))

    return Dataset(
        name=name,
        kind="image" if image else "vector",
        train_x=normalise(x),
        train_y=torch.from_numpy(y.astype(np.int64)),
        test_x=normalise(test_x),
        test_y=torch.from_numpy(test_y.astype(np.int64)),
        classes=classes,
        mean=torch.from_numpy(mean.astype(np.float32)),
        std=torch.from_numpy(std.astype(np.float32)),
        value_range=value_range,
        columns=columns,
        source=dict(source or {}),
    )


def _idx_folder(name: str, data_dir: str | Path | None) -> Path:
    if data_dir is not None:
        folder = Path(data_dir).expanduser()
        if not folder.is_dir():
            raise FileNotFoundError(f"load: data_dir is not a folder: {folder}")
        return folder
    if name == "fashion-mnist" and FASHION_MNIST_FOLDER.is_dir():
        return FASHION_MNIST_FOLDER
    package = (
        "install Debian's package (apt install dataset-fashion-mnist), or " if name == "fashion-mnist" else ""
    )
    raise FileNotFoundError(
        f"load: {name} is not on this machine: {package}give the folder of its four IDX files "
        "(train-images-idx3-ubyte[.gz] and so on) with --data-dir"
    )


def _rows(name: str, key: str, x: Array) -> Array:
    if x.dtype.kind not in "fiub":
        raise ValueError(f"{name}: {key} must hold numbers, got {x.dtype}")
    if x.ndim not in (2, 3, 4) or 0 in x.shape:
        raise ValueError(f"{name}: {key} must be (N, D), (N, H, W) or (N, C, H, W), got shape {x.shape}")
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4 and x.shape[1] not in (1, 3) and x.shape[3] in (1, 3):
        x = np.moveaxis(x, 3, 1)
    scale = 255.0 if x.dtype == np.uint8 and x.ndim == 4 else 1.0
    # Tables keep double precision until they are normalised: a year or an identifier has few spare bits in
    # float32.
    result: Array = np.divide(x, scale, dtype=np.float32 if x.ndim == 4 else np.float64, casting="unsafe")
    bad = ~np.isfinite(result)
    if bad.any():
        rows = np.unique(np.nonzero(bad)[0])
        raise ValueError(
            f"{name}: {key} holds NaN or infinite values in {len(rows)} of {len(x)} rows (first: {rows[0]})"
        )
    return result


def _labels(name: str, key: str, y: Array, rows: int) -> Array:
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1:
        raise ValueError(f"{name}: {key} must be one label a row, (N,), got shape {y.shape}")
    if len(y) != rows:
        raise ValueError(f"{name}: {key} has {len(y)} labels for {rows} rows")
    if y.dtype.kind == "f":
        if not np.isfinite(y).all():
            raise ValueError(f"{name}: {key} has missing (NaN) labels")
        if (y != np.round(y)).any():
            raise ValueError(
                f"{name}: {key} must hold class labels, got fractions such as {y[y != np.round(y)][0]}"
            )
        y = y.astype(np.int64)
    if y.dtype.kind not in "iubUS":
        raise ValueError(f"{name}: {key} must hold integers or text, got {y.dtype}")
    return y


def _enough_rows(name: str, y: Array, classes: tuple[str, ...], *, least: int, why: str) -> None:
    counts = np.bincount(y, minlength=len(classes))
    few = [f"{classes[index]!r} has {counts[index]}" for index in np.nonzero(counts < least)[0]]
    if few:
        more = f" and {len(few) - 5} more" if len(few) > 5 else ""
        raise ValueError(
            f"{name}: every class needs at least {least} rows, {why}: class {', '.join(few[:5])}{more}"
        )


def _stratified_split(y: Array, test_fraction: float, seed: int) -> tuple[Array, Array]:
    """Row numbers of the training and the test split; at least two and one of every class."""
    rng = np.random.default_rng(seed)
    test = np.zeros(len(y), dtype=bool)
    for value in np.unique(y):
        rows = rng.permutation(np.nonzero(y == value)[0])
        count = min(max(1, round(test_fraction * len(rows))), len(rows) - 2)
        test[rows[:count]] = True
    return np.nonzero(~test)[0], np.nonzero(test)[0]
