"""The private source and the statistics it answers: noise, sampling, refusals, matching."""

from __future__ import annotations

import math
import os

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import decoct
from decoct.augment import Augmentation
from decoct.networks import build
from decoct.objectives import (
    CharacteristicMean,
    Context,
    FeatureMean,
    GradientMean,
    Measure,
    PrivateSource,
    PublicSource,
    StatisticMatch,
    counts_to_offsets,
    seeded,
)
from test_privacy import COUNTS, ask, private, records

# ---- source


@pytest.mark.parametrize("seed", [None, 5], ids=["entropy", "seed"])
def test_noise_has_the_deviation_it_is_charged_for(seed):
    """Of the noised sums, (answer - clipped mean) * expected count, against 6 deviations of the estimates."""
    counts, clip, noise = (30, 5), 0.8, 2.5
    source = private(counts, (20_000,), noise_multiplier=noise, clip=clip, insecure_seed=seed)
    exact = FeatureMean().clipped_sum(source._chosen(None), clip)[0]
    assert torch.linalg.vector_norm(exact, dim=1).max() < 30 * clip
    drawn = []
    for _ in range(3):
        (answer,) = ask(source)
        drawn.append(answer * torch.tensor(counts)[:, None] - exact)
    assert not torch.equal(drawn[0], drawn[1])
    numbers = torch.stack(drawn).double() / (noise * clip)
    for group in numbers.transpose(0, 1):
        n = group.numel()
        assert abs(float(group.mean())) < 6 / n**0.5
        assert abs(float(group.var()) - 1) < 6 * (2 / n) ** 0.5
    flat = numbers[:, 0].flatten(), numbers[:, 1].flatten()  # groups have noise of their own
    assert abs(float((flat[0] * flat[1]).mean())) < 6 / len(flat[0]) ** 0.5


@pytest.mark.parametrize("seed", [None, 5], ids=["entropy", "seed"])
def test_every_record_is_sampled_by_itself_at_the_rate(seed):
    count, rate, answers = 400, 0.3, 200
    rows = torch.eye(count)
    source = PrivateSource(
        rows,
        torch.zeros(count, dtype=torch.int64),
        noise_multiplier=1e-6,
        sampling_rate=rate,
        insecure_seed=seed,
    )
    taken = torch.stack([ask(source)[0][0] * rate * count for _ in range(answers)]).round()
    assert set(taken.unique().tolist()) <= {0.0, 1.0}
    sizes = taken.sum(1)
    assert abs(float(taken.mean()) - rate) < 6 * (rate * (1 - rate) / taken.numel()) ** 0.5
    # A sample of a fixed size would have no variance; that of the binomial law is 84.
    assert 0.5 < float(sizes.var()) / (count * rate * (1 - rate)) < 1.8
    for of_record in (taken.mean(0),):
        assert float((of_record - rate).abs().max()) < 6 * (rate * (1 - rate) / answers) ** 0.5
    assert (
        abs(float((taken[:, ::2] - rate).mul(taken[:, 1::2] - rate).mean()))
        < 6 * rate / (taken.numel() / 2) ** 0.5
    )


def test_unequal_and_empty_groups_and_their_order():
    x, groups_of = records((3, 0, 2), (2,))
    source = PrivateSource(x, groups_of, noise_multiplier=1e-7, clip=100.0, group_count=4)
    (answer,) = ask(source)
    for group in (0, 2):
        torch.testing.assert_close(answer[group], x[groups_of == group].mean(0), rtol=1e-3, atol=1e-4)
    assert answer[[1, 3]].tolist() == [[0, 0], [0, 0]]
    assert source.present.tolist() == [True, False, True, False]
    assert source.group_count == 4


def test_one_record_moves_a_sum_by_no_more_than_the_clip():
    x, groups_of = records((6, 5), (4,))
    others = [i for i in range(11) if i != 3]
    group = int(groups_of[3])
    x[3] *= 1e6
    sums = []
    for rows in (range(11), others):
        chosen = groups_of[list(rows)]
        source = PrivateSource(x[list(rows)], chosen, noise_multiplier=1e-7, clip=0.5, group_count=2)
        sums.append(ask(source)[0] * source.counts[:, None])
    moved = (sums[0] - sums[1]).norm(dim=1)
    assert float(moved[group]) == pytest.approx(0.5, rel=1e-4)
    assert float(moved[1 - group]) < 1e-4


