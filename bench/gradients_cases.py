"""What bench_gradients.py times, and exact answers for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import peaks
from decoct.networks import ConvNet

Shapes = list[tuple[int, ...]]


def _convnet_shapes() -> Shapes:
    shapes: Shapes = []
    for channels in (3, 128, 128):
        shapes += [(128, channels, 3, 3), (128,), (128,), (128,)]
    return [*shapes, (10, 2048), (10,)]


def _resnet18_shapes() -> Shapes:
    """Of the variant for 32 x 32 images: a first convolution of 3 x 3, and norms with an affine map."""
    shapes: Shapes = [(64, 3, 3, 3), (64,), (64,)]
    channels = 64
    for width in (64, 128, 256, 512):
        for block in range(2):
            into = channels if block == 0 else width
            shapes += [(width, into, 3, 3), (width,), (width,), (width, width, 3, 3), (width,), (width,)]
            if block == 0 and into != width:
                shapes += [(width, into, 1, 1), (width,), (width,)]
        channels = width
    return [*shapes, (10, 512), (10,)]


SHAPES = {"convnet": _convnet_shapes(), "resnet18": _resnet18_shapes()}


@dataclass(frozen=True)
class Case:
    """kind "distance": row cosines of the gradients of `classes` classes at parameters of the shapes of
    `network`. "dc": one step of gradient matching with the standard ConvNet of 32 x 32 colour images. "dm":
    one of distribution matching. Both with images_real real and images_synthetic synthetic images a class."""

    kind: str
    network: str = "convnet"
    classes: int = 1
    images_real: int = 0
    images_synthetic: int = 0
    size: int = 32

    @property
    def name(self) -> str:
        if self.kind == "distance":
            return f"distance {self.network} {self.classes}"
        return f"{self.kind} step {self.classes}x({self.images_real},{self.images_synthetic})"

    def net(self, fused: bool = True) -> ConvNet:
        """The standard ConvNet, the same weights each time; not `fused`: torch's own norm and pooling."""
        generator = torch.Generator().manual_seed(1)
        return ConvNet((3, self.size, self.size), self.classes, fused=fused, generator=generator)

    def rows(self) -> tuple[Any, Any]:
        """Of a distance: lists of tensors (classes, *shape), real and synthetic. Of a step: images."""
        generator = torch.Generator().manual_seed(0)

        def drawn(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        if self.kind == "distance":
            real = [drawn(self.classes, *shape) * 0.1 for shape in SHAPES[self.network]]
            return real, [(r + 0.05 * drawn(*r.shape)).requires_grad_() for r in real]
        image = (3, self.size, self.size)
        real_images = drawn(self.classes * self.images_real, *image)
        return real_images, drawn(self.classes * self.images_synthetic, *image).requires_grad_()

    def targets(self, images: int) -> Tensor:
        return torch.arange(self.classes).repeat_interleave(images)

    def work(self) -> peaks.Work:
        """Of a distance: two lists read, one written. Of a step the products of convolutions and classifier:
        forward, by weights and by activations for real images, seven such units for synthetic ones; for
        distribution matching one for real and two for synthetic images."""
        if self.kind == "distance":
            parameters = sum(torch.Size(shape).numel() for shape in SHAPES[self.network])
            return peaks.Work(flops=0.0, exps=0.0, bytes=12.0 * parameters * self.classes)
        first, others = self._products()
        every = first + others
        if self.kind == "dc":
            # Nothing is differentiated by the real images.
            real, synthetic = 3 * every - first, 7 * every
        else:
            real, synthetic = every, 2 * every
        images = self.images_real * real + self.images_synthetic * synthetic
        return peaks.Work(flops=float(self.classes * images), exps=0.0, bytes=0.0)

    def _products(self) -> tuple[int, int]:
        """Operations of the first convolution of one image, and of the rest."""
        pixels, products = self.size**2, []
        for channels in (3, 128, 128):
            products.append(2 * pixels * channels * 9 * 128)
            pixels //= 4
        return products[0], sum(products[1:]) + 2 * 128 * pixels * self.classes


FULL = [
    Case("distance", "convnet"),
    Case("distance", "convnet", 10),
    Case("distance", "resnet18"),
    Case("dc", classes=10, images_real=256, images_synthetic=1),
    Case("dc", classes=10, images_real=256, images_synthetic=10),
    Case("dm", classes=10, images_real=256, images_synthetic=1),
    Case("dm", classes=10, images_real=256, images_synthetic=10),
]
QUICK = [
    Case("distance", "convnet", 2),
    Case("dc", classes=2, images_real=3, images_synthetic=2, size=16),
    Case("dm", classes=2, images_real=3, images_synthetic=2, size=16),
]


def flat(gradient: Any) -> Tensor:
    """A gradient, or a list of them, as one vector."""
    return gradient.flatten() if isinstance(gradient, Tensor) else torch.cat([g.flatten() for g in gradient])


def wide(side: Any) -> Any:
    """Inputs, or lists of them, in float64."""
    if isinstance(side, Tensor):
        return side.detach().double().requires_grad_(side.requires_grad)
    return [wide(tensor) for tensor in side]


def exact(case: Case, x: Any, y: Any) -> tuple[Tensor, Tensor]:
    """Values and gradient of the plain code in float64."""
    import gradients_contenders

    plain = next(c for c in gradients_contenders.contenders_for(case) if not c.ours)
    values, gradient = plain.build(case, wide(x), wide(y))()
    return values, flat(gradient)


class _Counter(TorchDispatchMode):
    """Counts the ops that reach a device: those that only change how memory is seen do not."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        self.count += not function.is_view
        return function(*arguments, **(options or {}))


def assessed(
    answer: tuple[Tensor, Tensor], contender: Any, case: Case, x: Any, y: Any, result: tuple[Tensor, Any]
) -> dict[str, Any]:
    """Errors, relative to the largest value and to the largest entry of the gradient; dispatched ops, but of
    what is compiled."""
    values, gradient = result[0].detach().double(), flat(result[1]).detach().double()
    found: dict[str, Any] = {
        "error": {
            "value": ((values - answer[0]).abs().max() / answer[0].abs().max()).item(),
            "gradient": ((gradient - answer[1]).abs().max() / answer[1].abs().max()).item(),
        }
    }
    if "compiled" not in contender.name:
        call = contender.build(case, x, y)
        with _Counter() as counter:
            call()
        found["ops"] = counter.count
    return found
