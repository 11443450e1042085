"""Wrong input, full disks and interrupts of the training set's preparation; and the real training set."""

import random
import re
import resource
import signal
import subprocess
import sys
import time

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.verify import verify
from tests.conftest import ROOT
from tests.test_dapo import PAIRS, prepare, raw_rows, write_raw


def command(*arguments, **options):
    arguments = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, **options)


def wrong_columns(path):
    pd.DataFrame({"question": ["q"], "answer": ["1"]}).to_parquet(path)


def text_prompt(path):
    pd.DataFrame({"prompt": ["q"], "reward_model": [{"ground_truth": "1"}]}).to_parquet(path)


def integer_truth(path):
    row = {"prompt": [{"role": "user", "content": "q"}], "reward_model": {"ground_truth": 1}}
    pq.write_table(pa.Table.from_pylist([row]), path)


def two_messages(path):
    row = {"prompt": [{"role": "user", "content": "q"}] * 2, "reward_model": {"ground_truth": "1"}}
    pq.write_table(pa.Table.from_pylist([row]), path)


def assistants(path):
    row = {"prompt": [{"role": "assistant", "content": "q"}], "reward_model": {"ground_truth": "1"}}
    pq.write_table(pa.Table.from_pylist([row]), path)


def no_rows(path):
    pq.write_table(pa.Table.from_pylist(raw_rows([("q", "1")])).slice(0, 0), path)


def truncated(path):
    write_raw(path, PAIRS * 50)
    path.write_bytes(path.read_bytes()[:-40])


def damaged(path):
    write_raw(path, [(f"{i} {random.Random(i).random()}", "1") for i in range(5000)])
    content = bytearray(path.read_bytes())
    content[200:20000] = bytes(19800)
    path.write_bytes(content)


def empty_file(path):
    path.write_bytes(b"")


def unusable(path):
    write_raw(path, [("q", " 1")])


def not_utf8(path):
    content = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\3\0\0\0"), pa.py_buffer(b"q\xff?")])
    pq.write_table(pa.table({"prompt": content, "solution": pa.array(["1"])}), path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (wrong_columns, "lacks column prompt"),
        (text_prompt, "column prompt is string; expected a list of messages"),
        (integer_truth, "ground_truth is int64; it must be text"),
        (two_messages, "not exactly one message"),
        (assistants, "a message that is not the user's"),
        (no_rows, "has no rows"),
        (truncated, "is it truncated"),
        (damaged, "is it truncated"),
        (empty_file, "is it truncated"),
        (unusable, "no row is left"),
        (not_utf8, "UTF8"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_the_output_as_it_was(tmp_path, make, message):
    make(tmp_path / "raw.parquet")
    output = tmp_path / "out" / "train.parquet"
    prepare(write_raw(tmp_path / "good.parquet", PAIRS), output)
    before = output.read_bytes()
    done = command("data_prep.dapo", "--source", tmp_path / "raw.parquet", "--output", output)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert done.stderr.startswith("data_prep.dapo: ")
    assert done.stderr.count("\n") == 1
    assert output.read_bytes() == before
    assert sorted(path.name for path in output.parent.iterdir()) == ["train.manifest.json", "train.parquet"]


LINE = b'{"prompt": "What is 1+1?", "solution": "2"}\r\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LINE + b"\n# a note\n" + LINE, "raw.jsonl, line 3: is not JSON; each line is to be a JSON object in UTF-8"),
        (LINE + b'{"prompt": "\xe4", "solution": "2"}', "raw.jsonl, line 2: is not UTF-8"),
        (LINE + LINE[:20], "raw.jsonl, line 2: is truncated"),
        (b"[" + LINE.strip() + b"]", "raw.jsonl, line 1: is no JSON object"),
        (LINE.decode().encode("utf-16"), "raw.jsonl: is UTF-16; convert it with iconv"),
        (LINE + rb'{"prompt": "\\ud800 \ud800", "solution": "2"}', "raw.jsonl, line 2: has an unpaired surrogate"),
        (LINE + b'{"prompt": "x", "solution": NaN}', "raw.jsonl: cannot be read"),
        (LINE + b'{"prompt": "x", "solution": %d}' % 10**30, "raw.jsonl: cannot be read"),
    ],
)
def test_a_source_with_a_damaged_line_is_refused_by_file_and_line(tmp_path, content, message):
    (tmp_path / "raw.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        prepare(tmp_path / "raw.jsonl", tmp_path / "train.parquet")
    assert not (tmp_path / "train.parquet").exists()


def test_blank_lines_byte_order_marks_and_crlf_are_read(tmp_path):
    path = tmp_path / "raw.jsonl"
    path.write_bytes(b"\xef\xbb\xbf\r\n \n" + LINE + b"\n\xef\xbb\xbf" + LINE.replace(b"1+1", b"0+2"))
    assert prepare(path, tmp_path / "train.parquet")["problems"] == 2


def test_characters_in_two_halves_and_backslashes_are_read(tmp_path):
    path = tmp_path / "raw.jsonl"
    path.write_bytes(rb'{"prompt": "\ud83d\ude00 \\ud800", "solution": "2"}')
    assert prepare(path, tmp_path / "train.parquet")["problems"] == 1


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (
            "raw.parquet",
            {"files": "*.zzz"},
            r"--files \*\.zzz: .*raw\.parquet is a file, not a folder of files; leave it out",
        ),
        (
            "raw.parquet",
            {"revision": "abc"},
            "--revision abc: only a hub data set has one, and .* is on disk; leave it",
        ),
        (".", {"revision": "abc"}, "--revision abc: only a hub data set has one, and .* is on disk; leave it out"),
    ],
)
def test_options_that_the_source_has_no_use_for_are_refused(tmp_path, source, options, message):
    write_raw(tmp_path / "raw.parquet", PAIRS)
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path / source, tmp_path / "out" / "train.parquet", **options)


