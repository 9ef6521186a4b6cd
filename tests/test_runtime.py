"""Threads, processes, memory and instruction sets: results that must not depend on any of them."""

from __future__ import annotations

import io
import multiprocessing
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import decoct
from comparison import evaluate
from decoct.ops import _backend
from samples import CASES, OPS, Op, Sample, rows, weights

EVERY_OP = pytest.mark.parametrize("op", OPS.values(), ids=OPS.keys())


def large_sample(op: Op) -> Sample:
    """Ragged and large enough for several threads and tiles; of an op without clouds what it says is so."""
    if op.large is not None:
        return op.large()
    ends = {"x_offsets": [0, 500, 501, 501, 900], "y_offsets": [0, 40, 300, 310, 333]}
    tensors = {"x": rows(900, 70), "y": rows(333, 70, seed=1)}
    extra = {"v": rows(333, 2)} if op.has_rows else {"a": weights(900), "b": weights(333)}
    if op.name == "apply_plan":
        extra |= {"f": rows(900, seed=1), "g": rows(333, seed=2)}
    if op.length == "blur":
        return Sample("large", {**tensors, **extra}, {**ends, **op.options(9.0, "p1")})
    return Sample("large", {**tensors, **extra}, {**ends, "kernel": "laplacian", "bandwidth": "mean"})


def results(op: Op, sample: Sample, second: bool = True) -> dict[str, torch.Tensor]:
    return evaluate(op.function, sample.cast(torch.float32, requires_grad=True), op.names(sample), second)


def assert_same_bits(ours: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for key, tensor in expected.items():
        assert torch.equal(ours[key], tensor), key


@pytest.mark.parametrize("op", [op for op in OPS.values() if op.same_bits != ()], ids=lambda op: op.name)
def test_thread_counts(op: Op) -> None:
    """Bitwise the same with 1, 2 and 7 threads, and from run to run; torch's own operators may differ."""
    sample = large_sample(op)
    torch.set_num_threads(1)
    expected = results(op, sample)
    expected = {key: expected[key] for key in op.same_bits or expected}
    for threads in (2, 7, 7, 1):
        torch.set_num_threads(threads)
        assert_same_bits(results(op, sample), expected)


@EVERY_OP
def test_twenty_runs(op: Op) -> None:
    sample = replace(large_sample(op), options=op.options(9.0)) if op.has_clouds else large_sample(op)
    torch.set_num_threads(2)
    expected = results(op, sample, second=False)
    for _ in range(20):
        assert_same_bits(results(op, sample, second=False), expected)


def test_one_large_segment_over_threads() -> None:
    """The dense form too, with sums that one thread alone would take in another order."""
    x, y = rows(3000, 33), rows(777, 33, seed=1)
    found = []
    for threads in (1, 2, 7):
        torch.set_num_threads(threads)
        part = y.float().requires_grad_()
        value = decoct.mmd(x.float(), part, "gaussian", "mean", estimator="unbiased")
        found.append((value.detach(), torch.autograd.grad(value, part)[0]))
    for value, gradient in found[1:]:
        assert torch.equal(value, found[0][0])
        assert torch.equal(gradient, found[0][1])


@EVERY_OP
def test_fresh_memory_is_overwritten(op: Op) -> None:
    """Deterministic mode fills torch.empty with NaN: an entry that no kernel writes shows."""
    expected = {name: results(op, op.sample(name)) for name in op.compiled}
    torch.use_deterministic_algorithms(True)
    for name, plain in expected.items():
        assert_same_bits(results(op, op.sample(name)), plain)


def test_python_threads() -> None:
    """Concurrent calls share nothing."""
    samples = [Sample("", {"x": rows(200, 30, seed=i), "y": rows(50, 30, seed=i + 9)}, {}) for i in range(8)]
    expected = [results(OPS["mmd"], sample) for sample in samples]
    failures: list[BaseException] = []

    def work(i: int) -> None:
        try:
            for _ in range(5):
                assert_same_bits(results(OPS["mmd"], samples[i]), expected[i])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]


def _in_child(connection: Any, x: torch.Tensor, y: torch.Tensor) -> None:
    y.requires_grad_()
    value = decoct.mmd(x, y, "gaussian", 8.0)
    connection.send((value.item(), torch.autograd.grad(value, y)[0].double().sum().item()))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_forked_child() -> None:
    """A child forked after a parallel region computes instead of waiting for threads it does not have."""
    torch.set_num_threads(2)
    x, y = rows(1500, 64).float(), rows(300, 64, seed=1).float()
    receiver, sender = multiprocessing.Pipe(duplex=False)
    _in_child(sender, x, y.clone())
    expected = receiver.recv()
    context = multiprocessing.get_context("fork")
    child = context.Process(target=_in_child, args=(sender, x, y.clone()))
    child.start()
    child.join(60)
    alive = child.is_alive()
    if alive:
        child.kill()
        child.join()
    assert not alive, "the child hangs"
    assert child.exitcode == 0
    assert receiver.poll(1)
    assert receiver.recv() == expected


