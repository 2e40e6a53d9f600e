"""The same command again and again, killed on its way (`kill_driver.py` does the killing)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

TESTS = Path(__file__).parent


def kill_and_repeat(
    arguments: Sequence[object],
    kills: Sequence[int | None],
    *,
    mark_bytes: int | None = None,
    block_elements: int | None = None,
) -> list[int]:
    """Run va-export once for each of `kills`; returns the exit codes.

    Args:
        kills: the event of the run at which it is killed; None: not at all.
        mark_bytes, block_elements: of the weights' stream; default: as it is.
    """
    job = {
        "arguments": [str(argument) for argument in arguments],
        "kills": list(kills),
        "mark_bytes": mark_bytes,
        "block_elements": block_elements,
    }
    done = subprocess.run(
        [sys.executable, str(TESTS / "kill_driver.py")],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(TESTS.parent)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [int(code) for code in json.loads(done.stdout)]
