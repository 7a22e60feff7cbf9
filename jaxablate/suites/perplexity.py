"""Perplexity of both streams over the whole validation split, with an interval over stories."""

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxablate import stats
from jaxablate.ops.cross_entropy import per_token_cross_entropy
from jaxablate.reports.panels import Bar, Bars, Grid, Panel
from jaxablate.reports.results import Figure
from jaxablate.runs.run import Run
from jaxablate.stats import Estimate
from jaxablate.suites.suite import Suite, final_states
from jaxablate.types import STREAMS, Batch, Params

MIN_STORIES = 30
"""Below this many stories the resampling unit is a window."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamLoss:
    """Mean loss of one stream over one choice of targets."""

    stream: str
    end_of_text: bool
    """Whether end-of-text targets are counted."""
    loss: Estimate
    """Mean cross-entropy per token, nats."""
    perplexity: Estimate
    """exp(loss)."""
    tokens: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerplexityResult:
    """Losses of each stream, with and without end-of-text targets."""

    losses: tuple[StreamLoss, ...]
    gap: Estimate | None
    """Loss ablated minus loss clean, nats per token, all targets; None without an ablated stream."""
    unit: str
    """What is drawn with replacement for the intervals: stories or windows."""
    units: int
    floor: float | None = None
    """Nats a token that no model of the data can beat, where the data's own source is known."""

    def headline(self) -> tuple[Figure, ...]:
        """Perplexity of each stream and choice of targets, and what ablation costs."""
        ordered = sorted(self.losses, key=lambda loss: not loss.end_of_text)
        figures = [Figure(f"perplexity {loss.stream}{'' if loss.end_of_text else ' w/o eot'}", loss.perplexity,
                          better="down", range=stats.COUNT) for loss in ordered]
        if self.gap is not None:
            figures.append(Figure("loss ablated - clean", self.gap, "nats", "down"))
        return tuple(figures)

    def panels(self) -> tuple[Panel, ...]:
        """Bars of the perplexities and the table of losses behind them."""
        bars = tuple(Bar(_label(x), x.perplexity) for x in self.losses)
        rows: tuple[tuple[Any, ...], ...] = tuple((_label(x), x.loss, x.perplexity, x.tokens) for x in self.losses)
        caption = f"Whiskers: 95 % bootstrap interval over {self.units:,} {self.unit}."
        if self.floor is not None:
            rows += (("entropy of whole stories", self.floor, math.exp(self.floor), None),)
        return (
            Bars(title="Perplexity", caption=caption, bars=bars),
            Grid(title="Losses", caption="Nats per token, mean over the targets.", rows=rows,
                 columns=("stream, targets", "loss", "perplexity", "targets")),
        )


def evaluate(model: Any, params: Params, batches: Iterable[Batch], *, eot_id: int, seed: int = 0,
             floor: float | None = None) -> PerplexityResult:
    """Streams the split once and sums each story's losses.

    Args:
      model: a `SelfAblatingTransformer`.
      params: its parameters.
      batches: the split in file order (rows of a batch follow each other); see `Batch`.
      eot_id: token that ends a story. It is the last target of its story.
      seed: seed of the bootstrap (`stats.RESAMPLES` draws, percentile interval).
      floor: least possible loss, nats a token, for the report; None where it is not known.

    Returns:
      Losses per stream, over all targets and over those that are not end-of-text. Intervals come from drawing
      stories with replacement, or windows where there are fewer than `MIN_STORIES` stories.
    """
    names: tuple[str, ...] = ()
    stories: list[tuple[int, np.ndarray]] = []
    windows: list[tuple[int, np.ndarray]] = []
    story_id = window_id = 0
    for batch in batches:
        by_stream = token_losses(model, params, batch)
        names = tuple(name for name in STREAMS if name in by_stream)
        losses = [np.asarray(by_stream[name], np.float64) for name in names]
        targets, mask = np.asarray(batch["targets"]), np.asarray(batch["mask"]) > 0
        ends = (targets == eot_id) & mask
        story = np.cumsum(ends.ravel()).reshape(ends.shape) - ends  # a story's last target still belongs to it
        window = np.broadcast_to(np.arange(len(targets))[:, None], targets.shape)
        stories.append((story_id, _unit_sums(losses, story, ends, mask)))
        windows.append((window_id, _unit_sums(losses, window, ends, mask)))
        story_id, window_id = story_id + int(ends.sum()), window_id + len(windows[-1][1])
    by_story = _join(stories)
    unit, sums = ("stories", by_story) if len(by_story) >= MIN_STORIES else ("windows", _join(windows))
    return dataclasses.replace(_summarise(names, sums, unit, seed), floor=floor)


