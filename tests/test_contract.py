"""Every rule of the contract over every op of the table."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import table
from comparison import assert_as_good_as_torch, compare, evaluate
from samples import CASES, DTYPES, OPS, Op, Sample, rows
from table import tensors_for

pytestmark = pytest.mark.usefixtures("backend")
EVERY_CASE = pytest.mark.parametrize(("op", "sample"), CASES)
SMOOTH_CASE = pytest.mark.parametrize(
    ("op", "sample"), [case for case in CASES if OPS[case[0]].differentiable]
)
SMOOTH_OPS = [op for op in OPS.values() if op.differentiable]
SMOOTH_OP = pytest.mark.parametrize("op", SMOOTH_OPS, ids=[op.name for op in SMOOTH_OPS])
EVERY_OP = pytest.mark.parametrize("op", OPS.values(), ids=OPS.keys())
CLOUD_OPS = [op for op in OPS.values() if op.has_clouds]
CLOUD_OP = pytest.mark.parametrize("op", CLOUD_OPS, ids=[op.name for op in CLOUD_OPS])
VARIANTS = [(op, variant) for op in OPS.values() for variant in op.variants]
INVARIANT = [(op, variant) for op in OPS.values() for variant in op.invariant]


def every(pairs: list[tuple[Op, str]]) -> pytest.MarkDecorator:
    """An op and one of its variants."""
    return pytest.mark.parametrize(("op", "variant"), pairs, ids=[f"{op.name}-{name}" for op, name in pairs])


EVERY_VARIANT = every(VARIANTS)
SMOOTH_VARIANT = every([(op, variant) for op, variant in VARIANTS if op.differentiable])
CLOUD_VARIANT = every([(op, variant) for op, variant in VARIANTS if op.has_clouds])
EVERY_INVARIANT = every(INVARIANT)


@EVERY_CASE
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_and_gradients(op: str, sample: str, dtype: torch.dtype) -> None:
    compare(OPS[op], OPS[op].sample(sample), dtype)


@SMOOTH_CASE
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_second_derivatives(op: str, sample: str, dtype: torch.dtype) -> None:
    compare(OPS[op], OPS[op].sample(sample), dtype, second=True)


@SMOOTH_VARIANT
def test_derivatives_against_differences(op: Op, variant: str) -> None:
    """The independent check: finite differences of values, then of gradients."""
    sample = op.call(5, 4, 3, 1.7, variant)
    inputs = [tensor.clone().requires_grad_() for tensor in sample.tensors.values()]

    def call(*parts: torch.Tensor) -> torch.Tensor:
        return op.function(**dict(zip(sample.tensors, parts, strict=True)), **sample.options)

    assert gradcheck(call, inputs, fast_mode=True)
    assert gradgradcheck(call, inputs, fast_mode=True)


@SMOOTH_CASE
def test_only_the_wanted_gradients(op: str, sample: str) -> None:
    """Each input alone gives the same value and gradient as all inputs together."""
    function, chosen = OPS[op].function, OPS[op].sample(sample)
    names = list(chosen.tensors)
    together = evaluate(function, chosen.cast(torch.float64, requires_grad=True), names)
    for name in names:
        arguments = chosen.cast(torch.float64)
        arguments[name].requires_grad_()
        for key, alone in evaluate(function, arguments, [name]).items():
            atol = 1e-14 * max(1.0, float(together[key].abs().max()))
            torch.testing.assert_close(alone, together[key], rtol=1e-12, atol=atol)


@SMOOTH_OP
def test_third_derivatives(op: Op) -> None:
    """They are right or raise."""
    sample = op.call(5, 4, 3, 2.0)
    arguments = sample.cast(torch.float64, requires_grad=True)
    chosen = arguments["y" if op.has_clouds else next(reversed(sample.tensors))]
    gradient = op.function(**arguments).sum()
    for _ in range(2):
        (gradient,) = torch.autograd.grad(gradient.square().sum(), chosen, create_graph=True)
    if op.any_order:
        (ours,) = torch.autograd.grad(gradient.square().sum(), chosen)
        gradient = op.reference(**arguments).sum()
        for _ in range(2):
            (gradient,) = torch.autograd.grad(gradient.square().sum(), chosen, create_graph=True)
        (exact,) = torch.autograd.grad(gradient.square().sum(), chosen)
        torch.testing.assert_close(ours, exact, rtol=1e-10, atol=1e-12)
        return
    with pytest.raises(RuntimeError, match="a third one is not offered"):
        torch.autograd.grad(gradient.square().sum(), chosen)


@EVERY_OP
def test_refusals(op: Op) -> None:
    function = op.checked or op.public  # refused wherever it would run
    for kind, message, arguments in op.errors():
        with pytest.raises(kind, match=f"^{re.escape(message)}$"):
            function(**arguments)


@EVERY_OP
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled(op: Op, dynamic: bool, backend: str) -> None:
    # A graph is the same for every backend: one of them compiles all samples.
    for name in op.compiled[:1] if backend == "cuda_on_cpu" else op.compiled:
        sample = op.sample(name)
        names = op.names(sample)
        torch._dynamo.reset()
        compiled = torch.compile(op.function, fullgraph=True, dynamic=dynamic, backend="aot_eager")
        # The second pass has other shapes in all places: rows, and for batches their number.
        for sized in (sample, op.shorter(sample)):
            if sized is None:
                continue
            ours = evaluate(compiled, sized.cast(torch.float32, requires_grad=True), names)
            eager = evaluate(op.function, sized.cast(torch.float32, requires_grad=True), names)
            for key in eager:
                assert torch.equal(ours[key], eager[key]), f"{op.name}[{name}] {key}"


@EVERY_OP
def test_autocast_changes_nothing(op: Op) -> None:
    sample = op.sample(op.compiled[0])
    names = op.names(sample)
    plain = evaluate(op.function, sample.cast(torch.float32, requires_grad=True), names)
    with torch.autocast(table.DEVICE, dtype=torch.bfloat16):
        cast = evaluate(op.function, sample.cast(torch.float32, requires_grad=True), names)
    for key in plain:
        assert cast[key].dtype == plain[key].dtype
        assert torch.equal(cast[key], plain[key])


def _sliced(tensor: torch.Tensor) -> torch.Tensor:
    wide = torch.full((*tensor.shape[:-1], tensor.shape[-1] + 5), 7.0, dtype=tensor.dtype)
    wide[..., 3:-2] = tensor
    return wide[..., 3:-2]


def _misaligned(tensor: torch.Tensor) -> torch.Tensor:
    flat = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)
    flat[1:] = tensor.reshape(-1)
    return flat[1:].view(tensor.shape)


def _every_other(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.repeat_interleave(2, 0)[::2]


LAYOUTS: dict[str, Any] = {
    "sliced": _sliced,
    "misaligned": _misaligned,
    "every other row": _every_other,
    "transposed": lambda t: t.T.contiguous().T if t.dim() == 2 else t,
}


@EVERY_OP
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_layouts(op: Op, layout: str, dtype: torch.dtype) -> None:
    """Views give what their copies give, and no input is written to."""
    sample = op.call(37, 18, 21, 4.0)
    names = op.names(sample)
    plain = evaluate(op.function, sample.cast(dtype, requires_grad=True), names)
    arguments = sample.cast(dtype)
    viewed = {name: LAYOUTS[layout](arguments[name]).requires_grad_() for name in sample.tensors}
    before = {name: tensor.detach().clone() for name, tensor in viewed.items()}
    ours = evaluate(op.function, {**arguments, **viewed}, names, second=True)
    for key in plain:
        assert torch.equal(ours[key], plain[key]), key
    for name in sample.tensors:
        assert torch.equal(viewed[name].detach(), before[name]), f"{name} was written to"


@CLOUD_OP
def test_expanded_rows(op: Op) -> None:
    """A row repeated by stride 0 is as many equal rows."""
    x, y = rows(11, 5), rows(1, 5, seed=1)
    tensors = tensors_for(op, x, y.expand(6, 5))
    ours = op.function(**tensors, **op.options(2.0))
    copied = op.function(**{**tensors, "y": y.repeat(6, 1)}, **op.options(2.0))
    assert torch.equal(ours, copied)


SIZES = [
    (1, 1),
    (2, 1),
    (1, 2),
    (31, 32),
    (33, 31),
    (32, 33),
    (127, 129),
    (129, 128),
    (128, 127),
    (97, 257),
    (3, 509),
]


@CLOUD_OP
@pytest.mark.parametrize(("n", "m"), SIZES)
def test_row_counts(op: Op, n: int, m: int) -> None:
    tensors = tensors_for(op, rows(n, 6), rows(m, 6, seed=1, shift=0.2))
    compare(op, Sample(f"{n}x{m}", tensors, op.options(2.0)), torch.float32, second=True)


@CLOUD_OP
@pytest.mark.parametrize("d", [1, 2, 3, 15, 16, 17, 31, 33, 64, 127, 129, 255, 257, 511, 513, 1031])
def test_column_counts(op: Op, d: int) -> None:
    tensors = tensors_for(op, rows(21, d), rows(10, d, seed=1, shift=0.2))
    for variant in [v for v in op.variants if v in ("gaussian", "energy", "polynomial", "p2", "p1-reach")]:
        options = op.options(float(d) ** 0.5, variant)
        compare(op, Sample(f"D={d} {variant}", tensors, options), torch.float32, second=True)
        compare(op, Sample(f"D={d} {variant}", tensors, options), torch.float64)


@CLOUD_VARIANT
@pytest.mark.parametrize(("n", "m"), [(0, 4), (4, 0), (0, 0)])
def test_no_rows(op: Op, variant: str, n: int, m: int) -> None:
    """An empty cloud gives 0 with zero gradients."""
    tensors = tensors_for(op, rows(n, 3), rows(m, 3))
    arguments = {k: v.clone().requires_grad_() for k, v in tensors.items()}
    value = op.function(**arguments, **op.options(1.0, variant))
    assert value.shape == ((n,) if op.has_rows else ())
    assert not value.detach().abs().sum()
    for gradient in torch.autograd.grad(value.sum(), list(arguments.values())):
        assert not gradient.abs().sum()


@CLOUD_OP
def test_no_segments(op: Op) -> None:
    batch = {"x": rows(0, 5, 3), "y": rows(0, 4, 3)}
    packed = {"x": rows(0, 3), "y": rows(0, 3), "x_offsets": [0], "y_offsets": [0]}
    if op.has_rows:
        several, flat = ({"v": rows(0, 4), "f": rows(0, 5), "g": rows(0, 4)}, dict.fromkeys("vfg", rows(0)))
        taken = "vfg" if op.name == "apply_plan" else "v"
        assert op.function(**batch, **{k: several[k] for k in taken}).shape == (0, 5)
        assert op.function(**packed, **{k: flat[k] for k in taken}).shape == (0,)
    else:
        assert op.function(**batch).shape == (0,)
        assert op.function(**packed).shape == (0,)


SOME = ("gaussian", "laplacian", "polynomial", "linear", "p2", "p1-reach")


@every([(op, variant) for op, variant in VARIANTS if variant in SOME])
def test_unequal_segments(op: Op, variant: str) -> None:
    """One large segment among empty and tiny ones; each as if it were alone."""
    lengths = {"x": [0, 1, 300, 2, 0, 7, 64, 1], "y": [3, 1, 5, 40, 0, 0, 64, 2]}
    x, y = rows(sum(lengths["x"]), 9), rows(sum(lengths["y"]), 9, seed=1)
    offsets = {f"{k}_offsets": [0, *torch.tensor(v).cumsum(0).tolist()] for k, v in lengths.items()}
    sample = Sample("unequal", tensors_for(op, x, y), {**offsets, **op.options(3.0, variant)})
    compare(op, sample, torch.float32, second=True)
    compare(op, sample, torch.float64, second=True)


@EVERY_INVARIANT
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_duplicates(op: Op, variant: str, dtype: torch.dtype) -> None:
    """Rows that both clouds share, far apart from the origin's scale: exact zeros between them."""
    x = rows(24, 2048)
    y = torch.cat([x[3:9], x[3:5], rows(3, 2048, seed=1)])
    sample = Sample("duplicates", tensors_for(op, x, y), op.options(45.0, variant))
    compare(op, sample, dtype, second=True)


