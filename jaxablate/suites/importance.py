"""How well an importance of words says what the classifier goes by: VMASK, gradient x input, chance.

A removed word is taken out and the rest closes up: the model reads a shorter text, never a hole in it. Every measure
is of the class that the model predicts for the full text, and each ranking meets the same texts.
"""

import dataclasses
import functools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from jaxablate import stats
from jaxablate.classifier.measures import TextMeasures, by_text, word_importance
from jaxablate.reports.panels import Curves, Grid, Panel, Series
from jaxablate.reports.results import Better, Figure
from jaxablate.runs.run import Run
from jaxablate.stats import Estimate
from jaxablate.suites.suite import Suite
from jaxablate.types import Batch, Params, at_least_float32

RANKINGS = ("vmask", "gradient", "random")
"""Keep-probability; |gradient of the predicted class's log-probability by the token's scale|; a seeded draw."""
KEPT = (1, 2, 3, 5, 10)
"""Words kept for post-hoc accuracy (Chen & Ji 2020)."""
DELETED = tuple(range(1, 11))
"""Words deleted for AOPC."""
SHARES = (1, 5, 10, 20, 50)
"""Percent of the words for comprehensiveness and sufficiency (DeYoung et al. 2020)."""
MAX_TEXTS = 2_000
MAX_WORDS = 80_000
"""Words of all texts measured, about: every word is read some fifty times over."""
ROWS = 32
"""Texts of a batch."""
MULTIPLE = 8
"""The length of a batch is a multiple of this."""
HEADLINE_K = 3
"""Words kept in the post-hoc accuracies that tables show."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measure:
    """Mean over texts of one measure under one ranking."""

    name: str
    ranking: str
    """One of `RANKINGS`, or two of them: the mean difference on the same texts."""
    mean: Estimate
    """Bootstrap over texts, with the same draws for every measure."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportanceResult:
    """Every measure under every ranking, and the rankings' differences."""

    measures: tuple[Measure, ...]
    """Means, in this order of names: post-hoc accuracy@k and post-hoc gold accuracy@k, drop@k (of the predicted class's
    probability with the k most important words deleted), AOPC (mean of the drops; 10/11 of it where
    the drop of 0 with nothing deleted counts too, as in Samek et al. 2017), comprehensiveness and sufficiency at each
    of `SHARES` and their means."""
    differences: tuple[Measure, ...]
    """Differences of the same measures: each ranking but the last minus random, VMASK minus gradient."""
    texts: int
    of: int
    """Texts of the split."""
    words: int

    def headline(self) -> tuple[Figure, ...]:
        """Post-hoc accuracy at three words, AOPC, comprehensiveness and sufficiency, each ranking; AOPC differences."""
        better: dict[str, Better] = {f"post-hoc accuracy@{HEADLINE_K}": "up", "AOPC": "up", "comprehensiveness": "up",
                                     "sufficiency": "down"}
        limits = {f"post-hoc accuracy@{HEADLINE_K}": stats.FRACTION}
        means = [Figure(f"{name} {x.ranking}", x.mean, better=better[name], range=limits.get(name))
                 for name in better for x in self.measures if x.name == name]
        return (*means, *(Figure(f"AOPC {x.ranking}", x.mean) for x in self.differences if x.name == "AOPC"))

    def panels(self) -> tuple[Panel, ...]:
        """Curves over the number of words, and all numbers."""
        kept = (*_series(self, "post-hoc accuracy", KEPT), *_series(self, "post-hoc gold accuracy", KEPT, ", gold"))
        columns = ("measure", "ranking", "mean")
        return (
            Curves(title="Post-hoc accuracy", x_label="words kept", y_label="accuracy", series=kept,
                   caption="How often the k most important words alone, in their order, get the class that the full "
                           f"text gets and (gold) the right one; {self.texts:,} of {self.of:,} texts."),
            Curves(title="Deletion", x_label="words deleted", y_label="drop of the probability",
                   series=_series(self, "drop", DELETED),
                   caption="By how much the probability of the predicted class falls when the k most important words "
                           "are deleted. At least one word is left."),
            Grid(title="Importance of words", columns=columns,
                 rows=tuple((x.name, x.ranking, x.mean) for x in self.measures),
                 caption=f"Means over {self.texts:,} texts. Comprehensiveness: drop of the predicted class's "
                         "probability when the top words are deleted; sufficiency: when only they are kept (small is "
                         "good). AOPC is the mean of the drops; comprehensiveness and sufficiency without a number "
                         "are the means over the shares."),
            Grid(title="Differences between rankings", caption="On the same texts, paired.", columns=columns,
                 rows=tuple((x.name, x.ranking, x.mean) for x in self.differences)),
        )


