"""Condensed sets on disk: one safetensors file with metadata, and the .pt files that other tools load."""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._extras import require

__all__ = ["Condensed", "read", "tensor_hash", "versions", "write", "write_bytes"]

FILE = "condensed.safetensors"
FORMAT = 1

# What lr.pt holds where no learning rate was learned: the one that published evaluations train with.
PUBLISHED_LR = 0.01


@dataclass(frozen=True)
class Condensed:
    """A condensed set as read from a folder: rows x, labels y, learned learning rate or None, and metadata.

    initial: the rows from which condensation began, or None where they were not kept. stored, stored_y: what
    has to be kept of a set whose rows are decoded from fewer ones, else None; `kept` is right for both.
    """

    x: Tensor
    y: Tensor
    lr: float | None
    metadata: dict[str, Any] = field(default_factory=dict)
    initial: Tensor | None = None
    stored: Tensor | None = None
    stored_y: Tensor | None = None

    @property
    def kept(self) -> tuple[Tensor, Tensor]:
        """What the set costs to keep: the stored rows and their labels."""
        if self.stored is None or self.stored_y is None:
            return self.x, self.y
        return self.stored, self.stored_y


def write(
    folder: str | os.PathLike[str],
    x: Tensor,
    y: Tensor,
    metadata: Mapping[str, Any],
    lr: float | Tensor | None = None,
    *,
    initial: Tensor | None = None,
    stored: tuple[Tensor, Tensor] | None = None,
) -> Path:
    """Write a condensed set into `folder` (made where missing); returns the path of the safetensors file.

    x: (M, ...) rows, normalised as the networks see them; y: (M,) class ids or (M, C) soft labels.
    metadata: plain values (method, seed, command, data hashes ...); versions, shapes and the SHA-256 of
    every tensor are added. lr: a learned learning rate. stored: where the rows x are decoded from fewer ones,
    those and their labels. initial: what is stored, before condensation, for pictures.

    Beside ``condensed.safetensors`` stand ``images.pt``, ``labels.pt`` and ``lr.pt``: plain tensors for
    ``torch.load(..., weights_only=True)``; without a learned rate lr.pt holds 0.01. With stored rows there
    are ``stored.pt`` and ``stored_labels.pt``, too. Each file is written
    under a temporary name and renamed, the safetensors file last. Raises ValueError where x and y disagree
    or x is not finite.
    """
    if len(x) != len(y):
        raise ValueError(f"export: y must have {len(x)} rows as x has, got {tuple(y.shape)}")
    kept, kept_y = (x, y) if stored is None else stored
    if len(kept) != len(kept_y):
        raise ValueError(f"export: stored must hold {len(kept)} labels as it has rows, got {len(kept_y)}")
    if initial is not None and initial.shape != kept.shape:
        raise ValueError(
            f"export: initial must be {tuple(kept.shape)} as what is stored is, got {tuple(initial.shape)}"
        )
    if not bool(torch.isfinite(x).all()):
        raise ValueError("export: x holds NaN or infinite values")
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    tensors = {"x": _plain(x), "y": _plain(y)}
    if lr is not None:
        tensors["lr"] = torch.as_tensor(lr, dtype=torch.float32).detach().cpu().reshape(())
    plain = {"images": tensors["x"], "labels": tensors["y"]}
    if stored is not None:
        tensors["stored"], tensors["stored_y"] = _plain(kept), _plain(kept_y)
        plain |= {"stored": tensors["stored"], "stored_labels": tensors["stored_y"]}
    for name, tensor in plain.items():
        write_bytes(target / f"{name}.pt", _torch_bytes(tensor))
    write_bytes(target / "lr.pt", _torch_bytes(tensors.get("lr", torch.tensor(PUBLISHED_LR))))
    described = {
        **metadata,
        "format": FORMAT,
        "versions": versions(),
        "lr_learned": lr is not None,
        "hashes": {name: tensor_hash(tensor) for name, tensor in tensors.items()},
    }
    if initial is not None:
        tensors["initial"] = _plain(initial)
    text = json.dumps(described, sort_keys=True, allow_nan=False)
    data: bytes = require("safetensors.torch").save(tensors, metadata={"decoct": text})
    write_bytes(target / FILE, data)
    return target / FILE


def read(folder: str | os.PathLike[str]) -> Condensed:
    """Read what `write` wrote. FileNotFoundError where there is none, ValueError where it is damaged."""
    path = Path(folder) / FILE
    if not path.is_file():
        raise FileNotFoundError(f"export: no condensed set here: {path}")
    safetensors = require("safetensors")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {})["decoct"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"export: {path} is not a condensed set of this program ({error})") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"export: {path} has format {metadata.get('format')}, this version reads format {FORMAT}"
        )
    for name, expected in metadata["hashes"].items():
        if name not in tensors or tensor_hash(tensors[name]) != expected:
            raise ValueError(
                f"export: {path}: tensor {name} is missing or does not have the hash the file states"
            )
    lr = float(tensors["lr"]) if "lr" in tensors else None
    extra = (tensors.get(name) for name in ("initial", "stored", "stored_y"))
    return Condensed(tensors["x"], tensors["y"], lr, metadata, *extra)


def tensor_hash(tensor: Tensor) -> str:
    """SHA-256 over dtype, shape and values."""
    plain = _plain(tensor)
    digest = hashlib.sha256(f"{plain.dtype} {tuple(plain.shape)}".encode())
    digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Versions that can change results."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        own = version("decoct")
    except PackageNotFoundError:
        own = "not installed"
    return {
        "decoct": own,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: under a temporary name in the same folder, then renamed."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _plain(tensor: Tensor) -> Tensor:
    # A fresh copy: the safetensors format takes no views, and torch.save would write a view's whole storage.
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _torch_bytes(tensor: Tensor) -> bytes:
    buffer = io.BytesIO()
    torch.save(tensor, buffer)
    return buffer.getvalue()
