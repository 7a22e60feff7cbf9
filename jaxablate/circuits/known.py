"""A decoder whose circuit is known because its weights were set by hand: what methods of finding circuits must find.

The task. A prompt says who says which French word and ends with one of the names; the next token is that word in
English: ``<start> Ann un Bob deux Cid trois Bob`` -> ``two``. The corrupt prompt has other names in the same places,
other words, another question and another answer, so that everything the circuit passes on differs.

The circuit. Roles are given to nodes by the seed; here with two blocks of heads 0 and 1:

* the *previous* head (``A0.0``) attends to the position before its own and writes which name stood there;
* the *translator* (``MLP 0``) reads a French word and writes the English one;
* the *induction* head (``A1.0``) asks at the last position for the place whose previous name is the name at the last
  position (query: the token; key: what the previous head wrote), reads the English word there (value: what the
  translator wrote) and writes it twice: into the output, and where the booster reads;
* the *booster* (``MLP 1``) reads the answer and writes it into the output once more.

Eight edges::

    Resid Start -> previous.V      previous -> induction.K        induction -> booster
    Resid Start -> translator      translator -> induction.V      induction -> Resid End
                                   Resid Start -> induction.Q     booster -> Resid End

That is the circuit under resample ablation, the papers' kind. Queries and keys of the previous head read positions
alone. They are the same in clean and corrupt prompts, so patching these edges changes nothing and they are no part of
it, although the model would fail without them. Under other ablations the circuit is another one: ``zero`` and ``mean``
take positions away; and an answer that is only taken away, not replaced by a wrong one, leaves the induction head and
the booster a substitute for each other.

Everything else is a distractor: heads and MLPs with random weights, which read all there is to read and write into
directions that only other distractors read; neurons of that kind in the translator and in the booster as well; and
*shadow* heads in every block, which attend, read and write exactly as the previous or the induction head do, but write
where nothing of the circuit reads.

How it is exact enough. The residual stream is the direct sum of named subspaces in an orthonormal basis of random
mean-free directions, so LayerNorm's centring does nothing. Every position carries a constant vector of length 64 beside
codes of length 0.05 to 1, so the norm hardly depends on the codes, and the norm's scale undoes it. What remains of the
norms' dependence on the distractors is, for a single edge, an effect below 1e-6 nats of KL (1e-4 in the ablated
stream). The tied embedding is short (0.05) beside what the circuit writes (1), so a token hardly votes for itself.
Attention of the induction head is not saturated (0.95 to 0.97 on the right place): gradients must see its queries and
keys.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxablate.circuits.graph import END, START, Graph
from jaxablate.circuits.prompts import PromptPairs
from jaxablate.config import ModelConfig
from jaxablate.errors import ConfigError, DataError
from jaxablate.types import Stream

BEGIN = "<start>"
NAMES = ("Ann", "Bob", "Cid", "Dot", "Eve", "Fay")
WORDS = ("un", "deux", "trois", "quatre", "cinq", "sept")
REPLIES = ("one", "two", "three", "four", "five", "seven")
"""Translations of `WORDS`, in the same order."""

_MOST_NAMES = 3
_LENGTH = 2 * _MOST_NAMES + 2
_WIDTH, _NEURONS = 96, 48
_CONSTANT = 64.0
_TOKEN = 0.05
"""Length of the embedding."""
_LOGIT = 8.0
"""Logit of the answer that the induction head gives, and that the booster gives."""
_MATCH, _BEFORE = 5.0, 20.0
"""Attention scores: of the right place of the induction head (others 0), and of the previous place."""
_ATTENTION = 1 / (1 + (_LENGTH - 1) * math.exp(-_MATCH))
"""Attention of the induction head to the right place, in the longest prompt."""
_STEEP = 8.0
"""Slope of the neurons that copy: gelu(8 (x - 1/2)) is 0 at x = 0 and 4 at x = 1."""
_SIZES = {"constant": 1, "position": _LENGTH, "token": 1 + 3 * len(NAMES), "name before": len(NAMES),
          "translation": len(NAMES), "answer": len(NAMES)}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class KnownModel:
    """A model, and the circuit it was built with."""

    config: ModelConfig
    params: Mapping[str, Any]
    """float32, as `SelfAblatingTransformer(config)` takes them."""
    vocabulary: tuple[str, ...]
    """[V] text of each token."""
    roles: Mapping[str, str]
    """Node by role: previous, translator, induction, booster."""
    shadows: tuple[str, ...]
    """Heads that do what a head of the circuit does, for nobody."""

    def __repr__(self) -> str:
        return f"KnownModel({', '.join(f'{role} {node}' for role, node in self.roles.items())})"

    @property
    def graph(self) -> Graph:
        """The model's graph."""
        return Graph.of(self.config)

    def edges(self, stream: Stream = "clean") -> tuple[str, ...]:
        """Names of the circuit's edges, in canonical order.

        Args:
          stream: "clean", or "ablated" for a gated model: the gates close the booster there, so it lacks its edges.
        """
        previous, translator, induction, booster = (
            self.roles[role] for role in ("previous", "translator", "induction", "booster"))
        names = [f"{START}->{previous}.V", f"{START}->{translator}", f"{START}->{induction}.Q",
                 f"{previous}->{induction}.K", f"{translator}->{induction}.V", f"{induction}->{END}"]
        if stream == "clean":
            names += [f"{induction}->{booster}", f"{booster}->{END}"]
        return tuple(sorted(names, key=self.graph.edge))

    def mask(self, stream: Stream = "clean") -> np.ndarray:
        """[E] bool, True at the circuit's edges."""
        mask = np.zeros(self.graph.n_edges, bool)
        mask[[self.graph.edge(name) for name in self.edges(stream)]] = True
        return mask

    def encode(self, text: str) -> list[int]:
        """Token ids of words with spaces between.

        Raises:
          DataError: a word is not in the vocabulary.
        """
        unknown = [word for word in text.split() if word not in self.vocabulary]
        if unknown:
            raise DataError(f"the known model has no word {unknown[0]!r}; its words are {', '.join(self.vocabulary)}")
        return [self.vocabulary.index(word) for word in text.split()]

    def decode(self, ids: np.ndarray) -> str:
        """Words of token ids."""
        return " ".join(self.vocabulary[i] for i in ids)

    def pairs(self, n: int = 32, seed: int = 0) -> PromptPairs:
        """Prompts of the task, of two and of three names in turn; the wrong answer is that of the corrupt prompt.

        Args:
          n: how many.
          seed: seed of the drawing.
        """
        rng = np.random.default_rng(seed)
        texts = [_draw_pair(rng, _MOST_NAMES - (i + 1) % 2) for i in range(n)]
        ids = [[self.encode(pair[column]) for pair in texts] for column in range(4)]
        return PromptPairs.from_ids(*ids, name="who says what", groups=[f"{len(x) // 2 - 1} names" for x in ids[0]])


