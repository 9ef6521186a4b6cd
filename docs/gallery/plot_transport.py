"""
Where the mass goes
===================

Entropic transport of one cloud to another that lies partly elsewhere. Each row's line ends at the mean of
where its mass goes, which is what moves the row in the gradient of the Sinkhorn divergence. A little blur
sends every row to a place of its own; a large one sends all to the same middle. With a reach, mass that would
have to go much further stays at home.
"""

import matplotlib.pyplot as plt
import torch
from matplotlib.collections import LineCollection

import decoct

generator = torch.Generator().manual_seed(0)
angle = 3.14 * torch.rand(150, generator=generator)
x = torch.stack([angle.cos(), angle.sin()], 1) + 0.05 * torch.randn(150, 2, generator=generator)
y = torch.stack([1 - angle.cos(), 0.5 - angle.sin()], 1) + 0.05 * torch.randn(150, 2, generator=generator)
y = torch.cat([y, torch.tensor([4.0, 0.0]) + 0.1 * torch.randn(20, 2, generator=generator)])

settings = {
    "blur 0.05": {"blur": 0.05},
    "blur 1": {"blur": 1.0},
    "blur 0.05, reach 0.5": {"blur": 0.05, "reach": 0.5},
}
figure, axes = plt.subplots(1, len(settings), figsize=(12, 3), sharex=True, sharey=True)
for axis, (name, options) in zip(axes, settings.items(), strict=True):
    solution = decoct.sinkhorn_potentials(x, y, **options, tol=1e-3)
    ends = decoct.apply_plan(x, y, y, solution, blur=options["blur"], normalize=True)
    axis.scatter(*x.T, s=6)
    axis.scatter(*y.T, s=6)
    axis.add_collection(LineCollection(torch.stack([x, ends], 1).numpy(), linewidths=0.4, colors="0.4"))
    axis.set_title(f"{name}: {float(solution.value):.3f}")
    axis.set_aspect("equal")
figure.tight_layout()

# %%
# The solution says how well it solves the problem: by what share of its mass a marginal is missed.

print(f"missed {float(solution.error):.1e} after {int(solution.iterations)} iterations")
