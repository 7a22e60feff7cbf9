"""The guide's script, as a new user would run it: on a trained run, in under 60 lines."""

import re
import subprocess
import sys
from pathlib import Path

GUIDE = Path(__file__).parent.parent / "docs" / "guide.md"


def test_the_guide_runs_as_it_stands(language_run, tmp_path):
    script = "\n".join(re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text(), re.DOTALL | re.MULTILINE))
    lines = [line for line in script.splitlines() if line.strip()]
    assert len(lines) < 60
    (tmp_path / "guide.py").write_text(script)
    done = subprocess.run([sys.executable, "guide.py", str(language_run)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    printed = done.stdout.splitlines()
    assert printed[0].endswith("steps") or "layers" in printed[0]
    assert any(line.startswith("ACDC keeps") for line in printed)
    assert "explained variance" in done.stdout
    assert printed[-3:] != printed[-6:-3]  # three gradients were printed
