"""Two tasks in one column of the accuracy tables, from the entry in TASKS to the table cell."""

import json
import math

import pandas as pd
import pytest

from ddl.evaluation.columns import by_column
from ddl.evaluation.lm_eval_model import DDL
from ddl.evaluation.lm_eval_tasks import prepare_environment
from ddl.evaluation.offline_tasks import build
from ddl.evaluation.offline_tasks import item_builders as items
from ddl.evaluation.run import evaluate_tasks
from ddl.files import write_json
from ddl.layout import BASELINE
from ddl.model.language_model import LanguageModel
from ddl.reporting.accuracy_tables import differences, downstream_table
from ddl.reporting.read_results import Results
from tests.helpers import fake_results
from tests.helpers.offline_data import documents, offline_scale, write_data

ITEMS = 12


def result(column, value, n=100, **more):
    return {"column": column, "metric": "acc", "value": value, "stderr": 0.1, "n": n, "chance": 0.25, **more}


def test_a_column_with_one_task_shows_it_and_one_with_several_their_items_together():
    alone = result("WG", 1 / 3)
    first, second = result("SciQ", 0.2, task="a"), result("SciQ", 0.6, n=300, task="b", metric="acc_norm")
    columns = by_column([first, alone, second])
    assert list(columns) == ["SciQ", "WG"]
    assert columns["WG"] is alone
    assert columns["SciQ"] == {
        "column": "SciQ",
        "task": "a, b",
        "metric": "acc, acc_norm",
        "value": pytest.approx(0.5),
        "stderr": pytest.approx(math.hypot(10, 30) / 400),
        "n": 400,
        "chance": pytest.approx(0.25),
    }


def test_a_row_more_in_tasks_leaves_the_other_items_as_they_are_and_is_evaluated(tmp_path, monkeypatch):
    prepare_environment()
    data, scale = write_data(tmp_path / "data", documents()), offline_scale(ITEMS)
    before = build.build_tasks(scale, data, data / "before")["tasks"]
    extra = build.Task("doc_my_task", "SciQ", 4, "acc", 4, items.last_word)
    monkeypatch.setattr(build, "TASKS", (*build.TASKS, extra))
    after = build.build_tasks(scale, data, data / "tasks")["tasks"]
    assert {name: after[name]["test"] for name in before} == {name: task["test"] for name, task in before.items()}
    model = LanguageModel(scale.model("small", BASELINE)).eval()
    found = evaluate_tasks(DDL(model, data / "tokenizer.json", device="cpu"), data / "tasks", None)[0]
    tasks = found["tasks"]
    columns = {task["column"]: task["value"] for task in tasks.values()}
    columns["SciQ"] = (tasks["doc_last_word"]["value"] + tasks["doc_my_task"]["value"]) / 2
    assert len(tasks) == 9
    assert found["average"]["value"] == pytest.approx(sum(columns.values()) / 8)


def test_tables_pool_the_items_of_two_tasks_of_one_column(tmp_path):
    folder = fake_results.write(tmp_path)
    for path in folder.glob("evals/**/1shot.json"):
        found, answers = json.loads(path.read_text()), pd.read_parquet(path.with_suffix(".parquet"))
        easy = found["tasks"]["doc_last_word"] | {"value": 1.0}
        write_json(path, found | {"tasks": found["tasks"] | {"doc_my_task": easy}})
        more = answers[answers["task"] == "doc_last_word"].assign(task="doc_my_task", correct=True)
        pd.concat([answers, more]).to_parquet(path.with_suffix(".parquet"))
    results = Results(folder)
    table = downstream_table(results, "small", 1)
    ours = table[table["block"].str.startswith("Ours")].set_index("Model")
    one = json.loads((folder / "evals/small/ddl-cc/seed0/1shot.json").read_text())["tasks"]["doc_last_word"]["value"]
    assert ours.loc["Stand-in task, metric", "SciQ"] == "doc_last_word, doc_my_task, acc"
    assert ours.loc["DDL-CC", "SciQ"] == f"{100 * (one + 1) / 2:.1f}"
    assert ours.loc["DDL-CC", "SciQ ±"] == f"{100 * math.hypot(0.0238, 0.0238) / 2:.1f}"
    base = results.outcomes("small", BASELINE, 0, 1)["SciQ"]
    assert len(base) == 2 * fake_results.N
    expected = results.outcomes("small", "ddl-cc", 0, 1)["SciQ"].mean() - base.mean()
    assert differences(results, "small", 1)["ddl-cc"]["SciQ"].value == pytest.approx(expected)
