"""The `config.yaml` of a run, which may be damaged, or another's."""

from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from common.command import first_line

LIMIT = "data.max_response_length"
ACTOR = "actor_rollout_ref.actor"
# What a report needs, by type.
NEEDED: dict[str, type] = {LIMIT: int, "trainer.device": str, "actor_rollout_ref.model.override_config": DictConfig}
NEEDED |= dict.fromkeys(("data.train_batch_size", "data.max_prompt_length", "actor_rollout_ref.rollout.n"), int)
NEEDED |= dict.fromkeys((f"{ACTOR}.ppo_epochs", f"{ACTOR}.ppo_mini_batch_size", "trainer.nnodes"), int)
NEEDED |= {"trainer.n_gpus_per_node": int}
OPTIONAL = {"trainer.total_training_steps": int, "actor_rollout_ref.model.path": str}
OPTIONAL |= {"reward.custom_reward_function.path": str, "reward.reward_kwargs.overlong_buffer_cfg.enable": bool}


def read_config(path: Path, complete: bool = False) -> DictConfig:
    """Read a run's config that has the limit of its responses and, if `complete`, all that a report needs.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged; one line.
    """
    kinds = NEEDED if complete else {LIMIT: int}
    try:
        config = OmegaConf.load(path)
        values = {key: OmegaConf.select(config, key) for key in kinds | OPTIONAL}
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"{path}: damaged ({first_line(error)}); each start of the run writes it anew") from error
    wrong = [key for key, kind in kinds.items() if not isinstance(values[key], kind) or values[key] in (0, "")]
    wrong += [key for key, kind in OPTIONAL.items() if not isinstance(values[key], (kind, type(None)))]
    if wrong:
        raise ValueError(f"{path}: damaged ({wrong[0]} is {values[wrong[0]]}); each start of the run writes it anew")
    return config
