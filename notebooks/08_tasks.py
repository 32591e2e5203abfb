# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What do the tasks ask, and can their scores be trusted?
#
# The paper scores its models on eight multiple-choice benchmarks. Where they are available, they are downloaded at
# pinned revisions and run in full, as lm-evaluation-harness defines them. The offline scales replace each benchmark by
# a stand-in: a task made from held-out documents of the corpus, with the same number of choices as the benchmark and
# nothing else in common with it. This page is the data card for the tasks of this scale. It describes how they are
# made, shows an item of each, and checks for three reasons why a score could mean less than it seems: the task can be
# solved without reading the text, an untrained model can solve it, or its items are in the training data.

# %% tags=["parameters"]
results = "results/laptop"

# %%
import json
from collections import Counter
from pathlib import Path

import pandas as pd
from IPython.display import Markdown

from ddl.config import SHOTS
from ddl.evaluation.contamination import NGRAMS
from ddl.evaluation.lm_eval_tasks import load_manifest, task_folder
from ddl.evaluation.offline_tasks.build import SIGMAS, TASKS, chance_stderr
from ddl.reporting.read_results import Results
from ddl.reporting.table_format import DASH, cell

data = Results(results)
folder = task_folder(data.scale, Path(results) / "data")
manifest = load_manifest(folder)
offline = data.scale.evaluation.tasks == "offline"
scores = {shots: json.loads((data.path / f"evals/random-init/{shots}shot.json").read_text()) for shots in SHOTS}
touched = json.loads((data.path / "contamination.json").read_text(encoding="utf-8"))["tasks"]


def strategies(name: str) -> dict[str, float]:
    """Strategy that needs no reading or no learning -> its accuracy on a task; NaN if it does not apply."""
    guesses = {check: found["value"] for check, found in manifest["tasks"][name].get("checks", {}).items()}
    return guesses | {f"untrained, {shots}-shot": scores[shots]["tasks"][name]["value"] for shots in SHOTS}


def distance(name: str, accuracy: float) -> float:
    """How far an accuracy is from chance, in standard errors."""
    task = manifest["tasks"][name]
    return abs(accuracy - task["chance"]) / chance_stderr(task["chance"], task["n"])


distances = [distance(name, value) for name in manifest["tasks"] for value in strategies(name).values()]
distances = [each for each in distances if each == each]
long = [found[str(max(NGRAMS))] for found in touched.values()]
whole = [found["all"] for found in long if "all" in found]
asked = "which word, order or number is plausible in a text" if offline else "what the published benchmarks ask"
Markdown(
    f"**Answer.** **The {len(manifest['tasks'])} tasks of this scale ask {asked}. Without reading or without learning, "
    f"scores end at most {max(distances):.1f} standard errors from chance, in {len(distances)} tries."
    + (f" At most {100 * max(whole):.1f} % of a task's items are in the training data as a whole." if whole else "")
    + f"** {data.scale.title} scale, tasks in `{folder}`."
)

# %% [markdown]
# ## The card
#
# A stand-in item is made from one line of held-out prose, from a docstring or a page of documentation; the line is in
# no training document. The model sees the preceding lines and the beginning of the line, and chooses how it continues.
# The tasks measure whether the model knows what is plausible *locally* (which word, which order, which number). That is
# what a model with a million parameters learns from a million tokens; on questions about content it would score at
# chance.

# %%
builders = {task.name: " ".join((task.build.__doc__ or "").split("\n\n")[0].split()) for task in TASKS}
card = pd.DataFrame(
    [
        {
            "stands for" if offline else "column": task["column"],
            "task": name,
            "items": task["n"],
            "demonstrations": task["train"]["n"],
            "chance, %": cell(100 * task["chance"], 1),
            "metric": task["metric"],
            "made of": builders[name]
            if offline
            else f"{task['dataset']} {task['configuration'] or ''} at {task['revision'][:10]}, split {task['split']}",
        }
        for name, task in manifest["tasks"].items()
    ]
)
card.style.hide(axis="index")


# %% [markdown]
# ## An item of each
#
# An arrow marks the right choice. In the last task the options are inserted in the text, and the score is that of the
# rest of the line.


