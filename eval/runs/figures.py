"""The figures of compared training runs: differences with their intervals, and curves over seeds."""

from pathlib import Path

import numpy as np
import pandas as pd

from common.figures import COLOURS, colour, panels, save
from common.markdown import signed_percent
from common.svg import show_values
from recipe.monitor.arms import BASELINE

LABELS = {
    "validation": "accuracy",
    "reward": "mean reward",
    "entropy": "entropy (nats)",
    "length": "length (tokens)",
    "steps": "steps",
    "tokens": "tokens so far",
    "hours": "hours so far",
}
POINTS = 200  # of a curve over tokens or hours
POINTS_OF_FIGURE = 12_000  # of all its curves together, so that a page of many arms stays small
GREY = COLOURS[5]
WIDE, ROW = 9.0, 1.15  # inches: of the figure of curves, and a row's height


def draw_differences(rows: list[dict], path: Path) -> None:
    """Draw the difference of each arm to the baseline, the greatest on top."""
    ordered = sorted(rows, key=lambda row: row["difference"]["value"])
    figure, (axis,) = panels(1, 0.7 + 0.25 * len(rows))
    value, low, high = (100 * np.array([row["difference"][key] for row in ordered]) for key in ("value", "low", "high"))
    axis.axvline(0, color=GREY, linewidth=1)
    axis.errorbar(value, range(len(rows)), xerr=[value - low, high - value], fmt="o", color=colour(0), markersize=4)
    texts = [f"{row['arm']}: {signed_percent(row['difference'])} points" for row in ordered]
    show_values(axis, value, range(len(rows)), texts, colour(0))
    axis.set_yticks(range(len(rows)), [row["arm"] for row in ordered])
    axis.set_xlabel("difference from the baseline (percentage points), with 95 % interval")
    save(figure, path)


def seed_band(frames: list[pd.DataFrame], x: str, name: str) -> np.ndarray:
    """Return x, and mean, least and greatest value over seeds, as four rows; over the range that all seeds have."""
    lines = [frame[[x, name]].dropna().to_numpy().T for frame in frames]
    if x == "steps":
        grid = np.array(sorted(set.intersection(*({*steps} for steps, _ in lines))))
    else:
        grid = np.linspace(max(line[0][0] for line in lines), min(line[0][-1] for line in lines), POINTS)
    values = np.array([np.interp(grid, *line) for line in lines])
    return np.array([grid, values.mean(axis=0), values.min(axis=0), values.max(axis=0)])


def thinned(band: np.ndarray, panel_count: int) -> np.ndarray:
    """Leave of a band's points so many as two curves in each of a figure's panels may have, evenly chosen."""
    most = max(40, POINTS_OF_FIGURE // (2 * panel_count))
    return band[:, np.unique(np.linspace(0, band.shape[1] - 1, most).astype(int))]


def short(value: float, _=None) -> str:
    """Format a number for an axis, like "0.25", "6", "15k" or "2M"."""
    unit, factor = ("M", 1e6) if abs(value) >= 1e6 else ("k", 1e3) if abs(value) >= 1e4 else ("", 1)
    return f"{value / factor:g}{unit}"


def draw_curves(curves: dict[str, dict[int, pd.DataFrame]], x: str, path: Path) -> None:
    """Draw a row for each arm and a column for each quantity over `x`, the baseline behind each; bands are ranges."""
    from matplotlib import ticker

    every = [frame.dropna(axis=1, how="all").columns for runs in curves.values() for frame in runs.values()]
    names = [name for name in LABELS if name != x and all(name in columns for columns in every)]
    arms = [arm for arm in curves if arm != BASELINE]
    figure, axes = panels(len(arms) * len(names), ROW, columns=len(names), width=WIDE, sharex=True, sharey="col")
    for i, axis in enumerate(axes):
        arm, name = arms[i // len(names)], names[i % len(names)]
        for drawn, shade in ((BASELINE, GREY), (arm, colour(1))):
            grid, mean, low, high = thinned(seed_band(list(curves[drawn].values()), x, name), len(axes))
            axis.fill_between(grid, low, high, color=shade, alpha=0.25, linewidth=0)
            axis.plot(grid, mean, color=shade, linewidth=1.4)
            points = zip(grid, mean, low, high, strict=True)
            texts = [
                f"{drawn}, {x} {short(at)}: {mid:.3g} [{least:.3g}, {most:.3g}]" for at, mid, least, most in points
            ]
            show_values(axis, grid, mean, texts, shade)
        for side, marks, shown in ((axis.xaxis, 2, x), (axis.yaxis, 3, name)):
            side.set_major_locator(ticker.MaxNLocator(marks, integer=shown == "steps"))
            side.set_major_formatter(short)
        if i < len(names):
            axis.set_title(LABELS[name], fontsize="small", loc="left")
        if i % len(names) == 0:
            axis.set_ylabel(arm.replace("+", "+\n"), fontsize="small")
        if i >= len(names) * (len(arms) - 1):
            axis.set_xlabel(LABELS[x])
    save(figure, path)
