"""Barycentre matching (wmdd): the objective, the network that it needs, the method from data to report."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import decoct
from decoct.__main__ import main
from decoct.condense import Condenser, Phase, PretrainedNetwork, Synthetic, export
from decoct.condense.recipes import condenser, default_recipe, starting_set
from decoct.networks import build
from decoct.objectives import (
    BarycenterMatch,
    Context,
    Identity,
    Measure,
    NetFeatures,
    PublicSource,
    counts_to_offsets,
    cross_entropy,
    seeded,
)

SHAPE, CLASSES = (1, 8, 8), 3


def source(counts=(12, 9, 7), shape=SHAPE):
    groups_of = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    centres = torch.randn(len(counts), *shape, generator=seeded(0, "centres"))
    x = centres[groups_of] + 0.5 * torch.randn(sum(counts), *shape, generator=seeded(0, "rows"))
    return PublicSource(x, groups_of, group_count=len(counts))


def noise(counts=(2, 1, 3), shape=SHAPE):
    x = torch.randn(sum(counts), *shape, generator=seeded(1, "noise")).requires_grad_()
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return Measure(x, labels, groups=counts_to_offsets(counts))


def context(synthetic, net=None, real=None, step=0):
    net = net or build("convnet", SHAPE, CLASSES, width=6, depth=2, generator=seeded(0, "net"))
    return Context(step=step, seed=3, real={"real": real or source()}, synthetic=synthetic, net=net)


@pytest.mark.parametrize("weights", ["uniform", "learned"])
def test_objective_is_the_distance_to_the_barycentres(weights):
    counts = (2, 0, 3)
    real, synthetic = source(), noise(counts)
    term = BarycenterMatch(Identity(), weights=weights, blur=0.2, iterations=7)
    value = term(context(synthetic, real=real))
    expected = 0.0
    for group, first, last in ((0, 0, 2), (2, 2, 5)):
        rows = real.x[real.y == group].flatten(1)
        start = synthetic.x[first:last].detach().flatten(1)
        centred = rows - rows.mean(0)
        length = (2 * centred.square().sum() / (len(rows) - 1)).sqrt()
        made = decoct.free_support_barycenter(
            rows, last - first, init=start, weights=weights, blur=0.2 * float(length), iterations=7
        )
        torch.testing.assert_close(term.points[first:last], made.points, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(term.masses[first:last], made.masses, rtol=1e-3, atol=1e-4)
        distance = (synthetic.x[first:last].flatten(1) - made.points).square().sum(1)
        expected = expected + made.masses @ distance
    torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-3)
    (gradient,) = torch.autograd.grad(value, synthetic.x)
    wanted = 2 * term.masses[:, None] * (synthetic.x.detach().flatten(1) - term.points)
    torch.testing.assert_close(gradient.flatten(1), wanted)
    # It is kept: other points meet the same barycentre.
    moved = synthetic.replace(x=synthetic.x.detach() + 1)
    points = term.points.clone()
    term(context(moved, real=real, step=1))
    assert torch.equal(term.points, points)
    other = BarycenterMatch(Identity(), weights=weights, blur=0.2, iterations=7)
    other.load_state_dict(term.state_dict())
    assert torch.equal(other(context(moved, step=1)), term(context(moved, real=real, step=1)))


class _Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.line = nn.BatchNorm2d(1), nn.Linear(64, CLASSES)
        self.norm.running_mean.fill_(0.3)
        self.norm.running_var.fill_(2.0)

    def features(self, x):
        return self.norm(x).flatten(1)

    def forward(self, x):
        return self.line(self.features(x))


@pytest.mark.parametrize("chunk", [2, 100])
def test_statistics_of_batch_norms(chunk):
    """Over all chunks and weighted by the masses."""
    net, synthetic = _Normed().eval(), noise()
    plain, more = (BarycenterMatch(NetFeatures(chunk), statistics=weight, blur=0.5) for weight in (0.0, 10.0))
    added = more(context(synthetic, net)) - plain(context(synthetic, net))
    share = (more.masses / more.masses.sum())[:, None]
    pixels = synthetic.x.flatten(1)
    mean = (share * pixels).sum() / 64
    variance = (share * pixels.square()).sum() / 64 - mean**2
    torch.testing.assert_close(added, 10 * ((mean - 0.3) ** 2 + (variance - 2.0) ** 2), rtol=1e-4, atol=1e-4)
    assert not net.norm._forward_pre_hooks


def test_refusals():
    for options in (
        {"rows": 0},
        {"iterations": 0},
        {"weights": "equal"},
        {"blur": 0.0},
        {"statistics": -1.0},
    ):
        with pytest.raises(ValueError, match="BarycenterMatch: "):
            BarycenterMatch(**options)
    with pytest.raises(RuntimeError, match="holds no network"):
        BarycenterMatch()(Context(step=0, real={"real": source()}, synthetic=noise()))
    for changes in ({"updates": "per_group"}, {}):
        points = noise()
        loop = Condenser(
            Synthetic(points.x.detach(), points.groups),
            source(),
            [Phase(2, BarycenterMatch(), batch_synthetic=None if changes else 1)],
            pool=PretrainedNetwork(build("convnet", SHAPE, CLASSES, width=4, depth=2), epochs=0),
            **changes,
        )
        if not changes:
            loop.phases[0].objective.set_extra_state({"points": None, "masses": None, "groups": None})
            loop.phases[0].objective(context(points))
        with pytest.raises(RuntimeError, match="must hold all synthetic rows"):
            loop.run()


def test_pretrained_network_is_trained_once_and_stays():
    real = source((20, 20, 20))
    net = build("convnet", SHAPE, CLASSES, width=8, depth=2, generator=seeded(0, "net"))
    pool = PretrainedNetwork(net, epochs=20, real_rows=60, lr=0.05, momentum=0.9, batch=16)
    first = context(noise(), net, real)
    drawn = pool.draw(first)
    rows = Measure(real.x, real.y)
    assert float(cross_entropy(drawn, rows).mean()) < 0.2
    assert not drawn.training
    kept = [p.clone() for p in drawn.parameters()]
    pool.advance(first)
    assert pool.draw(context(noise(), net, real, step=1)) is drawn
    assert all(torch.equal(p, q) for p, q in zip(kept, drawn.parameters(), strict=True))
    assert "PretrainedNetwork: kept, 20 epochs on 60 real rows" in pool.settings()
    given = build("convnet", SHAPE, CLASSES, width=4, depth=2)
    before = [p.clone() for p in given.parameters()]
    PretrainedNetwork(given, epochs=0).draw(context(noise(), given, real))
    assert all(torch.equal(p, q) for p, q in zip(before, given.parameters(), strict=True))


@pytest.mark.parametrize("shape", [SHAPE, (3, 16, 16), (5,)])
def test_recipe_lowers_the_objective_and_resumes(shape):
    def loop(losses):
        recipe = default_recipe("wmdd", shape).replace(steps=8, pretrain=2)
        start = torch.randn(6, *shape, generator=seeded(0))
        return condenser(
            recipe,
            starting_set(recipe, start, (2, 1, 3)),
            source((20, 20, 20), shape),
            shape=shape,
            classes=3,
            callback=lambda record: losses.append(record.loss),
        )

    losses: list[float] = []
    whole = loop(losses)
    whole.run()
    assert losses[-1] < 0.9 * losses[0]
    half = loop([])
    half.run(until=3)
    again = loop([])
    again.load_state_dict(half.state_dict())
    again.run()
    assert torch.equal(again.synthetic.x, whole.synthetic.x)


def test_from_data_to_report(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    import numpy

    real = source((12, 12, 12))
    numpy.savez("mine.npz", x=real.x.numpy(), y=real.y.numpy())
    fast = ["--quiet", "--steps", "4", "--eval-seeds", "1", "--epochs", "2", "--pretrain", "1"]
    command = ["condense", "mine.npz", *fast, "--method", "wmdd", "--ipc", "1,2", "--full-seeds", "0"]
    assert main(command) == 0
    assert "condensed, wmdd" in capsys.readouterr().out
    run = tmp_path / "runs" / "mine-wmdd-seed0"
    found = export.read(run / "ipc-2")
    assert found.x.shape == (6, 1, 8, 8)
    assert not torch.equal(found.x, found.initial)
    facts = json.loads((run / "run.json").read_text())
    assert facts["recipe"]["masses"] == "learned"
    assert "PretrainedNetwork: kept, 1 epochs" in found.metadata["loop"]["network"]
    for option in (["--masses", "uniform"], ["--blur", "0.5"]):
        assert main([*command, "--no-eval", "--out", option[1], *option]) == 0
        assert not torch.equal(export.read(tmp_path / option[1] / "ipc-2").x, found.x)
    for wrong in (["--method", "dm", "--masses", "uniform"], ["--pretrain", "-1"], ["--kernel", "energy"]):
        assert main([*command, *wrong, "--out", "x"]) != 0
