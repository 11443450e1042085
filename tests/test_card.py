"""The card of a model: its numbers are those of report.json, and what is not known is not made up."""

import json
import re

import pytest
from huggingface_hub import ModelCard
from omegaconf import OmegaConf

from common.markdown import percent, signed_percent
from common.models import model_digest
from eval import report, sections
from recipe import card
from recipe.check import compare
from tests.test_report import evaluation, make_run


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
    assert "These weights have not been evaluated." in text
    assert lacks[0].startswith(f"scores of step 3: {run}/report.json has none;")
    report.write([run])
    text, head, lacks = write(run, step=2)
    assert (head["justrl_step"], "These weights have not been evaluated." in text) == (2, True)
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
    for folder, source in (("a", "lab/one"), ("b", "lab/two"), ("c", "lab/two")):
        add_manifest(run / folder / "train.parquet", source=source)
    configure(run, data__train_files=[str(run / name / "train.parquet") for name in "abcd"])
    text, head, lacks = write(run)
    assert head["datasets"] == ["lab/one", "lab/two"]
    assert [cells[1] for cells in rows(text) if cells[0] == "source"] == [
        "lab/one at commit c0ffee",
        "lab/two at commit c0ffee",
        "lab/two at commit c0ffee",
    ]
    assert "`train.parquet`, file 2 of 4:" in text
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
        assert ("These weights have not been evaluated." in text, "scores.png" in text) == (not of_these, of_these)
        assert (run / "card" / "scores.png").exists() == of_these
        (lack,) = [lack for lack in lacks if "weights" in lack] or [""]
        assert lack.partition(":")[0] == {
            "another": "scores of step 3",
            None: "a check that the scores are of these weights",
        }.get(sampled, "")
    assert "a check that the scores are of these weights: its model is not exported" in "".join(write(run)[2])


def test_scores_of_an_older_evaluation_are_left_out(run, no_pictures):
    """A step that was evaluated again, or is to be, before its report was written again."""
    report.write([run])
    assert "scores.png" in write(run)[0]
    scores = evaluation(run / "eval" / "step_3", "outputs/demo/export/step_3", {"demo": [1, 1, 0, 0], "more": [1]})
    older = f"scores of step 3: those in {run}/report.json are not those in {run}/eval/step_3; once it is evaluated,"
    text, _, lacks = write(run)
    assert ("These weights have not been evaluated." in text, lacks[0].startswith(older)) == (True, True)
    report.write([run])
    assert "scores.png" in write(run)[0], "of the report's benchmarks, be they fewer"
    (scores / "scores.json").unlink()
    text, _, lacks = write(run)
    assert ("These weights have not been evaluated." in text, lacks[0].startswith(older)) == (True, True)


def test_differences_are_those_of_the_check(run):
    overrides = ["trainer.nnodes=4", "trainer.n_gpus_per_node=4"]
    _, comparisons = compare("demo", overrides, "cuda", [])
    differing = {f"`{c.stated.key}`" for c in comparisons if c.status == "allowed"}
    text, *_ = write(run)
    assert {cells[0] for cells in rows(text) if len(cells) == 4 and cells[0].startswith("`")} == differing
    assert ["`data.train_batch_size`", "256", "32", "prompts per step"] in rows(text)
    (run / "check.txt").write_text("key ...\n91 values checked: 14 differ and are allowed\n")
    assert "the check of the last start printed: 91 values checked: 14 differ and are allowed." in write(run)[0]


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


@pytest.mark.parametrize("files", [5, "/", [None], ["a.parquet", 3], "${absent.key}"])
def test_a_damaged_config_is_one_line(run, files):
    configure(run, data__train_files=files)
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
