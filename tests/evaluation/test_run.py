"""Evaluation: the accuracies that the harness computes from our log-likelihoods."""

import json
import math
import os
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from ddl.data.tokenizer import load_tokenizer
from ddl.evaluation.lm_eval_model import DDL
from ddl.evaluation.lm_eval_tasks import (
    OFFLINE_TAG,
    HarnessError,
    average,
    open_tasks,
    prepare_environment,
    run_tasks,
    write_definitions,
)
from ddl.evaluation.model_check import EvaluationError
from ddl.evaluation.offline_tasks.build import TASKS, build_tasks
from ddl.evaluation.run import evaluate_model, evaluate_tasks, write_items
from ddl.files import sha256_file, write_json
from ddl.layout import ROOT
from ddl.model.language_model import LanguageModel
from ddl.model.run_files import save_model
from tests.helpers.command import ddl
from tests.helpers.offline_data import documents, offline_scale, write_data

ITEMS = 24


@pytest.fixture(scope="module", autouse=True)
def offline():
    prepare_environment()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = write_data(tmp_path_factory.mktemp("data"), documents())
    build_tasks(offline_scale(ITEMS), folder, folder / "tasks")
    return folder


@pytest.fixture(scope="module")
def model():
    """An untrained model with weights large enough that its predictions differ."""
    model = LanguageModel(offline_scale(ITEMS).model("small", "baseline"))
    with torch.no_grad():
        model.embedding.weight.mul_(20)
    return model.eval()


def harness_model(data, model):
    return DDL(model, data / "tokenizer.json", device="cpu")


@pytest.fixture(scope="module")
def results(data, model):
    return evaluate_tasks(harness_model(data, model), data / "tasks", None)


def naive(model, context, continuation):
    """Log-probability of a continuation, from a separate forward pass."""
    log_p = model(torch.tensor([context + continuation[:-1]]))[0, len(context) - 1 :].double().log_softmax(1)
    return float(log_p[torch.arange(len(continuation)), torch.tensor(continuation)].sum())


def rows(data, name):
    return [json.loads(line) for line in (data / "tasks" / f"{name}.test.jsonl").read_text().splitlines()]


def accuracy(data, model, task):
    """Accuracy of a task without demonstrations, from its item file and the naive scores."""
    encode = load_tokenizer(data / "tokenizer.json").encode
    hits = 0
    for row in rows(data, task.name):
        if task.winogrande:
            before, after = row["sentence"].split("_")
            pairs = [(before + row[option], after) for option in ("option1", "option2")]
            gold = int(row["answer"]) - 1
        else:
            pairs = [(row["query"], f" {choice}") for choice in row["choices"]]
            gold = row["gold"]
        scores = [naive(model, encode(context).ids, encode(text).ids) for context, text in pairs]
        if task.metric == "acc_mutual_info":
            scores = [
                score - naive(model, [0], encode(text).ids) for score, (_, text) in zip(scores, pairs, strict=True)
            ]
        hits += int(np.argmax(scores)) == gold
    return hits / ITEMS


@pytest.mark.parametrize("name", ["doc_cloze", "doc_ending", "doc_pair"])
def test_harness_reports_the_accuracy_of_the_items(data, model, results, name):
    task = next(task for task in TASKS if task.name == name)
    found = results[0]["tasks"][name]
    with torch.no_grad():
        assert found["value"] == accuracy(data, model, task)
    assert found["stderr"] == pytest.approx(math.sqrt(found["value"] * (1 - found["value"]) / (ITEMS - 1)))
    assert (found["n"], found["chance"], found["metric"]) == (ITEMS, task.chance, task.metric)


def test_an_untrained_model_is_at_chance(results):
    for result in results.values():
        mean = result["average"]
        assert abs(mean["value"] - mean["chance"]) <= 3 * mean["stderr"]


def test_average_is_the_plain_mean(results):
    found = results[1]
    values = [task["value"] for task in found["tasks"].values()]
    assert found["average"]["value"] == pytest.approx(sum(values) / 8)
    two = [
        {"column": "ARC-E", "value": 0.5, "stderr": 0.3, "chance": 0.25},
        {"column": "WG", "value": 1.0, "stderr": 0.4, "chance": 0.5},
    ]
    assert average(two) == pytest.approx({"value": 0.75, "stderr": 0.25, "chance": 0.375})


