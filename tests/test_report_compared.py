"""The report on several evaluations: the same problems, the published rows, and what cannot be compared."""

import json
import math
import sys

import pytest

from data_prep.benchmarks import PAPER_BENCHMARKS
from eval import report
from eval.grade import grade_folder
from eval.published import PUBLISHED, published_row
from eval.runs.read import compare
from tests.test_eval import write_samples
from tests.test_report import evaluation, table


def test_models_are_compared_over_the_same_problems(tmp_path, no_pictures):
    """One benchmark differs on every problem, the other on none; the problems lie in another order in one file."""
    first = evaluation(tmp_path / "a", "some/first", {"AIME24": [0.25] * 20 + [0.5] * 10, "AMC23": [0.5] * 40}, 4)
    other = evaluation(tmp_path / "b", "some/other", {"AIME24": [0.5] * 20 + [0.75] * 10, "AMC23": [0.5] * 40}, 4)
    scores = json.loads((other / "scores.json").read_text())
    for track in scores["tasks"]["AIME24"]["tracks"].values():
        track["per_problem"] = dict(reversed(track["per_problem"].items()))
    (other / "scores.json").write_text(json.dumps(scores))
    out = report.write([first, other], tmp_path / "out")
    text = (out / "report.md").read_text()
    assert "other is better on AIME24 and the mean of 2. The data cannot tell the two apart on AMC23." in text
    found = table(out, "other minus first")
    row = found["AIME24 (avg@4, 30 problems)"]
    assert row["other minus first"]["value"] == 0.25
    assert row["p"] == pytest.approx(1 / 10_001)
    assert row["p, Holm"] == pytest.approx(2 / 10_001)
    assert found["AMC23 (avg@4, 40 problems)"]["p"] == 1
    assert found["mean of 2"]["other minus first"]["value"] == 0.125


def test_only_common_benchmarks_are_compared_and_the_mean_is_theirs(tmp_path, no_pictures):
    first = evaluation(tmp_path / "a", "a", {"AIME24": [0, 1, 1], "AMC23": [1, 1, 0], "Minerva": [0, 0, 0]})
    other = evaluation(tmp_path / "b", "b", {"AIME24": [1, 1, 1], "AMC23": [1, 0, 0]})
    out = report.write([first, other], tmp_path / "out")
    assert table(out, "scores")["mean of 2"]["a"]["value"] == pytest.approx(2 / 3)
    assert "Left out, since not every model has them: Minerva." in (out / "report.md").read_text()


def test_another_protocol_and_the_judge_are_named(tmp_path, no_pictures):
    folder = evaluation(tmp_path / "a", "a", {"AIME24": [0, 1, 1]})
    scores = json.loads((folder / "scores.json").read_text())
    scores["protocol"] = {"AIME24": {"prompt": "training", "temperature": 0.7, "top_p": 0.9, "max_tokens": 64}}
    (folder / "scores.json").write_text(json.dumps(scores | {"judge": {"model": "some/judge", "audit": 0.05}}))
    report.write([folder])
    text = (folder / "report.md").read_text()
    assert "a was not sampled by the paper's protocol: max_tokens=64 and prompt=training." in text
    assert "Judge of a: some/judge." in text


def test_the_published_means_recompute_from_the_published_rows():
    """DeepScaleR's is printed as 44.88, and its row gives 44.90."""
    complete = [name for name in PUBLISHED["models"] if "mean" in published_row(name)]
    assert len(complete) == len(PUBLISHED["models"]) - 1, "BroRL has none"
    for name in complete:
        row = published_row(name)
        off = 100 * abs(sum(row[task] for task in PAPER_BENCHMARKS) / 9 - row["mean"])
        assert off < (0.02 if name == "DeepScaleR-1.5B-Preview" else 0.0051), name


