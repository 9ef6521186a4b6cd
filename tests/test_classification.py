"""Learners, the training loop, and what a comparison reports about them."""

from __future__ import annotations

import dataclasses
import math
import statistics

import pytest
import torch

from decoct.augment import STRATEGIES
from decoct.networks import build
from decoct.objectives import Measure
from decoct.tasks import ClassificationTask, Results, Row, Task, compare
from decoct.tasks.classification import full_data, plain_selections
from decoct.tasks.learners import LEARNERS, LogisticRegression, NearestNeighbours, make_learner
from decoct.tasks.training import PROTOCOLS, TrainingProtocol, protocol, train
from toy import blobs

BRIEF = TrainingProtocol("quick", epochs=15, batch=16)
VECTORS = ("mlp", "logistic_regression", "nearest_neighbours")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def measure_of(data, x=None, y=None, **options) -> Measure:
    return Measure(data.train_x if x is None else x, data.train_y if y is None else y, **options)


@pytest.mark.parametrize("learner", LEARNERS)
def test_every_learner_separates_separable_classes(learner: str) -> None:
    data = blobs(side=8)
    task = ClassificationTask(data, [learner], protocol=BRIEF)
    model = task.fit(learner, measure_of(data), 0)
    assert model(data.test_x).shape == (len(data.test_x), 3)
    assert task.risks(model)["accuracy"] == 1.0


@pytest.mark.parametrize("learner", LEARNERS)
def test_shuffled_labels_teach_nothing(learner: str) -> None:
    data = blobs(side=8, counts=(60, 60, 60))
    wrong = (data.train_y + 1) % 3
    task = ClassificationTask(data, [learner], protocol=BRIEF)
    assert task.risks(task.fit(learner, measure_of(data, y=wrong), 0))["accuracy"] == 0.0


def test_task_protocol_and_loss() -> None:
    data = blobs()
    task = ClassificationTask(data)
    assert isinstance(task, Task)
    assert list(task.learners) == ["mlp", "logistic_regression"]
    assert list(ClassificationTask(blobs(side=8)).learners) == ["convnet", "logistic_regression"]
    assert task.real["real"].group_count == 3
    net = build("mlp", data.shape, 3)
    x = data.train_x[:5].requires_grad_()
    hard = task.loss(net, Measure(x, data.train_y[:5]))
    soft = task.loss(net, Measure(x, torch.nn.functional.one_hot(data.train_y[:5], 3).float()))
    expected = -net(x).log_softmax(1)[torch.arange(5), data.train_y[:5]]
    torch.testing.assert_close(hard, expected)
    torch.testing.assert_close(soft, expected)
    (gradient,) = torch.autograd.grad(hard.sum(), x)
    assert gradient.abs().sum() > 0


def test_risks_by_hand() -> None:
    data = blobs((20, 40, 60))
    task = ClassificationTask(data)

    def always_two(x: torch.Tensor) -> torch.Tensor:
        return torch.tensor([[0.0, 0.0, 1.0]]).expand(len(x), 3)

    share = (data.test_y == 2).float().mean().item()
    assert task.risks(always_two) == pytest.approx(
        {"accuracy": share, "error": 1 - share, "balanced_accuracy": 1 / 3, "worst_class_accuracy": 0.0}
    )
    with pytest.raises(ValueError, match="environment must be 'test', got 'night'"):
        task.risks(always_two, "night")


@pytest.mark.parametrize("learner", ["convnet", "mlp"])
@pytest.mark.parametrize("augmented", [False, True])
def test_training_repeats_bitwise_and_depends_on_its_seed(learner: str, augmented: bool) -> None:
    data = blobs(side=8)
    augmentation = PROTOCOLS["published-augmented"].augmentation if augmented else None
    plan = dataclasses.replace(BRIEF, epochs=3, augmentation=augmentation)
    measure = measure_of(data)
    fits = []
    for seed in (0, 0, 1):
        torch.rand(seed + 3)  # the global generator plays no part
        fits.append(make_learner(learner, plan).fit(measure, 3, seed)(data.test_x))
    assert torch.equal(fits[0], fits[1])
    assert not torch.equal(fits[0], fits[2])


def test_augmentation_changes_training() -> None:
    data = blobs(side=8)
    views = (None, protocol("published-augmented").augmentation)
    plans = [dataclasses.replace(BRIEF, epochs=3, augmentation=view) for view in views]
    first, second = (make_learner("convnet", plan).fit(measure_of(data), 3, 0)(data.test_x) for plan in plans)
    assert not torch.equal(first, second)


