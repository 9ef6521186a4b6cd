"""Checks the machine code of the CUDA kernels without a GPU: python tests/gpu_code/gates.py MODULE.so

MODULE.so is a built extension module (`_cuda*.so`) with code for sm_80 and sm_90. Needed are

    cuobjdump, nvdisasm   on PATH, or `pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm` into the
                          environment of this Python
    g++, c++filt          on PATH
    cuda_occupancy.h      of a toolkit: nvcc on PATH, CUDA_HOME, or `pip install nvidia-cuda-runtime`

Nothing is fetched. Every kernel, on both architectures:

    1  spills nothing and has no stack and no local memory
    2  has no more registers than CEILINGS allows
    3  has the instructions that its design stands on: tensor cores of its arithmetic (none in float64),
       16-byte copies to shared memory, ldmatrix, 16-byte loads where rows are packed, the hardware's
       exponential
    4  is launched in one way only, fits on a multiprocessor, and is one of at most KERNELS_AT_MOST
    5  is expected, and every expected one is there

Exit status 0: all passed; 1: a gate failed; 2: it could not be checked.

Dynamic shared memory and threads come from the launchers themselves (launches.cpp), blocks a multiprocessor
from NVIDIA's formula (occupancy.cpp), instructions per pair and shares of the bound from a model
(throughput.py).
"""

from __future__ import annotations

import argparse
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import throughput
import toolchain
from sass import Kernel, Unreadable
from throughput import Prediction

CAPABILITIES = (80, 90)
KERNELS_AT_MOST = (
    167  # 85 over pairs, which take the time to compile, 24 over rows, 42 over images, 16 over lists
)
WARPS_OF_MULTIPROCESSOR = 64

# Most registers a thread, by the first pattern that fits: a little above what they have. A multiprocessor
# holds two blocks up to 255 of them, three up to 168, four up to 128, six up to 80.
CEILINGS = {
    "score<Float64, medium, gaussian>": 236,
    "score<*, square, gaussian>": 210,
    "score<*, narrow, *>": 168,
    "score<*, others>": 255,
    "fused<*, 32, others>": 184,
    "fused<*, 32, *>": 168,
    "fused<*, 64, *>": 204,
    "fused<*, 128, *>": 244,
    "fused<*, 256, *>": 255,
    "product<*, square>": 150,
    "product<Float64, *>": 150,
    "product<*>": 128,
    "hvp<*>": 255,
    "small<float, gaussian, 4>": 80,
    "small<float, others, 4>": 108,
    "small<float, gaussian, 16>": 168,
    "small<double, *, 4>": 160,
    "small<double, *, 8>": 228,
    "small<*>": 200,
    "transport<Float64>": 204,
    "transport<*>": 184,
    "kept<float>": 128,
    "kept<double>": 204,
    "step<*>": 128,
    "box<*>": 96,
    "begin<*>": 72,
    "end<*>": 144,
    "characteristic<Float64, *>": 180,
    "characteristic<*, second>": 224,
    "characteristic<*>": 160,
    "characteristic_product<Float64>": 156,
    "characteristic_product<*>": 252,
    "characteristic_sums<*>": 48,
    "random_projection<Float64>": 156,
    "random_projection<*>": 222,
    "outer<Float64>": 168,
    "outer<Tf32x3>": 204,
    "outer<*>": 168,
    "squares<Float64>": 168,
    "squares<*>": 240,
    "instantiate<Float64>": 168,
    "instantiate<*>": 240,
    "single_gram<*>": 244,
    "tile_gram<Float64>": 104,
    "tile_gram<*>": 132,
    "single_squares<*>": 72,
    "add_squares<*>": 84,
    "add_slabs<*>": 62,
    "combine<*>": 62,
    "pack<*>": 184,
    "finish<*>": 156,
    "anchor<*>": 62,
    "segment_sums<*>": 78,
    "pack_tangents<*>": 66,
    "pack_vectors<*>": 34,
    "norm_value<*>": 80,
    "norm_grad<*>": 80,
    "norm_second<*>": 104,
    "norm_images<*>": 56,
    "gradient_first<*, first>": 80,
    "gradient_first<*>": 112,
    "gradient_second<*, first>": 84,
    "gradient_second<*>": 124,
}

