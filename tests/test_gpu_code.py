"""The static gates of the CUDA kernels (tests/gpu_code): what they read, and that each of them can fail."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent / "gpu_code"))
gates: Any = importlib.import_module("gates")
sass: Any = importlib.import_module("sass")
throughput: Any = importlib.import_module("throughput")
toolchain: Any = importlib.import_module("toolchain")

MANGLED = "_ZN6decoct4cuda12small_kernelIfLb1ELi4EEEvNS0_7ProblemIT_EEi"
DEMANGLED = "void decoct::cuda::small_kernel<float, true, 4>(decoct::cuda::Problem<float>, int)"

# As cuobjdump 13.2 prints them; the code is cut down to a copy and a loop.
RESOURCES = f"""
Fatbin elf code:
================
arch = sm_90
Resource usage:
 Common:
  GLOBAL:0
 Function {MANGLED}:
  REG:76 STACK:0 SHARED:1024 LOCAL:0 CONSTANT[2]:88 CONSTANT[0]:1060 TEXTURE:0 SURFACE:0 SAMPLER:0
"""
LINES = [
    "LDC R1, c[0x0][0x28] ",
    "LDGSTS.E.BYPASS.128 [R59+0x1000], [R22.64], P0 ",
    "@P0 BRA 0x60 ",
    "LDS.128 R8, [R4] ",
    *["FFMA R1, R2, R3, R1 "] * 16,
    "MUFU.EX2 R5, -R6 ",
    "@!P0 BRA 0x30 ",
    "@P1 LDL R7, [R1] ",
    "EXIT ",
    "NOP",
    "NOP",
]


def code_of(lines: list[str]) -> str:
    line = "        /*{:04x}*/                   {};   /* 0x00000a00ff017624 */"
    text = "\n".join(line.format(16 * k, instruction) for k, instruction in enumerate(lines))
    return f'\tcode for sm_90\n\t\tFunction : {MANGLED}\n\t.headerflags\t@"EF_CUDA_SM90"\n{text}\n'


def parse(resources: str = RESOURCES, lines: list[str] = LINES) -> Any:
    return sass.parse_module(resources, code_of(lines), lambda names: [DEMANGLED] * len(names))[0]


def good_rows() -> list[Any]:
    """Rows on which every gate passes."""
    rows = []
    for capability in gates.CAPABILITIES:
        for name in gates.expected_kernels()[: gates.KERNELS_AT_MOST]:
            counts = dict.fromkeys(gates.COUNTED, 0) | gates.least_counts(name)
            counts["HMMA"] = counts["HMMA TF32"] + counts["HMMA BF16"]
            rows.append(
                gates.Row(name, capability, 20, 0, 0, 0, 1024, 128, 4, "r", 4096, counts, predictions=[])
            )
    return rows


@pytest.fixture
def few_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no more kernels were expected than are allowed."""
    names = gates.expected_kernels()[: gates.KERNELS_AT_MOST]
    monkeypatch.setattr(gates, "expected_kernels", lambda: names)


def test_parser_reads_resources_and_code() -> None:
    kernel = parse()
    assert kernel.name == "small<float, gaussian, 4>"
    assert (kernel.registers, kernel.stack, kernel.local, kernel.shared) == (76, 0, 0, 1024)
    assert len(kernel.instructions) == len(LINES) - 2  # without what fills the last line
    assert kernel.count(throughput.COPY) == 1
    assert kernel.count(throughput.EXP) == 1
    assert kernel.count(r"LDL.*") == 1
    assert kernel.count(r"LDS") == 0


@pytest.mark.parametrize(
    ("demangled", "short"),
    [
        (
            "void decoct::cuda::score_kernel<decoct::cuda::TensorFloat<decoct::cuda::Triple>, "
            "(decoct::cuda::Shape)1, false>(decoct::cuda::Problem<float>, int, bool)",
            "score<Tf32x3, narrow, others>",
        ),
        ("void decoct::cuda::product_kernel<decoct::cuda::Scalar<double>, (decoct::cuda::Shape)2>(int)",
         "product<Float64, medium>"),
        ("void decoct::cuda::fused_kernel<decoct::cuda::Bfloat16, 64, true>(int)",
         "fused<Bfloat16, 64, gaussian>"),
        ("void decoct::cuda::pack_kernel<float>(decoct::cuda::Problem<float>)", "pack<float>"),
    ],
)  # fmt: skip
def test_short_names(demangled: str, short: str) -> None:
    assert sass.short_name(demangled) == short
    assert short in gates.expected_kernels()


def test_unknown_output_is_refused() -> None:
    with pytest.raises(sass.Unreadable, match="lacks 'STACK'"):
        parse(RESOURCES.replace("STACK", "HEAP"))
    with pytest.raises(sass.Unreadable, match="other functions"):
        parse("")
    with pytest.raises(sass.Unreadable, match="not a kernel of decoct"):
        sass.short_name("void cub::kernel<int>(int)")


