"""Export a trained model: ``python -m engine.export RUN --onnx FILE``.

The graph takes what the model takes, float32 (batch, 3, resolution, resolution) normalized with the saved mean and
standard deviation, and returns logits (batch, num_classes); the batch is free. Normalization and classes travel as the
file's metadata, under the names they have in model.safetensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro

from engine.command import fail
from engine.saved_model import SavedModel, SavedModelError, load_model
from loaders.files import atomic_file

_TOLERANCE = 1e-3  # of the largest logit: other kernels sum in another order


class ExportError(RuntimeError):
    """The export is not possible here, or the exported model does not compute what the model computes."""


@dataclass(frozen=True)
class Options:
    """Export a trained model to ONNX, and check with ONNX Runtime that it computes the same."""

    run: tyro.conf.Positional[Path]
    """Run directory, or a model.safetensors."""
    onnx: Path | None = None
    """The file to write; by default model.onnx beside the model."""


def export_onnx(model: torch.nn.Module, saved: SavedModel, path: Path) -> float:
    """Write a model as ONNX and check it.

    Args:
        model: in evaluation mode, on the CPU.
        saved: what is known about it.
        path: the file to write; replaced whole, once it has passed the check.

    Returns:
        The largest difference of a logit to the model's, over batches of 1 and 3.

    Raises:
        ExportError: a package is missing, the model cannot be exported, or the results differ.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  (torch.onnx needs it)
    except ImportError as error:
        raise ExportError(f"{error.name} is not installed: pip install 'headrace[onnx]'") from error

    example = torch.randn(2, 3, saved.resolution, saved.resolution, generator=torch.Generator().manual_seed(0))
    with atomic_file(path) as temporary:
        try:
            program = torch.onnx.export(
                model,
                (example,),
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                dynamo=True,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise ExportError(f"{saved.model} cannot be exported: {error}") from error
        assert program is not None
        proto = program.model_proto
        onnx.helper.set_model_props(proto, saved.to_metadata())
        onnx.save_model(proto, str(temporary))
        session = onnxruntime.InferenceSession(str(temporary), providers=["CPUExecutionProvider"])
        return max(_difference(model, session, example[:1]), _difference(model, session, example[[0, 1, 0]]))


def _difference(model: torch.nn.Module, session: object, images: torch.Tensor) -> float:
    with torch.inference_mode():
        expected = model(images).numpy()
    (actual,) = session.run(["logits"], {"images": images.numpy()})  # type: ignore[attr-defined]
    difference, largest = (float(np.abs(values).max()) for values in (actual - expected, expected))
    if not difference <= _TOLERANCE * max(1.0, largest):
        raise ExportError(f"the exported model differs by up to {difference:.2g} in logits of up to {largest:.2g}")
    return difference


def main() -> None:
    options = tyro.cli(Options, prog="python -m engine.export")
    beside = options.run if options.run.is_dir() else options.run.parent
    path = options.onnx or beside / "model.onnx"
    try:
        model, saved = load_model(options.run)
        difference = export_onnx(model, saved, path)
    except (SavedModelError, ExportError, OSError) as error:
        fail(error)
    print(
        f"{path}: {saved.model}, {len(saved.classes)} classes, {saved.resolution} px; "
        f"logits within {difference:.1g} of PyTorch's"
    )


if __name__ == "__main__":
    main()
