"""Methods by name, with settings that work: what `decoct condense` runs when nothing else is asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..augment import Augmentation
from ..kernels import Gaussian, Kernel, resolve
from ..networks import build
from ..objectives import MMD, Identity, Match, Measure, NetFeatures, Objective, Sinkhorn, Source, seeded
from .condenser import Condenser, Phase, Record
from .pool import FreshNetworks
from .synthetic import Synthetic

__all__ = ["METHODS", "Recipe", "condenser", "default_recipe", "objective"]


@dataclass(frozen=True)
class Recipe:
    """Settings of one condensation by distribution matching.

    method: "mmd" (any kernel), "dm" (linear kernel on network features: distance of class means) or
    "sinkhorn" (entropic transport). kernel, bandwidth: of "mmd". blur, reach: of "sinkhorn", in units of the
    root mean squared distance. identity, convnet: weights of the two feature maps, the rows themselves
    and freshly drawn random networks; 0 leaves one out. network: "convnet" or "mlp".
    lr: learning rate of the points; None is `lr_per_row` times the mean rows of a class: a point's gradient
    falls as its class has more of them.
    init: "kmeans", "nearest" (real row nearest to each centroid), "random", "herding" or "noise".
    augment: strategies drawn for both sides, mode "one" or "all"; empty for none. clip: keep points in
    the data's range. batch_real, steps, momentum, schedule, average, chunk, bf16, updates: see
    `Phase`, `Condenser`, `NetFeatures`.
    """

    method: str = "mmd"
    kernel: str = "gaussian"
    bandwidth: float | Literal["mean", "median"] = "mean"
    blur: float = 0.1
    reach: float | None = None
    identity: float = 0.0
    convnet: float = 1.0
    network: str = "convnet"
    steps: int = 300
    lr: float | None = None
    lr_per_row: float = 1.0
    momentum: float = 0.5
    batch_real: int = 64
    init: str = "kmeans"
    augment: tuple[str, ...] = ("color", "crop", "cutout", "scale", "rotate")
    augment_mode: str = "one"
    schedule: str = "constant"
    average: float = 0.0
    clip: bool = False
    chunk: int = 32
    bf16: bool = False
    updates: str = "joint"

    def replace(self, **changes: Any) -> Recipe:
        return dataclasses.replace(self, **changes)

    def learning_rate(self, counts: Sequence[int]) -> float:
        """Learning rate for these rows per class; classes without rows do not count."""
        present = [count for count in counts if count > 0]
        return self.lr_per_row * sum(present) / max(len(present), 1) if self.lr is None else self.lr


def mmd_kernel(name: str) -> Kernel:
    """A kernel by name; the Gaussian sums five lengths around the mean distance, as the field's losses do."""
    return Gaussian(scales=(0.25, 0.5, 1, 2, 4)) if name == "gaussian" else resolve(name)


def _matched(recipe: Recipe, discrepancy: Callable[[Measure, Measure], Tensor]) -> Objective:
    """On both feature maps."""
    return recipe.identity * Match(discrepancy, Identity(), name="identity") + recipe.convnet * Match(
        discrepancy, NetFeatures(recipe.chunk, recipe.bf16), name="network"
    )


def _mmd(recipe: Recipe) -> Objective:
    return _matched(recipe, MMD(mmd_kernel(recipe.kernel), recipe.bandwidth))


def _dm(recipe: Recipe) -> Objective:
    return _mmd(recipe.replace(kernel="linear"))


def _sinkhorn(recipe: Recipe) -> Objective:
    return _matched(recipe, Sinkhorn(blur=recipe.blur, reach=recipe.reach))


METHODS: dict[str, Callable[[Recipe], Objective]] = {"mmd": _mmd, "dm": _dm, "sinkhorn": _sinkhorn}


def objective(recipe: Recipe) -> Objective:
    """The objective of a recipe's method. ValueError for an unknown method or with both weights 0."""
    if recipe.method not in METHODS:
        raise ValueError(f"recipe: method must be one of {', '.join(METHODS)}, got {recipe.method!r}")
    if recipe.identity <= 0 and recipe.convnet <= 0:
        raise ValueError("recipe: identity or convnet must have a positive weight")
    return METHODS[recipe.method](recipe)


def default_recipe(method: str, shape: Sequence[int]) -> Recipe:
    """Settings for rows of this shape: images of at most 12 pixels, larger images, or vectors.

    Chosen on validation splits of the training data of digits and Fashion-MNIST. A bounded kernel's gradient
    is smaller than the linear one's by about the mean squared distance of the features; hence its rates.
    Transport moves rows by their distance to where their mass goes, as the linear kernel does.
    """
    linear = method != "mmd"
    recipe = Recipe(method=method, identity=0.0 if linear else 0.1, average=0.5)
    if len(shape) != 3:
        return recipe.replace(identity=1.0, network="mlp", lr_per_row=0.3, augment=(), chunk=1024)
    if max(shape[1:]) <= 12:
        return recipe.replace(
            lr_per_row=0.3 if linear else 1.0, augment=("crop", "scale", "rotate"), chunk=128
        )
    return recipe.replace(lr_per_row=0.3 if linear else 15.0, steps=200, bf16=True)


def condenser(
    recipe: Recipe,
    synthetic: Synthetic,
    real: Source,
    *,
    shape: Sequence[int],
    classes: int,
    fill: float = 0.0,
    seed: int = 0,
    task: Any = None,
    callback: Callable[[Record], None] | None = None,
    keep: Sequence[int] = (),
) -> Condenser:
    """The loop of a recipe. `fill`: what augmentation moves in from outside an image, in the rows' units."""
    term = objective(recipe)
    net = build(recipe.network, shape, classes, generator=seeded(seed, "architecture"))
    augmentation = None
    if recipe.augment and len(shape) == 3:
        augmentation = Augmentation(recipe.augment, recipe.augment_mode, fill=fill)
    return Condenser(
        synthetic,
        real,
        [
            Phase(
                recipe.steps,
                term,
                batch_real=recipe.batch_real,
                schedule=recipe.schedule,
                average=recipe.average,
            )
        ],
        pool=FreshNetworks(net) if recipe.convnet > 0 else None,
        task=task,
        optimiser=lambda groups: torch.optim.SGD(groups, momentum=recipe.momentum),
        updates=recipe.updates,
        augmentation=augmentation,
        seed=seed,
        callback=callback,
        keep=keep,
    )
