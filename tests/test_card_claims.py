"""What a card claims of a run, its method, its base model and its versions, and what it must not show."""

# ruff: noqa: F811 (fixtures of the other files)

import json
import shutil

import pytest
from huggingface_hub import constants
from omegaconf import OmegaConf

from eval import report
from recipe import card
from recipe.monitor.metrics import read_log
from recipe.run_id import FILE, give_id
from tests.test_card import add_manifest, change_report, configure, rows, run, write  # noqa: F401
from tests.test_push import hub  # noqa: F401


def test_arms_are_named(run):
    configure(run, justrl__allow__gspo=["actor_rollout_ref.actor.policy_loss.loss_mode"])
    text, *_ = write(run)
    assert "- GSPO: one length-normalised ratio per response" in text
    assert "with the tricks listed below" in text


def test_an_arm_whose_file_is_gone_is_named(run):
    configure(run, justrl__allow__gone=["data.seed"], justrl__allow__also=["data.seed"])
    text, *_ = write(run)
    for name in ("gone", "also"):
        assert f"- `{name}`: an arm whose file this repository no longer has" in text


ADVANTAGES = "algorithm__adv_estimator"
SCHEDULE = "actor_rollout_ref__actor__optim__lr_scheduler_type"
TASK_REWARDS = "distillation__distillation_loss__use_task_rewards"
TEACHER = {"distillation__enabled": True, "distillation__teacher_models__teacher_model__model_path": "/home/a/Teacher"}
RL, OPD = "reinforcement learning", "on-policy distillation"


@pytest.mark.parametrize(
    ("values", "kind", "sentence", "tags"),
    [
        (
            {},
            RL,
            "GRPO with a rule reward and fixed hyperparameters, in one stage.",
            ["grpo", "reinforcement-learning"],
        ),
        ({ADVANTAGES: "rloo"}, RL, "RLOO with a rule reward and fixed hyper", ["rloo", "reinforcement-learning"]),
        ({ADVANTAGES: "own"}, RL, "the advantages `own` with a rule reward", ["own", "reinforcement-learning"]),
        (
            {SCHEDULE: "cosine"},
            RL,
            "a rule reward and a learning rate that follows a schedule (`cosine`), in one",
            None,
        ),
        ({"reward__custom_reward_function__path": "/home/a/mine.py"}, RL, "GRPO with the reward `mine.py` and", None),
        (
            TEACHER | {TASK_REWARDS: False},
            OPD,
            "the log-probabilities of the teacher `Teacher` in place of a reward and fixed",
            ["on-policy-distillation"],
        ),
        (
            TEACHER | {TASK_REWARDS: True},
            OPD,
            "the log-probabilities of the teacher `Teacher` beside GRPO with a rule reward and fixed",
            ["on-policy-distillation", "grpo", "reinforcement-learning"],
        ),
    ],
)
def test_the_method_is_the_configs(run, values, kind, sentence, tags):
    configure(run, **values)
    text, head, _ = write(run)
    assert f" steps of {kind} with the [JustRL]" in text
    assert sentence in text.partition("## Scores")[0]
    assert (["reward", "justrl.py"] in rows(text)) == ("a rule reward" in sentence)
    assert any(cells[0] == "advantages" for cells in rows(text)) == ("in place of a reward" not in sentence)
    if tags:
        assert head["tags"] == ["justrl", "verl", *tags]


def test_a_card_is_public(run):
    secret = "/home/somebody"
    configure(run, justrl__alert=f"curl {secret}", trainer__default_local_dir=f"{secret}/run/checkpoints")
    configure(run, actor_rollout_ref__model__path=f"{secret}/base", data__train_files=f"{secret}/train.parquet")
    configure(run, reward__custom_reward_function__path=f"{secret}/checkout/reward/justrl.py")
    report.write([run])
    change_report(run, judge={"model": f"{secret}/models/Judge"}, protocol={"demo": {"prompt": f"{secret}/prompt"}})
    text, head, lacks = write(run)
    assert secret not in text
    assert "The model `base` after" in text
    assert "judge: Judge." in text
    assert "base_model" not in head
    assert not [cells for cells in rows(text) if cells[0] == "`reward.custom_reward_function.path`"]
    assert "the origin of train.parquet: it has no manifest" in lacks
    assert "`train.parquet` has no manifest" in text
    for source in (f"{secret}/raw.parquet", {"train": {"model": f"{secret}/base"}}, [f"{secret}/raw.parquet"]):
        add_manifest(run / "train.parquet", source=source)
        configure(run, data__train_files=[str(run / "train.parquet")], data__val_files=[f"{secret}/test.parquet"])
        text, head, _ = write(run)
        assert (secret in text, "datasets" in head) == (False, False)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("/home/a/x", "x"),
        ("~/x", "x"),
        ("~a/x", "x"),
        ("../a/x", "x"),
        ("a/b/x.parquet", "x.parquet"),
        ("models/x", "x"),
        ("hdfs://node/a/x", "x"),
        (["/home/a/x", "/home/a/y"], "x, y"),
        ("org/model", "org/model"),
        ("https://example.org/a", "https://example.org/a"),
        (1e-6, "1e-06"),
        ("a|b", r"a\|b"),
    ],
)
def test_paths_are_shown_by_name(value, text):
    assert card.shown(value) == text
    assert card.shown(OmegaConf.create({"key": value}).key) == text


