"""Extract the material of the offline tasks: lines of held-out prose, and word statistics of the training documents."""

import json
import math
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tokenizers import Tokenizer

from ddl.errors import UserError

SEED = "ddl offline tasks 1"
ITEMS_PER_DOCUMENT = 10  # most items of a task from one document; otherwise a few large modules would dominate
LINES_BEFORE = 3  # most context lines from the same paragraph; fewer if they do not fit
MIN_WORDS, MAX_WORDS = 7, 20  # words of a prose line
PLAIN_SHARE = 0.8  # least fraction of `PLAIN` words in a prose line
MIN_COUNT = 5  # least count, in training prose, of a content word that serves as a choice
FUNCTION_WORDS = frozenset(
    """
    about above after again against all along also although among and any are around because been before being below
    between both but can cannot could did does doing done down during each either else even ever every few for from
    had has have having here how however if into its itself just may might more most much must neither nor not now
    off once one only onto other otherwise our out over own per same shall she should since some such than that the
    their them then there these they this those though three through thus too two under until upon use used uses
    using very via was well were what when where whether which while who whose why will with within without would
    yet you your
    """.split()  # noqa: SIM905
)
WORD = re.compile(r"[a-z]+")
PLAIN = re.compile(r"[A-Za-z]+(?:-[a-z]+)?[.,;:]?")
CONTENT = re.compile(r"([a-z]{3,})[.,;:]?")


class TaskError(UserError):
    """Items that cannot be built from the documents."""


@dataclass(frozen=True)
class Line:
    """One line of held-out prose and the lines before it in its paragraph."""

    document: str
    group: str  # source of the document; the distractors of `ending` come from another group
    before: tuple[str, ...]
    indent: str
    words: tuple[str, ...]

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def query(self, end: int) -> str:
        """The context lines, then the words of the line before word number `end`."""
        return "\n".join((*self.before, self.indent + " ".join(self.words[:end]))).lstrip()


@dataclass
class Statistics:
    """Word frequencies of the training documents, and the candidates for distractors."""

    counts: Counter[str]
    tokens: dict[str, int] = field(default_factory=dict)  # content word -> number of tokens of " word"
    ranked: dict[int, list[str]] = field(default_factory=dict)  # number of tokens -> words, most frequent first
    vocabulary: dict[str, list[str]] = field(default_factory=dict)  # document -> content words, most frequent first
    endings: dict[int, list[tuple[str, str]]] = field(default_factory=dict)  # word count -> (group, second half)

    def __post_init__(self) -> None:
        self.total = self.counts.total() + len(self.counts)

    def log_probability(self, text: str) -> float:
        """Log-probability of the words of `text` in nats, under the add-one smoothed training unigram distribution."""
        return math.fsum(math.log((self.counts[word] + 1) / self.total) for word in WORD.findall(text.lower()))

    def similar(self, word: str) -> list[str]:
        """The content words with as many tokens as `word`, most frequent first."""
        return self.ranked[self.tokens[word]]


def is_content(word: str, count: int) -> bool:
    """Whether a word with this count in training may be a gold word or a distractor."""
    return len(word) >= 3 and count >= MIN_COUNT and word not in FUNCTION_WORDS


