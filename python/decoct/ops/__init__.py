"""One public function for each op: it checks its arguments, then calls a torch.library op, which looks up the
compiled engine of the tensors' device in `backends`."""

from decoct.ops._backend import backends
from decoct.ops._memory import release_scratch
from decoct.ops.apply_plan import apply_plan
from decoct.ops.bandwidth import mean_bandwidth, median_bandwidth
from decoct.ops.barycenter import Barycenter, free_support_barycenter
from decoct.ops.characteristic_mean import characteristic_mean
from decoct.ops.class_gradients import class_gradients
from decoct.ops.gradient_distance import gradient_distance
from decoct.ops.gradient_gram import gradient_gram, gradient_mmd
from decoct.ops.gradient_vector_product import gradient_vector_product, linear_head_gradients
from decoct.ops.kernel_matvec import kernel_matvec
from decoct.ops.kernel_mean import kernel_mean
from decoct.ops.mmd import mmd
from decoct.ops.norm import group_norm, instance_norm
from decoct.ops.per_sample_norms import clipped_gradient_sum, per_sample_norms
from decoct.ops.projected_gradients import projected_gradients
from decoct.ops.random_projection import random_projection
from decoct.ops.segment_moments import segment_moments
from decoct.ops.sinkhorn import SinkhornSolution, sinkhorn_divergence, sinkhorn_potentials

__all__ = [
    "Barycenter",
    "SinkhornSolution",
    "apply_plan",
    "backends",
    "characteristic_mean",
    "class_gradients",
    "clipped_gradient_sum",
    "free_support_barycenter",
    "gradient_distance",
    "gradient_gram",
    "gradient_mmd",
    "gradient_vector_product",
    "group_norm",
    "instance_norm",
    "kernel_matvec",
    "kernel_mean",
    "linear_head_gradients",
    "mean_bandwidth",
    "median_bandwidth",
    "mmd",
    "per_sample_norms",
    "projected_gradients",
    "random_projection",
    "release_scratch",
    "segment_moments",
    "sinkhorn_divergence",
    "sinkhorn_potentials",
]
