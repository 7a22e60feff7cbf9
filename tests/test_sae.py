"""Sparse autoencoders: formulas by hand, gradients against automatic ones, training, resuming."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxablate import features
from jaxablate.config import MeshConfig
from jaxablate.errors import ConfigError, DataError
from jaxablate.features import AutoencoderConfig, SaeRun, SaeTrainConfig, SparseAutoencoder, train
from jaxablate.features import step as steps
from jaxablate.features.sae import batch_threshold
from jaxablate.features.training import sites_of
from jaxablate.sharding import make_mesh


def small(**changes) -> AutoencoderConfig:
    return AutoencoderConfig(**{"d_in": 6, "d_sae": 12, "k": 3, **changes})


def normal(seed, *shape):
    """The same normal numbers at every call."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def drawn(config) -> SparseAutoencoder:
    """Weights as at the start, made without compiling anything."""
    decoder = normal(0, config.d_sae, config.d_in)
    unit = decoder / np.linalg.norm(decoder, axis=1, keepdims=True)
    return SparseAutoencoder(
        W_enc=decoder.T, b_enc=np.zeros(config.d_sae, np.float32), W_dec=unit if config.decoder == "unit" else decoder,
        b_dec=np.zeros(config.d_in, np.float32), threshold=np.zeros(config.d_sae, np.float32), config=config)


def hand(threshold=0.0, **changes) -> SparseAutoencoder:
    """Pre-activations of HAND_X are [[1, 3, 1.5], [-1, -1, 1.5]]."""
    return SparseAutoencoder(
        W_enc=jnp.array([[1.0, 0.0, -1.0], [0.0, 2.0, 1.0]]), b_enc=jnp.array([0.0, -1.0, 0.5]),
        W_dec=jnp.array([[3.0, 4.0], [0.0, 1.0], [1.0, 0.0]]), b_dec=jnp.array([0.5, -0.5]),
        threshold=jnp.asarray(np.full(3, threshold, np.float32)),
        config=AutoencoderConfig(**{"d_in": 2, "d_sae": 3, "k": 1, **changes}),
    )


HAND_X = jnp.array([[1.0, 2.0], [-1.0, 0.0]])


def test_latents_by_hand(unchecked_types):
    """The plain kind as it is called by hand, the others in one program."""
    np.testing.assert_allclose(hand().encode(HAND_X), [[1, 3, 1.5], [0, 0, 1.5]])
    topk, batchtopk, centred = jax.jit(lambda topk, batchtopk, centred, x: (
        topk.encode(x), batchtopk.encode(x), centred.pre_activations(x)))(
        hand(architecture="topk"), hand(1.5, architecture="batchtopk"), hand(center=True), HAND_X)
    np.testing.assert_allclose(topk, [[0, 3, 0], [0, 0, 1.5]])
    np.testing.assert_allclose(batchtopk, [[0, 3, 0], [0, 0, 0]])
    np.testing.assert_allclose(centred[0], [0.5, 4.0, 2.5])
    np.testing.assert_allclose(hand().decode(jnp.array([1.0, 0.0, 2.0])), [5.5, 3.5])
    np.testing.assert_allclose(np.asarray(hand()(HAND_X))[0], [5.0, 6.5])
    with pytest.raises(ConfigError, match=r"activations have shape \(3,\); this autoencoder takes \[..., 2\]"):
        hand().encode(np.zeros(3, np.float32))


def test_losses_by_hand():
    loss, weighted = jax.jit(lambda *saes: [features.losses(sae, HAND_X, 2.0) for sae in saes])(
        hand(), hand(decoder="free"))
    # y = [[5, 6.5], [2, -0.5]], errors [[4, 4.5], [3, -0.5]]; latents sum to 5.5 and 1.5
    np.testing.assert_allclose(loss.mse, (16 + 20.25 + 9 + 0.25) / 2)
    np.testing.assert_allclose(loss.l1, 2 * (5.5 + 1.5) / 2)
    np.testing.assert_allclose(loss.total, np.asarray(loss.mse) + np.asarray(loss.l1))
    np.testing.assert_allclose(weighted.l1, 2 * (1 * 5 + 3 + 1.5 + 1.5) / 2)  # the first decoder vector has norm 5


