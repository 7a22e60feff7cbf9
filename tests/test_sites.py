"""Any model by its named activations: attribution, exact patching, faithfulness, and Linen modules as they stand."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import toy_circuits

from jaxablate.circuits import PromptPairs, from_linen, importance, node_eap, sites
from jaxablate.errors import ConfigError, DataError
from jaxablate.models.decoder import SelfAblatingTransformer

V, D, N, T = 11, 6, 2, 5


def attend(x, w):
    """Causal heads [n, T, N, D / N] of a stream [n, T, D]."""
    q, k, v = jnp.einsum("btd,pdnh->pbtnh", x, w)
    scores = jnp.einsum("bqnh,bknh->bnqk", q, k)
    mask = np.tri(x.shape[1], dtype=bool)[None, None]
    return jnp.einsum("bnqk,bknh->bqnh", jax.nn.softmax(jnp.where(mask, scores, -1e30), axis=-1), v)


def model(params, tokens, edit):
    """A decoder of one block whose sites are all that enters its stream."""
    x = edit("embed", params["table"][tokens])
    heads = edit("heads", attend(x, params["qkv"]))
    x = x + jnp.einsum("btnh,nhd->btd", heads, params["out"])
    x = x + edit("mlp", jnp.tanh(x @ params["up"]) @ params["down"])
    return x @ params["table"].T


@functools.cache
def params():
    rng = np.random.default_rng(0)
    shapes = {"table": (V, D), "qkv": (3, D, N, D // N), "out": (N, D // N, D), "up": (D, 8), "down": (8, D)}
    return {name: (rng.standard_normal(shape) / 2).astype(np.float32) for name, shape in shapes.items()}


def pairs():
    return toy_circuits.pairs(V, seed=1)


@functools.cache
def task(metric="logit_difference", ablation="resample", split=False, batch_size=64):
    return sites.problem(model, params(), pairs(), metric=metric, ablation=ablation, batch_size=batch_size,
                         split={"heads": 2, "mlp": 1} if split else None)


def unpadded(i, corrupt=False):
    p = pairs()
    return jnp.asarray((p.corrupt if corrupt else p.clean)[i, -p.lengths[i]:][None])


def read(i, corrupt=False):
    """Activations of one prompt, run alone without padding."""
    seen = {}
    model(params(), unpadded(i, corrupt), lambda name, x: seen.setdefault(name, x))
    return seen


def by_hand(i, edit):
    """Logit difference of one prompt, run alone and without padding."""
    logits = np.asarray(model(params(), unpadded(i), edit))[0, -1]
    answers, wrong = (x[i][x[i] >= 0] for x in (pairs().answers, pairs().wrong_answers))
    return logits[answers].mean() - logits[wrong].mean()


def test_sites_and_nodes_are_those_that_the_model_names_in_its_order():
    assert [site.name for site in task().sites] == ["embed", "heads", "mlp"] == list(task().nodes)
    assert [site.shape for site in task().sites] == [(T, D), (T, N, D // N), (T, D)]
    assert task(split=True).nodes == ("embed", "heads[0]", "heads[1]", *(f"mlp[{t}]" for t in range(T)))
    some = sites.problem(model, params(), pairs(), sites=["m*", "embed"], split={"mlp": (2, 1)})
    assert [site.name for site in some.sites] == ["embed", "mlp"] and some.nodes[7] == f"mlp[1, {7 - 1 - D}]"


def test_exact_patching_is_an_edit_by_hand():
    effects = dict(zip(task(split=True).nodes, sites.effects(task(split=True)), strict=True))

    def patched(name, place=None):
        def one(i):
            new = read(i, corrupt=True)[name]

            def edit(site, x):
                if site != name:
                    return x
                return new if place is None else x.at[place].set(new[place])

            return by_hand(i, edit) - by_hand(i, lambda site, x: x)

        return np.mean([one(i) for i in range(3)])

    assert effects["embed"] == pytest.approx(patched("embed"), abs=1e-4)
    assert effects["heads[1]"] == pytest.approx(patched("heads", np.s_[:, :, 1]), abs=1e-4)
    assert effects["mlp[2]"] == pytest.approx(patched("mlp", np.s_[:, 2]), abs=1e-4)  # the last place of one prompt
    assert abs(effects["mlp[2]"]) > 0.01
    some = sites.effects(task(split=True), nodes=["mlp[2]", "embed"])
    np.testing.assert_allclose(some, [effects["mlp[2]"], effects["embed"]], atol=1e-5)


def test_everything_patched_is_the_corrupt_run_and_nothing_patched_the_clean_one():
    values = sites.metric_values(task(split=True), np.array([[True] * 8, [False] * 8, [True] * 8]))
    corrupt = [read(i, corrupt=True) for i in range(3)]
    np.testing.assert_allclose(values[0], [by_hand(i, lambda site, x: x) for i in range(3)], atol=1e-4)
    np.testing.assert_allclose(values[1], [by_hand(i, lambda site, x, i=i: corrupt[i][site]) for i in range(3)],
                               atol=1e-4)
    np.testing.assert_array_equal(values[0], values[2])


@pytest.mark.parametrize("ablation", ["resample", "zero", "mean", "mean_per_position"])
def test_attribution_is_the_derivative_by_finite_differences(ablation):
    values = [read(i, corrupt=True) for i in range(3)]

    def replaced(name, i, x):
        n = x.shape[1]
        if ablation == "resample":
            return values[i][name]
        if ablation == "zero":
            return 0 * x
        if ablation == "mean":
            return jnp.broadcast_to(jnp.concatenate([v[name][0] for v in values]).mean(0), x.shape)
        return jnp.stack([jnp.stack([v[name][0, t] for v in values if t < v[name].shape[1]]).mean(0)
                          for t in range(n)])[None]

    scores = dict(zip(task(ablation=ablation).nodes, sites.attribution(task(ablation=ablation)), strict=True))
    exact = dict(zip(task(ablation=ablation).nodes, sites.effects(task(ablation=ablation)), strict=True))
    for name in scores:
        def moved(h, name=name):
            return np.mean([by_hand(i, lambda site, x, i=i: x + h * (replaced(name, i, x) - x) if site == name else x)
                            for i in range(3)])

        one, two = (moved(h) - moved(-h) for h in (0.01, 0.02))
        assert scores[name] == pytest.approx((8 * one - two) / 0.12, rel=1e-3, abs=2e-3)
        assert exact[name] == pytest.approx(moved(1.0) - moved(0.0), abs=1e-4)


def test_integrated_gradients_of_a_site_alone_come_to_its_exact_effect():
    for metric in ("logit_difference", "kl"):
        scores, exact = sites.attribution(task(metric), steps=200), sites.effects(task(metric))
        np.testing.assert_allclose(scores, exact, rtol=2e-3, atol=2e-3)
        assert (importance(metric, exact) > 0).any()
    nodes = sites.attribution(task(split=True), steps=7)
    np.testing.assert_allclose(np.add.reduceat(nodes, [0, 1, 3]), sites.attribution(task(), steps=7), atol=1e-4)


def test_padding_and_batches_change_nothing():
    alone = [sites.problem(model, params(), pairs().take([i])) for i in range(3)]
    whole = sites.metric_values(task(), np.eye(3, dtype=bool))
    np.testing.assert_allclose(whole, np.concatenate([sites.metric_values(x, np.eye(3, dtype=bool)) for x in alone], 1),
                               atol=1e-5)
    for ablation in ("resample", "mean"):
        a, b = task(ablation=ablation), task(ablation=ablation, batch_size=2)
        np.testing.assert_allclose(sites.effects(a), sites.effects(b), atol=1e-5)
        np.testing.assert_allclose(sites.attribution(a), sites.attribution(b), atol=1e-4)


def test_nodes_of_a_decoder_have_the_scores_that_its_graph_gives_them():
    config, weights = toy_circuits.model()
    module = SelfAblatingTransformer(config)

    def decoder(params, tokens, edit):
        return module.apply({"params": params}, tokens, edit=edit).final_clean @ params["embed"]["embedding"].T

    own = sites.problem(decoder, weights, toy_circuits.pairs(), split={"*.head_out": 2},
                        sites=["clean.layer_0.resid_pre", "clean.*.head_out", "clean.*.mlp_out"])
    order = ["clean.layer_0.resid_pre", *(x for i in range(2) for x in (
        *(f"clean.layer_{i}.head_out[{h}]" for h in range(2)), f"clean.layer_{i}.mlp_out"))]
    assert list(own.nodes) == order
    problem = toy_circuits.problem()
    for steps in (None, 3):
        scores = sites.attribution(own, steps=steps, through=None if steps is None else order[0])
        np.testing.assert_allclose(scores, node_eap(problem, steps=steps), atol=1e-5)


def test_a_model_of_one_prompt_under_vmap_is_the_same_model():
    def single(params, tokens, edit):
        def one(tokens):
            x = edit("embed", params["table"][tokens])
            heads = edit("heads", attend(x[None], params["qkv"])[0])
            x = x + jnp.einsum("tnh,nhd->td", heads, params["out"])
            mlp = jax.vmap(lambda x: edit("mlp", jnp.tanh(x @ params["up"]) @ params["down"]))
            x = x + mlp(x)  # position by position
            return x @ params["table"].T

        return jax.vmap(one)(tokens)

    other = sites.problem(single, params(), pairs())
    assert other.sites == task().sites
    np.testing.assert_allclose(sites.effects(other), sites.effects(task()), atol=1e-5)
    np.testing.assert_allclose(sites.attribution(other), sites.attribution(task()), atol=1e-4)


def test_faithfulness_goes_from_nothing_to_the_model_along_the_scores():
    exact = sites.effects(task(split=True))
    result = sites.faithfulness(task(split=True), exact)
    for curve, order in ((result.signed, np.argsort(exact)), (result.absolute, np.argsort(-abs(exact)))):
        assert curve.edges == tuple(range(9)) and curve.percents[-1] == 100
        kept = np.zeros((9, 8), bool)
        for i in range(9):
            kept[i, order[:i]] = True
        np.testing.assert_array_equal(curve.values, sites.metric_values(task(split=True), kept))
        np.testing.assert_allclose(curve.faithfulness()[[0, -1]], [0, 1], atol=1e-6)
    cpr, cmd = result.estimates(draws=50)
    assert cpr.value == result.cpr() and cmd.value == result.cmd() and cpr.n == 3
    assert cpr.low <= cpr.value <= cpr.high and cmd.has_interval
    three = sites.faithfulness(task(split=True), exact, percents=(0, 50, 100))
    assert three.signed.edges == (0, 4, 8)


def test_classes_are_answers_of_a_model_that_gives_one_row_a_prompt():
    def classifier(params, tokens, edit):
        real = (tokens != 9)[..., None]
        x = edit("embed", params["table"][tokens] * real)
        return edit("pooled", x.sum(1) / real.sum(1)) @ params["down"].T

    p = PromptPairs.from_ids([[1, 2, 3], [4]], [[1, 5, 3], [6]], [[0], [1]], [[1], [0]], name="sentiment")
    two = sites.problem(classifier, params(), p, pad=9, ablation="mean", split={"embed": 1})
    mean = np.mean([params()["table"][[1, 5, 3]].mean(0), params()["table"][6]], axis=0)
    by_class = mean @ params()["down"].T
    np.testing.assert_allclose(sites.metric_values(two, np.array([[True] * 3 + [False]]))[0],
                               [by_class[0] - by_class[1], by_class[1] - by_class[0]], atol=1e-5)


def in_a_loop(params, tokens, edit):
    x, _ = jax.lax.scan(lambda x, _: (edit("looped", x), None), edit("embed", params["table"][tokens]), length=2)
    return edit("named twice", x) @ params["table"].T


def twice(params, tokens, edit):
    return edit("x", edit("x", params["table"][tokens])) @ params["table"].T


def of_integers(params, tokens, edit):
    return params["table"][edit("tokens", tokens)] @ params["table"].T


@pytest.mark.parametrize(("function", "options", "message"), [
    (model, {"sites": ["mpl"]}, "no site fits 'mpl'; nearest: 'mlp' and"),
    (model, {"sites": "mlp"}, "sites='mlp' is one text; give a list"),
    (model, {"split": {"heads": 4}}, "'heads' of shape [n, 5, 2, 3] has no axes (4,) to cut; choose among 1 .. 3"),
    (model, {"split": {"head": 1}}, "split: no chosen site fits 'head'; nearest: 'heads'"),
    (model, {"ablation": "none"}, "ablation='none' is unknown; choose among resample"),
    (model, {"batch_size": 0}, "batch_size=0 must be at least 1"),
    (in_a_loop, {"sites": ["looped"]}, "'looped' cannot be a site: it lies inside a loop, jax.checkpoint or jax.jit"),
    (twice, {}, "calls edit('x', ...) twice"),
    (of_integers, {}, "names no activation that can be a site; 'tokens': it is of int32"),
    (lambda p, t, edit: edit("x", p["table"][t])[:, 0, 0], {}, "the model gives float32[97]; it must give"),
    (lambda p, t, edit: (edit("x", p["table"][t]),), {}, "the model gives tuple; it must give"),
], ids=lambda x: "" if isinstance(x, str) else getattr(x, "__name__", None) or "-".join(x))
def test_what_cannot_be_asked_is_refused(function, options, message):
    with pytest.raises(ConfigError) as error:
        sites.problem(function, params(), pairs(), **options)
    assert message in str(error.value)


def test_a_site_in_a_loop_is_left_out_where_none_is_asked_for():
    assert sites.problem(in_a_loop, params(), pairs()).nodes == ("embed", "named twice")


def test_wrong_arguments_of_measures_are_refused():
    for call, message in (
            (lambda: sites.effects(toy_circuits.problem()), "takes a SiteProblem, not Problem"),
            (lambda: sites.effects(task(), nodes=["embedd"]), "no node is called 'embedd'; nearest: 'embed'"),
            (lambda: sites.attribution(task("kl")), "metric='kl' needs steps"),
            (lambda: sites.attribution(task(), steps=0), "steps=0 must be at least 1"),
            (lambda: sites.attribution(task(), steps=2, through="emb"), "through='emb' is none of the problem's sites"),
            (lambda: sites.attribution(task(), through="embed"), "through='embed' needs steps"),
            (lambda: sites.problem(Unhashable(), params(), pairs()), "of type Unhashable, cannot be hashed"),
            (lambda: sites.faithfulness(task(), np.zeros(3), percents=(5, 1)), "must ascend"),
            (lambda: sites.SiteReader(model, ("mpl",))(params(), jnp.zeros((1, 2), int)), "no site is called 'mpl'")):
        with pytest.raises(ConfigError, match=message):
            call()
    for call, message in (
            (lambda: sites.metric_values(task(), np.ones((1, 2), bool)), r"give bool \[circuits, 3\]"),
            (lambda: sites.faithfulness(task(), np.array([1.0, np.nan, 2.0])), "1 values that are no number"),
            (lambda: sites.problem(model, params(), other_answers()), "answer 99 is beyond the model's 11")):
        with pytest.raises(DataError, match=message):
            call()


class Unhashable:
    __hash__ = None

    def __call__(self, params, tokens, edit):
        return model(params, tokens, edit)


def other_answers():
    return PromptPairs.from_ids([[1]], [[2]], [[99]], [[3]], name="other")


def test_values_that_are_not_finite_are_named():
    broken = params() | {"down": params()["down"] * np.nan}
    with pytest.raises(DataError, match="mlp of the model are NaN or infinite on prompts of 'toy'"):
        sites.attribution(sites.problem(model, broken, pairs()))
    masked = params() | {"table": np.full((V, D), np.inf, np.float32)}
    with pytest.raises(DataError, match="embed of the model"):
        sites.effects(sites.problem(model, masked, pairs()))

    def flat(params, tokens, edit):
        x = edit("embed", params["table"][tokens] * 0)
        return jnp.sqrt(jnp.sum(x**2, axis=-1, keepdims=True)) + x @ params["table"].T

    with pytest.raises(DataError, match="the derivative with respect to embed is NaN"):
        sites.attribution(sites.problem(flat, params(), pairs()))

    def by_size(params, tokens, edit):
        return edit("x", params["table"][tokens][:, : 4 if len(tokens) > 9 else None]).sum(1) @ params["table"].T

    with pytest.raises(ConfigError, match=r"site 'x' has shape \(3, 5, 6\) on 3 prompts, but \[4, 6\] a prompt"):
        sites.effects(sites.problem(by_size, params(), pairs()))


class Net(nn.Module):
    """A module that knows nothing of this package: a submodule called twice, one with two outputs, one in remat."""

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(V, D, name="embed")
        x = embed(tokens)
        block = Block(name="block")
        x, _ = block(x)
        x, _ = block(x)
        x = x + nn.remat(nn.Dense)(D, name="saved")(x)
        return embed.attend(nn.LayerNorm(name="norm")(x))


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = x + nn.Dense(D, name="out")(jnp.tanh(nn.Dense(8, name="up")(x)))
        return x, x.mean(-1)


@functools.cache
def net():
    module = Net()
    return module, module.init(jax.random.key(0), jnp.zeros((1, 2), int))


def test_a_linen_module_is_a_model_by_the_outputs_of_its_submodules():
    module, variables = net()
    found, logits = sites.discover(from_linen(module), variables, T)
    names = [name for name, shape in found.items() if isinstance(shape, tuple)]
    assert names == ["embed", "block.up", "block.out", "block[0]", "block[1]", "block.up#2", "block.out#2",
                     "block#2[0]", "block#2[1]", "norm", "embed.attend"] and logits == V
    assert found["saved"].startswith("it lies inside a loop, jax.checkpoint")
    task = sites.problem(from_linen(module), variables["params"], pairs(), sites=["block.out*", "embed"],
                         ablation="zero")
    assert sites.problem(from_linen(module), variables, pairs(), sites=["block#2[0]"]).nodes == ("block#2[0]",)
    without = jax.tree.map(lambda x: x, variables)
    without["params"]["block"]["out"] = jax.tree.map(jnp.zeros_like, variables["params"]["block"]["out"])
    kept = np.array([[True, False, False], [True, True, True]])
    values = sites.metric_values(task, kept)
    for row, weights in zip(values, (without, variables), strict=True):
        for i, n in enumerate(pairs().lengths):
            last = np.asarray(module.apply(weights, unpadded(i)))[0, n - 1]
            answers, wrong = (x[i][x[i] >= 0] for x in (pairs().answers, pairs().wrong_answers))
            assert row[i] == pytest.approx(last[answers].mean() - last[wrong].mean(), abs=1e-5)


def test_inputs_of_linen_modules_are_sites_on_demand():
    module, variables = net()
    task = sites.problem(from_linen(module, inputs=True), variables, pairs(), sites=["norm.input", "norm"],
                         ablation="zero")
    zeroed = sites.metric_values(task, np.array([[False, True]]))  # then the norm gives its bias, zeros
    np.testing.assert_allclose(zeroed, 0, atol=1e-6)
    found, _ = sites.discover(from_linen(module, inputs=True), variables, T)
    assert "embed.attend.input" in found and "embed.input" not in found  # of integers


def test_a_reader_gives_activations_by_name():
    seen = jax.jit(sites.SiteReader(model, ("mlp", "embed")))(params(), unpadded(0))
    assert list(seen) == ["embed", "mlp"]  # jit sorts
    np.testing.assert_allclose(seen["mlp"], read(0)["mlp"], atol=1e-5)
