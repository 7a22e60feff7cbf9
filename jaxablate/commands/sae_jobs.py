"""What ``eval.py sae`` has to train: jobs of autoencoders that are trained together, and how they are told apart.

Everything that decides an autoencoder's weights goes into a digest, which its folder's name ends with. So the same
command finds what it has stored, and another one never writes over it.

    WORKDIR/autoencoders/NAME/             one autoencoder, as SAELens stores it
    WORKDIR/autoencoders/jobs/DIGEST/      job.json; metrics.jsonl; state.safetensors while it is not finished
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxablate.commands.sae_settings import SaeSettings
from jaxablate.config import ModelConfig
from jaxablate.features.config import AutoencoderConfig, SaeRun, SaeTrainConfig
from jaxablate.features.files import CONFIG
from jaxablate.features.sites import find_site, paper_site

FOLDER = "autoencoders"
"""In a working directory."""
_WINDOW_TOKENS = 4096
"""Of a token batch, about."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """Autoencoders of one width that one pass over the model's activations trains."""

    runs: tuple[SaeRun, ...]
    config: AutoencoderConfig
    settings: SaeTrainConfig
    windows: tuple[int, int]
    """[W, T] of a token batch; it divides half the buffer."""
    origin: Mapping[str, Any]
    """JSON-able: what else decides the weights: model, data, control."""

    def identity(self, run: SaeRun) -> dict[str, Any]:
        """All that decides one autoencoder's weights, for its cfg.json."""
        return {"run": dataclasses.asdict(run), "config": dataclasses.asdict(self.config),
                "settings": dataclasses.asdict(self.settings), "windows": list(self.windows), **self.origin}

    def name(self, run: SaeRun) -> str:
        """Name of an autoencoder's folder.

        For example ``clean.layer_6.mlp_out-l1-5-seed-0-1f6c09ab``.
        """
        kind = f"l1-{run.l1:g}" if self.config.architecture == "standard" else (
            f"{self.config.architecture}-{self.config.k:g}")
        control = [] if self.origin["control"] == "none" else [self.origin["control"]]
        return "-".join([run.site, kind, *control, f"seed-{run.seed}", _digest(self.identity(run))])

    @property
    def digest(self) -> str:
        """Of all its autoencoders."""
        return _digest([self.identity(run) for run in self.runs])

    def without_stored(self, folder: Path) -> "Job":
        """The job without the autoencoders that the folder has already."""
        left = tuple(run for run in self.runs if not (folder / self.name(run) / CONFIG).is_file())
        return dataclasses.replace(self, runs=left)


def plan(settings: SaeSettings, model: ModelConfig, length: int, origin: Mapping[str, Any]) -> list[Job]:
    """The jobs of a command, one for each width of its sites.

    Args:
      settings: of the command.
      model: config of the decoder.
      length: tokens of a sequence.
      origin: see `Job`.

    Raises:
      ConfigError: a site does not exist, or a number does not fit the width.
    """
    places = [find_site(model, name) for name in settings.sites or (paper_site(model),)]
    training = _training(settings, length)
    rows = _rows(training.round_steps * training.batch_tokens, length)
    jobs = []
    for width in dict.fromkeys(place.width for place in places):
        names = [place.name for place in places if place.width == width]
        runs = tuple(SaeRun(name, l1, seed) for name in names for l1 in settings.coefficients
                     for seed in settings.seeds)
        jobs.append(Job(runs=runs, config=_config(settings, width), settings=training, windows=(rows, length),
                        origin=origin))
    return jobs


def stored(workdir: Path) -> list[Path]:
    """Folders of the autoencoders of a working directory, by name."""
    return sorted(path.parent for path in (workdir / FOLDER).glob(f"*/{CONFIG}"))


def without_seed(identity: Mapping[str, Any]) -> str:
    """Digest of what autoencoders have in common that differ in the seed of their weights alone."""
    run = {name: value for name, value in identity["run"].items() if name != "seed"}
    return _digest({**identity, "run": run})


def random_params(model: Any, seed: int) -> Any:
    """Parameters of a model as they are drawn, for a control."""
    return jax.jit(model.init)(jax.random.key(seed), jnp.zeros((1, 2), jnp.int32))["params"]


def _config(settings: SaeSettings, width: int) -> AutoencoderConfig:
    return AutoencoderConfig(
        d_in=width, d_sae=settings.width * width, architecture=settings.architecture, k=settings.chosen_k,
        decoder=settings.decoder, project_gradient=settings.chosen("project_gradient"),
    )


def _training(settings: SaeSettings, length: int) -> SaeTrainConfig:
    """The buffer's halves made such that whole sequences fill them."""
    unit = length // math.gcd(length, settings.tokens_per_step)
    half = max(settings.buffer_batches // 2 // unit, 1) * unit
    return SaeTrainConfig(
        steps=settings.chosen("steps"), learning_rate=settings.chosen("learning_rate"), warmup=settings.warmup,
        decay=settings.decay, l1_warmup=settings.l1_warmup, batch_tokens=settings.tokens_per_step,
        buffer_batches=2 * half, seed=settings.data_seed,
    )


def _rows(half: int, length: int) -> int:
    """Sequences of a token batch: the most that divide half a buffer and have about `_WINDOW_TOKENS` tokens at most."""
    most = max(_WINDOW_TOKENS // length, 1)
    return next(rows for rows in range(most, 0, -1) if half // length % rows == 0)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]
