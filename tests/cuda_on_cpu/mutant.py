"""What a mutant is: a bug put into the CUDA kernels, and which check must catch it on which cases."""

from functools import partial
from typing import NamedTuple


class Mutant(NamedTuple):
    name: str
    file: str  # of csrc/cuda
    old: str  # found exactly once
    new: str
    units: str  # sources that are compiled again
    cases: str  # a group of kernels_test and, behind a colon, what the names of its cases contain
    check: str  # plain, asan (with undefined behaviour) or tsan


plain, asan, tsan = (partial(Mutant, check=check) for check in ("plain", "asan", "tsan"))

TF32, X3, BF16, DOUBLE = "pairs_tf32", "pairs_tf32x3", "pairs_bfloat16", "pairs_float64"
FUSED_CASES = "fused:fused gaussian D=33 high"
FUSED_SPLIT = "fused:split gaussian D=129 high"
X3_CASES = "fused:fused gaussian D=33 highest"
NARROW = "weights:weights gaussian D=257 high"
NEAR = "weights:weights split gaussian D=20 double"
SMALL = "small:small gaussian D=3 highest"
SMALL_SPLIT = "small:small split gaussian"
HVP = "hvp:hvp gaussian D=20 high given 15"
HVP_DOUBLE = "hvp:hvp gaussian D=20 double"
HVP_LIFTED = "hvp:hvp plan lifted D=20 double"
MATVEC = "matvec:matvec laplacian D=40 high columns 3"
PLAN = "fused:fused plan gaussian D=33 highest"
SMALL_PLAN = "small:small plan gaussian D=15 highest"
KEPT = "transport:kept balanced p=2 D=2 highest"
SHARP = "transport:kept sharp p=2 D=2 highest"
WIDE = "transport:wide balanced p=1 D=3 double"
WIDE_SHARP = "transport:wide sharp p=2 D=3 double"
PARTIAL = "transport:kept partial p=2 D=2 highest"
WIDE_PARTIAL = "transport:wide partial p=1 D=3 double"
LARGE = "transport:large balanced p=2 D=2 highest"
TRANSPORT_DOUBLE = "pairs_float64 sinkhorn"
LISTS, LISTS_CLAMP = "gradients:gradients row_cosine float32", "gradients:gradients clamp float32"
LISTS_L2, LISTS_LONG = "gradients:gradients cosine_l2 float32", "gradients:gradients long float32"
LISTS_MANY, LISTS_MEAN = "gradients:gradients many float32", "gradients:gradients l1_mean float32"
LISTS_COSINE, LISTS_WIDE = "gradients:gradients cosine float32", "gradients:gradients wide float32"
SUMS, BANDWIDTH = "rows:D=3 sums", "rows:D=19 bandwidth"
