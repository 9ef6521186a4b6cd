"""The README's Python runs and prints what the README says; its commands exist."""

from __future__ import annotations

import contextlib
import inspect
import io
import itertools
import re
from pathlib import Path

import pytest

import decoct
from decoct.__main__ import main

README = Path(__file__).resolve().parents[1] / "README.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
EXAMPLES = [
    (code, shown)
    for (kind, code), (next_kind, shown) in itertools.pairwise(BLOCKS)
    if (kind, next_kind) == ("python", "text")
]
NUMBER = re.compile(r"-?\d+\.\d+")


def test_every_example_shows_its_output() -> None:
    assert len(EXAMPLES) == sum(kind == "python" for kind, _ in BLOCKS) >= 2


@pytest.mark.parametrize(("code", "shown"), EXAMPLES, ids=range(len(EXAMPLES)))
def test_example(code: str, shown: str) -> None:
    """Text exactly; decimals to two hundredths: sums round differently from machine to machine."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, str(README), "exec"), {})
    assert NUMBER.sub("#", printed.getvalue()) == NUMBER.sub("#", shown)
    ours, theirs = (list(map(float, NUMBER.findall(text))) for text in (printed.getvalue(), shown))
    assert ours == pytest.approx(theirs, rel=0.02)


COMMANDS = [
    line.split("#")[0].split()
    for kind, text in BLOCKS
    if kind == "sh"
    for line in text.replace("&&", "\n").splitlines()
    if line.strip().startswith("decoct ")
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_command_and_options_exist(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command[1], "--help"])
    assert stop.value.code == 0
    help_text = capsys.readouterr().out
    for word in command[2:]:
        if word.startswith("--"):
            assert re.search(rf"(?<![\w-]){word}(?![\w-])", help_text), word


def test_signatures_are_those_of_the_functions() -> None:
    """Names and defaults in the README's signature blocks."""
    found = re.findall(
        r"^decoct\.(\w+)\((.*?)\)$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    named = {"mmd", "kernel_mean", "kernel_matvec", "sinkhorn_divergence", "gradient_distance"}
    named |= {"class_gradients", "group_norm", "instance_norm", "characteristic_mean", "segment_moments"}
    named |= {"per_sample_norms", "clipped_gradient_sum", "gradient_gram"}
    named |= {"random_projection", "projected_gradients"}
    assert {name for name, _ in found} == named
    for name, text in found:
        words = [word.strip() for word in " ".join(text.split()).split(",")]
        parameters = inspect.signature(getattr(decoct, name)).parameters.values()
        expected = []
        for parameter in parameters:
            if parameter.kind is parameter.KEYWORD_ONLY and "*" not in expected:
                expected.append("*")
            default = (
                "" if parameter.default is parameter.empty else f"={parameter.default!r}".replace("'", '"')
            )
            expected.append(parameter.name + default)
        assert words == expected, name
