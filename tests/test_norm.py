"""Group and instance normalisation against torch's own layers, in closed forms and at the edges."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.nn import functional as F

import decoct
from comparison import compare, evaluate
from decoct.networks import ConvNet, FusedNorm, fuse
from norms import OPS, POOLED, RELU, tensors
from samples import Sample, rows

ON_BACKENDS = pytest.mark.usefixtures("backend")
LAST = torch.channels_last


def torchs(x: Tensor, groups: int, weight: Any = None, bias: Any = None, **options: Any) -> Tensor:
    """torch's own layers."""
    out = F.group_norm(x, groups, weight, bias, options.get("epsilon", 1e-5))
    if options.get("activation"):
        out = F.relu(out)
    pooling = {2: lambda x, k: x, 3: F.avg_pool1d, 4: F.avg_pool2d, 5: lambda x, k: x}[x.dim()]
    return pooling(out, options.get("pool", 1))


@ON_BACKENDS
@pytest.mark.parametrize("options", [{}, RELU, POOLED, {"pool": 3}, {"epsilon": 0.3}])
@pytest.mark.parametrize("shape", [(2, 6, 9, 8), (3, 6, 11), (1, 12, 32, 32)], ids=str)
@pytest.mark.parametrize("groups", [1, 3, 6])
def test_torchs_layers(shape: tuple[int, ...], groups: int, options: dict[str, Any]) -> None:
    arguments = {k: v.double().requires_grad_() for k, v in tensors(*shape).items()}
    ours, theirs = (
        evaluate(function, {**arguments, "groups": groups, **options}, list(arguments), second=True)
        for function in (decoct.group_norm, torchs)
    )
    for key, expected in theirs.items():
        result = ours.get(key, torch.zeros_like(expected))  # torch gives the bias a second derivative of 0
        torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10, msg=key)


@ON_BACKENDS
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # one backend for all examples
@given(
    images=st.integers(1, 3),
    groups=st.integers(1, 4),
    each=st.integers(1, 5),
    sides=st.lists(st.integers(1, 9), min_size=0, max_size=3),
    relu=st.booleans(),
    pool=st.integers(1, 3),
    last=st.booleans(),
)
def test_any_shape(
    backend: str, images: int, groups: int, each: int, sides: list[int], relu: bool, pool: int, last: bool
) -> None:
    if len(sides) not in (1, 2) or min(sides) < pool:
        pool = 1
    arguments = tensors(images, groups * each, *sides)
    if last and len(sides) == 2:
        arguments["x"] = arguments["x"].contiguous(memory_format=LAST)
    activation = "relu" if relu else None
    options = {"groups": groups, "activation": activation, "pool": pool, "epsilon": 0.1}
    sample = Sample("", arguments, options)
    if arguments["x"].numel() > 3 * images * groups:  # gradients of fewer numbers are nearly all rounding
        compare(OPS[0], sample, torch.float32, second=True)
    ours = evaluate(decoct.group_norm, sample.cast(torch.float64, True), list(arguments), second=True)
    theirs = evaluate(OPS[0].reference, sample.cast(torch.float64, True), list(arguments), second=True)
    for key, expected in ours.items():
        torch.testing.assert_close(theirs[key], expected, rtol=1e-10, atol=1e-11, msg=key)


@ON_BACKENDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("channels", [3, 16, 35])
@pytest.mark.parametrize("options", [RELU, POOLED], ids=["relu", "pooled"])
def test_channels_last(dtype: torch.dtype, channels: int, options: dict[str, Any]) -> None:
    """It is read in place, and results and gradients come in the same layout."""
    sample = Sample("", tensors(2, channels, 9, 6), {"groups": channels, **options})
    arguments = sample.cast(dtype, requires_grad=True)
    x = arguments["x"].detach().contiguous(memory_format=LAST).requires_grad_()
    ours = evaluate(decoct.group_norm, {**arguments, "x": x}, list(sample.tensors), second=True)
    plain = evaluate(decoct.group_norm, arguments, list(sample.tensors), second=True)
    assert ours["value"].is_contiguous(memory_format=LAST)
    assert ours["dx"].is_contiguous(memory_format=LAST)
    for key, expected in plain.items():
        bound = 32 * torch.finfo(expected.dtype).eps * max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(ours[key], expected, rtol=0, atol=bound, msg=key)


