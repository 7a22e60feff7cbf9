"""Settings of ``eval.py circuit``; kept apart from the runner so that a command line needs no JAX to be parsed."""

import dataclasses
import math
import re
from pathlib import Path
from typing import Literal

from jaxablate.config import RunConfig
from jaxablate.errors import ConfigError

Method = Literal["acdc", "eap", "eap-ig", "mask-gradient", "oracle", "random"]
TAU = 0.03
"""Threshold of the papers, in nats (docs/papers.md, ACDC)."""
PROMPTS = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class CircuitSettings:
    """Find the circuit of a task in a language model, or measure a stored one: numbers, pictures, exchange files."""

    workdir: Path
    """Working directory of a training run of a language model."""
    checkpoint: str = "auto"
    """last, best (by validation loss), a step, or auto, as in `score`."""
    stream: Literal["clean", "ablated"] = "clean"
    """Whose output counts. ablated: of a model with gates, which are those of the clean prompt and stay so."""
    ablation: Literal["resample", "zero", "mean", "mean_per_position"] = "resample"
    """What cut edges carry: the corrupt prompt's values, zeros, or a mean over the corrupt prompts."""
    method: Method | None = None
    """acdc (the default) searches edge by edge; the others score all edges and keep the strongest: eap and eap-ig by
    attribution, mask-gradient by the integrated derivative of a mask, oracle by patching each alone, random as a
    control."""
    tau: float | None = None
    """Of acdc: nats of KL that cutting an edge may cost; 0.03 by default."""
    edges: int | None = None
    """Of the other methods: edges to keep; 5 % of all by default. Those that dangle are left out."""
    search: Literal["top", "greedy"] | None = None
    """Of the other methods: top (the default) keeps the strongest, greedy walks from the end."""
    prompts: int = PROMPTS
    """Prompt pairs that are drawn; with a prompt file at most so many of its first."""
    seed: int = 0
    """Of drawn prompts, of random scores and of intervals."""
    prompt_file: Path | None = None
    """JSON of prompts in AutoCircuit's layout; indirect objects by default, in the corpus's words where the model was
    trained on the embedded corpus."""
    load: Path | None = None
    """A stored circuit (ours or MIB's), which is measured on this run; none is searched for."""
    order_seed: int | None = None
    """Of acdc: visit the edges of each layer in a random order; the canonical one by default."""
    batch_size: int = 64
    """Prompts computed at once."""
    out: Path | None = None
    """Folder of the files; by default circuits/STREAM-METHOD-... in the working directory."""

    def check(self) -> None:
        """Raises ConfigError for a value out of range, or an option that has no effect beside another.

        Not done when made: the command line's parser would dress the message up as its own.
        """
        for name in ("prompts", "batch_size", "edges"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value} must be at least 1")
        if self.tau is not None and not 0 < self.tau < math.inf:
            raise ConfigError(f"tau={self.tau:g} must be a number above 0 (nats of KL that cutting an edge may cost); "
                              f"the papers take {TAU}")
        if self.order_seed is not None and self.order_seed < 0:
            raise ConfigError(f"order_seed={self.order_seed} must not be negative")
        self._check_together()
        self._of_score.check()

    def _check_together(self) -> None:
        what = "--load" if self.load else f"--method {self.chosen_method}"
        without = {"--method": self.method} if self.load else {}
        if self.load or self.chosen_method != "acdc":
            without |= {"--tau": self.tau, "--order-seed": self.order_seed}
        if self.load or self.chosen_method == "acdc":
            without |= {"--edges": self.edges, "--search": self.search}
        idle = [name for name, value in without.items() if value is not None]
        if idle:
            other = "leave out --load" if self.load else "choose another --method"
            raise ConfigError(f"no effect beside {what}: {', '.join(idle)}; leave that out, or {other}")

    @property
    def chosen_method(self) -> Method:
        """The method, its default filled in."""
        return self.method or "acdc"

    @property
    def chosen_tau(self) -> float:
        """Threshold of acdc, its default filled in."""
        return TAU if self.tau is None else self.tau

    def folder(self) -> Path:
        """Where files go: the folder asked for, or one whose name has every setting that is not the default.

        >>> CircuitSettings(workdir=Path("runs/x"), method="eap-ig", edges=100).folder().name
        'clean-eap-ig-100'
        """
        if self.out is not None:
            return self.out
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        parts = [self.stream, *self._method_parts()]
        parts += [self.ablation] if self.ablation != defaults["ablation"] else []
        parts += [_slug(self.prompt_file.stem)] if self.prompt_file else []
        for name in ("prompts", "seed", "checkpoint", "order_seed"):
            if getattr(self, name) != defaults[name]:
                parts.append(f"{name.replace('_', '-')}-{getattr(self, name)}")
        return self.workdir / "circuits" / "-".join(parts)

    def _method_parts(self) -> list[str]:
        if self.load is not None:
            return ["load", _slug(f"{self.load.resolve().parent.name}-{self.load.stem}")]
        if self.chosen_method == "acdc":
            return ["acdc", f"{self.chosen_tau:g}"]
        size = [] if self.edges is None else [str(self.edges)]
        return [self.chosen_method, *size, *([] if self.search in (None, "top") else [self.search])]

    def step_for(self, config: RunConfig) -> int | Literal["best", "best or last"] | None:
        """The checkpoint of a run as the restoring function takes it."""
        return self._of_score.step_for(config)

    @property
    def _of_score(self) -> "ScoreSettings":
        from jaxablate.commands.score import ScoreSettings

        return ScoreSettings(workdir=self.workdir, checkpoint=self.checkpoint, batch_size=self.batch_size,
                             seed=self.seed)


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-.") or "file"
