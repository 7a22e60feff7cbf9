"""Suite ``units``: what a page about each neuron, attention channel, gate and latent shows, for the explorer.

Of every unit: how often it fires and on which tokens, measures of specialisation beside their nulls
(`jaxablate.neurons.measure`), where it is strongest and where less so, the distribution of its values, which tokens'
logits it raises and lowers, and which units fire together with it. `jaxablate.reports.units` says how it is stored.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxablate import features, neurons
from jaxablate.config import Config, ModelConfig, UnitKind
from jaxablate.errors import FileError
from jaxablate.features.sae import SparseAutoencoder
from jaxablate.features.sites import unrolled
from jaxablate.models.decoder import DecoderOutput, LayerActivations, SelfAblatingTransformer, output_matrix
from jaxablate.neurons.firing_counts import Batches
from jaxablate.neurons.specialisation import MEASURES, SHUFFLES, measure_units
from jaxablate.neurons.survey import BEFORE, TOP, Survey, UnitsRead, most_tokens, survey
from jaxablate.neurons.units import Kind, Values, decoder_output, layer_values, rotation
from jaxablate.ops.order_statistics import thresholds
from jaxablate.reports import units as data
from jaxablate.reports.neuron_records import read_index
from jaxablate.reports.packed import Packed, pack, pack_steps, unpack
from jaxablate.reports.panels import Grid, Panel
from jaxablate.reports.results import Figure
from jaxablate.runs.run import Run
from jaxablate.suites import autoencoders
from jaxablate.suites.neurons import LABELS, measured
from jaxablate.suites.suite import Suite
from jaxablate.suites.texts import Vocabulary
from jaxablate.types import Batch, Params

MOST_TOKENS = 1 << 17
"""Tokens of the validation split that are read, at most."""
MOST_UNITS = 1 << 16
"""Units that are shown, at most; some layers of a model with more are left out."""
MOST_AUTOENCODERS = 4
EFFECTS = 8
"""Tokens that a page names as promoted, and as suppressed."""
MOST_PATTERNS, MOST_ALTERNATIVES = 8, 4
"""Patterns of a graph, and tokens that are named at one of their places."""
LATENT_DIRECTIONS = 256
STEPS = 63
"""Steps in which activations of contexts are stored, from 0 to the strongest: enough for a colour, and small."""

_OF_SORT: Mapping[data.UnitSort, str] = {
    "neuron": "neurons clean", "channel": "attention clean", "neuron gate": "neurons gates",
    "channel gate": "attention gates"}
"""Sort of unit -> kind in `jaxablate.neurons`."""
_TITLES: Mapping[data.UnitSort, str] = {
    "neuron": "Neurons", "channel": "Attention channels", "neuron gate": "Gates of neurons",
    "channel gate": "Gates of attention channels"}
_FIELDS: Mapping[data.UnitSort, str] = {
    "neuron": "clean.layer_{}.mlp_post", "channel": "clean.layer_{}.head_out",
    "neuron gate": "layer_{}.neuron_gates", "channel gate": "layer_{}.attention_gates"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnitsResult:
    """How many units of which kind the explorer shows."""

    rows: tuple[tuple[str, str, int, int, float], ...]
    """(title, site, units, units that never fire, median share of tokens on which one fires)."""
    tokens: int
    left_out: str
    attachments: Mapping[str, data.UnitsData]

    def headline(self) -> tuple[Figure, ...]:
        """No figures: those of units stand under ``neurons`` and ``sae``."""
        return ()

    def panels(self) -> tuple[Panel, ...]:
        """What there is."""
        caption = f"On {self.tokens:,} tokens of the validation split. The page of each is under Units. {self.left_out}"
        return (Grid(title="Units to look at", rows=self.rows, caption=caption.strip(),
                     columns=("units", "site", "number", "never fire", "median rate")),)


@dataclasses.dataclass(frozen=True)
class _Group:
    """Units of one kind and layer, or of one autoencoder."""

    sort: data.UnitSort
    name: str
    title: str
    site: str
    layer: int
    n: int
    signed: bool


@dataclasses.dataclass(frozen=True)
class AllUnits:
    """(parameters, {name: autoencoder}), tokens [B, T] -> float32 [B, T, units], all units of all groups.

    The value of a gate is by how much its relevance score exceeds the least that wins, 0 where it is closed: so it is
    ranked where the gate itself is 0 or 1.
    """

    model: SelfAblatingTransformer
    groups: tuple[_Group, ...]

    def __call__(self, params: tuple[Params, Mapping[str, SparseAutoencoder]], tokens_BT: jax.Array
                 ) -> Float[Array, "b t u"]:
        """Values of the units."""
        of_model, saes = params
        sites = {group.site for group in self.groups if group.sort == "latent"}
        read: dict[str, jax.Array] = {}

        def edit(name: str, x: jax.Array) -> jax.Array:
            if name in sites:
                read[name] = x.reshape(*x.shape[:2], -1)
            return x

        out = decoder_output(self.model, of_model, tokens_BT, **({"edit": edit} if sites else {}))
        return jnp.concatenate([self._values(group, out, read, saes) for group in self.groups], axis=-1)

    def _values(self, group: _Group, out: DecoderOutput, read: Mapping[str, jax.Array],
                saes: Mapping[str, SparseAutoencoder]) -> jax.Array:
        if group.sort == "latent":
            sae = saes[group.name]
            return sae.encode(read[group.site].astype(sae.config.dtype)).astype(jnp.float32)
        layer = out.layers[group.layer]
        if group.sort in ("neuron", "channel"):
            x = layer_values(layer)[_OF_SORT[group.sort]]
            return x.reshape(*x.shape[:2], -1).astype(jnp.float32)
        part = "neurons" if group.sort == "neuron gate" else "attention"
        return _margins(self.model.config, group.layer, layer, part)


def _margins(config: ModelConfig, number: int, layer: LayerActivations, part: UnitKind) -> jax.Array:
    """Score of each open gate above the middle between the least score that wins and the next; 0 of a closed one."""
    scores, gates = ((layer.neuron_scores, layer.neuron_gates) if part == "neurons" else
                     (layer.attention_scores, layer.attention_gates))
    assert scores is not None and gates is not None
    t = thresholds(scores, config.layer_k(part, number))
    above = jnp.maximum(scores - (t.kth + t.next) / 2, jnp.finfo(jnp.float32).tiny)
    return jnp.where(gates > 0.5, above, 0).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class LatentUnits:
    """Latents and random directions of the vectors they read, as `neurons.measure_units` takes them; parameters are
    the model's, {name: autoencoder} and {name: directions [D, R]}."""

    model: SelfAblatingTransformer
    sites: tuple[tuple[str, str], ...]
    """(name, site) of each autoencoder."""

    def __call__(self, params: tuple[Params, Mapping[str, SparseAutoencoder], Mapping[str, jax.Array]],
                 tokens_BT: jax.Array) -> tuple[Values, Values]:
        """Values by name, of one layer each."""
        of_model, saes, directions = params
        read = features.forward(self.model, of_model, tokens_BT, [site for _, site in self.sites])[0]
        rows = {name: read[site].reshape(-1, read[site].shape[-1]) for name, site in self.sites}
        values = {name: [saes[name].encode(x.astype(saes[name].config.dtype)).astype(jnp.float32)]
                  for name, x in rows.items()}
        return values, {name: [x.astype(jnp.float32) @ directions[name]] for name, x in rows.items()}


