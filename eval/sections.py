"""The tables of a report on evaluations, and what its text states beside them."""

import os
from pathlib import Path

from common.json_lines import read_json
from common.markdown import percent, signed_percent
from data_prep.benchmarks import PAPER_BENCHMARKS, in_order
from data_prep.rows import SHAPES
from eval.published import PUBLISHED, beside_published, published_row
from eval.results import Results
from eval.samples import PROTOCOL
from eval.statistics import SIGNIFICANT, detectable_difference, holm, paired_mean_difference
from eval.tables import Format, Table, counted, interval_cell

MANIFEST = Path(os.environ.get("JUSTRL_DATA") or "data", "dapo", "train.manifest.json")
PHRASES = {"better": "is better than", "worse": "is worse than", "unclear": "cannot be told apart from"}
LENGTHS = ("mean", "p10", "p50", "p90", "p99")


def protocol(scores: dict[str, dict]) -> list[dict]:
    """Return what of each model's sampling is not the released protocol, and who judged."""
    models = []
    for name, given in scores.items():
        tasks = (given.get("protocol") or {}).values()
        settings = {(key, task.get(key)) for task in tasks for key in PROTOCOL}
        differing = [f"{key}={value}" for key, value in settings if value not in (None, PROTOCOL[key])]
        models.append({"name": name, "differing": sorted(differing), "judge": given.get("judge")})
    return models


def difference(results: Results, model: str) -> dict:
    """Compare the first model with another one over the same problems: a table, and what it can tell apart."""
    name = f"{model} minus {results.first}"
    verdicts: dict[str, list[str]] = {"better": [], "worse": [], "unclear": []}
    both = [results.first, model]
    pairs = {task: results.fractions(task, results.track)[both].to_numpy().T for task in results.tasks}
    found = {row: paired_mean_difference([pairs[task] for task in tasks]) for row, tasks in results.rows.items()}
    means = results.rows.keys() - results.tasks.keys()
    corrected = holm({task: found[task][2] for task in results.tasks}) | holm({row: found[row][2] for row in means})
    rows, detectable = [], {}
    for row, (value, bounds, p) in found.items():
        detectable[row] = 100 * detectable_difference(bounds, len(results.tasks if row in results.tasks else means))
        cells = {"benchmark": results.label(row), name: interval_cell(value, bounds), "p": p}
        rows.append(cells | {"p, Holm": corrected[row], "would show": detectable[row]})
        is_sure = corrected[row] < SIGNIFICANT
        verdicts["unclear" if not is_sure else "better" if value > 0 else "worse"].append(row)
    ordered = sorted(detectable, key=lambda row: detectable[row])
    ends = [f"{detectable[row]:.1f} points ({row})" for row in dict.fromkeys((ordered[0], ordered[-1]))]
    formats: dict[str, Format] = {name: signed_percent, "p": ".2g", "p, Holm": ".2g", "would show": ".1f"}
    shown = {"model": model, "detectable": ends, "name": name, "table": Table(rows, formats), "p": corrected}
    return shown | verdicts


def verdict(results: Results, found: list[dict]) -> str:
    """Return a sentence on the main score: how another model compares with the first, or how many of several do.

    The p-values of several models are corrected for their number.

    Args:
        found: what `difference` returned of these models; without any, the sentence has the last model's score.
    """
    row, last = results.headline, found[0]["model"] if found else results.models[-1]
    on = f"on {'' if row in results.tasks else 'the '}{row}"
    word = {part["model"]: next(word for word in PHRASES if row in part[word]) for part in found}
    if len(found) > 1:
        corrected = holm({part["model"]: part["p"][row] for part in found})
        words = [word[model] if corrected[model] < SIGNIFICANT else "unclear" for model in word]
        return f"Of {len(found)} models compared with {results.first} {on}: {counted(words)}."
    scores = results.scores(row, results.track)
    if not found:
        return f"{last} answers {percent(scores[last] or 0.0)} percent correctly {on}."
    before, after = (percent((scores[model] or {}).get("value", 0.0)) for model in (results.first, last))
    difference = found[0]["table"].rows[list(results.rows).index(row)][found[0]["name"]]
    return (
        f"{last} {PHRASES[word[last]]} {results.first} {on}: {after} percent correct against {before}, "
        f"a difference of {signed_percent(difference)} points."
    )


