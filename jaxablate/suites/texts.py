"""Suite ``texts``: some stories and prompts as a language model reads them, token by token, for the explorer.

For each token: what both streams hold likely next and what the token costs them, which units of each layer win, what
passes through their gates, what the gates alone tell of the next token, every unit's activation, the strongest latents
of stored autoencoders, and where each head looks. There are no figures: so few texts are no sample.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxablate.circuits.tasks import tokenise
from jaxablate.config import Config, ModelConfig
from jaxablate.errors import DataError, TooLittleDataError
from jaxablate.features.files import SavedAutoencoder
from jaxablate.features.sites import forward, unrolled
from jaxablate.models.decoder import SelfAblatingTransformer, token_logits
from jaxablate.neurons.leakage import content_means, replaced_losses
from jaxablate.neurons.units import decoder_output
from jaxablate.ops.attention import attention_weights, repeat_heads
from jaxablate.reports import texts as data
from jaxablate.reports.packed import Packed, pack, pack_steps, unpack
from jaxablate.reports.panels import Grid, Panel
from jaxablate.reports.results import Figure
from jaxablate.runs.run import Run
from jaxablate.suites.autoencoders import of_checkpoint
from jaxablate.suites.samples import readable
from jaxablate.suites.suite import Suite, final_states
from jaxablate.types import STREAMS, Batch, Params, Stream

STORIES, PROMPTS = 16, 2
"""Stories of the validation split, and pairs of prompts of the task that circuits explain."""
LENGTH = 128
"""Tokens of a text that are read, at most."""
CANDIDATES = 8
"""Next tokens told of each position."""
WINNERS, LATENTS, AUTOENCODERS = 32, 32, 4
"""Open gates told of a token and layer; active latents told of a token; autoencoders that are read."""
LARGE_BYTES = 4_000_000
"""Bytes that activations and attention patterns of all texts take in a page, about: the first texts have them."""
WEIGHT_STEPS, SHARE_STEPS = 63, 31
"""Steps in which attention weights and activations are told: what follows the comma would double the page."""
LEAKAGE_DRAWS, LEAKAGE_TOKENS = 8, 32_768
"""Random gates averaged for a token's leakage; tokens over which the means are taken that gates multiply there."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Passage:
    """A text to be read."""

    title: str
    about: str
    kind: Literal["story", "prompt"]
    tokens: tuple[int, ...]
    """At least two."""
    following: int | None = None
    """The token after the last one, where it is known."""
    story: int | None = None
    """Its number in the validation split."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextLoss:
    """Mean loss of one text, nats a token."""

    title: str
    tokens: int
    loss: Mapping[str, float]
    """By stream."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextsResult:
    """The texts' losses here; everything else for the explorer alone."""

    texts: tuple[TextLoss, ...]
    attachments: Mapping[str, data.LanguageTexts]

    def headline(self) -> tuple[Figure, ...]:
        """None: so few texts are no sample."""
        return ()

    def panels(self) -> tuple[Panel, ...]:
        """A table of the texts."""
        streams = tuple(self.texts[0].loss)
        return (Grid(title="Texts", columns=("text", "tokens", *(f"loss {stream}" for stream in streams)),
                     rows=tuple((x.title, x.tokens, *(x.loss[stream] for stream in streams)) for x in self.texts),
                     caption="Stories drawn from the validation split, and prompts of the task that circuits explain; "
                             "nats a token. The explorer shows them token by token."),)


def stories(tokens: Any, *, count: int = STORIES, length: int = LENGTH, seed: int = 0) -> list[Passage]:
    """Stories drawn from a `TokenFile`, in its order, cut to a length; those of fewer than two tokens are left out."""
    sizes = np.diff(tokens.story_offsets)
    fitting = np.flatnonzero(sizes >= 2)
    drawn = np.sort(np.random.default_rng(seed).choice(fitting, min(count, len(fitting)), replace=False))
    passages = []
    for story in drawn.tolist():
        start, size = int(tokens.story_offsets[story]), int(sizes[story])
        ids = [int(x) for x in tokens.tokens[start : start + min(size, length + 1)]]
        part = "whole" if size <= length else f"the first {length} of its {size:,} tokens"
        passages.append(Passage(
            title=f"story {story:,}", about=f"Story {story:,} of the validation split, {part}.", kind="story",
            story=story, tokens=tuple(ids[:length]), following=ids[length] if size > length else None))
    return passages


