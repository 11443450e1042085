"""A validation's estimates are verl's own, though each is computed once."""

import random

from verl.trainer.ppo import metric_utils

from recipe.verl_plugins import trainer


def responses(prompts: int, n: int) -> tuple[list[str], list[str], dict[str, list]]:
    """Return data sources, prompt ids and what a reward returned for random responses."""
    random.seed(0)
    accuracy = [float(random.random() < 0.5) for _ in range(prompts * n)]
    infos = {"acc": accuracy, "lenient": accuracy, "reward": [2 * value - 1 for value in accuracy]}
    infos["pred"] = [str(random.randint(0, 3)) for _ in accuracy]
    return ["demo"] * (prompts * n), [str(i // n) for i in range(prompts * n)], infos


def test_estimates_are_verls_and_each_is_made_once(monkeypatch):
    found = responses(prompts=12, n=4)
    made = []

    def counted(**options):
        made.append(options)
        return trainer.BOOTSTRAP(**options)

    monkeypatch.setattr(metric_utils, "bootstrap_metric", counted)
    expected = metric_utils.process_validation_metrics(*found)
    calls = len(made)
    monkeypatch.setattr(metric_utils, "bootstrap_metric", trainer.bootstrap_once)
    trainer.ESTIMATES.clear()
    assert metric_utils.process_validation_metrics(*found) == expected
    assert len(trainer.ESTIMATES) <= calls * 2 / 3
