"""Kernels of the pairwise ops, as small frozen objects.

A kernel is a function of the squared distance ``d2 = |x - y|^2`` (radial) or of the inner product ``x.y``.
Ops take an object, ``mmd(x, y, Gaussian(scales=(0.5, 1, 2)))``, or a name, ``mmd(x, y, "laplacian")``,
which stands for the object with its default parameters. The length ``s`` is the op's ``bandwidth``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

__all__ = [
    "Energy",
    "Gaussian",
    "InverseMultiquadric",
    "Kernel",
    "KernelSpec",
    "Laplacian",
    "Linear",
    "Polynomial",
    "RationalQuadratic",
    "resolve",
]

MAX_SCALES = 16


class KernelSpec(NamedTuple):
    """A kernel as the compiled engines take it: a profile's name and plain numbers."""

    profile: str
    parameter: float
    offset: float
    degree: int
    scales: tuple[float, ...]

    def packed(self) -> tuple[str, list[float]]:
        """The same as two arguments of a registered op; torch's bookkeeping costs grow with their number."""
        return self.profile, [self.parameter, self.offset, float(self.degree), *self.scales]


def _positive(kernel: str, name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{kernel}: {name} must be a number, got {type(value).__name__}")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{kernel}: {name} must be positive and finite, got {value}")
    return float(value)


def _checked_scales(kernel: str, scales: Sequence[float]) -> tuple[float, ...]:
    if isinstance(scales, str) or not isinstance(scales, Sequence):
        raise TypeError(f"{kernel}: scales must be a sequence of numbers, got {type(scales).__name__}")
    if not 1 <= len(scales) <= MAX_SCALES:
        raise ValueError(f"{kernel}: scales must hold 1 to {MAX_SCALES} numbers, got {len(scales)}")
    return tuple(_positive(kernel, "scales", scale) for scale in scales)


@dataclass(frozen=True)
class Kernel:
    """What all kernels share; use one of its subclasses."""

    profile: ClassVar[str]
    uses_bandwidth: ClassVar[bool] = True
    translation_invariant: ClassVar[bool] = True

    def spec(self, columns: int) -> KernelSpec:
        """The kernel's numbers for rows of ``columns`` entries."""
        return KernelSpec(self.profile, 0.0, 0.0, 0, (1.0,))

    @property
    def at_zero(self) -> float:
        """k(x, x) of a radial kernel: one for every scale."""
        return 1.0


@dataclass(frozen=True)
class _Scaled(Kernel):
    """A radial kernel with a length: the sum over c in ``scales`` of the kernel with s^2 replaced by c
    s^2."""

    scales: Sequence[float] = (1.0,)

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", _checked_scales(type(self).__name__, self.scales))

    def spec(self, columns: int) -> KernelSpec:
        return KernelSpec(self.profile, 0.0, 0.0, 0, tuple(self.scales))

    @property
    def at_zero(self) -> float:
        return float(len(self.scales))


@dataclass(frozen=True)
class Gaussian(_Scaled):
    """``exp(-d2 / (2 s^2))``, summed over ``scales``: s^2 -> c s^2."""

    profile: ClassVar[str] = "gaussian"


@dataclass(frozen=True)
class Laplacian(_Scaled):
    """``exp(-d / s)``, summed over ``scales``: s^2 -> c s^2, that is s -> sqrt(c) s."""

    profile: ClassVar[str] = "laplacian"


@dataclass(frozen=True)
class Energy(Kernel):
    """``-d``; no length, no scales. MMD: ``2 E|X - Y| - E|X - X'| - E|Y - Y'|``, the energy distance."""

    profile: ClassVar[str] = "energy"
    uses_bandwidth: ClassVar[bool] = False

    @property
    def at_zero(self) -> float:
        return 0.0


@dataclass(frozen=True)
class InverseMultiquadric(_Scaled):
    """``(1 + d2 / s^2)^(-1/2)``, summed over ``scales``: s^2 -> c s^2."""

    profile: ClassVar[str] = "inverse_multiquadric"


@dataclass(frozen=True)
class RationalQuadratic(Kernel):
    """``(1 + d2 / (2 alpha s^2))^(-alpha)``, summed over ``scales``: s^2 -> c s^2."""

    alpha: float = 1.0
    scales: Sequence[float] = (1.0,)
    profile: ClassVar[str] = "rational_quadratic"

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", _positive("RationalQuadratic", "alpha", self.alpha))
        object.__setattr__(self, "scales", _checked_scales("RationalQuadratic", self.scales))

    def spec(self, columns: int) -> KernelSpec:
        return KernelSpec(self.profile, self.alpha, 0.0, 0, tuple(self.scales))

    @property
    def at_zero(self) -> float:
        return float(len(self.scales))


@dataclass(frozen=True)
class Polynomial(Kernel):
    """``(gamma x.y + coef0)^degree``; ``gamma=None`` is 1 / D. Not translation invariant; ignores
    ``bandwidth``."""

    degree: int = 3
    gamma: float | None = None
    coef0: float = 1.0
    profile: ClassVar[str] = "polynomial"
    uses_bandwidth: ClassVar[bool] = False
    translation_invariant: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if isinstance(self.degree, bool) or not isinstance(self.degree, int):
            raise TypeError(f"Polynomial: degree must be an int, got {type(self.degree).__name__}")
        if self.degree < 1:
            raise ValueError(f"Polynomial: degree must be at least 1, got {self.degree}")
        if self.gamma is not None:
            object.__setattr__(self, "gamma", _positive("Polynomial", "gamma", self.gamma))
        if isinstance(self.coef0, bool) or not isinstance(self.coef0, int | float):
            raise TypeError(f"Polynomial: coef0 must be a number, got {type(self.coef0).__name__}")
        if not (math.isfinite(self.coef0) and self.coef0 >= 0):
            raise ValueError(f"Polynomial: coef0 must be at least 0 and finite, got {self.coef0}")
        object.__setattr__(self, "coef0", float(self.coef0))

    def spec(self, columns: int) -> KernelSpec:
        gamma = 1.0 / columns if self.gamma is None else self.gamma
        return KernelSpec(self.profile, gamma, self.coef0, self.degree, (1.0,))


@dataclass(frozen=True)
class Linear(Kernel):
    """``x.y``. Its MMD is the squared distance of the two means, O((N + M) D). Ignores ``bandwidth``."""

    profile: ClassVar[str] = "linear"
    uses_bandwidth: ClassVar[bool] = False
    translation_invariant: ClassVar[bool] = False


_BY_NAME: dict[str, Kernel] = {
    "gaussian": Gaussian(),
    "laplacian": Laplacian(),
    "energy": Energy(),
    "inverse_multiquadric": InverseMultiquadric(),
    "rational_quadratic": RationalQuadratic(),
    "polynomial": Polynomial(),
    "linear": Linear(),
}


def resolve(kernel: Kernel | str, op: str = "kernels.resolve") -> Kernel:
    """The kernel object of a name; an object is returned as it is. ``op`` names the caller in errors."""
    if isinstance(kernel, Kernel):
        return kernel
    if not isinstance(kernel, str):
        raise TypeError(
            f"{op}: kernel must be a name or an object of decoct.kernels, got {type(kernel).__name__}"
        )
    if kernel not in _BY_NAME:
        raise ValueError(f"{op}: kernel must be one of {', '.join(_BY_NAME)}, got {kernel!r}")
    return _BY_NAME[kernel]
