"""One public function for each op: it checks its arguments, then calls a torch.library op, which looks up the
compiled engine of the tensors' device in `backends`."""

from decoct.ops._backend import backends, release_scratch
from decoct.ops.apply_plan import apply_plan
from decoct.ops.bandwidth import mean_bandwidth, median_bandwidth
from decoct.ops.gradient_distance import gradient_distance
from decoct.ops.kernel_matvec import kernel_matvec
from decoct.ops.kernel_mean import kernel_mean
from decoct.ops.mmd import mmd
from decoct.ops.sinkhorn import SinkhornSolution, sinkhorn_divergence, sinkhorn_potentials

__all__ = [
    "SinkhornSolution",
    "apply_plan",
    "backends",
    "gradient_distance",
    "kernel_matvec",
    "kernel_mean",
    "mean_bandwidth",
    "median_bandwidth",
    "mmd",
    "release_scratch",
    "sinkhorn_divergence",
    "sinkhorn_potentials",
]
