"""Parquet datasets: a web server and a folder give the same blocks; every document occurs once, in random order."""

import dataclasses
import re
from collections import Counter

import pyarrow
import pytest
from pyarrow import parquet

from ddl.config import ParquetDataset
from ddl.data import parquet_blocks as hub
from ddl.data.documents import CorpusError
from ddl.data.parquet_blocks import Block, address, open_dataset
from tests.helpers.fineweb import FOLDER, prose, served, write_fineweb

FILES = [[f"{number}: {prose(row, 9)}" for row in range(40 + number)] for number in range(3)]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """A corpus whose blocks hold two row groups of five documents."""
    monkeypatch.setattr(hub, "BLOCK_ROWS", 10)


@pytest.fixture
def corpus(tmp_path) -> ParquetDataset:
    return write_fineweb(tmp_path / "hub", FILES, rows=5)


def test_blocks_hold_every_document_once(corpus):
    blocks = open_dataset(corpus).blocks
    texts = [block.texts() for block in blocks]
    assert Counter(text for block in texts for text in block) == Counter(text for file in FILES for text in file)
    assert [len(block) for block in texts] == [block.rows for block in blocks]
    assert Counter(block.rows for block in blocks) == {10: 12, 1: 1, 2: 1}


def test_order_is_fixed_and_mixes_the_files(corpus):
    urls = [block.url for block in open_dataset(corpus).blocks]
    assert open_dataset(corpus) == open_dataset(corpus)
    assert len(set(urls[:7])) == 3
    assert urls != sorted(urls)


def test_a_web_server_gives_what_a_folder_gives(corpus, tmp_path):
    local = open_dataset(corpus)
    with served(tmp_path / "hub") as url:
        remote = open_dataset(dataclasses.replace(corpus, dataset=url))
        assert remote.identity == local.identity
        assert {block.url.split("/sample")[0] for block in remote.blocks} == {url}
        assert [block.texts() for block in remote.blocks] == [block.texts() for block in local.blocks]


def test_hub_is_asked_for_the_pinned_revision(corpus, tmp_path):
    on_hub = dataclasses.replace(corpus, dataset="HuggingFaceFW/fineweb-edu", revision="79388")
    assert address(on_hub) == f"hf://datasets/HuggingFaceFW/fineweb-edu@79388/{FOLDER}"
    assert address(corpus) == f"file://{tmp_path}/hub/{FOLDER}"
    assert address(dataclasses.replace(on_hub, dataset="https://mirror.org/x/", folder="")) == "https://mirror.org/x"
    with pytest.raises(CorpusError, match="expected owner/name, a URL or an existing folder, found '/no/such/folder'"):
        address(dataclasses.replace(corpus, dataset="/no/such/folder"))


def test_identity_changes_with_the_files(corpus, tmp_path):
    before = open_dataset(corpus).identity
    write_fineweb(tmp_path / "hub", [*FILES[:2], [*FILES[2][:-1], "another text"]], rows=5)
    assert open_dataset(corpus).identity != before


def test_unreachable_hub_says_what_to_fetch_and_where_to_point(corpus, monkeypatch):
    def offline(*arguments, **options):
        raise ConnectionError("no\nroute")

    monkeypatch.setattr("huggingface_hub.HfFileSystem.find", offline)
    with pytest.raises(CorpusError) as error:
        open_dataset(dataclasses.replace(corpus, dataset="owner/name"))
    assert str(error.value) == (
        "hf://datasets/owner/name@abc/sample/100BT: not reachable (ConnectionError: no route): on a machine with a "
        "network, fetch its files with `hf download owner/name --repo-type dataset --revision abc --include "
        "'sample/100BT/*' --local-dir DIR`, then set corpus.dataset to DIR"
    )


def test_a_place_without_parquet_files_is_refused(corpus):
    for changes in ({"folder": "sample/elsewhere"}, {"dataset": "http://127.0.0.1:9"}):
        with pytest.raises(CorpusError, match=r"no \.parquet files found"):
            open_dataset(dataclasses.replace(corpus, **changes))


def test_unreadable_files_are_refused_by_name(corpus, tmp_path):
    folder = tmp_path / "hub" / FOLDER
    parquet.write_table(pyarrow.table({"text": ["a", None]}), folder / "x.parquet")
    parquet.write_table(pyarrow.table({"body": ["a"]}), folder / "y.parquet")
    for name in ("x", "y"):
        block = Block((folder / f"{name}.parquet").as_uri(), 0, 1, 1)
        with pytest.raises(CorpusError, match=rf"{name}\.parquet: every row needs a string under the key 'text'"):
            block.texts()
    path = folder / "000_00000.parquet"
    (block, *_) = (block for block in open_dataset(corpus).blocks if block.url == path.as_uri())
    content = path.read_bytes()
    path.write_bytes(content[:100])
    for read in (lambda: open_dataset(corpus), block.texts):
        with pytest.raises(CorpusError, match=re.escape(f"{path.as_uri()}: cannot be read: Arrow")):
            read()
    path.unlink()
    with pytest.raises(CorpusError, match=r"000_00000\.parquet: cannot be read: FileNotFoundError"):
        block.texts()


def test_a_remote_block_is_tried_again_and_then_refused(monkeypatch):
    attempts = []

    def failing(block):
        attempts.append(block.url)
        if len(attempts) < 3:
            raise ConnectionError("reset")
        return ["text"]

    monkeypatch.setattr(hub, "RETRY_SECONDS", (0, 0))
    monkeypatch.setattr(Block, "_read", failing)
    assert Block("hf://x", 0, 1, 1).texts() == ["text"]
    monkeypatch.setattr(hub, "RETRY_SECONDS", (0,))
    attempts.clear()
    with pytest.raises(CorpusError, match="hf://x: cannot be read: ConnectionError: reset"):
        Block("hf://x", 0, 1, 1).texts()
