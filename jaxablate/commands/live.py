"""Runs as they are now, for ``jaxablate serve``: results and logs as far as they go, and texts that a model reads."""

import dataclasses
import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import msgspec
import numpy as np

from jaxablate import files
from jaxablate.circuits.graph import START, Graph
from jaxablate.config import Config, ModelConfig, to_dict
from jaxablate.errors import CheckpointError, ConfigError, DataError
from jaxablate.features.sites import forward, unrolled
from jaxablate.models.decoder import SelfAblatingTransformer
from jaxablate.reports import explorer, results
from jaxablate.reports.explorer import ShownRun
from jaxablate.reports.results import Results
from jaxablate.runs.checkpoint import saved_steps
from jaxablate.runs.run import Run, open_run
from jaxablate.runs.workdir import METRICS, read_config, read_run
from jaxablate.suites import autoencoders, texts
from jaxablate.types import Params

MEAN_TOKENS = 8192
"""Tokens of the validation split over which a node's mean is taken."""
BUILDS = 4
"""Pages whose data is kept; older ones are told to load again."""
Replacement = Literal["mean", "zero"]


class ReadRequest(msgspec.Struct, forbid_unknown_fields=True):
    """A text to be read."""

    run: str
    """Name of the run, as the page calls it."""
    text: str
    off: tuple[str, ...] = ()
    """Nodes of the circuit's graph that are switched off, for example ``A0.1`` and ``MLP 1``."""
    replaced_by: Replacement = "mean"
    """What stands in the place of their output: its mean over validation text, or zeros."""


@dataclasses.dataclass(frozen=True)
class _Build:
    """The explorer's data at one moment."""

    name: str
    manifest: explorer.Manifest
    blobs: Sequence[bytes]


class LiveRuns:
    """All runs that are served. Methods may be called from several threads."""

    def __init__(self, workdirs: Sequence[Path], seed: int = 0):
        self.runs = {run.name: run for run in (LiveRun(path, seed) for path in workdirs)}
        if len(self.runs) < len(workdirs):
            raise ConfigError(f"two runs of {', '.join(map(str, workdirs))} have the same name; rename a folder")
        self._lock, self._builds = threading.Lock(), dict[str, _Build]()

    def page(self) -> str:
        """The explorer, whose data comes from here."""
        manifest, blobs = explorer.build([run.shown() for run in self.runs.values()])
        digest = hashlib.sha256()
        for part in blobs:
            digest.update(part)
        build = _Build(digest.hexdigest()[:16], manifest, blobs)
        with self._lock:
            self._builds.pop(build.name, None)
            self._builds[build.name] = build
            while len(self._builds) > BUILDS:
                del self._builds[next(iter(self._builds))]
        return explorer.page(dataclasses.replace(manifest, live=build.name), ())

    def blob(self, build: str, number: int) -> bytes:
        """A part of a page's data; KeyError where it is not there any more."""
        with self._lock:
            found = self._builds[build]
        if number >= len(found.blobs):
            raise KeyError(number)
        return found.blobs[number]

    def state(self, after: str) -> dict[str, Any]:
        """The newest checkpoint of each run, what was logged, and when it was scored (0: not yet).

        ``after`` is JSON, {name of a run: how many lines of its log are known}.
        """
        try:
            known = msgspec.json.decode(after, type=dict[str, int]) if after else {}
        except msgspec.MsgspecError as error:
            raise ConfigError(f"after={after!r:.80} is not JSON of numbers by run ({error})") from error
        return {name: run.state(known.get(name, 0)) for name, run in self.runs.items()}

    def read(self, asked: ReadRequest) -> bytes:
        """JSON of `reports.texts.LanguageTexts`, of one text.

        Raises:
          ConfigError: there is no such run or node.
          DataError: the text cannot be read by the model.
        """
        if asked.run not in self.runs:
            raise ConfigError(f"there is no run {asked.run!r:.80}; there are {', '.join(self.runs)}")
        return self.runs[asked.run].read(asked.text, asked.off, asked.replaced_by)


