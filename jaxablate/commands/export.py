"""``jaxablate export``: a language model's clean stream as a folder that transformers opens."""

import dataclasses
import shutil
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from jaxablate.commands import base
from jaxablate.data.ids import bos_id
from jaxablate.errors import ConfigError
from jaxablate.features.files import FOLDER, export
from jaxablate.interop.huggingface import OURS, to_huggingface
from jaxablate.runs.run import Run, require_language_model
from jaxablate.runs.workdir import read_run


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportSettings(base.RunSettings):
    """Write a checkpoint of a language model as a Hugging Face folder, with its tokenizer and autoencoders."""

    out: Annotated[Path, tyro.conf.Positional]
    """The folder, which must not be there yet."""

    def run(self, console: Console) -> None:
        """Writes the folder; nothing is left where that fails."""
        if self.out.exists():
            raise ConfigError(f"{self.out} is there already; choose another folder")
        config = require_language_model(self.workdir, "only these are exported:")
        run: Run = self.open()
        family = to_huggingface(config.model, run.params, self.out, tokenizer=self.workdir / "tokenizer",
                                settings=special_tokens(run))
        try:
            written, left_out = export(self.workdir, self.out / FOLDER, config.model, run.params, str(self.out))
        except BaseException:
            shutil.rmtree(self.out, ignore_errors=True)
            raise
        more = f"; score heads and gates are in {self.out / OURS}" if config.model.gated else ""
        base.say(console, f"the clean stream of step {run.step:,} as a model of the family {family}{more}")
        for name, why in left_out:
            base.say(console, f"the autoencoder {name} is left out: {why}")
        base.say_paths(console, (self.out, *written))


parse = partial(base.parse, ExportSettings)


def special_tokens(run: Run) -> dict[str, Any]:
    """Settings of an imported model as they were, and the ids of a run's special tokens."""
    record = read_run(run.workdir) if run.workdir is not None else None
    kept = ((record or {}).get("imported") or {}).get("settings", {})
    first = bos_id(run.tokenizer)
    return {"bos_token_id": run.tokenizer.eot_id if first is None else first, "eos_token_id": run.tokenizer.eot_id,
            **kept}
