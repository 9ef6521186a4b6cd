"""Accuracy of networks trained on condensed sets, beside plain selections and published numbers.

    python bench/accuracy.py --quick                          # digits, few steps: shows that everything runs
    python bench/accuracy.py --data fashion-mnist --methods dc,dsa --ipc 1
    python bench/accuracy.py --data fashion-mnist --methods dc --ipc 1 --recipe published

A run is one condensation (data set, method, images per class, seed) and the trainings on its result. All that
is finished stays in --folder, and the same command goes on where it was interrupted. `--recipe published`
takes iterations, batches and starting rows of the papers, which for most methods are days on a CPU; `default`
takes those of `decoct condense`. Networks are trained by the protocol of the method's paper either way.
bench/README.md has results.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import harness
from decoct.augment import STRATEGIES
from decoct.condense import Condenser, checkpoint, export
from decoct.condense.recipes import METHODS, Recipe, condenser, default_recipe, starting_set
from decoct.objectives import PublicSource, seeded
from decoct.tasks import SELECTIONS, Dataset, TrainingProtocol, compare, load
from decoct.tasks.classification import plain_selections
from decoct.tasks.journal import Journal
from decoct.tasks.training import protocol

STARTS = {
    "kmeans": "k-means centroids",
    "nearest": "nearest to centroids",
    "random": "random",
    "herding": "herding",
}
# A digit's mirror image is no digit of its class.
NOT_MIRRORED = ("digits", "mnist")

_DC = "readme of github.com/VICO-UoE/DatasetCondensation"
_IDC = "readme of github.com/snu-mllab/Efficient-Dataset-Condensation"
_MEMORY = "remembered, unchecked"
# Test accuracy in per cent, and where the number is from.
PUBLISHED: dict[tuple[str, str, int], tuple[float, str]] = {
    ("fashion-mnist", "dc", 1): (70.5, _DC),
    ("fashion-mnist", "dc", 10): (82.3, _DC),
    ("fashion-mnist", "dc", 50): (83.6, _DC),
    ("fashion-mnist", "dsa", 1): (70.6, _DC),
    ("fashion-mnist", "dsa", 10): (84.6, _DC),
    ("fashion-mnist", "dsa", 50): (88.7, _DC),
    ("fashion-mnist", "idc", 10): (86.0, _IDC),
    ("mnist", "dc", 1): (91.7, _DC),
    ("mnist", "dc", 10): (97.4, _DC),
    ("mnist", "dsa", 1): (88.7, _DC),
    ("mnist", "dsa", 10): (97.8, _DC),
    ("mnist", "idc", 10): (98.4, _IDC),
    ("fashion-mnist", "random", 1): (51.4, _MEMORY),
    ("fashion-mnist", "random", 10): (73.8, _MEMORY),
    ("fashion-mnist", "herding", 1): (67.0, _MEMORY),
    ("fashion-mnist", "herding", 10): (71.1, _MEMORY),
}


def published_recipe(method: str, dataset: Dataset, counts: Sequence[int]) -> Recipe:
    """Iterations, batches, starting rows and rates of a method's paper, as its public code has them."""
    recipe = default_recipe(method, dataset.shape, flip=dataset.name not in NOT_MIRRORED)
    outer, _ = recipe.loops(counts)
    if method in ("dc", "dsa"):
        start = "noise" if method == "dc" else "random"
        return recipe.replace(steps=1000 * outer, batch_real=256, init=start, average=0.0)
    if method == "idc":
        # Its rate is for images in [0, 1]: in normalised units steps and gradients both change by 1 / std.
        side = max(dataset.shape[1:])
        scale = float(dataset.std.square().mean())
        rate = 1e-4 / 10 * (side / (28 if dataset.name == "mnist" else 32)) ** 2 / scale
        return recipe.replace(
            steps=200_000, factor=2, init="random", average=0.0, lr_per_row=rate, real_rows=500, clip=True
        )
    if method == "dm":
        return recipe.replace(
            steps=20_000, batch_real=256, init="random", average=0.0, lr=1.0, augment=tuple(STRATEGIES)
        )
    raise ValueError(f"accuracy: no published recipe is known for {method}; use --recipe default")


