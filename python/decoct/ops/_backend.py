"""The table of compiled engines, and what they are called with."""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch  # before the engine, so that both share torch's OpenMP runtime
from torch import Tensor

from decoct.ops._memory import scratch

__all__ = [
    "Execution",
    "as_matrix",
    "backend_for",
    "backends",
    "compute_dtype",
    "dtype_name",
    "engine_kernel",
    "offsets_or_uniform",
    "readable",
]

X, Y, A, B = 1, 2, 4, 8
"""Bits of a `need` mask: which gradients an op computes."""
XX, XY, YY = 1, 2, 4
"""Bits of a `terms` mask: which of the three sums an op computes."""


MODULES = {"cpu": "decoct._cpu", "cuda": "decoct._cuda"}


def load(name: str) -> tuple[Any, str | None]:
    """A compiled module, or why there is none."""
    try:
        return importlib.import_module(name), None
    except ModuleNotFoundError as error:
        if error.name != name:
            return None, f"{name} does not load: {error}"
        return None, f"{name} is missing; pip install --force-reinstall --no-deps decoct"
    except ImportError as error:
        return None, f"{name} does not load: {error}"


backends: dict[str, Any] = {
    device_type: engine
    for device_type, engine in ((key, load(name)[0]) for key, name in MODULES.items())
    if engine is not None
}
"""Device type -> compiled module. Ops look their engine up here at every call, so an entry can be swapped."""


def backend_for(op: str, device: torch.device) -> ModuleType | Any:
    """The engine of a device, or a RuntimeError that says how to get one."""
    engine = backends.get(device.type)
    if engine is not None:
        return engine
    if device.type == "cpu":
        raise RuntimeError(f"{op}: decoct's compiled module {load(MODULES['cpu'])[1] or 'was taken out'}")
    if device.type == "cuda":
        raise RuntimeError(
            f"{op}: no kernels for device {device}, as this build of decoct has none for CUDA; with a CUDA "
            "toolkit on PATH rebuild it: pip install --force-reinstall --no-deps --no-binary decoct decoct "
            "(or pass tensors on the CPU)"
        )
    raise RuntimeError(f"{op}: no kernels for device {device}; pass tensors on the CPU")


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """What rows of a dtype are computed in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@functools.cache
def dtype_name(dtype: torch.dtype) -> str:
    """As engines and messages spell it: float32."""
    return str(dtype).removeprefix("torch.")


def readable(tensor: Tensor) -> Tensor:
    """The tensor, copied only if an engine cannot read its rows in place (unit stride in a row, no
    overlap)."""
    if tensor.dim() == 1:
        return tensor if tensor.shape[0] <= 1 or tensor.stride(0) == 1 else tensor.contiguous()
    rows, columns = tensor.shape
    if (columns <= 1 or tensor.stride(1) == 1) and (rows <= 1 or tensor.stride(0) >= columns):
        return tensor
    return tensor.contiguous()


def as_matrix(engine: Any, tensor: Tensor | None) -> Any:
    """A view of a readable tensor for an engine; vectors become one column. The caller keeps the tensor
    alive."""
    if tensor is None:
        return None
    if tensor.dim() == 1:
        rows, columns, stride = tensor.shape[0], 1, 1
    else:
        rows, columns = tensor.shape
        stride = tensor.stride(0) if rows > 1 else columns
    return engine.Matrix(tensor.data_ptr(), rows, columns, stride, dtype_name(tensor.dtype))


@functools.lru_cache(maxsize=256)
def _kernel(engine: Any, profile: str, numbers: tuple[float, ...]) -> Any:
    parameter, offset, degree, *scales = numbers
    return engine.Kernel(profile, parameter, offset, int(degree), scales)


def engine_kernel(engine: Any, profile: str, numbers: Sequence[float]) -> Any:
    """The engine's form of a packed KernelSpec."""
    return _kernel(engine, profile, tuple(numbers))