def test_layouts_that_cannot_be_read_in_place_are_copied() -> None:
    x = rows(3, 8, 5, 6).float()
    expected = decoct.group_norm(x, 2, activation="relu", pool=2)
    for other in (x.contiguous(memory_format=LAST), x.transpose(2, 3).contiguous().transpose(2, 3)):
        assert torch.equal(decoct.group_norm(other, 2, activation="relu", pool=2), expected)
    expanded = x[:1].expand(4, -1, -1, -1)
    assert torch.equal(decoct.instance_norm(expanded), decoct.instance_norm(expanded.contiguous()))


@ON_BACKENDS
def test_pieces_of_large_planes() -> None:
    """Sums of more numbers than stay in single precision, whose mean is far from zero."""
    x = (rows(2, 2, 150, 151) * 0.01 + 100).float().requires_grad_()
    out = decoct.instance_norm(x).detach()
    exact = torchs(x.detach().double(), 2)
    # The mean is a float32: it is off by half a unit, which is so much of the deviation.
    assert float((out - exact).abs().max()) < 2 * 100 * 2**-24 / 0.01
    assert float(out.mean().abs()) < 1e-3
    sample = Sample("", tensors(2, 4, 150, 151), {"groups": 2, **POOLED})
    compare(OPS[0], sample, torch.float32, second=True)


@ON_BACKENDS
def test_statistics_of_what_varies_little() -> None:
    """A deviation 1e-4 of the mean keeps three digits in float32."""
    x = (1000 + 0.1 * rows(1, 1, 64, 64)).float()
    torch.testing.assert_close(
        decoct.instance_norm(x).double(), torchs(x.double(), 1), rtol=0, atol=2 * 1000 * 2**-24 / 0.1
    )


@ON_BACKENDS
def test_closed_forms() -> None:
    """Two numbers become -1 and 1; ReLU and pooling leave the half of it; equal ones leave the bias."""
    pair = torch.tensor([[[[3.0, 7.0]]]], dtype=torch.float64)
    torch.testing.assert_close(
        decoct.instance_norm(pair, epsilon=0.0), torch.tensor([[[[-1.0, 1.0]]]]).double()
    )
    four = torch.tensor([[[[3.0, 7.0], [7.0, 3.0]]]], dtype=torch.float64)
    pooled = decoct.instance_norm(four, epsilon=0.0, activation="relu", pool=2)
    torch.testing.assert_close(pooled, torch.full((1, 1, 1, 1), 0.5).double())
    bias = torch.tensor([2.0, -3.0])
    flat = decoct.instance_norm(torch.full((2, 2, 4), 5.0), torch.ones(2), bias, activation="relu")
    assert torch.equal(flat, torch.tensor([2.0, 0.0])[None, :, None].expand(2, 2, 4))


@ON_BACKENDS
def test_one_number_a_group() -> None:
    arguments = {k: v.requires_grad_() for k, v in tensors(3, 4).items()}
    results = evaluate(decoct.group_norm, {**arguments, "groups": 4}, list(arguments), second=True)
    assert torch.equal(results["value"], arguments["bias"].detach().expand(3, 4))
    for key in ("dx", "dweight", "ddx", "ddweight"):
        assert float(results[key].abs().max()) < 1e-10, key


@ON_BACKENDS
def test_gradients_are_orthogonal_to_what_is_normalised_away() -> None:
    """Adding a constant to a group, or scaling it, changes nothing where epsilon is 0."""
    arguments = {k: v.requires_grad_() for k, v in tensors(3, 6, 5, 7).items()}
    results = evaluate(decoct.group_norm, {**arguments, "groups": 2, "epsilon": 0.0, **RELU}, ["x"])
    gradient = results["dx"].reshape(3, 2, -1)
    for direction in (torch.ones_like(gradient), arguments["x"].detach().reshape(3, 2, -1)):
        assert float((gradient * direction).sum(-1).abs().max()) < 1e-12


@ON_BACKENDS
@pytest.mark.parametrize("shape", [(0, 4, 6, 6), (3, 4, 0, 6), (0, 4)], ids=str)
def test_nothing_to_normalise(shape: tuple[int, ...]) -> None:
    arguments = {
        "weight": torch.ones(4, requires_grad=True),
        "bias": torch.ones(4, requires_grad=True),
        "x": torch.ones(shape, requires_grad=True),
    }
    out = decoct.group_norm(**arguments, groups=2, activation="relu")
    assert out.shape == shape
    gradients = torch.autograd.grad(out.sum(), list(arguments.values()), create_graph=True)
    assert [g.shape for g in gradients] == [(4,), (4,), shape]
    second = torch.autograd.grad(sum(g.sum() for g in gradients), arguments["weight"])
    assert not any(t.abs().sum() for t in (*gradients, *second))


