"""What some sweeps of the papers' claims train on (docs/claims.md), written from public texts.

    python -m benchmarks.claims.data --folder data/claims --source data/TinyStories-train.txt

It writes stories with short indirect-object stories between them, so that models of them can do the task.
"""

import dataclasses
import itertools
import sys
from pathlib import Path

import tyro

from jaxablate.circuits.ioi import ioi
from jaxablate.circuits.tasks import END_OF_TEXT
from jaxablate.exits import guarded
from jaxablate.files import write

PROMPTS, MIX_SEED = 3, 1_000_003
ENDINGS = ("was very happy.", "said thank you and smiled.", "laughed. It was a good day.", "gave a big hug.")
"""Prompts after each story, the seed that they are drawn with, and how they go on."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Write stories with indirect-object stories between them, that sweeps of docs/claims.md train on."""

    folder: Path
    """Folder to write into."""
    source: Path
    """File of stories."""


class _Words:
    """A tokenizer of whole words, for which every name is one token."""

    def __init__(self):
        self._ids: dict[str, int] = {}

    def encode(self, text: str) -> list[int]:
        """Numbers of the words, in the order in which they were first met."""
        return [self._ids.setdefault(word, len(self._ids)) for word in text.split()]


def mix(options: Options) -> None:
    """Writes FOLDER/train.txt: after every story `PROMPTS` that are an indirect-object prompt with its answer; and its
    first 19 twentieths and the rest as search-train.txt and search-valid.txt, to choose settings by.

    The prompts are those of `jaxablate.circuits.ioi` with another seed than any suite has, so templates are the same
    and names are mostly in pairs that no prompt has.
    """
    stories = [story for part in options.source.read_text().split(END_OF_TEXT) if (story := part.strip())]
    prompts = iter(ioi(_Words(), MIX_SEED, PROMPTS * len(stories)))
    parts = []
    for story in stories:
        parts.append(story)
        for prompt in itertools.islice(prompts, PROMPTS):
            name = prompt.answers[0].strip()
            parts.append(f"{prompt.clean} {name}. {name} {ENDINGS[len(parts) % len(ENDINGS)]}")
    rest = len(parts) - len(parts) // 20
    for name, some in {"train": parts, "search-train": parts[:rest], "search-valid": parts[rest:]}.items():
        path = write(options.folder / f"{name}.txt", "".join(f"{part}\n{END_OF_TEXT}\n" for part in some))
        print(path, f"{len(some):,} stories")


if __name__ == "__main__":
    sys.exit(guarded(lambda: mix(tyro.cli(Options, config=(tyro.conf.FlagCreatePairsOff,))), ends=True))
