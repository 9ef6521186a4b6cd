"""Calls of every kernel path of gradient matching, for the sanitizers: small lists, images and layers that
fill no tile."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

import decoct
from decoct.ops._backend import dtype_name
from decoct.ops._segment_outer import LINEAR, outputs_of, segment_outer
from gpu_device import Device
from gpu_paths import finite, named, rows, settings

Path = tuple[str, Callable[[Device], None]]
DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.float16)


# ---- distances of lists

LISTS: dict[str, tuple[list[tuple[int, ...]], dict[str, Any]]] = {
    "rows": ([(9, 5, 3), (7, 1100), (3, 1025), (130, 2)], {}),
    "columns": ([(37, 45), (130, 33)], {"row_axis": 1}),
    "elements": ([(9, 5, 3), (4099,)], {"metric": "l1_mean"}),
    "squares": ([(9, 5, 3), (4099,)], {"metric": "sse"}),
    "one row": ([(9, 5, 3), (4099,)], {"metric": "cosine"}),
    "pieces": ([(2, 16500), (3, 5)], {"metric": "cosine_l2"}),
    "many": ([(2, 3 + i % 5) for i in range(70)], {"epsilon_form": "clamp"}),
}
"""Shapes and options, one for each way that tensors are cut into tasks; "many" takes two launches."""


def distance(device: Device, form: str, classes: int, dtype: torch.dtype) -> None:
    """Value, gradients by both lists, and second derivatives."""
    shapes, options = LISTS[form]
    lead = [classes] if classes else []
    lists = [
        [rows(device, *lead, *shape, seed=i + 100 * side, dtype=dtype) for i, shape in enumerate(shapes)]
        for side in range(2)
    ]
    leaves = [tensor.requires_grad_() for side in lists for tensor in side]
    value = decoct.gradient_distance(*lists, classes=bool(classes), **options)
    gradients = torch.autograd.grad(value.sum(), leaves, create_graph=True)
    # Second derivatives by short rows are large: in float16 no number without the factor.
    probe = 2**-10 * torch.stack([g.float().square().sum() for g in gradients]).sum()
    second = torch.autograd.grad(probe, leaves, allow_unused=True)
    with torch.no_grad():
        alone = decoct.gradient_distance(*lists, classes=bool(classes), **options)
    finite(device, [value, alone, *gradients, *(g for g in second if g is not None)])


def distances(toy: bool) -> Iterator[Path]:
    for classes, form, dtype in itertools.product((3, 0), LISTS, DTYPES):
        if toy and (classes or dtype == torch.float16):
            continue
        name = f"distance, {dtype_name(dtype)}, {form}, {classes} classes"
        yield name, partial(distance, form=form, classes=classes, dtype=dtype)


# ---- the fused norm

IMAGES: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "kept": ((3, 6, 9, 7), {"groups": 3, "activation": "relu", "pool": 2}),
    "channels": ((2, 35, 5, 4), {"groups": 7, "activation": "relu"}),
    "plain": ((3, 6, 5, 7), {"groups": 2}),
    "made again": ((2, 2, 114, 113), {"groups": 1, "activation": "relu", "pool": 3}),
}
"""Of shapes that fit into shared memory, and of one that does not."""


def norm(device: Device, form: str, last: bool, affine: bool, dtype: torch.dtype) -> None:
    """Value, gradients, second derivatives."""
    shape, options = IMAGES[form]
    x = rows(device, *shape, seed=1, dtype=dtype)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    parameters = [rows(device, shape[1], seed=s, dtype=compute) for s in (2, 3)] if affine else []
    leaves = [tensor.requires_grad_() for tensor in (x, *parameters)]
    names = ("weight", "bias")
    value = decoct.group_norm(x, **dict(zip(names, parameters, strict=False)), **options)
    cotangent = rows(device, *value.shape, seed=4, dtype=value.dtype)
    gradients = torch.autograd.grad(value, leaves, cotangent, create_graph=True)
    probe = torch.stack([g.float().sin().sum() for g in gradients]).sum()
    finite(device, [value, *gradients, *torch.autograd.grad(probe, leaves[:2])])


def norms(toy: bool) -> Iterator[Path]:
    for last, dtype, form, affine in itertools.product((False, True), DTYPES, IMAGES, (True, False)):
        if toy and (dtype == torch.float16 or not affine or form == "made again"):
            continue
        name = f"norm, {dtype_name(dtype)}, {form}, {'channels last' if last else 'contiguous'}"
        yield (
            f"{name}{'' if affine else ', bare'}",
            partial(norm, form=form, last=last, affine=affine, dtype=dtype),
        )


# ---- gradients of layers

LAYERS: dict[str, tuple[int, int, int, int, tuple[int, ...]]] = {
    "convolution": (5, 70, 9, 8, (3, 3, 1, 1, 1, 1, 1, 1, 1)),
    "stride": (2, 5, 9, 8, (3, 2, 2, 3, 1, 0, 1, 2, 1)),
    "groups": (6, 9, 5, 4, (2, 3, 1, 1, 0, 1, 1, 1, 3)),
    "linear": (70, 7, 1, 1, LINEAR),
    "parts": (2, 3, 30, 30, (3, 3, 1, 1, 1, 1, 1, 1, 1)),
}
"""Channels in and out, height, width, and the convolution; the last has segments of several parts."""
CLASS_ENDS = torch.tensor([0, 7, 7, 8, 10])


def layer(device: Device, form: str, last: bool, weighted: bool, dtype: torch.dtype, precision: str) -> None:
    """Weight and bias gradients of segments, and what differentiating them takes."""
    torch.set_float32_matmul_precision(precision)
    channels, outputs, height, width, convolution = LAYERS[form]
    made = [outputs_of(size, k, convolution) for k, size in enumerate((height, width))]
    images: list[Tensor] = [
        rows(device, 10, channels, height, width, seed=1, dtype=dtype),
        rows(device, 10, outputs, *made, seed=2, dtype=dtype),
    ]
    if last:
        images = [part.contiguous(memory_format=torch.channels_last) for part in images]
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    w = rows(device, 10, seed=3, dtype=compute) if weighted else None
    leaves = [part.requires_grad_() for part in images]
    results = list(segment_outer(*leaves, w, CLASS_ENDS, 4, convolution, weighted))
    probe = torch.stack([part.square().sum() for part in results]).sum()
    finite(device, [*results, *torch.autograd.grad(probe, leaves)])


def layers(toy: bool) -> Iterator[Path]:
    for setting, form, last, weighted in itertools.product(settings(), LAYERS, (False, True), (True, False)):
        if toy and (last != weighted or form == "parts"):
            continue
        dtype, precision = setting
        name = f"layer, {named(*setting)}, {form}, {'channels last' if last else 'contiguous'}"
        options = {"form": form, "last": last, "weighted": weighted}
        yield (
            f"{name}{', weighted' if weighted else ''}",
            partial(layer, **options, dtype=dtype, precision=precision),
        )
