"""Private condensation: the loop, resuming, and what a run's folder gives away."""

from __future__ import annotations

import json
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from decoct.__main__ import main
from decoct.condense import (
    Condenser,
    Phase,
    PretrainedNetwork,
    Synthetic,
    TrainedNetworks,
    checkpoint,
    export,
)
from decoct.condense.recipes import PRIVATE_METHODS, condenser, default_recipe, starting_set
from decoct.networks import build
from decoct.objectives import (
    CharacteristicMean,
    GradientMatch,
    GradientMean,
    PrivateSource,
    PublicSource,
    StatisticMatch,
    seeded,
)
from decoct.privacy import Accountant, BudgetSpent, Mechanism, epsilon_of
from decoct.tasks import load
from test_cli_condense import bad, files, here, write_npz  # noqa: F401  # here is a fixture
from toy import blobs

SHAPE = (1, 8, 8)
COUNTS = (20, 9, 14)
FAST = ["--quiet", "--steps", "4", "--eval-seeds", "2", "--epochs", "2", "--full-seeds", "1"]
NOISE = ["--noise-multiplier", "2", "--delta", "1e-3"]


def rows():
    data = blobs(COUNTS, side=8)
    return data.train_x, data.train_y


def loop(objective, source=None, *, steps=6, net=None, updates="joint", **options):
    synthetic = Synthetic.from_noise((2, 1, 3), SHAPE, seeded(1, "start"), lr=0.1)
    net = net or build("convnet", SHAPE, 3, width=4, depth=2, generator=seeded(0))
    pool = TrainedNetworks(net, keep=3, epochs=1, lr=0.05)
    source = source or PrivateSource(*rows(), noise_multiplier=1.0, sampling_rate=0.5)
    return Condenser(synthetic, source, [Phase(steps, objective)], pool=pool, updates=updates, **options)


OBJECTIVES = {
    "gradients": lambda: StatisticMatch(GradientMean(), "row_cosine"),
    "embedding": lambda: StatisticMatch(CharacteristicMean(32), once=True),
}


