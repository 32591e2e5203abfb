"""The items of the offline tasks, built from real documents, have the properties that the tasks claim."""

import dataclasses
import json
import random
from collections import Counter

import pytest

from ddl.config import load_scale
from ddl.data.tokenizer import load_tokenizer
from ddl.evaluation.lm_eval_tasks import HarnessError, load_manifest
from ddl.evaluation.offline_tasks import item_builders as items
from ddl.evaluation.offline_tasks.build import TASKS, TaskError, build_tasks, chance_stderr, guess
from ddl.evaluation.offline_tasks.prose_lines import Line, Statistics, read_documents, read_lines
from ddl.files import write_json
from tests.helpers.command import ddl
from tests.helpers.offline_data import documents, offline_scale, write_data

ITEMS, MANY_ITEMS = 40, 100
COLUMNS = ["ARC-C", "ARC-E", "Hellaswag", "OpenBookQA", "PIQA", "SciQ", "Social IQA", "WG"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"), documents())


@pytest.fixture(scope="module")
def built(data):
    return build_tasks(offline_scale(ITEMS), data, data / "tasks")


@pytest.fixture(scope="module")
def large(data):
    return build_tasks(offline_scale(MANY_ITEMS), data, data / "large")


def make_line(text, group):
    return Line("document", group, (), "", tuple(text.split()))


def rows(data, name, split="test"):
    return [json.loads(line) for line in (data / "tasks" / f"{name}.{split}.jsonl").read_text().splitlines()]


def choices(task, row):
    return [row["option1"], row["option2"]] if task.winogrande else row["choices"]


def gold(task, row):
    return int(row["answer"]) - 1 if task.winogrande else row["gold"]


def continued(task, row):
    """The query with its gold choice, as in the document."""
    choice = choices(task, row)[gold(task, row)]
    return row["sentence"].replace("_", choice) if task.winogrande else f"{row['query']} {choice}"


def test_same_documents_give_the_same_bytes(data, built, tmp_path):
    again = build_tasks(offline_scale(ITEMS), data, tmp_path)
    assert [task["test"]["sha256"] for task in again["tasks"].values()] == [
        task["test"]["sha256"] for task in built["tasks"].values()
    ]
    for path in sorted(tmp_path.glob("*.jsonl")):
        assert path.read_bytes() == (data / "tasks" / path.name).read_bytes()


def test_manifest_has_the_columns_of_the_paper_in_order(built):
    assert [task["column"] for task in built["tasks"].values()] == COLUMNS
    assert [task["chance"] for task in built["tasks"].values()] == [1 / task.choices for task in TASKS]
    assert all(task["test"]["n"] == ITEMS for task in built["tasks"].values())


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_gold_choices_stand_in_a_held_out_document(data, built, task):
    texts = {document.id: " ".join(document.text.split()) for document in documents()["val"]}
    for row in rows(data, task.name) + rows(data, task.name, "train"):
        assert " ".join(continued(task, row).split()) in texts[row["document"]]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_gold_positions_are_balanced_and_choices_differ(data, built, task):
    found = rows(data, task.name)
    positions = Counter(gold(task, row) for row in found)
    assert len(positions) == task.choices
    assert max(positions.values()) - min(positions.values()) <= 1
    assert all(len(set(choices(task, row))) == task.choices for row in found)


def test_no_line_serves_two_items(data, built):
    lines = read_lines(list(read_documents(data / "documents" / "val.jsonl")))
    texts: dict[str, list[str]] = {}
    for line in lines:
        texts.setdefault(line.document, []).append(line.text)
    used = []
    for task in TASKS:
        for split in ("test", "train"):
            for row in rows(data, task.name, split):
                ending = continued(task, row).split("\n")[-1].strip()
                found = [text for text in texts[row["document"]] if text.startswith(ending)]
                assert found
                if len(found) == 1:  # two lines of a document may have the same beginning
                    used += found
    assert len(used) > 0.9 * len(TASKS) * ITEMS
    assert len(set(used)) == len(used)


def test_a_line_that_stands_in_two_documents_is_taken_once():
    text = "this sentence is repeated in every module of it"
    found = read_lines([{"id": name, "source": "alpha", "text": text} for name in ("first", "second")])
    assert [line.document for line in found] == ["first"]


def test_demonstrations_come_from_other_documents(data, built):
    sources = {
        split: {row["document"] for task in TASKS for row in rows(data, task.name, split)}
        for split in ("test", "train")
    }
    assert sources["train"]
    assert not sources["train"] & sources["test"]


def test_a_document_gives_a_task_few_items(data, large):
    counts = []
    for task in TASKS:
        lines = (data / "large" / f"{task.name}.test.jsonl").read_text().splitlines()
        counts.append(max(Counter(json.loads(line)["document"] for line in lines).values()))
    assert max(counts) == 10


def test_an_item_with_its_demonstration_fits_the_model(data, built):
    tokenizer = load_tokenizer(data / "tokenizer.json")

    def longest(split):
        texts = [continued(task, row) for task in TASKS for row in rows(data, task.name, split)]
        texts += [f"{row['query']} {choice}" for row in rows(data, "doc_ending", split) for choice in row["choices"]]
        return max(texts, key=lambda text: len(tokenizer.encode(text).ids))

    prompt = f"{longest('train')}\n\n{longest('test')}"
    assert len(tokenizer.encode(prompt).ids) <= load_scale("smoke").sequence_length


def test_lines_that_occur_in_training_are_dropped(data, built, tmp_path):
    def used(folder):
        return Counter(row["document"] for task in TASKS for row in rows(folder, task.name))

    splits = documents()
    name = used(data).most_common(1)[0][0]
    leaked = next(document for document in splits["val"] if document.id == name)
    indented = dataclasses.replace(leaked, id="copy", text=leaked.text.replace("\n", "\n  "))
    write_data(tmp_path, {"train": [*splits["train"], indented], "val": splits["val"]})
    build_tasks(offline_scale(ITEMS), tmp_path, tmp_path / "tasks")
    assert used(tmp_path)[name] == 0


def test_more_items_than_lines_is_a_clear_error(data, tmp_path):
    with pytest.raises(TaskError, match=r"doc_number: \d+ test items found among \d+ held-out lines, 5000 needed"):
        build_tasks(offline_scale(5000), data, tmp_path)


def test_distractors_leave_the_gold_at_every_rank_equally_often():
    words = [f"word{index:04d}" for index in range(400)]
    rng = random.Random(0)
    slots = Counter()
    for _ in range(4000):
        chosen = words[rng.randrange(3, len(words) - 3)]
        slot, others = items.near(words, chosen, 3, rng)
        assert len({chosen, *others}) == 4
        assert slot == sum(other < chosen for other in others)
        slots[slot] += 1
    assert all(abs(slots[slot] / 4000 - 0.25) < 3 * chance_stderr(0.25, 4000) for slot in range(4))
    # Words near an end are refused for every draw: refusing only for some draws would bias the slots.
    assert all(items.near(words, words[2], 3, rng) is None for _ in range(20))


def test_order_choices_cannot_be_told_by_their_distances():
    line = make_line("we show that the two orders of a line are alike", "alpha")
    item = items.order(line, Statistics(Counter()), random.Random(1))
    texts = [item.gold, *item.others]

    def distance(first, second):
        return sum(a != b for a, b in zip(first.split(), second.split(), strict=True))

    profiles = {tuple(sorted(distance(text, other) for other in texts)) for text in texts}
    assert profiles == {(0, 2, 2, 4)}
    assert len({tuple(sorted(text.split())) for text in texts}) == 1


def test_number_golds_are_balanced_over_form_and_frequency(data, built):
    found = [row["choices"][row["gold"]].split()[0].strip(".,;:") for row in rows(data, "doc_number")]
    assert sum(word.endswith("s") for word in found) == ITEMS // 2
    assert built["tasks"]["doc_number"]["checks"]["unigram"]["value"] == 0.5


def test_function_word_golds_are_balanced(data, built):
    found = Counter(row["choices"][row["gold"]].split()[0] for row in rows(data, "doc_function_word"))
    assert set(found.values()) == {ITEMS // len(items.PREPOSITIONS)}


def test_hard_cloze_shows_none_of_its_choices_in_the_query(data, built):
    for row in rows(data, "doc_cloze_hard"):
        seen = set(items.WORD.findall(row["query"].lower()))
        assert not seen & {choice.split()[0].strip(".,;:") for choice in row["choices"]}


def test_pair_sentences_have_one_blank(data, built):
    assert all(row["sentence"].count("_") == 1 for row in rows(data, "doc_pair"))


@pytest.mark.parametrize("check", ["unigram", "shortest"])
def test_guessing_without_reading_is_near_chance(large, check):
    values = {name: task["checks"][check]["value"] for name, task in large["tasks"].items()}
    for task in TASKS:
        assert abs(values[task.name] - task.chance) <= 3 * chance_stderr(task.chance, MANY_ITEMS), task.name
        assert large["tasks"][task.name]["checks"][check]["ok"]
    mean = sum(values.values()) / len(TASKS)
    chance = sum(task.chance for task in TASKS) / len(TASKS)
    assert abs(mean - chance) < 0.05


def test_a_check_shares_ties_and_fails_where_a_guess_works():
    task = next(task for task in TASKS if task.name == "doc_cloze")
    found = [{"choices": ["aa", "bb", "ccc", "dddd"], "gold": 0}] * 50
    tied = guess(task, found, lambda text: -float(len(text)))
    assert tied["value"] == 0.5
    assert not tied["ok"]
    even = guess(task, found, lambda text: 0.0)
    assert even["value"] == 0.25
    assert even["ok"]


def test_changed_or_missing_items_are_refused_by_name(data, built, tmp_path):
    for path in (data / "tasks").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert load_manifest(tmp_path) == built
    changed = tmp_path / "doc_order.test.jsonl"
    changed.write_text(changed.read_text().replace('"gold": 0', '"gold": 1', 1))
    with pytest.raises(HarnessError, match=r"doc_order\.test\.jsonl: not the items listed in manifest\.json"):
        load_manifest(tmp_path)
    changed.unlink()
    with pytest.raises(HarnessError, match=r"doc_order\.test\.jsonl: not found"):
        load_manifest(tmp_path)
    with pytest.raises(HarnessError, match=r"not a manifest of tasks: run ddl tasks"):
        load_manifest(tmp_path / "nowhere")


def test_a_corpus_without_documents_is_one_line_and_exit_code_2(data, tmp_path, capsys):
    manifest = json.loads((data / "manifest.json").read_text()) | {"documents": None}
    write_json(tmp_path / "manifest.json", manifest)
    ddl("tasks", "--scale", "smoke", "--data", tmp_path, "--out", tmp_path / "tasks", code=2)
    error = capsys.readouterr().err
    assert "a corpus that keeps its documents" in error
    assert error.count("\n") == 1


def test_distractor_endings_come_from_other_packages():
    endings = {4: [("alpha", f"ending of alpha {index}") for index in range(9)] + [("beta", "the one of beta")] * 9}
    line = make_line("this line has an ending that is beta", "beta")
    item = items.ending(line, Statistics(Counter(), endings=endings), random.Random(0))
    assert all("alpha" in other for other in item.others)
