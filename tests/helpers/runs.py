"""One tiny trained run of each kind, made once in a test run by whichever worker needs it first.

Tests take the fixtures of conftest.py: ``language_run`` (gated), ``baseline_run`` (without gates), ``long_run`` (a
baseline, validated on more text) and ``classifier_run`` are copies that a test module may write into, one a module;
`copy_run` makes another copy for a test that changes files. Nobody writes into the shared originals.
"""

import dataclasses
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import filelock

from jaxablate.config import (
    ClassificationConfig,
    ClassifierConfig,
    Config,
    DataConfig,
    EpochTrainConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    SentimentDataConfig,
    TrainConfig,
)

Kind = Literal["language", "long", "baseline", "classifier"]

SENTENCES = ("a good film", "a good good story", "what a fine film", "so good", "a bad film", "a bad bad story",
             "what a poor film", "so bad")
"""Texts of the classifier's run, all three splits; the first half is positive."""


def language_config(folder: Path, ablation: str = "local", **train: object) -> Config:
    """Two layers of D = 16, F = 64, two heads, six steps with checkpoints at 2, 4 and 6; data in ``folder``."""
    settings = {"steps": 6, "log_every": 1, "eval_every": 2, "checkpoint_every": 2, "keep_last": 3}
    return Config(
        model=ModelConfig(vocab_size=320, context_length=32, d_model=16, n_layers=2, n_heads=2, k_attention=3,
                          k_neurons=5, ablation=ablation),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        data=DataConfig(source="embedded", tokenizer="corpus", cache_dir=str(folder), embedded_stories=60,
                        embedded_valid_stories=30),
        train=TrainConfig(**settings | {"batch_size": 8, "sequence_length": 32, "eval_batches": 1,
                                        "tensorboard": False} | train),
        mesh=MeshConfig(data=1),
    )


def classifier_config(folder: Path, **data: object) -> ClassificationConfig:
    """One layer of D = 8, two heads, one epoch on `SENTENCES`, whose trees are written into ``folder``."""
    write_trees(folder, SENTENCES, [4] * 4 + [0] * 4)
    return ClassificationConfig(
        model=ClassifierConfig(max_length=16, d_model=8, n_heads=2, vmask_width=4),
        data=SentimentDataConfig(path=str(folder), **{"min_count": 1} | data),
        train=EpochTrainConfig(epochs=1, batch_size=8, tensorboard=False),
        mesh=MeshConfig(data=1),
    )


def write_trees(folder: Path, sentences: Sequence[str], labels: Sequence[int]) -> None:
    """The three splits of a treebank's folder, each with all sentences; labels 0 to 4."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(f"{tree(text, label)}\n" for text, label in zip(sentences, labels, strict=True))
    for name in ("train", "dev", "test"):
        (folder / f"{name}.txt").write_text(lines)


def tree(text: str, label: int) -> str:
    """A sentence as a right-branching tree whose inner nodes are neutral.

    >>> tree("a good film", 4)
    '(4 (2 a) (2 (2 good) (2 film)))'
    """
    *words, last = text.split()
    out = f"(2 {last})"
    for word in reversed(words):
        out = f"(2 (2 {word}) {out})"
    return f"({label}{out[2:]}"


def shared_run(kind: Kind, shared: Path) -> Path:
    """Working directory of a kind's run in a folder that all workers of a test run share; trained where it is missing.

    Args:
      kind: which run.
      shared: the folder; the data of the runs is in it, too.
    """
    from jaxablate.training.loop import train

    workdir = shared / kind
    with filelock.FileLock(shared / f"{kind}.lock"):
        if not workdir.exists():
            staging = shared / f"{kind}.partial"
            shutil.rmtree(staging, ignore_errors=True)
            train(_config(kind, shared), staging)
            staging.rename(workdir)
    return workdir


def _config(kind: Kind, shared: Path) -> RunConfig:
    if kind == "classifier":
        return classifier_config(shared / "trees")
    config = language_config(shared / "data", "local" if kind == "language" else "none")
    if kind == "long":  # autoencoders are measured on no less text
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, embedded_valid_stories=120))
    return config


def copy_run(run: Path, to: Path) -> Path:
    """A copy as it was after training: without results, reports, circuits, autoencoders and graphs."""
    kept = ("config.json", "run.json", "metrics.jsonl", "tokenizer", "checkpoints")
    to.mkdir(parents=True)
    for name in kept:
        copy = shutil.copytree if (run / name).is_dir() else shutil.copy
        copy(run / name, to / name)
    return to


def shared_folder(base: Path) -> Path:
    """The folder that all workers of a test run share, from pytest's base folder of this worker."""
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    folder.mkdir(exist_ok=True)
    return folder
