"""Small networks of the condensation literature, seeded so that runs can be repeated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from decoct.ops.norm import group_norm

__all__ = ["MLP", "ConvNet", "FusedNorm", "build", "fuse", "reset"]


def reset(net: nn.Module, generator: torch.Generator | None = None) -> nn.Module:
    """Draw all weights of `net` anew, in place, from `generator` (torch's global one by default).

    Convolutions and linear layers get torch's own default distribution, uniform on
    ``[-1/sqrt(fan_in), 1/sqrt(fan_in)]`` for weight and bias; normalisations get ones and zeros, and forget
    their running statistics.
    Raises TypeError for a layer with parameters of another kind.
    """
    with torch.no_grad():
        for name, layer in net.named_modules():
            own = list(layer.parameters(recurse=False))
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                bound = 1 / math.sqrt(max(layer.weight[0].numel(), 1))
                for parameter in own:
                    parameter.uniform_(-bound, bound, generator=generator)
            elif isinstance(layer, (nn.GroupNorm, nn.LayerNorm, _NormBase)):
                for parameter, value in ((layer.weight, 1), (layer.bias, 0)):
                    if parameter is not None:
                        parameter.fill_(value)
                if isinstance(layer, _NormBase):
                    layer.reset_running_stats()
            elif own:
                raise TypeError(
                    f"reset: layer {name!r} is a {type(layer).__name__}, expected convolution, linear or norm"
                )
    return net


class FusedNorm(nn.GroupNorm):
    """A normalisation with the ReLU and the average pooling that follow it, by :func:`decoct.group_norm`.

    norm: the module that it stands for, whose parameters it shares under their names. activation, pool: as
    there. An instance norm takes an image without the first axis too.
    """

    def __init__(self, norm: nn.Module, activation: Literal["relu"] | None = None, pool: int = 1) -> None:
        if isinstance(norm, nn.GroupNorm):
            groups, channels, single = norm.num_groups, norm.num_channels, 0
        elif isinstance(norm, _INSTANCE_NORMS):
            groups = channels = norm.num_features
            single = _INSTANCE_NORMS.index(type(norm)) + 2
        else:
            raise TypeError(f"FusedNorm: norm must be a GroupNorm or InstanceNorm, got {type(norm).__name__}")
        super().__init__(groups, channels, norm.eps, affine=False)
        self.affine = bool(norm.affine)
        self.weight, self.bias = norm.weight, norm.bias
        self.activation: Literal["relu"] | None = activation
        self.pool = pool
        self.single = single  # axes of one image
        self.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        images = x.unsqueeze(0) if x.dim() == self.single else x
        out = group_norm(
            images,
            self.num_groups,
            self.weight,
            self.bias,
            epsilon=self.eps,
            activation=self.activation,
            pool=self.pool,
        )
        return out.squeeze(0) if x.dim() == self.single else out

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, activation={self.activation!r}, pool={self.pool}"


_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


def _is_plain(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether a module is of one of these kinds, not of a subclass, and nobody watches or changes its
    calls."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return type(module) in kinds and not any(getattr(module, name) for name in hooks)


def _can_fuse(module: nn.Module) -> bool:
    """Whether a normalisation is computed from its parameters and its input alone."""
    if _is_plain(module, nn.GroupNorm):
        return True
    # Parametrised modules are of a class of their own; running statistics are used in place of the input's.
    return _is_plain(module, *_INSTANCE_NORMS) and not module.track_running_stats


def _window(module: nn.Module) -> int | None:
    """The side of a pooling module's windows, where it averages whole squares that touch."""
    if not _is_plain(module, nn.AvgPool1d, nn.AvgPool2d):
        return None
    axes = 1 if type(module) is nn.AvgPool1d else 2
    sides = {side for part in (module.kernel_size, module.stride) for side in _sides(part, axes)}
    padded = any(_sides(module.padding, axes)) or module.ceil_mode
    if len(sides) != 1 or padded or getattr(module, "divisor_override", None) is not None:
        return None
    return int(sides.pop())


def _sides(value: Any, axes: int) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,) * axes


def _fuse_run(layers: list[nn.Module]) -> tuple[nn.Module, int]:
    """What takes the place of the first layers of a list, and how many these are."""
    relu = len(layers) > 1 and _is_plain(layers[1], nn.ReLU)
    taken = 1 + relu
    pool = _window(layers[taken]) if len(layers) > taken else None
    return FusedNorm(layers[0], "relu" if relu else None, pool or 1), taken + (pool is not None)


Net = TypeVar("Net", bound=nn.Module)


