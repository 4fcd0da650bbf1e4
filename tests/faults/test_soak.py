"""A short soak test: every prompt is accounted for. Memory is checked by the longer `benchmarks/soak.py`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).parents[2] / "benchmarks/soak.py"


@pytest.mark.slow
def test_every_prompt_of_a_short_soak_is_accounted_for():
    command = [sys.executable, str(SOAK), "--episodes", "128", "--lanes", "16", "--growth", "1000"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["episodes"], found["fewest_in_a_lane"], found["most_in_a_lane"]) == (128, 8, 8)
    assert found["prompts_wrong_or_missing"] == 0
