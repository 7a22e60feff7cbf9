"""Explanations of a few texts of the test split, and the pictures of any explanation (docs/papers.md, Explanations)."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, cast

import numpy as np

from jaxablate.classifier.explanation import Explanation, attention_patterns, explain
from jaxablate.config import ClassificationConfig
from jaxablate.data.tokenizer import Tokenizer
from jaxablate.errors import DataError
from jaxablate.reports import texts as data
from jaxablate.reports.packed import pack
from jaxablate.reports.panels import Beside, Edge, Grid, Heatmap, Network, Node, Panel
from jaxablate.reports.results import Figure
from jaxablate.reports.svg import short
from jaxablate.runs.run import Run
from jaxablate.suites.classification import class_names
from jaxablate.suites.suite import Suite
from jaxablate.suites.texts import Vocabulary
from jaxablate.types import STREAMS, Batch, Params

TEXTS = 3
SHORTEST, LONGEST = 6, 20
"""Tokens of a text that is shown: long enough for tokens to share something, short enough for a picture."""
READ, READ_LONGEST = 24, 48
"""Texts that the explorer shows, and their most tokens."""
SPLIT = "test"
EDGES_PER_TOKEN = 2
"""Arcs of an interaction picture, at most, for each token: the strongest."""
LEAST_ALIGNMENT = 0.05
"""Pairs below share next to nothing and get no arc."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExplanationsResult:
    """Explanations in the order of the split. There are no figures, since three texts are no sample."""

    explanations: tuple[Explanation, ...]
    texts: tuple[str, ...]
    labels: tuple[str, ...]
    """The right class of each text."""
    attachments: Mapping[str, data.ClassifiedTexts] = dataclasses.field(default_factory=dict)

    def headline(self) -> tuple[Figure, ...]:
        """None: three texts say nothing about others."""
        return ()

    def panels(self) -> tuple[Panel, ...]:
        """Allocation and interactions of each text, under the text and what the model makes of it."""
        panels = []
        for i, (x, text, label) in enumerate(zip(self.explanations, self.texts, self.labels, strict=True), start=1):
            heatmap, network = allocation(x), interactions(x)
            caption = f"“{text.strip()}” Predicted: {x.verdict}; labelled {label}. {heatmap.caption}"
            panels += [dataclasses.replace(heatmap, title=f"Text {i}: neuron allocation", caption=caption),
                       dataclasses.replace(network, title=f"Text {i}: token interactions")]
        return tuple(panels)


def evaluate(model: Any, params: Params, batches: Iterable[Batch], tokenizer: Tokenizer, texts: Sequence[str], *,
             layer: int = -1) -> ExplanationsResult:
    """Explains the first `TEXTS` texts of `SHORTEST` to `LONGEST` tokens of a split.

    ``texts`` are those of the split as they were read: the ``index`` of a batch's row is its place among them.
    """
    chosen = _fitting(batches, LONGEST)[:TEXTS]
    classes = _classes(model.config)
    explanations = tuple(
        explain(model, params, tokens, shown_words(tokenizer, texts[place], tokens), layer=layer, classes=classes,
                pad_id=tokenizer.pad_id) for place, tokens, _ in chosen)
    return ExplanationsResult(explanations=explanations, texts=tuple(texts[place] for place, _, _ in chosen),
                              labels=tuple(classes[label] for _, _, label in chosen))


def _fitting(batches: Iterable[Batch], longest: int) -> list[tuple[int, list[int], int]]:
    """(place in the split, token ids, label) of the texts of `SHORTEST` tokens to so many, in the split's order."""
    fitting = []
    for batch in batches:
        lengths = np.asarray(batch["mask"]).sum(axis=-1).astype(int)
        for row in np.flatnonzero((lengths >= SHORTEST) & (lengths <= longest)):
            place, label = (int(np.asarray(batch[name])[row]) for name in ("index", "labels"))
            fitting.append((place, np.asarray(batch["tokens"])[row, : lengths[row]].tolist(), label))
    return sorted(fitting)


def _classes(config: Any) -> tuple[str, ...]:
    return class_names(config) or tuple(f"class {i}" for i in range(config.n_classes))


def read(model: Any, params: Params, batches: Iterable[Batch], tokenizer: Tokenizer, texts: Sequence[str], *,
         params_digest: str = "", step: int = 0, seed: int = 0) -> data.ClassifiedTexts:
    """At most `READ` texts, drawn among those of `SHORTEST` to `READ_LONGEST` tokens of a split, for the explorer.

    Each is explained in every layer and stream; ``texts`` are as in `evaluate`.
    """
    words, fitting = Vocabulary(), _fitting(batches, READ_LONGEST)
    drawn = np.sort(np.random.default_rng(seed).choice(len(fitting), min(READ, len(fitting)), replace=False))
    rows = [fitting[int(i)] for i in drawn]
    read = tuple(_classified(model, params, tokens, texts[place], tokenizer, words, place, label)
                 for place, tokens, label in rows)
    return _of_model(model.config, read, words, params_digest, step)


