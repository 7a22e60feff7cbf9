"""Pairs of tokenised prompts, clean and corrupt, with the right and the wrong next tokens.

Prompts are padded at the left, so the last position of the arrays is the last token of every prompt, whatever its
length. A pair has one length, so clean and corrupt activations meet position by position.
"""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

from jaxablate.errors import DataError

PAD = 0
"""Token at padded positions. No result depends on it: they are masked."""
NO_ANSWER = -1
"""Fills up rows of `PromptPairs.answers` and `PromptPairs.wrong_answers`."""

_LARGEST_ID = 2**31 - 1


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class PromptPairs:
    """Prompt pairs of a task, ready for a model. Two of them are the same if their `digest` is.

    Example:
      >>> pairs = PromptPairs.from_ids([[5, 6, 7], [8, 9]], [[5, 4, 7], [3, 9]], [[1], [2]], [[2], [1, 3]], name="toy")
      >>> pairs
      PromptPairs('toy': 2 prompts of 2 to 3 tokens)
      >>> pairs.clean.tolist(), pairs.valid.tolist()
      ([[5, 6, 7], [0, 8, 9]], [[True, True, True], [False, True, True]])
      >>> pairs.wrong_answers.tolist(), pairs.lengths.tolist(), len(pairs.take([1]))
      ([[2, -1], [1, 3]], [3, 2], 1)

    Raises:
      DataError: the arrays do not have these shapes, types and paddings, or there is no prompt.
    """

    clean: np.ndarray
    """[n, T] int32, padded at the left: the last position is always T - 1."""
    corrupt: np.ndarray
    """[n, T] int32, padded as the clean ones."""
    valid: np.ndarray
    """[n, T] bool, True at real tokens of both prompts of a pair."""
    answers: np.ndarray
    """[n, A] int32, right next tokens, filled up with -1; at least one a prompt."""
    wrong_answers: np.ndarray
    """[n, W] int32, wrong next tokens, filled up with -1; at least one a prompt, none of them an answer."""
    groups: tuple[str, ...]
    """[n] kind of prompt, "" where there are none."""
    name: str
    """Name of the task."""

    def __post_init__(self) -> None:
        _check_shapes(self)
        _check_values(self)

    def __repr__(self) -> str:
        return f"PromptPairs({self.name!r}: {self.describe()})"

    def describe(self) -> str:
        """Number and lengths of the prompts."""
        shortest, longest = int(self.lengths.min()), int(self.lengths.max())
        return f"{len(self):,} prompts of {shortest if shortest == longest else f'{shortest} to {longest}'} tokens"

    @classmethod
    def from_ids(cls, clean: Sequence[Sequence[int]], corrupt: Sequence[Sequence[int]],
                 answers: Sequence[Sequence[int]], wrong_answers: Sequence[Sequence[int]], *, name: str,
                 groups: Sequence[str] | None = None, source: str | None = None) -> "PromptPairs":
        """From lists of token ids, one list a prompt, padded at the left to the longest prompt.

        Args:
          clean: token ids of each clean prompt.
          corrupt: token ids of each corrupt prompt, as many as its clean one has.
          answers: right next tokens of each prompt.
          wrong_answers: wrong next tokens of each prompt.
          name: name of the task.
          groups: kind of each prompt; none by default.
          source: what messages call the prompts; ``name`` by default.

        Raises:
          DataError: no prompts, a prompt without tokens, a pair of two lengths, a prompt without answers, or an id
            that is no token id. The message has the number of the prompt, counted from 0.
        """
        source = source or name
        groups = [""] * len(clean) if groups is None else groups
        counts = [len(x) for x in (clean, corrupt, answers, wrong_answers, groups)]
        if len(set(counts)) > 1:
            raise DataError(f"{source}: {counts[0]} clean prompts, {counts[1]} corrupt ones, {counts[2]} lists of "
                            f"answers, {counts[3]} of wrong answers and {counts[4]} groups; give as many of each")
        if not counts[0]:
            raise DataError(f"{source}: there are no prompts; give at least one")
        for i, pair in enumerate(zip(clean, corrupt, answers, wrong_answers, strict=True)):
            check_pair(*pair, where=f"{source}: prompt {i}")

        def padded(rows: Sequence[Sequence[int]]) -> np.ndarray:
            width = max(map(len, rows))
            return np.array([[PAD] * (width - len(row)) + list(row) for row in rows], np.int32)

        def filled(rows: Sequence[Sequence[int]]) -> np.ndarray:
            width = max(map(len, rows))
            return np.array([list(row) + [NO_ANSWER] * (width - len(row)) for row in rows], np.int32)

        return cls(clean=padded(clean), corrupt=padded(corrupt), valid=padded([[1] * len(ids) for ids in clean]) > 0,
                   answers=filled(answers), wrong_answers=filled(wrong_answers), groups=tuple(groups), name=name)

    def __len__(self) -> int:
        return len(self.clean)

    @property
    def lengths(self) -> np.ndarray:
        """[n] int64, real tokens of each prompt."""
        return self.valid.sum(-1)

    def take(self, indices: Sequence[int] | np.ndarray) -> "PromptPairs":
        """These prompts, in this order, padded as wide as before (so that batches share one compilation).

        Args:
          indices: [m] integers, or [n] booleans.
        """
        indices = np.asarray(indices)
        indices = np.flatnonzero(indices) if indices.dtype == bool else indices.astype(int)
        return dataclasses.replace(
            self, clean=self.clean[indices], corrupt=self.corrupt[indices], valid=self.valid[indices],
            answers=self.answers[indices], wrong_answers=self.wrong_answers[indices],
            groups=tuple(self.groups[i] for i in indices))

    def digest(self) -> str:
        """SHA-256 (hex) of all arrays, shapes included: equal digests mean the same prompts. Names do not enter."""
        content = hashlib.sha256()
        for x in (self.clean, self.corrupt, self.valid, self.answers, self.wrong_answers):
            content.update(f"{x.shape}{x.dtype.str}".encode())
            content.update(np.ascontiguousarray(x).tobytes())
        return content.hexdigest()

    def check_fits(self, *, context_length: int, vocab_size: int) -> None:
        """Raises DataError where a prompt is longer than a model's context, or a token is beyond its vocabulary."""
        longest = int(self.lengths.argmax())
        if self.lengths[longest] > context_length:
            raise DataError(too_long(f"{self.name}: prompt {longest}", int(self.lengths[longest]), context_length))
        largest = max(int(x.max()) for x in (self.clean, self.corrupt, self.answers, self.wrong_answers))
        if largest >= vocab_size:
            raise DataError(f"{self.name}: token {largest} is beyond the model's {vocab_size} tokens; tokenise the "
                            "prompts with the tokenizer that the model was trained with")


