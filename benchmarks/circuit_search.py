"""ACDC and EAP over all edges of the paper's shape (23,981), GPT-2 small's (32,491) or Qwen2-0.5B's (79,813).

    python -m benchmarks.circuit_search --weights trained
    python -m benchmarks.circuit_search --weights random
    python -m benchmarks.circuit_search --weights strong
    python -m benchmarks.circuit_search --weights strong --shape gpt2 --repeats 1

``trained``: a baseline with the paper's layers, heads and width, trained on the embedded corpus (a quarter of an
hour, kept in runs/corpus-8x16) and asked for the corpus's indirect objects. Its output matrix has rows of zeros
besides, up to the paper's 50,257, so that an evaluated edge costs what it costs there. ``random``: weights as they
are drawn, random prompts. ``strong``: the same with kernels times 3 (8 at other shapes than the paper's) and
embeddings times 6, so that no edge is without effect and most nodes stay alive: what a search has to fear.
"""

import dataclasses
import functools
import json
import statistics
import time
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks.training_step import peak_bytes
from configs import quickstart
from jaxablate.circuits import PromptPairs, acdc, eap, problem, tokenise
from jaxablate.circuits.tasks import from_corpus
from jaxablate.config import Config, ModelConfig, family
from jaxablate.data import corpus
from jaxablate.data.tokenizer import load_tokenizer
from jaxablate.models.decoder import SelfAblatingTransformer
from jaxablate.runs.checkpoint import restore_params
from jaxablate.training.loop import train
from jaxablate.types import Params

SHAPE = ModelConfig(vocab_size=50257, context_length=256, d_model=128, n_layers=8, n_heads=16, ablation="none")
SHAPES = {"paper": SHAPE, "gpt2": family("gpt2", vocab_size=50257, context_length=1024, d_model=768, n_layers=12,
                                         n_heads=12, ablation="none"),
          "qwen2": family("qwen2", vocab_size=151936, context_length=1024, d_model=896, n_layers=24, n_heads=14,
                          kv_heads=2, d_mlp=4864, ablation="none")}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure; the defaults are the paper's shape and protocol."""

    weights: Literal["trained", "random", "strong"] = "trained"
    shape: Literal["paper", "gpt2", "qwen2"] = "paper"
    """Model whose shape random and strong weights have; trained weights always have the paper's."""
    taus: tuple[float, ...] = (0.03,)
    prompts: int = 64
    length: int = 20
    """Tokens of random prompts."""
    workdir: Path = Path("runs/corpus-8x16")
    """Working directory of the trained model; a finished run in it is used as it is."""
    eap_batch_size: int | None = None
    """Prompts at once of EAP; None for all of them."""
    repeats: int = 3


def measure(options: Options) -> dict[str, Any]:
    """One row of the table, as plain numbers: times in s, memory in bytes. The first search also compiles."""
    model, params, pairs = trained(options) if options.weights == "trained" else drawn(options)
    task = problem(model, params, pairs)
    searches = [acdc(task, options.taus) for _ in range(1 + options.repeats)]
    eap(task, batch_size=options.eap_batch_size)
    eap_seconds = [_timed(lambda: eap(task, batch_size=options.eap_batch_size)) for _ in range(options.repeats)]
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


def trained(options: Options) -> tuple[ModelConfig, Params, PromptPairs]:
    """A trained model with a vocabulary filled up to the paper's, and the corpus's prompts."""
    config = training_config()
    train(config, options.workdir)
    params, _ = restore_params(options.workdir)
    rows = params["embed"]["embedding"]
    filled = jnp.pad(rows, ((0, SHAPE.vocab_size - len(rows)), (0, 0)))
    texts = from_corpus(corpus.ioi_prompts(0, options.prompts))
    pairs = tokenise(texts, load_tokenizer(options.workdir / "tokenizer"), name="IOI")
    model = dataclasses.replace(config.model, vocab_size=SHAPE.vocab_size)
    return model, {**params, "embed": {"embedding": filled}}, pairs


def training_config() -> Config:
    """configs/quickstart.py with the paper's layers, heads and width, ungated."""
    base = quickstart.get_config()
    shape = {name: getattr(SHAPE, name) for name in ("n_layers", "n_heads", "d_model", "ablation")}
    return dataclasses.replace(
        base, model=dataclasses.replace(base.model, **shape),
        optimizer=dataclasses.replace(base.optimizer, learning_rate=2e-3),
        train=dataclasses.replace(base.train, steps=2500, checkpoint_every=500))


def drawn(options: Options) -> tuple[ModelConfig, Params, PromptPairs]:
    """Random weights and prompts; clean and corrupt ones differ at three positions."""
    shape = SHAPES[options.shape]
    params = jax.jit(SelfAblatingTransformer(shape).init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    if options.weights == "strong":
        factor = 3 if options.shape == "paper" else 8
        params = jax.tree_util.tree_map_with_path(functools.partial(_stronger, factor), params)
    rng = np.random.default_rng(0)
    clean = rng.integers(0, shape.vocab_size, (options.prompts, options.length), np.int32)
    corrupt = clean.copy()
    corrupt[:, [2, 4, options.length - 6]] = rng.integers(0, shape.vocab_size, (options.prompts, 3))
    answers = clean[:, 2:3].tolist(), corrupt[:, 2:3].tolist()
    return shape, params, PromptPairs.from_ids(clean.tolist(), corrupt.tolist(), *answers, name="random tokens")


def _stronger(factor: float, path, x: jax.Array) -> jax.Array:
    name = jax.tree_util.keystr(path)
    return 6 * x if "'embed'" in name else factor * x if "kernel" in name else x


def _timed(run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


if __name__ == "__main__":
    print(json.dumps(measure(tyro.cli(Options))))
