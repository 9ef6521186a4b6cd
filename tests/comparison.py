"""The tolerance of all comparisons with a reference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from samples import Op, Sample

# Sums of up to a few hundred rounded products, taken in another order than torch's.
ROUNDINGS = 16


def assert_as_good_as_torch(
    ours: Tensor,
    exact: Tensor,
    torchs: Tensor,
    dtype: torch.dtype,
    what: str,
    scale: float | None = None,
    solved_to: float = 0.0,
) -> None:
    """max|ours - exact| <= 2 max|torch's - exact| + ROUNDINGS eps scale, and NaN where exact has NaN. What an
    op iterates to a tolerance may be ten of these off: the condition of the samples' equations."""
    assert ours.shape == exact.shape, what
    ours, torchs = ours.detach().double(), torchs.detach().double()
    exact = exact.detach()
    assert torch.equal(ours.isnan(), exact.isnan()), f"{what}: NaN in other places"
    if not ours.numel():
        return
    scale = float(exact.abs().nan_to_num().max()) if scale is None else scale
    relative = ROUNDINGS * torch.finfo(dtype).eps + 10 * solved_to
    allowed = 2 * (torchs - exact).abs().nan_to_num().max() + relative * scale
    error = (ours - exact).abs().nan_to_num().max()
    assert error <= allowed, f"{what}: error {error:.3e}, allowed {allowed:.3e}"


def evaluate(
    function: Any, arguments: dict[str, Any], names: list[str], second: bool = False
) -> dict[str, Tensor]:
    """Value, gradients of a fixed functional of it by `names`, and on request those of a functional of
    these."""
    if not names:
        plain = {k: v.detach() if isinstance(v, Tensor) else v for k, v in arguments.items()}
        return {"value": function(**plain)}
    value = function(**arguments)
    inputs = [arguments[name] for name in names]
    cotangent = torch.cos(torch.arange(value.numel(), dtype=torch.float64)).reshape(value.shape) + 0.5
    cotangent = cotangent.bfloat16()  # the same numbers in every dtype
    gradients = torch.autograd.grad(
        value, inputs, cotangent.to(value.dtype), create_graph=second, allow_unused=False
    )
    results = {
        "value": value.detach(),
        **{f"d{name}": g.detach() for name, g in zip(names, gradients, strict=True)},
    }
    if second:
        probe = sum(
            (g.double() * torch.sin(torch.arange(g.numel()).double()).reshape(g.shape)).sum()
            for g in gradients
        )
        products = torch.autograd.grad(probe, inputs, allow_unused=True)
        for name, product in zip(names, products, strict=True):
            if product is not None:
                results[f"dd{name}"] = product.detach()
    return results


def compare(op: Op, sample: Sample, dtype: torch.dtype, second: bool = False) -> None:
    """An op's value and derivatives in a dtype against the float64 twin on the same numbers."""
    names, wanted = list(sample.tensors), op.names(sample)
    arguments = sample.cast(dtype, requires_grad=True)
    ours = evaluate(op.function, arguments, wanted, second)
    # 16-bit rows are computed in float32: that is what torch's own error is measured in.
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    doubled = {k: v.detach().double() if k in names else v for k, v in arguments.items()}
    if (dtype, second) not in sample.twins:  # the same for every backend
        exact = evaluate(op.reference, _leaves(doubled, names, torch.float64), wanted, second)
        same = compute == torch.float64
        torchs = exact if same else evaluate(op.reference, _leaves(doubled, names, compute), wanted, second)
        sample.twins[dtype, second] = exact, torchs
    exact, torchs = sample.twins[dtype, second]
    for key in exact.keys() - ours.keys():
        assert not exact[key].abs().sum(), f"{op.name}[{sample.name}] {key} is missing"
    for key, result in ours.items():
        what = f"{op.name}[{sample.name}] {key} in {dtype}"
        if key == "value":
            assert result.dtype == (dtype if op.result_as_input else compute), what
        elif sample.is_typed(key.removeprefix("d").removeprefix("d")):
            assert result.dtype == dtype, what
        scale = float(exact[key].abs().nan_to_num().max()) if result.numel() else 0.0
        if key == "value" or (op.length == "blur" and key in ("da", "db")):
            scale = max(
                scale, op.scale(doubled)
            )  # the derivative by a weight is made of costs as the value is
        else:
            scale *= 4  # derivatives are differences of terms a few times their size
        assert_as_good_as_torch(
            result, exact[key], torchs[key], result.dtype, what, scale, op.solved_to(dtype)
        )


def _leaves(arguments: dict[str, Any], names: list[str], dtype: torch.dtype) -> dict[str, Any]:
    return {k: v.clone().to(dtype).requires_grad_() if k in names else v for k, v in arguments.items()}