def test_noise_is_of_the_operating_system_and_leaves_torchs_generator_alone(monkeypatch):
    source, given = private(sampling_rate=0.5), []
    urandom = os.urandom
    monkeypatch.setattr(os, "urandom", lambda count: given.append(count) or urandom(count))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    rng = seeded(7)
    first = source.expect(FeatureMean(), 3, rng)[0]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(rng.get_state(), seeded(7).get_state())
    # 8 bytes a record for the sample, 8 a number for the noise of 4 groups of 5 columns.
    assert sum(given) == 8 * sum(COUNTS) + 8 * 20
    torch.set_rng_state(before)
    assert not torch.equal(first, source.expect(FeatureMean(), 3, seeded(7))[0])


def test_a_seed_repeats_all_answers_and_no_two_share_noise():
    first, second = (private(insecure_seed=9, sampling_rate=0.5) for _ in range(2))
    answers = [ask(first)[0] for _ in range(3)]
    assert all(torch.equal(a, ask(second)[0]) for a in answers)
    assert not torch.equal(answers[0], answers[1])
    resumed = private(insecure_seed=9, sampling_rate=0.5)
    state = private(insecure_seed=9, sampling_rate=0.5)
    ask(state)
    resumed.load_state_dict(state.state_dict())
    assert torch.equal(ask(resumed)[0], answers[1])
    assert "not private" in first.settings()["noise"]
    assert "9" not in str(first.settings())


def test_rows_are_refused_and_so_are_wrong_settings():
    source = private()
    with pytest.raises(RuntimeError, match=r"shows no rows; start from noise .*\(StatisticMatch\)"):
        source.sample(1, seeded(0))
    assert not source.shows_rows
    x, groups_of = records()
    for options, says in (
        ({"noise_multiplier": 0.0}, "noise_multiplier must be positive and finite, got 0"),
        ({"noise_multiplier": math.nan}, "noise_multiplier"),
        ({"clip": 0.0}, "clip must be positive and finite, got 0"),
        ({"sampling_rate": 0.0}, r"sampling_rate must be in \(0, 1\], got 0"),
        ({"sampling_rate": 1.1}, "sampling_rate"),
        ({"group_count": 2}, "must stay below 2, got 3"),
    ):
        with pytest.raises(ValueError, match=f"PrivateSource: .*{says}"):
            PrivateSource(x, groups_of, **{"noise_multiplier": 1.0, **options})
    with pytest.raises(ValueError, match="groups_of must be"):
        PrivateSource(x, groups_of[:-1], noise_multiplier=1.0)
    with pytest.raises(ValueError, match="must be finite"):
        PrivateSource(x.log(), groups_of, noise_multiplier=1.0)

    class Broken(FeatureMean):
        def clipped_sum(self, measure, clip):
            return (super().clipped_sum(measure, clip)[0] / 0,)

    with pytest.raises(RuntimeError, match="is not finite"):
        ask(source, Broken())


# ---- statistics


def net_of(kind="convnet", classes=3):
    return build(kind, (1, 8, 8), classes, width=4, generator=seeded(0, "net"))


def images(counts=(5, 0, 9), seed=1):
    x = torch.randn(sum(counts), 1, 8, 8, generator=seeded(seed, "images"))
    y = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return Measure(x, y, groups=counts_to_offsets(counts))


