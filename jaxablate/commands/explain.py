"""``eval.py explain``: restores one or two classifiers, explains a text, writes figures, JSON and a page."""

import dataclasses
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
from rich.table import Table

from jaxablate.classifier.explain import Explanation, explain, is_unknown, shown_words, side_by_side
from jaxablate.commands.explain_settings import ExplainSettings
from jaxablate.config import ClassificationConfig
from jaxablate.data.tokenizer import Tokenizer, load_tokenizer
from jaxablate.errors import CheckpointError, ConfigError, DataError
from jaxablate.files import write
from jaxablate.models.classifier import SafrClassifier
from jaxablate.provenance import Provenance, provenance
from jaxablate.reports.axes import short
from jaxablate.reports.figures import figure_bytes
from jaxablate.reports.html import explanation_page
from jaxablate.reports.panels import Panel
from jaxablate.reports.token_table import token_table
from jaxablate.runs.checkpoint import restore_params
from jaxablate.runs.workdir import read_config, require_x64
from jaxablate.suites.classification import class_names

SCHEMA_VERSION = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifierRun:
    """A working directory of a text classifier; its parameters are read later, when the text is known to be good."""

    workdir: Path
    config: ClassificationConfig
    vocabulary: Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explained:
    """What `explain_text` found and wrote."""

    explanation: Explanation
    step: int
    before: Explanation | None
    before_step: int | None
    files: tuple[Path, ...]


def explain_text(settings: ExplainSettings, say: Callable[[str], None] = lambda line: None) -> Explained:
    """Explains a text and writes ``allocation`` and ``interactions`` (PNG, SVG), ``explanation.json`` and ``.html``.

    Args:
      settings: which run, which text, where to.
      say: receives lines of progress.

    Raises:
      ConfigError: a value is out of range, or the run is none of a text classifier.
      DataError: no word of the text is known, or the two runs have different vocabularies.
      CheckpointError: a run cannot be read, or the files cannot be written; then none is.
    """
    settings.check()
    run = open_run(settings.workdir)
    before = None if settings.before is None else open_run(settings.before)
    _check_text(settings, run, before)
    explanation, step = _explained(run, settings, say)
    other, other_step = (None, None) if before is None else _explained(before, settings, say)
    files = contents(settings.text, explanation, step, other, other_step, provenance(jax.devices()))
    folder = settings.out or settings.workdir / "explanation" / slug(settings.text)
    return Explained(explanation=explanation, step=step, before=other, before_step=other_step,
                     files=write_all(folder, files))


def open_run(workdir: Path) -> ClassifierRun:
    """Settings and vocabulary of a classifier's run.

    Raises:
      ConfigError: it is a language model's.
      CheckpointError, DataError: it cannot be read.
    """
    config = read_config(workdir)
    if not isinstance(config, ClassificationConfig):
        raise ConfigError(f"{workdir} is a language model's run; explain takes text classifiers, which "
                          "train.py --config configs/sst2.py trains")
    require_x64(config)
    return ClassifierRun(workdir=workdir, config=config, vocabulary=load_tokenizer(workdir / "tokenizer"))


def _check_text(settings: ExplainSettings, run: ClassifierRun, before: ClassifierRun | None) -> None:
    if before is not None and before.vocabulary.fingerprint() != run.vocabulary.fingerprint():
        raise DataError(f"{before.workdir} has another vocabulary ({before.vocabulary.name}) than {run.workdir} "
                        f"({run.vocabulary.name}); give a --before that was trained on the same texts")
    tokens = run.vocabulary.encode(settings.text)
    if all(token == run.vocabulary.unk_id for token in tokens):
        raise DataError(
            f"none of the {len(tokens)} words of the text is among the {run.vocabulary.vocab_size - 2} that the model "
            "knows, which are those of the training texts as they stand there; try their spelling and capitals, with "
            "spaces around punctuation")


def _explained(run: ClassifierRun, settings: ExplainSettings, say: Callable[[str], None]) -> tuple[Explanation, int]:
    params, step = restore_params(run.workdir, step=settings.step_for(run.config))
    config = run.config.model_for(run.vocabulary.vocab_size)
    tokens = run.vocabulary.encode(settings.text)
    if len(tokens) > config.max_length:
        say(f"the text has {len(tokens):,} tokens; {run.workdir} takes the first {config.max_length}")
    classes = class_names(config)
    words = shown_words(run.vocabulary, settings.text, tokens)
    return explain(SafrClassifier(config), params, tokens, words, layer=settings.layer, stream=settings.stream,
                   classes=classes, pad_id=run.vocabulary.pad_id), int(step)


