"""Clipped sums of per-sample gradients: of every class, of chosen parameters, and their noise."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import decoct
from decoct import reference
from decoct._noise import entropic_normal
from table import rows
from test_per_sample import NETS, N, of_pass, small_net, targets

pytestmark = pytest.mark.usefixtures("backend")


@pytest.mark.parametrize("kind", NETS)
def test_sums_of_classes_and_of_chosen_parameters(kind: str) -> None:
    """Against passes over each class alone, clipped by the norm over the chosen parameters."""
    net, shape = small_net(kind)
    x, y, ends = rows(N, *shape), targets(N), [0, 2, 2, N]
    every = list(net.parameters())
    for chosen in (every, every[2:3], [p for p in every if p.dim() > 1]):
        places = [k for k, p in enumerate(every) if any(p is q for q in chosen)]
        squares = reference.per_sample_norms(net, x, y, per_layer=True)[places].square().sum(0)
        limit = float(squares.sqrt().median())
        sums = decoct.clipped_gradient_sum(
            of_pass(net, x, y), max_grad_norm=limit, expected_batch_size=1, x_offsets=ends, parameters=chosen
        )
        assert [k for k, total in enumerate(sums) if total is not None] == places
        for c, (begin, end) in enumerate(itertools.pairwise(ends)):
            for k in places:
                total = sums[k]
                assert total is not None
                assert total.shape == (3, *every[k].shape)
                if begin == end:
                    assert not total[c].any()
                    continue
                gradients = [
                    torch.autograd.grad(F.cross_entropy(net(x[i : i + 1]), y[i : i + 1]), every[k])[0]
                    for i in range(begin, end)
                ]
                factors = (limit / (squares[begin:end].sqrt() + 1e-6)).clamp(max=1)
                exact = sum(f * g for f, g in zip(factors, gradients, strict=True))
                torch.testing.assert_close(total[c], exact, rtol=1e-9, atol=1e-12)


@pytest.mark.usual_backends("cpu")
def test_classes_have_noise_of_their_own() -> None:
    net, shape = small_net("mlp")
    pairs = of_pass(net, rows(N, *shape), targets(N), "sum")
    options: dict[str, Any] = {"max_grad_norm": 0.5, "loss_reduction": "sum", "x_offsets": [0, 1, N]}
    plain = decoct.clipped_gradient_sum(pairs, **options)
    noised = decoct.clipped_gradient_sum(pairs, noise_multiplier=2.0, insecure_seed=3, **options)
    generator = torch.Generator().manual_seed(3)
    for a, b, p in zip(plain, noised, net.parameters(), strict=True):
        assert a is not None
        assert b is not None
        drawn = torch.randn((2, *p.shape), generator=generator, dtype=torch.float64)
        torch.testing.assert_close(b - a, drawn, rtol=1e-9, atol=1e-9)
    for words, changes in (
        (f"x_offsets must end at N={N}, the samples, got 3", {"x_offsets": [0, 3]}),
        ("x_offsets must", {"x_offsets": [1, N]}),
        (
            "parameters must be some of the network's L=6 with requires_grad, got 1 others",
            {"parameters": [torch.nn.Parameter(torch.ones(2))]},
        ),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(f'clipped_gradient_sum: {words}')}"):
            decoct.clipped_gradient_sum(pairs, **{**options, **changes})


@pytest.mark.usual_backends("cpu")
def test_noise() -> None:
    net, shape = small_net("mlp")
    pairs = of_pass(net, rows(N, *shape), targets(N))
    options: dict[str, Any] = {"max_grad_norm": 0.5, "expected_batch_size": 3}
    plain = decoct.clipped_gradient_sum(pairs, **options)
    noised = decoct.clipped_gradient_sum(pairs, noise_multiplier=1.5, insecure_seed=7, **options)
    again = decoct.clipped_gradient_sum(pairs, noise_multiplier=1.5, insecure_seed=7, **options)
    drawn = []
    for a, b, c in zip(plain, noised, again, strict=True):
        assert a is not None
        assert b is not None
        assert c is not None
        assert torch.equal(b, c)
        drawn.append(((b - a) * 3 / (1.5 * 0.5)).flatten())
    generator = torch.Generator().manual_seed(7)
    expected = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in net.parameters()]
    torch.testing.assert_close(
        torch.cat(drawn), torch.cat([e.flatten() for e in expected]), rtol=1e-9, atol=1e-9
    )
    listed = decoct.clipped_gradient_sum(
        pairs,
        max_grad_norm=[3.0, 4.0, 0.1, 0.1, 0.1, 0.1],
        noise_multiplier=2.0,
        insecure_seed=7,
        expected_batch_size=1,
    )
    silent = decoct.clipped_gradient_sum(
        pairs, max_grad_norm=[3.0, 4.0, 0.1, 0.1, 0.1, 0.1], expected_batch_size=1
    )
    norm = math.sqrt(9 + 16 + 4 * 0.01)
    assert listed[0] is not None
    assert silent[0] is not None
    torch.testing.assert_close(listed[0] - silent[0], 2 * norm * expected[0], rtol=1e-9, atol=1e-9)


@pytest.mark.usual_backends("cpu")
def test_entropic_noise_is_normal_and_new() -> None:
    count = 200_001
    drawn = entropic_normal(count)
    assert drawn.shape == (count,)
    assert drawn.isfinite().all()
    assert not torch.equal(drawn, entropic_normal(count))
    assert abs(float(drawn.mean())) < 6 / count**0.5
    assert abs(float(drawn.var()) - 1) < 6 * (2 / count) ** 0.5
    ordered = drawn.sort().values
    exact = torch.special.ndtr(ordered)
    steps = torch.arange(count, dtype=torch.float64) / count
    # Kolmogorov and Smirnov: exceeded once in 10^8 times.
    assert float((exact - steps).abs().max()) * count**0.5 < 3.1
    halves = drawn[: count // 2], drawn[count // 2 : count // 2 * 2]
    assert abs(float((halves[0] * halves[1]).mean())) < 6 / (count / 2) ** 0.5
    assert entropic_normal(0).shape == (0,)
