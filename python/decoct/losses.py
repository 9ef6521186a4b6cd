"""Modules over the ops: they hold hyper-parameters only, no parameters and no buffers."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any, Literal

from torch import Tensor, nn

from decoct.kernels import Kernel, resolve
from decoct.ops import gradient_distance, mmd
from decoct.ops._transport import Cost, Reach, check_options
from decoct.ops.gradient_distance import Metric, RowAxis, Tensors
from decoct.ops.gradient_distance import check_options as check_gradient_options
from decoct.ops.sinkhorn import divergence_of

__all__ = ["GradientMatchingLoss", "MMDLoss", "SinkhornLoss"]

Reduction = Literal["sum", "mean", "none"]


def _check_reduction(module: str, reduction: str) -> None:
    if reduction not in ("sum", "mean", "none"):
        raise ValueError(f"{module}: reduction must be 'sum', 'mean' or 'none', got {reduction!r}")


def _reduced(value: Tensor, reduction: Reduction) -> Tensor:
    if reduction == "none":
        return value
    return value.sum() if reduction == "sum" else value.mean()


class MMDLoss(nn.Module):
    """:func:`decoct.mmd` as a module, reduced over the segments.

    Parameters
    ----------
    kernel, bandwidth, estimator : as in :func:`decoct.mmd`.
    reduction : ``"sum"`` (the default: a mean would divide a class-wise learning rate by the number of
        classes), ``"mean"`` or ``"none"``, over the values of the segments.
    """

    def __init__(
        self,
        kernel: Kernel | str = "gaussian",
        bandwidth: float | Tensor | Literal["mean", "median"] = "mean",
        *,
        estimator: Literal["biased", "unbiased"] = "biased",
        reduction: Reduction = "sum",
    ) -> None:
        super().__init__()
        _check_reduction("MMDLoss", reduction)
        if estimator not in ("biased", "unbiased"):
            raise ValueError(f"MMDLoss: estimator must be 'biased' or 'unbiased', got {estimator!r}")
        self.kernel = resolve(kernel, "MMDLoss")
        self.bandwidth = bandwidth
        self.estimator = estimator
        self.reduction = reduction

    def forward(self, x: Tensor, y: Tensor, **options: Any) -> Tensor:
        """Loss of real ``x`` and synthetic ``y``; ``a``, ``b``, ``x_offsets``, ``y_offsets`` and ``xx``
        as in :func:`decoct.mmd`."""
        value = mmd(x, y, self.kernel, self.bandwidth, estimator=self.estimator, **options)
        return _reduced(value, self.reduction)

    def extra_repr(self) -> str:
        options = f"estimator={self.estimator!r}, reduction={self.reduction!r}"
        return f"{self.kernel}, bandwidth={self.bandwidth!r}, {options}"


class GradientMatchingLoss(nn.Module):
    """:func:`decoct.gradient_distance` as a module, reduced over the classes.

    Parameters
    ----------
    metric, classes, tensors, row_axis, epsilon, epsilon_form : as in :func:`decoct.gradient_distance`.
    reduction : ``"sum"`` (the default: a mean would divide a class-wise learning rate by the number of
        classes), ``"mean"`` or ``"none"``, over the values of the classes.
    """

    def __init__(
        self,
        metric: Metric = "row_cosine",
        *,
        classes: bool = False,
        tensors: Tensors = None,
        row_axis: RowAxis = 0,
        epsilon: float = 1e-6,
        epsilon_form: Literal["product", "clamp"] = "product",
        reduction: Reduction = "sum",
    ) -> None:
        super().__init__()
        _check_reduction("GradientMatchingLoss", reduction)
        check_gradient_options("GradientMatchingLoss", metric, epsilon, epsilon_form, classes)
        self.metric: Metric = metric
        self.options: dict[str, Any] = {
            "classes": classes,
            "tensors": tensors,
            "row_axis": row_axis,
            "epsilon": epsilon,
            "epsilon_form": epsilon_form,
        }
        self.reduction: Reduction = reduction

    def forward(self, real: Sequence[Tensor], synthetic: Sequence[Tensor]) -> Tensor:
        """Loss of the parameter gradients of real and of synthetic rows."""
        return _reduced(gradient_distance(real, synthetic, self.metric, **self.options), self.reduction)

    def extra_repr(self) -> str:
        shown = {"metric": self.metric, **self.options, "reduction": self.reduction}
        return ", ".join(f"{name}={value!r}" for name, value in shown.items())


class SinkhornLoss(nn.Module):
    """:func:`decoct.sinkhorn_divergence` as a module, reduced over the segments; it can stand in for
    GeomLoss's ``SamplesLoss("sinkhorn")``.

    Parameters
    ----------
    p, blur, reach, diameter, scaling, debias, cost, tol, max_iterations, mass, cost_budget : as in
        :func:`decoct.sinkhorn_divergence`, but for the diameter: None takes the box around all segments, as
        GeomLoss does for a batch.
    reduction : ``"sum"`` (the default: a mean would divide a class-wise learning rate by the number of
        classes), ``"mean"`` or ``"none"``, which is GeomLoss's, over the values of the segments.
    """

    def __init__(
        self,
        p: int = 2,
        blur: float = 0.05,
        reach: Reach = None,
        diameter: float | None = None,
        scaling: float = 0.5,
        debias: bool = True,
        *,
        cost: Cost = "euclidean",
        tol: float | None = None,
        max_iterations: int | None = None,
        mass: float | None = None,
        cost_budget: int = 0,
        reduction: Reduction = "sum",
    ) -> None:
        super().__init__()
        _check_reduction("SinkhornLoss", reduction)
        self.options: dict[str, Any] = {
            "p": p,
            "blur": blur,
            "reach": reach,
            "diameter": diameter,
            "scaling": scaling,
            "debias": debias,
            "cost": cost,
            "tol": tol,
            "max_iterations": max_iterations,
            "mass": mass,
            "cost_budget": cost_budget,
        }
        check_options("SinkhornLoss", **self.options)
        self.reduction: Reduction = reduction

    def forward(self, *clouds: Tensor, **options: Any) -> Tensor:
        """Loss of ``(x, y)`` or ``(a, x, b, y)``, real ``x`` and synthetic ``y``. ``a``, ``b``,
        ``x_offsets``, ``y_offsets``, ``xx``, ``x_labels``, ``y_labels``, ``label_cost`` and ``start`` as in
        :func:`decoct.sinkhorn_divergence`."""
        if len(clouds) == 4:
            for name in ("a", "b"):
                if name in options:
                    raise TypeError(f"SinkhornLoss: {name} must be given once, got two")
            a, x, b, y = clouds
            options = {**options, "a": a, "b": b}
        elif len(clouds) == 2:
            x, y = clouds
        else:
            raise TypeError(f"SinkhornLoss: clouds must be (x, y) or (a, x, b, y), got {len(clouds)} tensors")
        return _reduced(divergence_of("SinkhornLoss", x, y, True, **options, **self.options), self.reduction)

    def extra_repr(self) -> str:
        changed = {name: value for name, value in self.options.items() if value != _DEFAULTS[name]}
        shown = {"p": self.options["p"], "blur": self.options["blur"], **changed, "reduction": self.reduction}
        return ", ".join(f"{name}={value!r}" for name, value in shown.items())


_DEFAULTS = {name: part.default for name, part in signature(SinkhornLoss.__init__).parameters.items()}
