"""The view Text of a language model and of a classifier."""

import re


def _heading(page):
    """The token that the details are of, and what is said of its place."""
    header = page.locator(".details header").last
    return header.locator("code").inner_text(), header.locator(".soft").inner_text()


def _costs(page):
    return [label.strip() for label in page.locator(".cost dt").all_inner_texts()]


def test_pointing_at_a_token_tells_of_it_and_a_click_keeps_it(show):
    page = show("language", "#/text/0?position=2")
    tokens = page.locator(".token")
    assert _heading(page)[1].startswith("token 3 of")
    tokens.nth(6).hover()
    word, where = _heading(page)
    assert where.startswith("token 7 of") and "pointed at" in where
    assert word.strip("·") == tokens.nth(6).inner_text().strip()
    assert page.locator(".paired tbody tr").count() == 8 and page.locator(".paired .follows").count() == 1
    follows = page.locator(".paired .follows code").inner_text()
    assert follows.strip("·") == tokens.nth(7).inner_text().strip()
    tokens.nth(6).click()
    assert "position=6" in page.url and "pointed at" not in _heading(page)[1]
    page.mouse.move(5, 5)
    assert _heading(page)[1].startswith("token 7 of")
    page.reload()
    page.wait_for_selector(".token")
    assert _heading(page)[1].startswith("token 7 of")


def test_arrow_keys_go_from_token_to_token(show):
    page = show("language", "#/text/0?position=2")
    page.locator(".token").nth(2).focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert _heading(page)[1].startswith("token 5 of")
    page.keyboard.press("Enter")
    assert "position=4" in page.url


def test_both_streams_are_paired_and_winners_colour_the_text(show):
    page = show("language", "#/text/0?position=8")
    assert page.locator(".paired tbody tr").first.locator(".pair i").count() == 2
    assert _costs(page) == ["loss, clean", "loss, ablated", "leakage"]
    layers = page.locator(".winners").first.locator(".layer")  # those after it are autoencoders
    assert layers.count() == 2 and "neurons, 5 of 64" in layers.first.inner_text()
    chip = layers.nth(1).locator(".chip").first
    chip.click()
    assert re.search(r"colour=passes\.neuron\.1\.\d+", page.url) and chip.get_attribute("aria-pressed") == "true"
    assert "what passes neuron 1." in page.locator(".shade-key").inner_text()
    shaded = page.locator(".token").nth(8).evaluate("e => getComputedStyle(e).backgroundColor")
    assert shaded not in ("rgba(0, 0, 0, 0)", "transparent")
    page.locator(".shade-key a").click()
    page.wait_for_selector("h1, h2")
    assert "#/units/neuron-1/" in page.url


def test_any_unit_may_be_chosen_and_what_there_is_not_is_told(show):
    page = show("language", "#/text/0")
    page.get_by_label("Colour by").select_option("activation")
    page.get_by_label("layer").first.select_option("1")
    page.get_by_label("number").fill("17")
    page.wait_for_function("() => location.hash.includes('colour=neuron.1.17')")
    page.locator(".shade-key", has_text="neuron 1.17").wait_for()
    page.get_by_label("number").fill("64")  # there is no such neuron
    assert "colour=neuron.1.17" in page.url
    page = show("language", "#/text/0?colour=neuron.7.17")
    assert "has no numbers of that" in page.locator(".the-text").inner_text()


