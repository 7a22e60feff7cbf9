"""What all views share, and the views Overview, Measurements and Compare."""

import csv
import io

from helpers.results import ALL_PANELS, record, results

from browser.conftest import axe_findings, keep, too_wide
from jaxablate.reports import explorer
from jaxablate.reports.explorer import read_run, write_runs
from jaxablate.reports.results import Figure


def test_every_link_of_the_navigation_leads_to_its_view(show):
    page = show("compare")
    names = page.locator("nav.views a").all_inner_texts()
    assert names[:2] == ["Overview", "Measurements"] and names[-1] == "Compare"
    for name in names:
        page.locator("nav.views a", has_text=name).click()
        page.wait_for_selector(f'nav.views a[aria-current]:has-text("{name}")')
        page.wait_for_selector("main h1, main h2")
        assert not page.locator("[role=alert]").count()


def test_six_figures_stand_beside_their_nulls_and_lead_to_their_suite(show):
    page = show("language")
    tiles = page.locator(".tile")
    assert tiles.count() == 6
    first = tiles.first
    assert "[" in first.locator(".tile-value").inner_text() and "equally likely" in first.locator(".says").inner_text()
    assert page.locator(".tile .strip-row.null").count() >= 4
    first.locator("a.more").click()
    page.wait_for_selector("h1:has-text('Perplexity')")
    assert "#/measurements/perplexity" in page.url


def test_a_gated_run_has_its_baseline_beside_it(show):
    assert show("compare").locator(".tile .strip-row.base").count() >= 2


def test_training_curves_say_their_values_and_smooth(show):
    page = show("language")
    chart = page.locator("section:has(h2:text-is('Training'))")
    chart.scroll_into_view_if_needed()
    box = chart.locator(".plot svg").last.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_selector(".plot [aria-label=tip] text")
    assert "step" in page.locator(".plot [aria-label=tip]").first.text_content()
    lines = chart.locator(".plot [data-mark=line] path")
    before = lines.count()
    chart.locator("input[type=range]").fill("0.8")
    assert chart.locator("output").inner_text() == "0.80"
    page.wait_for_function("n => document.querySelectorAll('.plot [data-mark=line] path').length > n", arg=before)
    chart.get_by_role("button", name="Show training, loss clean").click()
    assert chart.locator(".key.off").count() == 1
    chart.locator("summary", has_text="Numbers").click()
    chart.locator("tbody tr").nth(5).wait_for()


def test_tabs_move_by_arrow_keys(show):
    page = show("language")
    page.locator("[role=tab][aria-selected=true]").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("[role=tab][aria-selected=true]").inner_text() == "Live units"
    assert page.evaluate("document.activeElement.textContent") == "Live units"


def test_terms_are_explained_on_hover_on_focus_and_away_by_escape(show):
    page = show("language")
    term = page.locator(".tile .term-words").first
    term.hover()
    assert "equally likely" in page.get_by_role("tooltip").inner_text()
    page.mouse.move(0, 0)
    page.get_by_role("tooltip").wait_for(state="detached")
    term.focus()
    assert page.get_by_role("tooltip").count() == 1
    page.keyboard.press("Escape")
    assert page.get_by_role("tooltip").count() == 0


def test_tables_sort_filter_and_are_saved_as_csv(show):
    page = show("language", "#/measurements/neurons")
    table = page.locator(".data-table").first
    column = table.locator("tbody tr td:nth-child(2)")
    table.get_by_role("button", name="value").press("Enter")
    assert table.locator("th[aria-sort=descending]").count() == 1
    values = [float(x.split(" ")[0].replace(",", "")) for x in column.all_inner_texts()]
    assert values == sorted(values, reverse=True)
    table.get_by_role("searchbox").fill("bits gates")
    assert all("gates" in x for x in table.locator("tbody tr").all_inner_texts()) and column.count() < len(values)
    with page.expect_download() as download:
        table.get_by_role("button", name="CSV").click()
    rows = list(csv.reader(io.StringIO(download.value.path().read_text())))
    assert rows[0][:3] == ["figure", "value", "value low"] and len(rows) == column.count() + 1


def test_a_search_finds_panels_of_every_suite(show):
    page = show("language", "#/measurements")
    page.get_by_role("searchbox", name="Find a figure or panel").fill("live by chance")
    assert page.locator("h2 a").all_inner_texts() == [] or "Gates" in page.locator("h2 a").all_inner_texts()
    page.get_by_role("searchbox", name="Find a figure or panel").fill("live")
    page.wait_for_selector("h2 a:has-text('Gates')")
    assert "find=live" in page.url
    page.reload()
    page.wait_for_selector("h2 a:has-text('Gates')")


def test_panels_fold(show):
    page = show("language", "#/measurements/neurons")
    shown = page.locator("details.panel[open]").count()
    page.get_by_role("button", name="Fold all").click()
    assert shown > 3 and page.locator("details.panel[open]").count() == 0
    page.get_by_role("button", name="Unfold all").click()
    assert page.locator("details.panel[open]").count() == shown


