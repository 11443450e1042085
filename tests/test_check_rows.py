"""Every row that a run would read is looked at: file, row and fix in one line, and nothing refused that works."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.check_rows import check_rows
from data_prep.rows import SCHEMA, row, write_rows
from reward import justrl, robust

ROWS = 20
TURNS = [{"content": "What is 1 + 1?", "role": "user"}]


def table(**changes) -> pa.Table:
    """Make a table of good rows; a change is a column's values, or a function of the row's number."""
    rows = [row("demo", f"What is {i} + 1?", str(i + 1), i, "train") for i in range(ROWS)]
    columns = {name: [each[name] for each in rows] for name in SCHEMA.names}
    for name, change in changes.items():
        columns[name] = [change(i) for i in range(ROWS)] if callable(change) else change
    return pa.table({name: pa.array(values) for name, values in columns.items()})


def truths(change) -> dict:
    return {"reward_model": lambda i: {"ground_truth": change(i), "style": "rule"}}


def at(number, value, other):
    return lambda i: value if i == number else other(i) if callable(other) else other


PROMPT = "prompt is null or has no user turn with text"
MALFORMED = {  # columns, the row and words of the line
    "integer truths": (truths(lambda i: i), 0, "reward_model.ground_truth is int64 (0), not text; convert"),
    "float truths": (truths(float), 0, "is double (0.0), not text"),
    "bool truths": (truths(bool), 0, "is bool (False), not text"),
    "list truths": (truths(lambda i: [str(i)]), 0, "is list<"),
    "dict truths": (truths(lambda i: {"answer": "1"}), 0, "is struct<"),
    "half empty": (truths(lambda i: "" if i >= ROWS // 2 else "1"), 10, "no response can match the ground truth ''"),
    "one null truth": (truths(at(7, None, "1")), 7, "reward_model.ground_truth is null; give every row one"),
    "all null truths": (truths(lambda i: None), 0, "is null"),
    "boxed truth": (truths(at(3, r"\boxed{1}", "1")), 3, "without a box"),
    "braces": (truths(at(19, "{1", "1")), 19, "balanced braces"),
    "null reward model": ({"reward_model": at(4, None, {"ground_truth": "1", "style": "rule"})}, 4, "is null"),
    "text reward model": ({"reward_model": lambda i: "1"}, 0, "reward_model is string; verl needs a struct"),
    "no ground truth": ({"reward_model": lambda i: {"style": "rule"}}, 0, "needs a struct with ground_truth"),
    "integer sources": ({"data_source": lambda i: i}, 0, "data_source is int64 (0), not text"),
    "null source": ({"data_source": at(5, None, "demo")}, 5, "data_source is null"),
    "text prompts": ({"prompt": lambda i: "1 + 1?"}, 0, "prompt is string; verl needs a list of structs"),
    "lists of text": ({"prompt": lambda i: ["1 + 1?"]}, 0, "prompt is list<"),
    "no roles": ({"prompt": lambda i: [{"content": "1 + 1?"}]}, 0, "with role and content"),
    "null prompt": ({"prompt": at(6, None, TURNS)}, 6, PROMPT),
    "empty prompt": ({"prompt": at(8, [], TURNS)}, 8, PROMPT),
    "null turn": ({"prompt": at(9, [None], TURNS)}, 9, PROMPT),
    "null content": ({"prompt": at(2, [{"content": None, "role": "user"}], TURNS)}, 2, PROMPT),
    "blank content": ({"prompt": at(2, [{"content": " \n", "role": "user"}], TURNS)}, 2, PROMPT),
    "no user": ({"prompt": at(11, [{"content": "Think.", "role": "system"}], TURNS)}, 11, PROMPT),
    "integer contents": (
        {"prompt": lambda i: [{"content": i, "role": "user"}]},
        0,
        "a content that is int64, not text",
    ),
    "integer roles": ({"prompt": lambda i: [{"content": "1 + 1?", "role": 1}]}, 0, "a role that is int64, not text"),
    "null second role": (
        {"prompt": at(6, [*TURNS, {"content": "2", "role": None}], TURNS)},
        6,
        "of role None; name it",
    ),
    "unknown role": (
        {"prompt": at(7, [{"content": "Hi", "role": "User"}, *TURNS], TURNS)},
        7,
        "of role 'User'; name it",
    ),
    "null second content": (
        {"prompt": at(8, [*TURNS, {"content": None, "role": "user"}], TURNS)},
        8,
        "content is null",
    ),
    "null role": ({"prompt": at(12, [{"content": "1 + 1?", "role": None}], TURNS)}, 12, PROMPT),
    "text extra": ({"extra_info": lambda i: "x"}, 0, "extra_info is string; make it a struct"),
}
OTHER_REWARDS = [f"{kind} truths" for kind in ("integer", "float", "bool", "list", "dict")] + [
    "half empty",
    "boxed truth",
]


def line(path, score) -> str:
    with pytest.raises(ValueError) as caught:
        check_rows(path, score)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_row_is_one_line(tmp_path, name):
    columns, number, words = MALFORMED[name]
    path = tmp_path / "rows.parquet"
    pq.write_table(table(**columns), path, row_group_size=6)
    for score in (justrl.compute_score, robust.compute_score):
        found = line(path, score)
        assert found.startswith(f"{path}: row {number} (the first is 0): ")
        assert words in found
    if name in OTHER_REWARDS:
        assert check_rows(path) == ROWS, "another reward may take it"
    elif name != "braces":
        assert f"row {number} " in line(path, None)


GOOD = {
    "several turns": {"prompt": lambda i: [*TURNS, {"content": "2", "role": "assistant"}, *TURNS]},
    "calls of tools": {"prompt": lambda i: [*TURNS, {"content": None, "role": "assistant", "tool_calls": ["f"]}]},
    "no extra info": {"extra_info": lambda i: None},
    "some extra info": {"extra_info": at(3, None, {"index": 4})},
    "integer index": {"extra_info": lambda i: {"index": i}},
    "content in parts": {"prompt": lambda i: [{"content": [{"type": "text", "text": "1 + 1?"}], "role": "user"}]},
    "one source": {"data_source": pa.array(["demo"] * ROWS).dictionary_encode()},
    "large text": {"data_source": pa.array(["demo"] * ROWS, pa.large_string())},
}


@pytest.mark.parametrize("name", GOOD)
def test_what_verl_reads_passes(tmp_path, name):
    pq.write_table(table(**GOOD[name]), tmp_path / "rows.parquet", row_group_size=7)
    assert check_rows(tmp_path / "rows.parquet", justrl.compute_score) == ROWS


def test_damage_behind_the_footer_is_found(tmp_path):
    path = tmp_path / "rows.parquet"
    write_rows(path, [row("demo", f"{i} + 1?", str(i), i, "train") for i in range(2000)], {})
    content = bytearray(path.read_bytes())
    content[8 : len(content) // 2] = bytes(len(content) // 2 - 8)
    path.write_bytes(content)
    assert "rows.parquet: damaged: " in line(path, None)


def test_other_than_files_of_parquet(tmp_path):
    (tmp_path / "folder.parquet").mkdir()
    assert "folder.parquet: is a folder; " in line(tmp_path / "folder.parquet", None)
    pq.write_table(table(), tmp_path / "rows.pq")
    assert "rename it" in line(tmp_path / "rows.pq", None)


def test_the_real_data_passes(shared_data):
    """DAPO-Math-17k as released; released benchmarks have a box around each answer, which preparation takes off."""
    assert check_rows(shared_data / "dapo-math-17k-one-block.parquet", justrl.compute_score) > 17_000
    released = shared_data / "bench" / "AIME24" / "test.parquet"
    assert check_rows(released) == 30
    assert "without a box" in line(released, justrl.compute_score)
