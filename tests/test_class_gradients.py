"""Gradients of every class from one pass, against one pass for each class."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import decoct
import layers
import table
from comparison import assert_as_good_as_torch
from decoct import reference
from decoct.networks import MLP, build
from decoct.ops._segment_outer import outputs_of, segment_outer

pytestmark = [
    pytest.mark.usefixtures("backend"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
]

ENDS = [0, 3, 3, 4, 9]
N, CLASSES = ENDS[-1], 5


def rows(*shape: int, **options: Any) -> Tensor:
    """Networks and rows are where the ops run."""
    return table.rows(*shape, **options).to(table.DEVICE)


class Last(nn.Module):
    """The last of the outputs of a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(4, 6, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.rnn(x)[0][:, -1]
        return output


class Twice(nn.Module):
    """A layer used twice, a weight shared with another layer, and one used outside of its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.tied = nn.Linear(6, 6), nn.Linear(6, 6)
        self.tied.weight = self.layer.weight
        self.outside = nn.Linear(6, 6)
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.tied(torch.tanh(self.layer(torch.tanh(self.layer(x)))))
        return self.scale * F.linear(self.outside(x), self.outside.weight)


class TokensFirst(nn.Module):
    """Its layer sees tokens along the first dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.layer(x.transpose(0, 1)).mean(0)
        return output


def evaluated(module: nn.Module) -> nn.Module:
    """A layer with statistics to use, in eval mode."""
    for name, buffer in module.named_buffers():
        if "running" in name:
            buffer.copy_(torch.rand(buffer.shape) + 0.5)
    return module.eval()


def affine(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


# A layer and the shape of a row of its input.
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(7, 6), (7,)),
    "linear-no-bias": (lambda: nn.Linear(7, 6, bias=False), (7,)),
    "linear-tokens": (lambda: nn.Linear(4, 6), (5, 4)),
    "linear-grid": (lambda: nn.Linear(4, 6), (2, 3, 4)),
    "conv": (lambda: nn.Conv2d(3, 6, 3), (3, 7, 6)),
    "conv-stride": (lambda: nn.Conv2d(3, 6, (3, 2), stride=(2, 3), padding=(0, 2)), (3, 9, 10)),
    "conv-dilation": (lambda: nn.Conv2d(2, 4, 3, dilation=(2, 3), padding=2), (2, 8, 9)),
    "conv-groups": (lambda: nn.Conv2d(6, 9, 3, groups=3, bias=False), (6, 5, 5)),
    "conv-depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4, padding=1), (4, 6, 6)),
    "conv-same": (lambda: nn.Conv2d(3, 4, (4, 3), padding="same", dilation=(1, 2)), (3, 7, 7)),
    "conv-valid": (lambda: nn.Conv2d(3, 4, 2, padding="valid"), (3, 4, 5)),
    "conv-reflect": (lambda: nn.Conv2d(3, 4, 3, padding=(1, 2), padding_mode="reflect"), (3, 5, 6)),
    "conv-circular": (lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular", stride=2), (3, 6, 6)),
    "conv-1d": (lambda: nn.Conv1d(3, 5, 4, stride=2, padding=1, dilation=2), (3, 19)),
    "conv-1d-circular": (lambda: nn.Conv1d(2, 3, 3, padding=1, padding_mode="circular"), (2, 7)),
    "conv-3d": (lambda: nn.Conv3d(2, 3, 2), (2, 3, 4, 3)),
    "conv-transposed": (lambda: nn.ConvTranspose2d(2, 3, 2, stride=2), (2, 3, 3)),
    "group-norm": (lambda: nn.GroupNorm(2, 6), (6, 4, 3)),
    "instance-norm": (lambda: nn.InstanceNorm2d(6, affine=True), (6, 4, 3)),
    "instance-norm-1d": (lambda: nn.InstanceNorm1d(6, affine=True), (6, 5)),
    "instance-norm-stored": (
        lambda: evaluated(nn.InstanceNorm2d(6, affine=True, track_running_stats=True)),
        (6, 4, 3),
    ),
    "layer-norm": (lambda: nn.LayerNorm(4), (5, 4)),
    "layer-norm-no-bias": (lambda: nn.LayerNorm((5, 4), bias=False), (3, 5, 4)),
    "batch-norm": (lambda: evaluated(nn.BatchNorm2d(6)), (6, 3, 3)),
    "batch-norm-1d": (lambda: evaluated(nn.BatchNorm1d(6)), (6,)),
    "rnn": (Last, (5, 4)),
    "twice": (Twice, (6,)),
    "tokens-first": (TokensFirst, (5, 4)),
    "weight-norm": (lambda: parametrizations.weight_norm(nn.Linear(7, 6)), (7,)),
    "prelu": (lambda: nn.PReLU(6, init=0.3), (6, 3)),
}


def network(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor]:
    """A layer between activations that make gradients of rows differ, ending in CLASSES outputs; and x."""
    torch.manual_seed(5)
    make, shape = LAYERS[name]
    layer = affine(make()) if "weight-norm" not in name else make()
    width = layer(torch.zeros(1, *shape)).numel()
    net = nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.Linear(width, CLASSES)).to(table.DEVICE, dtype)
    return net, rows(N, *shape, dtype=dtype)


