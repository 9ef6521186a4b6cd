"""Private condensation on the command line: options, the guarded source, and what is said of the privacy."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from typing import Any

from ..condense.recipes import PRIVATE_METHODS, Recipe
from ..objectives import PrivateSource, PublicSource, Source
from ..privacy import NEIGHBOURS, Accountant, Mechanism, epsilon_of, noise_multiplier_for
from ..tasks import Dataset

__all__ = ["Guard", "add_options", "bounds", "guarded"]

OPTIONS = ("noise_multiplier", "clip_norm", "sampling_rate", "epsilon", "delta", "range")
NOT_PRIVATE = "No noise was added: nothing about this run is private."
NO_CLAIM = "no epsilon is claimed: give --delta, and install decoct[private]"
OPEN_TEST = "test rows are not protected: accuracies are measured on them"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of private methods."""
    group = parser.add_argument_group("privacy, of dp-dc and dp-merf")
    add = group.add_argument
    add("--epsilon", type=float, help="find the noise that costs this much altogether, at --delta")
    add("--delta", type=float, help="of epsilon; below one over the training rows")
    add(
        "--noise-multiplier",
        type=float,
        help="standard deviation of the noise over --clip, instead of --epsilon; with both, the run stops "
        "before it would exceed --epsilon. 0: no noise and no privacy, for comparison",
    )
    add("--clip", dest="clip_norm", type=float, help="largest norm of one record's contribution")
    add("--sampling-rate", type=float, help="probability of a record to take part in a step")
    add(
        "--range",
        type=_range,
        metavar="LOW,HIGH",
        help="bounds of the values, which must not come from the data; rows are clipped to them and "
        "normalised by them (default: 0,1 for images)",
    )


@dataclass(frozen=True)
class Guard:
    """How the real rows of a run are guarded.

    recipe: of a private method. accountant: None without noise. answers: planned, of all budgets.
    """

    recipe: Recipe | None = None
    accountant: Accountant | None = None
    delta: float | None = None
    answers: int = 0

    def source(self, dataset: Dataset) -> Source:
        """The training rows."""
        classes = len(dataset.classes)
        if self.recipe is None or self.recipe.noise_multiplier is None:
            return PublicSource(dataset.train_x, dataset.train_y, group_count=classes)
        return PrivateSource(
            dataset.train_x,
            dataset.train_y,
            noise_multiplier=self.recipe.noise_multiplier,
            clip=self.recipe.clip_norm,
            sampling_rate=self.recipe.sampling_rate,
            accountant=self.accountant,
            group_count=classes,
        )

    def facts(self) -> dict[str, Any]:
        """What is recorded of it with the sets; the charge is that of the whole run."""
        if self.recipe is None or self.recipe.noise_multiplier is None:
            return {}
        mechanism = Mechanism(self.recipe.noise_multiplier, self.recipe.sampling_rate)
        claimed = None if self.delta is None else epsilon_of({mechanism: self.answers}, self.delta)
        return {
            "private": True,
            "data_hashes": None,
            "privacy": {
                "epsilon": "none claimed" if claimed is None else _up(claimed),
                "delta": self.delta,
                "answers": self.answers,
                "neighbours": NEIGHBOURS,
                "accountant": "none" if claimed is None else "dp-accounting, privacy loss distribution",
                "not_protected": OPEN_TEST,
                "left_out": "hashes and statistics of the real rows, and results of real rows",
            },
        }

    def sentence(self) -> str:
        """What was spent, in one paragraph."""
        if self.recipe is None:
            return ""
        if self.accountant is None:
            return NOT_PRIVATE
        answers = sum(self.accountant.charges().values())
        noise = (
            f"noise multiplier {self.recipe.noise_multiplier:g}, sampling rate {self.recipe.sampling_rate:g}"
        )
        text = f"{answers} answers with {noise}"
        if self.delta is None:
            return f"Privacy: {text}; {NO_CLAIM}."
        epsilon = _up(self.accountant.epsilon(self.delta))
        return (
            f"Privacy: epsilon {epsilon:g} at delta {self.delta:g} for all sets of this run together "
            f"({text}; {NEIGHBOURS}; {OPEN_TEST})."
        )


