"""A reward that waits for ever, or raises, as long as a file says so: for tests of what a run does about that."""

import time
from pathlib import Path

from reward import justrl


def compute_score(data_source, solution_str, ground_truth, extra_info=None, *, folder, shadow=False):
    """Grade as `reward/justrl.py` does, unless `folder` has a file `hang` or `raise`."""
    while (Path(folder) / "hang").exists():
        time.sleep(0.1)
    if (Path(folder) / "raise").exists():
        raise ValueError("the reward has broken down")
    return justrl.compute_score(data_source, solution_str, ground_truth, extra_info, shadow=shadow)