def test_a_published_model_is_recognised_and_compared(tmp_path, no_pictures):
    """Half of 32 samples correct on 30 problems: sqrt(0.25 / 31 / 30) is the error, the difference's sqrt(2) of it."""
    tasks = {"AIME24": [0.5] * 30, "AMC23": [0.5] * 39, "demo": [0.5] * 30}
    folder = evaluation(tmp_path / "a", "hbx/JustRL-DeepSeek-1.5B", tasks, 32, judged=True)
    report.write([folder])
    rows = json.loads((folder / "report.json").read_text())["tables"]["JustRL-DeepSeek-1.5B beside the published"]
    assert [(row["benchmark"], row["grader"]) for row in rows] == [
        ("AIME24", track) for track in ("official", "strict-typed", "official+judge")
    ], "AMC23 lacks a problem"
    half = 1.96 * math.sqrt(2 * 0.25 / 31 / 30)
    assert rows[0]["published"] == 0.526
    expected = {"value": -0.026, "low": -0.026 - half, "high": -0.026 + half}
    assert rows[0]["difference"] == pytest.approx(expected)
    assert "| AIME24 | official | 50.0 | 52.60 | -2.6 [-7.1, 1.9] |" in (folder / "report.md").read_text()


def test_a_benchmark_called_mean_is_not_taken_for_the_papers_mean(tmp_path, no_pictures):
    folder = evaluation(tmp_path / "a", "hbx/JustRL-DeepSeek-1.5B", {"AIME24": [0.5] * 30, "mean": [1, 0]}, 32)
    report.write([folder])
    assert [*table(folder, "JustRL-DeepSeek-1.5B beside the published")] == ["AIME24"]


def test_a_row_can_be_named(tmp_path, no_pictures):
    folder = evaluation(tmp_path / "a", "outputs/x/export/step_9", {"AIME24": [0.5] * 30}, 4)
    report.write([folder], row="BroRL")
    text = (folder / "report.md").read_text()
    assert "## step_9 beside the published BroRL" in text
    assert "no benchmark has all its problems and the paper's number of samples" in text
    with pytest.raises(ValueError, match="BroRL: b has none of the paper's benchmarks here"):
        report.write([evaluation(tmp_path / "b", "b", {"mine": [0.5] * 30})], row="BroRL")
    with pytest.raises(ValueError, match="GPT: not in the paper's table, which has DeepSeek-R1"):
        report.write([folder], row="GPT")


def test_the_clean_part_leaves_out_what_the_manifest_lists(tmp_path, no_pictures):
    folder = evaluation(tmp_path / "a", "a", {"AIME24": [1, 0, 0.5, 0.5], "AMC23": [1, 1, 0, 0]})
    found = {"AIME24": {"problem_ids": ["AIME24-0"]}, "AMC23": {"problem_ids": []}}
    manifest = tmp_path / "train.manifest.json"
    manifest.write_text(json.dumps({"settings": {"decontaminate": "report"}, "contamination": found}))
    report.write([folder], manifest=manifest)
    clean = table(folder, "clean")
    assert clean["AIME24 (avg@2, 4 problems)"]["a"]["value"] == pytest.approx(1 / 3)
    assert clean["AMC23 (avg@2, 4 problems)"]["a"]["value"] == 0.5
    assert clean["mean of 2"]["a"]["value"] == pytest.approx(5 / 12)
    assert [row["problems left out"] for row in clean.values()] == [1, 0, 1]
    manifest.write_text(json.dumps({"settings": {"decontaminate": "drop"}, "contamination": found}))
    report.write([folder], manifest=manifest)
    text = (folder / "report.md").read_text()
    assert "the training set contains no problem of AIME24 and AMC23." in text
    assert "Not looked for" not in text
    del found["AMC23"]
    for decontaminate in ("report", "drop"):
        manifest.write_text(json.dumps({"settings": {"decontaminate": decontaminate}, "contamination": found}))
        report.write([folder], manifest=manifest)
        text = (folder / "report.md").read_text()
        assert "\n\nNot looked for in the training set: AMC23; run data_prep.dapo again.\n" in text
    assert "the training set contains no problem of AIME24." in text
    manifest.write_text(json.dumps({"settings": {"decontaminate": "off"}}))
    with pytest.raises(ValueError, match="has none of these benchmarks"):
        report.write([folder], manifest=manifest)