def known_model(seed: int = 0, n_layers: int = 3, n_heads: int = 4, gated: bool = False) -> KnownModel:
    """Builds a model with a known circuit.

    Args:
      seed: chooses directions, token ids, which blocks and heads play the roles, and the distractors' weights.
      n_layers: blocks, at least 2; two of them hold the circuit.
      n_heads: heads of each, at least 2, a divisor of 96 up to 12.
      gated: whether it has an ablated stream (`ablation="local"`). Its gates are constant: they keep the circuit's
        heads, or others in a block without, and neurons of distractors, so that stream has a smaller circuit.

    Raises:
      ConfigError: too few blocks, or a number of heads that does not fit.
    """
    if n_layers < 2:
        raise ConfigError(f"n_layers={n_layers} must be at least 2: the circuit's heads lie in two blocks")
    if not 2 <= n_heads <= 12 or _WIDTH % n_heads:
        raise ConfigError(f"n_heads={n_heads} does not fit; choose one of 2, 3, 4, 6, 8, 12")
    build = _Builder(np.random.default_rng(seed), n_layers, n_heads, gated)
    return build.model()


def _draw_pair(rng: np.random.Generator, n: int) -> tuple[str, str, str, str]:
    """Clean prompt, corrupt prompt, answer, corrupt answer; all differs that the circuit passes on."""
    while True:
        names, words = ([rng.choice(len(NAMES), n, replace=False) for _ in range(2)] for _ in range(2))
        asked = rng.integers(n, size=2)
        said = [w[i] for w, i in zip(words, asked, strict=True)]
        who = [a[i] for a, i in zip(names, asked, strict=True)]
        if (names[0] != names[1]).all() and (words[0] != words[1]).all() and said[0] != said[1] and who[0] != who[1]:
            break
    prompts = [" ".join([BEGIN, *(f"{NAMES[a]} {WORDS[w]}" for a, w in zip(*line, strict=True)), NAMES[last]])
               for line, last in zip(zip(names, words, strict=True), who, strict=True)]
    return prompts[0], prompts[1], REPLIES[said[0]], REPLIES[said[1]]


