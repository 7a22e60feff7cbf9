"""Does a gate carry the next token? The ablated stream's loss with its gates, or what they gate, replaced.

A gate is computed from the clean stream, which knows the context. It may choose units that compute something useful,
or its mask may itself be a message. These losses of the ablated stream tell one from the other
(docs/papers.md, Mask leakage):

    own           as trained
    random        each token has a random k-subset of the units of a layer
    other         each token has the gates of another token of its batch
    same          each token has the gates of another token of its batch with the same id (where there is one)
    mask          own gates; the head outputs and neurons that they multiply are their means over the split, so that
                  only the mask depends on the context
    mask_same     the same with the gates of another token of the same id
    mask_random   the same with random k-subsets: beyond the current token's embedding, nothing speaks

`audit_gates` streams a split, or its first `MOST_TOKENS` tokens, twice, first for the means, and keeps a bounded sample
of gates as packed bits. `ngram_losses` says what counts alone know of the next token.
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Integer

from jaxablate.config import UnitKind
from jaxablate.errors import DataError, TooLittleDataError
from jaxablate.gating import GATES, hard_top_k
from jaxablate.models.decoder import Gates, SelfAblatingTransformer, output_matrix
from jaxablate.neurons.firing_counts import Batches
from jaxablate.neurons.units import FIRES_ABOVE, decoder_output
from jaxablate.ops.cross_entropy import per_token_cross_entropy
from jaxablate.types import Batch, Params

KINDS = ("attention", "neurons")
OF_ALL = ("clean", "own", "random", "other", "mask", "mask_random")
OF_PAIRED = ("own", "same", "mask", "mask_same")
"""Losses over the tokens that another token of the same id can lend its gates."""
COLUMNS = ("tokens", *OF_ALL, "paired", *(f"{name}, paired" for name in OF_PAIRED))
"""Columns of `Audit.story_sums`: counts, and sums of losses in nats."""
SAMPLE = 65_536
MIN_TOKENS, MIN_STORIES = 2_000, 30
MOST_TOKENS = 262_144
"""Tokens that are read of longer splits, the first ones: each costs eight runs of the output matrix."""
STRENGTHS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Weights of the n-grams' prior that are tried; the best is taken. One number chosen on a split gains next to
nothing."""
_CONTENT = ("head_out", "mlp_post")
_DRAWS = 0x6C65616B
"""Keeps these random draws apart from others of the same seed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GateSample:
    """Gates of some tokens of a split, those that fire as bits."""

    current: np.ndarray
    following: np.ndarray
    """int32 [n] each: ids of the tokens, and of those after them."""
    story: np.ndarray
    """int32 [n], which story the following token is of, numbered from 0."""
    bits: Mapping[str, np.ndarray]
    """By kind uint8 [n, L, ceil(U / 8)], `np.packbits` along the units; a unit fires above `FIRES_ABOVE`."""
    units: Mapping[str, int]
    """By kind the number of units of a layer, D or F."""

    @property
    def layers(self) -> int:
        return self.bits[KINDS[0]].shape[1]

    def fires(self, kind: str, layer: int) -> np.ndarray:
        """0/1 uint8 [n, U] of one kind and layer."""
        return np.unpackbits(self.bits[kind][:, layer], axis=-1, count=self.units[kind])

    def take(self, rows: np.ndarray) -> "GateSample":
        """The sample of these rows (indices, or a mask)."""
        return dataclasses.replace(self, current=self.current[rows], following=self.following[rows],
                                   story=self.story[rows], bits={k: x[rows] for k, x in self.bits.items()})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Audit:
    """What `audit_gates` measures."""

    story_sums: Mapping[str, np.ndarray]
    """By name of `COLUMNS` float64 [stories], summed over the targets of each."""
    current: np.ndarray
    """int32 [tokens], all tokens that were read, in file order; `following` and `story` as in `GateSample`."""
    following: np.ndarray
    story: np.ndarray
    sample: GateSample
    """Gates of at most `SAMPLE` of these tokens."""


def audit_gates(model: SelfAblatingTransformer, params: Params, batches: Batches, *, seed: int = 0,
                sample: int = SAMPLE, most: int = MOST_TOKENS) -> Audit:
    """Losses of the ablated stream under every replacement, and the gates of a sample of its tokens.

    Batches have the targets' ``story`` int [B, T]; the split is started twice, and no further batch of it is read after
    ``most`` tokens. Gates are lent within a batch, so larger ones lend from more.

    Raises:
      DataError: fewer than `MIN_TOKENS` tokens or `MIN_STORIES` stories, or activations that are not finite.
    """
    model = SelfAblatingTransformer(dataclasses.replace(model.config, remat="none"))
    means, tokens = content_means(model, params, _first(batches(), most))
    rng = np.random.default_rng((seed, _DRAWS))
    sampled = np.zeros(tokens, bool)
    sampled[rng.choice(tokens, size=min(sample, tokens), replace=False)] = True
    pairs, columns, bits, done = [], [], {kind: [] for kind in KINDS}, 0
    for number, batch in enumerate(_first(batches(), most)):
        inputs, counted = np.asarray(batch["inputs"]), np.asarray(batch["mask"]) > 0
        other, same, has_same = lenders(inputs, counted, rng)
        key = jax.random.fold_in(jax.random.key(seed), number)
        losses, fired = jax.device_get(replaced_losses(model, params, batch, means, (other, same), key))
        columns.append(_columns({name: loss[counted].astype(np.float64) for name, loss in losses.items()},
                                has_same[counted], number))
        pairs.append(np.stack([np.asarray(batch[name])[counted] for name in ("inputs", "targets", "story")]))
        chosen = np.zeros_like(counted)
        chosen[counted] = sampled[done : done + pairs[-1].shape[1]]
        done += pairs[-1].shape[1]
        for kind in KINDS:
            bits[kind].append(fired[kind][chosen])
    current, following, story = np.concatenate(pairs, axis=1).astype(np.int32)
    story = np.unique(story, return_inverse=True)[1].astype(np.int32)
    _check_enough(tokens, int(story.max()) + 1)
    units = {"attention": model.config.attention_width, "neurons": model.config.mlp_width}
    sums = (np.bincount(story, weights=x) for x in np.concatenate(columns, axis=1))
    return Audit(
        story_sums=dict(zip(COLUMNS, sums, strict=True)),
        current=current, following=following, story=story,
        sample=GateSample(current=current[sampled], following=following[sampled], story=story[sampled], units=units,
                          bits={kind: np.concatenate(x) for kind, x in bits.items()}))


def _first(batches: Iterable[Batch], tokens: int) -> Iterator[Batch]:
    """The first batches, up to the one with which there are so many tokens."""
    for batch in batches:
        yield batch
        tokens -= int((np.asarray(batch["mask"]) > 0).sum())
        if tokens <= 0:
            return


def _columns(losses: Mapping[str, np.ndarray], paired: np.ndarray, batch: int) -> np.ndarray:
    """`COLUMNS` of each counted token, float64 [columns, n]; raises DataError at a loss that is NaN or infinite."""
    for name, loss in losses.items():
        if not np.isfinite(loss).all():
            raise DataError(f"the loss {name!r} of batch {batch} is NaN or infinite; the model's parameters are "
                            "damaged, choose another --checkpoint")
    return np.stack([np.ones(len(paired)), *(losses[name] for name in OF_ALL), paired,
                     *(np.where(paired, losses[name], 0) for name in OF_PAIRED)])


def _check_enough(tokens: int, stories: int | None = None) -> None:
    """Raises TooLittleDataError where the split is too short for the audit; its stories may not be known yet."""
    if tokens < MIN_TOKENS or (stories is not None and stories < MIN_STORIES):
        size = f"{tokens:,}" if stories is None else f"{tokens:,} of {stories:,}"
        raise TooLittleDataError(
            f"the leakage audit needs at least {MIN_TOKENS:,} tokens of {MIN_STORIES} stories, this split has {size}; "
            "read more of it (--max-batches) or take a longer one")


def content_means(model: SelfAblatingTransformer, params: Params, batches: Iterable[Batch]
                  ) -> tuple[dict[str, jax.Array], int]:
    """Means over the counted tokens of what gates multiply, head_out [L, N, H] and mlp_post [L, F], and their number.

    Raises:
      DataError: an activation is not finite, or there are fewer than `MIN_TOKENS` tokens.
    """
    sums, tokens = None, 0
    for batch in batches:
        now = jax.tree.map(lambda x: np.asarray(x, np.float64), _content_sums(model, params, batch))
        for field, value in now.items():
            if not np.isfinite(value).all():
                raise DataError(f"activations {field} of the ablated stream are NaN or infinite; the model's "
                                "parameters are damaged, choose another --checkpoint")
        sums = now if sums is None else jax.tree.map(np.add, sums, now)
        tokens += int((np.asarray(batch["mask"]) > 0).sum())
    _check_enough(tokens)
    return {field: jnp.asarray(total / tokens, jnp.float32) for field, total in (sums or {}).items()}, tokens


@functools.partial(jax.jit, static_argnames="model")
def _content_sums(model: SelfAblatingTransformer, params: Params, batch: Batch) -> dict[str, jax.Array]:
    out = decoder_output(model, params, batch["inputs"])

    def total(field: str) -> jax.Array:
        x = jnp.stack([getattr(layer.ablated, field) for layer in out.layers])
        counted = (batch["mask"] > 0).reshape(*batch["mask"].shape, *[1] * (x.ndim - 3))
        return jnp.sum(jnp.where(counted, x, 0), axis=(1, 2))

    return {field: total(field) for field in _CONTENT}


@functools.partial(jax.jit, static_argnames="model")
def replaced_losses(model: SelfAblatingTransformer, params: Params, batch: Batch, means: Mapping[str, jax.Array],
                    lenders: tuple[jax.typing.ArrayLike, jax.typing.ArrayLike], key: jax.Array
                    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Nats of each target under each replacement, float32 [B, T], and the gates that fire as bits of `GateSample`.

    The model is without rematerialisation. Lenders int [B, T] are indices into the batch's B T tokens: whose gates
    ``other`` and ``same`` take. The key is that of random gates.
    """
    out = decoder_output(model, params, batch["inputs"])
    own = cast(Gates, out.gates)
    random = _random_gates(model, own, key)
    other, same = (jax.tree.map(lambda gates, lender=lender: gates.reshape(-1, *gates.shape[2:])[lender], own)
                   for lender in lenders)
    at_means = functools.partial(_at_means, means)
    finals = {"clean": out.final_clean, "own": out.final_ablated}
    for name, gates, edit in (("random", random, None), ("other", other, None), ("same", same, None),
                              ("mask", own, at_means), ("mask_same", same, at_means),
                              ("mask_random", random, at_means)):
        finals[name] = decoder_output(model, params, batch["inputs"], gates=gates, edit=edit).final_ablated
    dtype = jnp.dtype(model.config.compute_dtype)
    matrix = output_matrix(model.config, params).astype(dtype)
    targets, cap = jnp.asarray(batch["targets"]), model.config.logit_cap
    losses = {name: per_token_cross_entropy(x.astype(dtype), matrix, targets, cap=cap) for name, x in finals.items()}
    return losses, {"attention": jnp.packbits(own.attention > FIRES_ABOVE, axis=-1),
                    "neurons": jnp.packbits(own.neuron > FIRES_ABOVE, axis=-1)}


