"""The files of an evaluation's folder: foreign and damaged ones, and the one set of settings of all its tasks."""

import json
import subprocess
import sys

import pytest

from common import command
from data_prep.rows import row, write_rows
from eval import grade, judge
from eval.engines import ModelSettings
from eval.grade import grade_folder
from eval.results import graded_checkpoints, load
from eval.samples import PROTOCOL, find_samples
from eval.scores import mean_distinct_4
from eval.tasks import SampleSettings, missing_samples
from tests.conftest import ROOT
from tests.test_eval import write_samples

CORRECT = r"\boxed{4}"


def released_lines(problems, seeds=(7, 8), **changed):
    line = {"prompt": "p", "answer": "4", "response": CORRECT}
    return [{"example_id": i, "seed": seed} | line | changed for seed in seeds for i in range(problems)]


def write_released(folder, lines, name="demo_t0.7_p0.9_n2-MNT31744.jsonl", start=b"", end=b"\n"):
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(start + b"".join(json.dumps(line).encode() + end for line in lines))
    return folder


@pytest.mark.parametrize(("start", "end"), [(b"\xef\xbb\xbf", b"\n"), (b"\n \r\n", b"\r\n"), (b"", b"\n\n")])
def test_released_files_with_a_mark_and_blank_lines_are_read(tmp_path, start, end):
    task = grade_folder(write_released(tmp_path, released_lines(3), start=start, end=end))["tasks"]["demo"]
    assert (task["problems"], task["samples"], task["avg"]) == (3, 2, 1)


def test_released_samples_without_seeds_are_numbered_in_the_files_order(tmp_path):
    lines = [{name: value for name, value in line.items() if name != "seed"} for line in released_lines(2)]
    task = grade_folder(write_released(tmp_path, [*lines, *released_lines(2, (None,))]))["tasks"]["demo"]
    assert (task["problems"], task["samples"]) == (2, 3)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"# released\n", "line 1: is not JSON"),
        (b'{"example_id": 9, "answer": "\xe4"}\n', "line 1: is not UTF-8"),
        (b'{"example_id": null, "answer": "4", "response": "x"}\n', "line 1: example_id: "),
        (b'{"problem_id": "a", "sample": 0}\n', "line 1: lacks 'example_id'"),
    ],
)
def test_a_released_file_is_refused_for_one_line(tmp_path, start, message):
    """No command could make that sample again, and without it a problem may be missing unseen."""
    with pytest.raises(ValueError, match=rf"demo_t0\.7_p0\.9_n2-MNT31744\.jsonl, {message}"):
        grade_folder(write_released(tmp_path, released_lines(2), start=start))


def test_what_is_not_stated_is_left_out(tmp_path):
    write_samples(tmp_path, "t", ["one two three", CORRECT])
    path = tmp_path / "t.samples.jsonl"
    path.write_text(path.read_text().replace('"tokens": 5', '"tokens": null'))
    task = grade_folder(tmp_path)["tasks"]["t"]
    assert (task["tokens"]["mean"], task["distinct_4"]) == (6, None)
    assert sum(task["tokens"]["right"] + task["tokens"]["wrong"]) == 1
    samples = [{"problem_id": problem, "response": text} for problem, text in (("a", "x"), ("b", "1 2 3 4"))]
    assert mean_distinct_4(samples) == 1


def test_fewer_samples_than_were_asked_for_are_refused(tmp_path):
    write_samples(tmp_path, "t", [CORRECT] * 4)
    meta = tmp_path / "t.meta.json"
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"samples": 4}))
    with pytest.raises(ValueError, match=r"has 2 samples per problem of 4; run eval\.generate again"):
        grade_folder(tmp_path)


