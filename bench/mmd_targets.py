"""What bench_mmd.py is to reach on two AVX-512 cores, and whether it did."""

from __future__ import annotations

from contenders import OURS
from targets import ROUNDING, Row, line, seconds, with_most_threads

OURS_XX = "decoct, real-real computed"


def _share_wanted(columns: int) -> float:
    if columns < 64:
        return 0.5
    return 0.75 if columns < 512 else 0.65


SPEED = [
    # case, peer, ours, how many times faster
    ("5000x5000x64", "GeomLoss tensorized", OURS, 20.0),
    ("5000x5000x64", "torch cdist", OURS, 20.0),
    ("5000x5000x64", "torch cdist, no real-real", OURS, 20.0),
    ("5000x5000x64", "torch products, compiled", OURS, 4.0),
    ("10000x1000x64", "torch products, compiled", OURS, 4.0),
    ("2560x500x2048", "torch products, compiled", OURS, 1.5),
    ("100x(256,10)x2048", "class loop", OURS_XX, 12.0),
    ("100x(256,10)x2048", "class loop", OURS, 40.0),
]
PEERS_IN_TORCH = {OURS: "torch products, no real-real", OURS_XX: "torch cdist"}
CLASS_PEERS = {OURS: "torch batched products, no real-real", OURS_XX: "class loop"}


def _errors(row: Row) -> list[list[str]]:
    lines = []
    for ours, peer in (CLASS_PEERS if row["case"]["groups"] else PEERS_IN_TORCH).items():
        found = [row["contenders"].get(name, {}).get("error") for name in (ours, peer)]
        if all(found):
            for part in ("value", "gradient"):
                mine, theirs = (error[part] for error in found)
                if mine is not None and theirs is not None:
                    what = f"{row['name']}: error of the {part} over that of {peer}"
                    lines.append(line(what, 2.0, mine / max(theirs, ROUNDING), at_most=True))
    return lines


def verdicts(rows: list[Row]) -> list[list[str]]:
    """Lines of (target, wanted, reached, met), of the rows with the most threads."""
    lines: list[list[str]] = []
    for row in with_most_threads(rows):
        name, found = row["name"], row["contenders"].get(OURS, {})
        if "share" in found and not row["case"]["groups"]:
            wanted = _share_wanted(row["case"]["columns"])
            lines.append(line(f"{name}: share of the bound", wanted, found["share"]))
        for case, peer, ours, wanted in SPEED:
            theirs, mine = seconds(row, peer), seconds(row, ours)
            if name == case and theirs and mine:
                lines.append(line(f"{name}: {peer} over {ours}", wanted, theirs / mine))
        if row["case"]["only_ours"] and found.get("memory") is not None:
            lines.append(line(f"{name}: extra memory, MiB", 64.0, found["memory"] / 2**20, at_most=True))
        lines += _errors(row)
    return lines
