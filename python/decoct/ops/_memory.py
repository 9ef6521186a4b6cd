"""Memory of the CPU that calls use again. Fresh memory costs a page fault every 4 KiB: on a virtual machine
more than the kernel that fills it."""

from __future__ import annotations

import contextlib
import math
import threading
import weakref
from collections import deque
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["release_scratch", "result", "scratch"]

KEPT = 128 << 20
"""Bytes of scratch that a thread keeps for its next call, and of results that all threads keep together."""
LENT_FROM = 32 << 20
"""Bytes from which memory of results is kept: pieces that glibc gives back to the system whenever it can."""

_NUMPY: dict[torch.dtype, type[np.floating]] = {torch.float32: np.float32, torch.float64: np.float64}
_PLAIN = (Tensor, torch.nn.Parameter)  # others are not to be filled: a compiler traces
_own = threading.local()


def scratch(size: int, device: torch.device) -> Tensor:
    """Bytes for one call; on the CPU those of this thread's call before it."""
    if device.type != "cpu" or size > KEPT:
        return torch.empty(size, dtype=torch.uint8, device=device)
    buffer: Tensor | None = getattr(_own, "buffer", None)
    if buffer is None or buffer.shape[0] < size:
        buffer = _own.buffer = torch.empty(size, dtype=torch.uint8)
    return buffer


class _Results:
    """Blocks of memory, lent to one tensor at a time. A tensor made of an array holds it as long as any
    tensor shares its storage; the end of that array is when its block comes back.

    There is no lock that a fork could leave taken: a block belongs to whoever took it off the queue.
    """

    def __init__(self) -> None:
        self._free: deque[np.ndarray] = deque()
        self._lent: dict[int, tuple[weakref.ref[np.ndarray], np.ndarray]] = {}

    def lend(self, shape: Sequence[int], dtype: torch.dtype, size: int, channels_last: bool) -> Tensor:
        block = self._taken(size)
        array: np.ndarray = block.view(_NUMPY[dtype])
        if channels_last:
            images, channels, *sides = shape
            array = array.reshape(images, *sides, channels).transpose(0, 3, 1, 2)
        else:
            array = array.reshape(shape)
        loan = weakref.ref(array, self._come_back)
        self._lent[id(loan)] = loan, block
        return torch.from_numpy(array)

    def _taken(self, size: int) -> np.ndarray:
        for _ in range(len(self._free)):
            try:
                block = self._free.popleft()
            except IndexError:  # another thread was faster
                break
            if block.nbytes == size:
                return block
            self._free.append(block)
        return torch.empty(size, dtype=torch.uint8).numpy()  # torch's memory is aligned to whole vectors

    def _come_back(self, loan: weakref.ref[np.ndarray]) -> None:
        self._free.append(self._lent.pop(id(loan))[1])
        with contextlib.suppress(IndexError):  # another thread was faster
            while sum(block.nbytes for block in tuple(self._free)) > KEPT:
                self._free.popleft()

    def release(self) -> None:
        self._free.clear()


_results = _Results()


def result(
    like: Tensor,
    shape: Sequence[int],
    dtype: torch.dtype,
    layout: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """What torch.empty gives on the device of a tensor; a large one on the CPU may lie where one was that
    nobody holds any more."""
    if type(like) in _PLAIN and like.device.type == "cpu" and dtype in _NUMPY:
        size = dtype.itemsize * math.prod(shape)
        if LENT_FROM <= size <= KEPT:
            return _results.lend(shape, dtype, size, layout is torch.channels_last)
    return torch.empty(shape, dtype=dtype, device=like.device, memory_format=layout)


def release_scratch() -> None:
    """Give back the scratch that this thread keeps, and the memory of results that are gone."""
    _own.buffer = None
    _results.release()