def collect(run: Run) -> data.UnitsData:
    """All units of a run's model.

    Raises:
      TooLittleDataError: the validation split is too short for the measures (`neurons.measure`).
      DataError: activations are not finite.
    """
    config = cast(Config, run.config).model
    stored = dict(autoencoders.of_checkpoint(run)[:MOST_AUTOENCODERS])
    groups, left_out = _groups(config, stored)
    sizes, valid = [group.n for group in groups], run.splits["valid"]
    most = most_tokens(sum(sizes), MOST_TOKENS)
    whole = valid.tokens is not None and valid.tokens.n_tokens <= most
    batches = functools.partial(_first, valid.batches, most)
    saes = {name: saved.sae for name, saved in stored.items()}
    model = unrolled(run.model)
    of_model = (measured(run) if whole else
                neurons.measure(model, run.params, batches, match_k=run.match_k, seed=run.seed))
    measures = _measures(run, of_model, model, batches, saes, groups)
    read = AllUnits(model, tuple(groups))
    found = survey(read, (run.params, saes), batches, UnitsRead(
        threshold=np.concatenate([0 * x.threshold if g.sort.endswith("gate") else x.threshold
                                  for g, x in zip(groups, measures, strict=True)]),
        signed=np.repeat([group.signed for group in groups], sizes),
        sparse=np.repeat([group.sort not in ("neuron", "channel") for group in groups], sizes),
        family=np.repeat([int(group.sort.endswith("gate")) for group in groups], sizes)), eot_id=run.tokenizer.eot_id)
    words = Vocabulary()
    firsts = np.cumsum([0, *sizes])
    text = words.pack(np.where(found.mask, found.text, run.tokenizer.eot_id))
    pages = tuple(_page(run, group, int(firsts[i]), measures[i], found, saes, words) for i, group in enumerate(groups))
    return data.UnitsData(
        params_digest=run.digest, step=run.step, text=text, tokens=int(found.mask.sum()),
        sampled=found.sampled, before=BEFORE, strongest=TOP, groups=pages, left_out=left_out,
        end=words.place_of(run.tokenizer.eot_id), vocabulary=words.strings(run.tokenizer))


