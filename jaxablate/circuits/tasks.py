"""Tasks as texts: pairs of prompts, how they become tokens, and files of them.

A task is any list of pairs: a clean prompt with its right and wrong next words, and a corrupt prompt of the same
length in which something is changed so that the answer no longer follows. `jaxablate.circuits.ioi` makes
indirect-object prompts.

Files have AutoCircuit's layout, the one behind the paper's edge counts: ``{"prompts": [{"clean": ..., "corrupt": ...,
"answers": [" Rob"], "wrong_answers": [" Sue"]}, ...]}``, or the list alone. A prompt may have a ``group`` too; other
keys are left alone.
"""

import dataclasses
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from jaxablate.circuits.prompts import PromptPairs, check_pair, too_long
from jaxablate.errors import DataError
from jaxablate.files import LARGEST_JSON, read_bytes, write

END_OF_TEXT = "<|endoftext|>"
"""At the start of a prompt: the token that ends the story before, as in training, where the tokenizer has one."""
_LAYOUT = 'an object with "prompts", a list of {"clean", "corrupt", "answers", "wrong_answers"}'


class Tokenizer(Protocol):
    """What tokenising prompts takes: any object that turns text into token ids, and where it has one, ``eot_id``."""

    def encode(self, text: str) -> list[int]: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptText:
    """One pair of prompts as texts.

    Example:
      >>> PromptText(clean="Rob and Sue met. Sue waved to", corrupt="Tom and Ann met. Ben waved to",
      ...            answers=(" Rob",), wrong_answers=(" Sue",)).group
      ''

    Raises:
      DataError: answers are one string where several are meant, or none, or a text is no Unicode.
    """

    clean: str
    """Text before the answer, without a space at its end: the space belongs to the answer."""
    corrupt: str
    """The same text, changed so that the answer does not follow."""
    answers: tuple[str, ...]
    """Right next words, each with the space before it, each one token."""
    wrong_answers: tuple[str, ...]
    """Wrong next words, each with the space before it, each one token."""
    group: str = ""
    """Kind of prompt, for figures by kind."""

    def __post_init__(self) -> None:
        for field in ("answers", "wrong_answers"):
            words = getattr(self, field)
            if isinstance(words, str) or not words:
                raise DataError(f"{field}={words!r} must be a list of at least one text, for example [\" Rob\"]")
        for text in (self.clean, self.corrupt, self.group, *self.answers, *self.wrong_answers):
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise DataError(f"{text!r:.80} is no Unicode text: it has half of a surrogate pair") from error


def tokenise(prompts: Sequence[PromptText], tokenizer: Tokenizer, *, name: str, context_length: int | None = None,
             bos_id: int | None = None, source: str | None = None) -> PromptPairs:
    """Token ids of prompts, padded at the left.

    Texts are taken as they are: no token is put before them but ``bos_id``. Where the tokenizer has an ``eot_id``, a
    text may begin with ``<|endoftext|>``, which is then that one token.

    Args:
      prompts: the task.
      tokenizer: the model's.
      name: name of the task.
      context_length: positions that the model has; any length is taken where it is not given.
      bos_id: token to put before every prompt; by default the tokenizer's, where it has one.
      source: what messages call the prompts, for example the file they are from; ``name`` by default.

    Raises:
      DataError: no prompts, clean and corrupt of different length, a prompt without tokens or longer than the
        context, an answer that is not one token, or a word the tokenizer does not have. The message has the number of
        the prompt, counted from 0.
    """
    source = source or name
    bos_id = getattr(tokenizer, "bos_id", None) if bos_id is None else bos_id
    rows = [_encode(p, tokenizer, context_length, bos_id, f"{source}: prompt {i}") for i, p in enumerate(prompts)]
    clean, corrupt, answers, wrong = zip(*rows, strict=True) if rows else ((), (), (), ())
    return PromptPairs.from_ids(clean, corrupt, answers, wrong, name=name, groups=[p.group for p in prompts],
                                source=source)


def single_token(tokenizer: Tokenizer, text: str) -> int | None:
    """Token id of a text that is one token; None where it is several, none, or unknown to the tokenizer."""
    try:
        ids = tokenizer.encode(text)
    except DataError:
        return None
    return ids[0] if len(ids) == 1 else None


def from_corpus(prompts: Iterable[Any]) -> tuple[PromptText, ...]:
    """Prompt pairs of ``jaxablate.data.corpus.ioi_prompts``, in groups ``template, order``."""
    return tuple(PromptText(clean=p.clean, corrupt=p.corrupt, answers=(p.answer,), wrong_answers=(p.wrong_answer,),
                            group=f"{p.template}, {p.order}") for p in prompts)


def load_prompts(path: str | os.PathLike[str]) -> tuple[PromptText, ...]:
    """Prompt pairs of a JSON file in UTF-8.

    Raises:
      DataError: the file cannot be read, is empty, is no JSON, has another layout or no prompts, or a prompt lacks a
        key or has a value of the wrong type. The message has the file and the number of the prompt, counted from 0.
    """
    content = _parse(path)
    if isinstance(content, dict):
        if "prompts" not in content:
            found = ", ".join(map(repr, list(content)[:5])) or "nothing"
            raise DataError(f'{path} has no "prompts" (its keys: {found}); write {_LAYOUT}')
        content = content["prompts"]
    if not isinstance(content, list):
        raise DataError(f"{path}: the prompts are {_kind(content)}, not a list; write {_LAYOUT}")
    if not content:
        raise DataError(f"{path}: the list of prompts is empty; write at least one prompt")
    return tuple(_prompt(item, f"{path}: prompt {i}") for i, item in enumerate(content))


