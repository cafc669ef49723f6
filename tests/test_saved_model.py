from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import engine.export
import engine.predict
from engine.export import ExportError, export_onnx
from engine.model import create_model
from engine.saved_model import SavedModel, SavedModelError, load_model, read_metadata, save_model

SAVED = SavedModel(
    model="cifar_resnet10",
    classes=("cat", 'dog, "big"', "Käfer"),
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    resolution=32,
    crop_fraction=0.95,
    arguments={"resolution": 32},
)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    model = create_model(SAVED.model, len(SAVED.classes), **SAVED.arguments)
    model.train()
    with torch.no_grad():
        model(torch.randn(16, 3, 32, 32))  # moves the batch-norm statistics away from their start
    return model.eval()


def test_what_is_saved_is_what_is_loaded(tmp_path: Path, model: nn.Module) -> None:
    save_model(tmp_path / "model.safetensors", model.to(memory_format=torch.channels_last), SAVED)
    for path in (tmp_path, tmp_path / "model.safetensors"):
        loaded, saved = load_model(path)
        assert saved == SAVED
        assert not loaded.training
        for (name, expected), (other, actual) in zip(
            model.state_dict().items(), loaded.state_dict().items(), strict=True
        ):
            assert name == other
            assert torch.equal(expected, actual)
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_metadata_survive_the_trip_through_strings() -> None:
    assert SavedModel.from_metadata(SAVED.to_metadata()) == SAVED


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, model, SAVED)
    before = path.read_bytes()

    def fail(*arguments: object, **options: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("safetensors.torch.save_model", fail)
    with pytest.raises(OSError, match="no space"):
        save_model(path, model, SAVED)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_a_wrapped_model_is_refused(tmp_path: Path, model: nn.Module) -> None:
    with pytest.raises(ValueError, match="not its wrapper"):
        save_model(tmp_path / "model.safetensors", nn.DataParallel(model), SAVED)


def test_files_that_are_no_saved_model_are_named(tmp_path: Path, model: nn.Module) -> None:
    file = tmp_path / "model.safetensors"
    with pytest.raises(SavedModelError, match=r"there is no .*model\.safetensors"):
        load_model(tmp_path)
    file.write_bytes(b"not a model")
    with pytest.raises(SavedModelError, match="no complete safetensors file"):
        load_model(tmp_path)
    save_file({"weight": torch.zeros(1)}, file)
    with pytest.raises(SavedModelError, match=r"was not saved by a run"):
        load_model(tmp_path)
    save_model(file, model, SAVED)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(SavedModelError):
        load_model(tmp_path)


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    save_model(tmp_path / "model.safetensors", nn.Linear(3, 3), SAVED)
    with pytest.raises(SavedModelError, match="does not fit cifar_resnet10"):
        load_model(tmp_path)


def test_metadata_are_read_without_the_weights(tmp_path: Path, model: nn.Module) -> None:
    save_model(tmp_path / "model.safetensors", model, SAVED)
    assert read_metadata(tmp_path / "model.safetensors").classes == SAVED.classes


def test_exported_models_take_any_batch_and_carry_their_classes(tmp_path: Path, model: nn.Module) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    difference = export_onnx(model, SAVED, tmp_path / "model.onnx")
    assert difference < 1e-3
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    images = torch.randn(7, 3, 32, 32)
    (logits,) = session.run(None, {"images": images.numpy()})
    np.testing.assert_allclose(logits, model(images).detach().numpy(), atol=1e-3)
    assert SavedModel.from_metadata(session.get_modelmeta().custom_metadata_map) == SAVED
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_a_missing_package_is_named_with_the_extra(
    tmp_path: Path, model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ExportError, match=r"pip install 'headrace\[onnx\]'"):
        export_onnx(model, SAVED, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("main", [engine.export.main, engine.predict.main])
def test_errors_are_one_line_and_code_2(
    tmp_path: Path, main: Callable[[], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [str(tmp_path / "nowhere"), str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["program", *(folders if main is engine.predict.main else folders[:1])])
    with pytest.raises(SystemExit) as ending:
        main()
    message = capsys.readouterr().err
    assert ending.value.code == 2
    assert message.startswith("error: there is no ")
    assert message.count("\n") == 1