@functools.partial(jax.jit, static_argnames="model")
def token_losses(model: Any, params: Params, batch: Batch) -> dict[str, Float[Array, "batch time"]]:
    """Cross-entropy of each target in nats, float32, by stream: ``clean`` and, for gated models, ``ablated``."""
    out = model.apply({"params": params}, batch["inputs"])
    dtype = jnp.dtype(model.config.compute_dtype)
    table = params["embed"]["embedding"].astype(dtype)
    return {name: per_token_cross_entropy(x.astype(dtype), table, jnp.asarray(batch["targets"]))
            for name, x in final_states(out).items()}


def _unit_sums(losses: Sequence[np.ndarray], unit: np.ndarray, ends: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """[units of this batch, 2 + 2 * streams]: targets, end-of-text targets, and each stream's loss on both."""
    columns = [mask, ends, *(np.where(chosen, loss, 0) for loss in losses for chosen in (mask, ends))]
    sums = [np.bincount(unit[mask], weights=np.asarray(c, np.float64)[mask]) for c in columns]
    return np.stack(sums, axis=-1)


def _join(parts: list[tuple[int, np.ndarray]]) -> np.ndarray:
    """Adds the batches' units into one table; a story that goes on in the next batch is one unit."""
    total = np.zeros((max(at + len(x) for at, x in parts), parts[0][1].shape[-1]))
    for at, x in parts:
        total[at : at + len(x)] += x
    return total[total[:, 0] > 0]


def _summarise(names: tuple[str, ...], sums: np.ndarray, unit: str, seed: int) -> PerplexityResult:
    """Losses from sums by unit, see `_unit_sums`."""
    tokens, ends = sums[:, 0], sums[:, 1]
    losses = []
    for i, name in enumerate(names):
        every, at_ends = sums[:, 2 + 2 * i], sums[:, 3 + 2 * i]
        for end_of_text, total, count in ((True, every, tokens), (False, every - at_ends, tokens - ends)):
            loss, perplexity = (stats.ratio(total, count, seed=seed, transform=f) for f in (lambda x: x, _exp))
            losses.append(StreamLoss(stream=name, end_of_text=end_of_text, loss=loss, perplexity=perplexity,
                                     tokens=int(count.sum())))
    gap = None
    if "ablated" in names:
        clean, ablated = (sums[:, 2 + 2 * names.index(name)] for name in STREAMS)
        gap = stats.ratio(ablated - clean, tokens, seed=seed)
    return PerplexityResult(losses=tuple(losses), gap=gap, unit=unit, units=len(sums))


def _exp(loss: np.ndarray) -> np.ndarray:
    return np.exp(np.minimum(loss, 700.0))


def _label(loss: StreamLoss) -> str:
    return f"{loss.stream}, {'all' if loss.end_of_text else 'without end-of-text'}"


def _run(run: Run) -> tuple[PerplexityResult, dict[str, Any]]:
    floor = None if run.loss_floor is None else run.loss_floor()
    result = evaluate(run.model, run.params, run.splits["valid"].batches(), eot_id=run.tokenizer.eot_id,
                      seed=run.seed, floor=floor)
    return result, {"bootstrap_resamples": stats.RESAMPLES, "seed": run.seed, "unit": result.unit}


SUITE = Suite(name="perplexity", about="Cross-entropy of both streams on the whole validation split, in file order.",
              run=_run)
