"""Save and load a model as the files of a run directory: config.json and model.safetensors."""

import json
from pathlib import Path
from typing import Any

import torch

from ddl.config import ConfigError, ModelConfig, from_mapping, to_mapping
from ddl.errors import UserError
from ddl.files import atomic, write_json
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
    from safetensors.torch import save  # imported here: a machine with PyTorch alone can still build and time models

    with atomic(directory / "model.safetensors") as temporary:
        state = {name: tensor.detach().contiguous().cpu() for name, tensor in model.state_dict().items()}
        temporary.write_bytes(save(state, metadata={"format": "pt"}))
    head: dict[str, Any] = {"model_type": "ddl", "architectures": ["DDLForCausalLM"]}
    write_json(directory / "config.json", head | to_mapping(model.config))


def load_model(directory: Path, device: torch.device | str = "cpu") -> LanguageModel:
    """Read a model that `save_model` wrote.

    Raises:
        ModelFileError: a file is missing or damaged, or the weights do not fit the config.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config_path, weights_path = directory / "config.json", directory / "model.safetensors"
    for path in (config_path, weights_path):
        if not path.is_file():
            raise ModelFileError(f"{path}: not found, expected a trained model")
    try:
        model = LanguageModel(read_settings(json.loads(config_path.read_text()), str(config_path)))
        model.load_state_dict(load_file(weights_path))
    except (json.JSONDecodeError, AttributeError) as error:
        raise ModelFileError(f"{config_path}: not a model config: {error}") from None
    except ConfigError as error:
        raise ModelFileError(str(error)) from None
    except (SafetensorError, RuntimeError) as error:
        raise ModelFileError(f"{weights_path}: not the weights of {config_path.name}: {str(error).strip()}") from None
    return model.to(device).eval()