def labels() -> Tensor:
    return torch.tensor([0, 1, 2, 3, 4, 0, 1, 2, 3], device=table.DEVICE)


def assert_close(ours: Any, exact: Any, rtol: float = 1e-10, atol: float = 1e-12) -> None:
    assert len(ours) == len(exact)
    for mine, theirs in zip(ours, exact, strict=True):
        if theirs is None:
            assert mine is None
        else:
            torch.testing.assert_close(mine, theirs, rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer(name: str) -> None:
    net, x = network(name)
    ours = decoct.class_gradients(net, x, labels(), ENDS)
    exact = reference.class_gradients(net, x, labels(), ENDS)
    assert_close(ours, exact)
    for parameter, gradient in zip(net.parameters(), ours, strict=True):
        assert gradient.shape == (4, *parameter.shape)
        assert not gradient.requires_grad
        assert not gradient[1].any(), "of an empty class"


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_in_float32(name: str) -> None:
    """As good as torch's own."""
    net, x = network(name, torch.float32)
    ours = decoct.class_gradients(net, x, labels(), ENDS)
    torchs = reference.class_gradients(net, x, labels(), ENDS)
    exact = reference.class_gradients(copy.deepcopy(net).double(), x.double(), labels(), ENDS)
    for k, (mine, theirs, truth) in enumerate(zip(ours, torchs, exact, strict=True)):
        assert mine.dtype == torch.float32
        assert_as_good_as_torch(mine, truth, theirs, torch.float32, f"{name} {k}")


@pytest.mark.parametrize("chunk_size", [1, 2, 4, 100])
@pytest.mark.parametrize("name", ["conv-stride", "group-norm", "twice"])
def test_chunks(name: str, chunk_size: int) -> None:
    net, x = network(name)
    ours = decoct.class_gradients(net, x, labels(), ENDS, chunk_size=chunk_size)
    assert_close(ours, reference.class_gradients(net, x, labels(), ENDS))


@pytest.mark.parametrize("name", ["conv-groups", "layer-norm", "prelu"])
def test_weights_and_losses_of_the_caller(name: str) -> None:
    net, x = network(name)
    weights, targets = rows(N), rows(N, CLASSES)
    loss = lambda output, target: (output - target).square().sum(1)  # noqa: E731
    ours = decoct.class_gradients(net, x, targets, torch.tensor(ENDS), loss=loss, weights=weights)
    assert_close(ours, reference.class_gradients(net, x, targets, ENDS, loss=loss, weights=weights))
    soft = targets.softmax(1)
    ours = decoct.class_gradients(net, x, soft, decoct.Segments(ENDS))
    assert_close(ours, reference.class_gradients(net, x, soft, ENDS))


DIFFERENTIATED = [
    "linear-tokens",
    "conv-stride",
    "conv-reflect",
    "conv-1d",
    "group-norm",
    "layer-norm",
    "twice",
]


@pytest.mark.parametrize("name", DIFFERENTIATED)
@pytest.mark.parametrize("chunk_size", [None, 4])
def test_results_can_be_differentiated(name: str, chunk_size: int | None) -> None:
    """In x, soft targets, weights and parameters, as gradient matching does."""
    net, x = network(name)
    leaves = [x.clone(), rows(N, CLASSES).softmax(1), rows(N).abs()]

    def derivatives(function: Any, **options: Any) -> list[Tensor]:
        x, targets, weights = (leaf.clone().requires_grad_() for leaf in leaves)
        found = function(net, x, targets, ENDS, weights=weights, create_graph=True, **options)
        probe = sum(torch.sin(3 * g).sum() for g in found)
        inputs = [x, targets, weights, *net.parameters()]
        first = torch.autograd.grad(probe, inputs, allow_unused=True)
        return [g for g in first if g is not None and g.any()]

    exact = derivatives(reference.class_gradients)
    assert_close(derivatives(decoct.class_gradients, chunk_size=chunk_size), exact, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", DIFFERENTIATED)
def test_results_can_be_differentiated_twice(name: str) -> None:
    """Against differences: torch's third derivative of a layer norm, which a twin would need, is wrong."""
    net, x = network(name)

    def first(x: Tensor) -> Tensor:
        found = decoct.class_gradients(net, x, labels(), ENDS, create_graph=True)
        probe = sum(torch.sin(3 * g).sum() for g in found)
        (gradient,) = torch.autograd.grad(probe, x, create_graph=True)
        return gradient.square().sum()

    direction, step = rows(*x.shape, seed=9), 1e-5
    value = first(x.requires_grad_())
    (gradient,) = torch.autograd.grad(value, x)
    ahead, behind = (first((x.detach() + s * step * direction).requires_grad_()) for s in (1, -1))
    difference = (ahead - behind).detach() / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), difference, rtol=1e-6, atol=1e-7)


