"""``jaxablate circuit``: finds or loads a circuit of a language model, measures it, writes files and pictures."""

import contextlib
import dataclasses
import math
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.progress import BarColumn, TimeElapsedColumn
from rich.progress import Progress as ProgressBar
from rich.table import Table
from rich.text import Text

from jaxablate import stats
from jaxablate.circuits.acdc import TAU, acdc, shuffled_order
from jaxablate.circuits.circuit import Circuit, edge_order, first_edges
from jaxablate.circuits.competence import CHANCE, Answers, Measured, measure
from jaxablate.circuits.formats import is_mib, load_circuit, load_mib, save_circuit, save_mib
from jaxablate.circuits.graph import Graph
from jaxablate.circuits.methods import METHODS, SHARE, Progress
from jaxablate.circuits.metrics import METRICS, importance
from jaxablate.circuits.problem import Problem, problem
from jaxablate.circuits.pruning import PruneRow
from jaxablate.circuits.tasks import load_task
from jaxablate.commands import base
from jaxablate.config import Config
from jaxablate.errors import ConfigError, DataError
from jaxablate.files import write_error, write_group
from jaxablate.provenance import Provenance, provenance
from jaxablate.reports.circuit_graph import circuit_panel
from jaxablate.reports.figures import figure_bytes
from jaxablate.reports.html import circuit_page
from jaxablate.runs.run import Run, require_language_model, require_stream
from jaxablate.terminal import PlainConsole, text_column

SEARCH_FILE = "search.npz"
"""In the folder of the files while ACDC runs; an interrupted search goes on from it."""
PROMPTS, MOST_PROMPTS = 64, 100_000
_NO_PROGRESS = contextlib.nullcontext(lambda done, total, evaluated: None)
_ANOTHER_OUT = "choose another --out"