def load_task(path: str | os.PathLike[str], tokenizer: Tokenizer, *, context_length: int | None = None,
              bos_id: int | None = None, name: str | None = None) -> PromptPairs:
    """`load_prompts` and `tokenise`: a file of prompts, ready for a model, named as the file by default."""
    return tokenise(load_prompts(path), tokenizer, name=name or Path(path).stem, context_length=context_length,
                    bos_id=bos_id, source=str(path))


def save_prompts(path: str | os.PathLike[str], prompts: Sequence[PromptText]) -> None:
    """Writes prompts, at least one, so that `load_prompts`, and AutoCircuit, read them; makes the file's folder.

    Raises:
      DataError: there are no prompts.
      FileError: the file cannot be written; nothing is left behind.
    """
    if not prompts:
        raise DataError(f"{path} is not written: there are no prompts; give at least one")
    content = json.dumps({"prompts": [_as_json(p) for p in prompts]}, indent=2) + "\n"
    write(path, content.encode(), otherwise="choose another file")


def _encode(prompt: PromptText, tokenizer: Tokenizer, context_length: int | None, bos_id: int | None, where: str
            ) -> tuple[list[int], list[int], list[int], list[int]]:
    """Token ids of clean, corrupt, answers and wrong answers."""
    try:
        clean, corrupt = (_text_ids(text, tokenizer) for text in (prompt.clean, prompt.corrupt))
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    answers, wrong = ([_answer(a, kind, tokenizer, where) for a in dict.fromkeys(answers)]
                      for kind, answers in (("answer", prompt.answers), ("wrong answer", prompt.wrong_answers)))
    check_pair(clean, corrupt, answers, wrong, where=where)
    before = [] if bos_id is None else [bos_id]
    if context_length is not None and len(before) + len(clean) > context_length:
        raise DataError(too_long(where, len(before) + len(clean), context_length))
    return before + clean, before + corrupt, answers, wrong


def _text_ids(text: str, tokenizer: Tokenizer) -> list[int]:
    # Encoding takes the sign for ordinary text and makes six or more meaningless tokens of it.
    eot = getattr(tokenizer, "eot_id", None)
    if eot is None or not text.startswith(END_OF_TEXT):
        return list(tokenizer.encode(text))
    return [eot, *tokenizer.encode(text.removeprefix(END_OF_TEXT))]


def _answer(text: str, kind: str, tokenizer: Tokenizer, where: str) -> int:
    try:
        ids = tokenizer.encode(text)
    except DataError as error:
        raise DataError(f"{where}: {kind} {text!r}: {error}") from error
    if len(ids) != 1:
        raise DataError(f"{where}: {kind} {text!r} is {len(ids)} tokens for this tokenizer and must be one; choose a "
                        "word that it has as one token, with its space, or leave the prompt out")
    return ids[0]


def _as_json(prompt: PromptText) -> dict[str, Any]:
    group = {"group": prompt.group} if prompt.group else {}
    return {"clean": prompt.clean, "corrupt": prompt.corrupt, "answers": list(prompt.answers),
            "wrong_answers": list(prompt.wrong_answers), **group}


def _parse(path: str | os.PathLike[str]) -> Any:
    try:
        # Editors of some systems put a byte order mark first, which JSON does not have.
        text = read_bytes(path, most=LARGEST_JSON).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"prompt file {path} cannot be read ({reason}); give the path of a UTF-8 JSON file") from error
    if not text.strip():
        raise DataError(f"prompt file {path} is empty; write {_LAYOUT}")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"prompt file {path} is not JSON ({error}); write {_LAYOUT}") from error


def _prompt(item: Any, where: str) -> PromptText:
    if not isinstance(item, dict):
        raise DataError(f"{where} is {_kind(item)}, not an object with clean, corrupt, answers and wrong_answers")
    return PromptText(
        clean=_text(item, "clean", where), corrupt=_text(item, "corrupt", where),
        answers=_words(item, "answers", where), wrong_answers=_words(item, "wrong_answers", where),
        group=_text(item, "group", where) if "group" in item else "")


def _value(item: dict[str, Any], key: str, where: str) -> Any:
    if key not in item:
        raise DataError(f"{where} has no {key!r}; it needs clean, corrupt, answers and wrong_answers")
    return item[key]


def _text(item: dict[str, Any], key: str, where: str) -> str:
    value = _value(item, key, where)
    if not isinstance(value, str):
        raise DataError(f"{where}: {key!r} is {_kind(value)}; write a text")
    return value


def _words(item: dict[str, Any], key: str, where: str) -> tuple[str, ...]:
    value = _value(item, key, where)
    wrong = None
    if not isinstance(value, list):
        wrong = f"is {_kind(value)}"
    elif not value:
        wrong = "is empty"
    elif others := [word for word in value if not isinstance(word, str)]:
        wrong = f"has {_kind(others[0])} in it"
    if wrong:
        raise DataError(f"{where}: {key!r} {wrong}; write a list of texts, for example [\" Rob\"]")
    return tuple(value)


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")
