"""The report on training runs of a baseline and of arms over seeds, also as one page for the documents."""

import json
import os
import shlex
from pathlib import Path

from common.files import write_text
from common.models import count_parameters
from eval.runs.figures import draw_curves, draw_differences
from eval.runs.read import GENERATED, Comparison, compare, have_same_problems
from eval.runs.tables import BETTER, ONE_SEED, REACHED, UNCLEAR, WORSE, arm_table, change_table, quantity_table
from eval.tables import Table, counted, render_markdown, render_page, write_page
from recipe.monitor.arms import BASELINE, arm_of
from recipe.monitor.config import read_config
from recipe.monitor.metrics import SMOOTHED_STEPS

TITLE = "Training runs compared"
UNITS = "fractions are 0 to 1; lengths are tokens; hours are of training steps, without validations"
AXES = ("steps", "tokens", "hours")
FIGURES = {"differences.png": "Differences from the baseline", "curves.png": "Learning curves"}


def are_runs(folders: list[Path]) -> bool:
    """Return whether folders are several training runs to compare; ValueError if only some are.

    Among evaluations, a run that has been evaluated is one of them, and so it is where no run has an arm.
    """
    scored = [folder for folder in folders if (folder / "scores.json").exists()]
    if len(folders) < 2:
        return False
    if not scored:
        evaluated = all(any(folder.glob("eval/*/scores.json")) for folder in folders)
        return not evaluated or any(map(has_arm, folders))
    bare = [folder for folder in folders if folder not in scored and not any(folder.glob("eval/*/scores.json"))]
    if bare:
        raise ValueError(f"{bare[0]}: has no evaluation, and {scored[0]} is one; give runs or evaluations alone")
    return False


def has_arm(folder: Path) -> bool:
    """Return whether a run's config has an arm, also one whose file is gone."""
    try:
        return arm_of(read_config(folder / "config.yaml")) != BASELINE
    except FileNotFoundError:
        return False
    except ValueError:
        return True


def shortened(folders: list[Path]) -> str:
    """Return folders as a shell has them, by a pattern where that matches them alone."""
    start = os.path.commonprefix([folder.name for folder in folders])  # noqa: RUF071 - of characters
    parents = {folder.parent for folder in folders}
    if start and len(parents) == 1 and {*parents.pop().glob(f"{start}*")} == {*folders}:
        return f"{shlex.quote(str(folders[0].parent / start))}*"
    return shlex.join(map(str, folders))


def facts(compared: Comparison) -> dict:
    """Return what the head states of the runs' size."""
    run = next(iter(compared.baseline.values()))
    config, settings = run.config, run.settings()
    model = "actor_rollout_ref.model.path"
    return {
        "model": settings.get(model),
        "parameters": count_parameters(settings[model]) if model in settings else None,
        "data": settings.get("data.train_files"),
        "steps": config.trainer.total_training_steps,
        "prompts": config.data.train_batch_size,
        "responses": config.actor_rollout_ref.rollout.n,
        "length": config.data.max_response_length,
        "problems": len(run.correct),
        "samples": settings.get("actor_rollout_ref.rollout.val_kwargs.n"),
        "same problems": have_same_problems(compared.baseline),
        "seeds": [str(seed) for seed in sorted(compared.baseline)],
    }


def write(folders: list[Path], output: Path, x: str = "steps", page: Path | None = None) -> Path:
    """Write report.md, .html, .json and figures into `output`, and the same text as one page beside its figures.

    Raises:
        ValueError: there is no finished run of the baseline, or of no arm.
    """
    compared = compare(folders)
    curves = compared.curves()
    tables = {"changes": change_table(compared, curves), "arms": arm_table(compared)}
    tables["other quantities"] = quantity_table(compared, curves)
    changes = tables["changes"].rows[1:]
    names = {word: [row["arm"] for row in changes if row["verdict"] == word] for word in (BETTER, WORSE, UNCLEAR)}
    words = counted("with one seed only" if row["verdict"] == ONE_SEED else row["verdict"] for row in changes)
    command = f"python -m eval.report {shortened(folders)} --output {shlex.quote(str(output))} --x {x}"
    context = {
        **{"title": TITLE, "tables": tables, "verdicts": names, "facts": facts(compared), "x": x},
        "verdict": f"Of {len(changes)} arm{'s' * (len(changes) > 1)} compared with the baseline: {words}.",
        **{"left_out": Table(compared.left_out) if compared.left_out else None, "last": SMOOTHED_STEPS},
        **{"generated": compared.tokens == GENERATED, "figures": FIGURES, "required": REACHED},
        **{"one_seed": [row["arm"] for row in changes if row["verdict"] == ONE_SEED]},
        "command": command + (f" --page {shlex.quote(str(page))}" if page else ""),
    }
    draw_differences(changes, output / "differences.png")
    draw_curves(curves, x, output / "curves.png")
    text = render_markdown("runs/report.md.j2", **context)
    write_text(output / "report.md", text)
    write_text(output / "report.html", render_page(TITLE, text, output))
    (output / "samples.html").unlink(missing_ok=True)  # of an earlier report, on evaluations
    if page:
        write_page(page, text, output)
    numbers = {name: context[name] for name in ("title", "verdict", "facts")}
    numbers |= {"units": UNITS, "left out": compared.left_out}
    numbers["tables"] = {name: table.rows for name, table in tables.items()}
    numbers["runs"] = {
        run.name: {"arm": run.arm, "seed": run.seed} for arm in compared.arms.values() for run in arm.values()
    }
    numbers["curves"] = {
        arm: {seed: json.loads(frame.to_json(double_precision=15)) for seed, frame in frames.items()}
        for arm, frames in curves.items()
    }
    write_text(output / "report.json", json.dumps(numbers, indent=1, allow_nan=False) + "\n")
    return output
