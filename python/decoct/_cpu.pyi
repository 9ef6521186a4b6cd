import numpy as np
import numpy.typing as npt

class Matrix:
    def __init__(self, pointer: int, rows: int, columns: int, stride: int, dtype: str) -> None: ...

class Kernel:
    def __init__(
        self, profile: str, parameter: float, offset: float, degree: int, scales: list[float]
    ) -> None: ...

class Execution:
    def __init__(
        self,
        *,
        schedule: Matrix,
        device_schedule: Matrix,
        workspace: Matrix,
        threads: int,
        precision: str,
        stream: int,
    ) -> None: ...

def isa() -> str: ...
def info() -> dict[str, object]: ...
def plan(
    *,
    op: str,
    x: Matrix,
    y: Matrix,
    x_offsets: Matrix,
    y_offsets: Matrix,
    need: int,
    terms: int,
    columns: int,
    threads: int,
    cost_budget: int = 0,
) -> tuple[npt.NDArray[np.int32], int]: ...
def kernel_sums(
    *,
    x: Matrix,
    y: Matrix,
    a: Matrix | None,
    b: Matrix | None,
    x_offsets: Matrix,
    y_offsets: Matrix,
    coefficients: Matrix,
    bandwidth: Matrix,
    bandwidth_from_data: bool,
    kernel: Kernel,
    need: int,
    value: Matrix,
    grad_x: Matrix | None,
    grad_y: Matrix | None,
    grad_a: Matrix | None,
    grad_b: Matrix | None,
    f: Matrix | None = None,
    g: Matrix | None = None,
    execution: Execution,
) -> None: ...
def kernel_sums_hvp(
    *,
    x: Matrix,
    y: Matrix,
    a: Matrix | None,
    b: Matrix | None,
    x_offsets: Matrix,
    y_offsets: Matrix,
    coefficients: Matrix,
    bandwidth: Matrix,
    kernel: Kernel,
    need: int,
    tangent_x: Matrix | None,
    tangent_y: Matrix | None,
    tangent_a: Matrix | None,
    tangent_b: Matrix | None,
    out_x: Matrix | None,
    out_y: Matrix | None,
    out_a: Matrix | None,
    out_b: Matrix | None,
    f: Matrix | None = None,
    g: Matrix | None = None,
    execution: Execution,
) -> None: ...
def kernel_matvec(
    *,
    x: Matrix,
    y: Matrix,
    v: Matrix,
    x_offsets: Matrix,
    y_offsets: Matrix,
    bandwidth: Matrix,
    kernel: Kernel,
    out: Matrix,
    f: Matrix | None = None,
    g: Matrix | None = None,
    execution: Execution,
) -> None: ...
def segment_sums(
    *, x: Matrix, a: Matrix | None, offsets: Matrix, out: Matrix, execution: Execution
) -> None: ...
def mean_bandwidth(
    *,
    x: Matrix,
    y: Matrix,
    x_offsets: Matrix,
    y_offsets: Matrix,
    bandwidth: Matrix,
    execution: Execution,
) -> None: ...
def sinkhorn(
    *,
    x: Matrix,
    y: Matrix,
    a: Matrix | None,
    b: Matrix | None,
    x_offsets: Matrix,
    y_offsets: Matrix,
    x_labels: Matrix | None,
    y_labels: Matrix | None,
    label_cost: Matrix | None,
    power: int,
    blur: float,
    scaling: float,
    diameter: float,
    reach_x: float,
    reach_y: float,
    mass: float,
    tolerance: float,
    max_iterations: int,
    warm: bool,
    need: int,
    terms: int,
    value: Matrix,
    error: Matrix,
    iterations: Matrix,
    f: Matrix,
    g: Matrix,
    f_self: Matrix | None,
    g_self: Matrix | None,
    grad_x: Matrix | None,
    grad_y: Matrix | None,
    execution: Execution,
) -> None: ...

class GradientLayout:
    def __init__(
        self,
        *,
        metric: str,
        epsilon_form: str,
        epsilon: float,
        dtype: str,
        classes: int,
        shapes: list[tuple[int, int, int]],
    ) -> None: ...
    @property
    def workspace_bytes(self) -> int: ...

def gradient_distance(
    layout: GradientLayout,
    real: list[int],
    synthetic: list[int],
    value: Matrix | None,
    tangent_real: Matrix | None,
    tangent_synthetic: Matrix | None,
    out_real: Matrix | None,
    out_synthetic: Matrix | None,
    workspace: Matrix,
    threads: int,
    stream: int,
) -> None: ...

class NormShape:
    def __init__(
        self,
        *,
        images: int,
        channels: int,
        groups: int,
        height: int,
        width: int,
        pool_height: int,
        pool_width: int,
        relu: bool,
        channels_last: bool,
        epsilon: float,
    ) -> None: ...

