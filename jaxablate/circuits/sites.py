"""Circuits of any JAX model, by its named activations: attribution, exact patching, faithfulness over nodes.

The model is one pure function, ``model(params, tokens, edit) -> logits``. At each activation that is to have a name it
calls ``x = edit(name, x)`` and goes on with what that gives, and that is all it has to do: it is read, patched and
differentiated through this one call. One abstract trace, which computes nothing, finds the names. `linen.from_linen`
makes such a function of a Flax Linen module as it stands.

>>> def model(params, tokens, edit):
...     x = edit("embed", params["table"][tokens])
...     x = x + edit("mlp", jnp.tanh(x @ params["mlp"]))
...     return x @ params["table"].T
>>> params = {"table": jnp.eye(5), "mlp": jnp.eye(5) / 2}
>>> pairs = PromptPairs.from_ids([[1, 2], [3]], [[1, 4], [0]], [[2], [3]], [[4], [0]], name="copy")
>>> task = problem(model, params, pairs)
>>> task
SiteProblem('copy': 2 prompts of 1 to 2 tokens, resample ablation, logit_difference, 2 sites, 2 nodes)
>>> dict(zip(task.nodes, effects(task).round(2).tolist(), strict=True))
{'embed': -2.92, 'mlp': -0.92}

A site is one named activation, [n, ...]; a node is a site, or one of the slices that it is cut into (``split``): heads,
positions, neurons. A patched node has its ablated value, and what the model computes from it follows.

What the function may do: anything JAX can trace. Sites may lie inside `jax.vmap`, over prompts too, as models of one
prompt are written; not inside a loop, `jax.checkpoint` or `jax.jit`, whose values cannot be taken out. Prompts are
padded at the *right* and read at their last token, so that padding changes nothing in a causal model; a model that
looks ahead has to mask the padding by itself.
"""

import dataclasses
import difflib
import fnmatch
import functools
import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap
from jaxtyping import Bool, Float

from jaxablate.circuits.blocks import exact
from jaxablate.circuits.faithfulness import PERCENTS, Curve, Faithfulness, check_percents, require_difference
from jaxablate.circuits.metrics import METRICS, LogitDifference, LogitDivergence, Metric, Target, importance
from jaxablate.circuits.patching import ABLATIONS, Ablation
from jaxablate.circuits.prompts import NO_ANSWER, PAD, PromptPairs
from jaxablate.errors import ConfigError, DataError
from jaxablate.types import Params, at_least_float32

Edit = Callable[[str, jax.Array], jax.Array]
"""(name, activation) -> what the model goes on with, of the same shape and type; as `models.decoder.Edit`."""
SiteModel = Callable[[Params, jax.Array, Edit], jax.Array]
"""(params, tokens int32 [n, T], edit) -> logits [n, T, V], of which the last real position counts, or [n, V]. Pure and
hashable: compiled functions take it as a static argument."""

MOST_SIZES = 32
"""`faithfulness` looks at every number of kept nodes where there are at most so many nodes, else at `PERCENTS`."""
_TOGETHER = 512
"""Nodes whose masks [nodes, nodes] are held at once."""
_TRACED = (97, 89)
"""Prompts of the abstract trace: a number that no other axis is likely to have, and another one."""