@functools.lru_cache(maxsize=256)
def _uniform_offsets(rows: int, segments: int) -> Tensor:
    return torch.arange(segments + 1, dtype=torch.int64) * (rows // segments if segments else 0)


def offsets_or_uniform(offsets: Tensor | None, rows: int, segments: int) -> Tensor:
    """Host offsets; None stands for equal segments."""
    return _uniform_offsets(rows, segments) if offsets is None else offsets.contiguous()


@functools.lru_cache(maxsize=512)
def _plan(
    engine: Any,
    op: str,
    rows: tuple[int, int, int],
    dtype: str,
    offsets: tuple[bytes, bytes],
    masks: tuple[int, int],
    columns: int,
    cost_budget: int,
    threads: int,
    device: torch.device,
) -> tuple[Tensor, Tensor, int]:
    n, m, d = rows
    x_offsets, y_offsets = (torch.frombuffer(bytearray(part), dtype=torch.int64) for part in offsets)
    layout, workspace = engine.plan(
        op=op,
        x=engine.Matrix(0, n, d, d, dtype),
        y=engine.Matrix(0, m, d, d, dtype),
        x_offsets=as_matrix(engine, x_offsets),
        y_offsets=as_matrix(engine, y_offsets),
        need=masks[0],
        terms=masks[1],
        columns=columns,
        threads=threads,
        cost_budget=cost_budget,
    )
    host = torch.from_numpy(layout.reshape(-1))
    return host, host.to(device), int(workspace)


class Execution:
    """How the engine is to run one call: the schedule for these shapes (the latest ones are kept), scratch
    memory, threads, precision, device and stream. Keeps alive what the engine's form of it points to."""

    def __init__(
        self,
        engine: Any,
        op: str,
        x: Tensor,
        y: Tensor,
        x_offsets: Tensor,
        y_offsets: Tensor,
        *,
        need: int = 0,
        terms: int = 0,
        columns: int = 1,
        cost_budget: int = 0,
    ) -> None:
        threads = torch.get_num_threads()
        host, layout, size = _plan(
            engine,
            op,
            (x.shape[0], y.shape[0], x.shape[1]),
            dtype_name(x.dtype),
            (x_offsets.numpy().tobytes(), y_offsets.numpy().tobytes()),
            (need, terms),
            columns,
            cost_budget,
            threads,
            x.device,
        )
        self._start(engine, x.device, host, layout, size, threads)

    @classmethod
    def of_plan(
        cls, engine: Any, device: torch.device, host: Tensor, layout: Tensor, size: int, threads: int
    ) -> Execution:
        """Of a schedule that is there already: on the host, on the device, and the bytes of its scratch."""
        execution = cls.__new__(cls)
        execution._start(engine, device, host, layout, size, threads)
        return execution

    def _start(
        self, engine: Any, device: torch.device, host: Tensor, layout: Tensor, size: int, threads: int
    ) -> None:
        kept = scratch(size, device)
        self._engine, self._device = engine, device
        self._kept = host, layout, kept
        self._handle = engine.Execution(
            schedule=as_matrix(engine, host),
            device_schedule=as_matrix(engine, layout),
            workspace=as_matrix(engine, kept),
            threads=threads,
            precision=precision(),
            stream=stream_of(device),
        )

    def run(self, name: str, **arguments: Any) -> None:
        """Call a function of the engine."""
        on_cuda = self._device.type == "cuda"
        with torch.cuda.device(self._device) if on_cuda else contextlib.nullcontext():
            getattr(self._engine, name)(**arguments, execution=self._handle)


def precision() -> str:
    """torch's setting for products of float32 matrices on CUDA: highest, high or medium."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # it was made through torch's newer settings, to which this question has no answer
        newer = torch.backends.cuda.matmul.fp32_precision
        return {"tf32": "high", "bf16": "medium"}.get(newer, "highest")


def stream_of(device: torch.device) -> int:
    """torch's current stream on a device as an integer; 0 on the CPU."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