def test_demonstrations_precede_the_item_and_nothing_is_cut_off(data, model):
    lm = harness_model(data, model)
    seen = []
    score = lm.scorer.score
    lm.scorer.score = lambda pairs, progress=False: seen.extend(pairs) or score(pairs, progress)
    with open_tasks(data / "tasks") as tasks:
        run_tasks(lm, tasks, shots=1)
    tokenizer = load_tokenizer(data / "tokenizer.json")
    demos = [json.loads(line)["query"] for line in (data / "tasks" / "doc_order.train.jsonl").read_text().splitlines()]
    queries = {row["query"] for row in rows(data, "doc_order")}
    prompts = {tokenizer.decode(context) for context, _ in seen}
    matching = [prompt for prompt in prompts if any(prompt.endswith(f"\n\n{query}") for query in queries)]
    assert len(matching) == ITEMS
    assert all(any(prompt.startswith(demo) for demo in demos) for prompt in matching)
    assert max(len(context) + len(text) for context, text in seen) <= model.config.sequence_length + 1


def test_repeated_runs_write_identical_files(data, model, results, tmp_path):
    for name in ("first", "second"):
        assert evaluate_tasks(harness_model(data, model), data / "tasks", tmp_path / name) == results
    for shots in (0, 1):
        first, second = (tmp_path / name / f"{shots}shot.parquet" for name in ("first", "second"))
        assert first.read_bytes() == second.read_bytes()


def test_items_are_kept_with_what_a_comparison_needs(data, model, results, tmp_path):
    evaluate_tasks(harness_model(data, model), data / "tasks", tmp_path)
    items = pd.read_parquet(tmp_path / "0shot.parquet")
    assert list(items.columns) == ["task", "item", "gold", "correct", "log_likelihoods"]
    assert items.groupby("task", sort=False)["correct"].mean().to_dict() == pytest.approx(
        {name: task["value"] for name, task in results[0]["tasks"].items()}
    )
    for task in TASKS:
        found = items[items["task"] == task.name]
        assert found["item"].tolist() == list(range(ITEMS))
        gold = [int(row["answer"]) - 1 if task.winogrande else row["gold"] for row in rows(data, task.name)]
        assert found["gold"].tolist() == gold
        if task.metric == "acc":
            answers = [int(np.argmax(scores)) for scores in found["log_likelihoods"]]
            assert (np.array(answers) == gold).tolist() == found["correct"].tolist()
    write_items(tmp_path / "again.parquet", items)
    assert (tmp_path / "again.parquet").stat().st_size < 60 * len(items)  # compressed


def test_new_items_under_the_same_size_and_date_are_seen(data, model, tmp_path):
    manifest = json.loads((data / "tasks" / "manifest.json").read_text())
    entry = manifest["tasks"]["doc_order"]
    for split in ("test", "train"):
        name = f"doc_order.{split}.jsonl"
        (tmp_path / name).write_bytes((data / "tasks" / name).read_bytes())
    path = tmp_path / "doc_order.test.jsonl"
    stamp = path.stat()
    values = []
    for shift in range(4):
        changed = [row | {"gold": (row["gold"] + shift) % 4} for row in rows(data, "doc_order")]
        path.write_text("".join(json.dumps(row) + "\n" for row in changed))
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        assert path.stat().st_size == stamp.st_size
        entry["test"]["sha256"] = sha256_file(path)
        write_json(tmp_path / "manifest.json", {"tasks": {"doc_order": entry}})
        found = evaluate_tasks(harness_model(data, model), tmp_path, None, shots=[0])
        values.append(found[0]["tasks"]["doc_order"]["value"])
    assert sum(values) == pytest.approx(1.0)  # each prediction is correct under exactly one of the four shifts
    assert len(set(values)) > 1


def test_changed_items_are_refused(data, model, tmp_path):
    shutil.copytree(data, tmp_path, dirs_exist_ok=True)
    (tmp_path / "tasks" / "doc_pair.test.jsonl").write_text("{}\n")
    with pytest.raises(HarnessError, match=r"doc_pair\.test\.jsonl: not the items listed.*: run ddl tasks"):
        evaluate_tasks(harness_model(data, model), tmp_path / "tasks", None)


def test_more_demonstrations_than_a_task_has_items_are_refused(data, model):
    with pytest.raises(HarnessError, match=r"shots: task \w+ has demonstrations for at most \d+, found 500"):
        evaluate_tasks(harness_model(data, model), data / "tasks", None, shots=[500])


