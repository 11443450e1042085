"""Run verl's trainer on a composed config. `recipe.train` starts this in a process of its own."""

import os
import sys
from pathlib import Path

from omegaconf import OmegaConf


def enter_repository() -> None:
    """Change to the folder of the config's relative paths; workers of a Ray cluster start in that of `ray start`."""
    os.chdir(Path(__file__).resolve().parent.parent)


def main() -> None:
    from verl.trainer.main_ppo import run_ppo
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    from common.ray_start import prepare_ray_start
    from recipe.verl_plugins.trainer import RemoteTaskRunner

    prepare_ray_start()
    config = OmegaConf.load(sys.argv[1])
    validate_config(config, use_reference_policy=need_reference_policy(config), use_critic=need_critic(config))
    run_ppo(config, RemoteTaskRunner)


if __name__ == "__main__":
    main()
