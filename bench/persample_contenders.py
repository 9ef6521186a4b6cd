"""Ways to norms, clipped sums and inner products of per-sample gradients: ours, and those that people use."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from contenders import OURS, Contender
from persample_cases import Case

LIMIT = 1.0
Answer = tuple[Tensor, Tensor]


def _answer(values: Tensor) -> Answer:
    return values, torch.zeros(1)


def _reduced(case: Case, gradients: list[Tensor]) -> Tensor:
    """Of all gradients (N, *shape): norms, or the clipped sum."""
    norms = torch.stack([g.flatten(1).norm(dim=1) for g in gradients]).norm(dim=0)
    if case.kind == "norms":
        return norms
    factor = (LIMIT / (norms + 1e-6)).clamp(max=1)
    return torch.cat([torch.einsum("n,n...->...", factor, g).flatten() for g in gradients])


def ours(case: Case, x: Tensor, y: Tensor) -> Any:
    import decoct

    net = case.net().to(x)

    def passed(images: Tensor) -> decoct.Capture:
        with decoct.capture(net) as pairs:
            loss = F.cross_entropy(net(images), case.targets(images), reduction="sum")
        pairs.backward(loss)
        return pairs

    def call() -> Answer:
        if case.kind == "gram":
            return _answer(decoct.gradient_gram(passed(x), passed(y), loss_reduction="sum"))
        if case.kind == "norms":
            return _answer(decoct.per_sample_norms(passed(x), loss_reduction="sum"))
        sums = decoct.clipped_gradient_sum(passed(x), max_grad_norm=LIMIT, loss_reduction="sum")
        return _answer(torch.cat([g.flatten() for g in sums if g is not None]))

    return call


def _per_sample(case: Case, like: Tensor, chunk: int | None) -> Callable[[Tensor], list[Tensor]]:
    net = case.net(fused=False).to(like)
    parameters = {name: p.detach() for name, p in net.named_parameters()}

    def loss(weights: dict[str, Tensor], row: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(net, weights, (row[None],)), target[None])

    gradient = torch.func.vmap(torch.func.grad(loss), (None, 0, 0), chunk_size=chunk)
    return lambda images: list(gradient(parameters, images, case.targets(images)).values())


def vmap(chunk: int | None) -> Callable[..., Any]:
    def build(case: Case, x: Tensor, y: Tensor) -> Any:
        gradients = _per_sample(case, x, chunk)

        def call() -> Answer:
            found = gradients(x)
            if case.kind != "gram":
                return _answer(_reduced(case, found))
            # Layer by layer: there is no N x P copy of all of them.
            theirs = gradients(y)
            pairs = zip(found, theirs, strict=True)
            return _answer(sum((g.flatten(1) @ h.flatten(1).T for g, h in pairs), torch.zeros(())))

        return call

    return build


def hooks(case: Case, x: Tensor, y: Tensor) -> Any:
    warnings.simplefilter("ignore")
    from opacus import GradSampleModule

    net = GradSampleModule(case.net(fused=False).to(x), loss_reduction="sum")

    def call() -> Answer:
        net.zero_grad()
        F.cross_entropy(net(x), case.targets(x), reduction="sum").backward()
        return _answer(_reduced(case, [p.grad_sample for p in net.parameters()]))

    return call


def ghost(case: Case, x: Tensor, y: Tensor) -> Any:
    """Norms from one pass; for the clipped sum a second one, of weighted losses."""
    warnings.simplefilter("ignore")
    from opacus.grad_sample import GradSampleModuleFastGradientClipping

    net = GradSampleModuleFastGradientClipping(
        case.net(fused=False).to(x), max_grad_norm=LIMIT, use_ghost_clipping=True, loss_reduction="sum"
    )

    def call() -> Answer:
        net.zero_grad()
        net.enable_hooks()
        losses = F.cross_entropy(net(x), case.targets(x), reduction="none")
        losses.sum().backward(retain_graph=case.kind == "clipped")
        norms = net.get_norm_sample()
        if case.kind == "norms":
            return _answer(norms)
        net.disable_hooks()
        net.zero_grad()
        ((LIMIT / (norms + 1e-6)).clamp(max=1) * losses).sum().backward()
        return _answer(torch.cat([p.grad.flatten() for p in net.parameters()]))

    return call


def loop(case: Case, x: Tensor, y: Tensor) -> Any:
    net = case.net().to(x)
    parameters = list(net.parameters())

    def gradients(images: Tensor) -> list[Tensor]:
        rows = [
            torch.autograd.grad(F.cross_entropy(net(row), target), parameters)
            for row, target in zip(images.split(1), case.targets(images).split(1), strict=True)
        ]
        return [torch.stack(column) for column in zip(*rows, strict=True)]

    def call() -> Answer:
        found = gradients(x)
        if case.kind != "gram":
            return _answer(_reduced(case, found))
        pairs = zip(found, gradients(y), strict=True)
        return _answer(sum((g.flatten(1) @ h.flatten(1).T for g, h in pairs), torch.zeros(())))

    return call


NORMS = [
    Contender(OURS, ours, ours=True),
    Contender("Opacus, ghost clipping", ghost),
    Contender("Opacus, hooks", hooks),
    Contender("vmap(grad)", vmap(None)),
    Contender("vmap(grad), chunks of 16", vmap(16)),
    Contender("loop", loop),
]
GRAM = [
    Contender(OURS, ours, ours=True),
    Contender("vmap(grad) and products", vmap(None)),
    Contender("vmap(grad) in chunks of 16 and products", vmap(16)),
    Contender("loop and products", loop),
]


def contenders_for(case: Case) -> list[Contender]:
    """In the order of the tables; ours first."""
    return GRAM if case.kind == "gram" else NORMS
