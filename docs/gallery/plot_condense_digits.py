"""
Condensing from Python
======================

What ``decoct condense digits`` does, in small: three images a digit start as random real ones and follow the
squared MMD of random networks' features, freshly drawn at each step, to their class.
"""

import matplotlib.pyplot as plt

from decoct.condense import Condenser, FreshNetworks, Phase, Synthetic
from decoct.kernels import Gaussian
from decoct.networks import build
from decoct.objectives import MMD, Identity, Match, NetFeatures, PublicSource, counts_to_offsets
from decoct.tasks import compare, load, random_rows

dataset = load("digits")
counts = [3] * 10
start, labels = random_rows(dataset, counts, seed=0)

# An objective is a sum of terms. Each compares real and synthetic rows, class by class, in some features.
discrepancy = MMD(Gaussian(scales=(0.25, 0.5, 1, 2, 4)))
objective = Match(discrepancy, NetFeatures(), name="network") + 0.1 * Match(
    discrepancy, Identity(), name="pixels"
)

loop = Condenser(
    Synthetic(start, counts_to_offsets(counts), lr=3.0),
    PublicSource(dataset.train_x, dataset.train_y, group_count=10),
    [Phase(60, objective, batch_real=64)],
    pool=FreshNetworks(build("convnet", dataset.shape, 10)),
)
loop.run()
images, _ = loop.synthetic.rows()

# %%
# Both sets are judged alike: a learner trained from scratch, accuracy on the test split.

sets = {"random": [(start, labels)], "condensed": [(images, labels)]}
accuracy = {row.name: row.mean for row in compare(dataset, sets, ["nearest_neighbours"]).rows}

figure = plt.figure(figsize=(8, 5.4))
for part, (name, rows) in zip(
    figure.subfigures(2, 1), (("random", start), ("condensed", images)), strict=True
):
    part.suptitle(f"{name}: nearest neighbour {accuracy[name]:.1f} % correct", fontsize=10)
    axes = part.subplots(3, 10)
    for number, image in enumerate(rows.numpy()):
        axis = axes[number % 3, number // 3]
        axis.imshow(image[0], cmap="gray_r")
        axis.set_axis_off()
