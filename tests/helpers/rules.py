"""Small fp64 models with every kind of residual rule, whose gates and targets differ between tokens."""

import torch

from ddl.config import ModelConfig
from ddl.model.language_model import LanguageModel

SHAPE = {"vocab_size": 64, "sequence_length": 12, "layers": 2, "width": 16, "heads": 2, "kernels": "reference"}
DESIGNS = {
    "baseline": {},
    "scalar": {"residual": "delta"},
    "expanded": {"residual": "delta", "value_channels": 4, "compressor": "cc", "embed_conv": True},
    "mlp direction": {"residual": "delta", "direction": "mlp", "value_input": "output"},
}
CONTROLS = {
    "write-only": {"residual": "delta", "value_channels": 4, "compressor": "cc", "erase": "none"},
    "separate gates": {"residual": "delta", "erase": "own"},
    "unnormalised write": {"residual": "delta", "erase": "none", "write": "unnormalised"},
    "fixed gate": {"residual": "delta", "gate": "fixed"},
    "additive erase": {"residual": "additive-erase"},
    "normalised branch": {"residual": "normalised"},
}


def model(design: str, seed: int = 0) -> LanguageModel:
    """A model with random parameters."""
    made = LanguageModel(ModelConfig(**SHAPE | (DESIGNS | CONTROLS)[design]), seed).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return made


def tokens(seed: int = 0, rows: int = 5) -> torch.Tensor:
    """Random ids, (rows, 12)."""
    return torch.randint(0, 64, (rows, 12), generator=torch.Generator().manual_seed(seed))
