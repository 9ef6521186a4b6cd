"""The table of ops: what each is compared with, on which inputs, which arguments are differentiable, which
inputs are refused and with what words. test_contract.py runs every rule over every row of it."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import decoct
from decoct import reference
from decoct.kernels import (
    Energy,
    Gaussian,
    InverseMultiquadric,
    Kernel,
    Laplacian,
    Linear,
    Polynomial,
    RationalQuadratic,
)

KERNELS: dict[str, Kernel] = {
    "gaussian": Gaussian(),
    "gaussian-5": Gaussian(scales=(0.25, 0.5, 1, 2, 4)),
    "laplacian": Laplacian(),
    "laplacian-2": Laplacian(scales=(0.5, 3)),
    "energy": Energy(),
    "inverse-multiquadric": InverseMultiquadric(scales=(1, 2)),
    "rational-quadratic": RationalQuadratic(alpha=0.7),
    "polynomial": Polynomial(),
    "polynomial-2": Polynomial(degree=2, gamma=0.3, coef0=0.5),
    "linear": Linear(),
}
RADIAL = [name for name, kernel in KERNELS.items() if kernel.translation_invariant]
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
DEVICE = "cpu"
"""Where ops of the table run; inputs and results are on the CPU all the same."""


def rows(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64, shift: float = 0.0) -> Tensor:
    """Standard normal rows, the same for the same shape and seed, representable in 16 bits."""
    generator = torch.Generator().manual_seed(zlib.crc32(repr((shape, seed)).encode()))
    drawn = torch.randn(shape, generator=generator, dtype=torch.float64) + shift
    return drawn.bfloat16().to(dtype)


def weights(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Positive weights that sum to about 1."""
    return ((rows(*shape, seed=seed).abs() + 0.1) / shape[-1]).bfloat16().to(dtype)


@dataclass(frozen=True)
class Sample:
    """One call: tensors that may be differentiated, and the rest."""

    name: str
    tensors: dict[str, Tensor]
    options: dict[str, Any]

    def cast(self, dtype: torch.dtype, requires_grad: bool = False) -> dict[str, Any]:
        """Arguments with fresh tensors; weights and vectors stay in the compute dtype of 16-bit rows."""
        compute = torch.float64 if dtype == torch.float64 else torch.float32
        fresh = {}
        for name, tensor in self.tensors.items():
            target = dtype if name in ("x", "y") else compute
            fresh[name] = tensor.detach().clone().to(target).requires_grad_(requires_grad)
        return {**fresh, **self.options}


@dataclass(frozen=True)
class Op:
    """A row of the table."""

    name: str
    public: Callable[..., Tensor]
    reference: Callable[..., Tensor]
    samples: Callable[[], Iterator[Sample]]
    errors: Callable[[], Iterator[tuple[type[Exception], str, dict[str, Any]]]]

    @property
    def function(self) -> Callable[..., Tensor]:
        """The public function, on DEVICE."""
        return self.public if DEVICE == "cpu" else self._on_device

    def _on_device(self, *positional: Any, **named: Any) -> Tensor:
        def move(value: Any) -> Any:
            here = isinstance(value, Tensor) and value.device.type == "cpu" and value.dtype != torch.int64
            return value.to(DEVICE) if here else value

        result = self.public(*map(move, positional), **{k: move(v) for k, v in named.items()})
        return result.to("cpu")

    def sample(self, name: str) -> Sample:
        return next(sample for sample in self.samples() if sample.name == name)


RAGGED = {"x_offsets": [0, 3, 3, 10, 41, 43], "y_offsets": [0, 5, 9, 9, 11, 19]}