@pytest.mark.parametrize("kind", ["convnet", "mlp"])
@pytest.mark.parametrize("tensors", ["all", "matrices"])
@pytest.mark.parametrize("chunk", [256, 4])
def test_clipped_gradients_are_those_of_a_loop_over_records(kind, tensors, chunk):
    net, rows = net_of(kind), images()
    statistic = GradientMean(net, tensors=tensors, chunk=chunk)
    used = [p for p in net.parameters() if tensors == "all" or p.dim() >= 2]
    each = [
        torch.autograd.grad(F.cross_entropy(net(x[None]), y[None]), used)
        for x, y in zip(rows.x, rows.y, strict=True)
    ]
    norms = torch.stack([torch.cat([g.flatten() for g in grads]).norm() for grads in each])
    clip = float(norms.median())
    sums = statistic.clipped_sum(rows, clip)
    means = statistic.mean(rows)
    for place, parameter in enumerate(used):
        stacked = torch.stack([grads[place] for grads in each])
        factors = (clip / norms).clamp(max=1).reshape(-1, *[1] * parameter.dim())
        for group in range(3):
            mine = rows.y == group
            total = (stacked * factors)[mine].sum(0)
            torch.testing.assert_close(sums[place][group], total, rtol=1e-4, atol=1e-5)
            expected = stacked[mine].mean(0) if mine.any() else torch.zeros_like(parameter)
            torch.testing.assert_close(means[place][group], expected, rtol=1e-4, atol=1e-5)
    assert not any(part.requires_grad for part in sums)
    assert all(p.grad is None for p in net.parameters())
    nothing = statistic.clipped_sum(images((0, 0, 0)), clip)
    assert [tuple(part.shape) for part in nothing] == [(3, *p.shape) for p in used]


def test_batch_norm_is_refused_with_the_mend():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    source = PrivateSource(images().x, images().y, noise_multiplier=1.0)
    words = r"not defined for BatchNorm2d '1', .*net.eval\(\) before the pass, or put GroupNorm in its place"
    with pytest.raises(ValueError, match=words):
        ask(source, GradientMean(net.train()))
    assert len(ask(source, GradientMean(net.eval()))) == 2
    mended = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    assert len(ask(source, GradientMean(mended.train()))) == 2


def test_gradient_mean_needs_a_network_with_parameters():
    with pytest.raises(RuntimeError, match="net must be given outside of a step"):
        GradientMean().mean(images())
    with pytest.raises(RuntimeError, match="leaves none that can be trained"):
        GradientMean(net_of().requires_grad_(False)).clipped_sum(images(), 1.0)
    with pytest.raises(ValueError, match="tensors must be one of"):
        GradientMean(tensors="some")
    with pytest.raises(ValueError, match="chunk must be positive"):
        GradientMean(chunk=0)


def test_random_features_have_norm_one_and_approximate_the_kernel():
    statistic = CharacteristicMean(4000, length=1.3, seed=2)
    x = torch.randn(6, 4, generator=seeded(3))
    one_each = Measure(x, groups=counts_to_offsets([1] * 6))
    features = torch.cat(statistic.mean(one_each), dim=1)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(6), rtol=1e-5, atol=1e-5)
    kernel = torch.exp(-torch.cdist(x, x).square() / (2 * 1.3**2))
    # Each product is a mean of 4000 cosines, of deviation below 0.012.
    torch.testing.assert_close(features @ features.T, kernel, rtol=0, atol=6 * 0.012)
    groups = Measure(x, groups=counts_to_offsets([4, 0, 2]))
    for clip, scale in ((1.0, 1.0), (3.0, 1.0), (0.25, 0.25)):
        sums = torch.cat(statistic.clipped_sum(groups, clip), dim=1)
        expected = torch.stack([features[:4].sum(0), features[:0].sum(0), features[4:].sum(0)]) * scale
        torch.testing.assert_close(sums, expected, rtol=1e-4, atol=1e-5)
    assert not torch.equal(
        features, torch.cat(CharacteristicMean(4000, length=1.3, seed=3).mean(one_each), 1)
    )
    for wrong in ({"frequencies": 0}, {"length": 0.0}):
        with pytest.raises(ValueError, match=f"CharacteristicMean: {next(iter(wrong))} must be"):
            CharacteristicMean(**wrong)


# ---- matching


def context(source, synthetic, **options):
    options = {"step": 0, "seed": 3, "batch_real": 50, **options}
    return Context(real={"real": source}, synthetic=synthetic, **options)