def fuse(net: Net) -> Net:
    """Let :func:`decoct.group_norm` compute the group and instance norms of a network, in place.

    In each ``nn.Sequential`` a norm, the ReLU after it and the average pooling after these become one
    :class:`FusedNorm`; the places of the latter two are taken by ``nn.Identity``. Norms that stand elsewhere
    are replaced alone. Parameters stay the same objects under the same names, so that optimisers and state
    dicts go on; outputs are equal but for rounding. Left alone: norms with running statistics, batch and
    layer norms, subclasses, modules with hooks, and poolings but for whole squares that touch.

    Parameters
    ----------
    net : any module; it is changed and returned. A norm that is itself ``net`` is left alone.
    """
    for parent in list(net.modules()):
        children = list(parent.named_children())
        for at, (name, child) in enumerate(children):
            if not _can_fuse(child):
                continue
            in_order = type(parent) is nn.Sequential
            run = [layer for _, layer in children[at:]] if in_order else [child]
            fused, taken = _fuse_run(run)
            setattr(parent, name, fused)
            for other, _ in children[at + 1 : at + taken]:
                setattr(parent, other, nn.Identity())
    return net


class ConvNet(nn.Module):
    """The field's convolutional network: blocks of conv 3x3, instance norm, ReLU and 2x2 average pooling.

    A linear layer follows. shape: (channels, height, width) of one image; classes: number of outputs.
    width: channels of every block, depth: number of blocks; by default 128 and 3, or 64 and 2 for images
    of at most 12 pixels, where three poolings would leave a single pixel.
    generator: source of the initial weights.
    The first convolution of one-channel images above 12 pixels is padded by 3 (28x28 then pools like 32x32),
    all others by 1. The norm is an instance norm with an affine map, ``GroupNorm(width, width)``: no
    batch statistics.
    fused: norm, ReLU and pooling are one op of this package, :class:`FusedNorm`; otherwise torch's.
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        *,
        width: int | None = None,
        depth: int | None = None,
        fused: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if len(shape) != 3:
            raise ValueError(f"ConvNet: shape must be (channels, height, width), got {tuple(shape)}")
        channels, height, width_in = shape
        small = max(height, width_in) <= 12
        self.width = width or (64 if small else 128)
        self.depth = depth or (2 if small else 3)
        layers: list[nn.Module] = []
        for block in range(self.depth):
            padding = 3 if block == 0 and channels == 1 and not small else 1
            layers += [
                nn.Conv2d(channels if block == 0 else self.width, self.width, 3, padding=padding),
                nn.GroupNorm(self.width, self.width),
                nn.ReLU(),
                nn.AvgPool2d(2),
            ]
            height, width_in = (height + 2 * padding - 2) // 2, (width_in + 2 * padding - 2) // 2
            if min(height, width_in) < 1:
                raise ValueError(
                    f"ConvNet: {self.depth} blocks pool images of shape {tuple(shape)} to nothing"
                )
        self.blocks = nn.Sequential(*layers)
        if fused:
            fuse(self.blocks)
        self.feature_width = self.width * height * width_in
        self.classifier = nn.Linear(self.feature_width, classes)
        reset(self, generator)

    def features(self, x: Tensor) -> Tensor:
        """Activations before the classifier: images (N, C, H, W) -> (N, feature_width)."""
        return torch.flatten(self.blocks(x), 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.features(x))
        return out


class MLP(nn.Module):
    """Fully connected ReLU network on flattened rows; `depth` hidden layers of `width` units."""

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        *,
        width: int | None = None,
        depth: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.width, self.depth = width or 128, depth or 2
        layers: list[nn.Module] = []
        inputs = math.prod(shape)
        for _ in range(self.depth):
            layers += [nn.Linear(inputs, self.width), nn.ReLU()]
            inputs = self.width
        self.blocks = nn.Sequential(*layers)
        self.feature_width = inputs
        self.classifier = nn.Linear(inputs, classes)
        reset(self, generator)

    def features(self, x: Tensor) -> Tensor:
        """Activations before the classifier: rows (N, ...) -> (N, feature_width)."""
        out: Tensor = self.blocks(torch.flatten(x, 1))
        return out

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.features(x))
        return out


NETWORKS: dict[str, type[ConvNet] | type[MLP]] = {"convnet": ConvNet, "mlp": MLP}


def build(
    name: str,
    shape: Sequence[int],
    classes: int,
    *,
    width: int | None = None,
    depth: int | None = None,
    generator: torch.Generator | None = None,
) -> ConvNet | MLP:
    """A network by name, "convnet" or "mlp", for rows of the given shape. ValueError for another name."""
    if name not in NETWORKS:
        raise ValueError(f"build: name must be one of {', '.join(sorted(NETWORKS))}, got {name!r}")
    return NETWORKS[name](shape, classes, width=width, depth=depth, generator=generator)
