"""Prepared rows: their format, and the demo's arithmetic."""

import importlib
import json
import random

import pandas as pd
import pytest

from data_prep.demo import __main__ as demo_command
from data_prep.demo import model
from data_prep.demo import problems as demo
from data_prep.prompt import (
    BOXED_SENTENCE,
    evaluation_prompt,
    training_prompt,
)
from data_prep.rows import COLUMNS, open_rows, read_problem_rows, row, write_rows
from reward.justrl import compute_score


def test_prompts_differ_only_in_the_separator():
    assert training_prompt("P") == f"P\n\n{BOXED_SENTENCE}"
    assert evaluation_prompt("P") == f"P {BOXED_SENTENCE}"


def test_demo_sets_are_disjoint_in_either_order():
    train, test = demo.split(3584, 256, seed=0)
    terms = [{tuple(sorted((p.a, p.b))) for p in problems} for problems in (train, test)]
    assert (len(terms[0]), len(terms[1])) == (3584, 256)
    assert not terms[0] & terms[1]
    assert demo.split(3584, 256, seed=0) == (train, test) != demo.split(3584, 256, seed=1)


def test_every_worked_answer_scores_and_neither_a_guess_nor_a_slip_does():
    rng = random.Random(0)
    for problem in demo.all_problems():
        truth = str(problem.answer)
        assert compute_score("demo", problem.worked, truth)["score"] == 1.0
        assert compute_score("demo", problem.guess(rng), truth)["score"] == -1.0
        assert compute_score("demo", problem.slip(rng), truth)["score"] == -1.0


def test_a_made_model_is_kept_until_its_settings_change(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(model, "build_tokenizer", lambda vocab_size: 1 / 0)
    (tmp_path / model.SETTINGS_FILE).write_text(json.dumps(model.SETTINGS, indent=2) + "\n")
    model.write(tmp_path, model.SETTINGS)
    assert capsys.readouterr().out == f"{tmp_path}: kept, its settings have not changed\n"
    with pytest.raises(ZeroDivisionError):
        model.write(tmp_path, model.SETTINGS | {"seed": 1})


@pytest.mark.usefixtures("demo_data")
def test_a_pretrained_model_gets_the_supervised_start(tmp_path, capsys):
    from transformers import AutoModelForCausalLM

    short = model.PRETRAINED | {"steps": 4}
    model.write(tmp_path / "made", short, "models/demo")
    weights = [
        AutoModelForCausalLM.from_pretrained(path).get_input_embeddings().weight
        for path in ("models/demo", tmp_path / "made")
    ]
    assert weights[0].shape == weights[1].shape
    assert not weights[0].equal(weights[1])
    assert "step    4/4" in capsys.readouterr().out
    model.write(tmp_path / "made", short, "models/demo")
    assert "kept, its settings have not changed" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["model", "."])
def test_the_model_to_begin_with_and_the_data_are_not_replaced(tmp_path, place):
    (tmp_path / "model").mkdir()
    for message, given in (("model to begin with", "init"), ("folder of --data", "data")):
        with pytest.raises(ValueError, match=f"holds the {message}, which would be replaced; choose another --model"):
            model.write(tmp_path / place, model.SETTINGS, **{given: str(tmp_path / "model")})


@pytest.mark.parametrize("place", ["thesis", "thesis/thesis.tex", "link"])
def test_a_folder_or_file_of_others_is_not_replaced(tmp_path, place):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("all of it")
    (tmp_path / "link").symlink_to("thesis")
    with pytest.raises(ValueError, match=r"is there, and data_prep\.demo did not make it; choose another --model"):
        model.write(tmp_path / place, model.SETTINGS)
    with pytest.raises(ValueError, match=r"thesis\.tex is a file, not a folder; choose another place"):
        model.write(tmp_path / "thesis" / "thesis.tex" / "model", model.SETTINGS)
    assert (tmp_path / "thesis" / "thesis.tex").read_text() == "all of it"


