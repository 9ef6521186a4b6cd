"""The programs that gates.py runs: cuobjdump, c++filt, and two of its own in C++."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sass import Kernel, Unreadable, parse_module

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]


class Missing(Exception):
    """A tool is not installed, or does not run."""


@dataclass(frozen=True)
class Launch:
    threads: int
    shared: int  # dynamic, bytes


@dataclass(frozen=True)
class Occupancy:
    blocks: int  # of a multiprocessor
    limits: str  # what allows no more: w(arps), r(egisters), s(hared memory), b(locks)


def output(command: Sequence[str | Path], given: str | None = None, path: str | None = None) -> str:
    environment = {**os.environ, "PATH": path} if path else None
    words = [str(c) for c in command]
    try:
        done = subprocess.run(
            words, input=given, capture_output=True, text=True, check=False, env=environment
        )
    except FileNotFoundError:
        raise Missing(f"{words[0]} is not installed") from None
    if done.returncode:
        raise Missing(f"{' '.join(words)}\nfailed:\n{done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def from_wheels(name: str) -> Path | None:
    """A program out of NVIDIA's wheels in this Python's environment."""
    site = Path(sysconfig.get_paths()["purelib"]) / "nvidia"
    return next(iter(sorted(site.glob(f"**/bin/{name}"))), None) if site.is_dir() else None


def find_disassembler() -> tuple[str, str]:
    """cuobjdump, and the PATH under which it finds the nvdisasm that it runs."""
    found = {name: shutil.which(name) or from_wheels(name) for name in ("cuobjdump", "nvdisasm")}
    lost = [name for name, path in found.items() if path is None]
    if lost:
        raise Missing(
            f"no {' and no '.join(lost)}, neither on PATH nor in {sys.prefix}; install:\n"
            f"  {sys.executable} -m pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm"
        )
    folder = str(Path(str(found["nvdisasm"])).parent)
    return str(found["cuobjdump"]), os.pathsep.join([folder, os.environ.get("PATH", "")])


def demangle(names: list[str]) -> list[str]:
    return output(["c++filt"], "\n".join(names)).splitlines()


def read_module(module: Path, architecture: str) -> list[Kernel]:
    tool, path = find_disassembler()
    resources, code = (
        output([tool, option, "-arch", architecture, module], path=path) for option in ("-res-usage", "-sass")
    )
    kernels = parse_module(resources, code, demangle)
    if not kernels:
        raise Unreadable(f"{module} has no code for {architecture}")
    return kernels


def include_folder() -> Path:
    """Where the toolkit's cuda_occupancy.h is."""
    tops = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    if compiler := shutil.which("nvcc"):
        # NVIDIA's nvcc names its folder itself: what is on PATH may be a script that calls it.
        command = [compiler, "--dryrun", "-x", "cu", os.devnull]
        said = subprocess.run(command, capture_output=True, text=True, check=False).stderr
        tops += [Path(line.split("=", 1)[1].strip()) for line in said.splitlines() if "TOP=" in line]
    tops += [Path("/usr/local/cuda"), *sorted(Path("/usr/local").glob("cuda-*"), reverse=True)]
    tops += sorted((Path(sysconfig.get_paths()["purelib"]) / "nvidia").glob("*"))
    folders = [top / "include" for top in tops]
    for folder in folders:
        if (folder / "cuda_occupancy.h").is_file():
            return folder
    raise Missing(
        "no cuda_occupancy.h: put the toolkit's nvcc on PATH, set CUDA_HOME, or install:\n"
        f"  {sys.executable} -m pip install nvidia-cuda-runtime"
    )


def run_program(source: str, options: Sequence[str | Path], given: str = "") -> str:
    """Compiles one of this folder's C++ files in a temporary folder and runs it."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "program"
        output([os.environ.get("CXX", "g++"), "-std=c++17", FOLDER / source, "-o", program, *options])
        return output([program], given)


def read_launches() -> dict[str, Launch]:
    """How the launchers start each kernel, by mangled name."""
    include = [f"-I{ROOT / folder}" for folder in ("csrc", "csrc/cuda", "tests/cuda_on_cpu")]
    lines = run_program(
        "launches.cpp", ["-rdynamic", "-DDECOCT_CUDA_ON_CPU", "-Wno-unknown-pragmas", *include, "-ldl"]
    ).splitlines()
    launches: dict[str, Launch] = {}
    for line in lines:
        name, threads, shared = line.split()
        launch = Launch(int(threads), int(shared))
        if launches.setdefault(name, launch) != launch:
            raise Unreadable(f"{name} is launched in several ways: {launch} and {launches[name]}")
    return launches


def occupancies(capability: int, kernels: list[Kernel], launches: dict[str, Launch]) -> list[Occupancy]:
    """By NVIDIA's formula, in the order of the kernels."""
    lines = []
    for kernel in kernels:
        launch = launches[kernel.mangled]
        fixed = kernel.shared - (1024 if capability >= 90 else 0)
        lines.append(f"{capability} {launch.threads} {kernel.registers} {fixed} {launch.shared}\n")
    answers = run_program("occupancy.cpp", [f"-I{include_folder()}"], "".join(lines)).splitlines()
    if len(answers) != len(kernels):
        raise Unreadable(f"occupancy.cpp answered {len(answers)} of {len(kernels)} questions")
    return [Occupancy(int(blocks), limits) for blocks, limits in (a.split() for a in answers)]
