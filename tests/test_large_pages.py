"""Large pages of memory: what a process lacks for them, and who is told."""

import os
import subprocess
import sys

import pytest

from jaxablate.commands import sweep
from jaxablate.training import large_pages

WANTED = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Sets what the system says: glibc's version and the kernel's line."""
    def say(library="glibc 2.36", kernel="always [madvise] never", system="linux"):
        (tmp_path / "enabled").write_text(kernel)
        monkeypatch.setattr(large_pages, "_KERNEL", tmp_path / "enabled")
        monkeypatch.setattr(os, "confstr", lambda name: library)
        monkeypatch.setattr(sys, "platform", system)

    return say


def test_what_is_lacking_is_added_to_what_is_set(machine):
    machine()
    assert large_pages.lacking({}) == WANTED
    assert large_pages.lacking({"GLIBC_TUNABLES": "glibc.malloc.check=0"}) == {
        "GLIBC_TUNABLES": "glibc.malloc.check=0:glibc.malloc.hugetlb=1"}
    for given in ("glibc.malloc.hugetlb=1", "glibc.malloc.hugetlb=0"):
        assert large_pages.lacking({"GLIBC_TUNABLES": given}) == {} and not large_pages.hint({"GLIBC_TUNABLES": given})
    assert large_pages.hint({}).endswith("export GLIBC_TUNABLES=glibc.malloc.hugetlb=1")


@pytest.mark.parametrize("says", [
    {"kernel": "[always] madvise never"}, {"kernel": "always madvise [never]"}, {"library": "glibc 2.34"},
    {"library": "musl 1.2"}, {"library": "glibc"}, {"library": None}, {"system": "darwin"},
])
def test_nothing_is_lacking_where_it_would_change_nothing(machine, says):
    machine(**says)
    assert large_pages.lacking({}) == {} and large_pages.hint({}) == ""


def test_a_kernel_that_says_nothing(machine, monkeypatch, tmp_path):
    machine()
    monkeypatch.setattr(large_pages, "_KERNEL", tmp_path / "none")
    assert large_pages.lacking({}) == {}


def test_processes_of_a_sweep_have_them(machine, monkeypatch, tmp_path):
    machine()
    asked = []
    monkeypatch.setattr(subprocess, "Popen", lambda line, **options: asked.append(options["env"]))
    sweep.start(["train"], tmp_path / "log.txt", {"HOME": "/home/me"})
    assert asked[0].items() >= {"HOME": "/home/me", **WANTED}.items()