def test_a_model_behind_a_link_is_made_again_in_its_place(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / model.SETTINGS_FILE).write_bytes(
        b"\xff"
    )  # of another encoding: not the settings that are asked
    (tmp_path / "link").symlink_to("disk")
    model.write(tmp_path / "link", model.SETTINGS | {"steps": 2})
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk" / "model.safetensors").is_file()


def test_the_command_checks_all_before_it_writes(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    for name, message in (
        ("test.parquet", "did not make it; move it"),
        ("notes.txt", "cannot be used: model .*no such"),
    ):
        (tmp_path / "data" / name).write_text("somebody's")
        arguments = ["--data", tmp_path / "data", "--model", tmp_path / "model", "--init", tmp_path / "none"]
        monkeypatch.setattr("sys.argv", ["demo", *map(str, arguments)])
        with pytest.raises(ValueError, match=message):
            demo_command.main()
        assert [path.read_text() for path in tmp_path.rglob("*.*")] == ["somebody's"]
        (tmp_path / "data" / name).unlink()


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "has no chat template that shows the problem, or no end token; use an instruct model"),
        ("hi", "has no chat template that shows the problem, or no end token; use an instruct model"),
        ("{% for", "cannot be used: "),
    ],
)
def test_a_model_whose_template_shows_no_problem_is_refused(tmp_path, template, message):
    tokenizer = model.build_tokenizer(300)
    model.build_model(tokenizer, model.SETTINGS).save_pretrained(tmp_path / "base")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "folder.json").mkdir()
    (tmp_path / "base" / "loop.json").symlink_to("loop.json")
    with pytest.raises(ValueError, match=rf"--init \(JUSTRL_INIT\) .*: {message}"):
        model.write(tmp_path / "made", model.PRETRAINED, str(tmp_path / "base"))
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("module", ["data_prep.dapo", "data_prep.gsm8k", "data_prep.benchmarks", "data_prep.demo"])
def test_an_empty_value_is_refused(module, monkeypatch, capsys):
    main = importlib.import_module(f"{module}.__main__" if module == "data_prep.demo" else module).main
    for option in (
        ("--data", "--model", "--init") if module == "data_prep.demo" else ("--source", "--output", "--files")
    ):
        monkeypatch.setattr("sys.argv", [module, option, ""])
        with pytest.raises(SystemExit, match="2"):
            main()
        assert f"argument {option}: is empty; give a value, or leave the option out" in capsys.readouterr().err


def test_rows_have_the_recipes_format(tmp_path):
    path = tmp_path / "train.parquet"
    write_rows(path, [row("demo", "What is 1 + 1?", "2", 0, "train")], {"source": "test"})
    (first,) = open_rows(path).read().to_pylist()
    assert tuple(first) == COLUMNS
    assert first["prompt"] == [{"content": training_prompt("What is 1 + 1?"), "role": "user"}]
    assert first["reward_model"] == {"ground_truth": "2", "style": "rule"}
    manifest = json.loads((tmp_path / "train.manifest.json").read_text())
    assert manifest["rows_out"] == 1
    assert len(manifest["sha256_out"]) == 64


def test_unreadable_files_are_named_in_one_line(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        read_problem_rows(tmp_path / "absent.parquet")
    good = tmp_path / "good.parquet"
    write_rows(good, [row("demo", "p", "1", i, "train") for i in range(500)], {})
    truncated = tmp_path / "cut.parquet"
    truncated.write_bytes(good.read_bytes()[:-100])
    with pytest.raises(ValueError, match="truncated"):
        read_problem_rows(truncated)
    pd.DataFrame({"prompt": ["p"]}).to_parquet(tmp_path / "thin.parquet")
    with pytest.raises(ValueError, match="lacks column data_source, ability, reward_model, extra_info"):
        read_problem_rows(tmp_path / "thin.parquet")
