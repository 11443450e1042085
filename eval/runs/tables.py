"""The tables of compared training runs: what an arm changed, what it cost, and what it is."""

from collections.abc import Callable
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd

from common.markdown import signed_percent
from eval.runs.read import Comparison, Run, have_same_problems
from eval.statistics import (
    SIGNIFICANT,
    Difference,
    crossed_mean,
    detectable_difference,
    holm,
    paired_mean_difference,
    student_mean,
)
from eval.tables import Format, Table, interval_cell
from recipe.monitor.arms import BASELINE, titles
from recipe.monitor.metrics import SMOOTHED_STEPS

BETTER, WORSE, UNCLEAR, ONE_SEED = "better", "worse", "cannot be told apart", "one seed: no verdict"
REACHED = 0.05  # below the baseline's final accuracy: what an arm is to reach
COLUMNS = ["arm", "verdict", "final accuracy", "difference", "would show", "p, Holm", "tokens, relative"]
COLUMNS += ["difference at equal tokens", "hours, relative", "difference at equal hours", "p", "seeds"]
Curves = dict[str, dict[int, pd.DataFrame]]


def final_difference(runs: dict[int, Run], baseline: dict[int, Run]) -> Difference:
    """Compare the final accuracies of two arms over the first one's seeds; of one seed, over its problems alone.

    Where each seed has problems of its own, their noise is within that of the seeds' means.
    """
    pairs = [(run.correct, baseline[seed].correct) for seed, run in runs.items()]
    tables = [np.array([after[problem] - before[problem] for problem in sorted(after)]) for after, before in pairs]
    if len(tables) == 1:
        return Difference(*paired_mean_difference([(np.zeros_like(tables[0]), tables[0])]), df=np.inf)
    if have_same_problems(runs):
        return crossed_mean(np.array(tables))
    return student_mean(np.array([table.mean() for table in tables]))


def at_equal(curves: Curves, arm: str, cost: str) -> dict[str, float]:
    """Return the accuracy difference at the smaller of the two budgets, with an interval over seeds alone.

    Args:
        cost: "tokens" or "hours", over which the accuracy is interpolated between validations.
    """
    differences = []
    for seed, frame in curves[arm].items():
        pair = [one.dropna(subset=["validation"]) for one in (frame, curves[BASELINE][seed])]
        budget = min(one[cost].iloc[-1] for one in pair)
        after, before = (np.interp(budget, one[cost], one["validation"]) for one in pair)
        differences.append(after - before)
    if len(differences) == 1:
        return {"value": float(differences[0])}
    found = student_mean(np.array(differences))
    return difference_cell(found.value, found.bounds)


def difference_cell(value: float, bounds: tuple[float, float]) -> dict[str, float]:
    """Return a difference as report.json has it, clipped to [-1, 1]: with few seeds an interval may be wider."""
    return interval_cell(value, (max(-1.0, bounds[0]), min(1.0, bounds[1])))


def verdict(value: float, p: float, seeds: int) -> str:
    if seeds == 1:
        return ONE_SEED
    return UNCLEAR if p >= SIGNIFICANT else BETTER if value > 0 else WORSE


def ratio(curves: Curves, arm: str, cost: str) -> float | None:
    """Return what an arm cost in all, relative to the baseline with the same seeds; None if that is not logged."""
    ours, baseline = (sum(curves[name][seed][cost].iloc[-1] for seed in curves[arm]) for name in (arm, BASELINE))
    return float(ours / baseline) if baseline else None