def bounds(arguments: argparse.Namespace) -> tuple[float, float] | None:
    """What normalises the rows: public bounds for private methods, None for their own statistics."""
    return (arguments.range or (0.0, 1.0)) if arguments.method in PRIVATE_METHODS else None


def guarded(
    arguments: argparse.Namespace, recipe: Recipe, dataset: Dataset, budgets: int
) -> tuple[Recipe, Guard]:
    """The recipe with its noise and the guard of a run of so many budgets; for other methods as it was, and
    none. ValueError for what would leak."""
    if recipe.method not in PRIVATE_METHODS:
        for name in OPTIONS:
            if getattr(arguments, name) is not None:
                option = name.removesuffix("_norm").replace("_", "-")
                methods = " or ".join(PRIVATE_METHODS)
                raise ValueError(f"--{option} belongs to --method {methods}, got --method {recipe.method}")
        return recipe, Guard()
    epsilon, delta, noise = arguments.epsilon, arguments.delta, arguments.noise_multiplier
    _check(arguments, recipe, dataset)
    if arguments.range is None and dataset.kind != "image":
        raise ValueError("--range LOW,HIGH must be given for tables: the data's own bounds are not public")
    if noise == 0:
        return recipe, Guard(recipe)
    answers = budgets * (1 if recipe.method == "dp-merf" else recipe.steps)
    if noise is None:
        noise = noise_multiplier_for(epsilon, delta, sampling_rate=recipe.sampling_rate, answers=answers)
    recipe = recipe.replace(noise_multiplier=noise)
    guard = Guard(recipe, Accountant(epsilon, delta if epsilon else None), delta, answers)
    guard.facts()  # an accountant that is missing, or numbers out of range, are an error now
    return recipe, guard


def _check(arguments: argparse.Namespace, recipe: Recipe, dataset: Dataset) -> None:
    epsilon, delta, noise = arguments.epsilon, arguments.delta, arguments.noise_multiplier
    if epsilon is None and noise is None:
        raise ValueError(f"--method {recipe.method} needs --epsilon and --delta, or --noise-multiplier")
    if epsilon is not None and delta is None:
        raise ValueError("--epsilon needs --delta, below one over the number of training rows")
    if epsilon is not None and not epsilon > 0:
        raise ValueError(f"--epsilon must be positive, got {epsilon}")
    if noise is not None and not 0 <= noise < float("inf"):
        raise ValueError(f"--noise-multiplier must not be negative, got {noise}")
    if noise == 0 and (epsilon is not None or delta is not None):
        raise ValueError("--noise-multiplier 0 adds no noise, so that there is no --epsilon or --delta")
    rows = len(dataset.train_x)
    if delta is not None and not 0 < delta < 1 / rows:
        raise ValueError(
            f"--delta must be positive and below 1/{rows}, one over the training rows, got {delta}"
        )
    if recipe.method == "dp-merf" and recipe.augment:
        raise ValueError("--augment must be none with --method dp-merf, whose one answer fits no view")
    if recipe.init != "noise":
        raise ValueError(f"--init must be noise with --method {recipe.method}: real rows would be published")
    if isinstance(arguments.bandwidth, str):
        raise ValueError(f"--bandwidth must be a number with --method {recipe.method}: data would decide it")


def _up(epsilon: float) -> float:
    """To four decimals, never below what was spent."""
    return math.ceil(epsilon * 1e4) / 1e4


def _range(text: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be LOW,HIGH, got {text}") from None
    if not -float("inf") < low < high < float("inf"):
        raise argparse.ArgumentTypeError(f"must be LOW,HIGH with LOW below HIGH, got {text}")
    return low, high