def _weighted(op: str) -> Iterator[Sample]:
    """Samples of the ops that take weights."""
    x, y = rows(19, 7), rows(13, 7, seed=1, shift=0.3)
    a, b = weights(19), weights(13, seed=1)
    for name, kernel in KERNELS.items():
        yield Sample(name, {"x": x, "y": y}, {"kernel": kernel, "bandwidth": 2.5})
        yield Sample(
            f"{name}-weighted", {"x": x, "y": y, "a": a, "b": b}, {"kernel": kernel, "bandwidth": 2.5}
        )
        yield Sample(f"{name}-mean", {"x": x, "y": y}, {"kernel": kernel, "bandwidth": "mean"})
    packed = {"x": rows(43, 5), "y": rows(19, 5, seed=1)}
    lengths = torch.tensor([1.0, 2.0, 3.0, 1.5, 0.7], dtype=torch.float64)
    yield Sample("ragged", packed, {**RAGGED, "kernel": "gaussian", "bandwidth": "mean"})
    yield Sample("ragged-median", packed, {**RAGGED, "kernel": "laplacian", "bandwidth": "median"})
    yield Sample("ragged-lengths", packed, {**RAGGED, "kernel": "rational_quadratic", "bandwidth": lengths})
    yield Sample(
        "ragged-weighted", {**packed, "a": weights(43), "b": weights(19)}, {**RAGGED, "kernel": "energy"}
    )
    yield Sample("ragged-linear", packed, {**RAGGED, "kernel": "linear"})
    yield Sample(
        "batched", {"x": rows(3, 9, 4), "y": rows(3, 6, 4, seed=1)}, {"kernel": KERNELS["gaussian-5"]}
    )
    yield Sample("one-column", {"x": rows(33, 1), "y": rows(31, 1, seed=1)}, {"kernel": "laplacian"})
    for columns in (1, 2, 3):
        narrow = {"x": rows(33, columns), "y": rows(31, columns, seed=1)}
        yield Sample(f"narrow-{columns}", narrow, {"kernel": "gaussian", "bandwidth": 1.2})
    yield Sample("wide", {"x": rows(17, 700), "y": rows(5, 700, seed=1)}, {"kernel": "gaussian"})
    if op == "mmd":
        for name in ("gaussian-5", "energy", "polynomial", "linear"):
            options = {"kernel": KERNELS[name], "bandwidth": 2.0, "estimator": "unbiased"}
            yield Sample(f"{name}-unbiased", {"x": x, "y": y}, options)
            yield Sample(f"{name}-unbiased-weighted", {"x": x, "y": y, "a": a, "b": b}, options)
        yield Sample(
            "ragged-unbiased",
            {"x": rows(14, 3), "y": rows(9, 3, seed=1)},
            {
                "x_offsets": [0, 4, 4, 14],
                "y_offsets": [0, 3, 6, 9],
                "estimator": "unbiased",
                "kernel": "gaussian",
            },
        )


def _matvec() -> Iterator[Sample]:
    x, y = rows(19, 7), rows(13, 7, seed=1, shift=0.3)
    for name, kernel in KERNELS.items():
        yield Sample(name, {"x": x, "y": y, "v": rows(13, seed=2)}, {"kernel": kernel, "bandwidth": 2.5})
    yield Sample("columns", {"x": x, "y": y, "v": rows(13, 3, seed=2)}, {"kernel": "laplacian"})
    yield Sample("median", {"x": x, "y": y, "v": rows(13, 1)}, {"kernel": "gaussian", "bandwidth": "median"})
    packed = {"x": rows(43, 5), "y": rows(19, 5, seed=1)}
    yield Sample("ragged", {**packed, "v": rows(19, 2)}, {**RAGGED, "kernel": "gaussian", "bandwidth": 1.5})
    batch = {"x": rows(3, 9, 4), "y": rows(3, 6, 4, seed=1)}
    yield Sample("batched", {**batch, "v": rows(3, 6)}, {"kernel": "energy"})
    yield Sample("batched-columns", {**batch, "v": rows(3, 6, 2)}, {"kernel": "rational_quadratic"})


Errors = Iterator[tuple[type[Exception], str, dict[str, Any]]]


