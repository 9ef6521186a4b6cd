"""Classification: train on a small set, be judged on the test split of the real data."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..objectives import Measure, PublicSource
from .base import Learner, Model
from .data import Dataset
from .journal import Journal, digest
from .learners import LEARNERS, default_learners, make_learner
from .parallel import Progress, Run, run_all
from .results import FULL, Results, Row, learner_label
from .selection import SELECTIONS
from .training import PROTOCOLS, TrainingProtocol

__all__ = ["ClassificationTask", "compare", "full_data", "plain_selections"]

# (x, y), or (x, y, size) where the rows x are decoded from `size` stored ones.
Entry = tuple[Tensor, Tensor] | tuple[Tensor, Tensor, int]
Sets = Mapping[str, Sequence[Entry]]


class ClassificationTask:
    """Classification of `dataset`'s classes, judged on its test split ("test", the one environment).

    learners: names among convnet, mlp, logistic_regression, nearest_neighbours, or learner objects.
    seeds: training seeds. protocol: how the networks are trained.
    """

    def __init__(
        self,
        dataset: Dataset,
        learners: Iterable[str | Learner] | None = None,
        seeds: Iterable[int] = range(5),
        protocol: TrainingProtocol = PROTOCOLS["quick"],
    ) -> None:
        chosen = default_learners(dataset.kind) if learners is None else learners
        made = [make_learner(item, protocol) if isinstance(item, str) else item for item in chosen]
        if dataset.kind != "image" and any(item.name == "convnet" for item in made):
            raise ValueError(
                f"ClassificationTask: convnet needs images (N, C, H, W), {dataset.name} has vectors"
            )
        self.dataset, self.seeds, self.protocol = dataset, list(seeds), protocol
        self.learners: Mapping[str, Learner] = {item.name: item for item in made}
        self.environments: Sequence[str] = ("test",)
        self.real: Mapping[str, PublicSource] = {
            "real": PublicSource(dataset.train_x, dataset.train_y, group_count=len(dataset.classes))
        }

    def loss(self, net: nn.Module, measure: Measure) -> Tensor:
        """Cross entropy of each row, (N,), for class ids (N,) or soft labels (N, C)."""
        if measure.y is None:
            raise ValueError("ClassificationTask: loss: measure must hold labels y")
        return F.cross_entropy(net(measure.x), measure.y, reduction="none")

    def fit(self, learner: str, measure: Measure, seed: int) -> Model:
        """The named learner trained from scratch on the measure: a map from rows to scores (N, C)."""
        if learner not in self.learners:
            known = ", ".join(self.learners)
            raise ValueError(f"ClassificationTask: fit: learner must be one of {known}, got {learner!r}")
        return self.learners[learner].fit(measure, len(self.dataset.classes), seed)

    def risks(self, model: Model, environment: str = "test") -> dict[str, float]:
        """Shares in [0, 1] on the test split: error, accuracy, balanced_accuracy and worst_class_accuracy."""
        if environment not in self.environments:
            raise ValueError(f"ClassificationTask: risks: environment must be 'test', got {environment!r}")
        y = self.dataset.test_y
        right = model(self.dataset.test_x).argmax(dim=1) == y
        accuracy = right.double().mean().item()
        per_class = [right[y == label].double().mean().item() for label in torch.unique(y)]
        return {
            "error": 1 - accuracy,
            "accuracy": accuracy,
            "balanced_accuracy": statistics.fmean(per_class),
            "worst_class_accuracy": min(per_class),
        }


def compare(
    dataset: Dataset,
    sets: Sets,
    learners: Iterable[str | Learner] | None = None,
    seeds: Iterable[int] = range(5),
    progress: Progress | None = None,
    *,
    protocol: TrainingProtocol = PROTOCOLS["quick"],
    full_protocol: TrainingProtocol | None = None,
    full_seeds: Iterable[int] | None = None,
    cross: bool = False,
    journal: Journal | None = None,
) -> Results:
    """Train every learner from scratch on every set; accuracies on the test split, of the last epoch.

    sets: by name a list of (x, y), its selections; those of one name are grouped by size, one row a size. The
    size is the rows of x, or a third entry where they are decoded from fewer stored ones.
    seeds: training seeds. Run number j trains selection j (cyclically) with seed j (cyclically), as many
    runs as the longer of the two lists; with `cross` every selection with every seed. A learner without
    chance is fitted once for each selection. full_protocol, full_seeds: for the set named "full data", where
    they differ. journal: trainings that it holds are not repeated, new ones are entered.
    """
    task = ClassificationTask(dataset, learners, seeds, protocol)
    whole = task
    if full_protocol is not None or full_seeds is not None:
        # The iterables may be used up by now; the task keeps what they held.
        names = [name if name in LEARNERS else learner for name, learner in task.learners.items()]
        whole_seeds = task.seeds if full_seeds is None else full_seeds
        whole = ClassificationTask(dataset, names, whole_seeds, full_protocol or protocol)
    plan: list[tuple[ClassificationTask, str, int, Learner, list[Measure], list[tuple[int, int]]]] = []
    for name, entries in sets.items():
        if not entries:
            raise ValueError(f"compare: sets[{name!r}] must hold at least one (x, y)")
        for size in dict.fromkeys(map(_size, entries)):
            selections = [Measure(*entry[:2]) for entry in entries if _size(entry) == size]
            judge = whole if name == FULL else task
            for learner in judge.learners.values():
                pairs = _pairs(len(selections), judge.seeds, cross, learner)
                plan.append((judge, name, size, learner, selections, pairs))
    plain = protocol.name == PROTOCOLS["quick"].name
    results = Results(dataset.name, "images" if dataset.kind == "image" else "rows")
    entries_of = []
    data = "" if journal is None else dataset.hashes()
    for judge, name, size, learner, selections, pairs in plan:
        column = learner.name if learner.deterministic or plain else f"{learner.name}, {protocol.name}"
        text = f"{name}, {size} {results.unit}, {learner_label(column)}"
        small = not learner.deterministic and _is_small(judge, len(selections[0]))
        runs = []
        for index, seed in pairs:
            measure = selections[index]
            key = "" if journal is None else digest(data, learner, measure, seed)
            runs.append(Run(judge, learner.name, measure, seed, text, small, key))
        training = "" if learner.deterministic else judge.protocol.name
        entries_of.append((name, size, column, training, [index for index, _ in pairs], runs))
    outcomes = run_all([run for *_, runs in entries_of for run in runs], progress, journal)
    for name, size, column, training, indices, runs in entries_of:
        mine = [next(outcomes) for _ in runs]
        accuracies = [accuracy for accuracy, _ in mine]
        seconds = statistics.fmean(spent for _, spent in mine)
        results.rows.append(_row(name, size, column, training, accuracies, indices, seconds))
    return results


def plain_selections(
    dataset: Dataset, counts: Sequence[int], seeds: Iterable[int], names: Iterable[str] = SELECTIONS
) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """Every plain selection of these counts, once for each selection seed; equal ones are kept once."""
    result: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for name in names:
        for seed in seeds:
            x, y = SELECTIONS[name](dataset, counts, seed)
            if not any(torch.equal(x, other) for other, _ in result.get(name, [])):
                result.setdefault(name, []).append((x, y))
    return result


def full_data(dataset: Dataset) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """The whole training split as a set of `compare`."""
    return {FULL: [(dataset.train_x, dataset.train_y)]}


def _size(entry: Entry) -> int:
    return entry[2] if len(entry) == 3 else len(entry[0])


def _is_small(task: ClassificationTask, size: int) -> bool:
    """Whether a batch is too small for a second thread to pay."""
    batch = task.protocol.resolve(size).batch or size
    return min(batch, size) * math.prod(task.dataset.shape) <= 4096


def _pairs(selections: int, seeds: Sequence[int], cross: bool, learner: Learner) -> list[tuple[int, int]]:
    if not seeds:
        raise ValueError("compare: seeds must hold at least one training seed")
    if learner.deterministic:
        return [(index, seeds[0]) for index in range(selections)]
    if cross:
        return [(index, seed) for index in range(selections) for seed in seeds]
    return [(run % selections, seeds[run % len(seeds)]) for run in range(max(selections, len(seeds)))]


def _row(
    name: str,
    size: int,
    learner: str,
    training: str,
    accuracies: Sequence[float],
    indices: Sequence[int],
    seconds: float,
) -> Row:
    groups = [
        [a for a, i in zip(accuracies, indices, strict=True) if i == index] for index in sorted(set(indices))
    ]
    spreads = {}
    # With one run a selection the two causes cannot be told apart.
    if all(len(group) > 1 for group in groups):
        spreads["spread_training"] = statistics.fmean(statistics.stdev(group) for group in groups)
        if len(groups) > 1:
            spreads["spread_selection"] = statistics.stdev(statistics.fmean(group) for group in groups)
    return Row(
        name=name,
        size=size,
        learner=learner,
        training=training,
        mean=statistics.fmean(accuracies),
        std=statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0,
        seeds=len(accuracies),
        selections=len(groups),
        seconds=seconds,
        accuracies=tuple(accuracies),
        **spreads,
    )
