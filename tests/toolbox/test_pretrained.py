"""A base model is trained once, comes out the same whether it was kept or not, and is shared."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from repro.data.base.modules import TextData
from repro.errors import UserError
from repro.models import Llama
from repro.records.files import exclusive_lock
from repro.toolbox.pretrained import Given, TrainedOnce, WeightsFile

CPU = torch.device("cpu")
RECIPE: dict[str, Any] = {"steps": 5, "batch_size": 4, "sequence_length": 8, "lr": 0.01}


@pytest.fixture
def data() -> TextData:
    stream = torch.tensor([1, 2, 3, 4, 0], dtype=torch.uint8).repeat(200)
    return TextData("cycle", lambda: dict.fromkeys(("train", "val", "test"), stream), vocab_size=5)


def decoder() -> Llama:
    return Llama(5, 8, 1, 2, mlp_width=8)


def weights(base: TrainedOnce, data: TextData, model: nn.Module | None = None) -> Tensor:
    model = model or decoder()
    base(model, data, CPU)
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def test_it_learns(data: TextData) -> None:
    model = decoder()
    TrainedOnce(**(RECIPE | {"steps": 60, "lr": 0.05}))(model, data, CPU)
    x_BT = data.streams["test"][:8].long()[None]
    assert model(x_BT)[0, -1].argmax() == data.streams["test"][8]


def test_kept_trained_anew_and_without_a_cache_are_equal(
    data: TextData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    alone = weights(TrainedOnce(**RECIPE), data)
    torch.rand(7)
    first = weights(TrainedOnce(**RECIPE, cache=tmp_path), data)
    monkeypatch.setattr(TrainedOnce, "_train", None)  # whoever trains now fails
    kept = weights(TrainedOnce(**RECIPE, cache=tmp_path), data)
    assert torch.equal(alone, first)
    assert torch.equal(first, kept)
    torch.manual_seed(5)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("change", [{"seed": 1}, {"lr": 0.02}, {"steps": 4}])
def test_another_recipe_is_another_model(
    data: TextData, tmp_path: Path, change: dict[str, float]
) -> None:
    first = weights(TrainedOnce(**RECIPE, cache=tmp_path), data)
    other = weights(TrainedOnce(**(RECIPE | change), cache=tmp_path), data)
    assert not torch.equal(first, other)
    assert len(list(tmp_path.glob("*.pt"))) == 2


def test_what_shapes_do_not_tell_is_another_model_too(data: TextData, tmp_path: Path) -> None:
    for theta in (10.0, 20.0):
        model = Llama(5, 8, 1, 2, mlp_width=8, rope_theta=theta)
        TrainedOnce(**RECIPE, cache=tmp_path)(model, data, CPU)
    assert len(list(tmp_path.glob("*.pt"))) == 2


def test_who_comes_while_another_trains_waits(data: TextData, tmp_path: Path) -> None:
    base = TrainedOnce(**RECIPE, cache=tmp_path)
    first = weights(base, data)
    (file,) = tmp_path.glob("*.pt")
    content = file.read_bytes()
    file.unlink()
    model = decoder()
    second = threading.Thread(target=base, args=(model, data, CPU))
    with exclusive_lock(file.with_suffix(".lock")):  # as if another process trained just now
        second.start()
        second.join(timeout=0.3)
        assert second.is_alive()
        assert not file.exists()
        file.write_bytes(content)
    second.join()
    assert torch.equal(first, nn.utils.parameters_to_vector(model.parameters()))


def test_a_damaged_file_is_made_anew(data: TextData, tmp_path: Path) -> None:
    first = weights(TrainedOnce(**RECIPE, cache=tmp_path), data)
    (file,) = tmp_path.glob("*.pt")
    file.write_bytes(file.read_bytes()[:100])
    assert torch.equal(first, weights(TrainedOnce(**RECIPE, cache=tmp_path), data))


def test_what_cannot_be_trained_is_one_line(data: TextData) -> None:
    with pytest.raises(UserError, match=r"Embedding.*reset_parameters|too few"):
        TrainedOnce(**(RECIPE | {"sequence_length": 5000}))(nn.Embedding(5, 5), data, CPU)
    with pytest.raises(UserError, match="Sequential has no reset_parameters"):
        TrainedOnce(**RECIPE)(nn.Sequential(), data, CPU)
    with pytest.raises(UserError, match="steps is a whole number of at least 1"):
        TrainedOnce(steps=0)


def test_a_given_model_stays_as_it_is(data: TextData) -> None:
    model = decoder()
    before = nn.utils.parameters_to_vector(model.parameters())
    Given()(model, data, CPU)
    assert torch.equal(before, nn.utils.parameters_to_vector(model.parameters()))


def test_weights_files(tmp_path: Path) -> None:
    model, other = nn.Linear(2, 3), nn.Linear(2, 3)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    WeightsFile("w.pth", root=tmp_path)(other, None, CPU)
    assert torch.equal(model.weight, other.weight)
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(model.state_dict(), tmp_path / "w.safetensors")
    WeightsFile(tmp_path / "w.safetensors")(nn.Linear(2, 3), None, CPU)
    with pytest.raises(UserError, match="not the weights of this model"):
        WeightsFile(tmp_path / "w.pth")(nn.Linear(9, 3), None, CPU)
    with pytest.raises(UserError, match=r"base\.file="):
        WeightsFile("none.pth", root=tmp_path)(other, None, CPU)


def test_weights_under_other_names_and_for_other_classes(tmp_path: Path) -> None:
    model, other = (nn.Sequential(nn.Linear(2, 3), nn.Linear(3, k)) for k in (4, 5))
    ours, theirs = dict(model.named_parameters()), dict(other.named_parameters())
    published = {f"features.{k}": v for k, v in model.state_dict().items()}
    torch.save(published, tmp_path / "w.pth")
    head = theirs["1.weight"].clone()
    WeightsFile(tmp_path / "w.pth", in_order=True, new_head=True)(other, None, CPU)
    assert torch.equal(theirs["0.weight"], ours["0.weight"])
    assert torch.equal(theirs["0.bias"], ours["0.bias"])
    assert torch.equal(theirs["1.weight"], head)
    with pytest.raises(UserError, match="not the weights of this model"):
        WeightsFile(tmp_path / "w.pth", in_order=True)(other, None, CPU)
    with pytest.raises(UserError, match="not the weights of this model"):
        WeightsFile(tmp_path / "w.pth", in_order=True)(nn.Linear(2, 3), None, CPU)


def test_weights_in_checkpoints_of_training_scripts(tmp_path: Path) -> None:
    """Layout of Places365's: under ``state_dict``, with a prefix, among other things."""
    model, other = nn.Linear(2, 3), nn.Linear(2, 3)
    weights = {f"module.{name}": value for name, value in model.state_dict().items()}
    checkpoint = {"epoch": 90, "arch": "resnet18", "state_dict": weights, "best_prec1": 54.2}
    torch.save(checkpoint, tmp_path / "w.pth.tar", _use_new_zipfile_serialization=False)
    WeightsFile("w.pth.tar", root=tmp_path)(other, None, CPU)
    assert torch.equal(model.weight, other.weight)


def test_a_file_runs_code_only_where_it_is_trusted(tmp_path: Path) -> None:
    model, other = nn.Linear(2, 3), nn.Linear(2, 3)
    torch.save({"state_dict": model.state_dict(), "more": Path("x")}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="trusted=true"):
        WeightsFile(tmp_path / "w.pth")(other, None, CPU)
    WeightsFile(tmp_path / "w.pth", trusted=True)(other, None, CPU)
    assert torch.equal(model.weight, other.weight)
