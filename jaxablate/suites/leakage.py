"""Suite ``leakage``: does the gate itself carry the next token into the ablated stream? (docs/papers.md, Mask leakage)

Three views of the same question: the loss with gates or what they gate replaced, the bits that single gates tell, and
what a linear reader makes of all gates of a layer. What they measure is defined in `jaxablate.neurons`.
"""

import dataclasses
from typing import Any

import numpy as np

from jaxablate import stats
from jaxablate.config import Config
from jaxablate.intervals_old import (
    RESAMPLES,
    both_ends,
    mean_interval,
    percentile_interval,
    ratio_resamples,
    wilson,
)
from jaxablate.neurons import gate_information as information
from jaxablate.neurons import leakage as replaced
from jaxablate.neurons import ngrams
from jaxablate.neurons import probe as probes
from jaxablate.neurons.leakage import COLUMNS, KINDS, Audit, GateSample
from jaxablate.reports.panels import Bar, Bars, Grid, Panel
from jaxablate.reports.results import Figure
from jaxablate.runs.run import Run
from jaxablate.suites.suite import Suite

Interval = tuple[float, float] | None

LABELS = {
    "clean": "clean stream", "own": "own gates", "random": "random gates", "other": "another token's gates",
    "same": "gates of the same token elsewhere", "mask": "own gates over means",
    "mask_same": "gates of the same token elsewhere, over means", "mask_random": "random gates over means",
}
"""Of `replaced.OF_ALL` and `replaced.OF_PAIRED`, for readers."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplacedLoss:
    """Loss under one replacement, nats a token."""

    name: str
    """Key of `LABELS`."""
    loss: float
    interval: Interval
    rise: float
    """Loss minus that with own gates, over the same tokens."""
    rise_interval: Interval
    tokens: int
    """Fewer than all where gates come from another token of the same id: some have none in their batch."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with its 95 % interval."""

    value: float | None
    interval: Interval


