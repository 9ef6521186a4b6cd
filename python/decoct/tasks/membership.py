"""Membership inference: how well training rows are told from others by what a condensed set gives away.

An empirical measure of two simple attacks, on one set and one split. A low value guarantees nothing; only an
accountant's epsilon bounds what any attack can do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..objectives import Measure
from .base import Learner
from .data import Dataset

__all__ = ["Attack", "membership_inference", "roc_area", "true_positive_rate"]

FALSE_POSITIVES = 0.01


@dataclass(frozen=True)
class Attack:
    """What an attack reached.

    name: of the attack. area: under its ROC curve; 0.5 is guessing. caught: share of the members that it
    names while it takes at most one per cent of the others for members; 0.01 is guessing. members, others:
    rows.
    """

    name: str
    area: float
    caught: float
    members: int
    others: int


def membership_inference(
    dataset: Dataset, x: Tensor, y: Tensor, learners: Sequence[Learner] = (), *, seed: int = 0
) -> list[Attack]:
    """Attacks on a condensed set x (M, ...) with labels y: ids (M,) or soft labels (M, C).

    Members are the rows of the training split, others those of the test split, which must come from the
    same distribution, as those of a random split do.
    "distance": rows that lie nearer to a synthetic row of their class are taken for members. For each of
    `learners` "loss": it is trained on the set with `seed`, and rows of smaller loss are taken for members.
    """
    rows, labels = torch.cat([dataset.train_x, dataset.test_x]), torch.cat([dataset.train_y, dataset.test_y])
    member = torch.arange(len(rows)) < len(dataset.train_x)
    scores = {"distance to the nearest synthetic row": -_distances(rows, labels, x, y)}
    for learner in learners:
        model = learner.fit(Measure(x, y), len(dataset.classes), seed)
        scores[f"loss of {learner.name}"] = -_losses(learner, model(rows), labels)
    members, others = int(member.sum()), int((~member).sum())
    return [
        Attack(name, roc_area(score, member), true_positive_rate(score, member), members, others)
        for name, score in scores.items()
    ]


def roc_area(scores: Tensor, member: Tensor) -> float:
    """Probability that a member's score is above another row's; half of the ties count. 0.5 without rows."""
    positive, negative = scores[member].double(), scores[~member].double().sort().values
    if not len(positive) or not len(negative):
        return 0.5
    below = torch.searchsorted(negative, positive, right=False)
    up_to = torch.searchsorted(negative, positive, right=True)
    return float((below + up_to).double().mean() / (2 * len(negative)))


def true_positive_rate(scores: Tensor, member: Tensor, false_positives: float = FALSE_POSITIVES) -> float:
    """Largest share of the members above a threshold that at most this share of the others passes."""
    positive, negative = scores[member].double(), scores[~member].double().sort(descending=True).values
    if not len(positive) or not len(negative):
        return 0.0
    threshold = negative[int(false_positives * len(negative))]
    return float((positive > threshold).double().mean())


def _distances(rows: Tensor, labels: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """To the nearest synthetic row of a row's class; infinite where the class has none."""
    ids = y.argmax(dim=1) if y.is_floating_point() else y
    found = torch.full((len(rows),), torch.inf)
    for label in torch.unique(ids).tolist():
        mine = labels == label
        found[mine] = torch.cdist(rows[mine].flatten(1), x[ids == label].flatten(1)).amin(1)
    return found


def _losses(learner: Learner, scores: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of scores; a deterministic learner of this package gives probabilities."""
    if learner.deterministic:
        return -scores.gather(1, labels[:, None])[:, 0].clamp(min=1e-12).log()
    return F.cross_entropy(scores, labels, reduction="none")