@dataclasses.dataclass(frozen=True, kw_only=True)
class CircuitSettings(base.RunSettings):
    """Find the circuit of a task in a language model, or measure a stored one: numbers, pictures, exchange files."""

    stream: Literal["clean", "ablated"] = "clean"
    """Stream whose output counts. ablated: of a model with gates, which are those of the clean prompt and stay so."""
    ablation: Literal["resample", "zero", "mean", "mean_per_position"] = "resample"
    """What cut edges carry: the corrupt prompt's values, zeros, or a mean over the corrupt prompts."""
    method: Annotated[str | None, tyro.conf.arg(help=(
        "acdc (the default) searches edge by edge; the others score all edges and keep the strongest. " + "; ".join(
            f"{m.name}: {m.about}" for m in METHODS if m.about) + "."))] = None
    tau: float | None = None
    """Threshold of acdc: nats of KL that cutting an edge may cost; 0.03 by default."""
    edges: int | None = None
    """Edges that the other methods keep; 5 % of all by default. Those that dangle are left out."""
    search: Literal["top", "greedy"] | None = None
    """How the other methods choose edges: top (the default) keeps the strongest, greedy walks from the end."""
    steps: int | None = None
    """Steps in which edge-pruning trains its masks; 300 by default."""
    prompts: int = PROMPTS
    """Prompt pairs that are drawn; with a prompt file at most so many of its first."""
    prompt_file: Path | None = None
    """JSON of prompts in AutoCircuit's layout; indirect objects by default, in the corpus's words where the model was
    trained on the embedded corpus."""
    load: Path | None = None
    """A stored circuit (ours or MIB's), which is measured on this run; none is searched for."""
    order_seed: int | None = None
    """Seed of a random order in which acdc visits the edges of each layer; the canonical order by default."""
    batch_size: int = 64
    """Prompts computed at once."""
    split: bool = False
    """Edges of their own into keys and values of each query head, also where the model's heads share them, as in
    EAP-IG and MIB."""
    out: Path | None = None
    """Folder of the files; by default circuits/STREAM-METHOD-... in the working directory."""

    def __post_init__(self):
        super().__post_init__()
        base.require_at_least(self, 1, "prompts", "edges", "steps")
        base.require_at_least(self, 0, "order_seed")
        if self.prompts > MOST_PROMPTS:
            raise ConfigError(f"prompts={self.prompts} must be at most {MOST_PROMPTS:,}: all are held in memory")
        if self.tau is not None and not 0 < self.tau < math.inf:
            raise ConfigError(f"tau={self.tau:g} must be a number above 0 (nats of KL that cutting an edge may cost); "
                              f"the papers take {TAU}")
        if self.chosen_method not in METHODS:
            METHODS[self.chosen_method]  # raises, and names the nearest
        what = "--load" if self.load else f"--method {self.chosen_method}"
        without = {"--method": self.method} if self.load else {}
        if self.load or self.chosen_method != "acdc":
            without |= {"--tau": self.tau, "--order-seed": self.order_seed}
        if self.load or self.chosen_method == "acdc":
            without |= {"--edges": self.edges, "--search": self.search}
        if self.load or METHODS[self.chosen_method].nulls is None:
            without |= {"--steps": self.steps}
        idle = [name for name, value in without.items() if value is not None]
        if idle:
            other = "leave out --load" if self.load else "choose another --method"
            raise ConfigError(f"no effect beside {what}: {', '.join(idle)}; leave that out, or {other}")

    @property
    def chosen_method(self) -> str:
        """The method, its default filled in."""
        return self.method or "acdc"

    @property
    def chosen_tau(self) -> float:
        """Threshold of acdc, its default filled in."""
        return TAU if self.tau is None else self.tau

    def folder(self) -> Path:
        """Where files go: the folder asked for, or one whose name has every setting that is not the default.

        >>> CircuitSettings(workdir=Path("runs/x"), method="eap-ig", edges=100).folder().name
        'clean-eap-ig-100'
        """
        if self.out is not None:
            return self.out
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        parts = [self.stream, *self._method_parts()]
        parts += [self.ablation] if self.ablation != defaults["ablation"] else []
        parts += [_slug(self.prompt_file.stem)] if self.prompt_file else []
        for name in ("prompts", "seed", "checkpoint", "order_seed", "steps"):
            if getattr(self, name) != defaults[name]:
                parts.append(f"{name.replace('_', '-')}-{getattr(self, name)}")
        parts += ["split"] if self.split else []
        return self.workdir / "circuits" / "-".join(parts)

    def _method_parts(self) -> list[str]:
        if self.load is not None:
            return ["load", _slug(f"{self.load.resolve().parent.name}-{self.load.stem}")]
        if self.chosen_method == "acdc":
            return ["acdc", f"{self.chosen_tau:g}"]
        size = [] if self.edges is None else [str(self.edges)]
        return [_slug(self.chosen_method), *size, *([] if self.search in (None, "top") else [self.search])]

    def run(self, console: Console) -> None:
        """Finds or loads a circuit, prints what it does and where its files are."""
        with base.terminable(f"stopped; what {self.folder()} keeps of a search, the same command goes on from"):
            report = circuit(self, partial(base.say, console), partial(search_progress, PlainConsole(stderr=True)))
        console.print(figures_table(report.measured, report.title))
        if report.nulls:
            console.print(nulls_table(report.nulls))
        for line in warnings(report.measured):
            console.print(line, style="yellow", highlight=False, soft_wrap=True)
        base.say_paths(console, report.files)


parse = partial(base.parse, CircuitSettings)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CircuitReport:
    """What `circuit` found, measured and wrote."""

    circuit: Circuit
    measured: Measured
    title: str
    files: tuple[Path, ...]
    nulls: tuple[PruneRow, ...] = ()
    """For a method that is trained, how its circuits do on held-out prompts, in the model and where nothing is to be
    found."""


