"""Training runs as their folders have them, and why some cannot be compared."""

from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from common.command import first_line
from common.json_lines import Shape, name_lines, read_lines
from common.processes import REPOSITORY
from eval.results import by_name
from recipe.monitor.arms import BASELINE, arm_of
from recipe.monitor.config import read_config
from recipe.monitor.events import FAILURE, read_events
from recipe.monitor.health import series
from recipe.monitor.metrics import has_training, number, read_log, validation_accuracy

# What verl dumps of a validation response, as far as it is needed here. `strict` is what the baseline's reward would
# give where an arm uses another reward; it takes precedence over `acc`, so that arms are graded by one rule.
GRADE = {"type": ["number", "boolean"]}
RESPONSE = Shape({"required": ["input", "acc"], "properties": {"acc": GRADE, "strict": GRADE}})
GENERATED, PROCESSED = "rollout/generated_tokens", "perf/total_num_tokens"  # the second has prompts in it
TOTAL = "trainer.total_training_steps"
ALIKE = ("actor_rollout_ref.model.path", "data.val_files", TOTAL)


class Run(NamedTuple):
    """A finished run; `correct` is each validation problem's fraction of correct responses after the last step."""

    name: str
    arm: str
    seed: int
    config: DictConfig
    by_step: dict[int, dict]
    correct: dict[str, float]

    def settings(self) -> dict[str, str]:
        """Return the values of all keys but those of seeds, names and the arm's own description."""
        keys = pd.json_normalize(OmegaConf.to_container(self.config)).iloc[0].to_dict()
        folder = f"outputs/{OmegaConf.select(self.config, 'trainer.experiment_name')}"
        return {
            key: str(value).replace(folder, "outputs/RUN").replace(f"{REPOSITORY}/", "")
            for key, value in keys.items()
            if not key.startswith("justrl.") and not key.endswith(("seed", "experiment_name"))
        }

    def curves(self, tokens: str) -> pd.DataFrame:
        """Return quantities by step: those of the monitor, `validation`, and `steps`, `tokens` and `hours` in sum.

        Hours are those of training steps; validations are not counted.
        """
        trained = {step: data if has_training(data) else {} for step, data in self.by_step.items()}
        frame = pd.DataFrame(series(self.by_step, self.config), index=list(self.by_step))
        validated = {step: accuracy(data) for step, data in self.by_step.items()}
        frame["validation"] = pd.Series(validated, dtype=float)
        frame["steps"] = frame.index
        frame["tokens"] = np.cumsum([number(data, tokens, 0.0) for data in trained.values()])
        frame["hours"] = np.cumsum([number(data, "timing_s/step", 0.0) for data in trained.values()]) / 3600
        return frame


def accuracy(metrics: dict) -> float | None:
    """Return a step's validation accuracy, by `strict` where an arm has it; None if it was not validated."""
    strict = {key: value for key, value in metrics.items() if "/strict/mean@" in key}
    named = {key.replace("val-aux/", "val-core/").replace("/strict/", "/acc/"): value for key, value in strict.items()}
    return validation_accuracy(metrics | named)


def read_correct(path: Path) -> dict[str, float]:
    """Map the problems of a validation to their fractions of correct responses; ValueError if it cannot be read."""
    if not path.exists():
        raise ValueError(f"has no {path.parent.name}/{path.name}")
    responses, bad = read_lines(path, RESPONSE)
    if bad or not responses:
        raise ValueError(name_lines(path, bad) if bad else f"{path}: is empty")
    problems: dict[str, list[float]] = {}
    for response in responses:
        problems.setdefault(f"{response['input']} {response.get('gts')}", []).append(
            response.get("strict", response["acc"])
        )
    if len(problems) < 2:
        raise ValueError(f"{path}: has only one problem")
    return {problem: fmean(values) for problem, values in problems.items()}


