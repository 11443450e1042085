"""Prepared rows: their format, what is dropped, and the demo's arithmetic."""

import json
import random

import pandas as pd
import pytest

from data_prep import benchmarks, dapo, demo
from data_prep.parquet import COLUMNS, read_rows, row, write_rows
from data_prep.prompt import (
    BOXED_SENTENCE,
    DAPO_PREFIX,
    DAPO_SUFFIX,
    evaluation_prompt,
    strip_dapo_template,
    training_prompt,
)
from reward.justrl import compute_score


def test_prompts_differ_only_in_the_separator():
    assert training_prompt("P") == f"P\n\n{BOXED_SENTENCE}"
    assert evaluation_prompt("P") == f"P {BOXED_SENTENCE}"


@pytest.mark.parametrize("problem", ["Solve x = 1.", "Remember the answer", "Answer:", " the last line "])
def test_the_template_is_removed_exactly(problem):
    assert strip_dapo_template(DAPO_PREFIX + problem + DAPO_SUFFIX) == (problem, True)
    assert strip_dapo_template(problem) == (problem, False)


def test_demo_sets_are_disjoint_in_either_order():
    train, test = demo.split(3584, 256, seed=0)
    terms = [{tuple(sorted((p.a, p.b))) for p in problems} for problems in (train, test)]
    assert (len(terms[0]), len(terms[1])) == (3584, 256)
    assert not terms[0] & terms[1]
    assert demo.split(3584, 256, seed=0) == (train, test) != demo.split(3584, 256, seed=1)


def test_every_worked_answer_scores_and_no_guess_does():
    rng = random.Random(0)
    for problem in demo.all_problems():
        truth = str(problem.answer)
        assert compute_score("demo", problem.worked, truth)["score"] == 1.0
        assert compute_score("demo", problem.guess(rng), truth)["score"] == -1.0


def test_rows_have_the_recipes_format(tmp_path):
    path = tmp_path / "train.parquet"
    write_rows(path, [row("demo", "What is 1 + 1?", "2", 0, "train")], {"source": "test"})
    frame = read_rows(path)
    assert tuple(frame.columns) == COLUMNS
    first = frame.iloc[0]
    assert list(first["prompt"]) == [{"content": training_prompt("What is 1 + 1?"), "role": "user"}]
    assert first["reward_model"] == {"ground_truth": "2", "style": "rule"}
    manifest = json.loads((tmp_path / "train.manifest.json").read_text())
    assert manifest["rows_out"] == 1
    assert len(manifest["sha256_out"]) == 64


def test_unreadable_files_are_named_in_one_line(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        read_rows(tmp_path / "absent.parquet")
    good = tmp_path / "good.parquet"
    write_rows(good, [row("demo", "p", "1", i, "train") for i in range(500)], {})
    torn = tmp_path / "torn.parquet"
    torn.write_bytes(good.read_bytes()[:-100])
    with pytest.raises(ValueError, match="truncated"):
        read_rows(torn)
    pd.DataFrame({"prompt": ["p"]}).to_parquet(tmp_path / "thin.parquet")
    with pytest.raises(ValueError, match="lacks column data_source, ability, reward_model, extra_info"):
        read_rows(tmp_path / "thin.parquet")


def test_duplicates_and_conflicts_are_dropped_and_counted():
    kept, dropped = dapo.select([("a", "1"), ("b", "2"), ("a", "1"), ("c", "3"), ("c", "4"), ("d", "")])
    assert kept == [("a", "1"), ("b", "2")]
    counts = {reason: what["count"] for reason, what in dropped.items()}
    assert counts == {"duplicate": 1, "conflicting answers": 2, "ground truth cannot score": 1}
    assert dropped["conflicting answers"]["examples"][0] == {"problem": "c", "answers": ["3", "4"]}


def with_template(frame: pd.DataFrame) -> pd.DataFrame:
    """Put DAPO's instruction back around each problem, as the raw release has it."""
    prompts = [[{"role": "user", "content": DAPO_PREFIX + p[0]["content"] + DAPO_SUFFIX}] for p in frame["prompt"]]
    return frame.assign(prompt=prompts)


def test_the_real_training_set(shared_data, tmp_path, capsys):
    raw = with_template(pd.read_parquet(shared_data / "dapo-math-17k-one-block.parquet"))
    raw.to_parquet(tmp_path / "raw.parquet")
    output = tmp_path / "train.parquet"
    dapo.prepare(str(tmp_path / "raw.parquet"), None, output)
    frame = read_rows(output)
    manifest = json.loads((tmp_path / "train.manifest.json").read_text())
    assert manifest["rows_in"] == 17917
    assert manifest["rows_without_template"] == 0
    assert len(frame) + sum(what["count"] for what in manifest["dropped"].values()) == 17917
    problems = [info["problem"] for info in frame["extra_info"]]
    assert len(set(problems)) == len(problems) > 17_000
    capsys.readouterr()
    dapo.prepare(str(tmp_path / "raw.parquet"), None, output)
    assert "kept" in capsys.readouterr().out


def test_the_real_benchmarks(shared_data, tmp_path):
    benchmarks.prepare(shared_data / "bench", tmp_path, list(benchmarks.TASKS))
    frames = {task: read_rows(tmp_path / f"{task}.parquet") for task in benchmarks.TASKS}
    assert sum(map(len, frames.values())) == 1646
    golds = [r["ground_truth"] for r in frames["AIME24"]["reward_model"]]
    assert all(gold.isdigit() for gold in golds)


def test_wrong_sources_are_one_line(tmp_path):
    with pytest.raises(ValueError, match="unknown task 'AIME26'"):
        benchmarks.prepare(tmp_path, tmp_path, ["AIME26"])
    with pytest.raises(ValueError, match="no such file"):
        benchmarks.prepare(tmp_path, tmp_path, ["AIME24"])
    with pytest.raises(ValueError, match="neither"):
        dapo.prepare(str(tmp_path), None, tmp_path / "out.parquet")
