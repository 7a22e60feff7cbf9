"""The explorer's data: packed arrays, the page and its folder, schemas, the training log."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from helpers.explorer import read_page
from helpers.results import PANELS, record, results

from jaxablate.errors import CheckpointError, FileError
from jaxablate.files import finite
from jaxablate.reports import explorer, schemas
from jaxablate.reports import results as files
from jaxablate.reports.explorer import ShownRun, build, read_history, read_run, thinned, write_explorer, write_runs
from jaxablate.reports.packed import Packed, pack, unpack
from jaxablate.reports.results import Figure


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attached:
    """What a suite might attach."""

    params_digest: str
    numbers: Packed


@pytest.fixture
def scored(tmp_path):
    """A working directory with results, a log, a record and two attachments, one of another checkpoint."""
    found = results(suites={"demo": record("demo", [Figure("f", 1.0)], PANELS)})
    folder = tmp_path / "run"
    files.write(folder, found)
    (folder / "metrics.jsonl").write_text('{"step": 1, "split": "train", "loss_clean": 2.5}\n')
    (folder / "run.json").write_text('{"started": "2026-01-01T00:00:00+00:00", "device": "1 x cpu", "revision": null}')
    for name, digest in (("texts", found.params_digest), ("units", "other")):
        explorer.write_attachment(folder, name, Attached(params_digest=digest, numbers=pack([1, 2], "uint8")))
    return folder


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32"])
def test_whole_numbers_come_back_as_they_are(dtype):
    array = np.array([[0, 1, 200], [3, 4, 5]])
    packed = pack(array, dtype)
    assert packed.scale == 1 and packed.shape == (2, 3)
    np.testing.assert_array_equal(unpack(packed), array)


@pytest.mark.parametrize(("dtype", "steps"), [("uint8", 255), ("uint16", 65535)])
def test_fractions_come_back_to_half_a_step(dtype, steps):
    array = np.random.default_rng(0).uniform(0, 7, (5, 6)).astype(np.float32)
    back = unpack(pack(array, dtype))
    assert np.abs(back - array).max() <= 7 / steps / 2 * 1.001
    assert back.max() == pytest.approx(array.max(), rel=1e-6)


def test_signed_fractions_empty_arrays_and_zeros_are_packed():
    array = np.array([-2.0, 0.5])
    np.testing.assert_allclose(unpack(pack(array, "int32")), array, rtol=1e-6)
    np.testing.assert_array_equal(unpack(pack(array, "float32")), array.astype(np.float32))
    assert unpack(pack(np.zeros((0, 3)), "uint8")).shape == (0, 3)
    np.testing.assert_array_equal(unpack(pack(np.zeros(2), "uint8")), [0, 0])


@pytest.mark.parametrize(("array", "dtype", "complaint"), [
    ([256], "uint8", "do not fit uint8"), ([-1], "uint16", "do not fit uint16"), ([-0.5], "uint8", "negative"),
    ([np.nan], "uint8", "not finite"), ([1], "float16", "cannot be packed")])
def test_what_does_not_fit_is_refused(array, dtype, complaint):
    with pytest.raises(ValueError, match=complaint):
        pack(array, dtype)


def test_a_page_holds_results_history_and_attachments_of_its_checkpoint(scored):
    manifest, blobs = read_page(write_explorer([scored], scored / "report.html"))
    (entry,) = manifest["runs"]
    assert entry["name"] == "run" and entry["device"] == "1 x cpu" and entry["revision"] is None
    assert blobs[entry["results"]] == json.loads((scored / "results.json").read_text())
    assert blobs[entry["history"]]["metrics"] == [
        {"name": "loss_clean", "split": "train", "steps": [1.0], "values": [2.5]}]
    assert list(entry["attachments"]) == ["texts"]  # not that of another checkpoint
    assert blobs[entry["attachments"]["texts"]]["numbers"]["shape"] == [2]
    assert len(blobs[manifest["comparison"]]["rows"]) == 1


def test_the_same_runs_give_the_same_bytes(scored, tmp_path):
    first, second = (write_explorer([scored], tmp_path / name).read_bytes() for name in ("a.html", "b.html"))
    assert first == second


def test_a_large_page_keeps_its_data_in_a_folder_until_it_fits_again(scored, monkeypatch):
    page = scored / "report.html"
    whole = read_page(write_explorer([scored], page))
    monkeypatch.setattr(explorer, "LARGEST_PAGE", 1000)
    write_explorer([scored], page)
    manifest, blobs = read_page(page)
    assert manifest["folder"] == "report-data" and blobs == whole[1] and "octet-stream" not in page.read_text()[-2000:]
    monkeypatch.undo()
    write_explorer([scored], page)
    assert not (scored / "report-data").exists() and read_page(page) == whole


def test_a_folder_of_the_same_name_that_is_the_users_stays(scored):
    (scored / "report-data").mkdir()
    (scored / "report-data" / "notes.txt").write_text("mine")
    write_explorer([scored], scored / "report.html")
    assert (scored / "report-data" / "notes.txt").read_text() == "mine"


def test_the_page_needs_no_network_and_no_text_ends_its_script(scored):
    hostile = "</script><script>alert(1)</script>"
    run = dataclasses.replace(read_run(scored), name=hostile)
    text = write_runs([run], scored / "page.html", [hostile]).read_text()
    assert hostile not in text and text.count("<script") == 2 + len(build([run])[1])
    assert not [x for x in ('src="http', 'href="http', "@import", "url(http") if x in text]
    assert "default-src 'none'" in text


def test_runs_of_one_name_are_told_apart_and_gated_ones_get_a_baseline():
    runs = [ShownRun(name="a", results=results(kind, seed=seed)) for kind, seed in (("local", 0), ("none", 0),
                                                                                     ("local", 1))]
    manifest, _ = build(runs)
    assert [r.name for r in manifest.runs] == ["a", "a (2)", "a (3)"]
    assert [r.baseline for r in manifest.runs] == ["a (2)", None, "a (2)"]


def test_a_run_without_results_or_a_bundle_is_an_error_with_a_way_out(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    with pytest.raises(CheckpointError, match="jaxablate score --workdir"):
        write_explorer([tmp_path / "run"], tmp_path / "page.html")
    explorer._bundle.cache_clear()
    monkeypatch.setattr(explorer.importlib.resources, "files", lambda package: tmp_path)
    with pytest.raises(FileError, match="npm --prefix explorer run build"):
        explorer._bundle()


def test_history_passes_over_a_cut_line_and_keeps_the_last_of_a_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_history(path) == [] and thinned([]).metrics == ()
    lines = [{"step": s, "split": "train", "loss_clean": v, "speed": 1.0} for s, v in ((1, 5.0), (2, 4.0), (2, 3.0))]
    lines.append({"step": 2, "split": "valid", "loss_clean": 4.5})
    lines += [{"step": 2, "split": "valid", "loss_clean": value} for value in ("4", None, [4], True, 10**400)]
    path.write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 3, "spl')
    found = {(m.name, m.split): m.values for m in thinned(read_history(path)).metrics}
    assert found == {("loss_clean", "train"): (5.0, 3.0), ("loss_clean", "valid"): (4.5,), ("speed", "train"): (1., 1.)}


def test_long_histories_are_thinned_by_averaging():
    (metric,) = thinned([{"step": i, "split": "train", "loss": float(i % 2)} for i in range(10_000)]).metrics
    assert len(metric.steps) == explorer.MOST_POINTS and metric.values[0] == pytest.approx(0.5)


@pytest.mark.parametrize("kind", schemas.SCHEMAS)
def test_the_schemas_in_the_package_are_those_of_the_dataclasses(kind):
    stored = json.loads((schemas.FOLDER / f"{kind}.schema.json").read_text())
    assert stored == json.loads(json.dumps(schemas.schema(kind))), "run: python -m jaxablate.reports.schemas"


def test_what_is_written_follows_the_schemas(scored):
    validate = pytest.importorskip("jsonschema", reason="the extra test brings it").validate
    manifest, blobs = read_page(write_explorer([scored], scored / "report.html"))
    whole, of_results = schemas.schema("explorer"), schemas.schema("results")
    validate(manifest, whole)
    validate(blobs[manifest["runs"][0]["results"]], of_results)
    for index, name in ((manifest["runs"][0]["history"], "History"), (manifest["comparison"], "Comparison")):
        validate(blobs[index], {"$ref": f"#/definitions/{name}", "definitions": whole["definitions"]})
    wrong = finite(dataclasses.asdict(results())) | {"step": "one"}
    with pytest.raises(Exception, match="is not of type 'integer'"):
        validate(wrong, of_results)


def test_a_page_can_be_written_again_after_its_run_was_moved(scored, tmp_path):
    first = write_explorer([scored], scored / "report.html").read_bytes()
    moved = tmp_path / "elsewhere" / "run"
    shutil.copytree(scored, moved)
    assert write_explorer([moved], moved / "report.html").read_bytes() == first
