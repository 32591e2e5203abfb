"""The language-model evaluation harness: how it sees the model, and the tasks it runs.

The harness makes prompts and computes scores; it asks the model for log-likelihoods of continuations, which `Scorer`
gives it. It is imported inside the functions that need it, because it takes seconds and reads the environment.
"""

import functools
import io
import json
import math
import os
import random
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from ddl.model import LanguageModel
from ddl.tokenizer import end_of_text_id

if TYPE_CHECKING:
    from lm_eval.api.model import TemplateLM
    from lm_eval.tasks import TaskManager

HEAD_TOKENS = 1024  # at a time: the logits of a whole batch are gigabytes at GPT-2's vocabulary
SEED = 1234  # of the demonstrations and of the global generators, the harness' own default


class HarnessError(ValueError):
    """Tasks that cannot be run: the message says what is missing or does not fit."""


@dataclass(frozen=True)
class TaskSpec:
    """One column of the tables: which harness task it is, by which metric, and what guessing scores."""

    column: str
    task: str
    metric: str
    chance: float
    dataset: tuple[str, ...] = ()  # on the hub: name and, if it has several, configuration


def benchmark_task_specs() -> tuple[TaskSpec, ...]:
    """The paper's eight benchmarks under the harness' names.

    Length-normalised accuracy where the harness offers it, plain accuracy for the other two. Chance of ARC counts its
    few questions with three or five choices as four.
    """
    return (
        TaskSpec("ARC-C", "arc_challenge", "acc_norm", 1 / 4, ("allenai/ai2_arc", "ARC-Challenge")),
        TaskSpec("ARC-E", "arc_easy", "acc_norm", 1 / 4, ("allenai/ai2_arc", "ARC-Easy")),
        TaskSpec("Hellaswag", "hellaswag", "acc_norm", 1 / 4, ("Rowan/hellaswag",)),
        TaskSpec("OpenBookQA", "openbookqa", "acc_norm", 1 / 4, ("allenai/openbookqa", "main")),
        TaskSpec("PIQA", "piqa", "acc_norm", 1 / 2, ("baber/piqa",)),
        TaskSpec("SciQ", "sciq", "acc_norm", 1 / 4, ("allenai/sciq",)),
        TaskSpec("Social IQA", "social_iqa", "acc", 1 / 3, ("lighteval/siqa",)),
        TaskSpec("WG", "winogrande", "acc", 1 / 2, ("allenai/winogrande", "winogrande_xl")),
    )


def offline_task_specs(manifest: dict[str, Any]) -> tuple[TaskSpec, ...]:
    """The tasks of a manifest that `ddl.tasks` wrote."""
    return tuple(
        TaskSpec(task["column"], name, task["metric"], task["chance"]) for name, task in manifest["tasks"].items()
    )


# ---------------------------------------------------------------------------------------------------------------------
# The model