@EVERY_INVARIANT
def test_identical_rows_have_no_gradient(op: Op, variant: str) -> None:
    point = rows(1, 300, shift=100.0).float()
    x, y = point.repeat(5, 1).requires_grad_(), point.repeat(4, 1).requires_grad_()
    tensors = {**tensors_for(op, x, y), "x": x, "y": y}
    tensors = {k: v.float() if k not in ("x", "y") else v for k, v in tensors.items()}
    value = op.function(**tensors, **op.options(2.0, variant))
    for gradient in torch.autograd.grad(value.sum(), (x, y)):
        assert torch.equal(gradient, torch.zeros_like(gradient))


@CLOUD_VARIANT
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("side", ["x", "y"])
def test_a_row_that_is_not_finite(op: Op, variant: str, bad: float, side: str) -> None:
    """It makes its own segment NaN and leaves the others as they were, bit for bit."""
    ends = {"x_offsets": [0, 6, 12, 20], "y_offsets": [0, 4, 9, 13]}
    clean = tensors_for(op, rows(20, 5), rows(13, 5, seed=1))
    spoilt = {k: v.clone() for k, v in clean.items()}
    spoilt[side][7, 2] = bad
    results = []
    for tensors in (clean, spoilt):
        sample = Sample("", tensors, {**ends, **op.options(2.0, variant)})
        results.append(evaluate(op.function, sample.cast(torch.float32, requires_grad=True), list(tensors)))
    for key, expected in results[0].items():
        ours = results[1][key]
        if key in ("da", "db", "dv", "df", "dg"):
            pieces = ends["x_offsets"] if key in ("da", "df") else ends["y_offsets"]
        elif key in ("dx", "dy"):
            pieces = ends[f"{key[1]}_offsets"]
        else:
            pieces = ends["x_offsets"] if op.has_rows else [0, 1, 2, 3]
        start, stop = pieces[1], pieces[2]
        assert ours[start:stop].isnan().all(), f"{key} of the segment"
        assert torch.equal(ours[:start], expected[:start]), f"{key} before it"
        assert torch.equal(ours[stop:], expected[stop:]), f"{key} after it"