def test_batch_threshold_is_the_smallest_kept():
    pre, values = np.array([[3.0, -2.0, 0.5], [0.25, 7.0, 0.0]], np.float32), normal(0, 40, 8)
    few, none, many = jax.jit(lambda pre, values: (
        [batch_threshold(pre, n) for n in (1, 2, 3, 4, 6)], batch_threshold(-abs(pre), 2),
        batch_threshold(values, 50)))(pre, values)
    assert [x.item() for x in few] == [7.0, 3.0, 0.5, 0.25, 0.25]
    assert none.item() == 0 and many.item() == np.sort(values.ravel())[-50]


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "jumprelu"])
def test_latents_of_a_nan_are_nan(architecture):
    """Comparisons with NaN are false, so that a damaged activation was a silent one."""
    config, pre = small(architecture=architecture), normal(1, 8, 12)
    pre[2, 5] = np.nan

    @jax.jit
    def kinds(pre):
        used = config.kind.inference(pre, jnp.zeros(12), config)
        if config.kind.training is None:
            return [used]
        return [used, config.kind.training(pre, config.kind.cut(pre, config) if config.kind.cut else None, config)]

    for latents in kinds(pre):
        assert np.isnan(latents[2]).any() and np.isfinite(np.delete(latents, 2, axis=0)).all()


@pytest.mark.parametrize(("architecture", "active"), [("topk", [3] * 8), ("batchtopk", None)])
def test_training_latents_have_k_a_token(architecture, active):
    config, pre = small(architecture=architecture), normal(1, 8, 12) + 5  # all positive, so that k are active
    latents = np.asarray(jax.jit(lambda pre: config.kind.training(
        pre, config.kind.cut(pre, config) if config.kind.cut else None, config))(pre)) > 0
    assert latents.sum() == 24
    assert active is None or latents.sum(-1).tolist() == active


