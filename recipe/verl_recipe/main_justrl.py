"""Run JustRL by verl, from the root of a verl checkout: python3 -m recipe.verl_recipe.main_justrl [key=value ...]

verl's own entry point, `verl.trainer.main_ppo`, with the variables that other modules of this folder read in every
process of a run, on any node.
"""

import os
import time
from pathlib import Path

import hydra
from omegaconf import DictConfig, open_dict

from recipe.verl_plugins.run_file import RUN_FILE

MODULES = "VERL_USE_EXTERNAL_MODULES"  # verl imports these in every process: first ours, then the user's


def environment(config: DictConfig) -> dict[str, str]:
    """Set the variables of a run's processes; verl's metrics go to a file that is new at each start."""
    log = Path(config.trainer.default_local_dir).parent / f"{time.strftime('%Y%m%dT%H%M%S')}.jsonl"
    return {
        "PYTHONPATH": os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")])),
        MODULES: ",".join(filter(None, ["recipe.verl_plugins.process_group", os.environ.get(MODULES)])),
        "JUSTRL_NCCL_TIMEOUT": str(config.actor_rollout_ref.nccl_timeout),
        RUN_FILE: os.environ.get(RUN_FILE) or str(log.resolve()),
    }


@hydra.main(config_path="config", config_name="justrl_deepseek_trainer", version_base=None)
def main(config: DictConfig) -> None:
    variables = environment(config)
    os.environ.update(variables)
    Path(variables[RUN_FILE]).parent.mkdir(parents=True, exist_ok=True)
    runtime_env = config.ray_kwargs.ray_init.runtime_env
    with open_dict(runtime_env):
        runtime_env.env_vars = {**variables, **(runtime_env.get("env_vars") or {})}
    from verl.trainer import main_ppo  # not above: verl reads the variables when it is imported

    main_ppo.main(config)


if __name__ == "__main__":
    main()
