"""Prepared rows: their format, and the demo's arithmetic."""

import json
import math
import random

import pandas as pd
import pytest

from data_prep.demo import model
from data_prep.demo import problems as demo
from data_prep.prompt import (
    BOXED_SENTENCE,
    evaluation_prompt,
    training_prompt,
)
from data_prep.rows import COLUMNS, read_rows, row, write_rows
from reward.justrl import compute_score


def test_prompts_differ_only_in_the_separator():
    assert training_prompt("P") == f"P\n\n{BOXED_SENTENCE}"
    assert evaluation_prompt("P") == f"P {BOXED_SENTENCE}"


@pytest.mark.parametrize("count", [2, 3])
def test_demo_sets_are_disjoint_in_any_order(count):
    train, test = demo.split(3584, 256, 0, count)
    terms = [{tuple(sorted(p.terms)) for p in problems} for problems in (train, test)]
    orders = {tuple(sorted(range(count), key=p.terms.__getitem__)) for p in train}
    assert len(orders) == math.factorial(count)
    assert (len(terms[0]), len(terms[1])) == (3584, 256)
    assert not terms[0] & terms[1]
    assert demo.split(3584, 256, 0, count) == (train, test) != demo.split(3584, 256, 1, count)


def test_every_worked_answer_scores_and_no_guess_does():
    rng = random.Random(0)
    for problem in demo.all_problems(2) + rng.sample(demo.all_problems(3), 1000):
        truth = str(problem.answer)
        assert compute_score("demo", problem.worked, truth)["score"] == 1.0
        assert compute_score("demo", problem.guess(rng), truth)["score"] == -1.0


def test_a_made_model_is_kept_until_its_settings_change(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(model, "build_tokenizer", lambda *_: 1 / 0)
    (tmp_path / model.SETTINGS_FILE).write_text(json.dumps(model.SETTINGS, indent=2) + "\n")
    model.write(tmp_path, model.SETTINGS)
    assert capsys.readouterr().out == f"{tmp_path}: kept, its settings have not changed\n"
    with pytest.raises(ZeroDivisionError):
        model.write(tmp_path, model.SETTINGS | {"seed": 1})


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
    truncated = tmp_path / "cut.parquet"
    truncated.write_bytes(good.read_bytes()[:-100])
    with pytest.raises(ValueError, match="truncated"):
        read_rows(truncated)
    pd.DataFrame({"prompt": ["p"]}).to_parquet(tmp_path / "thin.parquet")
    with pytest.raises(ValueError, match="lacks column data_source, ability, reward_model, extra_info"):
        read_rows(tmp_path / "thin.parquet")
