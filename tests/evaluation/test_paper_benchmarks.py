"""The paper's eight benchmarks with the harness' own definitions, on small files in the datasets' schemas."""

import dataclasses
import json
import socket
import time

import numpy as np
import pytest

from ddl.evaluation import paper_benchmarks as prefetch
from ddl.evaluation.lm_eval_model import DDL
from ddl.evaluation.lm_eval_tasks import HarnessError, load_manifest, open_tasks, run_tasks, solved
from ddl.evaluation.paper_benchmarks import BENCHMARKS, PrefetchError
from ddl.evaluation.run import evaluate_tasks
from tests.helpers.benchmark_files import ITEMS, SCHEMAS, rows
from tests.helpers.command import ddl


def test_all_eight_are_there_with_the_papers_columns_and_metrics(folder):
    tasks = load_manifest(folder)["tasks"]
    assert list(tasks) == list(SCHEMAS)
    plain = [name for name, task in tasks.items() if task["metric"] == "acc"]
    assert plain == ["social_iqa", "winogrande"]
    assert {task["metric"] for task in tasks.values()} == {"acc", "acc_norm"}


def test_every_revision_is_a_commit():
    assert all(len(benchmark.revision) == 40 and int(benchmark.revision, 16) for benchmark in BENCHMARKS)


def test_prompts_are_those_of_the_harness(folder):
    with open_tasks(folder) as tasks:
        texts = {name: solved(task.task, next(iter(task.task.eval_docs))) for name, task in tasks.items()}
    row = {name: rows(folder, name)[0] for name in SCHEMAS}

    def right(found):
        choices = found["choices"]
        return choices["text"][list(choices["label"]).index(found["answerKey"])]

    for name in ("arc_challenge", "arc_easy"):
        assert texts[name] == f"Question: {row[name]['question']}\nAnswer: {right(row[name])}"
    found = row["hellaswag"]
    context = found["ctx_a"].replace(" [title]", ". ").replace("  ", " ")
    ending = found["endings"][int(found["label"])]
    assert texts["hellaswag"] == f"Sitting on mats: {context} {found['ctx_b'].capitalize()} {ending}"
    found = row["openbookqa"]
    assert texts["openbookqa"] == f"{found['question_stem']} {right(found)}"
    found = row["piqa"]
    assert texts["piqa"] == f"Question: {found['goal']}\nAnswer: {(found['sol1'], found['sol2'])[found['label']]}"
    found = row["sciq"]
    question = f"{found['support'].lstrip()}\nQuestion: {found['question']}\nAnswer:"
    assert texts["sciq"] == f"{question} {found['correct_answer']}"
    found = row["social_iqa"]
    answer = found[f"answer{'ABC'[int(found['label']) - 1]}"]
    assert texts["social_iqa"] == f"Q: {found['context']} {found['question']}\nA: {answer}"
    found = row["winogrande"]
    assert texts["winogrande"] == found["sentence"].replace("_", found[f"option{found['answer']}"])


@pytest.mark.parametrize("shots", [0, 1])
def test_all_eight_run_and_their_accuracies_are_those_of_their_items(folder, run, shots):
    lm = DDL(run)
    with open_tasks(folder) as tasks:
        result, items = run_tasks(lm, tasks, shots)
    assert [task["column"] for task in result["tasks"].values()] == [benchmark.column for benchmark in BENCHMARKS]
    assert all(task["n"] == ITEMS for task in result["tasks"].values())
    values = items.groupby("task", sort=False)["correct"].mean()
    assert {name: task["value"] for name, task in result["tasks"].items()} == pytest.approx(values.to_dict())
    assert 0 < result["average"]["value"] < 1
    assert result["average"]["value"] == pytest.approx(values.mean())
    # The answer follows the metric: acc_norm divides by the number of characters in the choice.
    row, found = rows(folder, "piqa")[3], items[items["task"] == "piqa"].iloc[3]
    per_character = np.array(found["log_likelihoods"]) / [len(row["sol1"]), len(row["sol2"])]
    assert found["correct"] == (per_character.argmax() == row["label"])