def half(line: Line) -> int:
    """Index of the first word of the second half of a line, which has 4 to 7 words."""
    return len(line.words) - min(7, max(4, len(line.words) // 2))


def content_words(line: Line, statistics: Statistics, start: int, stop: int) -> list[tuple[int, str]]:
    """(position, word without punctuation) of the line's content words in [start, stop)."""
    matches = [(i, CONTENT.fullmatch(line.words[i])) for i in range(start, stop)]
    return [(i, match[1]) for i, match in matches if match and match[1] in statistics.tokens]


def read_documents(path: Path) -> Iterator[dict[str, str]]:
    """Read the documents of one split, one at a time.

    Raises:
        TaskError: the file cannot be read, or a line is not a document.
    """
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                document = json.loads(line)
                if not all(isinstance(document.get(key), str) for key in ("id", "source", "text")):
                    raise TaskError(f"{path}: line {number}: expected a document with id, source and text")
                yield document
    except (OSError, json.JSONDecodeError) as error:
        raise TaskError(f"{path}: cannot read the documents: {error}") from None


def read_lines(documents: list[dict[str, str]]) -> list[Line]:
    """The distinct prose lines, each with up to `LINES_BEFORE` preceding lines of its paragraph."""
    several = len({document["source"] for document in documents}) > 1
    found: dict[str, Line] = {}
    for document in documents:
        above: list[str] = []
        for text in document["text"].splitlines():
            words = tuple(text.strip().split(" "))
            if is_prose(words):
                group = document["source"] if several else document["id"]
                indent = text[: len(text) - len(text.lstrip())]
                line = Line(document["id"], group, tuple(above[-LINES_BEFORE:]), indent, words)
                found.setdefault(line.text, line)
            above = [*above, text.rstrip()] if text.strip() else []
    return list(found.values())


def is_prose(words: Sequence[str]) -> bool:
    """Whether a line, split at single spaces, is running text and not a heading, a table or code."""
    if not MIN_WORDS <= len(words) <= MAX_WORDS or "" in words:
        return False
    return sum(PLAIN.fullmatch(word) is not None for word in words) >= PLAIN_SHARE * len(words)


def fit_context(lines: list[Line], tokenizer: Tokenizer, limit: int) -> list[Line]:
    """Trim the context of each line to at most `limit` tokens in all; drop lines that are longer on their own."""
    texts = sorted({text for line in lines for text in (*line.before, line.text)})
    encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
    tokens = {text: len(encoding.ids) + 1 for text, encoding in zip(texts, encoded, strict=True)}
    fitted = []
    for line in lines:
        left = limit - tokens[line.text]
        before: list[str] = []
        for text in reversed(line.before):
            left -= tokens[text]
            if left < 0:
                break
            before.insert(0, text)
        if tokens[line.text] <= limit:
            fitted.append(replace(line, before=tuple(before)))
    return fitted


def scan_training(path: Path, texts: set[str]) -> tuple[Counter[str], Counter[str], set[str]]:
    """Count the words of the training documents and of their prose lines; find which `texts` are training lines."""
    counts: Counter[str] = Counter()
    prose: Counter[str] = Counter()
    known: set[str] = set()
    for document in read_documents(path):
        counts.update(WORD.findall(document["text"].lower()))
        for line in document["text"].splitlines():
            words = line.split()
            known.update(texts.intersection([" ".join(words)]))
            if is_prose(words):
                prose.update(match[1] for match in map(CONTENT.fullmatch, words) if match)
    return counts, prose, known


def collect(counts: Counter[str], prose: Counter[str], lines: list[Line], tokenizer: Tokenizer) -> Statistics:
    """Collect the statistics that the item builders use.

    Distractors are words of training *prose*, ranked by their count there. Gold words are drawn from prose, so a word
    that is frequent only in code or signatures would be easy to tell apart.
    """
    words = sorted(word for word, count in prose.items() if is_content(word, count))
    words.sort(key=lambda word: -prose[word])  # stable: alphabetical among equals
    statistics = Statistics(counts)
    encoded = tokenizer.encode_batch([f" {word}" for word in words], add_special_tokens=False)
    for word, encoding in zip(words, encoded, strict=True):
        statistics.tokens[word] = len(encoding.ids)
        statistics.ranked.setdefault(len(encoding.ids), []).append(word)
    order = {word: index for index, word in enumerate(words)}
    vocabulary: dict[str, set[str]] = {}
    per_document: Counter[str] = Counter()
    for line in random.Random(f"{SEED} endings").sample(lines, len(lines)):
        vocabulary.setdefault(line.document, set()).update(
            word for _, word in content_words(line, statistics, 0, len(line.words))
        )
        per_document[line.document] += 1
        if per_document[line.document] > ITEMS_PER_DOCUMENT:
            continue  # the limit for gold endings
        middle = half(line)
        statistics.endings.setdefault(len(line.words) - middle, []).append((line.group, " ".join(line.words[middle:])))
    statistics.vocabulary = {document: sorted(found, key=order.__getitem__) for document, found in vocabulary.items()}
    return statistics
