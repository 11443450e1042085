"""The card of a model: its numbers are those of report.json, and what is not known is not made up."""

import json
import re

import pytest
from huggingface_hub import ModelCard
from omegaconf import OmegaConf

from eval import report
from eval.tables import percent, signed_percent
from recipe import card
from recipe.check import compare
from recipe.monitor.metrics import read_log
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


def write(run, step=3):
    """Write a card; return its text, its head, and what it lacks."""
    lacks = card.write(run, step, run / "card")
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
    parts = {"demo": {"problems": 4, "exact": 1, "near": 2, "problem_ids": ["demo-0"]}}
    manifest = {"source": "lab/problems", "revision": "c0ffee", "rows_in": 9, "rows_out": 7, "sha256_out": "1234"}
    manifest |= {"dropped": {"copies": {"count": 2}}, "contamination": parts}
    (run / "train.manifest.json").write_text(json.dumps(manifest))
    configure(run, data__train_files=str(run / "train.parquet"))
    report.write([run], manifest=run / "train.manifest.json")
    text, head, lacks = write(run)
    assert head["datasets"] == ["lab/problems"]
    found = rows(text)
    assert ["source", "lab/problems at commit c0ffee"] in found
    assert ["dropped: copies", "2"] in found
    assert ["demo", "1", "2", "4"] in found
    (row,) = read_tables(run)["clean"]
    assert [row["benchmark"], "1", percent(row["base"]), percent(row["step_3"])] in found
    assert not any("manifest" in lack for lack in lacks)


def test_differences_are_those_of_the_check(run):
    overrides = ["trainer.nnodes=4", "trainer.n_gpus_per_node=4"]
    _, comparisons = compare("demo", overrides, "cuda", [])
    differing = {f"`{c.stated.key}`" for c in comparisons if c.status == "allowed"}
    text, *_ = write(run)
    assert {cells[0] for cells in rows(text) if len(cells) == 4 and cells[0].startswith("`")} == differing
    assert ["`data.train_batch_size`", "256", "32", "prompts per step"] in rows(text)
    (run / "check.txt").write_text("key ...\n91 values checked: 14 differ and are allowed\n")
    assert "the check of the last start had: 91 values checked: 14 differ and are allowed." in write(run)[0]


def test_arms_are_named(run):
    configure(run, justrl__allow__gspo=["actor_rollout_ref.actor.policy_loss.loss_mode"])
    text, *_ = write(run)
    assert "- GSPO: one length-normalised ratio per response" in text
    assert "with the tricks listed below" in text


def test_a_card_is_public(run):
    secret = "/home/somebody"
    configure(run, justrl__alert=f"curl {secret}", trainer__default_local_dir=f"{secret}/run/checkpoints")
    configure(run, actor_rollout_ref__model__path=f"{secret}/base", data__train_files=f"{secret}/train.parquet")
    configure(run, reward__custom_reward_function__path=f"{secret}/checkout/reward/justrl.py")
    text, head, lacks = write(run)
    assert secret not in text
    assert "The local model `base` after" in text
    assert "base_model" not in head
    assert not [cells for cells in rows(text) if cells[0] == "`reward.custom_reward_function.path`"]
    assert "the origin of train.parquet: it has no manifest" in lacks
    assert "`train.parquet` has no manifest" in text


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
    ],
)
def test_a_damaged_report_is_one_line_with_the_fix(run, content):
    (run / "report.json").write_text(content)
    with pytest.raises(ValueError, match=rf"^{run}/report\.json: .*; python -m eval\.report {run} writes it$"):
        write(run)
    assert not (run / "card" / card.CARD).exists()


def test_a_run_without_steps_is_refused(run):
    (run / "metrics.jsonl").unlink()
    with pytest.raises(
        ValueError, match=r"run: a card needs a training step in metrics\.jsonl and .*; is it a run's\?$"
    ):
        write(run)
