"""Measure the gradient error from rebuilding states: `python benchmarks/gradient_error.py --csv gradient_error.csv`.

Models with 12 and 24 layers are trained for some steps on random tokens. Then the gradient of the loss is computed with
stored and with rebuilt states, in three precisions: fp32, bf16 autocast with the state in fp32, and bf16 autocast with
the state in bf16. The reference is the gradient of the same model by plain autograd in fp64. A row contains the error
|g - g64| / |g64| over all parameters, and the median of this error over the parameter tensors.
"""

import argparse
import csv
import dataclasses
import statistics
from pathlib import Path

import torch
from torch import Tensor

from ddl.config import ModelConfig, from_mapping, load_variants
from ddl.model.language_model import LanguageModel
from ddl.provenance import provenance

ARITHMETIC = {  # name -> bf16 autocast, dtype of the state
    "fp32": (False, "parameters"),
    "bf16, state in fp32": (True, "parameters"),
    "bf16, state in bf16": (True, "bfloat16"),
}


def gradient(config: ModelConfig, weights: dict[str, Tensor], ids: Tensor, autocast: bool, dtype: torch.dtype) -> dict:
    """Parameter name -> gradient of the loss, in fp64."""
    model = LanguageModel(config).to(dtype)
    model.load_state_dict(weights)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model.loss(ids[:, :-1], ids[:, 1:])
    loss.backward()
    return {name: parameter.grad.double() for name, parameter in model.named_parameters()}


def trained_weights(config: ModelConfig, ids: Tensor, steps: int) -> dict[str, Tensor]:
    """Weights after a few training steps, so that gates and compressors have moved from their initial values."""
    model = LanguageModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(steps):
        optimizer.zero_grad()
        loss = model.loss(ids[:, :-1], ids[:, 1:])
        loss.backward()
        optimizer.step()
        print(f"\r  step {step + 1}/{steps}: loss {loss.item():.3f}", end="", flush=True)
    print()
    return model.state_dict()


def errors(got: dict[str, Tensor], exact: dict[str, Tensor]) -> tuple[float, float]:
    """Relative error over all parameters, and the median over the parameter tensors."""
    difference = sum((got[name] - exact[name]).square().sum() for name in exact)
    total = sum(value.square().sum() for value in exact.values())
    each = [((got[name] - exact[name]).norm() / exact[name].norm()).item() for name in exact]
    return (difference / total).sqrt().item(), statistics.median(each)


def main(argv: list[str] | None = None) -> None:
    """Run the command line; see the module docstring."""
    parser = argparse.ArgumentParser(description="Gradient error of stored and rebuilt states.")
    parser.add_argument("--csv", type=Path, required=True, help="append the rows to this file")
    parser.add_argument("--variants", nargs="+", default=["ddl-dv1", "ddl-cc", "ddl-tc"], choices=list(load_variants()))
    parser.add_argument("--layers", nargs="+", type=int, default=[12, 24])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--steps", type=int, default=50, help="training steps before the measurement (50)")
    args = parser.parse_args(argv)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 512, (4, 129), generator=generator)
    source, rows = provenance(), []
    for layers in args.layers:
        for variant in args.variants:
            shape = {"vocab_size": 512, "sequence_length": 128, "layers": layers, "width": args.width, "heads": 4}
            config = from_mapping(ModelConfig, shape | load_variants()[variant].model, "gradient_error")
            print(f"{variant}, {layers} layers", flush=True)
            weights = trained_weights(config, ids, args.steps)
            reference = dataclasses.replace(config, kernels="reference")
            exact = gradient(reference, weights, ids, autocast=False, dtype=torch.float64)
            for name, (autocast, state_dtype) in ARITHMETIC.items():
                for memory in ("stored", "rebuilt"):
                    mode = dataclasses.replace(config, state_dtype=state_dtype, state_memory=memory)
                    whole, typical = errors(gradient(mode, weights, ids, autocast, torch.float32), exact)
                    print(f"  {name}, {memory}: {whole:.2e}, median tensor {typical:.2e}", flush=True)
                    row = {"variant": variant, "layers": layers, "width": args.width, "steps": args.steps}
                    row |= {"arithmetic": name, "states": memory, "error": whole, "median_tensor_error": typical}
                    origin = {key: source[key] for key in ("commit", "dirty", "device", "utc")}
                    rows.append(row | origin | {"torch": source["versions"]["torch"]})
    new = not args.csv.exists()
    args.csv.parent.mkdir(parents=True, exist_ok=True)
    with open(args.csv, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