# Kernels on the layers of a network, one for each arithmetic, in square tiles.
LAYER_KINDS = ("outer", "squares", "instantiate", "single_gram", "tile_gram")

COUNTED = {
    "HMMA TF32": r"HMMA\.1688\.F32\.TF32",
    "HMMA BF16": r"HMMA\.16816\.F32\.BF16",
    "HMMA": r"HMMA.*",
    "LDGSTS.128": throughput.COPY,
    "LDG.128": r"LDG\.E\.128.*",
    "LDSM": r"LDSM.*",
    "MUFU.EX2": throughput.EXP,
    "FFMA": r"FFMA.*",
    "DFMA": r"DFMA.*",
    "LDL": r"LDL.*",
    "STL": r"STL.*",
}


def expected_kernels() -> list[str]:
    """Every instantiation that the launchers have (pairs_launch.cuh and the .cu files)."""
    names = []
    for arithmetic in ("Tf32", "Tf32x3", "Bfloat16", "Float64"):
        double = arithmetic == "Float64"
        shapes = ["medium"] if double else ["square", "narrow"]
        names += [f"score<{arithmetic}, {s}, {p}>" for s in shapes for p in ("gaussian", "others")]
        names += [f"product<{arithmetic}, {s}>" for s in dict.fromkeys([*shapes, "medium"])]
        names.append(f"hvp<{arithmetic}, medium>")
        kinds = ("transport", *LAYER_KINDS, "characteristic_product", "random_projection")
        names += [f"{kind}<{arithmetic}>" for kind in kinds]
        names += [f"characteristic<{arithmetic}, {op}>" for op in ("value", "grad", "second")]
        widths = [] if double else [32, 64, 128, 256]
        names += [f"fused<{arithmetic}, {w}, {p}>" for w in widths for p in ("gaussian", "others")]
    for number, widest in (("float", 16), ("double", 8)):
        names += [f"small<{number}, {p}, {w}>" for p in ("gaussian", "others") for w in (4, widest)]
        rows = ("anchor", "pack", "pack_tangents", "pack_vectors", "segment_sums", "finish")
        names += [f"{kind}<{number}>" for kind in rows]
        names += [f"{kind}<{number}>" for kind in ("box", "begin", "kept", "step", "end", "combine")]
        names += [f"{kind}<{number}>" for kind in ("single_squares", "add_squares", "add_slabs")]
        names += [
            f"norm_{kind}<{number}, {k}>" for kind in ("value", "grad", "second") for k in ("kept", "again")
        ]
        names += [f"norm_images<{number}>", f"characteristic_sums<{number}>"]
    for kind in ("gradient_first", "gradient_second"):
        for types in ("float, float", "float, Half", "float, Bfloat", "double, double"):
            names += [f"{kind}<{types}, {order}>" for order in ("first", "second")]
    return sorted([*names, "transport<Differences>"])


@dataclass(frozen=True)
class Row:
    """What is printed of a kernel on one architecture."""

    name: str
    capability: int
    registers: int
    stack: int
    local: int
    static_shared: int
    dynamic_shared: int
    threads: int
    blocks: int
    limits: str
    code_bytes: int
    counts: dict[str, int]
    predictions: list[Prediction]

    @property
    def spills(self) -> int:
        return self.counts["LDL"] + self.counts["STL"]

    @property
    def occupancy(self) -> float:
        return self.blocks * self.threads / 32 / WARPS_OF_MULTIPROCESSOR


def check_memory(row: Row) -> list[str]:
    found = {"stack bytes": row.stack, "local bytes": row.local, "local loads and stores": row.spills}
    return [f"{number} {what}, where none are allowed" for what, number in found.items() if number]


def check_registers(row: Row) -> list[str]:
    ceiling = next((c for pattern, c in CEILINGS.items() if fnmatchcase(row.name, pattern)), None)
    if ceiling is None:
        return ["CEILINGS names no limit of its registers"]
    return [f"{row.registers} registers, at most {ceiling} allowed"] if row.registers > ceiling else []


