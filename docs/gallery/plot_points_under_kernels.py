"""
Points under different kernels
==============================

Two hundred points start in one clump and follow the gradient of the squared MMD to a thousand points on two
half moons. The kernel decides what "alike" means: a bounded one sees a neighbourhood, the energy distance
sees all distances, the linear kernel nothing but the mean.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import make_moons

import decoct

real = torch.tensor(make_moons(1000, noise=0.05, random_state=0)[0], dtype=torch.float32)
start = 0.1 * torch.randn(200, 2, generator=torch.Generator().manual_seed(0))

kernels = {
    "gaussian": decoct.kernels.Gaussian(scales=(0.02, 0.1, 0.5)),
    "laplacian": "laplacian",
    "energy": "energy",
    "linear": "linear",
}


def follow(kernel, steps=300):
    """The points after so many steps, and the squared MMD they reached."""
    points = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([points], lr=0.03)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = decoct.mmd(real, points, kernel, 1.0)
        loss.backward()
        optimizer.step()
    return points.detach(), loss.item()


figure, axes = plt.subplots(1, len(kernels), figsize=(12, 3), sharex=True, sharey=True)
for axis, (name, kernel) in zip(axes, kernels.items(), strict=True):
    points, value = follow(kernel)
    axis.scatter(*real.T.numpy(), s=2, color="0.8")
    axis.scatter(*points.T.numpy(), s=6)
    axis.set_title(f"{name}\nsquared MMD {value:.1e}")
    axis.set_aspect("equal")
figure.tight_layout()
