"""Mean gradients of every class from one pass over all of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from decoct.capture import Capture, Pair, capture
from decoct.ops import _transforms
from decoct.ops._backend import compute_dtype
from decoct.ops._problem import Offsets
from decoct.ops._rows import lengths, spread
from decoct.ops._segment_ops import segment_sums
from decoct.ops._segment_outer import segment_outer
from decoct.segments import host_offsets

__all__ = ["class_gradients"]

Loss = Callable[[Tensor, Tensor], Tensor]


def class_gradients(
    net: nn.Module,
    x: Tensor,
    targets: Tensor,
    x_offsets: Offsets,
    *,
    loss: Loss | Literal["cross_entropy"] = "cross_entropy",
    weights: Tensor | None = None,
    create_graph: bool = False,
    chunk_size: int | None = None,
) -> tuple[Tensor | None, ...]:
    """The mean gradient of every class, in the order of ``net.parameters()``.

    Equivalent to, but for one forward and one backward pass over all classes instead of one for each::

        def of_class(c):
            rows = slice(x_offsets[c], x_offsets[c + 1])
            return torch.autograd.grad(F.cross_entropy(net(x[rows]), targets[rows]), list(net.parameters()))
        tuple(torch.stack(g) for g in zip(*map(of_class, range(C))))

    The pass backward stops at the outputs of the layers (:func:`decoct.capture`); the gradients of a layer
    are products of its activations and output gradients, summed over each class in one kernel.

    Parameters
    ----------
    net : a network that treats each row of x by itself, and whose layers keep rows along the first dimension.
    x : (N, ...), sorted by class.
    targets : (N, ...), whatever ``loss`` takes: class indices or probabilities for cross entropy.
    x_offsets : int64 (C + 1,) tensor, list or :class:`decoct.Segments`: class c is rows
        ``x_offsets[c]:x_offsets[c + 1]``. An empty class has zero gradients.
    loss : "cross_entropy", or a function of output and targets that gives one loss for each row, (N,).
    weights : (N,) weights of the rows, used as given; by default 1 / rows of the class: the mean.
    create_graph : whether the results can be differentiated again, in x, targets, weights, parameters.
    chunk_size : rows of a pass. By default all; smaller ones bound the memory, that of the activations.

    Returns
    -------
    One tensor (C, ``*parameter.shape``) for each parameter, in its dtype; None for one that has
    ``requires_grad`` off; zeros for one that the loss does not depend on.

    Layers
    ------
    Linear, Conv1d, Conv2d, GroupNorm, LayerNorm, InstanceNorm, :class:`decoct.networks.FusedNorm`, and
    BatchNorm in eval mode, used any number of times. Parameters of any other layer, or of one whose input has
    not N rows, cost one more pass backward for each class, restricted to them.

    Gradients
    ---------
    With ``create_graph``, of every order.

    Raises
    ------
    TypeError
        An argument of the wrong kind or dtype.
    ValueError
        Shapes, offsets or devices that do not fit; a BatchNorm layer that uses statistics of the batch, which
        mix the classes; a compiled network.
    RuntimeError
        Under torch.func, forward-mode AD or torch.compile; no kernels for the device in this build.

    References
    ----------
    Rochette et al., Efficient per-example gradient computations in convolutional neural networks, 2019, of
    whose products the segment sums are taken here. Zhao et al., Dataset condensation with gradient matching,
    ICLR 2021, for the use.
    """
    _refuse_transforms()
    offsets = _check(net, x, targets, x_offsets, loss, weights, chunk_size)
    pass_loss = _cross_entropy if isinstance(loss, str) else loss
    segments, rows = offsets.shape[0] - 1, x.shape[0]
    if weights is None:
        count = lengths(offsets, rows, segments, x.device).clamp(min=1)
        weights = spread(1 / count, offsets, rows, segments)
    totals = _Totals(net, segments)
    step = rows if chunk_size is None else chunk_size
    for begin in range(0, rows, max(step, 1)):
        part = slice(begin, min(begin + step, rows))
        ends = offsets.clamp(part.start, part.stop) - part.start
        chunk = _Chunk(ends, weights[part], create_graph)
        with torch.enable_grad():
            _add_chunk(totals, net, x[part], targets[part], pass_loss, chunk)
    return totals.finished()


def _cross_entropy(output: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(output, targets, reduction="none")


def _refuse_transforms() -> None:
    if torch.compiler.is_compiling():
        raise RuntimeError(
            "class_gradients: torch.compile cannot trace it; call it outside of compiled functions, or leave "
            "it uncompiled with torch.compiler.disable"
        )
    if _transforms.active():
        raise RuntimeError(
            "class_gradients: torch.func and forward-mode AD are not offered; differentiate its results with "
            "create_graph=True and torch.autograd.grad"
        )


def _check(
    net: Any, x: Any, targets: Any, x_offsets: Any, loss: Any, weights: Any, chunk_size: Any
) -> Tensor:
    op = "class_gradients"
    if not isinstance(net, nn.Module):
        raise TypeError(f"{op}: net must be a torch.nn.Module, got {type(net).__name__}")
    for name, tensor in (("x", x), ("targets", targets), ("weights", weights)):
        if not isinstance(tensor, Tensor) and (name != "weights" or tensor is not None):
            raise TypeError(f"{op}: {name} must be a tensor, got {type(tensor).__name__}")
        if isinstance(tensor, Tensor) and tensor.device != x.device:
            raise ValueError(f"{op}: {name} must be on the device of x, {x.device}, got {tensor.device}")
    if x.dim() == 0:
        raise ValueError(f"{op}: x must be (N, ...), got ()")
    rows = x.shape[0]
    if targets.dim() == 0 or targets.shape[0] != rows:
        raise ValueError(f"{op}: targets must be (N, ...) with N={rows} as in x, got {tuple(targets.shape)}")
    if weights is not None:
        if not weights.dtype.is_floating_point:
            raise TypeError(
                f"{op}: weights must be float64, float32, float16 or bfloat16, got "
                f"{str(weights.dtype).removeprefix('torch.')}"
            )
        if tuple(weights.shape) != (rows,):
            raise ValueError(f"{op}: weights must be (N,) with N={rows} as in x, got {tuple(weights.shape)}")
    if loss != "cross_entropy" and not callable(loss):
        raise ValueError(f"{op}: loss must be 'cross_entropy' or a function, got {loss!r}")
    if chunk_size is not None and (not isinstance(chunk_size, int) or isinstance(chunk_size, bool)):
        raise TypeError(f"{op}: chunk_size must be None or an int, got {type(chunk_size).__name__}")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"{op}: chunk_size must be at least 1, got {chunk_size}")
    offsets = host_offsets(op, "x_offsets", x_offsets)
    if int(offsets[-1]) != rows:
        raise ValueError(f"{op}: x_offsets must end at N={rows}, the rows of x, got {int(offsets[-1])}")
    for name, module in net.named_modules():
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            raise ValueError(
                f"{op}: net must treat each row by itself, got {type(module).__name__} {name!r} that uses "
                "statistics of the batch; call net.eval(), or only that layer's, for the stored ones"
            )
    return offsets


@dataclass(frozen=True)
class _Chunk:
    """Rows of one pass: where the classes begin among them, and their weights."""

    offsets: Tensor
    weights: Tensor
    create_graph: bool

    @property
    def segments(self) -> int:
        return self.offsets.shape[0] - 1

    @property
    def rows(self) -> int:
        return self.weights.shape[0]

    def weights_for(self, *tensors: Tensor) -> Tensor:
        """In the type that products of these tensors are computed in."""
        dtypes = (tensor.dtype for tensor in tensors)
        return self.weights.to(compute_dtype(functools.reduce(torch.promote_types, dtypes)))


class _Totals:
    """Sums over uses and chunks of every parameter's gradients."""

    def __init__(self, net: nn.Module, segments: int) -> None:
        self._parameters = list(net.parameters())
        self._segments = segments
        self._sums: dict[nn.Parameter, Tensor] = {}

    def add(self, parameter: nn.Parameter, gradient: Tensor) -> None:
        gradient = gradient.reshape(self._segments, *parameter.shape)
        known = self._sums.get(parameter)
        self._sums[parameter] = gradient if known is None else known + gradient

    def _of(self, parameter: nn.Parameter) -> Tensor | None:
        if not parameter.requires_grad:
            return None
        if parameter not in self._sums:
            return parameter.detach().new_zeros((self._segments, *parameter.shape))
        return self._sums[parameter].to(parameter.dtype)

    def finished(self) -> tuple[Tensor | None, ...]:
        return tuple(self._of(parameter) for parameter in self._parameters)


