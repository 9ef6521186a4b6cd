"""Plain selections: their counts, their seeds, and what defines each."""

from __future__ import annotations

import pytest
import torch

from decoct.tasks import SELECTIONS, herding, kmeans, nearest_to_centroids, random_rows
from toy import blobs

COUNTS = [2, 0, 5]


@pytest.mark.parametrize("name", SELECTIONS)
@pytest.mark.parametrize("side", [None, 4])
def test_counts_labels_and_seeds(name: str, side: int | None) -> None:
    data, select = blobs(side=side), SELECTIONS[name]
    x, y = select(data, COUNTS, 1)
    assert x.shape == (7, *data.shape)
    assert y.tolist() == [0, 0, 2, 2, 2, 2, 2]
    again, _ = select(data, COUNTS, 1)
    assert torch.equal(x, again)
    # A class's part depends on its own count alone.
    other, _ = select(data, [2, 3, 1], 1)
    assert torch.equal(other[:2], x[:2])


@pytest.mark.parametrize("name", ["random", "nearest to centroids", "herding"])
def test_real_rows_of_the_right_class_without_repetition(name: str) -> None:
    data = blobs()
    x, y = SELECTIONS[name](data, [9, 8, 7], 0)
    same = (x[:, None] == data.train_x[None]).all(dim=2)
    assert (same.sum(dim=1) == 1).all()
    found = same.float().argmax(dim=1)
    assert torch.equal(data.train_y[found], y)
    assert len(set(found.tolist())) == len(x)


@pytest.mark.parametrize("name", SELECTIONS)
def test_all_rows_of_a_class_may_be_asked_for(name: str) -> None:
    data = blobs()
    x, y = SELECTIONS[name](data, data.counts, 0)
    for label in range(3):
        wanted, found = data.rows_of(label), x[y == label]
        assert torch.equal(found[found[:, 0].argsort()], wanted[wanted[:, 0].argsort()])


def test_random_rows_differ_by_seed_and_grow_with_the_count() -> None:
    data = blobs()
    small, _ = random_rows(data, [3, 3, 3], 5)
    large, _ = random_rows(data, [6, 6, 6], 5)
    other, _ = random_rows(data, [3, 3, 3], 6)
    assert torch.equal(large[:3], small[:3])
    assert not torch.equal(small, other)


def test_random_rows_are_uniform() -> None:
    data = blobs((12, 12))
    rows = data.rows_of(0)
    hits = torch.zeros(len(rows))
    for seed in range(400):
        x, _ = random_rows(data, [2, 1], seed)
        hits += (x[:2, None] == rows[None]).all(dim=2).sum(dim=0)
    expected = 800 / len(rows)
    assert ((hits - expected).square() / expected).sum().item() < 30  # chi square, 9 degrees: p < 0.001


def test_one_centroid_is_the_class_mean() -> None:
    data = blobs(side=4)
    x, _ = kmeans(data, [1, 1, 1], 0)
    means = torch.stack([data.rows_of(label).mean(dim=0) for label in range(3)])
    assert torch.equal(x, means)


def test_centroids_are_means_of_their_nearest_rows() -> None:
    data = blobs((60, 60), spread=1.0)
    x, _ = kmeans(data, [4, 1], 0)
    rows = data.rows_of(0)
    nearest = torch.cdist(rows, x[:4]).argmin(dim=1)
    for index in range(4):
        torch.testing.assert_close(x[index], rows[nearest == index].mean(dim=0))


def test_mini_batches_above_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("decoct.tasks.selection.MINI_BATCH_ROWS", 10)
    data = blobs((60, 60))
    x, _ = kmeans(data, [3, 1], 0)
    assert torch.equal(x, kmeans(data, [3, 1], 0)[0])
    rows = data.rows_of(0)
    assert torch.cdist(rows, x[:3]).min(dim=1).values.mean() < (rows - rows.mean(0)).norm(dim=1).mean()


def test_nearest_to_one_centroid_is_the_row_nearest_to_the_mean() -> None:
    data = blobs()
    x, _ = nearest_to_centroids(data, [1, 1, 1], 0)
    for label in range(3):
        rows = data.rows_of(label)
        assert torch.equal(x[label], rows[(rows - rows.mean(dim=0)).norm(dim=1).argmin()])


def test_herding_follows_its_rule() -> None:
    data = blobs(spread=1.0)
    x, _ = herding(data, [4, 1, 1], 0)
    rows = data.rows_of(0).double()
    mean = rows.mean(dim=0)
    assert torch.equal(x[0].double(), rows[(rows - mean).norm(dim=1).argmin()])
    left = list(range(len(rows)))
    for step in range(4):
        taken = x[:step].double().sum(dim=0)
        best = min(left, key=lambda row: ((taken + rows[row]) / (step + 1) - mean).norm().item())
        assert torch.equal(x[step].double(), rows[best])
        left.remove(best)


def test_features_decide_where_distances_are_taken() -> None:
    data = blobs()

    def column(x: torch.Tensor) -> torch.Tensor:
        return x[:, 3:4]

    x, _ = herding(data, [1, 1, 1], 0, features=column)
    near, _ = nearest_to_centroids(data, [1, 1, 1], 0, features=column)
    rows = data.rows_of(0)
    expected = rows[(rows[:, 3] - rows[:, 3].mean()).abs().argmin()]
    assert torch.equal(x[0], expected)
    assert torch.equal(near[0], expected)


@pytest.mark.parametrize("name", SELECTIONS)
def test_unusable_counts(name: str) -> None:
    data, select = blobs(), SELECTIONS[name]
    with pytest.raises(ValueError, match=r"one number a class \(3\), got 2"):
        select(data, [1, 1], 0)
    with pytest.raises(ValueError, match=r"0 or more and not all 0, got \[0, 0, 0\]"):
        select(data, [0, 0, 0], 0)
    with pytest.raises(ValueError, match="0 or more"):
        select(data, [1, -1, 1], 0)
    with pytest.raises(ValueError, match="class '1' has 24 training rows, got count 25"):
        select(data, [1, 25, 1], 0)
