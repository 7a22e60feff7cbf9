"""``jaxablate explain``: what one or two classifiers make of a text, as pictures, numbers and a page."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

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
from jaxablate.suites.explanations import allocation, interactions, shown_words, side_by_side, token_grid

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
        """Explains the text, prints a table of its tokens and writes the files."""
        explained = explain_text(self, partial(base.say, console))
        console.print(terminal_view(explained))
        base.say_paths(console, explained.files)


parse = partial(base.parse, ExplainSettings)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explained:
    """Explanations of a text and the files that hold them."""

    explanation: Explanation
    step: int
    before: Explanation | None
    before_step: int | None
    files: tuple[Path, ...]


def explain_text(settings: ExplainSettings, say: Callable[[str], None] = lambda line: None) -> Explained:
    """Explains a text and writes ``allocation`` and ``interactions`` (PNG, SVG), ``explanation.json`` and ``.html``.

    Raises:
      ConfigError: a value is out of range, or a run is not that of a text classifier.
      DataError: no word of the text is in the vocabulary, or the two runs have different vocabularies.
      CheckpointError: a run cannot be read.
      FileError: the files cannot be written; then none is.
    """
    workdirs = [settings.workdir] if settings.before is None else [settings.workdir, settings.before]
    for workdir in workdirs:
        if not isinstance(read_config(workdir), ClassificationConfig):
            raise ConfigError(f"{workdir} is a language model's run; explain takes text classifiers, which "
                              "jaxablate train --config sst2 trains")
    runs = [open_run(workdir, settings.checkpoint) for workdir in workdirs]
    if len({run.tokenizer.fingerprint() for run in runs}) > 1:
        raise DataError(f"{settings.before} has another vocabulary ({runs[1].tokenizer.name}) than {settings.workdir} "
                        f"({runs[0].tokenizer.name}); give a --before that was trained on the same texts")
    tokenizer = runs[0].tokenizer
    tokens = tokenizer.encode(settings.text)
    if all(token == tokenizer.unk_id for token in tokens):
        raise DataError(f"none of the {len(tokens)} words of the text is among the {tokenizer.vocab_size - 2} of the "
                        "vocabulary, which are those of the training texts as they stand there; try their spelling and "
                        "capitals, with spaces around punctuation")
    explanation, *others = (_explanation(run, settings, say) for run in runs)
    before, before_step = (others[0], runs[1].step) if others else (None, None)
    contents = file_contents(settings.text, explanation, runs[0].step, before, before_step, provenance(jax.devices()))
    folder = settings.out or settings.workdir / "explanation" / slug(settings.text)
    return Explained(explanation=explanation, step=runs[0].step, before=before, before_step=before_step,
                     files=files.write_group(folder, contents))


def _explanation(run: Run, settings: ExplainSettings, say: Callable[[str], None]) -> Explanation:
    config, tokens = run.model.config, run.tokenizer.encode(settings.text)
    if len(tokens) > config.max_length:
        say(f"the text has {len(tokens):,} tokens; {run.workdir} takes the first {config.max_length}")
    return explain(run.model, run.params, tokens, shown_words(run.tokenizer, settings.text, tokens),
                   layer=settings.layer, stream=settings.stream, classes=class_names(config),
                   pad_id=run.tokenizer.pad_id)


def slug(text: str) -> str:
    """Name of a text's folder: its first words and six digits of its hash.

    >>> slug("A gorgeous , witty movie !")
    'a-gorgeous-witty-movie-acbaa9'
    """
    words = "-".join(re.findall(r"[a-z0-9]+", text.lower()))[:40].strip("-") or "text"
    return f"{words}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def file_contents(text: str, explanation: Explanation, step: int, before: Explanation | None, before_step: int | None,
                  conditions: Provenance) -> dict[str, bytes]:
    """Every file of an explanation by name."""
    if before is None:
        pictures, tables = (allocation(explanation), interactions(explanation)), [token_grid(explanation)]
    else:
        pictures = side_by_side(before, explanation)
        tables = [dataclasses.replace(token_grid(x), title=f"Tokens, {name}")
                  for x, name in ((before, "before"), (explanation, "after"))]
    record = {"schema_version": SCHEMA_VERSION, "text": text, "step": step, "before_step": before_step,
              "provenance": dataclasses.asdict(conditions), "explanation": dataclasses.asdict(explanation),
              "before": None if before is None else dataclasses.asdict(before)}
    # Words are shaded by what the model itself says of them, where it has VMASK.
    shades, shade_label = ((explanation.keep, "probability of being kept by VMASK") if explanation.keep
                           else (explanation.capacity, "capacity"))
    lines = [] if before is None else [(f"before, step {before_step:,}:", before.verdict)]
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


def terminal_view(explained: Explained) -> Table:
    """The verdicts and a table of the tokens."""
    after, before = explained.explanation, explained.before
    bars = {"kept": after.keep} if after.keep else {}
    if before is not None:
        bars["capacity before"] = before.capacity
    bars["capacity after" if before else "capacity"] = after.capacity
    partners = [after.partner(i, "alignment") for i in range(len(after.words))]
    facts = {
        "gradient x input": [f"{g:+.3f}" for g in after.gradient_x_input], "owned neurons": after.owned,
        "shares most with": ["-" if j is None else f"{short(after.words[j], 14)} {after.alignment[i][j]:.2f}"
                             for i, j in enumerate(partners)],
    }
    title = f"step {explained.step:,}: {after.verdict}"
    if before is not None:
        title = f"before, step {explained.before_step:,}: {before.verdict}; after, {title}"
    return token_table(title, after.words, bars, facts)
