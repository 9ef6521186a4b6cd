"""torch.func and forward-mode AD over the registered ops.

An op registered with torch.library refuses torch.func.grad and loses the tangent of forward-mode AD without a
word. While one of these is active, the ops therefore run as autograd functions that know how to be batched
and pushed forward. Batching folds the new dimension into the segments: a batch of ragged problems is one
ragged problem. A transform that is traced by torch.compile would lose these rules, so that case raises.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch._C._functorch import (
    TransformType,
    get_interpreter_stack,
    get_unwrapped,
    is_batchedtensor,
    is_functorch_wrapped_tensor,
    is_legacy_batchedtensor,
    maybe_get_level,
)
from torch.autograd import forward_ad

__all__ = [
    "active",
    "batched",
    "fold",
    "needs_gradient",
    "one_by_one",
    "public",
    "pushed_once",
    "refuse_tracing",
    "unfold",
    "unwatched",
]


_PLAIN = frozenset((Tensor, torch.nn.Parameter))

P = ParamSpec("P")
R = TypeVar("R")


def refuse_tracing() -> None:
    """Raises while torch.compile traces: it would lose the rules of transforms."""
    if torch.compiler.is_compiling():
        raise RuntimeError(
            "decoct's ops under torch.func cannot be traced by torch.compile; compile the function outside "
            "of the transform, or leave this part uncompiled with torch.compiler.disable"
        )


def active() -> bool:
    """True under torch.func or inside a forward-mode AD level."""
    if torch._C._are_functorch_transforms_active():
        refuse_tracing()
        return True
    return forward_ad._current_level >= 0


def public(function: Callable[P, R]) -> Callable[P, R]:
    """Decorates the public functions: under torch.func, torch.compile leaves them alone.

    When a graph breaks inside a transform the compiler goes on with the functions that are called from there,
    one by one, and fails on tensors that a transform has wrapped.
    """

    @functools.wraps(function)
    def call(*arguments: P.args, **options: P.kwargs) -> R:
        if (
            not torch.compiler.is_compiling()
            and "torch._dynamo" in sys.modules
            and torch._C._are_functorch_transforms_active()
        ):
            return torch.compiler.disable(function)(*arguments, **options)  # type: ignore[no-any-return]
        return function(*arguments, **options)

    return call


def _forward_levels() -> set[int]:
    """Levels of torch.func that push tangents forward. A tensor wrapped by one has a tangent there, which
    cannot be read while an inner transform is active."""
    stack = get_interpreter_stack() or []
    return {interpreter.level() for interpreter in stack if interpreter.key() == TransformType.Jvp}


def _tangent(tensor: Tensor) -> Tensor | None:
    return forward_ad.unpack_dual(tensor).tangent  # type: ignore[no-any-return]


def unwatched(arguments: tuple[Any, ...]) -> bool:
    """True where no compiler, transform, dispatch mode or tensor subclass wants to see the op."""
    return (
        not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and torch._C._len_torch_dispatch_stack() == 0
        and _all_plain([argument for argument in arguments if isinstance(argument, Tensor)])
    )


def _all_plain(tensors: list[Tensor]) -> bool:
    return _PLAIN.issuperset(map(type, tensors)) and not any(map(is_legacy_batchedtensor, tensors))


def needs_gradient(tensor: Tensor | None) -> bool:
    """True where any kind of differentiation in progress asks for this tensor's derivative."""
    if tensor is None:
        return False
    if tensor.requires_grad and torch.is_grad_enabled():
        return True
    if not active():
        return False
    pushed = _forward_levels()
    while True:
        if tensor.requires_grad or maybe_get_level(tensor) in pushed:
            return True
        if not is_batchedtensor(tensor) and _tangent(tensor) is not None:
            return True
        if not is_functorch_wrapped_tensor(tensor):
            return False
        tensor = get_unwrapped(tensor)


def pushed_once(*tensors: Tensor | None) -> bool:
    """True where the only differentiation in progress pushes tangents forward once: nothing will ask for the
    derivative of what a result is made of."""
    if not active():
        return False
    keys = [interpreter.key() for interpreter in get_interpreter_stack() or []]
    if TransformType.Grad in keys or keys.count(TransformType.Jvp) > 1:
        return False
    for tensor in tensors:
        while tensor is not None:
            if tensor.requires_grad:
                return False
            tensor = get_unwrapped(tensor) if is_functorch_wrapped_tensor(tensor) else None
    return True


def _fold_offsets(offsets: Tensor, dim: int | None, batch: int) -> Tensor:
    if dim is not None:
        raise RuntimeError(
            "vmap over offsets is not offered: a batch may differ in its rows, not in its segments"
        )
    rows = offsets[-1]
    starts = offsets[:-1] + rows * torch.arange(batch, device=offsets.device)[:, None]
    return torch.cat([starts.reshape(-1), (rows * batch).reshape(1)])


def fold(layout: str, batch: int, dims: tuple[Any, ...], arguments: tuple[Any, ...]) -> list[Any]:
    """Arguments of a batch of calls as the arguments of one call with `batch` times the segments.

    `layout` has a letter for each argument: r = rows or anything that has one entry for each row or segment,
    o = offsets, s = number of segments, - = the same for all calls.
    """
    refuse_tracing()
    folded: list[Any] = []
    for letter, dim, argument in zip(layout, dims, arguments, strict=True):
        if argument is None or letter == "-":
            folded.append(argument)
        elif letter == "s":
            folded.append(argument * batch)
        elif letter == "o":
            folded.append(_fold_offsets(argument, dim, batch))
        else:
            whole = argument.expand(batch, *argument.shape) if dim is None else argument.movedim(dim, 0)
            folded.append(whole.reshape(batch * whole.shape[1], *whole.shape[2:]))
    return folded


def unfold(batch: int, outputs: Any) -> tuple[Any, Any]:
    """The batched outputs of a folded call and their batch dimensions, as a vmap rule returns them."""
    if isinstance(outputs, Tensor):
        return outputs.reshape(batch, outputs.shape[0] // batch, *outputs.shape[1:]), 0
    parts = tuple(unfold(batch, output)[0] for output in outputs)
    return parts, (0,) * len(parts)


def batched(
    layout: str, function: Callable[..., Any], info: Any, dims: Any, *arguments: Any
) -> tuple[Any, Any]:
    """The vmap rule of a function that is batched by folding."""
    return unfold(info.batch_size, function(*fold(layout, info.batch_size, dims, arguments)))


def one_by_one(function: Callable[..., Any], info: Any, dims: Any, *arguments: Any) -> tuple[Any, Any]:
    """The vmap rule of a function whose batch cannot be folded: a call for each."""
    refuse_tracing()
    calls = []
    for k in range(info.batch_size):
        pairs = zip(arguments, dims, strict=True)
        calls.append(function(*(part if dim is None else part.select(dim, k) for part, dim in pairs)))
    if isinstance(calls[0], Tensor):
        return torch.stack(calls), 0
    outputs = tuple(torch.stack(parts) for parts in zip(*calls, strict=True))
    return outputs, (0,) * len(outputs)