def test_without_create_graph_nothing_can_be_differentiated() -> None:
    net, x = network("conv")
    x.requires_grad_()
    for gradient in decoct.class_gradients(net, x, labels(), ENDS):
        assert not gradient.requires_grad
    with torch.no_grad():
        again = decoct.class_gradients(net, x, labels(), ENDS)
    assert_close(again, reference.class_gradients(net, x, labels(), ENDS))


def test_frozen_parameters_have_none() -> None:
    net, x = network("conv")
    net[0].bias.requires_grad_(False)
    net[3].requires_grad_(False)
    ours = decoct.class_gradients(net, x, labels(), ENDS)
    assert [gradient is None for gradient in ours] == [False, True, True, True]
    assert_close(ours, reference.class_gradients(net, x, labels(), ENDS))


def test_nothing_is_left_behind() -> None:
    net, x = network("twice")
    before = dict(net.named_parameters())
    decoct.class_gradients(net, x, labels(), ENDS)
    assert dict(net.named_parameters()) == before
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize("name", ["convnet", "mlp"])
def test_networks_of_the_field(name: str) -> None:
    net = build(name, (3, 16, 16), CLASSES, width=20, generator=torch.Generator().manual_seed(1))
    net, x = net.to(table.DEVICE), torch.randn(N, 3, 16, 16).to(table.DEVICE)
    ours = decoct.class_gradients(net, x, labels(), ENDS)
    torchs = reference.class_gradients(net, x, labels(), ENDS)
    exact = reference.class_gradients(copy.deepcopy(net).double(), x.double(), labels(), ENDS)
    for k, (mine, theirs, truth) in enumerate(zip(ours, torchs, exact, strict=True)):
        # A bias before an instance norm has no gradient, but for what rounding leaves of terms as large as
        # those of the weight before it.
        scale = max(float(part.abs().max()) for part in exact[k - k % 2 : k + 1])
        assert_as_good_as_torch(mine, truth, theirs, torch.float32, str(k), scale)


