"""Every view at every width and in both themes, looked at by axe as well; pictures are kept."""

import pytest

from browser.conftest import axe_findings, keep, too_wide

VIEWS = {
    "overview": ("language", "#/", "main h1"),
    "measurements": ("language", "#/measurements/neurons", "main h1"),
    "gates": ("language", "#/measurements/gates", "main h1"),
    "classifier": ("classifier", "#/", "main h1"),
    "classifier-measurements": ("classifier", "#/measurements/importance", "main h1"),
    "superposition": ("classifier", "#/measurements/superposition", "main h1"),
    "compare": ("compare", "#/compare", "main h1"),
    "text": ("language", "#/text/0?position=5&layer=1&head=1", ".token"),
    "text-leakage": ("language", "#/text/1?colour=leakage&stream=ablated", ".token"),
    "text-prompt": ("language", "#/text/16?colour=passes.neuron.1.3", ".token"),
    "text-baseline": ("compare", "#/text/0", ".token"),
    "text-classifier": ("classifier", "#/text/0", ".token"),
    "text-classifier-pairs": ("classifier", "#/text/1?pairs=attention&arcs=all&colour=gradient", ".token"),
    "circuit": ("language", "#/circuit", ".graph svg"),
    "circuit-pruning": ("language", "#/circuit?panes=pruning&node=A1.0", ".graph svg"),
    "circuit-runs": ("compare", "#/circuit?panes=run", ".graph svg"),
    "circuit-alone": ("language", "#/circuit?panes=alone", ".graph svg"),
    "units": ("language", "#/units", "main h1"),
    "neuron": ("language", "#/units/neuron-1/3", "main h1, main h2"),
    "channel": ("language", "#/units/channel-0/2", "main h1, main h2"),
    "gate": ("language", "#/units/neuron-gate-1/3", "main h1, main h2"),
    "latent": ("language", "#/units/drawn/4", "main h1, main h2"),
    "dead-query": ("language", "#/units?query=dog", "main h1, main h2"),
}
"""Name -> (page, route in it, what is there when the view is)."""


@pytest.fixture(params=VIEWS)
def view(request):
    return request.param


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280, 1920, 2560])
def test_a_view_fits_the_window(show, view, width, dark):
    name, route, there = VIEWS[view]
    page = show(name, route, width=width, dark=dark)
    page.wait_for_selector(there)
    page.wait_for_timeout(150)
    assert not too_wide(page)
    keep(page, f"{view}-{width}-{'dark' if dark else 'light'}")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_nothing_serious(show, view, dark):
    name, route, there = VIEWS[view]
    page = show(name, route, dark=dark)
    page.wait_for_selector(there)
    assert axe_findings(page) == []
