"""Small networks of the condensation literature, seeded so that runs can be repeated."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["MLP", "ConvNet", "build", "reset"]


def reset(net: nn.Module, generator: torch.Generator | None = None) -> nn.Module:
    """Draw all weights of `net` anew, in place, from `generator` (torch's global one by default).

    Convolutions and linear layers get torch's own default distribution, uniform on
    ``[-1/sqrt(fan_in), 1/sqrt(fan_in)]`` for weight and bias; normalisations get ones and zeros.
    Raises TypeError for a layer with parameters of another kind.
    """
    with torch.no_grad():
        for name, layer in net.named_modules():
            own = list(layer.parameters(recurse=False))
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                bound = 1 / math.sqrt(max(layer.weight[0].numel(), 1))
                for parameter in own:
                    parameter.uniform_(-bound, bound, generator=generator)
            elif isinstance(layer, (nn.GroupNorm, nn.LayerNorm)):
                if own:
                    layer.weight.fill_(1)
                    layer.bias.fill_(0)
            elif own:
                raise TypeError(
                    f"reset: layer {name!r} is a {type(layer).__name__}, expected convolution, linear or norm"
                )
    return net


class InstanceNorm(nn.GroupNorm):
    """``GroupNorm(width, width)`` with a form of its own for channels-last images.

    torch's kernel for that layout is up to ten times slower than for the contiguous one (CPU, 16x16 and
    smaller). Statistics are those of each image and channel; the affine map is (width,), (width,).
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, width)

    def forward(self, x: Tensor) -> Tensor:
        if x.is_contiguous() or x.dtype != torch.float32:
            return super().forward(x)
        count, channels, height, width = x.shape
        rows = x.permute(0, 2, 3, 1).reshape(count, height * width, channels)
        rows = rows - rows.mean(1, keepdim=True)
        factor = ((rows * rows).mean(1, keepdim=True) + self.eps).rsqrt() * self.weight
        out = torch.addcmul(self.bias, rows, factor)
        return out.view(count, height, width, channels).permute(0, 3, 1, 2)


class HalvingPool(nn.Module):
    """``AvgPool2d(2)``, with a form of its own for contiguous images; an odd last row or column is dropped.

    torch's kernel for that layout runs pixel by pixel (CPU). Here two rows are added, and neighbours in a row
    are averaged by a matrix product: three times faster in float32, fifteen times in bfloat16 (32x32).
    """

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_contiguous():
            return F.avg_pool2d(x, 2)
        count, channels, height, width = x.shape
        down, across = height // 2, width // 2
        pairs = x[..., : 2 * down, : 2 * across].reshape(count, channels, down, 2, 2 * across)
        halve = 0.25 * torch.eye(across, dtype=x.dtype, device=x.device).repeat_interleave(2, 0)
        return (pairs[..., 0, :] + pairs[..., 1, :]) @ halve


class ConvNet(nn.Module):
    """The field's convolutional network: blocks of conv 3x3, instance norm, ReLU and 2x2 average pooling.

    A linear layer follows. shape: (channels, height, width) of one image; classes: number of outputs.
    width: channels of every block, depth: number of blocks; by default 128 and 3, or 64 and 2 for images
    of at most 12 pixels, where three poolings would leave a single pixel.
    generator: source of the initial weights.
    The first convolution of one-channel images above 12 pixels is padded by 3 (28x28 then pools like 32x32),
    all others by 1. The norm is an instance norm with an affine map, ``GroupNorm(width, width)``: no
    batch statistics.
    """

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
                InstanceNorm(self.width),
                nn.ReLU(),
                HalvingPool(),
            ]
            height, width_in = (height + 2 * padding - 2) // 2, (width_in + 2 * padding - 2) // 2
            if min(height, width_in) < 1:
                raise ValueError(
                    f"ConvNet: {self.depth} blocks pool images of shape {tuple(shape)} to nothing"
                )
        self.blocks = nn.Sequential(*layers)
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
