"""Readers of the file formats that users bring: IDX, NumPy archives and comma-separated tables."""

from __future__ import annotations

import csv
import gzip
import math
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

IDX_STEMS = {
    "x": ("train-images", "idx3-ubyte"),
    "y": ("train-labels", "idx1-ubyte"),
    "x_test": ("t10k-images", "idx3-ubyte"),
    "y_test": ("t10k-labels", "idx1-ubyte"),
}


def read_idx(path: Path) -> Array:
    """Read one IDX file of unsigned bytes, plain or gzip-compressed, as a uint8 array of its stated shape."""
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as stream:
            data = stream.read()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: not a complete gzip file ({error})") from error
    if len(data) < 4 or data[:3] != b"\x00\x00\x08":
        found = data[:4].hex() or "an empty file"
        raise ValueError(f"{path}: expected an IDX file of unsigned bytes (it begins 000008), got {found}")
    rank = data[3]
    start = 4 + 4 * rank
    if rank == 0 or len(data) < start:
        raise ValueError(f"{path}: the IDX header is incomplete ({len(data)} bytes)")
    shape = struct.unpack(f">{rank}I", data[4:start])
    if len(data) - start != math.prod(shape):
        raise ValueError(
            f"{path}: the header states {shape}, {math.prod(shape)} bytes; the file holds {len(data) - start}"
        )
    return np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape)


def read_idx_folder(folder: Path) -> dict[str, Array]:
    """Read the four IDX files of the MNIST family from `folder`: arrays x, y, x_test, y_test."""
    arrays = {}
    for key, (stem, form) in IDX_STEMS.items():
        names = [f"{stem}{dash}{form}{suffix}" for dash in "-." for suffix in ("", ".gz")]
        found = [folder / name for name in names if (folder / name).is_file()]
        if not found:
            raise FileNotFoundError(f"{folder}: expected {names[0]} or {names[1]}, found neither")
        arrays[key] = read_idx(found[0])
        rank = 3 if key.startswith("x") else 1
        if arrays[key].ndim != rank:
            raise ValueError(f"{found[0]}: expected {rank} dimensions, got shape {arrays[key].shape}")
    return arrays


def read_npz(path: Path) -> dict[str, Array]:
    """Read arrays x and y, and x_test and y_test where present, from a NumPy archive."""
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in ("x", "y", "x_test", "y_test") if key in archive.files}
            present = list(archive.files)
    except (zipfile.BadZipFile, EOFError, zlib.error, AttributeError, TypeError) as error:
        raise ValueError(f"{path}: not a readable .npz archive ({error})") from error
    except ValueError as error:
        # NumPy's own text suggests allow_pickle=True, which would run code from the user's file.
        raise ValueError(f"{path}: arrays must be numbers or text, not Python objects ({error})") from error
    missing = {"x", "y"} - arrays.keys()
    if missing:
        raise ValueError(
            f"{path}: expected arrays x and y, got {present}: {', '.join(sorted(missing))} missing"
        )
    if ("x_test" in arrays) != ("y_test" in arrays):
        raise ValueError(f"{path}: x_test and y_test come together, got {present}")
    return arrays


def read_csv(path: Path, label: str | None) -> tuple[dict[str, Array], list[str]]:
    """Read a table with a header line, numbers in every column but `label`: (arrays, column names)."""
    with open(path, newline="", encoding="utf-8-sig") as stream:
        try:
            lines = [row for row in csv.reader(stream) if row]
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: not a comma-separated text file ({error})") from error
    if len(lines) < 2:
        raise ValueError(f"{path}: expected a header line and rows, got {len(lines)} lines")
    header = [name.strip() for name in lines[0]]
    if len(set(header)) != len(header):
        raise ValueError(f"{path}: the header repeats a column name: {header}")
    if label is None:
        raise ValueError(
            f"{path}: say which column holds the label (--label NAME); columns: {', '.join(header)}"
        )
    if label not in header:
        raise ValueError(f"{path}: label column {label!r} not found; columns: {', '.join(header)}")
    place = header.index(label)
    columns = [name for name in header if name != label]
    if not columns:
        raise ValueError(f"{path}: expected at least one column beside the label {label!r}")
    x = np.empty((len(lines) - 1, len(columns)))
    y = []
    for number, row in enumerate(lines[1:], start=2):
        if len(row) != len(header):
            raise ValueError(f"{path}: line {number} has {len(row)} cells, the header has {len(header)}")
        cells = [cell.strip() for cell in row]
        y.append(cells.pop(place))
        if not y[-1]:
            raise ValueError(f"{path}: line {number} has no label (column {label!r} is empty)")
        for column, cell in enumerate(cells):
            try:
                x[number - 2, column] = float(cell)
            except ValueError:
                what = "is empty" if not cell else f"holds {cell!r}, which is not a number"
                raise ValueError(f"{path}: line {number}, column {columns[column]!r} {what}") from None
    return {"x": x, "y": np.asarray(y)}, columns