def test_a_network_of_dead_units() -> None:
    """Rows of ReLUs that never fire: their gradients are zeros, not NaN."""
    net = MLP((6,), CLASSES, width=8).to(table.DEVICE)
    with torch.no_grad():
        net.blocks[0].bias[:4] = -100
    ours = decoct.class_gradients(net, torch.randn(N, 6).to(table.DEVICE), labels(), ENDS)
    assert not ours[0][:, :4].any()
    assert not ours[1][:, :4].any()
    assert ours[0][0, 4:].any()
    assert all(gradient.isfinite().all() for gradient in ours)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "name", ["linear-tokens", "conv-stride", "conv-reflect", "group-norm", "layer-norm", "rnn"]
)
def test_autocast(name: str, dtype: torch.dtype) -> None:
    """No further from the exact gradients than torch's under the same autocast."""
    net, x = network(name, torch.float32)
    with torch.autocast(table.DEVICE, dtype=dtype):
        ours = decoct.class_gradients(net, x, labels(), ENDS)
        torchs = reference.class_gradients(net, x, labels(), ENDS)
    exact = reference.class_gradients(copy.deepcopy(net).double(), x.double(), labels(), ENDS)
    for k, (mine, theirs, truth) in enumerate(zip(ours, torchs, exact, strict=True)):
        assert mine.dtype == torch.float32
        assert_as_good_as_torch(mine, truth, theirs, dtype, f"{name} {k}", float(truth.abs().max()) / 8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["linear-tokens", "conv-stride", "group-norm", "layer-norm-no-bias"])
def test_networks_of_16_bits(name: str, dtype: torch.dtype) -> None:
    net, x = network(name, dtype)
    ours = decoct.class_gradients(net, x, labels(), ENDS)
    torchs = reference.class_gradients(net, x, labels(), ENDS)
    exact = reference.class_gradients(copy.deepcopy(net).double(), x.double(), labels(), ENDS)
    for k, (mine, theirs, truth) in enumerate(zip(ours, torchs, exact, strict=True)):
        assert mine.dtype == dtype
        assert_as_good_as_torch(mine, truth, theirs, dtype, f"{name} {k}", float(truth.abs().max()) / 8)


def test_a_row_that_is_not_finite_spoils_its_class_alone() -> None:
    net, x = network("conv-stride")
    clean = decoct.class_gradients(net, x, labels(), ENDS)
    x[3] = float("nan")
    for ours, expected in zip(decoct.class_gradients(net, x, labels(), ENDS), clean, strict=True):
        assert ours[2].isnan().all()
        assert torch.equal(ours[[0, 1, 3]], expected[[0, 1, 3]])


def test_no_rows_and_no_classes() -> None:
    net, x = network("conv")
    for ends in ([0], [0, 0, 0]):
        ours = decoct.class_gradients(net, x[:0], labels()[:0], ends)
        assert [g.shape[0] for g in ours] == [len(ends) - 1] * 4
        assert not any(g.any() for g in ours)


@given(st.data())
def test_any_convolution(data: Any) -> None:
    """Closed form: unfolded patches times output gradients."""
    number = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    groups = number(1, 3)
    kernel, stride, padding, dilation = (
        [number(low, high), number(low, high)] for low, high in ((1, 4), (1, 3), (0, 3), (1, 3))
    )
    convolution = [*kernel, *stride, *padding, *dilation, groups]
    height, width = (dilation[k] * (kernel[k] - 1) + 1 + number(0, 8) for k in range(2))
    ends = [0, *sorted(number(0, 5) for _ in range(number(0, 3))), 5]
    a = rows(5, groups * number(1, 3), height, width)
    d = rows(5, groups * number(1, 20), *(outputs_of(s, k, convolution) for k, s in enumerate(a.shape[2:])))
    formats = [torch.channels_last if data.draw(st.booleans()) else torch.contiguous_format for _ in range(2)]
    a, d = (part.contiguous(memory_format=f) for part, f in zip((a, d), formats, strict=True))
    w = rows(5) if data.draw(st.booleans()) else None
    ours = segment_outer(a, d, w, torch.tensor(ends), len(ends) - 1, convolution, True)
    exact = reference.segment_outer(a, d, w, offsets=ends, convolution=convolution)
    assert_close(ours, exact)


