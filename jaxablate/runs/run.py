"""`open_run`: a stored run with all that suites, commands and notebooks need of it."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh

from jaxablate.circuits.ioi import ioi
from jaxablate.circuits.tasks import PromptText, from_corpus
from jaxablate.config import (
    CONTINUABLE,
    ClassificationConfig,
    Config,
    DataConfig,
    MeshConfig,
    RunConfig,
    differences,
    run_from_dict,
)
from jaxablate.data import corpus
from jaxablate.data.pipeline import validation_batches
from jaxablate.data.preparation import prepare
from jaxablate.data.progress import progress_report
from jaxablate.data.sentiment.batches import batch_shape
from jaxablate.data.sentiment.batches import validation_batches as text_batches
from jaxablate.data.sentiment.prepare import prepare as prepare_texts
from jaxablate.data.tokenizer import load_tokenizer
from jaxablate.errors import CheckpointError, ConfigError, DataError
from jaxablate.files import digest
from jaxablate.models.classifier import SafrClassifier
from jaxablate.models.decoder import SelfAblatingTransformer
from jaxablate.neurons.facts import Facts
from jaxablate.runs.checkpoint import restore_params, trained_config
from jaxablate.runs.workdir import CONFIG, RUN, read_config, read_run, require_x64
from jaxablate.sharding import batch_parts, batch_sharding, make_mesh, replicated
from jaxablate.types import STREAMS, Batch, Params, Stream

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
    """One part of a run's data."""

    batches: Callable[[], Iterator[Batch]]
    """Starts the split from its beginning, on the run's devices. Of a language model every token after the first is a
    target once, in file order; of a text classifier every text comes once."""
    tokens: Any = None
    """The split as stored: a `jaxablate.data.token_file.TokenFile`, or the `EncodedTexts` of a classifier."""
    data_hash: str = ""
    """SHA-256 (hex) of its token ids."""
    texts: Sequence[str] = ()
    """A classifier's texts as they were read, in the split's order."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One checkpoint of a run, with the data it was trained and is evaluated on.

    Everything may also be made by hand: only ``config``, ``model`` and ``params`` are needed by all suites.
    """

    config: RunConfig
    model: Any
    """The Flax module: `SelfAblatingTransformer` or `SafrClassifier`."""
    params: Params
    step: int = 0
    """Updates that the parameters have seen."""
    tokenizer: Any = None
    """The run's `jaxablate.data.tokenizer.Tokenizer`."""
    splits: Mapping[str, Split] = dataclasses.field(default_factory=dict)
    """``train`` and ``valid`` of a language model, ``train``, ``dev`` and ``test`` of a text classifier. The data of
    an opened run is prepared and compared with the run's at the first look, which raises DataError where it differs."""
    tasks: Mapping[str, Callable[[int, int], Sequence[PromptText]]] = dataclasses.field(default_factory=dict)
    """Name of a task -> (seed, count) -> prompt pairs in words that the tokenizer has; ``ioi`` for language models."""
    seed: int = 0
    """Seed of resampling, of drawn prompts and of sampled text in suites."""
    match_k: int | None = None
    """`jaxablate.neurons.measure`'s: k of the rate at which activations fire, the model's own where None."""
    circuit_streams: tuple[Stream, ...] = STREAMS
    """Streams whose circuits are searched, of those that the model has."""
    workdir: Path | None = None
    """Where the run is stored; None for one made by hand."""
    loss_floor: Callable[[], float] | None = None
    """Nats a token that no model of the data can beat; None where it is not known."""
    facts: Callable[[], Facts] | None = None
    """Recorded facts of every token of the validation split, in file order; None where the data has none."""
    made: dict[str, Any] = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)
    """What one suite found and another takes, by name; empty again in a copy with other parameters."""

    def __repr__(self) -> str:
        where = "" if self.workdir is None else f"{str(self.workdir)!r}, "
        return f"Run({where}step {self.step:,}, {type(self.model).__name__} of {self.n_parameters:,} parameters)"

    @property
    def streams(self) -> tuple[Stream, ...]:
        """The residual streams the model has."""
        return STREAMS if self.config.model.gated else STREAMS[:1]

    @functools.cached_property
    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 of all parameters, by path."""
        return params_digest(self.params)

    @functools.cached_property
    def n_parameters(self) -> int:
        """Number of parameters."""
        return sum(x.size for x in jax.tree.leaves(self.params))


def open_run(workdir: str | Path, checkpoint: str | int = "newest", *, batch_size: int | None = None,
             max_batches: int | None = None, seed: int = 0, match_k: int | None = None,
             circuit_streams: Sequence[Stream] = STREAMS) -> Run:
    """Opens a stored run: its parameters on all devices, replicated, and everything else when it is first looked at.

    Args:
      workdir: working directory of a training run.
      checkpoint: ``newest``, ``best`` by validation loss (of a classifier: accuracy on the development split), a step,
        or ``auto``: the newest of a language model, the best of a classifier that had early stopping.
      batch_size: rows of the splits' batches, rounded up to what the devices can share; that of training by default.
      max_batches: read only so many batches of a split.
      seed: seed of what suites draw.
      match_k: k of the rate at which activations fire where suites measure neurons; the model's own by default.
      circuit_streams: streams whose circuits the suite ``circuits`` searches.

    Raises:
      CheckpointError: no run, no such checkpoint that can be read, or one of another configuration than the run's.
      ConfigError: the checkpoint's name is unknown, or the model's float64 needs ``jax_enable_x64``.
    """
    config = read_config(workdir)
    workdir = Path(workdir)
    require_x64(config)
    params, step = restore_params(workdir, step=checkpoint_step(checkpoint, config))
    _check_config(workdir, config, step)
    mesh = make_mesh(MeshConfig())
    params = jax.device_put(params, replicated(mesh))
    rows = batch_size or config.train.batch_size
    options = _Options(workdir=workdir, mesh=mesh, rows=rows + -rows % batch_parts(mesh), max_batches=max_batches)
    parts = (_language(config, options) if isinstance(config, Config) else _classifier(config, options))
    return Run(config=config, params=params, step=int(step), seed=seed, match_k=match_k,
               circuit_streams=tuple(circuit_streams), workdir=workdir, **parts)


def checkpoint_step(checkpoint: str | int, config: RunConfig) -> int | Literal["best", "best or last"] | None:
    """The name of a checkpoint as `restore_params` takes it.

    Raises:
      ConfigError: there is no such name.
    """
    text = str(checkpoint)
    if text == "auto":
        early_stopped = isinstance(config, ClassificationConfig) and config.model.padding == "masked"
        return "best or last" if early_stopped else None
    if text in ("newest", "last"):
        return None
    if text == "best":
        return "best"
    if text.isdecimal():
        return int(text)
    raise ConfigError(f"checkpoint={checkpoint!r} must be newest, best, auto or a step")


def require_language_model(workdir: str | Path, what: str) -> Config:
    """Settings of a language model's run, for a command that takes no other (``what``: ``circuits are found in``).

    Raises:
      ConfigError: the run is a text classifier's.
      CheckpointError: it cannot be read, or needs 64 bits.
    """
    config = read_config(workdir)
    if not isinstance(config, Config):
        raise ConfigError(f"{workdir} is a text classifier's run; {what} language models, which jaxablate train "
                          "--config quickstart trains")
    require_x64(config)
    return config


def require_stream(workdir: str | Path, config: Config, stream: str) -> None:
    """Raises ConfigError where a run's model has no such residual stream."""
    if stream == "ablated" and not config.model.gated:
        raise ConfigError(f"stream='ablated' needs a model with gates, and that of {workdir} has ablation='none'; take "
                          "--stream clean")


