"""Runs as they are now, for ``jaxablate serve``: results and logs as far as they go, and texts that a model reads."""

import dataclasses
import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import jax
import msgspec
import numpy as np

from jaxablate import files
from jaxablate.circuits.nodes import check_nodes, node_means, without
from jaxablate.config import ClassificationConfig, Config, to_dict
from jaxablate.errors import CheckpointError, ConfigError, DataError
from jaxablate.reports import explorer, results
from jaxablate.reports.explorer import ShownRun
from jaxablate.reports.results import Results
from jaxablate.reports.texts import ClassifiedTexts, LanguageTexts
from jaxablate.runs.checkpoint import saved_steps
from jaxablate.runs.run import Run, open_run
from jaxablate.runs.workdir import METRICS, read_config, read_run
from jaxablate.suites import autoencoders, explanations, texts

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
        """JSON of `reports.texts.LanguageTexts` or `ClassifiedTexts`, of one text.

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
        with self._lock:
            if self._reader is None or self._reader.run.step != self.newest:
                self._reader = _Reader(open_run(self._workdir, "newest", seed=self._seed))
            return self._reader.read(text, off, replaced_by)


class _Reader:
    """A checkpoint that reads texts."""

    def __init__(self, run: Run):
        self.run = dataclasses.replace(run, params=jax.device_put(run.params, jax.devices()[0]))
        self._stored = autoencoders.of_checkpoint(run) if isinstance(run.config, Config) else ()
        self._means: Mapping[str, np.ndarray] | None = None

    def read(self, text: str, off: Sequence[str], replaced_by: Replacement) -> bytes:
        of_classes = isinstance(self.run.config, ClassificationConfig)
        found = self._classified(text, off) if of_classes else self._predicted(text, off, replaced_by)
        return json.dumps(files.finite(dataclasses.asdict(found)), allow_nan=False).encode()

    def _classified(self, text: str, off: Sequence[str]) -> ClassifiedTexts:
        if off:
            raise ConfigError(f"nodes of a text classifier cannot be switched off: {', '.join(off)}; leave off out")
        run = self.run
        return explanations.typed(run.model, run.params, text, run.tokenizer, params_digest=run.digest, step=run.step)

    def _predicted(self, text: str, off: Sequence[str], replaced_by: Replacement) -> LanguageTexts:
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
                self._means = node_means(run.model, run.params, run.splits["valid"].batches())
            params = without(config, params, off, self._means if replaced_by == "mean" else None)
            about += f"; switched off: {', '.join(off)}"
        passage = texts.Passage(title="typed text", about=f"{about}.", kind="prompt", tokens=tuple(ids))
        length = min(config.context_length, 1 << (len(ids) - 1).bit_length())  # few lengths, so few programs
        return texts.evaluate(run.model, params, [passage], run.tokenizer, autoencoders=self._stored, length=length,
                              params_digest=run.digest, step=run.step, seed=run.seed)