def test_folds_keep_the_function():
    sae = drawn(small(decoder="free", center=True))
    sae = sae.replace(b_enc=sae.b_enc + np.float32(0.3), b_dec=sae.b_dec - np.float32(0.2),
                      W_dec=sae.W_dec * np.arange(1, 13, dtype=np.float32)[:, None])

    @jax.jit
    def of(sae, x):
        same, scaled = sae.fold_decoder_norm(), sae.fold_scale(3.0)
        return (sae.encode(x), sae(x), same.W_dec, same(x), scaled.encode(x / 3), scaled(x / 3))

    latents, out, vectors, same, scaled_latents, scaled = map(np.asarray, of(sae, normal(1, 5, 6)))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(same, out, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(scaled_latents, latents, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(scaled * 3, out, rtol=1e-5, atol=1e-5)


CASES = [
    {}, {"center": True}, {"decoder": "free"}, {"decoder": "free", "center": True},
    {"architecture": "topk"}, {"architecture": "topk", "center": True},
    {"architecture": "batchtopk", "center": True, "k": 2.5},
]


def defined_loss(sae, x, l1, dead):
    """The loss of a whole batch as the papers write it; sorting in the place of this package's selections."""
    config = sae.config
    pre = (x - sae.b_dec if config.center else x) @ sae.W_enc + sae.b_enc
    if config.architecture == "topk":
        keep = pre >= jnp.sort(pre, axis=-1)[:, -int(config.k), None]
    elif config.architecture == "batchtopk":
        keep = pre >= jnp.sort(pre.ravel())[-int(config.k * len(x))]
    else:
        keep = True
    latents = jnp.where(keep, jax.nn.relu(pre), 0)
    out = latents @ sae.W_dec + sae.b_dec
    mse = jnp.mean(jnp.sum((x - out) ** 2, axis=-1))
    if config.architecture == "standard":
        weights = jnp.linalg.norm(sae.W_dec, axis=1) if config.decoder == "free" else jnp.ones(len(sae.b_enc))
        return mse + l1 * jnp.mean(jnp.sum(latents * weights, axis=-1))
    most = config.d_in // 2
    alive = jnp.where(dead, pre, -jnp.inf)
    revived = jnp.where(alive >= jnp.sort(alive, axis=-1)[:, -most, None], jax.nn.relu(alive), 0) @ sae.W_dec
    share = jnp.minimum(jnp.sum(dead) / most, 1)
    return mse + config.auxiliary * share * jnp.mean(jnp.sum((jax.lax.stop_gradient(x - out) - revived) ** 2, axis=-1))


DEAD = {"live": [], "dead": [1, 4, 7], "one": [2]}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradient_is_that_of_the_papers_loss(case):
    """With no, some and one dead latent; `losses` also where it is not told of any."""

    @jax.jit
    def both(sae, x, masks):
        def one(mask):
            return (jax.value_and_grad(lambda s: defined_loss(s, x, 0.7, mask))(sae),
                    (features.losses(sae, x, 0.7, mask).total, features.gradient(sae, x, 0.7, mask, chunk=2)))

        return jax.lax.map(one, masks), features.losses(sae, x, 0.7).total, features.gradient(sae, x, 0.7, chunk=2)

    with jax.enable_x64(True):
        sae = drawn(small(dtype="float64", **case))
        sae = jax.tree.map(np.float64, sae.replace(b_enc=0.1 * normal(1, 12), b_dec=normal(2, 6)))
        masks = np.array([np.isin(np.arange(12), dead) for dead in DEAD.values()])
        (expected, found), untold, gradient = jax.device_get(both(sae, np.float64(normal(3, 8, 6)), masks))
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-12)
    np.testing.assert_allclose(untold, expected[0][0], rtol=1e-12)
    for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold"):
        values, wanted = getattr(found[1], name), getattr(expected[1], name)
        for i, dead in enumerate(DEAD):
            np.testing.assert_allclose(values[i], wanted[i], rtol=1e-10, atol=1e-12, err_msg=f"{dead} {name}")
        np.testing.assert_allclose(getattr(gradient, name), wanted[0], rtol=1e-10, atol=1e-12, err_msg=name)


def test_schedules_by_hand():
    settings = SaeTrainConfig(steps=20, learning_rate=2.0, warmup=0.1, decay=0.2, l1_warmup=0.2)
    at_once = SaeTrainConfig(steps=20, l1_warmup=0.0)
    rates, coefficients, first = jax.jit(jax.vmap(lambda step: (
        steps.learning_rate(step, settings), steps.l1_coefficient(step, 8.0, settings),
        steps.l1_coefficient(step, 8.0, at_once))))(np.array([0, 1, 2, 4, 16, 17, 19]))
    np.testing.assert_allclose(rates, [1.0, 2.0, 2.0, 2.0, 2.0, 1.5, 0.5])
    np.testing.assert_allclose(coefficients, [0.0, 2.0, 4.0, 8.0, 8.0, 8.0, 8.0])
    np.testing.assert_array_equal(first, np.full(7, 8.0))


def test_projected_gradient_is_tangent():
    """The first Adam step goes by the sign of the projected gradient, which has no part along the decoder's vectors."""
    settings = SaeTrainConfig(steps=10, beta1=0.5, l1_warmup=0.0)

    def first_step(x, config):
        state = steps.init_state(jax.random.key(0), config, settings)
        after, metrics = steps.train_step(state, x, jnp.asarray(0), jnp.asarray(1.0), settings)
        return jnp.sum(after.first.W_dec * state.sae.W_dec, axis=-1), metrics.grad_norm

    (along, norm), (free, _) = jax.jit(lambda x: [first_step(x, small(project_gradient=p)) for p in (True, False)])(
        normal(1, 16, 6))
    np.testing.assert_allclose(along, 0, atol=1e-7)
    assert norm > 1
    assert np.abs(free).max() > 1e-3


def test_a_fresh_state_can_be_donated():
    settings = SaeTrainConfig(steps=10, beta1=0.5)
    state = steps.init_state(jax.random.key(0), small(), settings)
    move = jax.jit(lambda s: jax.tree.map(lambda a: a + 1, s), donate_argnums=0)
    assert move(state).since_fired.tolist() == [1] * 12


def test_dead_latents_are_counted_and_revived():
    config = small(architecture="topk", auxiliary=1.0)
    settings = SaeTrainConfig(steps=10, dead_steps=1, learning_rate=0.1)

    @jax.jit
    def stepped(x):
        state = steps.init_state(jax.random.key(0), config, settings)
        state = state.replace(since_fired=jnp.full(12, 5, jnp.int32), sae=state.sae.replace(
            b_enc=jnp.where(jnp.arange(12) < 3, 50.0, 1.0)))
        return steps.train_step(state, x, jnp.asarray(0), jnp.asarray(0.0), settings)

    after, metrics = jax.device_get(stepped(normal(1, 16, 6)))
    assert after.since_fired.tolist() == [0] * 3 + [6] * 9 and metrics.dead == 9
    assert metrics.auxiliary > 0
    np.testing.assert_allclose(metrics.loss, metrics.mse + metrics.auxiliary, rtol=1e-6)


# --- training ---

SITES = ("a", "b")
DATA = SaeTrainConfig(steps=10, batch_tokens=16, buffer_batches=8, learning_rate=1e-2, dead_steps=3, seed=5)
RUNS = (SaeRun("a", l1=1.0, seed=0), SaeRun("b", l1=0.5, seed=1), SaeRun("a", l1=0.1, seed=0))


def activations(params, tokens):
    """Two sites of width 6: fixed random features of each token, one of them ten times the size of the other."""
    return jnp.stack([params[tokens], 10 * params[::-1][tokens]], axis=2)


@functools.cache
def table():
    return np.asarray(jax.random.normal(jax.random.key(9), (11, 6))) + np.float32(0.5)


def tokens(start, end=10**6):
    for i in range(start, end):
        yield np.random.default_rng(i).integers(0, 11, (4, 8))


def trained(runs=RUNS, settings=DATA, **options):
    return train(activations, table(), tokens, runs, small(), settings, **options)


def test_training_reports_and_learns():
    seen = []
    settings = dataclasses.replace(DATA, steps=200)
    done = trained(settings=settings, progress=lambda state, metrics: seen.append((int(state.step), metrics)))
    assert [step for step, _ in seen][:2] == [4, 8] and seen[-1][0] == 200
    assert seen[0][1].loss.shape == (4, 3)
    assert (seen[-1][1].mse[-1] < 0.7 * seen[0][1].mse[0]).all()
    assert seen[-1][1].l0[-1, 0] < seen[-1][1].l0[-1, 2]  # a larger coefficient, fewer latents
    for sae, scale in zip(done.autoencoders, done.scales, strict=True):
        np.testing.assert_allclose(np.linalg.norm(sae.W_dec, axis=1), 1 / scale, rtol=1e-5)
    assert done.scales[0] == done.scales[2] == pytest.approx(10 * done.scales[1], rel=0.5)


def test_a_negative_explained_variance_is_warned_of():
    slow = dataclasses.replace(DATA, steps=8, learning_rate=1e-9)
    with pytest.warns(UserWarning, match="explains less than .* learning rate of 1e-09") as said:
        trained(settings=slow)
    assert any("at b (L1 0.5, seed 1)" in str(x.message) for x in said)


@pytest.fixture(scope="module")
def whole():
    """All runs to the end, without a stop."""
    return trained()


def test_a_run_is_the_same_whatever_else_is_trained(whole):
    others = trained(runs=(RUNS[0], SaeRun("a", l1=0.2, seed=0), RUNS[1]))
    for i, place in ((0, 0), (1, 2)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
                     whole.autoencoders[i], others.autoencoders[place])


def test_the_devices_of_a_mesh_make_the_same_numbers_together(whole):
    mesh = make_mesh(MeshConfig(data=4))
    shared = trained(mesh=mesh)
    assert shared.state.buffer.sharding.shard_shape(shared.state.buffer.shape)[0] == DATA.buffer_batches * 16 // 4
    for got, expected in zip(shared.autoencoders, whole.autoencoders, strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, expected)
    with pytest.raises(ConfigError, match="16 rows .batch_tokens. must be a multiple of 3"):
        trained(mesh=make_mesh(MeshConfig(data=3)))


@pytest.mark.parametrize("rounds", [1, 2])
def test_a_stopped_run_goes_on_to_the_same_numbers(whole, rounds):
    count = iter(range(100))
    part = trained(stop=lambda: next(count) == rounds - 1)
    assert int(part.state.step) == 4 * rounds
    assert int(part.state.batches) == (rounds + 1) * 2  # half a buffer is 64 tokens, a token batch 32
    saved = jax.tree.map(jnp.asarray, jax.device_get(part.state))
    rest = trained(state=saved)
    jax.tree.map(np.testing.assert_array_equal, rest.state, whole.state)
    jax.tree.map(np.testing.assert_array_equal, rest.autoencoders, whole.autoencoders)


def test_every_buffered_activation_is_one_of_the_model(whole):
    state = whole.state
    rows = np.asarray(state.buffer)
    assert rows.shape == (128, 2, 6) and sites_of(RUNS) == SITES
    distance = np.abs(rows[:, 0, None] - np.asarray(table())).max(-1).min(-1)
    np.testing.assert_allclose(distance, 0, atol=1e-6)


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (DataError, "the data ended after 5 batches; 10 steps of 16 tokens take 256 tokens",
         {"tokens": lambda start: tokens(start, 5)}),
        (DataError, "activations at b are NaN or infinite for token batches before number 2",
         {"params": np.full((11, 6), 1e38, np.float32)}),
        (DataError, "activations at a, b are all zero", {"params": np.zeros((11, 6), np.float32)}),
        (ConfigError, r"have shape \(4, 8, 2, 6\), not \[W, T, sites, D\] = \(4, 8, 2, 7\)",
         {"config": AutoencoderConfig(d_in=7, d_sae=12)}),
        (ConfigError, r"\(4, 8\) does not divide half the buffer, 48 tokens",
         {"settings": dataclasses.replace(DATA, buffer_batches=6)}),
        (ConfigError, "architecture='jumprelu' can be used but not trained",
         {"config": small(architecture="jumprelu")}),
        (ConfigError, "normalize='layer_norm' can be used but not trained; normalise the vectors first",
         {"config": small(normalize="layer_norm")}),
        (ConfigError, "no runs to train", {"runs": ()}),
    ],
)
def test_what_cannot_be_trained_is_said(error, message, options):
    given = {"params": table(), "tokens": tokens, "runs": RUNS, "config": small(), "settings": DATA} | options
    with pytest.raises(error, match=message) as caught:
        train(activations, *given.values())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("message", "make"),
    [
        ("k=12 must be above 0 and below d_sae=12", lambda: small(architecture="topk", k=12)),
        ("k=2.5 of topk must be whole", lambda: small(architecture="topk", k=2.5)),
        ("decay=2 must be a fraction", lambda: SaeTrainConfig(decay=2)),
        ("buffer_batches=3 must be even", lambda: SaeTrainConfig(buffer_batches=3)),
        ("l1=-1 must be a number of at least 0", lambda: SaeRun("a", l1=-1)),
    ],
)
def test_settings_out_of_range(message, make):
    with pytest.raises(ConfigError, match=message):
        make()