@dataclasses.dataclass(frozen=True)
class Site:
    """A named activation, and how it is cut into nodes."""

    name: str
    shape: tuple[int, ...]
    """Shape of the activation without its first axis, which is that of the prompts."""
    split: tuple[int, ...] = ()
    """Axes of [n, ...] along which it is cut, ascending; without any it is one node."""

    @property
    def counts(self) -> tuple[int, ...]:
        """Slices along each axis of ``split``."""
        return tuple(self.shape[axis - 1] for axis in self.split)

    @property
    def n_nodes(self) -> int:
        """Number of nodes."""
        return math.prod(self.counts)

    @property
    def nodes(self) -> tuple[str, ...]:
        """Names of its nodes: that of the site, or ``heads[0, 3]``."""
        if not self.split:
            return (self.name,)
        return tuple(f"{self.name}{list(place)}" for place in itertools.product(*map(range, self.counts)))

    def spread(self, nodes: jax.Array) -> jax.Array:
        """[..., nodes] as [..., 1, ...], to be broadcast against [..., n, ...] of the activation."""
        sizes = [size if axis in self.split else 1 for axis, size in enumerate(self.shape, 1)]
        return nodes.reshape(*nodes.shape[:-1], 1, *sizes)

    def gather(self, x: jax.Array) -> jax.Array:
        """[nodes] sums of [n, ...] over prompts and within each node."""
        return x.sum([axis for axis in range(x.ndim) if axis not in self.split]).reshape(self.n_nodes)


@flax.struct.dataclass
class _Batch:
    """Some prompts, padded at the right."""

    tokens: jax.Array
    """[b, T] int."""
    corrupt: jax.Array
    valid: jax.Array
    """[b, T] bool."""
    weight: jax.Array
    """[b] share of each prompt in the mean over all; 0 where a prompt only fills up the batch."""
    direction: jax.Array
    """[b, V] whose product with the logits is the logit difference."""


@flax.struct.dataclass
class _Prepared:
    """What the clean and the corrupt run of a batch leave behind."""

    clean: dict[str, jax.Array]
    replaced: dict[str, jax.Array]
    """[b or 1, ...] what patched nodes have, by site."""
    target: Target


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SiteProblem:
    """A model on the prompts of a task, by its named activations; `problem` makes one."""

    model: SiteModel
    params: Params
    pairs: PromptPairs
    sites: tuple[Site, ...]
    """In the order in which the model computes them."""
    vocabulary: int
    """V: logits of the model, or its classes."""
    ablation: Ablation
    metric: Metric
    pad: int
    batch_size: int

    def __repr__(self) -> str:
        return (f"SiteProblem({self.pairs.name!r}: {self.pairs.describe()}, {self.ablation} ablation, {self.metric}, "
                f"{len(self.sites):,} sites, {len(self.nodes):,} nodes)")

    @functools.cached_property
    def nodes(self) -> tuple[str, ...]:
        """Names of all nodes, site by site: the order of every score."""
        return tuple(name for site in self.sites for name in site.nodes)

    def places(self) -> Iterator[tuple[Site, slice]]:
        """Every site, and where its nodes are among all."""
        start = 0
        for site in self.sites:
            yield site, slice(start, start + site.n_nodes)
            start += site.n_nodes

    def batches(self) -> Iterator[tuple[_Batch, int]]:
        """Prompts at most `batch_size` at a time, all of one shape, and how many of them are real."""
        p, n = self.pairs, len(self.pairs)
        size = min(self.batch_size, n)
        place = (np.arange(p.clean.shape[1]) - p.lengths[:, None]) % p.clean.shape[1]  # padding from left to right
        valid = np.take_along_axis(p.valid, place, axis=1)
        tokens, corrupt = (np.where(valid, np.take_along_axis(x, place, axis=1), self.pad).astype(np.int32)
                           for x in (p.clean, p.corrupt))
        for start in range(0, n, size):
            rows, real = np.minimum(np.arange(start, start + size), n - 1), min(size, n - start)
            weight = ((np.arange(size) < real) / n).astype(np.float32)
            right, wrong = (_mean_of(x[rows], self.vocabulary) for x in (p.answers, p.wrong_answers))
            arrays = tokens[rows], corrupt[rows], valid[rows], weight, right - wrong
            yield _Batch(*map(jnp.asarray, arrays)), real

    def prepared(self) -> Iterator[tuple[_Batch, _Prepared, int]]:
        """The batches with their clean and corrupt runs.

        Raises:
          DataError: an activation or a logit is not finite.
        """
        for batch, real in self.batches():
            out, finite = _prepare(self.model, self.sites, self.ablation, self.metric, self.params, batch, self._means)
            for name in (*(site.name for site in self.sites), ""):
                if not finite[name]:
                    raise DataError(f"{name or 'the logits'} of the model are NaN or infinite on prompts of "
                                    f"{self.pairs.name!r}; look at its parameters and at its masks")
            yield batch, out, real

    @functools.cached_property
    def _means(self) -> dict[str, jax.Array]:
        """[1, T or 1, ...] means of the corrupt run by site, over all prompts; none for other ablations."""
        if self.ablation not in ("mean", "mean_per_position"):
            return {}
        sums: dict[str, Any] = {}
        for batch, _ in self.batches():
            now = _sums(self.model, self.sites, self.ablation, self.params, batch)
            sums = jax.tree.map(np.add, sums, now) if sums else jax.tree.map(np.asarray, now)
        return {name: jnp.asarray(total / np.maximum(count, 1e-30)) for name, (total, count) in sums.items()}


