"""Token data: builds are repeatable to the byte, damage is refused, and sequences neither lose nor share tokens."""

import dataclasses
import json
import random
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from ddl.config import Corpus, Scale, TextFiles, TokenizerConfig, TokenShards, load_scale
from ddl.data import build as data
from ddl.data import parquet_blocks as hub
from ddl.data import sequences as sequences_module
from ddl.data import tokenizer as tokenizer_module
from ddl.data.sequences import TokenSequences, load_manifest, sequence_order
from ddl.data.shard_format import DataError, read_shard, write_shard
from ddl.data.tokenizer import TokenizerError, end_of_text_id, load_tokenizer, train_bpe
from ddl.data.train_val_split import in_validation, text_key
from ddl.files import sha256_file, write_json
from tests.helpers.command import ddl
from tests.helpers.fineweb import VOCAB, prose, served, write_fineweb, write_gpt2_files


def small_scale(corpus: Corpus) -> Scale:
    return dataclasses.replace(load_scale("smoke"), corpus=corpus, tokenizer=TokenizerConfig("bpe", VOCAB))


@pytest.fixture
def text_scale(tmp_path) -> Scale:
    """A scale whose corpus is forty documents in a jsonl file."""
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": prose(seed)}) + "\n" for seed in range(40)))
    return small_scale(TextFiles(val_fraction=0.3, path=str(path), shard_tokens=1500))


@pytest.fixture
def listed(tmp_path):
    """A function that writes given tokens as shards, with a manifest that lists them, and returns its path."""

    def make(train: list[np.ndarray], val: list[np.ndarray], vocab_size: int = 1000):
        splits = {}
        for split, arrays in (("train", train), ("val", val)):
            shards = []
            for number, tokens in enumerate(arrays):
                path = tmp_path / f"{split}_{number:06d}.bin"
                write_shard(path, tokens)
                shards.append({"file": path.name, "tokens": len(tokens), "sha256": sha256_file(path)})
            splits[split] = {"tokens": sum(map(len, arrays)), "shards": shards}
        tokenizer = {"name": "bpe", "vocab_size": vocab_size, "file": "tokenizer.json", "sha256": "0" * 64}
        write_json(tmp_path / "manifest.json", {"tokenizer": tokenizer, "splits": splits})
        return tmp_path / "manifest.json"

    return make


# -- building


def test_two_builds_are_the_same_to_the_byte(text_scale, tmp_path):
    manifests = [data.build(text_scale, tmp_path / name, 1) for name in ("one", "two")]
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert len(files) >= 6
    for file in files:
        if file.name != "manifest.json":
            assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    for manifest in manifests:
        del manifest["provenance"]
    assert manifests[0] == manifests[1]


def test_manifest_describes_what_was_written(text_scale, tmp_path):
    out = tmp_path / "data"
    manifest = data.build(text_scale, out, 1)
    assert json.loads((out / "manifest.json").read_text()) == manifest == load_manifest(out / "manifest.json")
    assert set(manifest) == {"corpus", "tokenizer", "splits", "deduplication", "documents", "provenance"}
    assert manifest["tokenizer"]["sha256"] == sha256_file(out / "tokenizer.json")
    for split in ("train", "val"):
        part, written = manifest["splits"][split], manifest["documents"][split]
        assert written["sha256"] == sha256_file(out / written["file"])
        rows = [json.loads(line) for line in (out / written["file"]).read_text(encoding="utf-8").splitlines()]
        assert (part["documents"], part["bytes"]) == (len(rows), sum(len(row["text"].encode()) for row in rows))
        assert set(rows[0]) == {"id", "source", "text"}
        assert part["tokens"] == sum(shard["tokens"] for shard in part["shards"])
        for shard in part["shards"]:
            assert shard["sha256"] == sha256_file(out / shard["file"])