def noise(counts=(2, 1, 3)):
    rows = images(counts, seed=4)
    return rows.replace(x=rows.x.requires_grad_())


def test_without_noise_the_answer_is_the_plain_mean():
    rows, synthetic = images((5, 4, 9)), noise()
    source = PublicSource(rows.x, rows.y)
    net = net_of()
    match = StatisticMatch(GradientMean(), "row_cosine")
    values, present = match.values(context(source, synthetic, net=net))
    statistic = GradientMean(net)
    expected = decoct.gradient_distance(
        [part.detach() for part in statistic.mean(rows)], list(statistic.mean(synthetic)), classes=True
    )
    torch.testing.assert_close(values, expected)
    assert present.all()
    (gradient,) = torch.autograd.grad(values.sum(), synthetic.x)
    (wanted,) = torch.autograd.grad(expected.sum(), synthetic.x)
    assert float(wanted.abs().max()) > 0
    torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-7)


def test_a_group_that_is_missing_costs_nothing():
    rows = images((5, 0, 9))
    source = PrivateSource(rows.x, rows.y, noise_multiplier=0.1, group_count=3)
    synthetic = noise((2, 3, 0))
    values, present = StatisticMatch(CharacteristicMean(16)).values(context(source, synthetic))
    assert present.tolist() == [True, False, False]
    assert values[1:].tolist() == [0, 0]
    assert values[0].item() > 0
    (gradient,) = torch.autograd.grad(values.sum(), synthetic.x)
    assert gradient.flatten(1).any(1).tolist() == [True, True, False, False, False]


def test_groups_updated_in_turn_share_one_answer():
    rows = images((5, 4, 9))
    source = PrivateSource(rows.x, rows.y, noise_multiplier=1.0)
    synthetic = noise()
    for match in (StatisticMatch(CharacteristicMean(16)), StatisticMatch(CharacteristicMean(16), once=True)):
        whole = context(source, synthetic)
        given = source._ledger.answers
        parts = [match.values(whole.restrict([g], synthetic))[0] for g in range(3)]
        torch.testing.assert_close(torch.cat(parts), match.values(whole)[0])
        assert source._ledger.answers == given + 1


def test_an_answer_that_is_kept_is_asked_for_once_and_stored():
    rows = images((5, 4, 9))
    source = PrivateSource(rows.x, rows.y, noise_multiplier=1.0)
    match, synthetic = StatisticMatch(CharacteristicMean(16), once=True), noise()
    first = [match.values(context(source, synthetic, step=step))[0] for step in range(3)]
    assert torch.equal(first[0], first[2])
    assert source._ledger.answers == 1
    other = StatisticMatch(CharacteristicMean(16), once=True)
    other.load_state_dict(match.state_dict())
    assert torch.equal(other.values(context(source, synthetic))[0], first[0])
    assert source._ledger.answers == 1
    view = Augmentation().draw(3, seeded(0))
    with pytest.raises(RuntimeError, match="fits no augmentation"):
        match.values(context(source, synthetic, view=view))
    with pytest.raises(ValueError, match="metric must be one of"):
        StatisticMatch(CharacteristicMean(16), "l2")
    with pytest.raises(ValueError, match="3 groups, the synthetic measure 4"):
        match.values(context(source, noise((1, 1, 1, 1))))
    with pytest.raises(RuntimeError, match="holds no network"):
        StatisticMatch(GradientMean()).values(context(source, synthetic))
    assert source._ledger.answers == 1  # refused before the source is asked


def test_both_sides_are_seen_under_the_steps_view():
    rows, view = images((5, 4, 9)), Augmentation(("flip",), "all").draw(3, seeded(1))
    source = PublicSource(rows.x, rows.y)
    match = StatisticMatch(CharacteristicMean(16))
    synthetic = rows.replace(x=rows.x.clone().requires_grad_())
    values, _ = match.values(context(source, synthetic, view=view))
    assert float(values.detach().abs().max()) < 1e-9
    seen = view(rows.x, rows.groups)
    assert not torch.equal(seen, rows.x)
