"""`decoct condense`: condense a data set, judge the result, write both."""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..condense import Condenser, checkpoint, export
from ..condense.recipes import (
    GRADIENT_METHODS,
    METHODS,
    Recipe,
    condenser,
    default_recipe,
    starting_set,
)
from ..objectives import seeded
from ..privacy import BudgetSpent
from ..tasks import ClassificationTask, Dataset, load
from ..tasks.selection import SELECTIONS
from ..tasks.training import PROTOCOLS
from . import _private
from ._budgets import Budget, parse_budgets
from ._private import Guard
from ._shared import check_writable, progress_bar, set_threads
from .evaluate import NOT_MIRRORED, EvaluationSettings, command_line, evaluate_run

__all__ = ["register"]

INITIAL = {
    "kmeans": "k-means centroids",
    "nearest": "nearest to centroids",
    "random": "random",
    "herding": "herding",
}
KERNELS = (
    "gaussian", "laplacian", "energy", "inverse_multiquadric", "rational_quadratic", "polynomial", "linear",
)  # fmt: skip
METRICS = ("row_cosine", "sse", "l1")
DISTRIBUTION_METHODS = ("mmd", "dm", "sinkhorn", "ncfm")
# Options that belong to some methods alone.
BELONGS = {
    "kernel": ("mmd",),
    "bandwidth": ("mmd", "dm", "dp-merf"),
    "blur": ("sinkhorn", "wmdd"),
    "reach": ("sinkhorn",),
    "frequencies": ("ncfm", "dp-merf"),
    "features": DISTRIBUTION_METHODS,
    "bf16": (*DISTRIBUTION_METHODS, "wmdd"),
    "masses": ("wmdd",),
    "pretrain": ("wmdd",),
    "metric": (*GRADIENT_METHODS, "dp-dc"),
    "outer": (*GRADIENT_METHODS, "dp-dc"),
    "inner": (*GRADIENT_METHODS, "dp-dc"),
}
RUN_FILE, CHECKPOINT = "run.json", "checkpoint.pt"
SNAPSHOTS = 4


