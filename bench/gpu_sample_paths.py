"""Calls of every kernel path of per-sample gradients, characteristic means and random projections, for the
sanitizers: small images, clouds and vectors that fill no tile."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

import decoct
from decoct.ops._backend import compute_dtype
from decoct.ops._image_gram import image_gram
from decoct.ops._image_squares import image_squares
from decoct.ops._segment_outer import LINEAR, outputs_of
from gpu_device import Device
from gpu_paths import finite, named, rows, settings

Path = tuple[str, Callable[[Device], None]]

# ---- norms and inner products of the gradients of single images

LAYERS: dict[str, tuple[int, int, int, int, tuple[int, ...]]] = {
    "convolution": (5, 70, 9, 8, (3, 3, 1, 1, 1, 1, 1, 1, 1)),
    "few positions": (70, 66, 2, 3, (3, 3, 1, 1, 1, 1, 1, 1, 1)),
    "stride": (2, 5, 9, 8, (3, 2, 2, 3, 1, 0, 1, 2, 1)),
    "groups": (6, 9, 5, 4, (2, 3, 1, 1, 0, 1, 1, 1, 3)),
    "linear": (70, 7, 1, 1, LINEAR),
    "tokens": (40, 37, 1, 5, LINEAR),
}
"""Channels in and out, height, width, and the convolution: gradients are formed, or products of positions
where those are few, or of rows that have a single one."""


def _images(device: Device, layer: str, count: int, seed: int, dtype: torch.dtype) -> list[Tensor]:
    channels, outputs, height, width, convolution = LAYERS[layer]
    made = [outputs_of(size, k, convolution) for k, size in enumerate((height, width))]
    return [
        rows(device, count, channels, height, width, seed=seed, dtype=dtype),
        rows(device, count, outputs, *made, seed=seed + 1, dtype=dtype),
    ]


def samples(device: Device, layer: str, last: bool, bias: bool, dtype: torch.dtype, precision: str) -> None:
    """Squared norms, inner products of one side and of two, and what differentiating them takes."""
    torch.set_float32_matmul_precision(precision)
    convolution = LAYERS[layer][4]
    mine, theirs = _images(device, layer, 7, 1, dtype), _images(device, layer, 3, 5, dtype)
    if last:
        mine = [part.contiguous(memory_format=torch.channels_last) for part in mine]
    leaves = [part.requires_grad_() for part in (*mine, *theirs)]
    results = [part for part in image_squares(*leaves[:2], convolution, bias) if part.numel()]
    results.append(image_gram(*leaves[:2], None, None, convolution, bias))
    results.append(image_gram(*leaves, convolution, bias))
    probe = torch.stack([part.square().sum() for part in results]).sum()
    finite(device, [*results, *torch.autograd.grad(probe, leaves)])


def of_samples(toy: bool) -> Iterator[Path]:
    for setting, layer, last, bias in itertools.product(settings(), LAYERS, (False, True), (True, False)):
        if toy and (last != bias or layer == "convolution"):
            continue
        name = f"samples, {named(*setting)}, {layer}, {'channels last' if last else 'contiguous'}"
        dtype, precision = setting
        options = {"layer": layer, "last": last, "bias": bias, "dtype": dtype, "precision": precision}
        yield f"{name}{'' if bias else ', bare'}", partial(samples, **options)


# ---- characteristic means


def characteristic(device: Device, columns: int, form: str, dtype: torch.dtype, precision: str) -> None:
    """Means, gradients, second derivatives."""
    torch.set_float32_matmul_precision(precision)
    x, f = rows(device, 83, columns, seed=1, dtype=dtype), rows(device, 70, columns, seed=2, dtype=dtype)
    w = rows(device, 83, seed=3, dtype=compute_dtype(dtype))
    leaves = [part.requires_grad_() for part in (x, f, w)]
    ends = {"x_offsets": [0, 0, 1, 38, 83]} if form == "ragged" else {}
    means = decoct.characteristic_mean(x, f, weights=w, **ends)
    with torch.no_grad():
        alone = decoct.characteristic_mean(x, f, **ends)
    probe = torch.stack([part.square().sum() for part in means]).sum()
    gradients = torch.autograd.grad(probe, leaves, create_graph=True)
    second = torch.stack([part.square().sum() for part in gradients]).sum()
    finite(device, [*means, *alone, *gradients, *torch.autograd.grad(second, leaves)])


def of_means(toy: bool) -> Iterator[Path]:
    for setting, columns, form in itertools.product(settings(), (33, 3, 300), ("dense", "ragged")):
        if toy and columns == 300:
            continue
        dtype, precision = setting
        name = f"characteristic, {named(*setting)}, D={columns}, {form}"
        options = {"columns": columns, "form": form, "dtype": dtype, "precision": precision}
        yield name, partial(characteristic, **options)


# ---- random projections


def projection(device: Device, size: int, transpose: bool, dtype: torch.dtype, precision: str) -> None:
    """The projection, and its transpose by differentiating."""
    torch.set_float32_matmul_precision(precision)
    x = rows(device, 83, 129, seed=1, dtype=dtype).requires_grad_()
    value = decoct.random_projection(x, size, seed=5, transpose=transpose)
    finite(device, [value, *torch.autograd.grad(value.square().sum(), x)])


def of_projections(toy: bool) -> Iterator[Path]:
    for setting, size, transpose in itertools.product(settings(), (5, 300), (False, True)):
        if toy and size == 300:
            continue
        dtype, precision = setting
        name = f"projection, {named(*setting)}, {size}{', transposed' if transpose else ''}"
        options = {"size": size, "transpose": transpose, "dtype": dtype, "precision": precision}
        yield name, partial(projection, **options)
