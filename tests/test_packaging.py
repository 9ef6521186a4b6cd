"""What is installed, and what importing it does and does not load."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import decoct

PACKAGE = Path(decoct.__file__).parent
MODULE = next(PACKAGE.glob("_cpu*.so"), None)
ROOT = Path(__file__).resolve().parents[1]

needs_module = pytest.mark.skipif(
    MODULE is None, reason="the compiled module is elsewhere in an editable install"
)


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def output(tool: str, *arguments: str | Path) -> str:
    if shutil.which(tool) is None:
        # A user's machine may lack it; .ci/run stops without it.
        pytest.skip(f"{tool} is not installed")
    return subprocess.run([tool, *map(str, arguments)], capture_output=True, text=True, check=True).stdout


def test_import_is_light() -> None:
    """Losses cost torch and numpy: nothing of an extra, none of the layers above the ops."""
    heavy = ["sklearn", "matplotlib", "rich", "safetensors", "jinja2", "scipy"]
    above = ["decoct.tasks", "decoct.condense", "decoct.objectives", "decoct.cli"]
    code = f"""
import json, sys, torch
before = set(sys.modules)
import decoct
new = set(sys.modules) - before
print(json.dumps([name for name in {heavy + above} if name in new]))
"""
    assert json.loads(python(code)) == []


def test_import_does_not_initialise_cuda() -> None:
    assert python("import decoct, torch; print(torch.cuda.is_initialized())").strip() == "False"


def test_import_prints_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "import decoct"], capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_typed_and_with_stubs() -> None:
    assert (PACKAGE / "py.typed").is_file()
    assert (PACKAGE / "_cpu.pyi").is_file()
    assert (PACKAGE / "condense" / "report.html.jinja").is_file()


def _distribution() -> metadata.Distribution:
    try:
        found = metadata.distribution("decoct")
    except metadata.PackageNotFoundError:
        # There is nothing to look at when the tests run on the source tree; .ci/run installs the package.
        pytest.skip("decoct is not installed here, only importable")
    return found


def test_installed_files() -> None:
    """Only the package, its metadata and the program; no tests, sources, build files or runtimes."""
    found = _distribution()
    names = [str(file) for file in found.files or []]
    if "decoct/__init__.py" not in names:
        # Its files are those of the tree; .ci/run installs a copy.
        pytest.skip("an editable install lists no files of the package")
    top = {name.split("/")[0] for name in names if not name.startswith("..")}
    assert top <= {"decoct", f"decoct-{found.version}.dist-info"}
    for needed in ("py.typed", "_cpu.pyi", "condense/report.html.jinja"):
        assert f"decoct/{needed}" in names
    suffixes = {Path(name).suffix for name in names if name.startswith("decoct/")} - {".pyc"}
    assert suffixes == {".py", ".pyi", ".typed", ".jinja", ".so"}
    assert not [name for name in names if "gomp" in name or "cudart" in name or "test" in Path(name).name]
    assert found.version == decoct.__version__


def test_requirements() -> None:
    """torch has a lower bound and no upper one; everything else is an extra."""
    requires = [line for line in _distribution().requires or [] if "extra ==" not in line]
    assert sorted(line.replace(" ", "") for line in requires) == ["numpy", "torch>=2.6"]


@needs_module
def test_shared_libraries() -> None:
    """One module serves every torch and every machine: it asks for neither torch nor CUDA libraries."""
    assert MODULE is not None
    lines = output("readelf", "-d", MODULE).splitlines()
    needed = {line.split("[")[1].rstrip("]") for line in lines if "(NEEDED)" in line}
    assert needed, "readelf named no library at all"
    system = ("libstdc++.so", "libm.so", "libgcc_s.so", "libgomp.so", "libc.so", "libpthread.so", "ld-linux")
    assert not [name for name in needed if not name.startswith(system)]
    assert not [line for line in lines if "RPATH" in line or "RUNPATH" in line]


@needs_module
def test_exports_only_its_entry() -> None:
    """Symbols of the engine stay inside, so that no other library's symbol can take their place."""
    assert MODULE is not None
    exported = output("nm", "-D", "--defined-only", MODULE).split()[2::3]
    assert "PyInit__cpu" in exported
    assert not [name for name in exported if name.startswith(("_ZN6decoct", "_ZNK6decoct"))]


@pytest.mark.skipif(sys.platform != "linux", reason="ELF object files")
def test_instruction_sets_share_no_symbol(tmp_path: Path) -> None:
    """A weak symbol in two objects would let the linker keep the one with instructions that are missing."""
    script = ROOT / "tests" / "native" / "symbols.sh"
    if shutil.which("g++") is None or shutil.which("nm") is None:
        # A wheel's user may lack both; .ci/run stops without them.
        pytest.skip("g++ and nm are needed")
    done = subprocess.run(
        ["bash", str(script), str(tmp_path)], capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_wheel(tmp_path: Path) -> None:
    """The wheel of a fresh build; needs the network for the build's own requirements."""
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(ROOT)],
        check=True,
        timeout=500,
    )
    (wheel,) = tmp_path.glob("decoct-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "decoct/py.typed" in names
    assert "decoct/_cpu.pyi" in names
    assert sum(name.endswith(".so") for name in names) == 1
    assert not [name for name in names if not name.startswith(("decoct/", "decoct-"))]
