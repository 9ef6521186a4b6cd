"""A table of results, what it says in one sentence, and its form in a file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .learners import LEARNERS
from .selection import SELECTIONS

__all__ = ["FULL", "Results", "Row"]

FULL = "full data"


@dataclass(frozen=True)
class Row:
    """Accuracy of one learner on one set: mean and standard deviation over all runs, in per cent.

    size: rows of the set. seeds: runs. selections: how many different sets the runs were trained on.
    spread_selection, spread_training: standard deviation between the means of the selections, and mean
    standard deviation within a selection; NaN where there are too few runs to tell them apart. seconds: one
    run's mean time.
    """

    name: str
    size: int
    learner: str
    training: str
    mean: float
    std: float
    seeds: int
    selections: int
    seconds: float
    accuracies: tuple[float, ...]
    spread_selection: float = math.nan
    spread_training: float = math.nan

    @property
    def role(self) -> str:
        """ "full", "selection" (a plain one of real rows or centroids) or "condensed"."""
        return "full" if self.name == FULL else "selection" if self.name in SELECTIONS else "condensed"

    @property
    def label(self) -> str:
        """The learner's name as shown to readers."""
        return learner_label(self.learner)


@dataclass
class Results:
    """Rows of a comparison. `unit`: what one row of the data is called."""

    dataset: str
    unit: str = "images"
    rows: list[Row] = field(default_factory=list)

    @property
    def learners(self) -> list[str]:
        """Learners in the order of their first row."""
        return list(dict.fromkeys(row.learner for row in self.rows))

    @property
    def sizes(self) -> list[int]:
        """Sizes of the reduced sets, ascending."""
        return sorted({row.size for row in self.rows if row.role != "full"})

    def find(self, name: str, size: int | None, learner: str) -> Row | None:
        """The newest row of this name, size (any if None) and learner."""
        for row in reversed(self.rows):
            if row.name == name and row.learner == learner and size in (None, row.size):
                return row
        return None

    def only(self, role: str) -> Results:
        """The rows of this role."""
        return Results(self.dataset, self.unit, [row for row in self.rows if row.role == role])

    def best(self, role: str, size: int, learner: str) -> Row | None:
        """The row of this role and size with the highest mean."""
        rows = [row for row in self.rows if (row.role, row.size, row.learner) == (role, size, learner)]
        return max(rows, key=lambda row: row.mean, default=None)

    def merge(self, newer: Results) -> Results:
        """These rows with those of `newer` in place of rows of the same name, size and learner."""
        rows = {(row.name, row.size, row.learner): row for row in (*self.rows, *newer.rows)}
        return Results(self.dataset, self.unit, list(rows.values()))

    def sentence(self, learner: str | None = None) -> str:
        """What share of the full data's accuracy condensed and random sets keep, and who beats them."""
        return " ".join(part for part in (self.headline(learner), *self.concessions(learner)) if part)

    def headline(self, learner: str | None = None) -> str:
        """Shares of the full data's accuracy, condensed and random; empty where either side is missing."""
        learner = learner or (self.learners or [""])[0]
        full = self.find(FULL, None, learner)
        condensed = [row for size in self.sizes if (row := self.best("condensed", size, learner)) is not None]
        if full is None or not full.mean or not condensed:
            return ""
        kept = _list([f"{row.size} {self.unit} keep {100 * row.mean / full.mean:.1f} %" for row in condensed])
        text = f"On {self.dataset}, {kept} of the accuracy that all {full.size} give"
        text += f" ({full.mean:.1f} %, {full.label})"
        random = [row for found in condensed if (row := self.find("random", found.size, learner)) is not None]
        if random:
            many = "random ones of that size" if len(random) == 1 else "random ones of these sizes"
            text += f"; {many} keep {_list([f'{100 * row.mean / full.mean:.1f} %' for row in random])}"
        return text + "."

    def concessions(self, learner: str | None = None) -> list[str]:
        """One sentence for each size at which a plain selection is at least as good as the condensed set."""
        learner = learner or (self.learners or [""])[0]
        result = []
        for size in self.sizes:
            condensed, plain = self.best("condensed", size, learner), self.best("selection", size, learner)
            if condensed is None or plain is None or plain.mean < condensed.mean:
                continue
            verb = "wins" if plain.mean > condensed.mean else "does as well"
            result.append(
                f"At {size} {self.unit} a plain selection {verb}: {plain.name} ({plain.mean:.1f} %) against "
                f"{condensed.name} ({condensed.mean:.1f} %)."
            )
        return result

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` reads them back."""
        rows = [{k: v for k, v in asdict(row).items() if v == v} for row in self.rows]
        return {"dataset": self.dataset, "unit": self.unit, "rows": rows}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Results:
        rows = [Row(**{**row, "accuracies": tuple(row["accuracies"])}) for row in value["rows"]]
        return cls(value["dataset"], value["unit"], rows)

    @classmethod
    def join(cls, parts: Iterable[Results]) -> Results:
        """One table of several, in order."""
        every = list(parts)
        result = cls(every[0].dataset, every[0].unit)
        for part in every:
            result = result.merge(part)
        return result


def learner_label(column: str) -> str:
    """A learner's name for readers: "mlp, published" is shown as "MLP, published"."""
    name, comma, protocol = column.partition(",")
    return LEARNERS.get(name, name) + comma + protocol


def _list(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
