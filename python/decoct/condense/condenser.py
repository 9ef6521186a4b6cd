"""The loop: phases of steps that move a synthetic measure, then a finish."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..augment import Augmentation
from ..objectives import Context, Measure, Objective, PrivateSource, Source, seeded
from ..privacy import BudgetSpent
from . import checkpoint as checkpoints
from .pool import Pool
from .synthetic import Synthetic

__all__ = ["Condenser", "Phase", "Record"]

Finish = Callable[[Synthetic, Any], None]
UPDATES = ("joint", "per_group")
SCHEDULES = ("constant", "cosine")


@dataclass(frozen=True)
class Phase:
    """`steps` steps on one objective.

    batch_real: rows drawn per group and source in a step; batch_synthetic: synthetic points per group
    that take part, all by default. schedule: "constant", or "cosine" from the full learning rates to 0
    over the phase.
    average: share of the phase's last steps whose points are averaged into the result; 0 keeps the last ones.
    """

    steps: int
    objective: Objective
    batch_real: int = 256
    batch_synthetic: int | None = None
    schedule: str = "constant"
    average: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"Phase: steps must not be negative, got {self.steps}")
        if self.batch_real < 1:
            raise ValueError(f"Phase: batch_real must be positive, got {self.batch_real}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"Phase: schedule must be one of {', '.join(SCHEDULES)}, got {self.schedule!r}")
        if not 0 <= self.average <= 1:
            raise ValueError(f"Phase: average must be in [0, 1], got {self.average}")

    def rate(self, done: int) -> float:
        """Factor on the learning rates after `done` steps of the phase."""
        return 1.0 if self.schedule == "constant" else 0.5 * (1 + math.cos(math.pi * done / self.steps))


@dataclass(frozen=True)
class Record:
    """One step as a callback sees it: steps done of all, objective value, its named terms, seconds so far."""

    step: int
    steps: int
    loss: float
    terms: Mapping[str, float]
    seconds: float


def momentum(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """The default optimiser: SGD with momentum 0.5 at each group's own learning rate."""
    return torch.optim.SGD(groups, momentum=0.5)