def circuit(settings: CircuitSettings, say: Callable[[str], None] = lambda line: None,
            show_progress: Callable[[str], AbstractContextManager[Progress]] = lambda what: _NO_PROGRESS
            ) -> CircuitReport:
    """Finds or loads a circuit, measures it, writes ``circuit.json``, ``.mib.json``, ``.svg``, ``.png`` and ``.html``.

    Args:
      settings: which run, task and method; where to.
      say: receives lines of progress.
      show_progress: what is done -> context of a function that is called with how far it is.

    Raises:
      ConfigError: the run is none of a language model, has no such stream, or fewer edges than asked for.
      DataError: the prompts or the stored circuit do not fit.
      CheckpointError: a run cannot be read, or an interrupted search is of another model or task.
      FileError: the files cannot be written; then none is.
    """
    config = require_language_model(settings.workdir, "circuits are found in")
    require_stream(settings.workdir, config, settings.stream)
    graph = Graph.of(config.model)
    graph = graph.split if settings.split else graph
    count, run = edge_count(settings, graph), settings.open()
    task, folder = make_problem(settings, run, config.model.context_length), settings.folder()
    stored = None if settings.load is None else load_any(settings.load, config, run.digest, graph)
    conditions = {"stream": settings.stream, "ablation": settings.ablation, "task": task.pairs.name,
                  "prompts": len(task.pairs), "prompts_digest": task.pairs.digest(), "seed": settings.seed,
                  "step": run.step}
    with _writable(folder):
        nulls: tuple[PruneRow, ...] = ()
        if stored is None:
            about = {"method": settings.chosen_method} | conditions
            kept, scores, facts = find(task, settings, count, folder / SEARCH_FILE, say, show_progress)
            if (method := METHODS[settings.chosen_method]).nulls is not None:
                with show_progress(f"{method.name} and its nulls") as progress:
                    nulls = tuple(method.nulls(task, seed=settings.seed, progress=progress, edges=count,
                                               steps=settings.steps))
                facts |= {"nulls": [dataclasses.asdict(row) for row in nulls]}
        else:
            about, facts = dict(stored.about), dict[str, Any]()
            kept, scores = stored.kept, stored.scores
            if differences := _found_otherwise(about, conditions):
                say(f"{settings.load} was found with {differences}")
        measured = measure(task, kept, seed=settings.seed)
        now = provenance(jax.devices())
        shape = {name: getattr(config.model, name) for name in ("n_layers", "n_heads", "d_model", "vocab_size",
                                                                "ablation")}
        about |= facts | {"params_digest": run.digest, "model": shape, "revision": now.revision,
                          "measured": conditions | dataclasses.asdict(measured)}
        found = Circuit(graph=task.graph, kept=kept, scores=scores, about=about)
        title = (f"Circuit of {task.pairs.name} in {settings.workdir.resolve().name}, {settings.stream} stream, "
                 f"{method_title(about)}")
        files = write_group(folder, contents(found, measured, title, settings, run, now, nulls), otherwise=_ANOTHER_OUT)
        return CircuitReport(circuit=found, measured=measured, title=title, files=files, nulls=nulls)


def make_problem(settings: CircuitSettings, run: Run, context_length: int) -> Problem:
    """The task that the settings ask for, on a run's model."""
    options: dict[str, Any] = {"stream": settings.stream, "ablation": settings.ablation,
                               "batch_size": settings.batch_size, "split": settings.split}
    if settings.prompt_file is None:
        return problem(run, task="ioi", prompts=settings.prompts, seed=settings.seed, **options)
    pairs = load_task(settings.prompt_file, run.tokenizer, context_length=context_length)
    return problem(run, pairs.take(range(min(settings.prompts, len(pairs)))), **options)


def load_any(path: Path, config: Config, params_digest: str, graph: Graph) -> Circuit:
    """A stored circuit, ours or MIB's, of this model and of a graph of it.

    Raises:
      DataError: it is damaged, or of another model.
    """
    if not is_mib(path):  # the reader of our own files says what is wrong with others
        return load_circuit(path, graph=graph, params_digest=params_digest)
    stored = load_mib(path, graph=graph)
    width = stored.about.get("d_model", config.model.d_model)
    if width != config.model.d_model:
        raise DataError(f"{path} is a circuit file of another model: its width is {width}, this model's is "
                        f"{config.model.d_model}; give a circuit of this model")
    return stored


def edge_count(settings: CircuitSettings, graph: Graph) -> int:
    """Edges that a circuit made from scores is to have, before those that dangle are left out.

    Raises:
      ConfigError: more than the graph has.
    """
    if settings.edges is None:
        return math.ceil(SHARE * graph.n_edges)
    if settings.edges > graph.n_edges:
        raise ConfigError(f"edges={settings.edges:,} are more than the {graph.n_edges:,} of the model's graph; "
                          f"choose 1 .. {graph.n_edges:,}")
    return settings.edges


