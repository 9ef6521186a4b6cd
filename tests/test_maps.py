"""Attention maps and characteristic functions as objectives: values worked out by hand, any network."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict

import pytest
import torch
from torch import nn

from decoct.networks import MLP, ConvNet
from decoct.objectives import (
    MMD,
    AttentionFeatures,
    CharacteristicDistance,
    CharacteristicMatch,
    Context,
    Identity,
    Match,
    Measure,
    PublicSource,
    counts_to_offsets,
    seeded,
)


def step(net=None, shape=(1, 8, 8), real=(6, 5, 4), counts=(2, 1, 3), number=0):
    generator = seeded(3, "rows")
    groups = torch.arange(len(real)).repeat_interleave(torch.tensor(real))
    source = PublicSource(torch.randn(sum(real), *shape, generator=generator), groups, group_count=len(real))
    x = torch.randn(sum(counts), *shape, generator=generator).requires_grad_()
    synthetic = Measure(x, groups=counts_to_offsets(counts))
    return Context(step=number, real={"real": source}, synthetic=synthetic, net=net, batch_real=4)


def convnet(**options):
    return ConvNet((1, 8, 8), 3, width=6, generator=seeded(1, "weights"), **options)


def by_hand(net, here, power, balance):
    """DataDAM's loss, layer by layer and class by class."""

    def maps(rows):
        kept, outputs = [], rows
        for layer in net.blocks:
            outputs = layer(outputs)
            if isinstance(layer, nn.ReLU):
                kept.append(outputs.abs().pow(power).sum(1).flatten(1))
        kept = [part / part.norm(dim=1, keepdim=True) for part in kept]
        return [*kept, balance**0.5 * outputs.flatten(1)]

    real, total = here.draw(), 0.0
    for side in zip(
        real.groups, real.groups[1:], here.synthetic.groups, here.synthetic.groups[1:], strict=False
    ):
        theirs, ours = maps(real.x[side[0] : side[1]]), maps(here.synthetic.x[side[2] : side[3]])
        total += sum((a.mean(0) - b.mean(0)).square().sum() for a, b in zip(theirs, ours, strict=True))
    return total


@pytest.mark.parametrize(("power", "balance"), [(4.0, 0.01), (2.0, 0.0)])
def test_attention_matching_is_the_sum_over_layers(power, balance):
    net = convnet(fused=False)
    here = step(net)
    ours = Match(MMD("linear"), AttentionFeatures(power, balance, chunk=5))(here)
    exact = by_hand(net, here, power, balance)
    torch.testing.assert_close(ours, exact)
    x = here.synthetic.x
    torch.testing.assert_close(*(torch.autograd.grad(v, x)[0] for v in (ours, exact)), rtol=1e-4, atol=1e-7)


def test_attention_of_fused_networks_and_named_layers():
    fused = convnet()
    same = AttentionFeatures(layers=("blocks.1", "blocks.5"))(step(fused), step().synthetic.x, False)
    torch.testing.assert_close(same, AttentionFeatures()(step(fused), step().synthetic.x, False))
    assert same.shape == (6, 16 + 4 + fused.feature_width)  # planes of 4 x 4 and 2 x 2, and the features
    plain = copy.deepcopy(convnet(fused=False))
    pooled = AttentionFeatures(layers=("blocks.3", "blocks.7"))(step(plain), step().synthetic.x, False)
    torch.testing.assert_close(pooled, same)
    assert not any(module._forward_hooks for module in fused.modules())


def test_attention_of_vectors():
    net = MLP((5,), 3, width=7, generator=seeded(0, "weights"))
    maps = AttentionFeatures(balance=0.0)(step(net, (5,)), step(net, (5,)).synthetic.x, False)
    assert maps.shape == (6, 14)
    torch.testing.assert_close(maps[:, :7].norm(dim=1), torch.ones(6))


class Custom(nn.Module):
    def __init__(self, **layers):
        super().__init__()
        self.body = nn.Sequential(OrderedDict(layers))

    def features(self, x):
        return self.body(x.flatten(1))


class Both(nn.Module):
    def forward(self, x):
        return x, x


