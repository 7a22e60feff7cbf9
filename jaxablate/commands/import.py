"""``jaxablate import``: a decoder of a Hugging Face folder as a working directory that every command measures."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import tyro
from rich.console import Console

from jaxablate import files
from jaxablate.commands import base
from jaxablate.config import Config, DataConfig, MeshConfig, ModelConfig, TrainConfig, to_dict
from jaxablate.data.ids import Tokenizer, bos_id
from jaxablate.data.preparation import prepare
from jaxablate.data.progress import progress_report
from jaxablate.data.tokenizer import tokenizer_of_folder
from jaxablate.errors import CheckpointError, ConfigError
from jaxablate.interop.huggingface import from_huggingface, kept_settings, read_settings
from jaxablate.runs.checkpoint import Checkpoints
from jaxablate.runs.workdir import check_workdir, record_run, require_x64
from jaxablate.sharding import make_mesh
from jaxablate.training.program import TrainState
from jaxablate.types import Params

TOKENIZER = "tokenizer"
"""Folder of a working directory."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text:
    """Text that an imported model is measured on."""

    valid_path: Path | None = None
    """Story file, with one <|endoftext|> line after each text; without one, only commands that need no text run."""
    train_path: Path | None = None
    """Story file that autoencoders train on; by default the same."""
    cache_dir: Path = Path("data")
    """Folder of token files."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportSettings(base.Settings):
    """Make a working directory of a Hugging Face folder: GPT-Neo, GPT-2, GPT-NeoX, Llama, Qwen2 or Gemma 2."""

    folder: Annotated[Path, tyro.conf.Positional]
    """With config.json, model.safetensors (or several files and their index) and tokenizer.json."""
    workdir: Path
    """Where the run goes; it must not be there yet."""
    data: Text = Text()
    tokenizer: Path | None = None
    """Folder with tokenizer.json; by default the model's."""
    sequence_length: int | None = None
    """Tokens of a window of the text; by default 256, or all positions of the model where it has fewer."""
    batch_size: int = 8
    """Windows at once."""

    def __post_init__(self):
        super().__post_init__()
        base.require_at_least(self, 1, "sequence_length", "batch_size")
        if self.batch_size > base.MOST_ROWS:
            raise ConfigError(f"batch_size={self.batch_size} must be at most {base.MOST_ROWS:,}")
        if self.data.train_path is not None and self.data.valid_path is None:
            raise ConfigError("data.train_path is given without data.valid_path, the text to measure on; give both")

    def run(self, console: Console) -> None:
        """Reads, checks and writes; nothing is left where any of it fails."""
        if self.workdir.exists() and (not self.workdir.is_dir() or any(self.workdir.iterdir())):
            raise CheckpointError(f"{self.workdir} is there already; choose another --workdir")
        settings = read_settings(self.folder)
        tokenizer = tokenizer_of_folder(self.tokenizer or self.folder)
        model, params = from_huggingface(self.folder)
        config = self._config(model, tokenizer)
        require_x64(config)
        check_workdir(self.workdir, config)
        facts = self._facts(config, params, tokenizer) | {
            "imported": {"folder": self.folder.resolve().name, "family": settings["model_type"],
                         "settings": kept_settings(self.folder)}}
        with files.atomic_folder(self.workdir, otherwise="choose another --workdir") as staging:
            write_run(staging, config, params, tokenizer, facts)
        base.say(console, f"{self.workdir}: {facts['parameters']:,} parameters of the family {settings['model_type']}, "
                          f"{model.n_layers} layers of width {model.d_model}, tokenizer {tokenizer.name} of "
                          f"{tokenizer.vocab_size:,} tokens"
                          + (", each text after a beginning-of-text token" if bos_id(tokenizer) is not None else ""))

    def _config(self, model: ModelConfig, tokenizer: Tokenizer) -> Config:
        if tokenizer.vocab_size > model.vocab_size:
            raise ConfigError(f"the tokenizer has {tokenizer.vocab_size:,} tokens, but the model's embedding has "
                              f"{model.vocab_size:,} rows; give --tokenizer the folder of the one it was trained with")
        length = self.sequence_length or min(256, model.context_length)
        valid, train = (None if p is None else str(p.resolve()) for p in (self.data.valid_path, self.data.train_path))
        tokenizer_path = str((self.tokenizer or self.folder).resolve())
        data = DataConfig(source="text", tokenizer="file", tokenizer_path=tokenizer_path, valid_path=valid,
                          train_path=train or valid, cache_dir=str(self.data.cache_dir))
        return Config(model=model, data=data, train=TrainConfig(steps=1, batch_size=self.batch_size,
                                                                sequence_length=length))

    def _facts(self, config: Config, params: Params, tokenizer: Tokenizer) -> dict[str, Any]:
        """What `run.json` says of model and data, whose token files are made here."""
        facts = {"parameters": sum(x.size for x in jax.tree.leaves(params)), "data_hash": {},
                 "tokenizer": {"name": tokenizer.name, "fingerprint": tokenizer.fingerprint()}}
        if config.data.valid_path is None:
            return facts
        with progress_report() as report:
            data = prepare(config.data, report=report, tokenizer=tokenizer)
        return facts | {"data_hash": {"train": data.train.data_hash, "valid": data.valid.data_hash},
                        "train_tokens": data.train.n_tokens, "valid_tokens": data.valid.n_tokens}


parse = partial(base.parse, ImportSettings, prefixes=True)


def write_run(workdir: Path, config: Config, params: Params, tokenizer: Tokenizer, facts: dict[str, Any]) -> None:
    """A run of no step, as training would leave it: settings, record, tokenizer and one sealed checkpoint.

    Raises:
      CheckpointError, FileError: it cannot be written.
    """
    state = TrainState(step=jnp.zeros((), jnp.int32), params=jax.tree.map(jnp.asarray, params), opt_state={},
                       key=jax.random.key(config.train.seed))
    checkpoints = Checkpoints(workdir, config.train.keep_last)
    with files.closing(checkpoints.close):
        record_run(workdir, config, make_mesh(MeshConfig(data=1), jax.devices()[:1]), facts, 0, before={})
        tokenizer.save(workdir / TOKENIZER)
        checkpoints.save(state, {"config": to_dict(config), "facts": facts})
