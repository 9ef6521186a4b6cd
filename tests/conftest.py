"""Shared settings: repeatable property tests, the backends that are tested, and torch's thread count and
flags restored after each test."""

import sys
import warnings
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

import decoct
import table
from cuda_on_cpu import build

settings.register_profile(
    "repeatable",
    deadline=None,
    derandomize=True,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("repeatable")

BACKENDS = ("cpu", "cuda_on_cpu", "cuda")
WITH_DEVICE = torch.cuda.is_available() and "cuda" in decoct.ops.backends


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--backend",
        action="append",
        choices=BACKENDS,
        help="where ops are tested: unless given, cpu and cuda_on_cpu (CUDA kernels executed on the CPU), or "
        "what a test's mark usual_backends says, and cuda where there are a device and kernels for it",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames:
        mark = metafunc.definition.get_closest_marker("usual_backends")
        usual = [*(mark.args if mark else ("cpu", "cuda_on_cpu")), *(["cuda"] if WITH_DEVICE else [])]
        chosen = metafunc.config.getoption("backend") or usual
        metafunc.parametrize("backend", chosen, indirect=True)


def use_device(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    """Inputs and results stay on the CPU; ops move them. Convolutions of torch's are not in TF32 there, and
    repeat themselves, as checks of gradients ask."""
    monkeypatch.setattr(table, "DEVICE", device)
    for name in table.MOVED:
        monkeypatch.setattr(decoct, name, table.on_device(getattr(decoct, name)))
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)


@pytest.fixture
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test on each chosen backend. Where CUDA is executed on the CPU, it takes the place of `cpu`."""
    if request.param == "cuda_on_cpu":
        monkeypatch.setitem(decoct.ops.backends, "cpu", build.load())
    if request.param == "cuda":
        if not WITH_DEVICE:
            pytest.fail("--backend cuda: no CUDA device, or a build without CUDA kernels")
        use_device(monkeypatch, "cuda")
    return str(request.param)


@pytest.fixture(autouse=True)
def _restore_torch() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
    if "torch._dynamo" in sys.modules:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what torch itself is about to change
            torch._dynamo.reset()
