"""The card of a model: its numbers are those of report.json, and what is not known is not made up."""

import json
import re
import shutil

import pytest
from huggingface_hub import ModelCard, constants
from omegaconf import OmegaConf

from common.models import model_digest
from eval import report, sections
from eval.tables import percent, signed_percent
from recipe import card
from recipe.check import compare
from recipe.monitor.metrics import read_log
from recipe.run_id import FILE, give_id
from tests.test_push import hub  # noqa: F401
from tests.test_report import make_run


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """A run of three steps with its report, and the folder of the card of step 3; only to be read."""
    run = report.write([make_run(tmp_path_factory.mktemp("runs") / "run")])
    card.write(run, 3, run / "card")
    return run


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run without a report, whose card has no curves: drawing takes most of its time."""
    monkeypatch.setattr(card, "draw_figures", lambda *_: [])
    return make_run(tmp_path / "run")


def configure(run, **values):
    """Change values of a run's config, by key with "__" for ".", as another start would."""
    config = OmegaConf.load(run / "config.yaml")
    for key, value in values.items():
        OmegaConf.update(config, key.replace("__", "."), value)
    OmegaConf.save(config, run / "config.yaml")


def change_report(run, **values):
    """Change values of the evaluation of step 3 in a run's report."""
    made = json.loads((run / "report.json").read_text())
    made["evaluations"]["step_3"] |= values
    (run / "report.json").write_text(json.dumps(made))


def add_manifest(path, **values):
    """Write a manifest beside a training file and return its path."""
    parts = {"demo": {"problems": 4, "exact": 1, "near": 2, "problem_ids": ["demo-0"]}}
    made = {"source": "lab/problems", "revision": "c0ffee", "rows_in": 9, "rows_out": 7, "sha256_out": "1234"}
    made |= {"dropped": {"copies": {"count": 2}}, "contamination": parts} | values
    path.parent.mkdir(exist_ok=True)
    (found := path.with_name(f"{path.stem}.manifest.json")).write_text(json.dumps(made))
    return found


def write(run, step=3, exported=None):
    """Write a card; return its text, its head, and what it lacks."""
    lacks = card.write(run, step, run / "card", exported)
    text = (run / "card" / card.CARD).read_text()
    return text, ModelCard(text).data.to_dict(), lacks


def rows(text):
    """Return the cells of every row of a card's tables."""
    return [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]


def test_the_numbers_are_those_of_the_report(reported):
    found, tables = rows((reported / "card" / card.CARD).read_text()), read_tables(reported)
    for row in tables["scores"]:
        assert [row["benchmark"], percent(row["base"]), percent(row["step_3"])] in found
    assert len(tables["tracks"]) == 2, "the model before training and after it"
    for row in tables["tracks"]:
        assert [row["benchmark"], row["model"], percent(row["official"]), percent(row["strict-typed"])] in found
    (row,) = tables["step_3 minus base"]
    difference = signed_percent(row["step_3 minus base"])
    assert [row["benchmark"], difference, f"{row['p, Holm']:.2g}"] in found
    shown = {cells[0]: cells[1] for cells in found if len(cells) == 2}
    for row in tables["compute of run"]:
        assert float(shown[row["compute"]].replace(",", "")) == pytest.approx(row["this run"], rel=0.001, abs=0.005)


def read_tables(run):
    return json.loads((run / "report.json").read_text())["tables"]


def test_the_figures_are_beside_the_card(reported):
    names = re.findall(r"!\[.*\]\((.*)\)", (reported / "card" / card.CARD).read_text())
    assert names == ["scores.png", "curves.png", "details.png"]
    for name in names:
        assert (reported / "card" / name).read_bytes().startswith(b"\x89PNG")


def test_scores_of_another_step_are_not_shown(run):
    text, head, lacks = write(run)
    assert "This step has not been evaluated." in text
    assert lacks[0].startswith(f"scores of step 3: {run}/report.json has none;")
    report.write([run])
    text, head, lacks = write(run, step=2)
    assert (head["justrl_step"], "This step has not been evaluated." in text) == (2, True)
    assert lacks[0].startswith("scores of step 2: ")
    assert "after 2 of 20 steps" in text
    assert "Of the whole run, 3 steps" in text


