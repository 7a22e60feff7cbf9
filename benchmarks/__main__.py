"""Every benchmark, one after another, as tables: ``make bench``."""

import json
import subprocess
import sys

from rich.console import Console
from rich.table import Table

_SHAPES = [
    ("local k=8, batch 4", ["--batch-size", "4"]),
    ("local k=8, batch 32", ["--batch-size", "32", "--steps", "3"]),
    ("local k=8, batch 32, no accumulation", ["--batch-size", "32", "--accumulation-steps", "1", "--steps", "3"]),
    ("global k=8, batch 4", ["--batch-size", "4", "--model.ablation", "global"]),
    ("baseline, batch 4", ["--batch-size", "4", "--model.ablation", "none"]),
]


def main() -> None:
    """Runs each shape in a process of its own and prints one table."""
    table = Table(title="training step at the paper's shape (L=8, D=128, V=50,257, T=256), float32")
    for name in ("shape", "parts", "tokens/s", "GFLOP/s", "matmul GFLOP/s", "fraction", "compile", "peak memory"):
        table.add_column(name, justify="left" if name == "shape" else "right")
    for name, arguments in _SHAPES:
        command = [sys.executable, "-m", "benchmarks.training_step", *arguments]
        row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
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
        print(f"measured: {name}", file=sys.stderr)
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
