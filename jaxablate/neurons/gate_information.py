r"""How much gates tell of the next token: one at a time, and all of a layer together.

**One gate.** For a unit u whose gate fires or not (g = 1 or 0), the current token c and the next token n,

    I(g; n | c) = sum over c of p(c) sum over n, g of p(n, g | c) log2 [p(n, g | c) / (p(n | c) p(g | c))]

over current tokens seen at least `MIN_COUNT` times in the sample. The plug-in value is never negative and so too
large. What it is where gate and next token are independent given the current one is measured by shuffling the next
tokens among the occurrences of each current token. The mean over shuffles is subtracted, and a unit counts as telling
where its value is above that of every shuffle (with `SHUFFLES` = 19 shuffles, 1 unit in 20 does by chance).

**All gates of a layer: a linear probe, held-out stories.** With g now the 0/1 gates of a layer (attention channels and
neurons) and W the model's own output matrix,

    token   p(n | c)      softmax(W E[c] + b)
    gates   p(n | c, g)   softmax(W (E[c] + sum of G[u] over the winners u) + b)

E and b are learned first, then G on top of them; W is not, so both problems are convex. Rare next tokens are one
class, which can only hide information. The loss of ``token`` minus that of ``gates`` on stories that no parameter has
seen is what the gates give away in nats a token, as far as a linear reader sees it. The control is the same probe with
the gates of another token of the same id: they say what the current token is, and nothing else of the next.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float

from jaxablate.errors import TooLittleDataError
from jaxablate.neurons.leakage import KINDS, GateSample, others_of_group

MIN_COUNT = 50
"""Occurrences of a current token in the sample below which its next tokens say too little."""
MIN_TOKENS = 1_000
SHUFFLES = 19
CLASSES = 1024
"""Most frequent next tokens that the probe tells from each other; the others are one class."""
PROBE_TOKENS = 32_768
BATCH, TOKEN_EPOCHS, GATES_EPOCHS, UPDATES = 512, 12, 6, 300
"""Epochs are more than these where they have fewer updates."""
TOKEN_RATE, GATES_RATE = 0.05, 0.02
"""Adam's first step lengths for the rows of tokens and of gates; they fall linearly to 0."""
PRIOR = 3.0
"""Inverse variance of the normal prior of the gates' rows: a unit that fires less often than this hardly counts."""
SHARES = (0.7, 0.85)
"""Up to the first share of the stories rows are learned, up to the second the epoch is chosen; the rest is the test."""
MIN_TEST_STORIES = 5
SOURCES = ("own", "control")

