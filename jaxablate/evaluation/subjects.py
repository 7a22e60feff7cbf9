"""Opens a checkpoint for suites: parameters on all devices, and the data the run was trained on.

With the runners and ``classifier/explain_runner.py`` the only files of this room that know of training and data.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxablate.config import ClassificationConfig, Config, DataConfig, MeshConfig, RunConfig, to_dict
from jaxablate.data import corpus
from jaxablate.data.pipeline import validation_batches
from jaxablate.data.prepare import prepare
from jaxablate.data.progress import progress_report
from jaxablate.data.sentiment.batches import evaluation_batches
from jaxablate.data.sentiment.prepare import prepare_sentiment
from jaxablate.data.sentiment.vocabulary import load_vocabulary
from jaxablate.data.tokenizer import load_tokenizer
from jaxablate.errors import ConfigError, DataError
from jaxablate.evaluation.settings import ScoreSettings
from jaxablate.evaluation.suite import Batch, ClassifierSubject, Subject
from jaxablate.models.classifier import SafrClassifier
from jaxablate.models.decoder import SelfAblatingTransformer
from jaxablate.neurons.facts import Facts
from jaxablate.reports import results as files
from jaxablate.reports.results import Results
from jaxablate.sharding import batch_parts, batch_sharding, make_mesh, replicated
from jaxablate.training.checkpoint import restore_params
from jaxablate.training.classification import batch_shape, resolved_model
from jaxablate.training.workdir import read_config, read_run, require_x64


def open_checkpoint(settings: ScoreSettings, config: RunConfig) -> tuple[Subject | ClassifierSubject, Results]:
    """Parameters and data of a run, and its results without any suite.

    Raises:
      CheckpointError: no checkpoint can be restored.
      DataError: the data cannot be prepared, or is not the run's.
    """
    params, step = restore_params(settings.workdir, step=settings.step_for(config))
    mesh = make_mesh(MeshConfig())
    params = jax.device_put(params, replicated(mesh))
    open_data = _language_subject if isinstance(config, Config) else _classifier_subject
    subject, data_hash = open_data(settings, config, params, mesh)
    return subject, _empty_results(config, params, step, data_hash)


def read_language_config(workdir: Path, what: str) -> Config:
    """Settings of a language model's run, for a command that takes no other.

    Args:
      workdir: of the run.
      what: is done with language models, for the message: ``circuits are found in``.

    Raises:
      ConfigError: the run is a text classifier's.
      CheckpointError: it cannot be read, or needs 64 bits.
    """
    config = read_config(workdir)
    if not isinstance(config, Config):
        raise ConfigError(f"{workdir} is a text classifier's run; {what} language models, which train.py --config "
                          "configs/quickstart.py trains")
    require_x64(config)
    return config


def require_stream(workdir: Path, config: Config, stream: str) -> None:
    """Raises ConfigError where a run's model has no such residual stream."""
    if stream == "ablated" and not config.model.gated:
        raise ConfigError(f"stream='ablated' needs a model with gates, and that of {workdir} has ablation='none'; take "
                          "--stream clean")


def params_digest(params: Any) -> str:
    """`results.digest` of a model's parameters, by path."""
    return files.digest(_leaves(params))


def _language_subject(settings: ScoreSettings, config: Config, params: Any, mesh: Mesh) -> tuple[Subject, str]:
    with progress_report() as report:
        data = prepare(config.data, report=report)
    tokenizer = load_tokenizer(settings.workdir / "tokenizer")
    check_data(settings.workdir, tokenizer, data.tokenizer, {"valid": data.valid.data_hash}, config.data.cache_dir)
    options = {"batch_size": _rows(settings, config, mesh), "max_batches": settings.max_batches,
               "sequence_length": config.train.sequence_length}

    def batches() -> Iterator[Batch]:
        return (jax.device_put(batch, batch_sharding(mesh)) for batch in validation_batches(data.valid, **options))

    subject = Subject(config=config, model=SelfAblatingTransformer(config.model), params=params, tokenizer=tokenizer,
                      batches=batches, seed=settings.seed, workdir=settings.workdir, **_known_facts(config.data))
    return subject, data.valid.data_hash


