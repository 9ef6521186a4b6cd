"""The HTML report of a run: one file that needs nothing beside it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from .._extras import require
from .export import write_bytes
from .figures import budget_figure, picture_grid, time_figure

__all__ = ["Curve", "Pictures", "Table", "TableRow", "write"]

FILE = "report.html"


class TableRow(Protocol):
    """One learner's accuracy on one set, in per cent; role is full, selection or condensed."""

    @property
    def name(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def learner(self) -> str: ...
    @property
    def label(self) -> str: ...
    @property
    def mean(self) -> float: ...
    @property
    def std(self) -> float: ...
    @property
    def seeds(self) -> int: ...
    @property
    def seconds(self) -> float: ...
    @property
    def role(self) -> str: ...


class Table(Protocol):
    """The results of a comparison (`decoct.tasks.Results`)."""

    @property
    def dataset(self) -> str: ...
    @property
    def unit(self) -> str: ...
    @property
    def rows(self) -> Sequence[TableRow]: ...
    def headline(self) -> str: ...
    def concessions(self) -> Sequence[str]: ...


@dataclass(frozen=True)
class Pictures:
    """Images (M, C, H, W) in [0, 1] before (None: not kept) and after condensation, and their labels."""

    title: str
    before: Tensor | None
    after: Tensor
    labels: Tensor
    classes: Sequence[str]


@dataclass(frozen=True)
class Curve:
    """Accuracy (per cent) of a learner trained on what condensation had reached after so many seconds."""

    label: str
    size: int
    seconds: Sequence[float]
    accuracies: Sequence[float]


@dataclass(frozen=True)
class _Cell:
    mean: float
    std: float
    seeds: int
    best: bool


def write(
    folder: str | os.PathLike[str],
    results: Table,
    pictures: Sequence[Pictures],
    curves: Sequence[Curve],
    metadata: Mapping[str, Any],
) -> Path:
    """Write ``report.html`` into `folder`, whole or not at all; returns its path.

    results: the table; every row is shown, the losing ones too, and the first learner's rows are drawn.
    metadata: plain values, shown as they are: ``command`` first, nested mappings by dotted names.
    The file refers to nothing outside itself. Raises ValueError where the table has no rows.
    """
    if not results.rows:
        raise ValueError("report: results must hold at least one row")
    learners = {row.learner: row.label for row in results.rows}
    first = next(iter(learners))
    jinja2 = require("jinja2")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(
        Path(__file__).with_name("report.html.jinja").read_text(encoding="utf-8")
    )
    drawn = [row for row in results.rows if row.learner == first and row.role != "full"]
    curves = [curve for curve in curves if len(curve.seconds)]
    html: str = template.render(
        dataset=results.dataset,
        unit=results.unit,
        sentences=[text.replace(" %", "\u00a0%") for text in (results.headline(), *results.concessions())],
        learners=learners,
        drawn_learner=learners[first],
        groups=_groups(results.rows, list(learners)),
        pictures=[
            {
                "title": item.title,
                "grids": [
                    (name, picture_grid(images, item.labels, item.classes))
                    for name, images in (("before", item.before), ("after", item.after))
                    if images is not None
                ],
            }
            for item in pictures
        ],
        budget_svg=budget_figure(results, first) if drawn else "",
        time_svg=time_figure(results, curves, first) if curves else "",
        command=str(metadata.get("command", "")),
        facts=_flat({key: value for key, value in metadata.items() if key != "command"}),
    )
    target = Path(folder) / FILE
    write_bytes(target, html.encode())
    return target


def _groups(rows: Sequence[TableRow], learners: Sequence[str]) -> list[dict[str, Any]]:
    """Table rows by size, the reduced sets first, best first by the first learner; one cell a learner."""
    keys = dict.fromkeys((row.role == "full", row.size) for row in rows)
    groups = []
    for full, size in sorted(keys):
        mine = [row for row in rows if row.size == size and (row.role == "full") == full]
        top = {
            learner: max((row.mean for row in mine if row.learner == learner), default=None)
            for learner in learners
        }
        lines: list[dict[str, Any]] = []
        for name in dict.fromkeys(row.name for row in mine):
            cells: dict[str, _Cell] = {}
            for row in mine:
                if row.name == name:
                    best = not full and len(mine) > 1 and row.mean == top[row.learner]
                    cells[row.learner] = _Cell(row.mean, row.std, row.seeds, best)
            role = next(row.role for row in mine if row.name == name)
            lines.append({"name": name, "role": role, "cells": [cells.get(learner) for learner in learners]})
        lines.sort(key=lambda line: -max((cell.mean for cell in line["cells"][:1] if cell), default=0.0))
        groups.append({"size": size, "full": full, "lines": lines})
    return groups


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    result: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            result += _flat(value, f"{prefix}{key}.")
        elif value is not None:
            result.append((prefix + str(key).replace("_", " "), str(value)))
    return result