def problem(
    model: SiteModel, params: Params, pairs: PromptPairs, *, sites: Sequence[str] | None = None,
    split: Mapping[str, int | Sequence[int]] | None = None, ablation: Ablation = "resample",
    metric: Metric = "logit_difference", pad: int = PAD, batch_size: int = 64,
) -> SiteProblem:
    """A question about a model's named activations.

    Args:
      model: (params, tokens int32 [n, T], edit) -> logits; see the head of this file.
      params: any pytree of arrays.
      pairs: clean and corrupt prompts with their answers; of a classifier these are classes.
      sites: names or patterns (``block_*.mlp``); all sites by default. Paths around all chosen ones stay clean, so name
        the embedding, too, where everything is to be patched.
      split: pattern of sites -> axis or axes of [n, ...] along which they are cut into nodes: of [n, T, N, H] 2 makes
        each head a node, (1, 2) each head at each position.
      ablation: what patched nodes have: values of the corrupt run, zeros, or means of the corrupt run over real tokens;
        per position means are counted from the start of the prompts. Sites without an axis of T positions after the
        prompts have means over prompts.
      metric: what is measured, as in `metrics`.
      pad: token at padded positions, which follow the prompts.
      batch_size: prompts computed at once. It bounds the memory: that of a run and its derivative on so many prompts.

    Raises:
      ConfigError: a setting is unknown, the model is no such function, or a pattern fits no site (the nearest is
        named).
      DataError: the model has fewer logits than the answers need.
    """
    for name, value, choices in (("ablation", ablation, ABLATIONS), ("metric", metric, METRICS)):
        if value not in choices:
            raise ConfigError(f"{name}={value!r} is unknown; choose among {', '.join(choices)}")
    if batch_size < 1:
        raise ConfigError(f"batch_size={batch_size} must be at least 1; it is the number of prompts computed at once")
    found, logits = discover(model, params, pairs.clean.shape[1])
    if (n := max(int(pairs.answers.max()), int(pairs.wrong_answers.max()))) >= logits:
        raise DataError(f"{pairs.name}: answer {n} is beyond the model's {logits} logits; tokenise the prompts with "
                        "the model's own tokenizer")
    chosen = _chosen(found, sites)
    splits = _splits(chosen, split or {})
    return SiteProblem(model=model, params=params, pairs=pairs, vocabulary=logits, ablation=ablation, metric=metric,
                       pad=pad, batch_size=batch_size,
                       sites=tuple(Site(name, shape, splits.get(name, ())) for name, shape in chosen.items()))


