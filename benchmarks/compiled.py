"""The training step, compiled for machines that are not here: code, memory, kernels, collectives, compile time.

    python -m benchmarks.compiled                          # every row whose compiler is here
    python -m benchmarks.compiled --targets v5e --write    # those of v5e; keeps them
    python -m benchmarks.compiled --large --write          # GPT-2 medium and 1.3 billion parameters; keeps them
    python -m benchmarks.compiled --check                  # the paper's step for v5e 2x2 against the record
    python -m benchmarks.compiled --show                   # the record

The figures are those of ``jaxablate train --plan``. A row is compiled in a process of its own. The record is
compiled.json; the tables of docs/accelerators.md are made from it.
"""

import dataclasses
import importlib.metadata
import io
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import tyro
from rich import box
from rich.table import Table

from benchmarks.__main__ import measured
from jaxablate.config import Config, MeshConfig, ModelConfig, TrainConfig
from jaxablate.errors import ConfigError
from jaxablate.exits import guarded
from jaxablate.files import write, write_json
from jaxablate.provenance import package_versions
from jaxablate.terminal import PlainConsole
from jaxablate.training.plan import plan, target_devices

RECORD = Path(__file__).with_suffix(".json")
DOCS = RECORD.parent.parent / "docs" / "accelerators.md"
GROWTH = 1.1
"""Times the record's that collectives, code and memory may be."""


def _row(target: str, batch: int, mesh: Mapping[str, int], dtype: Literal["float32", "bfloat16"] = "float32",
         length: int = 256, **model: Any) -> tuple[str, Config]:
    shape = ModelConfig(context_length=length, compute_dtype=dtype, **model)
    return target, Config(model=shape, mesh=MeshConfig(**mesh),
                          train=TrainConfig(batch_size=batch, sequence_length=length))


_GPT2: Any = {"d_model": 768, "n_layers": 12, "n_heads": 12, "length": 1024, "dtype": "bfloat16"}
_MEDIUM: Any = {"d_model": 1024, "n_layers": 24, "n_heads": 16, "length": 1024, "dtype": "bfloat16", "remat": "blocks"}
_XL: Any = {"d_model": 2048, "n_layers": 24, "n_heads": 16, "length": 1024, "dtype": "bfloat16", "remat": "blocks"}

ROWS: dict[str, tuple[str, Config]] = {
    "v5e 2x2, data 4": _row("v5e:2x2", 32, {}),
    "v5e 2x2, data 4, bfloat16, batch 256": _row("v5e:2x2", 256, {}, "bfloat16"),
    "v5e 2x2, fsdp 4": _row("v5e:2x2", 32, {"fsdp": 4}),
    "v5e 2x2, tensor 4": _row("v5e:2x2", 32, {"tensor": 4}),
    "v5e 2x2, data 4, no gates": _row("v5e:2x2", 32, {}, ablation="none"),
    "H100": _row("h100:1", 32, {}),
    "H100, bfloat16, batch 256": _row("h100:1", 256, {}, "bfloat16"),
    "H100, no gates": _row("h100:1", 32, {}, ablation="none"),
    "GPT-2 small, 8 x H100, fsdp 8": _row("h100:8", 64, {"fsdp": 8}, **_GPT2),
    "GPT-2 small, v5e 4x4, fsdp 16": _row("v5e:4x4", 64, {"fsdp": 16}, **_GPT2),
}
"""The paper's shape with local gates, k = 8, and GPT-2 small with them: name -> (target, settings)."""
LARGE: dict[str, tuple[str, Config]] = {
    "GPT-2 medium, v5p 2x2x2": _row("v5p:2x2x2", 64, {"fsdp": 8}, **_MEDIUM),
    "GPT-2 medium, 8 x H100": _row("h100:8", 64, {"fsdp": 8}, **_MEDIUM),
    "1.3 B, v5p 2x2x4": _row("v5p:2x2x4", 64, {"fsdp": 16}, **_XL),
    "1.3 B, 16 x H100": _row("h100:16", 64, {"fsdp": 16}, **_XL),
}
"""Larger ones, likewise, for ``--large``."""
CHECKED = ("v5e 2x2, data 4", "v5e 2x2, fsdp 4", "v5e 2x2, tensor 4")
"""Rows of ``--check``, those that are on record."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to compile."""

    targets: tuple[str, ...] = ()
    """Kinds of machines (v5e, h100 ...); every one whose compiler is here by default."""
    rows: tuple[str, ...] = ()
    """Rows by name; all by default."""
    large: bool = False
    """GPT-2 medium and 1.3 B in place of the paper's shape."""
    write: bool = False
    """Keep what was measured in compiled.json and docs/accelerators.md."""
    check: bool = False
    """Fail where the paper's step for a v5e slice has grown by more than a tenth over the record."""
    show: bool = False
    """Compile nothing and print the record; with ``write``, into the docs, too."""
    one: str | None = None
    """Compile this row in this process, and print it as JSON."""


