"""Files that are damaged, edited or made up: each reader takes one or raises a `UserError`, and nothing else.

Every file starts from a good one. Hypothesis then replaces, cuts or inserts bytes, or replaces or removes one value at
any place of a JSON or YAML document.
"""

import copy
import hashlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ddl import config
from ddl.config import Scale, Study, Variant, from_mapping, load_scale, load_study
from ddl.data.documents import read_corpus
from ddl.data.sequences import TokenSequences
from ddl.data.shard_format import read_shard, write_shard
from ddl.data.tokenizer import load_tokenizer
from ddl.errors import UserError
from ddl.evaluation.lm_eval_tasks import load_manifest
from ddl.files import write_json
from ddl.layout import ROOT
from ddl.model.run_files import load_model
from ddl.reporting.read_results import Results
from ddl.training.run import Progress, Run
from tests.helpers.tiny_run import tiny_scale, write_data

EXAMPLES = settings(
    max_examples=25,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.sampled_from(["", "..", "/", "a\0b", "\ud800", "1e3", "baseline", "float32"])
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)


@st.composite
def changed_bytes(draw, content: bytes) -> bytes:
    """Bytes with one part replaced by others."""
    start = draw(st.integers(0, len(content)))
    end = draw(st.integers(start, min(len(content), start + draw(st.sampled_from([0, 1, 4, 64, len(content)])))))
    return content[:start] + draw(st.binary(max_size=16)) + content[end:]


@st.composite
def changed_value(draw, document: Any) -> Any:
    """A document with the value at one place replaced or removed, at any depth."""
    document = copy.deepcopy(document)
    place = document
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return document
        key = draw(st.sampled_from(keys))
        if isinstance(place[key], (dict, list)) and place[key] and draw(st.booleans()):
            place = place[key]
            continue
        if draw(st.booleans()):
            place[key] = draw(JSON_VALUES)
        else:
            del place[key]
        return document


def accepts_or_says_why(read, *arguments) -> Any:
    """Call a reader; a `UserError` must be one line."""
    try:
        return read(*arguments)
    except UserError as error:
        said = str(error)
    assert said.strip()
    assert "\n" not in said
    return None


def dumped(document: Any) -> bytes:
    return json.dumps(document).encode("utf-8", "surrogatepass")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Shards, tokenizer and manifest of a tiny corpus."""
    return write_data(tmp_path_factory.mktemp("corpus") / "data").parent


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> Path:
    """A finished tiny run, with its checkpoints."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert Run(tiny_scale(), "small", "ddl-cc", 0, data / "manifest.json", folder).train()
    return folder


