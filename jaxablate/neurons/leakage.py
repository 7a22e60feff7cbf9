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
of gates as packed bits.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxablate.errors import DataError, TooLittleDataError
from jaxablate.gating import GATES, hard_top_k
from jaxablate.models.decoder import DecoderOutput, Gates, SelfAblatingTransformer
from jaxablate.neurons.units import FIRES_ABOVE
from jaxablate.ops.cross_entropy import per_token_cross_entropy

Params = Any
Batch = Mapping[str, Any]
"""``inputs`` and ``targets`` int [B, T], ``mask`` [B, T], 1 where a target counts; batches in file order."""

KINDS = ("attention", "neurons")
OF_ALL = ("clean", "own", "random", "other", "mask", "mask_random")
OF_PAIRED = ("own", "same", "mask", "mask_same")
"""Losses over the tokens that another token of the same id can lend its gates."""
COLUMNS = ("tokens", *OF_ALL, "paired", *(f"{name}, paired" for name in OF_PAIRED))
"""Of `Audit.story_sums`: counts, and sums of losses in nats."""
SAMPLE = 65_536
MIN_TOKENS, MIN_STORIES = 2_000, 30
MOST_TOKENS = 262_144
"""Of longer splits the first batches with so many tokens are read: each token costs eight runs of the output matrix."""
_CONTENT = ("head_out", "mlp_post")
_DRAWS = 0x6C65616B
"""Keeps these random draws apart from others of the same seed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GateSample:
    """Gates of some tokens of a split, those that fire as bits.

    Attributes:
      current, following: [n] int32, a token and the one after it.
      story: [n] int32, which story the target is of.
      bits: by kind uint8 [n, L, ceil(U / 8)], `np.packbits` along the units; a unit fires above `FIRES_ABOVE`.
      units: by kind the number of units of a layer, D or F.
    """

    current: np.ndarray
    following: np.ndarray
    story: np.ndarray
    bits: Mapping[str, np.ndarray]
    units: Mapping[str, int]

    @property
    def layers(self) -> int:
        """L."""
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
    """What `audit_gates` measures.

    Attributes:
      story_sums: float64 [stories, columns], `COLUMNS` summed over the targets of each story; stories without any are
        left out.
      current, following, story: int32 [tokens], of the whole split in file order.
      sample: gates of at most `SAMPLE` of these tokens.
    """

    story_sums: np.ndarray
    current: np.ndarray
    following: np.ndarray
    story: np.ndarray
    sample: GateSample


def audit_gates(model: SelfAblatingTransformer, params: Params, batches: Callable[[], Iterable[Batch]], *, eot_id: int,
                seed: int = 0, sample: int = SAMPLE, most: int = MOST_TOKENS) -> Audit:
    """Losses of the ablated stream under every replacement, and a sample of its gates.

    Args:
      model: a gated decoder.
      params: its parameters.
      batches: starts the split anew; it is called twice. Gates are lent within a batch, so larger ones lend from more.
      eot_id: token that ends a story; it is the last target of its story.
      seed: of random gates, of who lends to whom, and of the sample.
      sample: most tokens whose gates are kept.
      most: tokens after which no further batch is read.

    Returns:
      `Audit`.

    Raises:
      DataError: fewer than `MIN_TOKENS` tokens or `MIN_STORIES` stories, or activations that are not finite.
    """
    model = SelfAblatingTransformer(dataclasses.replace(model.config, remat="none"))
    means, tokens = content_means(model, params, first(batches(), most))
    rng = np.random.default_rng((seed, _DRAWS))
    kept = np.zeros(tokens, bool)
    kept[rng.choice(tokens, size=min(sample, tokens), replace=False)] = True
    sums, seen, bits, place = StorySums(), [], {kind: [] for kind in KINDS}, Place()
    for number, batch in enumerate(first(batches(), most)):
        inputs, targets, mask = (np.asarray(batch[name]) for name in ("inputs", "targets", "mask"))
        counted = mask > 0
        lent = lenders(inputs, counted, rng)
        key = jax.random.fold_in(jax.random.key(seed), number)
        losses, fired = jax.device_get(replaced_losses(model, params, batch, means, lent[:2], key))
        check_finite(losses, counted, number)
        story, index = place.of(targets, counted, eot_id)
        sums.add(story[counted], columns(losses, counted, lent[2]))
        seen.append(np.stack([inputs[counted], targets[counted], story[counted]]).astype(np.int32))
        chosen = counted & kept[np.minimum(index, tokens - 1)]
        for kind in KINDS:
            bits[kind].append(fired[kind][chosen])
    current, following, story = np.concatenate(seen, axis=1)
    units = {"attention": model.config.d_model, "neurons": model.config.mlp_width}
    found = sums.joined()
    check_enough(tokens, len(found))
    packed = {kind: np.concatenate(x) for kind, x in bits.items()}
    return Audit(story_sums=found, current=current, following=following, story=story,
                 sample=GateSample(current=current[kept], following=following[kept], story=story[kept], bits=packed,
                                   units=units))


def first(batches: Iterable[Batch], tokens: int) -> Iterator[Batch]:
    """The first batches, up to the one with which there are so many tokens."""
    for batch in batches:
        yield batch
        tokens -= int((np.asarray(batch["mask"]) > 0).sum())
        if tokens <= 0:
            return


def check_enough(tokens: int, stories: int | None = None) -> None:
    """Raises TooLittleDataError where the split is too short for the audit; its stories may not be known yet."""
    if tokens < MIN_TOKENS or (stories is not None and stories < MIN_STORIES):
        found = f"{tokens:,}" if stories is None else f"{tokens:,} of {stories:,}"
        raise TooLittleDataError(
            f"the leakage audit needs at least {MIN_TOKENS:,} tokens of {MIN_STORIES} stories, this split has {found}; "
            "read more of it (--max-batches) or take a longer one")


def check_finite(losses: Mapping[str, np.ndarray], counted: np.ndarray, batch: int) -> None:
    """Raises DataError at the first loss that is NaN or infinite."""
    for name, loss in losses.items():
        if not np.isfinite(loss[counted]).all():
            raise DataError(f"the loss {name!r} of batch {batch} is NaN or infinite; the model's parameters are "
                            "damaged, choose another --checkpoint")


def content_means(model: SelfAblatingTransformer, params: Params, batches: Iterable[Batch]
                  ) -> tuple[dict[str, jax.Array], int]:
    """What the ablated stream's gates multiply, on average: by field, head_out [L, N, H] and mlp_post [L, F].

    Returns:
      The means over the counted tokens, and their number.

    Raises:
      DataError: an activation is not finite, or there are fewer than `MIN_TOKENS` tokens.
    """
    sums, tokens = None, 0
    for batch in batches:
        found = jax.tree.map(lambda x: np.asarray(x, np.float64), _content_sums(model, params, batch))
        for field, value in found.items():
            if not np.isfinite(value).all():
                raise DataError(f"activations {field} of the ablated stream are NaN or infinite; the model's "
                                "parameters are damaged, choose another --checkpoint")
        sums = found if sums is None else jax.tree.map(np.add, sums, found)
        tokens += int((np.asarray(batch["mask"]) > 0).sum())
    check_enough(tokens)
    return {field: jnp.asarray(total / tokens, jnp.float32) for field, total in sums.items()}, tokens


@functools.partial(jax.jit, static_argnames="model")
def _content_sums(model: SelfAblatingTransformer, params: Params, batch: Batch) -> dict[str, jax.Array]:
    out = model.apply({"params": params}, batch["inputs"])

    def total(field: str) -> jax.Array:
        x = jnp.stack([getattr(layer.ablated, field) for layer in out.layers])
        seen = (batch["mask"] > 0).reshape(*batch["mask"].shape, *[1] * (x.ndim - 3))
        return jnp.sum(jnp.where(seen, x, 0), axis=(1, 2))

    return {field: total(field) for field in _CONTENT}


@functools.partial(jax.jit, static_argnames="model")
def replaced_losses(model: SelfAblatingTransformer, params: Params, batch: Batch, means: Mapping[str, jax.Array],
                    lenders: tuple[jax.Array, jax.Array], key: jax.Array
                    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Cross-entropy of each target under each replacement, in nats.

    Args:
      model: gated, without rematerialisation.
      params: its parameters.
      batch: see `Batch`.
      means: of `content_means`.
      lenders: int [B, T] each, index into the batch's B T tokens: whose gates ``other`` and ``same`` take.
      key: of random gates.

    Returns:
      Losses by name, float32 [B, T], ``clean`` among them; and by kind uint8 [B, T, L, ceil(U / 8)], the gates that
      fire as bits.
    """
    out = model.apply({"params": params}, batch["inputs"])
    own, random = out.gates, _random_gates(model, out, key)
    other, same = (jax.tree.map(functools.partial(_lent, lender=x), own) for x in lenders)
    at_means = functools.partial(_at_means, means)
    finals = {"clean": out.final_clean, "own": out.final_ablated}
    for name, gates, edit in (("random", random, None), ("other", other, None), ("same", same, None),
                              ("mask", own, at_means), ("mask_same", same, at_means),
                              ("mask_random", random, at_means)):
        finals[name] = model.apply({"params": params}, batch["inputs"], gates=gates, edit=edit).final_ablated
    dtype = jnp.dtype(model.config.compute_dtype)
    table = params["embed"]["embedding"].astype(dtype)
    losses = {name: per_token_cross_entropy(x.astype(dtype), table, batch["targets"]) for name, x in finals.items()}
    return losses, {"attention": jnp.packbits(own.attention > FIRES_ABOVE, axis=-1),
                    "neurons": jnp.packbits(own.neuron > FIRES_ABOVE, axis=-1)}


