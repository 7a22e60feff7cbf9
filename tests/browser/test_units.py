"""The view Units: the list, the query box, a unit's page."""

import csv
import io
import re


def test_the_list_sorts_and_the_link_keeps_it(show):
    page = show("language", "#/units")
    assert page.locator("th[aria-sort=descending]").inner_text().startswith("information")
    page.locator("th button", has_text="rate").click()
    page.wait_for_selector("th[aria-sort]:not([aria-sort=none]):has-text('rate')")
    assert "sort=-rate" in page.url
    page.reload()
    page.wait_for_selector("th[aria-sort]:not([aria-sort=none]):has-text('rate')")
    shares = [float(x.removesuffix(" %")) for x in page.locator("tbody tr td:nth-child(3)").all_inner_texts()
              if x.endswith("%")][:20]
    assert len(shares) == 20 and shares == sorted(shares, reverse=True)
    page.get_by_role("button", name=re.compile("^Channels")).click()
    page.wait_for_function("location.hash.includes('kind=channel')")
    assert all(x.startswith("channel") for x in page.locator("tbody tr td:nth-child(1)").all_inner_texts() if x)
    with page.expect_download() as download:
        page.get_by_role("button", name="CSV").click()
    rows = list(csv.reader(io.StringIO(download.value.path().read_text())))
    assert rows[0][:3] == ["unit", "fires on", "rate"] and len(rows) == 1 + 2 * 16


def test_a_query_finds_units_and_opens_their_pages(show):
    page = show("language", "#/units/neuron-1/3")
    token = page.locator(".unit-page .pivot").first.inner_text()
    page.get_by_label("Find units").fill(f'neurons layer 1 fires on "{token}"')
    page.wait_for_selector("#unit-answer b")
    assert "fires on" in page.locator("#unit-answer").inner_text()
    assert page.locator("tbody a", has_text=re.compile(r"neuron 1\.3$")).count() == 1
    page.wait_for_function("location.hash.includes('query=')")
    page.reload()
    page.wait_for_selector("#unit-answer b")
    assert page.get_by_label("Find units").input_value() == f'neurons layer 1 fires on "{token}"'
    page.get_by_label("Find units").fill("3.x frobnicate")
    page.wait_for_selector(".problem")
    assert "not understood" in page.locator("#unit-answer").inner_text()


def test_the_examples_of_the_query_box_are_understood(show):
    page = show("language", "#/units")
    for text in page.locator(".examples .example").all_inner_texts():
        page.get_by_label("Find units").fill(text)
        page.wait_for_selector("#unit-answer:has-text('unit')")
        assert page.locator(".problem").count() == 0, text


def test_a_units_page_has_contexts_histogram_tokens_and_partners(show):
    page = show("language", "#/units/neuron-1/3")
    assert "neuron 1.3" in page.locator("#unit-title").inner_text()
    assert page.locator(".unit-contexts li").count() >= 8 and page.locator(".unit-contexts .pivot").count() >= 8
    page.wait_for_selector(".unit-page .plot svg [data-mark=rect] rect")
    bars = page.locator(".unit-page .plot svg [data-mark=rect] rect").count()
    rules = page.locator(".unit-page .plot svg [data-mark=rule] line").count()
    page.locator(".unit-contexts .pivot").first.hover()
    page.wait_for_timeout(200)
    assert bars > 3 and page.locator(".unit-page .plot svg [data-mark=rule] line").count() == rules + 1
    headings = page.locator(".unit-page h3").all_inner_texts()
    assert [x for x in headings if x in ("Tokens it fires on", "Fires together with")] and "Neuron graph" in headings
    assert page.locator(".unit-effects tbody tr").count() == 16
    assert page.locator(".unit-graph rect").count() == 4  # a pivot, two ways to it, and what comes before one
    page.locator("a", has_text="its gate").click()
    page.wait_for_selector("#unit-title:has-text('neuron gate 1.3')")
    assert page.locator(".unit-effects").count() == 0


def test_a_latents_page_is_a_dashboard(show):
    page = show("language", "#/units/drawn/4")
    words = page.locator(".unit-page").inner_text()
    assert "latent 4" in words and "clean.layer_0.mlp_out" in words and "promotes" in words and "random" in words


def test_the_next_unit_is_that_of_the_list(show):
    page = show("language", "#/units?query=latents&sort=unit")
    page.locator("tbody tr a").first.click()
    page.wait_for_selector("#unit-title:has-text('latent 0')")
    page.get_by_role("link", name="latent 1 ›").click()
    page.wait_for_selector("#unit-title:has-text('latent 1')")
    assert "query=latents" in page.url and page.locator("tr.current", has_text="latent 1").count() == 1


def test_on_a_phone_the_page_takes_the_place_of_the_list(show):
    page = show("language", "#/units", width=360)
    page.locator("tbody tr").first.click()
    page.wait_for_selector("#unit-title")
    assert not page.locator(".units-list").is_visible()
    page.get_by_role("link", name="← all units").click()
    page.wait_for_selector("#unit-title", state="detached")
    assert page.locator(".units-list").is_visible()


def test_a_layers_units_have_a_link_of_their_own(show):
    page = show("language", "#/units/channel-1")
    assert "Only attention channels of layer 1" in page.locator(".only").inner_text()
    assert page.locator("tbody tr a").count() == 16