def copied_checkpoints(run: Path, copy: Path) -> Path:
    """Copy a run, replacing an earlier copy, and return the folder of its checkpoints."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(run, copy)
    return next((copy / "checkpoints").glob("*/"))


@EXAMPLES
@given(st.data())
def test_a_shard(tmp_path, draws):
    path = tmp_path / "shard.bin"
    write_shard(path, np.arange(40) % 7)
    path.write_bytes(draws.draw(changed_bytes(path.read_bytes())))
    tokens = accepts_or_says_why(read_shard, path, 7)
    assert tokens is None or (tokens.max() < 7 and len(tokens))


@EXAMPLES
@given(st.data())
def test_the_manifest_of_shards(data, tmp_path, draws):
    folder = tmp_path / "data"
    shutil.copytree(data, folder, dirs_exist_ok=True)
    document = json.loads((data / "manifest.json").read_text())
    (folder / "manifest.json").write_bytes(dumped(draws.draw(changed_value(document))))
    accepts_or_says_why(TokenSequences, folder / "manifest.json", "train", 16)


@EXAMPLES
@given(st.data())
def test_the_manifest_of_tasks(tmp_path, draws):
    (tmp_path / "items.jsonl").write_text("{}\n")
    items = {"file": "items.jsonl", "sha256": hashlib.sha256(b"{}\n").hexdigest()}
    task = {"column": "PIQA", "metric": "acc", "chance": 0.5, "winogrande": False, "train": items, "test": items}
    document = draws.draw(changed_value({"tasks": {"a": task, "b": task}}))
    (tmp_path / "manifest.json").write_bytes(dumped(document))
    accepts_or_says_why(load_manifest, tmp_path)


@EXAMPLES
@given(st.data())
def test_the_config_of_a_model(trained, tmp_path, draws):
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(trained / name, tmp_path / name)
    document = draws.draw(changed_value(json.loads((trained / "config.json").read_text())))
    (tmp_path / "config.json").write_bytes(dumped(document))
    accepts_or_says_why(load_model, tmp_path)


@EXAMPLES
@given(st.data())
@pytest.mark.parametrize(("name", "read"), [("model.safetensors", load_model), ("config.json", load_model)])
def test_the_bytes_of_a_model(trained, tmp_path, name, read, draws):
    for other in ("config.json", "model.safetensors"):
        shutil.copyfile(trained / other, tmp_path / other)
    (tmp_path / name).write_bytes(draws.draw(changed_bytes((trained / name).read_bytes())))
    accepts_or_says_why(read, tmp_path)


@EXAMPLES
@given(st.data())
def test_a_tokenizer(trained, tmp_path, draws):
    path = tmp_path / "tokenizer.json"
    document = json.loads((trained / "tokenizer.json").read_text())
    whole = st.one_of(changed_value(document).map(dumped), changed_bytes(dumped(document)))
    path.write_bytes(draws.draw(whole))
    accepts_or_says_why(load_tokenizer, path)


@EXAMPLES
@given(st.data())
def test_a_checkpoint_with_a_good_checksum(data, trained, tmp_path, draws):
    """The checksum is in the name, so a file made by anyone can have a good one."""
    folder = copied_checkpoints(trained, tmp_path / "run")
    newest = sorted(folder.glob("*.pt"))[-1]
    state = torch.load(newest, weights_only=True)
    buffer = io.BytesIO()
    torch.save(draws.draw(changed_value(state)), buffer)
    content = draws.draw(st.sampled_from([buffer.getvalue(), b"", b"no checkpoint"]))
    newest.unlink()
    (folder / f"step00000011-{hashlib.sha256(content).hexdigest()[:16]}.pt").write_bytes(content)
    accepts_or_says_why(Run(tiny_scale(), "small", "ddl-cc", 0, data / "manifest.json", tmp_path / "run").train)


@pytest.mark.parametrize(
    "entries",
    [
        {"step": -(2**70)},
        {"step": 13},
        {"step": True},
        {"losses": ["x"]},
        {"continued": [{}]},
        {"records": []},
        {"records": [{"step": 3}]},
        {"seconds": None},
        {"more": 1},
    ],
    ids=str,
)
def test_the_progress_in_a_checkpoint(trained, entries):
    file = sorted(trained.glob("checkpoints/*/*.pt"))[-1]
    progress = torch.load(file, weights_only=True)["progress"]
    assert Progress.read(progress, 12).step == 12
    with pytest.raises((AttributeError, KeyError, TypeError)):
        Progress.read(progress | entries, 12)


@EXAMPLES
@given(st.data())
def test_the_origin_of_checkpoints_of_another_run(data, trained, tmp_path, draws):
    folder = copied_checkpoints(trained, tmp_path / "run")
    document = draws.draw(changed_value(json.loads((folder / "origin.json").read_text())))
    content = draws.draw(st.sampled_from([dumped(document), b"{", b"[]"]))
    (folder / "origin.json").write_bytes(content)
    folder.rename(folder.with_name("0" * 16))
    stale = draws.draw(st.sampled_from(["refuse", "restart", "continue"]))
    run = Run(tiny_scale(), "small", "ddl-cc", 0, data / "manifest.json", tmp_path / "run", stale)
    accepts_or_says_why(run.train)


SCALE = yaml.safe_load((ROOT / "config/scales/smoke.yaml").read_text())
STUDY = yaml.safe_load((ROOT / "config/studies/noise.yaml").read_text())
VARIANT = {"slug": "mine"} | yaml.safe_load((ROOT / "config/variants.yaml").read_text())["ddl-cc"]


@settings(EXAMPLES, max_examples=150)
@given(st.data())
@pytest.mark.parametrize(
    ("kind", "document"), [(Scale, {"name": "smoke"} | SCALE), (Study, {"name": "mine"} | STUDY), (Variant, VARIANT)]
)
def test_settings(kind, document, draws):
    changed = draws.draw(changed_value(document))
    found = accepts_or_says_why(from_mapping, kind, changed, "file.yaml")
    if isinstance(found, Scale):
        for size in found.sizes:
            accepts_or_says_why(found.model, size, "ddl-cc")


@EXAMPLES
@given(st.data())
@pytest.mark.parametrize(("load", "name"), [(load_scale, "scales/smoke.yaml"), (load_study, "studies/noise.yaml")])
def test_the_text_of_a_settings_file(load, name, tmp_path, draws):
    shutil.copytree(ROOT / "config", tmp_path / "config", dirs_exist_ok=True)
    path = tmp_path / "config" / name
    path.write_bytes(draws.draw(changed_bytes(path.read_bytes())))
    with pytest.MonkeyPatch.context() as patch:
        for constant in ("BACKBONES_FILE", "SCALES_DIR", "STUDIES_DIR", "VARIANTS_FILE"):
            patch.setattr(config, constant, tmp_path / getattr(config, constant).relative_to(ROOT))
        patch.setattr(config, "ROOT", tmp_path)
        accepts_or_says_why(load, Path(name).stem)


@EXAMPLES
@given(st.data())
def test_documents_in_json_lines(tmp_path, draws):
    path = tmp_path / "corpus.jsonl"
    lines = [draws.draw(changed_value({"text": "Some words.", "id": 1})) for _ in range(3)]
    path.write_bytes(b"\n".join(map(dumped, lines)))
    if draws.draw(st.booleans()):
        path.write_bytes(draws.draw(changed_bytes(path.read_bytes())))
    for document in accepts_or_says_why(read_corpus, config.TextFiles(path=str(path), val_fraction=0.2)) or []:
        document.text.encode()


RESULT_FILES = {
    "runs/small/baseline/seed0/summary.json": {"scale": "smoke", "val_loss": 5.0, "params": 10, "tokens": 3},
    "evals/small/baseline/seed0/validation.json": {"val_loss": 5.0, "val_perplexity": 9.0, "tokens": 3},
    "evals/small/baseline/seed0/0shot.json": {
        "tasks": {"doc_pair": {"column": "WG", "metric": "acc", "value": 0.5, "stderr": 0.1, "chance": 0.5, "n": 4}},
        "average": {"value": 0.5, "stderr": 0.1, "chance": 0.5},
    },
    "cost/small/baseline.json": {"params": 3, "train_tok_per_s": {"median": 1.0, "p20": 1.0, "p80": 1.0}},
}


@EXAMPLES
@given(st.data())
@pytest.mark.parametrize("name", RESULT_FILES)
def test_results(name, tmp_path, draws):
    for other, document in RESULT_FILES.items():
        write_json(tmp_path / "smoke" / other, document)
    changed = draws.draw(changed_value(RESULT_FILES[name]))
    content = draws.draw(st.sampled_from([dumped(changed), b"{", b"[]", b"\xff"]))
    (tmp_path / "smoke" / name).write_bytes(content)
    results = Results(tmp_path / "smoke")
    for read in (results.summaries, results.validation, lambda: results.downstream(0), results.cost):
        accepts_or_says_why(read)


@EXAMPLES
@given(st.data())
def test_records_of_a_run(tmp_path, draws):
    folder = tmp_path / "smoke/runs/small/baseline/seed0"
    write_json(folder / "summary.json", {"scale": "smoke"})
    good = {"step": 1, "tokens": 2, "seconds": 0.1, "train_loss": 5.0, "val_loss": None, "lr": 0.1, "grad_norm": 1.0}
    lines = [good, draws.draw(changed_value(good))]
    content = b"\n".join(map(dumped, lines))
    (folder / "metrics.jsonl").write_bytes(draws.draw(st.sampled_from([content, content[:-9], b"\xff\n", b"[]\n"])))
    accepts_or_says_why(Results(tmp_path / "smoke").curves)


def test_a_change_reaches_every_depth():
    """The checker itself: a document of three levels is changed at each of them."""
    document = {"a": {"b": [1, 2]}, "c": 3}
    seen = set()

    @settings(EXAMPLES, max_examples=200)
    @given(changed_value(document))
    def collect(changed):
        if changed.get("a") != document["a"]:
            inner = changed.get("a")
            seen.add("b" if isinstance(inner, dict) and isinstance(inner.get("b"), list) else "a")
        else:
            seen.add("c")

    collect()
    assert seen == {"a", "b", "c"}