# --- architectures and arrays of one's own ---


@pytest.fixture
def halved():
    """A registered architecture: half of every positive pre-activation, with an L1 penalty."""
    own = features.Architecture(
        name="halved", penalty=lambda latents, weights: latents @ weights,
        inference=lambda pre, threshold, config: jax.nn.relu(pre) / 2,
        training=lambda pre, cut, config: jax.nn.relu(pre) / 2)
    yield features.ARCHITECTURES.register(own)
    del features.ARCHITECTURES._parts["halved"]


def test_an_architecture_of_ones_own_trains_and_is_stored(halved, tmp_path):
    config = small(architecture="halved")
    done = train(activations, table(), tokens, RUNS, config, dataclasses.replace(DATA, steps=8))
    sae = done.autoencoders[0]
    np.testing.assert_allclose(sae.encode(np.zeros(6, np.float32)), np.maximum(sae.b_enc, 0) / 2)
    assert halved.label(config, 5.0) == "halved L1 5"
    features.save(tmp_path, sae, "a")
    assert features.load(tmp_path).sae.config == config
    with pytest.raises(ConfigError, match=r"unknown autoencoder architecture 'halve'; did you mean 'halved'\?"):
        small(architecture="halve")


def sparse_vectors(rows=600):
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(12, 6))
    return ((rng.random((rows, 12)) < 0.1) * rng.random((rows, 12)) @ directions).astype(np.float32)


