"""Indirect-object identification: does the model name the receiver, not the giver?

The paper's task is docs/papers.md, Circuit localisation. A circuit means little where the model cannot do the task, so
these figures stand beside every circuit.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxablate import stats
from jaxablate.config import Config
from jaxablate.data.tokenizer import Tokenizer
from jaxablate.errors import DataError
from jaxablate.intervals_old import both_ends, mean_interval, wilson
from jaxablate.reports.panels import Bar, Bars, Grid, Panel
from jaxablate.reports.results import Figure
from jaxablate.runs.run import Run
from jaxablate.stats import Estimate
from jaxablate.suites.suite import Suite, final_states
from jaxablate.types import STREAMS, Params

COUNT = 560
"""Prompts: a multiple of the corpus's templates times name orders, so that all are equally frequent."""
BATCH_SIZE = 56
LONGEST_PROMPT = 20
"""Tokens of the corpus's longest prompt."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class IoiExample:
    """One tokenised prompt."""

    tokens: tuple[int, ...]
    answer: int
    """Token of the receiver's name."""
    wrong: int
    """Token of the giver's name."""
    group: str = ""
    """Kind of prompt, for figures by kind."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamIoi:
    """How one stream answers. Intervals are 95 %: Wilson for proportions, bootstrap over prompts for the mean."""

    stream: str
    accuracy: float
    """Fraction of prompts whose answer's logit exceeds the wrong answer's; 0.5 by chance."""
    accuracy_interval: tuple[float, float] | None
    top1: float
    """Fraction of prompts whose answer is the likeliest token of all."""
    top1_interval: tuple[float, float] | None
    logit_difference: float
    """Mean logit of the answer minus that of the wrong answer."""
    logit_difference_interval: tuple[float, float] | None
    accuracy_by_group: tuple[tuple[str, int, float], ...]
    """(kind of prompt, prompts, accuracy)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class IoiResult:
    """Answers of every stream."""

    streams: tuple[StreamIoi, ...]
    prompts: int

    def headline(self) -> tuple[Figure, ...]:
        """Accuracy, top-1 accuracy and logit difference of each stream."""
        kinds = (("accuracy", "accuracy", "fraction"), ("top-1", "top1", "fraction"),
                 ("logit diff", "logit_difference", "logits"))
        return tuple(
            Figure(f"IOI {name} {s.stream}", Estimate(getattr(s, field), *both_ends(getattr(s, f"{field}_interval"))),
                   unit, "up", range=stats.FRACTION if unit == "fraction" else None)
            for name, field, unit in kinds for s in self.streams
        )

    def panels(self) -> tuple[Panel, ...]:
        """Bars of the accuracies, and accuracies by kind of prompt."""
        bars = [bar for s in self.streams for bar in (
            Bar(f"{s.stream}, answer above wrong answer", Estimate(s.accuracy, *both_ends(s.accuracy_interval))),
            Bar(f"{s.stream}, answer is the top token", Estimate(s.top1, *both_ends(s.top1_interval))))]
        caption = f"{self.prompts:,} prompts. Whiskers: 95 % Wilson interval."
        return (
            Bars(title="Indirect-object identification", caption=caption, bars=tuple(bars), mark=0.5,
                 mark_label="chance between the two names"),
            self._by_group(),
        )

    def _by_group(self) -> Grid:
        tables = [{g: accuracy for g, _, accuracy in s.accuracy_by_group} for s in self.streams]
        rows = tuple((group, count, *(table[group] for table in tables))
                     for group, count, _ in self.streams[0].accuracy_by_group)
        caption = "Answer above wrong answer. ABBA: the receiver is named first; BABA: the giver is."
        return Grid(title="Accuracy by kind of prompt", caption=caption, rows=rows,
                    columns=("prompts", "count", *(s.stream for s in self.streams)))