def main(options: Options) -> None:
    """Does what is asked for.

    Raises:
      ConfigError: a row is unknown, a compiler is missing, or a checked row has grown.
    """
    rows = ROWS | LARGE
    for name in (*options.rows, *([options.one] if options.one else [])):
        if name not in rows:
            raise ConfigError(f"row {name!r:.80} is unknown; there are {'; '.join(rows)}")
    if options.one:
        print(json.dumps(measure(*rows[options.one])))
        return
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    if options.show:
        PlainConsole(width=180).print(_table(record))
        if options.write:
            write(DOCS, documented(DOCS.read_text(), record))
    elif options.check:
        check(options.rows or [name for name in CHECKED if name in record] or CHECKED[:1], record)
    else:
        of = LARGE if options.large else ROWS
        chosen = options.rows or [name for name in of if _wanted(of[name][0], options.targets)]
        found: dict[str, Any] = {}
        for name in chosen:
            found[name] = measured("compiled", name, ["--one", name])
            if options.write:  # row by row: a long list may be stopped
                record = {name: row for name in rows if (row := (record | found).get(name))}
                write_json(RECORD, record)
                write(DOCS, documented(DOCS.read_text(), record))
        PlainConsole(width=180).print(_table(found))


def measure(target: str, config: Config) -> dict[str, Any]:
    """One row as plain numbers: bytes of one device, its kernels, operations and collectives, seconds, versions."""
    jax.config.update("jax_platforms", "cpu")
    needs = plan(config, target)
    return {
        "target": target, "devices": needs.devices, "mesh": dict(needs.mesh), "rows": needs.rows,
        "length": needs.length, "parameters": needs.n_parameters,
        "arguments": needs.arguments, "outputs": needs.outputs, "temporaries": needs.temporaries, "code": needs.code,
        "room": needs.room, "fits": needs.fits, "refusal": needs.refusal,
        "kernels": needs.work.kernels, "unknown_loops": needs.work.unknown_loops, "flops": needs.work.flops,
        "compiler_flops": needs.compiler_flops, "model_flops": needs.model_flops, "traffic": needs.work.traffic,
        "collectives": {kind: dataclasses.asdict(c) for kind, c in needs.work.collectives.items()},
        "bounds": {name: round(rate) for name, rate in needs.bounds().items()},
        "trace_s": round(needs.trace_seconds, 1), "compile_s": round(needs.compile_seconds, 1),
        "versions": _versions(),
    }


def check(names: Sequence[str], record: Mapping[str, Any]) -> None:
    """Compiles rows anew and compares them with the record.

    Raises:
      ConfigError: collectives, code or memory of a row have grown by more than a tenth, or it has no record.
    """
    for name in names:
        if name not in record:
            raise ConfigError(f"{RECORD.name} has no row {name!r}; python -m benchmarks.compiled --rows {name!r} "
                              "--write")
        before, now = record[name], measured("compiled", name, ["--one", name])
        grown = [f"{what} {old:,} -> {new:,}" for what, old, new in _compared(before, now) if new > GROWTH * old]
        if grown:
            versions = ", ".join(f"{package} {version} here" for package, version in now["versions"].items()
                                 if before["versions"].get(package) != version)
            raise ConfigError(f"{name}: {'; '.join(grown)}, more than a tenth over {RECORD.name}"
                              f"{f' ({versions})' if versions else ''}; mend it, or say why in the commit and write "
                              f"the record anew: python -m benchmarks.compiled --rows {name!r} --write")
        figures = ", ".join(f"{what} {new:,}" for what, _, new in _compared(before, now))
        print(f"{name}: at most a tenth over the record; {figures}")