PACE = {"steps": 304, "batch_tokens": 32, "l1": 0.5}  # whole rounds of 8 steps: one program


def test_fit_takes_arrays_and_whatever_yields_them():
    x = sparse_vectors()
    steps = []
    fitted = features.fit(x, progress=lambda step, metrics: steps.append(step), **PACE)
    assert fitted.config.d_sae == 96 and fitted.settings.rate == 3e-3 and steps[-1] == 304
    assert fitted.history.loss.shape == (304,) and fitted.history.mse[-30:].mean() < 0.5 * fitted.history.mse[:5].mean()
    assert 0.5 < fitted.explained_variance < 1 and 0 < fitted.l0 < 40
    whole = features.reconstruction(fitted.autoencoder, x)
    assert whole.explained_variance == pytest.approx(fitted.explained_variance, abs=0.1)
    latents, out = map(np.asarray, jax.jit(lambda sae, x: (sae.encode(x), sae(x)))(fitted.autoencoder, x))
    expected = 1 - ((x - out) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()
    assert whole.explained_variance == pytest.approx(expected, abs=1e-5)
    assert whole.l0 == pytest.approx(float((latents > 0).sum(-1).mean()), rel=1e-5)
    same = features.fit(jnp.asarray(x), **PACE)
    jax.tree.map(np.testing.assert_array_equal, same.autoencoder, fitted.autoencoder)
    parts = [x[:250], x[250:251], x[251:]]
    jax.tree.map(np.testing.assert_array_equal, features.fit(lambda: iter(parts), **PACE).autoencoder,
                 features.fit(parts, **PACE).autoencoder)


def test_what_cannot_be_fitted(unchecked_types):
    with pytest.raises(DataError, match="the data ended after"):
        features.fit(iter([sparse_vectors()]), **PACE)
    with pytest.raises(ConfigError, match=r"shape \(2, 300, 6\) and type float32; give floats \[n, d\]"):
        features.fit(sparse_vectors().reshape(2, 300, 6))
    with pytest.raises(ConfigError, match="not \\[W, T, sites, D\\]"):
        features.fit(sparse_vectors(), small(d_in=7), **PACE)
    with pytest.raises(DataError, match="the activations end before"):
        features.fit([], **PACE)
    with pytest.raises(ConfigError, match="preset='quik' must be quick or paper"):
        features.fit(sparse_vectors(), preset="quik")


def test_the_learning_rate_follows_the_number_of_steps():
    assert [SaeTrainConfig(steps=n).rate for n in (100_000, 1000, 10)] == [1e-5, 1e-3, 3e-3]