def discover(model: SiteModel, params: Params, length: int) -> tuple[dict[str, tuple[int, ...] | str], int]:
    """Names of all activations in the order of computation, by one abstract trace on prompts of a length.

    Returns:
      (name -> shape without the axis of the prompts, or why it cannot be a site; V, the number of logits).

    Raises:
      ConfigError: the model is no such function, or gives two activations one name.
    """
    n = _TRACED[0] if length != _TRACED[0] else _TRACED[1]
    found: dict[str, tuple[int, ...] | str] = {}

    def record(name: str, x: jax.Array) -> jax.Array:
        if isinstance(found.get(name), tuple):
            raise ConfigError(f"the model calls edit({name!r}, ...) twice; give every activation a name of its own")
        if not jnp.issubdtype(x.dtype, jnp.floating):
            found[name] = f"it is of {x.dtype}, not of floating-point numbers"
        elif x.shape[:1] != (n,):
            found[name] = f"its shape {x.shape} does not begin with the prompts"
        else:
            found[name] = x.shape[1:]
        return x

    def inside(name: str) -> None:
        found.setdefault(name, "it lies inside a loop, jax.checkpoint or jax.jit, whose values cannot be taken out")

    try:
        hash(model)
    except TypeError:
        raise ConfigError(f"the model, of type {type(model).__name__}, cannot be hashed, but compiled functions take "
                          "it as a static argument; give a plain function, with the weights in params") from None
    tokens = jax.ShapeDtypeStruct((n, length), jnp.int32)
    out = jax.eval_shape(lambda p, t: model(p, t, _Editor(record, inside)), params, tokens)
    shape = getattr(out, "shape", None)
    if shape is None or len(shape) not in (2, 3) or shape[:-1] != (n, length)[: len(shape) - 1] or not jnp.issubdtype(
            out.dtype, jnp.floating):
        given = type(out).__name__ if shape is None else f"{out.dtype}{list(shape)}"
        raise ConfigError(f"for tokens [n, T] = [{n}, {length}] the model gives {given}; it must give floating-point "
                          "logits [n, T, V], or [n, V]")
    return found, shape[-1]


class _Editor:
    """The ``edit`` that a model is called with: `change` gets each activation as a whole, with all its prompts.

    Within `jax.vmap` an activation is seen without the mapped axis; the rule of a function that batches itself
    (`custom_vmap`) has it as it is outside. There may be a vmap around that again, so it asks once more.
    """

    def __init__(self, change: Edit, inside: Callable[[str], None] | None = None, names: frozenset[str] | None = None):
        self._change, self._inside, self._names = change, inside, names
        self._outside = _trace_state()

    def __call__(self, name: str, x: jax.Array) -> jax.Array:
        if self._names is not None and name not in self._names:
            return x
        if _trace_state() == self._outside:
            return self._change(name, x)
        if self._inside is not None:
            self._inside(name)
        unchanged = custom_vmap(lambda x: x)
        unchanged.def_vmap(lambda size, mapped, x: (self(name, x), True))
        return unchanged(x)


def _trace_state() -> Any:
    return jax.extend.core.get_opaque_trace_state(convention="flax")