def prompts(run: Run, count: int = PROMPTS) -> list[Passage]:
    """Pairs of prompts of the run's task ``ioi``, clean and corrupt; none where the tokenizer lacks their words."""
    if "ioi" not in run.tasks:
        return []
    try:
        pairs = tokenise(run.tasks["ioi"](run.seed, count), run.tokenizer, name="ioi",
                         context_length=cast(Config, run.config).model.context_length)
    except DataError:  # of somebody's own tokenizer; the suites that measure the task say so
        return []
    passages = []
    for i, side in itertools.product(range(len(pairs)), ("clean", "corrupt")):
        ids = getattr(pairs, side)[i][pairs.valid[i]]
        what = ("its answer follows" if side == "clean" else
                "what patched edges carry: names are changed, so that the answer does not follow")
        passages.append(Passage(
            title=f"indirect object {i + 1}, {side}", kind="prompt", tokens=tuple(map(int, ids)),
            about=f"Prompt {i + 1} of the task indirect objects, {side}: {what}.", following=int(pairs.answers[i, 0])))
    return passages


def evaluate(model: SelfAblatingTransformer, params: Params, passages: Sequence[Passage], tokenizer: Any, *,
             means: Mapping[str, jax.Array] | None = None, autoencoders: Sequence[tuple[str, SavedAutoencoder]] = (),
             params_digest: str = "", step: int = 0, seed: int = 0, length: int | None = None) -> data.LanguageTexts:
    """Reads texts.

    Args:
      model: the decoder.
      params: its parameters.
      passages: the texts, each no longer than the model's context.
      tokenizer: what decodes their tokens.
      means: what gates multiply, on average (`neurons.leakage.content_means`); without them there is no leakage.
      autoencoders: pairs (name, autoencoder) of sites of the model; the first `AUTOENCODERS` are read.
      params_digest: `Run.digest` of the parameters, for the result.
      step: updates that they have seen, for the result.
      seed: that of random gates.
      length: tokens that a text is filled up to where it is read, so that one program serves many calls; by default
        the length of the longest.
    """
    model, config = unrolled(model), model.config
    autoencoders = autoencoders[:AUTOENCODERS]
    longest = max(length or 0, *(len(passage.tokens) for passage in passages))
    full = _with_large(config, passages)
    words = Vocabulary()
    texts = [_text(model, params, passage, longest, words, i in full, means, autoencoders, seed)
             for i, passage in enumerate(passages)]
    return data.LanguageTexts(
        params_digest=params_digest, step=step, streams=STREAMS if config.gated else STREAMS[:1],
        n_layers=config.n_layers, n_heads=config.n_heads, n_neurons=config.mlp_width,
        n_channels=config.attention_width, vocabulary=words.vocabulary(tokenizer), texts=tuple(texts),
        autoencoders=tuple(data.Autoencoder(name=name, site=saved.name, latents=saved.sae.config.d_sae)
                           for name, saved in autoencoders))


