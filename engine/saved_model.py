"""A trained model in one file: weights and all that is needed to use them, in safetensors.

The file's metadata hold the classes, the normalization, the evaluation resolution and how to create the model, so that
prediction needs nothing but the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open

from engine.model import create_model
from loaders.files import atomic_file

FILE_NAME = "model.safetensors"
_FORMAT = "headrace-1"


class SavedModelError(ValueError):
    """A file that is missing, damaged or not a model saved by ``save_model``; the message names it."""


@dataclass(frozen=True)
class SavedModel:
    """What is known about a saved model besides its weights.

    Attributes:
        model: name, as ``engine.model.create_model`` takes it.
        classes: names, in the order of the model's outputs.
        mean, std: of the normalization, for pixels in 0..1, one number for each of red, green and blue.
        resolution: side of the images it is evaluated at, pixels.
        crop_fraction: side of the centered square that is evaluated over the image's shorter side.
        arguments: further keyword arguments of ``create_model`` that the architecture depends on.
    """

    model: str
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resolution: int
    crop_fraction: float = 1.0
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def to_metadata(self) -> dict[str, str]:
        """Return the metadata of the file: every field as JSON."""
        return {"format": "pt", "saved_by": _FORMAT, **{key: json.dumps(value) for key, value in asdict(self).items()}}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> SavedModel:
        """Undo ``to_metadata``.

        Raises:
            KeyError, ValueError: these are not its metadata.
        """
        if metadata["saved_by"] != _FORMAT:
            raise ValueError(f"it is of another format, {metadata['saved_by']!r}")
        values: dict[str, Any] = {one.name: json.loads(metadata[one.name]) for one in fields(cls)}
        return cls(**values | {name: tuple(values[name]) for name in ("classes", "mean", "std")})


def save_model(path: Path, model: torch.nn.Module, metadata: SavedModel) -> None:
    """Save a model's weights and buffers, replacing the file whole.

    Args:
        path: the file to write.
        model: on any device; not wrapped for compilation or several processes, which rename its parameters.
        metadata: how to create and use it.

    Raises:
        ValueError: the model is wrapped.
    """
    wrapped = [name for name in model.state_dict() if name.startswith(("_orig_mod.", "module."))]
    if wrapped:
        raise ValueError(f"save the model itself, not its wrapper: it has a parameter {wrapped[0]!r}")
    with atomic_file(path) as temporary:
        safetensors.torch.save_model(model, str(temporary), metadata.to_metadata())


def load_model(path: Path, device: torch.device | str = "cpu") -> tuple[torch.nn.Module, SavedModel]:
    """Load a model for evaluation.

    Args:
        path: the file, or the run directory that holds it.
        device: where to put the model.

    Returns:
        The model in evaluation mode, and what is known about it.

    Raises:
        SavedModelError: there is no such file, or it is damaged or of another kind.
    """
    file = path / FILE_NAME if path.is_dir() else path
    saved = read_metadata(file)
    model = create_model(saved.model, len(saved.classes), **saved.arguments)
    try:
        safetensors.torch.load_model(model, str(file))
    except (RuntimeError, SafetensorError) as error:
        raise SavedModelError(f"{file} does not fit {saved.model}: {error}") from error
    return model.to(device).eval(), saved


def read_metadata(file: Path) -> SavedModel:
    """Return what is known about a saved model without loading its weights.

    Raises:
        SavedModelError: there is no such file, or it is damaged or of another kind.
    """
    if not file.is_file():
        raise SavedModelError(f"there is no {file}: name a run directory or a model.safetensors")
    try:
        with safe_open(str(file), "pt") as opened:
            metadata = opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise SavedModelError(f"{file} is no complete safetensors file: {error}") from error
    try:
        return SavedModel.from_metadata(metadata)
    except (KeyError, ValueError, TypeError) as error:
        raise SavedModelError(f"{file} was not saved by a run of engine.train: {error}") from error