def _chosen(found: Mapping[str, tuple[int, ...] | str], patterns: Sequence[str] | None) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the sites that fit any of the patterns, in the order of computation."""
    good = {name: shape for name, shape in found.items() if isinstance(shape, tuple)}
    if isinstance(patterns, str):
        raise ConfigError(f"sites={patterns!r} is one text; give a list of names or patterns, [{patterns!r}]")
    if not good:
        why = "".join(f"; {name!r}: {reason}" for name, reason in itertools.islice(found.items(), 3))
        raise ConfigError(f"the model names no activation that can be a site{why}; call x = edit(name, x) where one is "
                          "computed, and go on with the result")
    for pattern in () if patterns is None else patterns:
        if _fitting(pattern, good):
            continue
        if bad := _fitting(pattern, found):
            raise ConfigError(f"{bad[0]!r} cannot be a site: {found[bad[0]]}; choose others")
        raise ConfigError(f"no site fits {pattern!r}; {_nearest(pattern, good)}")
    names = set(good if patterns is None else itertools.chain(*(_fitting(pattern, good) for pattern in patterns)))
    return {name: shape for name, shape in good.items() if name in names}


def _fitting(pattern: str, names: Collection[str]) -> list[str]:
    """The name itself, which may have brackets, or all that a pattern fits."""
    return [pattern] if pattern in names else [name for name in names if fnmatch.fnmatchcase(name, pattern)]


def _splits(shapes: Mapping[str, tuple[int, ...]], split: Mapping[str, int | Sequence[int]]
            ) -> dict[str, tuple[int, ...]]:
    out = {}
    for pattern, given in split.items():
        names = _fitting(pattern, shapes)
        if not names:
            raise ConfigError(f"split: no chosen site fits {pattern!r}; {_nearest(pattern, shapes)}")
        axes = tuple(sorted({given} if isinstance(given, int) else set(given)))
        for name in names:
            if not axes or axes[0] < 1 or axes[-1] > len(shapes[name]):
                raise ConfigError(f"split: {name!r} of shape [n, {', '.join(map(str, shapes[name]))}] has no axes "
                                  f"{axes} to cut; choose among 1 .. {len(shapes[name])}, 0 being that of the prompts")
            out[name] = axes
    return out


def _nearest(name: str, names: Collection[str]) -> str:
    near = difflib.get_close_matches(name, names, n=2, cutoff=0.0)
    return f"nearest: {' and '.join(map(repr, near))}, of {len(names):,}"


@dataclasses.dataclass(frozen=True)
class SiteReader:
    """(params, tokens [n, T]) -> {site: activation [n, ...]}, as `features.train` and `neurons.measure` take it."""

    model: SiteModel
    names: tuple[str, ...]

    def __call__(self, params: Params, tokens: jax.Array) -> dict[str, jax.Array]:
        """Activations by name; under `jax.jit` nothing behind the last of them is computed.

        Raises:
          ConfigError: the model has no such site.
        """
        seen: dict[str, jax.Array] = {}

        def record(name: str, x: jax.Array) -> jax.Array:
            seen[name] = x
            return x

        self.model(params, tokens, _Editor(record))
        for name in self.names:
            if name not in seen:
                raise ConfigError(f"no site is called {name!r}; {_nearest(name, seen) if seen else 'there are none'}")
        return {name: seen[name] for name in self.names}


def attribution(task: SiteProblem, *, steps: int | None = None, through: str | None = None
                ) -> Float[np.ndarray, " nodes"]:
    """First-order estimate of what patching each node does (attribution patching; Nanda 2023, Syed et al. 2023).

    s(node) = sum over its values of (replacement - clean) . dm / d value, at the clean run. Scores are means over
    prompts, in the metric's unit, float64 in the order of `SiteProblem.nodes`; the sign is that of the change.

    With ``steps`` the derivative is averaged over a path (integrated gradients). Without ``through`` each site goes
    alone from its clean to its ablated value, and derivatives are taken at the middles of so many equal parts: the
    scores of a site's nodes then sum up to the exact effect of patching all of it, but for the error of the sum. This
    costs ``steps`` derivatives a site. With ``through``, the name of a site that all input passes (the embedding), the
    derivatives of all sites are taken along one path of it, at its ablated value + (j / steps) of the way to the clean
    one, j = 0 .. steps - 1, as EAP-IG has them (Hanna et al. 2024).

    Raises:
      ConfigError: steps is below 1, the site is not one of the problem's, or the metric is the divergence without
        steps: its derivative at the clean run is zero.
      DataError: an activation, a logit or a derivative is not finite.
    """
    _check(task)
    if steps is None and (through is not None or task.metric == "kl"):
        raise ConfigError("metric='kl' needs steps: the divergence is least at the clean run itself, so its derivative "
                          "there is zero" if through is None else f"through={through!r} needs steps, the number of "
                          "points of the path; 5 is usual")
    if steps is not None and steps < 1:
        raise ConfigError(f"steps={steps} must be at least 1; it is the number of points of the path, 5 is usual")
    names = [site.name for site in task.sites]
    if through is not None and through not in names:
        raise ConfigError(f"through={through!r} is none of the problem's sites; {_nearest(through, names)}")
    everything, unit = slice(0, len(task.nodes)), np.eye(len(names), dtype=np.float32)
    points: list[tuple[np.ndarray, slice]] = [(0 * unit[0], everything)]
    if through is not None and steps is not None:
        points = [((1 - j / steps) * unit[names.index(through)], everything) for j in range(steps)]
    elif steps is not None:
        points = [((j + 0.5) / steps * unit[i], nodes) for i, (_, nodes) in enumerate(task.places())
                  for j in range(steps)]
    total = np.zeros(len(task.nodes))
    for batch, prepared, _ in task.prepared():
        for along, nodes in points:
            found = _products(task.model, task.sites, task.params, batch, prepared, along)
            total[nodes] += np.asarray(found, np.float64)[nodes] / (steps or 1)
    if not np.isfinite(total).all():
        bad = task.nodes[int(np.isfinite(total).argmin())]
        raise DataError(f"the derivative with respect to {bad} is NaN or infinite, though the values are finite; look "
                        "for a square root, a norm or a division at 0 behind it")
    return total


def metric_values(task: SiteProblem, kept: np.ndarray) -> Float[np.ndarray, "circuits n"]:
    """The metric of circuits ``kept`` [circuits, nodes] bool, prompt by prompt; nodes that are not kept are patched.

    As many circuits run together as fit `SiteProblem.batch_size` prompts. Equal circuits are computed once.

    Raises:
      DataError: a circuit does not have one bool for each node, or as `SiteProblem.prepared`.
    """
    _check(task)
    kept, nodes = np.asarray(kept), len(task.nodes)
    if kept.ndim != 2 or kept.shape[1] != nodes or kept.dtype != bool:
        raise DataError(f"kept nodes are {kept.dtype}{list(kept.shape)}; give bool [circuits, {nodes}]")
    distinct, which = np.unique(kept, axis=0, return_inverse=True)
    parts = []
    for batch, prepared, real in task.prepared():
        together = min(max(1, task.batch_size // len(batch.weight)), max(1, len(distinct)))
        found = []
        for start in range(0, len(distinct), together):
            rows = np.minimum(np.arange(start, start + together), len(distinct) - 1)
            found.append(np.asarray(_patched(task.model, task.sites, task.params, batch, prepared, ~distinct[rows])))
        values = np.concatenate(found)[: len(distinct)] if found else np.zeros((0, len(batch.weight)))
        parts.append(values[:, :real].astype(np.float64))
    return np.concatenate(parts, axis=1)[which.reshape(-1)]


def effects(task: SiteProblem, *, nodes: Sequence[str] | None = None) -> Float[np.ndarray, " chosen"]:
    """What patching each node alone does to the metric, exactly: one run a node and prompt.

    Args:
      task: the model and its prompts.
      nodes: names of the nodes looked at; all by default.

    Returns:
      float64, for each chosen node: mean over prompts of the metric with it patched, less that of the model.

    Raises:
      ConfigError: there is no such node.
      DataError: as `SiteProblem.prepared`.
    """
    _check(task)
    index = {name: i for i, name in enumerate(task.nodes)}
    for name in nodes or ():
        if name not in index:
            raise ConfigError(f"no node is called {name!r}; {_nearest(name, index)}")
    chosen = [index[name] for name in (task.nodes if nodes is None else nodes)]
    out = []
    for start in range(0, len(chosen), _TOGETHER):
        part = chosen[start : start + _TOGETHER]
        kept = np.ones((len(part) + 1, len(index)), bool)
        kept[np.arange(1, len(part) + 1), part] = False
        model, *patched = metric_values(task, kept).mean(-1)
        out.append(np.array(patched) - model)
    return np.concatenate(out) if out else np.zeros(0)


def faithfulness(task: SiteProblem, scores: Float[np.ndarray, " nodes"], *, percents: Sequence[float] | None = None
                 ) -> Faithfulness:
    """Curves of circuits of growing numbers of nodes, in the order of their scores: signed, and by size.

    A circuit of q % has the first floor(q / 100 * nodes) of the order; all other nodes are patched. The share of the
    metric, CPR and CMD are those of `faithfulness.faithfulness`, with nodes in the place of edges.

    Args:
      task: the model and its prompts, best others than the scores come from.
      scores: how the metric changes when a node is patched (`attribution`, `effects`).
      percents: sizes, ascending, in 0 .. 100; by default every number of nodes where there are at most `MOST_SIZES`.

    Raises:
      ConfigError: percents are not ascending in 0 .. 100.
      DataError: scores are not one number for each node, or patching everything changes nothing.
    """
    _check(task)
    scores, n = np.asarray(scores, np.float64), len(task.nodes)
    if scores.shape != (n,) or np.isnan(scores).any():
        raise DataError(f"scores have shape {list(scores.shape)} and {int(np.isnan(scores).sum())} values that are no "
                        f"number; give one number for each of {n} nodes")
    if percents is None:
        percents = PERCENTS if n > MOST_SIZES else tuple(100 * i / n for i in range(n + 1))
    check_percents(percents)
    counts = [int(q * n / 100 + 1e-6) for q in percents]
    gain = importance(task.metric, scores)
    ranks = [np.argsort(np.argsort(-x, kind="stable")) for x in (gain, abs(gain))]
    circuits = np.array([rank < count for rank in ranks for count in counts])
    ends = np.array([[True] * n, [False] * n])
    model, empty, *values = metric_values(task, np.concatenate([ends, circuits]))
    require_difference(model, empty)
    curves = [Curve(percents=tuple(percents), edges=tuple(counts), values=np.array(part), model=model, empty=empty)
              for part in (values[: len(counts)], values[len(counts) :])]
    return Faithfulness(signed=curves[0], absolute=curves[1])


def _check(task: Any) -> None:
    if not isinstance(task, SiteProblem):
        raise ConfigError(f"circuits.sites takes a SiteProblem, not {type(task).__name__}; make one by "
                          "circuits.sites.problem(model, params, pairs)")


def _mean_of(answers: np.ndarray, vocabulary: int) -> np.ndarray:
    """float32 [n, V] that averages the logits of each prompt's answers [n, A]; -1 is none."""
    out = np.zeros((len(answers), vocabulary), np.float32)
    rows, columns = np.nonzero(answers != NO_ANSWER)
    np.add.at(out, (rows, answers[rows, columns]), 1)
    return out / out.sum(-1, keepdims=True)


