"""What a run computed, from its metrics and config, beside what the paper states of its own."""

from collections.abc import Callable
from typing import NamedTuple

from omegaconf import DictConfig

from recipe import paper
from recipe.distillation import teacher_gpus
from recipe.monitor.curves import BUDGETS, GPU_HOURS, STEPS
from recipe.monitor.metrics import has_training, number, step_seconds


def compute(by_step: dict[int, dict], config: DictConfig) -> dict[str, float]:
    """Return what the steps of a run took.

    `prompts`, `responses` and `tokens` are the generated ones, which dynamic sampling throws away in part; tokens are
    without prompts. `budget` is the paper's formula: prompts x rollouts x maximum context, prompt included. `hours` are
    those of the steps and their validation, on every rank and a teacher's GPUs; starts, the validation before training,
    and steps that were run again after a death are not in the metrics.
    """
    trained = [metrics for metrics in by_step.values() if has_training(metrics)]
    gpus = config.trainer.nnodes * config.trainer.n_gpus_per_node + teacher_gpus(config)
    data, actor, n = config.data, config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout.n
    prompts = int(sum(number(metrics, "rollout/generated_prompts", data.train_batch_size) for metrics in trained))
    return {
        "steps": len(trained),
        "updates": len(trained) * actor.ppo_epochs * data.train_batch_size // actor.ppo_mini_batch_size,
        "prompts": prompts,
        "responses": prompts * n,
        "tokens": sum(generated_tokens(metrics, data.train_batch_size * n) for metrics in trained),
        "budget": prompts * n * (data.max_prompt_length + data.max_response_length),
        "hours": sum(map(step_seconds, trained)) / 3600 * gpus,
    }


def generated_tokens(metrics: dict, responses: int) -> float:
    """Return the tokens that a step generated; of an older run, which did not log it, those that it used."""
    return number(metrics, "rollout/generated_tokens", responses * number(metrics, "response_length/mean", 0.0))


def count(value: float) -> str:
    """Format 1,234,567 or, from ten million on, 1.2e7."""
    return f"{value:,.0f}" if value < 1e7 else f"{value:.1e}".replace("e+", "e").replace("e0", "e")


class Row(NamedTuple):
    """A quantity of this run beside the published one, which may be a text."""

    quantity: str
    ours: float
    published: float | str
    form: Callable[[float], str] = count
    published_form: str = "{}"

    def texts(self) -> tuple[str, str, str]:
        published = self.published if isinstance(self.published, str) else count(self.published)
        return self.quantity, self.form(self.ours), self.published_form.format(published)


def compute_rows(ours: dict[str, float], config: DictConfig, name: str) -> list[Row]:
    """Set what a run computed beside the published run of a backbone, "DeepSeek" or "Nemotron"."""
    prompts = STEPS[name] * paper.stated("data.train_batch_size")
    updates = prompts // paper.stated("actor_rollout_ref.actor.ppo_mini_batch_size")
    hours = "GPU hours" if config.trainer.device == "cuda" else "CPU rank hours"
    usual = "about 0.3 at 4-5 thousand per response"
    return [
        Row("steps", ours["steps"], STEPS[name]),
        Row("optimizer steps", ours["updates"], updates),
        Row("prompts", ours["prompts"], prompts),
        Row("responses", ours["responses"], prompts * paper.stated("actor_rollout_ref.rollout.n")),
        Row("tokens generated", ours["tokens"], "not stated"),
        Row("budget by the paper's formula (tokens)", ours["budget"], BUDGETS[f"JustRL-{name}"]),
        Row("tokens generated / budget", ours["tokens"] / ours["budget"], usual, "{:.2f}".format),
        Row(hours, ours["hours"], GPU_HOURS, "{:,.2f}".format, "about {} (A800)"),
    ]
