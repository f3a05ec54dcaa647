"""The code of docs/extending.md, all of it together, trains."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def test_the_code_of_the_guide_trains_and_is_evaluated(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/extending.md").read_text(), re.S)
    run = "import sys\nfrom embodied_rl.commands import run\nsys.exit(run('train', sys.argv[1:]))"
    script = tmp_path / "guide.py"
    script.write_text("\n".join([*blocks, run]))
    result = subprocess.run(
        [sys.executable, "-W", "ignore", script, "doors_ppo", "--runs", tmp_path / "runs"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        timeout=200,
    )
    assert result.returncode == 0, result.stderr
    folder = Path(result.stdout.strip().splitlines()[-1])
    assert (folder / "evaluations.jsonl").is_file()