def test_scores_without_those_in_the_training_set(run, no_pictures):
    add_manifest(run / "train.parquet")
    configure(run, data__train_files=str(run / "train.parquet"))
    report.write([run])
    assert json.loads((run / "report.json").read_text())["manifest"] == {
        "name": "train.manifest.json",
        "sha256_out": "1234",
    }
    text, head, lacks = write(run)
    assert head["datasets"] == ["lab/problems"]
    found = rows(text)
    assert ["source", "lab/problems at commit c0ffee"] in found
    assert ["dropped: copies", "2"] in found
    assert ["demo", "1", "2", "4"] in found
    (row,) = read_tables(run)["clean"]
    assert [row["benchmark"], "1", percent(row["base"]), percent(row["step_3"])] in found
    assert not any("manifest" in lack or "training set" in lack for lack in lacks)


def test_scores_without_those_in_another_training_set_are_not_shown(run, tmp_path, monkeypatch, no_pictures):
    """The report's default is DAPO's manifest, whatever else a run was trained on."""
    monkeypatch.setattr(sections, "MANIFEST", add_manifest(tmp_path / "dapo" / "train.parquet"))
    configure(run, data__train_files=str(run / "train.parquet"))
    report.write([run])
    assert "clean" not in read_tables(run), "the run's file has no manifest"
    add_manifest(run / "train.parquet", sha256_out="5678")
    for given, shown in ((sections.MANIFEST, False), (None, True)):
        report.write([run], manifest=given)
        text, _, lacks = write(run)
        assert "clean" in read_tables(run)
        assert ("Without those problems" in text, any("another training set" in lack for lack in lacks)) == (
            shown,
            not shown,
        )
    configure(run, data__train_files=[str(run / "train.parquet"), str(run / "more.parquet")])
    report.write([run], manifest=run / "train.manifest.json")
    assert "Without those problems" not in write(run)[0], "the manifest of one of two files"


def test_training_files_of_one_name_are_all_listed(run):
    for folder, source in (("a", "lab/one"), ("b", "lab/two")):
        add_manifest(run / folder / "train.parquet", source=source)
    configure(run, data__train_files=[str(run / name / "train.parquet") for name in "abc"])
    text, head, lacks = write(run)
    assert head["datasets"] == ["lab/one", "lab/two"]
    assert [cells[1] for cells in rows(text) if cells[0] == "source"] == [
        "lab/one at commit c0ffee",
        "lab/two at commit c0ffee",
    ]
    assert "`train.parquet`, file 2 of 3:" in text
    assert lacks.count("the origin of train.parquet: it has no manifest") == 1


def test_scores_of_other_weights_are_left_out(run, no_pictures):
    """The same step may have been trained again in the same folder since it was evaluated."""
    report.write([run])
    exported, meta = run / "export" / "step_3", run / "eval" / "step_3" / "demo.meta.json"
    exported.mkdir(parents=True)
    (exported / "model.safetensors").write_bytes(b"weights")
    for sampled, of_these in ((model_digest(str(exported)), True), (None, True), ("another", False)):
        meta.write_text(json.dumps({"files": sampled}))
        text, _, lacks = write(run, exported=exported)
        assert ("This step has not been evaluated." in text, "scores.png" in text) == (not of_these, of_these)
        assert (run / "card" / "scores.png").exists() == of_these
        (lack,) = [lack for lack in lacks if "weights" in lack] or [""]
        assert lack.partition(":")[0] == {
            "another": "scores of step 3",
            None: "a check that the scores are of these weights",
        }.get(sampled, "")
    assert "a check that the scores are of these weights: its model is not exported" in "".join(write(run)[2])