def training(method: str, dataset: Dataset, epochs: int | None) -> TrainingProtocol:
    """How networks are trained on a method's sets: 300 epochs, under augmentation 1000."""
    augmented = method in ("dsa", "idc")
    name = "published-augmented" if augmented else "published"
    return protocol(
        name, flip=dataset.name not in NOT_MIRRORED, epochs=epochs or (1000 if augmented else None)
    )


def made_loop(recipe: Recipe, dataset: Dataset, counts: Sequence[int], seed: int) -> Condenser:
    """The loop of a run, at its start."""
    starts = [count * recipe.factor**2 for count in counts]
    if recipe.init == "noise":
        rows = torch.randn(sum(starts), *dataset.shape, generator=seeded(seed, "noise"))
    else:
        rows, _ = SELECTIONS[STARTS[recipe.init]](dataset, starts, seed)
    low, high = (
        ((torch.tensor(bound) - dataset.mean) / dataset.std).reshape(-1, 1, 1)
        for bound in dataset.value_range
    )
    return condenser(
        recipe,
        starting_set(recipe, rows, counts, value_range=(low, high) if recipe.clip else None),
        PublicSource(dataset.train_x, dataset.train_y, group_count=len(dataset.classes)),
        shape=dataset.shape,
        classes=len(dataset.classes),
        seed=seed,
    )


def condensed(
    home: Path, recipe: Recipe, dataset: Dataset, counts: Sequence[int], seed: int
) -> export.Condensed:
    """A run's set: read where it is finished, else made, from its last checkpoint on."""
    loop = made_loop(recipe, dataset, counts, seed)
    settings = json.loads(json.dumps(loop.metadata()))
    if (home / export.FILE).is_file():
        found = export.read(home)
        if found.metadata["loop"] != settings:
            raise ValueError(f"accuracy: {home} holds a run with other settings; name another --folder")
        return found
    home.mkdir(parents=True, exist_ok=True)
    saved = home / "checkpoint.pt"
    if saved.exists():
        loop.load_state_dict(checkpoint.load(saved))
    last = time.monotonic()

    def show(record: Any) -> None:
        nonlocal last
        if time.monotonic() - last > 30:
            last = time.monotonic()
            print(f"  step {record.step} of {record.steps}, objective {record.loss:.4g}", file=sys.stderr)

    loop.callback = show
    loop.run(saved, every=20)
    x, y = loop.synthetic.rows()
    stored = None if recipe.factor == 1 else loop.synthetic.stored()
    facts = {"method": recipe.method, "seed": seed, "loop": settings, "seconds": round(loop.seconds, 1)}
    export.write(home, x, y, facts, stored=stored)
    return export.read(home)


def rows_of(arguments: argparse.Namespace, name: str, rows_per_class: int) -> list[dict[str, Any]]:
    """All methods on one data set and budget, and the plain selections under each protocol in use."""
    dataset = load(name, data_dir=arguments.data_dir)
    counts = [rows_per_class] * len(dataset.classes)
    seeds, trainings = range(arguments.seeds), range(arguments.trainings)
    made: dict[TrainingProtocol, dict[str, list[Any]]] = {}
    seconds: dict[str, float] = {}
    for method in arguments.methods:
        recipe = default_recipe(method, dataset.shape, flip=name not in NOT_MIRRORED)
        if arguments.recipe == "published":
            recipe = published_recipe(method, dataset, counts)
        changes = {key: getattr(arguments, key) for key in ("steps", "batch_real") if getattr(arguments, key)}
        recipe = recipe.replace(**changes)
        sets = []
        for seed in seeds:
            print(f"{name}, {method}, {rows_per_class} a class, seed {seed}", file=sys.stderr)
            home = arguments.folder / f"{name}-{method}-ipc{rows_per_class}-seed{seed}"
            sets.append(condensed(home, recipe, dataset, counts, seed))
        plan = training(method, dataset, arguments.epochs)
        made.setdefault(plan, {})[method] = [(item.x, item.y, len(item.kept[0])) for item in sets]
        seconds[method] = statistics.fmean(item.metadata["seconds"] for item in sets)
    plain = plain_selections(dataset, counts, seeds)
    journal = Journal(arguments.folder / "trainings.jsonl")
    found = []
    for plan, sets_of in made.items():
        results = compare(
            dataset,
            {**sets_of, **plain},
            ["convnet"],
            trainings,
            protocol=plan,
            cross=True,
            journal=journal,
        )
        found += [
            {
                "data": name,
                "set": row.name,
                "images per class": rows_per_class,
                "training": plan.name,
                "mean": row.mean,
                "deviation": row.std,
                "trainings": row.seeds,
                "sets": row.selections,
                "condensed in seconds": seconds.get(row.name),
                "published": PUBLISHED.get((name, row.name, rows_per_class)),
            }
            for row in results.rows
        ]
    return found


