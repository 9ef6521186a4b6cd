"""What is particular to the CUDA backend, executed on the CPU: its paths and tiles, precisions, schedules,
and the order of threads. The contract of the ops themselves is in test_contract.py."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import decoct
import samples
from comparison import compare, evaluate
from cuda_on_cpu import build
from decoct.ops import _backend
from samples import KERNELS, OPS, Sample, rows, weights

EVERY_KERNEL = pytest.mark.parametrize("kernel", KERNELS)
# Columns of the small, fused (every width, full and not) and weights paths.
COLUMNS = (3, 8, 12, 16, 40, 64, 100, 128, 200, 256, 300)


@pytest.fixture
def _emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(decoct.ops.backends, "cpu", build.load())


emulated = pytest.mark.usefixtures("_emulated")


@pytest.fixture
def precision() -> Iterator[Any]:
    """Sets torch's precision of float32 products for one test."""
    yield torch.set_float32_matmul_precision
    torch.set_float32_matmul_precision("highest")


def sample_of(n: int, m: int, d: int, **options: Any) -> Sample:
    """Weighted rows, some of which both sides share."""
    x, y = rows(n, d), rows(m, d, seed=1, shift=0.2)
    shared = min(n, m // 4)
    y[:shared] = x[:shared]
    tensors = {"x": x, "y": y, "a": weights(n), "b": weights(m, seed=1)}
    return Sample(f"{n}x{m}x{d}", tensors, {"bandwidth": d**0.5, **options})


@emulated
@EVERY_KERNEL
@pytest.mark.parametrize("d", COLUMNS)
def test_every_path_with_every_kernel(kernel: str, d: int) -> None:
    sample = sample_of(37, 21, d, kernel=KERNELS[kernel])
    compare(OPS["mmd"], sample, torch.float32, second=d in (12, 40, 300))
    compare(OPS["mmd"], sample, torch.float64, second=d in (8, 12, 40))


@emulated
@pytest.mark.parametrize(("n", "m"), [(1, 1), (64, 64), (65, 63), (15, 130), (17, 16), (200, 3)])
@pytest.mark.parametrize("d", [5, 64, 260])
def test_tiles_that_are_not_full(n: int, m: int, d: int) -> None:
    compare(OPS["mmd"], sample_of(n, m, d, kernel="laplacian"), torch.float32, second=d == 260)


@emulated
def test_few_rows_in_each_segment_take_narrow_tiles() -> None:
    """Two rows a class against many: the shape that class-wise condensation at one image per class has."""
    counts = {"x": [70, 5, 0, 129], "y": [2, 1, 3, 2]}
    ends = {f"{side}_offsets": [0, *np.cumsum(each).tolist()] for side, each in counts.items()}
    x, y = rows(sum(counts["x"]), 300), rows(sum(counts["y"]), 300, seed=1)
    for kernel in ("gaussian", "energy"):
        sample = Sample("narrow", {"x": x, "y": y}, {**ends, "kernel": kernel, "bandwidth": 17.0})
        compare(OPS["mmd"], sample, torch.float32)
    terms = _backend.XY | _backend.YY
    layout = schedule("sums", counts["x"], counts["y"], 300, need=_backend.Y, terms=terms)
    assert {int(r["shape"]) for r in layout.rounds} == {1}


@emulated
@pytest.mark.parametrize("columns", [1, 2, 15, 70])
@pytest.mark.parametrize("d", [3, 64, 300])
def test_products_with_vectors(columns: int, d: int) -> None:
    tensors = {"x": rows(37, d), "y": rows(90, d, seed=1), "v": rows(90, columns, seed=2)}
    sample = Sample("", tensors, {"kernel": "inverse_multiquadric", "bandwidth": d**0.5})
    for dtype in (torch.float32, torch.float64):
        compare(OPS["kernel_matvec"], sample, dtype)


@emulated
def test_a_vector_that_is_a_column_of_a_matrix() -> None:
    x, y, wide = rows(9, 20), rows(11, 20, seed=1), rows(11, 3, seed=2)
    ours = decoct.kernel_matvec(x, y, wide[:, 1:2], "laplacian", 2.0)
    assert torch.equal(ours, decoct.kernel_matvec(x, y, wide[:, 1:2].clone(), "laplacian", 2.0))


# ---- precision


# Half a unit in the last place of TF32 and bfloat16 points, times what their squares and sums make of it.
ALLOWED = {"high": 2.0**-9, "medium": 2.0**-6}


@emulated
@pytest.mark.parametrize("setting", ALLOWED)
@pytest.mark.parametrize("kernel", ["gaussian-5", "energy", "polynomial"])
@pytest.mark.parametrize("d", [16, 33, 64, 130, 256, 300])
def test_lower_precisions(precision: Any, setting: str, kernel: str, d: int) -> None:
    """As exact as points and weights rounded so far allow, and not the highest under another name."""
    sample = sample_of(70, 33, d, kernel=KERNELS[kernel])
    exact = evaluate(
        OPS["mmd"].reference, sample.cast(torch.float64, requires_grad=True), [*sample.tensors], True
    )
    results = {}
    for name in ("highest", setting):
        precision(name)
        results[name] = evaluate(
            decoct.mmd, sample.cast(torch.float32, requires_grad=True), [*sample.tensors], True
        )
    changed = False
    for key, expected in exact.items():
        scale = float(expected.abs().max())
        if key == "value":  # a difference of terms of the size of a kernel value
            scale = max(
                scale, float(decoct.kernel_mean(sample.tensors["x"], sample.tensors["x"], **sample.options))
            )
        error = float((results[setting][key].double() - expected).abs().max())
        assert error <= ALLOWED[setting] * 4 * abs(scale), f"{key}: {error / abs(scale):.2e}"
        changed |= not torch.equal(results[setting][key], results["highest"][key])
    assert changed


@emulated
@pytest.mark.parametrize("setting", ["highest", "high", "medium"])
@pytest.mark.parametrize("d", [20, 64, 300])
def test_duplicates_in_lower_precisions(precision: Any, setting: str, d: int) -> None:
    """Rows that both sides share stay at distance zero whatever the points are rounded to."""
    precision(setting)
    x = rows(24, d).float()
    y = x[3:12].clone().requires_grad_()
    for kernel in samples.RADIAL:
        near = decoct.kernel_matvec(x, y, torch.eye(9), KERNELS[kernel], d**0.5)
        same = torch.stack([near[3 + i, i] for i in range(9)])
        at_zero = decoct.kernel_matvec(x[:1], x[:1], torch.ones(1), KERNELS[kernel], d**0.5)
        rounding = 2.0**-8 if setting == "medium" else 2.0**-11 if setting == "high" else 1e-6
        torch.testing.assert_close(same, at_zero.expand(9), rtol=rounding, atol=1e-7)
    value = decoct.mmd(y.detach(), y, "energy")
    assert torch.autograd.grad(value, y)[0].isfinite().all()


def test_both_of_torchs_settings_are_read(precision: Any) -> None:
    for name in ("highest", "high", "medium"):
        precision(name)
        assert _backend.precision() == name
    newer = getattr(torch.backends.cuda.matmul, "fp32_precision", None)
    if newer is None:
        # Nothing is left to read: the older setting was checked above.
        pytest.skip("this torch has the older setting only")
    precision("highest")
    try:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        assert _backend.precision() == "high"
        torch.backends.cuda.matmul.fp32_precision = "ieee"
        assert _backend.precision() == "highest"
    finally:
        precision("highest")


# ---- schedules


class Layout:
    """The parts of a CUDA schedule (csrc/cuda/schedule.h)."""

    HEADER = np.dtype(
        [
            (name, "i4")
            for name in ("version", "words", "need", "terms", "tasks", "rounds", "chunks", "kept_mebibytes")
        ]
        + [
            (name, "i4")
            for name in ("path", "finish", "values", "slab_rows", "scratch_tasks", "scratch_shape")
        ]
        + [
            (name, "i4")
            for name in ("transports", "kept", "transport_tasks", "kept_tasks", "steps", "kept_rows")
        ]
        + [(name, "i8") for name in ("costs", "sums")]
    )
    ROUND = np.dtype([(name, "i4") for name in ("stage", "shape", "first", "count", "scores", "unused")])
    SEGMENT = np.dtype(
        [("x_begin", "i8"), ("y_begin", "i8")]
        + [(name, "i4") for name in ("n", "m", "first_chunk", "chunks", "first_value", "values")]
        + [(name, "i4") for name in ("x_slab", "y_slab", "x_slabs", "y_slabs")]
        + [(name, "i4") for name in ("x_cross_slabs", "y_cross_slabs")]
    )
    TASK = np.dtype([(name, "i4") for name in ("segment", "flags", "i0", "i1", "j0", "j1", "slab", "value")])
    CHUNK = np.dtype([(name, "i4") for name in ("segment", "on_x", "begin", "end")])

    def __init__(self, words: Any, segments: int) -> None:
        data, at = np.asarray(words).reshape(-1).tobytes(), 0

        def take(kind: Any, count: int) -> Any:
            nonlocal at
            part = np.frombuffer(data, kind, count, at)
            at += kind.itemsize * count
            return part

        self.header = take(self.HEADER, 1)[0]
        self.rounds = take(self.ROUND, self.header["rounds"])
        self.segments = take(self.SEGMENT, segments)
        self.tasks = take(self.TASK, self.header["tasks"])
        self.chunks = take(self.CHUNK, self.header["chunks"])
        self.finish = take(self.CHUNK, self.header["finish"])
        assert at == len(data) == 4 * self.header["words"]

    def pair_tasks(self) -> Any:
        """The tasks over pairs, without the products that follow them."""
        kept = [self.tasks[r["first"] : r["first"] + r["count"]] for r in self.rounds if r["stage"] != 3]
        return np.concatenate(kept) if kept else self.tasks[:0]


ALL_TERMS = _backend.XX | _backend.XY | _backend.YY


def schedule(
    op: str, n: Any, m: Any, d: int, *, need: int = 0, terms: int = ALL_TERMS, dtype: str = "float32"
) -> Layout:
    engine = build.load()
    offsets = [torch.tensor([0, *np.cumsum(np.asarray(each, dtype=np.int64)).tolist()]) for each in (n, m)]
    words, _ = engine.plan(
        op=op,
        x=engine.Matrix(0, int(offsets[0][-1]), d, d, dtype),
        y=engine.Matrix(0, int(offsets[1][-1]), d, d, dtype),
        x_offsets=_backend.as_matrix(engine, offsets[0]),
        y_offsets=_backend.as_matrix(engine, offsets[1]),
        need=need,
        terms=terms,
        columns=1,
        threads=1,
    )
    return Layout(words, len(n))


def covered(layout: Layout, c: int, flags: int, n: int, m: int) -> Any:
    """How often each pair of one kind of block is met."""
    counts = np.zeros((n, m), dtype=int)
    for task in layout.pair_tasks():
        if task["segment"] == c and task["flags"] & 3 == flags:
            counts[task["i0"] : task["i1"], task["j0"] : task["j1"]] += 1
    return counts


@given(
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, 90)), min_size=1, max_size=4),
    st.sampled_from([2, 16, 90, 256, 400]),
    st.integers(0, 15),
    st.sampled_from(["float32", "float64"]),
)
def test_every_pair_is_met_once(sizes: Any, d: int, need: int, dtype: str) -> None:
    """Also: each partial value has a place of its own, and so have the slabs of all rows."""
    n, m = ([each[k] for each in sizes] for k in (0, 1))
    layout = schedule("sums", n, m, d, need=need, dtype=dtype)
    values = [t["value"] for t in layout.pair_tasks() if t["flags"] & 16]
    assert sorted(values) == list(range(layout.header["values"]))
    for c, (rows_x, rows_y) in enumerate(sizes):
        on_x, on_y = bool(need & 5), bool(need & 10)
        if rows_x == 0 or rows_y == 0:
            assert not (layout.tasks["segment"] == c).any()
            continue
        for flags, wanted, count in ((3, on_x, rows_x), (0, on_y, rows_y)):
            met = covered(layout, c, flags, count, count)
            if wanted:
                assert (met == 1).all()
            else:  # the upper half, with whole squares on the diagonal
                assert (met[np.triu_indices(count)] == 1).all()
                assert ((met + met.T)[~np.eye(count, dtype=bool)] % 3 != 0).all()
        cross = covered(layout, c, 1, rows_x, rows_y) + covered(layout, c, 2, rows_y, rows_x).T
        assert (cross == max(1, on_x + on_y)).all()
    slabs = np.zeros(layout.header["slab_rows"], dtype=int)
    for s in layout.segments:
        for side, count in (("x", s["n"]), ("y", s["m"])):
            slabs[s[f"{side}_slab"] : s[f"{side}_slab"] + s[f"{side}_slabs"] * count] += 1
    assert (slabs == 1).all()