def check_pair(clean: Sequence[int], corrupt: Sequence[int], answers: Sequence[int], wrong_answers: Sequence[int], *,
               where: str) -> None:
    """Raises DataError for a pair of token ids without tokens, of two lengths, without answers, with an answer that is
    wrong too, or with an id that is none. The message begins with ``where``."""
    for kind, ids in (("clean", clean), ("corrupt", corrupt)):
        if not len(ids):
            raise DataError(f"{where}: {kind} has no tokens; write a text")
    if len(clean) != len(corrupt):
        raise DataError(f"{where}: clean has {len(clean)} tokens and corrupt {len(corrupt)}, but positions are patched "
                        "one by one; reword one of them to the length of the other, or leave the prompt out")
    for kind, ids in (("answers", answers), ("wrong_answers", wrong_answers)):
        if not len(ids):
            raise DataError(f"{where}: {kind} is empty; give at least one")
    both = sorted(set(answers) & set(wrong_answers))
    if both:
        raise DataError(f"{where}: token {both[0]} is among the answers and the wrong answers; keep it in one of them")
    bad = [i for ids in (clean, corrupt, answers, wrong_answers) for i in ids if not 0 <= i <= _LARGEST_ID]
    if bad:
        raise DataError(f"{where}: {bad[0]} is no token id; ids are 0 .. the number of tokens - 1")


def too_long(where: str, tokens: int, context_length: int) -> str:
    """Message about a prompt that a model cannot take."""
    return (f"{where}: {tokens} tokens are more than the model's context of {context_length}; shorten the prompt, "
            "leave it out, or use a model of longer context")


def _check_shapes(pairs: PromptPairs) -> None:
    kinds = {"clean": np.int32, "corrupt": np.int32, "valid": np.bool_, "answers": np.int32, "wrong_answers": np.int32}
    for field, dtype in kinds.items():
        x = getattr(pairs, field)
        if not isinstance(x, np.ndarray) or x.ndim != 2 or x.dtype != dtype or not x.shape[1]:
            found = f"{x.dtype}{list(x.shape)}" if isinstance(x, np.ndarray) else type(x).__name__
            raise DataError(f"{pairs.name}: {field} is {found}, not an array [prompts, 1 or more] of "
                            f"{np.dtype(dtype)}; make it by PromptPairs.from_ids")
    if not len(pairs.clean):
        raise DataError(f"{pairs.name}: there are no prompts; give at least one")
    rows = {len(getattr(pairs, field)) for field in kinds} | {len(pairs.groups)}
    if len(rows) > 1 or not pairs.clean.shape == pairs.corrupt.shape == pairs.valid.shape:
        shapes = ", ".join(f"{field} {list(getattr(pairs, field).shape)}" for field in kinds)
        raise DataError(f"{pairs.name}: {shapes} and {len(pairs.groups)} groups do not belong together; "
                        "make them by PromptPairs.from_ids")


def _check_values(pairs: PromptPairs) -> None:
    gaps = ~pairs.valid[:, -1] | (pairs.valid[:, :-1] & ~pairs.valid[:, 1:]).any(-1)
    if gaps.any():
        raise DataError(f"{pairs.name}: prompt {int(gaps.argmax())} is not padded at the left alone; its real tokens "
                        "must lie at the right end without gaps")
    if min(pairs.clean.min(), pairs.corrupt.min()) < 0:
        raise DataError(f"{pairs.name}: a prompt has a token id below 0; pad with {PAD}")
    for field in ("answers", "wrong_answers"):
        ids = getattr(pairs, field)
        bad = (ids[:, 0] < 0) | ((ids[:, :-1] < 0) & (ids[:, 1:] >= 0)).any(-1)
        if bad.any():
            raise DataError(f"{pairs.name}: prompt {int(bad.argmax())} has no {field}, or -1 before one; "
                            "put its token ids first, then -1")