def test_a_text_is_found_by_ids_and_by_words(show):
    page = show("language", "#/text/3")
    ids = [page.locator(".details header .soft").inner_text()]
    tokens = page.locator(".token")
    for i in (4, 5, 6):
        tokens.nth(i).click()
        ids.append(re.search(r"id (\d+)", _heading(page)[1])[1])
    words = tokens.nth(4).inner_text() + page.evaluate("""() => {
      const [a, b] = [4, 6].map((i) => document.querySelector(`[data-token="${i}"]`));
      const range = document.createRange();
      range.setStartAfter(a); range.setEndAfter(b);
      return range.toString();
    }""")
    page = show("language", "#/text/0")
    find = page.get_by_placeholder("Token ids or words")
    find.fill(f"[{', '.join(ids[1:])}]")
    find.press("Enter")
    page.wait_for_function("location.hash.includes('position=')")
    for _ in range(30):
        if "#/text/3?" in page.url:
            break
        find.press("Enter")
        page.wait_for_timeout(30)
    assert "#/text/3?" in page.url and _heading(page)[1].startswith("token 5 of")
    find.fill(words.strip())
    find.press("Enter")
    assert "with it" in page.locator(".found-text").inner_text()
    find.fill("999999 999998")
    find.press("Enter")
    assert "None of the" in page.locator(".found-text").inner_text()


def test_random_is_another_text(show):
    page = show("language", "#/text/2")
    seen = set()
    for _ in range(4):
        before = page.url
        page.get_by_role("button", name="Random").click()
        page.wait_for_function("before => location.href !== before", arg=before)
        seen.add(page.url)
    assert len(seen) >= 2


def test_a_head_is_chosen_and_looks_at_tokens(show):
    page = show("language", "#/text/0?position=9&layer=0&head=0")
    looks = page.locator(".looks li")
    first = looks.all_inner_texts()
    assert 0 < page.locator(".arcs path").count() <= 10
    page.get_by_role("button", name="head 1", exact=True).click()
    page.get_by_label("Layer of the head").select_option("1")
    assert "head=1" in page.url and "layer=1" in page.url and looks.all_inner_texts() != first
    total = sum(int(re.search(r"(\d+) %", x)[1]) for x in looks.all_inner_texts())
    assert total <= 104
    square = page.locator(".square")
    box = square.bounding_box()
    square.hover(position={"x": 3, "y": box["height"] - 3})
    assert "looks at" in page.locator(".matrix .reading").inner_text()
    square.click(position={"x": 3, "y": 3})
    assert "position=0" in page.url and _heading(page)[1].startswith("token 1 of")
    page.get_by_role("button", name="no arcs").click()
    assert page.locator(".arcs path").count() == 0


def test_the_ablated_stream_has_patterns_of_its_own(show):
    page = show("language", "#/text/0?position=9&layer=1&head=0")
    clean = page.locator(".looks").inner_text()
    page.locator(".beneath").get_by_role("button", name="ablated").click()
    assert "stream=ablated" in page.url and page.locator(".looks").inner_text() != clean


def test_a_baseline_has_one_stream_and_no_winners(show):
    page = show("compare", "#/text/0?run=baseline")
    assert _costs(page) == ["loss, clean"] and page.locator(".winners").count() == 0
    assert page.locator(".paired tbody tr").first.locator(".pair i").count() == 1


def test_a_classifier_tells_what_words_count_for(show):
    page = show("classifier", "#/text/0")
    tokens = page.locator(".token")
    assert page.locator(".paired tbody tr").count() == 2 and page.locator(".paired .follows").count() == 1
    assert "kept by VMASK" in page.locator(".shade-key").inner_text()
    tokens.nth(2).click()
    assert _heading(page)[1].startswith("word 3 of") and "position=2" in page.url
    assert _costs(page) == ["kept", "gradient × input", "capacity", "active, owned"]
    page.get_by_label("Colour by").select_option("gradient")
    assert page.locator(".shade-key .shades i").count() == 9  # both signs
    field = page.locator(".field")
    field.hover(position={"x": 4, "y": 4})
    assert re.search(r"neuron \d+: ", page.locator(".allocation .reading").inner_text())
    field.click(position={"x": 4, "y": 4})
    assert re.search(r"colour=neuron\.\d+", page.url)
    page.get_by_role("button", name="of all words").click()
    assert "arcs=all" in page.url
    page.get_by_role("button", name="attention", exact=True).click()
    assert page.locator(".heads button").count() == 2 and "pairs=attention" in page.url