Arrays = dict[str, Any]
Losses = Callable[[Arrays, Any, Arrays, jax.Array, int], jax.Array]
"""(learned, fixed, batch, readout, units) -> [probes, b] nats."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnitInformation:
    """The units of one kind and layer, float64 [U] each, in bits."""

    kind: str
    layer: int
    plug_in: np.ndarray
    """I(g; n | c) of the sample."""
    null: np.ndarray
    """Its mean over shuffles."""
    telling: np.ndarray
    """bool, whether the plug-in is above the value of every shuffle."""
    entropy: np.ndarray
    """H(g | c), the most that `plug_in` could be."""

    @property
    def information(self) -> np.ndarray:
        """plug_in - null: unbiased about 0 where there is none, so it may be negative."""
        return self.plug_in - self.null


def frequent_tokens(sample: GateSample, *, least: int = MIN_COUNT) -> GateSample:
    """The part of a sample whose current tokens occur at least so often in it.

    Raises:
      DataError: fewer than `MIN_TOKENS` tokens are left.
    """
    _, place, counts = np.unique(sample.current, return_inverse=True, return_counts=True)
    frequent = counts[place] >= least
    if frequent.sum() < MIN_TOKENS:
        raise TooLittleDataError(
            f"information about the next token needs at least {MIN_TOKENS:,} tokens whose id occurs {least} times or "
            f"more, the sample of {len(frequent):,} has {int(frequent.sum()):,}; read more of the split "
            "(--max-batches) or take a longer one")
    return sample.take(frequent)


def unit_information(sample: GateSample, kind: str, layer: int, *, shuffles: int = SHUFFLES, seed: int = 0
                     ) -> UnitInformation:
    """Information of each unit's gate about the next token given the current one, from the sample's frequent tokens."""
    pairs = np.lexsort((sample.following, sample.current))
    bits = sample.fires(kind, layer)[pairs]
    current, following = sample.current[pairs], sample.following[pairs]
    new_token = np.diff(current, prepend=current[:1] - 1)
    tokens, both = (np.flatnonzero(x) for x in (new_token, new_token | np.diff(following, prepend=following[:1] - 1)))
    given = _entropy_bits(bits, tokens)
    rng = np.random.default_rng((seed, layer, kind == "neurons"))
    plug_in = given - _entropy_bits(bits, both)
    # Rows stay sorted by the current token, and are in random order within each.
    null = np.stack([given - _entropy_bits(bits[np.lexsort((rng.random(len(current)), current))], both)
                     for _ in range(shuffles)])
    return UnitInformation(kind=kind, layer=layer, plug_in=plug_in, null=null.mean(axis=0),
                           telling=plug_in > null.max(axis=0) + 1e-12, entropy=given)


def _entropy_bits(bits: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Entropy of each unit's bit given the group, [U] bits; groups are adjoining rows."""
    sizes = np.diff(starts, append=len(bits))
    fired = np.add.reduceat(bits, starts, axis=0, dtype=np.int32)
    table = np.arange(sizes.max() + 1, dtype=np.float64)
    table[1:] *= np.log2(table[1:])  # x log2 x of every count
    total = table[sizes].sum() - table[fired].sum(axis=0) - table[sizes[:, None] - fired].sum(axis=0)
    return total / len(bits)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeLosses:
    """Losses on the test stories."""

    story_sums: np.ndarray
    """float64 [stories, 2 + 2 (L + 1)]: tokens, loss of ``token`` in nats, then the losses with own gates of layer 0 ..
    L - 1 and of all layers at once, then the same of the control."""
    layers: int
    chosen: int
    """Which of the L + 1 probes with own gates was best on the stories kept for such choices; L is all layers."""
    train_tokens: int
    test_tokens: int
    classes: int
    """Classes of next tokens, that of rare ones included."""
    rare: float
    """Share of the test's next tokens that are in the class of rare ones."""


def probe_gates(sample: GateSample, table: Float[np.ndarray, "vocab d"], *, seed: int = 0) -> ProbeLosses:
    """Trains the probes of every layer, their controls and the one without gates, all at once.

    The sample is that of `frequent_tokens`, of which at most `PROBE_TOKENS` are used, of whole stories; the table is
    the model's output matrix.

    Raises:
      DataError: too few stories for a test.
    """
    rng = np.random.default_rng((seed, 0x70726F6265))
    sample, part = _parts(sample, rng)
    tokens, current = np.unique(sample.current, return_inverse=True)
    class_ids, following = _classes(sample.following, sample.following[part == 0])
    # Both kinds' gates of a layer side by side, packed anew: uint8 [n, L, bytes].
    bits = np.stack([np.packbits(np.concatenate([sample.fires(kind, i) for kind in KINDS], axis=-1), axis=-1)
                     for i in range(sample.layers)], axis=1)
    strangers = others_of_group(current.astype(np.int64) * 3 + part, rng)
    data = {"current": current.astype(np.int32), "following": following, "own": bits, "control": bits[strangers]}
    units = sum(sample.units[kind] for kind in KINDS)
    trainer = _Trainer(data, part, _readout(table, class_ids), units, rng)
    # The rows of the current tokens, and then rows of the gates on top of them.
    classes, width = trainer.readout.shape
    prior = np.log(np.bincount(following[part == 0], minlength=classes) + 0.5)
    token = {"row": jnp.zeros((len(tokens), width)), "bias": jnp.asarray(prior - prior.mean(), jnp.float32)}
    token = trainer.train(_token_losses, token, None, epochs=TOKEN_EPOCHS, rate=TOKEN_RATE, prior=0.0)
    gates = {name: jnp.zeros((len(SOURCES), sample.layers, units, width)) for name in ("layer", "all")}
    gates = trainer.train(_losses, gates, token, epochs=GATES_EPOCHS, rate=GATES_RATE, prior=PRIOR)
    losses = np.concatenate([trainer.losses(_token_losses, token, None, 2), trainer.losses(_losses, gates, token, 2)])
    chosen = trainer.losses(_losses, gates, token, 1).mean(axis=1)[: sample.layers + 1].argmin()
    story = np.unique(sample.story[part == 2], return_inverse=True)[1]
    values = np.concatenate([np.ones((1, losses.shape[1])), losses])
    return ProbeLosses(story_sums=np.stack([np.bincount(story, weights=row) for row in values], axis=-1),
                       layers=sample.layers, chosen=int(chosen), train_tokens=int((part == 0).sum()),
                       test_tokens=int((part == 2).sum()), classes=classes,
                       rare=float(np.mean(following[part == 2] == len(class_ids))))


