"""Checkpoints: written whole or not at all, and loaded without running any code they might carry."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import torch

from .export import write_bytes

__all__ = ["load", "save"]


def save(path: str | os.PathLike[str], state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, strings, lists, dicts) to `path`: a temporary name, then a rename."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_bytes(Path(path), buffer.getvalue())


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint. FileNotFoundError without one, ValueError where the file is something else."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # the unpickler raises many kinds
        raise ValueError(f"checkpoint: load: {os.fspath(path)} is no readable checkpoint") from error
    if not isinstance(state, dict) or "step" not in state:
        raise ValueError(f"checkpoint: load: {os.fspath(path)} is no checkpoint of a condensation")
    return state