@ON_BACKENDS
def test_parameters_for_each_of_no_images() -> None:
    x, weight = rows(0, 4, 6, 6).requires_grad_(), rows(0, 4).requires_grad_()
    out = decoct.group_norm(x, 2, weight, rows(4), **POOLED)
    assert out.shape == (0, 4, 3, 3)
    assert [g.shape for g in torch.autograd.grad(out.sum(), (x, weight))] == [x.shape, weight.shape]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("layout", [torch.contiguous_format, LAST], ids=str)
def test_a_number_that_is_not_finite(bad: float, layout: torch.memory_format) -> None:
    """It makes its own group NaN and leaves the others as they were, bit for bit."""
    groups = 4 if layout is LAST else 2
    clean = {k: v.float().requires_grad_() for k, v in tensors(3, 4, 6, 6).items()}
    clean["x"] = clean["x"].detach().contiguous(memory_format=layout).requires_grad_()
    spoilt = {**clean, "x": clean["x"].detach().clone()}
    spoilt["x"][1, 3, 2, 2] = bad
    spoilt["x"].requires_grad_()
    ours, expected = (
        evaluate(decoct.group_norm, {**a, "groups": groups, **POOLED}, ["x"], second=True)
        for a in (spoilt, clean)
    )
    for key in ("value", "dx", "ddx"):
        mine = torch.zeros_like(ours[key], dtype=torch.bool)
        mine[1, 4 - 4 // groups :] = True
        assert ours[key][mine].isnan().all(), key
        assert torch.equal(ours[key][~mine], expected[key][~mine]), key


@ON_BACKENDS
def test_16_bit_results_are_rounded_to_nearest() -> None:
    """The float32 result, rounded as torch rounds, through all exponents of a half."""
    exponents = torch.linspace(-30, 15, 4000).exp2()
    x = torch.stack([exponents, -exponents]).reshape(1, 1, -1)
    for dtype in (torch.float16, torch.bfloat16):
        low = x.to(dtype)
        scale = torch.tensor([3e4])
        expected = decoct.instance_norm(low.float(), scale).to(dtype)
        assert torch.equal(decoct.instance_norm(low, scale), expected)
        tiny = decoct.instance_norm(low.float(), scale * 1e-9).to(dtype)
        assert torch.equal(decoct.instance_norm(low, scale * 1e-9), tiny)


def test_mixed_dtypes() -> None:
    x, weight = rows(2, 4, 6), torch.ones(4)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        assert decoct.group_norm(x.to(dtype), 2, weight).dtype == dtype
        assert decoct.group_norm(x.to(dtype), 2, weight.to(torch.bfloat16)).dtype == dtype
        assert decoct.group_norm(x.to(dtype), 2, weight.double()).dtype == torch.float64


def test_autocast_keeps_the_dtype_as_torchs_does_on_the_cpu() -> None:
    x = rows(2, 4, 6, 6).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = decoct.group_norm(x, 2), F.group_norm(x, 2)
    assert ours.dtype == theirs.dtype == torch.bfloat16
    torch.testing.assert_close(ours, theirs)


# ---- under torch's transforms


def pooled(
    x: Tensor, weight: Tensor, bias: Tensor, function: Callable[..., Tensor] = decoct.group_norm
) -> Tensor:
    return function(x, 2, weight, bias, **POOLED)


def loss(
    x: Tensor, weight: Tensor, bias: Tensor, function: Callable[..., Tensor] = decoct.group_norm
) -> Tensor:
    out = pooled(x, weight, bias, function)
    return (out.square() * torch.arange(out.numel(), dtype=out.dtype).reshape(out.shape).cos()).sum()


PARTS = tuple(tensors(2, 4, 5, 4)[k] for k in ("x", "weight", "bias"))
MOVED = tuple(rows(*part.shape, seed=7) for part in PARTS)

TRANSFORMS: dict[str, Callable[[Callable[..., Tensor]], Any]] = {
    "grad": lambda f: grad(lambda *p: loss(*p, f), (0, 1, 2))(*PARTS),
    "jvp": lambda f: jvp(lambda *p: pooled(*p, f), PARTS, MOVED)[1],
    "jvp of x": lambda f: jvp(lambda x: pooled(x, *PARTS[1:], f), PARTS[:1], MOVED[:1])[1],
    "jvp of grad": lambda f: jvp(grad(lambda *p: loss(*p, f), (0, 1, 2)), PARTS, MOVED)[1],
    "grad of jvp": lambda f: grad(lambda *p: jvp(lambda *q: loss(*q, f), p, MOVED)[1], (0, 1))(*PARTS),
    "hessian": lambda f: hessian(lambda w: loss(PARTS[0], w, PARTS[2], f))(PARTS[1]),
    "reverse over forward": lambda f: jacrev(jacfwd(lambda w: loss(PARTS[0], w, PARTS[2], f)))(PARTS[1]),
    "reverse over reverse": lambda f: jacrev(jacrev(lambda w: loss(PARTS[0], w, PARTS[2], f)))(PARTS[1]),
    "each image's gradients": lambda f: vmap(
        grad(lambda x, w, b: loss(x[None], w, b, f), (1, 2)), (0, None, None)
    )(*PARTS),
    "batched images": lambda f: vmap(lambda x: pooled(x, *PARTS[1:], f), 1, 1)(rows(2, 3, 4, 5, 4, seed=3)),
    "batched parameters": lambda f: vmap(lambda w: pooled(PARTS[0], w, PARTS[2], f))(rows(3, 4, seed=3)),
    "batched tangents": lambda f: vmap(lambda t: jvp(lambda x: pooled(x, *PARTS[1:], f), PARTS[:1], (t,))[1])(
        rows(3, 2, 4, 5, 4, seed=4)
    ),
}


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@ON_BACKENDS
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms(name: str) -> None:
    ours, theirs = (TRANSFORMS[name](f) for f in (decoct.group_norm, torchs))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_a_second_tangent_is_refused() -> None:
    with pytest.raises(RuntimeError, match="are not offered"):
        jvp(lambda x: jvp(lambda y: pooled(y, *PARTS[1:]), (x,), MOVED[:1])[1], PARTS[:1], MOVED[:1])


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_dual_tensors() -> None:
    with forward_ad.dual_level():
        parts = [forward_ad.make_dual(p, t) for p, t in zip(PARTS, MOVED, strict=True)]
        ours, theirs = (
            forward_ad.unpack_dual(pooled(*parts, f)).tangent for f in (decoct.group_norm, torchs)
        )
    torch.testing.assert_close(ours, theirs)


def test_third_orders_raise_under_transforms() -> None:
    with pytest.raises(RuntimeError, match="a third one is not offered"):
        grad(
            lambda v: grad(lambda w: grad(lambda u: loss(u, *PARTS[1:]))(w).square().sum())(v).square().sum()
        )(PARTS[0])


def opchecks() -> dict[str, tuple[Any, tuple[Any, ...]]]:
    ops = torch.ops.decoct
    x, weight, bias = (part.clone().requires_grad_() for part in PARTS)
    static = (2, 1e-5, True, 2)
    out, mean, factor = (t.detach() for t in ops.group_norm(*PARTS, *static))
    problem = (x, weight, bias, mean, factor, *static)
    plain = tuple(t.detach() if isinstance(t, Tensor) else t for t in problem)
    last = rows(2, 3, 4, 4).contiguous(memory_format=LAST)
    return {
        "value": (ops.group_norm, (x, weight, bias, *static)),
        "value, bare": (ops.group_norm, (last, None, None, 3, 0.1, False, 2)),
        "grad": (ops.group_norm_grad, (out.clone().requires_grad_(), *problem, 7)),
        "grad, of x": (ops.group_norm_grad, (out.clone().requires_grad_(), *problem, 1)),
        "second": (ops.group_norm_second, (*MOVED, out, *plain, 11)),
        "second, of x": (ops.group_norm_second, (MOVED[0], None, None, out, *plain, 2)),
        "second, without grad": (ops.group_norm_second, (*MOVED, None, *plain, 8)),
    }


@pytest.mark.parametrize("name", list(opchecks()))
def test_opcheck(name: str) -> None:
    op, arguments = opchecks()[name]
    torch.library.opcheck(op.default, arguments)


# ---- modules and networks


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (2, 8, 8)], ids=str)
def test_convnet_is_the_same_network_fused(shape: tuple[int, ...]) -> None:
    """Outputs, first derivatives, and those of gradient matching by the images."""
    results = []
    for fused in (True, False):
        net = ConvNet(shape, 5, width=8, fused=fused, generator=seeded(0)).double()
        x = torch.randn(4, *shape, generator=seeded(1), dtype=torch.float64).requires_grad_()
        out = net(x)
        gradients = torch.autograd.grad(out.square().sum(), list(net.parameters()), create_graph=True)
        (matched,) = torch.autograd.grad(sum(g.square().sum() for g in gradients), x)
        results.append((list(net.state_dict()), out, gradients, matched))
    assert results[0][0] == results[1][0]
    for ours, theirs in zip(results[0][1:], results[1][1:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)


def test_fuse_keeps_parameters_and_names() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.GroupNorm(3, 6, eps=0.1),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Sequential(nn.InstanceNorm2d(6, affine=True), nn.ReLU(inplace=True)),
        nn.InstanceNorm2d(6),
        nn.AvgPool2d((3, 3), stride=3),
    ).double()
    x = rows(2, 3, 17, 17)
    expected, parameters, names = net(x), list(net.parameters()), list(net.state_dict())
    assert fuse(net) is net
    kinds = [type(module).__name__ for module in net]
    assert kinds == ["Conv2d", "FusedNorm", "Identity", "Identity", "Sequential", "FusedNorm", "Identity"]
    assert (net[1].activation, net[1].pool, net[4][0].activation, net[5].pool) == ("relu", 2, "relu", 3)
    assert list(net.state_dict()) == names
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    torch.testing.assert_close(net(x), expected)
    assert "activation='relu', pool=2" in repr(net)