def _classifier_subject(
    settings: ScoreSettings, config: ClassificationConfig, params: Any, mesh: Mesh
) -> tuple[ClassifierSubject, str]:
    with progress_report() as report:
        data = prepare_sentiment(config.data, report=report)
    vocabulary = load_vocabulary(settings.workdir / "tokenizer")
    hashes = {name: split.data_hash for name, split in data.splits.items()}
    check_data(settings.workdir, vocabulary, data.vocabulary, hashes, config.data.path or config.data.cache_dir)
    shape = batch_shape(config, vocabulary.pad_id) | {"batch_size": _rows(settings, config, mesh)}

    def batches(split: str) -> Iterator[Batch]:
        chosen = _spread(-(-len(data.splits[split]) // shape["batch_size"]), settings.max_batches)
        found = enumerate(evaluation_batches(data.splits[split], **shape))
        return (jax.device_put(batch, batch_sharding(mesh)) for i, batch in found if i in chosen)

    def texts(split: str) -> Sequence[str]:
        return data.splits[split].texts

    model = SafrClassifier(resolved_model(config, vocabulary.vocab_size))
    subject = ClassifierSubject(config=config, model=model, params=params, vocabulary=vocabulary, batches=batches,
                                texts=texts, seed=settings.seed)
    return subject, hashes["test"]


def _spread(count: int, most: int | None) -> set[int]:
    """All of 0 .. count - 1, or ``most`` of them evenly: the middles of as many equal stretches.

    >>> sorted(_spread(9, 3)), sorted(_spread(2, 3))
    ([1, 4, 7], [0, 1])
    """
    if most is None or most >= count:
        return set(range(count))
    return {(2 * i + 1) * count // (2 * most) for i in range(most)}


def _rows(settings: ScoreSettings, config: RunConfig, mesh: Mesh) -> int:
    """Rows of a batch, rounded up to what the mesh can share."""
    rows = settings.batch_size or config.train.batch_size
    return rows + -rows % batch_parts(mesh)


def check_data(workdir: Path, stored: Any, made: Any, hashes: Mapping[str, str], where: str) -> None:
    """Refuses data that is not the run's: its figures would stand beside those of other data.

    Args:
      workdir: of the run.
      stored, made: tokenizers, the run's and the one that comes with the data as it is now.
      hashes: of the splits as they are now.
      where: the data lies.
    """
    then = read_run(workdir).get("data_hash", {})
    for name, now in hashes.items():
        if now != then.get(name, now):
            raise DataError(f"the {name} data in {where!r} is not the run's (hash {now[:12]}, then {then[name][:12]}); "
                            "bring the text back as it was")
    if stored.fingerprint() != made.fingerprint():
        raise DataError(f"the data in {where!r} was made with another tokenizer than the run's; "
                        "prepare it again from the text the run was trained on")


def _known_facts(data: DataConfig) -> dict[str, Callable[..., Any]]:
    """What is known of the data beyond its tokens: for the embedded corpus, prompts, entropy and facts."""
    if data.source != "embedded":
        return {}
    valid = data.embedded_seed, corpus.VALID_START, data.embedded_valid_stories
    return {"ioi_prompts": corpus.ioi_prompts, "loss_floor": lambda: corpus.entropy_floor(*valid),
            "facts": lambda: _corpus_facts(*valid)}


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


def _empty_results(config: RunConfig, params: Any, step: int, data_hash: str) -> Results:
    leaves = _leaves(params)
    return Results(config=to_dict(config), seed=config.train.seed, step=int(step), params_digest=files.digest(leaves),
                   data_hash=data_hash, parameters=sum(x.size for x in leaves.values()))


def _leaves(params: Any) -> dict[str, np.ndarray]:
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(params)}