def _compared(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, int, int]]:
    """What must not grow, by name: on record, and now."""
    figures = [(what, before[what] or 0, now[what] or 0) for what in ("code", "temporaries", "arguments")]
    none = {"count": 0, "bytes": 0}
    for kind in sorted({*before["collectives"], *now["collectives"]}):
        old, new = (row["collectives"].get(kind, none) for row in (before, now))
        figures += [(f"{kind} {what}", old[what], new[what]) for what in ("count", "bytes")]
    return figures


def _wanted(target: str, kinds: Sequence[str]) -> bool:
    """Whether a target is asked for, or, where nothing is, whether its compiler is here."""
    if kinds:
        return target.partition(":")[0] in kinds
    try:
        target_devices(target)
    except ConfigError as error:
        print(f"left out: {error}", file=sys.stderr)
        return False
    return True


def _versions() -> dict[str, str]:
    versions = package_versions(("jax", "jaxlib", "libtpu", "jax-cuda13-plugin"))
    library = os.environ.get("TPU_LIBRARY_PATH")  # an installation in a place of its own
    if library:
        for found in importlib.metadata.distributions(name="libtpu", path=[str(Path(library).parent.parent)]):
            versions["libtpu"] = found.version
    return versions


def documented(text: str, record: Mapping[str, Any]) -> str:
    """The page on accelerators with its tables of compiled steps made anew."""
    for name, rows in {"paper": ROWS, "large": LARGE}.items():
        text = with_table(text, name, _table({row: record[row] for row in rows if row in record}, box.MARKDOWN))
    return text


def with_table(text: str, name: str, table: Table) -> str:
    """A page of the docs with one table made anew; it stands between two comments, the first names it."""
    console = PlainConsole(width=400, file=io.StringIO(), record=True)
    console.print(table)
    lines = re.sub("-{3,}", "---", console.export_text().strip()).splitlines()
    made = "\n".join(" ".join(line.split()) for line in lines)
    return re.sub(rf"(<!-- {name}: [^>]*-->\n).*?(<!-- end -->)", lambda found: f"{found[1]}{made}\n{found[2]}", text,
                  flags=re.DOTALL)


def _table(rows: Mapping[str, Any], look: box.Box = box.SIMPLE_HEAD) -> Table:
    table = Table(box=look)
    table.add_column("step")
    for heading in ("compiled in", "code", "state and batch", "temporaries", "of memory", "kernels",
                    "products / model's", "collectives", "at best, tokens/s"):
        table.add_column(heading, justify="right")
    for name, row in rows.items():
        batch = "" if "batch" in name else f", batch {row['rows']}"
        first = f"{name}{batch}", f"{row['compile_s']:.0f} s"
        if row["refusal"] is not None:
            table.add_row(*first, "", f"{row['arguments'] / 1e9:.3f} GB", "", row["refusal"])
            continue
        total = row["arguments"] + row["outputs"] + row["temporaries"] + (row["code"] or 0)
        collectives = ", ".join(f"{c['count']:,} {kind} ({c['bytes'] / 1e6:,.0f} MB)"
                                for kind, c in row["collectives"].items())
        bound, rate = min(row["bounds"].items(), key=lambda pair: pair[1])
        table.add_row(*first, "not told" if row["code"] is None else f"{row['code'] / 1e6:,.0f} MB",
                      f"{row['arguments'] / 1e9:.3f} GB", f"{row['temporaries'] / 1e9:.2f} GB",
                      f"{total / row['room']:.0%}", f"{row['kernels']:,}", f"{row['flops'] / row['model_flops']:.2f}",
                      collectives, f"{rate:,} ({bound})")
    return table


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(tyro.cli(Options, config=(tyro.conf.FlagCreatePairsOff,))), ends=True))