def test_memory_stays_linear() -> None:
    """30000 x 30000 pairs in float32 would be 3.4 GiB; the call adds less than 64 MiB."""
    script = """
import resource, sys, torch, decoct
torch.manual_seed(0)
x, y = torch.randn(30000, 4), torch.randn(30000, 4, requires_grad=True)
decoct.mmd(x[:500], y[:500], "gaussian", 1.0, xx=False).backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
value = decoct.mmd(x, y, "gaussian", 1.0, xx=False)
value.backward()
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert value.isfinite() and y.grad.abs().sum() > 0
print((after - before) // 1024)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 64


def test_more_pairs_than_an_int32_holds() -> None:
    """Two points against their known value, 46500 x 46500 pairs > 2^31."""
    n = 46500
    x, y = torch.zeros(n, 1), torch.ones(n, 1)
    value = decoct.kernel_mean(x, y, "gaussian", 1.0)
    assert n * n > 2**31
    torch.testing.assert_close(value, torch.tensor(0.6065306597), rtol=1e-6, atol=0)
    product = decoct.kernel_matvec(x[:2], y, torch.ones(n), "gaussian", 1.0)
    torch.testing.assert_close(product, torch.full((2,), n * 0.6065306597), rtol=1e-5, atol=0)


ISA_SCRIPT = """
import io, sys, torch, decoct
sys.path.insert(0, sys.argv[1])
from comparison import evaluate
from decoct.ops import _backend
from samples import CASES, OPS
found = {"isa": decoct.ops.backends["cpu"].isa()}
for op, name in CASES:
    sample = OPS[op].sample(name)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        arguments = sample.cast(dtype, requires_grad=True)
        second = dtype != torch.bfloat16
        found[op, name, str(dtype)] = evaluate(OPS[op].function, arguments, OPS[op].names(sample), second)
torch.save({repr(k): v for k, v in found.items()}, sys.stdout.buffer)
"""


def _run_isa(isa: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", ISA_SCRIPT, str(Path(__file__).parent)],
        capture_output=True,
        timeout=300,
        check=False,
        env={**os.environ, "DECOCT_ISA": isa},
    )
    assert done.returncode == 0, done.stderr.decode()
    return torch.load(io.BytesIO(done.stdout), weights_only=True)  # type: ignore[no-any-return]


def _supported(isa: str) -> bool:
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    needed = {
        "generic": [],
        "avx2": ["avx2", "fma"],
        "avx512": ["avx512f", "avx512bw", "avx512dq", "avx512vl"],
    }
    return all(f" {flag}" in flags for flag in needed[isa])


@pytest.mark.parametrize("isa", ["generic", "avx2", "avx512"])
def test_forced_instruction_set(isa: str) -> None:
    """Each instruction set runs the whole table, as right as the one that is chosen by default."""
    if not _supported(isa):
        # Its instructions would end the process; the other instruction sets are still tested.
        pytest.skip(f"this processor has no {isa}")
    found = _run_isa(isa)
    assert found["'isa'"] == isa
    for op, name in CASES:
        if name == "far":
            continue  # the rounding of its large products moves a result further
        sample = OPS[op].sample(name)
        exact = evaluate(
            OPS[op].reference,
            sample.cast(torch.float64, requires_grad=True),
            OPS[op].names(sample),
            second=True,
        )
        for dtype, rounding in ((torch.float64, 1e-12), (torch.float32, 3e-5), (torch.bfloat16, 8e-3)):
            tolerance = max(rounding, OPS[op].solved_to(dtype))
            for key, ours in found[repr((op, name, str(dtype)))].items():
                scale = float(exact[key].abs().max()) + (1e-2 if key == "value" else 1e-6)
                error = float((ours.double() - exact[key]).abs().max()) if ours.numel() else 0.0
                assert error <= tolerance * scale, (
                    f"{op}[{name}] {key} in {dtype}: {error:.2e} of {scale:.2e}"
                )


def test_an_unknown_instruction_set_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import decoct; decoct.ops.backends['cpu'].isa()"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "DECOCT_ISA": "avx9000"},
    )
    assert done.returncode != 0
    assert "avx9000" in done.stderr


def test_many_alike_segments_need_scratch_for_each_thread_only() -> None:
    """Not for each segment: a thousand classes must not hold a copy of all rows."""
    n, m, width = 1300, 50, 512

    def scratch(segments: int) -> int:
        ends = [(torch.arange(segments + 1) * rows).numpy().tobytes() for rows in (n, m)]
        engine = decoct.ops.backends["cpu"]
        sizes = (segments * n, segments * m, width)
        masks = (_backend.Y, _backend.XX | _backend.XY | _backend.YY)
        where = torch.device("cpu")
        *_, size = _backend._plan(engine, "sums", sizes, "float32", tuple(ends), masks, 1, 0, 2, where)
        return size

    rows_of_one = 4 * (n + m) * width
    assert scratch(1000) < 2 * 4 * rows_of_one + 1_000_000