def _with_large(config: ModelConfig, passages: Sequence[Passage]) -> set[int]:
    """Places of the texts stored with activations and attention: prompts, then stories, as long as there is room."""
    left, chosen = LARGE_BYTES, set()
    for i in sorted(range(len(passages)), key=lambda i: passages[i].kind != "prompt"):
        n = len(passages[i].tokens)
        heads = config.n_heads * n * (n + 1) // 2 * (2 if config.gated else 1)
        # Attention compresses to half a byte a weight, activations to little less than one.
        left -= config.n_layers * (heads // 2 + n * (config.mlp_width + config.attention_width))
        if left < 0:
            break
        chosen.add(i)
    return chosen


class Vocabulary:
    """Gives the tokens that occur numbers, their places, in the order in which they are met."""

    def __init__(self):
        self._places: dict[tuple[int, str | None], int] = {}

    def places(self, ids: np.typing.ArrayLike, strings: Sequence[str] | None = None) -> np.ndarray:
        """Places of token ids [...], of the same shape; -1, which is no token, stays. ``strings`` [n] is how to show
        each, where an id does not tell."""
        flat = np.ravel(ids).tolist()
        shown = [None] * len(flat) if strings is None else strings
        places = [-1 if key[0] < 0 else self._places.setdefault(key, len(self._places))
                  for key in zip(flat, shown, strict=True)]
        return np.array(places, np.int64).reshape(np.shape(ids))

    def pack(self, ids: np.typing.ArrayLike, strings: Sequence[str] | None = None) -> Packed:
        """The same, packed."""
        places = self.places(ids, strings)
        return pack(places, "uint16" if 0 <= places.min(initial=0) <= places.max(initial=0) < data.NONE else "int32")

    def place_of(self, token: int) -> int | None:
        """The place of one token; None where it has none."""
        return self._places.get((token, None))

    def strings(self, tokenizer: Any = None) -> tuple[str, ...]:
        """All that have a place, as people read them."""
        return tuple(readable(tokenizer, [i]) if shown is None else shown for i, shown in self._places)

    def vocabulary(self, tokenizer: Any = None) -> data.Vocabulary:
        """Strings and ids of all that have a place."""
        ids = pack(np.array([i for i, _ in self._places], np.int64), "int32")
        return data.Vocabulary(strings=self.strings(tokenizer), ids=ids)


def _text(model: SelfAblatingTransformer, params: Params, passage: Passage, longest: int, words: Vocabulary,
          large: bool, means: Mapping[str, jax.Array] | None, autoencoders: Sequence[tuple[str, SavedAutoencoder]],
          seed: int) -> data.LanguageText:
    """One text, read at the length of the longest, so that one program serves all: later tokens change nothing."""
    n, unknown = len(passage.tokens), passage.following is None
    ids = np.zeros(longest + 1, np.int32)
    ids[: n + 1] = [*passage.tokens, passage.following or 0]
    targets = np.where((np.arange(longest) < n) & ~(unknown & (np.arange(longest) == n - 1)), ids[1:], -1)
    seen = jax.tree.map(np.asarray, observe(model, params, ids[:-1], targets))
    streams = tuple(seen["loss"])
    leakage = None
    if means is not None and "ablated" in streams:
        batch = {"inputs": ids[None, :-1], "targets": np.maximum(targets, 0)[None]}
        key = jax.random.key(seed)
        leakage = _at_predicted(np.asarray(leakage_by_token(model, params, batch, means, key))[0], n)
    latents = ()
    if autoencoders:
        sites = tuple(dict.fromkeys(saved.name for _, saved in autoencoders))
        read = _read_sites(model, sites, params, ids[None, :-1])
        latents = tuple(_latents(i, np.asarray(saved.sae.encode(read[saved.name][0, :n])))
                        for i, (_, saved) in enumerate(autoencoders))
    tokens = words.pack(passage.tokens)
    following = None if passage.following is None else int(words.places(passage.following))
    return data.LanguageText(
        title=passage.title, about=passage.about, kind=passage.kind, story=passage.story, tokens=tokens,
        following=following, loss={stream: _at_predicted(seen["loss"][stream], n) for stream in streams},
        predictions=data.Predictions(
            tokens=words.pack(seen["candidates"][:n]),
            probabilities={stream: pack(_float64(seen["probabilities"][stream][:n]), "uint16")
                           for stream in streams}),
        leakage=leakage, latents=latents,
        winners={kind: _winners(x, n) for kind, x in seen["winners"].items()} if seen["winners"] else None,
        activations={kind: _activations(x[:, :n]) for kind, x in seen["activations"].items()} if large else None,
        attention={stream: _triangle(x[:, :, :n, :n]) for stream, x in seen["attention"].items()} if large else None)


@functools.partial(jax.jit, static_argnames="model")
def observe(model: SelfAblatingTransformer, params: Params, tokens_T: jax.typing.ArrayLike,
            targets_T: jax.typing.ArrayLike) -> dict[str, Any]:
    """What is seen of one text; targets are the tokens that follow, -1 where that is not known.

    Returns:
      ``loss`` of the targets, float32 [T] by stream; ``candidates`` int32 [T, C] and their ``probabilities`` by stream;
      ``winners`` by kind, of layers [L, T, k] ``units``, ``gates`` and ``values``, and ``open`` [L, T] (empty without
      gates); ``activations`` of the clean stream by kind, [L, T, U]; ``attention`` by stream, [L, N, T, T].
    """
    out = decoder_output(model, params, jnp.asarray(tokens_T)[None])
    targets_T = jnp.asarray(targets_T)
    log_p = {stream: jax.nn.log_softmax(token_logits(model.config, params, x[0]).astype(jnp.float32))
             for stream, x in final_states(out).items()}
    known = targets_T[:, None] == jnp.arange(model.config.vocab_size)[None]
    best = functools.reduce(jnp.maximum, log_p.values())
    count = min(CANDIDATES, model.config.vocab_size)
    candidates = jax.lax.top_k(jnp.where(known, jnp.inf, best), count)[1]
    layers = out.layers
    return {
        "loss": {stream: -jnp.take_along_axis(p, jnp.maximum(targets_T, 0)[:, None], axis=1)[:, 0]
                 for stream, p in log_p.items()},
        "candidates": candidates,
        "probabilities": {stream: jnp.exp(jnp.take_along_axis(p, candidates, axis=1)) for stream, p in log_p.items()},
        "winners": _open_gates(layers) if model.config.gated else {},
        "activations": {"neurons": jnp.stack([x.clean.mlp_post[0] for x in layers]),
                        "channels": jnp.stack([_channels(x.clean.head_out) for x in layers])},
        "attention": {stream: jnp.stack([_pattern(model.config, i, x, stream) for i, x in enumerate(layers)])
                      for stream in STREAMS if stream in log_p},
    }


def _channels(head_out: jax.Array) -> jax.Array:
    """[T, N H] of the heads' outputs [1, T, N, H]."""
    return head_out[0].reshape(head_out.shape[1], -1)


def _open_gates(layers: Sequence[Any]) -> dict[str, dict[str, jax.Array]]:
    """The units that let most through, by kind."""
    found = {}
    for kind, field in (("neurons", "neuron_gates"), ("channels", "attention_gates")):
        gates = jnp.stack([getattr(x, field)[0] for x in layers]).astype(jnp.float32)
        values = jnp.stack([x.ablated.mlp_post[0] if kind == "neurons" else _channels(x.ablated.head_out)
                            for x in layers]).astype(jnp.float32) * gates
        rank = jnp.where(gates > 0, jnp.abs(values), -1.0)
        units = jax.lax.top_k(rank, min(WINNERS, gates.shape[-1]))[1]
        found[kind] = {"units": units, "gates": jnp.take_along_axis(gates, units, axis=-1),
                       "values": jnp.take_along_axis(values, units, axis=-1), "open": jnp.sum(gates > 0, axis=-1)}
    return found


def _pattern(config: ModelConfig, layer: int, x: Any, stream: Stream) -> jax.Array:
    """[N, T, T] attention weights of one layer."""
    keys = [x.clean.key] if stream == "clean" else [x.clean.key, x.ablated.key]
    return attention_weights(getattr(x, stream).query, *(repeat_heads(k, config.n_heads) for k in keys),
                             window=config.layer_window(layer), scale=config.attention_scale,
                             cap=config.attention_cap)[0]


@functools.partial(jax.jit, static_argnames="model")
def leakage_by_token(model: SelfAblatingTransformer, params: Params, batch: Batch, means: Mapping[str, jax.Array],
                     key: jax.Array) -> jax.Array:
    """Nats [B, T] by which a target costs the ablated stream less with its own gates than with random ones.

    In both, what the gates multiply is its mean, so that the mask alone depends on the context: `mask_random` - `mask`
    of `jaxablate.neurons.leakage`, a mean over `LEAKAGE_DRAWS` random gates.
    """
    nobody = jnp.zeros(batch["inputs"].shape, jnp.int32)

    def draw(key: jax.Array) -> jax.Array:
        losses, _ = replaced_losses(model, params, batch, means, (nobody, nobody), key)
        return losses["mask_random"] - losses["mask"]

    return jnp.mean(jax.lax.map(draw, jax.random.split(key, LEAKAGE_DRAWS)), axis=0)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _read_sites(model: SelfAblatingTransformer, sites: tuple[str, ...], params: Params, tokens: jax.typing.ArrayLike
                ) -> dict[str, jax.Array]:
    return forward(model, params, jnp.asarray(tokens), sites)[0]


def _float64(x: np.typing.ArrayLike) -> np.ndarray:
    """An array of any float type, bfloat16 included, as float64."""
    return np.asarray(x, np.float64)


def _at_predicted(values: np.ndarray, n: int) -> Packed:
    """Numbers of the token after each position, moved to that token; NaN of the first."""
    return pack(np.concatenate([[np.nan], values[: n - 1]]).astype(np.float32), "float32")


def _winners(x: Mapping[str, np.ndarray], n: int) -> data.Winners:
    gates, values, units = (_float64(x[name][:, :n]) for name in ("gates", "values", "units"))
    most = max(int((gates > 0).sum(-1).max(initial=0)), 1)
    units = np.where(gates > 0, units, data.NONE).astype(np.int64)
    return data.Winners(units=pack(units[..., :most], "uint16"), gates=pack(gates[..., :most], "uint8"),
                        values=pack(values[..., :most], "int8"), open=pack(x["open"][:, :n].astype(np.int64), "uint16"))


def _activations(x_LTU: np.ndarray) -> data.Activations:
    values = _float64(x_LTU)
    largest = np.abs(values).max(axis=1)
    shares = values / np.where(largest > 0, largest, 1)[:, None]
    return data.Activations(values=pack_steps(shares, 1 / SHARE_STEPS, "int8"), largest=pack(largest, "float32"))


def _triangle(weights_LNTT: np.ndarray) -> Packed:
    """The rows of the lower triangle one after another."""
    rows, columns = np.tril_indices(weights_LNTT.shape[-1])
    return pack_steps(_float64(weights_LNTT[:, :, rows, columns]), 1 / WEIGHT_STEPS, "uint8")


def _latents(autoencoder: int, latents_TS: np.ndarray) -> data.Latents:
    """The strongest latents of each token; those of equal activation by number."""
    active = (latents_TS > 0).sum(-1)
    units = np.argsort(-latents_TS, axis=-1, kind="stable")[:, : max(1, min(LATENTS, int(active.max(initial=0))))]
    values = np.take_along_axis(latents_TS, units, axis=-1)
    return data.Latents(autoencoder=autoencoder, active=pack(active, "uint16"),
                        units=pack(np.where(values > 0, units, data.NONE), "uint16"),
                        values=pack(np.maximum(values, 0).astype(np.float64), "uint16"))


def _means(run: Run) -> Mapping[str, jax.Array] | None:
    """Means of what gates multiply, over the beginning of the validation split; None where it is too short."""
    def beginning() -> Iterator[Batch]:
        left = LEAKAGE_TOKENS
        for batch in run.splits["valid"].batches():
            yield batch
            left -= int((np.asarray(batch["mask"]) > 0).sum())
            if left <= 0:
                return

    try:
        return content_means(unrolled(run.model), run.params, beginning())[0]
    except TooLittleDataError:
        return None


def losses(texts: Iterable[data.LanguageText]) -> tuple[TextLoss, ...]:
    """Mean losses of texts."""
    return tuple(TextLoss(title=x.title, tokens=x.tokens.shape[0],
                          loss={stream: float(np.nanmean(unpack(loss))) for stream, loss in x.loss.items()})
                 for x in texts)


def _run(run: Run) -> tuple[TextsResult, dict[str, Any]]:
    config = cast(Config, run.config).model
    passages = stories(run.splits["valid"].tokens, length=min(LENGTH, config.context_length), seed=run.seed)
    found = evaluate(run.model, run.params, [*passages, *prompts(run)], run.tokenizer,
                     means=_means(run) if config.gated else None, autoencoders=of_checkpoint(run),
                     params_digest=run.digest, step=run.step, seed=run.seed)
    return (TextsResult(texts=losses(found.texts), attachments={"texts": found}),
            {"stories": len(passages), "length": LENGTH, "seed": run.seed})


SUITE = Suite(name="texts", run=_run,
              about=f"Up to {STORIES} stories of the validation split, token by token, for the explorer.")
