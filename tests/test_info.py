"""`decoct info`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import numpy
import pytest
import torch

import decoct
from decoct.__main__ import main
from decoct.ops import _backend


def printed(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert main(["info", *options]) == 0
    return capsys.readouterr().out


def test_json_holds_versions_isa_threads_and_cuda(capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(2)
    facts = json.loads(printed(capsys, "--json"))
    assert facts["decoct"] == decoct.__version__
    assert facts["torch"] == torch.__version__
    assert facts["numpy"] == numpy.__version__
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
    assert facts["threads"] == 2
    assert facts["cpu"]["works"] is True
    assert facts["cpu"]["isa"] in ("generic", "avx2", "avx512")
    assert facts["cuda"]["available"] is torch.cuda.is_available()


def test_text_has_a_line_for_each_fact(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys).splitlines()
    values = {line.split("  ")[0]: line.split("  ")[-1].strip() for line in lines}
    assert values["torch"] == torch.__version__
    assert values["cpu works"] == "yes"
    assert values["cpu isa"] in ("generic", "avx2", "avx512")
    assert values["threads"] == str(torch.get_num_threads())
    assert "cuda available" in values


def fresh(*options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """`decoct info` in a process of its own: the instruction set is chosen once for each process."""
    return subprocess.run(
        [sys.executable, "-m", "decoct", "info", *options],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_forced_instruction_set() -> None:
    done = fresh("--json", DECOCT_ISA="generic")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["cpu"]["isa"] == "generic"


def test_instruction_set_that_does_not_exist() -> None:
    done = fresh("--json", DECOCT_ISA="mmx")
    cpu = json.loads(done.stdout)["cpu"]
    assert done.returncode == 1
    assert cpu["works"] is False
    assert "DECOCT_ISA=mmx" in cpu["problem"]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ModuleNotFoundError("no", name="decoct._cpu"), "decoct._cpu is missing; pip install"),
        (ModuleNotFoundError("no numpy", name="numpy"), "decoct._cpu does not load: no numpy"),
        (ImportError("undefined symbol"), "decoct._cpu does not load: undefined symbol"),
    ],
)
def test_module_that_does_not_load(
    error: ImportError, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(name: str) -> Any:
        raise error

    monkeypatch.setattr(_backend.importlib, "import_module", refuse)
    assert main(["info"]) == 1
    assert said in capsys.readouterr().out


def test_cuda_is_not_initialised() -> None:
    code = (
        "import torch\nfrom decoct.__main__ import main\nmain(['info'])\n"
        "assert not torch.cuda.is_initialized()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


def test_build_without_cuda_kernels_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = _backend.importlib.import_module

    def without_cuda(name: str) -> Any:
        if name == "decoct._cuda":
            raise ModuleNotFoundError("no", name=name)
        return real(name)

    monkeypatch.setattr(_backend.importlib, "import_module", without_cuda)
    cuda = json.loads(printed(capsys, "--json"))["cuda"]
    assert cuda["kernels"] is False
    assert cuda["problem"] == "no CUDA kernels in this build"
