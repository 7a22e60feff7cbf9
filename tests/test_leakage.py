"""The leakage audit: replacements against runs of the model by hand, information and probe on gates that tell a known
amount."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxablate.config import Config, ModelConfig
from jaxablate.errors import DataError
from jaxablate.models.decoder import Gates, SelfAblatingTransformer
from jaxablate.neurons import gate_information, leakage
from jaxablate.neurons.leakage import COLUMNS, GateSample
from jaxablate.suites import leakage as suite

EOT, VOCAB, LENGTH = 0, 24, 32
CONFIG = ModelConfig(vocab_size=VOCAB, context_length=LENGTH, d_model=16, n_layers=2, n_heads=2, k_attention=3,
                     k_neurons=5, ablation="local")


def stories(count, seed=0):
    """Tokens of short stories, each with the end-of-text after it."""
    rng = np.random.default_rng(seed)
    return np.concatenate([np.append(rng.integers(1, VOCAB, size=rng.integers(30, 60)), EOT) for _ in range(count)])


def split(tokens, rows=8):
    """Batches in file order, the last one filled up and masked, as the pipeline makes them."""
    count = len(tokens) - 1
    size = rows * LENGTH
    padded = np.zeros(-(-count // size) * size + 1, np.int32)
    padded[: len(tokens)] = tokens
    mask = (np.arange(len(padded) - 1) < count).astype(np.float32)
    ends = padded[1:] == EOT
    story = (7 + np.cumsum(ends) - ends).astype(np.int32)  # the first stories of the file are not read
    shaped = [x.reshape(-1, rows, LENGTH) for x in (padded[:-1], padded[1:], story, mask)]
    return [dict(zip(("inputs", "targets", "story", "mask"), x, strict=True)) for x in zip(*shaped, strict=True)]


@pytest.fixture(scope="module")
def model():
    made = SelfAblatingTransformer(CONFIG)
    shapes = jax.eval_shape(made.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    rng = np.random.default_rng(0)
    return made, jax.tree.map(lambda x: rng.normal(scale=0.4, size=x.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def tokens():
    return stories(70)


@pytest.fixture(scope="module")
def audited(model, tokens):
    return leakage.audit_gates(*model, lambda: split(tokens), seed=3)


@functools.partial(jax.jit, static_argnames="model")
def forward(model, params, inputs):
    return model.apply({"params": params}, inputs)


@functools.partial(jax.jit, static_argnames="model")
def logits_with(model, params, inputs, gates, means, at_means):
    """Logits of the ablated stream with these gates, and where ``at_means`` with these contents."""
    def edit(site, x):
        stream, layer, field = site.split(".")
        return jnp.where(at_means, means[field][int(layer[-1])], x) if stream == "ablated" and field in means else x

    return model.apply({"params": params}, inputs, gates=gates, edit=edit).logits_ablated


def losses(logits, targets):
    logits = np.asarray(logits, np.float64)
    logs = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    return -np.take_along_axis(logs, targets[..., None], -1)[..., 0]


def test_every_replacement_is_what_the_model_does_with_it(model, tokens):
    """Gates moved and contents set by hand, with another token's gates gathered in NumPy."""
    batches = split(tokens)
    means, count = leakage.content_means(*model, batches)
    assert count == len(tokens) - 1
    batch, rng = batches[1], np.random.default_rng(1)
    other, same, found = leakage.lenders(batch["inputs"], batch["mask"] > 0, rng)
    measured, bits = leakage.replaced_losses(*model, batch, means, (other, same), jax.random.key(0))
    out = forward(*model, batch["inputs"])

    def moved(lender):
        return jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:])[lender], out.gates)

    np.testing.assert_allclose(measured["own"], losses(out.logits_ablated, batch["targets"]), rtol=2e-4, atol=2e-4)
    expected = {"own": (out.gates, False), "other": (moved(other), False), "same": (moved(same), False),
                "mask": (out.gates, True), "mask_same": (moved(same), True)}
    for name, (gates, at_means) in expected.items():
        logits = logits_with(*model, batch["inputs"], gates, means, at_means)
        np.testing.assert_allclose(measured[name], losses(logits, batch["targets"]), rtol=2e-4, atol=2e-4, err_msg=name)
    fires = np.unpackbits(np.asarray(bits["neurons"]), axis=-1, count=64)
    np.testing.assert_array_equal(fires, np.asarray(out.neuron_gates) > 0.5)
    ids = batch["inputs"]
    assert (ids.ravel()[same][found] == ids[found]).all()