def evaluate(model: Any, params: Params, batches: Iterable[Batch], *, fixed_length: bool = False, pad_id: int = 0,
             seed: int = 0, max_texts: int = MAX_TEXTS, max_words: int = MAX_WORDS) -> ImportanceResult:
    """Deletes and keeps the most important words of each text.

    A text with n words counts in every measure: at most n - 1 words are deleted, so that one is left (a text of one
    word drops by 0), and where more words are to be kept than there are, all are.

    ``fixed_length`` pads shorter texts to the length they came in (``padding="paper"``, where padding is part of the
    result), otherwise they are padded as little as possible. The seed is that of the choice of texts (see `draw`), of
    the random ranking and of the bootstrap.
    """
    texts = by_text(batches, _as_rows)
    chosen = draw(texts, max_texts=max_texts, max_words=max_words, seed=seed)
    padding = {"fixed_length": fixed_length, "pad_id": pad_id}
    values = by_text(batches_of(chosen, **padding),
                     functools.partial(text_measures, model, params, seed=seed, **padding))
    measures, differences = _summarise(values, seed)
    return ImportanceResult(measures=measures, differences=differences, texts=len(chosen["label"]),
                            of=len(texts["label"]), words=int(np.sum(~np.isnan(chosen["tokens"]))))


def draw(texts: TextMeasures, *, max_texts: int, max_words: int, seed: int) -> TextMeasures:
    """A seeded choice of texts (see `_as_rows`), kept in the order of the split.

    There are at most ``max_texts``, and their number times the mean length is at most ``max_words``.
    """
    count = len(texts["tokens"])
    words = np.sum(~np.isnan(texts["tokens"]))
    wanted = max(1, min(count, max_texts, int(max_words * count / words)))
    rows = np.sort(np.random.default_rng(seed).choice(count, size=wanted, replace=False))
    return {name: x[rows] for name, x in texts.items()}


def batches_of(texts: TextMeasures, *, fixed_length: bool = False, pad_id: int = 0) -> Iterator[Batch]:
    """Texts (see `_as_rows`) in batches of similar length, in the form of the data's batches.

    Filler rows end the last batch. ``fixed_length`` keeps the length that the texts came in.
    """
    words = np.sum(~np.isnan(texts["tokens"]), axis=-1)
    order = np.argsort(words, kind="stable")
    for rows in (order[i : i + ROWS] for i in range(0, len(order), ROWS)):
        came_in = texts["length"][rows].max()  # what the model takes for sure, where rounding up would pass its limit
        length = came_in if fixed_length else min(_rounded(words[rows].max()), came_in)
        mask = np.zeros((ROWS, length), np.float32)
        mask[: len(rows)] = np.arange(length) < words[rows, None]
        tokens = np.full(mask.shape, pad_id, np.int32)
        tokens[mask > 0] = texts["tokens"][rows][~np.isnan(texts["tokens"][rows])]
        filled = np.zeros((2, ROWS), np.int32)
        filled[:, : len(rows)] = texts["label"][rows], texts["index"][rows]
        yield {"tokens": tokens, "mask": mask, "labels": filled[0], "index": filled[1],
               "weight": (np.arange(ROWS) < len(rows)).astype(np.float32)}