def test_fuse_leaves_the_rest_alone() -> None:
    class Own(nn.GroupNorm):
        pass

    hooked = nn.ReLU()
    hooked.register_forward_hook(lambda *_: None)
    net = nn.Sequential(
        nn.BatchNorm2d(4),
        nn.InstanceNorm2d(4, track_running_stats=True),
        Own(2, 4),
        nn.LayerNorm(8),
        nn.ReLU(),
        nn.AvgPool2d(2),
    )
    kinds = [type(module) for module in net]
    assert [type(module) for module in fuse(net)] == kinds
    partly = fuse(nn.Sequential(nn.GroupNorm(2, 4), hooked, nn.AvgPool2d(2)))
    assert [type(module) for module in partly] == [FusedNorm, nn.ReLU, nn.AvgPool2d]
    for pooling in (
        nn.AvgPool2d(2, stride=1),
        nn.AvgPool2d(2, padding=1),
        nn.AvgPool2d(2, ceil_mode=True),
        nn.AvgPool2d((2, 3)),
        nn.AvgPool2d(2, divisor_override=3),
        nn.MaxPool2d(2),
    ):
        left = fuse(nn.Sequential(nn.GroupNorm(2, 4), nn.ReLU(), pooling))
        assert [type(module) for module in left] == [FusedNorm, nn.Identity, type(pooling)]
        assert left[0].pool == 1

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.relu = nn.GroupNorm(2, 4), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return x + self.norm(self.relu(x))

    alone = fuse(Residual())
    assert type(alone.norm) is FusedNorm
    assert alone.norm.activation is None
    assert type(alone.relu) is nn.ReLU


