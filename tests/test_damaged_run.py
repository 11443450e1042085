"""Damaged files of a run: nothing of the run is lost, each is named in one line, and none is a traceback."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipe.checkpoints import DISCARDED, TRACKER, check_ranks, complete_checkpoints, reconcile
from recipe.compose import compose
from recipe.export import export
from recipe.monitor.metrics import StepLines, read_log, read_metrics, step_seconds
from tests.test_checkpoints import checkpoint, folders, log

DATA = {"critic/score/mean": 0.5, "timing_s/step": 2.0}
DAMAGED = {
    "null": b"null",
    "a number": b"12",
    "a list": b"[]",
    "text": b'"step"',
    "no step": b'{"data": {}}',
    "no data": b'{"step": 3}',
    "text as step": b'{"step": "3", "data": {}}',
    "true as step": b'{"step": true, "data": {}}',
    "null as step": b'{"step": null, "data": {}}',
    "a negative step": b'{"step": -3, "data": {}}',
    "half a step": b'{"step": 2.5, "data": {}}',
    "a fraction as step": b'{"step": 3.0, "data": {}}',
    "a step beyond any run": b'{"step": 3000000000000, "data": {}}',
    "a step that is there": b'{"step": 4, "data": {"loss": 7}}',
    "a step out of order": b'{"step": 33, "data": {"loss": 7}}',
    "null as data": b'{"step": 3, "data": null}',
    "a list as data": b'{"step": 3, "data": [1]}',
    "text as a value": b'{"step": 3, "data": {"critic/score/mean": "0.5"}}',
    "a list as a value": b'{"step": 3, "data": {"critic/score/mean": [0.5]}}',
    "infinity": b'{"step": 3, "data": {"critic/score/mean": Infinity}}',
    "an integer beyond floats": b'{"step": 3, "data": {"critic/score/mean": 1' + b"0" * 400 + b"}}",
    "an integer beyond Python's limit": b'{"step": 3, "data": {"critic/score/mean": 1' + b"0" * 5000 + b"}}",
    "truncated": b'{"step": 3, "da',
    "not UTF-8": b'{"step": 3, "data": {"\xff": 1}}',
    "two records": b'{"step": 3, "data": {}}{"step": 3, "data": {}}',
    "deep": b"[" * 100_000,
    "bytes": bytes(range(1, 10)) + b"\x00\xfe",
}


def lines_of(steps):
    return [json.dumps({"step": step, "data": {"loss": step}}).encode() for step in steps]


def resume(tmp_path):
    return reconcile(tmp_path / "metrics.jsonl", tmp_path / "attempt.jsonl", tmp_path)


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_line_is_left_out_kept_aside_and_named(tmp_path, capsys, name):
    checkpoint(tmp_path, 5)
    raw = lines_of(range(6))
    raw[3] = DAMAGED[name]
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"\n".join(raw) + b"\n")
    assert list(read_metrics(path)) == [0, 1, 2, 4, 5]
    assert resume(tmp_path) == 5
    (note,) = capsys.readouterr().out.splitlines()
    assert note.startswith(f"  note: {path}, line 4: ")
    assert note.endswith(f"moved to {path}.damaged")
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == raw[3] + b"\n"
    assert read_metrics(path) == {step: {"loss": step} for step in (0, 1, 2, 4, 5)}
    assert resume(tmp_path) == 5
    assert capsys.readouterr().out == "", "it is named once"


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + b"\n".join(lines_of(range(4))),
        b"\r\n".join(lines_of(range(4))) + b"\r\n",
        b"\n\n \n".join(lines_of(range(4))) + b"\n\n",
    ],
    ids=["byte order mark, last line not ended", "CRLF", "blank lines"],
)
def test_what_an_editor_adds_is_no_damage(tmp_path, capsys, content):
    checkpoint(tmp_path, 3)
    (tmp_path / "metrics.jsonl").write_bytes(content)
    assert resume(tmp_path) == 3
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"\n".join(lines_of(range(4))) + b"\n"
    assert capsys.readouterr().out == ""


def test_a_file_in_another_encoding_is_not_lost(tmp_path, capsys):
    checkpoint(tmp_path, 3)
    path, raw = tmp_path / "metrics.jsonl", "".join(line.decode() + "\n" for line in lines_of(range(4))).encode("utf16")
    path.write_bytes(raw)
    try:
        resume(tmp_path)
        said, path = capsys.readouterr().out, tmp_path / "metrics.jsonl.damaged"
    except ValueError as error:  # of a reader that tells this encoding
        said = str(error)
    assert f"{tmp_path}/metrics.jsonl" in said
    assert path.read_bytes()[: len(raw)] == raw
    assert folders(tmp_path) == ["global_step_3"]


def test_missing_numbers_are_no_tracebacks(tmp_path):
    """verl's logger writes NaN as null; Python's own, as NaN."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "data": {"critic/score/mean": null, "timing_s/step": NaN}}\n')
    (metrics,) = read_metrics(path).values()
    assert step_seconds(metrics) == 0
    assert "reward nan  length nan  entropy nan  nan s/step" in StepLines(4).line(1, metrics)


