"""Puts the bugs of *_mutants.py into copies of the CUDA kernels; the tests and sanitizers must catch each.

    python tests/cuda_on_cpu/mutants.py [TEXT]    TEXT: of the names of the mutants to try, default all

Needs g++ and clang++ with its sanitizers (CLANGXX, default clang++-19). Two at a time; objects without a bug
are compiled once for each check. Exits with 1 unless all are caught, where a bug's place is not found exactly
once, and where the tests fail without one.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import characteristic_mutants
import gradient_mutants
import layer_mutants
import memory_mutants
import norm_mutants
import number_mutants
import projection_mutants
import sample_mutants
from mutant import Mutant

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CUDA = ROOT / "csrc" / "cuda"
TIMEOUT = 300

CLANG = os.environ.get("CLANGXX", "clang++-19")
# The compiler of each check, and what its output holds when it has caught something.
COMPILERS = {
    "plain": ["g++"],
    "asan": ["g++", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "tsan": [CLANG, "-fsanitize=thread"],
}
CAUGHT = {
    "plain": ("FAILED",),
    "asan": ("ERROR: AddressSanitizer", "runtime error:"),
    "tsan": ("WARNING: ThreadSanitizer: data race",),
}
FLAGS = ["-std=c++17", "-g1", "-w", "-pthread", f"-I{HERE}"]
KERNEL = ["-x", "c++", "-include", str(HERE / "counted_launches.h"), "-DDECOCT_CUDA_ON_CPU"]
KERNEL.append('-DDECOCT_CUDA_NAME="cuda_on_cpu"')
UNCHECKED = {name: ["-O2", "-fno-sanitize=all"] for name in ("kernels_test", "norm_test")}


def run(command: list[str]) -> None:
    subprocess.run(command, check=True)


def sources() -> dict[str, Path]:
    """The program's sources by the names of their objects."""
    others = [CUDA / "plan.cpp", ROOT / "csrc" / "sizes.cpp", *(HERE / f"{name}.cpp" for name in UNCHECKED)]
    return {path.stem: path for path in [*sorted(CUDA.glob("*.cu")), *others]}


def compile_source(check: str, source: Path, target: Path, optimise: str = "-O1") -> None:
    kernel = KERNEL if source.suffix == ".cu" else []
    flags = [*FLAGS, optimise, *UNCHECKED.get(source.stem, [])]
    run([*COMPILERS[check], *flags, *kernel, "-c", str(source), "-o", str(target)])


def link(check: str, objects: list[Path], target: Path) -> Path:
    run([*COMPILERS[check], "-pthread", *map(str, objects), "-o", str(target)])
    return target


def mutate(mutant: Mutant, folder: Path) -> Path:
    """A copy of csrc with the bug in it."""
    copy = folder / "csrc"
    shutil.copytree(ROOT / "csrc", copy)
    file = copy / "cuda" / mutant.file
    file.write_text(file.read_text().replace(mutant.old, mutant.new))
    return copy


def try_cases(check: str, program: Path, cases: str) -> tuple[int, str]:
    """Exit status and output; a run that hangs is not an error that was found."""
    group, _, text = cases.partition(":")
    environment = os.environ | {"TSAN_OPTIONS": "halt_on_error=1", "ASAN_OPTIONS": "detect_leaks=0"}
    if check != "plain":
        environment["DECOCT_CUDA_ON_CPU_ORDER"] = "forward"
    command = [str(program), "--quick", "--only", text, group]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        return 0, f"no end after {TIMEOUT} s"
    return done.returncode, done.stdout + done.stderr


def missing_places(mutants: list[Mutant]) -> list[str]:
    counts = [(m, (CUDA / m.file).read_text().count(m.old)) for m in mutants]
    return [f"{m.name}: {m.file} has its place {count} times" for m, count in counts if count != 1]


class Trial:
    """One run of the list in a folder of its own."""

    def __init__(self, folder: Path, mutants: list[Mutant]) -> None:
        self.folder = folder
        self.mutants = mutants
        self.checks = sorted({m.check for m in mutants})

    def object_of(self, check: str, name: str) -> Path:
        return self.folder / f"{check}-{name}.o"

    def build(self, pool: ThreadPoolExecutor) -> None:
        jobs = [
            (check, path, self.object_of(check, name))
            for check in self.checks
            for name, path in sources().items()
        ]
        list(pool.map(lambda job: compile_source(*job), jobs))
        for check in self.checks:
            link(check, [self.object_of(check, name) for name in sources()], self.folder / check)

    def failing(self, pool: ThreadPoolExecutor) -> list[str]:
        """The cases that fail without a bug, or do not exist."""
        runs = sorted({(m.check, m.cases) for m in self.mutants})
        results = pool.map(lambda r: try_cases(r[0], self.folder / r[0], r[1]), runs)
        return [
            f"{check}: {cases} fails without a bug:\n{output[-2000:]}"
            for (check, cases), (status, output) in zip(runs, results, strict=True)
            if status != 0 or " passed" not in output
        ]

    def caught(self, mutant: Mutant) -> bool:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            folder = Path(name)
            copy = mutate(mutant, folder)
            units = mutant.units.split()
            for unit in units:
                # A bug's few cases run faster than the compiler optimises.
                compile_source(mutant.check, copy / "cuda" / f"{unit}.cu", folder / f"{unit}.o", "-O0")
            # First the objects with the bug: of a function that several have the linker takes the first.
            objects = [folder / f"{unit}.o" for unit in units]
            objects += [self.object_of(mutant.check, name) for name in sources() if name not in units]
            program = link(mutant.check, objects, folder / "program")
            status, output = try_cases(mutant.check, program, mutant.cases)
        good = status != 0 and any(sign in output for sign in CAUGHT[mutant.check])
        seconds = time.monotonic() - began
        print(
            f"{'caught' if good else 'MISSED'}  {mutant.check:5}  {mutant.name}  ({seconds:.0f} s)",
            flush=True,
        )
        if not good:
            print(f"    exit status {status}: {output[-1000:]}", flush=True)
        return good


def main(words: list[str]) -> int:
    modules = (
        characteristic_mutants,
        gradient_mutants,
        layer_mutants,
        memory_mutants,
        norm_mutants,
        number_mutants,
        projection_mutants,
        sample_mutants,
    )
    known = [mutant for module in modules for mutant in module.MUTANTS]
    mutants = [m for m in known if not words or words[0] in m.name]
    missing = missing_places(mutants)
    if missing:
        print("\n".join(missing))
        return 1
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        trial = Trial(Path(folder), mutants)
        trial.build(pool)
        failing = trial.failing(pool)
        if failing:
            print("\n".join(failing))
            return 1
        count = sum(pool.map(trial.caught, mutants))
    print(f"{count} / {len(mutants)} caught")
    return 0 if count == len(mutants) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
