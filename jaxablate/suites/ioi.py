"""Indirect-object identification: does the model name the receiver, not the giver?

The paper's task is docs/papers.md, Circuit localisation. A circuit means little where the model cannot do the task, so
these figures stand beside every circuit.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxablate import stats
from jaxablate.circuits.competence import Competence, competence
from jaxablate.circuits.prompts import PromptPairs
from jaxablate.circuits.tasks import tokenise
from jaxablate.config import Config
from jaxablate.models.decoder import token_logits
from jaxablate.reports.panels import Bar, Bars, Grid, Panel
from jaxablate.reports.results import Figure
from jaxablate.runs.run import Run
from jaxablate.suites.suite import Suite, final_states
from jaxablate.types import STREAMS, Params

COUNT = 560
"""Prompts: a multiple of the corpus's templates times name orders, so that all are equally frequent."""
BATCH_SIZE = 56
LONGEST_PROMPT = 20
"""Tokens of the corpus's longest prompt."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamIoi:
    """How one stream answers."""

    stream: str
    competence: Competence


@dataclasses.dataclass(frozen=True, kw_only=True)
class IoiResult:
    """Answers of every stream."""

    streams: tuple[StreamIoi, ...]
    prompts: int

    def headline(self) -> tuple[Figure, ...]:
        """Accuracy, top-1 accuracy and logit difference of each stream."""
        kinds = (("accuracy", "accuracy", "fraction"), ("top-1", "top1", "fraction"),
                 ("logit diff", "logit_difference", "logits"))
        return tuple(Figure(f"IOI {name} {s.stream}", getattr(s.competence, field), unit, "up",
                            range=stats.FRACTION if unit == "fraction" else None)
                     for name, field, unit in kinds for s in self.streams)

    def panels(self) -> tuple[Panel, ...]:
        """Bars of the accuracies, and accuracies by kind of prompt."""
        bars = tuple(bar for s in self.streams for bar in (
            Bar(f"{s.stream}, answer above wrong answer", s.competence.accuracy),
            Bar(f"{s.stream}, answer is the top token", s.competence.top1)))
        groups = [{group: accuracy for group, _, accuracy, _ in s.competence.by_group} for s in self.streams]
        rows = tuple((group, count, *(of_stream[group] for of_stream in groups))
                     for group, count, *_ in self.streams[0].competence.by_group)
        return (
            Bars(title="Indirect-object identification", bars=bars, mark=0.5,
                 caption=f"{self.prompts:,} prompts. Whiskers: 95 % Wilson interval.",
                 mark_label="chance between the two names"),
            Grid(title="Accuracy by kind of prompt", rows=rows, columns=("prompts", "count", *(
                s.stream for s in self.streams)),
                caption="Answer above wrong answer. ABBA: the receiver is named first; BABA: the giver is."),
        )


def evaluate(model: Any, params: Params, pairs: PromptPairs, *, batch_size: int = BATCH_SIZE, seed: int = 0
             ) -> IoiResult:
    """Asks every clean prompt, ``batch_size`` at once, and compares the logits after its last token, in the model's own
    types; ``seed`` is of the bootstrap."""
    # Padding goes from the left to the right, where no position sees it: positions count from the first token.
    length, lengths = pairs.clean.shape[1], pairs.lengths
    place = (np.arange(length) - lengths[:, None]) % length
    tokens, last = np.take_along_axis(pairs.clean, place, axis=1), lengths - 1
    parts = []
    for start in range(0, len(pairs), batch_size):
        rows = np.minimum(np.arange(start, start + batch_size), len(pairs) - 1)  # the last batch is filled up
        logits = last_logits(model, params, tokens[rows], last[rows])
        parts.append({name: np.asarray(x)[: len(pairs) - start] for name, x in logits.items()})
    streams = tuple(
        StreamIoi(stream=name, competence=competence(np.concatenate([p[name] for p in parts]), pairs, seed=seed))
        for name in STREAMS if name in parts[0])
    return IoiResult(streams=streams, prompts=len(pairs))


@functools.partial(jax.jit, static_argnames="model")
def last_logits(model: Any, params: Params, tokens: jax.Array, last: jax.Array) -> dict[str, jax.Array]:
    """By stream, [B, V]: logits after the last token of prompts [B, T], which is at ``last`` [B]."""
    return {name: token_logits(model.config, params, x[jnp.arange(x.shape[0]), last])
            for name, x in final_states(model.apply({"params": params}, tokens)).items()}


def _unfit(config: Config) -> str | None:
    if config.data.source != "embedded":
        return f"its prompts come from the embedded corpus, the model was trained on data.source={config.data.source!r}"
    if config.model.context_length < LONGEST_PROMPT:
        return f"its prompts have up to {LONGEST_PROMPT} tokens, the model takes {config.model.context_length}"
    return None


def _run(run: Run) -> tuple[IoiResult, dict[str, Any]]:
    pairs = tokenise(run.tasks["ioi"](run.seed, COUNT), run.tokenizer, name="IOI")
    result = evaluate(run.model, run.params, pairs, seed=run.seed)
    return result, {"prompts": COUNT, "seed": run.seed}


SUITE = Suite(name="ioi", run=_run, unfit=_unfit,
              about="Indirect-object prompts of the embedded corpus: the receiver's name against the giver's.")