def test_one_shot_prompts_show_a_training_item(folder, run):
    seen = []

    class Spy(DDL):
        def loglikelihood(self, requests, disable_tqdm=False):
            seen.extend(request.args[0] for request in requests)
            return super().loglikelihood(requests, disable_tqdm)

    with open_tasks(folder, ["social_iqa"]) as tasks:
        run_tasks(Spy(run), tasks, 1)
    demos = [f"Q: {row['context']} {row['question']}\nA: " for row in rows(folder, "social_iqa", "train")]
    tests = [f"Q: {row['context']} {row['question']}\nA:" for row in rows(folder, "social_iqa")]
    assert len(seen) == 3 * ITEMS
    assert all(any(prompt.startswith(demo) for demo in demos) for prompt in seen)
    assert all(any(prompt.endswith(f"\n\n{test}") for test in tests) for prompt in seen)


def test_only_the_tasks_and_shots_asked_for_are_run(folder, run, tmp_path):
    results = evaluate_tasks(DDL(run), folder, tmp_path, ["piqa", "winogrande"], [0])
    assert list(results) == [0]
    assert list(results[0]["tasks"]) == ["piqa", "winogrande"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0shot.json", "0shot.parquet"]
    with pytest.raises(HarnessError, match="no task 'boolq', expected some of arc_challenge, arc_easy"):
        evaluate_tasks(DDL(run), folder, None, ["boolq"], [0])


def test_the_command_line_evaluates_a_run_directory(folder, run, tmp_path, capsys, monkeypatch):
    ddl("evaluate", "--run", run, "--items", folder, "--tasks", "sciq,piqa", "--shots", "0,2", "--out", tmp_path)
    assert capsys.readouterr().out.startswith("0-shot piqa (PIQA): acc_norm ")
    for shots in (0, 2):
        found = json.loads((tmp_path / f"{shots}shot.json").read_text())["tasks"]
        assert {name: task["n"] for name, task in found.items()} == {"piqa": ITEMS, "sciq": ITEMS}


def test_without_the_files_one_sentence_says_what_to_do(run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ddl("evaluate", "--run", run, code=2)
    assert capsys.readouterr().err == (
        "error: results/benchmarks/manifest.json: not found or not a manifest of tasks: on a machine with a network "
        "run ddl benchmarks, and copy results/benchmarks here\n"
    )


def test_without_a_network_prefetching_names_dataset_and_revision(tmp_path, monkeypatch):
    def unreachable(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    monkeypatch.setattr(time, "sleep", lambda _: None)  # between the hub's retries
    with pytest.raises(PrefetchError) as stopped:
        prefetch.prefetch(tmp_path, BENCHMARKS[:1])
    message = str(stopped.value)
    assert message.startswith(f"arc_challenge: dataset allenai/ai2_arc ARC-Challenge at revision {prefetch.ARC[1]} is ")
    assert "\n" not in message
    assert not (tmp_path / "manifest.json").exists()


def test_a_split_that_is_not_whole_is_refused(sources, tmp_path):
    short = dataclasses.replace(sources[0], items=ITEMS + 1)
    with pytest.raises(PrefetchError, match=f"expected {ITEMS + 1} items in the test split of .*, found {ITEMS}"):
        prefetch.prefetch(tmp_path, (short,))


def test_changed_items_are_refused_by_name(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    changed = tmp_path / "sciq.test.parquet"
    changed.write_bytes(changed.read_bytes() + b" ")
    with pytest.raises(HarnessError, match=r"sciq\.test\.parquet: not the items listed in manifest\.json, SHA-256"):
        load_manifest(tmp_path)
    changed.unlink()
    with pytest.raises(HarnessError, match=r"sciq\.test\.parquet: not found"):
        load_manifest(tmp_path)
