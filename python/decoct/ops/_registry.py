"""One torch.library namespace and one way of making an op of its parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, NoReturn, TypeVar

import torch
from torch import Tensor

from decoct.ops import _transforms

__all__ = ["KERNEL_SCHEMA", "Op", "autograd_function", "chosen", "needed", "refuse", "register"]

KERNEL_SCHEMA = "str profile, float[] numbers"
"""A kernel among an op's arguments: KernelSpec.packed()."""

_library: Any = torch.library.Library("decoct", "DEF")

R = TypeVar("R")
Save = Callable[[Any, tuple[Any, ...], Any], Sequence[Tensor | None]]
"""(ctx, inputs, output): the tensors that derivatives need; what else they need is put on ctx."""


def register(
    schema: str,
    implementation: Callable[..., Any],
    fake: Callable[..., Any],
    backward: Callable[..., Any],
    save: Save | None = None,
) -> Any:
    """Define `decoct::<schema>`, with one implementation for all devices (it looks its engine up), a fake one
    for tracing and a derivative. Returns the op, ready to be called."""

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        if save is not None:
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(*save(ctx, inputs, output))

    name = schema.split("(")[0]
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    for key in ("CPU", "CUDA"):
        _library.impl(name, implementation, key)
    qualified = f"decoct::{name}"
    torch.library.register_fake(qualified, fake, lib=_library)
    torch.library.register_autograd(qualified, backward, setup_context=setup_context, lib=_library)
    return getattr(torch.ops.decoct, name).default


def _unless_nothing(backward: Callable[..., Any]) -> Callable[..., Any]:
    """The derivative, not asked where no cotangent arrives."""

    def pulled(ctx: Any, *bars: Tensor | None) -> Any:
        nothing = all(bar is None for bar in bars)
        return (None,) * len(ctx.needs_input_grad) if nothing else backward(ctx, *bars)

    return pulled


def autograd_function(
    name: str,
    forward: Callable[..., R],
    *,
    backward: Callable[..., Any],
    jvp: Callable[..., Any],
    vmap: str | Callable[..., Any],
    save: Save | None = None,
) -> Callable[..., R]:
    """An autograd function, ready to be called, that torch.func can differentiate, push forward and batch.

    `vmap` is a layout as `_transforms.fold` takes it, or called with the function itself before the arguments
    that torch passes.
    """

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        if save is not None:
            saved = save(ctx, inputs, output)
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(*saved)
            ctx.save_for_forward(*saved)

    def batched(info: Any, dims: Any, *arguments: Any) -> Any:
        if callable(vmap):
            return vmap(apply, info, dims, *arguments)
        return _transforms.batched(vmap, apply, info, dims, *arguments)

    parts = {
        "forward": forward,
        "setup_context": setup_context,
        "backward": _unless_nothing(backward),
        "jvp": jvp,
        "vmap": batched,
    }
    methods = {key: staticmethod(part) for key, part in parts.items()}  # type: ignore[arg-type, var-annotated]
    bases: tuple[Any, ...] = (torch.autograd.Function,)
    apply: Callable[..., R] = type(name, bases, methods).apply  # type: ignore[attr-defined]
    return apply


class Op(Generic[R]):
    """A registered op that torch.func can differentiate, push forward and batch. See `register` and
    `autograd_function` for its parts.

    It is called as an autograd function where a transform needs one, and where nobody would see the
    difference: the dispatcher of an op written in Python costs more than the kernels on a small problem.
    """

    def __init__(
        self,
        schema: str,
        implementation: Callable[..., R],
        fake: Callable[..., Any],
        *,
        backward: Callable[..., Any],
        jvp: Callable[..., Any],
        vmap: str | Callable[..., Any],
        save: Save | None = None,
    ) -> None:
        # Not a method: torch asks for the signature at every call, and that of a method takes longer.
        def forward(*arguments: Any) -> R:
            return (implementation if _transforms.unwatched(arguments) else self.registered)(*arguments)

        self.implementation = implementation
        self.registered = register(schema, implementation, fake, _unless_nothing(backward), save)
        name = schema.split("(")[0]
        self.function = autograd_function(name, forward, backward=backward, jvp=jvp, vmap=vmap, save=save)

    def __call__(self, *arguments: Any) -> R:
        if _transforms.active():
            return self.function(*arguments)
        if not _transforms.unwatched(arguments):
            return self.registered(*arguments)  # type: ignore[no-any-return]
        return (self.function if torch.is_grad_enabled() else self.implementation)(*arguments)


def needed(wanted: Any, *bits: int) -> int:
    """The `need` mask of those bits that are wanted."""
    return sum(bit for bit, want in zip(bits, wanted, strict=True) if want)


def chosen(parts: Any, need: int, *bits: int) -> tuple[Tensor | None, ...]:
    """What a `need` mask asked for; None in the other places."""
    return tuple(part if need & bit else None for part, bit in zip(parts, bits, strict=True))


def refuse(what: str) -> Callable[..., NoReturn]:
    """A derivative formula that raises. Without one torch only warns and returns a wrong gradient."""

    def backward(ctx: Any, *cotangents: Any) -> NoReturn:
        raise RuntimeError(f"decoct: {what}")

    return backward
