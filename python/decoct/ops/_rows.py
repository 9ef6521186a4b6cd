"""Ragged rows in plain torch: per-segment values out to the rows, row values summed into segments."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

__all__ = ["lengths", "segment_ids", "segment_totals", "spread"]


@functools.lru_cache(maxsize=256)
def _kept_counts(offsets: bytes, device: torch.device) -> Tensor:
    return torch.frombuffer(bytearray(offsets), dtype=torch.int64).diff().to(device)


def _counts(offsets: Tensor, device: torch.device) -> Tensor:
    """Rows in each segment, int64 on a device. The copy is kept: one from the host would end the capture of a
    CUDA graph."""
    traced = torch.compiler.is_compiling() or type(offsets) is not Tensor
    if device.type == "cpu" or traced:
        return offsets.diff().to(device)
    return _kept_counts(offsets.numpy().tobytes(), device)


def lengths(offsets: Tensor | None, rows: int, segments: int, device: torch.device) -> Tensor:
    """Rows in each segment, float64 (C,); offsets None stands for equal segments."""
    if offsets is None:
        each = rows // segments if segments else 0
        return torch.full((segments,), each, dtype=torch.float64, device=device)
    return _counts(offsets, device).to(torch.float64)


def segment_ids(offsets: Tensor, rows: int, device: torch.device) -> Tensor:
    """The segment of each row, (rows,)."""
    counts = _counts(offsets, device)
    return torch.repeat_interleave(torch.arange(counts.shape[0], device=device), counts, output_size=rows)


def spread(values: Tensor, offsets: Tensor | None, rows: int, segments: int) -> Tensor:
    """Per-segment values (C, ...) repeated for each row of the segment, (rows, ...)."""
    if offsets is not None:
        return values.index_select(0, segment_ids(offsets, rows, values.device))
    if segments == 0:
        return values.new_empty((0, *values.shape[1:]))
    each = rows // segments
    return values[:, None].expand(segments, each, *values.shape[1:]).reshape(rows, *values.shape[1:])


def segment_totals(values: Tensor, offsets: Tensor | None, segments: int) -> Tensor:
    """Sums of row values (N, ...) over each segment, (C, ...). Plain torch, for use under torch.func."""
    if offsets is None:
        if segments == 0:
            return values.new_zeros((0, *values.shape[1:]))
        return values.reshape(segments, values.shape[0] // segments, *values.shape[1:]).sum(1)
    ids = segment_ids(offsets, values.shape[0], values.device)
    return values.new_zeros((segments, *values.shape[1:])).index_add(0, ids, values)
