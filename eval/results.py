"""Graded evaluations, found in folders and set side by side on the benchmarks that all of them have."""

import re
from collections import Counter
from collections.abc import Collection
from pathlib import Path

import pandas as pd

from common.json_lines import read_json
from eval.samples import RELEASED, SHAPES, check_alike, find_samples, settings_of
from eval.statistics import mean_interval
from eval.suites import grouped, main_benchmarks
from eval.tables import interval_cell, listed


def load(folder: Path) -> dict:
    """Read the scores of an evaluation; ValueError if they are not as eval.grade writes them now.

    Also if its tasks were sampled with different settings, which eval.grade did not always look at.
    """
    scores = read_json(
        folder / "scores.json", shape=SHAPES["scores"], fix=f"grade again: python -m eval.grade {folder}"
    )
    for task, part in scores["tasks"].items():
        bins, asked = part["tokens"], {frozenset(track["per_problem"]) for track in part["tracks"].values()}
        are_bins = not bins or len(bins["right"]) == len(bins["wrong"]) == len(bins["edges"]) - 1
        if scores["track"] not in part["tracks"] or len(asked) != 1 or not are_bins:
            raise ValueError(f"{folder}/scores.json: {task} lacks a track, a problem or a bin; grade again")
    settings: dict[str, dict] = {task: {} for task in scores["tasks"]}
    for task, given in (scores.get("protocol") or {}).items():
        settings[task] = {name: value for name, value in given.items() if value is not None}
    for task, path in find_samples(folder).items():
        if RELEASED.fullmatch(path.name) or (folder / f"{task}.meta.json").exists():
            settings[task] = settings_of(path, task)
    check_alike(folder, settings)
    return scores


def graded_checkpoints(run: Path) -> list[Path]:
    """List the folders of a run's graded evaluations, the base first, then by step."""
    found = {path.parent: re.fullmatch(r"step_(\d+)", path.parent.name) for path in run.glob("eval/step_*/scores.json")}
    steps = sorted((int(match[1]), path) for path, match in found.items() if match)
    base = run / "eval" / "base"
    return [base] * (base / "scores.json").exists() + [path for _, path in steps]


def by_name(names: dict[Path, str]) -> dict[str, Path]:
    """Map names to their folders; a name that repeats, or that is another's path, gives way to the folder's path."""
    counts = Counter([*names.values(), *map(str, names)])
    return {str(folder) if counts[name] > 1 else name: folder for folder, name in names.items()}


def find(folders: list[Path]) -> dict[str, Path]:
    """Map models to evaluation folders; of a run all of them, or the last where there are other folders."""
    names: dict[Path, str] = {}
    for folder in folders:
        inside = graded_checkpoints(folder)
        if (folder / "scores.json").exists():
            names[folder] = Path(load(folder)["model"] or folder.name).name
        elif len(folders) == 1 and (inside or (folder / "metrics.jsonl").exists()):
            names = {path: path.name for path in inside}
        elif inside:
            names[inside[-1]] = f"{folder.name} {inside[-1].name}"
        else:
            raise ValueError(f"{folder}: holds no evaluation, and no metrics to report alone; is it a run's folder?")
    return by_name(names)


class Results:
    """What `scores.json` holds of several models, on the benchmarks that all of them have.

    Attributes:
        track: the first model's main one; the others have it too.
        tasks: benchmark to model to its part of scores.json.
        rows: a table's row to its benchmarks, as `grouped`.
        headline: the row of the main score, that of `main_benchmarks`.
    """

    def __init__(self, scores: dict[str, dict], among: Collection[str] | None = None):
        self.models, (self.first, *_) = list(scores), scores
        self.track = scores[self.first]["track"]
        every = [task for given in scores.values() for task in given["tasks"]]
        common = [task for task in dict.fromkeys(every) if every.count(task) == len(scores)]
        if not common:
            raise ValueError(f"{listed(self.models)} have no benchmark in common")
        self.left_out = sorted({*every} - {*common})
        common = [task for task in common if among is None or task in among]
        self.tasks = {task: {name: given["tasks"][task] for name, given in scores.items()} for task in common}
        self.rows = grouped(common)
        self.headline = next((row for row, tasks in self.rows.items() if tasks == main_benchmarks(common)), "")
        self.tracks = list(dict.fromkeys(track for _, part in self.parts() for track in part["tracks"]))
        for cells, part in self.parts():
            self._check(cells["benchmark"], cells["model"], part["tracks"])

    def _check(self, task: str, name: str, tracks: dict[str, dict]) -> None:
        if self.track not in tracks:
            raise ValueError(f"{task}: {name} was not graded on {self.track}, as {self.first} was; grade both alike")
        if any(track["per_problem"].keys() != set(self.problems(task)) for track in tracks.values()):
            raise ValueError(f"{task}: {self.first} and {name} were asked different problems; sample both alike")

    def parts(self) -> list[tuple[dict[str, str], dict]]:
        """List the first cells of a row beside a part of scores.json, for each benchmark and model."""
        return [
            ({"benchmark": task, "model": name}, part)
            for task, models in self.tasks.items()
            for name, part in models.items()
        ]

    def problems(self, task: str) -> list[str]:
        return list(self.tasks[task][self.first]["tracks"][self.track]["per_problem"])

    def fractions(self, task: str, track: str, without: Collection[str] = ()) -> pd.DataFrame:
        """Return each problem's fraction of correct samples, a column for each model that has the track."""
        parts = {name: part["tracks"][track] for name, part in self.tasks[task].items() if track in part["tracks"]}
        kept = [problem for problem in self.problems(task) if problem not in without]
        return pd.DataFrame({name: part["per_problem"] for name, part in parts.items()}, index=kept)

    def scores(self, row: str, track: str, without: Collection[str] = ()) -> dict[str, dict | None]:
        """Return each model's mean over a row's benchmarks, with its interval; None where one lacks the track.

        Benchmarks of which no problem is left do not count.
        """
        tables = [self.fractions(task, track, without) for task in self.rows[row]]
        known = set(self.models).intersection(*tables) if any(map(len, tables)) else ()
        columns = {model: [table[model].to_numpy() for table in tables if len(table)] for model in known}
        return {
            model: interval_cell(*mean_interval(columns[model])) if model in known else None for model in self.models
        }

    def label(self, row: str) -> str:
        """Return "AIME24 (avg@32, 30 problems)" of a benchmark, and of the mean its name alone."""
        if row not in self.tasks:
            return row
        samples = " or ".join(map(str, sorted({part["samples"] for part in self.tasks[row].values()})))
        return f"{row} (avg@{samples}, {len(self.problems(row))} problems)"
