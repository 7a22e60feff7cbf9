"""Perplexity of both streams over the whole validation split, with an interval over stories."""

import dataclasses
import functools
import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxablate import stats
from jaxablate.models.decoder import output_matrix
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
    """Losses of a split per stream, over all targets and over those that are not end-of-text.

    Intervals come from drawing stories with replacement, or windows where there are fewer than `MIN_STORIES` stories
    (`stats.RESAMPLES` draws, percentile interval). The batches are the split once, with the ``story`` of each target;
    ``eot_id`` is the last target of its story. ``floor`` is the least possible loss, nats a token, where it is known.
    """
    streams: tuple[str, ...] = ()
    parts = []
    for batch in batches:
        by_stream = token_losses(model, params, batch)
        streams = tuple(name for name in STREAMS if name in by_stream)
        seen = np.asarray(batch["mask"]) > 0
        losses = np.stack([np.asarray(by_stream[name])[seen] for name in streams])
        ends = np.asarray(batch["targets"])[seen] == eot_id
        parts.append((ends, np.asarray(batch["story"])[seen], seen.sum(1), losses))
    ends, story, per_window, losses = (np.concatenate(part, axis=-1) for part in zip(*parts, strict=True))
    names, of_unit = np.unique(story, return_inverse=True)
    unit = "stories"
    if len(names) < MIN_STORIES:
        unit, of_unit = "windows", np.repeat(np.cumsum(per_window > 0) - 1, per_window)
    total = functools.partial(np.bincount, of_unit)  # weights of all targets -> their sum in each unit
    table = []
    for name, loss in zip(streams, losses, strict=True):
        for end_of_text, counted in ((True, np.ones_like(ends)), (False, ~ends)):
            nats, tokens = total(np.where(counted, loss, 0)), total(counted)
            table.append(StreamLoss(
                stream=name, end_of_text=end_of_text, loss=stats.ratio(nats, tokens, seed=seed),
                perplexity=stats.ratio(nats, tokens, seed=seed, transform=lambda x: np.exp(np.minimum(x, 700.0))),
                tokens=int(counted.sum())))
    targets = total(np.ones_like(ends))
    gap = None
    if "ablated" in streams:
        clean, ablated = (total(losses[streams.index(name)]) for name in STREAMS)
        gap = stats.ratio(ablated - clean, targets, seed=seed)
    return PerplexityResult(losses=tuple(table), gap=gap, unit=unit, units=len(targets), floor=floor)


@functools.partial(jax.jit, static_argnames="model")
def token_losses(model: Any, params: Params, batch: Batch) -> dict[str, Float[Array, "batch time"]]:
    """Cross-entropy of each target in nats, float32, by stream: ``clean`` and, for gated models, ``ablated``."""
    out = model.apply({"params": params}, batch["inputs"])
    dtype = jnp.dtype(model.config.compute_dtype)
    matrix = output_matrix(model.config, params).astype(dtype)
    targets, cap = jnp.asarray(batch["targets"]), model.config.logit_cap
    return {name: per_token_cross_entropy(x.astype(dtype), matrix, targets, cap=cap)
            for name, x in final_states(out).items()}


def _label(loss: StreamLoss) -> str:
    return f"{loss.stream}, {'all' if loss.end_of_text else 'without end-of-text'}"


def _run(run: Run) -> tuple[PerplexityResult, dict[str, Any]]:
    floor = None if run.loss_floor is None else run.loss_floor()
    result = evaluate(run.model, run.params, run.splits["valid"].batches(), eot_id=run.tokenizer.eot_id,
                      seed=run.seed, floor=floor)
    return result, {"bootstrap_resamples": stats.RESAMPLES, "seed": run.seed, "unit": result.unit}


SUITE = Suite(name="perplexity", about="Cross-entropy of both streams on the whole validation split, in file order.",
              run=_run)