def _at_means(means: Mapping[str, jax.Array], site: str, x: jax.Array) -> jax.Array:
    """An edit of the decoder: what the ablated stream's gates multiply is its mean."""
    stream, layer, field = site.split(".")
    if stream != "ablated" or field not in _CONTENT:
        return x
    return jnp.broadcast_to(means[field][int(layer.removeprefix("layer_"))], x.shape).astype(x.dtype)


def _lent(gates: jax.Array, lender: jax.Array) -> jax.Array:
    """Gates [B, T, L, U] of the tokens that lend theirs."""
    return gates.reshape(-1, *gates.shape[2:])[lender]


def _random_gates(model: SelfAblatingTransformer, out: DecoderOutput, key: jax.Array) -> Gates:
    """For each token and layer as many winners as it has, at random; soft gates keep their values, in random order."""
    config = model.config

    def kind(name: str, gates: jax.Array, key: jax.Array) -> jax.Array:
        if not GATES[config.gate].binary:
            return jax.random.permutation(key, gates, axis=-1, independent=True)
        scores = jax.random.uniform(key, gates.shape)
        layers = [hard_top_k(scores[:, :, i], config.layer_k(name, i)) for i in range(config.n_layers)]
        return jnp.stack(layers, axis=2).astype(gates.dtype)

    keys = jax.random.split(key)
    return Gates(attention=kind("attention", out.attention_gates, keys[0]),
                 neuron=kind("neurons", out.neuron_gates, keys[1]))