@dataclasses.dataclass(frozen=True, kw_only=True)
class GateBits:
    """Units of one kind and layer: means over units, bits."""

    kind: str
    layer: int
    units: int
    information: Estimate
    """I(g; next | current), bias-corrected; interval over units."""
    plug_in: float
    null: float
    """What `plug_in` is, on average, with next tokens shuffled."""
    entropy: float
    """H(g | current)."""
    telling: int
    """Units above all shuffles."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeRow:
    """What a linear reader of one layer's gates (or of all layers', layer None) gains on held-out stories, nats."""

    layer: int | None
    gain: Estimate
    """Over the current token alone."""
    control: Estimate
    """The same with the gates of another token of the same id."""
    information: Estimate
    """Over the better of the current token alone and the control."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bits:
    """What single gates tell."""

    layers: tuple[GateBits, ...]
    by_kind: tuple[tuple[str, Estimate], ...]
    """`GateBits.information` over the units of all layers of a kind."""
    frequent_tokens: int
    """Of the sample, those whose id is frequent enough; the probe has these too."""
    sampled_tokens: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Probe:
    """What a linear reader makes of all gates."""

    rows: tuple[ProbeRow, ...]
    chosen: int
    """Row that was best on stories kept for that choice, neither learned from nor tested on."""
    token_loss: float
    """Of the current token alone, nats."""
    train_tokens: int
    test_tokens: int
    rare: float
    """Share of the test's next tokens that are in the class of rare ones."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeakageResult:
    """The whole audit."""

    losses: tuple[ReplacedLoss, ...]
    unigram: float
    bigram: float
    """Losses of counts over the other stories of the split, nats a token."""
    share: Estimate
    """(mask_random - mask) / (mask_random - own): part of the ablated stream's advantage that the mask alone brings."""
    share_beyond_bigram: Estimate
    """(bigram - mask) / (bigram - own): the same beyond what counts of pairs know. No part of the model was trained to
    read its mask over means, so what the mask holds may be more."""
    beyond_token: Estimate
    """mask_same - mask, nats: what the mask alone says of the next token beyond what the current token says."""
    bits: Bits
    probe: Probe
    stories: int

    def headline(self) -> tuple[Figure, ...]:
        """What replacing costs, what the mask alone brings, what gates tell."""
        rises = tuple(_figure(f"{LABELS[x.name]} - own", Estimate(value=x.rise, interval=x.rise_interval), "nats")
                      for x in self.losses if x.name in ("random", "other", "same"))
        own = next(x for x in self.losses if x.name == "own")
        return (_figure("ablated loss", Estimate(value=own.loss, interval=own.interval), "nats"), *rises,
                _figure("share of mask alone", self.share, "fraction"),
                _figure("share of mask alone beyond bigrams", self.share_beyond_bigram, "fraction"),
                _figure("mask alone beyond token", self.beyond_token, "nats"),
                *(figure for kind in KINDS for figure in self._bits(kind)),
                _figure("probe of gates", self.probe.rows[self.probe.chosen].information, "nats"))

    def _bits(self, kind: str) -> tuple[Figure, Figure]:
        rows = [x for x in self.bits.layers if x.kind == kind]
        units, telling = sum(x.units for x in rows), sum(x.telling for x in rows)
        return (_figure(f"bits of a gate, {kind}", dict(self.bits.by_kind)[kind], "bits"),
                _figure(f"telling gates, {kind}", Estimate(value=telling / units, interval=wilson(telling, units)),
                        "fraction"))

    def panels(self) -> tuple[Panel, ...]:
        """Losses as bars and table, bits and probe by layer."""
        bars = [Bar(LABELS[x.name], stats.Estimate(x.loss, *both_ends(x.interval))) for x in self.losses]
        bars += [Bar("bigram counts", self.bigram), Bar("unigram counts", self.unigram)]
        return (
            Bars(title="Loss with gates replaced", bars=tuple(bars), unit="nats",
                 caption="Cross-entropy of the ablated stream, nats a token, with 95 % bootstrap intervals over "
                         f"{self.stories:,} stories. Over means: what the gates multiply is its mean over the split, "
                         "so the mask alone depends on the context. Counts: of the split's other stories."),
            self._loss_table(), self._mask_bars(), self._bits_table(), self._probe_bars(), self._probe_table())

    def _loss_table(self) -> Grid:
        rows = tuple((LABELS[x.name], x.loss, *both_ends(x.interval), x.rise, *both_ends(x.rise_interval), x.tokens)
                     for x in self.losses)
        return Grid(title="Loss with gates replaced, in numbers", rows=rows,
                    caption="Rise: above own gates over the same tokens, paired by story. Gates of the same token come "
                            "from another of the same id in the batch, where there is one.",
                    columns=("ablated stream with", "loss", "95 % from", "to", "rise", "95 % from", "to", "tokens"))

    def _mask_bars(self) -> Bars:
        bars = tuple(Bar(label, stats.Estimate(x.value, *both_ends(x.interval)))
                     for label, x in (("of the advantage over random gates over means", self.share),
                                      ("of the advantage over bigram counts", self.share_beyond_bigram))
                     if x.value is not None)
        return Bars(title="Share of the ablated stream's advantage that its mask alone brings", bars=bars, mark=1.0,
                    mark_label="all of it",
                    caption="Own gates over means, between own gates (1) and what the bar names (0). The model was "
                            "never trained to read its mask over means, so a share above 0 is what the mask holds at "
                            "least; random gates over means are far from anything it was trained on.")

    def _bits_table(self) -> Grid:
        rows = tuple((x.kind, x.layer, x.units, x.information.value, *both_ends(x.information.interval), x.plug_in,
                      x.null, x.entropy, x.telling / x.units) for x in self.bits.layers)
        chance = 1 / (information.SHUFFLES + 1)
        return Grid(title="Bits that one gate tells of the next token, given the current one", rows=rows,
                    caption="Mean over units, bias-corrected, with its bootstrap interval over units; "
                            f"{self.bits.frequent_tokens:,} of {self.bits.sampled_tokens:,} sampled tokens, whose id "
                            f"occurs {information.MIN_COUNT} times or more. Null: next tokens shuffled within each "
                            "current token. Most possible: the gate's entropy given the current token. Telling: share "
                            f"of units above all {information.SHUFFLES} shuffles, {chance:g} by chance.",
                    columns=("kind", "layer", "units", "bits", "95 % from", "to", "uncorrected", "null",
                             "most possible", "telling"))

    def _probe_bars(self) -> Bars:
        bars = [Bar(f"{_layer(x)}{suffix}", stats.Estimate(y.value, *both_ends(y.interval)))
                for x in self.probe.rows for suffix, y in (("", x.gain), (", control", x.control))]
        return Bars(title="What a linear reader gains from the gates", unit="nats", bars=tuple(bars),
                    caption="Fall of the loss of the next token below that of the current token alone, held-out "
                            "stories. Control: gates of another token of the same id.")

    def _probe_table(self) -> Grid:
        p = self.probe
        rows = tuple((_layer(x), *_numbers(x.gain), *_numbers(x.control), *_numbers(x.information)) for x in p.rows)
        return Grid(title="What a linear reader gains, in numbers", rows=rows,
                    caption=f"Nats a token; learned on {p.train_tokens:,} tokens, tested on {p.test_tokens:,} of other "
                            f"stories; 95 % bootstrap intervals over these stories. Loss of the current token alone: "
                            f"{p.token_loss:.3f}. Rare next tokens, {p.rare:.1%}, are one class. The headline is that "
                            f"of {_layer(p.rows[p.chosen])}, chosen on stories apart from the test.",
                    columns=("gates of", "gain", "95 % from", "to", "control", "95 % from", "to", "beyond both",
                             "95 % from", "to"))