def test_numbers_of_a_picture_are_under_it_not_a_second_panel(show):
    page = show("language", "#/measurements/leakage")
    titles = page.locator("details.panel > summary").all_inner_texts()
    assert "Loss with gates replaced" in titles and not [x for x in titles if x.endswith("in numbers")]
    panel = page.locator("details.panel", has_text="Loss with gates replaced").first
    panel.locator("summary", has_text="In numbers").click()
    panel.locator("tbody tr").nth(5).wait_for()


def test_heat_maps_say_the_value_under_the_pointer(show):
    page = show("language", "#/measurements/neurons")
    page.locator(".heat tbody td").nth(3).hover()
    assert "×" in page.locator(".heatmap .said").first.inner_text()


def test_every_kind_of_panel_is_drawn(show, tmp_path):
    suites = {"demo": record("demo", [Figure("f", 1.0)], ALL_PANELS)}
    path = write_runs([explorer.ShownRun(name="kinds", results=results(suites=suites))], tmp_path / "p.html")
    page = show("", "#/measurements/demo", path=path)
    assert page.locator("details.panel").count() == len(ALL_PANELS)
    for shape in (".multiple svg", ".dot-row", ".plot svg", ".data-table", "blockquote", ".heat", ".network svg path",
                  ".beside .heat"):
        assert page.locator(f"details.panel {shape}").count(), shape
    page.wait_for_timeout(150)
    assert axe_findings(page) == [] and not too_wide(page)
    keep(page, "kinds-1280-light")


def test_compare_shows_differences_seeds_and_what_was_published(show):
    page = show("compare", "#/compare")
    assert "2 configurations, 4 runs" in page.locator(".page-head").inner_text()
    row = page.locator("tr", has_text="perplexity clean").first
    assert "[" in row.locator(".delta").inner_text() and "paired" in page.locator("main").inner_text()
    page.get_by_label("published row").select_option("local, k 8")
    assert row.locator(".paper").inner_text() == "6.47"
    assert "for orientation, not for comparison" in page.locator("main").inner_text()
    row.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_function("location.hash.includes('figure=')")
    page.locator("tr", has_text="mean |w|").first.locator("td").nth(1).click()
    page.wait_for_selector("h2:has-text('mean |w|')")
    assert page.locator("h2", has_text="mean |w|").count() == 1 and page.locator(".dot-rows .point").count() == 4
    link = page.url
    page.goto("about:blank")
    page.goto(link)
    page.wait_for_selector("h2:has-text('mean |w|')")
    assert page.get_by_label("published row").input_value() == "local, k 8"


def test_two_runs_stand_side_by_side_in_every_view(show):
    page = show("compare", width=1920)
    page.locator(".run-choice select").nth(1).select_option("baseline")
    for name in page.locator("nav.views a").all_inner_texts()[:-1]:
        page.locator("nav.views a", has_text=name).click()
        page.wait_for_selector(f'nav.views a[aria-current]:has-text("{name}")')
        page.wait_for_selector(".of-run + .of-run :is(h1, h2)")
        assert page.locator(".of-run-name").all_inner_texts() == ["language", "baseline"]
        assert "beside=baseline" in page.url and not too_wide(page) and not page.locator("[role=alert]").count()
        page.wait_for_timeout(150)
        keep(page, f"pair-{name.lower()}-1920-light")


def test_another_run_is_chosen_and_stays_in_the_link(show):
    page = show("compare")
    page.locator(".run-choice select").first.select_option("baseline")
    page.wait_for_selector("h1:has-text('baseline')")
    page.locator("nav.views a", has_text="Measurements").click()
    page.wait_for_selector("nav.suites")
    assert "run=baseline" in page.url and "gates" not in page.locator("nav.suites").inner_text().lower()


def test_colours_are_chosen_and_kept(show):
    page = show("language")
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.get_by_label("Colours").select_option("dark")
    page.wait_for_function(f"light => {ground} !== light", arg=light)
    page.reload()
    page.wait_for_selector(".tile")
    assert page.evaluate(ground) != light


def test_hostile_names_are_text(show, pages, tmp_path):
    hostile = "<img src=x onerror=alert(1)></script>\u202e=1+1"
    run = read_run(pages["language"].parent)
    path = write_runs([explorer.ShownRun(name=hostile, results=run.results, history=run.history)], tmp_path / "p.html",
                      [hostile])
    page = show("", path=path)
    assert page.locator("h1").inner_text() == hostile.replace("\u202e", "\ufffd") and page.locator("img").count() == 0


def test_a_page_with_a_folder_opens_from_the_disk(show, pages, tmp_path, monkeypatch):
    monkeypatch.setattr(explorer, "LARGEST_PAGE", 1000)
    path = write_runs([read_run(pages["language"].parent)], tmp_path / "p.html")
    page = show("", path=path)
    assert page.locator(".tile").count() == 6 and (tmp_path / "p-data").is_dir()


def test_print_leaves_out_what_is_pressed(show):
    page = show("language", "#/measurements/gates")
    page.emulate_media(media="print")
    assert not page.locator("nav.views").is_visible() and not page.locator(".table-tools").first.is_visible()
    assert page.locator("details.panel").first.is_visible()
