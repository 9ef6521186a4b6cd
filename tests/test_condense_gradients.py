"""Condensation by gradient matching: the objective, networks that are trained in between, multi-formation."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from decoct.augment import Augmentation, cutmix
from decoct.condense import (
    Condenser,
    FreshNetworks,
    MultiFormation,
    Phase,
    Synthetic,
    TrainedNetworks,
    checkpoint,
)
from decoct.condense.recipes import GRADIENT_METHODS, Recipe, condenser, default_recipe, starting_set
from decoct.networks import build, reset
from decoct.objectives import (
    Context,
    GradientMatch,
    Measure,
    PublicSource,
    counts_to_offsets,
    cross_entropy,
    seeded,
)

SHAPE, CLASSES = (1, 8, 8), 3


def source(counts=(12, 9, 7), shape=SHAPE, seed=0):
    groups_of = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    centres = torch.randn(len(counts), *shape, generator=seeded(seed, "centres"))
    x = centres[groups_of] + 0.5 * torch.randn(sum(counts), *shape, generator=seeded(seed, "rows"))
    return PublicSource(x, groups_of, group_count=len(counts))


def convnet(width=6):
    return build("convnet", SHAPE, CLASSES, width=width, depth=2, generator=seeded(0, "net"))


def context(net, synthetic, *, real=None, batch_real=5, **options):
    options = {"step": 0, "seed": 3, **options}
    return Context(
        real={"real": real or source()}, synthetic=synthetic, net=net, batch_real=batch_real, **options
    )


def noise(counts=(2, 1, 3), dtype=torch.float32):
    x = torch.randn(sum(counts), *SHAPE, generator=seeded(1, "noise")).to(dtype).requires_grad_()
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return Measure(x, labels, groups=counts_to_offsets(counts))


def by_hand(net, real, synthetic, metric, least):
    """The definition, one group and one parameter after the other."""
    total = []
    for group in range(real.group_count):
        sides = []
        for measure in (real, synthetic):
            rows = measure.select([group])
            loss = F.cross_entropy(net(rows.x), rows.y)
            sides.append(torch.autograd.grad(loss, list(net.parameters()), create_graph=True))
        value = torch.zeros(())
        for a, b in zip(*sides, strict=True):
            a = a.detach()
            if a.dim() < least:
                continue
            if metric == "sse":
                value = value + (a - b).square().sum()
            elif metric == "l1":
                value = value + (a - b).abs().sum()
            else:
                a, b = a.flatten(1), b.flatten(1)
                value = value + sum(
                    1 - u @ v / (u.norm() * v.norm() + 1e-6) for u, v in zip(a, b, strict=True)
                )
        total.append(value)
    return torch.stack(total)


@pytest.mark.parametrize(
    ("metric", "tensors", "least"),
    [
        ("row_cosine", "matrices", 2),
        ("sse", "all", 0),
        ("l1", "convolutions", 3),
        ("row_cosine", "convolutions", 3),
    ],
)
def test_values_and_gradient_are_those_of_the_definition(metric, tensors, least):
    net = convnet()
    synthetic = noise()
    step = context(net, synthetic)
    values, present = GradientMatch(metric, tensors).values(step)
    expected = by_hand(net, step.draw(), synthetic, metric, least)
    torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-6)
    assert present.all()
    (gradient,) = torch.autograd.grad(values.sum(), synthetic.x)
    (wanted,) = torch.autograd.grad(expected.sum(), synthetic.x)
    assert float(wanted.abs().max()) > 0
    torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-5 * float(wanted.abs().max()))
    assert all(p.grad is None for p in net.parameters())


def test_equal_rows_have_equal_gradients():
    net, real = convnet(), source((4, 4, 4))
    rows = real.sample(4, seeded(0))
    for metric in ("row_cosine", "sse", "l1"):
        value = GradientMatch(metric)(context(net, rows, real=real, batch_real=4))
        assert value.item() == pytest.approx(0, abs=1e-3)


def test_masses_weigh_rows_and_the_tasks_own_loss_is_used():
    net, synthetic = convnet(), noise((2, 2, 2))
    plain = GradientMatch("sse").values(context(net, synthetic))[0]
    uniform = synthetic.replace(mass=torch.full((6,), 0.5))
    torch.testing.assert_close(GradientMatch("sse").values(context(net, uniform))[0], plain)
    first = synthetic.replace(mass=torch.tensor([1.0, 0.0] * 3))
    picked = Measure(synthetic.x[::2], synthetic.y[::2], groups=counts_to_offsets((1, 1, 1)))
    torch.testing.assert_close(
        GradientMatch("sse").values(context(net, first))[0],
        GradientMatch("sse").values(context(net, picked))[0],
    )

    def doubled(net, measure):
        return 2 * cross_entropy(net, measure)

    scaled = GradientMatch("sse").values(context(net, synthetic, loss=doubled))[0]
    torch.testing.assert_close(scaled, 4 * plain)


def test_a_group_that_is_missing_costs_nothing():
    net = convnet()
    synthetic = noise((2, 0, 3))
    values, present = GradientMatch().values(context(net, synthetic, real=source((6, 5, 0))))
    assert present.tolist() == [True, False, False]
    assert values[1:].tolist() == [0, 0]
    assert values[0].item() > 0
    (gradient,) = torch.autograd.grad(values.sum(), synthetic.x)
    assert gradient.flatten(1).any(1).tolist() == [True, True, False, False, False]
    empty = GradientMatch()(context(net, noise((0, 2, 0)), real=source((4, 0, 4))))
    assert empty.item() == 0
    worst = GradientMatch(reduction="max")(context(net, noise()))
    assert worst.item() == pytest.approx(GradientMatch().values(context(net, noise()))[0].max().item())


def test_networks_that_cannot_be_matched_are_refused():
    with pytest.raises(RuntimeError, match="holds no network"):
        GradientMatch()(context(None, noise()))
    with pytest.raises(RuntimeError, match="TrainedNetworks"):
        GradientMatch()(context(convnet().requires_grad_(False), noise()))
    mlp = build("mlp", SHAPE, CLASSES, width=4)
    with pytest.raises(RuntimeError, match="tensors='convolutions' leaves none"):
        GradientMatch(tensors="convolutions")(context(mlp, noise()))
    for wrong in ({"metric": "l2"}, {"tensors": "some"}, {"reduction": "mean"}):
        with pytest.raises(ValueError, match=f"GradientMatch: {next(iter(wrong))} must be one of"):
            GradientMatch(**wrong)

    class Other(PublicSource):
        def sample(self, n, rng):
            return super().sample(2, rng)

    rows = Other(source().x, source().y)
    with pytest.raises(ValueError, match="3 groups, the synthetic measure 2"):
        GradientMatch()(context(convnet(), noise((2, 2)), real=rows))


def make(*, steps=7, updates="joint", synthetic=None, net=None, metric="row_cosine", callback=None, **pool):
    """A small loop over all that has state: trained networks, momentum, dropout, mixing, augmentation."""
    net = net or convnet()
    synthetic = synthetic or Synthetic.from_noise((2, 1, 3), SHAPE, seeded(1, "start"), lr=0.1)
    settings = {"keep": 4, "epochs": 2, "lr": 0.05, "momentum": 0.9, "batch": 4, **pool}
    return Condenser(
        synthetic,
        source(),
        [Phase(steps, GradientMatch(metric), batch_real=5)],
        pool=TrainedNetworks(net, **settings),
        augmentation=Augmentation(),
        updates=updates,
        callback=callback,
    )


def dropout_net():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(256, 3)
    )


def batch_norm_net():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3)
    )


VARIANTS = {
    "synthetic rows": {},
    "real rows, mixed and augmented": {
        "train_on": "real", "real_rows": 9, "mix": 0.5,
        "augmentation": Augmentation(("color", "crop"), "all"),
    },
    "dropout": {"net": dropout_net},
    "batch norm": {"net": batch_norm_net},
    "per group": {"updates": "per_group"},
    "multi-formation": {
        "synthetic": lambda: MultiFormation(
            torch.randn(6, *SHAPE, generator=seeded(1)), counts_to_offsets((2, 1, 3)), lr=0.1
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_resumed_run_equals_an_uninterrupted_one(variant, tmp_path):
    def loop():
        made = {key: value() if callable(value) else value for key, value in VARIANTS[variant].items()}
        return make(**made)

    path = tmp_path / "checkpoint.pt"
    whole = loop()
    torch.manual_seed(1)
    whole.run()
    torch.manual_seed(2)  # no draw may come from torch's own generator
    first = loop()
    first.run(path, until=5)  # in the middle of the second network's life
    second = loop()
    second.load_state_dict(checkpoint.load(path))
    second.run()
    assert torch.equal(whole.synthetic.x, second.synthetic.x)
    assert not torch.equal(whole.synthetic.x, first.synthetic.x)
    other = loop()
    other.pool.lr = 0.06
    with pytest.raises(ValueError, match="another run's: network"):
        other.load_state_dict(first.state_dict())


def test_training_leaves_torchs_generator_alone():
    loop = make(net=dropout_net(), steps=2)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    loop.run()
    assert torch.equal(torch.rand(3), expected)


def test_the_matching_loss_falls():
    losses = []
    loop = make(steps=60, keep=1, callback=lambda record: losses.append(record.loss))
    loop.run()
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_networks_are_drawn_kept_and_trained():
    seen, momenta, left = [], [], []

    class Watch(TrainedNetworks):
        def draw(self, context):
            net = super().draw(context)
            seen.append((net.training, [p.detach().clone() for p in net.parameters()]))
            momenta.append(len(self.optimiser.state))
            return net

        def advance(self, context):
            super().advance(context)
            left.append(self.net.blocks[0].weight.detach().clone())

    synthetic = Synthetic.from_noise((2, 1, 3), SHAPE, seeded(1), lr=0.1)
    pool = Watch(convnet(), keep=3, epochs=1, lr=0.05, momentum=0.9)
    Condenser(synthetic, source(), [Phase(6, GradientMatch(), batch_real=5)], pool=pool, seed=4).run()
    for place in (0, 3):
        fresh = reset(convnet(), seeded(4, "network", place // 3))
        assert all(torch.equal(a, b) for a, b in zip(seen[place][1], fresh.parameters(), strict=True))
    for a, b in ((0, 1), (1, 2), (3, 4)):
        assert not torch.equal(seen[a][1][0], seen[b][1][0])
    assert not any(training for training, _ in seen)
    assert [count > 0 for count in momenta] == [False, True, True] * 2  # a new network brings none along
    for place in (2, 5):  # before another is drawn, training would be in vain
        assert torch.equal(left[place], seen[place][1][0])


def test_matching_takes_no_gradient_of_the_network():
    loop = make(keep=1, steps=2)
    loop.run()
    assert all(p.grad is None for p in loop.pool.net.parameters())
    assert loop.synthetic.x.grad is not None


@pytest.mark.parametrize("decoded", [False, True])
def test_one_epoch_on_the_synthetic_set_by_hand(decoded):
    """Plain SGD over all rows as the step left them: those that the optimiser moved, decoded."""
    start = torch.randn(3, *SHAPE, generator=seeded(1))
    make_set = MultiFormation if decoded else Synthetic
    synthetic = make_set(start, counts_to_offsets((1, 1, 1)), lr=0.5)
    net = convnet()
    pool = TrainedNetworks(net, keep=2, epochs=1, lr=0.1)
    Condenser(synthetic, source(), [Phase(1, GradientMatch(), batch_real=5)], pool=pool, seed=4).run()
    x, y = synthetic.rows()
    assert len(x) == (12 if decoded else 3)
    assert not torch.equal(synthetic.x, start)
    twin = reset(convnet(), seeded(4, "network", 0))
    F.cross_entropy(twin(x), y).backward()
    for a, b in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b - 0.1 * b.grad)


def test_training_rows_may_be_real():
    calls = []

    def loss(net, measure):
        if net.training:
            calls.append(measure)
        return cross_entropy(net, measure)

    pool = TrainedNetworks(convnet(), keep=5, epochs=2, train_on="real", real_rows=14, batch=8, mix=1.0)
    synthetic = noise().replace(x=noise().x.detach())
    step = context(convnet(), synthetic, loss=loss)
    pool.advance(step)
    assert [len(measure) for measure in calls] == [8, 7, 8, 7]  # five rows of each class, twice
    for measure in calls:
        torch.testing.assert_close(measure.y.sum(1), torch.ones(len(measure)))
    assert max(float((measure.y > 0).sum(1).max()) for measure in calls) == 2
    calls.clear()
    pool.mix = 0.0
    pool.advance(step)
    real = source()
    assert all((real.x == row).flatten(1).all(1).any() for measure in calls for row in measure.x)


def test_batch_norms_use_the_statistics_of_real_rows():
    net = batch_norm_net()
    pool = TrainedNetworks(net, norm_rows=4)
    step = context(None, noise())
    drawn = pool.draw(step)
    assert not any(layer.training for layer in drawn.modules())
    rows = step.real["real"].sample(4, step.generator("norm statistics"))
    maps = net[0](rows.x)
    torch.testing.assert_close(net[1].running_mean, maps.mean((0, 2, 3)))
    torch.testing.assert_close(net[1].running_var, maps.var((0, 2, 3)))
    assert net[1].momentum == 0.1
    step.net = drawn
    together, alone = drawn(noise().x), drawn(noise().x[:1])
    torch.testing.assert_close(together[:1], alone)  # a group's rows are not mixed with others'
    with pytest.raises(ValueError, match="batch norm '0' keeps no running statistics"):
        TrainedNetworks(nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)))
    with pytest.raises(ValueError, match="batch norm '1' would mix"):
        FreshNetworks(batch_norm_net())


def test_dropout_is_off_while_gradients_are_matched():
    net = TrainedNetworks(dropout_net()).draw(context(None, noise()))
    a, b = (GradientMatch()(context(net, noise())) for _ in range(2))
    assert torch.equal(a, b)


def test_a_users_own_network_brings_its_own_start():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(64))
            self.head = nn.Linear(64, 3)

        def forward(self, x):
            return self.head(x.flatten(1) * self.scale)

    def initialise(net, generator):
        with torch.no_grad():
            net.scale.normal_(generator=generator)
            net.head.weight.normal_(generator=generator)

    with pytest.raises(TypeError, match="reset: layer"):
        make(net=Own()).run()
    losses = []
    loop = make(net=Own(), steps=30, keep=1, initialise=initialise, callback=lambda r: losses.append(r.loss))
    loop.run()
    assert sum(losses[-5:]) < sum(losses[:5])


def test_pools_reject_wrong_settings():
    for wrong in (
        {"keep": 0},
        {"epochs": -1},
        {"batch": 0},
        {"real_rows": 0},
        {"train_on": "test"},
        {"mix": 2.0},
    ):
        with pytest.raises(ValueError, match=f"TrainedNetworks: {next(iter(wrong))} must be"):
            TrainedNetworks(convnet(), **wrong)


def test_both_sides_get_one_draw_of_the_augmentation():
    """Rows that are real ones match exactly under any view, if and only if both sides see the same view."""
    real = source((1, 1, 1))
    view = Augmentation(mode="all").draw(3, seeded(0))
    rows = real.sample(1, seeded(0))
    value = GradientMatch("sse")(context(convnet(), rows, real=real, view=view))
    assert value.item() < 1e-9
    assert not torch.equal(view(rows.x, rows.groups), rows.x)


def test_multi_formation_splits_and_enlarges():
    x = torch.randn(3, 2, 6, 4, generator=seeded(0), dtype=torch.float64, requires_grad=True)
    synthetic = MultiFormation(x, counts_to_offsets((1, 2)), mass=torch.tensor([1.0, 0.2, 0.8]))
    measure = synthetic()
    assert measure.x.shape == (12, 2, 6, 4)
    assert measure.y.tolist() == [0] * 4 + [1] * 8
    assert measure.counts.tolist() == [4, 8]
    assert measure.mass.tolist() == pytest.approx([0.25] * 4 + [0.05] * 4 + [0.2] * 4)
    cells = [x[1, :, i : i + 3, j : j + 2] for i in (0, 3) for j in (0, 2)]
    expected = F.interpolate(torch.stack(cells), (6, 4), mode="bilinear", align_corners=False)
    torch.testing.assert_close(measure.x[4:8], expected)
    stored, labels = synthetic.stored()
    assert stored.shape == (3, 2, 6, 4)
    assert labels.tolist() == [0, 1, 1]
    some = synthetic(2, seeded(0))
    assert some.counts.tolist() == [2, 2]
    assert some.y.tolist() == [0, 0, 1, 1]
    assert some.mass.shape == (4,)

    def decoded(points):
        synthetic.x = nn.Parameter(points)
        return torch.func.functional_call(synthetic, {"x": points}, ())

    assert torch.autograd.gradcheck(lambda points: decoded(points).x, (x,))


@pytest.mark.parametrize(("side", "factor"), [(7, 2), (8, 3), (5, 1), (4, 4)])
def test_multi_formation_of_any_size_and_its_start(side, factor):
    rows = torch.arange(2.0 * factor**2).view(-1, 1, 1, 1).expand(-1, 1, side, side)
    synthetic = MultiFormation.from_rows(rows, counts_to_offsets((1, 1)), factor=factor)
    assert synthetic.x.shape == (2, 1, side, side)
    decoded = synthetic.decode()
    assert decoded.shape == (2 * factor**2, 1, side, side)
    assert decoded[:, 0, 0, 0].tolist() == rows[:, 0, 0, 0].tolist()
    torch.testing.assert_close(decoded, rows)  # even images come back unchanged, in their order
    with pytest.raises(ValueError, match="must hold 2 x"):
        MultiFormation.from_rows(rows[:-1], counts_to_offsets((1, 1)), factor=factor)


def test_multi_formation_rejects_what_it_cannot_hold():
    with pytest.raises(ValueError, match="x must be images"):
        MultiFormation(torch.zeros(2, 5), counts_to_offsets((2,)))
    for factor in (0, 9):
        with pytest.raises(ValueError, match="factor must be between 1"):
            MultiFormation(torch.zeros(2, 1, 8, 8), counts_to_offsets((2,)), factor=factor)


def test_cutmix_mixes_labels_by_area():
    x = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 1, 6, 7)
    y = torch.eye(5)
    shares = []
    for seed in range(40):
        mixed, labels = cutmix(x, y, seeded(seed))
        torch.testing.assert_close((labels * torch.arange(5.0)).sum(1), mixed.mean((1, 2, 3)))
        torch.testing.assert_close(labels.sum(1), torch.ones(5))
        shares.append(float((mixed != x).any(0).double().mean()))
    assert min(shares) < 0.1
    assert max(shares) > 0.5
    assert torch.equal(x[:, 0, 0, 0], torch.arange(5.0))


@pytest.mark.parametrize("method", GRADIENT_METHODS)
@pytest.mark.parametrize("shape", [SHAPE, (3, 16, 16), (5,)])
def test_recipes_lower_the_objective(method, shape):
    real = source((20, 20, 20), shape)
    recipe = default_recipe(method, shape).replace(steps=12, outer=1, batch_real=16)
    counts = (2, 1, 3)
    start = torch.randn(sum(counts) * recipe.factor**2, *shape, generator=seeded(0))
    synthetic = starting_set(recipe, start, counts)
    losses = []
    loop = condenser(
        recipe, synthetic, real, shape=shape, classes=3, callback=lambda record: losses.append(record.loss)
    )
    loop.run()
    assert sum(losses[-4:]) < sum(losses[:4])
    assert isinstance(loop.pool, TrainedNetworks)
    assert (loop.pool.train_on == "real") == (method == "idc")


def test_published_loops():
    recipe = Recipe(method="dc")
    assert [recipe.loops([rows] * 3)[0] for rows in (1, 10, 20, 50, 80)] == [1, 10, 20, 50, 50]
    assert [recipe.loops([rows, 0, rows])[1] for rows in (10, 20, 50)] == [50, 25, 10]
    assert recipe.replace(outer=4, inner=0).loops([10]) == (4, 0)
