"""Text from either stream of a trained decoder, one cached step a token."""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxablate.errors import ConfigError
from jaxablate.models.decoder import SelfAblatingTransformer

Stream = Literal["clean", "ablated"]


def generate(
    model: SelfAblatingTransformer,
    params: Any,
    prompt_BT: jax.Array,
    *,
    steps: int,
    stream: Stream = "clean",
    temperature: float = 1.0,
    top_k: int | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """Continues prompts of one length.

    Both streams read the clean stream's cached keys and values, as in training; a token of the ablated stream costs a
    clean and an ablated step.

    Args:
      model: the decoder.
      params: its parameters.
      prompt_BT: int32 tokens, T >= 1.
      steps: tokens to add, T + steps <= context_length.
      stream: the stream whose logits choose the next token.
      temperature: 0 is greedy, otherwise logits are divided by it.
      top_k: sample among the k most likely tokens only; None among all.
      key: PRNG key; needed unless greedy. The same key gives the same text.

    Returns:
      int32 [B, T + steps], the prompt included.

    Raises:
      ConfigError: no room in the context, no such stream in the model, or a bad sampling option.
    """
    _check(model, prompt_BT, steps, stream, temperature, top_k, key)
    key = jax.random.key(0) if key is None else key
    prompt_BT = jnp.asarray(prompt_BT, jnp.int32)
    greedy = temperature == 0
    scale = jnp.float32(1.0 if greedy else temperature)
    return _generate(model, params, prompt_BT, key, scale, steps, stream, greedy, top_k)


def _check(model, prompt, steps, stream, temperature, top_k, key) -> None:
    c = model.config
    length = prompt.shape[1]
    if length < 1 or steps < 1:
        raise ConfigError(f"a prompt of {length} tokens and {steps} steps; give at least 1 of each")
    if length + steps > c.context_length:
        raise ConfigError(
            f"a prompt of {length} tokens and {steps} steps exceed context_length={c.context_length}; "
            f"generate at most {max(0, c.context_length - length)} tokens"
        )
    if stream not in ("clean", "ablated") or (stream == "ablated" and not c.gated):
        raise ConfigError(f"stream={stream!r}: this model has {'clean and ablated' if c.gated else 'clean only'}")
    if temperature < 0:
        raise ConfigError(f"temperature={temperature} must not be negative; 0 is greedy")
    if temperature > 0 and key is None:
        raise ConfigError("sampling needs a PRNG key; pass key=jax.random.key(seed), or temperature=0")
    if top_k is not None and not 1 <= top_k <= c.vocab_size:
        raise ConfigError(f"top_k={top_k} must be in 1..{c.vocab_size}")


@functools.partial(jax.jit, static_argnums=(0, 5, 6, 7, 8))
def _generate(model, params, prompt_BT, key, temperature, steps, stream, greedy, top_k):
    variables = {"params": params}
    length = prompt_BT.shape[1]
    cache = model.apply(variables, prompt_BT[:, :-1], length + steps, method=model.prefill)

    def body(carry, step_key):
        token, position, cache = carry
        logits, cache = model.apply(variables, token, position, cache, stream == "ablated", method=model.decode)
        token = _choose(logits, step_key, temperature, greedy, top_k)
        return (token, position + 1, cache), token

    start = (prompt_BT[:, -1], jnp.int32(length - 1), cache)
    _, tokens = jax.lax.scan(body, start, jax.random.split(key, steps))
    return jnp.concatenate([prompt_BT, tokens.T], axis=1)


def _choose(logits, key, temperature, greedy, top_k):
    if greedy:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    if top_k is not None:
        lowest = jax.lax.top_k(logits, top_k)[0][:, -1:]
        logits = jnp.where(logits < lowest, -jnp.inf, logits)
    return jax.random.categorical(key, logits / temperature).astype(jnp.int32)
