"""ACDC and EAP over all 23,981 edges of the paper's shape: seconds, edges evaluated, memory.

    python -m benchmarks.circuit_search --weights trained
    python -m benchmarks.circuit_search --weights random
    python -m benchmarks.circuit_search --weights strong

``trained``: a baseline of the paper's shape, output matrix included, trained on the embedded corpus (some minutes, kept
in runs/bench-circuits) and asked for the corpus's indirect objects. ``random``: weights as they are drawn, random
prompts. ``strong``: the same with kernels times 3 and embeddings times 6, so that no edge is without effect and most
nodes stay alive: what a search has to fear.
"""

import dataclasses
import json
import statistics
import time
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks.training_step import peak_bytes
from configs import quickstart
from jaxablate.circuits import acdc, eap, tokenise
from jaxablate.circuits.prompts import PromptPairs
from jaxablate.circuits.tasks import from_corpus
from jaxablate.config import Config, ModelConfig
from jaxablate.data import corpus
from jaxablate.data.tokenizer import load_tokenizer
from jaxablate.evaluation.stream_circuits import prepare_pairs
from jaxablate.models.decoder import SelfAblatingTransformer
from jaxablate.training.checkpoint import restore_params
from jaxablate.training.loop import train

SHAPE = ModelConfig(vocab_size=50257, context_length=256, d_model=128, n_layers=8, n_heads=16, ablation="none",
                    scale_attention=True, position_std=0.05)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure; the defaults are the paper's shape and protocol."""

    weights: Literal["trained", "random", "strong"] = "trained"
    taus: tuple[float, ...] = (0.03,)
    prompts: int = 64
    length: int = 20
    """Tokens of random prompts."""
    steps: int = 600
    """Of training."""
    workdir: Path = Path("runs/bench-circuits")
    """Of the trained model; one that is finished is used as it is."""
    repeats: int = 3


def measure(options: Options) -> dict[str, float]:
    """One row of the table, as plain numbers: times in s, memory in bytes. The first search also compiles."""
    params, pairs = trained(options) if options.weights == "trained" else drawn(options)
    searches = [acdc(SHAPE, params, pairs, taus=options.taus) for _ in range(1 + options.repeats)]
    known = prepare_pairs(SHAPE, params, pairs, "clean")
    eap(*known.arguments)
    eap_seconds = [_timed(lambda: eap(*known.arguments)) for _ in range(options.repeats)]
    last = searches[-1]
    return {
        "first_s": searches[0].seconds,
        "search_s": statistics.median(s.seconds for s in searches[1:]),
        "edges": last.graph.n_edges,
        "evaluated": last.evaluated,
        "rechecked": last.rechecked,
        "kept": {str(tau): run.n_kept for tau, run in last.runs.items()},
        "eap_s": statistics.median(eap_seconds),
        "peak_bytes": peak_bytes(),
    }


def trained(options: Options) -> tuple[dict, PromptPairs]:
    """A model of the paper's shape trained on the embedded corpus, and the corpus's prompts."""
    base = quickstart.get_config()
    config = dataclasses.replace(
        base, model=SHAPE, optimizer=dataclasses.replace(base.optimizer, learning_rate=2e-3),
        train=dataclasses.replace(base.train, steps=options.steps, eval_every=options.steps, checkpoint_every=100))
    assert isinstance(config, Config)
    train(config, options.workdir)
    params, _ = restore_params(options.workdir)
    texts = from_corpus(corpus.ioi_prompts(0, options.prompts))
    return params, tokenise(texts, load_tokenizer(options.workdir / "tokenizer"), name="IOI")


def drawn(options: Options) -> tuple[dict, PromptPairs]:
    """Random weights and prompts; clean and corrupt ones differ at three positions."""
    params = jax.jit(SelfAblatingTransformer(SHAPE).init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    if options.weights == "strong":
        params = jax.tree_util.tree_map_with_path(_stronger, params)
    rng = np.random.default_rng(0)
    clean = rng.integers(0, SHAPE.vocab_size, (options.prompts, options.length), np.int32)
    corrupt = clean.copy()
    corrupt[:, [2, 4, options.length - 6]] = rng.integers(0, SHAPE.vocab_size, (options.prompts, 3))
    answers = clean[:, 2:3].tolist(), corrupt[:, 2:3].tolist()
    return params, PromptPairs.from_ids(clean.tolist(), corrupt.tolist(), *answers, name="random tokens")


def _stronger(path, x: jax.Array) -> jax.Array:
    name = jax.tree_util.keystr(path)
    return 6 * x if "'embed'" in name else 3 * x if "kernel" in name else x


def _timed(run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


if __name__ == "__main__":
    print(json.dumps(measure(tyro.cli(Options))))