def _add_chunk(
    totals: _Totals, net: nn.Module, x: Tensor, targets: Tensor, loss: Loss, chunk: _Chunk
) -> None:
    with capture(net) as pairs:
        losses = loss(net(x), targets)
    if not isinstance(losses, Tensor) or tuple(losses.shape) != (chunk.rows,):
        shown = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise ValueError(f"class_gradients: loss must give (N,), one number for each row, got {shown}")
    if losses.grad_fn is None:
        return  # it depends on no parameter
    others = pairs.unrecorded(losses)
    for pair in pairs:
        if pair.rows != chunk.rows:
            others |= {p for p in (pair.weight, pair.bias) if p is not None}
    # Unweighted: weights of the rows enter the sums, where they cannot push 16-bit gradients out of range.
    pairs.backward(
        losses.sum(), retain_graph=bool(others) or chunk.create_graph, create_graph=chunk.create_graph
    )
    with torch.set_grad_enabled(chunk.create_graph):
        for parameter, gradient in _pair_gradients(pairs, others, chunk):
            totals.add(parameter, gradient)
    for parameter, gradient in _loop_gradients(losses, others, chunk):
        totals.add(parameter, gradient)


def _pair_gradients(
    pairs: Capture, others: set[nn.Parameter], chunk: _Chunk
) -> Iterator[tuple[nn.Parameter, Tensor]]:
    for pair in pairs:
        wanted = [p if p is not None and p not in others else None for p in (pair.weight, pair.bias)]
        if pair.output_gradient is None or not any(p is not None for p in wanted):
            continue
        compute = _norm_gradients if pair.is_norm else _product_gradients
        for parameter, gradient in zip(wanted, compute(pair, chunk), strict=True):
            if parameter is not None and gradient is not None:
                yield parameter, gradient
        if not chunk.create_graph:
            pair.output_gradient = None  # its memory is free for the rest