@pytest.mark.parametrize("size", [(3, 130, 40, 33), (40, 50, 20, 70), (2, 3, 3, 700), (700, 30, 2, 2)])
def test_sizes_beyond_one_chunk(size: tuple[int, ...]) -> None:
    """Positions, outputs and columns that are cut up, and images that share a chunk."""
    channels, outputs, height, width = size
    convolution = layers.LAYERS["plain"][4]
    a, d = rows(6, channels, height, width), rows(6, outputs, height, width, seed=1)
    ours = segment_outer(a, d, None, torch.tensor([0, 5, 6]), 2, convolution, True)
    assert_close(ours, reference.segment_outer(a, d, offsets=[0, 5, 6], convolution=convolution))


def test_views_are_read_in_place() -> None:
    """Expanded, sliced and transposed images are what their copies are."""
    convolution = layers.LAYERS["plain"][4]
    a = rows(2, 3, 8, 5).transpose(2, 3)[:, :, ::2, 1:].expand(4, 2, 3, 3, 7)[:, 1]
    d = rows(1, 9, 1, 7).expand(4, 9, 3, 7)
    w = rows(8)[::2]
    ours = segment_outer(a, d, w, torch.tensor([0, 1, 4]), 2, convolution, True)
    copies = segment_outer(*(p.clone() for p in (a, d, w)), torch.tensor([0, 1, 4]), 2, convolution, True)
    exact = reference.segment_outer(a, d, w, offsets=[0, 1, 4], convolution=convolution)
    assert_close(ours, copies, rtol=0, atol=0)
    assert_close(ours, exact)


def test_transforms() -> None:
    """vmap folds its dimension into the segments; jvp and grad are the products' own."""
    convolution, ends = layers.LAYERS["stride"][4], torch.tensor([0, 2, 5])
    a, d = rows(3, 5, 2, 9, 8), rows(3, 5, 5, 5, 3, seed=1)

    def of(a: Tensor, d: Tensor) -> Tensor:
        return layers.joined(*segment_outer(a, d, None, ends, 2, convolution, True))

    batched = torch.func.vmap(of)(a, d)
    for k in range(3):
        assert_close([batched[k]], [of(a[k], d[k])])
    _, tangent = torch.func.jvp(of, (a[0], d[0]), (a[1], d[1]))
    moved = of(a[1], d[0])
    moved[:, -5:] = 0  # a bias has no share of a
    torch.testing.assert_close(tangent, moved + of(a[0], d[1]))
    value = lambda a, d: of(a, d).square().sum()  # noqa: E731
    per_row = torch.func.vmap(torch.func.grad(value, argnums=(0, 1)))(a, d)
    for k in range(3):
        leaves = [part[k].clone().requires_grad_() for part in (a, d)]
        assert_close([part[k] for part in per_row], torch.autograd.grad(value(*leaves), leaves))
    hessian = torch.func.jvp(torch.func.grad(value), (a[0], d[0]), (a[1], d[1]))[1]
    leaves = [part[0].clone().requires_grad_() for part in (a, d)]
    (first,) = torch.autograd.grad(value(*leaves), leaves[0], create_graph=True)
    again = torch.autograd.functional.jvp(
        lambda a, d: torch.autograd.grad(value(a, d), a, create_graph=True)[0], tuple(leaves), (a[1], d[1])
    )[1]
    torch.testing.assert_close(hessian, again)
    assert first.shape == hessian.shape


