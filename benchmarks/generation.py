"""Measure the speed of text generation with and without the cache.

    python benchmarks/generation.py --scale laptop --size small --csv generation.csv

One process measures all variants of a size in turn in every round, so disturbances of the machine affect all of them.
Speed does not depend on the weights, so the models are freshly initialised unless `--runs` names trained ones. One row
per variant and mode is appended to the CSV, with the median and the 20th and 80th percentiles over the rounds.
"""

import argparse
import csv
import time
from pathlib import Path

import torch
from torch import Tensor

from ddl.config import ConfigError, Scale, load_scale
from ddl.errors import UserError
from ddl.model.generate import generate
from ddl.model.language_model import LanguageModel
from ddl.model.run_files import load_model
from ddl.provenance import provenance
from ddl.training.cost import spread


def seconds(model: LanguageModel, ids: Tensor, tokens: int, use_cache: bool) -> float:
    """Wall seconds to read the prompts and generate `tokens` tokens for each."""
    start = time.perf_counter()
    for token in generate(model, ids, tokens, use_cache=use_cache):
        token.tolist()  # waits for the device, as printing would
    return time.perf_counter() - start


def models(scale: Scale, size: str, runs: Path | None, device: str) -> dict[str, LanguageModel]:
    """All models of a size, trained if `runs` names a folder of runs."""
    found = {}
    for variant in scale.variants:
        if runs is None:
            found[variant] = LanguageModel(scale.model(size, variant)).to(device).eval()
        else:
            found[variant] = load_model(runs / size / variant / f"seed{scale.seeds[0]}", device)
    return found


def measure(args: argparse.Namespace) -> list[dict[str, object]]:
    """Rows of the CSV."""
    scale = load_scale(args.scale)
    if args.size not in scale.sizes:
        raise ConfigError(f"size: expected one of {', '.join(scale.sizes)}, found {args.size!r}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(scale.training.threads)
    built = models(scale, args.size, args.runs, device)
    ids = torch.arange(args.batch * args.prompt, device=device).reshape(args.batch, args.prompt)
    ids = ids % scale.tokenizer.vocab_size
    cases = [(variant, use_cache) for variant in built for use_cache in (True, False)]
    times: dict[tuple[str, bool], list[float]] = {case: [] for case in cases}
    for rounds in range(args.rounds + 1):
        for variant, use_cache in cases:
            taken = seconds(built[variant], ids, args.tokens, use_cache)
            if rounds:  # the first round is a warm-up
                times[variant, use_cache].append(taken)
    origin = provenance()
    rows: list[dict[str, object]] = []
    for (variant, use_cache), taken_times in times.items():
        speed = spread(args.batch * args.tokens / torch.tensor(taken_times, dtype=torch.float64).numpy())
        rows.append(
            {
                "scale": scale.name,
                "size": args.size,
                "variant": variant,
                "cache": use_cache,
                "batch": args.batch,
                "prompt_tokens": args.prompt,
                "new_tokens": args.tokens,
                "tok_per_s": round(speed["median"], 1),
                "tok_per_s_p20": round(speed["p20"], 1),
                "tok_per_s_p80": round(speed["p80"], 1),
                "rounds": speed["repeats"],
                "trained": args.runs is not None,
                "threads": origin["threads"],
                "device": origin["device"],
                "torch": origin["versions"]["torch"],
                "commit": origin["commit"],
                "dirty": origin["dirty"],
            }
        )
    return rows


def main(argv: list[str] | None = None) -> None:
    """Run the command line; see the module docstring."""
    parser = argparse.ArgumentParser(description="Measure generation with and without the cache.")
    parser.add_argument("--scale", required=True, help="name of a file in config/scales")
    parser.add_argument("--size", required=True)
    parser.add_argument("--csv", required=True, type=Path, help="append the rows to this file")
    parser.add_argument("--runs", type=Path, help="folder of trained runs, e.g. results/<scale>/runs")
    parser.add_argument("--prompt", type=int, default=32, help="prompt length in tokens (32)")
    parser.add_argument("--tokens", type=int, default=96, help="number of tokens to generate (96)")
    parser.add_argument("--batch", type=int, default=1, help="sequences per batch (1)")
    parser.add_argument("--rounds", type=int, default=7, help="measured rounds, after one warm-up round (7)")
    args = parser.parse_args(argv)
    try:
        rows = measure(args)
    except UserError as error:
        parser.exit(2, f"error: {error}\n")
    new = not args.csv.exists()
    with open(args.csv, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        if new:
            writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        cache = "with" if row["cache"] else "without"
        print(f"{row['size']}/{row['variant']:12} {cache:>7} cache: {row['tok_per_s']:>9,} tokens/s")


if __name__ == "__main__":
    main()