def params_digest(params: Any) -> str:
    """`files.digest` of a model's parameters, by path."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return digest({jax.tree_util.keystr(path): np.asarray(x) for path, x in leaves})


@dataclasses.dataclass(frozen=True)
class _Options:
    workdir: Path
    mesh: Mesh
    rows: int
    max_batches: int | None

    def placed(self, batches: Iterator[Any]) -> Iterator[Batch]:
        return (jax.device_put(batch, batch_sharding(self.mesh)) for batch in batches)


class _Splits(Mapping[str, Split]):
    """Splits that are opened together at the first look."""

    def __init__(self, names: tuple[str, ...], open_all: Callable[[], Mapping[str, Split]]):
        self._names, self._open_all = names, functools.cache(open_all)

    def __getitem__(self, name: str) -> Split:
        if name not in self._names:
            raise KeyError(name)
        return self._open_all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _language(config: Config, options: _Options) -> dict[str, Any]:
    tokenizer = load_tokenizer(options.workdir / "tokenizer")

    def splits() -> Mapping[str, Split]:
        with progress_report() as report:
            own = tokenizer if config.data.tokenizer == "file" else None
            data = prepare(config.data, report=report, tokenizer=own)
        files = {"train": data.train, "valid": data.valid}
        _check_data(options.workdir, tokenizer, data.tokenizer, {name: f.data_hash for name, f in files.items()},
                    config.data.cache_dir)
        shape = {"batch_size": options.rows, "max_batches": options.max_batches,
                 "sequence_length": config.train.sequence_length}

        def batches(file: Any) -> Iterator[Batch]:
            return options.placed(validation_batches(file, **shape))

        return {name: Split(batches=functools.partial(batches, file), tokens=file, data_hash=file.data_hash)
                for name, file in files.items()}

    def draw(seed: int, count: int) -> Sequence[PromptText]:
        if config.data.source == "embedded":
            return from_corpus(corpus.ioi_prompts(seed, count))
        return ioi(tokenizer, seed, count)

    return {"model": SelfAblatingTransformer(config.model), "tokenizer": tokenizer, "tasks": {"ioi": draw},
            "splits": _Splits(("train", "valid"), splits), **_known_facts(config.data)}


def _classifier(config: ClassificationConfig, options: _Options) -> dict[str, Any]:
    tokenizer = load_tokenizer(options.workdir / "tokenizer")
    shape = batch_shape(config, tokenizer.pad_id) | {"batch_size": options.rows}

    def splits() -> Mapping[str, Split]:
        with progress_report() as report:
            data = prepare_texts(config.data, report=report)
        hashes = {name: split.data_hash for name, split in data.splits.items()}
        _check_data(options.workdir, tokenizer, data.tokenizer, hashes, config.data.path or config.data.cache_dir)

        def batches(split: Any) -> Iterator[Batch]:
            chosen = _spread(-(-len(split) // options.rows), options.max_batches)
            every = enumerate(text_batches(split, **shape))
            return options.placed(batch for i, batch in every if i in chosen)

        return {name: Split(batches=functools.partial(batches, split), tokens=split, data_hash=split.data_hash,
                            texts=split.texts) for name, split in data.splits.items()}

    model = SafrClassifier(config.model_for(tokenizer.vocab_size))
    return {"model": model, "tokenizer": tokenizer, "splits": _Splits(("train", "dev", "test"), splits)}


def _spread(count: int, most: int | None) -> set[int]:
    """All of 0 .. count - 1, or ``most`` of them evenly: the middles of as many equal stretches.

    >>> sorted(_spread(9, 3)), sorted(_spread(2, 3))
    ([1, 4, 7], [0, 1])
    """
    if most is None or most >= count:
        return set(range(count))
    return {(2 * i + 1) * count // (2 * most) for i in range(most)}


def _check_data(workdir: Path, stored: Any, prepared: Any, hashes: Mapping[str, str], where: str) -> None:
    """Refuses data that is not the run's: its figures would stand beside those of other data."""
    record = read_run(workdir)
    if record is None:
        logger.warning("%s is gone; whether the data is that of the run is not known", workdir / RUN)
    then = {} if record is None else record["data_hash"]
    for name, now in hashes.items():
        if now != then.get(name, now):
            raise DataError(f"the {name} data in {where!r} is not the run's (hash {now[:12]}, then {then[name][:12]}); "
                            "bring the text back as it was")
    if stored.fingerprint() != prepared.fingerprint():
        raise DataError(f"the data in {where!r} was made with another tokenizer than the run's; "
                        "prepare it again from the text the run was trained on")


