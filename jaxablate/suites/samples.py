"""Continuations of fixed prompts by each stream, for a reader's eye."""

import dataclasses
import functools
import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxablate.data.ids import bos_id
from jaxablate.data.tokenizer import Tokenizer
from jaxablate.models.generation import generate
from jaxablate.reports.panels import Panel, Passage, Passages
from jaxablate.reports.results import Figure
from jaxablate.runs.run import Run
from jaxablate.suites.suite import Suite
from jaxablate.types import Params, Stream

STORY_PROMPTS = (
    "Once upon a time, there was a little girl named Lily.",
    "One day, Tom and his dog went to the big park.",
    "The cat was sad. She could not find her little ball.",
    "It was dark, but Tim was not afraid because he had a",
)
"""For models of real stories. All are 13 GPT-2 tokens: prompts of one length need one compilation."""
CORPUS_PROMPTS = (
    "Once upon a time, there was a little girl named Lily.",
    "There was once a funny little boy named Jack. He had a",
    "Then, Joe and Daisy were playing at the farm. Daisy",
    "Then, Rob and Sue went to the park. Rob gave a",
)
"""For models of the embedded corpus, in its own words."""
MAX_STEPS = 60
TEMPERATURE = 0.8
TOP_K = 40


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """One prompt with each stream's continuation, cut at the first end-of-text."""

    prompt: str
    continuations: tuple[tuple[str, str], ...]
    """Pairs (stream, text)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplesResult:
    """Samples of every prompt."""

    samples: tuple[Sample, ...]
    temperature: float
    top_k: int | None

    def headline(self) -> tuple[Figure, ...]:
        """No figures: samples are read, not counted."""
        return ()

    def panels(self) -> tuple[Panel, ...]:
        """The texts."""
        how = "Greedy." if self.temperature == 0 else f"Temperature {self.temperature:g}, top {self.top_k}."
        passages = tuple(Passage(given=s.prompt, said=s.continuations) for s in self.samples)
        return (Passages(title="Samples", caption=f"{how} The same random key for both streams.", passages=passages),)


def evaluate(
    model: Any, params: Params, prompts: Sequence[Sequence[int]], *, streams: Sequence[Stream],
    decode: Callable[[list[int]], str], eot_id: int, steps: int = MAX_STEPS,
    temperature: float = TEMPERATURE, top_k: int | None = TOP_K, seed: int = 0,
) -> SamplesResult:
    """Continues each prompt (token ids) once with each stream; prompts of one length are generated together.

    Continuations have ``steps`` tokens, fewer where the context is full before, and are cut at the first end-of-text.
    Temperature 0 takes the likeliest token, else one is drawn among the ``top_k`` likeliest; None draws among all.
    """
    longest = max(1, model.config.context_length // 2)
    cut = [list(p)[-longest:] for p in prompts]
    groups = defaultdict(list)
    for i, prompt in enumerate(cut):
        groups[len(prompt)].append(i)
    texts: dict[tuple[int, Stream], str] = {}
    for length, members in sorted(groups.items()):
        room = min(steps, model.config.context_length - length)
        given = jnp.asarray([cut[i] for i in members], jnp.int32)
        for stream in streams:
            tokens = generate(model, params, given, steps=room, stream=stream, temperature=temperature, top_k=top_k,
                              key=jax.random.key(seed))
            for i, row in zip(members, np.asarray(tokens)[:, length:].tolist(), strict=True):
                texts[i, stream] = decode(row[: row.index(eot_id)] if eot_id in row else row)
    samples = tuple(
        Sample(prompt=decode(prompt), continuations=tuple((stream, texts[i, stream]) for stream in streams))
        for i, prompt in enumerate(cut)
    )
    return SamplesResult(samples=samples, temperature=temperature, top_k=top_k)


def readable(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Text of token ids. Ids that only the model has (its vocabulary may be rounded up) become U+FFFD."""
    runs = itertools.groupby(ids, key=lambda i: i < tokenizer.vocab_size)
    return "".join(tokenizer.decode(list(run)) if ours else "\ufffd" * len(list(run)) for ours, run in runs)


def _run(run: Run) -> tuple[SamplesResult, dict[str, Any]]:
    tokenizer = run.tokenizer
    texts = CORPUS_PROMPTS if run.config.data.source == "embedded" else STORY_PROMPTS
    before = [] if bos_id(tokenizer) is None else [bos_id(tokenizer)]
    prompts = [before + tokenizer.encode(text) for text in texts]
    top_k = min(TOP_K, run.config.model.vocab_size)
    result = evaluate(run.model, run.params, prompts, streams=run.streams,
                      decode=functools.partial(readable, tokenizer), eot_id=tokenizer.eot_id, top_k=top_k,
                      seed=run.seed)
    return result, {"steps": MAX_STEPS, "temperature": TEMPERATURE, "top_k": top_k, "seed": run.seed}


SUITE = Suite(name="samples", about="Continuations of fixed prompts by each stream.", run=_run)
