"""Memory of large results on the CPU is used again, and never while anybody holds it."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

import decoct
from decoct.ops import _memory
from decoct.ops._memory import KEPT, LENT_FROM, release_scratch, result

ROWS = LENT_FROM // 4
PLAIN = torch.zeros(())


@pytest.fixture(autouse=True)
def _nothing_kept() -> Iterator[None]:
    gc.collect()
    release_scratch()
    yield
    release_scratch()


def large(rows: int = ROWS, dtype: torch.dtype = torch.float32) -> Tensor:
    return result(PLAIN, (rows,), dtype)


def test_a_result_lies_where_one_was_that_is_gone() -> None:
    first = large()
    at = first.data_ptr()
    del first
    assert large().data_ptr() == at
    assert large(ROWS // 2, torch.float64).data_ptr() == at  # as many bytes
    assert at % 64 == 0


def test_memory_of_another_size_is_not_used() -> None:
    other = large(2 * ROWS)
    at = other.data_ptr()
    del other
    first = large()
    assert first.shape == (ROWS,)
    assert first.data_ptr() != at
    assert large(2 * ROWS).data_ptr() == at


HOLDERS = {
    "itself": lambda t: t,
    "view": lambda t: t[5:7],
    "transposed": lambda t: t.view(2, -1).T,
    "detached": lambda t: t.detach(),
    "alias": lambda t: torch.ops.aten.alias(t),
    "storage": lambda t: t.untyped_storage(),
    "numpy": lambda t: t.numpy(),
    "part of numpy": lambda t: t.numpy()[3:4],
    "dlpack": lambda t: np.from_dlpack(t),
    "saved for backward": lambda t: torch.ones(ROWS, requires_grad=True) * t,
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_memory_that_is_held_in_any_way_is_not_used_again(holder: str) -> None:
    first = large()
    at = first.data_ptr()
    held = HOLDERS[holder](first)
    del first
    gc.collect()
    others = [large() for _ in range(3)]
    assert at not in [other.data_ptr() for other in others]
    del held
    gc.collect()
    assert large().data_ptr() == at


def test_a_gradient_that_is_kept_does_not_change() -> None:
    rows = LENT_FROM // 64 + 1
    generator = torch.Generator().manual_seed(0)
    real, synthetic, other = (torch.randn(rows, 16, generator=generator) for _ in range(3))
    y = synthetic.clone().requires_grad_()
    decoct.gradient_distance([real], [y]).backward()
    assert y.grad is not None
    kept = y.grad.clone()
    for _ in range(3):
        z = other.clone().requires_grad_()
        decoct.gradient_distance([real], [z]).backward()
        assert torch.equal(y.grad, kept)
        assert z.grad is not None
        assert not torch.equal(z.grad, kept)


@pytest.mark.parametrize(
    ("rows", "dtype"), [(16, torch.float32), (ROWS, torch.int64), (ROWS, torch.bfloat16), (0, torch.float64)]
)
def test_small_and_other_results_are_plain(rows: int, dtype: torch.dtype) -> None:
    first = large(rows, dtype)
    assert first.shape == (rows,)
    assert first.dtype == dtype
    del first
    assert not _memory._results._free


def test_channels_last() -> None:
    images = result(PLAIN, (2, 3, 1200, 1200), torch.float32, torch.channels_last)
    assert images.shape == (2, 3, 1200, 1200)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert images._base is None


def test_what_is_kept_is_bounded_and_given_back() -> None:
    rows = KEPT // 4 // 3
    several = [large(rows) for _ in range(5)]
    assert len({one.data_ptr() for one in several}) == 5
    del several
    assert sum(block.nbytes for block in _memory._results._free) <= KEPT
    assert len(_memory._results._free) == 3
    release_scratch()
    assert not _memory._results._free
    assert large(KEPT // 4 + 1).numel() == KEPT // 4 + 1  # larger than what is kept
    assert not _memory._results._free


def test_threads_never_share_memory() -> None:
    failures: list[int] = []

    def work(own: int) -> None:
        for _ in range(300):
            mine = large()
            mine[0] = mine[-1] = own
            torch.add(mine[:64], 0)  # lets other threads run
            if not (mine[0] == own and mine[-1] == own):
                failures.append(own)

    threads = [threading.Thread(target=work, args=(own,)) for own in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert not _memory._results._lent
