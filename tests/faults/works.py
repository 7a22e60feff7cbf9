"""What is disturbed: tiny runs of the commands that take long, and what they make when nobody disturbs them.

`Bench` is the folder of a campaign: prepared working directories, contents of undisturbed ones, one compilation cache.
Every command runs in a folder that holds all it reads and writes under relative names, so that contents do not depend
on where it lies.
"""

import dataclasses
import pickle
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

from helpers.runs import write_trees

from faults import compare
from faults.launcher import Launcher, Moment, Outcome

LANGUAGE = '''
from jaxablate.config import Config, DataConfig, MeshConfig, ModelConfig, OptimizerConfig, TrainConfig


def get_config() -> Config:
    return Config(
        model=ModelConfig(vocab_size=320, context_length=32, d_model=16, n_layers=1, n_heads=2, ablation="none"),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        data=DataConfig(source="embedded", tokenizer="corpus", cache_dir="data", embedded_stories=60,
                        embedded_valid_stories=120),
        train=TrainConfig(steps=24, batch_size=8, sequence_length=32, log_every=1, eval_every=8, eval_batches=1,
                          checkpoint_every=4, keep_last=3),
        mesh=MeshConfig(data=1),
    )
'''
CLASSIFIER = '''
from jaxablate.config import ClassificationConfig, ClassifierConfig, EpochTrainConfig, MeshConfig, SentimentDataConfig


def get_config() -> ClassificationConfig:
    return ClassificationConfig(
        model=ClassifierConfig(max_length=16, d_model=8, n_heads=2, vmask_width=4),
        data=SentimentDataConfig(path="trees", min_count=1),
        train=EpochTrainConfig(epochs=8, batch_size=16, bucket_multiple=0, patience=0, log_every=1, keep_last=3,
                               tensorboard=False),
        mesh=MeshConfig(data=1),
    )
'''
_WORDS = "a an the one film story plot good fine fair bad poor dull very so quite and with of in it is was has"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """A command that takes long enough to be disturbed."""

    name: str
    line: tuple[str, ...]
    start: str = "empty"
    """Prepared folder that it starts from; `Bench.prepare` of the work of that name makes it."""
    watched: tuple[str, ...] = ()
    """Patterns of files whose appearance is a moment to aim at."""


_RUN = ("--workdir", "run")
WORKS = {work.name: work for work in (
    Work(name="train", line=("jaxablate", "train", "--config", "language.py", *_RUN),
         watched=("run/checkpoints/*", "run/checkpoints/[0-9]", "run/checkpoints/[0-9][0-9]",
                  "run/checkpoints/*/.seal.json*", "run/checkpoints/*/seal.json", "run/config.json", "run/run.json",
                  "run/.metrics.jsonl*", "run/tokenizer/*", "data/*", "data/.*")),
    Work(name="classifier", line=("jaxablate", "train", "--config", "classifier.py", *_RUN),
         watched=("run/checkpoints/*", "run/checkpoints/[0-9]", "run/checkpoints/[0-9][0-9]",
                  "run/checkpoints/*/.seal.json*", "run/checkpoints/*/seal.json", "run/config.json",
                  "run/tokenizer/*")),
    Work(name="data", line=("jaxablate.data", "prepare", "--source", "text", "--train-path", "stories/train.txt",
                            "--valid-path", "stories/valid.txt", "--tokenizer", "bpe", "--bpe-vocab-size", "400",
                            "--cache-dir", "stories"),
         watched=("stories/*", "stories/.*")),
    Work(name="score", line=("jaxablate", "score", *_RUN, "--suites", "perplexity", "weights", "samples"),
         start="train", watched=("run/results.json", "run/.*", "run/report.html")),
    Work(name="score-classifier", line=("jaxablate", "score", *_RUN, "--suites", "classification", "superposition"),
         start="classifier", watched=("run/results.json", "run/.*")),
    Work(name="sae", line=("jaxablate", "sae", *_RUN, "--sites", "clean.layer_0.mlp_out", "--steps", "64",
                           "--tokens-per-step", "64", "--buffer-batches", "8", "--width", "2",
                           "--learning-rate", "1e-2", "--batch-size", "64", "--save-every", "0.001",
                           "--l1", "2", "0.5"),
         start="train", watched=("run/autoencoders/jobs/*/*", "run/autoencoders/jobs/*/.*", "run/autoencoders/*")),
    Work(name="circuit", line=("jaxablate", "circuit", *_RUN, "--prompts", "12", "--tau", "1e-6"), start="train",
         watched=("run/circuits/*/*", "run/circuits/*/.*")),
    Work(name="neurons", line=("jaxablate", "neurons", *_RUN, "--examples", "6", "--build", "3", "--context", "8",
                               "--candidates", "2", "--tokens", "1024", "--score-tokens", "1500", "--batch-size", "8",
                               "--importance", "0.02"),
         start="train", watched=("run/neurons/graphs/*", "run/neurons/graphs/.*", "run/neurons/graphs/*/*")),
)}


@dataclasses.dataclass(frozen=True)
class Reference:
    """What a work makes when nobody disturbs it."""

    contents: compare.Contents
    seconds: float
    added: int
    """Bytes on disk that it adds, in whole blocks."""
    largest: int
    """Bytes of its largest file."""
    peak: int


