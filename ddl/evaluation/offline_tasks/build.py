"""Build eight offline multiple-choice tasks from held-out documents: `ddl tasks --scale laptop --data D --out DIR`.

The tasks replace the paper's eight benchmarks when nothing may be downloaded. They have the same columns, the same
numbers of choices and the same harness; each item is one line of held-out prose. They measure local plausibility (which
word, ending, order or number fits here), because that is what a model of a million parameters has learnt after a
million tokens.

Four rules keep the scores honest. A line serves one task only, so that columns are not correlated through their items.
Lines that occur in a training document are removed. Demonstrations and test items come from different documents, so
that no prompt contains an answer. The manifest records under `checks` how a unigram prior and "always the shortest"
score.
"""

import hashlib
import json
import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from ddl.config import SHOTS, Scale
from ddl.data.sequences import load_manifest
from ddl.data.tokenizer import load_tokenizer
from ddl.evaluation.offline_tasks import item_builders as items
from ddl.evaluation.offline_tasks.item_builders import Item
from ddl.evaluation.offline_tasks.prose_lines import (
    ITEMS_PER_DOCUMENT,
    SEED,
    Line,
    Statistics,
    TaskError,
    collect,
    fit_context,
    read_documents,
    read_lines,
    scan_training,
)
from ddl.files import sha256_file, write_json, write_text
from ddl.provenance import provenance

DEMO_SHARE = 8  # one document in eight is reserved for demonstrations, which are an eighth as many as the test items
MIN_DEMOS = 8
RESERVED_TOKENS = 2  # tokens that separate a demonstration from the item
SIGMAS = 3.0  # a check passes within this many standard errors of chance


@dataclass(frozen=True)
class Task:
    """A task and how its items are built.

    Items are spread equally over `cells` quotas. In a `winogrande` item, the option is part of the context and the text
    after it is scored; in other items, the choice itself is scored.
    """

    name: str
    column: str  # column of the paper's tables
    choices: int
    metric: str  # the harness's name of the metric
    cells: int
    build: Callable[[Line, Statistics, random.Random], Item | None]
    winogrande: bool = False

    @property
    def chance(self) -> float:
        return 1.0 / self.choices


# In the paper's column order.
TASKS = (
    Task("doc_cloze_hard", "ARC-C", 4, "acc", 4, items.cloze_hard),
    Task("doc_cloze", "ARC-E", 4, "acc", 4, items.cloze),
    Task("doc_ending", "Hellaswag", 4, "acc_mutual_info", 1, items.ending),
    Task("doc_order", "OpenBookQA", 4, "acc", 1, items.order),
    Task("doc_number", "PIQA", 2, "acc", 4, items.number),
    Task("doc_last_word", "SciQ", 4, "acc", 4, items.last_word),
    Task("doc_function_word", "Social IQA", 3, "acc", len(items.PREPOSITIONS), items.function_word),
    Task("doc_pair", "WG", 2, "acc", 2, items.pair, winogrande=True),
)
# Tasks with few eligible lines pick theirs first.
CHOOSING_ORDER = ("doc_number", "doc_function_word", "doc_last_word", "doc_order", "doc_pair")


