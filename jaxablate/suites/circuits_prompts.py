"""The task whose circuit is looked for: indirect objects, in the words of the model's own data, or a prompt file."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxablate.circuits.ioi import ioi
from jaxablate.circuits.prompt_files import load_task
from jaxablate.circuits.prompts import PromptPairs
from jaxablate.circuits.tasks import Tokenizer, from_corpus, tokenise
from jaxablate.config import ModelConfig


def task_pairs(
    config: ModelConfig,
    tokenizer: Tokenizer,
    *,
    count: int,
    seed: int,
    corpus_prompts: Callable[[int, int], Sequence[Any]] | None = None,
    file: Path | None = None,
) -> PromptPairs:
    """Prompt pairs of a task.

    Args:
      config: of the model.
      tokenizer: of the model.
      count: prompts, with a file at most so many of its first.
      seed: of drawn prompts.
      corpus_prompts: (seed, count) -> indirect-object prompts of the embedded corpus, for models of it.
      file: prompts in AutoCircuit's layout, instead of drawn ones.

    Raises:
      DataError: the file or a prompt in it does not do, or too few names are single tokens of the tokenizer.
    """
    if file is not None:
        pairs = load_task(file, tokenizer, context_length=config.context_length)
        return pairs.take(range(min(count, len(pairs))))
    texts = from_corpus(corpus_prompts(seed, count)) if corpus_prompts else ioi(tokenizer, seed, count)
    return tokenise(texts, tokenizer, name="IOI", context_length=config.context_length)
