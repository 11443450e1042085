"""GSM8K as training set and benchmark: every answer, both splits, contamination, and wrong input."""

import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.command import first_line
from data_prep import gsm8k
from data_prep.rows import read_manifest, read_problem_rows
from data_prep.source import locate
from data_prep.verify import verify
from recipe.check import compare, problem
from recipe.compose import compose
from recipe.memory import model_shape, needed, parameters, phases
from reward.justrl import compute_score
from tests.conftest import ROOT, SHARED

TRAIN = [
    ("Ann has 3 apples and buys 4. How many has she?", "3+4=<<3+4=7>>7\n#### 7"),
    ("A house costs 70,000 dollars. What do two cost?", "70,000*2=<<70000*2=140000>>140,000\n#### 140,000"),
    ("It was 3 degrees and fell by 10. What is it now?", "3-10=-7\n#### -7"),
]
TEST = [("Bob reads 12 pages a day for a week, all but Sunday. How many pages is that?", "12*6=72\n#### 72")]


def write(folder, **splits):
    folder.mkdir(exist_ok=True)
    for name, pairs in splits.items():
        lines = [json.dumps({"question": question, "answer": answer}) for question, answer in pairs]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def prepare(source, output, *training):
    gsm8k.prepare(locate(str(source), None, "*"), output, list(training))


def answers(path):
    return {row["extra_info"]["problem"]: row["reward_model"]["ground_truth"] for row in read_problem_rows(path)}


def test_both_splits_are_written_with_the_number_alone(tmp_path):
    prepare(write(tmp_path / "raw", train=TRAIN, test=TEST), tmp_path / "out")
    assert list(answers(tmp_path / "out" / "train.parquet").values()) == ["7", "140000", "-7"]
    assert list(answers(tmp_path / "out" / "GSM8K.parquet").values()) == ["72"]
    assert verify(tmp_path / "out" / "train.parquet") == verify(tmp_path / "out" / "GSM8K.parquet") == []


def test_the_hubs_parquet_files_give_the_same_rows(tmp_path):
    write(tmp_path / "lines", train=TRAIN, test=TEST)
    (tmp_path / "hub").mkdir()
    for split, pairs in (("train", TRAIN), ("test", TEST)):
        rows = [{"question": question, "answer": answer} for question, answer in pairs]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "hub" / f"{split}-00000-of-00001.parquet")
    for source in ("lines", "hub"):
        prepare(tmp_path / source, tmp_path / f"from_{source}")
    for name in ("train.parquet", "GSM8K.parquet"):
        assert (tmp_path / "from_lines" / name).read_bytes() == (tmp_path / "from_hub" / name).read_bytes()


def test_copies_of_test_problems_are_reported_for_each_training_set(tmp_path):
    prepare(write(tmp_path / "raw", train=[*TRAIN, *TEST], test=TEST), tmp_path / "gsm8k")
    found = read_manifest(tmp_path / "gsm8k" / "train.parquet")["contamination"]["GSM8K"]
    assert (found["exact"], found["near"]) == (1, 0)
    assert found["problem_ids"] == [
        row["extra_info"]["index"] for row in read_problem_rows(tmp_path / "gsm8k/GSM8K.parquet")
    ]
    prepare(tmp_path / "raw", tmp_path / "again", tmp_path / "gsm8k" / "train.parquet")
    again = read_manifest(tmp_path / "again" / "GSM8K.parquet")["found_in"]
    assert {name: report["exact"] for name, report in again.items()} == {"train": 1, "gsm8k": 1}


def test_the_socratic_copies_beside_it_are_left_alone(tmp_path):
    raw = write(tmp_path / "raw", train=TRAIN, test=TEST, train_socratic=TRAIN, test_socratic=TEST)
    write(raw / "socratic", train=TRAIN, test=TEST)
    prepare(raw, tmp_path / "out")
    assert len(answers(tmp_path / "out" / "train.parquet")) == len(TRAIN)


def test_two_training_sets_of_one_name_are_refused(tmp_path):
    raw = write(tmp_path / "raw", train=TRAIN, test=TEST)
    prepare(raw, tmp_path / "a" / "set")
    prepare(raw, tmp_path / "b" / "set")
    with pytest.raises(ValueError, match="another set is called set already"):
        prepare(raw, tmp_path / "out", *(tmp_path / place / "set" / "train.parquet" for place in "ab"))


def test_a_problem_is_kept_once_and_copies_are_counted(tmp_path):
    asked, other = ("Odd?", "#### 1"), ("Odd?", "#### 3")
    prepare(write(tmp_path / "raw", train=[*TRAIN, TRAIN[0], asked, other], test=[*TEST, *TEST]), tmp_path / "out")
    found = read_manifest(tmp_path / "out" / "train.parquet")
    assert (found["rows_in"], found["rows_out"]) == (6, 3)
    assert {reason: what["count"] for reason, what in found["dropped"].items()} == {
        "exact copy": 1,
        "conflicting answers": 2,
    }
    assert [conflict["problem"] for conflict in found["conflicts"]] == ["Odd?"]
    assert verify(tmp_path / "out" / "train.parquet") == verify(tmp_path / "out" / "GSM8K.parquet") == []


