"""What a run cost, from its metrics and config, beside what the paper states of its own (table of compute)."""

from omegaconf import DictConfig

from recipe.curves import BUDGETS, GPU_HOURS, STEPS, backbone
from recipe.progress import has_training, step_seconds


def compute(by_step: dict[int, dict], config: DictConfig) -> dict[str, float]:
    """Return what the steps of a run took: steps, updates, prompts, responses, tokens, the formula's budget, hours.

    Tokens are the generated ones, without prompts. The budget is the paper's formula: steps x prompts per step x
    rollouts x maximum context, prompt included. Hours count the steps and their validation on every rank; starts, the
    validation before training, and steps that were run again after a death are not in the metrics.
    """
    trained = [metrics for metrics in by_step.values() if has_training(metrics)]
    batch, actor, rollout = (
        config.data.train_batch_size,
        config.actor_rollout_ref.actor,
        config.actor_rollout_ref.rollout,
    )
    prompts = len(trained) * batch
    return {
        "steps": len(trained),
        "updates": len(trained) * actor.ppo_epochs * batch // actor.ppo_mini_batch_size,
        "prompts": prompts,
        "responses": prompts * rollout.n,
        "tokens": sum(metrics["response_length/mean"] for metrics in trained) * batch * rollout.n,
        "budget": prompts * rollout.n * (config.data.max_prompt_length + config.data.max_response_length),
        "hours": sum(map(step_seconds, trained)) / 3600 * config.trainer.nnodes * config.trainer.n_gpus_per_node,
    }


def count(number: float) -> str:
    """Return 1,234,567 or, from ten million on, 1.2e7."""
    return f"{number:,.0f}" if number < 1e7 else f"{number:.1e}".replace("e+", "e").replace("e0", "e")


def compute_table(by_step: dict[int, dict], config: DictConfig) -> tuple[list[list[str]], str]:
    """Return rows, the header first, of this run beside the published one of its backbone, and a note on them."""
    ours, name = compute(by_step, config), backbone(config) or "DeepSeek"
    published, steps = BUDGETS[f"JustRL-{name}"], STEPS[name]
    updates, prompts = steps * 256 // 64, steps * 256  # hyperparameters of the paper's table 2
    unit = "CPU rank hours" if config.trainer.device == "cpu" else "GPU hours"
    rows = [
        ["compute", "this run", f"JustRL-{name}, published"],
        ["steps", count(ours["steps"]), count(steps)],
        ["optimizer steps", count(ours["updates"]), count(updates)],
        ["prompts", count(ours["prompts"]), count(prompts)],
        ["responses", count(ours["responses"]), count(prompts * 8)],
        ["tokens generated", count(ours["tokens"]), "not stated"],
        ["budget by the paper's formula (tokens)", count(ours["budget"]), count(published)],
        ["tokens generated / budget", f"{ours['tokens'] / ours['budget']:.2f}", "about 0.3 at 4-5 thousand a response"],
        [unit, f"{ours['hours']:,.2f}", f"about {GPU_HOURS:,} (A800)"],
    ]
    others = ", ".join(f"{method} {count(tokens)}" for method, tokens in BUDGETS.items())
    context = config.data.max_prompt_length + config.data.max_response_length
    note = (
        f"The formula is steps x prompts x rollouts x maximum context, here {context:,} tokens; the paper's figures "
        f"fit 16,000. Published budgets: {others}; the paper prints a tenth of that for DeepScaleR, against its own "
        "formula. Hours are those of the steps and their validation, on all ranks."
    )
    return rows, note
