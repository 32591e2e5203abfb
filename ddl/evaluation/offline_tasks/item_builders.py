"""Build the items of the offline tasks: a query from one line of held-out prose, its continuation, and distractors.

Every builder maps (line, statistics, rng) to an `Item`, or to None if the line is unsuitable. Its choices are
exchangeable for a reader who ignores the query: a random draw decides how many distractors are more frequent than the
gold choice; endings have equal word counts; orders are the four elements of a swap group. `Item.cell` records the
outcome of the draw.
"""

import random
from collections import Counter
from dataclasses import dataclass

from ddl.evaluation.offline_tasks.prose_lines import WORD, Line, Statistics, content_words, half

FOLLOWING = 4  # words after the gold word that are scored with it
WINDOW = 40  # distractors are at most this many frequency ranks away
MAX_RATIO = 5  # largest ratio between the frequencies of a word's singular and plural
PREPOSITIONS = ("of", "in", "to", "for", "with", "on", "by", "from", "as", "at")


@dataclass(frozen=True)
class Item:
    """A query, the gold choice (the document's continuation) and the other choices; it counts towards quota `cell`."""

    query: str
    gold: str
    others: tuple[str, ...]
    cell: int = 0
    after: str = ""  # text after the choice, if the task scores this text instead of the choice


def near(ranked: list[str], gold: str, others: int, rng: random.Random) -> tuple[int, list[str]] | None:
    """Draw distractors near `gold` from a list sorted by frequency.

    The number of distractors that are more frequent than the gold word is drawn first, uniformly from 0 to `others`. A
    window centred on the gold word would put it in the middle, and a frequency prior would score below chance.

    Returns:
        The number of more frequent distractors, and the distractors; None if the gold is too near an end of the list.
    """
    index = ranked.index(gold)
    above, below = ranked[max(0, index - WINDOW) : index], ranked[index + 1 : index + 1 + WINDOW]
    if min(len(above), len(below)) < others:
        return None
    slot = rng.randrange(others + 1)
    return slot, rng.sample(above, slot) + rng.sample(below, others - slot)


def word_item(line: Line, position: int, gold: str, others: list[str], following: int, cell: int) -> Item:
    """Make an item whose choice is word `position` and the `following` words; distractors replace only the word."""
    text = " ".join(line.words[position : position + 1 + following])
    return Item(line.query(position), text, tuple(other + text[len(gold) :] for other in others), cell)


def cloze(line: Line, statistics: Statistics, rng: random.Random) -> Item | None:
    """A content word and the words after it; distractors have similar frequency and equal token count."""
    candidates = content_words(line, statistics, 3, len(line.words) - 1)
    if not candidates:
        return None
    position, gold = rng.choice(candidates)
    drawn = near(statistics.similar(gold), gold, 3, rng)
    return word_item(line, position, gold, drawn[1], FOLLOWING, drawn[0]) if drawn else None


def cloze_hard(line: Line, statistics: Statistics, rng: random.Random) -> Item | None:
    """A content word and the words after it; distractors are words of the document.

    None of the four words occurs elsewhere in the passage.
    """
    passage = Counter(WORD.findall(" ".join((*line.before, *line.words)).lower()))
    candidates = [c for c in content_words(line, statistics, 3, len(line.words) - 1) if passage[c[1]] == 1]
    if not candidates:
        return None
    position, gold = rng.choice(candidates)
    vocabulary = statistics.vocabulary[line.document]
    drawn = near([word for word in vocabulary if word == gold or word not in passage], gold, 3, rng)
    return word_item(line, position, gold, drawn[1], FOLLOWING, drawn[0]) if drawn else None


def last_word(line: Line, statistics: Statistics, rng: random.Random) -> Item | None:
    """The last word of a line; distractors have similar frequency and equal token count."""
    last = len(line.words) - 1
    for _, gold in content_words(line, statistics, last, last + 1):
        drawn = near(statistics.similar(gold), gold, 3, rng)
        return Item(line.query(last), gold, tuple(drawn[1]), drawn[0]) if drawn else None
    return None


