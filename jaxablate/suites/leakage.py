"""Suite ``leakage``: does the gate itself carry the next token into the ablated stream? (docs/papers.md, Mask leakage)

Three views of the same question: the loss with gates or what they gate replaced, the bits that single gates tell, and
what a linear reader makes of all gates of a layer. What they measure is defined in `jaxablate.neurons`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxablate import stats
from jaxablate.models.decoder import output_matrix
from jaxablate.neurons import gate_information
from jaxablate.neurons.gate_information import frequent_tokens, probe_gates, unit_information
from jaxablate.neurons.leakage import KINDS, OF_ALL, Audit, GateSample, audit_gates, ngram_losses
from jaxablate.reports.panels import Bar, Bars, Grid, Panel
from jaxablate.reports.results import Figure
from jaxablate.runs.run import Run
from jaxablate.stats import FRACTION, Estimate
from jaxablate.suites.suite import Suite

LABELS = {
    "clean": "clean stream", "own": "own gates", "random": "random gates", "other": "another token's gates",
    "same": "gates of the same token elsewhere", "mask": "own gates over means",
    "mask_same": "gates of the same token elsewhere, over means", "mask_random": "random gates over means",
}
"""The replacements of `jaxablate.neurons.leakage`, for readers."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplacedLoss:
    """Loss under one replacement, nats a token."""

    name: str
    """Key of `LABELS`."""
    loss: Estimate
    rise: Estimate
    """Loss minus that with own gates, over the same tokens."""
    tokens: int
    """Fewer than all where gates come from another token of the same id: some have none in their batch."""


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

    @property
    def label(self) -> str:
        return "all layers" if self.layer is None else f"layer {self.layer}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bits:
    """What single gates tell."""

    layers: tuple[GateBits, ...]
    by_kind: tuple[tuple[str, Estimate], ...]
    """`GateBits.information` over the units of all layers of a kind."""
    frequent_tokens: int
    """Tokens of the sample whose id is frequent enough; the probe has these too."""
    sampled_tokens: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Probe:
    """What a linear reader makes of all gates."""

    rows: tuple[ProbeRow, ...]
    chosen: int
    """Row that was best on stories kept for that choice, neither learned from nor tested on."""
    token_loss: float
    """Loss of the current token alone, nats."""
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
        own = next(x for x in self.losses if x.name == "own")
        figures = [Figure("ablated loss", own.loss, unit="nats")]
        figures += [Figure(f"{LABELS[x.name]} - own", x.rise, unit="nats")
                    for x in self.losses if x.name in ("random", "other", "same")]
        figures += [Figure("share of mask alone", self.share, unit="fraction"),
                    Figure("share of mask alone beyond bigrams", self.share_beyond_bigram, unit="fraction"),
                    Figure("mask alone beyond token", self.beyond_token, unit="nats")]
        for kind in KINDS:
            rows = [x for x in self.bits.layers if x.kind == kind]
            telling = stats.proportion(sum(x.telling for x in rows), sum(x.units for x in rows))
            figures += [Figure(f"bits of a gate, {kind}", dict(self.bits.by_kind)[kind], unit="bits"),
                        Figure(f"telling gates, {kind}", telling, unit="fraction", range=FRACTION)]
        figures.append(Figure("probe of gates", self.probe.rows[self.probe.chosen].information, unit="nats"))
        return tuple(figures)

    def panels(self) -> tuple[Panel, ...]:
        """Losses as bars and table, bits and probe by layer."""
        bars = [Bar(LABELS[x.name], x.loss) for x in self.losses]
        bars += [Bar("bigram counts", self.bigram), Bar("unigram counts", self.unigram)]
        return (
            Bars(title="Loss with gates replaced", bars=tuple(bars), unit="nats",
                 caption="Cross-entropy of the ablated stream, nats a token, with 95 % bootstrap intervals over "
                         f"{self.stories:,} stories. Over means: what the gates multiply is its mean over the split, "
                         "so the mask alone depends on the context. Counts: of the split's other stories."),
            self._loss_table(), self._mask_bars(), self._bits_table(), self._probe_bars(), self._probe_table())

    def _loss_table(self) -> Grid:
        return Grid(title="Loss with gates replaced, in numbers",
                    rows=tuple((LABELS[x.name], x.loss, x.rise, x.tokens) for x in self.losses),
                    caption="Rise: above own gates over the same tokens, paired by story. Gates of the same token come "
                            "from another of the same id in the batch, where there is one.",
                    columns=("ablated stream with", "loss", "rise", "tokens"))

    def _mask_bars(self) -> Bars:
        bars = tuple(Bar(label, share) for label, share in (
            ("of the advantage over random gates over means", self.share),
            ("of the advantage over bigram counts", self.share_beyond_bigram)) if share.value is not None)
        return Bars(title="Share of the ablated stream's advantage that its mask alone brings", bars=bars, mark=1.0,
                    mark_label="all of it",
                    caption="Own gates over means, between own gates (1) and what the bar names (0). The model was "
                            "never trained to read its mask over means, so a share above 0 is what the mask holds at "
                            "least; random gates over means are far from anything it was trained on.")

    def _bits_table(self) -> Grid:
        rows = tuple((x.kind, x.layer, x.units, x.information, x.plug_in, x.null, x.entropy, x.telling / x.units)
                     for x in self.bits.layers)
        chance = 1 / (gate_information.SHUFFLES + 1)
        return Grid(title="Bits that one gate tells of the next token, given the current one", rows=rows,
                    caption="Mean over units, bias-corrected, with its bootstrap interval over units; "
                            f"{self.bits.frequent_tokens:,} of {self.bits.sampled_tokens:,} sampled tokens, whose id "
                            f"occurs {gate_information.MIN_COUNT} times or more. Null: next tokens shuffled within "
                            "each current token. Most possible: the gate's entropy given the current token. Telling: "
                            f"share of units above all {gate_information.SHUFFLES} shuffles, {chance:g} by chance.",
                    columns=("kind", "layer", "units", "bits", "uncorrected", "null", "most possible", "telling"))

    def _probe_bars(self) -> Bars:
        bars = [Bar(f"{x.label}{suffix}", y) for x in self.probe.rows
                for suffix, y in (("", x.gain), (", control", x.control))]
        return Bars(title="What a linear reader gains from the gates", unit="nats", bars=tuple(bars),
                    caption="Fall of the loss of the next token below that of the current token alone, held-out "
                            "stories. Control: gates of another token of the same id.")

    def _probe_table(self) -> Grid:
        p = self.probe
        return Grid(title="What a linear reader gains, in numbers",
                    rows=tuple((x.label, x.gain, x.control, x.information) for x in p.rows),
                    caption=f"Nats a token; learned on {p.train_tokens:,} tokens, tested on {p.test_tokens:,} of other "
                            f"stories; 95 % bootstrap intervals over these stories. Loss of the current token alone: "
                            f"{p.token_loss:.3f}. Rare next tokens, {p.rare:.1%}, are one class. The headline is that "
                            f"of {p.rows[p.chosen].label}, chosen on stories apart from the test.",
                    columns=("gates of", "gain", "control", "beyond both"))


