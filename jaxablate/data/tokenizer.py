"""Tokenizers: text to token ids and back, with one end-of-text id, saved beside the runs that use them.

GPT-2's vocabulary and a BPE trained here are the same kind of thing, byte-level merge ranks, and tiktoken encodes both
(four times as fast as the library that trains). Text classifiers may also have the white-space words of their training
texts. A tokenizer's folder holds ``tokenizer_meta.json`` (kind, size, fingerprint) and the ranks or words, so it can be
read back without a network; the embedded corpus's words are in the package. For the libraries `tokenizers` and
transformers there is ``tokenizer.json`` beside.
"""

import base64
import collections
import hashlib
import itertools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jaxablate import files
from jaxablate.data.corpus.tokenizer import CorpusTokenizer
from jaxablate.data.ids import (
    END_OF_TEXT,
    META_FILE,
    TOKENIZERS_FILE,
    TRANSFORMERS_FILE,
    Kind,
    Tokenizer,
    check_ids,
    read_meta,
    write_for_others,
    write_meta,
)
from jaxablate.errors import DataError, FileError

if TYPE_CHECKING:
    import tokenizers

RANKS_FILE = "ranks.tiktoken"
WORDS_FILE = "words.txt"

SPLIT_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""How GPT-2 cuts text into words before merging bytes (Radford et al. 2019)."""

_BYTES = 256
_LARGEST_VOCABULARY = 1 << 20
_LONGEST_TRAINING_WORD = 1024
_LONGEST_SPACE = 1 << 19
_SPACE = re.compile(r"\s{2,}")
_THREADS = os.cpu_count() or 1


class BytePairTokenizer:
    """Byte-level BPE given by its merge ranks, end-of-text as the last id. Any text can be encoded, and decoded back.

    Args:
      name: short name.
      ranks: byte string of every token -> its id, ``0 .. n - 1``; ids are also the order in which pairs are merged.
      kind: goes into the metadata, for `load_tokenizer`.

    Raises:
      DataError: the ranks are not those of a byte-level BPE.
    """

    def __init__(self, name: str, ranks: Mapping[bytes, int], kind: Literal["gpt2", "bpe"] = "bpe"):
        import tiktoken

        if sorted(ranks.values()) != list(range(len(ranks))) or any(bytes([i]) not in ranks for i in range(_BYTES)):
            raise DataError(f"merge ranks of tokenizer {name} are not 0..{len(ranks) - 1} with all {_BYTES} bytes")
        self.name = name
        self.vocab_size = len(ranks) + 1
        self.eot_id = self.pad_id = len(ranks)
        self.unk_id: int | None = None
        self._kind: Kind = kind
        self._ranks = dict(ranks)
        self._fingerprint: str | None = None
        self._encoding = tiktoken.Encoding(
            name,
            pat_str=SPLIT_PATTERN,
            mergeable_ranks=self._ranks,
            special_tokens={END_OF_TEXT: self.eot_id},
            explicit_n_vocab=self.vocab_size,
        )

    def encode(self, text: str) -> list[int]:
        """Token ids of a text. White space of over half a million characters in a row is encoded in parts."""
        return [i for part in _parts(text) for i in self._encoding.encode_ordinary(part)]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        if max(map(len, texts), default=0) > _LONGEST_SPACE:
            return list(map(self.encode, texts))
        return self._encoding.encode_ordinary_batch(list(texts), num_threads=_THREADS)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids; bytes that are no UTF-8 become U+FFFD."""
        return self._encoding.decode(check_ids(ids, self.vocab_size))

    def fingerprint(self) -> str:
        """SHA-256 of the splitting pattern and all merge ranks."""
        if self._fingerprint is None:
            content = f"{SPLIT_PATTERN}\n{self.ranks_text()}"
            self._fingerprint = hashlib.sha256(content.encode()).hexdigest()
        return self._fingerprint

    def ranks_text(self) -> str:
        """Merge ranks in tiktoken's file format: base64 of the token, a space, its rank."""
        ranks = sorted(self._ranks.items(), key=lambda item: item[1])
        return "".join(f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks)

    def merges(self) -> list[tuple[bytes, bytes]]:
        """The pair of tokens that each longer token is made of, in the order of merging.

        A byte-level BPE is given by either: the two parts of a token are what the merges before its own make of it.

        Raises:
          DataError: a token is not made of two earlier ones, so that no merging makes it.
        """
        pairs = []
        for token, rank in sorted(self._ranks.items(), key=lambda item: item[1]):
            if len(token) > 1:
                parts = _merged(token, self._ranks, below=rank)
                if len(parts) != 2:
                    raise DataError(f"token {rank} of tokenizer {self.name}, {token!r}, is not made of two earlier "
                                    "ones")
                pairs.append((parts[0], parts[1]))
        return pairs

    def for_tokenizers(self) -> "tokenizers.Tokenizer":
        """The same tokenizer of the library `tokenizers`.

        Raises:
          DataError: as `merges`.
        """
        import tokenizers

        character_of = {byte: character for character, byte in _byte_of_character().items()}

        def text(token: bytes) -> str:
            return "".join(character_of[byte] for byte in token)

        same = tokenizers.Tokenizer(tokenizers.models.BPE(
            {text(token): rank for token, rank in self._ranks.items()}, [(text(a), text(b)) for a, b in self.merges()]))
        same.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        same.decoder = tokenizers.decoders.ByteLevel()
        return same

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the ranks, and ``tokenizer.json`` for other libraries (`write_for_others`).

        Raises:
          DataError: as `merges`; nothing is written.
          FileError: a file cannot be written.
        """
        same = self.for_tokenizers()
        files.write(Path(folder) / RANKS_FILE, self.ranks_text())
        write_for_others(folder, same)
        write_meta(folder, self, self._kind)


class WordTokenizer(Tokenizer):
    """White-space words, as they stand: capitals and punctuation make other words. It serves text classifiers.

    Args:
      words: those of ids 2, 3, ...; id 0 is padding and id 1 every other word.

    Raises:
      DataError: a word comes twice, is empty or has white space in it.

    >>> tokenizer = WordTokenizer.from_texts(["a good film", "a bad film"], min_count=2)
    >>> tokenizer.encode("a fine film"), tokenizer.decode([2, 1, 3])
    ([2, 1, 3], 'a <UNK> film')
    """

    eot_id: int = 0
    pad_id: int = 0
    unk_id: int | None = 1

    def __init__(self, words: Iterable[str]):
        ordinary = list(words)
        self._words = ("<PAD>", "<UNK>", *ordinary)
        self._ids = {word: i for i, word in enumerate(ordinary, start=2)}
        if len(self._ids) != len(ordinary) or any(word.split() != [word] for word in ordinary):
            raise DataError("the words of a vocabulary must differ, be no white space and have none in them")
        self.vocab_size = len(self._words)
        self.name = f"words-{self.vocab_size}"

    @classmethod
    def from_texts(cls, texts: Iterable[str], min_count: int = 1) -> "WordTokenizer":
        """Words that occur `min_count` times or more, by falling count; those of the same count as they first come."""
        counts = collections.Counter(word for text in texts for word in text.split())
        return cls(word for word, count in counts.most_common() if count >= min_count)

    def encode(self, text: str) -> list[int]:
        return [self._ids.get(word, 1) for word in text.split()]

    def decode(self, ids: Sequence[int]) -> str:
        """The words, with single spaces; an unknown one is ``<UNK>``."""
        return " ".join(self._words[i] for i in check_ids(ids, self.vocab_size))

    def fingerprint(self) -> str:
        """SHA-256 of the words in their order."""
        return hashlib.sha256("\n".join(self._words).encode()).hexdigest()

    def save(self, folder: str | os.PathLike[str]) -> None:
        files.write(Path(folder) / WORDS_FILE, "".join(f"{word}\n" for word in self._words[2:]))
        write_meta(folder, self, "words")


class FileTokenizer:
    """Any tokenizer of the library `tokenizers`, as its ``tokenizer.json`` gives it; no text is cut or filled up.

    Special tokens inside a text are ordinary text, as with every tokenizer here.

    Args:
      content: that file's text.
      name: short name.
      eot_id: the token that ends a text.
      bos_id: the token that models of it expect before every text; None where they expect none.

    Raises:
      DataError: it is no such file, or a special token is not in its vocabulary.
    """

    unk_id: int | None = None

    def __init__(self, content: str, *, name: str, eot_id: int, bos_id: int | None = None):
        self._content, self._tokenizer = content, _parsed_tokenizer(content)
        self.name, self.eot_id, self.pad_id, self.bos_id = name, eot_id, eot_id, bos_id
        self.vocab_size = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
        for title, token in (("end-of-text", eot_id), ("beginning-of-text", bos_id)):
            if token is not None and not 0 <= token < self.vocab_size:
                raise DataError(f"the {title} token {token} is beyond the tokenizer's vocabulary; ids are "
                                f"0..{self.vocab_size - 1}")

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of every text; DataError where one has a word that the tokenizer does not know."""
        try:
            return [list(x.ids) for x in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]
        except Exception as error:  # the library raises plain exceptions
            raise DataError(f"tokenizer {self.name} cannot encode a text ({str(error).strip()[:200]})") from error

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids; some tokenizers leave out the space before the first one."""
        ends = itertools.groupby(check_ids(ids, self.vocab_size), key=lambda i: i == self.eot_id)
        return "".join(END_OF_TEXT * len(list(run)) if end else
                       self._tokenizer.decode(list(run), skip_special_tokens=False) for end, run in ends)

    def fingerprint(self) -> str:
        """SHA-256 of the file and of the special tokens."""
        return hashlib.sha256(f"{self.eot_id} {self.bos_id}\n{self._content}".encode()).hexdigest()

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the file, and what transformers wants beside it."""
        names = {"eos_token": self.eot_id} | ({} if self.bos_id is None else {"bos_token": self.bos_id})
        files.write(Path(folder) / TOKENIZERS_FILE, self._content)
        files.write_json(Path(folder) / TRANSFORMERS_FILE, {
            "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False,
        } | {key: self._tokenizer.id_to_token(token) for key, token in names.items()})
        write_meta(folder, self, "file")


