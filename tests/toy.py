"""A small generated data set for the tests of tasks and reports."""

from __future__ import annotations

from typing import Any

import numpy as np

from decoct.tasks import Dataset
from decoct.tasks.data import from_arrays


def blobs(
    counts: tuple[int, ...] = (24, 30, 36), *, side: int | None = None, spread: float = 0.3, seed: int = 0
) -> Dataset:
    """Well separated Gaussian clusters, one a class: vectors of 6 columns, or images of `side` pixels."""
    rng = np.random.default_rng(seed)
    shape: tuple[int, ...] = (6,) if side is None else (side, side)
    arrays: dict[str, Any] = {"x": [], "y": []}
    for label, count in enumerate(counts):
        centre = 2 * rng.standard_normal(shape)
        arrays["x"].append(centre + spread * rng.standard_normal((count, *shape)))
        arrays["y"].append(np.full(count, label))
    return from_arrays("blobs", {key: np.concatenate(value) for key, value in arrays.items()}, seed=seed)