def evaluate(audit: Audit, table: np.ndarray, *, vocab_size: int, seed: int = 0) -> LeakageResult:
    """Everything that follows from an audit and the model's output matrix [V, D].

    Raises:
      DataError: too few tokens for one of the measures.
    """
    sample = frequent_tokens(audit.sample)
    sums, tokens = audit.story_sums, len(audit.story)
    unigram, bigram = (np.bincount(audit.story, weights=x)
                       for x in ngram_losses(audit.current, audit.following, audit.story, vocab_size))
    return LeakageResult(
        losses=_losses(sums, seed), unigram=float(unigram.sum() / tokens), bigram=float(bigram.sum() / tokens),
        share=_share(sums, sums["mask_random"], seed), share_beyond_bigram=_share(sums, bigram, seed),
        beyond_token=_mean(sums["mask_same, paired"] - sums["mask, paired"], sums["paired"], seed),
        bits=_bits(sample, len(audit.sample.current), seed), probe=_probe(sample, table, seed), stories=len(unigram))


def _losses(sums: Mapping[str, np.ndarray], seed: int) -> tuple[ReplacedLoss, ...]:
    """Every replacement, in the order of `LABELS`."""
    result = []
    for name in LABELS:
        columns = (name, "own", "tokens") if name in OF_ALL else (f"{name}, paired", "own, paired", "paired")
        loss, own, count = (sums[column] for column in columns)
        rise = Estimate(0.0) if name == "own" else _mean(loss - own, count, seed)
        result.append(ReplacedLoss(name=name, loss=_mean(loss, count, seed), rise=rise, tokens=int(count.sum())))
    return tuple(result)


