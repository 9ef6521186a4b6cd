"""Ways to match gradients: ours, and those that people use today."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from contenders import OURS, Contender
from gradients_cases import Case

Gradients = list[Tensor]


def match_loss(real: Gradients, synthetic: Gradients) -> Tensor:
    """One minus the cosine of every row of every weight, summed up; vectors do not count."""
    total = synthetic[0].new_zeros(())
    for theirs, ours in zip(real, synthetic, strict=True):
        if theirs.dim() < 2:
            continue
        a, b = theirs.flatten(1), ours.flatten(1)
        total = total + (1 - (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1) + 1e-6)).sum()
    return total


# Distances.


def _gradients(values: Tensor, synthetic: Gradients) -> Gradients:
    """Zeros for the vectors, which do not count."""
    gradients = torch.autograd.grad(values.sum(), synthetic, allow_unused=True)
    return [torch.zeros_like(s) if g is None else g for g, s in zip(gradients, synthetic, strict=True)]


def ours_distance(case: Case, real: Gradients, synthetic: Gradients) -> Any:
    import decoct

    def call() -> tuple[Tensor, Gradients]:
        values = decoct.gradient_distance(real, synthetic, classes=True)
        return values.detach(), _gradients(values, synthetic)

    return call


def _match_loss(compiled: bool) -> Callable[..., Any]:
    def build(case: Case, real: Gradients, synthetic: Gradients) -> Any:
        function = torch.compile(match_loss, dynamic=False) if compiled else match_loss

        def call() -> tuple[Tensor, Gradients]:
            values = [function([r[c] for r in real], [s[c] for s in synthetic]) for c in range(case.classes)]
            total = torch.stack(values)
            return total.detach(), _gradients(total, synthetic)

        if compiled:
            call()  # compilation is not what is timed
        return call

    return build


# Steps of gradient matching: the gradient of the distance, summed over classes, by the synthetic images.


def plain_step(case: Case, x: Tensor, y: Tensor) -> Any:
    net = case.net(fused=False).to(y)
    parameters = list(net.parameters())
    label = case.targets(1).to(y.device)

    def gradients(images: Tensor, number: int, create_graph: bool) -> Gradients:
        loss = F.cross_entropy(net(images), label[number].expand(len(images)))
        return list(torch.autograd.grad(loss, parameters, create_graph=create_graph))

    def call() -> tuple[Tensor, Tensor]:
        values = []
        sides = zip(x.split(case.images_real), y.split(case.images_synthetic), strict=True)
        for number, (real, synthetic) in enumerate(sides):
            wanted = [g.detach() for g in gradients(real, number, False)]
            values.append(match_loss(wanted, gradients(synthetic, number, True)))
        total = torch.stack(values)
        return total.detach(), torch.autograd.grad(total.sum(), y)[0]

    return call


def compiled_step(case: Case, x: Tensor, y: Tensor) -> Any:
    """The whole of the synthetic side, and the real one, as compiled functional transforms."""
    net = case.net(fused=False).to(y)
    parameters = {name: p.detach() for name, p in net.named_parameters()}

    def loss(weights: dict[str, Tensor], images: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(net, weights, (images,)), targets)

    gradients = torch.func.grad(loss)

    def distance(images: Tensor, targets: Tensor, wanted: Gradients) -> Tensor:
        return match_loss(wanted, list(gradients(parameters, images, targets).values()))

    of_real = torch.compile(lambda images, targets: gradients(parameters, images, targets), dynamic=False)
    of_synthetic = torch.compile(torch.func.grad_and_value(distance), dynamic=False)

    def call() -> tuple[Tensor, Tensor]:
        values, found = [], []
        sides = zip(
            x.split(case.images_real),
            case.targets(case.images_real).to(y.device).split(case.images_real),
            y.detach().split(case.images_synthetic),
            case.targets(case.images_synthetic).to(y.device).split(case.images_synthetic),
            strict=True,
        )
        for real, real_targets, synthetic, targets in sides:
            wanted = list(of_real(real, real_targets).values())
            gradient, value = of_synthetic(synthetic, targets, wanted)
            values.append(value)
            found.append(gradient)
        return torch.stack(values), torch.cat(found)

    call()  # compilation is not what is timed
    return call


def _offsets(case: Case, images: int) -> Tensor:
    return torch.arange(case.classes + 1) * images


def ours_step(case: Case, x: Tensor, y: Tensor) -> Any:
    import decoct

    net = case.net().to(y)
    targets = {each: case.targets(each).to(y.device) for each in (case.images_real, case.images_synthetic)}

    def gradients(images: Tensor, each: int, create_graph: bool) -> Gradients:
        found = decoct.class_gradients(
            net, images, targets[each], _offsets(case, each), create_graph=create_graph
        )
        return [gradient for gradient in found if gradient is not None]

    def call() -> tuple[Tensor, Tensor]:
        wanted = gradients(x, case.images_real, False)
        values = decoct.gradient_distance(wanted, gradients(y, case.images_synthetic, True), classes=True)
        return values.detach(), torch.autograd.grad(values.sum(), y)[0]

    return call


# Steps of distribution matching: the squared distance of the classes' mean features.


def _dm_step(fused: bool) -> Callable[..., Any]:
    def build(case: Case, x: Tensor, y: Tensor) -> Any:
        import decoct

        net = case.net(fused).to(y)
        for parameter in net.parameters():
            parameter.requires_grad_(False)
        offsets = [_offsets(case, images) for images in (case.images_real, case.images_synthetic)]

        def call() -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                real = net.features(x)
            values = decoct.mmd(real, net.features(y), "linear", x_offsets=offsets[0], y_offsets=offsets[1])
            return values.detach(), torch.autograd.grad(values.sum(), y)[0]

        return call

    return build


DISTANCE = [
    Contender(OURS, ours_distance, ours=True),
    Contender("match_loss", _match_loss(False)),
    Contender("match_loss, compiled", _match_loss(True)),
]
GRADIENT_STEP = [
    Contender(OURS, ours_step, ours=True),
    Contender("plain code", plain_step),
    Contender("functional transforms, compiled", compiled_step),
]
FEATURE_STEP = [
    Contender(OURS, _dm_step(True), ours=True),
    Contender("torch's norm, ReLU and pooling", _dm_step(False)),
]


def contenders_for(case: Case) -> list[Contender]:
    """In the order of the tables; ours first."""
    return {"distance": DISTANCE, "dc": GRADIENT_STEP, "dm": FEATURE_STEP}[case.kind]
