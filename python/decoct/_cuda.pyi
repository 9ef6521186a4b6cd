from decoct._cpu import (
    Execution as Execution,
)
from decoct._cpu import (
    Images as Images,
)
from decoct._cpu import (
    Kernel as Kernel,
)
from decoct._cpu import (
    Matrix as Matrix,
)
from decoct._cpu import (
    NormShape as NormShape,
)
from decoct._cpu import (
    characteristic as characteristic,
)
from decoct._cpu import (
    group_norm as group_norm,
)
from decoct._cpu import (
    group_norm_grad as group_norm_grad,
)
from decoct._cpu import (
    group_norm_second as group_norm_second,
)
from decoct._cpu import (
    group_norm_workspace as group_norm_workspace,
)
from decoct._cpu import (
    image_gram as image_gram,
)
from decoct._cpu import (
    image_squares as image_squares,
)
from decoct._cpu import (
    info as info,
)
from decoct._cpu import (
    isa as isa,
)
from decoct._cpu import (
    kernel_matvec as kernel_matvec,
)
from decoct._cpu import (
    kernel_sums as kernel_sums,
)
from decoct._cpu import (
    kernel_sums_hvp as kernel_sums_hvp,
)
from decoct._cpu import (
    mean_bandwidth as mean_bandwidth,
)
from decoct._cpu import (
    plan as plan,
)
from decoct._cpu import (
    plan_characteristic as plan_characteristic,
)
from decoct._cpu import (
    plan_image_gram as plan_image_gram,
)
from decoct._cpu import (
    plan_image_squares as plan_image_squares,
)
from decoct._cpu import (
    plan_random_projection as plan_random_projection,
)
from decoct._cpu import (
    plan_segment_outer as plan_segment_outer,
)
from decoct._cpu import (
    random_projection as random_projection,
)
from decoct._cpu import (
    segment_outer as segment_outer,
)
from decoct._cpu import (
    segment_sums as segment_sums,
)
from decoct._cpu import (
    sinkhorn as sinkhorn,
)