def least_counts(name: str) -> dict[str, int]:
    """The instructions a kernel must have at least, and with 0 those that it must not have."""
    kind = name.partition("<")[0]
    arguments = name.partition("<")[2].rstrip(">").split(", ")
    least: dict[str, int] = {}
    square = ("transport", *LAYER_KINDS, "characteristic", "characteristic_product", "random_projection")
    tensor = kind in ("score", "fused", "product", "hvp", *square)
    if tensor and arguments[0] not in ("Float64", "Differences"):
        fused = kind == "fused"
        shape = "square" if kind in square else arguments[1]
        tile = throughput.fused_tile(int(shape)) if fused else throughput.SCORE_TILES[shape]
        products = tile[2] * tile[3] * (3 if arguments[0] == "Tf32x3" else 1)
        ours, other = ("HMMA BF16", "HMMA TF32") if arguments[0] == "Bfloat16" else ("HMMA TF32", "HMMA BF16")
        least |= {ours: products * (2 if fused else 1), other: 0}
        # Left operands, and right ones stored along k; in bfloat16 also those stored along their columns.
        along_k = 0 if kind == "product" and arguments[0] != "Bfloat16" else tile[3] // 2
        least["LDSM"] = tile[2] + along_k
    else:
        least["HMMA"] = 0
        if arguments[0] == "Float64":
            least["DFMA"] = 8
    if kind in ("score", "fused", "product", "hvp", "small", "transport", "tile_gram"):
        least["LDGSTS.128"] = 1
    if name in (
        "pack<float>",
        "norm_value<float, kept>",
        "norm_grad<float, kept>",
        "norm_second<float, kept>",
    ):
        least["LDG.128"] = 1
    exponential = "gaussian" in arguments or kind in ("transport", "kept")
    if exponential and arguments[0] not in ("Float64", "double"):
        least["MUFU.EX2"] = 1
    return least


def check_instructions(row: Row) -> list[str]:
    failures = []
    for what, least in least_counts(row.name).items():
        number = row.counts[what]
        if least and number < least:
            failures.append(f"{number} {what}, at least {least} expected")
        elif not least and number:
            failures.append(f"{number} {what}, none expected")
    return failures


def check_row(row: Row) -> list[str]:
    failures = check_memory(row) + check_registers(row) + check_instructions(row)
    if row.blocks < 1:
        failures.append("does not fit on a multiprocessor")
    return [f"{row.name} on sm_{row.capability}: {failure}" for failure in failures]


def check_names(capability: int, names: list[str]) -> list[str]:
    expected = set(expected_kernels())
    failures = [f"sm_{capability}: {name} is missing" for name in sorted(expected - set(names))]
    failures += [f"sm_{capability}: {name} is not expected" for name in sorted(set(names) - expected)]
    if len(names) > KERNELS_AT_MOST:
        failures.append(f"sm_{capability}: {len(names)} kernels, at most {KERNELS_AT_MOST} allowed")
    return failures


def check(rows: list[Row]) -> list[str]:
    failures = [f for row in rows for f in check_row(row)]
    for capability in CAPABILITIES:
        failures += check_names(capability, [row.name for row in rows if row.capability == capability])
    return failures


def make_rows(capability: int, kernels: list[Kernel], launches: dict[str, toolchain.Launch]) -> list[Row]:
    unlaunched = [k.name for k in kernels if k.mangled not in launches]
    if unlaunched:
        raise Unreadable(f"launches.cpp does not launch {', '.join(unlaunched)}")
    reserved = 1024 if capability >= 90 else 0
    rows = []
    for kernel, occupancy in zip(kernels, toolchain.occupancies(capability, kernels, launches), strict=True):
        launch = launches[kernel.mangled]
        rows.append(
            Row(
                name=kernel.name,
                capability=capability,
                registers=kernel.registers,
                stack=kernel.stack,
                local=kernel.local,
                static_shared=kernel.shared - reserved,
                dynamic_shared=launch.shared,
                threads=launch.threads,
                blocks=occupancy.blocks,
                limits=occupancy.limits,
                code_bytes=kernel.bytes,
                counts={what: kernel.count(pattern) for what, pattern in COUNTED.items()},
                predictions=throughput.predictions(kernel, capability),
            )
        )
    return rows