class LiveRun:
    """One working directory; its model is opened when a text is first read, and anew when there is a newer one."""

    def __init__(self, workdir: Path, seed: int = 0):
        self.config = read_config(workdir)
        self.name = explorer.run_name(workdir)
        self._workdir, self._seed, self._lock = workdir, seed, threading.Lock()
        self._reader: _Reader | None = None

    @property
    def newest(self) -> int:
        """Step of the newest checkpoint, 0 where there is none yet."""
        return max(saved_steps(self._workdir / "checkpoints"), default=0)

    def shown(self) -> ShownRun:
        """What the explorer shows: results as far as there are any."""
        try:
            return dataclasses.replace(explorer.read_run(self._workdir), name=self.name)
        except CheckpointError:  # not scored yet
            nothing = Results(config=to_dict(self.config), seed=self.config.train.seed, step=self.newest,
                              params_digest="", data_hash="", parameters=0)
            return ShownRun(name=self.name, results=nothing, history=explorer.read_history(self._workdir / METRICS),
                            record=read_run(self._workdir) or {})

    def state(self, known: int) -> dict[str, Any]:
        """See `LiveRuns.state`."""
        lines = explorer.read_history(self._workdir / METRICS)
        start = known if known <= len(lines) else 0
        scored = self._workdir / results.FILE_NAME
        return {"checkpoint": self.newest, "lines": len(lines), "from": start, "log": lines[start:],
                "scored": scored.stat().st_mtime_ns if scored.exists() else 0}

    def read(self, text: str, off: Sequence[str], replaced_by: Replacement) -> bytes:
        """See `LiveRuns.read`; one text at a time."""
        if not isinstance(self.config, Config):
            raise ConfigError("a text classifier reads no typed text here; run: jaxablate explain")
        with self._lock:
            if self._reader is None or self._reader.run.step != self.newest:
                self._reader = _Reader(open_run(self._workdir, seed=self._seed))
            return self._reader.read(text, off, replaced_by)


class _Reader:
    """A checkpoint that reads texts."""

    def __init__(self, run: Run):
        self.run = dataclasses.replace(run, params=jax.device_put(run.params, jax.devices()[0]))
        self._stored = autoencoders.of_checkpoint(run)
        self._means: Mapping[str, np.ndarray] | None = None

    def read(self, text: str, off: Sequence[str], replaced_by: Replacement) -> bytes:
        run, config = self.run, cast(Config, self.run.config).model
        ids = run.tokenizer.encode(text)
        if len(ids) < 2:
            raise DataError(f"the text has {len(ids)} token{'' if len(ids) == 1 else 's'}; give two or more")
        if len(ids) > config.context_length:
            raise DataError(f"the text has {len(ids):,} tokens, the model reads {config.context_length:,}; shorten it")
        about = f"Typed, read by the checkpoint of step {run.step:,}"
        params = run.params
        if off:
            check_nodes(config, off)
            if replaced_by == "mean" and self._means is None:
                self._means = node_means(run)
            params = without(config, params, off, self._means if replaced_by == "mean" else None)
            about += f"; switched off: {', '.join(off)}"
        passage = texts.Passage(title="typed text", about=f"{about}.", kind="prompt", tokens=tuple(ids))
        length = min(config.context_length, 1 << (len(ids) - 1).bit_length())  # few lengths, so few programs
        found = texts.evaluate(run.model, params, [passage], run.tokenizer, autoencoders=self._stored, length=length,
                               params_digest=run.digest, step=run.step, seed=run.seed)
        return json.dumps(files.finite(dataclasses.asdict(found)), allow_nan=False).encode()


