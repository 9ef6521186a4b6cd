"""The loop: exact steps, resuming, budgets, interruption."""

from __future__ import annotations

import signal
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from decoct.augment import Augmentation
from decoct.condense import Condenser, FreshNetworks, Phase, Synthetic, checkpoint
from decoct.condense.recipes import Recipe, condenser, default_recipe, objective
from decoct.kernels import Gaussian
from decoct.networks import build
from decoct.objectives import (
    MMD,
    Context,
    FeatureMean,
    Match,
    NetFeatures,
    Objective,
    PublicSource,
    counts_to_offsets,
    seeded,
)


def source(counts=(12, 9, 7), shape=(4,), seed=0):
    groups_of = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    x = torch.randn(sum(counts), *shape, generator=seeded(seed, "rows")) + groups_of.view(
        -1, *[1] * len(shape)
    )
    return PublicSource(x, groups_of, group_count=len(counts))


def linear(real, synthetic):
    (a,), (b,) = FeatureMean().mean(real), FeatureMean().mean(synthetic)
    return (a - b).square().sum(1)


def plain_sgd(groups):
    return torch.optim.SGD(groups)


def make(counts=(2, 1, 3), *, steps=10, real=None, average=0.0, schedule="constant", **options):
    """A small loop over all that has state: fresh networks, augmentation, momentum, averages, snapshots."""
    real = real or source((12, 9, 7), (1, 8, 8))
    net = build("convnet", (1, 8, 8), 3, width=8, depth=2)
    term = Match(MMD("linear"), NetFeatures(7), name="net") + 0.5 * Match(
        MMD(Gaussian(scales=(0.5, 1, 2))), name="rows"
    )
    synthetic = Synthetic.from_noise(counts, (1, 8, 8), seeded(1, "start"), lr=2.0)
    phases = [Phase(steps, term, batch_real=5, average=average, schedule=schedule)]
    settings = {"pool": FreshNetworks(net), "augmentation": Augmentation(), "keep": (0, 4, 8), **options}
    return Condenser(synthetic, real, phases, **settings)


def test_one_step_by_hand():
    real = source()
    start = torch.zeros(6, 4)
    groups = counts_to_offsets((2, 1, 3))
    loop = Condenser(Synthetic(start, groups, lr=0.25), real, [Phase(1, Match(linear))], optimiser=plain_sgd)
    record = loop.step()
    means = torch.stack([real.x[real.y == g].mean(0) for g in range(3)])
    expected = torch.cat([0.25 * 2 * means[g].expand(n, 4) / n for g, n in enumerate((2, 1, 3))])
    torch.testing.assert_close(loop.synthetic.x.detach(), expected)
    assert record.loss == pytest.approx(float(means.square().sum()), rel=1e-5)
    assert record.terms["match"] == pytest.approx(record.loss)
    assert (record.step, record.steps) == (1, 1)
    with pytest.raises(RuntimeError, match="all 1 steps"):
        loop.step()


def test_all_groups_take_one_network_call_a_side():
    calls = []

    class Net(nn.Module):
        def features(self, x):
            calls.append((len(x), torch.is_grad_enabled()))
            return x

    class Fixed(FreshNetworks):
        def draw(self, context):
            return self.net

    loop = Condenser(
        Synthetic(torch.zeros(6, 4), counts_to_offsets((2, 1, 3))),
        source(),
        [Phase(1, Match(MMD("linear"), NetFeatures(1000)), batch_real=8)],
        pool=Fixed(Net()),
    )
    loop.step()
    assert calls == [(8 + 8 + 7, False), (6, True)]


def test_joint_and_per_group_updates_differ_by_momentum_alone():
    def points(updates, optimiser):
        real = source()
        synthetic = Synthetic(torch.zeros(6, 4), counts_to_offsets((2, 1, 3)), lr=0.1)
        loop = Condenser(synthetic, real, [Phase(3, Match(linear))], updates=updates, optimiser=optimiser)
        loop.run()
        return synthetic.rows()[0]

    torch.testing.assert_close(points("joint", plain_sgd), points("per_group", plain_sgd))

    def momentum(groups):
        return torch.optim.SGD(groups, momentum=0.5)

    # By hand: with per-group updates each group's step also moves all others by what their momentum has left.
    real = source()
    means = torch.stack([real.x[real.y == g].mean(0) for g in range(3)])
    x, velocity, sizes = torch.zeros(6, 4), torch.zeros(6, 4), torch.tensor([2, 2, 1, 3, 3, 3])
    group_of = torch.tensor([0, 0, 1, 2, 2, 2])
    for _ in range(3):
        for group in range(3):
            mine = (group_of == group)[:, None]
            centres = torch.stack([x[group_of == g].mean(0) for g in range(3)])
            gradient = 2 * (centres - means)[group_of] / sizes[:, None] * mine
            velocity = 0.5 * velocity + gradient
            x = x - 0.1 * velocity
    torch.testing.assert_close(points("per_group", momentum), x)
    assert (points("joint", momentum) - x).abs().max() > 0.01


