"""The view Circuit."""

import re


def _edges(page):
    return [page.locator(".graph").nth(i).locator(".edge").count() for i in range(page.locator(".graph").count())]


def test_both_streams_stand_side_by_side_with_all_nodes(show):
    page = show("language", "#/circuit?circuit=every+edge")
    assert page.locator(".graphs .card h2").all_inner_texts()[:2] == ["clean stream", "ablated stream"]
    names = page.locator(".graph").first.locator(".node > text").all_text_contents()
    assert {"Resid Start", "A0.0", "A0.1", "MLP 0", "A1.0", "A1.1", "MLP 1", "Resid End"} <= set(names)
    assert all(_edges(page))


def test_the_slider_leaves_the_strongest_edges(show):
    page = show("language", "#/circuit?circuit=every+edge&panes=alone&least=0")
    every, = _edges(page)
    slider = page.get_by_label("weakest edge")
    slider.press("End")
    assert _edges(page) == [1] and "least=" in page.url
    slider.press("Home")
    assert _edges(page) == [every]
    rows = page.locator(".data-table tbody tr")
    assert rows.count() == every


def test_pointing_at_a_node_tells_its_edges_in_both_drawings(show):
    page = show("language", "#/circuit?circuit=every+edge")
    node = page.locator(".graph").first.locator(".node[aria-label^='MLP 1']")
    node.hover()
    assert re.match(r"MLP 1: \d+ in", page.locator(".said-edge").first.inner_text())
    assert page.locator("svg.some").count() == 2
    on = page.locator(".graph").first.locator(".edge.on").count()
    assert 0 < on < page.locator(".graph").first.locator(".edge").count()
    page.mouse.move(2, 2)
    assert page.locator("svg.some").count() == 0


def test_pointing_at_an_edge_tells_its_score(show):
    page = show("language", "#/circuit?circuit=every+edge&panes=alone")
    page.locator(".graph .edge .reach").last.dispatch_event("mouseenter")
    assert "→" in page.locator(".said-edge").inner_text()


def test_a_head_leads_to_its_pattern_in_the_text_and_to_its_units(show):
    page = show("language", "#/circuit?circuit=every+edge&panes=alone")
    head = page.locator(".node.head[aria-label^='A1.1']")
    head.focus()
    page.keyboard.press("Enter")
    card = page.locator(".node-card")
    assert "node=A1.1" in page.url and "head 1 of layer 1" in card.inner_text()
    assert "reads" in card.inner_text() and card.locator(".edge-list li").count() > 1
    assert all("A1.1" in row for row in page.locator(".data-table tbody tr").all_inner_texts())
    assert "#/units/channel-1" in card.get_by_role("link", name="channels").get_attribute("href")
    card.get_by_role("link", name="This head in the text").click()
    page.wait_for_selector(".token")
    assert "layer=1" in page.url and "head=1" in page.url
    assert page.get_by_role("button", name="head 1", exact=True).get_attribute("aria-pressed") == "true"


def test_an_edge_list_walks_the_graph(show):
    page = show("language", "#/circuit?circuit=every+edge&panes=alone&node=Resid+End")
    first = page.locator(".edge-list button").first
    name = first.inner_text()
    first.click()
    page.wait_for_selector(f".node-card[aria-label='Node {name}']")
    page.get_by_role("button", name="Let go").click()
    assert page.locator(".node-card").count() == 0 and "node=" not in page.url


def test_before_and_after_pruning_and_another_run(show):
    page = show("language", "#/circuit?panes=pruning&least=0")
    before, after = _edges(page)
    assert before > after
    page = show("compare", "#/circuit?panes=run")
    assert "seed-1" in page.locator(".graphs .card h2").nth(1).inner_text()


def test_faithfulness_stands_beside_with_its_numbers(show):
    page = show("language", "#/circuit?panes=alone")
    section = page.locator("section", has_text="How faithful circuits are")
    if section.locator("svg[role=img]").count():
        section.locator("summary").click()
        assert section.locator(".data-table tbody tr").count() > 3
    else:
        assert "nothing to explain" in section.inner_text()