class Condenser:
    """Moves `synthetic` so that the objectives of its phases fall, then finishes it.

    synthetic: what is moved. real: a source, or sources by name (one alone is called "real").
    phases: in order. finish: called with (synthetic, task) after the last step, for instance to relabel.
    pool: gives each step its network. task: anything with ``loss(net, measure) -> (N,)``, handed to the
    context.
    optimiser: makes the optimiser of a list of parameter groups; `adversary` that of the objectives' own
    parameters, which ascend.
    updates: "joint", one optimiser step for all groups, evaluated in one network call per side and one op
    call; or "per_group", one optimiser step after another for each group, on the same draws. They are
    different methods where the optimiser has momentum.
    augmentation: drawn once per group and step and shared by both sides.
    seed: of every draw. callback: called with a `Record` after each step.
    keep: numbers of steps after which the points are kept, in `snapshots` as (step, seconds, x).
    """

    def __init__(
        self,
        synthetic: Synthetic,
        real: Source | Mapping[str, Source],
        phases: Sequence[Phase],
        *,
        pool: Pool | None = None,
        task: Any = None,
        optimiser: Callable[[list[dict[str, Any]]], torch.optim.Optimizer] = momentum,
        adversary: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None,
        updates: str = "joint",
        augmentation: Augmentation | None = None,
        finish: Finish | None = None,
        seed: int = 0,
        callback: Callable[[Record], None] | None = None,
        keep: Sequence[int] = (),
    ) -> None:
        if updates not in UPDATES:
            raise ValueError(f"Condenser: updates must be one of {', '.join(UPDATES)}, got {updates!r}")
        self.synthetic, self.phases = synthetic, list(phases)
        self.real: Mapping[str, Source] = {"real": real} if isinstance(real, Source) else dict(real)
        self.pool, self.task, self.updates, self.augmentation = pool, task, updates, augmentation
        self.finish, self.seed, self.callback = finish, seed, callback
        self.steps = sum(phase.steps for phase in self.phases)
        self.step_count, self.seconds, self.finished = 0, 0.0, False
        self.optimiser = optimiser(synthetic.parameter_groups())
        self._base_rates = [group["lr"] for group in self.optimiser.param_groups]
        self.objectives = nn.ModuleList(phase.objective for phase in self.phases)
        opponents = [p for phase in self.phases for p in phase.objective.adversaries()]
        opponents = list({id(p): p for p in opponents}.values())
        make = adversary or (lambda parameters: torch.optim.Adam(parameters, lr=1e-3, maximize=True))
        self.adversary = make(opponents) if opponents else None
        if self.adversary is not None and not all(
            group.get("maximize") for group in self.adversary.param_groups
        ):
            raise ValueError("Condenser: adversary must make an optimiser with maximize=True")
        own = [p for group in self.optimiser.param_groups for p in group["params"]]
        self._moving = [p for p in (*own, *opponents) if p.requires_grad]
        self._average: Tensor | None = None
        self._averaged = 0
        self.keep = frozenset(keep)
        self.snapshots: list[tuple[int, float, Tensor]] = []
        if 0 in self.keep:
            self.snapshots.append((0, 0.0, synthetic.rows()[0]))

    def step(self) -> Record:
        """One step of the current phase. RuntimeError when all steps are done."""
        if self.step_count >= self.steps:
            raise RuntimeError(f"Condenser: all {self.steps} steps are done")
        started = time.perf_counter()
        phase, done = self._phase()
        for group, base in zip(self.optimiser.param_groups, self._base_rates, strict=True):
            group["lr"] = base * phase.rate(done)
        context = self._context(phase)
        if self.pool is not None:
            context.net = self.pool.draw(context)
        if self.updates == "joint":
            loss = self._update(phase, context)
        else:
            loss = 0.0
            for index in range(context.synthetic.group_count):
                if int(context.synthetic.counts[index]) > 0:
                    narrow = context.restrict([index], self._points(phase))
                    loss += self._update(phase, narrow)
                    for name, value in narrow.terms.items():
                        context.terms[name] = context.terms.get(name, torch.zeros(())) + value
        if self.pool is not None:
            with torch.no_grad():
                context.synthetic = self.synthetic()
            self.pool.advance(context)
        self._accumulate(phase, done + 1)
        self.step_count += 1
        self.seconds += time.perf_counter() - started
        if self.step_count in self.keep:
            self.snapshots.append((self.step_count, self.seconds, self.synthetic.rows()[0]))
        terms = {name: float(value) for name, value in context.terms.items()}
        return Record(self.step_count, self.steps, loss, terms, self.seconds)

    def run(
        self, checkpoint: str | os.PathLike[str] | None = None, *, every: int = 100, until: int | None = None
    ) -> Synthetic:
        """All steps that are left (or up to step `until`), then the finish; returns the synthetic measure.

        checkpoint: file to which the state is written every `every` steps, at the end, and when
        Ctrl-C is pressed: the running step is finished first, the state is written, then
        KeyboardInterrupt is raised. A second Ctrl-C interrupts at once. FloatingPointError when the
        objective is no longer finite; nothing is written then. BudgetSpent when a step would exceed the limit
        of a private source's accountant: it is not done, and the state before it is written.
        """
        last = self.steps if until is None else min(until, self.steps)
        with _deferred_interrupt() as interrupted:
            while self.step_count < last and not interrupted:
                try:
                    record = self.step()
                except BudgetSpent:
                    if checkpoint is not None:
                        checkpoints.save(checkpoint, self.state_dict())
                    raise
                if not math.isfinite(record.loss):
                    raise FloatingPointError(
                        f"Condenser: the objective is {record.loss} at step {record.step}"
                    )
                if self.callback is not None:
                    self.callback(record)
                if checkpoint is not None and self.step_count % every == 0 and self.step_count < last:
                    checkpoints.save(checkpoint, self.state_dict())
            if self.step_count == self.steps and not self.finished:
                self._finish()
            if checkpoint is not None:
                checkpoints.save(checkpoint, self.state_dict())
        if interrupted and self.step_count < last:
            raise KeyboardInterrupt
        return self.synthetic

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs to equal an uninterrupted one, bit for bit.

        Of private sources it holds the charge alone, and is marked private: a resumed run has new noise.
        A state that is resumed twice gives two results, whose charges add up.
        """
        return {
            "private": bool(self._private),
            "privacy": {name: source.state_dict() for name, source in self._private.items()},
            "metadata": self.metadata(),
            "step": self.step_count,
            "seconds": self.seconds,
            "finished": self.finished,
            "synthetic": self.synthetic.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "objectives": self.objectives.state_dict(),
            "adversary": None if self.adversary is None else self.adversary.state_dict(),
            "pool": None if self.pool is None else self.pool.state_dict(),
            "average": self._average,
            "averaged": self._averaged,
            "snapshots": list(self.snapshots),
            "torch_rng": torch.get_rng_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`'s result. ValueError where it comes from a run with other settings."""
        ours, theirs = self.metadata(), state["metadata"]
        differing = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
        if differing:
            key = differing[0]
            raise ValueError(
                f"Condenser: the state is another run's: {key} was {theirs.get(key)!r}, now {ours.get(key)!r}"
            )
        self.synthetic.load_state_dict(state["synthetic"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.objectives.load_state_dict(state["objectives"])
        if self.adversary is not None:
            self.adversary.load_state_dict(state["adversary"])
        if self.pool is not None:
            self.pool.load_state_dict(state["pool"])
        for name, source in self._private.items():
            source.load_state_dict(state["privacy"][name])
        average = state["average"]
        self._average, self._averaged = None if average is None else average.clone(), state["averaged"]
        self.step_count, self.seconds, self.finished = state["step"], state["seconds"], state["finished"]
        self.snapshots = [tuple(item) for item in state["snapshots"]]
        torch.set_rng_state(state["torch_rng"])

    def metadata(self) -> dict[str, Any]:
        """The settings that change results, as plain values."""
        return {
            "seed": self.seed,
            "updates": self.updates,
            "steps": [phase.steps for phase in self.phases],
            "batch_real": [phase.batch_real for phase in self.phases],
            "batch_synthetic": [phase.batch_synthetic for phase in self.phases],
            "schedule": [phase.schedule for phase in self.phases],
            "average": [phase.average for phase in self.phases],
            "objectives": [repr(phase.objective) for phase in self.phases],
            "learning_rates": {group["name"]: base for group, base in self._named_rates()},
            "optimiser": type(self.optimiser).__name__,
            "counts": self.synthetic.groups.diff().tolist(),
            "augmentation": repr(self.augmentation),
            "augmentation_drawn": "once per group and step, shared by both sides",
            "row_chunks": [
                module.chunk
                for module in self.objectives.modules()
                if isinstance(getattr(module, "chunk", None), int)
            ],
            "absent_groups": "left out: no cost, no gradient",
            "network": None if self.pool is None else self.pool.settings(),
            **(
                {"private": {name: source.settings() for name, source in self._private.items()}}
                if self._private
                else {}
            ),
        }

    @property
    def _private(self) -> dict[str, PrivateSource]:
        return {name: source for name, source in self.real.items() if isinstance(source, PrivateSource)}

    def _named_rates(self) -> Iterator[tuple[dict[str, Any], float]]:
        return zip(self.optimiser.param_groups, self._base_rates, strict=True)

    def _phase(self) -> tuple[Phase, int]:
        done = self.step_count
        for phase in self.phases:
            if done < phase.steps:
                return phase, done
            done -= phase.steps
        raise RuntimeError("Condenser: no phase is left")

    def _points(self, phase: Phase) -> Measure:
        measure: Measure = self.synthetic(
            phase.batch_synthetic, seeded(self.seed, self.step_count, "synthetic")
        )
        return measure

    def _context(self, phase: Phase) -> Context:
        synthetic = self._points(phase)
        view = None
        if self.augmentation is not None:
            view = self.augmentation.draw(
                synthetic.group_count, seeded(self.seed, self.step_count, "augmentation")
            )
        return Context(
            step=self.step_count,
            real=self.real,
            synthetic=synthetic,
            seed=self.seed,
            loss=None if self.task is None else self.task.loss,
            batch_real=phase.batch_real,
            view=view,
        )

    def _update(self, phase: Phase, context: Context) -> float:
        loss: Tensor = phase.objective(context)
        self.optimiser.zero_grad()
        if self.adversary is not None:
            self.adversary.zero_grad()
        if loss.requires_grad:
            # Not to the network's parameters: matched gradients depend on them, too.
            loss.backward(inputs=self._moving)
        self.optimiser.step()
        if self.adversary is not None:
            self.adversary.step()
        self.synthetic.project_()
        return float(loss.detach())

    def _accumulate(self, phase: Phase, done: int) -> None:
        if done <= phase.steps - round(phase.average * phase.steps):
            return
        points = self.synthetic.x.detach()
        if self._average is None:
            self._average = torch.zeros_like(points, dtype=torch.float64)
        self._average += points
        self._averaged += 1
        if done == phase.steps:
            with torch.no_grad():
                self.synthetic.x.copy_(self._average / self._averaged)
            self._average, self._averaged = None, 0

    def _finish(self) -> None:
        if self.finish is not None:
            self.finish(self.synthetic, self.task)
        self.finished = True


@contextmanager
def _deferred_interrupt() -> Iterator[list[int]]:
    """Collect the first Ctrl-C into the yielded list instead of raising; a second one raises as usual."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    previous = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: Any) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, note)
    try:
        yield received
    finally:
        signal.signal(signal.SIGINT, previous)