def lenders(tokens: np.ndarray, counted: np.ndarray, rng: np.random.Generator
            ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Who lends gates to whom within a batch.

    Args:
      tokens: [B, T] ids.
      counted: bool [B, T]; the others neither lend nor borrow.
      rng: draws a random order.

    Returns:
      Index into the B T tokens of any other token, the same of another token of the same id, both int32 [B, T], and
      bool [B, T]: whether there is one of the same id.
    """
    flat = np.flatnonzero(counted)
    other, same = (np.arange(tokens.size, dtype=np.int32) for _ in range(2))
    other[flat] = flat[others_of_kind(np.zeros(len(flat), np.int32), rng)]
    same[flat] = flat[others_of_kind(tokens.ravel()[flat], rng)]
    found = (same != np.arange(tokens.size)).reshape(tokens.shape)
    return other.reshape(tokens.shape), same.reshape(tokens.shape), found


def others_of_kind(kinds: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """For each element the index of another one of its kind, each lending once; its own where it is the only one.

    >>> others_of_kind(np.array([7, 5, 7]), np.random.default_rng(0)).tolist()
    [2, 1, 0]
    """
    order = np.lexsort((rng.random(len(kinds)), kinds))
    begins = np.flatnonzero(np.diff(kinds[order], prepend=kinds[order][:1] - 1))
    after = np.arange(1, len(kinds) + 1)
    after[np.append(begins[1:], len(kinds))[: len(begins)] - 1] = begins
    out = np.empty(len(kinds), np.int64)
    out[order] = order[after]
    return out


def columns(losses: Mapping[str, np.ndarray], counted: np.ndarray, paired: np.ndarray) -> np.ndarray:
    """`COLUMNS` of each counted token, float64 [columns, n]."""
    has = paired[counted]
    values = {name: np.asarray(loss, np.float64)[counted] for name, loss in losses.items()}
    return np.stack([np.ones(len(has)), *(values[name] for name in OF_ALL), has,
                     *(np.where(has, values[name], 0) for name in OF_PAIRED)])


class Place:
    """Where in the split the next batch begins: its story and its token."""

    def __init__(self):
        self._story = self._token = 0

    def of(self, targets: np.ndarray, counted: np.ndarray, eot_id: int) -> tuple[np.ndarray, np.ndarray]:
        """Number of the story and of the token, int [B, T] each, of a batch; the next call goes on after it."""
        ends = ((targets == eot_id) & counted).ravel()
        story = self._story + np.cumsum(ends) - ends
        index = self._token + np.cumsum(counted.ravel()) - counted.ravel()
        self._story += int(ends.sum())
        self._token += int(counted.sum())
        return story.reshape(targets.shape), index.reshape(targets.shape)


class StorySums:
    """Adds up columns by story; a story may go on in the next batch."""

    def __init__(self):
        self._parts: list[tuple[int, np.ndarray]] = []

    def add(self, story: np.ndarray, values: np.ndarray) -> None:
        """Takes the story [n] of each token and values [columns, n]."""
        if story.size:
            first = int(story.min())
            self._parts.append((first, np.stack([np.bincount(story - first, weights=row) for row in values], axis=-1)))

    def joined(self) -> np.ndarray:
        """[stories, columns], without stories that have no token (the first column is their number)."""
        total = np.zeros((max(first + len(x) for first, x in self._parts), self._parts[0][1].shape[-1]))
        for first, x in self._parts:
            total[first : first + len(x)] += x
        return total[total[:, 0] > 0]
