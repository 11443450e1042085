"""What a run computed, from its metrics and config, beside what the paper states of its own."""

from omegaconf import DictConfig

from eval.page import Cell, number
from recipe import paper
from recipe.monitor.curves import BUDGETS, GPU_HOURS, STEPS, backbone
from recipe.monitor.metrics import has_training, step_seconds


def compute(by_step: dict[int, dict], config: DictConfig) -> dict[str, float]:
    """Return what the steps of a run took.

    `tokens` are the generated ones, without prompts. `budget` is the paper's formula: steps x prompts per step x
    rollouts x maximum context, prompt included. `hours` are those of the steps and their validation, on every rank;
    starts, the validation before training, and steps that were run again after a death are not in the metrics.
    """
    trained = [metrics for metrics in by_step.values() if has_training(metrics)]
    data, actor, n = config.data, config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout.n
    responses = len(trained) * data.train_batch_size * n
    return {
        "steps": len(trained),
        "updates": len(trained) * actor.ppo_epochs * data.train_batch_size // actor.ppo_mini_batch_size,
        "prompts": responses // n,
        "responses": responses,
        "tokens": sum(metrics["response_length/mean"] for metrics in trained) * data.train_batch_size * n,
        "budget": responses * (data.max_prompt_length + data.max_response_length),
        "hours": sum(map(step_seconds, trained)) / 3600 * config.trainer.nnodes * config.trainer.n_gpus_per_node,
    }


def count(value: float) -> Cell:
    """Return 1,234,567 or, from ten million on, 1.2e7."""
    text = f"{value:,.0f}" if value < 1e7 else f"{value:.1e}".replace("e+", "e").replace("e0", "e")
    return Cell(text, value)


def compute_table(by_step: dict[int, dict], config: DictConfig) -> tuple[list[list[Cell | str]], str]:
    """Return rows, the header first, of this run beside the published one of its backbone, and a note on them."""
    ours, name = compute(by_step, config), backbone(config) or "DeepSeek"
    prompts = STEPS[name] * paper.stated("data.train_batch_size")
    updates = prompts // paper.stated("actor_rollout_ref.actor.ppo_mini_batch_size")
    responses = prompts * paper.stated("actor_rollout_ref.rollout.n")
    rows = [
        ["compute", "this run", f"JustRL-{name}, published"],
        ["steps", count(ours["steps"]), count(STEPS[name])],
        ["optimizer steps", count(ours["updates"]), count(updates)],
        ["prompts", count(ours["prompts"]), count(prompts)],
        ["responses", count(ours["responses"]), count(responses)],
        ["tokens generated", count(ours["tokens"]), "not stated"],
        ["budget by the paper's formula (tokens)", count(ours["budget"]), count(BUDGETS[f"JustRL-{name}"])],
        [
            "tokens generated / budget",
            number(ours["tokens"] / ours["budget"], ".2f"),
            "about 0.3 at 4-5 thousand a response",
        ],
        [
            "GPU hours" if config.trainer.device == "cuda" else "CPU rank hours",
            number(ours["hours"], ",.2f"),
            Cell(f"about {GPU_HOURS:,} (A800)", GPU_HOURS),
        ],
    ]
    others = ", ".join(f"{method} {count(tokens).text}" for method, tokens in BUDGETS.items())
    note = (
        "The formula is steps x prompts x rollouts x maximum context, here "
        f"{config.data.max_prompt_length + config.data.max_response_length:,} tokens; the paper's figures fit 16,000. "
        f"Published budgets: {others}; the paper prints a tenth of that for DeepScaleR, against its own formula. "
        "Hours are those of the steps and their validation, on all ranks."
    )
    return rows, note
