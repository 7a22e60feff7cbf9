"""Scores trained models, compares them, explains what a classifier makes of a text, finds circuits.

    python eval.py score --workdir runs/local-k8
    python eval.py score --workdir runs/local-k8 --suites perplexity gates --checkpoint best
    python eval.py compare runs/* --out runs/table
    python eval.py match --workdir runs/local-k8 --baseline runs/baseline
    python eval.py explain --workdir runs/sst2 --before runs/sst2-l00 --text "a gorgeous , witty , seductive movie ."
    python eval.py circuit --workdir runs/quickstart --tau 0.01
    python eval.py sae --workdir runs/quickstart --l1 5 2 --seeds 0 1
    python eval.py neurons --workdir runs/quickstart
    python eval.py neurons --workdir runs/quickstart --search " dog"
"""

import contextlib
import dataclasses
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from jaxablate.errors import CheckpointError, JaxablateError
from jaxablate.evaluation.autoencoders.settings import SaeSettings
from jaxablate.evaluation.circuits.settings import CircuitSettings
from jaxablate.evaluation.classifier.explain_settings import ExplainSettings
from jaxablate.evaluation.match.settings import MatchSettings
from jaxablate.evaluation.neurons.settings import NeuronSettings
from jaxablate.evaluation.settings import ScoreSettings
from jaxablate.reports import results as files
from jaxablate.reports.compare import Run, compare
from jaxablate.reports.table import comparison_tables, first_passages, score_table


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compare:
    """One table over scored runs; seeds of one configuration become a mean and a 95 % interval."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Working directories that `score` has measured."""
    out: str | None = None
    """Folder, or common prefix, of the files .md, .csv, .tex and .html."""
    figures: bool = False
    """Also draw every figure as bars with intervals, PNG and SVG, into a folder ...-figures beside them."""
    allow_missing: bool = False
    """Leave out runs that are not scored yet instead of stopping."""


def score(arguments: ScoreSettings, console: Console) -> None:
    """Runs the suites and prints their figures."""
    from jaxablate.evaluation import runner

    results = runner.score(arguments, say=lambda line: console.print(line, style="dim", highlight=False))
    console.print(score_table(results, f"{arguments.workdir} at step {results.step:,}"))
    for passage in first_passages(results):
        console.print(passage)
    console.print(f"{arguments.workdir / files.FILE_NAME}\n{arguments.workdir / 'report.html'}", highlight=False)


def compare_runs(arguments: Compare, console: Console) -> None:
    """Joins the runs, prints the table and writes it."""
    from jaxablate.reports.comparison_page import write_comparison

    comparison = compare(read_runs(arguments.runs, arguments.allow_missing, console))
    console.print(comparison_tables(comparison, console.width))
    for path in write_comparison(comparison, arguments.out, figures=arguments.figures) if arguments.out else ():
        console.print(str(path), highlight=False)


def match(arguments: MatchSettings, console: Console) -> None:
    """Finds the baseline's checkpoint of equal loss, prints both side by side and where the files are."""
    from jaxablate.evaluation.match import runner as match_runner
    from jaxablate.reports.matched import rich_view

    report = match_runner.match(
        arguments, say=lambda line: console.print(line, style="dim", highlight=False, soft_wrap=True))
    console.print(rich_view(report.matched))
    for path in report.files:
        console.print(str(path), highlight=False, soft_wrap=True)


def explain(arguments: ExplainSettings, console: Console) -> None:
    """Explains a text, prints its tokens and where the pictures are."""
    from jaxablate.evaluation.classifier import explain_runner

    explained = explain_runner.explain_text(arguments, lambda line: console.print(line, style="dim", highlight=False))
    console.print(explain_runner.terminal_view(explained))
    for path in explained.files:
        console.print(str(path), highlight=False, soft_wrap=True)


def circuit(arguments: CircuitSettings, console: Console) -> None:
    """Finds or loads a circuit, prints what it does and where its files are."""
    from jaxablate.evaluation.circuits import runner as circuit_runner
    from jaxablate.evaluation.circuits import view as circuit_view

    with terminable(f"stopped; what {arguments.folder()} keeps of a search, the same command goes on from"):
        report = circuit_runner.circuit(
            arguments, say=lambda line: console.print(line, style="dim", highlight=False),
            show_progress=lambda what: circuit_view.search_progress(Console(stderr=True), what))
    console.print(circuit_view.figures_table(report.measured, report.title))
    for line in circuit_view.warnings(report.measured):
        console.print(line, style="yellow", highlight=False, soft_wrap=True)
    for path in report.files:
        console.print(str(path), highlight=False, soft_wrap=True)


def sae(arguments: SaeSettings, console: Console) -> None:
    """Trains autoencoders, prints the figures of all that are stored and where they are."""
    from jaxablate.evaluation.autoencoders import runner as sae_runner
    from jaxablate.evaluation.autoencoders import view as sae_view

    folder = arguments.workdir / "autoencoders"
    with terminable(f"stopped; what {folder} holds is kept, the same command goes on from it"):
        report = sae_runner.autoencoders(
            arguments, say=lambda line: console.print(line, style="dim", highlight=False, soft_wrap=True),
            show_progress=lambda steps: sae_view.training_line(console, steps))
    if report.results is None:
        print(f"stopped at {report.stopped}; the same command goes on from there", file=sys.stderr)
        raise SystemExit(130)
    console.print(sae_view.stored_table(report.results.suites["sae"], f"autoencoders of {arguments.workdir}"))
    for path in report.trained:
        console.print(str(path), highlight=False, soft_wrap=True)
    console.print(str(arguments.workdir / "report.html"), highlight=False, soft_wrap=True)


