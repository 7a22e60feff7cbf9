"""The explorer in a real browser: Playwright drives the system's Chromium. Pictures are kept in ``screenshots/``.

Skipped where Playwright (the extra ``browser``) or Chromium is missing. The pages show the tiny runs that all tests
share, scored with few draws; `pages` names them.
"""

import contextlib
import importlib.util
import io
import json
import os
import pathlib
import shutil

import jax
import pytest
from helpers.commands import few_draws, run_command
from helpers.runs import copy_run, shared_folder, shared_run

from jaxablate import features
from jaxablate.reports.explorer import write_explorer
from jaxablate.runs.run import open_run

HERE = pathlib.Path(__file__).parent
SCREENSHOTS = HERE / "screenshots"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SUITES = {"language": ("perplexity", "ioi", "gates", "weights", "samples", "circuits", "neurons", "leakage", "texts",
                       "units"),
          "baseline": ("perplexity", "ioi", "weights", "neurons", "texts", "units")}
"""Suites that a page's runs are scored by; a classifier by all of its own."""


def pytest_collection_modifyitems(items):
    missing = None if importlib.util.find_spec("playwright") else "Playwright is missing: pip install -e '.[browser]'"
    missing = missing or (None if CHROMIUM else "Chromium is missing: apt-get install chromium")
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.browser)
            item.add_marker(pytest.mark.slow)
            if missing:
                item.add_marker(pytest.mark.skip(reason=missing))


@pytest.fixture(scope="session")
def pages(tmp_path_factory):
    """Explorers by name: ``language`` and ``classifier`` of one run each, ``compare`` of a gated run and a
    baseline, two seeds each. ``JAXABLATE_PAGES`` names a folder where the scored runs stay for the next time."""
    kept = os.environ.get("JAXABLATE_PAGES")
    folder = pathlib.Path(kept) if kept else tmp_path_factory.mktemp("pages")
    shared = shared_folder(tmp_path_factory.getbasetemp())
    with pytest.MonkeyPatch.context() as few, contextlib.redirect_stdout(io.StringIO()):
        few_draws(few)
        for kind in ("language", "baseline", "classifier"):
            if not (folder / kind / "results.json").exists():
                run = copy_run(shared_run(kind, shared), folder / kind)
                if kind == "language":
                    _with_latents_and_graphs(run)
                run_command("score", "--workdir", run, *(("--suites", *SUITES[kind]) if kind in SUITES else ()))
    for kind in ("language", "baseline"):
        if not (folder / f"{kind}-seed-1").exists():
            _another_seed(folder / kind, folder / f"{kind}-seed-1")
    found = {kind: write_explorer([folder / kind], folder / kind / "report.html")
             for kind in ("language", "classifier")}
    runs = [folder / name for name in ("language", "language-seed-1", "baseline", "baseline-seed-1")]
    found["compare"] = write_explorer(runs, folder / "compare.html")
    return found


def _with_latents_and_graphs(workdir):
    """Stores an autoencoder as it is drawn, and the index of graphs with one neuron's."""
    run = open_run(workdir)
    sae = features.sae.init(jax.random.key(0), features.AutoencoderConfig(d_in=16, d_sae=32))
    features.save(workdir / "autoencoders" / "drawn", sae, "clean.layer_0.mlp_out", model=run.model.config,
                  params=run.params)
    patterns = [{"tokens": [[5], [6, 7]], "strength": 0.9, "examples": 3},
                {"tokens": [[5], None, [8]], "strength": 0.6, "examples": 2}]
    index = {"format": "jaxablate neuron graphs", "version": 2, "layers": [{}, {}], "units": 64,
             "about": {"step": run.step, "params_digest": run.digest, "settings": {"units": "neurons"},
                       "provenance": {"revision": None, "date": "today"}},
             "neurons": [{"neuron": "1.3", "f1": 0.5, "precision": 0.6, "recall": 0.4, "patterns": patterns}]}
    folder = workdir / "neurons" / "graphs"
    folder.mkdir(parents=True)
    (folder / "index.json").write_text(json.dumps(index))


def _another_seed(run, to):
    """A copy of a run that passes for another seed of it, with slightly other figures."""
    shutil.copytree(run, to)
    path = to / "results.json"
    values = json.loads(path.read_text())
    values |= {"seed": 1, "params_digest": f"another {run.name}"}
    values["config"]["train"]["seed"] = 1
    for figure in (f for suite in values["suites"].values() for f in suite["figures"]):
        figure["estimate"] |= {k: figure["estimate"][k] * 1.02 for k in ("value", "low", "high")
                               if figure["estimate"][k] is not None}
    path.write_text(json.dumps(values))
    for attached in (to / "explorer").glob("*.json"):
        attached.write_text(json.dumps(json.loads(attached.read_text()) | {"params_digest": f"another {run.name}"}))


@pytest.fixture(scope="session")
def browser(pages):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def show(browser, pages):
    """``show("language", "#/units", width=360, dark=True)`` opens a page and waits until its view is there. Whatever
    the page says on its console, each error and each request to a network fails the test when it ends."""
    contexts, complaints = [], []

    def show(name, route="#/", *, width=1280, height=900, dark=False, path=None, first=""):
        context = browser.new_context(viewport={"width": width, "height": height}, accept_downloads=True,
                                      color_scheme="dark" if dark else "light", reduced_motion="reduce")
        contexts.append(context)
        page = context.new_page()
        page.add_init_script(first)
        page.on("console", lambda message: complaints.append(f"console {message.type}: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.on("request", lambda request: complaints.append(f"request: {request.url}") if request.url.startswith(
            ("http:", "https:", "ws:")) else None)
        page.goto(f"file://{path or pages[name]}{route}")
        page.wait_for_selector("main h1, main h2")
        page.wait_for_selector(".loading", state="detached")
        return page

    yield show
    for context in contexts:
        context.close()
    assert not complaints, complaints


def keep(page, name, *, full=True):
    """Keeps a picture of the page to be looked at."""
    SCREENSHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=full)


def too_wide(page):
    """Elements that stick out at the right of a page, unless a parent of theirs scrolls."""
    return page.evaluate("""() => {
      const width = document.documentElement.clientWidth;
      if (document.documentElement.scrollWidth <= width) return [];
      return [...document.querySelectorAll("body *")].filter((e) => e.getBoundingClientRect().right > width + 1)
        .map((e) => `${e.tagName}.${e.className} ${Math.round(e.getBoundingClientRect().right)}`).slice(0, 10);
    }""")


def axe_findings(page):
    """What axe finds serious or critical, one line each."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [f"{v['id']}: {v['help']} ({node['html'][:150]})" for v in found if v["impact"] in ("serious", "critical")
            for node in v["nodes"]]