def test_more_pairs_and_rows_than_32_bits_count() -> None:
    size = 1 << 17
    layout = schedule("sums", [size], [size], 16, need=_backend.Y, terms=_backend.XY)
    tasks = layout.pair_tasks().astype([(name, "i8") for name in Layout.TASK.names])
    assert ((tasks["i1"] - tasks["i0"]) * (tasks["j1"] - tasks["j0"])).sum() == size * size
    assert layout.header["slab_rows"] < 2 * size + 1024 * 64

    many = [1 << 26] * 40
    layout = schedule("sums", many, [1] * 40, 16, terms=_backend.XY)
    assert layout.segments["x_begin"].tolist() == [k << 26 for k in range(40)]
    tasks = layout.pair_tasks().astype([(name, "i8") for name in Layout.TASK.names])
    assert ((tasks["i1"] - tasks["i0"]) * (tasks["j1"] - tasks["j0"])).sum() == 40 << 26


def test_a_schedule_for_another_call_is_refused() -> None:
    engine = build.load()
    x, y = rows(9, 4), rows(7, 4)
    ends = [torch.tensor([0, 9]), torch.tensor([0, 7])]
    execution = _backend.Execution(engine, "rows", x, y, *ends)
    bandwidth = torch.ones(1, dtype=torch.float64)
    other = [torch.tensor([0, 5, 9]), torch.tensor([0, 3, 7])]
    with pytest.raises(ValueError, match="schedule: made for another call"):
        execution.run(
            "mean_bandwidth",
            x=_backend.as_matrix(engine, x),
            y=_backend.as_matrix(engine, y),
            x_offsets=_backend.as_matrix(engine, other[0]),
            y_offsets=_backend.as_matrix(engine, other[1]),
            bandwidth=_backend.as_matrix(engine, bandwidth.repeat(2)),
        )


