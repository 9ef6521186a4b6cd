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

__all__ = ["STRATEGIES", "Augmentation", "View"]

STRATEGIES = ("color", "crop", "cutout", "flip", "scale", "rotate")


@dataclass(frozen=True)
class View:
    """One step's drawn parameters: the strategies of every group, each with three draws in [0, 1)."""

    augmentation: Augmentation
    plan: tuple[tuple[tuple[str, tuple[float, ...]], ...], ...]

    def __call__(self, x: Tensor, groups: Tensor) -> Tensor:
        """Apply group g's parameters to its rows.

        x: images (N, C, H, W), rows packed by group; groups: host int64 offsets (G+1,). Returns (N, C, H, W),
        differentiable in x. Raises ValueError for rows that are no images or offsets of another group number.
        """
        if x.dim() != 4:
            raise ValueError(f"View: x must be images (N, C, H, W), got {tuple(x.shape)}")
        if groups.numel() != len(self.plan) + 1:
            raise ValueError(f"View: groups must hold {len(self.plan) + 1} offsets, got {groups.numel()}")
        bounds = groups.tolist()
        pieces = []
        for applied, start, stop in zip(self.plan, bounds, bounds[1:], strict=False):
            if start == stop:
                continue
            rows = x[start:stop]
            for strategy, numbers in applied:
                rows = self.augmentation.apply(strategy, rows, numbers)
            pieces.append(rows)
        return torch.cat(pieces) if pieces else x

    def select(self, indices: Sequence[int]) -> View:
        """The view of a subset of the groups."""
        return View(self.augmentation, tuple(self.plan[i] for i in indices))


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
        ordered = [s for s in STRATEGIES if s in self.strategies]
        if not ordered:
            return View(self, ((),) * count)
        numbers = torch.rand(count, len(STRATEGIES), 3, generator=generator).tolist()
        choice = torch.randint(len(ordered), (count,), generator=generator).tolist()
        plan = []
        for group in range(count):
            chosen = ordered if self.mode == "all" else [ordered[choice[group]]]
            plan.append(tuple((s, tuple(numbers[group][STRATEGIES.index(s)])) for s in chosen))
        return View(self, tuple(plan))

    def apply(self, strategy: str, x: Tensor, numbers: Sequence[float]) -> Tensor:
        """One strategy on the rows of one group; `numbers` are three uniform draws in [0, 1)."""
        result: Tensor = getattr(self, f"_{strategy}")(x, *numbers)
        return result

    def _color(self, x: Tensor, first: float, second: float, third: float) -> Tensor:
        x = x + (first - 0.5) * self.brightness
        if x.shape[1] == 3:
            grey = x.mean(1, keepdim=True)
            x = grey + (x - grey) * (second * self.saturation)
        middle = x.mean((1, 2, 3), keepdim=True)
        return middle + (x - middle) * (third + self.contrast)

    def _crop(self, x: Tensor, first: float, second: float, third: float) -> Tensor:
        height, width = x.shape[-2:]
        reach = (round(height * self.crop), round(width * self.crop))
        down, right = (
            min(int(u * (2 * r + 1)), 2 * r) - r for u, r in zip((first, second), reach, strict=True)
        )
        rows = x[..., max(-down, 0) : height - max(down, 0), max(-right, 0) : width - max(right, 0)]
        return F.pad(rows, (max(right, 0), max(-right, 0), max(down, 0), max(-down, 0)), value=self.fill)

    def _cutout(self, x: Tensor, first: float, second: float, third: float) -> Tensor:
        keep = torch.ones(x.shape[-2:], dtype=x.dtype, device=x.device)
        spans = []
        for u, side in zip((first, second), x.shape[-2:], strict=True):
            length = round(side * self.cutout)
            centre = int(u * (side + (1 - length % 2)))
            spans.append(slice(max(centre - length // 2, 0), max(centre - length // 2 + length, 0)))
        keep[spans[0], spans[1]] = 0
        return x * keep if self.fill == 0 else x * keep + self.fill * (1 - keep)

    def _flip(self, x: Tensor, first: float, second: float, third: float) -> Tensor:
        return x.flip(-1) if first < 0.5 else x

    def _scale(self, x: Tensor, first: float, second: float, third: float) -> Tensor:
        vertical, horizontal = (1 / self.scale + u * (self.scale - 1 / self.scale) for u in (first, second))
        return self._resample(x, [[horizontal, 0.0, 0.0], [0.0, vertical, 0.0]])

    def _rotate(self, x: Tensor, first: float, second: float, third: float) -> Tensor:
        angle = (2 * first - 1) * self.rotate * math.pi / 180
        cosine, sine = math.cos(angle), math.sin(angle)
        return self._resample(x, [[cosine, -sine, 0.0], [sine, cosine, 0.0]])

    def _resample(self, x: Tensor, matrix: list[list[float]]) -> Tensor:
        # All rows share one map, so they stand in the channel dimension and the grid is built once.
        count, channels, height, width = x.shape
        theta = torch.tensor([matrix], dtype=x.dtype, device=x.device)
        stacked = (x - self.fill if self.fill else x).reshape(1, count * channels, height, width)
        grid = F.affine_grid(theta, [1, 1, height, width], align_corners=False)
        moved = F.grid_sample(stacked, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        moved = moved.reshape(count, channels, height, width)
        return moved + self.fill if self.fill else moved