def test_shards_hold_every_document_after_an_end_of_text_token(text_scale, tmp_path):
    manifest = data.build(text_scale, tmp_path / "data", 1)
    tokenizer = load_tokenizer(tmp_path / "data" / "tokenizer.json")
    assert len(manifest["splits"]["train"]["shards"]) > 1
    for split in ("train", "val"):
        shards = [read_shard(tmp_path / "data" / shard["file"], VOCAB) for shard in manifest["splits"][split]["shards"]]
        assert {len(shard) for shard in shards[:-1]} <= {1500}
        tokens = np.concatenate(shards)
        starts = np.flatnonzero(tokens == 0)
        texts = [tokenizer.decode(part[1:].tolist()) for part in np.split(tokens, starts[1:])]
        lines = (tmp_path / "data" / "documents" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        assert texts == [json.loads(line)["text"] for line in lines]


def test_tokenizer_learns_from_training_documents_only(tmp_path):
    def held_out(val: bool, start: int) -> list[str]:
        texts = (prose(seed) + " zyzzyva" * 50 * val for seed in range(start, start + 400))
        return [text for text in texts if in_validation(text_key(text), 0.3) is val][:15]

    texts = held_out(True, 0) + held_out(False, 1000)
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    data.build(small_scale(TextFiles(val_fraction=0.3, path=str(path))), tmp_path / "data", 1)
    learned = load_tokenizer(tmp_path / "data" / "tokenizer.json").get_vocab()
    assert not [token for token in learned if "zyz" in token]
    assert [token for token in train_bpe(texts, VOCAB).get_vocab() if "zyz" in token], "the test could not fail"


def test_training_tokens_are_limited_to_the_token(text_scale, tmp_path):
    corpus = dataclasses.replace(text_scale.corpus, max_train_tokens=2000)
    full = data.build(text_scale, tmp_path / "full", 1)
    cut = data.build(dataclasses.replace(text_scale, corpus=corpus), tmp_path / "cut", 1)
    assert cut["splits"]["train"]["tokens"] == 2000
    assert cut["splits"]["val"] == full["splits"]["val"]
    first = [
        np.concatenate([read_shard(tmp_path / name / f"train_00000{k}.bin", VOCAB) for k in (0, 1)])
        for name in ("full", "cut")
    ]
    np.testing.assert_array_equal(first[0][:2000], first[1])


def test_smaller_rebuild_leaves_no_shard_of_the_larger_one(text_scale, tmp_path):
    data.build(text_scale, tmp_path / "data", 1)
    corpus = dataclasses.replace(text_scale.corpus, shard_tokens=10**6)
    data.build(dataclasses.replace(text_scale, corpus=corpus), tmp_path / "data", 1)
    assert sorted(path.name for path in (tmp_path / "data").glob("*.bin")) == ["train_000000.bin", "val_000000.bin"]


def test_failed_build_leaves_no_manifest(text_scale, tmp_path, monkeypatch):
    data.build(text_scale, tmp_path / "data", 1)
    tokenizer = TokenizerConfig("bpe", 60_000)
    with pytest.raises(TokenizerError, match="too small"):
        data.build(dataclasses.replace(text_scale, tokenizer=tokenizer), tmp_path / "data", 1)
    with pytest.raises(DataError, match=r"manifest\.json: No such file or directory: `ddl data`"):
        load_manifest(tmp_path / "data" / "manifest.json")


def test_corpus_too_small_to_split_is_refused(tmp_path):
    (tmp_path / "one.txt").write_text(prose(0))
    counts = "the train split is empty: of 1 documents with corpus.val_fraction 0.3, 0 are left for training and 1 for"
    with pytest.raises(DataError, match=counts):
        data.build(small_scale(TextFiles(val_fraction=0.3, path=str(tmp_path / "one.txt"))), tmp_path / "data", 1)


@pytest.fixture
def stream_scale(tmp_path, monkeypatch) -> Scale:
    """A scale whose corpus is 300 documents and their repeats, in parquet files like those of FineWeb-Edu."""
    monkeypatch.setattr(hub, "BLOCK_ROWS", 20)
    texts = [prose(seed) for seed in range(300)]
    corpus = write_fineweb(tmp_path / "hub", [texts[:150], texts[150:] + texts], rows=10)
    tokenizer = TokenizerConfig("bpe", VOCAB, path=str(write_gpt2_files(tmp_path / "gpt2")))
    return dataclasses.replace(
        load_scale("smoke"), corpus=dataclasses.replace(corpus, shard_tokens=10_000), tokenizer=tokenizer
    )


def documents_of(folder: Path, split: str) -> list[str]:
    """The texts in the shards of a split."""
    manifest = load_manifest(folder / "manifest.json")
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    shards = [read_shard(folder / shard["file"], VOCAB) for shard in manifest["splits"][split]["shards"]]
    tokens = np.concatenate(shards)
    starts = np.flatnonzero(tokens == end_of_text_id(tokenizer))
    assert starts[0] == 0
    return [tokenizer.decode(part[1:].tolist()) for part in np.split(tokens, starts[1:])]


def test_stream_holds_out_its_first_tokens_and_their_repeats(stream_scale, tmp_path):
    out = tmp_path / "data"
    manifest = data.build(stream_scale, out, 1)
    blocks = hub.open_dataset(stream_scale.corpus).blocks
    stream = [text for block in blocks for text in block.texts()]
    val, train = documents_of(out, "val"), documents_of(out, "train")
    assert manifest["splits"]["val"]["tokens"] == 5_000
    last = next(number for number, text in enumerate(stream) if text.startswith(val[-1]))  # val[-1] is cut at the limit
    assert val[:-1] == list(dict.fromkeys(stream[:last]))
    assert train == [text for text in stream[last + 1 :] if text not in stream[: last + 1]]
    removed = len(stream) - len(val) - len(train)
    assert manifest["deduplication"]["exact_removed"] == removed > 0
    assert manifest["splits"]["train"]["documents"] == len(train)
    assert manifest["splits"]["train"]["bytes"] == sum(len(text.encode()) for text in train)
    assert manifest["documents"] is None
    assert not (out / "documents").exists()
    assert manifest["tokenizer"]["end_of_text_id"] == VOCAB - 1


def test_validation_of_a_stream_does_not_depend_on_how_much_is_trained_on(stream_scale, tmp_path):
    full = data.build(stream_scale, tmp_path / "full", 1)
    corpus = dataclasses.replace(stream_scale.corpus, max_train_tokens=12_345)
    cut = data.build(dataclasses.replace(stream_scale, corpus=corpus), tmp_path / "cut", 1)
    assert cut["splits"]["val"] == full["splits"]["val"]
    assert cut["splits"]["train"]["tokens"] == 12_345
    assert cut["splits"]["train"]["shards"][0] == full["splits"]["train"]["shards"][0]


def test_shards_do_not_depend_on_the_number_of_processes_nor_on_where_the_files_are(stream_scale, tmp_path):
    one = data.build(stream_scale, tmp_path / "one", 1)
    with served(tmp_path / "hub") as url:
        remote = dataclasses.replace(stream_scale, corpus=dataclasses.replace(stream_scale.corpus, dataset=url))
        two = data.build(remote, tmp_path / "two", 2)
    assert len(one["splits"]["train"]["shards"]) > 2
    assert one["splits"] == two["splits"]


def test_a_stream_needs_a_tokenizer_that_is_there(stream_scale, tmp_path):
    scale = dataclasses.replace(stream_scale, tokenizer=TokenizerConfig("bpe", VOCAB))
    with pytest.raises(TokenizerError, match=r"'bpe' is trained on documents in memory: .* or a tokenizer\.path"):
        data.build(scale, tmp_path / "data", 1)


def test_gpt2_from_files_of_ones_own(stream_scale, tmp_path, monkeypatch):
    tokenizer = dataclasses.replace(stream_scale.tokenizer, name="gpt2", vocab_size=50_304)
    scale = dataclasses.replace(stream_scale, tokenizer=tokenizer)
    with pytest.raises(TokenizerError, match=f"gpt2: expected the 50257 tokens of GPT-2, found {VOCAB}"):
        data.build(scale, tmp_path / "data", 1)
    monkeypatch.setattr(tokenizer_module, "GPT2_TOKENS", VOCAB)
    manifest = data.build(scale, tmp_path / "data", 1)
    assert (manifest["tokenizer"]["name"], manifest["tokenizer"]["vocab_size"]) == ("gpt2", 50_304)


def test_finished_shards_of_a_large_corpus_are_replaced_only_when_told_to(stream_scale, tmp_path):
    folder = tmp_path / "data"
    data.build(stream_scale, folder, 1)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    other = dataclasses.replace(stream_scale, corpus=dataclasses.replace(stream_scale.corpus, val_tokens=9_000))
    with pytest.raises(
        DataError,
        match=r"journal\.json: \d+ finished shards were made with a different corpus\.val_tokens; .*--restart",
    ):
        data.build(other, folder, 1)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert data.build(other, folder, 1, restart=True)["splits"]["val"]["tokens"] == 9_000


def test_validation_that_is_resumed_still_leaves_out_repeats_of_its_first_part(stream_scale, tmp_path):
    corpus = dataclasses.replace(stream_scale.corpus, val_tokens=30_000, shard_tokens=10_000)
    scale = dataclasses.replace(stream_scale, corpus=corpus)
    whole = data.build(scale, tmp_path / "data", 1)
    record = json.loads((tmp_path / "data" / "journal.json").read_text())
    entries = record["splits"]["val"]
    assert entries[0]["counts"]["removed"] < entries[1]["counts"]["removed"] < entries[2]["counts"]["removed"]
    for finished in (1, 2):
        record["splits"] = {"val": entries[:finished]}
        write_json(tmp_path / "data" / "journal.json", record)
        resumed = data.build(scale, tmp_path / "data", 1)
        assert (resumed["splits"], resumed["deduplication"]) == (whole["splits"], whole["deduplication"])


BUILD_AND_ANNOUNCE = """
import json, sys
from pathlib import Path
from ddl.data import build, parquet_blocks
from ddl.config import Scale, from_mapping
parquet_blocks.BLOCK_ROWS = 20
scale = from_mapping(Scale, json.loads(Path(sys.argv[1]).read_text()), "test")
print("started", flush=True)
build.build(scale, Path(sys.argv[2]), 1)
"""


def finished_shards(folder: Path) -> list[str]:
    """The shards that a build has noted as finished so far."""
    if not (folder / "journal.json").is_file():
        return []
    splits = json.loads((folder / "journal.json").read_text())["splits"].values()
    return [entry["file"] for entries in splits for entry in entries]


def test_killed_at_any_moment_a_build_ends_with_the_same_shards_and_writes_none_twice(stream_scale, tmp_path):
    corpus = dataclasses.replace(stream_scale.corpus, shard_tokens=1_000)
    scale = dataclasses.replace(stream_scale, corpus=corpus)
    whole = data.build(scale, tmp_path / "whole", 1)
    settings = dataclasses.asdict(scale)
    write_json(tmp_path / "scale.json", json.loads(json.dumps(settings)))
    out, generator = tmp_path / "data", random.Random(0)
    finished: dict[str, int] = {}
    killed_at = []
    for _ in range(8):
        command = [sys.executable, "-c", BUILD_AND_ANNOUNCE, str(tmp_path / "scale.json"), str(out)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            process.stdout.readline()
            target = len(finished) + generator.randint(0, 15)
            while process.poll() is None and len(finished_shards(out)) < target:
                time.sleep(0.001)
            process.kill()
        for name, written in finished.items():
            assert (out / name).stat().st_mtime_ns == written, "a finished shard was written again"
        finished = {name: (out / name).stat().st_mtime_ns for name in finished_shards(out)}
        killed_at.append(len(finished))
    assert len({*killed_at} - {0, len(whole["splits"]["train"]["shards"])}) > 1, "the test killed nothing at work"
    assert data.build(scale, out, 1)["splits"] == whole["splits"]
    for name, written in finished.items():
        assert (out / name).stat().st_mtime_ns == written
    assert not list(out.glob(".*.tmp"))


# -- existing shards


@pytest.fixture
def shard_scale(tmp_path) -> Scale:
    """A scale of existing shards: two for training, one for validation."""
    for name, first in (("fineweb_train_000001", 0), ("fineweb_train_000002", 40), ("fineweb_val_000000", 90)):
        write_shard(tmp_path / "there" / f"{name}.bin", np.array([VOCAB - 1, *range(first, first + 40), VOCAB - 1, 7]))
    patterns = {f"{split}_shards": str(tmp_path / "there" / f"fineweb_{split}_*.bin") for split in ("train", "val")}
    tokenizer = TokenizerConfig("bpe", VOCAB, path=str(write_gpt2_files(tmp_path / "gpt2")))
    return dataclasses.replace(load_scale("smoke"), corpus=TokenShards(**patterns), tokenizer=tokenizer)


def test_existing_shards_are_listed_where_they_lie(shard_scale, tmp_path):
    manifest = data.build(shard_scale, tmp_path / "data", 2)
    train = manifest["splits"]["train"]
    assert (train["documents"], train["bytes"], train["tokens"]) == (4, None, 86)
    path = tmp_path / "there" / "fineweb_train_000001.bin"
    assert train["shards"][0] == {"file": str(path), "tokens": 43, "sha256": sha256_file(path)}
    sequences = TokenSequences(tmp_path / "data" / "manifest.json", "train", 14)
    assert len(sequences) == 6
    assert sequences.batch([3])[0].tolist() == [[VOCAB - 1, *range(40, 53)]]


def test_existing_shards_that_do_not_fit_are_refused_by_name(shard_scale, tmp_path):
    def build(**changes) -> None:
        corpus = dataclasses.replace(shard_scale.corpus, **changes)
        data.build(dataclasses.replace(shard_scale, corpus=corpus), tmp_path / "data", 1)

    with pytest.raises(DataError, match=r"corpus\.val_shards: no file matches /no/such/\*\.bin"):
        build(val_shards="/no/such/*.bin")
    with pytest.raises(DataError, match=r"val_000000\.bin: listed in both corpus\.train_shards and corpus\.val_shards"):
        build(train_shards=str(tmp_path / "there" / "*.bin"))
    write_shard(tmp_path / "there" / "fineweb_train_000003.bin", np.array([VOCAB]))
    with pytest.raises(DataError, match=r"train_000003\.bin: expected tokens below the vocabulary size 300, found 300"):
        build()
    (tmp_path / "there" / "fineweb_train_000003.bin").write_bytes(header(magic=20240801) + bytes(8))
    with pytest.raises(DataError, match=r"train_000003\.bin: not a token shard"):
        build()


# -- the command


def test_command_limits_the_training_tokens(text_scale, tmp_path, monkeypatch):
    monkeypatch.setattr("ddl.cli.load_scale", lambda name: text_scale)
    ddl("data", "--scale", "any", "--out", tmp_path / "data", "--max-tokens", 2000, "--workers", 1)
    manifest = load_manifest(tmp_path / "data" / "manifest.json")
    assert manifest["splits"]["train"]["tokens"] == manifest["corpus"]["max_train_tokens"] == 2000


def test_command_reports_a_user_error_in_one_line(capsys, tmp_path):
    ddl("data", "--scale", "no-such-scale", "--out", tmp_path, code=2)
    error = capsys.readouterr().err
    assert error.startswith("error: scale: expected one of")
    assert error.count("\n") == 1


# -- shards


def test_shard_has_the_layout_of_llm_c(tmp_path):
    path = tmp_path / "x.bin"
    write_shard(path, np.array([5, 65_535, 0]))
    raw = path.read_bytes()
    assert len(raw) == 1024 + 6
    assert np.frombuffer(raw[:1024], "<i4").tolist() == [20240520, 1, 3] + [0] * 253
    assert raw[1024:] == b"\x05\x00\xff\xff\x00\x00"
    tokens = read_shard(path, 65_536)
    assert isinstance(tokens, np.memmap)
    assert (tokens.dtype, tokens.tolist()) == (np.uint16, [5, 65_535, 0])
    with pytest.raises(ValueError, match="read-only"):
        tokens[0] = 1


def test_token_that_does_not_fit_is_not_written(tmp_path):
    with pytest.raises(DataError, match="expected tokens below the vocabulary size 65536, found 65536"):
        write_shard(tmp_path / "x.bin", np.array([65_536]))
    assert not list(tmp_path.iterdir())


def test_shard_that_does_not_fit_on_the_disk_is_named_and_nothing_is_left(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(DataError, match=r"x\.bin: cannot be written: File too large"):
            write_shard(tmp_path / "x.bin", np.arange(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def header(magic: int = 20240520, version: int = 1, count: int = 4) -> bytes:
    return np.array([magic, version, count] + [0] * 253, dtype="<i4").tobytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such shard"),
        (b"", "truncated: expected a header of 1024 bytes, found 0 bytes"),
        (header()[:-1], "truncated: expected a header of 1024 bytes, found 1023 bytes"),
        (header(magic=20240801) + bytes(8), "not a token shard: expected magic number 20240520, found 20240801"),
        (header(version=2) + bytes(8), "unsupported shard version: expected 1, found 2"),
        (header() + bytes(6), "damaged: the header states 4 tokens, the file holds 3"),
        (header() + bytes(7), "damaged: the header states 4 tokens, the file holds 3.5"),
        (header() + bytes(10), "damaged: the header states 4 tokens, the file holds 5"),
        (header(count=0), "damaged: the header states 0 tokens, the file holds 0"),
        (header(count=-1), "damaged: the header states -1 tokens"),
        (header() + b"\x09\x00\x0a\x00\x00\x00\x01\x00", "expected tokens below the vocabulary size 10, found 10"),
    ],
)
def test_damaged_shard_is_refused_by_name(tmp_path, content, message):
    path = tmp_path / "train_000007.bin"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=re.escape(f"{path}: {message}")):
        read_shard(path, 10)


# -- sequences


def test_windows_follow_each_other_and_stay_in_their_shard(listed):
    # A window of 4 tokens also needs the token after it: 9 tokens hold 2 windows, 8 hold 1, 4 hold none, 5 hold 1.
    arrays = [np.arange(0, 9), np.arange(100, 108), np.arange(200, 204), np.arange(300, 305)]
    sequences = TokenSequences(listed(arrays, [np.arange(9)]), "train", 4)
    assert len(sequences) == 4
    inputs, targets = sequences.batch([3, 0, 1, 2])
    assert inputs.tolist() == [[300, 301, 302, 303], [0, 1, 2, 3], [4, 5, 6, 7], [100, 101, 102, 103]]
    assert targets.tolist() == [[301, 302, 303, 304], [1, 2, 3, 4], [5, 6, 7, 8], [101, 102, 103, 104]]
    assert (inputs.dtype, targets.dtype) == (torch.int64, torch.int64)
    assert sequences.batch([])[0].shape == (0, 4)
    for index in (-1, 4):
        with pytest.raises(IndexError, match=f"sequence {index} of 4"):
            sequences.batch([index])


def test_every_target_is_predicted_once(listed):
    sequences = TokenSequences(listed([np.arange(900)], [np.arange(9)]), "train", 7)
    _, targets = sequences.batch(range(len(sequences)))
    assert targets.flatten().tolist() == list(range(1, 7 * len(sequences) + 1))
    assert 900 - 7 <= 7 * len(sequences) + 1 <= 900


def test_changed_shard_is_refused_by_checksum(listed):
    path = listed([np.arange(90)], [np.arange(90)])
    write_shard(path.parent / "train_000000.bin", np.arange(1, 91))
    with pytest.raises(DataError, match=r"train_000000\.bin: expected SHA-256 [0-9a-f]{64} .*, found [0-9a-f]{64}"):
        TokenSequences(path, "train", 4)
    assert len(TokenSequences(path, "val", 4)) == 22
    write_shard(path.parent / "val_000000.bin", np.arange(91))
    with pytest.raises(DataError, match=r"val_000000\.bin: expected 90 tokens \(manifest.json\), found 91"):
        TokenSequences(path, "val", 4)


def test_large_split_is_checked_by_size_and_batch(listed, monkeypatch):
    path = listed([np.arange(90)], [np.arange(90)], vocab_size=50)
    with pytest.raises(DataError, match="below the vocabulary size 50, found 89"):
        TokenSequences(path, "train", 4)
    monkeypatch.setattr(sequences_module, "FULL_CHECK_BYTES", 100)
    sequences = TokenSequences(path, "train", 4)
    sequences.batch([0, 1])
    with pytest.raises(DataError, match=r"train_000000\.bin: expected tokens below the vocabulary size 50, found 52"):
        sequences.batch([12])


def test_split_without_a_whole_sequence_is_refused(listed):
    path = listed([np.arange(8)], [])
    for split in ("train", "val"):
        with pytest.raises(DataError, match=f"the {split} split has no sequence of 8"):
            TokenSequences(path, split, 8)
    with pytest.raises(DataError, match="expected one of train, val, found 'test'"):
        TokenSequences(path, "test", 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop("splits"), "missing key 'splits'"),
        (lambda m: m["splits"].pop("val"), "missing key 'val'"),
        (lambda m: m["splits"]["train"]["shards"][0].pop("sha256"), "missing key 'sha256'"),
        (lambda m: m["tokenizer"].update(vocab_size="1000"), "vocab_size: expected int, found '1000'"),
        (lambda m: m.update(tokenizer=None), "not a data manifest"),
    ],
)
def test_incomplete_manifest_is_refused(listed, change, message):
    path = listed([np.arange(9)], [np.arange(9)])
    manifest = json.loads(path.read_text())
    change(manifest)
    write_json(path, manifest)
    with pytest.raises(DataError, match=re.escape(str(path)) + f".*{message}"):
        load_manifest(path)
    path.write_text("{")
    with pytest.raises(DataError, match="not a data manifest"):
        load_manifest(path)


def test_order_is_a_permutation_fixed_by_seed_and_epoch():
    assert sequence_order(8, 0, 0).tolist() == [2, 4, 3, 6, 5, 0, 1, 7]
    assert sorted(sequence_order(1000, 3, 5).tolist()) == list(range(1000))
    orders = [sequence_order(1000, seed, epoch).tolist() for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert len({tuple(order) for order in orders}) == 4
    np.random.seed(1)
    assert sequence_order(1000, 0, 0).tolist() == orders[0]
