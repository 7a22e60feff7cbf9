"""Conditions of a measurement: git revision, package versions, device and date."""

import datetime
import importlib.metadata
import subprocess
from pathlib import Path

from jaxablate.reports.results import Provenance

PACKAGES = ("jaxablate", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "scipy",
            "tiktoken", "tokenizers")


def provenance(device: str) -> Provenance:
    """Conditions as they are now.

    Args:
      device: kind and number of accelerators in words.
    """
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return Provenance(revision=git_revision(), versions=package_versions(), device=device, date=now)


def package_versions(names: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Installed versions of those packages that are installed."""
    out = {}
    for name in names:
        try:
            out[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return out


def git_revision(folder: Path | None = None) -> str | None:
    """Revision of the repository that holds the package (or ``folder``), ``-dirty`` where tracked files differ.

    Returns:
      Twelve hex digits, or None where git is missing, the folder is in no repository, or the package is not one of
      the repository's own files (installed into an environment below it).
    """
    folder = Path(__file__).resolve().parent if folder is None else folder
    if _git(folder, "ls-files", "--error-unmatch", ".") is None:
        return None
    revision = _git(folder, "rev-parse", "--short=12", "HEAD")
    if revision is None:
        return None
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return f"{revision}-dirty" if changed else revision


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
