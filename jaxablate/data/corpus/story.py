"""Story i of a seed: text, token ids, facts. A pure function of (seed, i), so any story is made without the others."""

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int64, UInt16

from jaxablate.data.corpus import facts, narrator, plots
from jaxablate.data.corpus.grammar import TOKEN_IDS, VOCABULARY
from jaxablate.data.ids import END_OF_TEXT
from jaxablate.errors import DataError

CORPUS_VERSION = "stories-1"
"""Changes whenever any story changes; a token file or a model made with another version no longer fits."""

VALID_START = 1_000_000_000
"""Training stories are below this index, validation stories from it on."""

_DICE = 128
_BLOCK = 512
_EOT = TOKEN_IDS[END_OF_TEXT]


@dataclasses.dataclass(frozen=True, eq=False)
class Story:
    """One story."""

    seed: int
    index: int
    tokens: UInt16[np.ndarray, " n_tokens"]
    """Ids of `jaxablate.data.corpus.tokenizer.CorpusTokenizer`, without end-of-text."""
    _page: narrator.Page = dataclasses.field(repr=False)
    _plot: str = dataclasses.field(repr=False)

    @functools.cached_property
    def text(self) -> str:
        """Paragraphs separated by an empty line."""
        return "".join([VOCABULARY[i] for i in self._page.tokens])

    @functools.cached_property
    def facts(self) -> facts.StoryFacts:
        """All facts of the story, aligned with `tokens`; computed when they are first asked for."""
        return facts.collect(self._page, self._plot)


def story(seed: int, index: int) -> Story:
    """Story `index` of a seed, 0 <= index < 2**62 and 0 <= seed < 2**64; DataError for other numbers."""
    return next(stories(seed, index, 1))


def stories(seed: int, start: int, count: int) -> Iterator[Story]:
    """Stories start .. start + count - 1 of a seed, in order; the same as `story` of each."""
    for index, page, plot in _pages(seed, start, count):
        yield Story(seed, index, np.asarray(page.tokens, np.uint16), page, plot)


def token_stream(seed: int, start: int, count: int
                 ) -> tuple[UInt16[np.ndarray, " n_tokens"], Int64[np.ndarray, " count"]]:
    """Token ids of many stories with one end-of-text after each, without going through text (20,000 in about a second).

    Returns:
      (all tokens, where each story begins).

    Raises:
      DataError: a number is out of range.
    """
    pieces, lengths = [], []
    for _, page, _ in _pages(seed, start, count):
        page.tokens.append(_EOT)
        pieces.append(np.asarray(page.tokens, np.uint16))
        lengths.append(len(page.tokens))
    return np.concatenate([np.zeros(0, np.uint16), *pieces]), np.cumsum([0, *lengths])[:-1]


def entropy_floor(seed: int = 0, start: int = VALID_START, count: int = 2000) -> float:
    """Nats a token that no model of whole stories can beat, estimated on `count` stories.

    The mean of -log P(story) over the mean length with its end-of-text, P by the grammar's own choices. A model that
    sees a story from its first token comes no lower (a story told by two different sequences of choices would make
    this a little too high; none is known); windows cut out of stories cost more.

    Returns:
      Nats a token, about 0.45.
    """
    nats = tokens = 0.0
    for _, page, _ in _pages(seed, start, count):
        nats += page.nats
        tokens += len(page.tokens) + 1
    return nats / tokens


def _pages(seed: int, start: int, count: int) -> Iterator[tuple[int, narrator.Page, str]]:
    if not 0 <= seed < 2**64:
        raise DataError(f"corpus seed={seed} must be in 0..2**64-1")
    if start < 0 or count < 0 or start + count > 2**62:
        raise DataError(f"stories {start}..{start + count - 1} are out of range; indices are 0..2**62-1")
    for first in range(start, start + count, _BLOCK):
        rows = narrator.dice(seed, first, min(_BLOCK, start + count - first), _DICE)
        for i, row in enumerate(rows.tolist()):
            page = narrator.Page(row)
            yield first + i, page, plots.write_story(page)
