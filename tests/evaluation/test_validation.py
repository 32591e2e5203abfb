"""The loss on the whole validation split."""

import json
import math

import numpy as np
import pytest
import torch

from ddl.data.sequences import TokenSequences
from ddl.data.shard_format import write_shard
from ddl.evaluation.model_check import EvaluationError
from ddl.evaluation.validation import validate, validation_loss
from ddl.files import sha256_file, write_json
from ddl.model.language_model import LanguageModel
from ddl.model.run_files import save_model
from tests.helpers.command import ddl
from tests.helpers.offline_data import documents, offline_scale, write_data


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"), documents())


def test_validation_loss_is_the_mean_over_all_sequences(tiny_config, tmp_path):
    model = LanguageModel(tiny_config("ddl-cc")).eval()
    tokens = np.random.default_rng(0).integers(0, 61, 16 * 5 + 9).astype(np.uint16)  # five windows and a remainder
    tokens[8:12] = tokens[2:6]  # three pairs of the first window occur twice, and one of the third
    tokens[40:42] = tokens[33:35]
    for split in ("train", "val"):
        write_shard(tmp_path / f"{split}_000000.bin", tokens)
    entry = {"file": "val_000000.bin", "tokens": len(tokens), "sha256": sha256_file(tmp_path / "val_000000.bin")}
    split = {"documents": 1, "bytes": 1, "tokens": len(tokens), "shards": [entry]}
    tokenizer = {"name": "bpe", "vocab_size": 61, "file": "tokenizer.json", "sha256": "0" * 64}
    write_json(tmp_path / "manifest.json", {"tokenizer": tokenizer, "splits": {"train": split, "val": split}})
    data = TokenSequences(tmp_path / "manifest.json", "val", 16)
    means, parts = [], {True: [], False: []}
    for start in range(0, 80, 16):
        window = torch.from_numpy(tokens[start : start + 17].astype(np.int64))
        with torch.no_grad():
            log_p = model(window[None, :-1])[0].double().log_softmax(-1)
        losses = -log_p[torch.arange(16), window[1:]]
        means.append(float(losses.mean()))
        pairs = list(zip(window.tolist(), window[1:].tolist(), strict=False))
        for place, pair in enumerate(pairs):
            parts[pair in pairs[:place]].append(float(losses[place]))
    assert min(len(part) for part in parts.values()) > 2
    for batch_tokens in (1, 48, 4096):
        found, documents = validation_loss(model, data, batch_tokens, torch.float32, end_of_text=7)
        assert found["val_loss"] == pytest.approx(np.mean(means), abs=1e-5)
        assert found["val_loss_stderr"] == pytest.approx(np.std(means, ddof=1) / math.sqrt(5), abs=1e-5)
        assert found["val_perplexity"] == pytest.approx(math.exp(np.mean(means)), rel=1e-4)
        assert found["repeated_loss"] == pytest.approx(np.mean(parts[True]), abs=1e-5)
        assert found["new_loss"] == pytest.approx(np.mean(parts[False]), abs=1e-5)
        assert found["tokens"] == documents.tokens.sum() == 80
        assert len(documents.losses) == 1 + (tokens[1:81] == 7).sum()
        assert float(documents.losses.sum()) / 80 == pytest.approx(np.mean(means), abs=1e-5)


def test_the_command_writes_the_loss_of_a_run(data, tmp_path, monkeypatch, capsys):
    scale = offline_scale(8)
    monkeypatch.setattr("ddl.cli.load_scale", lambda name: scale)
    model = LanguageModel(scale.model("small", "ddl-cc")).eval()
    save_model(model, tmp_path / "run")
    ddl("validate", "--scale", "smoke", "--data", data, "--run", tmp_path / "run", "--out", tmp_path / "out")
    found = json.loads((tmp_path / "out/validation.json").read_text())
    sequences = TokenSequences(data / "manifest.json", "val", scale.sequence_length)
    expected, _ = validation_loss(model, sequences, scale.evaluation.batch_tokens, torch.float32, end_of_text=0)
    assert found["val_loss"] == pytest.approx(expected["val_loss"], abs=1e-6)
    assert found["provenance"]["versions"]["torch"]
    printed = capsys.readouterr().out
    assert printed.startswith(f"validation: loss {found['val_loss']:.4f} nats, ")
    assert len(printed.splitlines()) == 1


def test_a_model_of_another_vocabulary_is_refused(data, tiny_config, tmp_path):
    save_model(LanguageModel(tiny_config("baseline")), tmp_path / "run")
    with pytest.raises(EvaluationError, match="expected a model with vocabulary 1024"):
        validate(offline_scale(8), tmp_path / "run", data, tmp_path / "out")
    assert not (tmp_path / "out").exists()
