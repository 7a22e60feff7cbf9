"""Neurons, attention channels, gates and latents of autoencoders, each with what a page about it shows: the data of the
explorer's view of units, made by the suite ``units``.

Tokens are places in a vocabulary of those that occur. Units are numbered through all groups, in their order. Axes: U
units of a group, C places a unit, W tokens around a place.
"""

import dataclasses
from typing import Literal

from jaxablate.reports.packed import Packed

UnitSort = Literal["neuron", "channel", "neuron gate", "channel gate", "latent"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnitMeasure:
    """A measure of every unit of a group, beside what it is by chance; NaN where a unit does not have it."""

    name: str
    """Name of the measure in results.json, for example ``information``."""
    label: str
    """Heading of the measure in tables, with its unit."""
    values: Packed
    """float32 [U]."""
    shuffled: Packed | None
    """float32 [U], expected of each unit if tokens were shuffled; None where that leaves the measure as it is, or is
    subtracted from it already."""
    directions: Packed | None
    """float32 [U], of random directions of the unit's space that fire as often."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenEffects:
    """The tokens whose logits change most when a unit's activation rises by 1, by what it writes into the residual
    stream itself: the final norm's scale and the output matrix, without what later layers make of it."""

    tokens: Packed
    """[U, 8]."""
    effects: Packed
    """float [U, 8], falling in size; less the mean over the vocabulary, and without the final norm's division."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraphPattern:
    """One pattern of a neuron's graph."""

    tokens: tuple[tuple[int, ...] | None, ...]
    """Tokens that may stand at each place, read back from where the neuron fires; None for any."""
    more: tuple[int, ...]
    """How many others may stand at each place."""
    strength: float
    """Activation of its strongest example as a share of the neuron's maximum."""
    examples: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnitGraph:
    """The graph that ``jaxablate neurons`` made of a unit (Neuron to Graph), and how well it tells where it fires."""

    unit: int
    """Its number in the group."""
    f1: float | None
    precision: float | None
    recall: float | None
    patterns: tuple[GraphPattern, ...]
    """The strongest ones."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Units:
    """The units of one kind in one layer, or the latents of one autoencoder."""

    name: str
    """Name of the group in links, for example ``neuron-3``."""
    sort: UnitSort
    title: str
    site: str
    """Where its values are: a name of a site of the model."""
    layer: int
    first: int
    """Number of its first unit among those of all groups."""
    n: int
    signed: bool
    """Whether units have no preferred sign, so that large negative values count as firing."""
    sparse: bool
    """Whether zeros are left out of histograms."""
    rate: Packed
    """float32 [U], share of tokens on which each fires."""
    threshold: Packed
    """float32 [U], above which each fires."""
    low: Packed
    """float32 [U], where histograms begin."""
    high: Packed
    """float32 [U], greatest value."""
    strongest: Packed
    """float32 [U], greatest value, or greatest size of a signed one; 0 of a unit that is never active."""
    histogram: Packed
    """int32 [U, bins], tokens by value in equal bins from low to high."""
    places: Packed
    """int32 [U, C], window * length + position in the text: the strongest ones first, then weaker ones; -1 for none."""
    around: Packed
    """int8 [U, C, W], values around each place as a share of the strongest; 0 beyond the story and the window."""
    firing_tokens: Packed
    """[U, 8], tokens on which most of its firings are; -1 for all rare ones together and for none."""
    firing_shares: Packed
    """[U, 8], what share of its firings is on each."""
    firing_rates: Packed
    """[U, 8], on what share of the token's occurrences it fires."""
    promotes: TokenEffects | None
    suppresses: TokenEffects | None
    partners: Packed
    """int32 [U, P], numbers among all units; -1 for none."""
    correlations: Packed
    """[U, P]."""
    measures: tuple[UnitMeasure, ...]
    graphs: tuple[UnitGraph, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnitsData:
    """All units of a model, over the first tokens of the validation split."""

    params_digest: str
    step: int
    vocabulary: tuple[str, ...]
    """Each as its tokenizer decodes it alone; a part of a character is U+FFFD. May hold anything."""
    end: int | None
    """The token that ends a story."""
    text: Packed
    """[windows, length], the text that was read."""
    tokens: int
    """How many of them count."""
    sampled: int
    """Tokens on which correlations are taken."""
    before: int
    """Tokens that are shown before a place."""
    strongest: int
    """How many of a unit's places are its strongest; the others are weaker ones."""
    groups: tuple[Units, ...]
    left_out: str
    """What was left out for its size; empty where nothing was."""
