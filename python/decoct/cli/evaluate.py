"""`decoct evaluate`: train learners on what a run condensed, and on plain selections of the same size."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._extras import require
from ..condense import export, report
from ..tasks import Attack, Dataset, Results, load, membership_inference
from ..tasks.classification import Entry, compare, full_data, plain_selections
from ..tasks.journal import Journal
from ..tasks.learners import LEARNERS, default_learners, make_learner
from ..tasks.results import learner_label
from ..tasks.training import PROTOCOLS, TrainingProtocol, protocol
from ._shared import check_writable, progress_bar

__all__ = ["EvaluationSettings", "Snapshot", "add_options", "evaluate_run", "register", "settings_from"]

RESULTS_FILE, JOURNAL = "results.json", "trainings.jsonl"

# A digit's mirror image is no digit of its class.
NOT_MIRRORED = ("digits", "mnist")

# Above this many rows the full data gets the quick protocol and one seed, whatever the small sets get.
LARGE = 10000

# Said of a private run.
NOT_WRITTEN = (
    "Selections and the full data are real rows without noise: their results are shown here to whoever holds "
    "the data, and are not written to the run's folder."
)

# What condensation had reached after so many seconds: (seconds, x, y).
Snapshot = tuple[float, Tensor, Tensor]


@dataclass(frozen=True)
class EvaluationSettings:
    """How sets are judged; see the options of `decoct evaluate` for the meaning of each field."""

    learners: tuple[str, ...] | None = None
    seeds: int = 5
    first_seed: int = 0
    selection_seeds: int = 5
    full_seeds: int | None = None
    cross: bool = False
    protocol: str = "quick"
    epochs: int | None = None
    curve_seeds: int = 2
    membership: bool = False

    def __post_init__(self) -> None:
        for name in ("seeds", "selection_seeds"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        for name in ("first_seed", "full_seeds", "curve_seeds"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(
                    f"--{name.replace('_', '-')} must not be negative, got {getattr(self, name)}"
                )
        if self.epochs is not None and self.epochs < 1:
            raise ValueError(f"--epochs must be at least 1, got {self.epochs}")
        for name in ("",) if self.learners == () else self.learners or ():
            if name not in LEARNERS:
                raise ValueError(f"--learners: expected some of {', '.join(LEARNERS)}, got {name!r}")

    def training(self, dataset: Dataset) -> TrainingProtocol:
        """The training protocol for this data."""
        flip = dataset.kind == "image" and dataset.name not in NOT_MIRRORED
        return protocol(self.protocol, flip=flip, epochs=self.epochs)


def register(subparsers: Any) -> None:
    """Add the command to the program's parser."""
    parser = subparsers.add_parser(
        "evaluate",
        help="judge a run again, with other learners and seeds",
        description="Train learners from scratch on the sets of a run folder, on plain selections of the "
        "same size and on the full data; add the results to the run's table and write its report anew.",
    )
    parser.add_argument("run_folder", metavar="RUN", type=Path, help="folder that `decoct condense` wrote")
    add_options(parser)
    parser.add_argument("--data-dir", help="where the data are now, if not where the run found them")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=run)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of an evaluation, shared by the commands that evaluate."""
    group = parser.add_argument_group("evaluation")
    group.add_argument(
        "--learners", type=_names, metavar="NAME[,NAME...]", help=f"learners to train: {', '.join(LEARNERS)}"
    )
    group.add_argument("--seeds", type=int, default=5, metavar="N", help="training seeds (default 5)")
    group.add_argument(
        "--first-seed", type=int, default=0, metavar="N", help="first training seed (default 0)"
    )
    group.add_argument(
        "--selection-seeds",
        type=int,
        default=5,
        metavar="N",
        help="seeds of the plain selections (default 5)",
    )
    group.add_argument(
        "--full-seeds",
        type=int,
        metavar="N",
        help=f"training seeds on the full data, 0 leaves it out (default: as --seeds, 1 above {LARGE} rows)",
    )
    group.add_argument(
        "--cross", action="store_true", help="train every selection with every seed, not one selection a seed"
    )
    group.add_argument(
        "--protocol",
        choices=tuple(PROTOCOLS),
        default="quick",
        help="how networks are trained: quick (epochs by the size of the set, images augmented) or as "
        f"published (300 epochs, batch 256, lr 0.01); full data above {LARGE} rows always get the quick one",
    )
    group.add_argument(
        "--membership",
        action="store_true",
        help="also measure how well two attacks tell training rows from test rows by the set",
    )
    group.add_argument("--epochs", type=int, metavar="N", help="epochs instead of the protocol's")


def settings_from(arguments: argparse.Namespace) -> EvaluationSettings:
    """The settings that parsed options ask for."""
    names = (
        "learners",
        "seeds",
        "first_seed",
        "selection_seeds",
        "full_seeds",
        "cross",
        "protocol",
        "epochs",
        "membership",
    )
    return EvaluationSettings(**{name: getattr(arguments, name) for name in names})


def run(arguments: argparse.Namespace) -> int:
    """The command; returns the exit code."""
    settings, folder = settings_from(arguments), arguments.run_folder
    sets = _read_sets(folder)
    check_writable(folder)
    metadata = next(iter(sets.values())).metadata
    try:
        source = dict(metadata["source"])
        # A hash of private rows would confirm a guess of one of them.
        hashes = None if metadata.get("private") else metadata["data_hashes"]
    except KeyError as error:
        raise ValueError(
            f"evaluate: {folder} does not say which data it was made from ({error} missing)"
        ) from error
    if arguments.data_dir is not None:
        source["data_dir"] = arguments.data_dir
    dataset = load(**source)
    if hashes is not None and dataset.hashes() != hashes:
        raise ValueError(f"evaluate: the data of {dataset.name} are not those that {folder} was made from")
    evaluate_run(folder, dataset, settings, quiet=arguments.quiet)
    return 0


def evaluate_run(
    folder: Path,
    dataset: Dataset,
    settings: EvaluationSettings,
    *,
    snapshots: Mapping[int, Sequence[Snapshot]] | None = None,
    quiet: bool = False,
) -> Results:
    """Judge every condensed set in `folder`; print the table and the sentence, write results and report.

    The folder holds one set (`export.write`) or one a subfolder; their metadata must hold ``method``.
    Results of an earlier evaluation stay in the table where this one does not repeat them, and trainings that
    it ended, interrupted or not, are taken from its journal. snapshots: by size of the set what condensation
    had reached on the way; the first learner's accuracy on them becomes a curve over wall time.
    Of a private run only what was made of the condensed sets is written, and no journal: what trainings on
    real rows gave is shown alone.
    """
    sets = _read_sets(folder)
    private = any(item.metadata.get("private") for item in sets.values())
    learners = list(settings.learners or default_learners(dataset.kind))
    seeds = range(settings.first_seed, settings.first_seed + settings.seeds)
    training, journal = settings.training(dataset), None if private else Journal(folder / JOURNAL)
    large = len(dataset.train_x) > LARGE
    full_seeds = settings.full_seeds if settings.full_seeds is not None else 1 if large else settings.seeds
    seeds_of_full = range(settings.first_seed, settings.first_seed + full_seeds)
    quick = replace(settings, protocol="quick").training(dataset)

    judged: dict[str, list[Entry]] = {}
    with progress_bar("selecting", quiet) as progress:
        for done, item in enumerate(sets.values()):
            progress(done, len(sets), f"{len(item.kept[0])} rows")
            kept, kept_y = item.kept
            judged.setdefault(f"condensed, {item.metadata.get('method', 'unnamed')}", []).append(
                (item.x, item.y, len(kept))
            )
            for name, chosen in plain_selections(
                dataset, _counts(kept_y, dataset), range(settings.selection_seeds)
            ).items():
                judged.setdefault(name, []).extend(chosen)
    if seeds_of_full:
        judged |= {name: list(chosen) for name, chosen in full_data(dataset).items()}
    try:
        with progress_bar("evaluating", quiet) as progress:
            results = compare(
                dataset,
                judged,
                learners,
                seeds,
                progress,
                protocol=training,
                full_protocol=quick if large and settings.epochs is None else None,
                full_seeds=seeds_of_full or None,
                cross=settings.cross,
                journal=journal,
            )
        curves = _time_curves(dataset, snapshots or {}, learners[0], settings, training, journal, quiet)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"what ended is kept; continue with the same command (condense: --resume --out {folder})"
        ) from None

    earlier, old_curves, evaluations = _read_results(folder)
    if earlier is not None and earlier.dataset == results.dataset:
        results = earlier.merge(results)
    redrawn = {curve.size for curve in curves}
    curves = sorted(
        [*(c for c in old_curves if c.size not in redrawn), *curves], key=lambda curve: curve.size
    )
    evaluations.append(
        {"command": command_line(), **{k: v for k, v in asdict(settings).items() if v is not None}}
    )
    attacks = _attacks(dataset, sets, learners[0], settings) if settings.membership or private else {}
    written = results.only("condensed") if private else results
    stored: dict[str, Any] = {
        "results": written.to_json(),
        "curves": [asdict(curve) for curve in curves],
        "evaluations": evaluations,
    }
    if attacks and not private:
        stored["membership"] = {name: [asdict(attack) for attack in found] for name, found in attacks.items()}
    export.write_bytes(folder / RESULTS_FILE, (json.dumps(stored, indent=1, allow_nan=False) + "\n").encode())
    path = _write_report(folder, dataset, written, sets, curves, evaluations)
    print_results(results)
    print(f"\n{results.sentence()}\n\nReport: {path}")
    if private:
        print(NOT_WRITTEN)
    for name, found in attacks.items():
        for attack in found:
            print(
                f"Membership inference on {name} by {attack.name}: area under the ROC curve "
                f"{attack.area:.3f}, 0.5 is guessing; {100 * attack.caught:.1f} % of members at 1 % false "
                "alarms. Empirical, not a guarantee."
            )
    return results


def _attacks(
    dataset: Dataset, sets: Mapping[str, export.Condensed], learner: str, settings: EvaluationSettings
) -> dict[str, list[Attack]]:
    made = make_learner(learner, settings.training(dataset))
    seed = settings.first_seed
    return {name: membership_inference(dataset, s.x, s.y, [made], seed=seed) for name, s in sets.items()}


def print_results(results: Results) -> None:
    """Draw the table: one line a set, the best of its size bold; one column a learner."""
    table_module, console_module, box = require("rich.table"), require("rich.console"), require("rich.box")
    table = table_module.Table(
        box=box.SIMPLE_HEAD, title=f"{results.dataset}: test accuracy, %", title_justify="left"
    )
    table.add_column(results.unit, justify="right")
    table.add_column("set")
    for learner in results.learners:
        table.add_column(learner_label(learner), justify="right")
    for full, size in sorted({(row.role == "full", row.size) for row in results.rows}):
        mine = [row for row in results.rows if row.size == size and (row.role == "full") == full]
        best = {
            learner: max((r.mean for r in mine if r.learner == learner), default=0.0)
            for learner in results.learners
        }
        first = {row.name: row.mean for row in reversed(mine)}
        for name in sorted(first, key=lambda name: -first[name]):
            cells = []
            for learner in results.learners:
                row = next((r for r in mine if r.name == name and r.learner == learner), None)
                text = (
                    "" if row is None else f"{row.mean:.1f}" + (f" ± {row.std:.1f}" if row.seeds > 1 else "")
                )
                winner = row is not None and not full and row.mean == best[learner]
                cells.append(f"[bold]{text}[/bold]" if winner else text)
            table.add_row(str(size), name, *cells)
        table.add_section()
    # Where the output is no terminal, rich would assume 80 columns and break the rows.
    console_module.Console(width=None if sys.stdout.isatty() else 140, highlight=False).print(table)


def command_line() -> str:
    """The command as it was given."""
    return f"decoct {shlex.join(sys.argv[1:])}"


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _read_sets(folder: Path) -> dict[str, export.Condensed]:
    """The condensed sets of a run by subfolder name, smallest first."""
    if not folder.is_dir():
        raise FileNotFoundError(f"evaluate: no such run folder: {folder}")
    homes = [home for home in (folder, *sorted(folder.iterdir())) if (home / export.FILE).is_file()]
    if not homes:
        raise FileNotFoundError(
            f"evaluate: {folder} holds no condensed set ({export.FILE}), nor does a folder in it"
        )
    sets = {home.name: export.read(home) for home in homes}
    return dict(sorted(sets.items(), key=lambda item: len(item[1].kept[0])))


def _counts(y: Tensor, dataset: Dataset) -> list[int]:
    ids = y.argmax(dim=1) if y.is_floating_point() else y
    return [int(count) for count in torch.bincount(ids, minlength=len(dataset.classes))]


def _read_results(folder: Path) -> tuple[Results | None, list[report.Curve], list[dict[str, Any]]]:
    path = folder / RESULTS_FILE
    if not path.is_file():
        return None, [], []
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        curves = [report.Curve(**curve) for curve in stored["curves"]]
        return Results.from_json(stored["results"]), curves, list(stored["evaluations"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"evaluate: {path} is not a table of results ({error}); move it away to go on"
        ) from error


def _time_curves(
    dataset: Dataset,
    snapshots: Mapping[int, Sequence[Snapshot]],
    learner: str,
    settings: EvaluationSettings,
    training: TrainingProtocol,
    journal: Journal | None,
    quiet: bool,
) -> list[report.Curve]:
    if not settings.curve_seeds:
        return []
    curves = []
    seeds = range(settings.first_seed, settings.first_seed + settings.curve_seeds)
    with progress_bar("accuracy over time", quiet) as progress:
        for size, taken in snapshots.items():
            means = []
            for done, (_, x, y) in enumerate(taken):
                progress(done, len(taken), f"{size} rows")
                on_the_way = {"on the way": [(x, y)]}
                result = compare(dataset, on_the_way, [learner], seeds, protocol=training, journal=journal)
                means.append(result.rows[0].mean)
            unit = "images" if dataset.kind == "image" else "rows"
            curves.append(
                report.Curve(f"condensed, {size} {unit}", size, [entry[0] for entry in taken], means)
            )
    return curves


def _write_report(
    folder: Path,
    dataset: Dataset,
    results: Results,
    sets: Mapping[str, export.Condensed],
    curves: Sequence[report.Curve],
    evaluations: Iterable[Mapping[str, Any]],
) -> Path:
    pictures = []
    if dataset.kind == "image":
        for item in sets.values():
            before = None if item.initial is None else dataset.pictures(item.initial)
            kept, kept_y = item.kept
            title = f"{len(kept)} {results.unit}"
            pictures.append(report.Pictures(title, before, dataset.pictures(kept), kept_y, dataset.classes))
    metadata: dict[str, Any] = {}
    for name, item in sets.items():
        shared = {
            key: value
            for key, value in item.metadata.items()
            if key not in ("hashes", "lr_learned", "format")
        }
        for key, value in shared.items():
            # What differs between the sets of a run is told for each of them.
            if metadata.setdefault(key, value) != value:
                metadata[f"{key} ({name})"] = value
        metadata[f"hash ({name})"] = item.metadata["hashes"]["x"]
    for number, entry in enumerate(evaluations, start=1):
        metadata[f"evaluation {number}"] = dict(entry)
    return report.write(folder, results, pictures, curves, metadata)