def shown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a table, best first within a data set, budget and protocol."""
    groups = ("data", "images per class", "training")
    ordered = sorted(rows, key=lambda row: (*(row[key] for key in groups), -row["mean"]))
    lines = []
    for row in ordered:
        published = row["published"]
        taken = row["condensed in seconds"]
        lines.append(
            (
                f"{row['data']}, {row['images per class']} a class, {row['training']}",
                row["set"],
                f"{row['mean']:.1f} ± {row['deviation']:.1f}",
                f"{row['sets']} x {row['trainings'] // row['sets']}",
                "-" if taken is None else harness.show_seconds(taken),
                "-" if published is None else f"{published[0]} ({published[1]})",
            )
        )
    header = ("data, training", "set", "accuracy, %", "sets x trainings", "condensed in", "published")
    return harness.table(header, lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=_words, default=("fashion-mnist",), help="comma list of digits, fashion-mnist, mnist")
    add("--methods", type=_words, default=("dc", "dsa"), help=f"comma list of {', '.join(METHODS)}")
    add("--ipc", type=_words, default=("1",), help="comma list of images per class")
    add("--recipe", choices=("default", "published"), default="default", help="settings of the condensation")
    add("--steps", type=int, help="steps instead of the recipe's")
    add("--batch-real", type=int, help="real rows per class and step instead of the recipe's")
    add("--seeds", type=int, default=1, help="condensations of each kind (default: 1)")
    add("--trainings", type=int, default=5, help="networks trained on each set (default: 5)")
    add("--epochs", type=int, help="epochs of these trainings instead of the protocol's")
    add("--folder", type=Path, default=Path("runs/accuracy"), help="where finished work is kept")
    add("--data-dir", help="folder with IDX files")
    add("--json", type=Path, help="write the results, with machine, versions and commit")
    add("--quick", action="store_true", help="digits, a few steps and epochs")
    chosen = parser.parse_args(arguments)
    if chosen.quick:
        chosen.data, chosen.methods, chosen.steps, chosen.epochs = (
            ("digits",),
            ("dc", "dsa", "idc", "mmd"),
            3,
            2,
        )
        chosen.trainings, chosen.batch_real = 2, 8
    unknown = sorted(set(chosen.methods) - set(METHODS))
    if unknown:
        parser.error(f"--methods must be among {', '.join(METHODS)}, got {', '.join(unknown)}")
    chosen.folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for name in chosen.data:
        for rows_per_class in map(int, chosen.ipc):
            rows += rows_of(chosen, name, rows_per_class)
            if chosen.json is not None:
                facts = {
                    "machine": harness.machine(),
                    "quick": chosen.quick,
                    "recipe": chosen.recipe,
                    "steps": chosen.steps,
                    "threads": torch.get_num_threads(),
                }
                harness.write_json(chosen.json, {**facts, "rows": rows})
    print(shown(rows))
    return 0


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


if __name__ == "__main__":
    sys.exit(main())
