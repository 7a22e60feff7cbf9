"""`jaxablate serve` in a browser: curves that grow, typed text, nodes switched off."""

import contextlib
import json
import shutil
import threading

import pytest

from browser.conftest import axe_findings, keep, too_wide

pytest.importorskip("uvicorn", reason="the extra serve is not installed")
TEXT = "Once upon a time, there was a little girl named Lily."


@pytest.fixture(scope="module")
def served(pages, tmp_path_factory):
    """(address with its token, working directory) of a program that serves copies of the runs, the language model's
    first."""
    import uvicorn

    from jaxablate.commands import serve
    from jaxablate.commands.live import LiveRuns

    workdir = tmp_path_factory.mktemp("served") / "run"
    shutil.copytree(pages["language"].parent, workdir)
    shutil.copytree(pages["classifier"].parent, workdir.with_name("classes"))
    with contextlib.closing(serve._listening(0)) as listener:
        application = serve.application(LiveRuns([workdir, workdir.with_name("classes")]), "token")
        server = uvicorn.Server(uvicorn.Config(application, log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/?token=token", workdir
        server.should_exit = True
        thread.join()


@pytest.fixture
def page(browser, served):
    """A page of the program; what it says on its console fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    page, complaints = context.new_page(), []
    # The browser tells of every answer that is an error, also of one that the page shows.
    page.on("console", lambda message: complaints.append(message.text) if "400 (Bad Request)" not in message.text
            else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(served[0])
    page.wait_for_selector(".live-state")
    yield page
    context.close()
    assert not complaints, complaints


def go(page, served, route):
    page.goto(served[0] + route)
    page.wait_for_selector("main h1, main h2")
    page.wait_for_selector(".loading", state="detached")


def test_curves_grow_while_a_run_trains(page, served):
    assert "step 6 saved" in page.locator(".live-state").inner_text()
    page.locator("section:has(h2:text-is('Training')) summary", has_text="Numbers").first.click()
    with (served[1] / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 77, "split": "train", "loss_clean": 0.5}) + "\n")
    page.wait_for_selector(".live-state.growing", timeout=20_000)
    page.wait_for_selector("section:has(h2:text-is('Training')) td:text-is('77')")


def test_a_typed_text_is_shown_token_by_token(page, served):
    go(page, served, "#/text")
    page.get_by_label("A text of your own").fill(TEXT)
    page.keyboard.press("Enter")
    page.wait_for_selector(".tokens:has-text('Lily')", timeout=60_000)
    assert "read by the checkpoint of step 6" in page.locator("main").inner_text() and "typed=" in page.url
    assert page.locator(".tokens .token").count() == 13
    keep(page, "serve-text")
    page.get_by_label("A text of your own").fill("no such words")
    page.get_by_role("button", name="Read").click()
    page.wait_for_selector(".problem:has-text('is not among')")
    page.get_by_role("link", name="← stored texts").click()
    page.wait_for_selector(".chooser")


def test_a_typed_text_is_classified_word_by_word(page, served):
    go(page, served, "#/text?run=classes")
    page.get_by_label("A text of your own").fill("a good new film")
    page.keyboard.press("Enter")
    page.wait_for_selector(".tokens:has-text('‹new›')", timeout=60_000)
    text = page.locator("main").inner_text()
    assert "Typed, read by the checkpoint of step" in text and page.locator(".tokens .token").count() == 4
    keep(page, "serve-classes")
    assert not axe_findings(page)


def test_nodes_are_switched_off_and_on(page, served):
    go(page, served, "#/circuit?press=switch")
    page.wait_for_selector(".difference table", timeout=60_000)
    page.get_by_role("button", name="A1.0", exact=True).click()
    page.wait_for_selector(".difference th:has-text('switched off')", timeout=60_000)
    assert page.locator(".node.off").count() >= 1 and "off=A1.0" in page.url
    page.locator(".graph .node", has_text="MLP 0").first.click()
    page.wait_for_selector(".chip:has-text('MLP 0')")
    page.wait_for_selector(".difference.waits", state="detached", timeout=60_000)
    keep(page, "serve-circuit")
    page.get_by_role("button", name="switch A1.0 on").click()
    page.get_by_role("button", name="Switch all on").click()
    page.wait_for_selector(".chip", state="detached")
    assert "off=" not in page.url


def test_it_fits_narrow_windows_and_axe_finds_nothing_serious(page, served):
    # An answer that is asked for anew is paler until it is there.
    for route, there in (("#/text", ".typed"), (f"#/text?typed={TEXT.replace(' ', '%20')}&off=A0.0", ".switched-off"),
                         ("#/circuit?off=A0.0", ".difference:not(.waits) table")):
        go(page, served, route)
        page.wait_for_selector(there, timeout=60_000)
        for width in (360, 1280):
            page.set_viewport_size({"width": width, "height": 900})
            page.wait_for_timeout(200)
            assert not too_wide(page), (route, width)
        assert axe_findings(page) == [], route


def test_without_the_token_there_is_nothing(browser, served):
    context = browser.new_context()
    page = context.new_page()
    assert page.goto(served[0].replace("token=token", "token=other")).status == 403
    assert "whole address" in page.inner_text("body")
    context.close()