def test_the_source_and_the_files_of_others_are_not_replaced(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    for split, pairs in (("train", TRAIN), ("test", TEST)):
        rows = [{"question": question, "answer": answer} for question, answer in pairs]
        pq.write_table(pa.Table.from_pylist(rows), raw / f"{split}.parquet")
    before = (raw / "train.parquet").read_bytes()
    with pytest.raises(ValueError, match=r"train\.parquet: is the source too"):
        prepare(raw, raw)
    (tmp_path / "out").mkdir()
    for name in ("GSM8K.parquet", "GSM8K.manifest.json"):
        (tmp_path / "out" / name).write_text("{}")
        with pytest.raises(ValueError, match=f"{name}: is there, and data_prep.gsm8k did not make it; move it"):
            prepare(raw, tmp_path / "out")
        (tmp_path / "out" / name).unlink()
    for _ in range(2):
        prepare(raw, tmp_path / "out")
    with pytest.raises(ValueError, match=r"GSM8K\.parquet is a file, not a folder; choose another place"):
        prepare(raw, tmp_path / "out" / "GSM8K.parquet" / "below")
    assert (raw / "train.parquet").read_bytes() == before


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": TRAIN}, "0 files begin with 'test', not one"),
        ({"train": TRAIN, "test": TEST, "test_more": TEST}, "2 files begin with 'test', not one"),
        ({"train": TRAIN, "test": [("How many?", "Some.\n#### many")]}, "row 0: the answer does not end in ####"),
        ({"train": TRAIN, "test": [("How many?", "Seven: 7")]}, "row 0: the answer does not end in ####"),
        ({"train": TRAIN, "test": [("How many?", "1,2\n#### 1,2")]}, "row 0: the answer does not end in ####"),
        ({"train": TRAIN, "test": [("How many?", "7\n#### \uff17")]}, "row 0: the answer does not end in ####"),
        ({"train": TRAIN, "test": [("How many?", "7\n#### 007")]}, "row 0: the answer does not end in ####"),
        ({"train": TRAIN, "test": [("Odd?", "#### 1"), ("Odd?", "#### 3")]}, "dropped: {'conflicting answers': 2}"),
        ({"train": TRAIN, "test": [("Half \ud800?", "#### 7")]}, "test.jsonl, line 1: has an unpaired surrogate"),
        ({"train": TRAIN, "test": [(None, "#### 7")]}, "row 0: 'question' and 'answer' are to be text"),
        ({"train": TRAIN, "test": [("", "#### 7")]}, "row 0: 'question' and 'answer' are to be text"),
    ],
)
def test_other_input_is_refused_in_one_line(tmp_path, splits, message):
    with pytest.raises(ValueError) as raised:
        prepare(write(tmp_path / "raw", **splits), tmp_path / "out")
    assert message in first_line(raised.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no {SHARED.name} folder beside the repository")
def test_the_whole_set_is_kept_and_every_answer_matches_its_own_box(tmp_path):
    dapo_file = tmp_path / "dapo" / "train.parquet"
    command = [sys.executable, "-m", "data_prep.dapo", "--source", str(SHARED / "dapo-math-17k-one-block.parquet")]
    subprocess.run([*command, "--output", str(dapo_file)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    prepare(SHARED / "gsm8k", tmp_path, dapo_file)
    for name, count in (("train.parquet", 7473), ("GSM8K.parquet", 1319)):
        rows = read_problem_rows(tmp_path / name)
        assert len(rows) == count
        for row in rows:
            answer = row["reward_model"]["ground_truth"]
            assert compute_score("gsm8k", rf"It is $\boxed{{{answer}}}$.", answer)["acc"] == 1.0
        assert verify(tmp_path / name) == []
    found = read_manifest(tmp_path / "GSM8K.parquet")["found_in"]
    assert {name: (report["exact"], report["near"]) for name, report in found.items()} == {
        "train": (0, 0),
        "dapo": (0, 0),
    }


def test_only_lengths_steps_data_and_model_differ_from_the_paper():
    config, comparisons = compare("gsm8k", [], "cuda", [])
    assert problem(comparisons) == ""
    different = {c.stated.key for c in comparisons if c.status == "allowed"}
    assert different == {
        "data.max_prompt_length",
        "data.max_response_length",
        "data.val_files",
        "actor_rollout_ref.model.path",
        "actor_rollout_ref.rollout.val_kwargs.n",
        "actor_rollout_ref.rollout.custom.validation_response_length",
        "trainer.test_freq",
    }
    assert config.trainer.total_training_steps == 150


def test_it_is_planned_for_one_gpu_of_24_gb():
    config = compose("gsm8k", [], "cuda")
    memory = phases(config, model_shape(config.actor_rollout_ref.model.path), 23 * 2**30, gpus=1)
    assert needed(memory) < 23 * 2**30


def test_a_llama_has_a_shape(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=100, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    assert parameters(model_shape(str(tmp_path))) == LlamaForCausalLM(config).num_parameters()
