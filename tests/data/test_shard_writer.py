"""Shards of a split are exactly as long as they should be, and interruptions do not change them."""

import random

import numpy as np
import pytest

from ddl.data.parallel_encode import Encoded
from ddl.data.shard_format import DataError, read_shard
from ddl.data.shard_writer import Journal, Place, SplitWriter

LIMIT = 200
SHARD = 40
START = Place()


def batches(seed: int) -> list[Encoded]:
    """Batches of documents of 1 to 29 tokens, all different; documents with a key that ends in 0 are unwanted."""
    generator, token, made = random.Random(seed), 0, []
    for batch in range(15):
        encoded = Encoded([], [], [])
        for document in range(generator.randrange(1, 5)):
            length = generator.randrange(1, 30)
            encoded.keys.append(f"{batch}-{document}-{generator.randrange(4)}".encode())
            encoded.sizes.append(length)
            encoded.tokens.append(np.arange(token, token + length, dtype="<u2"))
            token += length
        made.append(encoded)
    return made


def wanted(key: bytes) -> bool:
    return not key.endswith(b"0")


def write(folder, documents: list[Encoded], limit: int = 10**6, shards: int | None = None, start: Place = START):
    """Write a split, or stop, as if killed, once `shards` shards are finished."""
    writer = SplitWriter(Journal(folder / "journal.json", {"code": "mine"}), "train", SHARD, limit, start)
    first = writer.place.batch
    for number, encoded in enumerate(documents[first:], first):
        if shards is not None and len(writer.shards) >= shards:
            return writer
        writer.write(number, encoded, wanted)
    writer.close()
    return writer


def tokens_of(folder, writer: SplitWriter) -> list[int]:
    return [token for shard in writer.shards for token in read_shard(folder / shard["file"], 10**6).tolist()]


@pytest.mark.parametrize("limit", [10**6, LIMIT])
@pytest.mark.parametrize("seed", range(3))
def test_shards_hold_the_wanted_documents_up_to_the_limit(tmp_path, seed, limit):
    documents = batches(seed)
    writer = write(tmp_path, documents, limit)
    kept = [
        (size, tokens.tolist())
        for encoded in documents
        for key, size, tokens in zip(encoded.keys, encoded.sizes, encoded.tokens, strict=True)
        if wanted(key)
    ]
    expected = [token for _, tokens in kept for token in tokens][:limit]
    assert tokens_of(tmp_path, writer) == expected
    assert [shard["tokens"] for shard in writer.shards[:-1]] == [SHARD] * (len(writer.shards) - 1)
    assert writer.full == (limit == LIMIT)
    if limit > LIMIT:
        assert writer.counts.documents == len(kept)
        assert writer.counts.bytes == sum(size for size, _ in kept)
        assert writer.counts.removed == sum(len(encoded.keys) for encoded in documents) - len(kept)


@pytest.mark.parametrize("limit", [10**6, LIMIT])
@pytest.mark.parametrize("seed", range(2))
def test_interruption_after_any_shard_changes_nothing_and_no_shard_is_written_twice(tmp_path, seed, limit):
    documents = batches(seed)
    (tmp_path / "whole").mkdir()
    whole = write(tmp_path / "whole", documents, limit)
    for shards in range(1, len(whole.shards) + 1):
        folder = tmp_path / str(shards)
        folder.mkdir()
        stopped = write(folder, documents, limit, shards)
        times = {shard["file"]: (folder / shard["file"]).stat().st_mtime_ns for shard in stopped.shards}
        resumed = write(folder, documents, limit)
        assert (resumed.shards, resumed.counts, resumed.place) == (whole.shards, whole.counts, whole.place)
        assert {name: (folder / name).stat().st_mtime_ns for name in times} == times


def test_a_damaged_shard_is_made_again_from_its_place(tmp_path):
    documents = batches(0)
    whole = write(tmp_path, documents)
    for damage in (lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\xff")):
        damage(tmp_path / "train_000002.bin")
        assert (
            len(SplitWriter(Journal(tmp_path / "journal.json", {"code": "mine"}), "train", SHARD, 10**6, START).shards)
            == 2
        )
        assert write(tmp_path, documents).shards == whole.shards
        assert len(tokens_of(tmp_path, whole)) == whole.tokens


def test_shards_of_other_settings_and_an_unreadable_journal_are_not_used(tmp_path):
    write(tmp_path, batches(0))
    assert len(Journal(tmp_path / "journal.json", {"code": "mine"}).finished("train")) > 3
    assert Journal(tmp_path / "journal.json", {"code": "other"}).finished("train") == []
    (tmp_path / "journal.json").write_text("{")
    assert Journal(tmp_path / "journal.json", {"code": "mine"}).finished("train") == []


def test_a_split_can_start_behind_another(tmp_path):
    documents = batches(1)
    (number, encoded), *_ = ((n, e) for n, e in enumerate(documents) if len(e.keys) > 2)
    writer = write(tmp_path, documents, start=Place(number, 1))
    first = next(t for k, t in zip(encoded.keys[1:], encoded.tokens[1:], strict=True) if wanted(k))
    assert tokens_of(tmp_path, writer)[0] == first[0]


def test_a_split_without_tokens_is_refused(tmp_path):
    with pytest.raises(DataError, match="the train split is empty"):
        write(tmp_path, [])
