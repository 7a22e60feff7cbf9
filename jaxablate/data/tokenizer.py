"""Tokenizers: text to token ids and back, with one end-of-text id, saved beside the runs that use them.

A tokenizer's folder holds ``tokenizer_meta.json`` (kind, size, fingerprint) and what the kind needs to be rebuilt
without a network: the merge ranks of GPT-2, the ``tokenizer.json`` of a BPE trained here, nothing for the embedded
corpus, whose words are part of the package.
"""

import base64
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from jaxablate.errors import DataError

END_OF_TEXT = "<|endoftext|>"
"""Text form of the token that follows every story, in files and in decoded text."""

META_FILE = "tokenizer_meta.json"
GPT2_FILE = "gpt2.tiktoken"
BPE_FILE = "tokenizer.json"

_BYTES = 256
_THREADS = os.cpu_count() or 1


@runtime_checkable
class Tokenizer(Protocol):
    """What the data pipeline, the samplers and the measures ask of a tokenizer.

    Attributes:
      name: short name that goes into file names and reports, for example ``gpt2`` or ``bpe-4096``.
      vocab_size: number of token ids; every id is in ``0 .. vocab_size - 1``.
      eot_id: id of the end-of-text token. `encode` never makes it, whatever the text; the token file writer adds it.
    """

    name: str
    vocab_size: int
    eot_id: int

    def encode(self, text: str) -> list[int]:
        """Token ids of a text. A ``<|endoftext|>`` inside it is ordinary text."""
        ...

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """`encode` of every text, in parallel where the library allows."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids; the end-of-text id becomes ``<|endoftext|>``. Raises DataError for an unknown id."""
        ...

    def fingerprint(self) -> str:
        """SHA-256 (hex) of everything that decides the ids: equal fingerprints give equal ids for every text."""
        ...

    def save(self, folder: str | os.PathLike) -> None:
        """Write what `load_tokenizer` needs into a folder, made if absent. It ends with `write_meta`."""
        ...


class Gpt2Tokenizer:
    """The 50,257 tokens of GPT-2, encoded by tiktoken.

    Raises:
      DataError: the vocabulary is not on this machine and cannot be downloaded.
    """

    name = "gpt2"

    def __init__(self, encoding: Any = None):
        self._encoding = _gpt2_encoding() if encoding is None else encoding
        self.vocab_size = self._encoding.n_vocab
        self.eot_id = self._encoding.eot_token
        self._fingerprint: str | None = None

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""
        return self._encoding.encode_ordinary(text)

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Token ids of every text, on all cores."""
        return self._encoding.encode_ordinary_batch(texts, num_threads=_THREADS)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids; bytes that are no UTF-8 become U+FFFD."""
        return self._encoding.decode(check_ids(ids, self.vocab_size))

    def fingerprint(self) -> str:
        """SHA-256 of the splitting pattern and all merge ranks."""
        if self._fingerprint is None:
            ranks = _ranks_text(self._encoding)
            self._fingerprint = _digest("gpt2", self._encoding._pat_str, str(self.eot_id), ranks)
        return self._fingerprint

    def save(self, folder: str | os.PathLike) -> None:
        """Write the merge ranks, so that the folder can be read without a network."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / GPT2_FILE).write_text(_ranks_text(self._encoding))
        write_meta(folder, self, "gpt2", pattern=self._encoding._pat_str)


class BpeTokenizer:
    """Byte-level BPE (Hugging Face ``tokenizers``) with end-of-text as its last id; any text can be encoded.

    Args:
      serialized: contents of a ``tokenizer.json`` made by `train_bpe`.
    """

    def __init__(self, serialized: str):
        from tokenizers import Tokenizer as HuggingFaceTokenizer

        self._tokenizer = HuggingFaceTokenizer.from_str(serialized)
        self._tokenizer.encode_special_tokens = True
        self._serialized = serialized
        self.vocab_size = self._tokenizer.get_vocab_size()
        self.eot_id = self.vocab_size - 1
        self.name = f"bpe-{self.vocab_size}"

    @property
    def serialized(self) -> str:
        """Contents of the ``tokenizer.json``."""
        return self._serialized

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""
        return self._tokenizer.encode(text).ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Token ids of every text, on all cores."""
        return [e.ids for e in self._tokenizer.encode_batch_fast(texts)]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids; bytes that are no UTF-8 become U+FFFD."""
        return self._tokenizer.decode(check_ids(ids, self.vocab_size), skip_special_tokens=False)

    def fingerprint(self) -> str:
        """SHA-256 of the serialised tokenizer."""
        return _digest("bpe", self._serialized)

    def save(self, folder: str | os.PathLike) -> None:
        """Write ``tokenizer.json`` (readable by other users of the format) and the metadata."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / BPE_FILE).write_text(self._serialized, encoding="utf-8")
        write_meta(folder, self, "bpe")


