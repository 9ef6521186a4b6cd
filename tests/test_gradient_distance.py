"""Distances of lists of gradients: closed forms, edges, torch's machinery, and what public code computes."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad, jvp, vmap

import decoct
from decoct import compat, reference
from decoct.ops import _gradient_distance
from gradients import CONVNET, VARIANTS, by_name, named
from table import on_device, rows

METRICS = ("row_cosine", "cosine", "cosine_l2", "sse", "l1", "l1_mean")
distance = on_device(by_name(decoct.gradient_distance))
twin = by_name(reference.gradient_distance)


def lists(shapes: list[tuple[int, ...]], seed: int = 0) -> tuple[list[Tensor], list[Tensor]]:
    tensors = list(named(shapes, seed=seed).values())
    return tensors[: len(shapes)], tensors[len(shapes) :]


def leaves(tensors: list[Tensor]) -> list[Tensor]:
    return [t.detach().clone().requires_grad_() for t in tensors]


@pytest.mark.usefixtures("backend")
class TestEdges:
    def test_closed_forms(self) -> None:
        """Two rows against hand-made numbers."""
        r = torch.tensor([[3.0, 4.0], [1.0, 0.0]], dtype=torch.float64)
        s = torch.tensor([[4.0, 3.0], [0.0, 2.0]], dtype=torch.float64)
        expected = {
            "row_cosine": (1 - 24 / 25) + 1,
            "cosine": 1 - 24 / math.sqrt(26 * 29),
            "cosine_l2": (1 - 24 / 25) + 1 + math.sqrt(2) + math.sqrt(5),
            "sse": 2 + 5,
            "l1": 2 + 3,
            "l1_mean": 1 + 1.5,
        }
        for metric, value in expected.items():
            ours = distance(real0=r, synthetic0=s, metric=metric, epsilon=1e-30)
            assert float(ours) == pytest.approx(value, rel=1e-14), metric

    @pytest.mark.parametrize("name", VARIANTS)
    def test_zero_and_equal_rows(self, name: str) -> None:
        """No NaN: the value is the twin's, a zero row's own direction has no derivative."""
        tensors = named([(4, 6), (3, 6)])
        tensors["real0"][1] = 0
        tensors["synthetic0"][2] = 0
        tensors["real0"][3] = tensors["synthetic0"][3] = 0
        tensors["synthetic1"] = tensors["real1"].clone()
        inputs = leaves(list(tensors.values()))
        arguments = dict(zip(tensors, inputs, strict=True))
        value = distance(**arguments, **VARIANTS[name])
        torch.testing.assert_close(value, twin(**tensors, **VARIANTS[name]))
        gradients = torch.autograd.grad(value, inputs, create_graph=True)
        second = torch.autograd.grad(sum((g * g).sum() for g in gradients), inputs, allow_unused=True)
        for tensor in [*gradients, *second]:
            assert tensor is None or tensor.isfinite().all()

    def test_a_zero_row_pulls_towards_the_real_one(self) -> None:
        r = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
        s = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(distance(real0=r, synthetic0=s, epsilon=0.5), s)
        torch.testing.assert_close(gradient, -r / 0.5)

    @pytest.mark.parametrize("metric", METRICS)
    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_not_finite(self, metric: str, bad: float) -> None:
        """Its own class becomes NaN (an infinite difference stays infinite), no other changes."""
        tensors = named(CONVNET, 3)
        clean = distance(**tensors, classes=True, metric=metric)
        tensors["synthetic1"][1, 2, 0, 0, 0] = bad
        inputs = leaves(list(tensors.values()))
        value = distance(**dict(zip(tensors, inputs, strict=True)), classes=True, metric=metric)
        assert not value[1].isfinite()
        assert torch.equal(value[[0, 2]], clean[[0, 2]])
        gradient = torch.autograd.grad(value.sum(), inputs[4])[0]
        assert gradient[[0, 2]].isfinite().all()
        assert math.isinf(bad) or gradient[1].isnan().any()

    @pytest.mark.parametrize("metric", METRICS)
    def test_empty(self, metric: str) -> None:
        """No classes, a tensor without elements, nothing that counts."""
        none = named([(3, 4)], 0)
        assert distance(**none, classes=True, metric=metric).shape == (0,)
        some = named([(3, 4), (0, 5), (2, 0)])
        expected = distance(**named([(3, 4)]), metric=metric)
        assert torch.equal(distance(**some, metric=metric), expected)
        r, s = named([(3, 4)], 2).values()
        s.requires_grad_()
        value = distance(real0=r, synthetic0=s, classes=True, tensors=[False], metric=metric)
        assert torch.equal(value, torch.zeros(2, dtype=torch.float64))
        assert not torch.autograd.grad(value.sum(), s)[0].any()

    @pytest.mark.parametrize("metric", METRICS)
    def test_more_tensors_than_one_launch_holds(self, metric: str) -> None:
        shapes = [(2, 3 + i % 5) for i in range(150)]
        tensors = named(shapes)
        inputs = leaves(list(tensors.values()))
        ours = distance(**dict(zip(tensors, inputs, strict=True)), metric=metric)
        theirs = twin(**dict(zip(tensors, inputs, strict=True)), metric=metric)
        torch.testing.assert_close(ours, theirs)
        pairs = zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs), strict=True)
        for mine, expected in pairs:
            torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-12)

    def test_expanded_and_mixed(self) -> None:
        """Rows repeated by stride 0, and lists of several dtypes."""
        r, s = rows(1, 7).expand(5, 7), rows(5, 7, seed=1)
        ours = distance(real0=r, synthetic0=s)
        assert torch.equal(ours, distance(real0=r.contiguous(), synthetic0=s))
        low = s.bfloat16().requires_grad_()
        value = distance(real0=r.float(), synthetic0=low)
        assert value.dtype == torch.float32
        assert torch.autograd.grad(value, low)[0].dtype == torch.bfloat16

    def test_rows_along_other_axes(self) -> None:
        """A transposed matrix with its axis is the matrix."""
        r, s = rows(40, 33), rows(40, 33, seed=1)
        for metric in METRICS:
            plain = distance(real0=r, synthetic0=s, metric=metric)
            turned = distance(real0=r.T.contiguous(), synthetic0=s.T.contiguous(), metric=metric, row_axis=1)
            torch.testing.assert_close(turned, plain, rtol=1e-13, atol=0)


@pytest.mark.usefixtures("backend")
@given(
    st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple), min_size=1, max_size=5),
    st.sampled_from(METRICS),
    st.sampled_from([0, -1, None]),
    st.sampled_from(["product", "clamp"]),
    st.integers(0, 3),
)
def test_any_shapes(shapes: Any, metric: str, axis: Any, form: str, classes: int) -> None:
    tensors = named(shapes, *[classes] * bool(classes), seed=len(shapes))
    options = {"metric": metric, "row_axis": axis, "epsilon_form": form, "epsilon": 0.1, "tensors": "all"}
    options["classes"] = bool(classes)
    inputs = dict(zip(tensors, leaves(list(tensors.values())), strict=True))
    ours, theirs = distance(**inputs, **options), twin(**inputs, **options)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    for name, tensor in inputs.items():
        mine = torch.autograd.grad(ours.sum(), tensor, retain_graph=True)[0]
        expected = torch.autograd.grad(theirs.sum(), tensor, retain_graph=True)[0]
        torch.testing.assert_close(mine, expected, rtol=1e-10, atol=1e-12, msg=name)


class TestBackward:
    """The gradient is handed out once and made again when it is asked for again."""

    def value(self, metric: str = "row_cosine", classes: int = 0) -> tuple[Tensor, list[Tensor]]:
        tensors = named([(4, 6), (3, 5)], *[classes] * bool(classes))
        real, synthetic = list(tensors.values())[:2], leaves(list(tensors.values())[2:])
        return decoct.gradient_distance(real, synthetic, metric, classes=bool(classes)), synthetic

    @pytest.mark.parametrize("scale", [1.0, -2.5])
    @pytest.mark.parametrize("classes", [0, 3])
    def test_twice(self, scale: float, classes: int) -> None:
        value, inputs = self.value(classes=classes)
        bar = torch.full_like(value, scale)
        first = torch.autograd.grad(value, inputs, bar, retain_graph=True)
        kept = [g.clone() for g in first]
        for g in first:
            g.zero_()  # the caller's to change
        for mine, expected in zip(torch.autograd.grad(value, inputs, bar), kept, strict=True):
            assert torch.equal(mine, expected)
        unit, others = self.value(classes=classes)
        for mine, expected in zip(torch.autograd.grad(unit.sum(), others), kept, strict=True):
            torch.testing.assert_close(mine * scale, expected)

    def test_accumulates(self) -> None:
        value, inputs = self.value()
        (2 * value).backward(retain_graph=True)
        once = [t.grad.clone() for t in inputs if t.grad is not None]
        value.backward(retain_graph=True)
        for t, first in zip(inputs, once, strict=True):
            assert t.grad is not None
            torch.testing.assert_close(t.grad, 1.5 * first)

    def test_a_graph_after_it_was_given_away(self) -> None:
        value, inputs = self.value("cosine_l2")
        plain = torch.autograd.grad(value, inputs, retain_graph=True)
        graphed = torch.autograd.grad(value, inputs, create_graph=True)
        for mine, expected in zip(graphed, plain, strict=True):
            torch.testing.assert_close(mine.detach(), expected)
            assert mine.requires_grad

    def test_what_does_not_count_gets_no_gradient(self) -> None:
        real, synthetic = lists([(4, 6), (5,)])
        live = leaves(synthetic)
        value = decoct.gradient_distance(real, live)
        assert torch.autograd.grad(value, live, allow_unused=True)[1] is None

    def test_without_gradients(self) -> None:
        real, synthetic = lists(CONVNET)
        with torch.no_grad():
            assert not decoct.gradient_distance(real, leaves(synthetic)).requires_grad
        assert not decoct.gradient_distance(tuple(real), iter(synthetic)).requires_grad  # type: ignore[arg-type]


# torch's own forward-mode rules use torch.jit.script when they load.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
class TestTransforms:
    OPTIONS: ClassVar[dict[str, dict[str, Any]]] = {
        "row_cosine": {},
        "cosine": {"metric": "cosine"},
        "cosine_l2": {"metric": "cosine_l2", "row_axis": -1},
        "l1_mean": {"metric": "l1_mean"},
        "classes": {"classes": True},
    }
    TRANSFORMS: ClassVar[dict[str, Callable[[Callable[..., Tensor], Tensor, Tensor], Any]]] = {
        "grad": lambda f, x, y: grad(f, (0, 1))(x, y),
        "jvp": lambda f, x, y: jvp(f, (x, y), (y, x)),
        "jvp of one": lambda f, x, y: jvp(lambda b: f(x, b), (y,), (x,)),
        "hvp": lambda f, x, y: jvp(grad(f, 1), (x, y), (y, x)),
        "grad of grad": lambda f, x, y: grad(lambda b: grad(f, 1)(x, b).square().sum())(y),
        "grad of jvp": lambda f, x, y: grad(lambda b: jvp(f, (x, b), (y, x))[1])(y),
        "vmap": lambda f, x, y: vmap(f, (0, None))(torch.stack([x, 2 * y]), y),
        "vmap of grad": lambda f, x, y: vmap(grad(f, (0, 1)), (None, 1))(x, torch.stack([x + 1, 2 * y], 1)),
        "grad of vmap": lambda f, x, y: grad(lambda b: vmap(f, (0, None))(torch.stack([x, y]), b).sum())(y),
        "hessian": lambda f, x, y: torch.func.hessian(f, 1)(x, y),
    }

    @pytest.mark.parametrize("options", OPTIONS)
    @pytest.mark.parametrize("transform", TRANSFORMS)
    def test_value(self, options: str, transform: str) -> None:
        def loss(module: Any) -> Callable[..., Tensor]:
            return lambda a, b: (
                module.gradient_distance([a, a[:2] * 2], [b, b[:2].sin()], **self.OPTIONS[options]).sum()
                if options != "classes"
                else module.gradient_distance([a, a * 2], [b, b.sin()], classes=True).square().sum()
            )

        x, y = rows(3, 4, 2), rows(3, 4, 2, seed=1)
        apply = self.TRANSFORMS[transform]
        ours, theirs = apply(loss(decoct), x, y), apply(loss(reference), x, y)
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)

    @pytest.mark.parametrize("need", [0, 1, 2, 3])
    def test_opcheck(self, need: int) -> None:
        ops = torch.ops.decoct
        real, synthetic = lists([(4, 6), (3, 5)])
        live = [leaves(side) if need & 1 << i else side for i, side in enumerate((real, synthetic))]
        settings = ([1, 4, 6, 1, 3, 5], 1, "cosine_l2", "product", 1e-6, need)
        torch.library.opcheck(ops.gradient_distance.default, (*live, *settings))
        torch.library.opcheck(
            ops.gradient_distance_hvp.default, (real, synthetic, rows(39), rows(39, seed=1), *settings)
        )

    def test_a_second_derivative_by_the_registered_op(self) -> None:
        """What a dispatch mode sees is differentiated like what nobody sees."""
        real, synthetic = lists([(4, 6), (3, 5)])
        inputs = leaves([*real, *synthetic])
        settings = ([1, 4, 6, 1, 3, 5], 1, "cosine_l2", "product", 1e-6, 3)
        value = torch.ops.decoct.gradient_distance(inputs[:2], inputs[2:], *settings)[0]
        expected = reference.gradient_distance(inputs[:2], inputs[2:], "cosine_l2")
        results = []
        for loss in (value.sum(), expected):
            gradients = torch.autograd.grad(loss, inputs, create_graph=True)
            results.append(torch.autograd.grad(sum(g.sin().sum() for g in gradients), inputs))
        for mine, theirs in zip(*results, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_results_past_the_caches(metric: str) -> None:
    """More than fits into any cache; rows that start at whole vectors and others."""
    real, synthetic = (
        [torch.randn(4400, 2048), torch.randn(100, 333)] for _ in range(2)
    )  # 36 MiB, of which the first rows are aligned
    live = leaves(synthetic)
    found = torch.autograd.grad(decoct.gradient_distance(real, live, metric), live)
    torch.set_num_threads(2)
    again = torch.autograd.grad(decoct.gradient_distance(real, live, metric), live)
    turned = torch.autograd.grad(decoct.gradient_distance(live, real, metric), live)
    for i in (0, 1):
        assert torch.equal(again[i], found[i])
        torch.testing.assert_close(turned[i], found[i])
    part = [t[:50].double() for t in (real[0], live[0].detach())]
    if metric not in ("cosine",):  # which rows do not share
        one = part[1].requires_grad_()
        (expected,) = torch.autograd.grad(reference.gradient_distance(part[:1], [one], metric), one)
        torch.testing.assert_close(found[0][:50].double(), expected, rtol=1e-4, atol=1e-6)


def test_threads_and_pieces() -> None:
    """A list that is one row, over any number of threads, bit for bit."""
    tensors = {k: v.float() for k, v in named([(300, 301), (70, 900)], 2).items()}
    found = []
    for threads in (1, 2, 7):
        torch.set_num_threads(threads)
        inputs = leaves(list(tensors.values()))
        value = distance(**dict(zip(tensors, inputs, strict=True)), metric="cosine", classes=True)
        found.append([value, *torch.autograd.grad(value.sum(), inputs)])
    for other in found[1:]:
        for mine, expected in zip(other, found[0], strict=True):
            assert torch.equal(mine, expected)


def test_the_engine_checks_again() -> None:
    engine = decoct.ops.backends["cpu"]
    shape = {"epsilon_form": "product", "epsilon": 1e-6, "dtype": "float32", "classes": 1}
    with pytest.raises(ValueError, match="unknown metric"):
        engine.GradientLayout(metric="ours", shapes=[(1, 2, 3)], **shape)
    with pytest.raises(ValueError, match="at least one element"):
        engine.GradientLayout(metric="sse", shapes=[(1, 0, 3)], **shape)
    with pytest.raises(ValueError, match="epsilon"):
        engine.GradientLayout(metric="sse", shapes=[], **{**shape, "epsilon": 0.0})
    layout = engine.GradientLayout(metric="sse", shapes=[(1, 2, 3)], **shape)
    made = {n: torch.zeros(n) for n in (1, 5, 6)}
    memory = torch.zeros(64, dtype=torch.uint8)
    matrix = _gradient_distance.as_matrix

    def call(real: list[Tensor], value: Any, out: Any, workspace: Tensor) -> None:
        addresses = [t.data_ptr() for t in real]
        views = [None if t is None else matrix(engine, t) for t in (value, None, None, None, out, workspace)]
        engine.gradient_distance(layout, addresses, [made[6].data_ptr()], *views, 1, 0)

    call([made[6]], made[1], made[6], memory)
    for arguments, words in (
        (([], made[1], made[6], memory), "an address for each tensor"),
        (([made[6]], made[6], made[6], memory), "value: expected 1 x 1"),
        (([made[6]], made[1], made[5], memory), "out_synthetic: expected 6 x 1"),
        (([made[6]], None, made[6], memory), "a value, or the tangents"),
        (([made[6]], made[1], made[6], memory[:8]), "workspace: smaller"),
    ):
        with pytest.raises(ValueError, match=words):
            call(*arguments)


def dc_match_loss(gw_syn: list[Tensor], gw_real: list[Tensor], metric: str) -> Tensor:
    """What the code of Dataset Condensation computes, after its description."""
    if metric == "ours":
        total = torch.zeros((), dtype=torch.float64)
        for s, r in zip(gw_syn, gw_real, strict=True):
            if s.dim() > 1:
                a, b = r.flatten(1), s.flatten(1)
                total = total + (1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-6)).sum()
        return total
    s, r = (torch.cat([t.flatten() for t in side]) for side in (gw_syn, gw_real))
    return (s - r).square().sum() if metric == "mse" else 1 - (r @ s) / (r.norm() * s.norm() + 1e-6)


@pytest.mark.parametrize("metric", ["ours", "mse", "cos"])
def test_match_loss(metric: str) -> None:
    gw_real, gw_syn = lists([(8, 3, 3, 3), (8,), (8,), (8, 6, 5), (5, 37), (5,)])
    for args in (metric, SimpleNamespace(dis_metric=metric, device="cpu")):
        torch.testing.assert_close(
            compat.match_loss(gw_syn, gw_real, args), dc_match_loss(gw_syn, gw_real, metric)
        )
    with pytest.raises(ValueError, match="got 'mmd'"):
        compat.match_loss(gw_syn, gw_real, "mmd")


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("fc", [False, True])
@pytest.mark.parametrize("metric", ["mse", "l1", "l1_mean", "cos"])
def test_idc_match_loss(metric: str, bias: bool, fc: bool) -> None:
    def dist(x: Tensor, y: Tensor) -> Tensor:
        x, y = x.reshape(x.shape[0], -1), y.reshape(y.shape[0], -1)
        if metric == "mse":
            return (x - y).pow(2).sum()
        if metric == "cos":
            return (1 - (x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1) + 1e-6)).sum()
        return (x - y).abs().sum() if metric == "l1" else (x - y).abs().mean(-1).sum()

    real, synthetic = lists([(8, 3, 3, 3), (8,), (5, 37), (5,)])
    pairs = zip(real, synthetic, strict=True)
    expected = sum(dist(r, s) for r, s in pairs if (bias or r.dim() != 1) and (fc or r.dim() != 2))
    ours = compat.idc_match_loss(real, synthetic, metric, bias=bias, fc=fc)  # type: ignore[arg-type]
    torch.testing.assert_close(ours, expected)
    with pytest.raises(ValueError, match="got 'ours'"):
        compat.idc_match_loss(real, synthetic, "ours")  # type: ignore[arg-type]


def test_loss_module() -> None:
    real, synthetic = named(CONVNET, 3), named(CONVNET, 3, seed=7)
    r, s = list(real.values())[:3], list(synthetic.values())[3:]
    each = decoct.gradient_distance(r, s, "cosine_l2", classes=True)
    for reduction, expected in (("none", each), ("sum", each.sum()), ("mean", each.mean())):
        loss = decoct.GradientMatchingLoss("cosine_l2", classes=True, reduction=reduction)  # type: ignore[arg-type]
        assert torch.equal(loss(r, s), expected)
    assert "metric='cosine_l2'" in repr(loss)
    with pytest.raises(ValueError, match="GradientMatchingLoss: metric must be one of"):
        decoct.GradientMatchingLoss("ours")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="reduction must be"):
        decoct.GradientMatchingLoss(reduction="max")  # type: ignore[arg-type]
