"""The training set: what is dropped and why, the same bytes for the same problems, and wrong input."""

import argparse
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep import benchmarks, dapo
from data_prep.dapo import Pair, ground_truth_fault, select
from data_prep.prompt import BOXED_SENTENCE, DAPO_PREFIX, DAPO_SUFFIX
from data_prep.rows import manifest_path, open_rows, read_manifest
from data_prep.verify import verify
from reward.justrl import compute_score


def raw_rows(pairs: list[tuple[str, str]], template: bool = True) -> list[dict]:
    """Rows of the raw release."""
    before, after = (DAPO_PREFIX, DAPO_SUFFIX) if template else ("", "")
    return [
        {
            "data_source": "math_dapo",
            "prompt": [{"content": before + problem + after, "role": "user"}],
            "ability": "MATH",
            "reward_model": {"ground_truth": answer, "style": "rule-based/math_dapo"},
            "extra_info": {"index": f"id-{i}"},
        }
        for i, (problem, answer) in enumerate(pairs)
    ]


def write_raw(path, pairs, **options):
    pq.write_table(pa.Table.from_pylist(raw_rows(pairs, **options)), path)
    return path


def prepare(source, output, **options):
    """Prepare as the command does, with its defaults."""
    defaults = {"revision": None, "files": None, "conflicts": "drop", "benchmarks": None, "repeat": 1}
    defaults |= {"decontaminate": "report", "tokenizer": None}
    dapo.prepare(argparse.Namespace(source=str(source), output=output, **defaults | options))
    return read_manifest(output)


PAIRS = [("What is $1+1$?", "2"), ("What is $1 + 1$?", "2"), ("What is $2+2$?", "4"), ("What is $2+2$?", "4")]
PAIRS += [("Odd?", "1"), ("Odd?", "2"), ("Odd?", "2"), ("Empty?", ""), ("Spaced?", " 3"), ("Money?", "$5$")]
PAIRS += [("Boxed?", r"\boxed{6}"), ("Open?", "{7"), ("Long?", "8" * 200)]


def test_every_row_is_kept_or_accounted_for(tmp_path):
    manifest = prepare(write_raw(tmp_path / "raw.parquet", PAIRS), tmp_path / "train.parquet")
    counts = {reason: what["count"] for reason, what in manifest["dropped"].items()}
    assert counts == {
        "exact copy": 2,
        "copy after normalisation": 1,
        "conflicting answers": 2,
        "ground truth is empty": 1,
        "ground truth has white space around it": 1,
        "ground truth has a box or a dollar sign": 2,
        "ground truth cannot score": 2,
    }
    assert manifest["rows_in"] == len(PAIRS) == manifest["problems"] + sum(counts.values())
    assert manifest["conflicts"] == [{"problem": "Odd?", "answers": {"1": 1, "2": 2}, "kept": []}]
    rows = open_rows(tmp_path / "train.parquet").read().to_pylist()
    assert sorted(row["extra_info"]["problem"] for row in rows) == ["What is $1+1$?", "What is $2+2$?"]
    assert all(row["prompt"][0]["content"].endswith(f"?\n\n{BOXED_SENTENCE}") for row in rows)
    assert verify(tmp_path / "train.parquet") == []


@pytest.mark.parametrize(("conflicts", "kept"), [("drop", []), ("majority", ["2"]), ("keep", ["1", "2"])])
def test_conflicts(tmp_path, conflicts, kept):
    source = write_raw(tmp_path / "raw.parquet", PAIRS)
    manifest = prepare(source, tmp_path / "train.parquet", conflicts=conflicts)
    assert manifest["conflicts"][0]["kept"] == kept
    rows = open_rows(tmp_path / "train.parquet").read().to_pylist()
    odd = [row["reward_model"]["ground_truth"] for row in rows if row["extra_info"]["problem"] == "Odd?"]
    assert sorted(odd) == kept
    assert verify(tmp_path / "train.parquet") == []


def test_a_draw_has_no_majority():
    kept, _, conflicts = select([Pair("p", "1", 2), Pair("p", "2", 2), Pair("p", "3", 1)], "majority")
    assert kept == []
    assert conflicts[0]["answers"] == {"1": 2, "2": 2, "3": 1}