def test_means_are_those_of_the_counted_tokens(model, tokens):
    batches = split(tokens)
    means, count = leakage.content_means(*model, batches)
    total = sum(np.asarray(forward(*model, b["inputs"]).layers[1].ablated.mlp_post)[b["mask"] > 0].sum(0)
                for b in batches)
    np.testing.assert_allclose(means["mlp_post"][1], total / count, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gate", ["hard", "soft"])
def test_random_gates_have_as_many_winners(model, tokens, gate):
    made = SelfAblatingTransformer(ModelConfig(**{**vars(CONFIG), "gate": gate}))
    gates = forward(*model, split(tokens)[0]["inputs"]).gates
    if gate == "soft":  # any values
        rng = np.random.default_rng(0)
        gates = jax.tree.map(lambda x: rng.random(x.shape, np.float32), gates)
    random = jax.jit(leakage._random_gates, static_argnums=0)(made, gates, jax.random.key(0))
    assert isinstance(random, Gates)
    for own, drawn in ((gates.attention, random.attention), (gates.neuron, random.neuron)):
        np.testing.assert_allclose(np.sort(own, axis=-1), np.sort(drawn, axis=-1), atol=1e-6)
        assert not np.allclose(own, drawn)


def test_sums_by_story_are_those_of_the_suite_of_perplexities(model, tokens, audited):
    from jaxablate.suites import perplexity

    known = perplexity.evaluate(*model, split(tokens), eot_id=EOT, seed=3)
    of = {(x.stream, x.end_of_text): x for x in known.losses}
    found = {x.name: x for x in suite._losses(audited.story_sums, 3)}
    assert len(audited.story_sums["own"]) == 70 and found["own"].tokens == len(tokens) - 1
    for name, stream in (("clean", "clean"), ("own", "ablated")):
        assert found[name].loss.value == pytest.approx(of[stream, True].loss.value, rel=1e-6)
        assert found[name].loss.interval == pytest.approx(of[stream, True].loss.interval, rel=1e-6)
    assert found["clean"].rise.value == pytest.approx(-known.gap.value, rel=1e-6)


def test_the_sample_holds_the_gates_of_its_tokens(model, tokens):
    audit = leakage.audit_gates(*model, lambda: split(tokens), sample=500)
    sample = audit.sample
    assert len(sample.current) == 500 and sample.units == {"attention": 16, "neurons": 64}
    np.testing.assert_array_equal(audit.current, tokens[:-1])
    np.testing.assert_array_equal(audit.following, tokens[1:])
    fires = np.concatenate([np.asarray(forward(*model, b["inputs"]).neuron_gates)[b["mask"] > 0]
                            for b in split(tokens)])[:, 1] > 0.5
    at = next(i for i in range(len(tokens) - 1)
              if (tokens[i : i + 2] == (sample.current[0], sample.following[0])).all()
              and (fires[i] == sample.fires("neurons", 1)[0]).all())
    assert audit.story[at] == sample.story[0]
    assert (sample.fires("neurons", 0).sum(-1) == 5).all() and (sample.fires("attention", 0).sum(-1) == 3).all()


def test_a_long_split_is_read_up_to_a_number_of_tokens(model, tokens):
    read = []
    audit = leakage.audit_gates(*model, lambda: (read.append(b) or b for b in split(tokens)), most=2100)
    assert len(audit.current) == 9 * 8 * LENGTH and len(read) == 2 * 9  # nine batches of 256 tokens, twice


def test_lenders_are_others_each_once():
    rng = np.random.default_rng(0)
    tokens = np.array([[4, 4, 9, 4], [7, 9, 4, 0]])
    counted = np.array([[1, 1, 1, 1], [1, 1, 1, 0]], bool)
    for _ in range(20):
        other, same, found = leakage.lenders(tokens, counted, rng)
        mine = np.arange(8).reshape(2, 4)
        assert (other[counted] != mine[counted]).all() and sorted(other.ravel()) == list(range(8))
        assert other[1, 3] == same[1, 3] == 7
        assert (tokens.ravel()[same] == tokens).all() and sorted(same.ravel()) == list(range(8))
        assert found.tolist() == [[True, True, True, True], [False, True, True, False]]
        assert (same[found] != mine[found]).all()


def sample_of(current, following, bits, story=None):
    """A sample with these neurons [n, U] in one layer, and no attention channel that ever fires."""
    packed = {"neurons": np.packbits(bits[:, None], axis=-1), "attention": np.zeros((len(bits), 1, 1), np.uint8)}
    story = np.arange(len(bits)) // 40 if story is None else story
    return GateSample(current=current.astype(np.int32), following=following.astype(np.int32),
                      story=story.astype(np.int32), bits=packed, units={"neurons": bits.shape[1], "attention": 8})


def telling_bits(n=6000, seed=0):
    """Current tokens of 3 kinds, a fair next token of 2; a gate that is it, its negation in token 1, or a fair coin."""
    rng = np.random.default_rng(seed)
    current, following = rng.integers(0, 3, n), rng.integers(0, 2, n)
    noisy = np.where(rng.random(n) < 0.11, 1 - following, following)
    bits = np.stack([following, np.where(current == 1, 1 - following, following), rng.integers(0, 2, n),
                     (current == 2).astype(int), noisy, np.zeros(n, int)], axis=-1)
    return sample_of(current, following, bits.astype(np.uint8))


def test_information_of_gates_that_tell_a_known_amount():
    """A copy of a fair bit tells 1 bit, also where the current token turns it; one that errs in 11 % tells half."""
    found = gate_information.unit_information(telling_bits(), "neurons", 0)
    h = -0.11 * math.log2(0.11) - 0.89 * math.log2(0.89)
    np.testing.assert_allclose(found.information, [1, 1, 0, 0, 1 - h, 0], atol=0.02)
    assert found.telling[[0, 1, 4]].all() and not found.telling[[3, 5]].any()
    np.testing.assert_allclose(found.entropy, [1, 1, 1, 0, 1, 0], atol=1e-3)
    np.testing.assert_allclose(found.null[2], 3 / (2 * math.log(2) * 6000), rtol=0.8)  # dof / (2 n ln 2)


def test_information_is_that_of_the_definition():
    sample = telling_bits(300)
    bits, c, n = sample.fires("neurons", 0), sample.current, sample.following
    expected = np.zeros(bits.shape[1])
    for u, k, m, g in np.ndindex(bits.shape[1], 3, 2, 2):
        at = c == k
        follows, fires = at & (n == m), at & (bits[:, u] == g)
        joint = np.mean(follows & fires)
        if joint:
            expected[u] += joint * math.log2(joint * np.mean(at) / np.mean(follows) / np.mean(fires))
    found = gate_information.unit_information(sample, "neurons", 0, shuffles=2)
    np.testing.assert_allclose(found.plug_in, expected, atol=1e-12)


def test_units_that_tell_nothing_are_seldom_above_the_shuffles():
    rng = np.random.default_rng(1)
    n = 3000
    sample = sample_of(rng.integers(0, 5, n), rng.integers(0, 6, n), (rng.random((n, 400)) < 0.3).astype(np.uint8))
    found = gate_information.unit_information(sample, "neurons", 0)
    assert 0.02 < found.telling.mean() < 0.09
    assert abs(found.information.mean()) < 3 * found.information.std() / 20


def test_only_frequent_tokens_are_kept_and_too_few_are_refused():
    current = np.repeat([1, 2, 3], [1000, 49, 60])
    sample = sample_of(current, current, np.ones((len(current), 1), np.uint8))
    assert sorted(set(gate_information.frequent_tokens(sample).current)) == [1, 3]
    with pytest.raises(DataError, match="at least 1,000 tokens whose id occurs 2000 times or more.* has 0"):
        gate_information.frequent_tokens(sample, least=2000)


def test_counts_of_the_other_stories_by_hand():
    """Stories ab|ab|aa: the first pair (a, b) of the first story is met once elsewhere, in the second."""
    current, following = np.array([0, 0, 0]), np.array([1, 1, 0])
    story = np.arange(3)
    unigram, bigram = leakage.ngram_losses(current, following, story, 2)
    options = [[(n + a / 2) / (2 + a) for n in (1, 1, 0)] for a in leakage.STRENGTHS]
    best = max(options, key=lambda p: np.log(p).sum())
    np.testing.assert_allclose(unigram, -np.log(best))
    options = [[(n + b * p) / (2 + b) for n, p in zip((1, 1, 0), best, strict=True)] for b in leakage.STRENGTHS]
    np.testing.assert_allclose(bigram, -np.log(max(options, key=lambda p: np.log(p).sum())))


def test_bigram_counts_find_what_a_markov_chain_knows():
    rng = np.random.default_rng(0)
    chain = rng.dirichlet(np.full(6, 0.3), size=6)
    tokens = [0]
    for _ in range(20_000):
        tokens.append(int(rng.choice(6, p=chain[tokens[-1]])))
    current, following = np.array(tokens[:-1]), np.array(tokens[1:])
    unigram, bigram = leakage.ngram_losses(current, following, np.arange(20_000) // 50, 6)
    assert bigram.mean() == pytest.approx(-np.log(chain[current, following]).mean(), abs=0.005)
    assert unigram.mean() > bigram.mean() + 0.1


@pytest.fixture(scope="module")
def probed():
    """Next tokens of 4 kinds of which two neurons give away a bit, over 8 current tokens that tell nothing."""
    rng = np.random.default_rng(0)
    n = 8000
    current, following = rng.integers(1, 9, n), rng.integers(0, 4, n)
    bits = (rng.random((n, 12)) < 0.2).astype(np.uint8)
    bits[:, 0], bits[:, 1] = following >= 2, following < 2
    table = rng.normal(size=(VOCAB, 16)).astype(np.float32)
    return gate_information.probe_gates(sample_of(current, following, bits), table)


def test_probe_finds_the_bit_and_its_control_does_not(probed):
    token, own, own_all, control, control_all = probed.story_sums[:, 1:].sum(0) / probed.story_sums[:, 0].sum()
    assert token == pytest.approx(math.log(4), abs=0.01)
    assert (own, own_all) == pytest.approx((math.log(2), math.log(2)), abs=0.05)
    assert (control, control_all) == pytest.approx((math.log(4), math.log(4)), abs=0.02)
    assert probed.layers == 1 and probed.chosen in (0, 1) and probed.story_sums[:, 0].sum() == probed.test_tokens


def test_probe_needs_stories():
    sample = telling_bits(1040)
    with pytest.raises(DataError, match="at least 27 stories, the sample has 26"):
        gate_information.probe_gates(sample, np.eye(4, dtype=np.float32))


def test_rare_next_tokens_are_one_class(monkeypatch):
    monkeypatch.setattr(gate_information, "CLASSES", 3)
    kept, classes = gate_information._classes(np.array([5, 7, 9, 5, 2, 11]), np.array([9, 9, 9, 5, 5, 7]))
    assert kept.tolist() == [5, 9] and classes.tolist() == [0, 2, 1, 0, 2, 2]


def sums_of(**columns):
    """Story sums with these columns, one token a story, zeros elsewhere."""
    stories = len(next(iter(columns.values())))
    return {name: np.zeros(stories) for name in COLUMNS} | {"tokens": np.ones(stories)} | {
        name: np.array(values, float) for name, values in columns.items()}


def test_share_of_the_mask_by_hand():
    sums = sums_of(own=[1.0, 2.0], mask=[2.0, 3.0], mask_random=[5.0, 6.0])
    share = suite._share(sums, sums["mask_random"], 0)
    assert share.value == pytest.approx(0.75) and share.interval == pytest.approx((0.75, 0.75))
    assert suite._share(sums, np.array([1.0, 1.0]), 0).value is None


def test_paired_losses_leave_out_who_has_no_lender():
    paired = {"own, paired": [1.0, 0.0], "same, paired": [4.0, 0.0]}
    sums = sums_of(own=[1.0, 9.0], paired=[1, 0], **paired)
    found = {x.name: x for x in suite._losses(sums, 0)}
    assert (found["same"].loss.value, found["same"].rise.value, found["same"].tokens) == (4.0, 3.0, 1)
    assert found["own"].loss.value == 5.0


def test_result_has_its_figures_and_panels(model, audited, monkeypatch):
    monkeypatch.setattr(gate_information, "UPDATES", 10)
    monkeypatch.setattr(gate_information, "SHUFFLES", 2)
    result = suite.evaluate(audited, np.asarray(model[1]["embed"]["embedding"]), vocab_size=VOCAB)
    figures = {f.name: f for f in result.headline()}
    assert {"ablated loss", "share of mask alone", "bits of a gate, neurons", "probe of gates"} <= figures.keys()
    loss = figures["ablated loss"].estimate
    assert loss.low < loss.value < loss.high
    assert len(result.bits.layers) == 4 and [x.layer for x in result.probe.rows] == [0, 1, None]
    assert result.unigram == pytest.approx(math.log(VOCAB), abs=0.1)
    titles = [p.title for p in result.panels()]
    assert len(titles) == len(set(titles)) == 6


def test_too_few_tokens_and_damaged_parameters_are_one_clear_line(model):
    made, params = model
    with pytest.raises(DataError, match="at least 2,000 tokens of 30 stories, this split has 99;"):
        leakage.audit_gates(made, params, lambda: split(np.ones(100, int)))
    with pytest.raises(DataError, match="2,000 tokens of 30 stories, this split has 2,500 of 1;"):
        leakage.audit_gates(made, params, lambda: split(np.ones(2501, int)))
    broken = params | {"ln_f": jax.tree.map(lambda x: x * np.nan, params["ln_f"])}
    with pytest.raises(DataError, match="'clean' of batch 0 is NaN .* --checkpoint"):
        leakage.audit_gates(made, broken, lambda: split(stories(60)))
    broken = params | {"layer_0": jax.tree.map(lambda x: x * np.nan, params["layer_0"])}
    with pytest.raises(DataError, match="activations head_out .* NaN"):
        leakage.audit_gates(made, broken, lambda: split(stories(60)))


def test_models_without_gates_are_told_why():
    assert "no gates" in suite.SUITE.unfit(Config(model=ModelConfig(ablation="none")))
    assert suite.SUITE.unfit(Config()) is None
