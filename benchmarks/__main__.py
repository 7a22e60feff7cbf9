"""Every benchmark, one after another, as tables: ``make bench``."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

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
_NEURON_MEASURES = [
    ("clean stream's units", ["--ablation", "none"]),
    ("units of both streams, gates", ["--ablation", "local"]),
]

_GRAPHS = [("some of the neurons", ["--units", "256"])]


def main() -> None:
    """Runs each row in a process of its own and prints the tables."""
    console = Console(width=130)
    console.print(language_table())
    console.print(classifier_table())
    console.print(circuit_table())
    console.print(autoencoder_table())
    console.print(neuron_table())
    console.print(graph_table())


def language_table() -> Table:
    """Training step of the self-ablating transformer."""
    table = _table("training step at the paper's shape (L=8, D=128, V=50,257, T=256), float32",
                   "shape", "parts", "tokens/s", "GFLOP/s", "matmul GFLOP/s", "fraction", "compile", "peak memory")
    for name, arguments in _STEPS:
        row = measured("training_step", name, arguments)
        table.add_row(
            name,
            str(row["accumulation_steps"]),
            f"{row['tokens_per_s']:,.0f}",
            f"{row['flops_per_s'] / 1e9:.1f}",
            f"{row['matmul_flops_per_s'] / 1e9:.1f}",
            f"{row['fraction']:.1%}",
            f"{row['compile_s']:.1f} s",
            f"{row['peak_bytes'] / 1e9:.2f} GB",
        )
    return table


def classifier_table() -> Table:
    """Epoch of the SAFR classifier on SST-2, where its texts are here or can be downloaded."""
    table = _table("epoch of the SAFR classifier on SST-2 (D=256, F=1,024, batch 32), float32",
                   "batches", "epoch", "steps", "median steps/s", "mean length", "shapes", "compile", "peak memory")
    for name, arguments in _EPOCHS:
        row = measured("classifier_epoch", name, arguments)
        table.add_row(
            name,
            f"{row['epoch_s']:.1f} s",
            str(row["steps"]),
            f"{row['steps_per_s']:.1f}",
            f"{row['mean_length']:.1f}",
            str(row["shapes"]),
            f"{row['compile_s']:.1f} s",
            f"{row['peak_bytes'] / 1e9:.2f} GB",
        )
    return table


def circuit_table() -> Table:
    """Circuits at the paper's shape; the first row trains its model where runs/corpus-8x16 has none."""
    table = _table("circuits at the paper's shape (L=8, N=16, D=128, V=50,257), 64 prompts of about 20 tokens, float32",
                   "weights", "ACDC, tau 0.03", "with compilation", "edges", "evaluated", "rechecked", "kept",
                   "EAP, all edges", "peak memory")
    for name, arguments in _SEARCHES:
        row = measured("circuit_search", name, arguments)
        table.add_row(
            name,
            f"{row['search_s']:.1f} s",
            f"{row['first_s']:.1f} s",
            f"{row['edges']:,}",
            f"{row['evaluated']:,}",
            str(row["rechecked"]),
            str(row["kept"]["0.03"]),
            f"{row['eap_s']:.2f} s",
            f"{row['peak_bytes'] / 1e9:.2f} GB",
        )
    return table


def autoencoder_table() -> Table:
    """Training of sparse autoencoders, alone and with the paper's decoder in the loop."""
    table = _table("autoencoders 128 -> 2,048, 4,096 tokens a step, on the paper's decoder, float32",
                   "kind", "steps/s alone", "fraction of matmul", "forward", "training step", "/ (step + forward)",
                   "8 seeds / 8 runs", "peak memory")
    for name, arguments in _AUTOENCODERS:
        row = measured("autoencoder", name, arguments)
        table.add_row(
            name,
            f"{row['steps_per_s']:.1f}",
            f"{row['fraction']:.1%}",
            f"{row['forward_s']:.3f} s",
            f"{row['training_s']:.3f} s",
            f"{row['overhead']:.2f}",
            f"{row['of_separate']:.2f}" if "of_separate" in row else "",
            f"{row['peak_bytes'] / 1e9:.2f} GB",
        )
    return table


def neuron_table() -> Table:
    """Neuron measures beside the forward pass they need."""
    table = _table("measures of all neurons and attention channels at the paper's shape, 128 k tokens, float32",
                   "units", "forward pass", "with measures", "time", "processor time", "peak memory")
    for name, arguments in _NEURON_MEASURES:
        row = measured("neuron_measures", name, arguments)
        table.add_row(
            name,
            f"{row['forward_tokens_per_s']:,.0f} tokens/s",
            f"{row['measured_tokens_per_s']:,.0f} tokens/s",
            f"{row['ratio']:.2f} times",
            f"{row['processor_ratio']:.2f} times",
            f"{row['peak_bytes'] / 1e9:.2f} GB",
        )
    return table


def graph_table() -> Table:
    """Neuron to Graph: some neurons of every layer, and from them the time of all."""
    table = _table("Neuron to Graph at the paper's shape, random weights, float32",
                   "neurons", "graphs", "compiling", "building", "matching", "all 4,096 (extrapolated)", "peak memory")
    for name, arguments in _GRAPHS:
        row = measured("neuron_graphs", name, arguments)
        parts = row["seconds"]
        table.add_row(
            f"{row['units']:,}",
            f"{row['graphs_made']:,}",
            f"{parts['compiling']:.0f} s",
            f"{parts['graphs']:.0f} s",
            f"{parts['matching']:.0f} s",
            f"{row['all_seconds'] / 60:.1f} min",
            f"{row['peak_bytes'] / 1e9:.2f} GB",
        )
    return table


def measured(module: str, name: str, arguments: Sequence[str]) -> Mapping[str, Any]:
    """What a benchmark's process prints last; one that fails ends this program with its own words."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{name}: {done.stderr.strip().splitlines()[-1]}")
    print(f"measured: {name}", file=sys.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(title=title)
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table


if __name__ == "__main__":
    main()
