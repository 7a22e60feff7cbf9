"""Files of prompts in AutoCircuit's layout, the one behind the paper's edge counts.

``{"prompts": [{"clean": ..., "corrupt": ..., "answers": [" Rob"], "wrong_answers": [" Sue"]}, ...]}``, or the list
alone. A prompt may have a ``group`` too; other keys are left alone.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxablate.circuits.prompts import PromptPairs
from jaxablate.circuits.tasks import PromptText, Tokenizer, tokenise
from jaxablate.errors import DataError
from jaxablate.files import write

_LAYOUT = 'an object with "prompts", a list of {"clean", "corrupt", "answers", "wrong_answers"}'


def load_prompts(path: str | os.PathLike) -> tuple[PromptText, ...]:
    """Prompt pairs of a JSON file.

    Args:
      path: the file, UTF-8.

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


def load_task(path: str | os.PathLike, tokenizer: Tokenizer, *, context_length: int | None = None,
              bos_id: int | None = None, name: str | None = None) -> PromptPairs:
    """`load_prompts` and `tokenise`: a file of prompts, ready for a model.

    Args:
      path: the file.
      tokenizer: of the model.
      context_length: positions that the model has.
      bos_id: token to put before every prompt.
      name: of the task; the file's name without its ending by default.

    Raises:
      DataError: as `load_prompts` and `tokenise` say, with the file and the number of the prompt.
    """
    return tokenise(load_prompts(path), tokenizer, name=name or Path(path).stem, context_length=context_length,
                    bos_id=bos_id, source=str(path))


def save_prompts(path: str | os.PathLike, prompts: Sequence[PromptText]) -> None:
    """Writes prompts so that `load_prompts`, and AutoCircuit, read them. The file appears whole or not at all.

    Args:
      path: the file; its folder is made where there is none.
      prompts: at least one.

    Raises:
      DataError: no prompts, or the file cannot be written.
    """
    if not prompts:
        raise DataError(f"{path} is not written: there are no prompts; give at least one")
    content = json.dumps({"prompts": [_as_json(p) for p in prompts]}, indent=2) + "\n"
    write(path, content.encode(), otherwise="choose another file")


def _as_json(prompt: PromptText) -> dict[str, Any]:
    group = {"group": prompt.group} if prompt.group else {}
    return {"clean": prompt.clean, "corrupt": prompt.corrupt, "answers": list(prompt.answers),
            "wrong_answers": list(prompt.wrong_answers), **group}


def _parse(path: str | os.PathLike) -> Any:
    try:
        # Editors of some systems put a byte order mark first, which JSON does not have.
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
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
    texts = {key: _text(item, key, where) for key in ("clean", "corrupt")}
    words = {key: _words(item, key, where) for key in ("answers", "wrong_answers")}
    group = _text(item, "group", where) if "group" in item else ""
    return PromptText(**texts, **words, group=group)


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
    if not isinstance(value, list):
        raise DataError(f"{where}: {key!r} is {_kind(value)}; write a list of texts, for example [\" Rob\"]")
    if not value:
        raise DataError(f"{where}: {key!r} is empty; write at least one text, for example [\" Rob\"]")
    others = [word for word in value if not isinstance(word, str)]
    if others:
        raise DataError(f"{where}: {key!r} has {_kind(others[0])} in it; write texts only, for example [\" Rob\"]")
    return tuple(value)


def _kind(value: Any) -> str:
    """What a JSON value is, in words."""
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")