def test_links_to_folders_of_shards_are_followed_once(tmp_path):
    (tmp_path / "shards" / "deep").mkdir(parents=True)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "a.jsonl").write_bytes(LINE)
    (tmp_path / "shards" / "deep" / "b.jsonl").write_bytes(LINE)
    (tmp_path / "shards" / "link").symlink_to(tmp_path / "linked")
    (tmp_path / "linked" / "back").symlink_to(tmp_path / "shards")
    manifest = prepare(tmp_path / "shards", tmp_path / "train.parquet", files="*.jsonl")
    assert (manifest["rows_in"], sorted(manifest["sha256_in"])) == (2, ["deep/b.jsonl", "link/a.jsonl"])


def test_a_hub_that_cannot_be_reached_says_what_to_do(tmp_path):
    done = command(
        *("data_prep.dapo", "--source", "nobody/nothing", "--output", tmp_path / "t.parquet"),
        env={"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 2
    assert "hf download nobody/nothing --repo-type dataset" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_full_disk_leaves_nothing_half_written(tmp_path):
    source = write_raw(tmp_path / "raw.parquet", [(f"{i} {random.Random(i).random()}?", "1") for i in range(5000)])
    (tmp_path / "out").mkdir()

    def small_files():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    done = command(
        *("data_prep.dapo", "--source", source, "--output", tmp_path / "out" / "train.parquet"), preexec_fn=small_files
    )
    assert done.returncode == 2, done.stderr
    assert "too large" in done.stderr
    assert done.stderr.count("\n") == 1
    assert list((tmp_path / "out").iterdir()) == []


def test_an_interrupt_is_one_line_and_leaves_nothing_half_written(tmp_path):
    source, folder = write_raw(tmp_path / "raw.parquet", PAIRS), tmp_path / "out"
    folder.mkdir()
    arguments = ["--source", source, "--output", folder / "train.parquet", "--repeat", "1000000"]

    def take_interrupts():
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a suite in the background is started with them ignored

    command_line = [sys.executable, "-m", "data_prep.dapo", *map(str, arguments)]
    options = {"cwd": ROOT, "stderr": subprocess.PIPE, "text": True, "preexec_fn": take_interrupts}
    process = subprocess.Popen(command_line, **options)
    while process.poll() is None and not list(folder.iterdir()):
        time.sleep(0.01)  # until it writes, which a million blocks take long enough for
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 2
    assert errors == "data_prep.dapo: interrupted; run the same command again\n"
    assert list(folder.iterdir()) == []


def test_the_real_training_set(shared_data, tmp_path):
    block = pq.ParquetFile(shared_data / "dapo-math-17k-one-block.parquet").read().to_pylist()
    pairs = [(row["prompt"][0]["content"], row["reward_model"]["ground_truth"]) for row in block]
    manifest = prepare(write_raw(tmp_path / "raw.parquet", pairs), tmp_path / "train.parquet")
    counts = {reason: what["count"] for reason, what in manifest["dropped"].items()}
    assert counts == {"exact copy": 616, "copy after normalisation": 726, "conflicting answers": 43}
    assert (manifest["rows_in"], manifest["problems"], len(manifest["conflicts"])) == (17917, 16532, 21)
    assert (manifest["rows_without_template"], manifest["rows_with_another_instruction"]) == (0, 20)
    random.Random(0).shuffle(pairs)
    prepare(write_raw(tmp_path / "raw2.parquet", pairs * 3), tmp_path / "again.parquet")
    assert (tmp_path / "train.parquet").read_bytes() == (tmp_path / "again.parquet").read_bytes()
    assert verify(tmp_path / "again.parquet") == []