def neurons(arguments: NeuronSettings, console: Console) -> None:
    """Makes graphs of neurons, or searches or shows those that were made."""
    from jaxablate.evaluation.neurons import lookup as neuron_lookup
    from jaxablate.evaluation.neurons import view as neuron_view

    arguments.check()
    if arguments.search is not None:
        shown = neuron_view.search_tables(neuron_lookup.find(arguments))
    elif arguments.show:
        found = neuron_lookup.show(arguments)
        shown = [*(part for record in found.records for part in neuron_view.neuron_tables(record)), str(found.page)]
    else:
        shown = _made_graphs(arguments, console)
    for part in shown:
        console.print(part, highlight=False, soft_wrap=isinstance(part, str))


def _made_graphs(arguments: NeuronSettings, console: Console) -> list[Table | str]:
    from jaxablate.evaluation.neurons import runner as neuron_runner
    from jaxablate.evaluation.neurons import view as neuron_view

    with terminable(f"stopped; the layers in {arguments.folder()} are kept, the same command goes on from them"):
        report = neuron_runner.make_graphs(
            arguments, say=lambda line: console.print(line, style="dim", highlight=False, soft_wrap=True))
    title = f"graphs of {arguments.units} of {arguments.workdir}, {arguments.stream} stream"
    return [neuron_view.summary_table(report.whole, report.layers, title), str(report.folder)]


@contextlib.contextmanager
def terminable(line: str) -> Iterator[None]:
    """Ends the program with exit code 130 and a line where Ctrl-C or SIGTERM stops the block."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        print(line, file=sys.stderr)
        raise SystemExit(130) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def read_runs(paths: tuple[Path, ...], allow_missing: bool, console: Console) -> list[Run]:
    """Results of each path that is a working directory; other files that a ``runs/*`` matches are passed over.

    Raises:
      CheckpointError: a path does not exist, a run is not scored, a file is corrupt, or nothing is left to compare.
    """
    runs, missing = [], []
    for path in dict.fromkeys(Path(p) for p in paths):
        if not path.exists():
            raise CheckpointError(f"{path} does not exist; give working directories of training runs")
        scored = (path / files.FILE_NAME).exists()
        if not scored and not (path / "config.json").exists():
            console.print(f"{path} is no working directory and is passed over", style="dim", highlight=False)
        elif not scored:
            missing.append(path)
        else:
            runs.append(Run(name=str(path), results=files.read(path)))
    for path in missing if allow_missing else ():
        console.print(f"{path} is not scored and left out", style="yellow", highlight=False)
    if missing and not allow_missing:
        commands = "; ".join(f"python eval.py score --workdir {path}" for path in missing)
        raise CheckpointError(f"no {files.FILE_NAME} in {', '.join(map(str, missing))}; run: {commands}")
    if not runs:
        raise CheckpointError("no scored run to compare; score one first: python eval.py score --workdir DIR")
    return runs


def main(argv: list[str] | None = None) -> int:
    """Parses the command line and runs it.

    Returns:
      Exit code: 0, or 2 after a user's error.
    """
    wide = None if sys.stdout.isatty() else 140
    console = Console(width=wide)
    try:
        arguments = parse(argv)
        if isinstance(arguments, ScoreSettings):
            score(arguments, console)
        elif isinstance(arguments, MatchSettings):
            match(arguments, console)
        elif isinstance(arguments, ExplainSettings):
            explain(arguments, console)
        elif isinstance(arguments, CircuitSettings):
            circuit(arguments, console)
        elif isinstance(arguments, SaeSettings):
            sae(arguments, console)
        elif isinstance(arguments, NeuronSettings):
            neurons(arguments, console)
        else:
            compare_runs(arguments, console)
    except JaxablateError as e:
        print(f"error: {' '.join(str(e).split())}", file=sys.stderr)
        return 2
    return 0


Settings = (ScoreSettings | Compare | MatchSettings | ExplainSettings | CircuitSettings | NeuronSettings
            | SaeSettings)


def parse(argv: list[str] | None) -> Settings:
    """Settings of one of the commands; an unknown or missing flag ends the program with exit code 2."""
    commands = (Annotated[ScoreSettings, tyro.conf.subcommand("score")]
                | Annotated[Compare, tyro.conf.subcommand("compare")]
                | Annotated[MatchSettings, tyro.conf.subcommand("match")]
                | Annotated[ExplainSettings, tyro.conf.subcommand("explain")]
                | Annotated[CircuitSettings, tyro.conf.subcommand("circuit")]
                | Annotated[SaeSettings, tyro.conf.subcommand("sae")]
                | Annotated[NeuronSettings, tyro.conf.subcommand("neurons")])
    return tyro.cli(commands, args=argv, prog="eval.py", description=__doc__.splitlines()[0],
                    config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff))


if __name__ == "__main__":
    sys.exit(main())