def _share(sums: Mapping[str, np.ndarray], worst: np.ndarray, seed: int) -> Estimate:
    """(worst - mask) / (worst - own) of losses by story; None where the worst is no worse than own gates."""
    mask, own = sums["mask"], sums["own"]
    return Estimate(None) if worst.sum() <= own.sum() else stats.ratio(worst - mask, worst - own, seed=seed)


def _mean(values: np.ndarray, counts: np.ndarray, seed: int) -> Estimate:
    """Ratio of two sums over stories; stories are resampled, those without any count left out."""
    there = counts > 0
    return stats.ratio(values[there], counts[there], seed=seed) if there.any() else Estimate(None)


def _bits(sample: GateSample, sampled: int, seed: int) -> Bits:
    units = [unit_information(sample, kind, layer, shuffles=gate_information.SHUFFLES, seed=seed)
             for kind in KINDS for layer in range(sample.layers)]
    layers = tuple(
        GateBits(kind=x.kind, layer=x.layer, units=len(x.plug_in), information=stats.mean(x.information, seed=seed),
                 plug_in=float(x.plug_in.mean()), null=float(x.null.mean()), entropy=float(x.entropy.mean()),
                 telling=int(x.telling.sum())) for x in units)
    by_kind = tuple((kind, stats.mean(np.concatenate([x.information for x in units if x.kind == kind]), seed=seed))
                    for kind in KINDS)
    return Bits(layers=layers, by_kind=by_kind, frequent_tokens=len(sample.current), sampled_tokens=sampled)


def _probe(sample: GateSample, table: np.ndarray, seed: int) -> Probe:
    losses = probe_gates(sample, table, seed=seed)
    counts, token = losses.story_sums[:, 0], losses.story_sums[:, 1]
    own, control = np.split(losses.story_sums[:, 2:], 2, axis=1)
    rows = tuple(
        ProbeRow(layer=layer, gain=_mean(token - own[:, i], counts, seed),
                 control=_mean(token - control[:, i], counts, seed),
                 information=_mean(min(token, control[:, i], key=np.sum) - own[:, i], counts, seed))
        for i, layer in enumerate((*range(losses.layers), None)))
    return Probe(rows=rows, chosen=losses.chosen, token_loss=float(token.sum() / counts.sum()),
                 train_tokens=losses.train_tokens, test_tokens=losses.test_tokens, rare=losses.rare)


def _run(run: Run) -> tuple[LeakageResult, dict[str, Any]]:
    audit = audit_gates(run.model, run.params, run.splits["valid"].batches, seed=run.seed)
    result = evaluate(audit, np.asarray(output_matrix(run.model.config, run.params)),
                      vocab_size=run.config.model.vocab_size, seed=run.seed)
    return result, {"seed": run.seed, "bootstrap_resamples": stats.RESAMPLES, "tokens": len(audit.story),
                    "sampled_tokens": result.bits.sampled_tokens,
                    "shuffles": gate_information.SHUFFLES, "least_count": gate_information.MIN_COUNT,
                    "probe_epochs": gate_information.GATES_EPOCHS, "probe_classes": gate_information.CLASSES}


SUITE = Suite(name="leakage", run=_run,
              unfit=lambda config: None if config.model.gated else "the model has no gates (model.ablation='none')",
              about="Whether gates themselves carry the next token: losses with gates or contents replaced, bits of "
                    "single gates, a linear probe of all.")
