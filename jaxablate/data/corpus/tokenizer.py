"""The corpus's own word-level tokenizer: a closed vocabulary of about 320 tokens, GPT-2-like in its spaces."""

import difflib
import hashlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxablate.data.corpus.grammar import TOKEN_IDS, TOKEN_PATTERN, VOCABULARY
from jaxablate.data.ids import END_OF_TEXT, Tokenizer, check_ids, write_for_others, write_meta
from jaxablate.errors import DataError

if TYPE_CHECKING:
    import tokenizers


class CorpusTokenizer(Tokenizer):
    """Words of the embedded corpus, each with the space before it; ``decode(encode(text)) == text`` for every text.

    A name, noun or verb is one token, so ``" Rob"`` can be asked for as the answer to a prompt. Words without a space
    are in the vocabulary where the corpus writes them so: at the start of a paragraph and after an opening quote.

    >>> tokenizer = CorpusTokenizer()
    >>> [tokenizer.decode([i]) for i in tokenizer.encode('Then, Rob and Sue')]
    ['Then', ',', ' Rob', ' and', ' Sue']
    """

    name = "corpus"
    vocab_size = len(VOCABULARY)
    eot_id = pad_id = TOKEN_IDS[END_OF_TEXT]
    unk_id: int | None = None

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; the end-of-text token is never among them.

        Raises:
          DataError: a word or sign that the corpus does not have; the message names it and the nearest ones it has.
        """
        pieces = TOKEN_PATTERN.findall(text)
        ids = [TOKEN_IDS.get(piece, self.eot_id) for piece in pieces]
        if sum(map(len, pieces)) != len(text) or self.eot_id in ids:
            raise DataError(_unknown(text))
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return "".join([VOCABULARY[i] for i in check_ids(ids, self.vocab_size)])

    def fingerprint(self) -> str:
        """SHA-256 of the vocabulary in its order."""
        return hashlib.sha256("\0".join(VOCABULARY).encode()).hexdigest()

    def for_tokenizers(self) -> "tokenizers.Tokenizer":
        """The same tokenizer of the library `tokenizers`, but that an unknown word is ``<|endoftext|>`` there: programs
        try a tokenizer on texts of their own when they open a model."""
        import tokenizers

        same = tokenizers.Tokenizer(tokenizers.models.WordLevel(dict(TOKEN_IDS), unk_token=END_OF_TEXT))
        same.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(TOKEN_PATTERN.pattern), "isolated")
        same.decoder = tokenizers.decoders.Fuse()
        return same

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the metadata, and ``tokenizer.json`` for other libraries.

        The words are part of the package; the fingerprint tells whether they changed.
        """
        write_for_others(folder, self.for_tokenizers())
        write_meta(folder, self, "corpus")


def _unknown(text: str) -> str:
    """Error message for the first thing in a text that is not in the vocabulary."""
    position = 0
    while (match := TOKEN_PATTERN.match(text, position)) and match[0] in TOKEN_IDS and match[0] != END_OF_TEXT:
        position = match.end()
    word = match[0] if match else text[position]
    near = difflib.get_close_matches(word, VOCABULARY[1:], n=3, cutoff=0.5)
    hint = f"; near it are {', '.join(map(repr, near))}" if near else ""
    shown = repr(word if len(word) <= 80 else word[:77] + "...")
    return (f"{shown} at character {position} is not among the {len(VOCABULARY)} words of the embedded corpus "
            f"(a space before a word belongs to it){hint}")