def group_norm_workspace(op: str, shape: NormShape, dtype: str, threads: int) -> int: ...
def group_norm(
    *,
    shape: NormShape,
    x: Matrix,
    weight: Matrix | None,
    bias: Matrix | None,
    mean: Matrix,
    factor: Matrix,
    out: Matrix,
    workspace: Matrix,
    threads: int,
    stream: int,
) -> None: ...
def group_norm_grad(
    *,
    shape: NormShape,
    x: Matrix,
    weight: Matrix | None,
    bias: Matrix | None,
    mean: Matrix,
    factor: Matrix,
    grad: Matrix,
    grad_x: Matrix | None,
    grad_weight: Matrix | None,
    grad_bias: Matrix | None,
    workspace: Matrix,
    threads: int,
    stream: int,
) -> None: ...
def group_norm_second(
    *,
    shape: NormShape,
    x: Matrix,
    weight: Matrix | None,
    bias: Matrix | None,
    mean: Matrix,
    factor: Matrix,
    grad: Matrix | None,
    tangent_x: Matrix | None,
    tangent_weight: Matrix | None,
    tangent_bias: Matrix | None,
    out_grad: Matrix | None,
    out_x: Matrix | None,
    out_weight: Matrix | None,
    workspace: Matrix,
    threads: int,
    stream: int,
) -> None: ...

class Images:
    def __init__(self, pointer: int, sizes: list[int], strides: list[int], dtype: str) -> None: ...

def plan_segment_outer(
    *, activations: Images, gradients: Images, offsets: Matrix, convolution: list[int], threads: int
) -> tuple[npt.NDArray[np.int32], int]: ...
def plan_image_squares(
    *, activations: Images, gradients: Images, convolution: list[int], threads: int
) -> tuple[npt.NDArray[np.int32], int]: ...
def image_squares(
    *,
    activations: Images,
    gradients: Images,
    convolution: list[int],
    weight: Matrix,
    bias: Matrix | None,
    execution: Execution,
) -> None: ...
def plan_image_gram(
    *,
    activations: Images,
    gradients: Images,
    other_activations: Images | None,
    other_gradients: Images | None,
    convolution: list[int],
    bias: bool,
    threads: int,
) -> tuple[npt.NDArray[np.int32], int]: ...
def image_gram(
    *,
    activations: Images,
    gradients: Images,
    other_activations: Images | None,
    other_gradients: Images | None,
    convolution: list[int],
    bias: bool,
    gram: Matrix,
    execution: Execution,
) -> None: ...
def segment_outer(
    *,
    activations: Images,
    gradients: Images,
    weights: Matrix | None,
    offsets: Matrix,
    convolution: list[int],
    weight: Matrix,
    bias: Matrix | None,
    execution: Execution,
) -> None: ...
def plan_characteristic(
    *, op: str, x: Matrix, frequencies: Matrix, offsets: Matrix, parts: int, threads: int
) -> tuple[npt.NDArray[np.int32], int]: ...
def characteristic(
    *,
    op: str,
    x: Matrix,
    frequencies: Matrix,
    weights: Matrix,
    offsets: Matrix,
    bar_cosine: Matrix | None = None,
    bar_sine: Matrix | None = None,
    tangent_x: Matrix | None = None,
    tangent_frequencies: Matrix | None = None,
    tangent_weights: Matrix | None = None,
    cosine: Matrix | None = None,
    sine: Matrix | None = None,
    out_x: Matrix | None = None,
    out_frequencies: Matrix | None = None,
    out_weights: Matrix | None = None,
    products: Matrix | None = None,
    execution: Execution,
) -> None: ...
def barycenter_workspace_bytes(
    *,
    x: Matrix,
    points: Matrix,
    x_offsets: Matrix,
    measure_offsets: Matrix,
    point_offsets: Matrix,
    threads: int,
) -> int: ...
def barycenter(
    *,
    x: Matrix,
    points: Matrix,
    x_offsets: Matrix,
    measure_offsets: Matrix,
    point_offsets: Matrix,
    a: Matrix | None,
    shares: Matrix,
    masses: Matrix,
    learned: bool,
    first_blur: float,
    blur: float,
    scaling: float,
    step: float,
    tolerance: float,
    marginal_tolerance: float,
    iterations: int,
    inner_iterations: int,
    cost: Matrix,
    movement: Matrix,
    made: Matrix,
    workspace: Matrix,
    threads: int,
) -> None: ...
def plan_random_projection(
    *, x: Matrix, out: Matrix, transposed: bool, threads: int
) -> tuple[npt.NDArray[np.int32], int]: ...
def random_projection(
    *, x: Matrix, out: Matrix, transposed: bool, seed: int, stream: int, factor: float, execution: Execution
) -> None: ...
