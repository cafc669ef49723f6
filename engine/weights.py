"""Start weights from a file: safetensors, a PyTorch state dict, or a training checkpoint."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from timm.models import clean_state_dict
from torch import Tensor, nn

# Where checkpoints keep the weights; averaged ones first, as they are the better start.
_STATE_DICT_KEYS = ("state_dict_ema", "model_ema", "ema", "state_dict", "model")


class ModelError(ValueError):
    """A model that cannot be made, or weights that do not fit it; the message says what to do."""


@dataclass(frozen=True)
class WeightsReport:
    """What became of the weights of a file.

    Attributes:
        loaded: names of the parameters and buffers that were set.
        fresh: those the file does not fit, left as initialized.
        ignored: names in the file that the model has no use for.
    """

    loaded: tuple[str, ...]
    fresh: tuple[str, ...]
    ignored: tuple[str, ...]

    def __str__(self) -> str:
        text = f"{len(self.loaded)} tensors loaded"
        if self.fresh:
            text += f"; left as initialized: {', '.join(self.fresh)}"
        if self.ignored:
            text += f"; ignored in the file: {', '.join(self.ignored)}"
        return text


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read the weights from a file, onto the CPU.

    Checkpoints are unwrapped, averaged weights preferred to plain ones, and the prefixes that wrappers for several
    processes and compilation give to names are removed.

    Raises:
        ModelError: the file is missing or damaged, holds no weights, or needs more than tensors to be unpickled.
    """
    if not path.is_file():
        raise ModelError(f"--weights: there is no file {path}")
    if path.suffix == ".safetensors":
        try:
            return clean_state_dict(safetensors.torch.load_file(path))
        except SafetensorError as error:
            raise ModelError(f"--weights: {path} is no complete safetensors file: {error}") from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"--weights: {path} is damaged, or holds Python objects, which are not loaded because they can run any "
            f"code; save a state dict alone, or safetensors. ({str(error).splitlines()[0]})"
        ) from error
    except Exception as error:  # torch.load raises whatever a damaged file makes its parsers raise
        raise ModelError(f"--weights: {path} cannot be read: {error}") from error
    while isinstance(content, Mapping):
        nested = next((content[key] for key in _STATE_DICT_KEYS if isinstance(content.get(key), Mapping)), None)
        if nested is None:
            break
        content = nested
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        raise ModelError(f"--weights: {path} holds no state dict")
    return clean_state_dict({name: value for name, value in content.items() if isinstance(value, Tensor)})


def load_weights(model: nn.Module, state: Mapping[str, Tensor], source: str) -> WeightsReport:
    """Copy weights into the model; a classifier made for other classes is left as initialized.

    Names and shapes must agree apart from the classifier's. Weights in a model's published format, or made for another
    input size, are converted where timm has a conversion for the architecture.

    Args:
        model: the model; timm's ``pretrained_cfg["classifier"]`` tells which layer classifies.
        state: weights by name.
        source: where they come from, for messages.

    Raises:
        ModelError: other weights are missing, unknown or of another shape.
    """
    report, problems = _compare(model, state)
    if problems:
        convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
        if convert is not None:
            state = convert(dict(state), model)
            report, problems = _compare(model, state)
    if problems:
        shown = "\n  ".join(problems[:12] + ([f"and {len(problems) - 12} more"] if len(problems) > 12 else []))
        raise ModelError(f"--weights: {source} does not fit the model:\n  {shown}")
    model.load_state_dict({name: state[name] for name in report.loaded}, strict=False)
    return report


def _compare(model: nn.Module, state: Mapping[str, Tensor]) -> tuple[WeightsReport, list[str]]:
    """Return what would be loaded, and what stands against it."""
    target = model.state_dict()
    in_classifier = _classifier_prefixes(model)
    loaded, fresh, problems = [], [], []
    for name, value in target.items():
        if name in state and state[name].shape == value.shape:
            loaded.append(name)
        elif name.startswith(in_classifier) or (name not in state and name.endswith("num_batches_tracked")):
            fresh.append(name)
        elif name in state:
            problems.append(f"{name} is {tuple(state[name].shape)}, the model's {tuple(value.shape)}")
        else:
            problems.append(f"{name} is missing")
    unknown = [name for name in state if name not in target]
    ignored = [name for name in unknown if name.startswith(in_classifier)]
    problems += [f"{name} is not in the model" for name in unknown if not name.startswith(in_classifier)]
    return WeightsReport(tuple(loaded), tuple(fresh), tuple(ignored)), problems


def _classifier_prefixes(model: nn.Module) -> tuple[str, ...]:
    config: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    names = config.get("classifier") or ()
    return tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))
