"""Membership inference: an attack finds what is copied, and guesses where nothing is given away."""

from __future__ import annotations

import pytest
import torch

from decoct.tasks import membership_inference
from decoct.tasks.learners import LogisticRegression, make_learner
from decoct.tasks.membership import roc_area, true_positive_rate
from decoct.tasks.training import TrainingProtocol
from toy import blobs


def test_published_training_rows_are_found() -> None:
    data = blobs((40, 30, 20), spread=3.0)
    found = membership_inference(data, data.train_x, data.train_y, [make_learner("nearest_neighbours")])
    assert [attack.name for attack in found] == [
        "distance to the nearest synthetic row",
        "loss of nearest_neighbours",
    ]
    assert found[0].area == 1.0
    assert found[0].caught == 1.0
    assert found[1].area > 0.5
    assert (found[0].members, found[0].others) == (len(data.train_x), len(data.test_x))


def test_a_set_that_knows_no_row_gives_nothing_away() -> None:
    data = blobs((400, 400), spread=1.0)
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(2).repeat_interleave(5)
    x = torch.randn(10, *data.shape, generator=generator)
    learner = make_learner("mlp", TrainingProtocol("brief", epochs=5, batch=5))
    for attack in membership_inference(data, x, y, [learner, LogisticRegression()]):
        # 640 members and 160 others: the area's deviation is at most 0.026.
        assert abs(attack.area - 0.5) < 4 * 0.026
        assert attack.caught < 0.06


def test_soft_labels_and_absent_classes() -> None:
    data = blobs((20, 20, 20))
    soft = torch.tensor([[0.9, 0.1, 0.0], [0.1, 0.8, 0.1]])
    (found,) = membership_inference(data, data.train_x[:2], soft)
    assert 0 <= found.area <= 1


def test_area_and_rate_by_hand() -> None:
    scores = torch.tensor([3.0, 1.0, 2.0, 2.0, 0.0])
    member = torch.tensor([True, True, True, False, False])
    # Pairs: 3 > 2, 3 > 0; 1 < 2, 1 > 0; 2 = 2, 2 > 0.
    assert roc_area(scores, member) == pytest.approx((2 + 1 + 1.5) / 6)
    assert true_positive_rate(scores, member) == pytest.approx(1 / 3)
    assert true_positive_rate(scores, member, 0.5) == 1.0
    nobody = torch.zeros(5, dtype=torch.bool)
    assert roc_area(scores, nobody) == roc_area(scores, ~nobody) == 0.5
    assert true_positive_rate(scores, nobody) == 0.0
    infinite = torch.tensor([-torch.inf, -torch.inf, 1.0])
    assert roc_area(infinite, torch.tensor([True, False, True])) == pytest.approx(0.75)


def test_area_is_that_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    generator = torch.Generator().manual_seed(1)
    scores = torch.randint(0, 20, (300,), generator=generator).float()
    member = torch.rand(300, generator=generator) < 0.3
    assert roc_area(scores, member) == pytest.approx(metrics.roc_auc_score(member.numpy(), scores.numpy()))
    rates = metrics.roc_curve(member.numpy(), scores.numpy(), drop_intermediate=False)
    best = max(caught for alarms, caught, _ in zip(*rates, strict=True) if alarms <= 0.1)
    assert true_positive_rate(scores, member, 0.1) == pytest.approx(best)