def _groups(config: ModelConfig, stored: Mapping[str, features.SavedAutoencoder]) -> tuple[list[_Group], str]:
    """The groups that are shown, and what is left out: layers that are too many, evenly."""
    sorts: list[data.UnitSort] = [sort for sort in _OF_SORT if config.gated or not sort.endswith("gate")]
    width = {sort: config.attention_width if "channel" in sort else config.mlp_width for sort in sorts}
    latents = sum(saved.sae.config.d_sae for saved in stored.values())
    fit = max((MOST_UNITS - latents) // sum(width.values()), 1)
    count = min(fit, config.n_layers)
    layers = sorted({(2 * i + 1) * config.n_layers // (2 * count) for i in range(count)})
    groups = [_Group(sort, f"{sort.replace(' ', '-')}-{layer}", f"{_TITLES[sort]} of layer {layer}",
                     _FIELDS[sort].format(layer), layer, width[sort], sort == "channel")
              for sort in sorts for layer in layers]
    for name, saved in stored.items():
        layer = features.find_site(config, saved.name).layer
        groups.append(_Group("latent", name, f"Latents of {name}", saved.name, layer, saved.sae.config.d_sae, False))
    missing = config.n_layers - count
    return groups, f"{missing} of {config.n_layers} layers are left out for the page's size." if missing else ""


def _first(batches: Any, tokens: int) -> Iterator[Batch]:
    """Batches from the start of a split with at most so many tokens (rounded up to whole windows) that count."""
    for batch in batches():
        mask = np.asarray(batch["mask"])
        yield {"inputs": batch["inputs"], "mask": mask * (np.arange(len(mask)) * mask.shape[1] < tokens)[:, None]}
        tokens -= mask.size
        if tokens <= 0:
            return


def _measures(run: Run, of_model: neurons.NeuronMeasures, model: SelfAblatingTransformer, batches: Batches,
              saes: Mapping[str, SparseAutoencoder], groups: Sequence[_Group]) -> list[neurons.UnitGroup]:
    """Measures of each group; those of all latents in one pass."""
    sites = {group.name: group.site for group in groups if group.sort == "latent"}
    of_latents: dict[str, neurons.UnitGroup] = {}
    if sites:
        rng = np.random.default_rng(run.seed)
        directions = {name: jnp.asarray(rotation(saes[name].config.d_in, LATENT_DIRECTIONS, rng)) for name in sites}
        kinds = [Kind(name=name, width=saes[name].config.d_sae, threshold=0.0) for name in sites]
        result = measure_units(LatentUnits(model, tuple(sites.items())), kinds, (run.params, saes, directions), batches,
                               rates={name: [0.5] for name in sites}, vocab_size=model.config.vocab_size,
                               shuffles=SHUFFLES, seed=run.seed)
        of_latents = {group.kind: group for group in result.groups}
    return [of_latents[group.name] if group.sort == "latent" else of_model.of(_OF_SORT[group.sort])[group.layer]
            for group in groups]


def _page(run: Run, group: _Group, first: int, of: neurons.UnitGroup, found: Survey,
          saes: Mapping[str, SparseAutoencoder], words: Vocabulary) -> data.Units:
    """One group of the attachment."""
    own = slice(first, first + group.n)
    low, high = found.low[own], found.high[own]
    strongest = np.maximum(np.maximum(high, -low) if group.signed else high, 0)
    share = found.around[own] / np.where(strongest > 0, strongest, 1)[:, None, None]
    around = np.clip(share, -1 if group.signed else 0, 1)
    frequent = of.frequent
    fired = np.maximum(of.fired, 1)[:, None]
    promotes, suppresses = _effects(run, group, saes, words)
    return data.Units(
        name=group.name, sort=group.sort, title=group.title, site=group.site, layer=group.layer, first=first, n=group.n,
        signed=group.signed, sparse=group.sort not in ("neuron", "channel"), rate=_short(of.rates),
        threshold=_short(of.threshold), low=_short(low), high=_short(high), strongest=_short(strongest),
        histogram=pack(found.histogram[own], "int32"), places=pack(found.places[own], "int32"),
        around=pack_steps(around, 1 / STEPS, "int8"), firing_tokens=words.pack(frequent.tokens),
        firing_shares=pack_steps(frequent.fired / fired, 1e-3, "uint16"),
        firing_rates=pack_steps(frequent.rates, 1e-3, "uint16"),
        promotes=promotes, suppresses=suppresses, partners=pack(found.partners[own], "int32"),
        correlations=pack_steps(found.correlations[own], 1e-3, "int32"),
        measures=tuple(_measure(of, name) for name in MEASURES), graphs=_graphs(run, group, words))


def _measure(of: neurons.UnitGroup, name: str) -> data.UnitMeasure:
    shuffled = getattr(of.shuffled, name, None) if name != "information" else None
    return data.UnitMeasure(name=name, label=LABELS[name], values=_short(of.measure(name)),
                            shuffled=None if shuffled is None else _short(shuffled),
                            directions=_short(of.matched(name)))


def _effects(run: Run, group: _Group, saes: Mapping[str, SparseAutoencoder], words: Vocabulary
             ) -> tuple[data.TokenEffects | None, data.TokenEffects | None]:
    """Tokens that a group's units promote and suppress; None of gates, which write nothing."""
    directions = _written(run.model.config, run.params, group, saes)
    if directions is None:
        return None, None
    table = _logit_table(run.model.config, run.params)[: run.tokenizer.vocab_size]  # a model's may be rounded up
    k = min(EFFECTS, len(table))
    result = []
    for sign in (1, -1):
        tokens, effects = features.promoted_by(directions, sign * table, k)
        result.append(data.TokenEffects(tokens=words.pack(tokens), effects=_short(sign * effects)))
    return result[0], result[1]


def _logit_table(config: ModelConfig, params: Params) -> np.ndarray:
    """[V, D] output matrix times the final norm's scale; of a layer norm less the mean over D, which it takes away."""
    scale = np.asarray(params["ln_f"]["scale"], np.float32) + (config.norm == "rms_offset")
    table = np.asarray(output_matrix(config, params), np.float32)[: config.vocab_size] * scale
    return table - table.mean(-1, keepdims=True) if config.norm == "layer" else table


def _written(config: ModelConfig, params: Params, group: _Group, saes: Mapping[str, SparseAutoencoder]
             ) -> np.ndarray | None:
    """[units, D] what each unit writes into the residual stream for an activation of 1; None where it does not."""
    layer = params[f"layer_{group.layer}"]
    kernels = {"mlp_post": np.asarray(layer["mlp"]["down"]["kernel"], np.float32),
               "head_out": np.asarray(layer["attention"]["out"]["kernel"], np.float32).reshape(-1, config.d_model)}
    norms = {"mlp_post": "ln_2_post", "head_out": "ln_1_post"}
    field = group.site.split(".")[-1]
    if group.sort.endswith("gate") or field == "mlp_pre":
        return None
    out = kernels.get(field)
    if out is not None and config.post_norms:  # the norm after the layer scales what it writes
        out = out * (np.asarray(layer[norms[field]]["scale"], np.float32) + (config.norm == "rms_offset"))
    if group.sort != "latent":
        return out
    decoder = np.asarray(saes[group.name].W_dec, np.float32)
    return decoder if out is None else decoder @ out


def _graphs(run: Run, group: _Group, words: Vocabulary) -> tuple[data.UnitGraph, ...]:
    """Graphs of the group's units, where ``jaxablate neurons`` made them of this checkpoint."""
    folders = {"neuron": "graphs", "channel": "graphs-channels"}
    if run.workdir is None or group.sort not in folders:
        return ()
    try:
        index = read_index(run.workdir / "neurons" / folders[group.sort], "jaxablate neurons")
    except FileError:  # there are none, or they are damaged, which the command that shows them says
        return ()
    if index["about"]["params_digest"] != run.digest:
        return ()
    found = []
    for entry in index["neurons"]:
        layer, unit = map(int, entry["neuron"].split("."))
        if layer == group.layer and entry["patterns"]:
            patterns = sorted(entry["patterns"], key=lambda p: -p["strength"])[:MOST_PATTERNS]
            found.append(data.UnitGraph(unit=unit, f1=entry["f1"], precision=entry["precision"], recall=entry["recall"],
                                        patterns=tuple(_pattern(p, words) for p in patterns)))
    return tuple(found)


def _pattern(pattern: Mapping[str, Any], words: Vocabulary) -> data.GraphPattern:
    places = pattern["tokens"]
    return data.GraphPattern(
        tokens=tuple(None if ids is None else tuple(words.places(ids[:MOST_ALTERNATIVES]).tolist())
                     for ids in places),
        more=tuple(0 if ids is None else max(len(ids) - MOST_ALTERNATIVES, 0) for ids in places),
        strength=float(pattern["strength"]), examples=int(pattern.get("examples", 0)))


def _short(values: np.ndarray) -> Packed:
    """float32 of which three to four digits are kept, so that it compresses."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits + 0x800) & 0xFFFFF000).view(np.float32)
    return pack(np.where(np.isfinite(values), rounded, np.nan), "float32")


def _run(run: Run) -> tuple[UnitsResult, dict[str, Any]]:
    found = collect(run)
    by_group = [(group, unpack(group.rate)) for group in found.groups]
    rows = tuple((group.title, group.site, group.n, int((rate == 0).sum()), float(np.median(rate)))
                 for group, rate in by_group)
    result = UnitsResult(rows=rows, tokens=found.tokens, left_out=found.left_out, attachments={"units": found})
    return result, {"most_tokens": MOST_TOKENS, "shuffles": SHUFFLES, "match_k": run.match_k, "seed": run.seed}


SUITE = Suite(name="units", run=_run,
              about="Neurons, channels, gates and latents one by one, for the explorer: contexts, tokens, partners.")