def _at_means(means: Mapping[str, jax.Array], site: str, x: jax.Array) -> jax.Array:
    """An edit of the decoder: what the ablated stream's gates multiply is its mean."""
    stream, layer, field = site.split(".")
    if stream != "ablated" or field not in _CONTENT:
        return x
    return jnp.broadcast_to(means[field][int(layer.removeprefix("layer_"))], x.shape).astype(x.dtype)


def _random_gates(model: SelfAblatingTransformer, own: Gates, key: jax.Array) -> Gates:
    """For each token and layer as many winners as it has, at random; soft gates keep their values, in random order."""
    config = model.config

    def kind(name: UnitKind, gates: jax.Array, key: jax.Array) -> jax.Array:
        if not GATES[config.gate].binary:
            return jax.random.permutation(key, gates, axis=-1, independent=True)
        scores = jax.random.uniform(key, gates.shape)
        layers = [hard_top_k(scores[:, :, i], config.layer_k(name, i)) for i in range(config.n_layers)]
        return jnp.stack(layers, axis=2).astype(gates.dtype)

    keys = jax.random.split(key)
    return Gates(attention=kind("attention", own.attention, keys[0]),
                 neuron=kind("neurons", own.neuron, keys[1]))


def lenders(
    tokens: Integer[np.ndarray, "batch time"], counted: Bool[np.ndarray, "batch time"], rng: np.random.Generator,
) -> tuple[Integer[np.ndarray, "batch time"], Integer[np.ndarray, "batch time"], Bool[np.ndarray, "batch time"]]:
    """Who lends gates to whom within a batch; tokens that do not count neither lend nor borrow.

    Returns:
      Index into the B T tokens of any other token, the same of another token of the same id, and whether there is one
      of the same id.
    """
    flat = np.flatnonzero(counted)
    other, same = (np.arange(tokens.size, dtype=np.int32) for _ in range(2))
    other[flat] = flat[others_of_group(np.zeros(len(flat), np.int32), rng)]
    same[flat] = flat[others_of_group(tokens.ravel()[flat], rng)]
    has_same = (same != np.arange(tokens.size)).reshape(tokens.shape)
    return other.reshape(tokens.shape), same.reshape(tokens.shape), has_same


