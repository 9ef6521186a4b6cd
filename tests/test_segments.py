"""Segments, and what ops accept as offsets."""

from __future__ import annotations

import pytest
import torch

import decoct
from decoct import Segments
from decoct.ops import _rows
from samples import rows


def test_reads_like_what_it_is() -> None:
    segments = Segments([0, 3, 3, 10])
    assert len(segments) == 3
    assert segments.rows == 10
    assert segments.lengths.tolist() == [3, 0, 7]
    assert segments.offsets.dtype == torch.int64
    assert repr(segments) == "Segments([0, 3, 3, 10])"
    assert repr(Segments(list(range(100)))) == "Segments(99 of 99 rows)"
    assert (
        segments
        == Segments.from_lengths([3, 0, 7])
        == Segments(torch.tensor([0, 3, 3, 10], dtype=torch.int32))
    )
    assert segments == Segments(segments)
    assert segments != Segments([0, 10])
    assert {segments: 1}[Segments([0, 3, 3, 10])] == 1


def test_keeps_its_own_copy() -> None:
    """Writing to the tensor it was built from does not move its ends."""
    ends = torch.tensor([0, 3, 10])
    segments = Segments(ends)
    ends[1] = 9
    assert segments.offsets.tolist() == [0, 3, 10]


def test_all_forms_of_offsets_agree() -> None:
    x, y = rows(10, 3), rows(6, 3)
    forms = [
        ([0, 4, 10], [0, 1, 6]),
        ((0, 4, 10), (0, 1, 6)),
        (torch.tensor([0, 4, 10]), torch.tensor([0, 1, 6], dtype=torch.int32)),
        (torch.tensor([0, 7, 4, 7, 10, 7])[::2], torch.tensor([0, 1, 6])),
        (Segments([0, 4, 10]), Segments.from_lengths(torch.tensor([1, 5]))),
    ]
    values = [decoct.mmd(x, y, x_offsets=p, y_offsets=q) for p, q in forms]
    assert all(torch.equal(value, values[0]) for value in values)


@pytest.mark.parametrize(
    ("offsets", "error", "message"),
    [
        ([1, 2], ValueError, "Segments: offsets must start at 0 and never fall, got "),
        ([0, 2, 1], ValueError, "Segments: offsets must start at 0 and never fall, got "),
        ([], ValueError, "Segments: offsets must be "),
        (torch.zeros(2, 2, dtype=torch.int64), ValueError, "Segments: offsets must be "),
        (torch.zeros(2), TypeError, "Segments: offsets must be int64, got float32"),
        ("0123", TypeError, "Segments: offsets must be a tensor, a list of ints or decoct.Segments, got str"),
    ],
)
def test_refusals(offsets: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        Segments(offsets)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="lengths must not be negative"):
        Segments.from_lengths([1, -1])


def test_long_bad_offsets_are_shown_in_part() -> None:
    with pytest.raises(ValueError, match=r"got \[0, 1, 2, 3, 4, 5, 6, 7, '\.\.\.'\]"):
        Segments([*range(20), 3])


def test_counts_on_a_device_are_copied_once() -> None:
    """A copy from the host would end the capture of a CUDA graph. `meta` stands for a device here."""
    offsets, device = torch.tensor([0, 3, 7]), torch.device("meta")
    assert _rows._counts(offsets, device) is _rows._counts(offsets.clone(), device)
    assert _rows._counts(offsets, torch.device("cpu")).tolist() == [3, 4]