def _parts(sample: GateSample, rng: np.random.Generator) -> tuple[GateSample, np.ndarray]:
    """At most `PROBE_TOKENS` tokens of whole stories, and for each its part: 0 train, 1 choice, 2 test."""
    names, place, counts = np.unique(sample.story, return_inverse=True, return_counts=True)
    order = rng.permutation(len(names))
    order = order[: max(1, int(np.searchsorted(np.cumsum(counts[order]), PROBE_TOKENS, side="right")))]
    ends = [int(share * len(order)) for share in SHARES]
    if len(order) - ends[1] < MIN_TEST_STORIES:
        needed = next(n for n in itertools.count() if n - int(SHARES[1] * n) >= MIN_TEST_STORIES)
        raise TooLittleDataError(
            f"the probe of the gates needs at least {needed} stories, the sample has {len(order)}; read more of the "
            "split (--max-batches) or take a longer one")
    part_of = np.full(len(names), -1)
    for i, stories in enumerate(np.split(order, ends)):
        part_of[stories] = i
    used = part_of[place] >= 0
    return sample.take(used), part_of[place][used]


def _classes(following: np.ndarray, train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ids that are classes of their own, and the class of each next token; the last one is of rare tokens."""
    ids, counts = np.unique(train, return_counts=True)
    frequent = np.sort(ids[np.argsort(-counts, kind="stable")[: CLASSES - 1]])
    at = np.minimum(np.searchsorted(frequent, following), len(frequent) - 1)
    return frequent, np.where(frequent[at] == following, at, len(frequent)).astype(np.int32)


def _readout(table: np.ndarray, class_ids: np.ndarray) -> np.ndarray:
    """[classes, D] float32: rows of the output matrix about their mean, of unit size on average; a rare class at 0."""
    rows = np.asarray(table, np.float32)[class_ids]
    rows = rows - rows.mean(axis=0)
    scale = np.sqrt(np.mean(np.sum(rows**2, axis=-1)))
    return np.concatenate([rows / max(scale, 1e-12), np.zeros((1, rows.shape[1]), np.float32)])


def _losses(gates: Arrays, token: Arrays, batch: Arrays, readout: jax.Array, units: int) -> jax.Array:
    """[probes, b] nats of the probes with gates, in the order of `ProbeLosses.story_sums`."""
    fires = jnp.stack([jnp.unpackbits(batch[name], axis=-1, count=units) for name in SOURCES]).astype(jnp.float32)
    one = jnp.einsum("sblu,slud->slbd", fires, gates["layer"])
    every = jnp.einsum("sblu,slud->sbd", fires, gates["all"])[:, None]
    read = jnp.concatenate([one, every], axis=1).reshape(-1, *every.shape[2:])
    return _cross_entropy(token["row"][batch["current"]] + read, token["bias"], batch["following"], readout)


def _token_losses(token: Arrays, _fixed: None, batch: Arrays, readout: jax.Array, _units: int) -> jax.Array:
    """[1, b] nats of the probe without gates."""
    return _cross_entropy(token["row"][batch["current"]][None], token["bias"], batch["following"], readout)


def _cross_entropy(hidden: jax.Array, bias: jax.Array, following: jax.Array, readout: jax.Array) -> jax.Array:
    """[probes, b] nats of hidden states [probes, b, D]."""
    logits = jnp.einsum("pbd,vd->pbv", hidden, readout) + bias
    picked = jnp.take_along_axis(logits, following[None, :, None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked


_ADAM = optax.scale_by_adam(b2=0.99)


@functools.partial(jax.jit, static_argnames=("losses", "units"), donate_argnums=(1, 2))
def _update(losses, params, state, fixed, batch, readout: jax.Array, units: int, rate: float, penalty: float):
    # Probes share no parameter that is learned, so the gradient of the sum is each one's own.
    grads = jax.grad(lambda p: losses(p, fixed, batch, readout, units).mean(axis=1).sum())(params)
    steps, state = _ADAM.update(jax.tree.map(lambda g, p: g + penalty * p, grads, params), state)
    return jax.tree.map(lambda p, step: p - rate * step, params, steps), state


_batch_losses = jax.jit(lambda losses, *given: losses(*given), static_argnums=(0, 5))


@dataclasses.dataclass(frozen=True)
class _Trainer:
    """Data in three parts, and how probes are trained and measured on it."""

    data: dict[str, np.ndarray]
    part: np.ndarray
    readout: np.ndarray
    units: int
    rng: np.random.Generator

    def train(self, losses: Losses, params: Arrays, fixed: Arrays | None, *, epochs: int, rate: float, prior: float
              ) -> Arrays:
        """Parameters of each probe after the epoch that was best for it on the stories kept for that choice."""
        state, train = _ADAM.init(params), np.flatnonzero(self.part == 0)
        best, least = jax.tree.map(jnp.copy, params), self.losses(losses, params, fixed, 1).mean(axis=1)
        size = min(BATCH, len(train))
        steps = len(train) // size
        epochs = max(epochs, -(-UPDATES // steps))
        for epoch in range(epochs):
            order = self.rng.permutation(train)
            for i in range(steps):
                batch = {name: x[order[i * size : (i + 1) * size]] for name, x in self.data.items()}
                now = rate * (1 - (epoch * steps + i) / (epochs * steps))
                params, state = _update(losses, params, state, fixed, batch, self.readout, self.units, now,
                                        prior / len(train))
            now = self.losses(losses, params, fixed, 1).mean(axis=1)
            best, least = _better(best, params, now < least), np.minimum(now, least)
        return best

    def losses(self, losses: Losses, params: Arrays, fixed: Arrays | None, part: int) -> np.ndarray:
        """[probes, tokens of a part] float64, computed in batches of one shape."""
        rows = np.flatnonzero(self.part == part)
        parts = []
        for i in range(0, len(rows), BATCH):
            chosen = rows[np.minimum(np.arange(i, i + BATCH), len(rows) - 1)]
            batch = {name: x[chosen] for name, x in self.data.items()}
            values = _batch_losses(losses, params, fixed, batch, self.readout, self.units)
            parts.append(np.asarray(values, np.float64)[:, : len(rows) - i])
        return np.concatenate(parts, axis=1)


def _better(best: Arrays, params: Arrays, improved: np.ndarray) -> Arrays:
    """Takes over those probes that have improved [probes]."""
    which: dict[str, np.ndarray] = dict.fromkeys(params, improved[:1])
    if "layer" in params:
        by_source = improved.reshape(len(SOURCES), -1)[..., None, None]
        which = {"layer": by_source[:, :-1], "all": by_source[:, -1:]}
    return {name: jnp.where(which[name], params[name], x) for name, x in best.items()}