def read_run(folder: Path, name: str) -> Run:
    """Read the folder of a run called `name`; ValueError or OSError with the reason if it cannot be compared."""
    if not (folder / "config.yaml").exists():
        raise ValueError("has no config.yaml: is it a run's folder?")
    config = read_config(folder / "config.yaml", complete=True)
    if OmegaConf.is_list(OmegaConf.select(config, "justrl.allow")):
        raise ValueError("is of an older version of the recipe, whose arms were configs")
    total, seed = OmegaConf.select(config, TOTAL), OmegaConf.select(config, "data.seed")
    if total is None or type(seed) is not int:
        raise ValueError(f"its config has no {'data.seed' if total else TOTAL}")
    by_step = read_log(folder / "metrics.jsonl")[0]
    trained = [step for step, metrics in by_step.items() if has_training(metrics)]
    if max(trained, default=0) < total:
        failed = [f" ({event.get('cause')})" for event in read_events(folder)[-1:] if event["event"] == FAILURE]
        raise ValueError(f"ended after step {max(trained, default=0)} of {total}{''.join(failed)}")
    if missing := sorted(set(range(1, total + 1)).difference(trained)):
        raise ValueError(f"its metrics lack step {missing[0]}")
    if accuracy(by_step[total]) is None:
        raise ValueError(f"its metrics lack the validation of step {total}")
    correct = read_correct(folder / "validation" / f"{total}.jsonl")
    return Run(name, arm_of(config), seed, config, by_step, correct)


def have_same_problems(runs: dict[int, Run]) -> bool:
    """Return whether all seeds validate on the same problems; `data.val_max_samples` draws some by the seed."""
    return len({frozenset(run.correct) for run in runs.values()}) == 1


class Comparison(NamedTuple):
    """Runs by arm and seed, the baseline first; the rows of those left out; and the metric that counts tokens."""

    arms: dict[str, dict[int, Run]]
    left_out: list[dict[str, Any]]
    tokens: str

    @property
    def baseline(self) -> dict[int, Run]:
        return self.arms[BASELINE]

    def curves(self) -> dict[str, dict[int, pd.DataFrame]]:
        return {arm: {seed: run.curves(self.tokens) for seed, run in runs.items()} for arm, runs in self.arms.items()}


def misfit(run: Run, arms: dict[str, dict[int, Run]]) -> str:
    """Return why a run cannot be compared with those already sorted, baseline runs first; "" if it can."""
    baseline, same_arm = arms[BASELINE], arms.get(run.arm, {})
    first = next(iter(baseline.values()), run)
    alike = [(key, *(OmegaConf.select(one.config, key) for one in (run, first))) for key in ALIKE]
    for key, value, other in alike:
        if value != other:
            return f"{key} is {value}, but {other} in {first.name}"
    if run.seed in same_arm:
        return f"has the same arm and seed as {same_arm[run.seed].name}"
    if run.arm != BASELINE and run.seed not in baseline:
        return f"the baseline has no finished run with seed {run.seed}"
    pair = baseline.get(run.seed, run)
    if run.correct.keys() != pair.correct.keys():
        return f"was validated on different problems from {pair.name}"
    own = run.settings().items()
    if other_keys := sorted({key for other in same_arm.values() for key, _ in own ^ other.settings().items()}):
        return f"{other_keys[0]} differs from the other runs of {run.arm}"
    return ""


def compare(folders: list[Path]) -> Comparison:
    """Sort runs by arm and seed.

    Raises:
        ValueError: there is no finished run of the baseline, or of no arm.
    """
    found, left_out = [], []
    names = by_name({folder: folder.resolve().name for folder in folders})
    for name, folder in tqdm(names.items(), desc="reading", unit=" runs", delay=2, leave=False, disable=None):
        try:
            found.append(read_run(folder, name))
        except (ValueError, OSError) as error:
            left_out.append({"run": name, "reason": first_line(error)})
    arms: dict[str, dict[int, Run]] = {BASELINE: {}}
    for run in sorted(found, key=lambda run: (run.arm != BASELINE, run.arm, run.seed)):
        if reason := misfit(run, arms):
            left_out.append({"run": run.name, "reason": reason})
        else:
            arms.setdefault(run.arm, {})[run.seed] = run
    if not arms[BASELINE] or len(arms) < 2:
        reasons = "".join(f"; {row['run']}: {row['reason']}" for row in left_out)
        raise ValueError(
            f"there is no finished run of {'an arm' if arms[BASELINE] else 'the baseline'}; add one{reasons}"
        )
    every = [data for runs in arms.values() for run in runs.values() for data in run.by_step.values()]
    is_logged = all(GENERATED in data for data in every if has_training(data))
    return Comparison(arms, left_out, GENERATED if is_logged else PROCESSED)
