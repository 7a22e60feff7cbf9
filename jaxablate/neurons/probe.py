r"""How much of the next token the winners of a layer give away together: a linear probe, held-out stories.

With c the current token, g the 0/1 gates of a layer (attention channels and neurons), W the model's own output matrix
and n the next token,

    token   p(n | c)      softmax(W E[c] + b)
    gates   p(n | c, g)   softmax(W (E[c] + sum of G[u] over the winners u) + b)

E, G and b are learned; W is not, so the problem is convex. Rare next tokens are one class, which can only hide
information. The loss of ``token`` minus that of ``gates`` on stories that no parameter has seen is what the gates give
away in nats a token, as far as a linear reader sees it. The control is the same probe with the gates of another token
of the same id: they say what the current token is, and nothing else of the next.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxablate.errors import DataError
from jaxablate.neurons.leakage import KINDS, GateSample, others_of_kind

CLASSES = 1024
"""Most frequent next tokens that are told apart; the others are one class."""
SAMPLE = 32_768
EPOCHS, BATCH = 8, 512
TOKEN_RATE, GATES_RATE, DECAY = 0.05, 0.02, 0.1
"""Step lengths of Adam without and with gates; weight decay of the gates' rows, times the step length."""
SHARES = (0.7, 0.85)
"""Of the stories up to here rows are learned, up to there the best epoch is chosen, the others are the test."""
MIN_TEST_STORIES = 5
SOURCES = ("own", "control")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeLosses:
    """Losses on the test stories.

    Attributes:
      story_sums: float64 [stories, 2 + 2 (L + 1)]: tokens, loss of ``token`` in nats, then the losses with own gates of
        layer 0 .. L - 1 and of all layers at once, then the same of the control.
      layers: L.
      train_tokens, test_tokens: how many there were.
      classes: told apart, the one of rare tokens included.
      rare: share of the test's next tokens that are in the class of rare ones.
    """

    story_sums: np.ndarray
    layers: int
    train_tokens: int
    test_tokens: int
    classes: int
    rare: float


def probe(sample: GateSample, table: np.ndarray, *, seed: int = 0) -> ProbeLosses:
    """Trains the probes of every layer, their controls and the one without gates, all at once.

    Args:
      sample: of `gate_information.frequent`; at most `SAMPLE` of its tokens are used, of whole stories.
      table: [V, D] the model's output matrix.
      seed: of the split into train, choice and test, and of the order of training.

    Raises:
      DataError: too few stories for a test.
    """
    rng = np.random.default_rng((seed, 0x70726F6265))
    sample, part = _parts(sample, rng)
    tokens, current = np.unique(sample.current, return_inverse=True)
    kept, following = _classes(sample.following, sample.following[part == 0])
    data = {"current": current.astype(np.int32), "following": following,
            "own": _bits(sample), "control": _bits(sample)[_strangers(current, part, rng)]}
    readout = _readout(table, kept)
    shape = len(tokens), sample.layers, sum(sample.units[k] for k in KINDS)
    best = _fitted(data, part, readout, shape, rng)
    test = {name: x[part == 2] for name, x in data.items()}
    losses = _losses_over(best, test, readout, shape[2])
    story = np.unique(sample.story[part == 2], return_inverse=True)[1]
    values = np.concatenate([np.ones((1, losses.shape[1])), losses])
    return ProbeLosses(story_sums=np.stack([np.bincount(story, weights=row) for row in values], axis=-1),
                       layers=shape[1], train_tokens=int((part == 0).sum()), test_tokens=int((part == 2).sum()),
                       classes=len(readout), rare=float(np.mean(test["following"] == len(kept))))


def _parts(sample: GateSample, rng: np.random.Generator) -> tuple[GateSample, np.ndarray]:
    """At most `SAMPLE` tokens of whole stories, and for each its part: 0 train, 1 choice, 2 test."""
    names, place, counts = np.unique(sample.story, return_inverse=True, return_counts=True)
    order = rng.permutation(len(names))
    order = order[: max(1, int(np.searchsorted(np.cumsum(counts[order]), SAMPLE, side="right")))]
    ends = [int(share * len(order)) for share in SHARES]
    if len(order) - ends[1] < MIN_TEST_STORIES:
        needed = int(np.ceil(MIN_TEST_STORIES / (1 - SHARES[1])))
        raise DataError(f"the probe of the gates needs at least {needed} stories, the sample has {len(order)}; read "
                        "more of the split (--max-batches) or take a longer one")
    part_of = np.full(len(names), -1)
    for i, stories in enumerate(np.split(order, ends)):
        part_of[stories] = i
    used = part_of[place] >= 0
    return sample.take(used), part_of[place][used]