def test_differences_are_those_of_the_check(run):
    overrides = ["trainer.nnodes=4", "trainer.n_gpus_per_node=4"]
    _, comparisons = compare("demo", overrides, "cuda", [])
    differing = {f"`{c.stated.key}`" for c in comparisons if c.status == "allowed"}
    text, *_ = write(run)
    assert {cells[0] for cells in rows(text) if len(cells) == 4 and cells[0].startswith("`")} == differing
    assert ["`data.train_batch_size`", "256", "32", "prompts per step"] in rows(text)
    (run / "check.txt").write_text("key ...\n91 values checked: 14 differ and are allowed\n")
    assert "the check of the last start printed: 91 values checked: 14 differ and are allowed." in write(run)[0]


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
        ({ADVANTAGES: "rloo"}, RL, "RLOO with a rule reward and fixed", ["rloo", "reinforcement-learning"]),
        ({ADVANTAGES: "own"}, RL, "the advantages `own` with a rule", ["own", "reinforcement-learning"]),
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


def test_the_license_is_the_base_models(tmp_path, hub):  # noqa: F811
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


def test_a_hub_id_is_claimed_only_of_what_the_hub_has(run, hub, monkeypatch):  # noqa: F811
    """`ckpts/qwen` may be a folder that is gone."""
    configure(run, actor_rollout_ref__model__path="ckpts/qwen")
    text, head, lacks = write(run)
    assert "The model `ckpts/qwen` after" in text
    assert "base_model" not in head
    assert "the base model: ckpts/qwen is no folder, and the hub has no such model" in "\n".join(lacks)
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


def test_an_unknown_license_is_said(run):
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


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"tables": 1}',
        '{"tables": {}, "evaluations": []}',
        '{"tables": {}, "evaluations": {"step_3": {"track": "official"}}}',
        '{"tables": {"scores": [{"benchmark": "demo", "step_3": {"value": 1}}], "tracks": []}, "evaluations": {}}',
        '{"tables": {"scores": [], "tracks": [{"benchmark": "demo"}]}, "evaluations": {}}',
        '{"tables": {}, "manifest": 1}',
        '{"tables": {"scores": [], "tracks": []}, "evaluations": {"step_3": {"track": "official", "judge": {}}}}',
        '{"tables": {"scores": [], "tracks": []}, "evaluations": {"step_3": {"track": "a", "protocol": {"demo": 1}}}}',
    ],
)
def test_a_damaged_report_is_one_line_with_the_fix(run, content):
    (run / "report.json").write_text(content)
    with pytest.raises(ValueError, match=rf"^{run}/report\.json: .*; python -m eval\.report {run} writes it$"):
        write(run)
    assert not (run / "card" / card.CARD).exists()


@pytest.mark.parametrize(
    "values",
    [
        {"dropped": {"copies": 2}},
        {"dropped": {"copies": {}}},
        {"dropped": []},
        {"contamination": {"demo": 1}},
        {"settings": 1},
        {"revision": 1},
        {"sha256_out": [1]},
    ],
)
def test_a_damaged_manifest_is_one_line_with_the_fix(run, values):
    path = add_manifest(run / "train.parquet", **values)
    configure(run, data__train_files=str(run / "train.parquet"))
    with pytest.raises(ValueError, match=rf"^{path}: .*; prepare the data again, or move this file away$"):
        write(run)


def test_a_damaged_config_is_one_line(run):
    configure(run, data__train_files=5)
    with pytest.raises(
        ValueError, match=rf"^{run}/config\.yaml: damaged \(.*\); each start of the run writes it anew$"
    ):
        write(run)
    configure(run, data__train_files="${absent.key}")
    with pytest.raises(
        ValueError, match=rf"^{run}/config\.yaml: damaged \(.*\); each start of the run writes it anew$"
    ):
        write(run)


def test_what_is_no_run_is_refused(run):
    (run / "metrics.jsonl").unlink()
    give = r"give the folder of a run, outputs/<experiment>$"
    with pytest.raises(ValueError, match=rf"^{run}: a card needs a training step in metrics\.jsonl and .*; {give}"):
        write(run)
    (run / "config.yaml").unlink()
    with pytest.raises(ValueError, match=rf"^{run}: has no config\.yaml; {give}"):
        write(run)
