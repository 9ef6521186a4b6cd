"""Norms and inner products of the gradients of single images as the table of ops takes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from decoct import reference
from decoct.ops._image_gram import image_gram
from decoct.ops._image_squares import image_squares
from layers import LAYERS, SHARED, tensors
from table import Errors, Op, Sample, rows

# Where norms take the factored form, and where they take bands of it: see csrc/cpu/image_squares.inl.
WIDE: dict[str, tuple[int, int, int, int, Sequence[int]]] = {
    "wide-plain": (19, 21, 4, 5, (3, 3, 1, 1, 1, 1, 1, 1, 1)),
    "wide-stride": (34, 35, 7, 6, (3, 2, 2, 3, 1, 0, 1, 2, 1)),
    "wide-groups": (46, 42, 4, 5, (2, 3, 1, 1, 0, 1, 2, 1, 2)),
    "wide-tokens": (40, 37, 1, 18, LAYERS["tokens"][4]),
    "whole": (3, 4, 4, 3, (4, 3, 1, 1, 0, 0, 1, 1, 1)),
    "corner": (3, 4, 2, 2, (5, 5, 3, 3, 2, 2, 1, 1, 1)),
}
EVERY = {**LAYERS, **WIDE}


def sizes(layer: str, images: int, seed: int = 0) -> dict[str, Tensor]:
    if layer in LAYERS:
        return tensors(layer, images)
    channels, outputs, height, width, convolution = WIDE[layer]
    made = [
        (size + 2 * convolution[4 + k] - convolution[6 + k] * (convolution[k] - 1) - 1) // convolution[2 + k]
        + 1
        for k, size in enumerate((height, width))
    ]
    return {"a": rows(images, channels, height, width), "d": rows(images, outputs, *made, seed=1)}


def squares(a: Tensor, d: Tensor, *, convolution: Sequence[int], bias: bool = True) -> Tensor:
    """Both results behind one another, of weight and bias gradients of about the same size."""
    weight, shift = image_squares(a, d, convolution, bias)
    return torch.cat([weight / a[:1].numel(), shift]) if bias else weight


def squares_twin(a: Tensor, d: Tensor, *, convolution: Sequence[int], bias: bool = True) -> Tensor:
    weight, shift = reference.image_squares(a, d, convolution=convolution, bias=bias)
    return torch.cat([weight / a[:1].numel(), shift]) if bias else weight


def squares_samples() -> Iterator[Sample]:
    for layer, (*_, convolution) in EVERY.items():
        yield Sample(layer, sizes(layer, 5), {"convolution": convolution}, typed=None)
    yield Sample(
        "no-bias", tensors("plain", 5), {"convolution": LAYERS["plain"][4], "bias": False}, typed=None
    )


def gram(
    a: Tensor,
    d: Tensor,
    b: Tensor | None = None,
    e: Tensor | None = None,
    *,
    convolution: Sequence[int],
    bias: bool = True,
) -> Tensor:
    return image_gram(a, d, b, e, convolution, bias)


def gram_samples() -> Iterator[Sample]:
    for layer, (*_, convolution) in EVERY.items():
        mine, theirs = sizes(layer, 5), sizes(layer, 7)
        both = {**mine, "b": theirs["a"], "e": theirs["d"]}
        yield Sample(layer, both, {"convolution": convolution}, typed=None)
        yield Sample(f"{layer}-self", mine, {"convolution": convolution}, typed=None)
    both = {**tensors("linear", 5), "b": rows(3, 5, 1, 1, seed=5), "e": rows(3, 7, 1, 1, seed=6)}
    yield Sample("no-bias", both, {"convolution": LAYERS["linear"][4], "bias": False}, typed=None)
    other = {**sizes("plain", 4), "b": rows(3, 3, 8, 3, seed=5), "e": rows(3, 18, 8, 3, seed=6)}
    yield Sample("other-size", other, {"convolution": LAYERS["plain"][4], "bias": False}, typed=None)


def layer_errors(gram: bool) -> Errors:
    good = {**tensors("plain", 4), "convolution": LAYERS["plain"][4]}
    made = "gradients: expected the height and width that the convolution makes"
    yield ValueError, made, {**good, "d": good["d"][..., :-1]}
    yield (
        ValueError,
        "gradients, offsets: expected the images of the activations",
        {**good, "d": good["d"][1:]},
    )
    yield (
        ValueError,
        "groups: expected a divisor of the channels",
        {**good, "convolution": (3, 3, 1, 1, 1, 1, 1, 1, 2)},
    )
    if gram:
        other = {**good, "b": rows(2, 4, 6, 5), "e": good["d"][:2]}
        yield ValueError, "y: expected the channels of x", other


def _large(images: int) -> Sample:
    tensors = {"a": rows(images, 40, 9, 9), "d": rows(images, 70, 9, 9, seed=1)}
    return Sample("large", tensors, {"convolution": LAYERS["plain"][4]}, typed=None)


def _large_gram() -> Sample:
    mine = _large(40)
    other = {"b": rows(70, 40, 9, 9, seed=2), "e": rows(70, 70, 9, 9, seed=3)}
    return Sample("large", {**mine.tensors, **other}, mine.options, typed=None)


def _example(samples: Any, layer: str) -> dict[str, Tensor]:
    return next(sample.tensors for sample in samples() if sample.name == layer)


OPS = (
    Op(
        "image_squares",
        squares,
        squares_twin,
        squares_samples,
        lambda: layer_errors(False),
        variants={"groups": {"convolution": LAYERS["groups"][4]}},
        compiled=("linear", "tokens", "groups", "dilation"),
        example=lambda: tensors("groups", 3),
        large=lambda: _large(90),
        same_bits=("value",),
        **SHARED,
    ),
    Op(
        "image_gram",
        gram,
        reference.image_gram,
        gram_samples,
        lambda: layer_errors(True),
        variants={"stride": {"convolution": LAYERS["stride"][4]}},
        compiled=("linear", "tokens-self", "stride"),
        example=lambda: _example(gram_samples, "stride"),
        large=_large_gram,
        same_bits=("value",),
        **SHARED,
    ),
)
