"""What `decoct.capture` records, and what it leaves alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import decoct
from decoct.capture import Convolution
from decoct.networks import ConvNet, FusedNorm


def small_net() -> ConvNet:
    return ConvNet((3, 8, 8), 4, width=5, generator=torch.Generator().manual_seed(3))


def captured(net: nn.Module, x: Tensor, **options: Any) -> decoct.Capture:
    with decoct.capture(net) as pairs:
        loss = net(x).square().sum()
    pairs.backward(loss, **options)
    return pairs


def test_pairs_of_a_network() -> None:
    net, x = small_net(), torch.randn(6, 3, 8, 8)
    pairs = captured(net, x)
    assert [pair.name for pair in pairs] == [
        name for name, module in net.named_modules() if list(module.parameters(recurse=False))
    ]
    assert len(pairs) == 5
    assert pairs[0].activation is x
    for pair in pairs:
        assert pair.weight is pair.module.weight
        assert pair.bias is pair.module.bias
        assert pair.rows == 6
        assert pair.output_gradient is not None
        assert not pair.output_gradient.requires_grad


def test_output_gradients_are_those_of_the_outputs() -> None:
    net, x = small_net(), torch.randn(6, 3, 8, 8)
    pairs = captured(net, x)
    outputs: list[Tensor] = []
    handles = [p.module.register_forward_hook(lambda m, i, o: outputs.append(o)) for p in pairs]
    expected = torch.autograd.grad(net(x).square().sum(), outputs)
    for handle in handles:
        handle.remove()
    for pair, gradient in zip(pairs, expected, strict=True):
        torch.testing.assert_close(pair.output_gradient, gradient)


def test_rows_of_fused_norms() -> None:
    """The derivatives by the parameters that each sample sees are those of the sample alone."""
    net, x = small_net().double(), torch.randn(6, 3, 8, 8, dtype=torch.float64)
    pairs = captured(net, x)
    for name, pair in ((pair.name, pair) for pair in pairs if isinstance(pair.module, FusedNorm)):
        module = net.get_submodule(name)
        for n in range(len(x)):
            alone = torch.autograd.grad(net(x[n : n + 1]).square().sum(), (module.weight, module.bias))
            for ours, expected in zip(pair.row_gradients, alone, strict=True):
                torch.testing.assert_close(ours[n], expected)
    assert sum(bool(pair.row_gradients) for pair in pairs) == 2


def test_a_fused_norm_in_part_frozen_or_of_one_image() -> None:
    net, x = small_net(), torch.randn(6, 3, 8, 8)
    norm = next(module for module in net.modules() if isinstance(module, FusedNorm))
    norm.weight.requires_grad_(False)
    pair = next(pair for pair in captured(net, x) if pair.module is norm)
    assert pair.row_gradients[0] is None
    assert pair.row_gradients[1].shape == (6, 5)
    alone = FusedNorm(nn.InstanceNorm2d(5, affine=True), "relu")
    (pair,) = captured(alone, torch.randn(5, 4, 4))
    assert pair.rows == -1
    assert not pair.row_gradients


def test_no_weight_gradient_is_computed() -> None:
    """The graph's nodes of the weights are not reached, and nothing is accumulated."""
    net, reached = small_net(), []
    for parameter in net.parameters():
        parameter.register_hook(lambda gradient: reached.append(1))
    captured(net, torch.randn(2, 3, 8, 8))
    assert not reached
    assert all(parameter.grad is None for parameter in net.parameters())


def test_the_network_is_as_it_was() -> None:
    net = small_net()
    before = dict(net.named_parameters())
    captured(net, torch.randn(2, 3, 8, 8))
    assert dict(net.named_parameters()) == before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())

    broken = nn.Sequential(nn.Linear(3, 3), nn.Linear(4, 4))
    kept = list(broken.parameters())
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), decoct.capture(broken):
        broken(torch.randn(2, 3))
    assert all(ours is theirs for ours, theirs in zip(broken.parameters(), kept, strict=True))


