"""What the layers of a network multiply: activations and output gradients of one pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm

from decoct.networks import FusedNorm

__all__ = ["Capture", "Convolution", "Pair", "capture"]


@dataclass(frozen=True)
class Convolution:
    """How positions of an output see the input: pairs of height and width. Linear layers are the default."""

    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def packed(self) -> list[int]:
        """Kernel, stride, padding, dilation, groups: nine numbers."""
        return [*self.kernel, *self.stride, *self.padding, *self.dilation, self.groups]


@dataclass
class Pair:
    """One use of a layer.

    name, module : the layer, by its name in the network.
    weight, bias : its parameters that want a gradient; None otherwise.
    activation : its input, as it came.
    output_gradient : the derivative by its output; None before :meth:`Capture.backward`, and where the output
        does not matter.
    row_gradients : of a :class:`decoct.networks.FusedNorm`, the derivatives by the weight and the bias that
        each sample sees, (N, C) each; the op computes them in its own pass. Empty for other layers.
    differentiable : whether :meth:`Capture.backward` was asked for what can be differentiated again.
    """

    name: str
    module: nn.Module
    weight: nn.Parameter | None
    bias: nn.Parameter | None
    activation: Tensor
    edge: Any = field(repr=False)
    version: int = field(repr=False)
    output_gradient: Tensor | None = None
    row_edges: tuple[Any, ...] = field(default=(), repr=False)
    row_gradients: tuple[Tensor | None, ...] = ()
    differentiable: bool = field(default=False, repr=False)

    @property
    def is_norm(self) -> bool:
        """Whether the layer scales and shifts what it has normalised, number by number."""
        return not isinstance(self.module, (nn.Linear, _ConvNd))

    @property
    def rows(self) -> int:
        """Length of the activation's first dimension, that of the samples; -1 where it has none."""
        module, a = self.module, self.activation
        single = a.dim() < 2
        if isinstance(module, _ConvNd):
            single = a.dim() == 1 + len(module.kernel_size)
        elif isinstance(module, FusedNorm):
            single = a.dim() == module.single
        elif isinstance(module, _InstanceNorm):
            single = a.dim() == module._get_no_batch_dim()
        elif isinstance(module, nn.LayerNorm):
            single = a.dim() == len(module.normalized_shape)
        return -1 if single else a.shape[0]

    def images(self) -> tuple[Tensor, Tensor, Convolution]:
        """Of a linear layer or convolution: activation (N, C, H, W), output gradient (N, P, H', W') and the
        convolution whose weight gradient is the one of the layer. Tokens are images one pixel high; padding
        that is not by zeros or not the same on both sides has been added."""
        module, a, d = self.module, self.activation, self.output_gradient
        assert d is not None
        if isinstance(module, nn.Linear):
            return _token_image(a), _token_image(d), Convolution()
        assert isinstance(module, _ConvNd)
        padding: Sequence[int] = (0,) * len(module.kernel_size)
        if module.padding_mode != "zeros":
            a = F.pad(a, module._reversed_padding_repeated_twice, mode=module.padding_mode)
        elif module.padding == "same":
            a = F.pad(a, module._reversed_padding_repeated_twice)
        elif not isinstance(module.padding, str):
            padding = module.padding
        if len(module.kernel_size) == 1:
            a, d = a[:, :, None], d[:, :, None]
        convolution = Convolution(
            _height_and_width(module.kernel_size, 1),
            _height_and_width(module.stride, 1),
            _height_and_width(padding, 0),
            _height_and_width(module.dilation, 1),
            module.groups,
        )
        return a, d, convolution

    def normalised(self) -> Tensor:
        """Of a norm: what its weight was multiplied with, in float32 or float64."""
        m: Any = self.module
        a = self.activation.to(torch.promote_types(self.activation.dtype, torch.float32))
        with torch.autocast(a.device.type, enabled=False):
            if isinstance(m, nn.LayerNorm):
                return F.layer_norm(a, m.normalized_shape, eps=m.eps)
            if isinstance(m, nn.GroupNorm):
                return F.group_norm(a, m.num_groups, eps=m.eps)
            mean, variance = (None if s is None else s.to(a.dtype) for s in (m.running_mean, m.running_var))
            if isinstance(m, _BatchNorm):
                return F.batch_norm(a, mean, variance, eps=m.eps)
            if m.training or not m.track_running_stats:
                return F.instance_norm(a, eps=m.eps)
            return F.instance_norm(a, mean, variance, use_input_stats=False, eps=m.eps)


