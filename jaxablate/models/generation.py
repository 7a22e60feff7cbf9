"""Text from either stream of a trained decoder, one cached step a token."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from jaxablate.config.checks import require
from jaxablate.models.decoder import SelfAblatingTransformer
from jaxablate.ops.varying import match_varying
from jaxablate.types import STREAMS, Params, Stream


def generate(
    model: SelfAblatingTransformer,
    params: Params,
    prompt_BT: Int[jax.typing.ArrayLike, "batch time"],
    *,
    steps: int,
    stream: Stream = "clean",
    temperature: float | Float[Array | np.ndarray, ""] = 1.0,
    top_k: int | None = None,
    key: jax.Array | None = None,
) -> Int[Array, "batch longer"]:
    """Continues prompts of one length.

    Both streams read the clean stream's cached keys and values, as in training; a token of the ablated stream costs a
    clean and an ablated step.

    Args:
      model: the decoder.
      params: its parameters.
      prompt_BT: token ids, T >= 1.
      steps: tokens to add, T + steps <= context_length.
      stream: the stream whose logits choose the next token.
      temperature: 0 is greedy, otherwise logits are divided by it. It may be traced (then it is not checked).
      top_k: sample among the k most likely tokens only, the lower token first among equals; None among all.
      key: PRNG key; needed unless greedy. The same key gives the same text.

    Returns:
      int32 [B, T + steps], the prompt included.

    Raises:
      ConfigError: the prompt has another rank, no room in the context, no such stream in the model, or a bad sampling
        option.
    """
    c, prompt_BT = model.config, jnp.asarray(prompt_BT, jnp.int32)
    require(prompt_BT.ndim == 2, f"the prompt has the shape {prompt_BT.shape}; give [batch, time], one as prompt[None]")
    length = prompt_BT.shape[1]
    require(length >= 1 and steps >= 1, f"a prompt of {length} tokens and {steps} steps; give at least 1 of each")
    require(length + steps <= c.context_length, f"a prompt of {length} tokens and {steps} steps exceed context_length="
            f"{c.context_length}; generate at most {max(0, c.context_length - length)} tokens")
    require(stream in (STREAMS if c.gated else STREAMS[:1]),
            f"stream={stream!r}: this model has {'clean and ablated' if c.gated else 'clean only'}")
    require(jnp.ndim(temperature) == 0, f"temperature has the shape {jnp.shape(temperature)}; give a number")
    traced = isinstance(temperature, Tracer)
    require(traced or bool(temperature >= 0), f"temperature={temperature} must not be negative; 0 is greedy")
    greedy = None if traced else bool(temperature == 0)
    require(greedy or key is not None, "sampling needs a PRNG key; pass key=jax.random.key(seed), or temperature=0")
    require(top_k is None or 1 <= top_k <= c.vocab_size, f"top_k={top_k} must be in 1..{c.vocab_size}")
    scale = jnp.asarray(1.0 if greedy else temperature, jnp.float32)
    return _generate(model, params, prompt_BT, jax.random.key(0) if key is None else key, scale, steps, stream, greedy,
                     top_k)


@functools.partial(jax.jit, static_argnums=(0, 5, 6, 7, 8))
def _generate(
    model: SelfAblatingTransformer, params: Params, prompt_BT: Array, key: Array, temperature: Array, steps: int,
    stream: Stream, greedy: bool | None, top_k: int | None,
) -> Array:
    variables = {"params": params}
    length = prompt_BT.shape[1]
    cache = model.apply(variables, prompt_BT[:, :-1], length + steps, method=model.prefill)

    def body(carry: tuple[Array, Array, Any], step_key: Array) -> tuple[tuple[Array, Array, Any], Array]:
        token, position, cache = carry
        decoded: Any = model.apply(variables, token, position, cache, stream == "ablated", method=model.decode)
        logits, cache = decoded
        token = _choose(logits, step_key, temperature, greedy, top_k)
        return (token, position + 1, cache), token

    token, cache = match_varying((prompt_BT[:, -1], cache), like=(params, key, temperature))
    start = (token, jnp.int32(length - 1), cache)
    _, tokens = jax.lax.scan(body, start, jax.random.split(key, steps))
    return jnp.concatenate([prompt_BT, tokens.T], axis=1)


def _choose(logits: Array, key: Array, temperature: Array, greedy: bool | None, top_k: int | None) -> Array:
    """Tokens [B] of logits [B, V]; where ``greedy`` is None the temperature decides whether they are drawn."""
    best = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    if greedy:
        return best
    if top_k is not None:
        rows = jnp.arange(len(logits))[:, None]
        allowed = jnp.zeros(logits.shape, bool).at[rows, jax.lax.top_k(logits, top_k)[1]].set(True)
        logits = jnp.where(allowed, logits, -jnp.inf)
    drawn = jax.random.categorical(key, logits / jnp.asarray(temperature, logits.dtype)).astype(jnp.int32)
    return drawn if greedy is False else jnp.where(temperature > 0, drawn, best)
