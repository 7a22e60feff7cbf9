"""Each suite against figures worked out another way."""

import dataclasses
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxablate import stats
from jaxablate.circuits import PromptPairs
from jaxablate.config import Config, DataConfig, ModelConfig, TrainConfig
from jaxablate.data import corpus
from jaxablate.models.decoder import SelfAblatingTransformer
from jaxablate.suites import gates, ioi, perplexity, samples, weights

EOT = 0
SHAPE = {"vocab_size": 23, "context_length": 12, "d_model": 8, "n_layers": 2, "n_heads": 2, "k_attention": 3,
         "k_neurons": (2, 5)}


def make(**changes):
    config = ModelConfig(**{**SHAPE, **changes})
    model = SelfAblatingTransformer(config)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    rng = np.random.default_rng(0)
    return model, jax.tree.map(lambda x: rng.normal(scale=0.5, size=x.shape).astype(np.float32), shapes)


def split(tokens, batch=3, length=6):
    """Windows of a token array in file order, the last batch filled up and masked, as the pipeline makes them."""
    inputs, targets = np.asarray(tokens[:-1]), np.asarray(tokens[1:])
    rows = -(-len(inputs) // length)
    rows += -rows % batch
    pad = rows * length - len(inputs)
    mask = np.concatenate([np.ones(len(inputs)), np.zeros(pad)]).reshape(rows, length).astype(np.float32)
    story = np.cumsum(targets == EOT) - (targets == EOT)
    inputs, targets, story = (np.concatenate([x, np.full(pad, EOT)]).reshape(rows, length).astype(np.int32)
                              for x in (inputs, targets, story))
    whole = {"inputs": inputs, "targets": targets, "story": story, "mask": mask}
    return [{name: x[i : i + batch] for name, x in whole.items()} for i in range(0, rows, batch)]


def stories(count, seed=0):
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(count):
        out += [*rng.integers(1, 23, size=rng.integers(3, 9)).tolist(), EOT]
    return np.array(out)


@pytest.fixture(scope="module")
def gated():
    return make()


@functools.partial(jax.jit, static_argnums=0)
def forward(model, params, tokens):
    return model.apply({"params": params}, tokens)


def all_losses(model, params, batches):
    """Losses, targets and stream in file order by full logits."""
    out = {"clean": [], "ablated": [], "target": []}
    for b in batches:
        seen = b["mask"] > 0
        logits = forward(model, params, b["inputs"])
        for name in ("clean", "ablated"):
            logp = jax.nn.log_softmax(getattr(logits, f"logits_{name}"))
            out[name] += np.asarray(-jnp.take_along_axis(logp, b["targets"][..., None], -1))[..., 0][seen].tolist()
        out["target"] += b["targets"][seen].tolist()
    return {k: np.array(v) for k, v in out.items()}


def test_perplexity_is_the_mean_over_every_target_once(gated):
    tokens = stories(40)
    batches = split(tokens)
    result = perplexity.evaluate(*gated, batches, eot_id=EOT)
    truth = all_losses(*gated, batches)
    assert [x.stream for x in result.losses] == ["clean", "clean", "ablated", "ablated"]
    found = {(x.stream, x.end_of_text): x for x in result.losses}
    inner = truth["target"] != EOT
    for stream in ("clean", "ablated"):
        every, without = found[stream, True], found[stream, False]
        assert (every.tokens, without.tokens) == (len(tokens) - 1, len(tokens) - 1 - 40)
        assert every.loss.value == pytest.approx(truth[stream].mean(), rel=1e-5)
        assert without.loss.value == pytest.approx(truth[stream][inner].mean(), rel=1e-5)
        assert every.perplexity.value == pytest.approx(math.exp(every.loss.value))
        assert every.perplexity.low < every.perplexity.value < every.perplexity.high
    assert result.gap.value == pytest.approx((truth["ablated"] - truth["clean"]).mean(), rel=1e-3)
    assert result.unit == "stories" and result.units == 40


def test_perplexity_interval_draws_whole_stories(gated):
    tokens = stories(35)
    batches = split(tokens)
    truth = all_losses(*gated, batches)
    story = np.cumsum(truth["target"] == EOT) - (truth["target"] == EOT)
    sums, counts = np.bincount(story, truth["clean"]), np.bincount(story)
    expected = np.percentile(stats.ratio_resamples(sums, counts, seed=5), [2.5, 97.5])
    result = perplexity.evaluate(*gated, batches, eot_id=EOT, seed=5)
    assert result.losses[0].loss.interval == pytest.approx(tuple(expected), rel=1e-5)


def test_perplexity_does_not_depend_on_the_batch_size(gated):
    tokens = stories(31)
    a, b = (perplexity.evaluate(*gated, split(tokens, batch=n), eot_id=EOT) for n in (1, 7))
    for x, y in zip(a.losses, b.losses, strict=True):
        assert dataclasses.astuple(x.loss)[:4] == pytest.approx(dataclasses.astuple(y.loss)[:4], rel=1e-5)


def test_perplexity_of_few_stories_draws_windows(gated):
    result = perplexity.evaluate(*gated, split(stories(4)), eot_id=EOT)
    tokens = len(stories(4)) - 1
    assert (result.unit, result.units) == ("windows", -(-tokens // 6))


def test_a_baseline_has_a_clean_stream_only():
    result = perplexity.evaluate(*make(ablation="none"), split(stories(3)), eot_id=EOT)
    assert {x.stream for x in result.losses} == {"clean"} and result.gap is None
    assert [f.name for f in result.headline()] == ["perplexity clean", "perplexity clean w/o eot"]


def test_gates_count_what_the_model_lets_through(gated):
    model, params = gated
    batches = split(stories(9), batch=2)
    result = gates.evaluate(model, params, batches)
    assert result.tokens == len(stories(9)) - 1
    for layer in result.layers:
        name = "attention_gates" if layer.kind == "attention" else "neuron_gates"
        fired = np.concatenate([
            np.asarray(getattr(forward(model, params, b["inputs"]), name))[b["mask"] > 0][:, layer.layer] > 0.5
            for b in batches])
        assert layer.live == fired.any(0).sum()
        assert layer.mean_winners == pytest.approx(model.config.layer_k(layer.kind, layer.layer), abs=1e-9)
        assert layer.mean_gate == pytest.approx(layer.k, rel=1e-5)
        assert sum(layer.bin_counts) == layer.live
        share = fired.mean(0)[fired.any(0)] / fired.mean(0).sum()
        assert layer.effective_units == pytest.approx(math.exp(-(share * np.log(share)).sum()))


def test_gates_null_is_what_random_winners_give():
    rng, units, k, tokens = np.random.default_rng(0), 40, 2, 60
    live, effective = [], []
    for _ in range(300):
        counts = np.bincount(np.argsort(rng.random((tokens, units)))[:, :k].ravel(), minlength=units)
        live.append((counts > 0).sum())
        effective.append(gates.effective_number(counts))
    layer = gates._layer("neurons", 0, k, counts.astype(float), float(k * tokens), tokens)
    assert layer.null_live == pytest.approx(np.mean(live), abs=0.2)
    assert layer.null_effective_units == pytest.approx(np.mean(effective), rel=0.03)


def test_every_firing_rate_falls_into_a_bin():
    for tokens in (1, 7, 100, 106_705):
        fired = np.array([1.0, tokens / 2, tokens, 0.0])
        layer = gates._layer("neurons", 0, 2, fired, 0.0, tokens)
        assert sum(layer.bin_counts) == layer.live == 3


@pytest.mark.parametrize("ablation", ["none", "local", "global", "both"])
def test_weights_add_up(ablation):
    _model, params = make(ablation=ablation)
    result = weights.evaluate(params)
    leaves = {jax.tree_util.keystr(p): np.abs(x) for p, x in jax.tree_util.tree_leaves_with_path(params)}
    total = sum(x.size for x in leaves.values())
    assert sum(g.count for g in result.kinds) == total
    assert result.transformer.count + result.ablation_heads.count == total
    body = [x for path, x in leaves.items() if "scores" not in path]
    expected = sum(x.sum() for x in body) / sum(x.size for x in body)
    assert result.transformer.mean_abs == pytest.approx(float(expected), rel=1e-6)
    inner = [x for path, x in leaves.items() if "scores" not in path and "embed" not in path]
    expected = sum(x.sum() for x in inner) / sum(x.size for x in inner)
    assert result.without_embeddings.mean_abs == pytest.approx(float(expected), rel=1e-6)
    assert (result.ablation_heads.mean_abs is None) == (ablation == "none")
    local = [abs(params["layer_1"][f"{kind}_scores"]["kernel"]).ravel() for kind in ("attention", "neuron")
             if "attention_scores" in params["layer_1"]]
    by_layer = {(layer, kind): value for layer, kind, value in result.by_layer}
    assert by_layer[1, "query"] == pytest.approx(float(abs(params["layer_1"]["attention"]["query"]["kernel"]).mean()))
    assert ((1, "ablation heads") in by_layer) == bool(local)
    if local:
        assert by_layer[1, "ablation heads"] == pytest.approx(float(np.concatenate(local).mean()), rel=1e-5)


def test_released_count_is_that_of_the_released_notebook():
    """The paper's shape: the notebook prints "Total params: 14535249"."""
    model = SelfAblatingTransformer(ModelConfig())
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    leaves = {tuple(k.key for k in p): np.broadcast_to(0.0, x.shape)
              for p, x in jax.tree_util.tree_leaves_with_path(shapes)}
    assert sum(x.size for x in weights.released_weights(leaves)) == 14_535_249


def test_released_weights_are_centred_where_they_write():
    table = np.array([[1.0, 3.0], [5.0, 11.0]])
    found = list(weights.released_weights({("embed", "embedding"): table}))
    assert found[0].tolist() == [[-1.0, 1.0], [-3.0, 3.0]]
    assert found[1].tolist() == [[-2.0, -4.0], [2.0, 4.0]]
    assert found[2].tolist() == [0.0, 0.0]


def test_ioi_reads_the_logits_after_the_last_token(gated):
    model, params = gated
    rng = np.random.default_rng(1)
    lengths, answers = rng.integers(3, 10, size=11), rng.integers(1, 22, size=11)
    tokens, wrong = [rng.integers(1, 23, size=n).tolist() for n in lengths], answers % 22 + 1
    groups = ["ab"[n % 2] for n in lengths]
    pairs = PromptPairs.from_ids(tokens, tokens, answers[:, None].tolist(), wrong[:, None].tolist(), name="IOI",
                                 groups=groups)
    result = ioi.evaluate(model, params, pairs, batch_size=4)
    for stream in result.streams:
        right, top, difference = [], [], []
        for ids, answer, other in zip(tokens, answers, wrong, strict=True):
            out = forward(model, params, jnp.array([ids + [0] * (12 - len(ids))]))
            logits = np.asarray(getattr(out, f"logits_{stream.stream}")[0, len(ids) - 1])
            right.append(logits[answer] > logits[other])
            top.append(logits.argmax() == answer)
            difference.append(logits[answer] - logits[other])
        c = stream.competence
        assert (c.accuracy.value, c.top1.value) == (np.mean(right), np.mean(top))
        assert c.logit_difference.value == pytest.approx(np.mean(difference), rel=1e-4, abs=1e-5)
        by_group = {g: accuracy for g, _, accuracy, _ in c.by_group}
        assert by_group["a"] == np.mean([r for r, g in zip(right, groups, strict=True) if g == "a"])


def test_suites_say_why_they_do_not_fit():
    baseline = Config(model=ModelConfig(ablation="none"))
    assert "no gates" in gates.SUITE.unfit(baseline)
    assert "embedded corpus" in ioi.SUITE.unfit(baseline)
    embedded = Config(data=DataConfig(source="embedded", tokenizer="corpus"))
    assert gates.SUITE.unfit(embedded) is None and ioi.SUITE.unfit(embedded) is None
    short = Config(model=ModelConfig(context_length=8), data=embedded.data, train=TrainConfig(sequence_length=8))
    assert "the model takes 8" in ioi.SUITE.unfit(short)


def test_no_prompt_is_longer_than_the_suite_believes():
    tokenizer = corpus.CorpusTokenizer()
    lengths = [len(tokenizer.encode(prompt.clean)) for prompt in corpus.ioi_prompts(0, ioi.COUNT)]
    assert max(lengths) == ioi.LONGEST_PROMPT


class Letters:
    """One letter a token; 0 ends a story, the model's ids from 20 on are not the tokenizer's."""

    eot_id, vocab_size = EOT, 20

    def encode(self, text):
        return [ord(c) - 96 for c in text]

    def decode(self, ids):
        assert all(i < self.vocab_size for i in ids)
        return "".join(chr(96 + i) for i in ids)


def test_samples_continue_each_prompt_in_each_stream(gated):
    model, params = gated
    texts = ("abc", "de", "fgh")
    prompts = [Letters().encode(t) for t in texts]
    options = {"streams": ("clean", "ablated"), "eot_id": 99, "steps": 4, "temperature": 0.0, "top_k": None}
    result = samples.evaluate(model, params, prompts, decode=str, **options)
    assert [s.prompt for s in result.samples] == [str(p) for p in prompts]
    for prompt, sample in zip(prompts, result.samples, strict=True):
        for stream, text in sample.continuations:
            tokens = list(prompt)
            for _ in range(4):
                out = forward(model, params, jnp.array([tokens + [0] * (12 - len(tokens))]))
                tokens.append(int(getattr(out, f"logits_{stream}")[0, len(tokens) - 1].argmax()))
            assert text == str(tokens[len(prompt):])
    first = json.loads(result.samples[0].continuations[0][1])
    options["eot_id"] = first[2]
    cut = samples.evaluate(model, params, prompts, decode=str, **options)
    assert json.loads(cut.samples[0].continuations[0][1]) == first[: first.index(first[2])]


def test_samples_show_ids_that_only_the_model_has():
    assert samples.readable(Letters(), [1, 2, 21, 22, 3]) == "ab\ufffd\ufffdc"
