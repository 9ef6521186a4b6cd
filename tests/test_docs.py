"""The gallery of the documentation runs."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

GALLERY = sorted((Path(__file__).resolve().parents[1] / "docs" / "gallery").glob("plot_*.py"))


def test_there_is_a_gallery() -> None:
    assert GALLERY


@pytest.mark.parametrize("script", GALLERY, ids=lambda path: path.stem)
def test_gallery(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "agg")
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    runpy.run_path(str(script))
    made = [number for number in plt.get_fignums() if number not in before]
    assert made, "a gallery script draws something"
    for number in made:
        plt.figure(number).canvas.draw()
        plt.close(number)