def text_measures(model: Any, params: Params, batch: Batch, *, fixed_length: bool = False, pad_id: int = 0,
                  seed: int = 0) -> dict[str, np.ndarray]:
    """Measures of each text of a batch by ``measure/ranking``, [B] each; see `ImportanceResult.measures`."""
    full = {name: np.asarray(x) for name, x in word_importance(model, params, batch).items()}
    mask = np.asarray(batch["mask"]) > 0
    full["random"] = np.asarray(random_importance(np.asarray(batch["index"]), length=mask.shape[-1], seed=seed))
    rankings = [name for name in RANKINGS if name in full]
    ranks = np.stack([ranks_of(full[name], mask) for name in rankings])
    words = mask.sum(-1)
    tokens, predicted = np.broadcast_to(batch["tokens"], ranks.shape), np.tile(full["predicted"], len(rankings))
    measures: dict[str, np.ndarray] = {}
    for name, keep in _kept_words(ranks, words).items():
        length = mask.shape[-1] if fixed_length else min(mask.shape[-1], _rounded(keep.sum(-1).max()))
        left = (x.reshape(-1, length) for x in shortened(tokens, keep, length, pad_id))
        chosen, probability = (np.asarray(x).reshape(ranks.shape[:2])
                               for x in class_probability(model, params, *left, predicted))
        values = {name: full["probability"] - probability}
        if name.startswith("post-hoc"):
            values = {name: chosen == full["predicted"],
                      name.replace("accuracy", "gold accuracy"): chosen == np.asarray(batch["labels"])}
        measures |= {f"{key}/{ranking}": value[r].astype(np.float64)
                     for key, value in values.items() for r, ranking in enumerate(rankings)}
    means = {"AOPC": [f"drop@{k}" for k in DELETED]}
    means |= {name: [f"{name}@{r}%" for r in SHARES] for name in ("comprehensiveness", "sufficiency")}
    return measures | {f"{name}/{ranking}": np.mean([measures[f"{part}/{ranking}"] for part in parts], axis=0)
                       for name, parts in means.items() for ranking in rankings}


@functools.partial(jax.jit, static_argnames=("length", "seed"))
def random_importance(index: jax.Array, *, length: int, seed: int) -> jax.Array:
    """[B, length] uniform numbers, a function of the seed, a text's index and the position alone."""
    def one(i: jax.Array) -> jax.Array:
        keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.fold_in(jax.random.key(seed), i)))
        return jax.vmap(jax.random.uniform)(keys(jnp.arange(length)))

    return jax.vmap(one)(index)


def ranks_of(importance: Float[np.ndarray, "batch tokens"], mask: Bool[np.ndarray, "batch tokens"]
             ) -> Int[np.ndarray, "batch tokens"]:
    """Place of each token in the order of importance, 0 for the most important; equal ones by place, padding last.

    >>> ranks_of(np.array([[0.1, 0.7, 0.7, 0.9]]), np.array([[True, True, True, False]])).tolist()
    [[2, 0, 1, 3]]
    """
    order = np.argsort(np.where(mask, -importance, np.inf), axis=-1, kind="stable")
    return np.argsort(order, axis=-1, kind="stable")


def shortened(tokens: Int[np.ndarray, "*rows tokens"], keep: Bool[np.ndarray, "*rows tokens"], length: int,
              pad_id: int = 0) -> tuple[Int[np.ndarray, "*rows length"], Float[np.ndarray, "*rows length"]]:
    """The tokens that stay, in their order, with the gaps closed, and their mask; ``pad_id`` and 0 after the end.

    The length of the result is at least the number of tokens that stay in any row.

    >>> shortened(np.array([[5, 6, 7]]), np.array([[True, False, True]]), 2)[0].tolist()
    [[5, 7]]
    """
    mask = np.arange(length) < keep.sum(-1, keepdims=True)
    out = np.full(mask.shape, pad_id, np.int32)
    out[mask] = tokens[keep]
    return out, mask.astype(np.float32)


@functools.partial(jax.jit, static_argnames="model")
def class_probability(
    model: Any, params: Params, tokens: Int[ArrayLike, "batch tokens"], mask: Float[ArrayLike, "batch tokens"],
    of: Int[ArrayLike, " batch"]
) -> tuple[Int[Array, " batch"], Float[Array, " batch"]]:
    """Predicted class of each text, and the probability of the class ``of``."""
    logits = model.apply({"params": params}, tokens, mask).logits
    p = jax.nn.softmax(logits.astype(at_least_float32(logits.dtype)))
    return jnp.argmax(logits, axis=-1), jnp.take_along_axis(p, jnp.asarray(of)[:, None], axis=-1)[:, 0]