def typed(model: Any, params: Params, text: str, tokenizer: Tokenizer, *, params_digest: str = "", step: int = 0
          ) -> data.ClassifiedTexts:
    """One text of a user's own, explained in every layer and stream, for the explorer.

    Raises:
      DataError: the model knows none of its words, or takes fewer.
    """
    tokens, words, most = known_tokens(tokenizer, text), Vocabulary(), model.config.max_length
    if len(tokens) > most:
        raise DataError(f"the text has {len(tokens):,} tokens, the model reads {most:,}; shorten it")
    read = _classified(model, params, tokens, text, tokenizer, words)
    about = f"Typed, read by the checkpoint of step {step:,}; the model says {read.about}"
    return _of_model(model.config, (dataclasses.replace(read, about=about),), words, params_digest, step)


def known_tokens(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a text for a classifier.

    Raises:
      DataError: there are none but those of unknown words.
    """
    tokens = tokenizer.encode(text)
    if all(token == tokenizer.unk_id for token in tokens):
        raise DataError(f"none of the {len(tokens)} words of the text is among the {tokenizer.vocab_size - 2} of "
                        "the vocabulary, which are those of the training texts as they stand there; try their "
                        "spelling and capitals, with spaces around punctuation")
    return tokens


def _of_model(config: Any, texts: tuple[data.ClassifiedText, ...], words: Vocabulary, params_digest: str, step: int
              ) -> data.ClassifiedTexts:
    return data.ClassifiedTexts(
        params_digest=params_digest, step=step, streams=STREAMS if config.gated else STREAMS[:1],
        n_layers=config.n_layers, n_heads=config.n_heads, n_neurons=config.mlp_width, classes=_classes(config),
        vocabulary=words.vocabulary(), texts=texts)


def _classified(model: Any, params: Params, tokens: list[int], text: str, tokenizer: Tokenizer, words: Vocabulary,
                place: int | None = None, label: int | None = None) -> data.ClassifiedText:
    """One text in every layer and stream; without a place it is none of the split's, without a label nobody has judged
    it, and what is said about it is the verdict alone."""
    shown, pad_id, classes = shown_words(tokenizer, text, tokens), tokenizer.pad_id, _classes(model.config)
    patterns = attention_patterns(model, params, tokens, pad_id=pad_id)
    explained = {(layer, stream): explain(model, params, tokens, shown, layer=layer, stream=stream, classes=classes,
                                          pad_id=pad_id)
                 for stream in patterns for layer in range(model.config.n_layers)}
    of_stream = {stream: explained[0, stream] for stream in patterns}
    first = of_stream["clean"]
    verdict, title, about = classes[first.predicted], "typed text", f"{first.verdict}."
    if place is not None and label is not None:
        title = f"text {place:,}: {verdict}" + ("" if first.predicted == label else f", labelled {classes[label]}")
        about = f"Text {place:,} of the {SPLIT} split, labelled {classes[label]}; the model says {about}"
    return data.ClassifiedText(
        title=title, about=about, text=place, tokens=words.pack(tokens, shown), label=label,
        probabilities={stream: x.probabilities for stream, x in of_stream.items()},
        keep=pack(first.keep, "float32") if first.keep else None,
        gradient={stream: pack(x.gradient_x_input, "float32") for stream, x in of_stream.items()},
        readings=tuple(_reading(x, patterns[stream][layer]) for (layer, stream), x in explained.items()))


def _reading(x: Explanation, attention_NTT: np.ndarray) -> data.Reading:
    return data.Reading(
        layer=x.layer, stream=x.stream, capacity=pack(x.capacity, "float32"),
        owned=pack(x.owned, "uint16"), active=pack(x.active, "uint16"), active_neurons=x.active_neurons,
        neurons=pack(np.array(x.neurons, np.int64), "uint16"), activations=pack(x.activations, "uint8"),
        alignment=pack(x.alignment, "uint8"), attention=pack(attention_NTT, "uint8"))


def shown_words(tokenizer: Tokenizer, text: str, tokens: Sequence[int]) -> list[str]:
    """How to show the first or all tokens of a text: a word that the tokenizer does not know in angle quotes."""
    if tokenizer.unk_id is None:
        return [tokenizer.decode([token]) for token in tokens]
    words = zip(text.split(), tokens, strict=False)
    return [f"‹{word}›" if token == tokenizer.unk_id else word for word, token in words]


def allocation(x: Explanation) -> Heatmap:
    """Tokens x neurons, with the capacity of each token."""
    caption = (f"Activation of the neurons of {_place(x)}. Neurons stand under the token that drives them most, and "
               "the diagonal is what tokens have to themselves. Capacity: 1 for a token that shares no direction, 1/m "
               "where m tokens have the same.")
    return Heatmap(title="Neuron allocation", caption=caption, rows=x.words, values=x.activations,
                   x_label=f"{len(x.neurons):,} of {x.active_neurons:,} active neurons", value_label="activation",
                   columns=tuple(f"neuron {n}" for n in x.neurons), bars=x.capacity, bar_label="capacity")


def interactions(x: Explanation, floor: float | None = None) -> Network:
    """Tokens in reading order, an arc for each pair whose alignment is at least ``floor`` (by default `edge_floor`)."""
    floor = edge_floor(x) if floor is None else floor
    pairs = _pairs(x)
    edges = tuple(Edge(first=i, second=j, weight=weight) for i, j, weight in pairs if weight >= floor)
    sizes, size_label = (x.keep, "probability of being kept") if x.keep else (x.capacity, "capacity")
    caption = (f"Arcs join tokens that share neurons of {_place(x)}: |cos| of their activations, of {floor:.2f} or "
               f"more ({len(edges)} of {len(pairs)} pairs). Dots: {size_label}.")
    return Network(title="Token interactions", caption=caption, edges=edges, size_label=size_label,
                   nodes=tuple(Node(label=word, size=size) for word, size in zip(x.words, sizes, strict=True)),
                   weight_label="alignment")


def edge_floor(x: Explanation) -> float:
    """Least alignment drawn: that of the strongest `EDGES_PER_TOKEN` pairs a token (ties are all drawn)."""
    weights = sorted((weight for _, _, weight in _pairs(x)), reverse=True)
    most = EDGES_PER_TOKEN * len(x.words)
    return max(LEAST_ALIGNMENT, weights[most - 1] if len(weights) >= most else 0.0)


def token_grid(x: Explanation) -> Grid:
    """The numbers of each token."""

    def partner(i: int, pairs: Literal["alignment", "attention"]) -> str:
        other = x.partner(i, pairs)
        return "-" if other is None else f"{short(x.words[other], 16)} ({getattr(x, pairs)[i][other]:.2f})"

    rows = tuple((short(word, 24), x.keep[i] if x.keep else None, x.gradient_x_input[i], x.capacity[i], x.owned[i],
                  partner(i, "alignment"), partner(i, "attention")) for i, word in enumerate(x.words))
    caption = ("Gradient x input: how the log-probability of the predicted class changes with the size of the token's "
               "embedding. Owned: neurons that no other token drives more.")
    return Grid(title="Tokens", caption=caption, rows=rows,
                columns=("token", "kept", "gradient x input", "capacity", "owned", "shares most with",
                         "attends most with"))


def side_by_side(before: Explanation, after: Explanation) -> tuple[Beside, Beside]:
    """Allocation and interactions of one text in two models, each pair with one scale and one least alignment."""
    allocations = allocation(before), allocation(after)
    floor = max(edge_floor(before), edge_floor(after))
    networks = interactions(before, floor), interactions(after, floor)
    caption = f"{allocations[1].caption} Both have one scale; each model has neurons of its own: compare rows only."
    counts = " and ".join(str(len(network.edges)) for network in networks)
    labels = ("before", "after")
    return (
        Beside(title=allocations[0].title, labels=labels, panels=allocations, caption=caption),
        Beside(title=networks[0].title, labels=labels, panels=networks,
               caption=f"Arcs join tokens whose activations have a |cos| of {floor:.2f} or more: {counts} pairs of "
                       f"{len(_pairs(before))}. Dots: {networks[0].size_label}."),
    )


def _pairs(x: Explanation) -> list[tuple[int, int, float]]:
    """Every pair of tokens once, with its alignment."""
    return [(i, j, x.alignment[i][j]) for i in range(len(x.words)) for j in range(i + 1, len(x.words))]


def _place(x: Explanation) -> str:
    return f"layer {x.layer}" if x.stream == "clean" else f"layer {x.layer}, {x.stream} stream"


def _run(run: Run) -> tuple[ExplanationsResult, dict[str, Any]]:
    layer = cast(ClassificationConfig, run.config).objective.layers[-1]
    result = evaluate(run.model, run.params, run.splits[SPLIT].batches(), run.tokenizer, run.splits[SPLIT].texts,
                      layer=layer)
    found = read(run.model, run.params, run.splits[SPLIT].batches(), run.tokenizer, run.splits[SPLIT].texts,
                 params_digest=run.digest, step=run.step, seed=run.seed)
    result = dataclasses.replace(result, attachments={"texts": found} if found.texts else {})
    return result, {"split": SPLIT, "layer": layer, "shortest": SHORTEST, "longest": LONGEST,
                    "read": len(found.texts), "read_longest": READ_LONGEST, "seed": run.seed}


SUITE = Suite(name="explanations", run=_run, task="classification",
              about="Which neurons the tokens of a text occupy, and which tokens share them: the first "
                    f"{TEXTS} texts of {SHORTEST} to {LONGEST} tokens of the {SPLIT} split. Words in ‹ › are "
                    "unknown to the model.")
