"""Texts as a model reads them, token by token: the data of the explorer's view of texts, without the model.

`LanguageTexts` is made by the suite ``texts``, `ClassifiedTexts` by ``explanations``. Tokens are places in a vocabulary
of those that occur. Axes: T tokens of a text, L layers, N heads, F neurons and U attention channels of a layer, k
winners, C candidates for the next token.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from jaxablate.reports.packed import Packed

NONE = 65_535
"""Stands where there is no winner, latent or following token: no unit or token has this number."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The tokens that occur in the texts or are held likely there."""

    strings: tuple[str, ...]
    """Each as its tokenizer decodes it alone; a part of a character is U+FFFD. May hold anything."""
    ids: Packed
    """int32, the tokenizer's id of each."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predictions:
    """What each stream holds likely after every token."""

    tokens: Packed
    """uint16 or int32 [T, C]: the token that does follow (where it is known), then those that some stream holds most
    likely, by falling probability in the stream that holds it likelier."""
    probabilities: Mapping[str, Packed]
    """By stream uint16 [T, C] of each candidate."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Winners:
    """Units of one kind whose gate is open."""

    units: Packed
    """uint16 [L, T, k], the unit that lets most through first; `NONE` where there are fewer."""
    gates: Packed
    """uint8 [L, T, k], in [0, 1]; 1 for hard gates."""
    values: Packed
    """int8 [L, T, k]: what passes, the ablated stream's activation times the gate."""
    open: Packed
    """uint16 [L, T], how many gates are open, those included that are not listed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Activations:
    """Every unit of one kind in the clean stream."""

    values: Packed
    """int8 [L, T, F], as a share of the unit's largest size in this text."""
    largest: Packed
    """float32 [L, F], that size."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Latents:
    """The strongest latents of one autoencoder."""

    autoencoder: int
    """Its place in `LanguageTexts.autoencoders`."""
    units: Packed
    """uint16 [T, m] by falling activation; `NONE` where fewer are active."""
    values: Packed
    """uint16 [T, m] activations."""
    active: Packed
    """uint16 [T], how many are active, those included that are not listed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Autoencoder:
    """A sparse autoencoder of the run."""

    name: str
    """Name of the folder that the autoencoder is stored in."""
    site: str
    latents: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageText:
    """One text as a language model reads it.

    Losses and leakage stand at the token that is predicted, everything else at the token that is read.
    """

    title: str
    about: str
    """What text it is, in one sentence."""
    kind: Literal["story", "prompt"]
    story: int | None
    """Its number in the validation split."""
    tokens: Packed
    """uint16 or int32 [T]."""
    following: int | None
    """The token after the last one, or the right answer of a prompt."""
    loss: Mapping[str, Packed]
    """By stream float32 [T], nats; NaN of the first token, which nothing predicts."""
    predictions: Predictions
    leakage: Packed | None
    """float32 [T], nats: by how much less this token costs the ablated stream if it is told only which gates are open,
    than with gates at random; NaN of the first token. None without gates or where the split is too short."""
    winners: Mapping[str, Winners] | None
    """By kind, ``neurons`` and ``channels``; None without gates."""
    latents: tuple[Latents, ...]
    activations: Mapping[str, Activations] | None
    """By kind; None where the text is among those that are stored without, to keep the file small."""
    attention: Mapping[str, Packed] | None
    """By stream uint8 [L, N, T (T + 1) / 2]: rows of the lower triangle, the weight of key j for query i at
    i (i + 1) / 2 + j. None as for activations."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageTexts:
    """Texts of one checkpoint of a language model."""

    params_digest: str
    step: int
    streams: tuple[str, ...]
    n_layers: int
    n_heads: int
    n_neurons: int
    """Neurons of one layer."""
    n_channels: int
    """Attention channels of one layer: head h has n_channels / n_heads of them, one after another."""
    vocabulary: Vocabulary
    autoencoders: tuple[Autoencoder, ...]
    texts: tuple[LanguageText, ...]
    kind: Literal["language"] = "language"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """One text in one layer and stream of a classifier."""

    layer: int
    stream: str
    capacity: Packed
    """float32 [T], of each token's neurons: 1 for a token that shares no direction, 1 / m where m tokens have the
    same."""
    owned: Packed
    """uint16 [T], active neurons that no other token drives more."""
    active: Packed
    """uint16 [T], neurons that the token drives at all."""
    active_neurons: int
    """Neurons that some token drives."""
    neurons: Packed
    """uint16 [n], those that reach highest, ordered by the token that drives them most."""
    activations: Packed
    """uint8 [T, n], of these neurons."""
    alignment: Packed
    """uint8 [T, T], absolute cosine of two tokens' neurons: how far they share them."""
    attention: Packed
    """uint8 [N, T, T], a row for each query."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifiedText:
    """One text as a classifier reads it."""

    title: str
    about: str
    text: int | None
    """Its number in the split; None of a typed one."""
    tokens: Packed
    """uint16 or int32 [T]."""
    label: int | None
    """The right class; None where nobody has said it."""
    probabilities: Mapping[str, tuple[float, ...]]
    """By stream, of each class."""
    keep: Packed | None
    """float32 [T], probability that VMASK keeps the token; None without VMASK."""
    gradient: Mapping[str, Packed]
    """By stream float32 [T], gradient x input: how the log-probability of the predicted class changes with the size of
    the token's embedding."""
    readings: tuple[Reading, ...]
    """One reading for every layer and stream."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifiedTexts:
    """Texts of one checkpoint of a text classifier."""

    params_digest: str
    step: int
    streams: tuple[str, ...]
    n_layers: int
    n_heads: int
    n_neurons: int
    classes: tuple[str, ...]
    vocabulary: Vocabulary
    """Words; one that the model does not know stands in ‹ ›."""
    texts: tuple[ClassifiedText, ...]
    kind: Literal["classification"] = "classification"