def evaluate(audit: Audit, table: np.ndarray, *, vocab_size: int, seed: int = 0) -> LeakageResult:
    """Everything that follows from an audit.

    Args:
      audit: of `jaxablate.neurons.leakage.audit_gates`.
      table: [V, D] the model's output matrix, for the probe.
      vocab_size: V, for the losses of counts.
      seed: of resampling, shuffling and the probe.

    Raises:
      DataError: too few tokens for one of the measures.
    """
    sample = information.frequent_tokens(audit.sample)
    sums, tokens = audit.story_sums, len(audit.story)
    unigram, bigram = _ngram_sums(audit, vocab_size)
    return LeakageResult(
        losses=_losses(sums, seed), unigram=float(unigram.sum() / tokens), bigram=float(bigram.sum() / tokens),
        share=_share(sums, _column(sums, "mask_random"), seed), share_beyond_bigram=_share(sums, bigram, seed),
        beyond_token=_difference(sums, "mask_same, paired", "mask, paired", "paired", seed),
        bits=_bits(sample, len(audit.sample.current), seed), probe=_probe(sample, table, seed), stories=len(sums))


def _ngram_sums(audit: Audit, vocab_size: int) -> list[np.ndarray]:
    """Unigram and bigram losses of each story, in the order of `Audit.story_sums`."""
    story = np.unique(audit.story, return_inverse=True)[1]
    losses = ngrams.ngram_losses(audit.current, audit.following, audit.story, vocab_size)
    return [np.bincount(story, weights=x) for x in losses]


def _losses(sums: np.ndarray, seed: int) -> tuple[ReplacedLoss, ...]:
    """Every replacement, in the order of `LABELS`."""
    out = []
    for name in LABELS:
        paired = name not in replaced.OF_ALL
        column, own, count = (f"{name}, paired", "own, paired", "paired") if paired else (name, "own", "tokens")
        loss, rise = _difference(sums, column, None, count, seed), _difference(sums, column, own, count, seed)
        out.append(ReplacedLoss(name=name, loss=loss.value, interval=loss.interval, rise=rise.value,
                                rise_interval=None if name == "own" else rise.interval,
                                tokens=int(_column(sums, count).sum())))
    return tuple(out)


def _share(sums: np.ndarray, worst: np.ndarray, seed: int) -> Estimate:
    """(worst - mask) / (worst - own) of losses by story; None where the worst is no worse than own gates."""
    mask, own = (_column(sums, name) for name in ("mask", "own"))
    if worst.sum() <= own.sum():
        return Estimate(value=None, interval=None)
    return Estimate(value=float((worst - mask).sum() / (worst - own).sum()),
                    interval=percentile_interval(ratio_resamples(worst - mask, worst - own, seed=seed)))


def _difference(sums: np.ndarray, first: str, second: str | None, count: str, seed: int) -> Estimate:
    """Mean of a column, or of the difference of two, over the tokens that ``count`` counts; stories are resampled."""
    values = _column(sums, first) - (0 if second is None else _column(sums, second))
    return _mean(values, _column(sums, count), seed)


