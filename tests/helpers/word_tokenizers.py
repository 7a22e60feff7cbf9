"""Small tokenizers for tests of tasks."""

import re


class Words:
    """A tokenizer of words with the space before them. Names in ``long`` are two tokens."""

    def __init__(self, long: tuple[str, ...] = (), eot_id: int | None = None):
        self.ids: dict[str, int] = {}
        self.long = long
        if eot_id is not None:
            self.eot_id = eot_id

    def encode(self, text: str) -> list[int]:
        pieces = re.findall(r" ?\w+| ?[^\w\s]", text)
        return [self.ids.setdefault(part, len(self.ids)) for piece in pieces
                for part in ((piece, "+") if piece.strip() in self.long else (piece,))]


class Bytes:
    def encode(self, text: str) -> list[int]:
        return list(text.encode())


class Unknowns:
    """Knows five names; every other word is the one unknown token."""

    known = ("Tim", "Tom", "Ben", "Max", "Sam")

    def encode(self, text: str) -> list[int]:
        return [1 + self.known.index(word) if word in self.known else 0 for word in re.findall(r"\w+", text)]
