"""Methods by name, with settings that work: what `decoct condense` runs when nothing else is asked for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..augment import STRATEGIES, Augmentation
from ..kernels import Gaussian, Kernel, resolve
from ..networks import build
from ..objectives import (
    MMD,
    AttentionFeatures,
    BarycenterMatch,
    CharacteristicDistance,
    CharacteristicMatch,
    CharacteristicMean,
    FeatureMap,
    GradientMatch,
    GradientMean,
    Identity,
    Match,
    Measure,
    NetFeatures,
    Objective,
    Sinkhorn,
    Source,
    StatisticMatch,
    counts_to_offsets,
    seeded,
)
from ..ops.gradient_distance import Metric
from .condenser import Condenser, Phase, Record
from .pool import FreshNetworks, Pool, PretrainedNetwork, TrainedNetworks
from .synthetic import MultiFormation, Synthetic

__all__ = [
    "GRADIENT_METHODS",
    "METHODS",
    "PRIVATE_METHODS",
    "Recipe",
    "condenser",
    "default_recipe",
    "objective",
    "starting_set",
]


@dataclass(frozen=True)
class Recipe:
    """Settings of one condensation.

    method: by distribution matching "mmd" (any kernel), "dm" (linear kernel on network features: distance of
    class means), "sinkhorn" (entropic transport), "datadam" (class means of attention maps) or "ncfm"
    (characteristic functions at random frequencies); "wmdd" (class-wise Wasserstein barycentres of a trained
    network's features); of noised answers "dp-dc" (clipped gradients, asked for in every step) or "dp-merf"
    (the mean of random Fourier features, asked for once); by gradient matching "dc", "dsa" (the same under
    differentiable siamese augmentation) or "idc" (networks trained on real rows, multi-formation).
    kernel, bandwidth: of "mmd"; bandwidth of "dp-merf" too, a number there. blur, reach: of "sinkhorn", blur
    of "wmdd" too, in units of the root mean squared distance. power, balance: of "datadam", see
    `AttentionFeatures`. frequencies, amplitude, phase: of "ncfm", see `CharacteristicMatch` and
    `CharacteristicDistance`; frequencies of "dp-merf" too. masses, statistics: of "wmdd", see
    `BarycenterMatch`; pretrain: epochs of its network.
    identity, convnet: of distribution matching, weights of the two feature maps, the rows themselves and
    freshly drawn random networks; 0 leaves one out. network: "convnet" or "mlp"; width: of its layers,
    None for its own.
    noise_multiplier, clip_norm, sampling_rate: of the private methods' source, see `PrivateSource`; a public
    source answers them without noise.
    metric, tensors: of gradient matching, see `GradientMatch`. outer, inner: matching steps that one network
    serves, and epochs of its training after each; None follows the rows per class (`loops`).
    train_on, real_rows, net_lr, net_momentum, net_decay, net_batch, net_augment, mix: of that training, see
    `TrainedNetworks`. factor: cells per side of the multi-formation, 1 for none; any method may have it.
    lr: learning rate of the points; None is `lr_per_row` times the mean rows of a class: a point's gradient
    falls as its class has more of them.
    init: "kmeans", "nearest" (real row nearest to each centroid), "random", "herding" or "noise".
    augment: strategies drawn for both sides, mode "one" or "all"; empty for none. clip: keep points in
    the data's range. batch_real, batch_synthetic, steps, momentum, schedule, average, chunk, bf16, updates:
    see `Phase`, `Condenser`, `NetFeatures`.
    """

    method: str = "mmd"
    kernel: str = "gaussian"
    bandwidth: float | Literal["mean", "median"] = "mean"
    blur: float = 0.1
    reach: float | None = None
    power: float = 4.0
    balance: float = 0.01
    frequencies: int = 1024
    amplitude: float = 0.5
    phase: float = 0.5
    masses: Literal["learned", "uniform"] = "learned"
    statistics: float = 0.0
    pretrain: int = 30
    identity: float = 0.0
    convnet: float = 1.0
    network: str = "convnet"
    width: int | None = None
    noise_multiplier: float | None = None
    clip_norm: float = 1.0
    sampling_rate: float = 1.0
    metric: Metric = "row_cosine"
    tensors: str = "matrices"
    outer: int | None = None
    inner: int | None = None
    train_on: str = "synthetic"
    real_rows: int = 512
    net_lr: float = 0.01
    net_momentum: float = 0.0
    net_decay: float = 0.0
    net_batch: int = 256
    net_augment: tuple[str, ...] = ()
    mix: float = 0.0
    factor: int = 1
    steps: int = 300
    lr: float | None = None
    lr_per_row: float = 1.0
    momentum: float = 0.5
    batch_real: int = 64
    batch_synthetic: int | None = None
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
        return self.lr_per_row * _mean_rows(counts) if self.lr is None else self.lr

    def loops(self, counts: Sequence[int]) -> tuple[int, int]:
        """(outer, inner) for these rows per class.

        Published for 1, 10, 20 and 50 rows are (1, -), (10, 50), (20, 25) and (50, 10); in between as many
        steps as rows, at most 50, and 500 epochs over the life of a network, at most 50 at a time.
        """
        outer = self.outer or min(max(round(_mean_rows(counts)), 1), 50)
        return outer, min(round(500 / outer), 50) if self.inner is None else self.inner


def _mean_rows(counts: Sequence[int]) -> float:
    present = [count for count in counts if count > 0]
    return sum(present) / max(len(present), 1)


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


def _datadam(recipe: Recipe) -> Objective:
    maps = AttentionFeatures(recipe.power, recipe.balance, chunk=recipe.chunk)
    return recipe.convnet * Match(MMD("linear"), maps, name="attention")


def _ncfm(recipe: Recipe) -> Objective:
    def term(features: FeatureMap, name: str) -> Objective:
        distance = CharacteristicDistance(recipe.amplitude, recipe.phase)
        return CharacteristicMatch(features, frequencies=recipe.frequencies, distance=distance, name=name)

    network = NetFeatures(recipe.chunk, recipe.bf16)
    return recipe.identity * term(Identity(), "identity") + recipe.convnet * term(network, "network")


def _wmdd(recipe: Recipe) -> Objective:
    return BarycenterMatch(
        NetFeatures(recipe.chunk, recipe.bf16),
        weights=recipe.masses,
        blur=recipe.blur,
        statistics=recipe.statistics,
    )


def _gradients(recipe: Recipe) -> Objective:
    return GradientMatch(recipe.metric, recipe.tensors)


def _dp_dc(recipe: Recipe) -> Objective:
    return StatisticMatch(GradientMean(tensors=recipe.tensors), recipe.metric, name="gradients")


def _dp_merf(recipe: Recipe) -> Objective:
    length = None if isinstance(recipe.bandwidth, str) else recipe.bandwidth
    statistic = CharacteristicMean(recipe.frequencies, length=length)
    return StatisticMatch(statistic, once=True, name="embedding")


METHODS: dict[str, Callable[[Recipe], Objective]] = {
    "mmd": _mmd,
    "dm": _dm,
    "sinkhorn": _sinkhorn,
    "datadam": _datadam,
    "ncfm": _ncfm,
    "wmdd": _wmdd,
    "dc": _gradients,
    "dsa": _gradients,
    "idc": _gradients,
    "dp-dc": _dp_dc,
    "dp-merf": _dp_merf,
}
GRADIENT_METHODS = tuple(name for name, make in METHODS.items() if make is _gradients)
PRIVATE_METHODS = ("dp-dc", "dp-merf")


def objective(recipe: Recipe) -> Objective:
    """The objective of a recipe's method. ValueError for an unknown method or with both weights 0."""
    if recipe.method not in METHODS:
        raise ValueError(f"recipe: method must be one of {', '.join(METHODS)}, got {recipe.method!r}")
    if recipe.identity <= 0 and recipe.convnet <= 0:
        raise ValueError("recipe: identity or convnet must have a positive weight")
    if recipe.method == "datadam" and recipe.identity > 0:
        raise ValueError("recipe: datadam compares a network's layers alone; identity must be 0")
    return METHODS[recipe.method](recipe)


_SMALL_VIEWS = ("crop", "scale", "rotate")
"""Of small images, and of those that a network for barycentres is trained on."""
_WHOLE = {"datadam": 100.0, "ncfm": 300.0}
"""The published weights of the whole."""
_RATES = {"datadam": 0.01, "ncfm": 0.03, "wmdd": 0.03}
"""Learning rates for each row of a class, where they are not 0.3."""


def default_recipe(method: str, shape: Sequence[int], *, flip: bool = False) -> Recipe:
    """Settings for rows of this shape: images of at most 12 pixels, larger images, or vectors.

    flip: mirror images keep their class, so that "dsa" may have them among its views.

    Those of distribution matching were chosen on validation splits of the training data of digits and
    Fashion-MNIST, of datadam, ncfm and wmdd of digits alone. A bounded kernel's gradient is smaller than the
    linear one's by about the mean squared distance of the features; hence its rates. Transport moves rows by
    their distance to where their mass goes, as the linear kernel does. Those of gradient matching are the
    published ones, but for fewer steps and smaller batches, k-means centroids to begin with, the average of
    the last steps as the result, and idc's learning rate, which is for hundreds of steps instead of hundreds
    of thousands.
    """
    if method in PRIVATE_METHODS:
        return _private_recipe(method, shape)
    image = len(shape) == 3
    small = image and max(shape[1:]) <= 12
    recipe = Recipe(method=method, average=0.5, lr_per_row=_RATES.get(method, 0.3))
    if not image:
        recipe = recipe.replace(network="mlp", augment=(), chunk=1024)
    elif small:
        recipe = recipe.replace(augment=_SMALL_VIEWS, chunk=128)
    else:
        recipe = recipe.replace(steps=200)
    if method in GRADIENT_METHODS:
        return _gradient_recipe(recipe, image, small, flip)
    if method == "wmdd":
        return _barycenter_recipe(recipe, image)
    if method in _WHOLE:
        return recipe.replace(convnet=_WHOLE[method])
    if not image:
        return recipe.replace(identity=1.0)
    if method == "mmd":
        recipe = recipe.replace(identity=0.1, lr_per_row=1.0 if small else 15.0)
    return recipe.replace(bf16=not small)


def _barycenter_recipe(recipe: Recipe, image: bool) -> Recipe:
    """Of wmdd: a row has its own point to come to, so that views are of no use and no step is random."""
    views = _SMALL_VIEWS if image else ()
    return recipe.replace(augment=(), average=0.0, net_momentum=0.9, net_batch=64, net_augment=views)


def _gradient_recipe(recipe: Recipe, image: bool, small: bool, flip: bool) -> Recipe:
    """Of dc and dsa (Zhao et al. 2021, Zhao and Bilen 2021) and idc (Kim et al. 2022)."""
    method = recipe.method
    recipe = recipe.replace(lr=0.1, augment=())
    if method == "dsa" and image:
        views = STRATEGIES if flip else tuple(view for view in STRATEGIES if view != "flip")
        recipe = recipe.replace(augment=views, net_augment=views)
    if method == "idc":
        recipe = recipe.replace(
            metric="l1",
            tensors="convolutions" if image else "matrices",
            outer=100,
            inner=1,
            train_on="real",
            net_momentum=0.9,
            net_decay=5e-4,
            net_batch=64,
            batch_synthetic=128,
            lr=None,
            lr_per_row=1e-3 if image and not small else 1e-2,
        )
        if image:
            recipe = recipe.replace(
                factor=1 if small else 2,  # a quarter of so small an image would show nothing
                augment=("color", "crop", "cutout"),
                augment_mode="all",
                net_augment=("color", "crop"),
                mix=0.5,
            )
    return recipe


def _private_recipe(method: str, shape: Sequence[int]) -> Recipe:
    """Of dp-dc and dp-merf, from noise: nothing that is set here is taken from a run's own rows. The rates
    and sizes were chosen on a validation split of the digits; narrow networks, since the noise grows with the
    number of parameters and their gradients do not."""
    image, small = len(shape) == 3, max(shape[1:], default=0) <= 12
    recipe = Recipe(method=method, init="noise", augment=(), average=0.5, clip=True)
    recipe = recipe.replace(network="convnet" if image else "mlp")
    if method == "dp-merf":
        length = 0.5 * math.sqrt(math.prod(shape))
        return recipe.replace(identity=1.0, convnet=0.0, bandwidth=length, lr_per_row=30.0)
    width = (4 if small else 8) if image else 16
    return recipe.replace(width=width, outer=1, clip_norm=0.1, lr_per_row=0.1, steps=200, sampling_rate=0.5)


def _pool(recipe: Recipe, net: nn.Module, counts: Sequence[int]) -> Pool | None:
    views = recipe.net_augment
    training: dict[str, Any] = {
        "real_rows": recipe.real_rows,
        "lr": recipe.net_lr,
        "momentum": recipe.net_momentum,
        "weight_decay": recipe.net_decay,
        "batch": recipe.net_batch,
        "augmentation": Augmentation(views, recipe.augment_mode) if views else None,
    }
    if recipe.method == "wmdd":
        return PretrainedNetwork(net, epochs=recipe.pretrain, **training)
    if recipe.method not in (*GRADIENT_METHODS, "dp-dc"):
        return FreshNetworks(net) if recipe.convnet > 0 else None
    keep, epochs = recipe.loops(counts)
    return TrainedNetworks(
        net, keep=keep, epochs=epochs, train_on=recipe.train_on, mix=recipe.mix, **training
    )


def starting_set(recipe: Recipe, rows: Tensor, counts: Sequence[int], **options: Any) -> Synthetic:
    """The synthetic set of a recipe with `counts[g]` points of group g.

    rows: factor**2 times as many starting rows of each group. options: of `Synthetic`.
    """
    offsets, lr = counts_to_offsets(counts), recipe.learning_rate(counts)
    if recipe.factor == 1:
        return Synthetic(rows, offsets, lr=lr, **options)
    return MultiFormation.from_rows(rows, offsets, factor=recipe.factor, lr=lr, **options)


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
    net = build(recipe.network, shape, classes, width=recipe.width, generator=seeded(seed, "architecture"))
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
                batch_synthetic=recipe.batch_synthetic,
                schedule=recipe.schedule,
                average=recipe.average,
            )
        ],
        pool=_pool(recipe, net, synthetic.groups.diff().tolist()),
        task=task,
        optimiser=lambda groups: torch.optim.SGD(groups, momentum=recipe.momentum),
        updates=recipe.updates,
        augmentation=augmentation,
        seed=seed,
        callback=callback,
        keep=keep,
    )