def test_per_group_updates_use_the_joint_steps_draws():
    joint, single = (
        make(steps=1, optimiser=plain_sgd),
        make(steps=1, updates="per_group", optimiser=plain_sgd),
    )
    a, b = joint.step(), single.step()
    torch.testing.assert_close(joint.synthetic.x, single.synthetic.x)
    assert b.loss == pytest.approx(a.loss, rel=1e-4)
    assert b.terms == pytest.approx(a.terms, rel=1e-4)


@pytest.mark.parametrize("updates", ["joint", "per_group"])
def test_ten_steps_equal_five_resumed_five(updates, tmp_path):
    path = tmp_path / "checkpoint.pt"
    whole = make(updates=updates, average=0.7, schedule="cosine")
    whole.run()
    torch.rand(3)
    first = make(updates=updates, average=0.7, schedule="cosine")
    first.run(path, until=5)
    assert first.step_count == 5
    second = make(updates=updates, average=0.7, schedule="cosine")
    second.load_state_dict(checkpoint.load(path))
    second.run(path)
    assert torch.equal(whole.synthetic.x, second.synthetic.x)
    assert not torch.equal(whole.synthetic.x, first.synthetic.x)
    assert [step for step, _, _ in second.snapshots] == [0, 4, 8]
    for (_, _, a), (_, _, b) in zip(whole.snapshots, second.snapshots, strict=True):
        assert torch.equal(a, b)
    again = make(updates=updates, average=0.7, schedule="cosine")
    again.load_state_dict(checkpoint.load(path))
    assert again.finished
    assert torch.equal(again.run().x, whole.synthetic.x)


def test_seeds_repeat_and_change_a_run():
    a, b, c = make(seed=3), make(seed=3), make(seed=4)
    torch.manual_seed(99)
    for loop in (a, b, c):
        loop.run()
    assert torch.equal(a.synthetic.x, b.synthetic.x)
    assert not torch.equal(a.synthetic.x, c.synthetic.x)


def test_a_state_of_other_settings_is_refused():
    state = make(steps=10).state_dict()
    for other in (
        make(steps=11),
        make(seed=1),
        make(updates="per_group"),
        make(augmentation=None),
        make((2, 2, 2)),
    ):
        with pytest.raises(ValueError, match="another run"):
            other.load_state_dict(state)


def test_unequal_budgets_and_absent_groups():
    counts = (3, 0, 2, 1)
    loop = make(counts, real=source((12, 9, 0, 7), (1, 8, 8)), optimiser=plain_sgd)
    start = loop.synthetic.rows()[0]
    loop.run()
    moved = (loop.synthetic.x.detach() != start).flatten(1).any(1)
    assert moved.tolist() == [True, True, True, False, False, True]
    assert loop.synthetic.y.tolist() == [0, 0, 0, 2, 2, 3]
    single = make(counts, real=source((12, 9, 0, 7), (1, 8, 8)), optimiser=plain_sgd, updates="per_group")
    single.run()
    torch.testing.assert_close(single.synthetic.x, loop.synthetic.x, rtol=1e-3, atol=1e-4)


def test_average_schedule_and_projection():
    def run(**phase):
        synthetic = Synthetic(torch.zeros(1, 4), counts_to_offsets((1,)), lr=0.25)
        real = PublicSource(torch.ones(1, 4), torch.zeros(1, dtype=torch.int64))
        path = []
        loop = Condenser(
            synthetic,
            real,
            [Phase(4, Match(linear), **phase)],
            optimiser=plain_sgd,
            callback=lambda record: path.append(float(synthetic.x[0, 0].detach())),
        )
        loop.run()
        return path, float(synthetic.x[0, 0].detach())

    path, last = run()
    assert path == pytest.approx([0.5, 0.75, 0.875, 0.9375])
    assert last == path[-1]
    _, averaged = run(average=0.5)
    assert averaged == pytest.approx((0.875 + 0.9375) / 2)
    cosine, _ = run(schedule="cosine")
    x, expected = 0.0, []
    for factor in (1.0, 0.8535534, 0.5, 0.1464466):
        x += 0.25 * factor * 2 * (1 - x)
        expected.append(x)
    assert cosine == pytest.approx(expected, rel=1e-5)
    clipped = Synthetic(torch.tensor([[-2.0, 0.5, 3.0]]), counts_to_offsets((1,)), value_range=(-1.0, 1.0))
    clipped.project_()
    assert clipped.x.tolist() == [[-1.0, 0.5, 1.0]]