REPORTED = ("LDGSTS.128", "LDSM", "LDG.128", "MUFU.EX2", "FFMA", "DFMA")


def report(rows: list[Row], capability: int) -> str:
    head = ["kernel", "regs", "stack", "LDL+STL", "shared", "blocks", "occupancy", "HMMA", *REPORTED, "KiB"]
    lines: list[list[object]] = []
    for row in rows:
        kind = "TF32" if row.counts["HMMA TF32"] else "BF16" if row.counts["HMMA BF16"] else ""
        resources = [row.registers, row.stack, row.spills, row.static_shared + row.dynamic_shared]
        blocks = [f"{row.blocks} {row.limits}", f"{row.occupancy:.0%}"]
        hmma = f"{row.counts['HMMA']} {kind}".strip()
        counts = [row.counts[what] for what in REPORTED]
        lines.append([row.name, *resources, *blocks, hmma, *counts, f"{row.code_bytes / 1024:.0f}"])
    return (
        f"sm_{capability}: resources, blocks a multiprocessor and what limits them (warps, registers, shared "
        f"memory, blocks), instructions in the code, its size\n\n{table(head, lines)}\n"
    )


def report_bounds(rows: list[Row]) -> str:
    """Of both architectures side by side."""
    columns = ("instructions", "busiest", "share")
    head = ["kernel", "D", *(f"{what}, sm_{c}" for c in CAPABILITIES for what in columns)]
    by_place: dict[tuple[str, int], dict[int, Prediction]] = {}
    for row in rows:
        for prediction in row.predictions:
            by_place.setdefault((row.name, prediction.dim), {})[row.capability] = prediction
    lines: list[list[object]] = []
    for (name, dim), found in by_place.items():
        line: list[object] = [name, dim]
        for capability in CAPABILITIES:
            p = found.get(capability)
            line += [f"{p.instructions:.1f}", p.busiest, f"{p.share:.2f} of {p.bound_by}"] if p else [""] * 3
        lines.append(line)
    return (
        "instructions of a thread for one pair, the busiest pipe, and the predicted share of the bound\n\n"
        f"{table(head, lines)}\n"
    )


def table(head: list[str], lines: list[list[object]]) -> str:
    cells = [head, *([str(c) for c in line] for line in lines)]
    widths = [max(len(line[k]) for line in cells) for k in range(len(head))]

    def text(line: list[str]) -> str:
        numbers = [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        return f"| {' | '.join([line[0].ljust(widths[0]), *numbers])} |"

    rule = "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])])
    return "\n".join([text(cells[0]), f"|{rule}|", *map(text, cells[1:])])


def markdown(rows: list[Row]) -> str:
    parts = [report([r for r in rows if r.capability == c], c) for c in CAPABILITIES]
    return "\n".join([*parts, report_bounds(rows)])


def read_rows(module: Path) -> list[Row]:
    if not module.is_file():
        raise toolchain.Missing(f"{module} is not there; build the module first")
    with ThreadPoolExecutor() as pool:
        launches = pool.submit(toolchain.read_launches)
        modules = [pool.submit(toolchain.read_module, module, f"sm_{c}") for c in CAPABILITIES]
        return [
            row
            for capability, kernels in zip(CAPABILITIES, modules, strict=True)
            for row in make_rows(capability, kernels.result(), launches.result())
        ]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("module", type=Path, metavar="MODULE.so")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there")
    options = parser.parse_args(arguments)
    try:
        rows = read_rows(options.module)
    except (toolchain.Missing, Unreadable) as error:
        print(f"gates: {error}", file=sys.stderr)
        return 2
    tables = markdown(rows)
    print(tables)
    if options.markdown:
        options.markdown.write_text(tables)
    if options.json:
        derived = [
            asdict(r) | {"predictions": [asdict(p) | {"share": p.share} for p in r.predictions]} for r in rows
        ]
        options.json.write_text(json.dumps(derived, indent=1) + "\n")
    failures = check(rows)
    for failure in failures:
        print(f"FAILED {failure}")
    print(f"{len(failures)} failures in {len(rows)} kernels")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
