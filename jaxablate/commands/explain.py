"""``jaxablate explain``: what one or two classifiers make of a text, as pictures, numbers and a page."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import tyro
from rich.console import Console
from rich.table import Table

from jaxablate import files
from jaxablate.classifier.explanation import Explanation, explain
from jaxablate.commands import base
from jaxablate.config import ClassificationConfig
from jaxablate.errors import ConfigError, DataError
from jaxablate.provenance import Provenance, provenance
from jaxablate.reports.figures import figure_bytes
from jaxablate.reports.html import explanation_page
from jaxablate.reports.svg import short
from jaxablate.reports.tables import token_table
from jaxablate.runs.run import Run, open_run
from jaxablate.runs.workdir import read_config
from jaxablate.suites.classification import class_names
from jaxablate.suites.explanations import allocation, interactions, known_tokens, shown_words, side_by_side, token_grid

SCHEMA_VERSION = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExplainSettings(base.RunSettings):
    """Show what a text classifier makes of one text: neurons of each token, tokens that share them."""

    text: str
    """The text, written as the training texts are; words are separated by spaces."""
    before: Path | None = None
    """Another run with the same vocabulary, shown beside it: for example the one without regularisers."""
    layer: int = -1
    """Number of the layer whose neurons and attention are shown, counted from 0; -1 is the last."""
    stream: Literal["clean", "ablated"] = "clean"
    """Residual stream; only a gated model has an ablated one."""
    out: Path | None = None
    """Folder of the files; by default explanation/WORDS-HASH in the working directory."""
    batch_size: tyro.conf.Suppress[int | None] = None  # nothing here is drawn or read in batches
    seed: tyro.conf.Suppress[int] = 0

    def __post_init__(self):
        super().__post_init__()
        if not self.text.strip():
            raise ConfigError("text is empty; give at least one word")

    def run(self, console: Console) -> None:
        """Explains the text, prints a table of its tokens and writes the files, all or none of them."""
        runs = [open_run(workdir, self.checkpoint) for workdir in self._workdirs()]
        if len({run.tokenizer.fingerprint() for run in runs}) > 1:
            raise DataError(f"{self.before} has another vocabulary ({runs[1].tokenizer.name}) than {self.workdir} "
                            f"({runs[0].tokenizer.name}); give a --before that was trained on the same texts")
        known_tokens(runs[0].tokenizer, self.text)
        after, *others = (_explained(run, self, partial(base.say, console)) for run in runs)
        before = others[0] if others else None
        paths = files.write_group(self.out or self.workdir / "explanation" / slug(self.text),
                                  file_contents(self.text, after, before, provenance(jax.devices())))
        console.print(terminal_view(after, before, console.width))
        base.say_paths(console, paths)

    def _workdirs(self) -> list[Path]:
        workdirs = [self.workdir] if self.before is None else [self.workdir, self.before]
        for workdir in workdirs:
            if not isinstance(read_config(workdir), ClassificationConfig):
                raise ConfigError(f"{workdir} is a language model's run; explain takes text classifiers, which "
                                  "jaxablate train --config sst2 trains")
        return workdirs


parse = partial(base.parse, ExplainSettings)


class Explained(NamedTuple):
    """What the checkpoint of one run makes of the text."""

    step: int
    explanation: Explanation


def _explained(run: Run, settings: ExplainSettings, say: Callable[[str], None]) -> Explained:
    config, tokens = run.model.config, run.tokenizer.encode(settings.text)
    if len(tokens) > config.max_length:
        say(f"the text has {len(tokens):,} tokens; {run.workdir} takes the first {config.max_length}")
    return Explained(run.step, explain(
        run.model, run.params, tokens, shown_words(run.tokenizer, settings.text, tokens), layer=settings.layer,
        stream=settings.stream, classes=class_names(config), pad_id=run.tokenizer.pad_id))


def slug(text: str) -> str:
    """Name of a text's folder: its first words and six digits of its hash.

    >>> slug("A gorgeous , witty movie !")
    'a-gorgeous-witty-movie-acbaa9'
    """
    words = "-".join(re.findall(r"[a-z0-9]+", text.lower()))[:40].strip("-") or "text"
    return f"{words}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def file_contents(text: str, after: Explained, before: Explained | None, conditions: Provenance) -> dict[str, bytes]:
    """Every file of an explanation by name: pictures, ``explanation.json`` and the page ``explanation.html``."""
    step, explanation = after
    if before is None:
        pictures, tables, lines = (allocation(explanation), interactions(explanation)), [token_grid(explanation)], []
    else:
        pictures = side_by_side(before.explanation, explanation)
        tables = [dataclasses.replace(token_grid(x), title=f"Tokens, {name}")
                  for x, name in ((before.explanation, "before"), (explanation, "after"))]
        lines = [(f"before, step {before.step:,}:", before.explanation.verdict)]
    record = {"schema_version": SCHEMA_VERSION, "text": text, "step": step,
              "before_step": None if before is None else before.step, "provenance": dataclasses.asdict(conditions),
              "explanation": dataclasses.asdict(explanation),
              "before": None if before is None else dataclasses.asdict(before.explanation)}
    # Words are shaded by what the model itself says of them, where it has VMASK.
    shades, shade_label = ((explanation.keep, "probability of being kept by VMASK") if explanation.keep
                           else (explanation.capacity, "capacity"))
    lines += [(f"{'after, ' if before else ''}step {step:,}:", explanation.verdict), ("shades:", shade_label)]
    if any(word.startswith("‹") and word.endswith("›") for word in explanation.words):
        lines.append(("‹ ›:", "words that the model does not know; all are the same to it"))
    page = explanation_page(
        "Explanation of a text", lines, list(zip(explanation.words, shades, strict=True)), (*pictures, *tables),
        f"Revision {conditions.revision or 'unknown'}, {conditions.device}, "
        f"jax {conditions.versions.get('jax', 'unknown')}, {conditions.date}.")
    figures = {f"{name}.{suffix}": content for name, panel in zip(("allocation", "interactions"), pictures, strict=True)
               for suffix, content in figure_bytes(panel).items()}
    return {**figures, "explanation.json": (json.dumps(record, allow_nan=False) + "\n").encode(),
            "explanation.html": page.encode()}


def terminal_view(after: Explained, before: Explained | None, width: int) -> Table:
    """The verdicts and a table of the tokens."""
    step, x = after
    title, bars = f"step {step:,}: {x.verdict}", {"kept": x.keep} if x.keep else {}
    if before is not None:
        title = f"before, step {before.step:,}: {before.explanation.verdict}; after, {title}"
        bars["capacity before"] = before.explanation.capacity
    bars["capacity after" if before else "capacity"] = x.capacity
    partners = [x.partner(i, "alignment") for i in range(len(x.words))]
    facts = {
        "gradient x input": [f"{g:+.3f}" for g in x.gradient_x_input], "owned neurons": x.owned,
        "shares most with": ["-" if j is None else f"{short(x.words[j], 14)} {x.alignment[i][j]:.2f}"
                             for i, j in enumerate(partners)],
    }
    return token_table(title, x.words, bars, facts, width)
