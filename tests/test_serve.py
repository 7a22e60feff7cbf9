"""`jaxablate serve` as a browser meets it: a real server on this machine, asked over HTTP."""

import http.client
import json
import threading
from urllib.parse import quote

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxablate.circuits.nodes import node_means, without
from jaxablate.commands import serve
from jaxablate.commands.live import LiveRun, LiveRuns
from jaxablate.errors import ConfigError, DataError
from jaxablate.neurons.units import decoder_output
from jaxablate.reports.packed import Packed, unpack
from jaxablate.runs.run import open_run
from tests.helpers.runs import copy_run

TOKEN = "a-token"
TEXT = "Once upon a time, there was a little girl named Lily."


@pytest.fixture(scope="module")
def runs(language_run, tmp_path_factory):
    return LiveRuns([language_run, copy_run(language_run, tmp_path_factory.mktemp("other") / "copied")])


@pytest.fixture(scope="module")
def ask(runs):
    """(method, path, body, headers) -> (status, headers, text) of a server of the runs; the path has the token."""
    pytest.importorskip("starlette", reason="the extra serve is not installed")
    uvicorn = pytest.importorskip("uvicorn", reason="the extra serve is not installed")
    with serve._listening(0) as listener:
        server = uvicorn.Server(uvicorn.Config(serve.application(runs, TOKEN), log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()

        def answer(method, path, body=None, token=TOKEN, **headers):
            connection = http.client.HTTPConnection(*listener.getsockname(), timeout=60)
            mark = "&" if "?" in path else "?"
            connection.request(method, path + (f"{mark}token={quote(token)}" if token is not None else ""),
                               body=body, headers=headers)
            got = connection.getresponse()
            text = got.read().decode()
            connection.close()
            return got.status, got.headers, text

        yield answer
        server.should_exit = True
        thread.join()


def read_text(ask, **asked):
    status, _, text = ask("POST", "/read", json.dumps({"run": "language", "text": TEXT} | asked))
    return status, json.loads(text) if status == 200 else text


def test_only_who_has_the_token_is_answered(ask):
    for token in (None, "", "another", TOKEN[:-1], TOKEN + "x", "ü"):
        for method, path in (("GET", "/"), ("GET", "/state"), ("GET", "/x/blobs/0"), ("POST", "/read"),
                             ("GET", "/nothing")):
            status, headers, text = ask(method, path, token=token)
            assert status == 403 and TOKEN not in text and headers["Cache-Control"] == "no-store"
    assert ask("GET", "/", Host="attacker.example:80")[0] == 403  # another site's name for this machine
    assert ask("GET", "/nothing")[0] == 404


def test_the_page_gets_its_data_from_the_program(ask, runs):
    status, headers, page = ask("GET", "/")
    assert status == 200 and headers["Referrer-Policy"] == "no-referrer" and headers["X-Frame-Options"] == "DENY"
    text = page.split('<script type="application/json" id="manifest">')[1].split("</script>")[0]
    manifest = json.loads(text)
    assert [run["name"] for run in manifest["runs"]] == ["language", "copied"] and 'id="blob-0"' not in page
    status, _, results = ask("GET", f"/{manifest['live']}/blobs/{manifest['runs'][0]['results']}")
    assert status == 200 and json.loads(results)["step"] == 6 and json.loads(results)["suites"] == {}
    assert ask("GET", f"/{manifest['live']}/blobs/99")[0] == 410
    assert ask("GET", "/older/blobs/0")[0] == 410


def test_curves_grow_from_where_the_page_has_them(ask, language_run):
    every = json.loads(ask("GET", "/state")[2])["language"]
    assert every["lines"] == len(every["log"]) > 6 and every["checkpoint"] == 6 and every["scored"] == 0
    after = quote(json.dumps({"language": every["lines"]}))
    assert json.loads(ask("GET", f"/state?after={after}")[2])["language"]["log"] == []
    with (language_run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "split": "train", "loss": 0.5}\n')
    grown = json.loads(ask("GET", f"/state?after={after}")[2])["language"]
    assert grown["log"] == [{"step": 7, "split": "train", "loss": 0.5}] and grown["from"] == every["lines"]
    shrunk = quote(json.dumps({"language": 10**6}))  # the run began anew
    assert json.loads(ask("GET", f"/state?after={shrunk}")[2])["language"]["from"] == 0
    assert ask("GET", "/state?after=nonsense")[0] == 400


def test_a_typed_text_is_read_by_the_model(ask, language_run):
    status, found = read_text(ask)
    assert status == 200 and found["step"] == 6
    words = [found["vocabulary"]["strings"][i] for i in unpack(Packed(**found["texts"][0]["tokens"]))]
    assert "".join(words) == TEXT
    run = open_run(language_run)
    ids = run.tokenizer.encode(TEXT)
    logits = decoder_output(run.model, run.params, jnp.array([ids])).logits_clean[0]
    expected = -jax.nn.log_softmax(logits)[np.arange(len(ids) - 1), np.array(ids[1:])]
    np.testing.assert_allclose(unpack(Packed(**found["texts"][0]["loss"]["clean"]))[1:], expected, rtol=1e-4)


def test_nodes_can_be_switched_off(ask):
    (_, whole), (_, zero), (_, mean) = (read_text(ask, **x) for x in (
        {}, {"off": ["A0.1", "MLP 1"], "replaced_by": "zero"}, {"off": ["A0.1", "MLP 1"]}))
    losses = [unpack(Packed(**x["texts"][0]["loss"]["clean"]))[1:] for x in (whole, zero, mean)]
    assert all(np.abs(losses[i] - losses[j]).max() > 1e-4 for i, j in ((0, 1), (0, 2), (1, 2)))
    assert "A0.1, MLP 1" in mean["texts"][0]["about"]


@pytest.mark.parametrize(("asked", "status", "words"), [
    ({"text": "one"}, 400, "is not among"), ({"text": ""}, 400, "0 tokens"), ({"text": " the" * 40}, 400, "40 tokens"),
    ({"run": "other"}, 400, "no run 'other'"), ({"off": ["A9.0"]}, 400, "no node 'A9.0'"),
    ({"more": 1}, 400, "unknown field"), ({"text": "x" * (1 << 17)}, 413, "65,536"),
])
def test_what_cannot_be_read_is_said_in_a_line(ask, asked, status, words):
    got, text = read_text(ask, **asked)
    assert got == status and words in text and "\n" not in text


def test_a_node_that_is_off_puts_out_zeros_or_its_mean(language_run):
    run = open_run(language_run)
    config, tokens = run.model.config, jnp.array([run.tokenizer.encode(TEXT)])
    means = node_means(run.model, run.params, run.splits["valid"].batches())
    for by in (None, means):
        params = without(config, run.params, ["A0.1", "A1.0", "MLP 1"], by)
        out = decoder_output(run.model, params, tokens)
        kernel = np.asarray(run.params["layer_0"]["attention"]["out"]["kernel"])
        bias = np.asarray(run.params["layer_0"]["attention"]["out"]["bias"])
        for stream in (out.layers[0].clean, out.layers[0].ablated):
            heads = np.array(stream.head_out)[0].copy()
            if stream is out.layers[0].ablated:
                heads *= np.asarray(out.layers[0].attention_gates)[0].reshape(heads.shape)
            heads[:, 1] = 0 if by is None else means["head_out"][0].reshape(2, -1)[1]
            expected = np.einsum("tnh,nhd->td", heads, kernel) + bias
            np.testing.assert_allclose(np.asarray(stream.resid_mid - stream.resid_pre)[0], expected, atol=1e-5)
        mlp = np.asarray(out.layers[1].clean.resid_post - out.layers[1].clean.resid_mid)[0]
        np.testing.assert_allclose(mlp, np.broadcast_to(0 if by is None else means["mlp_out"][1], mlp.shape), atol=1e-5)
    assert run.params["layer_0"]["attention"]["out"]["kernel"][1].any()  # the run's own are as they were


def test_a_classifier_reads_typed_text_too(classifier_run):
    live = LiveRun(classifier_run)
    found = json.loads(live.read("a good new film", (), "mean"))
    (text,) = found["texts"]
    words = [found["vocabulary"]["strings"][i] for i in unpack(Packed(**text["tokens"]))]
    assert words == ["a", "good", "‹new›", "film"] and text["label"] is text["text"] is None
    run = open_run(classifier_run)
    tokens = jnp.array([run.tokenizer.encode("a good new film")])
    logits = run.model.apply({"params": run.params}, tokens, jnp.ones(tokens.shape)).logits[0]
    np.testing.assert_allclose(text["probabilities"]["clean"], jax.nn.softmax(logits), rtol=1e-5)
    for asked, words in ((("unheard of",), "none of the 2 words"), (("a " * 17,), "17 tokens, the model reads 16"),
                         (("a film", ("A0.0",)), "cannot be switched off")):
        with pytest.raises((ConfigError, DataError), match=words):
            live.read(*asked, *[(), "mean"][len(asked) - 1 :])


def test_a_newer_checkpoint_takes_the_place_of_an_older_one(language_run, tmp_path):
    workdir = copy_run(language_run, tmp_path / "growing")
    (workdir / "checkpoints" / "6").rename(tmp_path / "6")
    growing = LiveRun(workdir)
    assert json.loads(growing.read(TEXT, (), "mean"))["step"] == 4
    (tmp_path / "6").rename(workdir / "checkpoints" / "6")
    assert json.loads(growing.read(TEXT, (), "mean"))["step"] == 6


def test_settings_are_checked(language_run, tmp_path):
    for settings, words in (({"runs": ()}, "no run"), ({"runs": (language_run,), "port": 70000}, "port=70000")):
        with pytest.raises(ConfigError, match=words):
            serve.ServeSettings(**settings)
    with pytest.raises(ConfigError, match="same name"):
        LiveRuns([language_run, copy_run(language_run, tmp_path / "language")])
    with serve._listening(0) as listener, pytest.raises(ConfigError, match="cannot be taken"):
        serve._listening(listener.getsockname()[1])
