"""Graded evaluations, found in folders and set side by side on the benchmarks that all of them have."""

import copy
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from common.json_lines import read_json
from eval.statistics import mean_interval
from eval.tables import listed


def load(folder: Path) -> dict:
    """Read the scores of an evaluation; ValueError if they are not as eval.grade writes them now."""
    scores = read_json(folder / "scores.json", "model", "track", "tasks")
    if not all("tracks" in result for result in scores["tasks"].values()):
        raise ValueError(f"{folder}/scores.json: not as eval.grade writes it today; grade again")
    return scores


def graded_checkpoints(run: Path) -> list[Path]:
    """List the folders of a run's graded evaluations, the base first, then by step."""
    steps = sorted(run.glob("eval/step_*/scores.json"), key=lambda path: int(path.parent.name.removeprefix("step_")))
    return [path.parent for path in (run / "eval" / "base" / "scores.json", *steps) if path.exists()]


def find(folders: list[Path]) -> dict[str, Path]:
    """Map models to evaluation folders; of a run all of them, or the last where there are other folders.

    Raises:
        ValueError: a folder is no run's and no evaluation's.
    """
    named: dict[str, Path] = {}
    for folder in folders:
        inside = graded_checkpoints(folder)
        if (folder / "scores.json").exists():
            name = Path(load(folder)["model"] or folder.name).name
            named[str(folder) if name in named else name] = folder
        elif len(folders) == 1 and (inside or (folder / "metrics.jsonl").exists()):
            named = {path.name: path for path in inside}
        elif inside:
            named[f"{folder.name} {inside[-1].name}"] = inside[-1]
        else:
            raise ValueError(f"{folder}: holds no evaluation, and no metrics to report alone; is it a run's folder?")
    return named


class Results:
    """What `scores.json` holds of several models, on the benchmarks that all of them have.

    Attributes:
        track: the first model's main one; the others have it too.
        tasks: benchmark to model to its part of scores.json.
        frame: the same, a row for each, its keys joined by dots.

    Raises:
        ValueError: they have no benchmark in common, other problems, or another track.
    """

    def __init__(self, scores: dict[str, dict]):
        self.models = list(scores)
        self.track = scores[self.models[0]]["track"]
        every = [task for given in scores.values() for task in given["tasks"]]
        common = [task for task in dict.fromkeys(every) if every.count(task) == len(scores)]
        if not common:
            raise ValueError(f"{listed(self.models)} have no benchmark in common")
        self.left_out = sorted({*every} - {*common})
        self.tasks = {task: {name: given["tasks"][task] for name, given in scores.items()} for task in common}
        for task, models in self.tasks.items():
            for name, result in models.items():
                self._check(task, name, result["tracks"])
        parts = [{"benchmark": t, "model": m, **part} for t, models in self.tasks.items() for m, part in models.items()]
        frame = pd.json_normalize(parts)
        self.frame = frame.astype(object).where(frame.notna(), None)

    def _check(self, task: str, name: str, tracks: dict[str, dict]) -> None:
        first = self.models[0]
        if self.track not in tracks:
            raise ValueError(f"{task}: {name} was not graded on {self.track}, as {first} was; grade both alike")
        if any(track["per_problem"].keys() != set(self.problems(task)) for track in tracks.values()):
            raise ValueError(f"{task}: {first} and {name} were asked different problems; sample both alike")

    @property
    def tracks(self) -> list[str]:
        every = [track for models in self.tasks.values() for part in models.values() for track in part["tracks"]]
        return list(dict.fromkeys(every))

    @property
    def rows(self) -> dict[str, list[str]]:
        """The name of a table's row to its benchmarks: each by itself, and, of several, "mean of 9"."""
        means = {f"mean of {len(self.tasks)}": list(self.tasks)} if len(self.tasks) > 1 else {}
        return {task: [task] for task in self.tasks} | means

    def problems(self, task: str) -> list[str]:
        return list(self.tasks[task][self.models[0]]["tracks"][self.track]["per_problem"])

    def only(self, tasks: Iterable[str]) -> "Results":
        """Restrict them to some benchmarks."""
        other = copy.copy(self)
        other.tasks = {task: models for task, models in self.tasks.items() if task in tasks}
        return other

    def fractions(self, task: str, track: str | None = None, without: Iterable[str] = ()) -> pd.DataFrame:
        """Return each problem's fraction of correct samples, a column for each model that has the track."""
        tracks = {name: part["tracks"].get(track or self.track) for name, part in self.tasks[task].items()}
        columns = {name: values["per_problem"] for name, values in tracks.items() if values}
        return pd.DataFrame(columns, index=[problem for problem in self.problems(task) if problem not in without])

    def scores(self, row: str, track: str | None = None, without: Iterable[str] = ()) -> dict[str, dict | None]:
        """Return each model's mean over a row's benchmarks, with its interval; None where one lacks the track.

        Benchmarks of which no problem is left do not count.
        """
        tables, found = [self.fractions(task, track, without) for task in self.rows[row]], {}
        for model in self.models:
            columns = [table[model].to_numpy() for table in tables if len(table) and model in table]
            found[model] = None
            if columns and all(model in table for table in tables):
                mean, (low, high) = mean_interval(columns)
                found[model] = {"value": mean, "low": low, "high": high}
        return found

    def label(self, row: str) -> str:
        """Return "AIME24 (avg@32, 30 problems)" of a benchmark, and of the mean its name alone."""
        if row not in self.tasks:
            return row
        samples = " or ".join(map(str, sorted({part["samples"] for part in self.tasks[row].values()})))
        return f"{row} (avg@{samples}, {len(self.problems(row))} problems)"
