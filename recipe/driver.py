"""Hand a composed config over to verl's own trainer. Started by `recipe.train`, in a process of its own."""

import sys

from omegaconf import OmegaConf

from recipe.processes import end_with_parent


def main() -> None:
    end_with_parent()  # a run whose supervisor was killed holds no lock, so it must not go on
    from verl.trainer.main_ppo import TaskRunnerV1, run_ppo
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    config = OmegaConf.load(sys.argv[1])
    validate_config(config, use_reference_policy=need_reference_policy(config), use_critic=need_critic(config))
    run_ppo(config, TaskRunnerV1)


if __name__ == "__main__":
    main()
