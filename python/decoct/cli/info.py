"""`decoct info`: versions, instruction set, threads and CUDA state; what a report of a bug should hold."""

from __future__ import annotations

import argparse
import json
import os
import platform
from typing import Any

import numpy
import torch

import decoct

from ..ops._backend import MODULES, load

__all__ = ["collect", "register"]


def register(subparsers: Any) -> None:
    """Add the command to the program's parser."""
    parser = subparsers.add_parser(
        "info",
        help="print versions, instruction set, threads and CUDA state",
        description="Print versions, instruction set, threads and CUDA state, for reports of bugs.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """The command; returns the exit code: 1 where the CPU module does not work."""
    facts = collect()
    if arguments.json:
        print(json.dumps(facts, indent=1))
    else:
        flat = {
            f"{group} {name}" if name else group: value
            for group, entry in facts.items()
            for name, value in (entry.items() if isinstance(entry, dict) else [("", entry)])
        }
        width = max(map(len, flat))
        for name, value in flat.items():
            print(f"{name:<{width}}  {_text(value)}")
    return 0 if facts["cpu"]["works"] else 1


def collect() -> dict[str, Any]:
    """The facts, in plain JSON types."""
    return {
        "decoct": decoct.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": numpy.__version__,
        "platform": platform.platform(),
        "cpu": _cpu(),
        "threads": torch.get_num_threads(),
        "cuda": _cuda(),
    }


def _cpu() -> dict[str, Any]:
    facts: dict[str, Any] = {"works": False}
    forced = os.environ.get("DECOCT_ISA")
    if forced:
        facts["DECOCT_ISA"] = forced
    engine, problem = load(MODULES["cpu"])
    if problem is None:
        try:
            # The other facts first: the name of the instruction set wins where both tell it.
            facts.update({**engine.info(), "isa": engine.isa(), "works": True})
        except RuntimeError as error:
            problem = str(error)
    if problem is not None:
        facts["problem"] = problem
    return facts


def _cuda() -> dict[str, Any]:
    """is_available() asks the driver how many devices there are and makes no context on any of them."""
    facts: dict[str, Any] = {"torch_built_with": torch.version.cuda, "available": torch.cuda.is_available()}
    if facts["available"]:
        facts["devices"] = torch.cuda.device_count()
    engine, problem = load(MODULES["cuda"])
    facts["kernels"] = engine is not None
    if problem is not None:
        missing = problem.startswith("decoct._cuda is missing")
        facts["problem"] = "no CUDA kernels in this build" if missing else problem
    return facts


def _text(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
