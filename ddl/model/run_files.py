"""Save and load a model as the files of a run directory: config.json, model.safetensors and snapshots."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddl.config import ConfigError, ModelConfig, from_mapping, to_mapping
from ddl.errors import UserError
from ddl.files import atomic, write_json
from ddl.layout import SNAPSHOT
from ddl.model.language_model import LanguageModel

# Keys of config.json that are not settings: transformers reads and writes them, and they do not affect the model.
TRANSFORMERS_KEYS = ("model_type", "architectures", "dtype", "transformers_version")


def read_settings(values: dict[str, Any], where: str) -> ModelConfig:
    """Read the model settings from the contents of a config.json.

    Raises:
        ConfigError: a key is unknown, missing or has an invalid value; the message begins with `where`.
    """
    return from_mapping(ModelConfig, {key: v for key, v in values.items() if key not in TRANSFORMERS_KEYS}, where)


class ModelFileError(UserError):
    """A run directory that does not contain a complete model."""


def save_model(model: LanguageModel, directory: Path) -> None:
    """Write `model.safetensors` and `config.json`, each whole or not at all."""
    save_weights(model.state_dict(), directory / "model.safetensors", format="pt")  # transformers asks for the format
    head: dict[str, Any] = {"model_type": "ddl", "architectures": ["DDLForCausalLM"]}
    write_json(directory / "config.json", head | to_mapping(model.config))


def save_weights(state: Mapping[str, Tensor], path: Path, **metadata: str) -> None:
    """Write the weights of a model as safetensors, whole or not at all.

    Equal weights give equal bytes if `metadata` has one entry; safetensors writes several in a random order.
    """
    from safetensors.torch import save  # imported here: a machine with PyTorch alone can still build and time models

    with atomic(path) as temporary:
        tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in state.items()}
        temporary.write_bytes(save(tensors, metadata=metadata))


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata that `save_weights` wrote; empty if the file is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except SafetensorError:
        return {}


def snapshot_steps(directory: Path) -> list[int]:
    """Steps of the snapshots in a run directory, in increasing order."""
    return sorted(int(path.stem.removeprefix("step")) for path in directory.glob("snapshots/step*.safetensors"))


def load_model(directory: Path, device: torch.device | str = "cpu", step: int | None = None) -> LanguageModel:
    """Read a model that `save_model` wrote, or its weights after an earlier step, from a snapshot.

    Raises:
        ModelFileError: a file is missing or damaged, or the weights do not fit the config.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    name = "model.safetensors" if step is None else SNAPSHOT.format(step=step)
    config_path, weights_path = directory / "config.json", directory / name
    for path in (config_path, weights_path):
        if not path.is_file():
            raise ModelFileError(f"{path}: not found, expected a trained model")
    try:
        model = LanguageModel(read_settings(json.loads(config_path.read_text()), str(config_path)))
        model.load_state_dict(load_file(weights_path))
    except ConfigError as error:
        raise ModelFileError(f"{config_path}: {str(error).removeprefix(f'{config_path}: ')}") from None
    except (ValueError, AttributeError) as error:  # not JSON, not UTF-8, or not an object
        raise ModelFileError(f"{config_path}: not a model config: {error}") from None
    except (SafetensorError, RuntimeError) as error:
        first, *others = (
            str(error).removeprefix("Error(s) in loading state_dict for LanguageModel:").strip().splitlines()
        )
        more = f" (and {len(others)} more)" if others else ""
        raise ModelFileError(f"{weights_path}: not the weights of {config_path.name}: {first}{more}") from None
    return model.to(device).eval()
