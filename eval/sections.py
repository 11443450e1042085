"""The tables of a report on evaluations, and what its text says beside them."""

from dataclasses import asdict
from pathlib import Path

from common.json_lines import read_json
from eval.judge import VERDICTS
from eval.published import PUBLISHED, beside_published, published_row
from eval.results import Results
from eval.samples import Protocol
from eval.statistics import SIGNIFICANT, detectable_difference, holm, paired_mean_difference
from eval.tables import Table, signed_percent

MANIFEST = Path("data/dapo/train.manifest.json")
RESPONSES = {"no_box": "no box", "cut_off": "cut off"}
RESPONSES |= {f"tokens.{name}": f"tokens, {name}" for name in ("mean", "p10", "p50", "p90", "p99")}
RESPONSES |= {"distinct_4": "distinct-4"}
VERDICT_COUNTS = ("graded", *VERDICTS, "audited", "disputed")


def score_table(results: Results, scores: dict[str, dict]) -> Table:
    return Table([{"benchmark": results.label(row), **by_model} for row, by_model in scores.items()])


def protocol(scores: dict[str, dict]) -> list[dict]:
    """Return what of each model's sampling is not the released protocol, and who judged."""
    released, models = asdict(Protocol()), []
    for name, given in scores.items():
        settings = {item for task in given.get("protocol", {}).values() for item in task.items()}
        differing = [f"{key}={value}" for key, value in settings if value not in (None, released[key])]
        models.append({"name": name, "differing": sorted(differing), "judge": given.get("judge")})
    return models


def difference(results: Results, model: str) -> dict:
    """Compare the first model with another one over the same problems: a table, and what it can tell apart."""
    first = results.models[0]
    pairs = {task: results.fractions(task)[[first, model]].to_numpy().T for task in results.tasks}
    found = {row: paired_mean_difference([pairs[task] for task in tasks]) for row, tasks in results.rows.items()}
    corrected = holm({task: found[task][2] for task in results.tasks})
    rows, detectable, text = [], {}, {"model": model, "better": [], "worse": [], "unclear": []}
    for row, (value, (low, high), p) in found.items():
        # The mean is one test, with nothing to correct.
        detectable[row] = 100 * detectable_difference((low, high), len(corrected) if row in corrected else 1)
        cells = {f"{model} minus {first}": {"value": value, "low": low, "high": high}, "p": p}
        cells |= {"p, Holm": corrected.get(row), "would show": detectable[row]}
        rows.append({"benchmark": results.label(row), **cells})
        is_sure = corrected.get(row, p) < SIGNIFICANT
        text["unclear" if not is_sure else "better" if value > 0 else "worse"].append(row)
    ordered = sorted(detectable, key=detectable.get)
    ends = [f"{detectable[row]:.1f} points ({row})" for row in dict.fromkeys((ordered[0], ordered[-1]))]
    formats = {f"{model} minus {first}": signed_percent, "p": ".2g", "p, Holm": ".2g", "would show": ".1f"}
    return text | {"detectable": ends, "table": Table(rows, formats)}


def published(scores: dict[str, dict], named: str | None) -> list[dict]:
    """Set the models that the paper has beside its figures; `named` is the row for the last model.

    Raises:
        ValueError: `named` is no row.
    """
    rows = {name: given["model"] or "" for name, given in scores.items()}
    rows |= {list(rows)[-1]: named} if named else {}
    if named and not published_row(named):
        raise ValueError(f"--published {named}: not in the paper's table, which has {', '.join(PUBLISHED['models'])}")
    return [
        {"model": name, "row": Path(row).name, "table": beside_published(scores[name]["tasks"], paper)}
        for name, row in rows.items()
        if (paper := published_row(row))
    ]


def clean(results: Results, required: Path | None) -> dict:
    """Return the scores without the problems that the training set's manifest lists: `manifest`, and `table` if any.

    Raises:
        ValueError: a manifest that was given says nothing of these benchmarks.
    """
    path = required or MANIFEST
    manifest = read_json(path, "settings") if required or path.exists() else {}
    parts = manifest.get("contamination", {})
    results = results.only(parts)
    if not results.tasks:
        if required:
            raise ValueError(f"{path}: has none of these benchmarks; prepare the training set with --benchmarks")
        return {"manifest": None, "table": None}
    copies = {problem for part in parts.values() for problem in part["problem_ids"]}
    if not copies or manifest["settings"]["decontaminate"] == "drop":
        return {"manifest": path, "table": None}
    rows = []
    for row, tasks in results.rows.items():
        gone = sum(problem in copies for task in tasks for problem in results.problems(task))
        rows.append({"benchmark": results.label(row), "problems left out": gone, **results.scores(row, None, copies)})
    return {"manifest": path, "table": Table(rows, {"problems left out": ",.0f"})}


def failing_tracks(results: Results) -> list[str]:
    """List the tracks on which grading may fail: the judge's has no count of errors."""
    parts = [part["tracks"] for models in results.tasks.values() for part in models.values()]
    return [track for track in results.tracks if all("errors" in part.get(track, ()) for part in parts)]


def track_table(results: Results) -> Table:
    """Set the scores by all graders side by side, with the number of answers on which each failed."""
    rows, failing = [], failing_tracks(results)
    for row, tasks in results.rows.items():
        by_track = {track: results.scores(row, track) for track in results.tracks}
        for model in results.models:
            parts = [results.tasks[task][model]["tracks"] for task in tasks]
            errors = {track: sum(part[track]["errors"] for part in parts) for track in failing}
            scores = {track: scores[model] for track, scores in by_track.items()}
            rows.append({"benchmark": row, "model": model, **scores, "errors": errors})
    return Table(rows, {"errors": lambda errors: " + ".join(map(str, errors.values()))})


def judge_table(results: Results) -> Table | None:
    columns = [f"judged.{name}" for name in VERDICT_COUNTS]
    if not results.frame.filter(columns).notna().any(axis=None):
        return None
    return frame_table(results, dict(zip(columns, VERDICT_COUNTS, strict=True)), dict.fromkeys(VERDICT_COUNTS, ",.0f"))


def attempt_table(results: Results) -> Table:
    """List pass@k and maj@N."""
    prefix = f"tracks.{results.track}."
    passes = [column for column in results.frame if column.startswith(f"{prefix}pass.")]
    names = {name: f"pass@{name.rpartition('.')[2]}" for name in passes}
    names = dict(sorted(names.items(), key=lambda item: int(item[1].removeprefix("pass@"))))
    return frame_table(results, names | {f"{prefix}maj": "maj@N"})


def response_table(results: Results) -> Table:
    """List what the responses are like, whether correct or not."""
    lengths = {name: ",.0f" for name in RESPONSES.values() if name.startswith("tokens")}
    return frame_table(results, RESPONSES, lengths | {"distinct-4": ".3f"})


def frame_table(results: Results, names: dict[str, str], formats: dict[str, str] | None = None) -> Table:
    """Select columns of the results' frame under new names."""
    keys = {"benchmark": "benchmark", "model": "model"}
    chosen = results.frame.reindex(columns=[*keys, *names], fill_value=None).rename(columns=names)
    return Table(chosen.to_dict("records"), formats or {})
