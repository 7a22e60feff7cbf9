"""From a `DataConfig` to token files and their tokenizer, which are built once and used until something changes."""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

from jaxablate import files
from jaxablate.config import DataConfig
from jaxablate.data.corpus import CorpusTokenizer
from jaxablate.data.download import Split, download_tinystories, tinystories_path
from jaxablate.data.ids import Tokenizer
from jaxablate.data.progress import OTHERWISE, Report, silent, sole_builder
from jaxablate.data.stories import EmbeddedSource, StorySource, TextSource, batched_by_length
from jaxablate.data.token_file import SourceRecord, TokenFile, open_token_file, write_token_file
from jaxablate.data.tokenizer import (
    BytePairTokenizer,
    bpe_name,
    gpt2_tokenizer,
    parse_ranks,
    tokenizer_of_folder,
    train_bpe,
)
from jaxablate.errors import DataError, FileError

BPE_TRAINING_CHARACTERS = 1 << 27
"""A BPE is trained on the first stories up to this many characters: 134 million, 7 % of TinyStories."""

_ENCODE_CHARACTERS = 1 << 21
_BPE_FORMAT = 1


class _StoredBpe(TypedDict):
    """JSON of a tokenizer in the cache folder and of the text that it was trained on."""

    format: int
    source: SourceRecord
    name: str
    fingerprint: str
    ranks: str


@dataclasses.dataclass(frozen=True, eq=False)
class PreparedData:
    """Both splits, and the tokenizer that made them."""

    train: TokenFile
    valid: TokenFile
    tokenizer: Tokenizer


def prepare(config: DataConfig, *, report: Report = silent, force: bool = False, tokenizer: Tokenizer | None = None
            ) -> PreparedData:
    """Open the token files of a configuration, making those that are missing, damaged or out of date.

    A token file is used again where the source is what it records (`TextSource.unchanged`), the tokenizer's fingerprint
    is the same, and the file passes `open_token_file`. Where the source is gone, a token file made earlier serves
    without it. Several processes may prepare at once: one builds, the others wait and then open what it made.

    `report` counts bytes of text or stories; `force` makes everything anew. `tokenizer` takes the place of the one at
    ``tokenizer_path``: a run has its own.

    Raises:
      ConfigError: a path is none that a file can have.
      DataError: a file is missing and cannot be downloaded, is empty, no text, or damaged without its source; the
        tokenizer's files are missing.
      FileError: the folder cannot be written or the disk is full.
    """
    files.check_path(config.cache_dir, "cache_dir")
    if config.source == "embedded":
        train: StorySource = EmbeddedSource.train(config.embedded_seed, config.embedded_stories)
        valid: StorySource = EmbeddedSource.valid(config.embedded_seed, config.embedded_valid_stories)
    else:
        train, valid = _text_source(config, "train", report), _text_source(config, "valid", report)
    key, tokenizer = _tokenizer(config, train, report, force, tokenizer)
    train_file, valid_file = (
        _prepare_split(Path(config.cache_dir) / f"{source.label}.{key}.tokens", source, tokenizer, report, force)
        for source in (train, valid)
    )
    return PreparedData(train_file, valid_file, tokenizer)


def _text_source(config: DataConfig, split: Split, report: Report) -> TextSource:
    """The file given; else the public one, downloaded where neither it nor its token file is here."""
    given = config.train_path if split == "train" else config.valid_path
    if given is not None:
        return TextSource(given, config.cache_dir)
    if config.source == "text":
        raise DataError(
            f"source='text' needs data.{split}_path; give a text file with one <|endoftext|> line after each story"
        )
    fetch = functools.partial(download_tinystories, config.cache_dir, split, report=report)
    return TextSource(tinystories_path(config.cache_dir, split), config.cache_dir, fetch)