def test_fused_instance_norm_takes_one_image() -> None:
    plain = nn.InstanceNorm2d(3, affine=True)
    x = rows(3, 5, 4).float()
    torch.testing.assert_close(FusedNorm(plain)(x), plain(x))
    with pytest.raises(TypeError, match="norm must be a GroupNorm or InstanceNorm, got BatchNorm2d"):
        FusedNorm(nn.BatchNorm2d(3))


def test_each_images_gradients_of_a_network() -> None:
    """vmap(grad) over the ConvNet, as private condensation asks for it."""
    net = ConvNet((3, 16, 16), 4, width=6, depth=2, generator=seeded(0)).double()
    x, y = rows(5, 3, 16, 16), torch.tensor([0, 1, 2, 3, 0])
    parameters = {name: p.detach() for name, p in net.named_parameters()}

    def of_one(p: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(net, p, (image[None],)), label[None])

    ours = vmap(grad(of_one), (None, 0, 0))(parameters, x, y)
    for k in range(5):
        single = torch.autograd.grad(F.cross_entropy(net(x[k : k + 1]), y[k : k + 1]), list(net.parameters()))
        for name, expected in zip(parameters, single, strict=True):
            torch.testing.assert_close(ours[name][k], expected, rtol=1e-9, atol=1e-12)
