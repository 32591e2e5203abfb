"""Contamination: the n-grams of evaluation items that occur in training shards."""

import json
import math

import numpy as np
import pandas as pd
import pytest

import ddl.evaluation.contamination
from ddl.data.shard_format import write_shard
from ddl.data.tokenizer import load_tokenizer
from ddl.evaluation.contamination import NGRAMS, measure, summarize
from ddl.evaluation.offline_tasks.build import TASKS, build_tasks
from ddl.files import sha256_file
from tests.helpers.command import ddl as command
from tests.helpers.offline_data import documents, offline_scale, write_data


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = write_data(tmp_path_factory.mktemp("data"), documents())
    build_tasks(offline_scale(20), folder, folder / "tasks")
    return folder


@pytest.fixture
def corpus(data, tmp_path):
    """A copy of the data, and a function that makes given texts its training shards, one shard per text."""
    for name in ("manifest.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((data / name).read_bytes())

    def write(*texts):
        encode = load_tokenizer(tmp_path / "tokenizer.json").encode
        manifest = json.loads((tmp_path / "manifest.json").read_text())
        shards = []
        for index, text in enumerate(texts):
            path = tmp_path / f"train_{index:06d}.bin"
            tokens = encode(text).ids
            write_shard(path, np.array(tokens, dtype=np.uint16))
            shards.append({"file": path.name, "tokens": len(tokens), "sha256": sha256_file(path)})
        manifest["splits"]["train"]["shards"] = shards
        (tmp_path / "manifest.json").write_text(json.dumps(manifest))

    return tmp_path, write


def naive(tokens, corpus, n):
    known = {tuple(corpus[i : i + n]) for i in range(len(corpus) - n + 1)}
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return sum(gram in known for gram in grams) / len(grams) if grams else math.nan


@pytest.mark.parametrize("chunk", [3, 50, 1 << 22])
def test_shares_agree_with_a_search_by_hand(corpus, monkeypatch, chunk):
    monkeypatch.setattr(ddl.evaluation.contamination, "CHUNK", chunk)
    folder, write = corpus
    leaked = "returns the eigenvalues of a square matrix in ascending order and their multiplicities as well"
    write("an array of the given shape and type. " * 4, f"nothing here\n{leaked}, which is known\nthe end of it all")
    texts = {
        "first": [
            f"it {leaked} today",
            "an array of the given shape and type. An array",
            "words of no document whatever",
        ],
        "second": ["short", f"x {leaked[:60]} y"],
    }
    found = measure(texts, folder)
    encode = load_tokenizer(folder / "tokenizer.json").encode
    shards = [
        "an array of the given shape and type. " * 4,
        f"nothing here\n{leaked}, which is known\nthe end of it all",
    ]
    for row in found.itertuples():
        tokens = encode(texts[row.task][row.item]).ids
        for n in NGRAMS:
            # No text shares n-grams with both shards, so the share over both is the larger of the two.
            expected = [naive(tokens, encode(text).ids, n) for text in shards]
            share = getattr(row, f"share_{n}")
            assert share == pytest.approx(max(expected)) or (math.isnan(share) and math.isnan(expected[0]))
    assert found["share_8"].max() > 0.5
    assert math.isnan(found[found["task"] == "second"]["share_13"].iloc[0])


def test_summary_counts_items_with_any_and_with_all_ngrams():
    shares = [0.0, 0.5, 1.0, math.nan]
    items = pd.DataFrame({"task": "t", "item": range(4), "share_8": shares, "share_13": [math.nan] * 4})
    assert summarize(items)["t"] == {
        "8": {"items": 3, "any": pytest.approx(2 / 3), "all": pytest.approx(1 / 3)},
        "13": {"items": 0},
    }


def test_command_line_writes_the_shares_of_every_task(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("ddl.cli.load_scale", lambda name: offline_scale(20))
    for name in ("first", "second"):
        command("contamination", "--scale", "smoke", "--data", data, "--out", tmp_path / name)
    files = [(tmp_path / name / "contamination.parquet").read_bytes() for name in ("first", "second")]
    assert files[0] == files[1]
    items = pd.read_parquet(tmp_path / "first" / "contamination.parquet")
    assert items.groupby("task", sort=False).size().to_dict() == {task.name: 20 for task in TASKS}
    summary = json.loads((tmp_path / "first" / "contamination.json").read_text())["tasks"]
    assert list(summary) == [task.name for task in TASKS]
    assert capsys.readouterr().out.count("items with an n-gram that occurs in training") == 16


def test_an_item_that_was_trained_on_is_found_whole(data, corpus):
    folder, write = corpus
    line = json.loads((data / "tasks" / "doc_ending.test.jsonl").read_text().splitlines()[0])
    solved = f"{line['query']} {line['choices'][line['gold']]}"
    write(f"{solved}\nand more text", "other text")
    row = measure({"task": [solved]}, folder).iloc[0]
    assert row["share_8"] == 1.0
