"""Compare three ways to score the offline tasks, in speed and results.

    python -m benchmarks.scoring --run results/laptop/runs/small/ddl-tc/seed0 --data results/laptop/data

`hf` is the harness' own adapter for transformers, with batches of 32 requests. It needs `accelerate`. Its logits cache
is off, because it confuses requests that split the same input at different places. `whole` and `shared` are our adapter
without and with shared prefixes. All three take turns in one process. One row per adapter and number of shots is
appended to results/reference/scoring.csv.
"""

import argparse
import csv
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from ddl.data.tokenizer import END_OF_TEXT
from ddl.evaluation.lm_eval_model import DDL
from ddl.evaluation.lm_eval_tasks import SEED, open_tasks, prepare_environment
from ddl.layout import ROOT
from ddl.model.run_files import load_model
from ddl.model.transformers_model import DDLConfig, DDLForCausalLM
from ddl.provenance import provenance

ROUNDS = 3


def requests(folder: Path, shots: int, share: int) -> list[Any]:
    """The harness' requests for every `share`-th item of all tasks."""
    found = []
    with open_tasks(folder) as tasks:
        for task in (entry.task for entry in tasks.values()):
            task.set_config(key="num_fewshot", value=shots)
            task.set_fewshot_seed(seed=SEED)
            task.build_all_requests(rank=0, world_size=1)
            found += [instance for instance in task.instances if instance.doc_id % share == 0]
    return found


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure three ways to score the offline tasks.")
    parser.add_argument("--run", type=Path, required=True, help="folder of a trained model")
    parser.add_argument("--data", type=Path, required=True, help="results/<scale>/data")
    parser.add_argument("--share", type=int, default=4, help="score every SHARE-th item (4)")
    arguments = parser.parse_args(argv)
    prepare_environment()
    torch.set_num_threads(1)
    from lm_eval.models.huggingface import HFLM
    from transformers import PreTrainedTokenizerFast

    own, tokenizer = load_model(arguments.run), arguments.data / "tokenizer.json"
    theirs = DDLForCausalLM(DDLConfig.from_pretrained(arguments.run))
    theirs.model.load_state_dict(own.state_dict())
    roles = dict.fromkeys(("bos_token", "eos_token", "pad_token"), END_OF_TEXT)
    fast = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer), **roles)
    length = own.config.sequence_length
    models = {
        "hf": HFLM(theirs.eval(), tokenizer=fast, batch_size=32, device="cpu", max_length=length, logits_cache=False),
        "whole": DDL(own, tokenizer, device="cpu", share=False),
        "shared": DDL(own, tokenizer, device="cpu"),
    }
    source, rows = provenance(), []
    for shots in (0, 1):
        asked = requests(arguments.data / "tasks", shots, arguments.share)
        seconds: dict[str, list[float]] = {name: [] for name in models}
        scores: dict[str, list[float]] = {}
        for _ in range(ROUNDS):
            for name, model in models.items():
                started = time.process_time()
                scores[name] = [score for score, _ in model.loglikelihood(asked, disable_tqdm=True)]
                seconds[name].append(time.process_time() - started)
        for name in models:
            median = statistics.median(seconds[name])
            row = {
                "run": "/".join(arguments.run.parts[-3:]),
                "shots": shots,
                "adapter": name,
                "requests": len(asked),
                "requests_per_cpu_s": round(len(asked) / median),
                "ratio_to_hf": round(statistics.median(seconds["hf"]) / median, 2),
                "largest_difference_nats": max(abs(a - b) for a, b in zip(scores[name], scores["hf"], strict=True)),
                **{key: source[key] for key in ("commit", "dirty", "device", "utc")},
            }
            print({key: row[key] for key in list(row)[:7]}, flush=True)
            rows.append(row)
    path = ROOT / "results/reference/scoring.csv"
    new = not path.is_file()
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