def _shared_errors(op: str) -> Errors:
    """Refusals that all pairwise ops share: type, exact message, arguments."""
    x, y = rows(10, 4), rows(6, 4)
    extra = {"v": rows(6)} if op == "kernel_matvec" else {}
    names = "gaussian, laplacian, energy, inverse_multiquadric, rational_quadratic, polynomial, linear"

    def case(
        kind: type[Exception], message: str, **changes: Any
    ) -> tuple[type[Exception], str, dict[str, Any]]:
        return kind, f"{op}: {message}", {"x": x, "y": y, **extra, **changes}

    floats = "float64, float32, float16 or bfloat16"
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
        ValueError, "x must be (N, D) with x_offsets, got (2, 5, 4)", x=rows(2, 5, 4), **_ends([0, 5], [0, 6])
    )
    yield case(ValueError, "y_offsets must be given with x_offsets, got None", x_offsets=[0, 10])
    yield case(ValueError, "x_offsets must be given with y_offsets, got None", y_offsets=[0, 6])
    yield case(ValueError, "x_offsets must start at 0 and never fall, got [1, 10]", **_ends([1, 10], [0, 6]))
    yield case(
        ValueError,
        "y_offsets must start at 0 and never fall, got [0, 5, 4, 6]",
        **_ends([0, 10], [0, 5, 4, 6]),
    )
    yield case(ValueError, "x_offsets must end at N=10, the rows of x, got 9", **_ends([0, 9], [0, 6]))
    yield case(ValueError, "y_offsets must end at M=6, the rows of y, got 7", **_ends([0, 10], [0, 7]))
    yield case(
        ValueError, "y_offsets must be (C+1,) with C=2 as in x_offsets, got (2,)", **_ends([0, 3, 10], [0, 6])
    )
    yield case(ValueError, "x_offsets must be (C+1,), got (1, 2)", **_ends(torch.tensor([[0, 10]]), [0, 6]))
    yield case(ValueError, "x_offsets must be (C+1,), got (0,)", **_ends([], [0, 6]))
    yield case(TypeError, "x_offsets must be int64, got float32", **_ends(torch.tensor([0.0, 10.0]), [0, 6]))
    yield case(TypeError, "y_offsets must hold ints only, got [0, 6.0]", **_ends([0, 10], [0, 6.0]))
    yield case(
        TypeError,
        "x_offsets must be a tensor, a list of ints or decoct.Segments, got int",
        **_ends(10, [0, 6]),
    )
    yield case(ValueError, f"kernel must be one of {names}, got 'rbf'", kernel="rbf")
    yield case(TypeError, "kernel must be a name or an object of decoct.kernels, got float", kernel=1.0)
    rule = 'bandwidth must be a number, a tensor, "mean" or "median"'
    yield case(ValueError, f"{rule}, got 'scott'", bandwidth="scott")
    yield case(TypeError, f"{rule}, got NoneType", bandwidth=None)
    yield case(TypeError, f"{rule}, got bool", bandwidth=True)
    positive = "bandwidth must be positive and finite"
    for value in (0.0, -1.0, float("inf")):
        yield case(ValueError, f"{positive}, got {value}", bandwidth=value)
    yield case(ValueError, f"{positive}, got -2.0", bandwidth=torch.tensor(-2.0))
    yield case(ValueError, f"{positive}, got nan", bandwidth=torch.tensor(float("nan")))
    yield case(ValueError, "bandwidth must be (), got (1,)", bandwidth=torch.ones(1))
    yield case(
        ValueError,
        "bandwidth must be () or (2,), one for each segment, got (3,)",
        bandwidth=torch.ones(3),
        **_ends([0, 3, 10], [0, 2, 6]),
    )
    yield case(TypeError, f"bandwidth must be {floats}, got int64", bandwidth=torch.tensor(1))


def _ends(x_offsets: Any, y_offsets: Any) -> dict[str, Any]:
    return {"x_offsets": x_offsets, "y_offsets": y_offsets}


def _weight_errors(op: str) -> Errors:
    x, y = rows(10, 4), rows(6, 4)
    yield from _shared_errors(op)
    base = {"x": x, "y": y}
    yield ValueError, f"{op}: a must be (N,) with N=10 as in x, got (9,)", {**base, "a": weights(9)}
    yield ValueError, f"{op}: b must be (M,) with M=6 as in y, got (6, 1)", {**base, "b": weights(6, 1)}
    yield (
        ValueError,
        f"{op}: a must be (B, N) with B=2 and N=5 as in x, got (5,)",
        {"x": rows(2, 5, 4), "y": rows(2, 3, 4), "a": weights(5)},
    )
    yield TypeError, f"{op}: a must be a tensor, got list", {**base, "a": [0.1] * 10}
    yield (
        TypeError,
        f"{op}: b must be float64, float32, float16 or bfloat16, got int64",
        {**base, "b": torch.ones(6, dtype=torch.int64)},
    )
    yield (
        ValueError,
        f"{op}: a must be on the device of x, cpu, got meta",
        {**base, "a": weights(10).to("meta")},
    )