def test_a_run_without_a_number_of_steps_or_a_gpu(run, no_pictures):
    configure(run, trainer__total_training_steps=None, trainer__device="cpu")
    shutil.rmtree(run / "eval" / "base")
    report.write([run])
    text, *_ = write(run)
    assert "after 3 steps of" in text
    assert ("CPU rank hours" in text, "summed over ranks." in text) == (True, True)
    assert "the model before training" not in text, "it was not evaluated"
    configure(run, trainer__device="cuda")
    assert "summed over GPUs." in write(run)[0]


def test_a_run_keeps_its_id_and_another_has_its_own(run):
    first = write(run)[1][card.RUN_KEY]
    by_step, _ = read_log(run / "metrics.jsonl")
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 4, "data": by_step[3]}) + "\n")
    configure(run, trainer__nnodes=8, trainer__total_training_steps=40, data__train_files="moved.parquet")
    assert write(run, step=4)[1][card.RUN_KEY] == first
    configure(run, trainer__experiment_name="other")
    assert write(run)[1][card.RUN_KEY] != first
    configure(run, trainer__experiment_name="demo")
    assert write(run)[1][card.RUN_KEY] == first
    lines = (
        (run / "metrics.jsonl").read_text().replace('"val-aux/num_turns/mean": 2.0', '"val-aux/num_turns/mean": 3.0')
    )
    (run / "metrics.jsonl").write_text(lines)
    assert write(run)[1][card.RUN_KEY] != first


def test_a_run_has_an_id_of_its_own_from_its_first_start(run, tmp_path):
    """Two runs may have the same first metrics; one that was started before there were ids keeps its digest."""
    give_id(run)
    assert not (run / FILE).exists()
    digest = write(run)[1][card.RUN_KEY]
    ids = []
    for name in "ab":
        (tmp_path / name).mkdir()
        give_id(tmp_path / name)
        ids.append((tmp_path / name / FILE).read_text().strip())
        give_id(tmp_path / name)
        assert (tmp_path / name / FILE).read_text().strip() == ids[-1], "of the first start"
        shutil.copyfile(tmp_path / name / FILE, run / FILE)
        configure(run, trainer__experiment_name=name)
        assert write(run)[1][card.RUN_KEY] == ids[-1]
    assert len({*ids, digest}) == 3
    (run / FILE).write_bytes(b"/home/somebody\n")
    configure(run, trainer__experiment_name="demo")
    assert write(run)[1][card.RUN_KEY] == digest


def test_the_license_is_the_base_models(tmp_path, hub):
    assert card.base_model(str(tmp_path)) == (None, {})
    (tmp_path / card.CARD).write_text("---\nlicense: other\nlicense_name: own\nlicense_link: LICENSE\n---\n")
    own = {"license": "other", "license_name": "own", "license_link": "LICENSE"}
    assert card.base_model(str(tmp_path)) == (None, own)
    backbone = tmp_path / "DeepSeek-R1-Distill-Qwen-1.5B"
    backbone.mkdir()
    known = f"deepseek-ai/{backbone.name}"
    assert card.base_model(str(backbone)) == (known, {}), "the hub has no such model"
    hub.add(known, "theirs", {card.CARD: b"---\nlicense: mit\n---\n"})
    assert card.base_model(str(backbone)) == (known, {"license": "mit"})
    assert card.base_model(known) == (known, {"license": "mit"})
    hub.add(known, "damaged", {card.CARD: b"---\nlicense: [mit\n---\n"})
    assert card.base_model(known) == (known, {})
    hub.add(known, "unknown", {card.CARD: b"---\nlicense: Unknown\n---\n"})
    assert card.base_model(known) == (known, {})


def test_a_hub_id_is_claimed_only_of_what_the_hub_has(run, hub, monkeypatch):
    """`ckpts/qwen` may be a folder that is gone."""
    configure(run, actor_rollout_ref__model__path="ckpts/qwen")
    text, head, lacks = write(run)
    assert "The model `ckpts/qwen` after" in text
    assert "base_model" not in head
    assert "the base model: ckpts/qwen is no folder here, and the hub has no such model" in "\n".join(lacks)
    for files in ({card.CARD: b"---\nlicense: mit\n---\n"}, {"config.json": b"{}"}):
        hub.repositories.clear()
        hub.add("ckpts/qwen", "theirs", files)
        text, head, lacks = write(run)
        assert "[ckpts/qwen](https://huggingface.co/ckpts/qwen) after" in text
        assert head["base_model"] == "ckpts/qwen"
        assert not any("base model:" in lack for lack in lacks)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(run / "empty"))
    assert card.base_model("ckpts/other") == (None, {})


def test_an_unknown_license_is_stated(run):
    text, head, lacks = write(run)
    assert head["license"] == "unknown"
    assert "Unknown: no card of the base model that states one was found." in text
    assert "a license: found no card of the base model that states one" in lacks


def test_versions_are_the_runs_where_it_recorded_them(run):
    text, *_ = write(run)
    assert "The run did not record any; these are of the environment that wrote this card: verl 0.9.1, " in text
    events = [{"versions": {"verl": "0.8"}, "commit": "1"}, {"versions": {"verl": "0.8.5"}, "commit": "abc-dirty"}]
    lines = [json.dumps({"time": "2026", "event": "started"} | event) for event in events]
    lines += [json.dumps({"time": "2026", "event": "restart", "seconds_lost": 120})]
    for foreign in (1, {"verl": 1}, None):
        lines += [json.dumps({"time": "2026", "event": "started", "versions": foreign})]
    (run / "events.jsonl").write_text("\n".join(lines) + "\n")
    text, *_ = write(run)
    assert "Restarts: 1, which cost 2 min." in text
    assert "Recorded when the run last started: verl 0.8.5, commit abc of the recipe with uncommitted changes." in text
