"""A page of the paper's shape: 4,096 neurons, 1,024 channels, as many gates, an autoencoder of 2,048 latents."""

import base64
import copy
import json
import shutil
import time

import numpy as np
import pytest

from jaxablate.reports.explorer import FOLDER_NAME, LARGEST_PAGE, write_explorer

LAYERS, LATENTS, VOCABULARY, TEXT = 8, 2048, 12_000, (512, 256)
UNITS = {"neuron": 512, "channel": 128, "neuron gate": 512, "channel gate": 128}
"""Units of each sort in a layer."""
WHEN_THERE = """new MutationObserver(() => {
  if (!window.there && document.querySelector("main h1") && !document.querySelector(".loading"))
    window.there = performance.now();
}).observe(document, { childList: true, subtree: true });"""
"""Notes when the view was there, in milliseconds since the address was opened."""
PACKED = {"dtype", "shape", "data", "scale"}


def resized(value, units, rng):
    """Random arrays in the place of all packed ones, their first axis so many units long."""
    if isinstance(value, list):
        return [resized(x, units, rng) for x in value]
    if not isinstance(value, dict):
        return value
    if set(value) != PACKED:
        return {k: resized(x, units, rng) for k, x in value.items()}
    shape = [units, *value["shape"][1:]]
    drawn = (rng.normal(size=shape) if value["dtype"] == "float32" else
             rng.zipf(1.5, shape) % 10_000 if value["dtype"] == "int32" else rng.integers(0, 100, shape))
    return value | {"shape": shape, "data": encoded(drawn, value["dtype"])}


def encoded(array, dtype):
    return base64.b64encode(array.astype(np.dtype(dtype).newbyteorder("<")).tobytes()).decode()


def group(one, sort, layer, units, first, rng):
    """A group of units like the one that was measured."""
    out = resized(copy.deepcopy(one), units, rng) | {"sort": sort, "layer": layer, "n": units, "first": first,
                                                     "name": f"{sort.replace(' ', '-')}-{layer}", "graphs": []}
    out["places"]["data"] = encoded(rng.integers(0, np.prod(TEXT), out["places"]["shape"]), "int32")
    return out


@pytest.fixture(scope="module")
def paper_shape(pages, tmp_path_factory):
    """A working directory whose units are as many as those of the paper's model, with random values."""
    folder, rng = tmp_path_factory.mktemp("paper") / "run", np.random.default_rng(0)
    shutil.copytree(pages["language"].parent, folder, ignore=shutil.ignore_patterns("checkpoints", "report*"))
    path = folder / FOLDER_NAME / "units.json"
    data = json.loads(path.read_text())
    one = {g["sort"]: g for g in data["groups"]}
    groups = [(sort, layer, units) for layer in range(LAYERS) for sort, units in UNITS.items()]
    groups.append(("latent", 6, LATENTS))
    first, data["groups"] = 0, []
    for sort, layer, units in groups:
        data["groups"].append(group(one.get(sort, one["neuron"]), sort, layer, units, first, rng))
        first += units
    data["vocabulary"] = [f" word {i}" for i in range(VOCABULARY)]
    data["text"] |= {"dtype": "uint16", "shape": TEXT, "data": encoded(rng.zipf(1.2, TEXT) % VOCABULARY, "uint16")}
    path.write_text(json.dumps(data))
    return folder


def test_a_page_of_the_papers_shape_is_small_soon_written_and_soon_there(show, paper_shape):
    start = time.perf_counter()
    path = write_explorer([paper_shape], paper_shape / "report.html")
    assert time.perf_counter() - start < 60
    assert 5_000_000 < path.stat().st_size < LARGEST_PAGE and not (paper_shape / "report-data").exists()
    seconds = []
    for route in ("#/", "#/", "#/units", "#/units"):
        page = show("", route, path=path, first=WHEN_THERE)
        seconds.append(page.evaluate("window.there") / 1000)
        page.close()
    print(f"there after {', '.join(f'{s:.2f}' for s in seconds)} s, {path.stat().st_size / 1e6:.1f} MB")
    assert min(seconds[:2]) < 1 and min(seconds[2:]) < 2  # all units are unpacked in the second


def test_its_units_are_found_and_sorted(show, paper_shape):
    path = write_explorer([paper_shape], paper_shape / "report.html")
    page = show("", "#/units?query=neurons%20layer%207", path=path)
    page.wait_for_function("document.querySelectorAll('tbody tr').length > 5")
    assert page.locator("table").first.get_attribute("aria-rowcount") == str(UNITS["neuron"] + 1)