def others_of_group(groups: Integer[np.ndarray, " n"], rng: np.random.Generator) -> Integer[np.ndarray, " n"]:
    """For each element the index of another one of its group, each lending once; its own where it is the only one.

    >>> others_of_group(np.array([7, 5, 7]), np.random.default_rng(0)).tolist()
    [2, 1, 0]
    """
    # In an order in which groups adjoin, each element takes the next one, and the last of a group its first.
    order = np.lexsort((rng.random(len(groups)), groups))
    begins = np.flatnonzero(np.diff(groups[order], prepend=groups[order][:1] - 1))
    after = np.arange(1, len(groups) + 1)
    after[np.append(begins[1:], len(groups))[: len(begins)] - 1] = begins
    result = np.empty(len(groups), np.int64)
    result[order] = order[after]
    return result


def ngram_losses(current: Integer[np.ndarray, " tokens"], following: Integer[np.ndarray, " tokens"],
                 story: Integer[np.ndarray, " tokens"], vocab_size: int
                 ) -> tuple[Float[np.ndarray, " tokens"], Float[np.ndarray, " tokens"]]:
    """Losses of next tokens under counts of the other stories.

    With N the counts over all stories but the token's own,

        unigram   p(n)     = (N(n) + a / V) / (N + a)
        bigram    p(n | c) = (N(c, n) + b p(n)) / (N(c) + b)

    Returns:
      Unigram and bigram losses, float64, nats.
    """
    groups = (np.zeros(len(story), np.int64), following, current, current.astype(np.int64) * vocab_size + following)
    size, of_next, of_current, of_pair = (_elsewhere(group, story) for group in groups)
    unigram = min((-np.log((of_next + a / vocab_size) / (size + a)) for a in STRENGTHS), key=np.sum)
    bigram = min((-np.log((of_pair + b * np.exp(-unigram)) / (of_current + b)) for b in STRENGTHS), key=np.sum)
    return unigram, bigram


def _elsewhere(groups: np.ndarray, story: np.ndarray) -> np.ndarray:
    """For each token how many tokens of other stories are of its group."""
    _, place, counts = np.unique(groups, return_inverse=True, return_counts=True)
    local = place.astype(np.int64) * (int(story.max()) + 1) + story
    _, here, own = np.unique(local, return_inverse=True, return_counts=True)
    return (counts[place] - own[here]).astype(np.float64)