def slug(text: str) -> str:
    """Name of a text's folder: its first words and six digits of its hash.

    >>> slug("A gorgeous , witty movie !")
    'a-gorgeous-witty-movie-acbaa9'
    """
    words = "-".join(re.findall(r"[a-z0-9]+", text.lower()))[:40].strip("-") or "text"
    return f"{words}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def contents(text: str, explanation: Explanation, step: int, before: Explanation | None, before_step: int | None,
             conditions: Provenance) -> dict[str, bytes]:
    """Every file of an explanation by name."""
    allocation, interactions, *tables = explanation.panels()
    panels: tuple[Panel, ...] = (allocation, interactions, *tables)
    if before is not None:
        allocation, interactions = side_by_side(before, explanation)
        tables = [dataclasses.replace(x.panels()[2], title=f"Tokens, {name}")
                  for x, name in ((before, "before"), (explanation, "after"))]
        panels = (allocation, interactions, *tables)
    record = {"schema_version": SCHEMA_VERSION, "text": text, "step": step, "before_step": before_step,
              "provenance": dataclasses.asdict(conditions), "explanation": dataclasses.asdict(explanation),
              "before": None if before is None else dataclasses.asdict(before)}
    figures = {"allocation": allocation, "interactions": interactions}
    return {
        **{f"{name}.{suffix}": content for name, panel in figures.items()
           for suffix, content in figure_bytes(panel).items()},
        "explanation.json": (json.dumps(record, allow_nan=False) + "\n").encode(),
        "explanation.html": _page(explanation, step, before, before_step, panels, conditions).encode(),
    }


def _page(explanation: Explanation, step: int, before: Explanation | None, before_step: int | None,
          panels: tuple[Panel, ...], conditions: Provenance) -> str:
    said = [] if before is None else [(f"before, step {before_step:,}:", before.verdict)]
    said.append((f"{'after, ' if before else ''}step {step:,}:", explanation.verdict))
    shades, what = shares(explanation)
    said.append(("shades:", what))
    if any(map(is_unknown, explanation.words)):
        said.append(("‹ ›:", "words that the model does not know; all are the same to it"))
    line = (f"Revision {conditions.revision or 'unknown'}, {conditions.device}, "
            f"jax {conditions.versions.get('jax', 'unknown')}, {conditions.date}.")
    words = list(zip(explanation.words, shades, strict=True))
    return explanation_page("Explanation of a text", said, words, panels, line)


def shares(explanation: Explanation) -> tuple[tuple[float, ...], str]:
    """The number in [0, 1] by which the words are shaded, and its name."""
    if explanation.keep:
        return explanation.keep, "probability of being kept by VMASK"
    return explanation.capacity, "capacity"


def write_all(folder: Path, files: dict[str, bytes]) -> tuple[Path, ...]:
    """Writes files into a folder, made where missing: all of them or, where something fails, none.

    Raises:
      CheckpointError: the folder cannot be made or written to.
    """
    made = next((p for p in reversed((folder, *folder.parents)) if not p.exists()), None)
    staging = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".", dir=folder))
        for name, content in files.items():
            write(staging / name, content)
        for name in files:
            os.replace(staging / name, folder / name)
    except (OSError, CheckpointError) as e:
        if made is not None and made.is_dir():
            shutil.rmtree(made, ignore_errors=True)
        if isinstance(e, CheckpointError):
            raise
        raise CheckpointError(f"{folder} cannot be written ({e.strerror}); choose another --out") from e
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
    return tuple(folder / name for name in files)


def terminal_view(explained: Explained) -> Table:
    """The verdicts and a table of the tokens."""
    after, before = explained.explanation, explained.before
    shown = {"kept": after.keep} if after.keep else {}
    if before is not None:
        shown["capacity before"] = before.capacity
    shown["capacity after" if before else "capacity"] = after.capacity
    partners = [after.partner(i, "alignment") for i in range(len(after.words))]
    facts = {
        "gradient x input": [f"{g:+.3f}" for g in after.gradient_x_input], "owned neurons": after.owned,
        "shares most with": ["-" if j is None else f"{short(after.words[j], 14)} {after.alignment[i][j]:.2f}"
                             for i, j in enumerate(partners)],
    }
    title = f"step {explained.step:,}: {after.verdict}"
    if before is not None:
        title = f"before, step {explained.before_step:,}: {before.verdict}; after, {title}"
    return token_table(title, after.words, shown, facts)