@emulated
def test_the_same_bits_in_every_order_of_threads_and_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for order in ("forward", "reverse", "1", "2"):
        monkeypatch.setenv("DECOCT_CUDA_ON_CPU_ORDER", order)
        found = []
        for d in (5, 40, 300):
            sample = sample_of(150, 33, d, kernel="gaussian")
            found += evaluate(decoct.mmd, sample.cast(torch.float32, True), [*sample.tensors], True).values()
        results.append(found)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


# ---- the module for real devices

with_kernels = pytest.mark.skipif("cuda" not in decoct.ops.backends, reason="this build has no CUDA kernels")


@with_kernels
def test_importing_does_not_touch_the_driver() -> None:
    code = (
        "import decoct, os; from decoct import _cuda; assert _cuda.isa() == 'cuda'; "
        "assert 'libcuda.so' not in open('/proc/self/maps').read()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ))


@with_kernels
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_the_first_call_without_a_driver_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(decoct.ops.backends, "cpu", decoct.ops.backends["cuda"])
    with pytest.raises(
        RuntimeError, match=r"^decoct: no CUDA driver or device on this machine .* pass x.cpu\(\)$"
    ):
        decoct.mmd(rows(5, 3), rows(4, 3))


@with_kernels
def test_both_modules_lay_work_out_alike() -> None:
    real, executed = decoct.ops.backends["cuda"], build.load()
    ends = [torch.tensor([0, 70, 130]), torch.tensor([0, 9, 40])]
    layouts = [
        _backend._plan(
            engine,
            "sums",
            (130, 40, 300),
            "float32",
            (ends[0].numpy().tobytes(), ends[1].numpy().tobytes()),
            (_backend.Y, ALL_TERMS),
            1,
            0,
            1,
            torch.device("cpu"),
        )
        for engine in (real, executed)
    ]
    assert torch.equal(layouts[0][0], layouts[1][0])
    assert layouts[0][2] == layouts[1][2]
