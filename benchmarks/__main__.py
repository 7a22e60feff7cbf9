"""Every benchmark, one after another, as tables: ``make bench``."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.table import Table

from jaxablate.terminal import PlainConsole

_STEPS = [
    ("local k=8, batch 4", ["--batch-size", "4"]),
    ("local k=8, batch 32", ["--batch-size", "32", "--steps", "3"]),
    ("local k=8, batch 32, no accumulation", ["--batch-size", "32", "--accumulation-steps", "1", "--steps", "3"]),
    ("global k=8, batch 4", ["--batch-size", "4", "--model.ablation", "global"]),
    ("baseline, batch 4", ["--batch-size", "4", "--model.ablation", "none"]),
]
_NO_REGULARISERS = ["--objective.importance", "0", "--objective.interaction", "0"]
_EPOCHS = [
    ("texts of like length together", []),
    ("all padded to 128", ["--bucket-multiple", "0"]),
    ("texts of like length together, no regularisers", _NO_REGULARISERS),
]


_SEARCHES = [
    ("trained on the embedded corpus", ["--weights", "trained"]),
    ("random weights", ["--weights", "random"]),
    ("random weights, strong effects", ["--weights", "strong"]),
]
_AUTOENCODERS = [
    ("L1", []),
    ("topk, k = 32", ["--architecture", "topk", "--seeds", "0"]),
    ("batchtopk, k = 32", ["--architecture", "batchtopk", "--seeds", "0"]),
]
_MILLION = ["--tokens", "1_048_576", "--repeats", "1"]
_NEURON_MEASURES = [
    ("clean stream's units", ["--ablation", "none", *_MILLION]),
    ("units of both streams, gates", ["--ablation", "local", *_MILLION]),
]

_GRAPHS = [("some of the neurons", ["--units", "256"])]


def main() -> None:
    """Runs each row in a process of its own and prints the tables."""
    console = PlainConsole(width=130)
    for table in _TABLES:
        console.print(_filled(table))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Of:
    """A table: one row for each (name, arguments) of a benchmark."""

    title: str
    module: str
    rows: Sequence[tuple[str, Sequence[str]]]
    first: str
    """Heading of the names."""
    columns: Mapping[str, Callable[[Mapping[str, Any]], str]]
    """Heading -> what it shows of a row's JSON."""


def _memory(row: Mapping[str, Any]) -> str:
    return f"{row['peak_bytes'] / 1e9:.2f} GB"


_TABLES = (
    _Of(title="training step at the paper's shape (L=8, D=128, V=50,257, T=256), float32", module="training_step",
        rows=_STEPS, first="shape", columns={
            "parts": lambda row: str(row["accumulation_steps"]),
            "tokens/s": lambda row: f"{row['tokens_per_s']:,.0f}",
            "GFLOP/s": lambda row: f"{row['flops_per_s'] / 1e9:.1f}",
            "matmul GFLOP/s": lambda row: f"{row['matmul_flops_per_s'] / 1e9:.1f}",
            "fraction": lambda row: f"{row['fraction']:.1%}",
            "compile": lambda row: f"{row['compile_s']:.1f} s",
            "peak memory": _memory,
        }),
    # Where the Stanford Sentiment Treebank is here or can be downloaded.
    _Of(title="epoch of the SAFR classifier on SST-2 (D=256, F=1,024, batch 32), float32", module="classifier_epoch",
        rows=_EPOCHS, first="batches", columns={
            "epoch": lambda row: f"{row['epoch_s']:.1f} s",
            "steps": lambda row: str(row["steps"]),
            "median steps/s": lambda row: f"{row['steps_per_s']:.1f}",
            "mean length": lambda row: f"{row['mean_length']:.1f}",
            "shapes": lambda row: str(row["shapes"]),
            "compile": lambda row: f"{row['compile_s']:.1f} s",
            "peak memory": _memory,
        }),
    # The first row trains its model where runs/corpus-8x16 has none.
    _Of(title="circuits at the paper's shape (L=8, N=16, D=128, V=50,257), 64 prompts of about 20 tokens, float32",
        module="circuit_search", rows=_SEARCHES, first="weights", columns={
            "ACDC, tau 0.03": lambda row: f"{row['search_s']:.1f} s",
            "with compilation": lambda row: f"{row['first_s']:.1f} s",
            "edges": lambda row: f"{row['edges']:,}",
            "evaluated": lambda row: f"{row['evaluated']:,}",
            "rechecked": lambda row: str(row["rechecked"]),
            "kept": lambda row: str(row["kept"]["0.03"]),
            "EAP, all edges": lambda row: f"{row['eap_s']:.2f} s",
            "peak memory": _memory,
        }),
    _Of(title="autoencoders 128 -> 2,048, 4,096 tokens a step, on the paper's decoder, float32", module="autoencoder",
        rows=_AUTOENCODERS, first="kind", columns={
            "steps/s alone": lambda row: f"{row['steps_per_s']:.1f}",
            "fraction of matmul": lambda row: f"{row['fraction']:.1%}",
            "forward": lambda row: f"{row['forward_s']:.3f} s",
            "training step": lambda row: f"{row['training_s']:.3f} s",
            "/ (step + forward)": lambda row: f"{row['overhead']:.2f}",
            "8 seeds / 8 runs": lambda row: f"{row['of_separate']:.2f}" if "of_separate" in row else "",
            "peak memory": _memory,
        }),
    _Of(title="measures of all neurons and attention channels at the paper's shape, 1 M tokens, float32",
        module="neuron_measures", rows=_NEURON_MEASURES, first="units", columns={
            "forward pass": lambda row: f"{row['forward_tokens_per_s']:,.0f} tokens/s",
            "with measures": lambda row: f"{row['measured_tokens_per_s']:,.0f} tokens/s",
            "time": lambda row: f"{row['ratio']:.2f} times",
            "processor time": lambda row: f"{row['processor_ratio']:.2f} times",
            "peak memory": _memory,
        }),
    _Of(title="Neuron to Graph at the paper's shape, random weights, float32", module="neuron_graphs", rows=_GRAPHS,
        first="", columns={
            "neurons": lambda row: f"{row['units']:,}",
            "graphs": lambda row: f"{row['graphs_made']:,}",
            "compiling": lambda row: f"{row['seconds']['compiling']:.0f} s",
            "building": lambda row: f"{row['seconds']['graphs']:.0f} s",
            "matching": lambda row: f"{row['seconds']['matching']:.0f} s",
            "all 4,096 (extrapolated)": lambda row: f"{row['all_seconds'] / 60:.1f} min",
            "peak memory": _memory,
        }),
)


def _filled(of: _Of) -> Table:
    table = Table(title=of.title)
    table.add_column(of.first)
    for heading in of.columns:
        table.add_column(heading, justify="right")
    for name, arguments in of.rows:
        row = measured(of.module, name, arguments)
        table.add_row(name, *(show(row) for show in of.columns.values()))
    return table


def measured(module: str, name: str, arguments: Sequence[str]) -> Mapping[str, Any]:
    """What a benchmark's process prints last; one that fails ends this program with its own words."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{name}: {done.stderr.strip().splitlines()[-1]}")
    print(f"measured: {name}", file=sys.stderr)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