def test_phases_follow_each_other_and_the_finish_comes_once():
    calls = []

    class Note(Objective):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def forward(self, context):
            calls.append((self.name, context.step, context.batch_real))
            return context.synthetic.x.square().sum()

    synthetic = Synthetic(torch.ones(2, 3), counts_to_offsets((1, 1)))
    phases = [Phase(2, Note("a"), batch_real=4), Phase(0, Note("none")), Phase(1, Note("b"), batch_real=9)]
    finished, task = [], SimpleNamespace(loss=None)
    loop = Condenser(
        synthetic, source((3, 3), (3,)), phases, task=task, finish=lambda s, t: finished.append((s, t))
    )
    loop.run()
    loop.run()
    assert calls == [("a", 0, 4), ("a", 1, 4), ("b", 2, 9)]
    assert finished == [(synthetic, task)]


def test_parameters_of_an_objective_ascend():
    class Critic(Objective):
        def __init__(self):
            super().__init__()
            self.direction = nn.Parameter(torch.zeros(4))

        def forward(self, context):
            gap = context.draw().x.mean(0) - context.synthetic.x.mean(0)
            return gap @ self.direction - self.direction.square().sum()

    critic = Critic()
    synthetic = Synthetic(torch.zeros(2, 4), counts_to_offsets((2,)), lr=0.0)
    real = PublicSource(torch.full((3, 4), 2.0), torch.zeros(3, dtype=torch.int64))
    loop = Condenser(
        synthetic, real, [Phase(200, critic)], adversary=lambda p: torch.optim.SGD(p, lr=0.1, maximize=True)
    )
    loop.run()
    torch.testing.assert_close(critic.direction.detach(), torch.ones(4))  # the maximum of 2 d - d^2
    with pytest.raises(ValueError, match="maximize"):
        Condenser(synthetic, real, [Phase(1, critic)], adversary=lambda p: torch.optim.SGD(p, lr=0.1))


def test_ctrl_c_finishes_the_step_and_leaves_a_checkpoint(tmp_path):
    path = tmp_path / "checkpoint.pt"
    whole = make()
    whole.run()

    def press(record):
        if record.step == 4:
            signal.raise_signal(signal.SIGINT)

    loop = make(callback=press)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        loop.run(path)
    assert signal.getsignal(signal.SIGINT) is before
    assert checkpoint.load(path)["step"] == 4
    rest = make()
    rest.load_state_dict(checkpoint.load(path))
    rest.run()
    assert torch.equal(rest.synthetic.x, whole.synthetic.x)


def test_an_objective_that_is_not_finite_stops_the_run(tmp_path):
    class Broken(Objective):
        def forward(self, context):
            return context.synthetic.x.sum() * float("nan")

    loop = Condenser(
        Synthetic(torch.zeros(1, 4), counts_to_offsets((1,))), source((3,)), [Phase(5, Broken())]
    )
    with pytest.raises(FloatingPointError, match="step 1"):
        loop.run(tmp_path / "checkpoint.pt")
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_are_whole_and_checked(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    loop = make(steps=2)
    checkpoint.save(path, loop.state_dict())
    good = path.read_bytes()

    def fail(source, target):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", fail)
        with pytest.raises(OSError, match="No space"):
            checkpoint.save(path, {"step": 1})
    assert path.read_bytes() == good
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]
    (tmp_path / "junk.pt").write_bytes(b"junk")
    with pytest.raises(ValueError, match="checkpoint"):
        checkpoint.load(tmp_path / "junk.pt")
    with pytest.raises(FileNotFoundError):
        checkpoint.load(tmp_path / "none.pt")


def test_synthetic_starts_from_rows_or_noise_and_hands_out_subsets():
    real = source()
    synthetic = Synthetic.from_source(real, (2, 0, 3), seeded(0))
    for row, label in zip(synthetic.x, synthetic.y, strict=True):
        assert (real.x[real.y == label] == row).all(1).any()
    assert synthetic.y.tolist() == [0, 0, 2, 2, 2]
    with pytest.raises(ValueError, match="asks 8 rows of group 2, which has 7"):
        Synthetic.from_source(real, (1, 1, 8), seeded(0))
    some = synthetic(2, seeded(1))
    assert some.counts.tolist() == [2, 0, 2]
    some.x.sum().backward()
    assert synthetic.x.grad.sum(1).tolist() in ([4, 4, 4, 4, 0], [4, 4, 4, 0, 4], [4, 4, 0, 4, 4])
    noise = Synthetic.from_noise((500, 500), (4,), seeded(0))
    assert noise.x.std().item() == pytest.approx(1, abs=0.05)