def test_what_cannot_be_compared_is_one_error(tmp_path, no_pictures, monkeypatch):
    first = evaluation(tmp_path / "a", "a", {"AIME24": [0, 1, 1]})
    with pytest.raises(ValueError, match="is it a run's folder"):
        report.write([tmp_path])
    monkeypatch.setattr(sys, "argv", ["report", str(first), str(first)])
    with pytest.raises(ValueError, match="needs --output"):
        report.main()
    with pytest.raises(ValueError, match="AIME24: a and b were asked different problems"):
        report.write([first, evaluation(tmp_path / "b", "b", {"AIME24": [0, 1]})], tmp_path / "out")
    with pytest.raises(ValueError, match="a and c have no benchmark in common"):
        report.write([first, evaluation(tmp_path / "c", "c", {"AMC23": [0, 1, 1]})], tmp_path / "out")
    (first / "scores.json").write_text(
        json.dumps({"model": "a", "track": "official", "tasks": {"AIME24": {"avg": 0.5}}})
    )
    with pytest.raises(ValueError, match="grade again"):
        report.write([first])


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    ("tasks", "main", "row"),
    [
        ({"AIME24": 1, "AIME26": 0, "HMMT26": 0}, 1, "AIME24"),
        ({"AIME26": 1, "HMMT26": 0, "mine": 0, "theirs": 0}, 0.5, "the mean of the 2 benchmarks of 2026"),
        ({"AIME24": 1, "AMC23": 0, "mine": 0}, 0.5, "the mean of 2"),
        ({"AIME26": 1, "mine": 0, "theirs": 0}, 1, "AIME26"),
        ({"mine": 1, "theirs": 0}, 0.5, "the mean of 2"),
    ],
)
def test_grades_and_report_have_the_same_main_score(tmp_path, tasks, main, row):
    for task, correct in tasks.items():
        write_samples(tmp_path, task, [rf"\boxed{{{4 if correct else 5}}}"] * 2)
    scores = grade_folder(tmp_path)
    assert scores["mean"] == scores["means"]["strict-typed"]["avg"] == main
    report.write([tmp_path])
    verdict = json.loads((tmp_path / "report.json").read_text())["verdict"]
    low, high = (100 * end for end in scores["ci95"])
    assert verdict == f"m answers {100 * main:.1f} [{low:.1f}, {high:.1f}] percent correctly on {row}."


def test_training_runs_of_one_folder_name_are_told_apart(tmp_path):
    first, other = (tmp_path / parent / "run" for parent in "ab")
    with pytest.raises(ValueError, match=f"; {first}: has no config.*; {other}: has no config"):
        compare([first, other])


def test_a_suite_has_its_own_mean_in_report_json_and_is_not_beside_the_paper(tmp_path, no_pictures):
    tasks = {"AIME24": [1] * 30, "AIME26": [0.5] * 30, "HMMT26": [0] * 33}
    folder = evaluation(tmp_path / "a", "hbx/JustRL-DeepSeek-1.5B", tasks, 32)
    report.write([folder], suite="2026")
    (scores,) = json.loads((folder / "report.json").read_text())["evaluations"].values()
    assert (scores["mean"], scores["means"]["strict-typed"]["avg"]) == (0.25, 0.25)
    assert scores["ci95"][0] < 0.25 < scores["ci95"][1]
    assert "beside the published" not in (folder / "report.md").read_text()


def test_several_models_and_several_means_are_corrected_for_their_number(tmp_path, no_pictures):
    """Six problems with the same difference: p is 2 of 64 signs, which is significant only once."""
    paper, of_2026 = {"AIME24": 3, "AMC23": 3}, {"AIME26": 3, "HMMT26": 3}
    first, *others = (
        evaluation(tmp_path / name, name, {task: [value] * count for task, count in (paper | of_2026).items()})
        for name, value in {"a": 0, "b": 1, "c": 1}.items()
    )
    out = report.write([first, others[0]], tmp_path / "two", suite="paper")
    assert "b is better on the mean of 2." in (out / "report.md").read_text()
    out = report.write([first, *others], tmp_path / "three", suite="paper")
    text = (out / "report.md").read_text()
    assert "**Of 2 models compared with a on the mean of 2: 2 cannot be told apart.**" in text
    assert "The verdict corrects the p-values of several models" in text
    out = report.write([first, others[0]], tmp_path / "suites")
    assert " is better on " not in (out / "report.md").read_text()
    rows = table(out, "b minus a")
    means = [rows[row] for row in ("mean of 2", "mean of the 2 benchmarks of 2026")]
    assert [row["p"] for row in means] == pytest.approx([2 / 64] * 2, abs=0.005)
    assert [row["p, Holm"] for row in means] == pytest.approx([2 * max(row["p"] for row in means)] * 2, abs=0.005)
