"""Measures, sources, statistics, objectives and matching: behaviour with values worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import decoct
from decoct.augment import Augmentation
from decoct.kernels import Gaussian
from decoct.objectives import (
    MMD,
    Context,
    FeatureMap,
    FeatureMean,
    Identity,
    Match,
    Measure,
    NetFeatures,
    Objective,
    PublicSource,
    Sinkhorn,
    StoredSource,
    counts_to_offsets,
    reduce_groups,
    seeded,
)


class Constant(Objective):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, context):
        return context.synthetic.x.detach().sum() * 0 + self.value


def linear(real, synthetic):
    (a,), (b,) = FeatureMean().mean(real), FeatureMean().mean(synthetic)
    return (a - b).square().sum(1)


def context(real_counts=(6, 5, 4), counts=(2, 1, 3), columns=3, **options):
    generator = torch.Generator().manual_seed(0)
    groups_of = torch.arange(len(real_counts)).repeat_interleave(torch.tensor(real_counts))
    source = PublicSource(
        torch.randn(sum(real_counts), columns, generator=generator), groups_of, group_count=len(real_counts)
    )
    x = torch.randn(sum(counts), columns, generator=generator, requires_grad=True)
    return Context(
        step=0, real={"real": source}, synthetic=Measure(x, groups=counts_to_offsets(counts)), **options
    )


def test_measure_checks_its_sizes():
    x = torch.zeros(4, 2)
    assert Measure(x).groups.tolist() == [0, 4]
    for wrong in ({"y": torch.zeros(3)}, {"mass": torch.zeros(5)}, {"groups": torch.tensor([0, 2, 3])}):
        with pytest.raises(ValueError, match="Measure"):
            Measure(x, **wrong)
    with pytest.raises(ValueError, match="rise from 0 to 4"):
        Measure(x, groups=torch.tensor([0, 3, 2, 4]))
    with pytest.raises(ValueError, match="int64"):
        Measure(x, groups=torch.tensor([0.0, 4.0]))


def test_measure_selects_groups_in_the_order_asked():
    measure = Measure(
        torch.arange(6.0)[:, None], torch.arange(6), torch.arange(6.0), torch.tensor([0, 1, 1, 4, 6])
    )
    chosen = measure.select([3, 0, 1])
    assert chosen.x.flatten().tolist() == [4, 5, 0]
    assert chosen.y.tolist() == [4, 5, 0]
    assert chosen.mass.tolist() == [4, 5, 0]
    assert chosen.groups.tolist() == [0, 2, 3, 3]
    assert measure.select([0, 1, 2, 3]) is measure
    assert len(measure.select([])) == 0


def test_public_source_draws_rows_of_each_group_without_replacement():
    groups_of = torch.tensor([1, 0, 1, 1, 0, 3])
    source = PublicSource(torch.arange(6.0)[:, None], groups_of, group_count=5)
    drawn = source.sample(2, seeded(0, "a"))
    assert drawn.counts.tolist() == [2, 2, 0, 1, 0]
    assert groups_of[drawn.x.flatten().long()].tolist() == [0, 0, 1, 1, 3]
    assert len(drawn.x.unique()) == len(drawn)
    assert drawn.y.tolist() == [0, 0, 1, 1, 3]
    assert source.sample([0, 1, 5, 0, 0], seeded(0, "a")).counts.tolist() == [0, 1, 0, 0, 0]
    assert torch.equal(source.sample(2, seeded(0, "a")).x, drawn.x)
    many = {tuple(source.sample(1, seeded(seed, "a")).x.flatten().tolist()) for seed in range(40)}
    assert len(many) == 6  # 2 rows of group 0 times 3 of group 1
    with pytest.raises(ValueError, match="5 groups"):
        source.sample([1], seeded(0, "a"))
    with pytest.raises(ValueError, match="below 2"):
        PublicSource(torch.zeros(6, 1), groups_of, group_count=2)


def test_stored_source_has_statistics_and_refuses_rows():
    public = PublicSource(torch.arange(6.0).view(3, 2), torch.tensor([0, 0, 1]))
    statistic = FeatureMean()
    (means,) = public.expect(statistic, 10, seeded(0))
    assert means.tolist() == [[1, 2], [4, 5]]
    stored = StoredSource({"feature_mean": [means]}, 2)
    assert stored.expect(statistic, 10, seeded(0))[0] is means
    assert not stored.shows_rows
    with pytest.raises(RuntimeError, match="statistics only"):
        stored.sample(1, seeded(0))
    with pytest.raises(ValueError, match="feature_mean"):
        stored.expect(FeatureMean(name="other"), 1, seeded(0))


def test_feature_mean_weighs_clips_and_carries_gradients():
    x = torch.tensor([[3.0, 4.0], [0.3, 0.4], [6.0, 8.0]], requires_grad=True)
    groups = torch.tensor([0, 2, 2, 3])
    (mean,) = FeatureMean().mean(Measure(x, groups=groups))
    torch.testing.assert_close(mean, torch.tensor([[1.65, 2.2], [0, 0], [6, 8]]))
    (weighted,) = FeatureMean().mean(Measure(x, mass=torch.tensor([2.0, 0, 1]), groups=groups))
    torch.testing.assert_close(weighted, torch.tensor([[6.0, 8], [0, 0], [6, 8]]))
    (clipped,) = FeatureMean().clipped_sum(Measure(x, groups=groups), 1.0)
    torch.testing.assert_close(clipped, torch.tensor([[0.9, 1.2], [0, 0], [0.6, 0.8]]))
    (gradient,) = torch.autograd.grad(mean.sum(), x)
    assert gradient.tolist() == [[0.5, 0.5], [0.5, 0.5], [1, 1]]


def test_reductions_over_present_groups():
    values, everyone = torch.tensor([1.0, 5, 2, 4]), torch.ones(4, dtype=torch.bool)
    assert float(reduce_groups(values, everyone, "sum")) == 12
    assert float(reduce_groups(values, everyone, "max")) == 5
    assert float(reduce_groups(values, everyone, "cvar", 0.5)) == 4.5
    assert float(reduce_groups(values, everyone, "cvar", 0.375)) == pytest.approx((5 + 0.5 * 4) / 1.5)
    assert float(reduce_groups(values, everyone, "cvar", 1.0)) == 3
    some = torch.tensor([True, False, True, False])
    assert float(reduce_groups(-values, some, "max")) == -1  # an absent group's 0 is not the worst
    assert float(reduce_groups(values, some, "cvar", 0.5)) == 2
    assert float(reduce_groups(values, ~everyone, "max")) == 0
    for wrong in ({"reduction": "mean"}, {"reduction": "cvar", "tail": 0.0}):
        with pytest.raises(ValueError, match="reduce_groups"):
            reduce_groups(values, everyone, **wrong)


def test_objectives_add_and_scale():
    a, b, c = Constant(1.0), Constant(10.0), Constant(100.0)
    assert float((2.0 * a + b * 3 + 0.5 * (a + c))(context())) == pytest.approx(2 + 30 + 50.5)
    silent = Constant(float("nan"))
    assert float((0.0 * silent + a)(context())) == 1  # weight 0 is not evaluated
    with pytest.raises(TypeError, match="Objective"):
        a + 1.0


def test_match_equals_a_loop_over_groups_and_keeps_the_real_side_out_of_the_graph():
    ctx = context()
    values, present = Match(linear).values(ctx)
    real = ctx.draw()
    for group in range(3):
        x = real.select([group]).x.mean(0)
        y = ctx.synthetic.select([group]).x.mean(0)
        torch.testing.assert_close(values[group], (x - y).square().sum())
    assert present.all()

    seen = []

    class Watch(FeatureMap):
        def forward(self, context, x, real):
            seen.append((real, torch.is_grad_enabled()))
            return x

    Match(linear, Watch())(context())
    Match(linear, Watch(), real_gradient=True)(context())
    assert seen == [(True, False), (False, True), (False, True), (False, True)]


@pytest.mark.parametrize("kernel", [Gaussian(scales=(0.25, 0.5, 1, 2, 4)), "linear", "polynomial"])
def test_mmd_without_the_real_term_has_the_same_gradient(kernel):
    gradients, values = [], []
    for real_term in (True, False):
        ctx = context()
        value = Match(MMD(kernel, real_term=real_term))(ctx)
        gradients.append(torch.autograd.grad(value, ctx.synthetic.x)[0])
        values.append(float(value.detach()))
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)
    assert gradients[0].abs().max() > 0.01
    assert (values[0] == values[1]) == (kernel == "linear")
    assert values[0] > 0
    with pytest.raises(ValueError, match="real_term"):
        Match(MMD("gaussian"), reduction="max")


def test_mmd_of_equal_measures_is_zero_and_masses_count():
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    same = MMD("gaussian", real_term=True)(Measure(x), Measure(x))
    assert same.shape == (1,)
    assert float(same) == pytest.approx(0, abs=1e-6)
    doubled = Measure(
        torch.cat([x, x[:1]]), mass=torch.full((6,), 0.2) * torch.tensor([0.5, 1, 1, 1, 1, 0.5])
    )
    assert float(MMD("gaussian", 1.0, real_term=True)(Measure(x), doubled)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("p", [1, 2])
def test_sinkhorn_equals_a_loop_over_groups_and_the_real_term_moves_nothing(p, relative):
    gradients = []
    for real_term in (True, False):
        ctx = context()
        value = Match(Sinkhorn(p, 0.3, relative=relative, real_term=real_term))(ctx)
        gradients.append(torch.autograd.grad(value, ctx.synthetic.x)[0])
        if real_term:
            whole = value.item()
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)
    assert gradients[0].abs().max() > 0.01
    ctx, total = context(), 0.0
    real = ctx.real_view("real")
    for group in range(3):
        x, y = real.select([group]).x, ctx.synthetic.select([group]).x
        unit = float(decoct.mean_bandwidth(x, y)) * 2**0.5 if relative else 1.0
        total += decoct.sinkhorn_divergence(x, y, p=p, blur=0.3 * unit).item()
    assert whole == pytest.approx(total, rel=1e-4)


def test_sinkhorn_of_equal_measures_is_zero_and_does_not_depend_on_units():
    x = torch.randn(9, 3, generator=torch.Generator().manual_seed(1))
    y = torch.randn(4, 3, generator=torch.Generator().manual_seed(2))
    assert float(Sinkhorn(real_term=True)(Measure(x), Measure(x))) == pytest.approx(0, abs=1e-5)
    value = Sinkhorn(real_term=True)(Measure(x), Measure(y))
    scaled = Sinkhorn(real_term=True)(Measure(100 * x), Measure(100 * y))
    assert float(scaled) == pytest.approx(1e4 * float(value), rel=1e-4)
    with pytest.raises(ValueError, match="real_term"):
        Match(Sinkhorn(), reduction="max")


def test_absent_groups_cost_nothing_and_get_no_gradient():
    rows = []

    class Count(FeatureMap):
        def forward(self, context, x, real):
            rows.append(len(x))
            return x

    ctx = context(real_counts=(6, 0, 4, 5), counts=(2, 3, 0, 1))
    match = Match(linear, Count())
    values, present = match.values(ctx)
    assert rows == [6 + 5, 2 + 1]  # group 1 has no real rows, group 2 no synthetic ones
    assert present.tolist() == [True, False, False, True]
    assert values[1] == values[2] == 0
    assert (values[[0, 3]] > 0).all()
    (gradient,) = torch.autograd.grad(values.sum(), ctx.synthetic.x)
    assert (gradient[2:5] == 0).all()
    assert (gradient[[0, 1, 5]] != 0).any(1).all()

    nothing = context(real_counts=(3, 0), counts=(0, 2))
    loss = Match(linear)(nothing)
    assert float(loss.detach()) == 0
    assert (torch.autograd.grad(loss, nothing.synthetic.x)[0] == 0).all()


def test_terms_of_a_step_share_rows_views_and_features():
    calls = []

    class Net(nn.Module):
        def features(self, x):
            calls.append(len(x))
            return torch.flatten(x, 1)

    generator = torch.Generator().manual_seed(0)
    source = PublicSource(torch.randn(40, 1, 6, 6, generator=generator), torch.arange(40) % 2)
    x = torch.randn(6, 1, 6, 6, generator=generator, requires_grad=True)
    view = Augmentation().draw(2, seeded(0, "view"))
    ctx = Context(
        step=3,
        real={"real": source},
        synthetic=Measure(x, groups=torch.tensor([0, 2, 6])),
        net=Net(),
        batch_real=8,
        view=view,
    )
    features = NetFeatures(chunk=5)
    total = (
        Match(linear, features, name="a")
        + Match(linear, features, name="b")
        + Match(linear, Identity(), name="c")
    )
    total(ctx)
    assert calls == [5, 5, 5, 1, 5, 1]  # 16 real and 6 synthetic rows, each once, in chunks of 5
    assert ctx.terms["a"] == ctx.terms["b"] == ctx.terms["c"]
    assert ctx.draw() is ctx.draw()
    assert torch.equal(ctx.real_view().x, view(ctx.draw().x, ctx.draw().groups))
    assert torch.equal(ctx.synthetic_view().x, view(x, ctx.synthetic.groups))


def test_a_narrowed_context_sees_the_same_rows_and_views():
    wide = context(batch_real=3)
    narrow = wide.restrict([2], wide.synthetic)
    assert torch.equal(narrow.draw().x, wide.draw().select([2]).x)
    assert narrow.synthetic.counts.tolist() == [3]
    values, _ = Match(linear).values(wide)
    torch.testing.assert_close(Match(linear)(narrow), values[2])


def test_net_features_in_chunks_and_bfloat16():
    from decoct.networks import build

    net = build("convnet", (3, 16, 16), 4, width=16, depth=2, generator=seeded(0))
    x = torch.randn(9, 3, 16, 16, generator=seeded(1))
    ctx = Context(step=0, real={}, synthetic=Measure(x), net=net)
    with torch.no_grad():
        plain = net.features(x)
        for real in (True, False):
            torch.testing.assert_close(NetFeatures(chunk=4)(ctx, x, real), plain, rtol=1e-4, atol=1e-5)
        low = NetFeatures(chunk=4, bf16=True)(ctx, x, True)
        torch.testing.assert_close(
            NetFeatures(chunk=4, bf16=True)(ctx, x, False), plain, rtol=1e-4, atol=1e-5
        )
    assert low.dtype == torch.float32
    error = (low - plain).abs().max()
    assert 1e-5 < error < 0.2
    with pytest.raises(RuntimeError, match="pool"):
        NetFeatures()(Context(step=0, real={}, synthetic=Measure(x)), x, True)


def test_streams_depend_on_every_key():
    def first(*keys):
        return torch.rand((), generator=seeded(*keys)).item()

    assert first(0, 1, "a") == first(0, 1, "a")
    assert len({first(0, 1, "a"), first(1, 1, "a"), first(0, 2, "a"), first(0, 1, "b")}) == 4
