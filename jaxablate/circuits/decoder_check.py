"""Whether somebody's `Decoder` does what the protocol says, told before anything is measured with it.

A step that is missing or of the wrong shape would fail deep inside a compiled function; two steps that contradict each
other, such as heads written one by one and all together, would fail nowhere and make every result wrong.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxablate.circuits.blocks import Decoder, Inputs, blocks, exact
from jaxablate.circuits.patching import ordinary_run, source_run
from jaxablate.circuits.prompts import PromptPairs
from jaxablate.errors import ConfigError
from jaxablate.types import Params, Stream

STEPS = tuple(name for name in vars(Decoder) if not name.startswith("_"))
"""Names of all that the protocol asks for."""
_INHERITED = ("post_norms", "post_norm", "logit_cap")
"""What a class that derives from `Decoder` may leave out."""
_TOLERANCE = 1e-4
"""Largest difference of two ways to one value, in the size of that value; float32 rounding is a hundredth of it."""


def checked_decoder(decoder: Decoder, params: Params, pairs: PromptPairs, stream: Stream) -> Decoder:
    """The decoder in float32; one that lacks steps, whose steps do not fit or contradict each other is refused.

    Values are computed on the first prompt alone, shapes on all.

    Raises:
      ConfigError: of the decoder; the message names the step.
      DataError: a token of the prompts is beyond its output matrix.
    """
    name = type(decoder).__name__
    stubs = {step: vars(Decoder)[step] for step in STEPS if step not in _INHERITED}  # of a class that derives from it
    missing = [s for s in STEPS if not hasattr(decoder, s) or getattr(type(decoder), s, None) is stubs.get(s, decoder)]
    if missing:
        raise ConfigError(f"{name} lacks {', '.join(missing)} of the Decoder protocol (jaxablate.circuits.Decoder); "
                          "add what is missing, or derive from it, which adds what most models do not have")
    try:
        hash(decoder)
    except TypeError:
        raise ConfigError(f"{name} cannot be hashed, but compiled functions take it as a static argument; make it a "
                          "frozen dataclass of hashable fields, with the weights in params") from None
    inputs = Inputs(tokens=jnp.asarray(pairs.clean, jnp.int32), valid=jnp.asarray(pairs.valid, bool))
    try:
        decoder = decoder.in_type("float32")
        vocabulary = _check_shapes(decoder, params, inputs, stream)
        both = _both_ways(decoder, params, inputs.take(np.arange(1)))
    except ConfigError:
        raise
    except Exception as error:  # whatever somebody's own steps raise is told in one line
        raise ConfigError(f"{name} fails on {len(pairs)} prompts of {pairs.clean.shape[1]} positions "
                          f"({type(error).__name__}: {str(error).partition(chr(10))[0]}); try its steps one by one, "
                          "with the shapes of jaxablate.circuits.Decoder") from error
    pairs.check_fits(context_length=pairs.clean.shape[1], vocab_size=vocabulary)
    for what, (one, other) in both.items():
        size, difference = float(jnp.abs(one).max()), float(jnp.abs(one - other).max())
        if not difference <= _TOLERANCE * max(size, 1e-30) and size:  # also where one is NaN
            raise ConfigError(f"{name}: {what} differ by {difference:.2g} in values of up to {size:.2g}; both must "
                              "give the same numbers")
    return decoder


def _check_shapes(decoder: Decoder, params: Params, inputs: Inputs, stream: Stream) -> int:
    """Traces the decoder without computing; rows of the output matrix."""
    (n, t), (width, neurons, head), graph = inputs.tokens.shape, decoder.sizes, decoder.graph
    run = jax.eval_shape(functools.partial(source_run, decoder), params, inputs)
    table = jax.eval_shape(decoder.unembedding, params)
    shapes = {
        "embed": (jax.eval_shape(decoder.embed, params, inputs).shape, (n, t, width)),
        "heads and MLPs": (run.sources.shape, (graph.n_sources, n, t, width)),
        "final_norm": (run.final.shape, (n, width)), "unembedding": (table.shape, (table.shape[0], width))}
    if stream == "ablated":
        gates = jax.eval_shape(decoder.last_gates, params, inputs)
        for kind, x, units in zip(("attention", "neuron"), gates, ((graph.n_heads, head), (neurons,)), strict=True):
            shapes[f"last_gates ({kind})"] = (x.shape, (n, graph.n_layers, *units))
    for step, (found, wanted) in shapes.items():
        if found != wanted:
            raise ConfigError(f"{type(decoder).__name__}: {step} gives shape {found}, not {wanted}, by its own graph "
                              f"of {graph.n_layers} blocks of {graph.n_heads} heads and its sizes {decoder.sizes}")
    return table.shape[0]


@functools.partial(jax.jit, static_argnums=0)
@exact
def _both_ways(decoder: Decoder, params: Params, inputs: Inputs) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Values that the steps give in two ways, by what they are."""
    out = {}
    for i, block in enumerate(blocks(decoder, params, inputs)):
        weights, normed = block.weights, decoder.read(block.weights, decoder.embed(params, inputs))
        ports = [block.project(port, normed[None]) for port in range(3)]
        for port, (name, all_heads) in enumerate(zip(("queries", "keys", "values"), ports, strict=True)):
            index = jnp.arange(all_heads.shape[0])
            one_by_one = jax.vmap(lambda h, port=port, b=block, x=normed: b.project(port, x, h))(index)
            out[f"project: {name} of all heads of block {i} and of each head"] = all_heads, one_by_one
            own = jnp.broadcast_to(normed, (all_heads.shape[0], *normed.shape))
            apart = block.project(port, own)
            out[f"project: {name} of block {i} from one stream and from one a head"] = all_heads, apart
        channels = block.channels(*ports)
        written = decoder.write(weights, channels)
        one_by_one = jax.vmap(lambda x, h, w=weights: decoder.write(w, x, h))(channels, jnp.arange(channels.shape[0]))
        out[f"write: all heads of block {i} and each head"] = written, one_by_one
        out[f"combine and the sum of write and bias of block {i}"] = (
            decoder.combine(weights, channels), written.sum(0) + decoder.bias(weights))
    out["final: of the ordinary run and of the run source by source"] = (
        ordinary_run(decoder, params, inputs).final, source_run(decoder, params, inputs).final)
    return out