def change_table(compared: Comparison, curves: Curves) -> Table:
    """List each arm's verdict, difference to the baseline over the same seeds and problems, and cost."""
    found = {arm: final_difference(runs, compared.baseline) for arm, runs in compared.arms.items() if arm != BASELINE}
    corrected = holm({arm: difference.p for arm, difference in found.items() if len(compared.arms[arm]) > 1})
    rows = [change_row(compared, BASELINE)]
    for arm, (value, bounds, p, df) in found.items():
        p_holm = corrected.get(arm)
        rows.append(
            change_row(compared, arm)
            | {"verdict": verdict(value, p if p_holm is None else p_holm, len(compared.arms[arm]))}
            | {"difference": difference_cell(value, bounds), "p": p, "p, Holm": p_holm}
            | {"would show": detectable_difference(bounds, max(1, len(corrected)), df)}
            | {"tokens, relative": ratio(curves, arm, "tokens"), "hours, relative": ratio(curves, arm, "hours")}
            | {"difference at equal tokens": at_equal(curves, arm, "tokens")}
            | {"difference at equal hours": at_equal(curves, arm, "hours")}
        )
    formats: dict[str, Format] = {name: signed_percent for name in rows[0] if name.startswith("difference")}
    return Table(rows, formats | {"p": ".2g", "p, Holm": ".2g", "tokens, relative": ".2f", "hours, relative": ".2f"})


def change_row(compared: Comparison, arm: str) -> dict[str, Any]:
    runs = compared.arms[arm]
    accuracy = float(np.mean([fmean(run.correct.values()) for run in runs.values()]))
    own = {"arm": arm, "verdict": "-", "seeds": ", ".join(map(str, sorted(runs))), "final accuracy": accuracy}
    return dict.fromkeys(COLUMNS) | own


def over_seeds(values: list[float]) -> dict[str, float] | str:
    """Return the mean with the least and the greatest; how many seeds have a number where not all do."""
    if missing := int(np.isnan(values).sum()):
        return f"{len(values) - missing} of {len(values)} seeds"
    return {"value": float(np.mean(values)), "low": float(min(values)), "high": float(max(values))}


def spread(form: str) -> Callable[[dict[str, float]], str]:
    """Make a format of what `over_seeds` returns, like "0.31 [0.29, 0.34]"."""
    return lambda cell: f"{cell['value']:{form}} [{cell['low']:{form}}, {cell['high']:{form}}]"


def steps_to(frame: pd.DataFrame, accuracy: float) -> float:
    """Return the first step whose validation reaches an accuracy; NaN if none does."""
    reached = frame.index[frame["validation"] >= accuracy]
    return float(reached[0]) if len(reached) else float("nan")


def quantity_table(compared: Comparison, curves: Curves) -> Table:
    """List what else an arm's runs were like, means over seeds with their range."""
    required = float(np.mean([frame["validation"].dropna().iloc[-1] for frame in curves[BASELINE].values()])) - REACHED
    names = {"reward": "+.3f", "entropy": ".3f", "length": ",.0f", "truncated": ".3f"}
    sums = {"tokens": ",.0f", "hours": ".3g"}
    rows = []
    for arm, frames in curves.items():
        row: dict[str, Any] = {"arm": arm}
        for name in names:
            ends = [frame[name].iloc[-SMOOTHED_STEPS:].mean() if name in frame else np.nan for frame in frames.values()]
            row[name] = over_seeds(ends)
        reached = f"steps to {100 * required:.1f} %"
        row[reached] = over_seeds([steps_to(frame, required) for frame in frames.values()])
        row |= {name: over_seeds([frame[name].iloc[-1] for frame in frames.values()]) for name in sums}
        rows.append(row)
    return Table(rows, {name: spread(form) for name, form in (names | sums | {reached: ".0f"}).items()})


def arm_table(compared: Comparison) -> Table:
    """List what each arm is, and every key in which its config differs from the baseline's of the same seed."""
    rows = []
    for arm, runs in compared.arms.items():
        if arm != BASELINE:
            seed, run = next(iter(runs.items()))
            own, others = run.settings(), compared.baseline[seed].settings()
            keys = sorted(key for key in own.keys() | others.keys() if own.get(key) != others.get(key))
            settings = ", ".join(f"{key}={own.get(key, 'absent')}" for key in keys)
            rows.append(
                {"arm": arm, "what it is": " ".join(titles(arm)), "differs from the baseline in": settings or "nothing"}
            )
    return Table(rows)