def test_foreign_lines_of_caches_are_set_aside(tmp_path):
    write_samples(tmp_path, "t", [CORRECT] * 2)
    foreign = '{"a": 1}\n{"key": "b", "value": []}\n# x\n{"key": "trunc'
    (tmp_path / "grades.cache.jsonl").write_text(foreign)
    first = grade_folder(tmp_path)
    assert grade_folder(tmp_path) == first
    assert (tmp_path / "grades.cache.jsonl.damaged").read_text() == foreign + "\n"
    known = {"judge": ["j", None, None, judge.PROMPT_VERSION], "question": ["p", "4", "5"], "verdict": "A"}
    lines = [known, {"verdict": "A"}, known | {"question": ["p", "4"]}, known | {"verdict": "yes"}]
    (tmp_path / "judgements.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert judge.ask([], tmp_path, ModelSettings("j", endpoint=["x"])) == {judge.Question("p", "4", "5"): "A"}
    assert (tmp_path / "judgements.jsonl.damaged").read_text().count("\n") == 3


@pytest.mark.parametrize("name", ["t.samples.jsonl", "grades.cache.jsonl", "t.grades.jsonl", "scores.json"])
def test_a_folder_in_a_files_place_is_one_line_with_the_fix(tmp_path, monkeypatch, capsys, name):
    write_samples(tmp_path, "t", [CORRECT] * 2)
    (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / name).mkdir()
    monkeypatch.setattr(sys, "argv", ["grade", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        command.run(grade.main)
    assert f": {tmp_path / name}: is a folder, and a file belongs there; move it away\n" in capsys.readouterr().err


@pytest.mark.parametrize("tasks", [[], None, {}, {"t": {"avg": 0.5}}, {"t": None}, "t", {"t": {"tracks": {}}}])
def test_scores_of_another_version_say_to_grade_again(tmp_path, tasks):
    (tmp_path / "scores.json").write_text(json.dumps({"model": "m", "track": "official", "tasks": tasks}))
    with pytest.raises(ValueError, match=rf"scores\.json: tasks.*grade again: python -m eval\.grade {tmp_path}"):
        load(tmp_path)


def test_scores_in_another_encoding_are_read(tmp_path):
    write_samples(tmp_path, "t", [CORRECT] * 2)
    scores = grade_folder(tmp_path)
    for encoding in ("utf-8-sig", "utf-16", "utf-32-le"):
        (tmp_path / "scores.json").write_bytes(json.dumps(scores).encode(encoding))
        assert load(tmp_path)["mean"] == 1
    for name in ("step_4", "step_10", "step_x"):
        write_samples(tmp_path / "run" / "eval" / name, "t", [CORRECT] * 2)
        grade_folder(tmp_path / "run" / "eval" / name)
    assert [path.name for path in graded_checkpoints(tmp_path / "run")] == ["step_4", "step_10"]


OTHER = [("model", "m2"), ("revision", "abc"), ("files", "d"), ("endpoint", True), ("prompt", "training")]
OTHER += [("temperature", 1.0), ("top_p", 1.0), ("max_tokens", 64), ("base_seed", 1)]


@pytest.mark.parametrize(("name", "value"), OTHER)
def test_a_folder_has_one_set_of_settings(tmp_path, name, value):
    """Refused by grade, by report of scores that are there, and by generate, alike."""
    folder, bench = tmp_path / "out", tmp_path / "bench"
    for task in "tu":
        write_samples(folder, task, [CORRECT] * (2 if task == "t" else 4))
        path = folder / f"{task}.meta.json"
        unset = {"revision": None, "files": None, "endpoint": False, "base_seed": 0}
        path.write_text(json.dumps(unset | json.loads(path.read_text())))
        write_rows(bench / f"{task}.parquet", [row(task, "What?", "4", 0, "test")], {})
    grade_folder(folder)
    load(folder)
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    message = rf"out: t has {name}=.* and u {name}={value!r}; the tasks of a folder have one .* choose another --output"
    for read in (grade_folder, load):
        with pytest.raises(ValueError, match=message):
            read(folder)
    wanted = SampleSettings(bench=bench, output=folder, tasks="t", samples=2, base_seed=0, **PROTOCOL)
    with pytest.raises(ValueError, match=f"out: u has {name}={value!r} and t {name}=.*choose another --output"):
        missing_samples(wanted, ModelSettings("m"))


def test_generate_refuses_another_model_before_it_asks_it(tmp_path):
    write_samples(tmp_path / "out", "t", [CORRECT] * 2)
    write_rows(tmp_path / "bench" / "u.parquet", [row("u", "What?", "4", 0, "test")], {})
    command = [sys.executable, "-m", "eval.generate", "--model", "m2", "--endpoint", "http://127.0.0.1:9"]
    command += ["--bench", tmp_path / "bench", "--output", tmp_path / "out"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "out: t has model='m' and u model='m2'" in done.stderr
    assert not (tmp_path / "out" / "u.meta.json").exists()


def test_released_files_of_other_settings_and_of_both_formats_are_not_mixed(tmp_path):
    folder = write_released(tmp_path / "a", released_lines(2))
    write_released(folder, released_lines(2), "more_t0.7_p0.9_n4-MNT31744.jsonl")
    assert grade_folder(folder)["protocol"]["demo"] == PROTOCOL | {"prompt": None}, "the numbers of samples may differ"
    for name in ("t0.1_p0.9", "t0.7_p1.0"):
        other = write_released(folder, released_lines(2), f"x_{name}_n2-MNT31744.jsonl") / f"x_{name}_n2-MNT31744.jsonl"
        with pytest.raises(ValueError, match=r"demo has t.*=.* and x t.*=.*; the tasks of a folder"):
            grade_folder(folder)
        other.unlink()
    write_samples(folder, "t", [CORRECT] * 2)
    with pytest.raises(ValueError, match=r"t has format='eval\.generate' and demo format='the release'"):
        grade_folder(folder)


def test_settings_that_an_older_file_lacks_do_not_count(tmp_path):
    write_samples(tmp_path, "t", [CORRECT] * 2)
    write_samples(tmp_path, "AIME24", [CORRECT] * 2)
    path = tmp_path / "t.meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"files": "d", "endpoint": False, "base_seed": 0}))
    assert list(find_samples(tmp_path)) == ["AIME24", "t"]
    assert grade_folder(tmp_path)["model"] == "m"