def test_blocks_and_the_way_through_them() -> None:
    lines = [
        "@P0 BRA 0x40 ",  # 0 -> 1 or 3
        "FADD R1, R1, R1 ",  # 1
        "@P1 BRA 0x50 ",  # 1 -> 2 or 4
        "BRA 0x50 ",  # 2 -> 4
        "MUFU.EX2 R1, R1 ",  # 3 -> 4
        "@P2 CALL.REL.NOINC 0x70 ",  # 4 -> 5 or 6
        "BRA 0x0 ",  # 5 -> 0
        "EXIT ",  # 6
    ]
    kernel = parse(lines=lines)
    assert [b.following for b in kernel.blocks] == [[3, 1], [4, 2], [4], [4], [6, 5], [0], []]
    back = [lambda b: b.number == 0]
    assert [b.number for b in kernel.shortest(0, back)] == [3, 4, 5, 0]
    slow = [throughput.has("FADD.*"), *back]
    assert [b.number for b in kernel.shortest(0, slow)] == [1, 4, 5, 0]
    assert kernel.shortest(6, back) is None


def test_model_of_the_small_kernel() -> None:
    (found,) = throughput.predictions(parse(), 80)
    # The loop: 16 multiply-adds of two cycles, a load, an exponential, a jump.
    assert found.instructions == 19
    assert found.busiest == "FP32"
    assert found.share == pytest.approx(18 / 32)  # three multiply-adds for each of three dimensions
    with pytest.raises(sass.Unreadable, match="no main loop found"):
        throughput.predictions(parse(lines=LINES[:3]), 80)


def renamed(kernel: Any, name: str) -> Any:
    return replace(kernel, name=name)


def loop_of(blocks: list[list[str]], address: int = 0) -> list[str]:
    """Blocks that follow one another, and back to the first."""
    lines: list[str] = []
    for block in blocks:
        lines += [*block, f"@P0 BRA {hex(address + 16 * (len(lines) + len(block) + 1))} "]
    return [*lines, f"@P1 BRA {hex(address)} "]


def test_model_of_lists() -> None:
    number = ["LDG.E R2, [R4.64] ", "LDG.E R3, [R6.64] ", *["FFMA R1, R2, R3, R1 "] * 5]
    adding = loop_of([number] * 4)
    writing = loop_of([[*number, "STG.E [R8.64], R1 "]] * 4, 16 * len(adding))
    name = "gradient_first<float, float, first>"
    for capability, memory in ((80, 3.35), (90, 3.47)):
        (found,) = throughput.predictions(
            renamed(parse(lines=[*adding, *writing, "EXIT "]), name), capability
        )
        assert found.instructions == (len(adding) + len(writing)) / 4
        assert found.busiest == found.bound_by == "DRAM"
        assert found.cycles["DRAM"] == pytest.approx(32 * 12 / memory, rel=2e-3)
        assert found.share == 1
    for lines in (adding, writing):
        with pytest.raises(sass.Unreadable, match="no main loop found"):
            throughput.predictions(renamed(parse(lines=[*lines, "EXIT "]), name), 80)


def test_model_of_outer_products() -> None:
    loads, weights = ["LDG.E R1, [R2.64] "] * 16, ["FMUL R1, R1, R3 "] * 16
    lookup, stores = ["I2F.RP R1, R2 ", "LDG.E R3, [R2.64] "], ["STS [R1], R2 "] * 16
    products = ["HMMA.1688.F32.TF32 R4, R8, R10, R4 "] * 32
    lines = loop_of([[*loads, *weights], loads, products, lookup, *[stores] * 4])
    (found,) = throughput.predictions(renamed(parse(lines=[*lines, "EXIT "]), "outer<Tf32>"), 80)
    # A warp has 1024 entries of the result: of 32 of them the 32nd part of its turn.
    assert found.instructions == len(lines) / 32
    assert found.cycles["HMMA"] == 32 * 8 / 32
    assert found.cycles["memory"] == (33 + 64) * 4 / 32
    assert found.share == found.cycles["HMMA"] / found.cycles["memory"]
    without = loop_of([loads, products, lookup, *[stores] * 4])
    with pytest.raises(sass.Unreadable, match="no main loop found"):
        throughput.predictions(renamed(parse(lines=[*without, "EXIT "]), "outer<Tf32>"), 80)


