"""Validation loss, log-likelihoods for the harness, and what the harness makes of them."""

import json
import math
import os
import random
import shutil

import numpy as np
import pytest
import torch
from offline_data import documents, offline_scale, write_data

from ddl.evaluate import EvaluationError, evaluate_model, evaluate_tasks, main, validation_loss
from ddl.harness import (
    HarnessError,
    Scorer,
    TaskSpec,
    average,
    benchmark_task_specs,
    harness_model,
    load_task,
    offline_manager,
    offline_task_specs,
    prepare_environment,
    run_tasks,
)
from ddl.model import LanguageModel, save_model
from ddl.provenance import sha256_file, write_json
from ddl.sequences import TokenSequences
from ddl.shards import write_shard
from ddl.tasks import TASKS, TaskError, build_tasks
from ddl.tokenizer import load_tokenizer

ITEMS = 24


@pytest.fixture(scope="module", autouse=True)
def offline():
    prepare_environment(offline=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = write_data(tmp_path_factory.mktemp("data"), documents())
    build_tasks(offline_scale(ITEMS), folder, folder / "tasks")
    return folder


@pytest.fixture(scope="module")
def model():
    """Untrained, with weights large enough that its predictions differ."""
    model = LanguageModel(offline_scale(ITEMS).model("small", "baseline"))
    with torch.no_grad():
        model.embedding.weight.mul_(20)
    return model.eval()


@pytest.fixture(scope="module")
def results(data, model):
    return dict(evaluate_tasks(offline_scale(ITEMS), model, data))


def naive(model, context, continuation):
    """One request by itself: log-probability of each token of the continuation from the whole prefix before it."""
    total, greedy = 0.0, True
    for position, token in enumerate(continuation):
        prefix = (context + continuation[:position])[
            -(model.config.sequence_length - len(continuation) + 1 + position) :
        ]
        log_p = model(torch.tensor([prefix]))[0, -1].double().log_softmax(0)
        total += float(log_p[token])
        greedy &= int(log_p.argmax()) == token
    return total, greedy


def assert_same(found, expected):
    assert len(found) == len(expected)
    for (score, greedy), (expected_score, expected_greedy) in zip(found, expected, strict=True):
        assert score == pytest.approx(expected_score, abs=1e-4)
        assert greedy == expected_greedy


@pytest.fixture
def requests(tiny_config):
    """Random requests, each also split at every other place, so that many share an input and differ in the split."""
    rng = random.Random(0)
    pairs = []
    for _ in range(12):
        tokens = [rng.randrange(61) for _ in range(rng.randrange(3, 17))]
        pairs += [(tokens[:split], tokens[split:]) for split in range(1, len(tokens))]
        pairs.append((tokens[:1], [*tokens[1:-1], (tokens[-1] + 1) % 61]))  # the same input, another last token
    rng.shuffle(pairs)
    return pairs


@pytest.mark.parametrize("variant", ["baseline", "ddl-cc", "ddl-tc"])
def test_scores_agree_with_one_request_at_a_time(tiny_config, requests, variant):
    model = LanguageModel(tiny_config(variant)).eval()
    with torch.no_grad():
        model.embedding.weight.mul_(20)
    with torch.no_grad():
        expected = [naive(model, *pair) for pair in requests]
    assert len({score for score, _ in expected}) > 100
    assert_same(Scorer(model, batch_tokens=64).score(requests), expected)
    assert_same(Scorer(model, batch_tokens=1).score(requests), expected)


def test_greedy_continuations_are_recognised(tiny_config):
    model = LanguageModel(tiny_config("baseline")).eval()
    tokens = [5]
    with torch.no_grad():
        for _ in range(4):
            tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    wrong = [*tokens[1:4], (tokens[4] + 1) % 61]
    found = Scorer(model, 64).score([(tokens[:1], tokens[1:]), (tokens[:1], wrong)])
    assert [greedy for _, greedy in found] == [True, False]


def test_scores_do_not_depend_on_the_order_of_requests(tiny_config, requests):
    scorer = Scorer(LanguageModel(tiny_config("ddl-cc")).eval(), batch_tokens=64)
    forward = scorer.score(requests)
    assert_same(scorer.score(requests[::-1])[::-1], forward)


def test_long_prompts_lose_their_left_end(tiny_config):
    scorer = Scorer(LanguageModel(tiny_config("ddl-cc")).eval(), batch_tokens=64)
    tokens = [index % 61 for index in range(40)]
    long, short, shorter = scorer.score(
        [(tokens[:37], tokens[37:]), (tokens[23:37], tokens[37:]), (tokens[24:37], tokens[37:])]
    )
    assert long == short  # 17 tokens: 16 inputs and the last target
    assert long != shorter


@pytest.mark.parametrize("pair", [([], [1]), ([1], []), ([1], [1] * 17)], ids=["no context", "nothing", "too long"])
def test_requests_that_cannot_be_scored_are_refused(tiny_config, pair):
    scorer = Scorer(LanguageModel(tiny_config("baseline")).eval(), batch_tokens=64)
    with pytest.raises(HarnessError, match="request 0: expected some context and 1 to 16 tokens of continuation"):
        scorer.score([pair])


def test_an_empty_prompt_becomes_the_end_of_text_token(data, model):
    from lm_eval.api.instance import Instance

    tokenizer = load_tokenizer(data / "tokenizer.json")
    lm = harness_model(Scorer(model, 1024), tokenizer)
    request = Instance(request_type="loglikelihood", doc={}, arguments=("", " the array"), idx=0)
    with torch.no_grad():
        expected = naive(model, [0], tokenizer.encode(" the array").ids)
    assert_same(lm.loglikelihood([request]), [expected])


def rows(data, name):
    return [json.loads(line) for line in (data / "tasks" / f"{name}.test.jsonl").read_text().splitlines()]


def accuracy(data, model, task):
    """Of a task without demonstrations, from the item file, by the naive score."""
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
        scores = [naive(model, encode(context).ids, encode(text).ids)[0] for context, text in pairs]
        if task.metric == "acc_mutual_info":
            scores = [
                score - naive(model, [0], encode(text).ids)[0] for score, (_, text) in zip(scores, pairs, strict=True)
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
    assert average([{"value": 0.5, "stderr": 0.3, "chance": 0.25}, {"value": 1.0, "stderr": 0.4, "chance": 0.5}]) == (
        pytest.approx({"value": 0.75, "stderr": 0.25, "chance": 0.375})
    )


def test_demonstrations_precede_the_item_and_nothing_is_cut_off(data, model):
    seen = []

    class Spy(Scorer):
        def score(self, pairs):
            seen.extend(pairs)
            return super().score(pairs)

    tokenizer = load_tokenizer(data / "tokenizer.json")
    manifest = json.loads((data / "tasks" / "manifest.json").read_text())
    with offline_manager(data / "tasks", manifest) as manager:
        run_tasks(harness_model(Spy(model, 4096), tokenizer), manager, offline_task_specs(manifest), shots=1)
    demos = [json.loads(line)["query"] for line in (data / "tasks" / "doc_order.train.jsonl").read_text().splitlines()]
    queries = {row["query"] for row in rows(data, "doc_order")}
    prompts = {tokenizer.decode(context) for context, _ in seen}
    matching = [prompt for prompt in prompts if any(prompt.endswith(f"\n\n{query}") for query in queries)]
    assert len(matching) == ITEMS
    assert all(any(prompt.startswith(demo) for demo in demos) for prompt in matching)
    assert max(len(context) + len(text) for context, text in seen) <= model.config.sequence_length + 1


def test_repeated_runs_are_identical(data, model, results):
    again = dict(evaluate_tasks(offline_scale(ITEMS), model, data))
    assert again == results


def test_new_items_under_the_same_size_and_date_are_seen(data, model, tmp_path):
    manifest = json.loads((data / "tasks" / "manifest.json").read_text())
    manifest["tasks"] = {"doc_order": manifest["tasks"]["doc_order"]}
    specs = offline_task_specs(manifest)
    for split in ("test", "train"):
        name = f"doc_order.{split}.jsonl"
        (tmp_path / name).write_bytes((data / "tasks" / name).read_bytes())
    lm = harness_model(Scorer(model, 4096), load_tokenizer(data / "tokenizer.json"))

    path = tmp_path / "doc_order.test.jsonl"
    stamp = path.stat()
    values = []
    for shift in range(4):
        changed = [row | {"gold": (row["gold"] + shift) % 4} for row in rows(data, "doc_order")]
        path.write_text("".join(json.dumps(row) + "\n" for row in changed))
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        assert path.stat().st_size == stamp.st_size
        with offline_manager(tmp_path, manifest) as manager:
            values.append(run_tasks(lm, manager, specs, shots=0)["tasks"]["doc_order"]["value"])
    assert sum(values) == pytest.approx(1.0)  # every prediction is right once
    assert len(set(values)) > 1


def test_changed_items_are_refused(data, model, tmp_path):
    shutil.copytree(data, tmp_path, dirs_exist_ok=True)
    (tmp_path / "tasks" / "doc_pair.test.jsonl").write_text("{}\n")
    with pytest.raises(TaskError, match=r"doc_pair\.test\.jsonl: not the items listed"):
        next(evaluate_tasks(offline_scale(ITEMS), model, tmp_path))


def test_a_missing_benchmark_is_named():
    class Manager:
        def load(self, names):
            raise ConnectionError("no network")

    with pytest.raises(HarnessError, match=r"^arc_challenge: dataset allenai/ai2_arc ARC-Challenge is neither cached"):
        load_task(Manager(), benchmark_task_specs()[0], 0)
    with pytest.raises(ConnectionError):  # of a local task that would be no help
        load_task(Manager(), TaskSpec("ARC-C", "doc_cloze_hard", "acc", 0.25), 0)


def test_benchmarks_are_scored_by_the_metrics_of_the_paper():
    metrics = {spec.task: spec.metric for spec in benchmark_task_specs()}
    assert [name for name, metric in metrics.items() if metric == "acc"] == ["social_iqa", "winogrande"]
    assert set(metrics.values()) == {"acc", "acc_norm"}
    assert [spec.column for spec in benchmark_task_specs()] == [task.column for task in TASKS]


def test_validation_loss_is_the_mean_over_all_sequences(tiny_config, tmp_path):
    model = LanguageModel(tiny_config("ddl-cc")).eval()
    tokens = np.random.default_rng(0).integers(0, 61, 16 * 5 + 9).astype(np.uint16)  # five windows and a rest
    for split in ("train", "val"):
        write_shard(tmp_path / f"{split}_000000.bin", tokens)
    entry = {"file": "val_000000.bin", "tokens": len(tokens), "sha256": sha256_file(tmp_path / "val_000000.bin")}
    split = {"documents": 1, "bytes": 1, "tokens": len(tokens), "shards": [entry]}
    tokenizer = {"name": "bpe", "vocab_size": 61, "file": "tokenizer.json", "sha256": "0" * 64}
    write_json(tmp_path / "manifest.json", {"tokenizer": tokenizer, "splits": {"train": split, "val": split}})
    data = TokenSequences(tmp_path / "manifest.json", "val", 16)
    means = []
    for start in range(0, 80, 16):
        window = torch.from_numpy(tokens[start : start + 17].astype(np.int64))
        with torch.no_grad():
            log_p = model(window[None, :-1])[0].double().log_softmax(-1)
        means.append(-float(log_p[torch.arange(16), window[1:]].mean()))
    for batch_tokens in (1, 48, 4096):
        found = validation_loss(model, data, batch_tokens, torch.float32)
        assert found["val_loss"] == pytest.approx(np.mean(means), abs=1e-5)
        assert found["val_loss_stderr"] == pytest.approx(np.std(means, ddof=1) / math.sqrt(5), abs=1e-5)
        assert found["val_perplexity"] == pytest.approx(math.exp(np.mean(means)), rel=1e-4)
        assert found["tokens"] == 80


def test_command_line_writes_every_file(data, tmp_path, monkeypatch, capsys):
    scale = offline_scale(ITEMS)
    monkeypatch.setattr("ddl.evaluate.load_scale", lambda name: scale)
    save_model(LanguageModel(scale.model("small", "ddl-cc")), tmp_path / "run")
    common = ["--scale", "smoke", "--data", str(data)]
    main([*common, "--run", str(tmp_path / "run"), "--out", str(tmp_path / "trained")])
    random_init = ["--random-init", "--size", "small", "--variant", "ddl-cc", "--out", str(tmp_path / "random")]
    main([*common, *random_init])
    for name in ("validation.json", "0shot.json", "1shot.json"):
        trained, control = (json.loads((tmp_path / run / name).read_text()) for run in ("trained", "random"))
        assert trained.pop("provenance")["versions"]["lm_eval"]
        control.pop("provenance")
        assert trained == control  # the saved weights are the untrained ones
    assert control["shots"] == 1
    assert list(control["tasks"]["doc_pair"]) == [
        "column", "metric", "value", "stderr", "n", "chance", "acc", "acc_norm",
    ]  # fmt: skip
    assert control["tasks"]["doc_pair"]["acc_norm"] is None
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 2 * (1 + 2 * 9)
    assert captured.err == ""


def test_a_model_of_another_vocabulary_is_refused(data, tiny_config, tmp_path):
    model = LanguageModel(tiny_config("baseline")).eval()
    with pytest.raises(EvaluationError, match="expected a model with vocabulary 1024"):
        evaluate_model(offline_scale(ITEMS), model, data, tmp_path)


def test_control_and_trained_run_exclude_each_other(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--scale", "smoke", "--random-init", "--data", "d", "--out", "o"])
    assert stopped.value.code == 2
    assert "--random-init needs --size and --variant" in capsys.readouterr().err