def test_the_data_card_shows_checks_and_overlaps(data, model, tmp_path, monkeypatch, capsys):
    results = tmp_path / "smoke"
    results.mkdir()
    (results / "data").symlink_to(data)
    evaluate_tasks(harness_model(data, model), data / "tasks", results / "evals/random-init")
    ddl("contamination", "--scale", "smoke", "--data", data, "--out", results)
    source = (ROOT / "notebooks/08_tasks.py").read_text()
    monkeypatch.chdir(ROOT)
    names = {"__name__": "08_tasks"}
    exec(compile(source.replace('"results/laptop"', repr(str(results))), "08_tasks", "exec"), names)
    printed = capsys.readouterr().out
    first = rows(data, "doc_order")[0]
    assert f"doc_order (OpenBookQA)\n{first['query']}\n" in printed
    assert f"  -> {first['choices'][first['gold']]}\n" in printed
    assert 0 < max(names["distances"]) < 5  # standard errors from chance


def test_command_line_writes_every_file(data, tmp_path, monkeypatch, capsys):
    scale = offline_scale(ITEMS)
    monkeypatch.setattr("ddl.cli.load_scale", lambda name: scale)
    save_model(LanguageModel(scale.model("small", "ddl-cc")), tmp_path / "run")
    common = ["evaluate", "--scale", "smoke", "--data", data]
    ddl(*common, "--run", tmp_path / "run", "--out", tmp_path / "trained")
    ddl(*common, "--random-init", "--size", "small", "--variant", "ddl-cc", "--out", tmp_path / "random")
    for name in ("0shot.json", "1shot.json"):
        trained, control = (json.loads((tmp_path / run / name).read_text()) for run in ("trained", "random"))
        assert trained.pop("provenance")["versions"]["lm_eval"]
        control.pop("provenance")
        assert trained == control  # the saved weights are untrained too
    assert control["shots"] == 1
    assert list(control["tasks"]["doc_pair"]) == [
        "column", "metric", "value", "stderr", "n", "chance", "acc", "acc_norm",
    ]  # fmt: skip
    assert control["tasks"]["doc_pair"]["acc_norm"] is None
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 2 * 2 * 9
    assert captured.err == ""


def test_definitions_beside_the_items_are_those_of_the_workflow(data):
    """`lm_eval --include_path` runs the offline tasks by them."""
    from lm_eval.tasks import TaskManager  # after `offline` has prepared the environment

    write_definitions(data / "tasks")
    manager = TaskManager(include_path=str(data / "tasks"), include_defaults=False)
    with open_tasks(data / "tasks") as own:
        loaded = manager.load([OFFLINE_TAG])["tasks"]
        assert set(loaded) == set(own)
        for name, task in own.items():
            theirs, ours = loaded[name], task.task
            assert list(theirs.test_docs()) == list(ours.test_docs())
            assert theirs.config.metric_list == ours.config.metric_list
            document = next(iter(ours.test_docs()))
            assert theirs.doc_to_choice(document) == ours.doc_to_choice(document)


def test_a_model_of_another_vocabulary_is_refused(data, tiny_config, tmp_path):
    model = LanguageModel(tiny_config("baseline")).eval()
    with pytest.raises(EvaluationError, match="expected a model with vocabulary 1024"):
        evaluate_model(offline_scale(ITEMS), model, data, data / "tasks", tmp_path)


SOURCE = "expected either --run, or --random-init with --size and --variant"
TOGETHER = "give --scale, --data and --out together"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--scale smoke --data d --out o", SOURCE),
        ("--run . --random-init --scale smoke --data d --out o", SOURCE),
        ("--random-init --scale smoke --data d --out o", SOURCE),
        ("--run . --size small --scale smoke --data d --out o", SOURCE),
        ("--random-init --size small --variant baseline", TOGETHER),
        ("--run . --scale smoke", TOGETHER),
        ("--run . --data d", TOGETHER),
        ("--run . --scale smoke --data d", TOGETHER),
        ("--run . --scale smoke --data d --out o --shots 0", TOGETHER),
        ("--run . --scale smoke --data d --out o --tasks doc_pair", TOGETHER),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(capsys, arguments, message):
    ddl("evaluate", *arguments.split(), code=2)
    assert capsys.readouterr().err.startswith(f"error: {message}")