def _mmd_errors() -> Errors:
    yield from _weight_errors("mmd")
    base = {"x": rows(10, 4), "y": rows(6, 4)}
    fixed = {**base, "bandwidth": 1.0}
    term = torch.tensor(0.5, dtype=torch.float64)
    yield (
        ValueError,
        "mmd: estimator must be 'biased' or 'unbiased', got 'u'",
        {**base, "estimator": "u"},
    )
    yield TypeError, "mmd: xx must be None, False or a tensor, got bool", {**base, "xx": True}
    yield TypeError, "mmd: xx must be None, False or a tensor, got float", {**fixed, "xx": 0.5}
    yield ValueError, "mmd: xx must be (), one for each segment, got (1,)", {**fixed, "xx": term[None]}
    yield ValueError, "mmd: xx must be on the device of x, cpu, got meta", {**fixed, "xx": term.to("meta")}
    for rule in ("mean", "median"):
        message = f'mmd: xx must be None or False with bandwidth "{rule}", which changes with y, got a tensor'
        yield ValueError, message, {**base, "bandwidth": rule, "xx": term}
    live = {name: tensor.clone().requires_grad_() for name, tensor in (("x", base["x"]), ("a", weights(10)))}
    length = torch.tensor(1.0, requires_grad=True)
    for xx, shown in ((False, "False"), (term, "a tensor")):
        yield (
            ValueError,
            f"mmd: xx must be None while x needs a gradient, got {shown}",
            {**fixed, "x": live["x"], "xx": xx},
        )
        yield (
            ValueError,
            f"mmd: xx must be None while a needs a gradient, got {shown}",
            {**fixed, "a": live["a"], "xx": xx},
        )
        yield (
            ValueError,
            f"mmd: xx must be None while bandwidth needs a gradient, got {shown}",
            {**base, "bandwidth": length, "xx": xx},
        )
    single = 'must have at least 2 rows in each segment with estimator="unbiased", got 1 in segment'
    yield ValueError, f"mmd: x {single} 0", {**base, "x": rows(1, 4), "estimator": "unbiased"}
    yield ValueError, f"mmd: y {single} 0", {**base, "y": rows(1, 4), "estimator": "unbiased"}
    ragged = _ends([0, 4, 10], [0, 5, 6])
    yield ValueError, f"mmd: y {single} 1", {**base, **ragged, "estimator": "unbiased"}
    yield ValueError, f"mmd: x {single} 0", {"x": rows(3, 1, 4), "y": rows(3, 5, 4), "estimator": "unbiased"}


def _matvec_errors() -> Errors:
    yield from _shared_errors("kernel_matvec")
    base = {"x": rows(10, 4), "y": rows(6, 4)}
    flat = "kernel_matvec: v must be (M,) or (M, E) with M=6 as in y"
    yield ValueError, f"{flat}, got (10,)", {**base, "v": rows(10)}
    yield ValueError, f"{flat}, got (6, 1, 1)", {**base, "v": rows(6, 1, 1)}
    yield ValueError, f"{flat}, got ()", {**base, "v": rows()}
    yield TypeError, "kernel_matvec: v must be a tensor, got list", {**base, "v": [1.0] * 6}
    yield (
        ValueError,
        "kernel_matvec: v must be (B, M) or (B, M, E) with B=2 and M=3 as in y, got (6,)",
        {"x": rows(2, 5, 4), "y": rows(2, 3, 4), "v": rows(6)},
    )


OPS: dict[str, Op] = {
    op.name: op
    for op in (
        Op("mmd", decoct.mmd, reference.mmd, lambda: _weighted("mmd"), _mmd_errors),
        Op(
            "kernel_mean",
            decoct.kernel_mean,
            reference.kernel_mean,
            lambda: _weighted("kernel_mean"),
            lambda: _weight_errors("kernel_mean"),
        ),
        Op("kernel_matvec", decoct.kernel_matvec, reference.kernel_matvec, _matvec, _matvec_errors),
    )
}
CASES = [(op.name, sample.name) for op in OPS.values() for sample in op.samples()]