def _mean(values: np.ndarray, counts: np.ndarray, seed: int) -> Estimate:
    """Ratio of two sums over stories with its bootstrap interval; stories without any count are left out."""
    values, counts = values[counts > 0], counts[counts > 0]
    if not counts.size:
        return Estimate(value=None, interval=None)
    draws = ratio_resamples(values, counts, seed=seed)
    return Estimate(value=float(values.sum() / counts.sum()), interval=percentile_interval(draws))


def _column(sums: np.ndarray, name: str) -> np.ndarray:
    return sums[:, COLUMNS.index(name)]


def _bits(sample: GateSample, sampled: int, seed: int) -> Bits:
    units = [information.unit_information(sample, kind, layer, shuffles=information.SHUFFLES, seed=seed)
             for kind in KINDS for layer in range(sample.layers)]
    by_kind = {kind: np.concatenate([x.information for x in units if x.kind == kind]) for kind in KINDS}
    return Bits(layers=tuple(_layer_bits(x, seed) for x in units), frequent_tokens=len(sample.current),
                by_kind=tuple((kind, _over_units(x, seed)) for kind, x in by_kind.items()), sampled_tokens=sampled)


def _layer_bits(x: information.UnitInformation, seed: int) -> GateBits:
    return GateBits(kind=x.kind, layer=x.layer, units=len(x.plug_in), information=_over_units(x.information, seed),
                    plug_in=float(x.plug_in.mean()), null=float(x.null.mean()), entropy=float(x.entropy.mean()),
                    telling=int(x.telling.sum()))


def _over_units(values: np.ndarray, seed: int) -> Estimate:
    return Estimate(value=float(values.mean()), interval=mean_interval(values, seed=seed))


def _probe(sample: GateSample, table: np.ndarray, seed: int) -> Probe:
    found = probes.probe_gates(sample, table, seed=seed)
    counts, token = found.story_sums[:, 0], found.story_sums[:, 1]
    own, control = np.split(found.story_sums[:, 2:], 2, axis=1)
    rows = tuple(
        ProbeRow(layer=layer, gain=_mean(token - own[:, i], counts, seed),
                 control=_mean(token - control[:, i], counts, seed),
                 information=_mean(min(token, control[:, i], key=np.sum) - own[:, i], counts, seed))
        for i, layer in enumerate((*range(found.layers), None)))
    return Probe(rows=rows, chosen=found.chosen, token_loss=float(token.sum() / counts.sum()),
                 train_tokens=found.train_tokens, test_tokens=found.test_tokens, rare=found.rare)


def _layer(row: ProbeRow) -> str:
    return "all layers" if row.layer is None else f"layer {row.layer}"


def _numbers(estimate: Estimate) -> tuple[float | None, float | None, float | None]:
    return (estimate.value, *both_ends(estimate.interval))


def _figure(name: str, estimate: Estimate, unit: str) -> Figure:
    return Figure(name, stats.Estimate(estimate.value, *both_ends(estimate.interval)), unit)


def _unfit(config: Config) -> str | None:
    return None if config.model.gated else "the model has no gates (model.ablation='none')"


def _run(run: Run) -> tuple[LeakageResult, dict[str, Any]]:
    audit = replaced.audit_gates(run.model, run.params, run.splits["valid"].batches, eot_id=run.tokenizer.eot_id,
                           seed=run.seed)
    result = evaluate(audit, np.asarray(run.params["embed"]["embedding"]),
                      vocab_size=run.config.model.vocab_size, seed=run.seed)
    return result, {"seed": run.seed, "bootstrap_resamples": RESAMPLES, "tokens": len(audit.story),
                    "sampled_tokens": result.bits.sampled_tokens,
                    "shuffles": information.SHUFFLES, "least_count": information.MIN_COUNT,
                    "probe_epochs": probes.GATES_EPOCHS, "probe_classes": probes.CLASSES}


SUITE = Suite(name="leakage", run=_run, unfit=_unfit,
              about="Whether gates themselves carry the next token: losses with gates or contents replaced, bits of "
                    "single gates, a linear probe of all.")
