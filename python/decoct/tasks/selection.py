"""Plain selections of a training set: what a condensed set of the same size must beat.

Each takes the data set, one count a class and a seed, and returns (x, y), packed class by class. A class's
part depends on its own count alone, so unequal budgets change nothing elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from .._extras import require
from .data import Dataset

Selection = Callable[[Dataset, Sequence[int], int], tuple[Tensor, Tensor]]
Features = Callable[[Tensor], Tensor]

# Above this many rows a class, k-means sees mini-batches; the last assignment is over all rows either way.
MINI_BATCH_ROWS = 20000


def random_rows(dataset: Dataset, counts: Sequence[int], seed: int) -> tuple[Tensor, Tensor]:
    """Real rows drawn without replacement; a larger count contains the smaller one's rows."""

    def choose(rows: Tensor, count: int, label: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + label)
        return rows[torch.randperm(len(rows), generator=generator)[:count]]

    return _pack(dataset, counts, choose)


def kmeans(dataset: Dataset, counts: Sequence[int], seed: int) -> tuple[Tensor, Tensor]:
    """Centroids of k-means within each class, not real rows. One a class: the class mean."""
    return _pack(dataset, counts, lambda rows, count, label: _centroids(rows, count, seed + label))


def nearest_to_centroids(
    dataset: Dataset, counts: Sequence[int], seed: int, features: Features | None = None
) -> tuple[Tensor, Tensor]:
    """The real row nearest to each k-means centroid, no row twice; in `features(rows)` (N, D) if given."""

    def choose(rows: Tensor, count: int, label: int) -> Tensor:
        points = _points(rows, features)
        distances = torch.cdist(_centroids(points, count, seed + label), points)
        chosen = []
        for row in distances:
            chosen.append(int(row.argmin()))
            distances[:, chosen[-1]] = torch.inf
        return rows[chosen]

    return _pack(dataset, counts, choose)


def herding(
    dataset: Dataset, counts: Sequence[int], seed: int = 0, features: Features | None = None
) -> tuple[Tensor, Tensor]:
    """Greedy mean matching: each new row brings the mean of the chosen ones closest to the class mean.

    Welling's herding as used for exemplars (iCaRL): row ``argmin_i |(t + 1) mean - sum_chosen - x_i|`` at
    step t, without replacement, in `features(rows)` (N, D), by default the rows. Nothing is drawn: `seed`
    changes nothing.
    """

    def choose(rows: Tensor, count: int, label: int) -> Tensor:
        points = _points(rows, features).double()
        mean = points.mean(dim=0)
        target = mean.clone()
        squares = points.square().sum(dim=1)
        chosen: list[int] = []
        for _ in range(count):
            score = squares - 2 * (points @ target)
            score[chosen] = torch.inf
            chosen.append(int(score.argmin()))
            target += mean - points[chosen[-1]]
        return rows[chosen]

    return _pack(dataset, counts, choose)


SELECTIONS: dict[str, Selection] = {
    "random": random_rows,
    "k-means centroids": kmeans,
    "nearest to centroids": nearest_to_centroids,
    "herding": herding,
}


def _pack(
    dataset: Dataset, counts: Sequence[int], choose: Callable[[Tensor, int, int], Tensor]
) -> tuple[Tensor, Tensor]:
    parts = [(choose(rows, count, label), label) for rows, count, label in _classes(dataset, counts)]
    x = torch.cat([part for part, _ in parts])
    y = torch.cat([torch.full((len(part),), label, dtype=torch.int64) for part, label in parts])
    return x, y


def _classes(dataset: Dataset, counts: Sequence[int]) -> Iterator[tuple[Tensor, int, int]]:
    if len(counts) != len(dataset.classes):
        raise ValueError(
            f"selection: counts must hold one number a class ({len(dataset.classes)}), got {len(counts)}"
        )
    if min(counts) < 0 or max(counts) == 0:
        raise ValueError(f"selection: counts must be 0 or more and not all 0, got {list(counts)}")
    for label, (count, present) in enumerate(zip(counts, dataset.counts, strict=True)):
        if count > present:
            raise ValueError(
                f"selection: class {dataset.classes[label]!r} has {present} training rows, got count {count}"
            )
        if count:
            yield dataset.rows_of(label), count, label


def _points(rows: Tensor, features: Features | None) -> Tensor:
    if features is None:
        return rows.flatten(1)
    with torch.no_grad():
        return features(rows).flatten(1)


def _centroids(rows: Tensor, count: int, seed: int) -> Tensor:
    if count == 1:
        return rows.mean(dim=0, keepdim=True)
    if count == len(rows):
        return rows.clone()
    cluster = require("sklearn.cluster")
    points = rows.flatten(1)
    if len(rows) > MINI_BATCH_ROWS:
        model = cluster.MiniBatchKMeans(count, n_init=3, batch_size=4096, random_state=seed)
    else:
        model = cluster.KMeans(count, n_init=4 if len(rows) <= 2000 else 1, random_state=seed)
    labels = torch.from_numpy(model.fit(points.numpy()).labels_).long()
    centroids = torch.from_numpy(model.cluster_centers_).to(points).clone()
    # Means over the assignment in a fixed order: scikit-learn's own centres carry its threads' rounding.
    for index in range(count):
        members = points[labels == index]
        if len(members):
            centroids[index] = members.mean(dim=0)
    return centroids.reshape(count, *rows.shape[1:])