def _kept_words(ranks: np.ndarray, words: np.ndarray) -> dict[str, np.ndarray]:
    """Measure -> which tokens it leaves, [R, B, L], from ranks [R, B, L] and lengths [B]."""
    there = ranks < words[:, None]
    share = {r: -(-r * words // 100)[:, None] for r in SHARES}  # rounded up, so at least one word
    left = np.minimum(words, 1)[:, None]

    def without(count: np.ndarray | int) -> np.ndarray:
        return there & (ranks >= np.minimum(count, words[:, None] - left))

    return {f"post-hoc accuracy@{k}": there & (ranks < k) for k in KEPT} | {
        f"drop@{k}": without(k) for k in DELETED} | {
        f"comprehensiveness@{r}%": without(share[r]) for r in SHARES} | {
        f"sufficiency@{r}%": there & (ranks < share[r]) for r in SHARES}


def _as_rows(batch: Batch) -> dict[str, np.ndarray]:
    """Texts of a batch as rows that end with NaN; ``length`` is that of the batch that a text came in."""
    mask = np.asarray(batch["mask"]) > 0
    return {"tokens": np.where(mask, np.asarray(batch["tokens"], np.float64), np.nan),
            "label": np.asarray(batch["labels"]), "index": np.asarray(batch["index"]),
            "length": np.full(len(mask), mask.shape[-1])}


def _rounded(length: int) -> int:
    return int(length + -length % MULTIPLE)


def _summarise(values: TextMeasures, seed: int) -> tuple[tuple[Measure, ...], tuple[Measure, ...]]:
    """Means of all measures, and the differences between rankings, all over the same draws of texts."""
    table = np.stack(list(values.values()))
    texts = table.shape[-1]
    draws = stats.ratio_resamples(table, np.ones(texts), seed=seed) if texts > 1 else table[:, :0]
    rows: dict[str, dict[str, tuple[float, np.ndarray]]] = defaultdict(dict)
    for key, mean, drawn in zip(values, table.mean(-1), draws, strict=True):
        name, _, ranking = key.partition("/")
        rows[name][ranking] = float(mean), drawn

    def measure(name: str, ranking: str, mean: float, drawn: np.ndarray) -> Measure:
        return Measure(name=name, ranking=ranking, mean=stats.from_draws(mean, drawn, n=texts))

    measures, differences = [], []
    for name, row in rows.items():
        measures += [measure(name, ranking, *numbers) for ranking, numbers in row.items()]
        pairs = [(a, b) for a, b in (("vmask", "random"), ("gradient", "random"), ("vmask", "gradient")) if a in row]
        differences += [measure(name, f"{a} - {b}", row[a][0] - row[b][0], row[a][1] - row[b][1]) for a, b in pairs]
    return tuple(measures), tuple(differences)


def _series(result: ImportanceResult, name: str, at: Sequence[int], suffix: str = "") -> tuple[Series, ...]:
    """A measure over the number of words, a curve for each ranking."""
    values = {(x.name, x.ranking): x.mean.value for x in result.measures if x.mean.value is not None}
    rankings = dict.fromkeys(x.ranking for x in result.measures)
    return tuple(Series(label=f"{ranking}{suffix}", x=tuple(float(k) for k in at),
                        y=tuple(values[f"{name}@{k}", ranking] for k in at)) for ranking in rankings)


def _run(run: Run) -> tuple[ImportanceResult, dict[str, Any]]:
    result = evaluate(run.model, run.params, run.splits["test"].batches(), seed=run.seed,
                      fixed_length=run.model.config.padding == "paper", pad_id=run.tokenizer.pad_id)
    return result, {"split": "test", "texts": result.texts, "max_texts": MAX_TEXTS, "max_words": MAX_WORDS,
                    "deletion_leaves": 1, "bootstrap_resamples": stats.RESAMPLES, "seed": run.seed}


SUITE = Suite(name="importance", run=_run, task="classification",
              about="Post-hoc accuracy, AOPC, comprehensiveness and sufficiency of word importance, on test texts.")
