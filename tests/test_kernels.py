"""Kernel objects: validation, names, numbers for the engine."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from decoct import kernels
from decoct.kernels import Gaussian, Laplacian, Polynomial, RationalQuadratic


def test_names_stand_for_defaults() -> None:
    for name in ("gaussian", "laplacian", "energy", "inverse_multiquadric", "rational_quadratic", "linear"):
        assert kernels.resolve(name).profile == name
    assert kernels.resolve("polynomial") == Polynomial(degree=3, gamma=None, coef0=1.0)
    assert kernels.resolve(Laplacian((2.0,))) == Laplacian(scales=(2.0,))


def test_numbers_for_the_engine() -> None:
    assert Gaussian(scales=[1, 2]).spec(7) == ("gaussian", 0.0, 0.0, 0, (1.0, 2.0))
    assert Gaussian(scales=[1, 2]).spec(7).packed() == ("gaussian", [0.0, 0.0, 0.0, 1.0, 2.0])
    assert RationalQuadratic(2).spec(7) == ("rational_quadratic", 2.0, 0.0, 0, (1.0,))
    assert Polynomial(2).spec(8) == ("polynomial", 0.125, 1.0, 2, (1.0,))
    assert Polynomial(2, gamma=3, coef0=0).spec(8) == ("polynomial", 3.0, 0.0, 2, (1.0,))


def test_frozen_and_hashable() -> None:
    kernel = Gaussian(scales=[1, 2])
    assert {kernel: 1}[Gaussian(scales=(1.0, 2.0))] == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        kernel.scales = (3.0,)  # type: ignore[misc]


def test_every_formula_is_pinned() -> None:
    for name in (
        "Gaussian",
        "Laplacian",
        "Energy",
        "InverseMultiquadric",
        "RationalQuadratic",
        "Polynomial",
        "Linear",
    ):
        assert re.match(r"^``.*``", getattr(kernels, name).__doc__), name


@pytest.mark.parametrize(
    ("kind", "make", "error", "message"),
    [
        (Gaussian, {"scales": ()}, ValueError, "Gaussian: scales must hold 1 to 16 numbers, got 0"),
        (Gaussian, {"scales": (1.0,) * 17}, ValueError, "Gaussian: scales must hold 1 to 16 numbers, got 17"),
        (
            Laplacian,
            {"scales": (1.0, -1.0)},
            ValueError,
            "Laplacian: scales must be positive and finite, got -1.0",
        ),
        (Gaussian, {"scales": 2.0}, TypeError, "Gaussian: scales must be a sequence of numbers, got float"),
        (Gaussian, {"scales": ("1",)}, TypeError, "Gaussian: scales must be a number, got str"),
        (
            RationalQuadratic,
            {"alpha": 0},
            ValueError,
            "RationalQuadratic: alpha must be positive and finite, got 0",
        ),
        (Polynomial, {"degree": 0}, ValueError, "Polynomial: degree must be at least 1, got 0"),
        (Polynomial, {"degree": 2.0}, TypeError, "Polynomial: degree must be an int, got float"),
        (Polynomial, {"gamma": -1.0}, ValueError, "Polynomial: gamma must be positive and finite, got -1.0"),
        (
            Polynomial,
            {"coef0": -0.5},
            ValueError,
            "Polynomial: coef0 must be at least 0 and finite, got -0.5",
        ),
        (Polynomial, {"coef0": "1"}, TypeError, "Polynomial: coef0 must be a number, got str"),
    ],
)
def test_refusals(kind: Any, make: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        kind(**make)