def _height_and_width(sizes: Sequence[int], height: int) -> tuple[int, int]:
    """Sizes along two dimensions; `height` in front of those along one."""
    return (height, sizes[0]) if len(sizes) == 1 else (sizes[0], sizes[1])


def _token_image(rows: Tensor) -> Tensor:
    """(N, ..., D) as images (N, D, 1, T), in place where it can be."""
    return rows.reshape(rows.shape[0], -1, rows.shape[-1]).transpose(1, 2)[:, :, None]


_FORWARDS = (
    nn.Linear.forward,
    nn.Conv1d.forward,
    nn.Conv2d.forward,
    nn.GroupNorm.forward,
    nn.LayerNorm.forward,
    FusedNorm.forward,
    _InstanceNorm.forward,
    _BatchNorm.forward,
)


def _is_known(module: nn.Module) -> bool:
    """Whether the gradients of its parameters follow from its input and its output's gradient as this file
    has it. A module with a forward of its own, or with parameters computed from others, is not known."""
    if type(module).forward not in _FORWARDS or set(module._parameters) - {"weight", "bias"}:
        return False
    return isinstance(module._parameters.get("weight"), nn.Parameter)


class Capture:
    """The pairs of a pass, in the order of their layers' calls; see :func:`capture`."""

    def __init__(self, net: nn.Module) -> None:
        if not isinstance(net, nn.Module):
            raise TypeError(f"capture: net must be a torch.nn.Module, got {type(net).__name__}")
        if any(hasattr(module, "_orig_mod") for module in net.modules()):
            raise ValueError(
                "capture: net must not be compiled, got one made by torch.compile; pass the original"
            )
        self.net = net
        self.pairs: list[Pair] = []
        self._own: dict[nn.Module, dict[str, nn.Parameter]] = {}  # what stand-ins have taken the place of
        self._uses: list[Any] = []  # graph nodes through which known layers use their parameters
        self._root: Tensor | None = None  # stands for the graph of what went backward
        self._handles: list[Any] = []

    def __iter__(self) -> Iterator[Pair]:
        return iter(self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Pair:
        return self.pairs[index]

    def __enter__(self) -> Capture:
        if self._handles:
            raise RuntimeError("capture: this capture is already open")
        for name, module in self.net.named_modules():
            wanted = [p for p in module._parameters.values() if p is not None and p.requires_grad]
            if not wanted or not _is_known(module):
                continue
            before = module.register_forward_pre_hook(self._stand_in)
            after = module.register_forward_hook(self._record(name), with_kwargs=True, prepend=True)
            self._handles += [before, after]
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def close(self) -> None:
        """Stop to record; the pairs stay."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        for module in list(self._own):
            self._restore(module)

    def _stand_in(self, module: nn.Module, arguments: Any) -> None:
        # A view in the place of each parameter marks, in autograd's graph, the uses that are recorded here.
        self._restore(module)
        own = {name: p for name, p in module._parameters.items() if p is not None and p.requires_grad}
        self._own[module] = own
        for name, parameter in own.items():
            if isinstance(module, FusedNorm) and arguments and arguments[0].dim() != module.single:
                view = parameter.expand(arguments[0].shape[0], -1)
            else:
                view = parameter.view_as(parameter)
            module._parameters[name] = view  # type: ignore[assignment]
            if view.grad_fn is not None:
                self._uses.append(view.grad_fn)

    def _restore(self, module: nn.Module) -> dict[str, nn.Parameter]:
        own = self._own.pop(module, {})
        module._parameters.update(own)
        return own

    def _record(self, name: str) -> Any:
        def record(module: nn.Module, arguments: Any, named: Any, output: Tensor) -> None:
            views: dict[str, Any] = dict(module._parameters)
            own = self._restore(module)
            if not output.requires_grad:
                return
            activation = arguments[0] if arguments else named["input"]
            edge = torch.autograd.graph.get_gradient_edge(output)
            parameters = own.get("weight"), own.get("bias")
            pair = Pair(name, module, *parameters, activation, edge, activation._version)
            if isinstance(module, FusedNorm) and pair.rows >= 0:
                pair.row_edges = tuple(
                    torch.autograd.graph.get_gradient_edge(views[kind]) if kind in own else None
                    for kind in ("weight", "bias")
                )
            self.pairs.append(pair)

        return record

    def backward(self, loss: Tensor, *, retain_graph: bool | None = None, create_graph: bool = False) -> None:
        """Give every pair the derivative of `loss`, a scalar, by its output. Nothing else is computed: no
        weight gradient, and no `.grad` is written. With `create_graph` the output gradients and activations
        may be differentiated again."""
        self.close()
        if not isinstance(loss, Tensor) or loss.dim() or loss.grad_fn is None:
            raise ValueError("capture: loss must be a scalar computed from net's output with grad mode on")
        for pair in self.pairs:
            if pair.activation._version != pair.version:
                raise RuntimeError(
                    f"capture: the input of layer {pair.name!r} was changed in place after it was used; make "
                    "that operation out of place"
                )
        self._root = loss
        if not self.pairs:
            return
        edges = [edge for pair in self.pairs for edge in (pair.edge, *pair.row_edges)]
        given = torch.autograd.grad(
            loss,
            [edge for edge in edges if edge is not None],
            retain_graph=retain_graph,
            create_graph=create_graph,
            allow_unused=True,
        )
        left = iter(given)
        for pair in self.pairs:
            pair.output_gradient, *of_rows = (
                None if edge is None else next(left) for edge in (pair.edge, *pair.row_edges)
            )
            pair.row_gradients = tuple(of_rows)
            pair.differentiable = create_graph

    @property
    def missed(self) -> set[nn.Parameter]:
        """Parameters of the network by which no pair gives the loss's gradient; see :meth:`unrecorded`. Of
        the loss that :meth:`backward` was given; empty before it."""
        return set() if self._root is None else self.unrecorded(self._root)

    def unrecorded(self, output: Tensor) -> set[nn.Parameter]:
        """Parameters of the network on which `output` depends by a use that no pair has: in layers of other
        kinds, or outside of any."""
        known, seen = set(self._uses), set()
        found: set[nn.Parameter] = set()
        parameters = {id(parameter): parameter for parameter in self.net.parameters()}
        left = [output.grad_fn]
        while left:
            node: Any = left.pop()
            if node is None or node in seen or node in known:
                continue
            seen.add(node)
            variable = getattr(node, "variable", None)
            if variable is not None and id(variable) in parameters:
                found.add(parameters[id(variable)])
            left += [following for following, _ in node.next_functions]
        return found


def capture(net: nn.Module) -> Capture:
    """Record, for each use of a layer, its input and the derivative by its output::

        with decoct.capture(net) as pairs:
            loss = F.cross_entropy(net(x), y, reduction="sum")
        pairs.backward(loss)
        for pair in pairs:
            pair.name, pair.activation, pair.output_gradient

    From these two follow the gradients of every sample, their norms, and sums over any group of samples. The
    pass backward stops at the layers' outputs: weight gradients, a third of the work, are not computed.

    Recorded are Linear, Conv1d, Conv2d (any stride, padding, dilation, groups and padding mode), GroupNorm,
    LayerNorm, InstanceNorm and BatchNorm, if they have a parameter with ``requires_grad``; layers that are
    used several times as often as they are. Other layers, subclasses with a ``forward`` of their own, and
    parameters that are computed from others (``torch.nn.utils.parametrizations``) are not;
    :meth:`Capture.unrecorded` tells their parameters. While the context is open each of these layers sees, in
    its own ``forward``, views in the place of its parameters.

    Parameters
    ----------
    net : the network, not compiled.

    Raises
    ------
    TypeError
        ``net`` is no module.
    ValueError
        A compiled network; a loss that is not a scalar with a graph.
    RuntimeError
        The input of a layer was changed in place after its use.
    """
    return Capture(net)
