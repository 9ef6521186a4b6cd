"""Kernels for dataset condensation as PyTorch ops.

Real rows come first, synthetic rows second, everywhere::

    import decoct
    loss = decoct.mmd(real, synthetic)                                        # (N, D), (M, D) -> scalar
    loss = decoct.mmd(real, synthetic, x_offsets=..., y_offsets=..., xx=False).sum()   # all classes in one
    call
"""

import importlib
import logging
from typing import Any

from decoct import compat, kernels, ops, reference
from decoct.capture import Capture, Pair, capture
from decoct.losses import GradientMatchingLoss, MMDLoss, SinkhornLoss
from decoct.ops import (
    Barycenter,
    SinkhornSolution,
    apply_plan,
    characteristic_mean,
    class_gradients,
    clipped_gradient_sum,
    free_support_barycenter,
    gradient_distance,
    gradient_gram,
    gradient_mmd,
    gradient_vector_product,
    group_norm,
    instance_norm,
    kernel_matvec,
    kernel_mean,
    linear_head_gradients,
    mean_bandwidth,
    median_bandwidth,
    mmd,
    per_sample_norms,
    projected_gradients,
    random_projection,
    segment_moments,
    sinkhorn_divergence,
    sinkhorn_potentials,
)
from decoct.segments import Segments

__version__ = "0.1.0"

__all__ = [
    "Barycenter",
    "Capture",
    "GradientMatchingLoss",
    "MMDLoss",
    "Pair",
    "Segments",
    "SinkhornLoss",
    "SinkhornSolution",
    "apply_plan",
    "capture",
    "characteristic_mean",
    "class_gradients",
    "clipped_gradient_sum",
    "compat",
    "free_support_barycenter",
    "gradient_distance",
    "gradient_gram",
    "gradient_mmd",
    "gradient_vector_product",
    "group_norm",
    "instance_norm",
    "kernel_matvec",
    "kernel_mean",
    "kernels",
    "linear_head_gradients",
    "mean_bandwidth",
    "median_bandwidth",
    "mmd",
    "ops",
    "per_sample_norms",
    "projected_gradients",
    "random_projection",
    "reference",
    "segment_moments",
    "sinkhorn_divergence",
    "sinkhorn_potentials",
]

logging.getLogger("decoct").addHandler(logging.NullHandler())

# The layers above the ops cost import time that a library which wants only losses should not pay.
_LAZY = ("objectives", "condense", "tasks")


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return importlib.import_module(f"decoct.{name}")
    raise AttributeError(f"module 'decoct' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