def find(task: Problem, settings: CircuitSettings, count: int, resume: Path, say: Callable[[str], None],
         show_progress: Callable[[str], AbstractContextManager[Progress]]
         ) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Kept edges [E], scores [E], and facts about how they were found, for `Circuit.about`.

    Raises:
      CheckpointError: the file ``resume`` is of another search, or damaged.
      DataError: a method did not give one score for each edge.
    """
    method = METHODS[settings.chosen_method]
    facts: dict[str, Any] = {"score": method.score_label or f"{method.label} score"}
    if method.name != "acdc":
        with show_progress(method.name) as progress:
            scores = method.scores(task, seed=settings.seed, progress=progress, edges=count, steps=settings.steps)
        search = settings.search or "top"
        order = edge_order(task.graph, importance(task.target, scores), search=search, absolute=True)
        facts |= {"metric": task.metric, "search": search, "ranking": "magnitude", "edges_asked": count}
        return first_edges(task.graph, order, count), scores, facts
    if resume.exists():
        say(f"going on with the interrupted search in {resume}")
    order = None if settings.order_seed is None else shuffled_order(task.graph, settings.order_seed)
    with show_progress("ACDC") as progress:
        result = acdc(task, (settings.chosen_tau,), order=order, progress=progress, resume=resume)
    (run,) = result.runs.values()
    say(f"{result.evaluated:,} evaluations for {task.graph.n_edges:,} edges; the closest decision lies "
        f"{run.min_margin:.2g} nats from tau")
    facts |= {"metric": "kl", "tau": settings.chosen_tau, "order_seed": settings.order_seed,
              "edges_evaluated": result.evaluated, "rechecked": result.rechecked,
              "min_margin": run.min_margin}
    return run.kept, run.rises, facts


def contents(circuit: Circuit, measured: Measured, title: str, settings: CircuitSettings, run: Run,
             conditions: Provenance, nulls: Sequence[PruneRow] = ()) -> dict[str, bytes]:
    """Every file of a circuit by name."""
    about = circuit.about["measured"]
    task = f"{about['task']}, {about['prompts']:,} prompts, {settings.stream} stream, {settings.ablation} ablation"
    label = circuit.about.get("score")
    panel = circuit_panel(
        circuit.scored_edges(), n_layers=circuit.graph.n_layers, title=title,
        caption=f"{measured.kept:,} of {measured.edges:,} edges.",
        score_label=label if isinstance(label, str) else "score")
    line = (f"{settings.workdir.resolve().name} at step {run.step:,}, parameters {run.digest}, "
            f"revision {conditions.revision or 'unknown'}, {conditions.device}, "
            f"jax {conditions.versions.get('jax', 'unknown')}, {conditions.date}.")
    with tempfile.TemporaryDirectory() as folder:
        ours = save_circuit(circuit, Path(folder) / "circuit.json")
        # A stored circuit that does not say what its scores are has the greater ones where an edge matters more.
        metric = None if circuit.about.get("metric") in METRICS else "kl"
        mib = save_mib(circuit, Path(folder) / "circuit.mib.json", d_model=run.config.model.d_model, metric=metric)
        files = {path.name: path.read_bytes() for path in (ours, mib)}
    pictures = {f"circuit.{suffix}": content for suffix, content in figure_bytes(panel, ("svg", "png")).items()}
    page = circuit_page(panel, page_lines(measured, task, method_title(circuit.about), nulls), line)
    return files | pictures | {"circuit.html": page.encode()}


def method_title(about: Mapping[str, Any]) -> str:
    """Method of a circuit and its parameters, for titles."""
    name = str(about.get("method", "unknown method"))
    if name == "acdc" and isinstance(about.get("tau"), int | float):
        order = f", edges in random order {about['order_seed']}" if about.get("order_seed") is not None else ""
        return f"ACDC at tau {about['tau']:g}{order}"
    if "search" in about and "edges_asked" in about:
        return f"{name}, {about['search']} {about['edges_asked']} edges"
    return name


def figures_table(m: Measured, title: str) -> Table:
    """Model, circuit and everything patched beside one another."""
    table = Table(title=Text(title), caption="95 % intervals over prompts in brackets", title_justify="left",
                  caption_justify="left")
    table.add_column("")
    for name in ("model", "circuit", "all patched"):
        table.add_column(name, justify="right")
    three = (m.model, m.circuit, m.empty)
    table.add_row("edges", f"{m.edges:,}", f"{m.kept:,} ({m.kept / m.edges:.1%})", "0")
    table.add_row("edges on a path from start to end", f"{m.edges:,}", f"{m.connected:,}", "0")
    table.add_row("heads", str(m.all_heads), str(m.heads), "0")
    table.add_row("MLPs", str(m.all_mlps), str(m.mlps), "0")
    table.add_row("KL(model ‖ ·), nats", "0", str(m.circuit.kl), str(m.empty.kl))
    table.add_row("accuracy", *(str(a.accuracy) for a in three))
    table.add_row("logit difference", *(str(a.logit_difference) for a in three))
    table.add_row("faithfulness of logit difference", "1", str(m.faithfulness), "0")
    return table


def nulls_table(rows: Sequence[PruneRow]) -> Table:
    """Circuits of a method that is trained, on prompts that it was not trained on, beside its nulls."""
    table = Table(title=f"The same training where there is nothing to find; {rows[0].prompts:,} prompts held out",
                  caption="KL explained: 1 for the model, 0 for no edge. What a null reaches is no evidence.",
                  title_justify="left", caption_justify="left")
    for name in ("", "KL, all patched", "KL explained", "by seed", "on training prompts", "accuracy", "of the model",
                 "overlap of seeds"):
        table.add_column(name, justify="left" if not name else "right")

    def short(x: float | None) -> str:
        return "-" if x is None else f"{round(x, 2) + 0:.2f}"  # + 0: never -0.00

    for r in rows:
        table.add_row(r.group, stats.number(r.all_patched), str(r.explained), ", ".join(map(short, r.by_seed)),
                      short(r.on_training_prompts), str(r.accuracy), str(r.model_accuracy), short(r.overlap))
    return table


def warnings(m: Measured) -> list[str]:
    """What makes the circuit mean little, a line each."""
    out = []
    if m.incompetent:
        out.append(f"the model cannot do the task: its accuracy is {m.model.accuracy}, chance is {CHANCE}; a circuit "
                   "of it means little")
    if not m.connected:
        out.append("no path of kept edges leads from the embedding to the end: such a circuit does nothing; with every "
                   f"edge patched KL is {m.empty.kl} nats")
    return out


def page_lines(m: Measured, task: str, method: str, nulls: Sequence[PruneRow] = ()) -> list[tuple[str, str]]:
    """Pairs (what, text) for the top of the page."""

    def answers(a: Answers) -> str:
        return f"accuracy {a.accuracy}, logit difference {a.logit_difference}"

    lines = [
        ("task:", task),
        ("method:", method),
        ("size:", f"{m.kept:,} of {m.edges:,} edges ({m.kept / m.edges:.1%}), {m.connected:,} of them on a path from "
                  f"start to end; {m.heads} of {m.all_heads} heads, {m.mlps} of {m.all_mlps} MLPs"),
        ("divergence:", f"KL(model ‖ circuit) {m.circuit.kl} nats, with every edge patched {m.empty.kl}"),
        ("faithfulness:", f"{m.faithfulness} of the logit difference"),
        ("competence:", f"the model: {answers(m.model)}; the circuit alone: {answers(m.circuit)}; with every edge "
                        f"patched: {answers(m.empty)}. 95 % intervals over {m.prompts:,} prompts."),
    ]
    lines += [(f"{r.group}:", f"circuits of {len(r.by_seed)} seeds explain {r.explained} of "
               f"{stats.number(r.all_patched)} nats of KL on {r.prompts:,} prompts that they were not trained on; "
               f"accuracy {r.accuracy}, the model's {r.model_accuracy}") for r in nulls]
    return lines + [("warning:", warning) for warning in warnings(m)]


@contextlib.contextmanager
def search_progress(console: Console, what: str) -> Iterator[Progress]:
    """A bar with edges left and edges evaluated, gone when the block ends; nothing where the console is no terminal."""
    columns = (text_column(), BarColumn(), text_column("{task.fields[left]:,} edges left, "
               "{task.fields[evaluated]:,} evaluated"), TimeElapsedColumn())
    with ProgressBar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = None

        def report(done: int, total: int, evaluated: int) -> None:
            nonlocal task
            if task is None:
                task = bar.add_task(what, total=total, left=total, evaluated=0)
            bar.update(task, completed=done, left=total - done, evaluated=evaluated)

        yield report


def _found_otherwise(about: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What a stored circuit was found with, where it differs from what it is measured with; else nothing."""
    names = ("stream", "ablation", "task", "prompts_digest")
    other = [name for name in names if about.get(name, now[name]) != now[name]]
    if not other:
        return ""
    before = ", ".join(f"{name.replace('_', ' ')} {about[name]}" for name in other)
    return f"{before}; it is measured with {', '.join(str(now[name]) for name in other)}"


@contextlib.contextmanager
def _writable(folder: Path) -> Iterator[None]:
    """Makes a folder and sees that it can be written to, before hours are spent; removes it if it stays empty."""
    missing = [p for p in (folder, *folder.parents) if not p.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise write_error(folder, error, _ANOTHER_OUT) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            for path in missing:
                path.rmdir()  # fails, as it should, where the folder holds anything


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-.") or "file"
