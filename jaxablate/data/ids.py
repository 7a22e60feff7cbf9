"""What all tokenizers have in common: the protocol, the end of a text, checks of ids, and the metadata of a folder."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NotRequired, Protocol, TypedDict, runtime_checkable

from jaxablate import files
from jaxablate.errors import DataError, FileError

if TYPE_CHECKING:
    import tokenizers

END_OF_TEXT = "<|endoftext|>"
"""Text form of the token that follows every story, in files and in decoded text."""

META_FILE = "tokenizer_meta.json"
TOKENIZERS_FILE, TRANSFORMERS_FILE = "tokenizer.json", "tokenizer_config.json"
"""What the libraries `tokenizers` and transformers open."""
Kind = Literal["gpt2", "bpe", "corpus", "words", "file"]


@runtime_checkable
class Tokenizer(Protocol):
    """What the data pipeline, the samplers and the measures ask of a tokenizer."""

    name: str
    """Short name that goes into file names and reports, for example ``gpt2`` or ``bpe-4096``."""
    vocab_size: int
    """Number of token ids; every id is in ``0 .. vocab_size - 1``."""
    eot_id: int
    """End-of-text token, which the token file writer puts after each story; `encode` never makes it."""
    pad_id: int
    """Token that fills a batch beyond the end of a text; `encode` never makes it."""
    unk_id: int | None
    """Token of every word outside the vocabulary; None where any text can be encoded, or none with such a word."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a text. A ``<|endoftext|>`` inside it is ordinary text."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of every text, in parallel where the library allows."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids; the end-of-text id becomes ``<|endoftext|>``. Raises DataError for an unknown id."""
        ...

    def fingerprint(self) -> str:
        """SHA-256 (hex) of everything that decides the ids: equal fingerprints give equal ids for every text."""
        ...

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write what `load_tokenizer` needs into a folder, made if absent. It ends with `write_meta`."""
        ...


def check_ids(ids: Sequence[int], vocab_size: int) -> list[int]:
    """The ids as plain integers; DataError where one is outside ``0 .. vocab_size - 1``."""
    plain = [int(i) for i in ids]
    bad = next((i for i in plain if not 0 <= i < vocab_size), None)
    if bad is not None:
        raise DataError(f"token id {bad} is beyond the vocabulary; ids are 0..{vocab_size - 1}")
    return plain


def write_meta(folder: str | os.PathLike[str], tokenizer: Tokenizer, kind: Kind) -> None:
    """Write ``tokenizer_meta.json``, by which `load_tokenizer` knows what to build. The last step of every `save`."""
    files.write_json(Path(folder) / META_FILE, {
        "kind": kind,
        "name": tokenizer.name,
        "vocab_size": tokenizer.vocab_size,
        "eot_id": tokenizer.eot_id,
        "fingerprint": tokenizer.fingerprint(),
    } | ({} if bos_id(tokenizer) is None else {"bos_id": bos_id(tokenizer)}))


def bos_id(tokenizer: Tokenizer) -> int | None:
    """The token that a tokenizer's models expect before every text, which `encode` never makes; None without one."""
    return getattr(tokenizer, "bos_id", None)


def write_for_others(folder: str | os.PathLike[str], same: "tokenizers.Tokenizer") -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json``: `tokenizers` and transformers open the folder, too.

    ``same`` gives any text the ids of the tokenizer that is saved. Only a ``<|endoftext|>`` inside a text differs:
    there it is the special token, as with GPT-2's own files, and here ordinary text.
    """
    same.add_special_tokens([END_OF_TEXT])
    files.write(Path(folder) / TOKENIZERS_FILE, same.to_str())
    files.write_json(Path(folder) / TRANSFORMERS_FILE, {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT,
        "unk_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
    })


class Meta(TypedDict):
    """What a saved tokenizer's metadata must hold."""

    kind: str
    name: str
    fingerprint: str
    eot_id: NotRequired[int]
    bos_id: NotRequired[int]


def read_meta(folder: Path) -> Meta:
    """The metadata of a saved tokenizer.

    Raises:
      DataError: the folder has none, or it is damaged.
    """
    path = folder / META_FILE
    try:
        return files.read_json(path, Meta, what="a tokenizer's metadata", fix="save the tokenizer again")
    except FileNotFoundError as error:
        raise DataError(f"tokenizer file {path} cannot be read (it is missing); save the tokenizer again") from error
    except FileError as error:
        raise DataError(str(error)) from error
