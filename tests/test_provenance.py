"""Conditions on record beside runs and figures."""

import re
import subprocess

import jax

from jaxablate.provenance import git_revision, package_versions, provenance


def git(folder, *arguments):
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *identity, "-C", str(folder), *arguments], check=True, capture_output=True)


def test_versions_are_those_of_installed_packages():
    assert list(package_versions(("numpy", "no-such-package"))) == ["numpy"]


def test_conditions_say_what_and_where():
    now = provenance(jax.devices()[:1])
    assert now.device == f"1 x {jax.devices()[0].device_kind}"
    assert now.versions["jax"] == jax.__version__
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", now.date)
    assert now.revision is None or re.fullmatch(r"[0-9a-f]{12}(-dirty)?", now.revision)


def test_revision_tells_changed_files(tmp_path):
    assert git_revision(tmp_path) is None  # no repository
    git(tmp_path, "init", "-q")
    assert git_revision(tmp_path) is None  # no file of it
    (tmp_path / "file").write_text("1")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-q", "-m", "first")
    git(tmp_path, "tag", "v1")
    clean = git_revision(tmp_path)
    assert re.fullmatch(r"[0-9a-f]{12}", clean)
    (tmp_path / "untracked").touch()
    assert git_revision(tmp_path) == clean
    (tmp_path / "file").write_text("22")
    assert git_revision(tmp_path) == f"{clean}-dirty"


def test_a_package_installed_below_another_project_has_no_revision(tmp_path):
    git(tmp_path, "init", "-q")
    (tmp_path / "theirs").touch()
    git(tmp_path, "add", "theirs")
    git(tmp_path, "commit", "-q", "-m", "theirs")
    installed = tmp_path / ".venv" / "jaxablate"
    installed.mkdir(parents=True)
    (installed / "code.py").touch()
    assert git_revision(installed) is None
