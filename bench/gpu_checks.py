"""Calls of every CUDA kernel path for the sanitizers, and checks of graphs, streams and repeats: a worker of
gpu.py.

    python gpu_checks.py '{"device": "cuda", "kind": "graphs", "until": 1.8e9}' OUT
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import decoct
import harness
from decoct.kernels import Gaussian
from gpu_device import Device, open_device

REPEATS, TOY_REPEATS = 20, 2
Check = tuple[str, Callable[[], None]]


def _rows(device: Device, *shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(device.device, dtype)


# ---- every path once, at sizes that fill no tile


COLUMNS = (3, 7, 33, 130, 256, 300)
"""Of the paths for few columns, for up to 256 (all widths of it), and for more."""
ENDS = {"x_offsets": [0, 0, 1, 38, 83], "y_offsets": [0, 3, 4, 40, 61]}
FORMS: dict[str, dict[str, Any]] = {"dense": {}, "ragged": ENDS}


def _every_op(device: Device, columns: int, form: str, dtype: torch.dtype, precision: str) -> None:
    """Value, gradients, second derivatives and products with vectors; all of them finite."""
    torch.set_float32_matmul_precision(precision)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    x, y = (_rows(device, n, columns, seed=n, dtype=dtype).requires_grad_() for n in (83, 61))
    a, b = (torch.full((n,), 0.1, dtype=compute, device=device.device) for n in (83, 61))
    kernel, ends = Gaussian(scales=(0.5, 2.0)), FORMS[form]
    results = [decoct.mmd(x.detach(), y.detach(), kernel, "mean", **ends)]
    value = decoct.mmd(x, y, kernel, columns**0.5, a=a, b=b, **ends)
    gradients = torch.autograd.grad(value.sum(), (x, y), create_graph=True)
    probe = torch.cat(gradients).square().sum()
    results += [value, *gradients, *torch.autograd.grad(probe, (x, y))]
    for vectors in (1, 3):
        v = _rows(device, 61, vectors, seed=2, dtype=compute)
        results.append(decoct.kernel_matvec(x.detach(), y.detach(), v, "laplacian", columns**0.5, **ends))
    device.synchronize()
    assert all(bool(result.isfinite().all()) for result in results), "a result is not finite"


def sanitized(device: Device) -> Iterator[Check]:
    """Every setting, the commonest first."""
    settings = [(torch.float32, p) for p in ("highest", "high", "medium")]
    settings += [(torch.bfloat16, "highest"), (torch.float64, "highest")]
    settings += [(torch.bfloat16, p) for p in ("high", "medium")]
    for (dtype, precision), columns, form in itertools.product(settings, COLUMNS, FORMS):
        name = f"{str(dtype).removeprefix('torch.')}, {precision}, D={columns}, {form}"
        yield name, partial(_every_op, device, columns, form, dtype, precision)


# ---- graphs, streams, repeats


@dataclass
class Problem:
    """Inputs that stay where they are, and a call that gives the value and the gradient by y."""

    device: Device
    columns: int
    form: str
    bandwidth: Any
    seed: int = 0

    def __post_init__(self) -> None:
        n, m = (83, 61) if self.form == "ragged" else (40, 30) if self.device.toy else (300, 170)
        self.repeats = TOY_REPEATS if self.device.toy else REPEATS
        self.x, self.y = (torch.empty(k, self.columns, device=self.device.device) for k in (n, m))
        self.y.requires_grad_()
        self.fill(self.seed)

    def fill(self, seed: int) -> None:
        with torch.no_grad():
            self.x.copy_(_rows(self.device, *self.x.shape, seed=seed))
            self.y.copy_(_rows(self.device, *self.y.shape, seed=seed + 1) * 0.9 + 0.2)

    def call(self) -> tuple[Tensor, Tensor]:
        value = decoct.mmd(self.x, self.y, "gaussian", self.bandwidth, **FORMS[self.form])
        return value.detach(), torch.autograd.grad(value.sum(), self.y)[0]


def _same(ours: tuple[Tensor, ...], expected: tuple[Tensor, ...], what: str) -> None:
    assert all(torch.equal(p, q) for p, q in zip(ours, expected, strict=True)), f"{what}: other bits"


def _repeats(problem: Problem) -> None:
    first = problem.call()
    for _ in range(problem.repeats):
        _same(problem.call(), first, "a repeat")


def _graph(problem: Problem) -> None:
    replay = problem.device.capture(problem.call)
    before = tuple(part.clone() for part in replay())
    for seed in (10, 20, 30):
        problem.fill(seed)
        replayed = tuple(part.clone() for part in replay())
        _same(replayed, problem.call(), "a replay with other inputs")
        assert not torch.equal(replayed[1], before[1]), "a replay gave what the one before it gave"
        before = replayed


def _side_stream(problem: Problem) -> None:
    _same(problem.device.on_stream(problem.call), problem.call(), "a side stream")


def _two_streams(problem: Problem) -> None:
    other = Problem(problem.device, problem.columns, problem.form, problem.bandwidth, seed=5)
    expected = [problem.call(), other.call()]
    found = problem.device.concurrently([problem.call, other.call], problem.repeats)
    for results, wanted in zip(found, expected, strict=True):
        for result in results:
            _same(result, wanted, "two streams at once")


def _no_waiting(problem: Problem) -> None:
    """A warm call neither makes the host wait nor asks the driver for memory."""
    for _ in range(2):
        problem.call()
    problem.device.synchronize()
    before = problem.device.allocations()
    with problem.device.no_waiting():
        problem.call()
    asked = problem.device.allocations() - before
    assert not asked, f"asked the driver for memory {asked} times"


CHECKS = {
    "repeats": _repeats,
    "graph": _graph,
    "side stream": _side_stream,
    "two streams": _two_streams,
    "no waiting": _no_waiting,
}


def _on(check: Callable[[Problem], None], *description: Any) -> None:
    check(Problem(*description))


def graphs(device: Device) -> Iterator[Check]:
    for columns, form, rule, (name, check) in itertools.product(
        (64, 7, 300), FORMS, ("fixed", "mean"), CHECKS.items()
    ):
        bandwidth = columns**0.5 if rule == "fixed" else "mean"
        yield (
            f"{name}, D={columns}, {form}, {rule} bandwidth",
            partial(_on, check, device, columns, form, bandwidth),
        )


KINDS = {"sanitized": sanitized, "graphs": graphs}


def main(job: dict[str, Any], out: Path) -> int:
    """1 if a check failed. Checks for which no time is left are counted, not failed."""
    device = open_device(job["device"])
    report: dict[str, Any] = {"passed": 0, "failed": {}, "not_run": 0, "missing": list(device.missing)}
    for name, check in KINDS[job["kind"]](device):
        if time.time() > job["until"]:
            report["not_run"] += 1
            continue
        try:
            check()
            device.synchronize()
            report["passed"] += 1
        except Exception as error:
            report["failed"][name] = f"{type(error).__name__}: {str(error)[:300]}"
        harness.write_json(out, report)
    harness.write_json(out, report)
    return 1 if report["failed"] else 0


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1]), Path(sys.argv[2])))