@pytest.mark.parametrize("updates", ["joint", "per_group"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_resumed_run_goes_on_with_the_charge_and_new_noise(name, updates, tmp_path):
    path = tmp_path / "checkpoint.pt"
    first = loop(OBJECTIVES[name](), updates=updates)
    first.run(path, until=4)
    state = checkpoint.load(path)
    assert state["private"] is True
    given = 4 if name == "gradients" else 1
    assert state["privacy"] == {"real": {"charges": [[1.0, 0.5, given]], "insecure": False}}
    results = []
    for seed in (1, 1):
        torch.manual_seed(seed)
        resumed = loop(OBJECTIVES[name](), updates=updates)
        resumed.load_state_dict(checkpoint.load(path))
        resumed.run()
        total = 6 if name == "gradients" else 1
        assert resumed.real["real"].accountant.charges() == {Mechanism(1.0, 0.5): total}
        results.append(resumed.synthetic.x.detach())
    # The answer that was kept is in the state, further ones are noised anew.
    assert torch.equal(*results) == (name == "embedding")


def test_another_noise_is_another_run():
    first = loop(OBJECTIVES["gradients"]())
    first.run(until=2)
    for options in ({"noise_multiplier": 1.1}, {"clip": 0.5}, {"sampling_rate": 0.4}):
        settings = {"noise_multiplier": 1.0, "sampling_rate": 0.5, **options}
        other = loop(OBJECTIVES["gradients"](), PrivateSource(*rows(), **settings))
        with pytest.raises(ValueError, match="another run's: private was"):
            other.load_state_dict(first.state_dict())
    public = loop(OBJECTIVES["gradients"](), PublicSource(*rows()))
    assert public.state_dict()["private"] is False
    with pytest.raises(ValueError, match="another run's: private was"):
        public.load_state_dict(first.state_dict())


def test_a_run_with_an_insecure_seed_equals_an_uninterrupted_one(tmp_path):
    def make():
        source = PrivateSource(*rows(), noise_multiplier=1.0, sampling_rate=0.5, insecure_seed=3)
        return loop(OBJECTIVES["gradients"](), source)

    whole, part, rest = make(), make(), make()
    whole.run()
    part.run(tmp_path / "checkpoint.pt", until=4)
    rest.load_state_dict(checkpoint.load(tmp_path / "checkpoint.pt"))
    rest.run()
    assert torch.equal(whole.synthetic.x, rest.synthetic.x)
    assert "not private" in str(whole.metadata()["private"])


def test_a_run_stops_before_the_step_that_would_exceed_epsilon(tmp_path):
    mechanism = Mechanism(1.0, 0.5)
    accountant = Accountant(epsilon_of({mechanism: 3}, 1e-3), 1e-3)
    source = PrivateSource(*rows(), noise_multiplier=1.0, sampling_rate=0.5, accountant=accountant)
    run = loop(OBJECTIVES["gradients"](), source)
    with pytest.raises(BudgetSpent, match="one more answer than the 3 given"):
        run.run(tmp_path / "checkpoint.pt")
    state = checkpoint.load(tmp_path / "checkpoint.pt")
    assert state["step"] == run.step_count == 3
    assert torch.equal(state["synthetic"]["x"], run.synthetic.x.detach())
    assert accountant.charges() == {mechanism: 3}


def test_whatever_needs_rows_is_refused():
    source = PrivateSource(*rows(), noise_multiplier=1.0)
    with pytest.raises(RuntimeError, match="shows no rows"):
        loop(GradientMatch(), source).run()
    with pytest.raises(RuntimeError, match="shows no rows"):
        Synthetic.from_source(source, (1, 1, 1), seeded(0))
    net = build("convnet", SHAPE, 3, width=4, depth=2)
    for pool in (
        PretrainedNetwork(net, epochs=1),
        TrainedNetworks(net, keep=2, train_on="real"),
    ):
        run = loop(OBJECTIVES["embedding"](), source)
        run.pool = pool
        with pytest.raises(RuntimeError, match="shows no rows"):
            run.run()
    norm = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    with pytest.raises(
        RuntimeError, match=r"BatchNorm2d takes its statistics .*; put GroupNorm in its place"
    ):
        loop(OBJECTIVES["gradients"](), source, net=norm).run()
    assert source.accountant.charges() == {Mechanism(1.0, 1.0): 1}  # of the embedding


def test_noised_gradients_still_teach():
    """With little noise the matching loss falls as it does without any."""
    data = blobs((300, 200, 250), side=8)
    finals = []
    for source in (
        PublicSource(data.train_x, data.train_y),
        PrivateSource(data.train_x, data.train_y, noise_multiplier=0.5, clip=1.0),
    ):
        losses = []
        run = loop(OBJECTIVES["gradients"](), source, steps=40, callback=lambda r: losses.append(r.loss))  # noqa: B023
        run.run()
        assert sum(losses[-9:]) < 0.9 * sum(losses[:9])
        finals.append(run.synthetic.x.detach().flatten())
    assert F.cosine_similarity(*finals, dim=0) > 0.5


@pytest.mark.parametrize("method", PRIVATE_METHODS)
@pytest.mark.parametrize("shape", [SHAPE, (1, 28, 28), (3, 32, 32), (6,)])
def test_recipes_run_with_and_without_noise(method, shape):
    x = torch.rand(24, *shape, generator=seeded(2)) * 2 - 1
    groups_of = torch.arange(24) % 3
    recipe = default_recipe(method, shape).replace(steps=2)
    assert recipe.init == "noise"
    for source in (PublicSource(x, groups_of), PrivateSource(x, groups_of, noise_multiplier=1.0)):
        start = torch.randn(5, *shape, generator=seeded(3))
        made = starting_set(recipe, start, (2, 1, 2))
        run = condenser(recipe, made, source, shape=shape, classes=3)
        run.run()
        assert torch.isfinite(run.synthetic.x).all()
        assert not torch.equal(run.synthetic.x, start)


# ---- command line


@pytest.mark.parametrize("method", PRIVATE_METHODS)
def test_from_data_to_report(here, capsys, method):  # noqa: F811
    write_npz("mine.npz", counts=(20, 16, 12))
    command = [
        "condense",
        "mine.npz",
        *FAST,
        "--method",
        method,
        "--ipc",
        "1,2",
        "--epsilon",
        "3",
        "--delta",
        "1e-3",
    ]
    assert main([*command, "--learners", "mlp"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    run = here / "runs" / f"mine-{method}-seed0"
    stated = float(re.search(r"Privacy: epsilon ([\d.]+) at delta 0.001 for all sets", out)[1])
    facts = json.loads((run / "run.json").read_text())
    recipe = facts["recipe"]
    answers = 2 if method == "dp-merf" else 8
    charged = epsilon_of({Mechanism(recipe["noise_multiplier"], recipe["sampling_rate"]): answers}, 1e-3)
    assert charged <= stated <= 3
    assert charged > 2.95
    assert facts["privacy"]["epsilon"] == stated
    assert facts["privacy"]["answers"] == answers
    assert f"({answers} answers with noise multiplier" in out
    for name in ("random", "k-means centroids", "herding", "full data", f"condensed, {method}"):
        assert name in out
    assert "are not written to the run's folder" in out
    assert out.count("Empirical, not a guarantee") == 4
    for count in (1, 2):
        found = export.read(run / f"ipc-{count}")
        assert found.metadata["private"] is True
        assert found.x.shape == (3 * count, 1, 8, 8)
        assert not torch.equal(found.x, found.initial)
        assert float(found.x.abs().max()) <= 1
    assert (
        main(["evaluate", str(run), "--quiet", "--learners", "nearest_neighbours", "--full-seeds", "0"]) == 0
    )
    assert "are not written to the run's folder" in capsys.readouterr().out


def test_the_folder_holds_nothing_of_the_real_rows(here):  # noqa: F811
    """No hash, no statistic, no row, and no result of training on rows without noise."""
    write_npz("mine.npz", counts=(20, 16, 12))
    assert (
        main(
            ["condense", "mine.npz", *FAST, "--method", "dp-merf", "--ipc", "2", *NOISE, "--learners", "mlp"]
        )
        == 0
    )
    run = here / "runs" / "mine-dp-merf-seed0"
    assert not (run / "trainings.jsonl").exists()
    results = json.loads((run / "results.json").read_text())
    assert {row["name"] for row in results["results"]["rows"]} == {"condensed, dp-merf"}
    assert "membership" not in results
    data = load("mine.npz")
    told = [
        *data.hashes().values(),
        repr(float(data.mean)),
        repr(float(data.std)),
        *map(repr, data.value_range),
    ]
    for path in (run / name for name in files(run)):
        content = path.read_bytes()
        for fact in told:
            assert fact.encode() not in content, (path, fact)
    text = (run / "report.html").read_text()
    assert "herding" not in text
    assert "full data" not in text
    facts = json.loads((run / "run.json").read_text())
    assert facts["data_hashes"] is None
    assert facts["normalisation"] == {"mean": [0.5], "std": [0.5]}

    def tensors(value):
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, dict):
            for item in value.values():
                yield from tensors(item)
        elif isinstance(value, (list, tuple)):
            for item in value:
                yield from tensors(item)

    real = load("mine.npz", bounds=(0.0, 1.0)).train_x.flatten(1)
    stored = [export.read(run / "ipc-2").x, export.read(run / "ipc-2").initial]
    stored += list(tensors(checkpoint.load(run / "ipc-2" / "checkpoint.pt")))
    for tensor in stored:
        if tensor.is_floating_point() and tensor.numel() % 64 == 0:
            assert float(torch.cdist(tensor.reshape(-1, 64).float(), real).min()) > 0.1


@pytest.mark.parametrize("method", PRIVATE_METHODS)
def test_a_leaked_folder_does_not_remove_the_noise(here, method):  # noqa: F811
    """Equal commands, and the replay of a stored state, give other noise; torch's stored state gives none."""
    write_npz("mine.npz", counts=(20, 16, 12))
    command = ["condense", "mine.npz", *FAST, "--method", method, "--ipc", "1", *NOISE, "--no-eval", "--out"]
    for out in ("first", "second"):
        torch.manual_seed(5)
        assert main([*command, out]) == 0
    first, second = (export.read(here / out / "ipc-1") for out in ("first", "second"))
    assert torch.equal(first.initial, second.initial)  # the seed is that of what is public
    assert not torch.equal(first.x, second.x)
    states = [checkpoint.load(here / out / "ipc-1" / "checkpoint.pt") for out in ("first", "second")]
    assert torch.equal(*(state["torch_rng"] for state in states))  # which the noise did not move
    for state in states:
        assert state["private"] is True
        assert sorted(state["privacy"]["real"]) == ["charges", "insecure"]
    text = (here / "first" / "run.json").read_text()
    assert "insecure_seed" not in text
    if method == "dp-merf":
        kept = [state["objectives"]["0._extra_state"] for state in states]
        assert not any(torch.equal(a, b) for a, b in zip(*kept, strict=True))
    # Whoever has the folder and the records sets torch's generators to all that is stored, and fails.
    source = PrivateSource(*rows(), noise_multiplier=1.0)
    answers = []
    for state in states:
        torch.set_rng_state(state["torch_rng"])
        answers.append(source.expect(CharacteristicMean(8), 1, seeded(0))[0])
    assert not torch.equal(*answers)


def test_no_noise_is_said_to_be_no_privacy(here, capsys):  # noqa: F811
    write_npz("mine.npz")
    command = ["condense", "mine.npz", *FAST, "--ipc", "1", "--no-eval", "--method", "dp-dc"]
    assert main([*command, "--noise-multiplier", "0"]) == 0
    out = capsys.readouterr().out
    assert "nothing about this run is private" in out
    assert "epsilon" not in out
    facts = json.loads((here / "runs" / "mine-dp-dc-seed0" / "run.json").read_text())
    assert "private" not in facts
    assert facts["data_hashes"]
    run = str(here / "runs" / "mine-dp-dc-seed0")
    assert main(["evaluate", run, "--quiet", "--seeds", "1", "--full-seeds", "0", "--membership"]) == 0
    stored = json.loads((here / run / "results.json").read_text())
    assert [attack["members"] for attack in stored["membership"]["ipc-1"]] == [39, 39]


def test_no_epsilon_is_claimed_without_a_delta_or_an_accountant(here, capsys, monkeypatch):  # noqa: F811
    from decoct import privacy

    def missing(module, extra="demo"):
        raise ImportError(f'{module} is not installed: pip install "decoct[{extra}]"', name=module)

    monkeypatch.setattr(privacy, "require", missing)
    privacy._epsilon.cache_clear()
    write_npz("mine.npz")
    command = ["condense", "mine.npz", *FAST, "--ipc", "1", "--no-eval", "--method", "dp-merf"]
    assert "decoct[private]" in bad(capsys, *command[1:], *NOISE)
    assert "decoct[private]" in bad(capsys, *command[1:], "--epsilon", "1", "--delta", "1e-3")
    assert files(here) == ["mine.npz"]
    assert main([*command, "--noise-multiplier", "2"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "no epsilon is claimed" in out
    assert not re.search(r"epsilon \d", out)
    facts = json.loads((here / "runs" / "mine-dp-merf-seed0" / "run.json").read_text())
    assert facts["privacy"]["epsilon"] == "none claimed"


def test_a_run_over_its_epsilon_stops_and_is_saved(here, capsys):  # noqa: F811
    write_npz("mine.npz")
    limit = epsilon_of({Mechanism(2.0, 0.5): 2}, 1e-3)
    options = ["--method", "dp-dc", "--sampling-rate", "0.5", "--ipc", "1", "--no-eval", *NOISE]
    said = bad(capsys, "mine.npz", *FAST, *options, "--epsilon", str(limit), "--out", "out")
    assert "one more answer than the 2 given would exceed epsilon" in said
    assert "step 2 of 4 is saved" in said
    assert checkpoint.load(here / "out" / "ipc-1" / "checkpoint.pt")["step"] == 2
    assert not (here / "out" / "ipc-1" / "condensed.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "dp-merf needs --epsilon and --delta, or --noise-multiplier"),
        (["--epsilon", "1"], "--epsilon needs --delta"),
        (["--epsilon", "0", "--delta", "1e-3"], "--epsilon must be positive"),
        (["--epsilon", "1", "--delta", "0.1"], "--delta must be positive and below 1/39"),
        (["--noise-multiplier", "-1"], "--noise-multiplier must not be negative"),
        (["--noise-multiplier", "0", "--delta", "1e-3"], "adds no noise"),
        ([*NOISE, "--init", "kmeans"], "--init must be noise .* real rows would be published"),
        ([*NOISE, "--bandwidth", "median"], "--bandwidth must be a number"),
        ([*NOISE, "--range", "1,0"], "LOW below HIGH"),
        ([*NOISE, "--range", "1"], "must be LOW,HIGH"),
        ([*NOISE, "--clip", "0"], "clip must be positive"),
        ([*NOISE, "--sampling-rate", "0"], "sampling_rate must be in"),
        ([*NOISE, "--augment", "flip"], "--augment must be none with --method dp-merf"),
        (["--method", "mmd", *NOISE], "--noise-multiplier belongs to --method dp-dc or dp-merf"),
        (["--method", "dc", "--clip", "1"], "--clip belongs to --method dp-dc or dp-merf, got --method dc"),
        (["--method", "dp-dc", *NOISE, "--frequencies", "3"], "--frequencies belongs to"),
    ],
)
def test_bad_arguments_are_one_line_and_leave_nothing(here, capsys, arguments, says):  # noqa: F811
    write_npz("mine.npz", counts=(20, 16, 12))
    chosen = [] if "--method" in arguments else ["--method", "dp-merf"]
    assert re.search(says, bad(capsys, "mine.npz", *FAST, "--ipc", "1", *chosen, *arguments))
    assert files(here) == ["mine.npz"]


def test_tables_need_public_bounds(here, capsys):  # noqa: F811
    write_npz("mine.npz", shape=(5,))
    command = ["condense", "mine.npz", *FAST, "--ipc", "1", "--method", "dp-dc", "--no-eval", *NOISE]
    assert "--range LOW,HIGH must be given for tables" in bad(capsys, *command[1:])
    assert main([*command, "--range=-1,3"]) == 0
    facts = json.loads((here / "runs" / "mine-dp-dc-seed0" / "run.json").read_text())
    assert facts["source"]["bounds"] == [-1, 3]
    assert facts["normalisation"] == {"mean": [1.0] * 5, "std": [2.0] * 5}


def test_public_bounds_clip_and_scale(here):  # noqa: F811
    write_npz("mine.npz")
    data = load("mine.npz", bounds=(0.1, 0.5))
    plain = load("mine.npz")
    for mine, theirs in ((data.train_x, plain.train_x), (data.test_x, plain.test_x)):
        expected = (plain.denormalise(theirs).clamp(0.1, 0.5) - 0.3) / 0.2
        torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-5)
        assert float(mine.abs().max()) == pytest.approx(1)
    assert data.value_range == (0.1, 0.5)
    assert torch.equal(data.train_y, plain.train_y)
    assert torch.equal(load(**data.source).train_x, data.train_x)
    for wrong in ((1.0, 0.0), (0.0, float("inf"))):
        with pytest.raises(ValueError, match="bounds must be finite, the lower first"):
            load("mine.npz", bounds=wrong)