def _tokenizer(config: DataConfig, train: StorySource, report: Report, force: bool, own: Tokenizer | None
               ) -> tuple[str, Tokenizer]:
    """The tokenizer, and its part of a token file's name."""
    match config.tokenizer:
        case "gpt2":
            return "gpt2", gpt2_tokenizer()
        case "corpus":
            return "corpus", CorpusTokenizer()
        case "file":
            if own is None and config.tokenizer_path is None:
                raise DataError("tokenizer='file' needs data.tokenizer_path; give a folder that has tokenizer.json")
            tokenizer = own or tokenizer_of_folder(config.tokenizer_path or "")
            return f"file-{tokenizer.fingerprint()[:8]}", tokenizer
        case "bpe":
            key = f"bpe-{config.bpe_vocab_size}-{train.label}"
            return key, _bpe(Path(config.cache_dir) / f"{key}.json", config.bpe_vocab_size, train, report, force)


def _bpe(path: Path, vocab_size: int, train: StorySource, report: Report, force: bool) -> BytePairTokenizer:
    """The BPE of the training text, trained where the stored one is missing, damaged or of another text."""
    if not force and (tokenizer := _stored_bpe(path, train)):
        return tokenizer
    train.require()
    with sole_builder(path, report):
        if not force and (tokenizer := _stored_bpe(path, train)):
            return tokenizer
        report(f"training a BPE of {vocab_size} tokens", 0, 0)
        tokenizer = train_bpe(_first_characters(train, BPE_TRAINING_CHARACTERS, report), vocab_size)
        stored = {
            "format": _BPE_FORMAT,
            "source": dataclasses.asdict(train.record()),
            "name": tokenizer.name,
            "fingerprint": tokenizer.fingerprint(),
            "ranks": tokenizer.ranks_text(),
        }
        files.write_json(path, stored, indent=None, otherwise=OTHERWISE)
    return tokenizer


def _stored_bpe(path: Path, train: StorySource) -> BytePairTokenizer | None:
    """The stored tokenizer, if it is undamaged and of this text, or if the text is gone."""
    try:
        stored = files.read_json(path, _StoredBpe, what="a stored tokenizer", fix="it is made anew")
        ranks = parse_ranks(stored["ranks"])
        tokenizer = BytePairTokenizer(bpe_name(ranks), ranks)
    except (FileNotFoundError, FileError, DataError):
        return None  # whatever is wrong with it, it can be trained anew
    names = (stored["format"], stored["name"], stored["fingerprint"])
    if names != (_BPE_FORMAT, tokenizer.name, tokenizer.fingerprint()):
        return None
    return tokenizer if not train.available() or train.unchanged(stored["source"]) else None


def _first_characters(source: StorySource, limit: int, report: Report) -> Iterator[str]:
    """Stories up to a number of characters; the source is read to its end all the same, for its record."""
    size = 0
    for story in source.stories(report):
        if size < limit:
            yield story
        size += len(story)


def _prepare_split(path: Path, source: StorySource, tokenizer: Tokenizer, report: Report, force: bool) -> TokenFile:
    """The token file of a source, made where there is none that fits."""
    earlier = "" if force else _earlier(path, source, tokenizer)
    if isinstance(earlier, TokenFile):
        return earlier
    try:
        source.require()
    except DataError as error:
        if force or not path.exists():
            raise
        raise DataError(f"{earlier}; its text is not here either: {error}") from error
    with sole_builder(path, report):
        # Another process may have made it while this one waited.
        if not force and isinstance(earlier := _earlier(path, source, tokenizer), TokenFile):
            return earlier
        batches = batched_by_length(source.stories(report), _ENCODE_CHARACTERS)
        write_token_file(path, map(tokenizer.encode_batch, batches), tokenizer, source.record)
    return open_token_file(path)


def _earlier(path: Path, source: StorySource, tokenizer: Tokenizer) -> TokenFile | str:
    """The token file made earlier, if it is undamaged and what would be made now; else what is wrong with it."""
    try:
        file = open_token_file(path)
    except DataError as error:
        return str(error)
    if file.header.tokenizer_fingerprint != tokenizer.fingerprint():
        return f"token file {path} was made by another tokenizer"
    if source.available() and not source.unchanged(file.header.source):
        return f"token file {path} was made from another text"
    return file