def test_a_step_is_the_stated_one() -> None:
    """Two epochs of one batch each: SGD with momentum and weight decay, a tenth of the rate in the second."""
    x, y = torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    network, twin = build("mlp", (4,), 3), build("mlp", (4,), 3)
    twin.load_state_dict(network.state_dict())
    train(network, Measure(x, y), TrainingProtocol("two", epochs=2, batch=6, lr=0.1), seed=0)
    velocity = [torch.zeros_like(p) for p in twin.parameters()]
    for rate in (0.1, 0.01):
        loss = torch.nn.functional.cross_entropy(twin(x), y)
        gradients = torch.autograd.grad(loss, list(twin.parameters()))
        with torch.no_grad():
            for parameter, gradient, v in zip(twin.parameters(), gradients, velocity, strict=True):
                v.mul_(0.9).add_(gradient + 5e-4 * parameter)
                parameter -= rate * v
    for found, expected in zip(network.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(found, expected)


def test_mass_weighs_rows() -> None:
    x, y = torch.randn(8, 4), torch.tensor([0, 1] * 4)
    plan = TrainingProtocol("one", epochs=4, batch=8, lr=0.1)
    weighted, reduced = build("mlp", (4,), 2), build("mlp", (4,), 2)
    reduced.load_state_dict(weighted.state_dict())
    mass = torch.tensor([1.0] * 4 + [0.0] * 4)
    train(weighted, Measure(x, y, mass), plan, seed=0)
    train(reduced, Measure(x[:4], y[:4]), plan, seed=0)
    for found, expected in zip(weighted.parameters(), reduced.parameters(), strict=True):
        torch.testing.assert_close(found, expected)


def test_soft_labels_and_mass_in_the_other_learners() -> None:
    data = blobs()
    hot = torch.nn.functional.one_hot(data.train_y, 3).float()
    logistic = LogisticRegression()
    hard = logistic.fit(measure_of(data), 3, 0)(data.test_x)
    torch.testing.assert_close(
        logistic.fit(measure_of(data, y=hot), 3, 0)(data.test_x), hard, atol=1e-4, rtol=0
    )
    mass = torch.where(data.train_y == 0, 50.0, 1.0)
    assert logistic.fit(measure_of(data, mass=mass), 3, 0)(data.test_x)[:, 0].mean() > hard[:, 0].mean()
    nearest = NearestNeighbours()
    assert torch.equal(nearest.fit(measure_of(data, y=hot), 3, 0)(data.test_x).argmax(1), data.test_y)


def test_a_class_without_rows_is_never_predicted_by_estimators() -> None:
    data = blobs()
    keep = data.train_y != 1
    for learner in (LogisticRegression(), NearestNeighbours()):
        model = learner.fit(Measure(data.train_x[keep], data.train_y[keep]), 3, 0)
        assert (model(data.test_x)[:, 1] == 0).all()
        alone = learner.fit(Measure(data.train_x[:4], torch.ones(4, dtype=torch.int64)), 3, 0)
        assert (alone(data.test_x).argmax(dim=1) == 1).all()


def test_epochs_follow_the_size_of_the_set() -> None:
    plans = [PROTOCOLS["quick"].resolve(rows) for rows in (10, 100, 1438, 60000)]
    assert [(plan.epochs, plan.batch, plan.lr) for plan in plans] == [
        (200, 32, 0.01), (100, 32, 0.01), (26, 64, 0.01), (5, 128, 0.01),
    ]  # fmt: skip
    assert all(plan.augmentation is not None for plan in plans)
    published = protocol("published").resolve(60000, lr=0.05)
    assert (published.epochs, published.batch, published.lr, published.drops) == (300, 256, 0.01, (0.5,))
    assert (published.momentum, published.weight_decay, published.augmentation) == (0.9, 5e-4, None)


def test_protocols_by_name() -> None:
    for name in ("quick", "published-augmented"):
        mirrored, plain = protocol(name, flip=True), protocol(name)
        assert mirrored.augmentation is not None
        assert plain.augmentation is not None
        assert mirrored.augmentation.strategies == STRATEGIES
        assert "flip" not in plain.augmentation.strategies
    shorter = protocol("published", epochs=7)
    assert (shorter.epochs, shorter.name) == (7, "published, 7 epochs")
    with pytest.raises(
        ValueError, match="name must be one of quick, published, published-augmented, got 'best'"
    ):
        protocol("best")
    with pytest.raises(ValueError, match="epochs must be positive, got -1"):
        TrainingProtocol("x", epochs=-1)


def test_wrong_learners() -> None:
    with pytest.raises(ValueError, match=r"learner must be one of convnet, mlp, .*, got 'forest'"):
        compare(blobs(), full_data(blobs()), ["forest"])
    with pytest.raises(ValueError, match="convnet needs images"):
        ClassificationTask(blobs(), ["convnet"])
    with pytest.raises(ValueError, match="learner must be one of mlp, got 'convnet'"):
        ClassificationTask(blobs(), ["mlp"]).fit("convnet", measure_of(blobs()), 0)
    with pytest.raises(ValueError, match="rows with labels"):
        make_learner("mlp").fit(Measure(torch.randn(3, 6)), 3, 0)
    with pytest.raises(ValueError, match="at least one training seed"):
        compare(blobs(), full_data(blobs()), ["mlp"], seeds=[])
    with pytest.raises(ValueError, match="must hold at least one"):
        compare(blobs(), {"mine": []}, ["mlp"])


@dataclasses.dataclass(frozen=True)
class Scripted:
    """A learner of known accuracy: it is right on the first `seed + 10 * first value` test rows."""

    answers: torch.Tensor
    deterministic: bool = False
    name: str = "scripted"

    def fit(self, measure: Measure, classes: int, seed: int):
        right = seed + 10 * int(measure.x[0, 0])

        def model(x: torch.Tensor) -> torch.Tensor:
            hot = torch.nn.functional.one_hot(self.answers, classes).float()
            hot[right:] = hot[right:].roll(1, dims=1)
            return hot

        return model


def selection(value: float, rows: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.full((rows, 6), value), torch.zeros(rows, dtype=torch.int64)


def percent(data, *right: int) -> list[float]:
    return [100 * count / len(data.test_y) for count in right]


def test_runs_pair_selections_with_seeds_and_std_is_over_runs() -> None:
    data = blobs()
    learner = Scripted(data.test_y)
    results = compare(data, {"mine": [selection(0.0), selection(1.0)]}, [learner], seeds=[1, 2, 3])
    (row,) = results.rows
    expected = percent(data, 1, 12, 3)
    assert row.accuracies == pytest.approx(expected)
    assert row.mean == pytest.approx(statistics.fmean(expected))
    assert row.std == pytest.approx(statistics.stdev(expected))
    assert (row.seeds, row.selections, row.size, row.name) == (3, 2, 3, "mine")
    assert math.isnan(row.spread_selection)  # one run a selection cannot tell the causes apart


def test_crossed_runs_tell_selections_from_trainings() -> None:
    data = blobs()
    sets = {"mine": [selection(0.0), selection(1.0)]}
    (row,) = compare(data, sets, [Scripted(data.test_y)], seeds=[1, 3], cross=True).rows
    assert row.accuracies == pytest.approx(percent(data, 1, 3, 11, 13))
    assert row.spread_training == pytest.approx(statistics.stdev(percent(data, 1, 3)))
    assert row.spread_selection == pytest.approx(statistics.stdev(percent(data, 2, 12)))


def test_a_learner_without_chance_runs_once_a_selection() -> None:
    data = blobs()
    sets = {"mine": [selection(0.0), selection(1.0)], "other": [selection(1.0)]}
    rows = compare(data, sets, [Scripted(data.test_y, deterministic=True)], seeds=[4, 5, 6]).rows
    assert rows[0].accuracies == pytest.approx(percent(data, 4, 14))
    assert (rows[1].seeds, rows[1].std) == (1, 0.0)


def test_selections_of_one_name_are_grouped_by_size() -> None:
    data = blobs()
    sets = {"mine": [selection(0.0, rows=3), selection(1.0, rows=5), selection(1.0, rows=3)]}
    rows = compare(data, sets, [Scripted(data.test_y)], seeds=[0]).rows
    assert [(row.size, row.selections) for row in rows] == [(3, 2), (5, 1)]


def test_decoded_rows_count_as_what_is_stored() -> None:
    data = blobs()
    x, y = selection(1.0, rows=8)
    sets = {"mine": [(x, y, 2), selection(0.0, rows=2)], "other": [selection(0.0, rows=8)]}
    rows = compare(data, sets, [Scripted(data.test_y)], seeds=[0]).rows
    assert [(row.name, row.size, row.selections) for row in rows] == [("mine", 2, 2), ("other", 8, 1)]


def test_full_data_may_have_its_own_seeds_and_protocol() -> None:
    data = blobs()
    chosen = protocol("published", epochs=2)
    results = compare(
        data, {"random": [selection(0.0)], **full_data(data)}, ["mlp"], [0, 1, 2],
        protocol=chosen, full_protocol=BRIEF, full_seeds=[7],
    )  # fmt: skip
    small, full = results.rows
    assert (small.seeds, small.training, small.learner) == (
        3,
        "published, 2 epochs",
        "mlp, published, 2 epochs",
    )
    assert (full.seeds, full.training, full.learner) == (1, "quick", "mlp, published, 2 epochs")
    assert full.label == "MLP, published, 2 epochs"


@pytest.mark.parametrize("learners", [("mlp",), VECTORS])
def test_results_do_not_depend_on_how_many_run_side_by_side(learners: tuple[str, ...]) -> None:
    data = blobs(spread=2.5)
    sets = plain_selections(data, [2, 2, 2], [0, 1])
    tables = []
    for threads in (1, 2, 2):
        torch.set_num_threads(threads)
        tables.append(
            [row.accuracies for row in compare(data, sets, learners, range(3), protocol=BRIEF).rows]
        )
        assert torch.get_num_threads() == threads
    assert tables[0] == tables[1] == tables[2]


def test_progress_counts_runs() -> None:
    data = blobs()
    calls: list[tuple[int, int, str]] = []
    compare(
        data, {"mine": [selection(0.0)]}, VECTORS, range(2), lambda *call: calls.append(call), protocol=BRIEF
    )
    assert [done for done, _, _ in calls] == sorted(done for done, _, _ in calls)
    assert {total for _, total, _ in calls} == {4}  # two trainings, and one fit of each of the others
    assert calls[-1][:2] == (4, 4)
    assert "mine, 3 rows, MLP" in {text for _, _, text in calls}


def test_plain_selections_keep_equal_ones_once() -> None:
    chosen = plain_selections(blobs(), [1, 1, 1], range(4))
    assert {name: len(entries) for name, entries in chosen.items()} == {
        "random": 4, "k-means centroids": 1, "nearest to centroids": 1, "herding": 1,
    }  # fmt: skip


def row(name: str, size: int, mean: float, learner: str = "convnet") -> Row:
    return Row(name, size, learner, "quick", mean, 0.5, 5, 1, 1.0, (mean,) * 5)


TABLE = Results(
    "digits",
    "images",
    [
        row("condensed, mmd", 10, 88.0), row("random", 10, 66.0), row("herding", 10, 80.0),
        row("condensed, mmd", 100, 97.0), row("random", 100, 92.4), row("k-means centroids", 100, 95.0),
        row("full data", 1438, 99.0), row("condensed, mmd", 10, 1.0, "mlp"),
    ],
)  # fmt: skip


def test_the_sentence() -> None:
    assert TABLE.sentence() == (
        "On digits, 10 images keep 88.9 % and 100 images keep 98.0 % of the accuracy that all 1438 give "
        "(99.0 %, ConvNet); random ones of these sizes keep 66.7 % and 93.3 %."
    )


def test_the_sentence_says_when_a_plain_selection_wins() -> None:
    beaten = TABLE.merge(Results("digits", "images", [row("k-means centroids", 100, 97.5)]))
    assert beaten.sentence().endswith(
        "At 100 images a plain selection wins: k-means centroids (97.5 %) against condensed, mmd (97.0 %)."
    )
    level = TABLE.merge(Results("digits", "images", [row("herding", 10, 88.0)]))
    assert "At 10 images a plain selection does as well: herding (88.0 %)" in level.sentence()
    assert TABLE.concessions() == []


def test_merged_rows_replace_their_own_kind_only() -> None:
    merged = TABLE.merge(
        Results("digits", "images", [row("random", 10, 70.0), row("random", 10, 50.0, "mlp")])
    )
    assert len(merged.rows) == len(TABLE.rows) + 1
    found = [merged.find("random", 10, learner) for learner in ("convnet", "mlp")]
    assert [entry.mean for entry in found if entry] == [70.0, 50.0]
    assert merged.learners == ["convnet", "mlp"]


def test_results_survive_a_file() -> None:
    import json

    text = json.dumps(TABLE.to_json(), allow_nan=False)
    again = Results.from_json(json.loads(text))
    assert again.sentence() == TABLE.sentence()
    assert [r.accuracies for r in again.rows] == [r.accuracies for r in TABLE.rows]
    assert math.isnan(again.rows[0].spread_training)
