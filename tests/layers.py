"""The products behind the gradients of layers as the table of ops takes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from decoct import reference
from decoct.ops._segment_outer import (
    LINEAR,
    outputs_of,
    segment_convolve,
    segment_convolve_transposed,
    segment_outer,
)
from table import Errors, Op, Sample, rows

ENDS = (0, 3, 3, 4, 7)

# Channels in and out, height, width, and the convolution.
LAYERS: dict[str, tuple[int, int, int, int, Sequence[int]]] = {
    "linear": (5, 7, 1, 1, LINEAR),
    "tokens": (6, 3, 1, 9, LINEAR),
    "plain": (3, 18, 6, 5, (3, 3, 1, 1, 1, 1, 1, 1, 1)),
    "stride": (2, 5, 9, 8, (3, 2, 2, 3, 1, 0, 1, 1, 1)),
    "dilation": (2, 4, 9, 11, (3, 3, 1, 2, 2, 3, 2, 3, 1)),
    "groups": (6, 9, 5, 4, (2, 3, 1, 1, 0, 1, 1, 1, 3)),
    "depthwise": (4, 4, 6, 6, (3, 3, 1, 1, 1, 1, 1, 1, 4)),
    "one-row": (3, 4, 1, 300, (1, 5, 1, 1, 0, 2, 1, 1, 1)),
    "wide-padding": (2, 3, 2, 2, (3, 3, 1, 1, 4, 5, 1, 1, 1)),
    "pointwise": (9, 33, 4, 4, LINEAR),
}


def tensors(layer: str, images: int = ENDS[-1], weighted: bool = False) -> dict[str, Tensor]:
    channels, outputs, height, width, convolution = LAYERS[layer]
    made = (outputs_of(size, k, convolution) for k, size in enumerate((height, width)))
    drawn = {"a": rows(images, channels, height, width), "d": rows(images, outputs, *made, seed=1)}
    return {**drawn, "w": rows(images, seed=2)} if weighted else drawn


def joined(weight: Tensor, bias: Tensor) -> Tensor:
    return torch.cat([weight.flatten(1), bias], 1)


def outer(
    a: Tensor, d: Tensor, w: Tensor | None = None, *, offsets: Any, convolution: Sequence[int]
) -> Tensor:
    """Both results side by side."""
    ends = torch.as_tensor(offsets)
    return joined(*segment_outer(a, d, w, ends, len(ends) - 1, convolution, True))


def outer_twin(a: Tensor, d: Tensor, w: Tensor | None = None, **options: Any) -> Tensor:
    return joined(*reference.segment_outer(a, d, w, **options))


def options(layer: str) -> dict[str, Any]:
    return {"offsets": ENDS, "convolution": LAYERS[layer][4]}


def outer_samples() -> Iterator[Sample]:
    for layer in LAYERS:
        for weighted in (False, True):
            name = layer + ("-weighted" if weighted else "")
            yield Sample(name, tensors(layer, weighted=weighted), options(layer), typed=None)


def outer_errors() -> Errors:
    good = {**tensors("plain"), **options("plain")}
    made = "gradients: expected the height and width that the convolution makes"
    yield ValueError, made, {**good, "d": good["d"][..., :-1]}
    yield ValueError, made, {**good, "convolution": (3, 3, 1, 2, 1, 1, 1, 1, 1)}
    yield (
        ValueError,
        "groups: expected a divisor of the channels",
        {
            **good,
            "convolution": (3, 3, 1, 1, 1, 1, 1, 1, 2),
        },
    )
    for k, what in ((0, "kernel, stride and dilation must be positive"), (4, "padding must not be negative")):
        convolution = list(good["convolution"])
        convolution[k] = 0 if k == 0 else -1
        yield ValueError, what, {**good, "convolution": convolution}
    last = "offsets: the last of the offsets must be the number of rows"
    yield ValueError, last, {**good, "offsets": (0, 3, 6)}
    yield ValueError, "offsets must not decrease", {**good, "offsets": (0, 5, 3, 7)}
    images = "gradients, offsets: expected the images of the activations"
    yield ValueError, images, {**good, "d": good["d"][1:]}


def large() -> Sample:
    """More than one chunk of positions, panel of outputs and block of columns, and several threads."""
    a, d = rows(90, 40, 14, 14), rows(90, 70, 14, 14, seed=1)
    return Sample(
        "large",
        {"a": a, "d": d},
        {"offsets": (0, 50, 50, 51, 90), "convolution": LAYERS["plain"][4]},
        typed=None,
    )


def convolve(a: Tensor, weight: Tensor, bias: Tensor, *, convolution: Sequence[int]) -> Tensor:
    return segment_convolve(a, weight, bias, torch.tensor(ENDS), len(ENDS) - 1, convolution)


def _pieces(images: Tensor) -> list[Tensor]:
    return list(images.tensor_split(torch.tensor(ENDS[1:-1])))


def convolve_twin(a: Tensor, weight: Tensor, bias: Tensor, *, convolution: Sequence[int]) -> Tensor:
    stride, padding, dilation = (tuple(convolution[k : k + 2]) for k in (2, 4, 6))
    kernels = weight.unflatten(2, (-1, *convolution[:2]))
    made = [
        torch.nn.functional.conv2d(part, kernel, shift, stride, padding, dilation, convolution[8])
        for part, kernel, shift in zip(_pieces(a), kernels, bias, strict=True)
    ]
    return torch.cat(made)


def convolve_samples() -> Iterator[Sample]:
    for layer, (channels, outputs, _, _, convolution) in LAYERS.items():
        patch = channels // convolution[8] * convolution[0] * convolution[1]
        kernels = {"weight": rows(4, outputs, patch, seed=3), "bias": rows(4, outputs, seed=4)}
        inputs = {"a": tensors(layer)["a"], **kernels}
        yield Sample(layer, inputs, {"convolution": convolution}, typed=None)


def transposed(d: Tensor, weight: Tensor, *, convolution: Sequence[int], size: Sequence[int]) -> Tensor:
    return segment_convolve_transposed(d, weight, torch.tensor(ENDS), len(ENDS) - 1, convolution, size)


def transposed_twin(d: Tensor, weight: Tensor, *, convolution: Sequence[int], size: Sequence[int]) -> Tensor:
    stride, padding, dilation = (tuple(convolution[k : k + 2]) for k in (2, 4, 6))
    kernels = weight.unflatten(2, (-1, *convolution[:2]))
    made = []
    for part, kernel in zip(_pieces(d), kernels, strict=True):
        shape = (part.shape[0], kernel.shape[1] * convolution[8], *size)
        made.append(
            torch.nn.grad.conv2d_input(shape, kernel, part, stride, padding, dilation, convolution[8])
        )
    return torch.cat(made)


def transposed_samples() -> Iterator[Sample]:
    for layer, (channels, outputs, height, width, convolution) in LAYERS.items():
        patch = channels // convolution[8] * convolution[0] * convolution[1]
        inputs = {"d": tensors(layer)["d"], "weight": rows(4, outputs, patch, seed=3)}
        yield Sample(layer, inputs, {"convolution": convolution, "size": (height, width)}, typed=None)


def _example(samples: Any, layer: str) -> dict[str, Tensor]:
    return next(sample.tensors for sample in samples() if sample.name == layer)


def _no_errors() -> Errors:
    """What is refused is refused by `segment_outer`, of which this op is a derivative."""
    yield from ()


SHARED: dict[str, Any] = {
    "scale": lambda arguments: 0.0,
    "invariant": (),
    "length": None,
    "any_order": True,
    "shorter": lambda sample: None,
}
OPS = (
    Op(
        "segment_outer",
        outer,
        outer_twin,
        outer_samples,
        outer_errors,
        variants={"groups": options("groups")},
        compiled=("linear", "groups-weighted", "dilation"),
        example=lambda: tensors("groups", weighted=True),
        large=large,
        same_bits=("value",),
        **SHARED,
    ),
    Op(
        "segment_convolve",
        convolve,
        convolve_twin,
        convolve_samples,
        _no_errors,
        variants={"stride": {"convolution": LAYERS["stride"][4]}},
        compiled=("tokens", "stride"),
        example=lambda: _example(convolve_samples, "stride"),
        large=lambda: next(s for s in convolve_samples() if s.name == "groups"),
        same_bits=(),
        **SHARED,
    ),
    Op(
        "segment_convolve_transposed",
        transposed,
        transposed_twin,
        transposed_samples,
        _no_errors,
        variants={"stride": {"convolution": LAYERS["stride"][4], "size": LAYERS["stride"][2:4]}},
        compiled=("tokens", "stride"),
        example=lambda: _example(transposed_samples, "stride"),
        large=lambda: next(s for s in transposed_samples() if s.name == "groups"),
        same_bits=(),
        **SHARED,
    ),
)