@given(st.text(max_size=120))
def test_a_sound_ground_truth_scores_and_any_other_has_a_fault(answer):
    if ground_truth_fault(answer) is None:
        assert compute_score("d", rf"thus \boxed{{{answer}}}", answer)["score"] == 1.0
        assert answer == answer.strip() != ""


def test_a_row_without_the_template_is_kept_and_counted(tmp_path):
    rows = raw_rows([("A?", "1")]) + raw_rows([("B?", "2"), ("A?", "1")], template=False)
    half = raw_rows([("C?", "3")])
    half[0]["prompt"][0]["content"] = DAPO_PREFIX + "C?"
    pq.write_table(pa.Table.from_pylist(rows + half), tmp_path / "raw.parquet")
    manifest = prepare(tmp_path / "raw.parquet", tmp_path / "train.parquet")
    assert manifest["rows_without_template"] == 3
    rows = open_rows(tmp_path / "train.parquet").read().to_pylist()
    assert sorted(row["extra_info"]["problem"] for row in rows) == ["A?", "B?", "C?"]


@pytest.mark.parametrize("blocks", [1, 3])
def test_row_order_and_blocks_do_not_change_a_byte(tmp_path, blocks):
    pairs = PAIRS * blocks
    random.Random(blocks).shuffle(pairs)
    for name, listed in (("one", PAIRS), ("other", pairs)):
        prepare(write_raw(tmp_path / f"{name}.raw.parquet", listed), tmp_path / f"{name}.parquet", conflicts="majority")
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "other.parquet").read_bytes()


def test_jsonl_folders_and_the_processed_layout_give_the_same(tmp_path):
    pairs = PAIRS[:4]
    parts = tmp_path / "parts"
    parts.mkdir()
    write_raw(parts / "a.parquet", pairs[:2])
    write_raw(parts / "b.parquet", pairs[2:])
    (tmp_path / "raw.jsonl").write_text("".join(json.dumps(row) + "\n" for row in raw_rows(pairs)))
    processed = [{"prompt": problem, "solution": answer, "data_source": "math_dapo"} for problem, answer in pairs]
    pq.write_table(pa.Table.from_pylist(processed), tmp_path / "processed.parquet")
    made = []
    for source in (parts, tmp_path / "raw.jsonl", tmp_path / "processed.parquet"):
        prepare(source, tmp_path / "out" / f"{source.stem}.parquet")
        made.append((tmp_path / "out" / f"{source.stem}.parquet").read_bytes())
    assert made[0] == made[1] == made[2]


def test_repeat_writes_blocks_and_verify_counts_them(tmp_path):
    manifest = prepare(write_raw(tmp_path / "raw.parquet", PAIRS), tmp_path / "train.parquet", repeat=5)
    assert manifest["rows_out"] == 5 * manifest["problems"]
    file = open_rows(tmp_path / "train.parquet")
    groups = [file.read_row_group(i) for i in range(file.num_row_groups)]
    assert len(groups) == 5
    assert all(group.equals(groups[0]) for group in groups)
    assert verify(tmp_path / "train.parquet") == []


def test_a_second_run_keeps_the_file_until_a_setting_changes(tmp_path, capsys):
    source, output = write_raw(tmp_path / "raw.parquet", PAIRS), tmp_path / "train.parquet"
    prepare(source, output)
    prepare(source, output)
    assert "kept" in capsys.readouterr().out
    prepare(source, output, conflicts="keep")
    assert "kept" not in capsys.readouterr().out


def test_a_damaged_output_is_made_again(tmp_path, capsys):
    source, output = write_raw(tmp_path / "raw.parquet", PAIRS), tmp_path / "train.parquet"
    prepare(source, output)
    whole = output.read_bytes()
    output.write_bytes(whole[:-10])
    prepare(source, output)
    assert "kept" not in capsys.readouterr().out
    assert output.read_bytes() == whole


def test_a_prepared_file_is_no_source_and_no_source_is_overwritten(tmp_path):
    source, output = write_raw(tmp_path / "raw.parquet", PAIRS), tmp_path / "train.parquet"
    prepare(source, output)
    with pytest.raises(ValueError, match="prepared already"):
        prepare(output, tmp_path / "again.parquet")
    with pytest.raises(ValueError, match="is the source too"):
        prepare(source, source)


