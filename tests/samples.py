"""The table of ops: what each is compared with, on which inputs, which arguments are differentiable, which
inputs are refused and with what words. test_contract.py runs every rule over every row of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

import barycenters
import decoct
import gradients
import layers
import means
import norms
import projections
import samplewise
import transport
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
from decoct.reference import kernel_matrix
from table import (
    DTYPES,
    FLOATS,
    RAGGED,
    Errors,
    Op,
    Sample,
    cases,
    ends,
    row_errors,
    rows,
    weight_errors,
    weights,
)

__all__ = ["CASES", "DTYPES", "KERNELS", "OPS", "RADIAL", "RAGGED", "Op", "Sample", "rows", "weights"]

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


def _shared_errors(op: str) -> Errors:
    """Refusals that all kernel ops share."""
    case = cases(op)
    yield from row_errors(op)
    names = "gaussian, laplacian, energy, inverse_multiquadric, rational_quadratic, polynomial, linear"
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
        **ends([0, 3, 10], [0, 2, 6]),
    )
    yield case(TypeError, f"bandwidth must be {FLOATS}, got int64", bandwidth=torch.tensor(1))


def _mmd_errors() -> Errors:
    yield from weight_errors("mmd", _shared_errors)
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
    ragged = ends([0, 4, 10], [0, 5, 6])
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


def largest_kernel_value(arguments: dict[str, Any]) -> float:
    """Bounds the terms of which a value is the difference, for weights that sum to about 1."""
    x, y = (arguments[name].reshape(-1, arguments[name].shape[-1]) for name in ("x", "y"))
    z = torch.cat([x, y])
    length = arguments.get("bandwidth", 1.0)
    length = 1.0 if isinstance(length, str) else float(torch.as_tensor(length).max())
    return float(kernel_matrix(z, z, arguments.get("kernel", "gaussian"), length).abs().max())


PAIRWISE: dict[str, Any] = {
    "scale": largest_kernel_value,
    "variants": {name: {"kernel": kernel} for name, kernel in KERNELS.items()},
    "invariant": tuple(RADIAL),
    "compiled": ("gaussian-5", "polynomial", "linear", "ragged", "batched"),
}
OPS: dict[str, Op] = {
    op.name: op
    for op in (
        Op("mmd", decoct.mmd, reference.mmd, lambda: _weighted("mmd"), _mmd_errors, **PAIRWISE),
        Op(
            "kernel_mean",
            decoct.kernel_mean,
            reference.kernel_mean,
            lambda: _weighted("kernel_mean"),
            lambda: weight_errors("kernel_mean", _shared_errors),
            **PAIRWISE,
        ),
        Op(
            "kernel_matvec",
            decoct.kernel_matvec,
            reference.kernel_matvec,
            _matvec,
            _matvec_errors,
            **PAIRWISE,
        ),
        *transport.OPS,
        *gradients.OPS,
        *norms.OPS,
        *layers.OPS,
        *means.OPS,
        *samplewise.OPS,
        *projections.OPS,
        *barycenters.OPS,
    )
}
CASES = [(op.name, sample.name) for op in OPS.values() for sample in op.samples()]
