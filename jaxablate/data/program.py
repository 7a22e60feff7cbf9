"""The commands of ``python -m jaxablate.data``."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import tyro
from rich.table import Table

from jaxablate.config import DataConfig, SentimentDataConfig
from jaxablate.data.download import Split, download_tinystories
from jaxablate.data.preparation import PreparedData
from jaxablate.data.preparation import prepare as prepare_data
from jaxablate.data.progress import Report, progress_report
from jaxablate.data.sentiment.imdb import download_imdb
from jaxablate.data.sentiment.prepare import SentimentData
from jaxablate.data.sentiment.prepare import prepare as prepare_texts
from jaxablate.data.sentiment.sst import download_trees
from jaxablate.data.token_file import TokenFile, open_token_file
from jaxablate.terminal import PlainConsole

app = tyro.extras.SubcommandApp()
P = TypeVar("P", PreparedData, SentimentData)
_DEFAULT = DataConfig()
_DEFAULT_SENTIMENT = SentimentDataConfig()


@app.command
def prepare(data: Annotated[DataConfig, tyro.conf.arg(name="")] = _DEFAULT, force: bool = False) -> None:
    """Tokenize stories to token files, or find that this was done.

    Args:
      data: source and tokenizer, as in a config file's ``data``.
      force: make everything anew.
    """
    prepared = _timed(lambda report: prepare_data(data, report=report, force=force))
    for split, file in (("train", prepared.train), ("valid", prepared.valid)):
        counts = f"{file.n_stories:>9,} stories {file.n_tokens:>13,} tokens"
        _say(f"{split}: {counts} {_source_size(file):>10}  {file.path}")


@app.command
def info(paths: Annotated[tuple[Path, ...], tyro.conf.Positional]) -> None:
    """Check token files and print what their headers say.

    Args:
      paths: token files.
    """
    for path in paths:
        file = open_token_file(path)
        header = file.header
        table = Table(title=str(path), show_header=False)
        table.add_column()
        table.add_column(overflow="fold")
        table.add_row("tokens", f"{header.n_tokens:,} ({header.dtype})")
        table.add_row("stories", f"{header.n_stories:,} ({header.n_tokens / header.n_stories:.1f} tokens each)")
        table.add_row("vocabulary", f"{header.vocab_size:,}, end-of-text {header.eot_id}")
        table.add_row("tokenizer", f"{header.tokenizer_name}, fingerprint {header.tokenizer_fingerprint}")
        table.add_row("source", f"{header.source.name}, {_source_size(file)}")
        table.add_row("source sha256", header.source.sha256)
        table.add_row("data sha256", header.data_hash)
        table.add_row("body crc32", f"{header.body_crc32:08x}, verified")
        PlainConsole().print(table)


@app.command
def download(cache_dir: str = DataConfig.cache_dir, splits: tuple[Split, ...] = ("train", "valid")) -> None:
    """Fetch the public TinyStories text files (1.9 GB and 19 MB) where they are not there yet.

    Args:
      cache_dir: folder to put them in.
      splits: which of them.
    """
    with progress_report() as report:
        for split in splits:
            _say(str(download_tinystories(cache_dir, split, report=report)))


@app.command
def sentiment(data: Annotated[SentimentDataConfig, tyro.conf.arg(name="")] = _DEFAULT_SENTIMENT) -> None:
    """Read labelled texts, encode them and print what there is.

    Args:
      data: source and vocabulary, as in a config file's ``data``.
    """
    prepared = _timed(lambda report: prepare_texts(data, report=report))
    for name, split in prepared.splits.items():
        negative, positive = split.class_counts()
        left_out = f"; {split.left_out:,} more left out to balance the classes" if split.left_out else ""
        _say(f"{name:>5}: {len(split):>6,} texts ({negative:,} negative, {positive:,} positive{left_out}), "
             f"{split.lengths.mean():.1f} tokens each, at most {split.lengths.max():,}  {split.data_hash[:12]}")


@app.command
def download_sentiment(
    source: Annotated[Literal["sst2", "imdb"], tyro.conf.Positional], cache_dir: str = SentimentDataConfig.cache_dir
) -> None:
    """Fetch the Stanford Sentiment Treebank's trees (sst2) or the film reviews (imdb) where they are not there yet.

    Args:
      source: which.
      cache_dir: folder to put them in.
    """
    fetch = download_trees if source == "sst2" else download_imdb
    with progress_report() as report:
        _say(str(fetch(cache_dir, report=report)))


def _timed(make: Callable[[Report], P]) -> P:
    """Prepared data, with a line that tells its tokenizer and how long it took."""
    start = time.perf_counter()
    with progress_report() as report:
        prepared = make(report)
    tokenizer, seconds = prepared.tokenizer, time.perf_counter() - start
    _say(f"tokenizer {tokenizer.name}: {tokenizer.vocab_size} ids ({seconds:.1f} s)")
    return prepared


def _say(line: str) -> None:
    PlainConsole().print(line, highlight=False, soft_wrap=True)


def _source_size(file: TokenFile) -> str:
    """Size of the text; the embedded corpus has none."""
    source = file.header.source
    return f"{source.size / 1e6:.1f} MB" if source.mtime_ns else "made here"
