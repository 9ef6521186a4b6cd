"""One public function for each op: it checks its arguments, then calls a torch.library op, which looks up the
compiled engine of the tensors' device in `backends`."""

from decoct.ops._backend import backends, release_scratch
from decoct.ops.bandwidth import mean_bandwidth, median_bandwidth
from decoct.ops.kernel_matvec import kernel_matvec
from decoct.ops.kernel_mean import kernel_mean
from decoct.ops.mmd import mmd

__all__ = [
    "backends",
    "kernel_matvec",
    "kernel_mean",
    "mean_bandwidth",
    "median_bandwidth",
    "mmd",
    "release_scratch",
]
