"""Builds `_cuda_on_cpu`, the CUDA backend compiled for the CPU, with a C++ compiler and pybind11 only.

The module is kept in the temporary folder under a name made of everything that goes into it, so that it is
built once for each state of the sources.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import importlib.util
import os
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pybind11

__all__ = ["load"]

HERE = Path(__file__).resolve().parent
CSRC = HERE.parent.parent / "csrc"
CUDA = CSRC / "cuda"
COMPILER = os.environ.get("CXX", "g++")
FLAGS = [
    *("-std=c++17", "-O1", "-g1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"),
    "-Wno-unknown-pragmas",  # of nvcc
    "-DDECOCT_CUDA_ON_CPU",
    '-DDECOCT_CUDA_NAME="cuda_on_cpu"',
    "-DDECOCT_MODULE=_cuda_on_cpu",
    *(f"-I{folder}" for folder in (HERE, CSRC, CUDA)),
    *(f"-isystem{folder}" for folder in (pybind11.get_include(), sysconfig.get_paths()["include"])),
]


def _sources() -> list[Path]:
    return [CSRC / "bindings.cpp", CSRC / "sizes.cpp", CUDA / "plan.cpp", *sorted(CUDA.glob("*.cu"))]


def _fingerprint() -> str:
    digest = hashlib.sha256(repr((COMPILER, FLAGS, sys.version, pybind11.__version__)).encode())
    digest.update(subprocess.run([COMPILER, "--version"], capture_output=True, check=True).stdout)
    for path in sorted([*CSRC.glob("*.*"), *CUDA.glob("*.*"), *HERE.glob("*.h")]):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:24]


def _run(command: list[str]) -> None:
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{ran.stderr[-4000:]}")


def _build(target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        objects = {source: str(Path(folder) / f"{source.stem}.o") for source in _sources()}
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            commands = [
                [COMPILER, *FLAGS, "-x", "c++", "-c", str(source), "-o", out]
                for source, out in objects.items()
            ]
            list(pool.map(_run, commands))
        made = Path(folder) / target.name
        _run([COMPILER, "-shared", *objects.values(), "-o", str(made)])
        made.rename(target)


@functools.cache
def load() -> ModuleType:
    """The module, built first if these sources have not been; RuntimeError with the compiler's words."""
    folder = Path(tempfile.gettempdir()) / f"decoct-cuda-on-cpu-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise RuntimeError(f"{folder} belongs to another user")
    target = folder / f"{_fingerprint()}.so"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            _build(target)
    spec = importlib.util.spec_from_file_location("_cuda_on_cpu", target)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    load()
