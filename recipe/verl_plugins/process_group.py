"""The run's `actor_rollout_ref.nccl_timeout` for the process group of its training workers.

verl 0.9.1 declares the key and passes no timeout (`workers/engine_workers.py`; verl 7815): PyTorch's 30 minutes hold.
verl imports this module in every process, as `recipe.environment` sets it, before the modules that take the
function.
"""

import os

from verl.utils import distributed

TIMEOUT = "JUSTRL_NCCL_TIMEOUT"  # seconds, from the config; set by recipe.environment
INITIALIZE = distributed.initialize_global_process_group_ray


def initialize(timeout_second=None, backend=None) -> None:
    """Replace verl's `initialize_global_process_group_ray`, which every training worker calls first."""
    INITIALIZE(timeout_second or int(os.environ[TIMEOUT]), backend)


distributed.initialize_global_process_group_ray = initialize