def test_a_damaged_earlier_line_does_not_start_the_run_anew(tmp_path):
    for step in (10, 15, 20):
        checkpoint(tmp_path, step)
    raw = lines_of(range(21))
    raw[3] = b'{"step": 3, "d\x00ta": {"loss": 3}}'
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(raw) + b"\n")
    assert resume(tmp_path) == 20
    assert folders(tmp_path) == ["global_step_10", "global_step_15", "global_step_20"]
    assert list(read_metrics(tmp_path / "metrics.jsonl")) == [0, 1, 2, *range(4, 21)]


@pytest.mark.parametrize(("steps", "kept"), [((), []), ((0, 1, 2), [0, 1, 2]), ((11, 30), [11])])
def test_without_any_checkpoints_line_the_newest_is_continued(tmp_path, capsys, steps, kept):
    """The metrics are deleted, or another run's, or a kill came before the first checkpoint's line."""
    for step in (10, 15, 20):
        checkpoint(tmp_path, step)
    log(tmp_path / "metrics.jsonl", steps)
    assert resume(tmp_path) == 20
    assert "has the line of no complete checkpoint; training continues from the newest" in capsys.readouterr().out
    assert folders(tmp_path) == ["global_step_10", "global_step_15", "global_step_20"]
    assert list(read_metrics(tmp_path / "metrics.jsonl")) == kept
    assert list(read_metrics(tmp_path / DISCARDED)) == [step for step in steps if step > 20]


def test_lines_of_steps_that_are_repeated_are_kept_at_each_resume(tmp_path, capsys):
    checkpoint(tmp_path, 2)
    for last in (4, 5):
        log(tmp_path / "metrics.jsonl", range(last))
        assert resume(tmp_path) == 2
        assert f"their metrics are in {tmp_path / DISCARDED}" in capsys.readouterr().out
    steps = [json.loads(line)["step"] for line in (tmp_path / DISCARDED).read_text().splitlines()]
    assert steps == [3, 3, 4]


def test_folders_that_are_no_checkpoints_are_ignored(tmp_path, capsys):
    checkpoint(tmp_path, 2)
    for name in ("015", "0", "-1", "\uff15", "3_copy", "", "2.5", "²"):
        checkpoint(tmp_path, 9)
        (tmp_path / "global_step_9").rename(tmp_path / f"global_step_{name}")
    (tmp_path / "global_step_7").write_text("a file")
    (tmp_path / "global_step_8").mkdir()
    (tmp_path / "discarded_global_step_1").write_text("a file")
    before = sorted(path.name for path in tmp_path.iterdir())
    log(tmp_path / "metrics.jsonl", range(3))
    assert complete_checkpoints(tmp_path) == [2]
    assert resume(tmp_path) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*before, TRACKER, "metrics.jsonl"])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", ["", "null", "[]", "12", '{"FSDP_version": 1, "wor', '{"world_size": 8}', "\0\0"])
