"""Where the ops of gpu.py run: a CUDA device, or the CUDA kernels executed on the CPU at toy size.

Only this file knows the difference. `python gpu_device.py cuda` prints what there is.
"""

from __future__ import annotations

import gc
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

import harness

Call = Callable[..., Any]
CHAIN = 64
"""Exponentials of one element in `chained_exp`."""
CHAINED = """template <typename T> T chained_exp2(T x) {
  float v = x;
  for (int i = 0; i < 64; ++i) asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(v) : "f"(-v));
  return v;
}"""


class Cuda:
    """torch's current CUDA device."""

    toy = False
    missing: tuple[str, ...] = ()
    """Of what gpu.py checks, what this device does not have."""

    def __init__(self) -> None:
        self.device = torch.device("cuda", torch.cuda.current_device())

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def seconds(self, call: Call, count: int = 1) -> float:
        """Of one call, between two events around `count` calls in a row."""
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        for _ in range(count):
            call()
        stop.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(stop)) / 1e3 / count

    def release(self) -> None:
        gc.collect()
        torch.cuda.empty_cache()

    def extra_memory(self, call: Call) -> int | None:
        """Bytes of torch's allocator at their highest during a call, over those before it."""
        self.release()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = call()
        torch.cuda.synchronize()
        grown = torch.cuda.max_memory_allocated() - before
        del result
        return grown

    def capture(self, call: Call) -> Call:
        """The call as a CUDA graph: each replay gives the same tensors, filled again. It keeps the call, the
        owner of what the graph reads."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = call()

        def replay(_: Call) -> Any:
            graph.replay()
            return results

        return partial(replay, call)

    def on_stream(self, call: Call) -> Any:
        """The call's result from a side stream, ordered by events on both ends."""
        side, before, after = torch.cuda.Stream(), torch.cuda.Event(), torch.cuda.Event()
        before.record()
        with torch.cuda.stream(side):
            side.wait_event(before)
            result = call()
            after.record()
        torch.cuda.current_stream().wait_event(after)
        torch.cuda.synchronize()
        return result

    def concurrently(self, calls: list[Call], count: int) -> list[list[Any]]:
        """`count` results of each call, every call on a stream of its own, all of them under way together."""
        streams = [torch.cuda.Stream() for _ in calls]
        results: list[list[Any]] = [[] for _ in calls]
        for stream in streams:
            stream.wait_stream(torch.cuda.current_stream())
        for _ in range(count):
            for call, stream, kept in zip(calls, streams, results, strict=True):
                with torch.cuda.stream(stream):
                    kept.append(call())
        torch.cuda.synchronize()
        return results

    @contextmanager
    def no_waiting(self) -> Iterator[None]:
        """What would make the host wait for the device raises."""
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def allocations(self) -> int:
        """Times torch asked the driver for memory so far."""
        return int(torch.cuda.memory_stats()["segment.all.allocated"])

    def chained_exp(self) -> Call | None:
        """One kernel that takes CHAIN exponentials of every element by the hardware's own instruction."""
        try:
            made: Call = torch.cuda.jiterator._create_jit_fn(CHAINED)
            made(torch.ones(4, device=self.device))
        except Exception:  # a private function of torch, for one ceiling only
            return None
        return made

    def describe(self) -> dict[str, Any]:
        properties = torch.cuda.get_device_properties(self.device)
        return {
            "gpu": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory": properties.total_memory,
            "driver": _driver(),
            "cuda": torch.version.cuda,
        }


class Emulated:
    """The CUDA kernels executed on the CPU by tests/cuda_on_cpu, in the place of the CPU's own. Streams and
    graphs are plain calls."""

    toy = True
    missing = ("CUDA graphs", "streams", "waits and allocations", "memory")

    def __init__(self) -> None:
        sys.path.insert(0, str(harness.ROOT / "tests"))
        import decoct
        from cuda_on_cpu.build import load

        decoct.ops.backends["cpu"] = load()
        self.device = torch.device("cpu")

    def synchronize(self) -> None: ...

    def seconds(self, call: Call, count: int = 1) -> float:
        start = time.perf_counter()
        for _ in range(count):
            call()
        return (time.perf_counter() - start) / count

    def release(self) -> None:
        gc.collect()

    def extra_memory(self, call: Call) -> int | None:
        call()
        return None

    def capture(self, call: Call) -> Call:
        return call

    def on_stream(self, call: Call) -> Any:
        return call()

    def concurrently(self, calls: list[Call], count: int) -> list[list[Any]]:
        return [[call() for _ in range(count)] for call in calls]

    @contextmanager
    def no_waiting(self) -> Iterator[None]:
        yield

    def allocations(self) -> int:
        return 0

    def chained_exp(self) -> Call | None:
        return None

    def describe(self) -> dict[str, Any]:
        return {"gpu": None, "capability": None, "driver": None, "cuda": None, "emulated": True}


Device = Cuda | Emulated


def open_device(name: str) -> Device:
    return Emulated() if name == "emulated" else Cuda()


def _driver() -> str | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        ran = subprocess.run(query, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return ran.stdout.split("\n")[0].strip() or None


def main(name: str) -> None:
    found: dict[str, Any] = {"device": name, "torch": torch.__version__}
    if name == "cuda" and not torch.cuda.is_available():
        found["error"] = f"torch {torch.__version__} (CUDA {torch.version.cuda}) sees no CUDA device"
    else:
        found |= open_device(name).describe()
    try:
        import decoct

        found["backends"] = sorted(decoct.ops.backends)
    except ModuleNotFoundError:
        found["backends"] = []  # to be built
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
