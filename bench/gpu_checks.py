"""Calls of every CUDA kernel path for the sanitizers, and checks of graphs, streams and repeats: a worker of
gpu.py.

    python gpu_checks.py '{"device": "cuda", "kind": "graphs", "until": 1.8e9}' OUT
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

import decoct
import gpu_gradient_paths
import gpu_paths
import gpu_sample_paths
import harness
from decoct.networks import ConvNet
from decoct.ops._image_gram import image_gram
from decoct.ops._image_squares import image_squares
from decoct.ops._segment_outer import LINEAR
from gpu_device import Device, open_device
from gpu_paths import FORMS, rows

Check = tuple[str, Callable[[], None]]
REPEATS, TOY_REPEATS = 20, 2


# ---- graphs, streams, repeats


@dataclass
class Problem:
    """Inputs that stay where they are, and a call that gives the value and the gradient by y."""

    device: Device
    columns: int
    form: str
    rule: str
    seed: int = 0
    rules: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        self.repeats = TOY_REPEATS if self.device.toy else REPEATS
        self.x, self.y = self.make()
        self.y.requires_grad_()
        self.fill(self.seed)

    def make(self) -> tuple[Tensor, Tensor]:
        """Memory of the inputs."""
        n, m = (83, 61) if self.form == "ragged" else (40, 30) if self.device.toy else (300, 170)
        x, y = (torch.empty(k, self.columns, device=self.device.device) for k in (n, m))
        return x, y

    def fill(self, seed: int) -> None:
        with torch.no_grad():
            self.x.copy_(rows(self.device, *self.x.shape, seed=seed))
            self.y.copy_(rows(self.device, *self.y.shape, seed=seed + 1) * 0.9 + 0.2)

    def call(self) -> tuple[Tensor, Tensor]:
        value = self.value()
        return value.detach(), torch.autograd.grad(value.sum(), self.y)[0]

    def value(self) -> Tensor:
        raise NotImplementedError


class Mmd(Problem):
    rules = ("fixed bandwidth", "mean bandwidth")

    def value(self) -> Tensor:
        bandwidth = "mean" if self.rule == self.rules[1] else self.columns**0.5
        return decoct.mmd(self.x, self.y, "gaussian", bandwidth, **FORMS[self.form])


class Sinkhorn(Problem):
    """Of the dense one, the real-real term is made in tiles, the others keep their costs."""

    rules = ("p=2", "p=1", "p=2, labels")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.options: dict[str, Any] = {
            "p": 1 if self.rule == "p=1" else 2,
            "blur": self.columns**0.5 / 4,
            "diameter": 8 * self.columns**0.5,
            **FORMS[self.form],
        }
        if self.rule == self.rules[2]:
            for side, part in (("x_labels", self.x), ("y_labels", self.y)):
                self.options[side] = torch.arange(len(part), device=part.device) % 3
            self.options["label_cost"] = 1 - torch.eye(3, device=self.x.device)

    def value(self) -> Tensor:
        return decoct.sinkhorn_divergence(self.x, self.y, **self.options)


class Distance(Problem):
    """Of lists: dense of one class, ragged of three."""

    rules = ("row_cosine", "cosine", "cosine_l2, second")
    classes_of: ClassVar[dict[str, int]] = {"dense": 1, "ragged": 3}

    def make(self) -> tuple[Tensor, Tensor]:
        shape = (self.classes_of[self.form], 40, self.columns)
        return torch.empty(shape, device=self.device.device), torch.empty(shape, device=self.device.device)

    def value(self) -> Tensor:
        lists = [[side, side[:, :7].sin()] for side in (self.x, self.y)]
        metric, _, second = self.rule.partition(", ")
        value = decoct.gradient_distance(*lists, metric, classes=True)  # type: ignore[arg-type]
        if not second:
            return value
        return torch.autograd.grad(value.sum(), self.y, create_graph=True)[0].cos().sum()


class Norm(Problem):
    """Of images, contiguous or with their channels last, of whose gradient the second rule takes another."""

    rules = ("first", "second")

    def make(self) -> tuple[Tensor, Tensor]:
        layout = torch.channels_last if self.form == "ragged" else torch.contiguous_format
        images = torch.empty(5, 6, 12, 1 + self.columns // 4, device=self.device.device)
        return torch.empty(2, 6, device=self.device.device), images.contiguous(memory_format=layout)

    def value(self) -> Tensor:
        options: dict[str, Any] = {"groups": 3, "activation": "relu", "pool": 2 if self.columns > 7 else 1}
        value = decoct.group_norm(self.y, weight=self.x[0], bias=self.x[1], **options)
        if self.rule == "first":
            return value.square()
        return torch.autograd.grad(value.square().sum(), self.y, create_graph=True)[0].cos().sum()


class Step(Problem):
    """A step of gradient matching: gradients of every class of a network and their distance."""

    rules = ("as the loop does it",)

    def make(self) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(3)
        self.net = ConvNet((3, 8, 8), 3, width=1 + self.columns // 4, depth=2, generator=generator)
        self.net.to(self.device.device)
        self.ends = [0, 3, 3, 8] if self.form == "ragged" else [0, 2, 5, 8]
        self.targets = torch.arange(8, device=self.device.device) % 3
        return torch.empty(8, 3, 8, 8, device=self.device.device), torch.empty(
            8, 3, 8, 8, device=self.device.device
        )

    def value(self) -> Tensor:
        sides = []
        for images in (self.x, self.y):
            found = decoct.class_gradients(
                self.net, images, self.targets, self.ends, create_graph=images is self.y
            )
            sides.append([gradient for gradient in found if gradient is not None])
        return decoct.gradient_distance(*sides, classes=True)


class Samples(Problem):
    """Norms of a layer's per-sample gradients and their inner products with others; forms: a convolution, and
    rows without positions."""

    rules = ("norms", "inner products")

    def make(self) -> tuple[Tensor, Tensor]:
        side = 6 if self.form == "ragged" else 1
        self.convolution = [3, 3, 1, 1, 1, 1, 1, 1, 1] if self.form == "ragged" else list(LINEAR)
        shapes = ((3, self.columns, side, side), (7, self.columns, side, side))
        x, y = (torch.empty(shape, device=self.device.device) for shape in shapes)
        return x, y

    def value(self) -> Tensor:
        mine = self.y, self.y.sin()[:, :5]
        if self.rule == "norms":
            return image_squares(*mine, self.convolution, True)[0]
        return image_gram(*mine, self.x, self.x[:, :5], self.convolution, True)


class Characteristic(Problem):
    rules = ("first", "second")

    def value(self) -> Tensor:
        ends = {} if self.form == "dense" else {"x_offsets": FORMS[self.form]["y_offsets"]}
        means = decoct.characteristic_mean(self.y, self.x, **ends)
        value = torch.cat(means).square()
        if self.rule == "first":
            return value
        return torch.autograd.grad(value.sum(), self.y, create_graph=True)[0].cos().sum()


class Projection(Problem):
    rules = ("plain",)

    def value(self) -> Tensor:
        return decoct.random_projection(self.y, 33, seed=3).square()


def _same(ours: tuple[Tensor, ...], expected: tuple[Tensor, ...], what: str) -> None:
    assert all(torch.equal(p, q) for p, q in zip(ours, expected, strict=True)), f"{what}: other bits"


def _repeats(problem: Problem) -> None:
    first = problem.call()
    for _ in range(problem.repeats):
        _same(problem.call(), first, "a repeat")


def _graph(problem: Problem) -> None:
    replay = problem.device.capture(problem.call)
    before = tuple(part.clone() for part in replay())
    for seed in (10, 20, 30):
        problem.fill(seed)
        replayed = tuple(part.clone() for part in replay())
        _same(replayed, problem.call(), "a replay with other inputs")
        assert not torch.equal(replayed[1], before[1]), "a replay gave what the one before it gave"
        before = replayed


def _side_stream(problem: Problem) -> None:
    _same(problem.device.on_stream(problem.call), problem.call(), "a side stream")


def _two_streams(problem: Problem) -> None:
    other = replace(problem, seed=5)
    expected = [problem.call(), other.call()]
    found = problem.device.concurrently([problem.call, other.call], problem.repeats)
    for results, wanted in zip(found, expected, strict=True):
        for result in results:
            _same(result, wanted, "two streams at once")


def _no_waiting(problem: Problem) -> None:
    """A warm call neither makes the host wait nor asks the driver for memory."""
    for _ in range(2):
        problem.call()
    problem.device.synchronize()
    before = problem.device.allocations()
    with problem.device.no_waiting():
        problem.call()
    asked = problem.device.allocations() - before
    assert not asked, f"asked the driver for memory {asked} times"


CHECKS = {
    "repeats": _repeats,
    "graph": _graph,
    "side stream": _side_stream,
    "two streams": _two_streams,
    "no waiting": _no_waiting,
}


WAITS = {"p=2, labels": ("no waiting",)}
"""Checks that a rule leaves out: outside of a capture labels are looked at by the host."""


def _on(check: Callable[[Problem], None], op: type[Problem], *description: Any) -> None:
    check(op(*description))


PROBLEMS: dict[str, tuple[type[Problem], ...]] = {
    "sinkhorn": (Sinkhorn,),
    "mmd": (Mmd,),
    "gradients": (Distance, Norm, Step),
    "samples": (Samples, Projection),
    "means": (Characteristic,),
}
"""By what --ops of gpu.py calls them."""
ALL_WIDTHS = (Mmd,)
"""Whose calls go elsewhere at other widths; at toy size one is enough for the others."""


def graphs(device: Device, ops: Sequence[str]) -> Iterator[Check]:
    problems = [problem for name in PROBLEMS if name in ops for problem in PROBLEMS[name]]
    for op, columns, form in itertools.product(problems, (64, 7, 300), FORMS):
        if device.toy and columns != 7 and op not in ALL_WIDTHS:
            continue
        for rule, (name, check) in itertools.product(op.rules, CHECKS.items()):
            if name in WAITS.get(rule, ()):
                continue
            yield (
                f"{op.__name__.lower()}, {name}, D={columns}, {form}, {rule}",
                partial(_on, check, op, device, columns, form, rule),
            )


def _in_turns(*paths: Iterator[Any]) -> Iterator[Any]:
    return filter(None, itertools.chain.from_iterable(itertools.zip_longest(*paths)))


def sanitized(device: Device, ops: Sequence[str]) -> Iterator[Check]:
    """Of all ops in turns, so that a budget that ends has seen the commonest of each."""
    toy = device.toy
    gradients, samples = gpu_gradient_paths, gpu_sample_paths
    paths = {
        "sinkhorn": gpu_paths.transports(toy),
        "mmd": gpu_paths.sums(),
        "gradients": _in_turns(gradients.distances(toy), gradients.norms(toy), gradients.layers(toy)),
        "samples": _in_turns(samples.of_samples(toy), samples.of_projections(toy)),
        "means": samples.of_means(toy),
    }
    for name, call in _in_turns(*(paths[name] for name in paths if name in ops)):
        yield name, partial(call, device)


KINDS = {"sanitized": sanitized, "graphs": graphs}


def main(job: dict[str, Any], out: Path) -> int:
    """1 if a check failed. Checks for which no time is left are counted, not failed."""
    device = open_device(job["device"])
    torch.backends.cudnn.deterministic = True  # of a step, torch's convolutions must repeat themselves too
    if job["kind"] == "sanitized":
        # Under racecheck a convolution of its own, which is not looked at, failed to read its memory.
        torch.backends.cudnn.enabled = False
    report: dict[str, Any] = {"passed": 0, "failed": {}, "not_run": 0, "missing": list(device.missing)}
    for name, check in KINDS[job["kind"]](device, job["ops"]):
        if time.time() > job["until"]:
            report["not_run"] += 1
            continue
        try:
            check()
            device.synchronize()
            report["passed"] += 1
        except Exception as error:
            report["failed"][name] = f"{type(error).__name__}: {str(error)[:300]}"
        harness.write_json(out, report)
    harness.write_json(out, report)
    return 1 if report["failed"] else 0


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1]), Path(sys.argv[2])))