def test_a_damaged_file_of_a_checkpoint_is_one_line_with_the_fix(tmp_path, content):
    checkpoint(tmp_path / "checkpoints", 5)
    folder = tmp_path / "checkpoints" / "global_step_5"
    (folder / "actor" / "fsdp_config.json").write_text(content)
    line = r"^.*global_step_5/actor/fsdp_config\.json: .*; copy it from another checkpoint, or write the .*$"
    with pytest.raises(ValueError, match=line):
        check_ranks(folder, compose("demo", [], "cpu"))
    with pytest.raises(ValueError, match=line):
        export(tmp_path, 5)


@pytest.mark.parametrize("content", ["", "null", "[]", "999", "a\nb", "\0"])
def test_a_damaged_tracker_is_written_anew(tmp_path, content):
    checkpoint(tmp_path, 5)
    log(tmp_path / "metrics.jsonl", range(6))
    (tmp_path / TRACKER).write_text(content)
    assert resume(tmp_path) == 5
    assert (tmp_path / TRACKER).read_text() == "5"


SAVED, LAST = (4, 8, 12), 13
EDITS = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 40), st.binary(max_size=6) | st.sampled_from([b"1", b"2", b"\n", b"{"])),
    min_size=1,
    max_size=2,
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Give a folder with three checkpoints that every example starts from."""
    folder = tmp_path_factory.mktemp("saved")
    for step in SAVED:
        checkpoint(folder, step)
    return folder


@settings(max_examples=400, derandomize=True)
@given(edits=EDITS, real=st.booleans())
def test_any_damage_to_the_metrics_loses_no_checkpoint_and_no_other_line(saved, edits, real):
    """An edit replaces some bytes at a place by others, so it flips, deletes, inserts or truncates."""
    for path in saved.iterdir():
        if path.is_file():
            path.unlink()
        elif path.name.startswith("discarded_"):
            path.rename(path.with_name(path.name.removeprefix("discarded_")))
    data = DATA if real else {}
    original = {step: data | {"loss": step + 0.25} for step in range(LAST + 1)}
    raw = "".join(json.dumps({"step": step, "data": original[step]}) + "\n" for step in original).encode()
    for place, length, new in edits:
        at = round(place * len(raw))
        raw = raw[:at] + new + raw[at + length :]
    path = saved / "metrics.jsonl"
    path.write_bytes(raw)
    there = {line.strip() for line in raw.split(b"\n") if line.strip()}
    undamaged = {s for s in original if json.dumps({"step": s, "data": original[s]}).encode() in there}
    step = resume(saved)
    assert step >= max(set(SAVED) & undamaged, default=max(SAVED))
    after = read_metrics(path) | (read_metrics(saved / DISCARDED) if (saved / DISCARDED).exists() else {})
    assert {s: after[s] for s in undamaged} == {s: original[s] for s in undamaged}
    assert {s for s in undamaged if s <= step} <= read_metrics(path).keys()
    kept = {done for done in SAVED if (saved / f"global_step_{done}").exists()}
    assert {done for done in SAVED if done <= step or done in undamaged} <= kept
    damaged = saved / "metrics.jsonl.damaged"
    aside = {line.strip() for line in damaged.read_bytes().split(b"\n")} if damaged.exists() else set()
    found = {json.dumps({"step": s, "data": after[s]}).encode() for s in after}
    unclear = {line for line in there - aside - found if not is_record(line)}
    assert not unclear, "every line that holds no step is kept aside"


def is_record(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line)["data"], dict)
    except (ValueError, TypeError, KeyError):
        return False


def test_a_line_that_is_being_written_is_not_yet_damaged_for_what_follows(tmp_path):
    path = tmp_path / "attempt.jsonl"
    path.write_bytes(b"\n".join(lines_of(range(3)))[:-4])
    assert list(read_metrics(path)) == [0, 1]
    assert [line.problem for line in read_log(path)[1]] == ["is truncated"]
    assert read_log(Path("absent")) == ({}, [])