def test_opcheck() -> None:
    """The registered ops under torch's own checks of schema, fake tensors and dispatch."""
    convolution, ends = list(layers.LAYERS["groups"][4]), torch.tensor(layers.ENDS)
    drawn = layers.tensors("groups", weighted=True).values()
    a, d, w = (t.to(table.DEVICE).requires_grad_() for t in drawn)
    weight, bias = rows(4, 9, 12).requires_grad_(), rows(4, 9).requires_grad_()
    rest, ops = (ends, 4, convolution), torch.ops.decoct
    torch.library.opcheck(ops.segment_outer.default, (a, d, w, *rest, True))
    torch.library.opcheck(ops.segment_outer.default, (a, d, None, None, 1, convolution, False))
    torch.library.opcheck(ops.segment_convolve.default, (a, weight, bias, *rest))
    torch.library.opcheck(ops.segment_convolve_transposed.default, (d, weight, *rest, [5, 4]))


def test_refusals() -> None:
    net, x = network("conv")
    good: dict[str, Any] = {"net": net, "x": x, "targets": labels(), "x_offsets": ENDS}
    floats = "float64, float32, float16 or bfloat16"
    norm = nn.Sequential(nn.BatchNorm2d(3), net)
    cases: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (TypeError, "net must be a torch.nn.Module, got function", {"net": lambda x: x}),
        (TypeError, "x must be a tensor, got list", {"x": [1.0]}),
        (TypeError, "targets must be a tensor, got int", {"targets": 1}),
        (TypeError, "weights must be a tensor, got float", {"weights": 1.0}),
        (TypeError, f"weights must be {floats}, got int64", {"weights": labels()}),
        (TypeError, "chunk_size must be None or an int, got float", {"chunk_size": 2.0}),
        (TypeError, "x_offsets must hold ints only, got [0, 9.0]", {"x_offsets": [0, 9.0]}),
        (ValueError, "x must be (N, ...), got ()", {"x": x[0, 0, 0, 0]}),
        (ValueError, "targets must be (N, ...) with N=9 as in x, got (8,)", {"targets": labels()[1:]}),
        (
            ValueError,
            f"targets must be on the device of x, {x.device}, got meta",
            {"targets": labels().to("meta")},
        ),
        (ValueError, "weights must be (N,) with N=9 as in x, got (9, 1)", {"weights": rows(9, 1)}),
        (ValueError, "chunk_size must be at least 1, got 0", {"chunk_size": 0}),
        (ValueError, "loss must be 'cross_entropy' or a function, got 'mse'", {"loss": "mse"}),
        (ValueError, "x_offsets must end at N=9, the rows of x, got 8", {"x_offsets": [0, 8]}),
        (
            ValueError,
            "x_offsets must start at 0 and never fall, got [0, 4, 3, 9]",
            {"x_offsets": [0, 4, 3, 9]},
        ),
        (
            ValueError,
            "loss must give (N,), one number for each row, got ()",
            {"loss": lambda output, targets: output.sum()},
        ),
        (
            ValueError,
            "net must treat each row by itself, got BatchNorm2d '0' that uses statistics of the batch; call "
            "net.eval(), or only that layer's, for the stored ones",
            {"net": norm},
        ),
    ]
    for kind, message, changes in cases:
        with pytest.raises(kind) as caught:
            decoct.class_gradients(**{**good, **changes})
        assert str(caught.value) == f"class_gradients: {message}"


def test_transforms_of_the_whole_are_refused() -> None:
    net, x = network("linear")
    with pytest.raises(
        RuntimeError, match=r"^class_gradients: torch.func and forward-mode AD are not offered"
    ):
        torch.func.vmap(lambda x: decoct.class_gradients(net, x, labels(), ENDS)[0])(x[None])
    compiled = torch.compile(
        lambda x: decoct.class_gradients(net, x, labels(), ENDS), backend="eager", fullgraph=True
    )
    with pytest.raises(RuntimeError, match=r"torch\.compile cannot trace it"):
        compiled(x)