def _last(logits: jax.Array, valid: jax.Array) -> jax.Array:
    """[n, V] logits of the last real token, at least in float32."""
    if logits.ndim == 3:
        logits = logits[jnp.arange(len(valid)), valid.sum(-1) - 1]
    return logits.astype(at_least_float32(logits.dtype))


def _read(model: SiteModel, sites: tuple[Site, ...], params: Params, tokens: jax.Array, valid: jax.Array
          ) -> tuple[dict[str, jax.Array], jax.Array]:
    """Activations [n, ...] by site, and logits [n, V], of an ordinary run."""
    seen: dict[str, jax.Array] = {}

    def record(name: str, x: jax.Array) -> jax.Array:
        seen[name] = x
        return x

    logits = model(params, tokens, _Editor(record, names=frozenset(site.name for site in sites)))
    for site in sites:
        found = None if site.name not in seen else seen[site.name].shape
        if found != (len(tokens), *site.shape):
            raise ConfigError(f"site {site.name!r} has shape {found} on {len(tokens)} prompts, but "
                              f"{[*site.shape]} a prompt on another number of them; it must not depend on that")
    return seen, _last(logits, valid)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
@exact
def _prepare(model: SiteModel, sites: tuple[Site, ...], ablation: Ablation, metric: Metric, params: Params,
             batch: _Batch, means: dict[str, jax.Array]) -> tuple[_Prepared, dict[str, jax.Array]]:
    """Both runs of a batch, and whether the values of each site, and of the logits (""), are finite."""
    clean, logits = _read(model, sites, params, batch.tokens, batch.valid)
    replaced = means
    if ablation == "resample":
        replaced, _ = _read(model, sites, params, batch.corrupt, batch.valid)
    elif ablation == "zero":
        replaced = {site.name: jnp.zeros((1, *site.shape)) for site in sites}
    replaced = {name: replaced[name].astype(x.dtype) for name, x in clean.items()}
    finite = {name: jnp.isfinite(x).all() & jnp.isfinite(replaced[name]).all() for name, x in clean.items()}
    target: Target = LogitDivergence.of(logits) if metric == "kl" else LogitDifference(batch.direction)
    return _Prepared(clean, replaced, target), finite | {"": jnp.isfinite(logits).all()}


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
@exact
def _sums(model: SiteModel, sites: tuple[Site, ...], ablation: Ablation, params: Params, batch: _Batch
          ) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Sums of the corrupt run by site, [1, T or 1, ...], and how many values each is a sum of."""
    values, _ = _read(model, sites, params, batch.corrupt, batch.valid)
    real = batch.weight > 0
    out = {}
    for name, x in values.items():
        in_time = x.ndim > 1 and x.shape[1] == batch.valid.shape[1]
        counted = batch.valid & real[:, None] if in_time else real
        axes = (0, 1) if in_time and ablation == "mean" else (0,)
        weight = counted.reshape(*counted.shape, *(1,) * (x.ndim - counted.ndim))
        total = jnp.where(weight, x.astype(at_least_float32(x.dtype)), 0).sum(axes, keepdims=True)
        out[name] = total, weight.sum(axes, keepdims=True).astype(total.dtype)
    return out


@functools.partial(jax.jit, static_argnums=(0, 1))
@exact
def _products(model: SiteModel, sites: tuple[Site, ...], params: Params, batch: _Batch, prepared: _Prepared,
              along: jax.Array) -> jax.Array:
    """[nodes]: changes times derivatives, where each site is ``along`` [sites] of the way from clean to ablated."""
    change = {name: prepared.replaced[name].astype(at_least_float32(x.dtype)) - x.astype(at_least_float32(x.dtype))
              for name, x in prepared.clean.items()}

    def score(added: dict[str, jax.Array]) -> jax.Array:
        editor = _Editor(lambda name, x: x + added[name].astype(x.dtype), names=frozenset(added))
        logits = _last(model(params, batch.tokens, editor), batch.valid)
        return jnp.sum(prepared.target.values(logits) * batch.weight)

    slopes = jax.grad(score)({site.name: along[i] * change[site.name] for i, site in enumerate(sites)})
    return jnp.concatenate([site.gather(change[site.name] * slopes[site.name]) for site in sites])


@functools.partial(jax.jit, static_argnums=(0, 1))
@exact
def _patched(model: SiteModel, sites: tuple[Site, ...], params: Params, batch: _Batch, prepared: _Prepared,
             patched: Bool[jax.Array, "m nodes"]) -> jax.Array:
    """[m, b] metric with the nodes of each of m masks patched, all in one run of m b prompts."""
    m, b = len(patched), len(batch.tokens)
    ends = np.cumsum([site.n_nodes for site in sites])[:-1]
    masks = {site.name: site.spread(part)
             for site, part in zip(sites, jnp.split(patched, ends, axis=-1), strict=True)}

    def change(name: str, x: jax.Array) -> jax.Array:
        each = x.reshape(m, b, *x.shape[1:])
        return jnp.where(masks[name], prepared.replaced[name][None], each).reshape(x.shape)

    tokens, valid = (jnp.tile(x, (m, 1)) for x in (batch.tokens, batch.valid))
    logits = _last(model(params, tokens, _Editor(change, names=frozenset(masks))), valid)
    return prepared.target.values(logits.reshape(m, b, -1))
