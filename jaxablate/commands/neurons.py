"""``jaxablate neurons``: graphs of what fires each neuron of a language model; searches and shows those there are.

Searching and showing read files only: no model is run and JAX is not loaded.
"""

import dataclasses
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxablate import files
from jaxablate.commands import base
from jaxablate.data.tokenizer import load_tokenizer
from jaxablate.errors import ConfigError, DataError, FileError
from jaxablate.reports.neuron_graph import neuron_page, no_graph, verdict, visible
from jaxablate.reports.neuron_records import (
    INDEX,
    GraphOptions,
    NeuronRecord,
    named_before,
    neuron_file,
    neuron_name,
    read_index,
    read_record,
    search,
)
from jaxablate.reports.panels import Grid
from jaxablate.reports.tables import terminal
from jaxablate.stats import number

MOST_SHOWN, MOST_TOKENS = 20, 6
"""Neurons that a search lists, and tokens of one place of a pattern that tables write."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NeuronsSettings(base.RunSettings):
    """Make a graph of what fires each neuron of a language model (Neuron to Graph), search them, show them.

    Raises:
      ConfigError: a value is out of range, or options exclude each other.
    """

    search: str | None = None
    """Say which neurons fire at the end of this text, by the graphs that were made; " dog" with its space is one token
    of most tokenizers."""
    show: tuple[str, ...] = ()
    """Print these neurons (layer.number, for example 3.17) and write a page of them, from graphs that were made."""
    graphs: GraphOptions = dataclasses.field(default_factory=GraphOptions)
    """What graphs are made of, and how."""
    out: Path | None = None
    """Folder of the graphs; by default neurons/graphs in the working directory, with the names of stream and units
    where they are not the default."""

    def __post_init__(self):
        super().__post_init__()
        if self.search is not None and self.show:
            raise ConfigError("--search and --show are two commands; give one of them")
        if self.search is not None and not self.search:
            raise ConfigError('--search "" has no text; give some, for example --search " dog"')
        for name in self.show:
            if not re.fullmatch(r"[0-9]{1,9}\.[0-9]{1,9}", name):
                raise ConfigError(f"{name!r} names no neuron; give layer.number, for example 3.17")

    @property
    def folder(self) -> Path:
        """Where graphs lie.

        >>> NeuronsSettings(workdir=Path("runs/x"), graphs=GraphOptions(stream="ablated")).folder.name
        'graphs-ablated'
        """
        if self.out is not None:
            return self.out
        other = [x for x in (self.graphs.stream, self.graphs.units) if x not in ("clean", "neurons")]
        return self.workdir / "neurons" / "-".join(["graphs", *other])

    @property
    def command(self) -> str:
        """The command line that makes these graphs."""
        given = (("stream", self.graphs.stream, "clean"), ("units", self.graphs.units, "neurons"),
                 ("out", self.out, None))
        flags = [f"--{name} {value}" for name, value, default in given if value != default]
        return " ".join(["jaxablate neurons --workdir", str(self.workdir), *flags])

    def open(self) -> Any:
        """The checkpoint, of a language model that has the stream."""
        from jaxablate.runs.run import require_language_model, require_stream

        config = require_language_model(self.workdir, "graphs are made of the neurons of")
        require_stream(self.workdir, config, self.graphs.stream)
        return super().open()

    @property
    def compiles(self) -> bool:
        return self.search is None and not self.show

    def run(self, console: Console) -> None:
        """Makes graphs, or searches or shows those that were made, and prints the tables."""
        if self.search is not None:
            shown = search_tables(self)
        elif self.show:
            records, page = show(self)
            shown = [*(part for record in records for part in neuron_tables(record)), str(page)]
        else:
            from jaxablate.commands.neuron_graphs import make_graphs, summary_grid

            with base.terminable(f"stopped; the layers in {self.folder} are kept, the same command goes on from them"):
                summaries = make_graphs(self.open(), self.folder, self.graphs, self.seed, partial(base.say, console))
            title = f"graphs of {self.graphs.units} of {self.workdir}, {self.graphs.stream} stream"
            shown = [terminal(summary_grid(summaries, title)), str(self.folder)]
        for part in shown:
            console.print(part, highlight=False, soft_wrap=isinstance(part, str))


parse = partial(base.parse, NeuronsSettings)


def search_tables(settings: NeuronsSettings) -> list[Table | str]:
    """Neurons that fire at the end of `settings.search`, by their graphs, and those to which its last token matters
    before another.

    Raises:
      DataError: the text has a word that the model's tokenizer does not know.
      FileError: there are no graphs yet, or they are damaged.
    """
    index = read_index(settings.folder, settings.command)
    tokenizer = load_tokenizer(settings.workdir / "tokenizer")
    ids = tokenizer.encode(settings.search or "")
    if not ids:
        raise DataError(f"--search {settings.search!r} has no token; give some text")

    def word(token: int) -> str:
        if not 0 <= token < tokenizer.vocab_size:
            raise FileError(f"{settings.folder / INDEX} has the token {token}, which the tokenizer has not; delete it "
                            f"and run: {settings.command}")
        return visible(tokenizer.decode([token]))

    text, last = " ".join(map(word, ids)), word(ids[-1])
    names = [name for name, _ in named_before(index, ids[-1])]
    more = f" and {len(names) - MOST_SHOWN:,} more" if len(names) > MOST_SHOWN else ""
    before = (f"{last} matters before another token to {len(names):,} neurons: {', '.join(names[:MOST_SHOWN])}{more}"
              if names else f"to no neuron does {last} matter before another token")
    matches = search(index, ids)
    if not matches:
        return [f"no neuron's graph matches at the end of {text}", before]
    rows = [(x.neuron, x.strength, x.f1, x.precision,
             "  ".join("any" if i is None else _some([word(t) for t in i]) for i in reversed(x.pattern)),
             "needs more before the text" if x.conditional else "") for x in matches[:MOST_SHOWN]]
    rest = len(matches) - MOST_SHOWN
    title = f"{len(matches):,} neuron{'s' if len(matches) > 1 else ''} whose graph fires at the end of {text}"
    table = Grid(title=title, rows=tuple(rows), columns=("neuron", "strength", "F1", "precision", "pattern", ""),
                 caption="strength: activation of the pattern's strongest example as a share of the neuron's maximum; "
                         "by strength times F1, conditional ones last")
    return [terminal(table), *([f"and {rest:,} more"] if rest > 0 else []), before]


def show(settings: NeuronsSettings) -> tuple[tuple[NeuronRecord, ...], Path]:
    """The neurons of `settings.show`, and a page of them in the folder of the graphs.

    Raises:
      ConfigError: there is no such neuron.
      FileError: there are no graphs yet, a file is damaged, or the page cannot be written.
    """
    folder = settings.folder
    index = read_index(folder, settings.command)
    names = list(dict.fromkeys(neuron_name(name, index) for name in settings.show))
    records = tuple(read_record(neuron_file(folder, name)) for name in names)
    about, plural = index["about"], "s" if len(names) > 1 else ""
    kind = "Channel" if about["settings"]["units"] == "channels" else "Neuron"
    first = ", ".join(names[:6]) + (" …" if len(names) > 6 else "")
    title = f"{kind}{plural} {first} of {settings.workdir.resolve().name}"
    line = (f"Step {about['step']:,}, parameters {about['params_digest']}, revision "
            f"{about['provenance']['revision'] or 'unknown'}, {about['provenance']['date']}.")
    page = folder / f"neurons-{'-'.join(names[:4])}{f'-and-{len(names) - 4}-more' if len(names) > 4 else ''}.html"
    return records, files.write(page, neuron_page(records, title, line), otherwise="choose another --out")


def neuron_tables(record: NeuronRecord) -> list[Table | str]:
    """Scores, patterns and examples of one neuron."""
    patterns = [(path[0].strength, path[0].examples,
                 "  ".join("any" if n.tokens is None else _some([visible(t) for t in n.tokens]) for n in path))
                for path in record.paths()]
    title = f"neuron {record.neuron}: patterns, read forward to the token at which it fires"
    examples = Table(title="where it is strongest", title_justify="left", caption_justify="left", header_style="bold",
                     caption="underlined: the token at which it is strong; bold: tokens that the pattern names")
    for name in ("activation", "suffix", "text"):
        examples.add_column(name, justify="left" if name == "text" else "right")
    for example in record.examples:
        suffix, pivot = "" if example.suffix is None else str(example.suffix or "none"), len(example.tokens) - 1
        styles = ("bold underline" if i == pivot else "bold" if pivot - i in example.named else "dim"
                  for i in range(pivot + 1))
        text = Text.assemble(*zip(map(visible, example.tokens), styles, strict=True))
        examples.add_row(number(example.activation), suffix, text)
    shown = (terminal(Grid(title=title, caption="", columns=("strength", "examples", "pattern"), rows=tuple(patterns)))
             if record.nodes else f"neuron {record.neuron}: {no_graph(record)}")
    return [shown, examples, verdict(record.scores)]


def _some(tokens: Sequence[str]) -> str:
    """A few of the tokens that may stand at one place.

    >>> _some(["a"]), _some(list("abcdefgh"))
    ('a', '{a b c d e f +2}')
    """
    if len(tokens) == 1:
        return tokens[0]
    more = f" +{len(tokens) - MOST_TOKENS}" if len(tokens) > MOST_TOKENS else ""
    return f"{{{' '.join(tokens[:MOST_TOKENS])}{more}}}"
