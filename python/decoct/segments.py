"""Host offsets of ragged rows, checked once and reused."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

__all__ = ["Segments", "host_offsets"]


class Segments:
    """Where the segments of packed rows begin and end: segment ``c`` is rows ``offsets[c]:offsets[c + 1]``.

    ``Segments([0, 3, 3, 10])`` has three segments of 3, 0 and 7 rows. It is accepted wherever an op takes
    ``x_offsets`` or ``y_offsets``; building one checks the offsets once (start at 0, never fall), so ops only
    compare the last one with the number of rows.

    Parameters
    ----------
    offsets : int64 tensor, list or other sequence of C + 1 integers. A CUDA tensor is copied to the host,
        which waits for the device once, and is a RuntimeError while a CUDA graph is captured.
    """

    def __init__(self, offsets: Tensor | Sequence[int] | Segments) -> None:
        self.offsets: Tensor = host_offsets("Segments", "offsets", offsets).clone()
        self.rows: int = int(self.offsets[-1])

    @classmethod
    def from_lengths(cls, lengths: Tensor | Iterable[int]) -> Segments:
        """Segments of these many rows each."""
        values = lengths.tolist() if isinstance(lengths, Tensor) else list(lengths)
        offsets = [0]
        for length in values:
            if length < 0:
                raise ValueError(f"Segments: lengths must not be negative, got {length}")
            offsets.append(offsets[-1] + int(length))
        return cls(offsets)

    @property
    def lengths(self) -> Tensor:
        """Rows in each segment, int64 (C,)."""
        return self.offsets.diff()

    def __len__(self) -> int:
        return self.offsets.shape[0] - 1

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Segments) and torch.equal(self.offsets, other.offsets)

    def __hash__(self) -> int:
        return hash(tuple(self.offsets.tolist()))

    def __repr__(self) -> str:
        few = len(self) <= 8
        return f"Segments({self.offsets.tolist()})" if few else f"Segments({len(self)} of {self.rows} rows)"


def host_offsets(op: str, name: str, offsets: Tensor | Sequence[int] | Segments) -> Tensor:
    """Checked host int64 offsets of what a user passed as offsets."""
    if isinstance(offsets, Segments):
        return offsets.offsets
    if isinstance(offsets, Tensor):
        if offsets.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"{op}: {name} must be int64, got {str(offsets.dtype).removeprefix('torch.')}")
        if offsets.dim() != 1 or offsets.shape[0] == 0:
            raise ValueError(f"{op}: {name} must be (C+1,), got {tuple(offsets.shape)}")
        if offsets.is_cuda and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                f"{op}: {name} is on {offsets.device} and reading it would end the capture of a CUDA graph; "
                "build decoct.Segments from it before the capture"
            )
        host = offsets.detach().to(device="cpu", dtype=torch.int64).contiguous()
    else:
        if isinstance(offsets, str) or not isinstance(offsets, Sequence):
            raise TypeError(
                f"{op}: {name} must be a tensor, a list of ints or decoct.Segments, "
                f"got {type(offsets).__name__}"
            )
        if len(offsets) == 0:
            raise ValueError(f"{op}: {name} must be (C+1,), got (0,)")
        if not all(isinstance(offset, int) for offset in offsets):
            raise TypeError(f"{op}: {name} must hold ints only, got {list(offsets)[:4]}")
        host = torch.tensor(list(offsets), dtype=torch.int64)
    # Values are data: while a graph is traced they are unknown, and the op itself checks them when it runs.
    if not torch.compiler.is_compiling() and (int(host[0]) != 0 or bool((host.diff() < 0).any())):
        shown = host.tolist() if host.shape[0] <= 8 else [*host[:8].tolist(), "..."]
        raise ValueError(f"{op}: {name} must start at 0 and never fall, got {shown}")
    return host