class Bench:
    """The folder of a campaign."""

    def __init__(self, folder: Path):
        self.folder = folder

    def environment(self) -> dict[str, str]:
        """Variables of all commands: one CPU device, operations without threads of their own, quick compilation."""
        flags = ("--xla_cpu_multi_thread_eigen=false", "--xla_backend_optimization_level=0")
        return {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join(flags), "TOKENIZERS_PARALLELISM": "false",
                "JAX_COMPILATION_CACHE_DIR": str(self.folder / "compiled"), "OPENBLAS_NUM_THREADS": "1",
                "OMP_NUM_THREADS": "1", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1", "PYTHONFAULTHANDLER": "1"}

    def copy(self, start: str, to: Path) -> Path:
        """A prepared folder's copy that may be changed."""
        return shutil.copytree(self.folder / "prepared" / start, to, dirs_exist_ok=True)

    def write_sources(self) -> None:
        """The folder ``empty``: configurations, stories and labelled texts."""
        empty = self.folder / "prepared" / "empty"
        (empty / "stories").mkdir(parents=True)
        (empty / "language.py").write_text(LANGUAGE)
        (empty / "classifier.py").write_text(CLASSIFIER)
        rng = random.Random(0)

        def words(least: int, most: int) -> str:
            return " ".join(rng.choices(_WORDS.split(), k=rng.randint(least, most)))

        for name, count in (("train", 1500), ("valid", 200)):
            text = "".join(f"{words(10, 60).capitalize()}.\n<|endoftext|>\n" for _ in range(count))
            (empty / "stories" / f"{name}.txt").write_text(text)
        write_trees(empty / "trees", [words(2, 14) for _ in range(64)], [4, 0] * 32)

    def prepare(self, name: str, launcher: Launcher) -> None:
        """Runs a work twice undisturbed; its folder and contents are what disturbed ones are held against.

        Raises:
          RuntimeError: it fails, or its two runs differ.
        """
        work, found = WORKS[name], []
        for attempt in ("first", "second"):
            folder = self.copy(work.start, self.folder / "prepared" / f"{name}.{attempt}")
            before = disk_use(folder)
            outcome = launcher.run(work.line, folder, limit=300)
            if outcome.code != 0:
                raise RuntimeError(f"undisturbed {' '.join(work.line)} gave {outcome.code}:\n{outcome.err[-3000:]}")
            sizes = [p.stat().st_size for p in folder.rglob("*") if p.is_file()]
            found.append(Reference(compare.contents(folder), outcome.seconds, disk_use(folder) - before, max(sizes),
                                   outcome.peak))
        if different := compare.differences(found[1].contents, found[0].contents):
            raise RuntimeError(f"two undisturbed runs of {' '.join(work.line)} differ: " + "; ".join(different))
        (self.folder / "prepared" / f"{name}.first").rename(self.folder / "prepared" / name)
        shutil.rmtree(self.folder / "prepared" / f"{name}.second")
        (self.folder / f"{name}.reference").write_bytes(pickle.dumps(found[1]))

    def reference(self, name: str) -> Reference:
        """What `prepare` found."""
        return pickle.loads((self.folder / f"{name}.reference").read_bytes())


def disk_use(folder: Path) -> int:
    """Bytes of all files in whole blocks."""
    return sum(-(-p.stat().st_size // 4096) * 4096 for p in folder.rglob("*") if p.is_file())


def aimed(work: Work, reference: Reference, rng: random.Random, *, sharp: bool) -> Moment:
    """A moment of a work: anywhere in it, or close to where one of its files appears."""
    if sharp:
        return Moment(after=rng.choice((0.0, rng.uniform(0, 0.004), rng.uniform(0, 0.05))),
                      appears=rng.choice(work.watched))
    return Moment(after=rng.uniform(0.005, 1.1 * reference.seconds))


# Judgement -----------------------------------------------------------------------------------------------------------

KINDS = {"lost": "lost runs", "wrong": "wrong numbers", "hang": "hangs", "traceback": "tracebacks", "memory": "memory",
         "other": "other"}
"""Kinds of faults and their names in the table. other: an exit code or message that is not what is promised, or files
left over."""


@dataclasses.dataclass(frozen=True)
class Fault:
    """What a case found wrong."""

    kind: str
    what: str


def fault_of(outcome: Outcome, codes: Sequence[int], about: str) -> Fault | None:
    """A command that hung, broke down, took an exit code that is not promised, or told an error in no single line."""
    last = " | ".join(outcome.err.strip().splitlines()[-3:])[-600:]
    if outcome.hung:
        return Fault("hang", f"{about}: still running after {outcome.seconds:.0f} s; {outcome.err.strip()[-1500:]}")
    for mark in ("Traceback (most recent call last)", "Fatal Python error", "panicked at", "Exception ignored"):
        for stream in (outcome.err, outcome.out):
            if mark in stream:
                return Fault("traceback", f"{about}: code {outcome.code}; {stream[stream.index(mark):][-1500:]}")
    if outcome.code not in codes:
        kind = "traceback" if outcome.code < 0 else "other"
        return Fault(kind, f"{about}: exit code {outcome.code}, not {' or '.join(map(str, codes))}; {last}")
    errors = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    if outcome.code == 2 and len(errors) != 1:
        return Fault("other", f"{about}: {len(errors)} lines begin with 'error: ', not one; {last}")
    return None
