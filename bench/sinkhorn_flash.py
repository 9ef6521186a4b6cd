"""flash-sinkhorn as a contender: Triton kernels for CUDA devices, on GeomLoss's schedule of eps."""

from __future__ import annotations

import contextlib
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from contenders import Call, differentiate
from sinkhorn_cases import BLUR, SCALING, Case, diameter
from sinkhorn_contenders import Solver

_prepared: set[Any] = set()


def _compile_together() -> None:
    """Make Triton's tuner compile what it is about to compare on all cores first, instead of one after the
    other. What is compared, and how, stays as it is."""
    from triton.runtime import Autotuner

    try:
        from triton.runtime._async_compile import AsyncCompileMode
    except ImportError:  # of older versions
        return
    if _prepared:
        return
    _prepared.add("hooked")
    run = Autotuner.run

    def prepare_and_run(self: Any, *arguments: Any, **named: Any) -> Any:
        given = {**dict(zip(self.arg_names, arguments, strict=False)), **named}
        key = (id(self), *(given.get(name) for name in self.keys))
        if key not in _prepared and len(self.configs) > 1:
            _prepared.add(key)
            # What does not compile is met again by the tuner, which leaves it out.
            with (
                contextlib.suppress(Exception),
                ThreadPoolExecutor(os.cpu_count()) as pool,
                AsyncCompileMode(pool, ignore_errors=True),
            ):
                for config in self.configs:
                    self.fn.run(*arguments, **{**named, "warmup": True}, **config.all_kwargs())
        return run(self, *arguments, **named)

    Autotuner.run = prepare_and_run


def build(case: Case, x: Tensor, y: Tensor) -> Call:
    """The synthetic rows come first, for its gradient by the second side alone is not tuned; the divergence
    is symmetric. Batches are a loop inside of it."""
    from flash_sinkhorn import SamplesLoss

    _compile_together()
    width = diameter(x, y)
    loss = SamplesLoss(
        "sinkhorn",
        blur=BLUR * width,
        scaling=SCALING,
        diameter=width,
        debias=True,
        half_cost=True,
        allow_tf32=torch.get_float32_matmul_precision() != "highest",
    )
    if not case.groups:
        return differentiate(lambda: loss(y, x), y)
    shape = (case.groups, -1, case.columns)
    return differentiate(lambda: loss(y.view(shape), x.view(shape)), y)


FLASH = Solver("flash-sinkhorn", build, with_xx=True, anneals=True)
