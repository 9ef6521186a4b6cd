"""Budgets on the command line: how many synthetic rows each class gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Budget", "parse_budgets"]


@dataclass(frozen=True)
class Budget:
    """Rows of every class, and the name of the folder that holds the result."""

    name: str
    counts: tuple[int, ...]


def parse_budgets(texts: Sequence[str], classes: Sequence[str], available: Sequence[int]) -> list[Budget]:
    """The budgets that `--ipc` names.

    texts: each a comma list. Plain numbers are budgets of their own, that many rows for every class; a
    list with label=count entries is one budget with these counts, a plain number in it being every other
    class's. Labels are class names or numbers; a count of 0 leaves the class out.
    classes: names. available: real rows of each class. Raises ValueError for anything else, and for a
    class that has fewer rows than asked for.
    """
    budgets = []
    for text in texts:
        items = [item.strip() for item in text.split(",") if item.strip()]
        if not items:
            raise ValueError(f"--ipc must name rows per class, got {text!r}")
        if any("=" in item for item in items):
            budgets.append(_unequal(text, items, classes))
        else:
            for item in items:
                count = _count(item, 1)
                budgets.append(Budget(f"ipc-{count}", (count,) * len(classes)))
    for budget in budgets:
        for name, count, rows in zip(classes, budget.counts, available, strict=True):
            if count > rows:
                raise ValueError(
                    f"--ipc asks for {count} rows of class {name!r}, its training split has {rows}"
                )
    return list({budget.name: budget for budget in budgets}.values())


def _unequal(text: str, items: Sequence[str], classes: Sequence[str]) -> Budget:
    named: dict[int, int] = {}
    others: int | None = None
    for item in items:
        label, equals, count = (part.strip() for part in item.rpartition("="))
        if not equals:
            if others is not None:
                raise ValueError(f"--ipc {text!r} holds more than one number for the other classes")
            others = _count(count, 0)
            continue
        if label not in classes:
            known = ", ".join(classes[:12]) + (" ..." if len(classes) > 12 else "")
            raise ValueError(f"--ipc names class {label!r}, the classes are {known}")
        named[list(classes).index(label)] = _count(count, 0)
    missing = [name for index, name in enumerate(classes) if index not in named]
    if missing and others is None:
        raise ValueError(
            f"--ipc {text!r} gives no count for class {missing[0]!r}; add a plain number for the others"
        )
    counts = tuple(named.get(index, others or 0) for index in range(len(classes)))
    if sum(counts) == 0:
        raise ValueError(f"--ipc {text!r} leaves no rows at all")
    return Budget("ipc-" + "-".join(map(str, counts)) if len(counts) <= 10 else f"rows-{sum(counts)}", counts)


def _count(text: str, least: int) -> int:
    try:
        count = int(text)
    except ValueError:
        raise ValueError(f"--ipc must hold whole numbers, got {text!r}") from None
    if count < least:
        raise ValueError(f"--ipc must be at least {least}, got {count}")
    return count