def published(scores: dict[str, dict], named: str | None) -> list[dict]:
    """Set the models that the paper has beside its figures; `named` is the row for the last model.

    A model without any of the paper's benchmarks, as with another --suite, has no such section.
    """
    rows = {name: given["model"] or "" for name, given in scores.items()}
    rows |= {list(rows)[-1]: named} if named else {}
    if named and not published_row(named):
        raise ValueError(f"--published {named}: not in the paper's table, which has {', '.join(PUBLISHED['models'])}")
    known = [name for name in rows if PAPER_BENCHMARKS.keys() & scores[name]["tasks"].keys()]
    if named and (last := list(rows)[-1]) not in known:
        raise ValueError(f"--published {named}: {last} has none of the paper's benchmarks here; leave it out")
    return [
        {"model": name, "row": Path(rows[name]).name, "table": beside_published(scores[name]["tasks"], paper)}
        for name in known
        if (paper := published_row(rows[name]))
    ]


def clean(scores: dict[str, dict], required: Path | None, default: Path | None = None) -> dict:
    """Return the scores without the problems that the training set's manifest lists, and which manifest that is.

    Args:
        required: the manifest; ValueError if it has none of the benchmarks.
        default: the manifest without `required`, if it exists.

    Returns:
        `manifest`, its `sha256_out`, the benchmarks that it has (`known`) and has not (`unknown`), and `table` if any
        problem is left out; nothing without a manifest.
    """
    path = required or default
    if path is None:
        return {}
    manifest = read_json(path, shape=SHAPES["manifest"], fix="prepare it again") if required or path.exists() else {}
    parts = manifest.get("contamination") or {}
    results = Results(scores, among=parts)
    if not results.tasks:
        if required:
            raise ValueError(f"{path}: has none of these benchmarks; prepare the training set with --benchmarks")
        return {}
    common = set.intersection(*({*given["tasks"]} for given in scores.values()))
    shown = {
        "manifest": path,
        "sha256_out": manifest.get("sha256_out"),
        "known": list(results.tasks),
        "unknown": in_order(common - {*parts}),
    }
    copies = {problem for part in parts.values() for problem in part["problem_ids"]}
    if not copies or manifest.get("settings", {}).get("decontaminate") == "drop":
        return shown
    rows = []
    for row, tasks in results.rows.items():
        gone = sum(problem in copies for task in tasks for problem in results.problems(task))
        cells = {"benchmark": results.label(row), "problems left out": gone}
        rows.append(cells | results.scores(row, results.track, without=copies))
    return shown | {"table": Table(rows, {"problems left out": ",.0f"})}


def failing_tracks(results: Results) -> list[str]:
    """List the tracks on which grading may fail: the judge's has no count of errors."""
    parts = [part["tracks"] for _, part in results.parts()]
    return [track for track in results.tracks if all("errors" in part.get(track, ()) for part in parts)]


def track_table(results: Results) -> Table:
    """Set the scores by all graders side by side, with the number of answers on which each failed."""
    rows = []
    for row, tasks in results.rows.items():
        scores = {track: results.scores(row, track) for track in results.tracks}
        for model in results.models:
            parts = [results.tasks[task][model]["tracks"] for task in tasks]
            errors = {track: sum(part[track]["errors"] for part in parts) for track in failing_tracks(results)}
            by_track = {track: scores[track][model] for track in results.tracks}
            rows.append({"benchmark": row, "model": model, **by_track, "errors": errors})
    return Table(rows, {"errors": lambda errors: " + ".join(map(str, errors.values()))})


def judge_table(results: Results) -> Table | None:
    judged = [part["judged"] for _, part in results.parts() if part["judged"]]
    if not judged:
        return None
    rows = [cells | (part["judged"] or dict.fromkeys(judged[0])) for cells, part in results.parts()]
    return Table(rows, dict.fromkeys(judged[0], ",.0f"))


def attempt_table(results: Results) -> Table:
    """List pass@k and maj@N."""
    tracks = [(cells, part["tracks"][results.track]) for cells, part in results.parts()]
    ks = sorted({int(k) for _, track in tracks for k in track["pass"]})
    passes = [{f"pass@{k}": track["pass"].get(str(k)) for k in ks} for _, track in tracks]
    return Table([cells | by_k | {"maj@N": track["maj"]} for (cells, track), by_k in zip(tracks, passes, strict=True)])


def response_table(results: Results) -> Table:
    """List what the responses are like, whether correct or not."""
    rows = []
    for cells, part in results.parts():
        tokens = {f"tokens, {name}": (part["tokens"] or {}).get(name) for name in LENGTHS}
        fractions = {"no box": part["no_box"], "cut off": part["cut_off"]}
        rows.append({**cells, **fractions, **tokens, "distinct-4": part["distinct_4"]})
    formats: dict[str, Format] = {f"tokens, {name}": ",.0f" for name in LENGTHS}
    return Table(rows, formats | {"distinct-4": ".3f"})
