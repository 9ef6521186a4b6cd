"""Ways to compute a Sinkhorn divergence and its gradient by y: ours and the libraries of the field."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

import sinkhorn_ott as ott
import sinkhorn_peers as peers
from contenders import OURS, Call, Contender, differentiate
from sinkhorn_cases import BLUR, HUGE, MARGINAL, SCALING, Case, Potentials, diameter

OURS_KEPT = "decoct, costs kept"
OURS_NO_XX = "decoct, no real-real"
OURS_TOL = "decoct, to tol"
OURS_TOL_NO_XX = "decoct, to tol, no real-real"
COST_BUDGET = 256 * 2**20
LARGEST = 2 * HUGE
Solve = Callable[[Case, Tensor, Tensor, int], Potentials]


@dataclass(frozen=True)
class Solver(Contender):
    solve: Solve | None = None
    """Potentials of one problem."""
    setting: str = ""
    anneals: bool = False
    """Whether it keeps to the common schedule of eps; the others iterate at the last eps, until the marginals
    are met."""
    against: str = OURS
    """Which of ours does the same."""
    debias: bool = True
    dense: bool = False
    batch: bool = False
    options: tuple[tuple[str, Any], ...] = ()
    """Of ours, beside the common ones."""

    def record(self) -> dict[str, Any]:
        common = f"eps {BLUR**2:g} diameter^2, "
        falls = self.anneals or self.ours
        common += f"scaling {SCALING} from the diameter" if falls else "from the start"
        return super().record() | {
            "against": self.against,
            "anneals": self.anneals,
            "setting": f"{common}; {self.setting}" if self.setting else common,
            "cost_budget": dict(self.options).get("cost_budget", 0),
        }

    def too_large(self, case: Case) -> str:
        groups = max(case.groups, 1) if self.batch else 1
        pairs = groups * max(case.rows_x, case.rows_y) ** 2
        return f"matrices of {pairs:.1g} entries" if self.dense and pairs > LARGEST else ""

    def potentials(self, case: Case, x: Tensor, y: Tensor, group: int) -> Potentials:
        assert self.solve is not None
        with torch.no_grad():
            return self.solve(case, x, y, group)

    def counted(self, case: Case, x: Tensor, y: Tensor) -> dict[str, Any]:
        """Of ours: passes over the pairs, by the op's own count, and how it says that it ended."""
        if not self.ours:
            return {}
        import decoct

        settings = _settings(case, x, y, {k: v for k, v in self.options if k != "xx"})
        with torch.no_grad():
            solution = decoct.sinkhorn_potentials(x, y, **settings)
        found = {
            "passes": solution.iterations.double().mean().item(),
            "stated_error": solution.error.max().item(),
        }
        if "tol" in settings:
            found["of_neighbours"] = _of_neighbours(x, settings)
        return found

    @property
    def in_full(self) -> bool:
        """Whether float64 of the same call is what it is compared with where nothing else can be."""
        return self.name == OURS

    def in_float64(self, case: Case, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Value, gradient and potentials of the same call."""
        real, synthetic = x.double(), y.detach().double().requires_grad_()
        value, gradient = _ours(dict(self.options))(case, real, synthetic)()
        with torch.no_grad():
            return value, gradient, *_our_potentials(dict(self.options))(case, real, synthetic, 0)


# Ours.


def _settings(case: Case, x: Tensor, y: Tensor, options: dict[str, Any]) -> dict[str, Any]:
    width = diameter(x, y)
    settings = {"p": 2, "blur": BLUR * width, "scaling": SCALING, "diameter": width, **options}
    if case.groups:
        groups = torch.arange(case.groups + 1)
        settings |= {"x_offsets": groups * case.rows_x, "y_offsets": groups * case.rows_y}
    return settings


def _ours(options: dict[str, Any]) -> Callable[[Case, Tensor, Tensor], Call]:
    def build(case: Case, x: Tensor, y: Tensor) -> Call:
        import decoct

        settings = _settings(case, x, y, options)
        return differentiate(lambda: decoct.sinkhorn_divergence(x, y, **settings), y)

    return build


def passes(case: Case, x: Tensor, y: Tensor) -> float:
    """Over the pairs of a term, by the op's own count, for the schedule alone."""
    import decoct

    with torch.no_grad():
        solution = decoct.sinkhorn_potentials(x, y, **_settings(case, x, y, {}))
    return solution.iterations.double().mean().item()


def _our_potentials(options: dict[str, Any]) -> Solve:
    def solve(case: Case, x: Tensor, y: Tensor, group: int) -> Potentials:
        import decoct

        # Those of x with y, which the other terms have no part in.
        settings = _settings(case, x, y, options) | {"debias": False}
        settings.pop("xx", None)
        solution = decoct.sinkhorn_potentials(x, y, **settings)
        f, g = solution.f, solution.g
        n, m = case.rows_x, case.rows_y
        return f[group * n : (group + 1) * n], g[group * m : (group + 1) * m]

    return solve


def _of_neighbours(x: Tensor, settings: dict[str, Any]) -> float:
    """Divergence of rows from themselves in another order and a little moved, over the blunt value: where the
    terms cancel, and a solution that has not converged may go below 0."""
    import decoct

    rows = x[:1000]
    settings = {key: value for key, value in settings.items() if not key.endswith("offsets")}
    noise = torch.randn(rows.shape, generator=torch.Generator().manual_seed(1))
    moved = rows.flip(0) + noise * (1e-3 * settings["blur"])
    value = decoct.sinkhorn_divergence(rows, moved, **settings)
    blunt = decoct.sinkhorn_divergence(rows, moved, **(settings | {"debias": False}))
    return float(value / blunt)


def ours(name: str, **options: Any) -> Solver:
    build, solve = _ours(options), _our_potentials(options)
    setting = ", ".join(f"{key}={value}" for key, value in options.items())
    with_xx, anneals = options.get("xx") is not False, "tol" not in options
    return Solver(
        name,
        build,
        with_xx=with_xx,
        ours=True,
        solve=solve,
        anneals=anneals,
        setting=setting,
        options=tuple(options.items()),
    )


GEOMLOSS = ("GeomLoss tensorized", "GeomLoss online (KeOps)")
LOOPS = ("GeomLoss, loop", "POT, loop", "OTT, loop")
OUR_SOLVERS = [
    ours(OURS),
    ours(OURS_KEPT, cost_budget=COST_BUDGET),
    ours(OURS_NO_XX, xx=False),
    ours(OURS_TOL, tol=MARGINAL),
    ours(OURS_TOL_NO_XX, tol=MARGINAL, xx=False),
]
_geomloss_solver = partial(Solver, with_xx=True, anneals=True)
_fixed_eps = partial(Solver, with_xx=True, against=OURS_TOL, factor=0.5)
_by_norm = f"stopThr {MARGINAL:g} / sqrt(rows), checked every 10th iteration"
_pot_solver = partial(_fixed_eps, setting=_by_norm, dense=True)
_ott_solver = partial(_fixed_eps, setting=f"threshold {MARGINAL:g}, checked every 10th iteration")
DENSE = [
    *OUR_SOLVERS,
    _geomloss_solver(
        GEOMLOSS[0],
        partial(peers.geomloss, "tensorized"),
        solve=partial(peers.geomloss_potentials, "tensorized"),
        dense=True,
    ),
    _geomloss_solver(
        GEOMLOSS[1], partial(peers.geomloss, "online"), solve=partial(peers.geomloss_potentials, "online")
    ),
    _pot_solver("POT", peers.pot, solve=peers.pot_potentials),
    _ott_solver("OTT", partial(ott.build, LARGEST), solve=partial(ott.potentials, LARGEST)),
    _ott_solver(
        "OTT, no real-real",
        partial(ott.build, LARGEST, static_x=True),
        solve=partial(ott.potentials, LARGEST),
        with_xx=False,
        against=OURS_TOL_NO_XX,
    ),
]
RAGGED = [
    *OUR_SOLVERS,
    _geomloss_solver(
        LOOPS[0], peers.geomloss_loop, solve=partial(peers.geomloss_potentials, "tensorized"), dense=True
    ),
    _geomloss_solver(
        "GeomLoss, batch",
        peers.geomloss_batch,
        solve=partial(peers.geomloss_potentials, "tensorized"),
        dense=True,
        batch=True,
    ),
    _pot_solver(LOOPS[1], peers.pot, solve=peers.pot_potentials),
    _pot_solver("POT, batch", peers.pot_batch, solve=peers.pot_batch_potentials, batch=True),
    _ott_solver(LOOPS[2], partial(ott.build, LARGEST), solve=partial(ott.potentials, LARGEST)),
    _ott_solver(
        "OTT, vmap",
        partial(ott.build, LARGEST, batch=True),
        solve=partial(ott.potentials, LARGEST),
        dense=True,
        batch=True,
    ),
]


def contenders_for(case: Case) -> list[Solver]:
    """In the order of the tables; ours first."""
    return RAGGED if case.groups else DENSE
