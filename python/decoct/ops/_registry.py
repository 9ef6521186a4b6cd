"""One torch.library namespace and one way of registering an op in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch

__all__ = ["KERNEL_SCHEMA", "refuse", "register"]

KERNEL_SCHEMA = "str profile, float[] numbers"
"""A kernel among an op's arguments: KernelSpec.packed()."""

_library: Any = torch.library.Library("decoct", "DEF")


def register(
    schema: str,
    implementation: Callable[..., Any],
    fake: Callable[..., Any],
    backward: Callable[..., Any],
    setup_context: Callable[..., None] | None = None,
) -> Any:
    """Define `decoct::<schema>`, with one implementation for all devices (it looks its engine up), a fake one
    for tracing and a derivative. Returns the op, ready to be called."""
    name = schema.split("(")[0]
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    for key in ("CPU", "CUDA"):
        _library.impl(name, implementation, key)
    qualified = f"decoct::{name}"
    torch.library.register_fake(qualified, fake, lib=_library)
    torch.library.register_autograd(qualified, backward, setup_context=setup_context, lib=_library)
    return getattr(torch.ops.decoct, name).default


def refuse(what: str) -> Callable[..., NoReturn]:
    """A derivative formula that raises. Without one torch only warns and returns a wrong gradient."""

    def backward(ctx: Any, *cotangents: Any) -> NoReturn:
        raise RuntimeError(f"decoct: {what}")

    return backward