WITH_RULES = ("gaussian-5", "laplacian", "inverse-multiquadric", "rational-quadratic")


@every([(op, variant) for op, variant in VARIANTS if variant in WITH_RULES])
@pytest.mark.parametrize("scale", [1e-4, 1e6, 1e15])
def test_scales(op: Op, variant: str, scale: float) -> None:
    """Only rows over bandwidth matter, whatever their size; the mean rule keeps up with both."""
    tensors = tensors_for(op, rows(15, 6), rows(11, 6, seed=1, shift=0.5))
    for bandwidth in (2.0, "mean"):
        options = op.options(bandwidth, variant)
        base = op.function(**Sample("", tensors, options).cast(torch.float32))
        scaled = {k: v * scale if k in ("x", "y") else v for k, v in tensors.items()}
        if bandwidth == 2.0:
            options["bandwidth"] = 2.0 * scale
        ours = op.function(**Sample("", scaled, options).cast(torch.float32))
        torch.testing.assert_close(ours, base, rtol=1e-4, atol=1e-6)


@EVERY_INVARIANT
def test_far_from_the_origin(op: Op, variant: str) -> None:
    """Translation-invariant kernels lose nothing 1e4 away: the shift is exact in float32 here."""
    near = tensors_for(op, (rows(23, 16) * 64).round() / 64, (rows(9, 16, seed=1) * 64).round() / 64)
    far = {k: v + 1e4 if k in ("x", "y") else v for k, v in near.items()}
    options = op.options(3.0, variant)
    names = list(near)
    exact = evaluate(op.reference, Sample("", near, options).cast(torch.float64, requires_grad=True), names)
    torchs = evaluate(op.reference, Sample("", near, options).cast(torch.float32, requires_grad=True), names)
    ours = evaluate(op.function, Sample("", far, options).cast(torch.float32, requires_grad=True), names)
    for key in exact:
        scale = max(float(exact[key].abs().max()), op.scale({**near, **options}))
        solved_to = op.solved_to(torch.float32)
        assert_as_good_as_torch(ours[key], exact[key], torchs[key], torch.float32, key, scale, solved_to)
