"""Finished trainings in a file: an interrupted evaluation goes on, a larger one repeats nothing."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch

from .. import __version__
from ..objectives import Measure
from .base import Learner

__all__ = ["Journal", "digest"]


class Journal:
    """Outcomes (accuracy in per cent, seconds) by `key`, one JSON line each; a line cut short is left out.

    path: written at the first `add`, a line at a time. Two processes may append to one file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._outcomes: dict[str, tuple[float, float]] = {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
            try:
                entry = json.loads(line)
                self._outcomes[entry["key"]] = (float(entry["accuracy"]), float(entry["seconds"]))
            except (ValueError, KeyError, TypeError):
                continue

    def get(self, key: str) -> tuple[float, float] | None:
        """The outcome of an earlier run, or None."""
        return self._outcomes.get(key)

    def add(self, key: str, outcome: tuple[float, float], text: str = "") -> None:
        """Keep an outcome; `text` says to a reader which run it was."""
        self._outcomes[key] = outcome
        accuracy, seconds = outcome
        line = json.dumps({"run": text, "accuracy": accuracy, "seconds": round(seconds, 3), "key": key})
        with self.path.open("a+b") as file:
            # After a line cut short the next one would be lost with it.
            file.seek(0, 2)
            if file.tell():
                file.seek(-1, 2)
                line = line if file.read(1) == b"\n" else f"\n{line}"
            file.write(f"{line}\n".encode())


def digest(data: object, learner: Learner, measure: Measure, seed: int) -> str:
    """Names a training by all that its outcome depends on: `data` stands for the test split.

    A learner is known by its repr, which must name its settings, and this package by its version: who works
    on the learners starts a new journal.
    """
    sha = hashlib.sha256(repr((__version__, torch.__version__, data, learner, seed)).encode())
    for tensor in (measure.x, measure.y, measure.mass):
        if tensor is not None:
            sha.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            sha.update(tensor.detach().contiguous().view(torch.uint8).numpy().data)
    return sha.hexdigest()[:32]
