"""The rows of gpu_timings.py for gradient matching: distances and whole steps as in bench_gradients.py, and
parts of a step alone: the gradients of every class, and the fused norm in three stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

import gradients_cases
import gradients_contenders
import peaks
from contenders import OURS, Contender
from gpu_device import Device
from gpu_row import Errors, Row
from gradients_cases import flat, wide

# ---- the gradients of every class


@dataclass(frozen=True)
class Classes(gradients_cases.Case):
    """Mean gradients of each class's real images, without the rest of a step."""

    @property
    def name(self) -> str:
        return f"class gradients {self.classes}x{self.images_real}"

    def work(self) -> peaks.Work:
        """Products: forward, by weights and by activations, without those by the images."""
        first, others = self._products()
        flops = self.classes * self.images_real * (3 * (first + others) - first)
        return peaks.Work(flops=float(flops), exps=0.0, bytes=0.0)


def _found(gradients: Sequence[Tensor | None]) -> tuple[Tensor, list[Tensor]]:
    """Without a value: gradients are all there is."""
    present = [gradient for gradient in gradients if gradient is not None]
    return present[0].new_zeros(0), present


def _ours_classes(case: Classes, x: Tensor, y: Tensor) -> Any:
    import decoct

    net, targets = case.net().to(y), case.targets(case.images_real).to(y.device)
    ends = torch.arange(case.classes + 1) * case.images_real
    return lambda: _found(decoct.class_gradients(net, x, targets, ends))


def _loop_classes(case: Classes, x: Tensor, y: Tensor) -> Any:
    net, targets = case.net(fused=False).to(y), case.targets(case.images_real).to(y.device)
    parameters = list(net.parameters())

    def call() -> tuple[Tensor, list[Tensor]]:
        found = [
            torch.autograd.grad(F.cross_entropy(net(images), labels), parameters)
            for images, labels in zip(x.split(case.images_real), targets.split(case.images_real), strict=True)
        ]
        return _found([torch.stack(parts) for parts in zip(*found, strict=True)])

    return call


def _vmapped_classes(case: Classes, x: Tensor, y: Tensor) -> Any:
    """Gradients of every image by vmap(grad), then means."""
    net, targets = case.net(fused=False).to(y), case.targets(case.images_real).to(y.device)
    parameters = {name: p.detach() for name, p in net.named_parameters()}

    def loss(weights: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        scores = torch.func.functional_call(net, weights, (image[None],))
        return F.cross_entropy(scores, label[None])

    each = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))

    def call() -> tuple[Tensor, list[Tensor]]:
        found = each(parameters, x, targets)
        return _found([g.unflatten(0, (case.classes, -1)).mean(1) for g in found.values()])

    return call


CLASSES = [
    Contender(OURS, _ours_classes, ours=True),
    Contender("loop of autograd.grad", _loop_classes),
    Contender("vmap(grad)", _vmapped_classes),
]

# ---- the fused norm


@dataclass(frozen=True)
class Norm:
    """Instance norm with an affine map, ReLU and average pooling by 2; stage: "forward", "backward" (with the
    forward pass), or "second": both, and the derivative of the gradients, as gradient matching takes it."""

    stage: str
    images: int
    channels: int
    side: int
    groups: int = 0

    @property
    def name(self) -> str:
        return f"norm {self.stage} {self.images}x{self.channels}x{self.side}x{self.side}"

    def rows(self) -> tuple[Tensor, Tensor]:
        """Cotangents of the result, and images."""
        generator = torch.Generator().manual_seed(0)
        shape, half = (self.images, self.channels), self.side // 2
        cotangents = torch.randn(*shape, half, half, generator=generator)
        return cotangents, torch.randn(*shape, self.side, self.side, generator=generator).requires_grad_()

    def work(self) -> peaks.Work:
        """A pass over the images, of whose result a quarter is left, for each tensor that is read or
        written (norm.cuh)."""
        passes = {"forward": 1.25, "backward": 1.25 + 2.25, "second": 1.25 + 2.25 + 3.5}[self.stage]
        numbers = self.images * self.channels * self.side**2
        return peaks.Work(flops=0.0, exps=0.0, bytes=4.0 * numbers * passes)


def _ours_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    import decoct

    return decoct.instance_norm(x, weight, bias, activation="relu", pool=2)


def _torchs_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.avg_pool2d(F.relu(F.group_norm(x, x.shape[1], weight, bias)), 2)


