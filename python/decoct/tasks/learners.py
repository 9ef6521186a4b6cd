"""The learners that judge a set: two networks, and two methods that share nothing with them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .. import networks
from .._extras import require
from ..objectives import Measure, seeded
from .base import Learner, Model
from .training import PROTOCOLS, TrainingProtocol, scores, train

__all__ = ["LEARNERS", "LogisticRegression", "NearestNeighbours", "NetworkLearner", "make_learner"]

LEARNERS = {
    "convnet": "ConvNet",
    "mlp": "MLP",
    "logistic_regression": "logistic regression",
    "nearest_neighbours": "nearest neighbour",
}

# Plain fully connected layers have no norm that makes them indifferent to the step; they want a larger one.
LEARNING_RATES = {"convnet": 0.01, "mlp": 0.05}


@dataclass(frozen=True)
class NetworkLearner:
    """A network of `decoct.networks` trained from freshly drawn weights. `name` is "convnet" or "mlp"."""

    name: str
    protocol: TrainingProtocol = PROTOCOLS["quick"]
    width: int | None = None
    depth: int | None = None
    deterministic: bool = field(default=False, init=False)

    def fit(self, measure: Measure, classes: int, seed: int) -> Model:
        shape = tuple(measure.x.shape[1:])
        weights = seeded(seed, "initial weights")
        network = networks.build(
            self.name, shape, classes, width=self.width, depth=self.depth, generator=weights
        )
        train(network, measure, self.protocol, seed, LEARNING_RATES[self.name])
        return _NetworkModel(network)


@dataclass(frozen=True)
class LogisticRegression:
    """scikit-learn's multinomial logistic regression on flattened rows; `strength` is the inverse penalty."""

    strength: float = 0.1
    iterations: int = 200
    name: str = field(default="logistic_regression", init=False)
    deterministic: bool = field(default=True, init=False)

    def fit(self, measure: Measure, classes: int, seed: int) -> Model:
        linear, exceptions = require("sklearn.linear_model"), require("sklearn.exceptions")
        x, y, mass = _hard_rows(measure, classes)
        if len(torch.unique(y)) == 1:
            # scikit-learn refuses to fit this; a budget may leave all classes but one without rows.
            constant = require("sklearn.dummy").DummyClassifier().fit(x.numpy(), y.numpy())
            return _EstimatorModel(constant, classes)
        model = linear.LogisticRegression(C=self.strength, max_iter=self.iterations)
        with warnings.catch_warnings():
            # A bounded number of iterations is this learner's stopping rule.
            warnings.simplefilter("ignore", exceptions.ConvergenceWarning)
            model.fit(x.numpy(), y.numpy(), sample_weight=None if mass is None else mass.numpy())
        return _EstimatorModel(model, classes)


@dataclass(frozen=True)
class NearestNeighbours:
    """scikit-learn's k nearest neighbours on flattened rows, k = 1 by default."""

    neighbours: int = 1
    name: str = field(default="nearest_neighbours", init=False)
    deterministic: bool = field(default=True, init=False)

    def fit(self, measure: Measure, classes: int, seed: int) -> Model:
        neighbors = require("sklearn.neighbors")
        if measure.y is None:
            raise ValueError("NearestNeighbours: measure must hold labels y")
        y = measure.y.detach()
        y = y.argmax(dim=1) if y.is_floating_point() else y
        model = neighbors.KNeighborsClassifier(min(self.neighbours, len(y)), algorithm="brute")
        model.fit(measure.x.detach().flatten(1).numpy(), y.numpy())
        return _EstimatorModel(model, classes)


def make_learner(name: str, protocol: TrainingProtocol = PROTOCOLS["quick"]) -> Learner:
    """A learner by name; `protocol` is for the networks. Raises ValueError for an unknown name."""
    if name in LEARNING_RATES:
        return NetworkLearner(name, protocol)
    if name == "logistic_regression":
        return LogisticRegression()
    if name == "nearest_neighbours":
        return NearestNeighbours()
    raise ValueError(f"learner must be one of {', '.join(LEARNERS)}, got {name!r}")


def default_learners(kind: str) -> Sequence[str]:
    """Learners for data of this kind, the one that headlines go by first."""
    return ("convnet", "logistic_regression") if kind == "image" else ("mlp", "logistic_regression")


@dataclass(frozen=True)
class _NetworkModel:
    network: nn.Module

    def __call__(self, x: Tensor) -> Tensor:
        return scores(self.network, x)


@dataclass(frozen=True)
class _EstimatorModel:
    estimator: Any
    classes: int

    def __call__(self, x: Tensor) -> Tensor:
        found = torch.from_numpy(self.estimator.predict_proba(x.flatten(1).numpy())).float()
        result = torch.zeros(len(x), self.classes)
        result[:, torch.from_numpy(self.estimator.classes_).long()] = found
        return result


def _hard_rows(measure: Measure, classes: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Flattened rows with class ids; a soft label becomes one weighted row for each class it names."""
    if measure.y is None:
        raise ValueError("LogisticRegression: measure must hold labels y")
    x, y = measure.x.detach().flatten(1), measure.y.detach()
    mass = None if measure.mass is None else measure.mass.detach()
    if not y.is_floating_point():
        return x, y, mass
    rows, ids = (y > 0).nonzero(as_tuple=True)
    weights = y[rows, ids] if mass is None else y[rows, ids] * mass[rows]
    return x[rows], ids, weights
