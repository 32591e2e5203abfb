"""Small parquet files in the form of FineWeb-Edu, tokenizer files in the form of GPT-2, and a server for them."""

import http.server
import json
import random
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pyarrow
from pyarrow import parquet

from ddl.config import ParquetDataset
from ddl.data.tokenizer import train_bpe

VOCAB = 300
FOLDER = "sample/100BT"
STEMS = ["direction", "gate", "value", "residual", "householder", "readout", "the", "of", "é"]


def prose(seed: int, count: int = 60) -> str:
    generator = random.Random(seed)
    return " ".join(generator.choice(STEMS) + str(generator.randrange(9)) for _ in range(count))


def write_fineweb(folder: Path, files: list[list[str]], rows: int) -> ParquetDataset:
    """Write each list of texts as a file with row groups of `rows` texts, and return the corpus of these files."""
    for number, texts in enumerate(files):
        columns = {
            "text": texts,
            "id": [f"<urn:uuid:{number}-{row}>" for row in range(len(texts))],
            "dump": [f"CC-MAIN-20{13 + number}-20"] * len(texts),
            "url": [f"https://example.org/{number}/{row}" for row in range(len(texts))],
            "file_path": ["s3://commoncrawl/file.warc.gz"] * len(texts),
            "language": ["en"] * len(texts),
            "language_score": [0.97] * len(texts),
            "token_count": [len(text) // 4 for text in texts],
            "score": [3.1] * len(texts),
            "int_score": [3] * len(texts),
        }
        path = folder / FOLDER / f"{number:03d}_00000.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pyarrow.table(columns), path, row_group_size=rows)
    return ParquetDataset(dataset=str(folder), folder=FOLDER, revision="abc", val_tokens=5_000)


def write_gpt2_files(folder: Path) -> Path:
    """Write a vocab.json and a merges.txt with `VOCAB` tokens; the end-of-text token is last, as in GPT-2."""
    model = json.loads(train_bpe([prose(seed) for seed in range(30)], VOCAB).to_str())["model"]
    end, *tokens = sorted(model["vocab"], key=model["vocab"].get)
    folder.mkdir(parents=True)
    vocabulary = {token: number for number, token in enumerate([*tokens, end])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    return folder


class _Ranges(http.server.SimpleHTTPRequestHandler):
    """Serves a folder and answers range requests, as web servers for data do."""

    def do_GET(self) -> None:
        path, wanted = Path(self.translate_path(self.path)), self.headers.get("Range")
        if not wanted or not path.is_file():
            super().do_GET()
            return
        content = path.read_bytes()
        first, last = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", wanted).groups())
        part = content[first : last + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder on the loopback address; yields the URL."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Ranges, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
