"""Calls of every CUDA kernel path, for the sanitizers: small problems that fill no tile, few iterations."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

import decoct
from decoct.kernels import Gaussian
from decoct.ops._backend import dtype_name
from gpu_device import Device


def rows(device: Device, *shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(device.device, dtype)


def settings() -> list[tuple[torch.dtype, str]]:
    """Dtypes and precisions, the commonest first."""
    found = [(torch.float32, p) for p in ("highest", "high", "medium")]
    found += [(torch.bfloat16, "highest"), (torch.float64, "highest")]
    return found + [(torch.bfloat16, p) for p in ("high", "medium")]


def named(dtype: torch.dtype, precision: str) -> str:
    return f"{dtype_name(dtype)}, {precision}"


def finite(device: Device, results: list[Tensor]) -> None:
    """Waits for the device; raises where a result is NaN or infinite."""
    device.synchronize()
    assert all(bool(result.isfinite().all()) for result in results), "a result is not finite"


# ---- kernel sums


COLUMNS = (3, 7, 33, 130, 256, 300)
"""Of the paths for few columns, for up to 256 (all widths of it), and for more."""
ENDS = {"x_offsets": [0, 0, 1, 38, 83], "y_offsets": [0, 3, 4, 40, 61]}
FORMS: dict[str, dict[str, Any]] = {"dense": {}, "ragged": ENDS}


def _every_sum(device: Device, columns: int, form: str, dtype: torch.dtype, precision: str) -> None:
    """Value, gradients, second derivatives and products with vectors."""
    torch.set_float32_matmul_precision(precision)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    x, y = (rows(device, n, columns, seed=n, dtype=dtype).requires_grad_() for n in (83, 61))
    a, b = (torch.full((n,), 0.1, dtype=compute, device=device.device) for n in (83, 61))
    kernel, ends = Gaussian(scales=(0.5, 2.0)), FORMS[form]
    results = [decoct.mmd(x.detach(), y.detach(), kernel, "mean", **ends)]
    value = decoct.mmd(x, y, kernel, columns**0.5, a=a, b=b, **ends)
    gradients = torch.autograd.grad(value.sum(), (x, y), create_graph=True)
    probe = torch.cat(gradients).square().sum()
    results += [value, *gradients, *torch.autograd.grad(probe, (x, y))]
    for vectors in (1, 3):
        v = rows(device, 61, vectors, seed=2, dtype=compute)
        results.append(decoct.kernel_matvec(x.detach(), y.detach(), v, "laplacian", columns**0.5, **ends))
    finite(device, results)


def sums() -> Iterator[tuple[str, Callable[[Device], None]]]:
    for (dtype, precision), columns, form in itertools.product(settings(), COLUMNS, FORMS):
        name = f"sums, {named(dtype, precision)}, D={columns}, {form}"
        yield name, partial(_every_sum, columns=columns, form=form, dtype=dtype, precision=precision)


# ---- entropic transport


SIZES: dict[str, tuple[int, int, dict[str, Any]]] = {
    "kept": (83, 61, {}),
    "ragged": (83, 61, ENDS),
    "tiled": (300, 270, {}),
    "mixed": (380, 315, {"x_offsets": [0, 0, 1, 301, 380], "y_offsets": [0, 3, 4, 274, 315]}),
}
"""Rows of both sides. Problems of up to 65536 pairs keep their costs, larger ones make them again in tiles;
"mixed" has both in one call."""
TOY_SIZES = ("kept", "ragged")
WIDTHS = (33, 3, 300)
"""Below eight columns costs are made by differences."""
VARIANTS: dict[str, dict[str, Any]] = {
    "reach": {"reach": (2.0, None)},
    "mass": {"mass": 0.5, "debias": False},
    "labels": {},
    "no real-real": {"xx": False},
    "to tol": {"tol": 1e-2, "max_iterations": 6},
    "far": {"blur": 0.3},
    "start": {"tol": 1e-2, "max_iterations": 6},
}
"""Beyond the plain call. "far": sums out of range, made again from logarithms."""


def _labels(device: Device, n: int, m: int) -> dict[str, Tensor]:
    costs = torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 0.5], [2.0, 0.5, 0.0]])
    sides = {"x_labels": torch.arange(n) % 3, "y_labels": torch.arange(m) % 3}
    return {name: part.to(device.device) for name, part in {**sides, "label_cost": costs}.items()}


def _uniform(device: Device, count: int, offsets: list[int] | None, dtype: torch.dtype) -> Tensor:
    """Weights, in a tensor, that sum to 1 in each segment."""
    ends = torch.tensor(offsets or [0, count]).diff()
    return (1 / ends.double()).repeat_interleave(ends).to(device.device, dtype)


def transport(
    device: Device,
    size: str,
    columns: int,
    p: int,
    dtype: torch.dtype,
    precision: str,
    variant: str = "",
) -> None:
    """Value, gradients by rows and weights, potentials, products with the plan from both sides."""
    torch.set_float32_matmul_precision(precision)
    n, m, ends = SIZES[size]
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    x, y = (rows(device, k, columns, seed=k, dtype=dtype) for k in (n, m))
    a, b = (
        _uniform(device, k, ends.get(f"{side}_offsets"), compute).requires_grad_()
        for side, k in (("x", n), ("y", m))
    )
    y = y + (20.0 if variant == "far" else 0.2)
    fixed = variant == "no real-real"
    leaves = [y.requires_grad_(), b]
    if not fixed:
        leaves += [x.requires_grad_(), a]
    weights = {"a": a.detach() if fixed else a, "b": b}
    problem = {**ends, **weights, "p": p, "blur": columns**0.5 / 2}
    if variant == "labels":
        problem |= _labels(device, n, m)
    changes = VARIANTS.get(variant, {})
    problem |= {name: part for name, part in changes.items() if name == "blur"}
    options = {**problem, **changes, "scaling": 0.3, "diameter": 8 * columns**0.5}
    value = decoct.sinkhorn_divergence(x, y, **options)
    results = [value, *torch.autograd.grad(value.sum(), leaves)]
    with torch.no_grad():
        options.pop("xx", None)
        solution = decoct.sinkhorn_potentials(x, y, **options)
        if variant == "start":
            solution = decoct.sinkhorn_potentials(x, y, start=solution, **options)
        results += [solution.f, solution.g]
        for transposed, vectors in ((False, 1), (True, 2)):
            v = rows(device, n if transposed else m, vectors, seed=2, dtype=compute)
            results.append(decoct.apply_plan(x, y, v, solution, transpose=transposed, **problem))
    finite(device, results)


def second_derivatives(device: Device, size: str, p: int, dtype: torch.dtype) -> None:
    """By the equations of the potentials."""
    torch.set_float32_matmul_precision("highest")
    n, m, ends = SIZES[size]
    x, y = (rows(device, k, 5, seed=k, dtype=dtype).requires_grad_() for k in (n, m))
    value = decoct.sinkhorn_divergence(x, y, p=p, blur=3.0, diameter=20.0, tol=1e-5, **ends)
    gradients = torch.autograd.grad(value.sum(), (x, y), create_graph=True)
    probe = torch.cat(gradients).square().sum()
    finite(device, [value, *torch.autograd.grad(probe, (x, y))])


def transports(toy: bool) -> Iterator[tuple[str, Callable[[Device], None]]]:
    sizes = [size for size in SIZES if not toy or size in TOY_SIZES]
    first, *others = settings()

    def call(size: str, columns: int, p: int, setting: tuple[torch.dtype, str], variant: str = "") -> Any:
        name = f"transport, {named(*setting)}, D={columns}, p={p}, {variant or 'plain'}, {size}"
        dtype, precision = setting
        options = {"size": size, "columns": columns, "p": p, "dtype": dtype, "precision": precision}
        return name, partial(transport, **options, variant=variant)

    for p, columns, size in itertools.product((2, 1), WIDTHS, sizes):
        yield call(size, columns, p, first)
    for variant, size in itertools.product(VARIANTS, sizes):
        yield call(size, 33, 2, first, variant)
    for p, size, dtype in itertools.product((2, 1), TOY_SIZES, (torch.float32, torch.float64)):
        name = f"transport, {named(dtype, 'highest')}, p={p}, second derivatives, {size}"
        yield name, partial(second_derivatives, size=size, p=p, dtype=dtype)
    for setting, p, size in itertools.product(others, (2, 1), sizes):
        yield call(size, 33, p, setting)
    for setting, variant, size in itertools.product(others[:4], ("labels", "far"), sizes):
        yield call(size, 33, 1, setting, variant)
