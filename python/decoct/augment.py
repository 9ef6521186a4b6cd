"""Differentiable image augmentation whose parameters are drawn once per group and shared by several batches.

Matching a real and a synthetic batch under the same random view is what keeps a discrepancy between them
meaningful; the parameters are therefore an object (`View`) of their own, drawn first and applied to both
sides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["STRATEGIES", "Augmentation", "View", "cutmix"]

STRATEGIES = ("color", "crop", "cutout", "flip", "scale", "rotate")


@dataclass(frozen=True, eq=False)
class View:
    """One step's drawn parameters: which of `STRATEGIES` every group gets, (G, 6) bool, and three draws in
    [0, 1) for each, (G, 6, 3)."""

    augmentation: Augmentation
    applied: Tensor
    numbers: Tensor

    def __call__(self, x: Tensor, groups: Tensor) -> Tensor:
        """Apply group g's parameters to its rows.

        x: images (N, C, H, W), rows packed by group; groups: host int64 offsets (G+1,). Returns (N, C, H, W),
        differentiable in x. Raises ValueError for rows that are no images or offsets of another group number.
        """
        if x.dim() != 4:
            raise ValueError(f"View: x must be images (N, C, H, W), got {tuple(x.shape)}")
        if groups.numel() != len(self.applied) + 1:
            raise ValueError(f"View: groups must hold {len(self.applied) + 1} offsets, got {groups.numel()}")
        counts = groups.diff()
        applied = self.applied.repeat_interleave(counts, dim=0)
        for place, strategy in enumerate(STRATEGIES):
            chosen, rows = self.applied[:, place], applied[:, place]
            numbers = self.numbers[chosen, place]
            if rows.all():
                x = self.augmentation.apply(strategy, x, numbers, counts[chosen])
            elif rows.any():
                index = rows.nonzero().flatten().to(x.device)
                x = x.index_copy(
                    0, index, self.augmentation.apply(strategy, x[index], numbers, counts[chosen])
                )
        return x

    def select(self, indices: Sequence[int]) -> View:
        """The view of a subset of the groups."""
        return View(self.augmentation, self.applied[list(indices)], self.numbers[list(indices)])


@dataclass(frozen=True)
class Augmentation:
    """Which random views are drawn, and how strong they are.

    strategies: any of `STRATEGIES`, applied in that order.
    mode: "one" draws one strategy per group (as differentiable siamese augmentation does), "all" applies
    all of them.
    scale: largest zoom factor (1.2: between 1/1.2 and 1.2 per axis); rotate: largest angle in degrees;
    crop: largest shift as a share of the side, vacated pixels get `fill`; cutout: side of the removed
    square as a share of the image side; brightness, saturation, contrast: strengths of the colour changes
    (saturation only where there are three channels); fill: value of pixels that come from outside, in the
    units of the images.
    """

    strategies: tuple[str, ...] = ("color", "crop", "cutout", "scale", "rotate")
    mode: str = "one"
    scale: float = 1.2
    rotate: float = 15.0
    crop: float = 0.125
    cutout: float = 0.5
    brightness: float = 1.0
    saturation: float = 2.0
    contrast: float = 0.5
    fill: float = 0.0

    def __post_init__(self) -> None:
        unknown = sorted(set(self.strategies) - set(STRATEGIES))
        if unknown:
            raise ValueError(
                f"Augmentation: strategies must be among {', '.join(STRATEGIES)}, got {', '.join(unknown)}"
            )
        if self.mode not in ("one", "all"):
            raise ValueError(f'Augmentation: mode must be "one" or "all", got {self.mode!r}')
        if self.scale < 1:
            raise ValueError(f"Augmentation: scale must be at least 1, got {self.scale}")

    def draw(self, count: int, generator: torch.Generator) -> View:
        """Parameters for `count` groups. The same generator state gives the same view."""
        known = torch.tensor([strategy in self.strategies for strategy in STRATEGIES])
        applied = known.expand(count, -1)
        if not known.any():
            return View(self, applied, torch.zeros(count, len(STRATEGIES), 3))
        numbers = torch.rand(count, len(STRATEGIES), 3, generator=generator).double()
        choice = torch.randint(int(known.sum()), (count,), generator=generator)
        if self.mode == "one":
            applied = F.one_hot(known.nonzero().flatten()[choice], len(STRATEGIES)).bool()
        return View(self, applied, numbers)

    def apply(self, strategy: str, x: Tensor, numbers: Tensor, counts: Tensor) -> Tensor:
        """One strategy on images (N, C, H, W): group g, `counts[g]` rows, with its draws `numbers[g]`.

        numbers: host (G, 3) in [0, 1); counts: host int64 (G,).
        """
        if strategy in ("scale", "rotate"):
            return self._resample(x, getattr(self, f"_{strategy}")(numbers), counts)
        draws = numbers.repeat_interleave(counts, dim=0).to(x.device).unbind(dim=1)
        result: Tensor = getattr(self, f"_{strategy}")(x, *(draw.view(-1, 1, 1, 1) for draw in draws))
        return result

    def _color(self, x: Tensor, first: Tensor, second: Tensor, third: Tensor) -> Tensor:
        x = x + ((first - 0.5) * self.brightness).to(x)
        if x.shape[1] == 3:
            grey = x.mean(1, keepdim=True)
            x = grey + (x - grey) * (second * self.saturation).to(x)
        middle = x.mean((1, 2, 3), keepdim=True)
        return middle + (x - middle) * (third + self.contrast).to(x)

    def _crop(self, x: Tensor, first: Tensor, second: Tensor, third: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        down, right = (_pixels(side * self.crop) for side in (height, width))
        x = F.pad(x, (right, right, down, down), value=self.fill)
        # The first row and column of the window on the padded image: large draws move content down and right.
        row, column = (
            2 * reach - (draw * (2 * reach + 1)).long().clamp(max=2 * reach)
            for draw, reach in ((first, down), (second, right))
        )
        rows = row + torch.arange(height, device=x.device).view(-1, 1)
        columns = column + torch.arange(width, device=x.device)
        x = x.gather(2, rows.expand(-1, x.shape[1], -1, x.shape[3]))
        return x.gather(3, columns.expand(-1, x.shape[1], height, -1))

    def _cutout(self, x: Tensor, first: Tensor, second: Tensor, third: Tensor) -> Tensor:
        outside = []
        for dim, draw in ((2, first), (3, second)):
            side = x.shape[dim]
            length = _pixels(side * self.cutout)
            begin = (draw * (side + (1 - length % 2))).long() - length // 2
            place = torch.arange(side, device=x.device).view(-1, *[1] * (3 - dim))
            outside.append((place < begin) | (place >= begin + length))
        return torch.where(outside[0] | outside[1], x, self.fill)

    def _flip(self, x: Tensor, first: Tensor, second: Tensor, third: Tensor) -> Tensor:
        return torch.where(first < 0.5, x.flip(-1), x)

    def _scale(self, numbers: Tensor) -> Tensor:
        vertical, horizontal, _ = (1 / self.scale + numbers * (self.scale - 1 / self.scale)).unbind(dim=1)
        return _linear_maps(horizontal, torch.zeros_like(vertical), torch.zeros_like(vertical), vertical)

    def _rotate(self, numbers: Tensor) -> Tensor:
        angle = (2 * numbers[:, 0] - 1) * (self.rotate * math.pi / 180)
        return _linear_maps(angle.cos(), -angle.sin(), angle.sin(), angle.cos())

    def _resample(self, x: Tensor, maps: Tensor, counts: Tensor) -> Tensor:
        if not len(x):
            return x
        count, channels, height, width = x.shape
        if (counts == counts[0]).all():
            # A group's rows share one map: they stand in the channel dimension, the grid is built once.
            shape = (len(counts), -1, height, width)
        else:
            maps, shape = maps.repeat_interleave(counts, dim=0), (count, channels, height, width)
        stacked = (x - self.fill if self.fill else x).reshape(shape)
        grid = F.affine_grid(maps.to(x), [len(maps), 1, height, width], align_corners=False)
        moved = F.grid_sample(stacked, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        moved = moved.reshape(count, channels, height, width)
        return moved + self.fill if self.fill else moved


def cutmix(x: Tensor, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Paste one random rectangle of other rows into every row, and mix the labels by its share of the area.

    x: images (N, C, H, W); y: (N, C) soft labels. The pasted share is uniform in [0, 1), before the rectangle
    is cut off at the border (Yun et al., ICCV 2019, arXiv 1905.04899, with beta 1).
    """
    height, width = x.shape[-2:]
    share, row, column = torch.rand(3, generator=generator).tolist()
    partner = torch.randperm(len(x), generator=generator).to(x.device)
    down, right = int(height * share**0.5), int(width * share**0.5)
    top, left = int(height * row) - down // 2, int(width * column) - right // 2
    window = (
        slice(max(top, 0), min(top + down, height)),
        slice(max(left, 0), min(left + right, width)),
    )
    mixed = x.clone()
    mixed[:, :, window[0], window[1]] = x[partner][:, :, window[0], window[1]]
    pasted = mixed[0, 0, window[0], window[1]].numel() / (height * width)
    return mixed, y * (1 - pasted) + y[partner] * pasted


def _pixels(length: float) -> int:
    """To the next whole number, halves up as the published transforms do."""
    return math.floor(length + 0.5)


def _linear_maps(*entries: Tensor) -> Tensor:
    """(G, 2, 3): row by row the 2 x 2 matrices of these entries, without a shift."""
    return F.pad(torch.stack(entries, dim=1).view(-1, 2, 2), (0, 1))
