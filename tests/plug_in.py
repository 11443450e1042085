"""Score four responses in verl's RewardLoopWorker on Ray, each reward named by its path: plug_in.py MANAGER FOLDER.

Run from a folder that is not the repository, so that nothing but the path leads to the reward.
"""

import asyncio
import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESPONSES = [r"so $\boxed{34}$.", r"so \boxed{ 34.0 }", r"so \boxed{x=\sqrt{1156}}", r"so \boxed{35}"]


def prepare(manager: str, folder: str):
    """Save a tokenizer in a folder; returns it and a config for each reward."""
    from data_prep.demo.model import build_tokenizer
    from recipe.compose import compose

    tokenizer = build_tokenizer(300)
    tokenizer.save_pretrained(folder)
    configs = []
    for name in ("justrl", "robust"):
        overrides = [f"actor_rollout_ref.model.path={folder}", f"reward.reward_manager.name={manager}"]
        overrides.append(f"reward.custom_reward_function.path={ROOT}/reward/{name}.py")
        if name == "justrl":
            overrides.append("++reward.custom_reward_function.reward_kwargs.shadow=true")
        configs.append(compose("justrl_deepseek", overrides, "cpu"))
    return tokenizer, configs


def main() -> None:
    sys.path.insert(0, str(ROOT))
    from common.ray_start import prepare_ray_start

    tokenizer, configs = prepare(*sys.argv[1:])
    prepare_ray_start()
    sys.path.remove(str(ROOT))
    import numpy as np
    import ray
    import torch
    from verl import DataProto
    from verl.experimental.reward_loop.reward_loop import RewardLoopWorker

    def batch(text: str) -> DataProto:
        response = torch.tensor([tokenizer(text)["input_ids"]])
        tensors = {"prompts": torch.zeros((1, 1), dtype=torch.long), "responses": response}
        tensors["attention_mask"] = torch.ones((1, 1 + response.shape[1]), dtype=torch.long)
        truth = {"ground_truth": "34", "style": "rule"}
        others = {"data_source": "math_dapo", "reward_model": truth, "extra_info": {"index": "0"}}
        arrays = {name: np.array([value], dtype=object) for name, value in others.items()}
        return DataProto.from_dict(tensors=tensors, non_tensors=arrays)

    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    batches = [batch(text) for text in RESPONSES]
    found = []
    for config in configs:
        worker = ray.remote(RewardLoopWorker).remote(config)
        found.append(ray.get([worker.compute_score.remote(one) for one in batches]))
    ray.shutdown()
    print(json.dumps(found, default=float))


if __name__ == "__main__":
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    asyncio.set_event_loop(asyncio.new_event_loop())
    main()