def _check_config(workdir: Path, config: RunConfig, step: int) -> None:
    """Refuses a ``config.json`` that was changed since: another model would compute other numbers."""
    trained = trained_config(workdir, step)
    if trained is not None:
        ignore = CONTINUABLE if config.model.vocab_size else (*CONTINUABLE, "model.vocab_size")
        changed = differences(run_from_dict(trained), config, ignore=ignore)
        if changed:
            raise CheckpointError(f"checkpoint {step} of {workdir} was trained with other settings than {CONFIG} gives "
                                  f"({'; '.join(changed)}); restore {CONFIG}")


def _known_facts(data: DataConfig) -> dict[str, Callable[..., Any]]:
    """What is known of the embedded corpus beyond its tokens."""
    if data.source != "embedded":
        return {}
    valid = data.embedded_seed, corpus.VALID_START, data.embedded_valid_stories
    return {"loss_floor": lambda: corpus.entropy_floor(*valid), "facts": lambda: _corpus_facts(*valid)}


def _corpus_facts(seed: int, start: int, count: int) -> Facts:
    """Labels of the corpus's stories; the end-of-text after each has its own kind and the first value of the others."""
    end = {"kind": corpus.LABELS["kind"].index("end")}
    tokens, story, labels = [], [], {name: [] for name in corpus.LABELS}
    for item in corpus.stories(seed, start, count):
        tokens += [item.tokens, [corpus.CorpusTokenizer.eot_id]]
        story.append(np.full(len(item.tokens) + 1, item.index - start))
        for name, values in labels.items():
            values += [item.facts.per_token[name], [end.get(name, 0)]]
    joined = {name: np.concatenate(values).astype(np.int32) for name, values in labels.items()}
    return Facts(tokens=np.concatenate(tokens).astype(np.int32), story=np.concatenate(story), labels=joined,
                 names=corpus.LABELS)
