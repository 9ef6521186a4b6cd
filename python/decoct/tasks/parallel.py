"""Runs of an evaluation: small trainings side by side, one thread each, large ones one after another."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

import torch

from ..objectives import Measure
from .base import Task

__all__ = ["Progress", "Run", "run_all"]

# Called with (runs done, runs in all, what was or is being run).
Progress = Callable[[int, int, str], None]

# More trainings at a time than this spend their time waiting for the interpreter.
MOST_WORKERS = 4


@dataclass(frozen=True)
class Run:
    """One fit and its judgement. small: the training is too small to gain from a second thread."""

    task: Task
    learner: str
    measure: Measure
    seed: int
    text: str
    small: bool

    def __call__(self) -> tuple[float, float]:
        """Accuracy in per cent, and seconds."""
        begin = time.perf_counter()
        model = self.task.fit(self.learner, self.measure, self.seed)
        accuracy = 100 * self.task.risks(model, "test")["accuracy"]
        return accuracy, time.perf_counter() - begin


def run_all(runs: Sequence[Run], progress: Progress | None = None) -> Iterator[tuple[float, float]]:
    """Outcomes of all runs in their order. A run's result does not depend on how many run beside it."""
    report = progress or (lambda done, total, text: None)
    outcomes: list[tuple[float, float] | None] = [None] * len(runs)
    threads, done = torch.get_num_threads(), 0
    small = [index for index, run in enumerate(runs) if run.small]
    if small:
        # Set before the pool starts: its threads take this number over. The callers' number comes back below.
        torch.set_num_threads(1)
        pool = ThreadPoolExecutor(min(threads, MOST_WORKERS, len(small)))
        try:
            places = {pool.submit(runs[index]): index for index in small}
            report(done, len(runs), runs[small[0]].text)
            for future in as_completed(places):
                outcomes[places[future]] = future.result()
                done += 1
                report(done, len(runs), runs[places[future]].text)
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)
    for index, run in enumerate(runs):
        if outcomes[index] is None:
            report(done, len(runs), run.text)
            outcomes[index] = run()
            done += 1
    report(done, len(runs), "")
    return iter([outcome for outcome in outcomes if outcome is not None])