def test_synthetic_owns_labels_masses_and_a_student_rate():
    y = torch.full((2, 3), 1 / 3)
    synthetic = Synthetic(
        torch.zeros(2, 4),
        counts_to_offsets((2,)),
        y,
        lr=3.0,
        learn_labels=True,
        label_lr=0.5,
        mass=torch.tensor([0.3, 0.7]),
        student_lr=0.01,
        student_lr_rate=0.1,
    )
    rates = {group["name"]: group["lr"] for group in synthetic.parameter_groups()}
    assert rates == {"points": 3.0, "labels": 0.5, "student_lr": 0.1}
    measure = synthetic()
    assert measure.mass.tolist() == pytest.approx([0.3, 0.7])
    assert float(measure.extras["student_lr"].detach()) == pytest.approx(0.01)
    (measure.y.sum() + measure.extras["student_lr"]).backward()
    assert synthetic.y.grad is not None
    with pytest.raises(TypeError, match="learn_labels"):
        Synthetic(torch.zeros(2, 4), counts_to_offsets((2,)), learn_labels=True)
    with pytest.raises(TypeError, match="floating"):
        Synthetic(torch.zeros(2, 4, dtype=torch.int64), counts_to_offsets((2,)))


def test_metadata_records_what_changes_results():
    facts = make(updates="per_group").metadata()
    assert facts["updates"] == "per_group"
    assert facts["row_chunks"] == [7]
    assert facts["counts"] == [2, 1, 3]
    assert "once per group" in facts["augmentation_drawn"]
    assert "no cost" in facts["absent_groups"]
    assert facts["learning_rates"] == {"points": 2.0}


def started(method, shape):
    """Data of three classes, and the loop of a short run from noise with a method's own settings."""
    real = source((20, 20, 20), shape)
    recipe = default_recipe(method, shape).replace(steps=15, average=0.0)
    synthetic = Synthetic.from_noise((2, 1, 3), shape, seeded(0), lr=recipe.learning_rate((2, 1, 3)))
    losses = []
    loop = condenser(
        recipe, synthetic, real, shape=shape, classes=3, callback=lambda record: losses.append(record.loss)
    )
    return real, loop, losses


SHAPES = [(1, 8, 8), (1, 16, 16), (5,)]


@pytest.mark.parametrize("method", ["mmd", "dm", "sinkhorn"])
@pytest.mark.parametrize("shape", SHAPES)
def test_recipes_bring_the_synthetic_set_closer(method, shape):
    real, loop, losses = started(method, shape)
    synthetic = loop.synthetic

    def distance():
        rows, _ = synthetic.rows()
        means = [(rows[synthetic.y == g].mean(0) - real.x[real.y == g].mean(0)).norm() for g in range(3)]
        return float(torch.stack(means).sum())

    before = distance()
    loop.run()
    assert distance() < 0.98 * before
    assert sum(losses[-5:]) < sum(losses[:5])


@pytest.mark.parametrize("method", ["datadam", "ncfm"])
@pytest.mark.parametrize("shape", SHAPES)
def test_recipes_lower_what_compares_no_pixels(method, shape):
    """Attention maps and features divided by their length do not say where pixels are. What they compare
    falls with networks, frequencies and batches that the run has not seen."""
    real, loop, _ = started(method, shape)
    recipe = default_recipe(method, shape)
    term = objective(recipe)

    def missed():
        total = 0.0
        for seed in range(100, 108):
            net = build(recipe.network, shape, 3, generator=seeded(seed, "other"))
            context = Context(
                step=0, seed=seed, real={"real": real}, synthetic=loop.synthetic(), net=net, batch_real=20
            )
            total += float(term(context).detach())
        return total

    before = missed()
    loop.run()
    assert missed() < 0.95 * before


def test_learning_rates_grow_with_the_rows_of_a_class():
    recipe = Recipe(lr_per_row=0.5)
    assert recipe.learning_rate((4, 4)) == 2.0
    assert recipe.learning_rate((2, 0, 4)) == 1.5  # an absent class does not count
    assert recipe.replace(lr=7.0).learning_rate((4, 4)) == 7.0


def test_recipes_reject_unknown_methods_and_empty_features():
    with pytest.raises(ValueError, match="mmd, dm, sinkhorn, datadam, ncfm, wmdd, dc, dsa, idc"):
        objective(Recipe(method="other"))
    with pytest.raises(ValueError, match="positive weight"):
        objective(Recipe(identity=0.0, convnet=0.0))
    for wrong in ({"steps": -1}, {"batch_real": 0}, {"schedule": "step"}, {"average": 2.0}):
        with pytest.raises(ValueError, match="Phase"):
            Phase(**{"steps": 1, "objective": Match(linear), **wrong})
    with pytest.raises(ValueError, match="updates"):
        make(updates="both")