def head(model: LanguageModel, hidden: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits and targets, `HEAD_TOKENS` at a time.

    Args:
        hidden: [N, d], of `LanguageModel.hidden`.
        targets: int64 [N].

    Yields:
        (logits [n, vocab_size] in fp32, targets [n]).
    """
    for part, target in zip(hidden.split(HEAD_TOKENS), targets.split(HEAD_TOKENS), strict=True):
        yield model.logits(part), target


class Scorer:
    """Log-likelihoods of continuations under a language model.

    Args:
        model: in evaluation mode, on the device where it is to run.
        batch_tokens: of one forward pass, padding included.
        dtype: the forward pass runs in, by autocast where it is not float32; log-probabilities are float32 always.
    """

    def __init__(self, model: LanguageModel, batch_tokens: int, dtype: torch.dtype = torch.float32) -> None:
        self.model, self.batch_tokens, self.dtype = model, batch_tokens, dtype
        self.device = model.embedding.weight.device
        self.length = model.config.sequence_length

    def score(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """Score (context, continuation) token ids, neither of them empty.

        What does not fit the model loses context on the left.

        Returns:
            For each pair, in order: (log p(continuation | context) in nats, whether greedy decoding would produce it).

        Raises:
            HarnessError: an empty context, or a continuation that is empty or longer than the model's sequences.
        """
        # Two pairs can make the same input and split it at different places. One row of a batch serves both, but
        # each is scored at its own positions.
        members: dict[tuple[int, ...], list[int]] = {}
        for index, (context, continuation) in enumerate(pairs):
            if not context or not 1 <= len(continuation) <= self.length:
                raise HarnessError(
                    f"request {index}: expected some context and 1 to {self.length} tokens of continuation, "
                    f"found {len(context)} and {len(continuation)}"
                )
            members.setdefault(tuple((context + continuation)[-self.length - 1 : -1]), []).append(index)
        results: list[tuple[float, bool]] = [(math.nan, False)] * len(pairs)
        for inputs in self.batches(members):
            wanted = [(row, index) for row, ids in enumerate(inputs) for index in members[ids]]
            targets = [pairs[index][1] for _, index in wanted]
            scores = self.forward(inputs, [row for row, _ in wanted], targets)
            for (_, index), score in zip(wanted, scores, strict=True):
                results[index] = score
        return results

    def batches(self, inputs: Iterable[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
        """Inputs from the longest to the shortest, as many at a time as fit; the order they come in does not matter."""
        ordered = sorted(inputs, key=lambda ids: (-len(ids), ids))
        start = 0
        while start < len(ordered):
            stop = start + max(1, self.batch_tokens // len(ordered[start]))
            yield ordered[start:stop]
            start = stop

    @torch.inference_mode()
    def forward(
        self, inputs: list[tuple[int, ...]], rows: list[int], targets: list[list[int]]
    ) -> list[tuple[float, bool]]:
        """Score `targets[i]` at the last positions of input `rows[i]`.

        Padding stands on the right, where a causal model does not see it. The head is applied to the scored positions
        only: it is the larger part of the work of a small model.
        """
        width = len(inputs[0])
        padded = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in inputs], device=self.device)
        lengths = [len(target) for target in targets]
        starts = [len(inputs[row]) - length for row, length in zip(rows, lengths, strict=True)]
        spans = zip(rows, starts, lengths, strict=True)
        where = torch.tensor(
            [row * width + start + i for row, start, length in spans for i in range(length)], device=self.device
        )
        token = torch.tensor([token for target in targets for token in target], device=self.device)
        log_p, greedy = [], []
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            hidden = self.model.hidden(padded).flatten(0, 1)[where]
            for logits, part in head(self.model, hidden, token):
                log_p.append(-F.cross_entropy(logits, part, reduction="none"))
                greedy.append(logits.argmax(1) == part)
        return [
            (float(part.sum()), bool(hit.all()))
            for part, hit in zip(
                torch.cat(log_p).cpu().split(lengths), torch.cat(greedy).cpu().split(lengths), strict=True
            )
        ]


def harness_model(scorer: Scorer, tokenizer: Tokenizer) -> "TemplateLM":
    """The model as the harness wants it. A prompt gets no token in front; an empty one is the end-of-text token."""
    from lm_eval.api.model import TemplateLM

    @functools.lru_cache(maxsize=1024)  # the choices of an item follow one another and share their prompt
    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    class HarnessModel(TemplateLM):
        @property
        def eot_token_id(self) -> int:
            return end_of_text_id(tokenizer)

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            return encode(string)

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
            return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

        def _loglikelihood_tokens(self, requests: list[Any], **_: Any) -> list[tuple[float, bool]]:
            return scorer.score([(context, continuation) for _, context, continuation in requests])

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
            raise NotImplementedError("none of the tasks asks for the likelihood of a whole text")

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            raise NotImplementedError("none of the tasks asks for generated text")

    return HarnessModel()


# ---------------------------------------------------------------------------------------------------------------------
# The tasks


def prepare_environment(offline: bool) -> None:
    """Quiet libraries, and no network for offline tasks; read when `datasets` is imported, so call this before."""
    os.environ |= {
        "LMEVAL_LOG_LEVEL": "ERROR",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"


@contextmanager
def offline_manager(directory: Path, manifest: dict[str, Any]) -> Iterator["TaskManager"]:
    """A harness task manager of the offline tasks alone; its definitions and caches live as long as the block."""
    import datasets
    import lm_eval
    from lm_eval.tasks import TaskManager

    datasets.disable_progress_bars()
    winogrande = Path(lm_eval.__file__).parent / "tasks" / "winogrande" / "default.yaml"
    with tempfile.TemporaryDirectory(prefix="ddl-tasks-") as temporary:
        for name, task in manifest["tasks"].items():
            files = {split: str((directory / task[split]["file"]).resolve()) for split in ("train", "test")}
            definition: dict[str, Any] = {
                "task": name,
                "dataset_path": "json",
                "dataset_name": None,
                # A cache of its own: the shared one serves old items for a file of equal size and date.
                "dataset_kwargs": {"data_files": files, "cache_dir": f"{temporary}/cache"},
                "training_split": "train",
                "validation_split": None,
                "test_split": "test",
                "fewshot_split": "train",
            }
            if task["winogrande"]:
                definition["include"] = str(winogrande)
            else:
                definition |= {
                    "output_type": "multiple_choice",
                    "doc_to_text": "query",
                    "doc_to_choice": "choices",
                    "doc_to_target": "gold",
                    "metric_list": [
                        {"metric": metric, "aggregation": "mean", "higher_is_better": True}
                        for metric in dict.fromkeys(("acc", "acc_norm", task["metric"]))
                    ],
                }
            # JSON is YAML, and needs no care with quotes.
            Path(temporary, f"{name}.yaml").write_text(json.dumps(definition))
        yield TaskManager(include_path=temporary, include_defaults=False)


def benchmark_manager() -> "TaskManager":
    """The harness' own task manager; scanning its thousands of definitions takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def load_task(manager: "TaskManager", spec: TaskSpec, shots: int) -> Any:
    """The harness task of a column, set to `shots` demonstrations.

    Raises:
        HarnessError: naming the dataset that is neither cached nor reachable.
    """
    try:
        task = manager.load([spec.task])["tasks"][spec.task]
    except (OSError, ValueError) as error:
        if not spec.dataset:
            raise
        arguments = ", ".join(repr(part) for part in spec.dataset)
        raise HarnessError(
            f"{spec.task}: dataset {' '.join(spec.dataset)} is neither cached nor reachable "
            f"({type(error).__name__}): with a network run "
            f'python -c "from datasets import load_dataset; load_dataset({arguments})"'
        ) from None
    task.set_config(key="num_fewshot", value=shots)
    task.set_fewshot_seed(seed=SEED)  # the sampler has a state: without this a second model would see other prompts
    return task


def run_tasks(lm: "TemplateLM", manager: "TaskManager", specs: Sequence[TaskSpec], shots: int) -> dict[str, Any]:
    """Evaluate every task with `shots` demonstrations.

    Returns:
        "tasks": task -> column, metric, value, stderr, n, chance, acc, acc_norm; "average": value, stderr, chance;
        all fractions, standard errors of the items' mean as the harness has them.

    Raises:
        HarnessError: a dataset is missing.
    """
    from lm_eval import evaluate

    loaded = {spec.task: load_task(manager, spec, shots) for spec in specs}
    random.seed(0)  # as the harness' command line does, for tasks that draw from the global generators
    np.random.seed(SEED)
    torch.manual_seed(SEED)
    # `simple_evaluate` does the same after a second of asking for the versions of everything installed.
    with redirect_stderr(io.StringIO()):  # progress bars without a switch; errors are exceptions and come through
        output = evaluate(
            lm=lm,
            task_dict={"tasks": loaded, "groups": {}, "group_map": {}},
            log_samples=False,
            bootstrap_iters=1,  # standard errors of means have a closed form, but 0 would switch them off
        )
    results = {}
    for spec in specs:
        found = output["results"][spec.task]
        results[spec.task] = {
            "column": spec.column,
            "metric": spec.metric,
            "value": found[f"{spec.metric},none"],
            "stderr": found[f"{spec.metric}_stderr,none"],
            "n": output["n-samples"][spec.task]["effective"],
            "chance": spec.chance,
            "acc": found["acc,none"],
            "acc_norm": found.get("acc_norm,none"),  # tasks in the form of WinoGrande and Social IQA have none
        }
    return {"tasks": results, "average": average(list(results.values()))}


def average(results: list[dict[str, Any]]) -> dict[str, float]:
    """The unweighted mean over tasks, as in the tables of the paper.

    Its standard error takes the errors of the tasks for independent, which holds as far as no item serves two tasks;
    between two models on the same items errors are correlated, so it does not bound their difference.
    """
    n = len(results)
    return {
        "value": math.fsum(result["value"] for result in results) / n,
        "stderr": math.sqrt(math.fsum(result["stderr"] ** 2 for result in results)) / n,
        "chance": math.fsum(result["chance"] for result in results) / n,
    }