def build_tasks(scale: Scale, data: Path, out: Path) -> dict[str, Any]:
    """Write `<task>.{train,test}.jsonl` and `manifest.json` to `out`; the items depend on data and settings alone.

    Returns:
        The manifest.

    Raises:
        TaskError: the corpus keeps no documents, or has too few lines for the requested number of items.
        DataError, TokenizerError: the manifest or the tokenizer is missing or damaged.
    """
    manifest = load_manifest(data / "manifest.json")
    if scale.evaluation.tasks != "offline" or manifest.get("documents") is None:
        raise TaskError(f"{data}: offline tasks need evaluation.tasks: offline and a corpus that keeps its documents")
    tokenizer = load_tokenizer(data / manifest["tokenizer"]["file"])
    # With this limit, a prompt with the largest number of demonstrations fits without truncation.
    limit = scale.sequence_length // (1 + max(SHOTS)) - RESERVED_TOKENS
    documents = list(read_documents(data / manifest["documents"]["val"]["file"]))
    lines = fit_context(read_lines(documents), tokenizer, limit)
    counts, prose, known = scan_training(data / manifest["documents"]["train"]["file"], {line.text for line in lines})
    eligible = [line for line in lines if line.text not in known]
    statistics = collect(counts, prose, eligible, tokenizer)
    n = scale.evaluation.items_per_task
    wanted = {"test": n, "train": max(MIN_DEMOS, n // DEMO_SHARE)}
    files: dict[str, dict[str, Any]] = {task.name: {} for task in TASKS}
    checks: dict[str, dict[str, Any]] = {}
    used = {}
    for split, count in wanted.items():
        pool = [line for line in eligible if is_demo(line.document) == (split == "train")]
        rows = choose_items(pool, statistics, tokenizer, limit, split, count)
        used[split] = {"lines": len(pool), "used": sum(len(part) for part in rows.values())}
        for task in TASKS:
            path = out / f"{task.name}.{split}.jsonl"
            write_text(path, "".join(json.dumps(row) + "\n" for row in rows[task.name]))
            files[task.name][split] = {"file": path.name, "n": count, "sha256": sha256_file(path)}
            if split == "test":
                checks[task.name] = run_checks(task, rows[task.name], statistics)
    result = {
        "tasks": {task.name: describe(task, n) | files[task.name] | {"checks": checks[task.name]} for task in TASKS},
        "lines": {"held_out": len(lines), "in_training": len(lines) - len(eligible), **used},
        "item_tokens": limit,
        "documents": {split: entry["sha256"] for split, entry in manifest["documents"].items()},
        "tokenizer": manifest["tokenizer"]["sha256"],
        "provenance": provenance(),
    }
    write_json(out / "manifest.json", result)
    return result


def describe(task: Task, n: int) -> dict[str, Any]:
    """The manifest entry that an evaluation needs for a task with n items."""
    return {
        "column": task.column,
        "metric": task.metric,
        "choices": task.choices,
        "n": n,
        "chance": task.chance,
        "chance_stderr": chance_stderr(task.chance, n),
        "winogrande": task.winogrande,
    }


def chance_stderr(chance: float, n: int) -> float:
    """Standard error of the accuracy of random guessing on n items."""
    return math.sqrt(chance * (1.0 - chance) / n)


# ---------------------------------------------------------------------------------------------------------------------


def is_demo(document: str) -> bool:
    """Whether a held-out document is for demonstrations: a hash of its name selects one in `DEMO_SHARE`."""
    return hashlib.sha256(document.encode()).digest()[0] % DEMO_SHARE == 0


# ---------------------------------------------------------------------------------------------------------------------
# From lines to items


def choose_items(
    lines: list[Line], statistics: Statistics, tokenizer: Tokenizer, limit: int, split: str, count: int
) -> dict[str, list[dict[str, Any]]]:
    """Assign each line to at most one task, and build the items.

    Returns:
        Task -> `count` rows, as they are written.

    Raises:
        TaskError: a task found too few lines; the message names it.
    """
    order = sorted(TASKS, key=lambda task: (*CHOOSING_ORDER, task.name).index(task.name))
    left, rows = dict.fromkeys(lines), {}
    for task in order:
        rng = random.Random(f"{SEED} {task.name} {split}")
        quota = [count // task.cells + (cell < count % task.cells) for cell in range(task.cells)]
        rng.shuffle(quota)
        per_document: Counter[str] = Counter()
        chosen: list[tuple[Line, Item]] = []
        for line in rng.sample(list(left), len(left)):
            if len(chosen) == count:
                break
            if per_document[line.document] >= ITEMS_PER_DOCUMENT:
                continue
            item = task.build(line, statistics, rng)
            if item is None or quota[item.cell] == 0 or item_tokens(item, tokenizer) > limit:
                continue
            quota[item.cell] -= 1
            per_document[line.document] += 1
            chosen.append((line, item))
            del left[line]
        if len(chosen) < count:
            raise TaskError(
                f"{task.name}: {len(chosen)} {split} items found among {len(lines)} held-out lines, {count} needed: "
                "hold out more text (corpus.val_fraction or val_path) or lower evaluation.items_per_task"
            )
        positions = [index % task.choices for index in range(count)]
        rng.shuffle(positions)
        rows[task.name] = [row(task, *pair, position) for pair, position in zip(chosen, positions, strict=True)]
    return rows


def item_tokens(item: Item, tokenizer: Tokenizer) -> int:
    """Number of tokens of the item with its longest choice."""
    texts = [f"{item.query} {choice} {item.after}".rstrip() for choice in (item.gold, *item.others)]
    return max(len(encoding.ids) for encoding in tokenizer.encode_batch(texts, add_special_tokens=False))


def row(task: Task, line: Line, item: Item, position: int) -> dict[str, Any]:
    """The JSON object of an item with the gold choice at `position`, in the schema that its harness task reads."""
    choices = [*item.others[:position], item.gold, *item.others[position:]]
    if task.winogrande:
        options = {f"option{i}": choice for i, choice in enumerate(choices, 1)}
        sentence = f"{item.query} _ {item.after}"
        return {"sentence": sentence, **options, "answer": str(position + 1), "document": line.document}
    return {"query": item.query, "choices": choices, "gold": position, "document": line.document}


# ---------------------------------------------------------------------------------------------------------------------
# Checks


def run_checks(task: Task, rows: list[dict[str, Any]], statistics: Statistics) -> dict[str, Any]:
    """Score the choices of the test items without their queries: by training word frequency, and by length.

    In WinoGrande items the options are scored, because the text after them is the same.
    """
    scores = {"unigram": statistics.log_probability, "shortest": lambda text: -float(len(text))}
    return {name: guess(task, rows, score) for name, score in scores.items()}


def guess(task: Task, rows: list[dict[str, Any]], score: Callable[[str], float]) -> dict[str, Any]:
    """Accuracy of choosing the best score; a tie of k choices that includes the gold one counts 1/k."""
    credits = []
    for entry in rows:
        choices = [entry["option1"], entry["option2"]] if task.winogrande else entry["choices"]
        gold = int(entry["answer"]) - 1 if task.winogrande else entry["gold"]
        values = [round(score(choice), 9) for choice in choices]
        best = [index for index, value in enumerate(values) if value == max(values)]
        credits.append((gold in best) / len(best))
    n = len(credits)
    value = math.fsum(credits) / n
    variance = math.fsum((credit - value) ** 2 for credit in credits) / max(1, n - 1)
    ok = abs(value - task.chance) <= SIGMAS * chance_stderr(task.chance, n)
    return {"value": value, "stderr": math.sqrt(variance / n), "ok": ok}


def report(manifest: dict[str, Any]) -> None:
    """Print one line per task with its checks, and one line about the prose lines used."""
    for name, task in manifest["tasks"].items():
        checks = [
            f"{check} {result['value']:.3f}{'' if result['ok'] else ' (WARNING: not at chance)'}"
            for check, result in task["checks"].items()
        ]
        print(f"{name}: {task['n']} items, chance {task['chance']:.3f}, {', '.join(checks)}")
    lines = manifest["lines"]
    print(
        f"lines: {lines['held_out']} held out, {lines['in_training']} of them in training, "
        f"{lines['test']['used']} of {lines['test']['lines']} used for test items, "
        f"{lines['train']['used']} of {lines['train']['lines']} for demonstrations"
    )