def _parsed_tokenizer(content: str) -> "tokenizers.Tokenizer":
    import tokenizers

    try:
        parsed = tokenizers.Tokenizer.from_str(content)
        parsed.no_truncation()
        parsed.no_padding()
        parsed.encode_special_tokens = True
    except Exception as error:  # the library raises plain exceptions
        raise DataError(f"{TOKENIZERS_FILE} cannot be read ({str(error).strip()[:200]}); save the tokenizer again"
                        ) from error
    return parsed


def tokenizer_of_folder(folder: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer of a folder of Hugging Face: its ``tokenizer.json``, end-of-text as its settings say.

    A beginning-of-text token is kept where the tokenizer puts one before a text by itself, or its settings say so.

    Raises:
      DataError: the folder has none, it is damaged, or nothing says which token ends a text.
    """
    folder = Path(folder).expanduser()
    if (folder / META_FILE).exists():
        return load_tokenizer(folder)
    if not (folder / TOKENIZERS_FILE).exists():
        raise DataError(f"{folder} has no {TOKENIZERS_FILE}, as save_pretrained of a fast tokenizer of transformers "
                        "writes it; name a folder that has it")
    content = _read_text(folder / TOKENIZERS_FILE)
    parsed = _parsed_tokenizer(content)
    settings = {name: _optional_json(folder / name) for name in (TRANSFORMERS_FILE, "config.json")}

    def special(kind: str) -> int | None:
        token = settings[TRANSFORMERS_FILE].get(f"{kind}_token")
        text = token.get("content") if isinstance(token, dict) else token
        number = settings["config.json"].get(f"{kind}_token_id")
        number = number[0] if isinstance(number, list) and number else number
        found = parsed.token_to_id(text) if isinstance(text, str) else None
        return found if found is not None else number if type(number) is int else None

    eot_id = special("eos")
    eot_id = parsed.token_to_id(END_OF_TEXT) if eot_id is None else eot_id
    if eot_id is None:
        raise DataError(f"nothing in {folder} says which token ends a text; give eos_token in {TRANSFORMERS_FILE}")
    bare, whole = (parsed.encode("a", add_special_tokens=add).ids for add in (False, True))
    added = whole[0] if len(whole) > len(bare) and whole[1 : 1 + len(bare)] == bare else None
    bos_id = special("bos") if settings[TRANSFORMERS_FILE].get("add_bos_token") is True else added
    name = re.sub(r"[^A-Za-z0-9._-]", "-", folder.resolve().name)[:40] or "file"
    return FileTokenizer(content, name=name, eot_id=eot_id, bos_id=bos_id)


def _optional_json(path: Path) -> dict[str, Any]:
    try:
        return files.read_json(path, what="settings of a tokenizer", fix="restore it")
    except FileNotFoundError:
        return {}
    except FileError as error:
        raise DataError(str(error)) from error


def gpt2_tokenizer() -> BytePairTokenizer:
    """The 50,257 tokens of GPT-2, from tiktoken's cache (``TIKTOKEN_CACHE_DIR``) or the network.

    Raises:
      DataError: the vocabulary is not on this machine and cannot be downloaded.
    """
    import tiktoken

    try:
        encoding = tiktoken.get_encoding("gpt2")
    except OSError as error:
        raise DataError(
            "the GPT-2 vocabulary is not on this machine and could not be downloaded "
            f"({type(error).__name__}); set TIKTOKEN_CACHE_DIR to a folder that holds tiktoken's two GPT-2 files "
            "(copied from the cache of a machine with a network), or use tokenizer='bpe'"
        ) from error
    values = encoding.token_byte_values()
    ranks = {token: encoding.encode_single_token(token) for token in values}
    ranks.pop(END_OF_TEXT.encode(), None)
    return BytePairTokenizer("gpt2", ranks, "gpt2")


def train_bpe(texts: Iterable[str], vocab_size: int) -> BytePairTokenizer:
    """Train a byte-level BPE; the same texts, which are read once, always give the same tokenizer.

    `vocab_size` counts end-of-text; texts with too few repeated pairs give fewer. A word of more than 1,024 bytes, such
    as a run of line ends, is learned from in parts: the time is quadratic in the longest word.

    Raises:
      DataError: vocab_size is not in 257 .. 1,048,576.
    """
    if not _BYTES + 1 <= vocab_size <= _LARGEST_VOCABULARY:
        raise DataError(f"bpe_vocab_size={vocab_size} must be at least {_BYTES + 1} (all bytes and end-of-text) and at "
                        f"most {_LARGEST_VOCABULARY}")
    import tokenizers

    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    trained.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([
        tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        tokenizers.pre_tokenizers.FixedLength(_LONGEST_TRAINING_WORD),
    ])
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        min_frequency=2,
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    trained.train_from_iterator(texts, trainer)
    byte_of = _byte_of_character()
    ranks = {bytes(byte_of[c] for c in token): rank for token, rank in trained.get_vocab().items()}
    return BytePairTokenizer(bpe_name(ranks), ranks)


def bpe_name(ranks: Mapping[bytes, int]) -> str:
    """What a BPE that `train_bpe` trained is called."""
    return f"bpe-{len(ranks) + 1}"


def parse_ranks(text: str) -> dict[bytes, int]:
    """Inverse of `BytePairTokenizer.ranks_text`; DataError where the text has another form."""
    try:
        pairs = (line.split() for line in text.splitlines())
        return {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs}
    except ValueError as error:
        raise DataError(f"merge ranks are damaged ({error}); make the tokenizer again") from error


def load_tokenizer(folder: str | os.PathLike[str]) -> Tokenizer:
    """Read a tokenizer saved by `Tokenizer.save`; no network is needed.

    Raises:
      DataError: the folder has no tokenizer, it is damaged, or it is not the one that was saved.
    """
    folder = Path(folder)
    meta = read_meta(folder)
    match meta["kind"]:
        case "gpt2" | "bpe":
            ranks = parse_ranks(_read_text(folder / RANKS_FILE))
            tokenizer: Tokenizer = BytePairTokenizer(meta["name"], ranks, meta["kind"])
        case "corpus":
            tokenizer = CorpusTokenizer()
        case "file":
            tokenizer = FileTokenizer(_read_text(folder / TOKENIZERS_FILE), name=meta["name"],
                                      eot_id=meta.get("eot_id", -1), bos_id=meta.get("bos_id"))
        case "words":
            tokenizer = WordTokenizer(_read_text(folder / WORDS_FILE).split("\n")[:-1])
        case kind:
            raise DataError(f"{folder / META_FILE} has kind {kind!r}; this version knows gpt2, bpe, corpus, file and "
                            "words")
    if tokenizer.fingerprint() != meta["fingerprint"]:
        raise DataError(
            f"tokenizer in {folder} has fingerprint {tokenizer.fingerprint()[:12]}, but {meta['fingerprint'][:12]!r} "
            "was saved; its files or this package's vocabulary changed since, restore them or prepare and train anew"
        )
    return tokenizer


def _read_text(path: Path) -> str:
    try:
        with files.open_file(path) as file:
            return file.read().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"tokenizer file {path} cannot be read ({reason}); save the tokenizer again") from error


def _parts(text: str) -> list[str]:
    """A text cut where more than `_LONGEST_SPACE` characters of white space follow each other.

    To find where such a run ends, tiktoken's regular expression keeps a stack of its characters. It holds a million.
    """
    if len(text) <= _LONGEST_SPACE:
        return [text]
    cuts = [0]
    for space in _SPACE.finditer(text):
        cuts += range(space.start() + _LONGEST_SPACE, space.end(), _LONGEST_SPACE)
    return [text[start:end] for start, end in itertools.pairwise([*cuts, len(text)])]


def _merged(token: bytes, ranks: Mapping[bytes, int], below: int) -> list[bytes]:
    """What merges of ranks below a limit make of a token's bytes, the lowest rank first, of equal ones the leftmost."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while True:
        joined = [ranks.get(a + b, below) for a, b in itertools.pairwise(parts)]
        if min(joined, default=below) >= below:
            return parts
        i = joined.index(min(joined))
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


def _byte_of_character() -> dict[str, int]:
    """The byte that each of the 256 characters stands for in a byte-level BPE's vocabulary (Radford et al. 2019).

    Bytes that print are themselves in Latin-1; the others are the characters from 256 on, in order.
    """
    printing = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(_BYTES) if byte not in printing]
    shifted = {chr(_BYTES + i): byte for i, byte in enumerate(others)}
    return {chr(byte): byte for byte in printing} | shifted