def ending(line: Line, statistics: Statistics, rng: random.Random) -> Item | None:
    """The second half of a line; distractors are second halves with as many words from other packages."""
    middle = half(line)
    gold = " ".join(line.words[middle:])
    pool = statistics.endings[len(line.words) - middle]
    others: list[str] = []
    for group, text in rng.sample(pool, min(len(pool), WINDOW)):
        if group != line.group and text != gold and text not in others:
            others.append(text)
        if len(others) == 3:
            return Item(line.query(middle), gold, tuple(others))
    return None


def order(line: Line, statistics: Statistics, rng: random.Random) -> Item | None:
    """The second half of a line; distractors apply one or both of two disjoint swaps of adjacent words.

    The four orders form a group under swapping: the same three operations lead from each order to the other three, so
    the four are exchangeable. With single swaps only, the gold order would be in the middle of its distractors.
    """
    middle = half(line)
    words = line.words[middle:]
    plain = [WORD.fullmatch(word) is not None for word in words]
    swaps = [i for i in range(len(words) - 1) if plain[i] and plain[i + 1] and words[i] != words[i + 1]]
    pairs = [(i, j) for i in swaps for j in swaps if j >= i + 2]
    if not pairs:
        return None
    i, j = rng.choice(pairs)

    def swapped(*positions: int) -> str:
        changed = list(words)
        for k in positions:
            changed[k], changed[k + 1] = changed[k + 1], changed[k]
        return " ".join(changed)

    return Item(line.query(middle), swapped(), (swapped(i), swapped(j), swapped(i, j)))


def number(line: Line, statistics: Statistics, rng: random.Random) -> Item | None:
    """A word and the words after it; the distractor is its other grammatical number, with or without a final s.

    The cell is (has the s, is the more frequent form). If the cells are filled evenly, neither length nor frequency
    predicts the gold form.
    """
    counts = statistics.counts
    candidates = []
    for position, gold in content_words(line, statistics, 2, len(line.words) - 1):
        other = gold[:-1] if gold.endswith("s") else f"{gold}s"
        rare, frequent = sorted((counts[gold], counts[other]))
        if len(other) >= 4 and other in statistics.tokens and rare < frequent < MAX_RATIO * rare:
            candidates.append((position, gold, other))
    if not candidates:
        return None
    position, gold, other = rng.choice(candidates)
    cell = 2 * gold.endswith("s") + (counts[gold] > counts[other])
    return word_item(line, position, gold, [other], FOLLOWING, cell)


def function_word(line: Line, statistics: Statistics, rng: random.Random) -> Item | None:
    """A preposition and the words after it; distractors are two other prepositions. The cell is the preposition."""
    candidates = [i for i in range(2, len(line.words) - 3) if line.words[i] in PREPOSITIONS]
    if not candidates:
        return None
    position = rng.choice(candidates)
    gold = line.words[position]
    others = rng.sample([word for word in PREPOSITIONS if word != gold], 2)
    return word_item(line, position, gold, others, 5, PREPOSITIONS.index(gold))


def pair(line: Line, statistics: Statistics, rng: random.Random) -> Item | None:
    """An item in WinoGrande's form: two words of similar frequency for a blank; the rest of the line is scored."""
    if any("_" in text for text in (*line.before, *line.words)):
        return None  # the harness splits the sentence at the first underscore
    candidates = content_words(line, statistics, 2, len(line.words) - 3)
    candidates = [(position, gold) for position, gold in candidates if line.words[position] == gold]
    if not candidates:
        return None
    position, gold = rng.choice(candidates)
    drawn = near(statistics.similar(gold), gold, 1, rng)
    if drawn is None:
        return None
    return Item(line.query(position), gold, tuple(drawn[1]), drawn[0], " ".join(line.words[position + 1 :]))