def evaluate(model: Any, params: Params, examples: Sequence[IoiExample], *, batch_size: int = BATCH_SIZE,
             seed: int = 0) -> IoiResult:
    """Asks every prompt and compares the logits after its last token.

    Prompts are filled up at the right to one length, so one compilation serves all: no position sees a later one.

    Args:
      model: a `SelfAblatingTransformer`.
      params: its parameters.
      examples: tokenised prompts.
      batch_size: prompts at once.
      seed: of the bootstrap.
    """
    length = max(len(e.tokens) for e in examples)
    parts = []
    for start in range(0, len(examples), batch_size):
        chunk = list(examples[start : start + batch_size])
        filled = chunk + [chunk[-1]] * (batch_size - len(chunk))
        tokens = np.array([e.tokens + (0,) * (length - len(e.tokens)) for e in filled], np.int32)
        last, answer, wrong = (np.array(x, np.int32) for x in zip(
            *((len(e.tokens) - 1, e.answer, e.wrong) for e in filled), strict=True))
        scores = answer_scores(model, params, tokens, last, answer, wrong)
        parts.append({name: np.asarray(x, np.float64)[: len(chunk)] for name, x in scores.items()})
    joined = {name: np.concatenate([p[name] for p in parts]) for name in STREAMS if name in parts[0]}
    groups = [e.group for e in examples]
    streams = tuple(_stream(name, margins, groups, seed) for name, margins in joined.items())
    return IoiResult(streams=streams, prompts=len(examples))


@functools.partial(jax.jit, static_argnames="model")
def answer_scores(model: Any, params: Params, tokens: jax.Array, last: jax.Array, answer: jax.Array, wrong: jax.Array
                  ) -> dict[str, jax.Array]:
    """By stream, [B, 2]: logit of the answer minus that of the wrong one, and minus the largest of all other tokens.

    Args:
      model: a `SelfAblatingTransformer`.
      params: its parameters.
      tokens: [B, T] prompts, filled up at the right.
      last: [B] position of each prompt's last token.
      answer: [B] token.
      wrong: [B] token.
    """
    out = model.apply({"params": params}, tokens)
    return {name: _margins(x, params["embed"]["embedding"], last, answer, wrong)
            for name, x in final_states(out).items()}


def _margins(final: jax.Array, table: jax.Array, last: jax.Array, answer: jax.Array, wrong: jax.Array) -> jax.Array:
    rows = jnp.arange(final.shape[0])
    logits = final[rows, last].astype(table.dtype) @ table.T
    right = logits[rows, answer]
    others = logits.at[rows, answer].set(-jnp.inf).max(-1)
    return jnp.stack([right - logits[rows, wrong], right - others], axis=-1)


def _stream(name: str, margins: np.ndarray, groups: Sequence[str], seed: int) -> StreamIoi:
    n, right, top = len(margins), int(np.sum(margins[:, 0] > 0)), int(np.sum(margins[:, 1] > 0))
    by_group = tuple(
        (g, groups.count(g), float(np.mean([m[0] > 0 for m, of in zip(margins, groups, strict=True) if of == g])))
        for g in dict.fromkeys(groups)
    )
    return StreamIoi(
        stream=name, accuracy_by_group=by_group, accuracy=right / n, accuracy_interval=wilson(right, n),
        top1=top / n, top1_interval=wilson(top, n),
        logit_difference=float(margins[:, 0].mean()), logit_difference_interval=mean_interval(margins[:, 0], seed=seed),
    )


def tokenise(prompts: Sequence[Any], tokenizer: Tokenizer) -> tuple[IoiExample, ...]:
    """Token ids of prompts: objects with ``clean``, ``answer``, ``wrong_answer``, ``template`` and ``order``.

    Raises:
      DataError: an answer is not one token.
    """
    return tuple(
        IoiExample(tokens=tuple(tokenizer.encode(p.clean)), answer=_one_token(tokenizer, p.answer),
                   wrong=_one_token(tokenizer, p.wrong_answer), group=f"{p.template}, {p.order}")
        for p in prompts
    )


def _one_token(tokenizer: Tokenizer, text: str) -> int:
    ids = tokenizer.encode(text)
    if len(ids) != 1:
        raise DataError(f"the answer {text!r} is {len(ids)} tokens for this tokenizer; answers must be one token")
    return ids[0]


def _unfit(config: Config) -> str | None:
    if config.data.source != "embedded":
        return f"its prompts come from the embedded corpus, the model was trained on data.source={config.data.source!r}"
    if config.model.context_length < LONGEST_PROMPT:
        return f"its prompts have up to {LONGEST_PROMPT} tokens, the model takes {config.model.context_length}"
    return None


def _run(run: Run) -> tuple[IoiResult, dict[str, Any]]:
    examples = tokenise(run.ioi_prompts(run.seed, COUNT), run.tokenizer)
    result = evaluate(run.model, run.params, examples, seed=run.seed)
    return result, {"prompts": COUNT, "seed": run.seed}


SUITE = Suite(name="ioi", run=_run, unfit=_unfit,
              about="Indirect-object prompts of the embedded corpus: the receiver's name against the giver's.")
