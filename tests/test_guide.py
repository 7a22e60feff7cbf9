"""The guide's script, as a new user would run it: on a trained run, in under 60 lines."""

import re
import runpy
import sys
from pathlib import Path

import pytest

GUIDE = Path(__file__).parent.parent / "docs" / "guide.md"


@pytest.mark.system
def test_the_guide_runs_as_it_stands(language_run, tmp_path, monkeypatch, capsys):
    script = "\n".join(re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text(), re.DOTALL | re.MULTILINE))
    lines = [line for line in script.splitlines() if line.strip()]
    assert len(lines) < 60
    (tmp_path / "guide.py").write_text(script)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["guide.py", str(language_run)])
    runpy.run_path("guide.py", run_name="__main__")
    out = capsys.readouterr().out
    printed = out.splitlines()
    assert printed[0].endswith("steps") or "layers" in printed[0]
    assert any(line.startswith("ACDC keeps") for line in printed)
    assert "explained variance" in out
    assert printed[-3:] != printed[-6:-3]  # three gradients were printed