def test_in_place_activations_after_a_layer() -> None:
    """The gradient is that of the layer's output, not of what became of it."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 2))
    plain = nn.Sequential(net[0], nn.ReLU(), net[2])
    x = torch.randn(5, 4)
    for ours, expected in zip(captured(net, x), captured(plain, x), strict=True):
        assert torch.equal(ours.output_gradient, expected.output_gradient)


def test_an_input_that_is_changed_after_its_use_is_refused() -> None:
    net = nn.Linear(3, 3)
    x = torch.randn(2, 3)
    with decoct.capture(net) as pairs:
        loss = net(x).sum()
    x += 1
    with pytest.raises(RuntimeError, match="the input of layer '' was changed in place"):
        pairs.backward(loss)


def test_shared_layers_are_recorded_for_each_use() -> None:
    layer = nn.Linear(3, 3)
    pairs = captured(nn.Sequential(layer, nn.Tanh(), layer), torch.randn(2, 3))
    assert [pair.module for pair in pairs] == [layer, layer]


def test_frozen_parameters() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    net[0].requires_grad_(False)
    net[1].bias.requires_grad_(False)
    (pair,) = captured(net, torch.randn(2, 3))
    assert pair.module is net[1]
    assert pair.bias is None


class Odd(nn.Module):
    """Uses of parameters that no layer of a known kind accounts for."""

    def __init__(self) -> None:
        super().__init__()
        self.known = nn.Linear(4, 4)
        self.used_twice = nn.Linear(4, 4)
        self.own = nn.Parameter(torch.ones(4))
        self.embedding = nn.Embedding(3, 4)
        self.normed = parametrizations.weight_norm(nn.Linear(4, 4))
        self.unused = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.used_twice(self.known(x)) * self.own + self.embedding.weight.sum(0)
        return self.normed(F.linear(x, self.used_twice.weight))


def test_unrecorded_uses_are_told() -> None:
    net = Odd()
    with decoct.capture(net) as pairs:
        loss = net(torch.randn(2, 4)).sum()
    names = {id(p): name for name, p in net.named_parameters()}
    assert {names[id(p)] for p in pairs.unrecorded(loss)} == {
        "own",
        "embedding.weight",
        "used_twice.weight",
        "normed.bias",
        "normed.parametrizations.weight.original0",
        "normed.parametrizations.weight.original1",
    }
    assert [pair.name for pair in pairs] == ["known", "used_twice"]


def test_a_subclass_with_a_forward_of_its_own_is_unknown() -> None:
    class Masked(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return F.linear(input, self.weight * 0.5, self.bias)

    class Named(nn.Linear):
        pass

    net = nn.Sequential(Masked(3, 3), Named(3, 3))
    assert [pair.name for pair in captured(net, torch.randn(2, 3))] == ["1"]


def test_checkpointed_layers_are_recorded_once() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    x = torch.randn(4, 3)
    with decoct.capture(net) as pairs:
        loss = torch.utils.checkpoint.checkpoint(net, x, use_reentrant=False).square().sum()
    pairs.backward(loss)
    expected = captured(net, x)
    assert len(pairs) == 2
    for ours, theirs in zip(pairs, expected, strict=True):
        assert torch.equal(ours.output_gradient, theirs.output_gradient)


def test_create_graph() -> None:
    net, x = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)), torch.randn(4, 3, requires_grad=True)
    pairs = captured(net, x, create_graph=True)
    (gradient,) = torch.autograd.grad(pairs[0].output_gradient.square().sum(), x)
    outputs: list[Tensor] = []
    net[0].register_forward_hook(lambda m, i, o: outputs.append(o))
    (first,) = torch.autograd.grad(net(x).square().sum(), outputs, create_graph=True)
    (expected,) = torch.autograd.grad(first.square().sum(), x)
    torch.testing.assert_close(gradient, expected)


def test_outputs_that_do_not_matter_have_no_gradient() -> None:
    net = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    x = torch.randn(2, 3)
    with decoct.capture(net) as pairs:
        net[0](x)
        loss = net[1](x).sum()
    pairs.backward(loss)
    assert pairs[0].output_gradient is None
    assert pairs[1].output_gradient is not None


def test_images_of_tokens_are_views() -> None:
    net, x = nn.Linear(3, 5), torch.randn(2, 7, 3)
    (pair,) = captured(net, x)
    a, d, convolution = pair.images()
    assert a.shape == (2, 3, 1, 7)
    assert d.shape == (2, 5, 1, 7)
    assert a.data_ptr() == x.data_ptr()
    assert convolution == Convolution()


def test_refusals() -> None:
    with pytest.raises(TypeError, match=r"^capture: net must be a torch.nn.Module, got int$"):
        decoct.capture(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^capture: net must not be compiled"):
        decoct.capture(nn.Sequential(torch.compile(nn.Linear(2, 2), backend="eager")))
    net = nn.Linear(2, 2)
    with decoct.capture(net) as pairs:
        output = net(torch.randn(3, 2))
        with pytest.raises(RuntimeError, match="already open"):
            pairs.__enter__()
    for loss in (output, output.sum().detach(), 1.0):
        with pytest.raises(ValueError, match=r"^capture: loss must be a scalar computed from net's output"):
            pairs.backward(loss)


def test_no_grad_records_nothing() -> None:
    net = nn.Linear(2, 2)
    with decoct.capture(net) as pairs, torch.no_grad():
        net(torch.randn(3, 2))
    assert len(pairs) == 0
