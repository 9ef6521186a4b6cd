"""Condensed sets on disk: what is written comes back bit for bit, and other tools can load it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from decoct.condense import export

FILES = ["condensed.safetensors", "images.pt", "labels.pt", "lr.pt"]


def example() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(6, 1, 4, 4)
    x[0, 0, 0, 0] = -0.0
    return x, torch.arange(6) % 3


def test_round_trip_is_bitwise(tmp_path: Path) -> None:
    x, y = example()
    path = export.write(tmp_path / "new" / "folder", x, y, {"method": "mmd", "seed": 3}, initial=x + 1)
    assert path == tmp_path / "new" / "folder" / "condensed.safetensors"
    found = export.read(path.parent)
    assert torch.equal(found.x.view(torch.int32), x.view(torch.int32))
    assert torch.equal(found.y, y)
    assert found.initial is not None
    assert torch.equal(found.initial, x + 1)
    assert found.lr is None
    assert (found.metadata["method"], found.metadata["seed"]) == ("mmd", 3)
    assert found.metadata["versions"]["torch"] == torch.__version__
    assert found.metadata["hashes"] == {"x": export.tensor_hash(x), "y": export.tensor_hash(y)}
    assert found.metadata["lr_learned"] is False


def test_other_tools_load_plain_tensors(tmp_path: Path) -> None:
    x, y = example()
    export.write(tmp_path, x, y, {}, lr=torch.tensor(0.03, requires_grad=True))
    images, labels, lr = (
        torch.load(tmp_path / name, weights_only=True) for name in ("images.pt", "labels.pt", "lr.pt")
    )
    assert torch.equal(images, x)
    assert torch.equal(labels, y)
    assert lr.item() == pytest.approx(0.03)
    assert not lr.requires_grad
    assert export.read(tmp_path).lr == pytest.approx(0.03)
    assert export.read(tmp_path).metadata["lr_learned"] is True


def test_what_is_stored_stands_beside_what_is_decoded_from_it(tmp_path: Path) -> None:
    x, y = example()
    stored, labels = x[:2] + 1, y[:2]
    export.write(tmp_path, x, y, {}, stored=(stored, labels), initial=stored + 1)
    found = export.read(tmp_path)
    assert torch.equal(found.x, x)
    assert torch.equal(found.kept[0], stored)
    assert torch.equal(found.kept[1], labels)
    assert found.metadata["hashes"]["stored"] == export.tensor_hash(stored)
    images, kept, kept_labels = (
        torch.load(tmp_path / f"{name}.pt", weights_only=True)
        for name in ("images", "stored", "stored_labels")
    )
    assert torch.equal(images, x)
    assert torch.equal(kept, stored)
    assert torch.equal(kept_labels, labels)
    export.write(tmp_path / "plain", x, y, {})
    plain = export.read(tmp_path / "plain")
    assert plain.stored is None
    assert torch.equal(plain.kept[0], x)
    with pytest.raises(ValueError, match="stored must hold 2 labels"):
        export.write(tmp_path / "bad", x, y, {}, stored=(stored, y))
    with pytest.raises(ValueError, match=r"initial must be \(2, 1, 4, 4\) as what is stored is"):
        export.write(tmp_path / "bad", x, y, {}, stored=(stored, labels), initial=x)


def test_without_a_learned_rate_the_published_one_is_written(tmp_path: Path) -> None:
    export.write(tmp_path, *example(), {})
    assert torch.load(tmp_path / "lr.pt", weights_only=True).item() == pytest.approx(0.01)


def test_soft_labels_and_views(tmp_path: Path) -> None:
    wide = torch.randn(100, 8).requires_grad_()
    x, y = wide[::20, ::2], torch.rand(5, 3)
    export.write(tmp_path, x, y, {})
    assert torch.equal(export.read(tmp_path).x, x)
    assert torch.equal(export.read(tmp_path).y, y)
    # A view must not drag its whole storage along.
    assert len(torch.load(tmp_path / "images.pt", weights_only=True).untyped_storage()) == 5 * 4 * 4


def test_the_same_set_gives_the_same_file(tmp_path: Path) -> None:
    x, y = example()
    first = export.write(tmp_path / "a", x, y, {"b": 1, "a": 2}).read_bytes()
    assert export.write(tmp_path / "b", x, y, {"a": 2, "b": 1}).read_bytes() == first


def test_hashes_see_values_shape_and_dtype() -> None:
    x = torch.zeros(2, 3)
    others = [torch.zeros(3, 2), torch.zeros(2, 3, dtype=torch.int32), x + 1e-30, torch.zeros(2, 2)]
    assert export.tensor_hash(x) == export.tensor_hash(torch.zeros(3, 2).T)
    assert export.tensor_hash(x) not in {export.tensor_hash(other) for other in others}
    assert len(export.tensor_hash(torch.tensor(1.0))) == 64


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = example()
    export.write(tmp_path, x, y, {"run": 1})

    def broken(source: object, target: object) -> None:
        raise OSError("no")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="no"):
        export.write(tmp_path, x + 1, y, {"run": 2})
    assert sorted(os.listdir(tmp_path)) == FILES
    assert torch.equal(export.read(tmp_path).x, x)


def test_files_have_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    export.write(tmp_path, *example(), {})
    (tmp_path / "plain").write_bytes(b"")
    expected = (tmp_path / "plain").stat().st_mode
    assert {(tmp_path / name).stat().st_mode for name in FILES} == {expected}


def test_unusable_sets(tmp_path: Path) -> None:
    x, y = example()
    with pytest.raises(ValueError, match="y must have 6 rows as x has"):
        export.write(tmp_path, x, y[:5], {})
    with pytest.raises(ValueError, match="NaN or infinite"):
        export.write(tmp_path, x / 0, y, {})
    with pytest.raises(ValueError, match="initial must be"):
        export.write(tmp_path, x, y, {}, initial=x[:2])
    assert os.listdir(tmp_path) == []


def test_damaged_files(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(FileNotFoundError, match="no condensed set here"):
        export.read(tmp_path)
    path = export.write(tmp_path, *example(), {})
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    with pytest.raises(ValueError, match="not a condensed set"):
        export.read(tmp_path)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match="does not have the hash"):
        export.read(tmp_path)
    save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="not a condensed set"):
        export.read(tmp_path)
    save_file({"x": torch.zeros(2)}, path, metadata={"decoct": json.dumps({"format": 99})})
    with pytest.raises(ValueError, match="has format 99, this version reads format 1"):
        export.read(tmp_path)
