"""Which neurons fire at the end of a text, by their graphs: a search in ``index.json`` that needs no model."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """A neuron whose graph matches.

    Attributes:
      neuron: its name.
      strength: of the strongest pattern that matches, as a share of the neuron's maximum.
      f1, precision: of the whole graph on held-out text; None where it has none.
      pattern: ids that may stand at each place, read back from the last token; None for any.
      conditional: whether the pattern asks for more tokens before the text than the text has.
    """

    neuron: str
    strength: float
    f1: float | None
    precision: float | None
    pattern: tuple[tuple[int, ...] | None, ...]
    conditional: bool


def search(index: Mapping[str, Any], ids: Sequence[int]) -> list[Found]:
    """Neurons whose graph matches at the last token of a text.

    A pattern that reaches back beyond the text matches under a condition: that what it asks for came before.

    Args:
      index: from `lookup.read_index`.
      ids: tokens of the text, at least one.

    Returns:
      One entry a neuron, its best pattern: those without condition first, then by strength times F1.
    """
    found = []
    for neuron in index["neurons"]:
        matching = [(_reaches_beyond(p["tokens"], len(ids)), -p["strength"], p) for p in neuron["patterns"]
                    if _matches(p["tokens"], ids)]
        if matching:
            conditional, _, best = min(matching, key=lambda x: x[:2])
            found.append(Found(
                neuron=neuron["neuron"], strength=best["strength"], f1=neuron["f1"], precision=neuron["precision"],
                pattern=tuple(None if t is None else tuple(t) for t in best["tokens"]), conditional=conditional))
    return sorted(found, key=lambda x: (x.conditional, -x.strength * (x.f1 or 0.0), x.neuron))


def contexts(index: Mapping[str, Any], token: int) -> list[tuple[str, int]]:
    """Neurons for which a token matters before the one at which they fire: (neuron, in how many patterns)."""
    counts = [(neuron["neuron"], sum(any(t is not None and token in t for t in p["tokens"][1:])
                                     for p in neuron["patterns"])) for neuron in index["neurons"]]
    return sorted(((name, n) for name, n in counts if n), key=lambda x: (-x[1], x[0]))


def _reaches_beyond(tokens: Sequence[Any], length: int) -> bool:
    return len(tokens) > length


def _matches(tokens: Sequence[Any], ids: Sequence[int]) -> bool:
    return all(allowed is None or i in allowed for allowed, i in zip(tokens, reversed(ids), strict=False))
