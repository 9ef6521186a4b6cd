"""Augmentation and networks: what condensation looks at its images through."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from decoct.augment import STRATEGIES, Augmentation
from decoct.networks import MLP, ConvNet, build, reset
from decoct.objectives import seeded


def apply(augmentation, strategy, x, numbers):
    """One strategy with the same draws for all rows."""
    return augmentation.apply(strategy, x, torch.tensor([numbers]).double(), torch.tensor([len(x)]))


def images(count=4, channels=1, side=8, dtype=torch.float32):
    return torch.randn(count, channels, side, side, generator=seeded(5), dtype=dtype)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_groups_parameters_are_shared_by_both_sides(strategy):
    augmentation = Augmentation((strategy,))
    view = augmentation.draw(3, seeded(7))
    x = images(1).expand(9, -1, -1, -1)
    real = view(x, torch.tensor([0, 4, 4, 9]))
    synthetic = view(x[:3], torch.tensor([0, 1, 1, 3]))
    for row in real[:4]:
        assert torch.equal(row, synthetic[0])
    for row in real[4:]:
        assert torch.equal(row, synthetic[1])
    if strategy != "flip":
        assert not torch.equal(real[0], real[4])
    assert not torch.equal(
        torch.cat([augmentation.draw(1, seeded(s))(x[:1], torch.tensor([0, 1])) for s in range(9)]), x
    )


def test_views_follow_their_generator_and_select_groups():
    augmentation = Augmentation(mode="all")
    x, groups = images(6), torch.tensor([0, 1, 3, 6])
    view = augmentation.draw(3, seeded(1))
    assert torch.equal(view(x, groups), augmentation.draw(3, seeded(1))(x, groups))
    assert not torch.equal(view(x, groups), augmentation.draw(3, seeded(2))(x, groups))
    picked = view.select([2])(x[3:], torch.tensor([0, 3]))
    assert torch.equal(picked, view(x, groups)[3:])
    assert torch.equal(Augmentation(()).draw(3, seeded(0))(x, groups), x)


def test_one_strategy_or_all_are_planned():
    one = Augmentation(("crop", "scale", "rotate")).draw(60, seeded(0))
    assert (one.applied.sum(dim=1) == 1).all()
    assert {STRATEGIES[place] for place in one.applied.nonzero()[:, 1]} == {"crop", "scale", "rotate"}
    everything = Augmentation(("rotate", "color"), "all").draw(2, seeded(0))
    assert [STRATEGIES[place] for place in everything.applied[0].nonzero()] == ["color", "rotate"]


@pytest.mark.parametrize("mode", ["one", "all"])
def test_a_view_of_many_groups_is_the_views_of_each(mode):
    """Rows are transformed together, whether their groups are of one size or not."""
    augmentation = Augmentation(STRATEGIES, mode, fill=0.5)
    x = images(24, 3)
    for sizes in ([4] * 6, [1] * 24, [0, 7, 1, 0, 12, 4], [24]):
        groups = torch.tensor([0, *sizes]).cumsum(0)
        view = augmentation.draw(len(sizes), seeded(4))
        expected = [
            view.select([group])(x[groups[group] : groups[group + 1]], torch.tensor([0, size]))
            for group, size in enumerate(sizes)
        ]
        torch.testing.assert_close(view(x, groups), torch.cat(expected))
    assert augmentation.draw(0, seeded(0))(x[:0], torch.tensor([0])).shape == (0, 3, 8, 8)


def test_crop_shifts_whole_pixels_and_fills():
    augmentation = Augmentation(crop=0.25, fill=-9.0)
    x = torch.arange(64.0).view(1, 1, 8, 8)
    shifted = apply(augmentation, "crop", x, (0.0, 0.99, 0.0))  # two rows up, two columns to the right
    expected = torch.full((8, 8), -9.0)
    expected[:6, 2:] = x[0, 0, 2:, :6]
    assert torch.equal(shifted[0, 0], expected)
    assert torch.equal(apply(augmentation, "crop", x, (0.5, 0.5, 0.0)), x)
    reached = {float(apply(augmentation, "crop", x, (k / 50, 0.5, 0.0))[0, 0, 4, 4]) for k in range(50)}
    assert reached == {36 + 8 * shift for shift in (-2, -1, 0, 1, 2)}


def test_cutout_blanks_a_square():
    x = torch.ones(2, 1, 8, 8)
    out = apply(Augmentation(cutout=0.5), "cutout", x, (0.5, 0.5, 0.0))
    assert (out == 0).sum() == 2 * 16
    assert (out[:, :, 2:6, 2:6] == 0).all()
    corner = apply(Augmentation(cutout=0.5, fill=3.0), "cutout", x, (0.0, 0.0, 0.0))
    assert (corner[:, :, :2, :2] == 3).all()
    assert (corner == 1).sum() == 2 * 60


def test_colour_changes_level_saturation_and_contrast():
    x = images(2, 3)
    out = apply(Augmentation(brightness=1.0, saturation=2.0, contrast=0.5), "color", x, (0.75, 0.25, 0.5))
    bright = x + 0.25
    grey = bright.mean(1, keepdim=True)
    faded = grey + 0.5 * (bright - grey)
    middle = faded.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(out, middle + (faded - middle) * 1.0)
    single = apply(
        Augmentation(), "color", x[:, :1], (0.5, 0.0, 0.5)
    )  # no change: one channel has no saturation
    torch.testing.assert_close(single, x[:, :1])


def test_flip_scale_and_rotation():
    x = images(2, 1, 9)
    augmentation = Augmentation(scale=2.0, rotate=90.0)
    assert torch.equal(apply(augmentation, "flip", x, (0.2, 0, 0)), x.flip(-1))
    assert torch.equal(apply(augmentation, "flip", x, (0.7, 0, 0)), x)
    torch.testing.assert_close(apply(augmentation, "rotate", x, (0.5, 0, 0)), x, atol=1e-5, rtol=0)
    turned = apply(augmentation, "rotate", x, (1.0, 0, 0))
    torch.testing.assert_close(turned, torch.rot90(x, 1, (2, 3)), atol=1e-4, rtol=0)
    same = (1 - 0.5) / (2 - 0.5)  # the draw for zoom 1
    torch.testing.assert_close(apply(augmentation, "scale", x, (same, same, 0)), x, atol=1e-5, rtol=0)
    near = apply(
        augmentation, "scale", torch.ones(1, 1, 8, 8), (1.0, same, 0)
    )  # zoom 2: the image at half its height
    torch.testing.assert_close(near.sum(2), torch.full((1, 1, 8), 4.0))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("fill", [0.0, -0.7])
def test_gradients_of_every_strategy(strategy, fill):
    view = Augmentation((strategy,), fill=fill).draw(2, seeded(3))
    x = images(3, 3, 5, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda rows: view(rows, torch.tensor([0, 1, 3])), (x,))


def test_augmentation_rejects_what_it_does_not_know():
    for options in ({"strategies": ("crop", "shear")}, {"mode": "some"}, {"scale": 0.5}):
        with pytest.raises(ValueError, match="Augmentation"):
            Augmentation(**options)
    view = Augmentation().draw(2, seeded(0))
    with pytest.raises(ValueError, match="images"):
        view(torch.zeros(4, 3), torch.tensor([0, 2, 4]))
    with pytest.raises(ValueError, match="3 offsets"):
        view(images(), torch.tensor([0, 4]))


@pytest.mark.parametrize(
    ("shape", "width", "features"),
    [((1, 8, 8), 64, 256), ((1, 28, 28), 128, 2048), ((3, 32, 32), 128, 2048)],
)
def test_convnet_sizes(shape, width, features):
    net = build("convnet", shape, 7, generator=seeded(0))
    assert isinstance(net, ConvNet)
    assert net.width == width
    assert net.feature_width == features
    x = torch.randn(2, *shape, generator=seeded(1))
    assert net.features(x).shape == (2, features)
    torch.testing.assert_close(net(x), net.classifier(net.features(x)))
    if shape == (3, 32, 32):
        assert sum(p.numel() for p in build("convnet", shape, 10).parameters()) == 320010


def test_mlp_is_the_composition_of_its_layers():
    net = build("mlp", (2, 3), 4, width=5, depth=1, generator=seeded(0))
    assert isinstance(net, MLP)
    x = torch.randn(3, 2, 3, generator=seeded(1))
    hidden = F.relu(F.linear(x.flatten(1), net.blocks[0].weight, net.blocks[0].bias))
    torch.testing.assert_close(net.features(x), hidden)
    assert net(x).shape == (3, 4)


def test_fresh_weights_follow_the_generator_and_torchs_distribution():
    net = build("convnet", (1, 12, 12), 3, generator=seeded(0))
    first = [p.clone() for p in net.parameters()]
    reset(net, seeded(1))
    assert not torch.equal(net.blocks[0].weight, first[0])
    reset(net, seeded(0))
    assert all(torch.equal(a, b) for a, b in zip(first, net.parameters(), strict=True))
    second = net.blocks[4]
    bound = 1 / math.sqrt(64 * 9)
    assert second.weight.abs().max() <= bound
    assert second.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    with pytest.raises(TypeError, match="PReLU"):
        reset(nn.Sequential(nn.PReLU()))


def test_networks_reject_impossible_shapes():
    with pytest.raises(ValueError, match="channels, height, width"):
        ConvNet((8, 8), 2)
    with pytest.raises(ValueError, match="to nothing"):
        ConvNet((1, 4, 4), 2, depth=3)
    with pytest.raises(ValueError, match="convnet, mlp"):
        build("resnet", (1, 8, 8), 2)