def node_means(run: Run) -> dict[str, np.ndarray]:
    """Mean output of every head and MLP in the clean stream over validation text: ``head_out`` [L, N H] and ``mlp_out``
    [L, D]."""
    model, total, count = unrolled(run.model), {}, 0
    for batch in run.splits["valid"].batches():
        mask = np.asarray(batch["mask"]) > 0
        sums = _node_sums(model, run.params, np.asarray(batch["inputs"]), mask)  # one device has the parameters
        for name, x in jax.device_get(sums).items():
            total[name] = total.get(name, 0) + x.astype(np.float64)
        count += int(mask.sum())
        if count >= MEAN_TOKENS:
            break
    return {name: (x / max(count, 1)).astype(np.float32) for name, x in total.items()}


def _sums(model: SelfAblatingTransformer, params: Params, tokens_BT: jax.Array, mask_BT: jax.Array
          ) -> dict[str, jax.Array]:
    fields = ("head_out", "mlp_out")
    names = [f"clean.layer_{i}.{field}" for field in fields for i in range(model.config.n_layers)]
    read = forward(model, params, tokens_BT, names)[0]
    summed = {name: jnp.sum(jnp.where(mask_BT[..., None], x, 0), axis=(0, 1)) for name, x in read.items()}
    return {field: jnp.stack([summed[name] for name in names if name.endswith(field)]) for field in fields}


_node_sums = jax.jit(_sums, static_argnums=0)


def check_nodes(config: ModelConfig, nodes: Sequence[str]) -> None:
    """Raises ConfigError where a model has no such head or MLP."""
    names = set(Graph.of(config).source_names) - {START}
    for node in nodes:
        if node not in names:
            raise ConfigError(f"the model has no node {node!r:.40}; heads are A0.0 .. A{config.n_layers - 1}."
                              f"{config.n_heads - 1}, and MLP 0 .. MLP {config.n_layers - 1}")


def without(config: ModelConfig, params: Params, nodes: Sequence[str], means: Mapping[str, np.ndarray] | None
            ) -> Params:
    """Parameters of the same model, of which heads and MLPs put out their mean, or nothing, in both streams.

    A head writes through its rows of the output projection, an MLP through its last one, so these are what changes.

    Raises:
      ConfigError: there is no such node, or it has no part of its own that could be replaced by a mean.
    """
    check_nodes(config, nodes)
    changed = dict(params)
    for node in nodes:
        layer = int(node.removeprefix("MLP ")) if node.startswith("MLP") else int(node[1:].split(".")[0])
        name = f"layer_{layer}"
        block = dict(changed[name])
        if node.startswith("MLP"):
            if config.post_norms and means is not None:
                raise ConfigError(f"{node} has a norm after it: no constant gives its mean; replace it by zeros")
            down = dict(block["mlp"]["down"])
            down["kernel"] = jnp.zeros_like(down["kernel"])
            value = 0.0 if means is None else means["mlp_out"][layer]
            block["mlp"] = {**block["mlp"], "down": _with_bias(down, value, node, means)}
        else:
            head, out = int(node.split(".")[1]), dict(block["attention"]["out"])
            value = 0.0
            if means is not None:
                of_head = means["head_out"][layer].reshape(config.n_heads, -1)[head]
                value = of_head @ np.asarray(params[name]["attention"]["out"]["kernel"][head], np.float32)
                value = value + np.asarray(out.get("bias", 0.0), np.float32)
            elif "bias" in out:
                value = out["bias"]
            out["kernel"] = out["kernel"].at[head].set(0)
            block["attention"] = {**block["attention"], "out": _with_bias(out, value, node, means)}
        changed[name] = block
    return changed


def _with_bias(linear: dict[str, Any], value: Any, node: str, means: Any) -> dict[str, Any]:
    if "bias" in linear:
        return {**linear, "bias": jnp.broadcast_to(jnp.asarray(value, linear["bias"].dtype), linear["bias"].shape)}
    if means is not None:
        raise ConfigError(f"{node} of a model without biases cannot put out its mean; replace it by zeros")
    return linear
