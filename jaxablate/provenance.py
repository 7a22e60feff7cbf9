"""Under which conditions something was computed: revision of the code, versions of packages, devices, date.

Training records them for a run, evaluation for each figure.
"""

import dataclasses
import datetime
import importlib.metadata
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PACKAGES = ("jaxablate", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "scipy",
            "tiktoken", "tokenizers")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where, when and with what something was computed."""

    revision: str | None
    """Git revision of the package, with ``-dirty`` where files had changed; None outside a repository."""
    versions: Mapping[str, str]
    """Installed version of each package the figures depend on."""
    device: str
    """Kind and number of the accelerators, for example ``4 x NVIDIA A100`` or ``1 x cpu``."""
    date: str
    """Start, ISO 8601, UTC."""


def provenance(devices: Sequence[Any]) -> Provenance:
    """The conditions of a computation that starts now on JAX devices of one kind."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return Provenance(revision=git_revision(), versions=package_versions(), device=device_names(devices), date=now)


def device_names(devices: Sequence[Any]) -> str:
    """Number and kind of JAX devices: ``8 x NVIDIA H100 80GB HBM3``."""
    return f"{len(devices)} x {devices[0].device_kind}"


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
      Twelve hex digits, or None where git is missing or fails, the folder is in no repository, or it holds none of
      the repository's own files (a package installed into an environment below another project).
    """
    folder = Path(__file__).resolve().parent if folder is None else folder
    if _git(folder, "ls-files", "--error-unmatch", ".") is None:
        return None
    # Revision and dirtiness by one command: a failure cannot make changed files look clean.
    return _git(folder, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL,
                              timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