# %%
def first_item(name: str) -> dict:
    """The first test item of a task, as stored in its file."""
    path = folder / manifest["tasks"][name]["test"]["file"]
    if path.suffix == ".parquet":
        return {key: str(value) for key, value in pd.read_parquet(path).iloc[0].items()}
    return json.loads(path.read_text(encoding="utf-8").split("\n", 1)[0])


def show(item: dict) -> str:
    """An item as text: the query, followed by its choices."""
    if "choices" not in item or not isinstance(item["choices"], list):
        return "\n".join(f"{key}: {value}" for key, value in item.items() if key != "document")
    marks = ["->" if index == item["gold"] else "  " for index in range(len(item["choices"]))]
    return "\n".join([item["query"], *(f"  {mark} {text}" for mark, text in zip(marks, item["choices"], strict=True))])


for name, task in manifest["tasks"].items():
    print(f"{name} ({task['column']})\n{show(first_item(name))}\n")

# %% [markdown]
# ## How the stand-ins avoid shortcuts
#
# - A line is used by one task only, so the columns of a table are not correlated through shared text.
# - Lines that occur in a training document are dropped.
# - Demonstrations and test items come from different documents, so no prompt contains an answer.
# - A document contributes at most ten items to a task; otherwise a few large generated modules would make up most of
#   it.
# - Without the text, the choices of an item cannot be told apart. How many distractors are more frequent than the right
#   word is random; if distractors were always chosen from both sides, "the one in the middle" would be a winning guess.
#   Endings have the same number of words, orders are the four elements of a swap group, and prepositions and plural
#   forms are balanced.
# - The right choice is at every position equally often.

# %%
if offline:
    lines = manifest["lines"]
    print(f"{lines['held_out']} held-out lines, {lines['in_training']} of them dropped: they are also in training")
    print(f"test items use {lines['test']['used']} of {lines['test']['lines']} lines, none of them twice")
    for name in manifest["tasks"]:
        text = (folder / manifest["tasks"][name]["test"]["file"]).read_text(encoding="utf-8")
        items = [json.loads(line) for line in text.splitlines()]
        positions = Counter(item.get("gold", item.get("answer")) for item in items)
        assert max(positions.values()) - min(positions.values()) <= 1, name
        assert max(Counter(item["document"] for item in items).values()) <= 10, name
    print("right choices: at every position equally often; documents: at most ten items per task")
else:
    print("The benchmarks are used as they are, in full.")

# %% [markdown]
# ## Can they be solved without reading, or without learning?
#
# Three strategies should score at chance: picking the choice that is most frequent by the word counts of the training
# documents, picking the shortest choice, and a model with its initial weights. On a fair task, 997 of 1,000 results are
# within three standard errors of chance; a star marks results outside that range.

# %%
rows = []
for name, task in manifest["tasks"].items():
    row = {"task": name, "chance, %": cell(100 * task["chance"], 1)}
    for strategy, value in strategies(name).items():
        row[f"{strategy}, %"] = cell(100 * value, 1) + (" *" if distance(name, value) > SIGMAS else "")
    rows.append(row)
pd.DataFrame(rows).style.hide(axis="index")

# %%
assert max(distances) < 5, "a task can be solved without reading or learning; its column would mean nothing"

# %% [markdown]
# ## Are items in the training data?
#
# Held-out documents repeat phrases, and sometimes whole sentences, of training documents. For each item, including its
# right answer, we search the training shards for every sequence of eight and of thirteen consecutive tokens. Eight
# shared tokens are often just a common phrase; thirteen are rarely shared by accident. Items that match *as a whole*
# would be a real leak.

# %%
pd.DataFrame(
    [
        {"task": name}
        | {
            f"{n} tokens: {what}, %": cell(100 * found[str(n)][key], 1) if key in found[str(n)] else DASH
            for n in NGRAMS
            for what, key in (("some", "any"), ("all", "all"))
        }
        for name, found in touched.items()
    ]
).style.hide(axis="index")

# %% [markdown]
# ## What was and was not shown
#
# The checks limit how much of a score can come from frequency, length, position and chance, and the search limits how
# much can come from copies of the items. They do not show that a task measures what its name says, or that the training
# data do not express the content of an item in other words. `11_downstream` has the scores, including those on the
# items without a match.