def _product_gradients(pair: Pair, chunk: _Chunk) -> tuple[Tensor, Tensor]:
    a, d, convolution = pair.images()
    return segment_outer(
        a,
        d,
        chunk.weights_for(a, d),
        chunk.offsets,
        chunk.segments,
        convolution.packed(),
        pair.bias is not None,
    )


def _norm_gradients(pair: Pair, chunk: _Chunk) -> tuple[Tensor | None, ...]:
    """Sums of the normalised input times the output's gradient, and of the latter, over all but the
    dimensions of the weight."""
    if pair.row_edges:
        return tuple(_sum_rows(part, chunk) for part in pair.row_gradients)
    normalised = pair.normalised()
    d = pair.output_gradient.to(normalised.dtype)  # type: ignore[union-attr]
    # In place where nobody else will read it: fresh memory costs more than the product.
    product = normalised * d if chunk.create_graph else normalised.mul_(d)
    module = pair.module
    if isinstance(module, nn.LayerNorm):
        shape = (chunk.rows, -1, module.weight.numel())
        parts = [product.reshape(shape).sum(1), d.reshape(shape).sum(1)]
    else:
        shape = (chunk.rows, d.shape[1], -1)
        parts = [product.reshape(shape).sum(2), d.reshape(shape).sum(2)]
    return tuple(_sum_rows(part, chunk) for part in parts)


def _sum_rows(rows: Tensor | None, chunk: _Chunk) -> Tensor | None:
    if rows is None:
        return None
    return segment_sums(rows, chunk.weights_for(rows), chunk.offsets, chunk.segments)


def _loop_gradients(
    losses: Tensor, others: set[nn.Parameter], chunk: _Chunk
) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """The parameters that no pair accounts for: a pass backward for each class."""
    if not others:
        return
    wanted = list(others)
    weighted = losses * chunk.weights_for(losses)
    ends = chunk.offsets.tolist()
    rows: list[list[Tensor]] = []
    for c in range(chunk.segments):
        if ends[c] == ends[c + 1]:
            rows.append([torch.zeros_like(p) for p in wanted])
            continue
        gradients = torch.autograd.grad(
            weighted[ends[c] : ends[c + 1]].sum(),
            wanted,
            retain_graph=True,
            create_graph=chunk.create_graph,
            allow_unused=True,
        )
        rows.append([torch.zeros_like(p) if g is None else g for p, g in zip(wanted, gradients, strict=True)])
    for parameter, column in zip(wanted, zip(*rows, strict=True), strict=True):
        yield parameter, torch.stack(column)