class _Builder:
    """Random choices of one model, and its weights in terms of named directions.

    `read[name]` are columns [D, n] whose products with a normed stream are the code of that name, of size 1;
    `write[name]` are rows [n, D] that put such a code into the stream.
    """

    def __init__(self, rng: np.random.Generator, n_layers: int, n_heads: int, gated: bool):
        self.rng = rng
        k_neurons = _NEURONS // 2
        self.config = ModelConfig(
            vocab_size=_SIZES["token"], context_length=_LENGTH, d_model=_WIDTH, n_layers=n_layers, n_heads=n_heads,
            d_mlp=_NEURONS, ablation="local" if gated else "none", k_attention=_WIDTH // n_heads, k_neurons=k_neurons)
        self.blocks = np.sort(rng.choice(n_layers, 2, replace=False))
        self.heads = rng.permuted(np.tile(np.arange(n_heads), (n_layers, 1)), axis=1)
        """[L, N]: in each block first the head of the circuit (if it has one), then the shadow, then others."""
        self.vocabulary = tuple(rng.permutation([BEGIN, *NAMES, *WORDS, *REPLIES]).tolist())
        self._lay_out()

    def _lay_out(self) -> None:
        random = self.rng.normal(size=(_WIDTH, _WIDTH))
        random[:, 0] = 1  # the first column of the basis is the mean; all the others are free of it
        basis = np.linalg.qr(random)[0][:, 1:]
        sizes = {**_SIZES, "nobody": _WIDTH - 1 - sum(_SIZES.values())}
        parts = np.split(basis, np.cumsum(list(sizes.values()))[:-1], axis=1)
        columns = dict(zip(sizes, parts, strict=True))
        rank = {word: i for i, word in enumerate(self.vocabulary)}
        for kind, words in (("name", NAMES), ("word", WORDS), ("reply", REPLIES)):
            columns[kind] = columns["token"][:, [rank[word] for word in words]]
        self.write = {name: column.T for name, column in columns.items()}
        short = ("token", "name", "word", "reply")
        self.read = {name: column / (_TOKEN if name in short else 1) for name, column in columns.items()}
        # Distractors read all but the constant; tokens less keenly than the circuit does, as answers are much longer.
        gains = {name: 3 if name == "token" else 1 for name in sizes if name != "constant"}
        self.everything = np.concatenate([gain * columns[name] for name, gain in gains.items()], axis=1)

    def model(self) -> KnownModel:
        first, second = self.blocks
        params = {"embed": {"embedding": _TOKEN * self.write["token"]},
                  "pos_embed": {"embedding": self.write["position"] + _CONSTANT * self.write["constant"]},
                  "ln_f": self._norm(_LOGIT / _TOKEN)}
        params |= {f"layer_{i}": self._block(i) for i in range(self.config.n_layers)}
        params = jax.tree.map(lambda x: jnp.asarray(np.asarray(x, np.float32), np.float32), params)
        roles = {"previous": f"A{first}.{self.heads[first, 0]}", "translator": f"MLP {first}",
                 "induction": f"A{second}.{self.heads[second, 0]}", "booster": f"MLP {second}"}
        shadows = tuple(f"A{i}.{self.heads[i, 1]}" for i in range(self.config.n_layers))
        return KnownModel(config=self.config, params=params, vocabulary=self.vocabulary, roles=roles, shadows=shadows)

    def _norm(self, gain: float = 1.0):
        """LayerNorm that gives back the codes as they are in the stream, times a gain."""
        return {"scale": np.full(_WIDTH, gain * _CONSTANT / _WIDTH**0.5), "bias": np.zeros(_WIDTH)}

    def _block(self, i: int):
        block = {"ln_1": self._norm(), "ln_2": self._norm(), "attention": self._attention(i), "mlp": self._mlp(i)}
        # Biases are exercised too, where nothing of the circuit reads.
        block["ln_1"]["bias"] = self._junk(1)[0]
        return block if not self.config.gated else block | self._gates(i)

    def _attention(self, i: int):
        heads = [self._random_head() for _ in range(self.config.n_heads)]
        place, shadow = self.heads[i, :2]
        induction = i > self.blocks[0]  # what a shadow of the induction head reads exists only after the first
        heads[shadow] = self._induction_head(alone=True) if induction else self._previous_head(alone=True)
        if i == self.blocks[0]:
            heads[place] = self._previous_head()
        if i == self.blocks[1]:
            heads[place] = self._induction_head()
        query, key, value, out = (np.stack(x) for x in zip(*heads, strict=True))
        kernels = {name: {"kernel": x.transpose(1, 0, 2)}
                   for name, x in (("query", query), ("key", key), ("value", value))}
        return kernels | {"out": {"kernel": out, "bias": self._junk(1)[0] / 2}}

    def _head(self, query: np.ndarray, key: np.ndarray, value: np.ndarray, out: np.ndarray) -> tuple[np.ndarray, ...]:
        """Kernels [D, H], [D, H], [D, H], [H, D] from narrower ones."""
        width = self.config.head_width
        pad = [np.pad(x, ((0, 0), (0, width - x.shape[1]))) for x in (query, key, value)]
        return (*pad, np.pad(out, ((0, width - len(out)), (0, 0))))

    def _previous_head(self, alone: bool = False) -> tuple[np.ndarray, ...]:
        position, name = self.read["position"], self.read["name"]
        # Column i of `before` reads place i + 1, so the query of that place meets the key of place i.
        before = np.roll(position, -1, axis=1) * (np.arange(_LENGTH) < _LENGTH - 1)
        return self._head(_BEFORE * before, position, name, self.write["name before"] if not alone else self._junk(6))

    def _induction_head(self, alone: bool = False) -> tuple[np.ndarray, ...]:
        out = (self.write["reply"] + self.write["answer"]) / _ATTENTION
        return self._head(_MATCH * self.read["name"], self.read["name before"], self.read["translation"],
                          out if not alone else self._junk(6))

    def _random_head(self) -> tuple[np.ndarray, ...]:
        width = self.config.head_width
        inner = [self.everything @ self.rng.normal(size=(self.everything.shape[1], width)) / x for x in (4, 4, 2)]
        return (*inner, self._junk(width) / width**0.5)

    def _junk(self, n: int) -> np.ndarray:
        """[n, D] random unit rows that nothing of the circuit reads."""
        rows = self.rng.normal(size=(n, len(self.write["nobody"])))
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)) @ self.write["nobody"]

    def _mlp(self, i: int):
        up = self.everything @ self.rng.normal(size=(self.everything.shape[1], _NEURONS)) / 3
        down, bias = self._junk(_NEURONS) / _NEURONS**0.5, self.rng.normal(size=_NEURONS) / 2
        n = len(NAMES)
        if i in self.blocks:
            source, target = ("word", "translation") if i == self.blocks[0] else ("answer", "reply")
            up[:, :n], bias[:n] = _STEEP * self.read[source], -_STEEP / 2
            down[:n] = self.write[target] / (_STEEP / 2)
        return {"up": {"kernel": up, "bias": bias}, "down": {"kernel": down, "bias": self._junk(1)[0] / 2}}

    def _gates(self, i: int):
        """Constant scores: channels of one head win, and neurons that are not the first."""
        channels = np.zeros((self.config.n_heads, self.config.head_width))
        channels[self.heads[i, 0]] = 1
        neurons = np.arange(_NEURONS) >= _NEURONS - self.config.layer_k("neurons", i)
        return {name: {"kernel": np.zeros((_WIDTH, bias.size)), "bias": bias.ravel()}
                for name, bias in (("attention_scores", channels), ("neuron_scores", neurons))}