def _norm(function: Callable[..., Tensor], compiled: bool = False) -> Callable[..., Any]:
    def build(case: Norm, x: Tensor, y: Tensor) -> Any:
        layer = torch.compile(function, dynamic=False) if compiled else function
        ramp = torch.linspace(-1, 1, case.channels, dtype=y.dtype, device=y.device)
        weight, bias = (part.requires_grad_() for part in (1 + ramp / 2, ramp.clone()))
        inputs = [y, weight, bias]

        def call() -> tuple[Tensor, Any]:
            if case.stage == "forward":
                with torch.no_grad():
                    value = layer(*inputs)
                return value, value.new_zeros(0)
            value = layer(*inputs)
            second = case.stage == "second"
            gradients = torch.autograd.grad(value, inputs, x, create_graph=second)
            if not second:
                return value.detach(), list(gradients)
            probe = sum((g * g.detach().cos()).sum() for g in gradients)
            return value.detach(), list(torch.autograd.grad(probe, inputs[:2]))

        if compiled:
            call()  # compilation is not what is timed
        return call

    return build


NORM = [
    Contender(OURS, _norm(_ours_norm), ours=True),
    Contender("torch's norm, ReLU and pooling", _norm(_torchs_norm)),
]
NORM_COMPILED = Contender("torch's norm, ReLU and pooling, compiled", _norm(_torchs_norm, compiled=True))

# ---- rows


def _error(ours: Tensor, exact: Tensor) -> float | None:
    """Relative to the largest entry; None where there are none."""
    if not exact.numel():
        return None
    return float((ours.detach().double() - exact).abs().max() / exact.abs().max())


@dataclass(frozen=True)
class GradientRow(Row):
    op: ClassVar[str] = "gradients"

    @property
    def step(self) -> bool:
        """Whether a network is part of it."""
        return isinstance(self.case, gradients_cases.Case) and self.case.kind != "distance"

    def at(self, toy: bool) -> Any:
        if not toy:
            return self.case
        if isinstance(self.case, Norm):
            return replace(self.case, images=3, channels=4, side=min(self.case.side, 8))
        few = {"classes": min(self.case.classes, 2)}
        if self.step:
            few |= {"images_real": 3, "images_synthetic": 2, "size": 8}
        return replace(self.case, **few)

    def inputs(self, case: Any, device: Device) -> tuple[Any, Any]:
        def moved(side: Any) -> Any:
            if isinstance(side, Tensor):
                return side.detach().to(device.device).requires_grad_(side.requires_grad)
            return [moved(tensor) for tensor in side]

        x, y = case.rows()
        return moved(x), moved(y)

    def offered(self) -> list[Contender]:
        if isinstance(self.case, Norm):
            # A compiled function has no second derivatives.
            return [*NORM, *([NORM_COMPILED] if self.case.stage != "second" else [])]
        if isinstance(self.case, Classes):
            return CLASSES
        return gradients_contenders.contenders_for(self.case)

    def answers(self, case: Any, x: Any, y: Any) -> tuple[Tensor, Tensor]:
        """Of the first peer in float64."""
        plain = next(contender for contender in self.offered() if not contender.ours)
        values, gradient = plain.build(case, wide(x), wide(y))()
        return values.detach(), flat(gradient).detach()

    def errors(self, answers: Any, contender: Any, values: Tensor, gradient: Tensor) -> Errors:
        return {"value": _error(values, answers[0]), "gradient": _error(flat(gradient), answers[1])}

    def allowed(self, contender: Any) -> tuple[float, float]:
        """Wide for networks: a number that rounding takes across a ReLU's corner moves a whole gradient, and
        products of torch's in TF32 are good to three digits. Of a norm alone it moves its own entry, by its
        cotangent, a thousandth of the largest sum over the images."""
        if not self.step:
            return 1e-5, 2e-3 if isinstance(self.case, Norm) else 1e-4
        return (1e-3, 2e-2) if self.precision == "highest" else (5e-2, 3e-1)

    def work(self, contender: Any, case: Any, x: Any, y: Any) -> peaks.Work:
        work: peaks.Work = case.work()
        return work


def _classes(images: int) -> Classes:
    return Classes("classes", classes=10, images_real=images, images_synthetic=1)


NORMS = [(640, 128, 32), (10, 128, 32), (256, 128, 16)]
"""Images, channels and sides: a chunk of real images, the synthetic ones of ten classes, a deeper layer."""
STAGES = ("forward", "backward", "second")


def listed() -> list[GradientRow]:
    """By importance; what is compiled at run time last."""
    distances = [case for case in gradients_cases.FULL if case.kind == "distance"]
    steps = [case for case in gradients_cases.FULL if case.kind != "distance"]
    norms = [Norm(stage, *size) for size in NORMS for stage in STAGES]
    layers = [_classes(images) for images in (256, 1)]
    rows = [GradientRow(case, "highest", False) for case in (*distances, *layers, *norms, *steps)]
    rows += [GradientRow(case, "high", False) for case in (*layers, *steps)]
    compiled = [*distances, *(case for case in norms[:2]), *(case for case in steps if case.kind == "dc")]
    return rows + [GradientRow(case, "highest", True) for case in compiled]
