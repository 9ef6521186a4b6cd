"""OTT-JAX as a contender. Its costs are squared distances: eps is doubled and results are halved."""

from __future__ import annotations

import math
import os
from typing import Any

import torch
from torch import Tensor

from contenders import Call
from sinkhorn_cases import BLUR, MARGINAL, MAX_ITERATIONS, Case, Potentials, diameter

ROWS = 1024
"""That are taken at a time where the matrix is too large."""


def _jax() -> Any:
    if torch.get_num_threads() == 1:
        os.environ.setdefault(
            "XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        )
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax

    return jax


def _solve_options(case: Case, largest: int) -> dict[str, Any]:
    fits = max(case.rows_x, case.rows_y) ** 2 <= largest
    return {"batch_size": None if fits else ROWS}


def build(
    largest: int, case: Case, x: Tensor, y: Tensor, static_x: bool = False, batch: bool = False
) -> Call:
    jax = _jax()
    import jax.numpy as jnp
    import numpy as np
    from ott.geometry.pointcloud import PointCloud
    from ott.tools.sinkhorn_divergence import sinkhorn_divergence

    eps = 2 * (BLUR * diameter(x, y)) ** 2
    options = _solve_options(case, largest)

    # The synthetic rows come first: it is the second side whose own term can be left out.
    def value(rows: Any, real: Any) -> Any:
        return sinkhorn_divergence(
            PointCloud,
            rows,
            real,
            epsilon=eps,
            static_b=static_x,
            solve_kwargs={"threshold": MARGINAL, "max_iterations": MAX_ITERATIONS},
            **options,
        )[0]

    function = jax.value_and_grad(value)
    shape = (case.groups, -1, case.columns) if case.groups else (-1, case.columns)
    fixed = jnp.asarray(x.numpy().reshape(shape))
    rows = y.detach().numpy().reshape(shape)
    compiled = jax.jit(jax.vmap(function) if batch else function)

    def call() -> tuple[Tensor, Tensor]:
        if case.groups and not batch:
            found = [compiled(part, real) for part, real in zip(rows, fixed, strict=True)]
            values, gradients = (
                np.stack([np.asarray(part) for part in parts]) for parts in zip(*found, strict=True)
            )
        else:
            values, gradients = (np.asarray(part) for part in compiled(rows, fixed))
        return torch.tensor(values), torch.tensor(gradients).reshape(y.shape)

    call()  # compilation is not what is timed
    return call


def potentials(largest: int, case: Case, x: Tensor, y: Tensor, group: int) -> Potentials:
    _jax()
    import jax.numpy as jnp
    import numpy as np
    from ott.geometry.pointcloud import PointCloud
    from ott.solvers import linear

    eps = 2 * (BLUR * diameter(x, y)) ** 2
    real, synthetic = (jnp.asarray(rows.numpy()) for rows in case.group(x, y, group))
    options = _solve_options(case, largest)
    cloud = PointCloud(synthetic, real, epsilon=eps, **options)
    solution = linear.solve(cloud, threshold=MARGINAL, max_iterations=MAX_ITERATIONS)
    # They contain the weights, which are uniform.
    g, f = (torch.tensor(np.asarray(part)) + eps * math.log(len(part)) for part in (solution.f, solution.g))
    return f / 2, g / 2
