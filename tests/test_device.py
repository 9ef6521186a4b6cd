"""That --backend cuda tests the device: calls of the tests go there, results come back."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import conftest
import decoct
import table
from samples import OPS, Op
from table import rows

NOWHERE = r"device meta|meta tensor|unsupported scalarType"
"""What decoct, torch and torch.autocast say of the device that stands for one with kernels here: its tensors
have no numbers."""


class Pair(NamedTuple):
    first: Tensor
    second: int


def test_what_is_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "DEVICE", "meta")
    x = rows(3, 2)
    seen: dict[str, Any] = {}

    def look(a: Tensor, several: list[Tensor], **named: Any) -> float:
        seen.update(a=a, several=several, **named)
        return 1.5

    named = {"pair": Pair(x, 3), "both": (x, None), "x_offsets": torch.tensor([0, 3]), "numbers": [0, 3]}
    assert table.on_device(look)(x, [x, x], **named) == 1.5
    there = {"a": seen["a"], "list": seen["several"][1], "pair": seen["pair"].first, "both": seen["both"][0]}
    assert {name: tensor.device.type for name, tensor in there.items()} == dict.fromkeys(there, "meta")
    assert seen["pair"].second == 3
    assert seen["both"][1] is None
    assert seen["numbers"] == [0, 3]
    assert seen["x_offsets"].device.type == "cpu"
    assert x.device.type == "cpu"


@pytest.mark.parametrize("op", OPS.values(), ids=OPS.keys())
def test_every_op_goes_to_the_device(op: Op, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = op.call(5, 4, 3, 2.0).cast(torch.float32)
    op.function(**arguments)
    conftest.use_device(monkeypatch, "meta")
    with pytest.raises((RuntimeError, NotImplementedError), match=NOWHERE):
        op.function(**arguments)


CALLS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(
        ("mmd", "kernel_mean", "mean_bandwidth", "median_bandwidth", "sinkhorn_divergence"),
        (rows(5, 3), rows(4, 3)),
    ),
    "sinkhorn_potentials": (rows(5, 3), rows(4, 3)),
    "kernel_matvec": (rows(5, 3), rows(4, 3), rows(4)),
    "apply_plan": (rows(5, 3), rows(4, 3), rows(4)),
    "gradient_distance": ([rows(4, 3)], [rows(4, 3, seed=1)]),
    "linear_head_gradients": (rows(5, 3), torch.arange(5) % 2, rows(2, 3)),
    "group_norm": (rows(2, 4, 5), 2),
    "instance_norm": (rows(2, 4, 5),),
    "characteristic_mean": (rows(5, 3), rows(4, 3)),
    "segment_moments": (rows(5, 3),),
    "random_projection": (rows(5, 3), 4),
}
NAMED = {"apply_plan": {"f": rows(5), "g": rows(4)}}


@pytest.mark.parametrize("name", table.MOVED)
def test_every_public_function_goes_to_the_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    conftest.use_device(monkeypatch, "meta")
    with pytest.raises((RuntimeError, NotImplementedError), match=NOWHERE):
        getattr(decoct, name)(*CALLS[name], **NAMED.get(name, {}))