def _classes(following: np.ndarray, train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ids that are classes of their own, and the class of each next token; the last one is of rare tokens."""
    ids, counts = np.unique(train, return_counts=True)
    kept = np.sort(ids[np.argsort(-counts, kind="stable")[: CLASSES - 1]])
    at = np.minimum(np.searchsorted(kept, following), len(kept) - 1)
    return kept, np.where(kept[at] == following, at, len(kept)).astype(np.int32)


def _bits(sample: GateSample) -> np.ndarray:
    """uint8 [n, L, bytes]: both kinds' gates side by side, packed anew."""
    layers = range(sample.layers)
    found = [np.packbits(np.concatenate([sample.fires(kind, i) for kind in KINDS], axis=-1), axis=-1) for i in layers]
    return np.stack(found, axis=1)


def _strangers(current: np.ndarray, part: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """For each token another one of the same id in the same part."""
    return others_of_kind(current.astype(np.int64) * 3 + part, rng)


def _readout(table: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """[classes, D] float32: rows of the output matrix about their mean, of unit size on average; a rare class at 0."""
    rows = np.asarray(table, np.float32)[kept]
    rows = rows - rows.mean(axis=0)
    scale = np.sqrt(np.mean(np.sum(rows**2, axis=-1)))
    return np.concatenate([rows / max(scale, 1e-12), np.zeros((1, rows.shape[1]), np.float32)])


def _losses(params: dict[str, jax.Array], batch: dict[str, jax.Array], readout: jax.Array, units: int) -> jax.Array:
    """[probes, b] nats; probes in the order of `ProbeLosses.story_sums`, the first alone where there are no gates."""
    hidden = params["token"][:, batch["current"]]
    if "layer" in params:
        gates = jnp.stack([jnp.unpackbits(batch[name], axis=-1, count=units) for name in SOURCES]).astype(jnp.float32)
        one = jnp.einsum("sblu,slud->slbd", gates, params["layer"])
        every = jnp.einsum("sblu,slud->sbd", gates, params["all"])[:, None]
        hidden = hidden.at[1:].add(jnp.concatenate([one, every], axis=1).reshape(-1, *every.shape[2:]))
    logits = jnp.einsum("pbd,vd->pbv", hidden, readout) + params["bias"][:, None]
    picked = jnp.take_along_axis(logits, batch["following"][None, :, None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked


def _of_gates(params: dict[str, jax.Array]) -> dict[str, bool]:
    return {name: name in ("layer", "all") for name in params}


_OPTIMIZER = optax.chain(optax.scale_by_adam(b2=0.99), optax.add_decayed_weights(DECAY, mask=_of_gates),
                         optax.scale(-1.0))


@functools.partial(jax.jit, static_argnames="units", donate_argnums=(0, 1))
def _update(params, state, batch, readout: jax.Array, units: int, rate: float):
    # Probes share no parameter, so the gradient of the sum is each one's own.
    grads = jax.grad(lambda p: _losses(p, batch, readout, units).mean(axis=1).sum())(params)
    updates, state = _OPTIMIZER.update(grads, state, params)
    return jax.tree.map(lambda p, u: p + rate * u, params, updates), state


_batch_losses = jax.jit(_losses, static_argnames="units")


def _fitted(data: dict[str, np.ndarray], part: np.ndarray, readout: np.ndarray, shape: tuple[int, int, int],
            rng: np.random.Generator) -> dict[str, jax.Array]:
    """Parameters of all probes; those with gates start as the one without."""
    tokens, layers, units = shape
    width, probes = readout.shape[1], 1 + len(SOURCES) * (layers + 1)
    prior = np.log(np.bincount(data["following"][part == 0], minlength=len(readout)) + 0.5)
    alone = {"token": jnp.zeros((1, tokens, width)), "bias": jnp.asarray(prior - prior.mean(), jnp.float32)[None]}
    alone = _train(data, part, alone, readout, units, TOKEN_RATE, rng)
    gates = {name: jnp.zeros((len(SOURCES), layers, units, width)) for name in ("layer", "all")}
    start = {name: jnp.repeat(x, probes, axis=0) for name, x in alone.items()} | gates
    return _train(data, part, start, readout, units, GATES_RATE, rng)


def _train(data, part, params, readout, units: int, rate: float, rng: np.random.Generator) -> dict[str, jax.Array]:
    """Parameters of each probe at the epoch that was best for it on the stories kept for that choice."""
    state, train = _OPTIMIZER.init(params), np.flatnonzero(part == 0)
    choice = {name: x[part == 1] for name, x in data.items()}
    best, least = jax.tree.map(jnp.copy, params), _losses_over(params, choice, readout, units).mean(axis=1)
    size = min(BATCH, len(train))
    for _ in range(EPOCHS):
        order = rng.permutation(train)
        for i in range(0, len(order) - size + 1, size):
            rows = np.sort(order[i : i + size])
            params, state = _update(params, state, {name: x[rows] for name, x in data.items()}, readout, units, rate)
        now = _losses_over(params, choice, readout, units).mean(axis=1)
        best, least = _better(best, params, now < least), np.minimum(now, least)
    return best


def _better(best, params, improved: np.ndarray):
    """Takes over those probes that have improved [probes]."""
    by_source = improved[1:].reshape(len(SOURCES), -1)
    which = {"token": improved, "bias": improved, "layer": by_source[:, :-1], "all": by_source[:, -1:]}
    wide = {name: which[name].reshape(*which[name].shape, *[1] * (x.ndim - which[name].ndim))
            for name, x in best.items()}
    return {name: jnp.where(wide[name], params[name], x) for name, x in best.items()}


def _losses_over(params, data: dict[str, np.ndarray], readout, units: int) -> np.ndarray:
    """[probes, n] float64, in batches of one shape."""
    count = len(data["current"])
    found = []
    for i in range(0, count, BATCH):
        rows = np.minimum(np.arange(i, i + BATCH), count - 1)
        losses = _batch_losses(params, {name: x[rows] for name, x in data.items()}, readout, units)
        found.append(np.asarray(losses, np.float64)[:, : count - i])
    return np.concatenate(found, axis=1)