def train_bpe(texts: Iterable[str], vocab_size: int) -> BpeTokenizer:
    """Train a byte-level BPE; the same texts always give the same tokenizer.

    Args:
      texts: training texts, read once.
      vocab_size: ids wanted, end-of-text included; at least 257. A text with too few repeated pairs gives fewer.

    Raises:
      DataError: vocab_size is below 257.
    """
    if vocab_size < _BYTES + 1:
        raise DataError(f"bpe_vocab_size={vocab_size} must be at least {_BYTES + 1}: the 256 bytes and end-of-text")
    from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as HuggingFaceTokenizer

    tokenizer = HuggingFaceTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1, min_frequency=2, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    return BpeTokenizer(tokenizer.to_str())


def load_tokenizer(folder: str | os.PathLike) -> Tokenizer:
    """Read a tokenizer saved by `Tokenizer.save`; no network is needed.

    Raises:
      DataError: the folder has no tokenizer, it is damaged, or it is not the one that was saved.
    """
    folder = Path(folder)
    meta = _read_meta(folder)
    try:
        tokenizer = _load_kind(folder, meta)
    except OSError as error:
        raise DataError(f"tokenizer folder {folder} is incomplete: {error}; save the tokenizer again") from error
    _check_fingerprint(folder, meta, tokenizer.fingerprint())
    return tokenizer


def write_meta(
    folder: str | os.PathLike, tokenizer: Tokenizer, kind: Literal["gpt2", "bpe", "corpus"], **extra: str
) -> None:
    """Write ``tokenizer_meta.json``, by which `load_tokenizer` knows what to build. The last step of every `save`."""
    meta = {
        "kind": kind,
        "name": tokenizer.name,
        "vocab_size": tokenizer.vocab_size,
        "eot_id": tokenizer.eot_id,
        "fingerprint": tokenizer.fingerprint(),
    }
    (Path(folder) / META_FILE).write_text(json.dumps(meta | extra, indent=2) + "\n", encoding="utf-8")


def check_ids(ids: Sequence[int], vocab_size: int) -> list[int]:
    """The ids as plain integers.

    Raises:
      DataError: an id is outside ``0 .. vocab_size - 1``.
    """
    plain = [int(i) for i in ids]
    bad = next((i for i in plain if not 0 <= i < vocab_size), None)
    if bad is not None:
        raise DataError(f"token id {bad} is beyond the vocabulary; ids are 0..{vocab_size - 1}")
    return plain


def _load_kind(folder: Path, meta: dict[str, Any]) -> Tokenizer:
    match meta["kind"]:
        case "gpt2":
            return Gpt2Tokenizer(_encoding_from_ranks((folder / GPT2_FILE).read_text(), meta))
        case "bpe":
            serialized = (folder / BPE_FILE).read_text(encoding="utf-8")
            _check_fingerprint(folder, meta, _digest("bpe", serialized))
            return BpeTokenizer(serialized)
        case "corpus":
            from jaxablate.data.corpus import CorpusTokenizer

            return CorpusTokenizer()
    raise DataError(f"{folder / META_FILE} has kind {meta['kind']!r}; this version knows gpt2, bpe and corpus")


def _read_meta(folder: Path) -> dict[str, Any]:
    path = folder / META_FILE
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        return meta | {key: meta[key] for key in ("kind", "vocab_size", "eot_id", "fingerprint")}
    except OSError as error:
        raise DataError(f"no tokenizer in {folder}: {META_FILE} cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}); save the tokenizer again") from error


def _check_fingerprint(folder: Path, meta: dict[str, Any], found: str) -> None:
    if found != meta["fingerprint"]:
        raise DataError(
            f"tokenizer in {folder} has fingerprint {found[:12]}, but {meta['fingerprint'][:12]} was saved; its files "
            "or this package's vocabulary changed since, restore them or prepare and train anew"
        )


def _gpt2_encoding() -> Any:
    import tiktoken

    try:
        return tiktoken.get_encoding("gpt2")
    except OSError as error:
        raise DataError(
            "the GPT-2 vocabulary is not on this machine and could not be downloaded "
            f"({type(error).__name__}); set TIKTOKEN_CACHE_DIR to a folder that holds tiktoken's two GPT-2 files "
            "(copied from the cache of a machine with a network), or use tokenizer='bpe'"
        ) from error


def _ranks_text(encoding: Any) -> str:
    """Merge ranks in tiktoken's own file format: base64 of the token, a space, its rank."""
    ranks = sorted(encoding._mergeable_ranks.items(), key=lambda item: item[1])
    return "".join(f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks)


def _encoding_from_ranks(text: str, meta: dict[str, Any]) -> Any:
    import tiktoken

    try:
        pairs = (line.split() for line in text.splitlines())
        ranks = {base64.b64decode(token): int(rank) for token, rank in pairs}
        return tiktoken.Encoding(
            "gpt2",
            pat_str=meta["pattern"],
            mergeable_ranks=ranks,
            special_tokens={END_OF_TEXT: meta["eot_id"]},
            explicit_n_vocab=meta["vocab_size"],
        )
    except (ValueError, KeyError, AssertionError) as error:
        raise DataError(f"{GPT2_FILE} of the tokenizer folder is damaged; save the tokenizer again") from error


def _digest(*parts: str) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{len(part)}:".encode() + part.encode())
    return digest.hexdigest()