def register(subparsers: Any) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "condense",
        help="condense a data set and judge the result",
        description="Condense a data set to few synthetic rows per class, train learners from scratch "
        "on them and compare with random, k-means and herding selections of that size and the full data.",
    )
    add = parser.add_argument
    add("data", metavar="DATA", help="digits, fashion-mnist, mnist, or a file: FILE.npz (x, y) or FILE.csv")
    add(
        "--method",
        choices=sorted(METHODS),
        default="mmd",
        help="what is matched: distributions (mmd, the default; dm, sinkhorn; datadam, attention maps of all "
        "layers; ncfm, characteristic functions), barycentres of each class in a trained network's features "
        "(wmdd), or a network's gradients (dc; "
        "dsa, the same under random views; idc, with networks trained on real rows and images that hold "
        "several). Of noised answers alone: dp-dc, clipped gradients; dp-merf, mean random features",
    )
    add("--kernel", choices=KERNELS, help="kernel of --method mmd (default: gaussian, five lengths)")
    add("--bandwidth", type=_bandwidth, help="length of the kernel: a number, mean (default) or median")
    add("--blur", type=_positive, help="of --method sinkhorn or wmdd, in mean distances (default: 0.1)")
    add(
        "--reach",
        type=_positive,
        help="of --method sinkhorn: transport no mass much further (default: all mass)",
    )
    add("--frequencies", type=int, help="of --method ncfm: random frequencies of a step (default: 1024)")
    add(
        "--features",
        help="where to compare: identity, convnet (random networks; an MLP on vectors), both, "
        "or weights, as in identity=0.1,convnet=1",
    )
    add("--masses", choices=["learned", "uniform"], help="of a barycentre's points (default: learned)")
    add("--pretrain", type=int, help="of --method wmdd: epochs of the network's training (default: 30)")
    add("--metric", choices=METRICS, help="distance of gradients (default: row_cosine; l1 for idc)")
    add(
        "--outer",
        type=int,
        help="of dc, dsa and idc: steps that one network serves (default: as many as rows per class, at most "
        "50; 100 for idc)",
    )
    add(
        "--inner",
        type=int,
        help="of dc, dsa and idc: epochs of the network's training after each of them (default: 500 over "
        "--outer, at most 50; 1 for idc)",
    )
    add(
        "--factor",
        type=int,
        help="every image holds FACTOR x FACTOR smaller ones, on which learners are trained at full size "
        "(default: 1; 2 for idc)",
    )
    add(
        "--ipc",
        action="append",
        help="rows per class: one number or several budgets, as in 1,10; or label=count for unequal ones, as "
        "in 10,3=20 (default: 1,10 for digits, else 10). May be repeated",
    )
    add("--steps", type=int, help="steps of the loop")
    add("--lr", type=float, help="learning rate of the synthetic rows (default: grows with rows per class)")
    add("--batch-real", type=int, help="real rows per class and step")
    add("--init", choices=[*INITIAL, "noise"], help="starting rows")
    add("--augment", type=_strategies, help="comma list of color, crop, cutout, flip, scale, rotate; or none")
    add("--seed", type=int, default=0, help="seed of the run (default: 0)")
    add("--updates", choices=["joint", "per-group"], help="one step for all classes, or one for each in turn")
    add("--bf16", action=argparse.BooleanOptionalAction, help="bfloat16 for the real side's networks")
    add("--resume", action="store_true", help="continue the run in --out, or the newest one of this name")
    add("--out", type=Path, help="folder of the run (default: runs/NAME-METHOD-seedSEED)")
    add("--threads", type=int, help="threads (default: torch's choice)")
    add("--data-dir", type=Path, help="folder with the IDX files of fashion-mnist or mnist")
    add("--label", help="label column of a .csv file")
    add("--learners", type=_words, help="comma list of learners that judge the result")
    add("--eval-seeds", type=int, default=5, help="trainings per set (default: 5)")
    add(
        "--full-seeds",
        type=int,
        help="trainings on the full data, 0 leaves it out (default: as --eval-seeds, 1 for large data)",
    )
    add(
        "--protocol",
        choices=tuple(PROTOCOLS),
        default="quick",
        help="how networks are trained (default: quick)",
    )
    add("--epochs", type=int, help="epochs of these trainings instead of the protocol's")
    add("--no-eval", dest="evaluate", action="store_false", help="condense and write, judge later")
    add("--quiet", action="store_true", help="no progress bars")
    add("--membership", action="store_true", help="also measure membership inference (always on if private)")
    _private.add_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command; errors are raised for `main` to report."""
    started = time.perf_counter()
    set_threads(arguments.threads)
    settings = EvaluationSettings(
        learners=arguments.learners,
        seeds=arguments.eval_seeds,
        selection_seeds=arguments.eval_seeds,
        full_seeds=arguments.full_seeds,
        protocol=arguments.protocol,
        epochs=arguments.epochs,
        curve_seeds=1,
        membership=arguments.membership,
    )
    bounds = _private.bounds(arguments)
    dataset = load(arguments.data, data_dir=arguments.data_dir, label=arguments.label, bounds=bounds)
    ClassificationTask(
        dataset, settings.learners
    )  # a learner that does not fit the data is an error now, not later
    texts = arguments.ipc or (["1,10"] if dataset.name == "digits" else ["10"])
    budgets = parse_budgets(texts, dataset.classes, dataset.counts)
    recipe, guard = _private.guarded(arguments, _recipe(arguments, dataset), dataset, len(budgets))
    folder = _folder(arguments, dataset)
    facts = _facts(dataset, recipe, arguments.seed) | guard.facts()
    runs = [(budget, *_prepare(budget, recipe, dataset, folder, arguments, guard)) for budget in budgets]

    # All checks are done: from here on files appear.
    for budget in budgets:
        (folder / budget.name).mkdir(parents=True, exist_ok=True)
    export.write_bytes(folder / RUN_FILE, (json.dumps(facts, indent=1, sort_keys=True) + "\n").encode())
    snapshots = {}
    for budget, loop, initial in runs:
        home = folder / budget.name
        _condense(budget, loop, home, arguments.quiet)
        x, y = loop.synthetic.rows()
        stored = None if loop.synthetic.rows_per_point == 1 else loop.synthetic.stored()
        made = {
            **facts,
            "loop": loop.metadata(),
            "counts": list(budget.counts),
            "seconds": round(loop.seconds, 3),
        }
        export.write(home, x, y, made, initial=initial, stored=stored)
        snapshots[sum(budget.counts)] = [
            *((seconds, rows, y) for _, seconds, rows in loop.snapshots),
            (loop.seconds, x, y),
        ]
    if arguments.evaluate:
        evaluate_run(folder, dataset, settings, snapshots=snapshots, quiet=arguments.quiet)
    if guard.sentence():
        print(guard.sentence())
    homes = ", ".join(str(folder / budget.name) for budget in budgets)
    print(f"Condensed sets: {homes}   ({time.perf_counter() - started:.0f} s altogether)")
    return 0


def _recipe(arguments: argparse.Namespace, dataset: Dataset) -> Recipe:
    method = arguments.method
    for name, methods in BELONGS.items():
        given = getattr(arguments, name)
        if given is None or method in methods or (method, name, given) == ("dm", "kernel", "linear"):
            continue
        raise ValueError(f"--{name} belongs to --method {' or '.join(methods)}, got --method {method}")
    flip = dataset.name not in NOT_MIRRORED
    recipe = default_recipe(method, dataset.shape, flip=flip)
    names = (
        *("kernel", "bandwidth", "blur", "reach", "frequencies", "masses", "pretrain"),
        *("metric", "outer", "inner", "factor"),
        *("steps", "lr", "batch_real", "init", "augment", "bf16", "clip_norm", "sampling_rate"),
    )
    changes = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    if arguments.updates is not None:
        changes["updates"] = arguments.updates.replace("-", "_")
    if arguments.features is not None:
        changes.update(_features(arguments.features))
    recipe = recipe.replace(**changes)
    if recipe.steps < 1:
        raise ValueError(f"--steps must be at least 1, got {recipe.steps}")
    if recipe.outer is not None and recipe.outer < 1:
        raise ValueError(f"--outer must be at least 1, got {recipe.outer}")
    if recipe.pretrain < 0:
        raise ValueError(f"--pretrain must not be negative, got {recipe.pretrain}")
    if recipe.factor < 1 or (recipe.factor > 1 and dataset.kind != "image"):
        raise ValueError(f"--factor must be at least 1, and 1 where rows are no images, got {recipe.factor}")
    if recipe.lr is not None and not recipe.lr > 0:
        raise ValueError(f"--lr must be positive, got {recipe.lr}")
    return recipe


def _prepare(
    budget: Budget,
    recipe: Recipe,
    dataset: Dataset,
    folder: Path,
    arguments: argparse.Namespace,
    guard: Guard,
) -> tuple[Condenser, Tensor]:
    """The loop of one budget, resumed where that is wanted and there is a checkpoint; its starting rows."""
    counts = [count * recipe.factor**2 for count in budget.counts]
    short = [
        name
        for name, count, have in zip(dataset.classes, counts, dataset.counts, strict=True)
        if count > have
    ]
    if short and recipe.factor > 1:
        raise ValueError(
            f"--factor {recipe.factor} needs {max(counts)} rows a class to begin with, {short[0]!r} has fewer"
        )
    if recipe.init == "noise":
        start = torch.randn(sum(counts), *dataset.shape, generator=seeded(arguments.seed, "noise"))
    else:
        start, _ = SELECTIONS[INITIAL[recipe.init]](dataset, counts, arguments.seed)
    low, high = (
        ((torch.tensor(bound) - dataset.mean) / dataset.std).reshape(-1, *[1] * (len(dataset.shape) - 1))
        for bound in dataset.value_range
    )
    bounds = (low, high) if recipe.clip else None
    synthetic = starting_set(recipe, start, budget.counts, value_range=bounds)
    start, _ = synthetic.stored()
    loop = condenser(
        recipe,
        synthetic,
        guard.source(dataset),
        shape=dataset.shape,
        classes=len(dataset.classes),
        seed=arguments.seed,
        keep=[recipe.steps * part // SNAPSHOTS for part in range(SNAPSHOTS)],
    )
    saved = folder / budget.name / CHECKPOINT
    if arguments.resume and saved.exists():
        loop.load_state_dict(checkpoint.load(saved))
    return loop, start


def _condense(budget: Budget, loop: Condenser, home: Path, quiet: bool) -> None:
    with progress_bar(f"condensing to {sum(budget.counts)}", quiet) as show:
        loop.callback = lambda record: show(record.step, record.steps, f"objective {record.loss:.4g}")
        try:
            loop.run(home / CHECKPOINT)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"step {loop.step_count} of {loop.steps} is saved; continue with --resume --out {home.parent}"
            ) from None
        except BudgetSpent as spent:
            raise ValueError(
                f"{spent}; step {loop.step_count} of {loop.steps} is saved in {home}; take fewer --steps or "
                "a larger --noise-multiplier"
            ) from None


def _facts(dataset: Dataset, recipe: Recipe, seed: int) -> dict[str, Any]:
    """What is recorded beside every set of the run, as plain values."""
    return {
        "command": command_line(),
        "method": recipe.method,
        "seed": seed,
        "recipe": _plain(dataclasses.asdict(recipe)),
        "dataset": dataset.name,
        "source": dict(dataset.source),
        "classes": list(dataset.classes),
        "normalisation": {"mean": dataset.mean.tolist(), "std": dataset.std.tolist()},
        "data_hashes": dataset.hashes(),
        "threads": torch.get_num_threads(),
    }


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def _folder(arguments: argparse.Namespace, dataset: Dataset) -> Path:
    """The run's folder; nothing is written yet."""
    folder: Path = arguments.out or Path("runs") / f"{dataset.name}-{arguments.method}-seed{arguments.seed}"
    if arguments.out is None:
        numbered = [folder, *(folder.with_name(f"{folder.name}-{number}") for number in range(2, 1000))]
        taken = [path for path in numbered if path.exists()]
        folder = (taken or [folder])[-1] if arguments.resume else next(p for p in numbered if p not in taken)
    if arguments.resume:
        if not (folder / RUN_FILE).is_file():
            raise FileNotFoundError(f"--resume: no run to continue in {folder}")
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"--out {folder} exists already; name another folder, or add --resume")
    check_writable(folder)
    return folder


def _features(text: str) -> dict[str, float]:
    named = {"identity": (1.0, 0.0), "convnet": (0.0, 1.0), "both": (1.0, 1.0)}
    if text in named:
        return dict(zip(("identity", "convnet"), named[text], strict=True))
    weights = {"identity": 0.0, "convnet": 0.0}
    for item in text.split(","):
        name, _, number = item.partition("=")
        try:
            weights[name.strip()] = float(number)
        except ValueError:
            raise ValueError(f"--features must be identity, convnet, both or weights, got {text!r}") from None
    if set(weights) != {"identity", "convnet"} or not all(0 <= w < float("inf") for w in weights.values()):
        raise ValueError(f"--features must be identity, convnet, both or weights, got {text!r}")
    return weights


def _bandwidth(text: str) -> float | str:
    if text in ("mean", "median"):
        return text
    try:
        return _positive(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"must be positive, mean or median, got {text}") from None


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be positive, got {text}")
    return number


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _strategies(text: str) -> tuple[str, ...]:
    return () if text == "none" else _words(text)
