"""What `eval.py neurons` prints: the summary of all graphs, what a search found, one neuron."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from jaxablate.commands.neurons_lookup import SearchReport
from jaxablate.reports.neuron_graph import no_graph, verdict, visible
from jaxablate.reports.neuron_records import ExampleRecord, NeuronRecord, Summary
from jaxablate.stats import number

MOST_FOUND = 20
_MOST_SHOWN = 6


def summary_table(whole: Summary, layers: Sequence[Summary], title: str) -> Table:
    """Means over the neurons of each layer, and of all."""
    table = Table(title=title, title_justify="left", caption_justify="left", caption=(
        "means over neurons that fire at 10 places of held-out text or more, ±half of the 95 % interval over its "
        "stories; shuffled: another neuron's graph; pivots: the patterns' last tokens alone; gain: F1 less that of the "
        "pivots"))
    for name in ("layer", "neurons", "inactive", "rare", "no graph", "precision", "recall", "F1", "F1 shuffled",
                 "F1 pivots", "gain"):
        table.add_column(name, justify="right")
    for name, s in [*((str(i), s) for i, s in enumerate(layers)), ("all", whole)]:
        measures = (_with_interval(getattr(s, m), s.intervals[m])
                    for m in ("precision", "recall", "f1", "f1_shuffled", "f1_pivot", "gain"))
        table.add_row(name, f"{s.units:,}", f"{s.inactive:,}", f"{s.rare:,}", f"{s.without_graph:,}", *measures,
                      end_section=name == str(len(layers) - 1))
    return table


def search_tables(report: SearchReport) -> list[Table | str]:
    """Neurons that fire at the last token, and those to which it matters before another."""
    text = " ".join(report.tokens)
    if not report.firing:
        return [f"no neuron's graph matches at the end of {text}", _before(report)]
    found = len(report.firing)
    table = Table(title=f"{found:,} neuron{'s' if found > 1 else ''} whose graph fires at the end of {text}",
                  title_justify="left",
                  caption_justify="left", caption="strength: activation of the pattern's strongest example as a share "
                  "of the neuron's maximum; by strength times F1, conditional ones last")
    for name, justify in (("neuron", "right"), ("strength", "right"), ("F1", "right"), ("precision", "right"),
                          ("pattern", "left"), ("", "left")):
        table.add_column(name, justify=justify)
    for x in report.firing[:MOST_FOUND]:
        pattern = "  ".join("any" if ids is None else _some([report.word(i) for i in ids])
                            for ids in reversed(x.pattern))
        table.add_row(x.neuron, _two(x.strength), _two(x.f1), _two(x.precision), Text(pattern),
                      "needs more before the text" if x.conditional else "")
    rest = found - MOST_FOUND
    return [table, *([f"and {rest:,} more"] if rest > 0 else []), _before(report)]


def _before(report: SearchReport) -> str:
    names = [name for name, _ in report.before]
    if not names:
        return f"to no neuron does {report.tokens[-1]} matter before another token"
    more = f" and {len(names) - MOST_FOUND:,} more" if len(names) > MOST_FOUND else ""
    return (f"{report.tokens[-1]} matters before another token to {len(names):,} neurons: "
            f"{', '.join(names[:MOST_FOUND])}{more}")


def neuron_tables(record: NeuronRecord) -> list[Table | str]:
    """Scores, patterns and examples of one neuron."""
    patterns = Table(title=f"neuron {record.neuron}: patterns, read forward to the token at which it fires",
                     title_justify="left")
    for name, justify in (("strength", "right"), ("examples", "right"), ("pattern", "left")):
        patterns.add_column(name, justify=justify)
    for path in record.paths():
        pattern = "  ".join("any" if n.tokens is None else _some([visible(t) for t in n.tokens]) for n in path)
        patterns.add_row(_two(path[0].strength), str(path[0].examples), Text(pattern))
    examples = Table(title="where it is strongest", title_justify="left", caption_justify="left", caption=(
        "underlined: the token at which it is strong; bold: tokens that the pattern names"))
    for name, justify in (("activation", "right"), ("suffix", "right"), ("text", "left")):
        examples.add_column(name, justify=justify)
    for example in record.examples:
        suffix = "" if example.suffix is None else str(example.suffix or "none")
        examples.add_row(number(example.activation), suffix, _example(example))
    shown = [patterns] if record.nodes else [f"neuron {record.neuron}: {no_graph(record)}"]
    return [*shown, examples, verdict(record.scores)]


def _with_interval(value: float | None, interval: tuple[float, float] | None) -> str:
    """``value ±half`` the interval's width; these intervals are even about the value but for rounding.

    >>> _with_interval(0.5, (0.48, 0.523)), _with_interval(None, None)
    ('0.500 ±0.022', '-')
    """
    if value is None:
        return "-"
    return f"{value:.3f}" if interval is None else f"{value:.3f} ±{(interval[1] - interval[0]) / 2:.3f}"


def _two(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _example(example: ExampleRecord) -> Text:
    line, pivot = Text(), len(example.tokens) - 1
    for i, token in enumerate(example.tokens):
        style = "bold underline" if i == pivot else "bold" if pivot - i in example.named else "dim"
        line.append(visible(token), style=style)
    return line


def _some(tokens: Sequence[str]) -> str:
    """A few of the tokens that may stand at one place.

    >>> _some(["a"]), _some(list("abcdefgh"))
    ('a', '{a b c d e f +2}')
    """
    if len(tokens) == 1:
        return tokens[0]
    more = f" +{len(tokens) - _MOST_SHOWN}" if len(tokens) > _MOST_SHOWN else ""
    return f"{{{' '.join(tokens[:_MOST_SHOWN])}{more}}}"