def test_attention_says_what_is_missing():
    x = step().synthetic.x
    with pytest.raises(RuntimeError, match="give the Condenser a pool"):
        AttentionFeatures()(step(), x, False)
    sigmoid = Custom(linear=nn.Linear(64, 4), act=nn.Sigmoid())
    with pytest.raises(RuntimeError, match=r"no nn.ReLU and no FusedNorm"):
        AttentionFeatures()(step(sigmoid), x, False)
    assert AttentionFeatures(layers=("body.act",))(step(sigmoid), x, False).shape == (6, 8)
    with pytest.raises(RuntimeError, match=r"no layer 'body.relu'; it has body, body.linear, body.act"):
        AttentionFeatures(layers=("body.relu",))(step(sigmoid), x, False)
    sigmoid.unused = nn.ReLU()
    with pytest.raises(RuntimeError, match="calls none of the layers"):
        AttentionFeatures()(step(sigmoid), x, False)
    twice = Custom(both=Both(), first=nn.Identity())
    with pytest.raises(TypeError, match="Both must return a tensor"):
        AttentionFeatures(layers=("body.both",))(step(twice), x, False)
    assert not any(module._forward_hooks for module in twice.modules())
    for wrong in ({"power": 0.0}, {"balance": -1.0}, {"chunk": 0}):
        with pytest.raises(ValueError, match="AttentionFeatures"):
            AttentionFeatures(**wrong)


def measures(seed=0):
    generator = seeded(seed, "measures")
    draw = lambda n: torch.randn(n, 5, generator=generator, dtype=torch.float64)  # noqa: E731
    real = Measure(draw(9), groups=counts_to_offsets((4, 5)))
    return real, Measure(draw(3).requires_grad_(), groups=counts_to_offsets((1, 2))), draw(40)


def functions(measure, frequencies, normalise):
    rows = measure.x / measure.x.norm(dim=1, keepdim=True) if normalise else measure.x
    parts = torch.exp(1j * (rows @ frequencies.T)).split(measure.counts.tolist())
    return torch.stack([part.mean(0) for part in parts])


@pytest.mark.parametrize("normalise", [True, False])
def test_characteristic_distance_of_amplitude_and_phase(normalise):
    real, synthetic, frequencies = measures()
    u, v = (functions(side, frequencies, normalise) for side in (real, synthetic))
    together = CharacteristicDistance(1.0, 1.0, normalise=normalise)(real, synthetic, frequencies)
    torch.testing.assert_close(together, (u - v).abs().mean(1), rtol=1e-5, atol=1e-6)
    amplitude = CharacteristicDistance(1.0, 0.0, normalise=normalise)(real, synthetic, frequencies)
    torch.testing.assert_close(amplitude, (u.abs() - v.abs()).abs().mean(1), rtol=1e-5, atol=1e-6)
    phase = CharacteristicDistance(0.0, 1.0, normalise=normalise)(real, synthetic, frequencies)
    angle = (u * v.conj()).angle()
    exact = (2 * u.abs() * v.abs() * (1 - angle.cos())).sqrt().mean(1)
    torch.testing.assert_close(phase, exact, rtol=1e-5, atol=1e-6)


def test_equal_measures_have_no_characteristic_distance_and_no_gradient():
    real, _, frequencies = measures()
    x = real.x.clone().requires_grad_()
    value = CharacteristicDistance()(real, real.replace(x=x), frequencies)
    assert value.max() < 2e-6
    (gradient,) = torch.autograd.grad(value.sum(), x)
    assert gradient.abs().max() < 1e-3  # of values of 1


def test_frequencies_are_those_of_the_step():
    features = Identity()
    term = CharacteristicMatch(features, frequencies=8, keep=2)
    values = [float(term(step(number=k)).detach()) for k in range(3)]
    drawn = [term._frequencies(step(number=k), torch.zeros(1, 64)) for k in range(3)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[1], drawn[2])
    again = CharacteristicMatch(features, frequencies=8, keep=2)
    assert math.isclose(values[2], float(again(step(number=2)).detach()), rel_tol=1e-6)
    assert not list(term.adversaries())


def test_learned_frequencies_ascend():
    term = CharacteristicMatch(frequencies=8, learned=64)
    (frequencies,) = term.adversaries()
    here = step()
    before = term(here)
    (gradient,) = torch.autograd.grad(before, frequencies)
    with torch.no_grad():
        frequencies += 0.1 * gradient
    assert float(term(step()).detach()) > float(before.detach())
    with pytest.raises(ValueError, match="learned must be 25, the numbers of a row of features, got 64"):
        term(step(shape=(1, 5, 5)))


def test_characteristic_matching_checks_its_numbers():
    for wrong in ({"frequencies": 0}, {"keep": 0}, {"scale": 0.0}):
        with pytest.raises(ValueError, match="CharacteristicMatch"):
            CharacteristicMatch(**wrong)
    for wrong in ((-1.0, 1.0), (0.0, 0.0)):
        with pytest.raises(ValueError, match="amplitude and phase"):
            CharacteristicDistance(*wrong)
