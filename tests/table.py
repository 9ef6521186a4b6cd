"""What a row of the table of ops is made of: inputs, samples, and refusals that ops on two clouds share."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
DEVICE = "cpu"
"""Where ops of the table run; inputs and results are on the CPU all the same."""
MOVED = (
    *("apply_plan", "sinkhorn_divergence", "sinkhorn_potentials"),
    *("mmd", "kernel_mean", "kernel_matvec", "mean_bandwidth", "median_bandwidth"),
    *("gradient_distance", "linear_head_gradients", "group_norm", "instance_norm"),
    *("characteristic_mean", "segment_moments", "random_projection"),
)
"""Public functions of tensors alone, by their names in decoct: what tests call there runs on DEVICE too."""


def rows(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64, shift: float = 0.0) -> Tensor:
    """Standard normal rows, the same for the same shape and seed, representable in 16 bits."""
    generator = torch.Generator().manual_seed(zlib.crc32(repr((shape, seed)).encode()))
    drawn = torch.randn(shape, generator=generator, dtype=torch.float64) + shift
    return drawn.bfloat16().to(dtype)


def weights(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Positive weights that sum to about 1."""
    return ((rows(*shape, seed=seed).abs() + 0.1) / shape[-1]).bfloat16().to(dtype)


def on_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of tensors, and of lists and tuples of them, that moves them to DEVICE and its results back.
    Offsets stay on the host."""

    def move(value: Any, device: str) -> Any:
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*(move(part, device) for part in value))
        if isinstance(value, (list, tuple)):
            return type(value)([move(part, device) for part in value])
        here = isinstance(value, Tensor) and value.device.type in ("cpu", DEVICE)
        return value.to(device) if here else value

    def call(*positional: Any, **named: Any) -> Any:
        moved = {k: v if k.endswith("offsets") else move(v, DEVICE) for k, v in named.items()}
        return move(function(*(move(value, DEVICE) for value in positional), **moved), "cpu")

    return call


@dataclass(frozen=True)
class Sample:
    """One call: tensors that may be differentiated, and the rest. `typed` names those that come in the dtype
    that is tested, None means all of them."""

    name: str
    tensors: dict[str, Tensor]
    options: dict[str, Any]
    typed: tuple[str, ...] | None = ("x", "y")
    # What the op's twin gives, once it is known.
    twins: dict[Any, Any] = field(default_factory=dict, init=False, compare=False, repr=False)

    def is_typed(self, name: str) -> bool:
        return self.typed is None or name in self.typed

    def cast(self, dtype: torch.dtype, requires_grad: bool = False) -> dict[str, Any]:
        """Arguments with fresh tensors; weights and vectors stay in the compute dtype of 16-bit rows."""
        compute = torch.float64 if dtype == torch.float64 else torch.float32
        fresh = {}
        for name, tensor in self.tensors.items():
            target = dtype if self.is_typed(name) else compute
            fresh[name] = tensor.detach().clone().to(target).requires_grad_(requires_grad)
        return {**fresh, **self.options}


def without_first(sample: Sample) -> Sample | None:
    """A sample of other sizes: each tensor but for its first row. None where offsets forbid it."""
    if "x_offsets" in sample.options:
        return None
    return replace(sample, tensors={name: tensor[1:] for name, tensor in sample.tensors.items()})


_made: dict[str, dict[str, Sample]] = {}
"""Op -> name -> sample."""


@dataclass(frozen=True)
class Op:
    """A row of the table. An op on two clouds x and y is held to the rules about rows and segments too; any
    other one says by `example` what a small call takes, all of whose tensors are in the dtype that is
    tested."""

    name: str
    public: Callable[..., Tensor]
    reference: Callable[..., Tensor]
    samples: Callable[[], Iterator[Sample]]
    errors: Callable[[], Iterator[tuple[type[Exception], str, dict[str, Any]]]]
    scale: Callable[[dict[str, Any]], float]  # bounds the terms of which a value is made
    variants: dict[str, dict[str, Any]]
    invariant: tuple[str, ...]  # variants that a shift of all rows does not change
    compiled: tuple[str, ...]  # samples that are compiled
    length: str | None = "bandwidth"  # the argument that is a length
    solved_to: Callable[[torch.dtype], float] = lambda dtype: 0.0  # what the op iterates to
    checked: Callable[..., Tensor] | None = None  # what refuses, where `public` stands for more than the op
    example: Callable[[], dict[str, Tensor]] | None = None  # of an op without clouds
    large: Callable[[], Sample] | None = None  # of an op without clouds: a call for several threads
    shorter: Callable[[Sample], Sample | None] = without_first  # a compiled sample in other sizes
    same_bits: tuple[str, ...] | None = None  # results that no number of threads changes; None: all
    any_order: bool = False  # derivatives of every order are offered
    result_as_input: bool = False  # results are in the dtype of the inputs, not in the one of computation
    differentiable: bool = True  # False: asking for a gradient raises

    def options(self, length: Any, variant: str | None = None) -> dict[str, Any]:
        """A length and one of the variants, the first unless it is named."""
        chosen = self.variants[variant or next(iter(self.variants))]
        return dict(chosen) if self.length is None else {self.length: length, **chosen}

    def names(self, sample: Sample) -> list[str]:
        """Inputs that a sample is differentiated by."""
        return list(sample.tensors) if self.differentiable else []

    @property
    def has_clouds(self) -> bool:
        return self.example is None

    def call(self, n: int, m: int, d: int, length: Any, variant: str | None = None) -> Sample:
        """A call on clouds of these sizes; of an op without clouds its example."""
        if self.example is not None:
            return Sample("example", self.example(), self.options(length, variant), typed=None)
        tensors = tensors_for(self, rows(n, d), rows(m, d, seed=1))
        return Sample("example", tensors, self.options(length, variant))

    @property
    def has_rows(self) -> bool:
        """Whether the result has one entry for each row of x, not for each segment."""
        return self.name in ("kernel_matvec", "apply_plan")

    @property
    def function(self) -> Callable[..., Tensor]:
        """The public function, on DEVICE."""
        return self.public if DEVICE == "cpu" else on_device(self.public)

    def sample(self, name: str) -> Sample:
        """The same object at every call."""
        if self.name not in _made:
            _made[self.name] = {sample.name: sample for sample in self.samples()}
        return _made[self.name][name]


def tensors_for(op: Op, x: Tensor, y: Tensor, seed: int = 3) -> dict[str, Tensor]:
    """The tensors of a call on these clouds: weights for ops that take them, else vectors and potentials."""
    vector = {"x": x, "y": y, "v": rows(y.shape[0], seed=seed)}
    if op.name == "kernel_matvec":
        return vector
    if op.name == "apply_plan":
        return {**vector, "f": rows(x.shape[0], seed=seed + 1), "g": rows(y.shape[0], seed=seed + 2)}
    return {"x": x, "y": y, "a": weights(x.shape[0], seed=seed), "b": weights(y.shape[0], seed=seed)}


RAGGED = {"x_offsets": [0, 3, 3, 10, 41, 43], "y_offsets": [0, 5, 9, 9, 11, 19]}


Errors = Iterator[tuple[type[Exception], str, dict[str, Any]]]


FLOATS = "float64, float32, float16 or bfloat16"


def cases(op: str) -> Callable[..., tuple[type[Exception], str, dict[str, Any]]]:
    """Refusals of an op: type, exact message, arguments that differ from good ones."""
    x, y = rows(10, 4), rows(6, 4)
    extra = {"v": rows(6)} if op in ("kernel_matvec", "apply_plan") else {}
    if op == "apply_plan":
        extra |= {"f": rows(10), "g": rows(6)}

    def case(
        kind: type[Exception], message: str, **changes: Any
    ) -> tuple[type[Exception], str, dict[str, Any]]:
        return kind, f"{op}: {message}", {"x": x, "y": y, **extra, **changes}

    return case


def row_errors(op: str) -> Errors:
    """Refusals that all ops on two clouds share."""
    x, y, case, floats = rows(10, 4), rows(6, 4), cases(op), FLOATS
    yield case(TypeError, "x must be a tensor, got list", x=[1.0])
    yield case(TypeError, "y must be a tensor, got ndarray", y=y.numpy())
    yield case(TypeError, f"x must be {floats}, got int64", x=torch.ones(10, 4, dtype=torch.int64))
    yield case(TypeError, f"y must be {floats}, got bool", y=torch.ones(6, 4, dtype=torch.bool))
    yield case(TypeError, f"x must be {floats}, got complex64", x=torch.ones(10, 4, dtype=torch.complex64))
    yield case(ValueError, "y must be on the device of x, cpu, got meta", y=y.to("meta"))
    yield case(ValueError, "x must be (N, D) or (B, N, D), got (4,)", x=x[0])
    yield case(ValueError, "x must be at least one column wide, got (10, 0)", x=x[:, :0])
    yield case(ValueError, "y must be (M, D) with D=4 as in x, got (6, 3)", y=y[:, :3])
    yield case(ValueError, "y must be (M, D) with D=4 as in x, got (1, 6, 4)", y=y[None])
    yield case(
        ValueError,
        "y must be (B, M, D) with B=2 and D=4 as in x, got (3, 6, 4)",
        x=rows(2, 5, 4),
        y=rows(3, 6, 4),
    )
    yield case(
        ValueError, "x must be (N, D) with x_offsets, got (2, 5, 4)", x=rows(2, 5, 4), **ends([0, 5], [0, 6])
    )
    yield case(ValueError, "y_offsets must be given with x_offsets, got None", x_offsets=[0, 10])
    yield case(ValueError, "x_offsets must be given with y_offsets, got None", y_offsets=[0, 6])
    yield case(ValueError, "x_offsets must start at 0 and never fall, got [1, 10]", **ends([1, 10], [0, 6]))
    yield case(
        ValueError,
        "y_offsets must start at 0 and never fall, got [0, 5, 4, 6]",
        **ends([0, 10], [0, 5, 4, 6]),
    )
    yield case(ValueError, "x_offsets must end at N=10, the rows of x, got 9", **ends([0, 9], [0, 6]))
    yield case(ValueError, "y_offsets must end at M=6, the rows of y, got 7", **ends([0, 10], [0, 7]))
    yield case(
        ValueError, "y_offsets must be (C+1,) with C=2 as in x_offsets, got (2,)", **ends([0, 3, 10], [0, 6])
    )
    yield case(ValueError, "x_offsets must be (C+1,), got (1, 2)", **ends(torch.tensor([[0, 10]]), [0, 6]))
    yield case(ValueError, "x_offsets must be (C+1,), got (0,)", **ends([], [0, 6]))
    yield case(TypeError, "x_offsets must be int64, got float32", **ends(torch.tensor([0.0, 10.0]), [0, 6]))
    yield case(TypeError, "y_offsets must hold ints only, got [0, 6.0]", **ends([0, 10], [0, 6.0]))
    yield case(
        TypeError,
        "x_offsets must be a tensor, a list of ints or decoct.Segments, got int",
        **ends(10, [0, 6]),
    )


def ends(x_offsets: Any, y_offsets: Any) -> dict[str, Any]:
    return {"x_offsets": x_offsets, "y_offsets": y_offsets}


def weight_errors(op: str, shared: Callable[[str], Errors]) -> Errors:
    case = cases(op)
    yield from shared(op)
    yield case(ValueError, "a must be (N,) with N=10 as in x, got (9,)", a=weights(9))
    yield case(ValueError, "b must be (M,) with M=6 as in y, got (6, 1)", b=weights(6, 1))
    batch = {"x": rows(2, 5, 4), "y": rows(2, 3, 4)}
    yield case(ValueError, "a must be (B, N) with B=2 and N=5 as in x, got (5,)", **batch, a=weights(5))
    yield case(TypeError, "a must be a tensor, got list", a=[0.1] * 10)
    yield case(TypeError, f"b must be {FLOATS}, got int64", b=torch.ones(6, dtype=torch.int64))
    yield case(ValueError, "a must be on the device of x, cpu, got meta", a=weights(10).to("meta"))