def test_model_of_the_norm() -> None:
    lines = quads = loop_of([["LDG.E.128 R4, [R2.64] ", "FADD R1, R4, R5 "], ["STS [R1], R4 "] * 4])
    adding = [*["LDS R1, [R2] "] * 4, *["FADD R3, R3, R1 "] * 4, f"@P1 BRA {hex(16 * len(lines))} "]
    lines = [*lines, *adding]
    column = ["LDG.E R1, [R2.64] ", "LDG.E R3, [R2.64] ", "LDS R4, [R5] ", "FFMA R6, R4, R1, R3 "]
    writing = loop_of([column, column, ["STG.E [R2.64], R6 "]], 16 * len(lines))
    value, name = [*lines, *writing, "EXIT "], "norm_value<float, kept>"
    (found,) = throughput.predictions(renamed(parse(lines=value), name), 90)
    # A window has two rows: its columns are passed twice.
    assert found.instructions == (len(quads) + len(adding) + 2 * len(writing)) / 4
    assert found.cycles["DRAM"] == pytest.approx(32 * 5 / 3.47, rel=2e-3)
    assert found.share == 1
    number = ["LDG.E R1, [R2.64] ", "LDS R4, [R5] ", "LDS R4, [R5] ", "STG.E [R2.64], R6 "]
    writing = loop_of([number] * 4, 16 * len(lines))
    gradient, name = [*lines, *writing, "EXIT "], "norm_grad<float, kept>"
    (found,) = throughput.predictions(renamed(parse(lines=gradient), name), 90)
    assert found.instructions == (len(quads) + 2 * len(adding) + len(writing)) / 4
    with pytest.raises(sass.Unreadable, match="no main loop found"):
        throughput.predictions(renamed(parse(lines=value), name), 90)


@pytest.mark.usefixtures("few_kernels")
def test_gates_pass_good_rows() -> None:
    assert gates.check(good_rows()) == []


@pytest.mark.usefixtures("few_kernels")
@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("fused<Tf32, 64, gaussian>", {"stack": 32}, "32 stack bytes"),
        ("pack<float>", {"local": 8}, "8 local bytes"),
        ("hvp<Tf32, medium>", {"counts": {"STL": 4, "LDL": 5}}, "9 local loads and stores"),
        ("product<Tf32, narrow>", {"registers": 129}, "129 registers, at most 128"),
        ("product<Tf32, square>", {"counts": {"HMMA TF32": 0}}, "0 HMMA TF32, at least 8"),
        ("fused<Tf32x3, 64, gaussian>", {"counts": {"HMMA TF32": 23}}, "23 HMMA TF32, at least 24"),
        ("fused<Bfloat16, 64, others>", {"counts": {"HMMA TF32": 8}}, "8 HMMA TF32, none"),
        ("product<Float64, medium>", {"counts": {"HMMA": 1}}, "1 HMMA, none"),
        ("product<Tf32, narrow>", {"counts": {"LDGSTS.128": 0}}, "0 LDGSTS.128, at least 1"),
        ("fused<Tf32, 64, others>", {"counts": {"LDSM": 0}}, "0 LDSM, at least 3"),
        ("pack<float>", {"counts": {"LDG.128": 0}}, "0 LDG.128, at least 1"),
        ("score<Tf32, narrow, gaussian>", {"counts": {"MUFU.EX2": 0}}, "0 MUFU.EX2, at least 1"),
        ("outer<Tf32x3>", {"counts": {"HMMA TF32": 23}}, "23 HMMA TF32, at least 24"),
        ("outer<Bfloat16>", {"counts": {"LDSM": 3}}, "3 LDSM, at least 4"),
        ("combine<float>", {"registers": 63}, "63 registers, at most 62"),
        ("pack<float>", {"blocks": 0}, "does not fit"),
    ],
)
def test_each_gate_fails(name: str, change: dict[str, Any], says: str) -> None:
    rows = good_rows()
    place = next(k for k, row in enumerate(rows) if row.name == name and row.capability == 90)
    if "counts" in change:
        change = {"counts": rows[place].counts | change["counts"]}
    rows[place] = replace(rows[place], **change)
    (failure,) = gates.check(rows)
    assert f"{name} on sm_90: {says}" in failure


@pytest.mark.usefixtures("few_kernels")
def test_lost_and_new_kernels_fail() -> None:
    rows = good_rows()
    assert gates.check(rows[1:]) == [f"sm_80: {rows[0].name} is missing"]
    assert gates.check([*rows[:1], replace(rows[0], name="pack<half>"), *rows[2:]]) == [
        f"sm_80: {rows[1].name} is missing",
        "sm_80: pack<half> is not expected",
    ]
    counts = rows[-1].counts | gates.least_counts("pack<int>")
    added = gates.check([*rows, replace(rows[-1], name="pack<int>", counts=counts)])
    assert added == [
        "sm_90: pack<int> is not expected",
        f"sm_90: {gates.KERNELS_AT_MOST + 1} kernels, at most {gates.KERNELS_AT_MOST} allowed",
    ]


def test_missing_tools_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(toolchain.shutil, "which", lambda name: None)
    monkeypatch.setattr(toolchain, "from_wheels", lambda name: None)
    with pytest.raises(toolchain.Missing, match="pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm"):
        toolchain.find_disassembler()
    assert gates.main([str(tmp_path / "none.so")]) == 2
    assert "none.so is not there" in capsys.readouterr().err
