"""Measures what no suite does of a sweep's runs, and makes the tables of docs/claims.md.

    jaxablate sweep claims_embedded --workdir runs/claims_embedded --jobs 2
    python -m benchmarks.claims measure --folder runs/claims_embedded --jobs 2
    python -m benchmarks.claims tables --folder runs/claims_embedded --write

``measure`` goes over the runs that are trained and scored. For each of them it finds the checkpoint of equal loss of
the baseline with the same seed, makes a working directory of that checkpoint alone (FOLDER/matched/seed-0/step-1500),
scores it, trains autoencoders on both and makes graphs of their neurons. What is there is not measured again, so it may
be stopped and started. Figures of each run come from its ``results.json`` and the index of its graphs; ``tables
--write`` keeps them in benchmarks/claims.json and the tables in the docs. Runs that the folder does not have keep the
figures recorded there, so a grid may be done in parts, on several machines, and anyone can make the tables without a
run. `benchmarks.claims.data` writes what some of the sweeps train on.
"""

import dataclasses
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import jax
import tyro

from benchmarks.claims.measuring import measure
from benchmarks.claims.runs import collect, joined
from benchmarks.claims.studies import study_of
from benchmarks.claims.tables import all_tables
from jaxablate.errors import DataError
from jaxablate.exits import guarded
from jaxablate.files import write, write_json
from jaxablate.provenance import provenance
from jaxablate.reports.panels import Grid
from jaxablate.reports.tables import markdown

RECORD = Path(__file__).parent.with_suffix(".json")
DOCS = Path(__file__).parents[2] / "docs" / "claims.md"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Measure a sweep's runs for docs/claims.md, or make its tables."""

    what: Annotated[Literal["measure", "tables"], tyro.conf.Positional]
    """measure: find checkpoints of equal loss, score them, train autoencoders, make graphs. tables: print them."""
    folder: Path = Path("runs/claims_embedded")
    """Folder of the sweep."""
    jobs: int = 1
    """Processes at once."""
    write: bool = False
    """Keep the runs' figures in claims.json and the tables in docs/claims.md."""


def tables(options: Options) -> None:
    """Prints every table; with ``write`` keeps them."""
    name, study = study_of(options.folder)
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    recorded = record.get(name, {"runs": []})["runs"]
    found = collect(options.folder, study, recorded)
    rows = joined(found, recorded)
    if not rows:
        raise DataError(f"{options.folder} has no run that is trained and scored, and {RECORD.name} records none of "
                        f"{name}; run its sweep first: jaxablate sweep claims_{name} --workdir {options.folder}")
    print(f"{len(rows)} runs, {sum(row in found for row in rows)} of them read from {options.folder}, the others from "
          f"{RECORD.name}\n")
    if options.write:
        record[name] = {"runs": rows, "made": dataclasses.asdict(provenance(jax.devices()))}
        write_json(RECORD, record)
    grids = all_tables(rows, study)
    for table, grid in grids.items():
        print(f"{grid.title or table}\n\n{markdown(grid)}\n")
    if options.write:
        write(DOCS, with_tables(DOCS.read_text(), name, grids))


def with_tables(text: str, name: str, grids: Mapping[str, Grid]) -> str:
    """The page with a study's tables between those of its marks that are there."""
    for table, grid in grids.items():
        shown = markdown(grid)
        text = re.sub(rf"(<!-- {name} {table} -->\n).*?(<!-- end -->)",
                      lambda found, shown=shown: f"{found[1]}{shown}\n{found[2]}", text, flags=re.DOTALL)
    return text


def main() -> None:
    """Measures, or makes tables."""
    options = tyro.cli(Options, config=(tyro.conf.FlagCreatePairsOff,))
    if options.what == "measure":
        measure(options.folder, options.jobs)
    else:
        tables(options)


if __name__ == "__main__":
    sys.exit(guarded(main, ends=True))
