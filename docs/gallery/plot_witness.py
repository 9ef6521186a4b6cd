"""
Where two samples differ
========================

The witness function of two samples is the difference of their mean embeddings. ``kernel_matvec`` evaluates it
anywhere without a kernel matrix: here on a grid, for a sample that lacks one of three clusters.
"""

import matplotlib.pyplot as plt
import torch

import decoct

generator = torch.Generator().manual_seed(0)
centres = torch.tensor([[-2.0, 0.0], [2.0, 0.0], [0.0, 2.5]])
whole = (centres[:, None] + 0.6 * torch.randn(3, 400, 2, generator=generator)).reshape(-1, 2)
part = (centres[:2, None] + 0.6 * torch.randn(2, 300, 2, generator=generator)).reshape(-1, 2)

side = torch.linspace(-4, 4, 160)
grid = torch.cartesian_prod(side, side)


def embedding(sample):
    return decoct.kernel_matvec(grid, sample, torch.full((len(sample),), 1 / len(sample)), bandwidth=0.5)


witness = (embedding(whole) - embedding(part)).reshape(160, 160).T.numpy()
value = decoct.mmd(whole, part, bandwidth=0.5)

bound = abs(witness).max()
figure, axis = plt.subplots(figsize=(5, 4))
image = axis.pcolormesh(side.numpy(), side.numpy(), witness, cmap="RdBu_r", vmin=-bound, vmax=bound)
axis.scatter(*part.T.numpy(), s=2, color="k", label="the sample that lacks a cluster")
axis.set_title(f"witness function; squared MMD {value:.3f}")
axis.legend(loc="lower right")
figure.colorbar(image)
figure.tight_layout()