def test_files_of_one_name_in_several_folders_are_told_apart(tmp_path):
    for part, pairs in (("cn", PAIRS[:2]), ("en", PAIRS[2:4])):
        (tmp_path / "parts" / part).mkdir(parents=True)
        write_raw(tmp_path / "parts" / part / "train.parquet", pairs)
    manifest = prepare(tmp_path / "parts", tmp_path / "train.parquet")
    assert sorted(manifest["sha256_in"]) == ["cn/train.parquet", "en/train.parquet"]
    assert prepare(tmp_path / "parts", tmp_path / "train.parquet", files="en/*.parquet")["problems"] == 1


def test_json_lines_are_read_for_what_is_needed_only(tmp_path):
    rows = raw_rows([("When?", "2024-01-02"), ("Why\u2028not?", "1")])
    rows[0]["extra_info"]["index"] = 7
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "raw.jsonl").write_text(text, encoding="utf-8-sig")
    prepare(tmp_path / "raw.jsonl", tmp_path / "train.parquet")
    made = open_rows(tmp_path / "train.parquet").read().to_pylist()
    assert sorted(row["reward_model"]["ground_truth"] for row in made) == ["1", "2024-01-02"]


def test_copies_of_benchmark_problems_are_reported_or_dropped(tmp_path, shared_data):
    tasks = ["AIME24", "AMC23"]
    benchmarks.prepare(str(shared_data / "bench"), tmp_path / "bench", tasks)
    stolen = benchmarks.read_problems(tmp_path / "bench")["AIME24"]["AIME24-3"]
    source = write_raw(tmp_path / "raw.parquet", [*PAIRS, (f"{stolen} Give the number.", "9")])
    output = tmp_path / "train.parquet"
    manifest = prepare(source, output, benchmarks=tmp_path / "bench")
    assert manifest["contamination"]["AIME24"]["problem_ids"] == ["AIME24-3"]
    assert manifest["contamination"]["AIME24"]["matches"][0]["share"] == 1.0
    assert manifest["contamination"]["AMC23"]["problem_ids"] == []
    kept = manifest["problems"]
    manifest = prepare(source, output, benchmarks=tmp_path / "bench", decontaminate="drop")
    assert manifest["dropped"]["copy of a benchmark problem"]["count"] == 1
    assert manifest["problems"] == kept - 1
    assert verify(output) == []


@pytest.mark.slow
def test_long_prompts_are_counted_with_the_chat_template(tmp_path):
    from data_prep.demo.model import build_tokenizer

    build_tokenizer(300).save_pretrained(tmp_path / "model")
    source = write_raw(tmp_path / "raw.parquet", [("short?", "1"), ("long " * 2000, "2")])
    manifest = prepare(source, tmp_path / "train.parquet", tokenizer=str(tmp_path / "model"))
    assert manifest["over_long"]["count"] == 1
    assert manifest["over_long"]["examples"][0]["tokens"] > manifest["over_long"]["limit"] == 1024


def test_verify_names_what_is_wrong(tmp_path):
    output = tmp_path / "train.parquet"
    prepare(write_raw(tmp_path / "raw.parquet", PAIRS), output)
    rows = open_rows(output).read().to_pylist()
    rows[0]["reward_model"]["ground_truth"] = " 2"
    rows[1]["prompt"][0]["content"] = "another prompt"
    pq.write_table(pa.Table.from_pylist([*rows, rows[1]], schema=open_rows(output).schema_arrow), output)
    faults = "\n".join(verify(output))
    for words in ("sha256", "3 rows, and the manifest", "white space", "prompt is not", "occurs twice", "id is"):
        assert words in faults
    rows[0]["extra_info"]["problem"] = None
    pq.write_table(pa.Table.from_pylist(rows, schema=open_rows(output).schema_arrow), output)
    assert "a value is missing" in "\n".join(verify(output))
    manifest_path(output).unlink()
    with pytest.raises(ValueError, match=r"manifest\.json: missing"):
        verify(output)
