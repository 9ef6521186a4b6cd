"""What `per_sample_norms`, `clipped_gradient_sum` and `gradient_gram` share: the parameters of captured
pairs, and each sample's gradients of them where these are small."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from decoct.capture import Capture, Pair
from decoct.ops import _transforms
from decoct.ops._backend import compute_dtype
from decoct.ops._image_squares import pieces
from decoct.ops._segment_outer import segment_outer

__all__ = ["Captured", "Reduction", "Use", "captured", "norm_rows"]

Reduction = Literal["mean", "sum"]


@dataclass(frozen=True)
class Use:
    """A use of a parameter: the pair that has it, and as what."""

    pair: Pair
    kind: Literal["weight", "bias"]

    @property
    def by_products(self) -> bool:
        """Whether a sample's gradient is a matrix that kernels work on without storing it."""
        return self.kind == "weight" and not self.pair.is_norm

    def row_gradients(self) -> Tensor:
        """(N, size): the gradient of each sample, of a parameter other than the weight of products."""
        pair = self.pair
        if pair.is_norm:
            rows = norm_rows(pair)[("weight", "bias").index(self.kind)]
            assert rows is not None
            return rows
        d = pair.images()[1]
        return d.to(compute_dtype(d.dtype)).sum((2, 3))

    def whole_gradients(self, part: slice) -> Tensor:
        """(n, size): the same of any parameter, for some of the samples."""
        if not self.by_products:
            return self.row_gradients()[part]
        a, d, convolution = self.pair.images()
        a, d = a[part], d[part]
        return segment_outer(a, d, None, None, a.shape[0], convolution.packed(), False)[0].flatten(1)


def norm_rows(pair: Pair) -> tuple[Tensor | None, ...]:
    """Of a norm: the gradients by the weight and the bias that each sample sees, (N, size) each: sums of the
    normalised input times the output's gradient, and of the latter."""
    if pair.row_edges:
        return pair.row_gradients
    normalised = pair.normalised()
    d = pair.output_gradient.to(normalised.dtype)  # type: ignore[union-attr]
    module: Any = pair.module
    if isinstance(module, nn.LayerNorm):
        shape, along = (d.shape[0], -1, module.weight.numel()), 1
    else:
        shape, along = (d.shape[0], d.shape[1], -1), 2
    return (normalised * d).reshape(shape).sum(along), d.reshape(shape).sum(along)


@dataclass(frozen=True)
class Captured:
    """Captured pairs by parameter: those with `requires_grad`, in the order of ``net.parameters()``."""

    rows: int
    parameters: list[nn.Parameter]
    every: list[nn.Parameter]  # those without it too
    uses: dict[int, list[Use]]
    device: torch.device
    differentiable: bool

    def grad_mode(self) -> Any:
        """A context in which graphs are built only if the pass backward left one to go on with."""
        return torch.set_grad_enabled(torch.is_grad_enabled() and self.differentiable)

    def of(self, parameter: nn.Parameter) -> list[Use]:
        """Empty where the loss does not depend on it."""
        return self.uses.get(id(parameter), [])

    def lone(self, parameter: nn.Parameter | None) -> bool:
        """Whether it is used once, as the weight of products."""
        uses = [] if parameter is None else self.of(parameter)
        return len(uses) == 1 and uses[0].by_products

    def slices(self, parameter: nn.Parameter) -> list[slice]:
        """Samples whose gradients fit a bounded memory."""
        for use in self.of(parameter):
            if use.by_products:
                a, d, convolution = use.pair.images()
                return pieces(a, d, convolution.packed())
        return [slice(0, self.rows)]

    def gradients(self, parameter: nn.Parameter, part: slice | None = None) -> Tensor:
        """(n, size): each sample's, added up over all uses."""
        chosen = slice(0, self.rows) if part is None else part
        return functools.reduce(torch.add, (use.whole_gradients(chosen) for use in self.of(parameter)))


def _all_modules(pairs: Any) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(pairs, Capture):
        yield from pairs.net.named_modules()
    else:
        for pair in pairs:
            yield pair.name, pair.module


def _refuse_batch_statistics(op: str, pairs: Any) -> None:
    for name, module in _all_modules(pairs):
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            raise ValueError(
                f"{op}: per-sample gradients are not defined for {type(module).__name__} {name!r}, which "
                "uses statistics of the batch; call net.eval() before the pass, or put GroupNorm in its place"
            )


def _refuse_unrecorded(op: str, pairs: Capture) -> None:
    missed = {id(parameter) for parameter in pairs.missed}
    for name, parameter in pairs.net.named_parameters() if missed else ():
        if id(parameter) in missed:
            layer = pairs.net.get_submodule(name.rpartition(".")[0])
            raise ValueError(
                f"{op}: parameter {name!r} is used by a layer that capture() does not record, in a "
                f"{type(layer).__name__}; turn its requires_grad off, or use torch.func.vmap for such a net"
            )


def captured(op: str, name: str, pairs: Any) -> Captured:
    """Checked pairs of one pass."""
    if torch.compiler.is_compiling():
        raise RuntimeError(
            f"{op}: torch.compile cannot trace it; call it outside of compiled functions, or leave it "
            "uncompiled with torch.compiler.disable"
        )
    if _transforms.active():
        raise RuntimeError(
            f"{op}: torch.func and forward-mode AD are not offered; differentiate its results with "
            "create_graph=True in Capture.backward and torch.autograd.grad"
        )
    if not isinstance(pairs, Capture):
        if isinstance(pairs, Pair) or not isinstance(pairs, Iterable):
            raise TypeError(
                f"{op}: {name} must be a Capture or a list of its pairs, got {type(pairs).__name__}"
            )
        pairs = list(pairs)
        for pair in pairs:
            if not isinstance(pair, Pair):
                raise TypeError(f"{op}: {name} must hold decoct.Pair objects, got {type(pair).__name__}")
    _refuse_batch_statistics(op, pairs)
    if len(pairs) == 0 or all(pair.output_gradient is None for pair in pairs):
        raise ValueError(
            f"{op}: {name} must have output gradients, got none; call Capture.backward(loss) first"
        )
    if isinstance(pairs, Capture):
        _refuse_unrecorded(op, pairs)
    rows = pairs[0].rows
    uses: dict[int, list[Use]] = {}
    order: dict[int, nn.Parameter] = {}
    for pair in pairs:
        if pair.rows != rows or rows < 0:
            raise ValueError(
                f"{op}: {name} must see each sample as a row of every layer's input, got {rows} rows in "
                f"{pairs[0].name!r} and {pair.rows} in {pair.name!r} (-1: none)"
            )
        for parameter, kind in ((pair.weight, "weight"), (pair.bias, "bias")):
            if parameter is None:
                continue
            order[id(parameter)] = parameter
            if pair.output_gradient is not None:
                uses.setdefault(id(parameter), []).append(Use(pair, kind))  # type: ignore[arg-type]
    every = list(pairs.net.parameters()) if isinstance(pairs, Capture) else list(order.values())
    wanted = [parameter for parameter in every if parameter.requires_grad]
    differentiable = any(pair.differentiable for pair in pairs)
    return Captured(rows, wanted, every, uses, pairs[0].activation.device, differentiable)


def check_reduction(op: str, loss_reduction: Any) -> None:
    """'mean' or 'sum'."""
    if loss_reduction not in ("mean", "sum"):
        raise ValueError(f"{op}: loss_reduction must be 'mean' or 'sum', got {loss_reduction!r}")
