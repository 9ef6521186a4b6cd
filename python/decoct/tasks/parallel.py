"""Runs of an evaluation: small trainings side by side, one thread each, large ones one after another."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass

import torch

from ..objectives import Measure
from .base import Task
from .journal import Journal

__all__ = ["Progress", "Run", "run_all"]

# Called with (runs done, runs in all, what was or is being run).
Progress = Callable[[int, int, str], None]

# More trainings at a time than this spend their time waiting for the interpreter.
MOST_WORKERS = 4


@dataclass(frozen=True)
class Run:
    """One fit and its judgement. small: the training is too small to gain from a second thread.

    key: names the run in a journal; empty for none.
    """

    task: Task
    learner: str
    measure: Measure
    seed: int
    text: str
    small: bool
    key: str = ""

    def __call__(self) -> tuple[float, float]:
        """Accuracy in per cent, and seconds."""
        begin = time.perf_counter()
        model = self.task.fit(self.learner, self.measure, self.seed)
        accuracy = 100 * self.task.risks(model, "test")["accuracy"]
        return accuracy, time.perf_counter() - begin


def run_all(
    runs: Sequence[Run], progress: Progress | None = None, journal: Journal | None = None
) -> Iterator[tuple[float, float]]:
    """Outcomes of all runs in their order. A run's result does not depend on how many run beside it.

    journal: runs that it knows are not repeated; the others are entered as they end.
    """
    report = progress or (lambda done, total, text: None)
    outcomes = [journal.get(run.key) if journal else None for run in runs]
    threads, done = torch.get_num_threads(), sum(outcome is not None for outcome in outcomes)

    def finish(index: int, outcome: tuple[float, float]) -> None:
        nonlocal done
        outcomes[index] = outcome
        done += 1
        if journal:
            journal.add(runs[index].key, outcome, runs[index].text)

    small = [index for index, run in enumerate(runs) if run.small and outcomes[index] is None]
    if small:
        # Set before the pool starts: its threads take this number over. The callers' number comes back below.
        torch.set_num_threads(1)
        pool = ThreadPoolExecutor(min(threads, MOST_WORKERS, len(small)))
        places: dict[Future[tuple[float, float]], int] = {}
        try:
            places.update((pool.submit(runs[index]), index) for index in small)
            report(done, len(runs), runs[small[0]].text)
            for future in as_completed(places):
                finish(places[future], future.result())
                report(done, len(runs), runs[places[future]].text)
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)
            for future, index in places.items():  # what ended while an interruption was on its way
                if outcomes[index] is None and not future.cancelled() and future.exception() is None:
                    finish(index, future.result())
    for index, run in enumerate(runs):
        if outcomes[index] is None:
            report(done, len(runs), run.text)
            finish(index, run())
    report(done, len(runs), "")
    return iter([outcome for outcome in outcomes if outcome is not None])
