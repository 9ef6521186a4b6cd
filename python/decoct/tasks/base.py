"""What a task is to the layers below and the command line: data, learners and the risk that counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from ..objectives import Measure, Source

__all__ = ["Learner", "Model", "Task"]


class Model(Protocol):
    """What fitting gives: a map from rows (N, ...) to scores, one column a class (or a target)."""

    def __call__(self, x: Tensor) -> Tensor: ...


class Learner(Protocol):
    """A way to fit a model to labelled rows.

    deterministic: the seed changes nothing, so one fit stands for all seeds.
    """

    @property
    def name(self) -> str: ...

    @property
    def deterministic(self) -> bool: ...

    def fit(self, measure: Measure, classes: int, seed: int) -> Model:
        """A model from scratch: y holds class ids (N,) or soft labels (N, classes); mass weighs the rows."""
        ...


@runtime_checkable
class Task(Protocol):
    """What condensed data is for.

    real: the real data by name. learners: what may be trained on the condensed set, by name.
    environments: the conditions under which a model is judged (test splits, boundary conditions, sites), by
    name.
    """

    @property
    def real(self) -> Mapping[str, Source]: ...

    @property
    def learners(self) -> Mapping[str, Learner]: ...

    @property
    def environments(self) -> Sequence[str]: ...

    def loss(self, net: nn.Module, measure: Measure) -> Tensor:
        """Loss of each row, (N,), differentiable in the network, the rows and the labels."""
        ...

    def fit(self, learner: str, measure: Measure, seed: int) -> Any:
        """A model of this learner trained from scratch on the measure."""
        ...

    def risks(self, model: Any, environment: str) -> dict[str, float]:
        """Named risks of the model in one environment, from data that neither fit nor condensation saw."""
        ...
