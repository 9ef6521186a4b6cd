"""What the lists of targets share."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]
ROUNDING = 2.0**-24
"""A float32 result is not better than this but by luck, which is no measure for another."""


def seconds(row: Row, name: str) -> float | None:
    found: float | None = row["contenders"].get(name, {}).get("seconds")
    return found


def line(what: str, wanted: float, reached: float, at_most: bool = False) -> list[str]:
    """(target, wanted, reached, met)."""
    met = reached <= wanted if at_most else reached >= wanted
    return [what, f"{'<=' if at_most else '>='} {wanted:g}", f"{reached:.3g}", "yes" if met else "no"]


def with_most_threads(rows: list[Row]) -> list[Row]:
    """Targets are for all cores."""
    most = max((row["threads"] for row in rows), default=0)
    return [row for row in rows if row["threads"] == most]
