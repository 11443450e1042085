"""Every shipped config is the paper's up to what it says, and a change of any stated value is found."""

import json

import pytest
from omegaconf import OmegaConf

from recipe import check
from recipe.compose import CONFIG_FOLDER, compose, config_names
from recipe.paper import VALUES

HARDWARE = sorted(path.stem for path in (CONFIG_FOLDER / "hardware").glob("*.yaml"))
OVERLONG, VERIFIER = "reward.reward_kwargs.overlong_buffer_cfg.enable", "reward.custom_reward_function.path"
INTENDED = {
    "justrl_deepseek": set(),
    "justrl_nemotron": set(),
    "ablation_overlong": {OVERLONG},
    "ablation_verifier": {VERIFIER},
    "ablation_overlong_verifier": {OVERLONG, VERIFIER},
}
LEARNING = [stated for stated in VALUES if not stated.machine]


def found(config, *statuses):
    return {c.stated.key for c in check.compare(config) if c.status in statuses}


@pytest.mark.parametrize("name", INTENDED)
def test_backbones_are_the_papers_and_arms_differ_as_they_say(name):
    config = compose(name, [], "cuda")
    assert found(config, "machine", "different") == set()
    assert found(config, "allowed") == INTENDED[name]
    config.justrl.allow = []
    assert found(config, "different") == INTENDED[name]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_demo_says_all_its_differences(device):
    config = compose("demo", [], device)
    assert found(config, "different") == set()
    assert not {key for key in found(config, "allowed") if key.startswith(("algorithm", "reward"))}
    assert config.data.train_batch_size // config.actor_rollout_ref.actor.ppo_mini_batch_size == 4


def test_no_config_is_left_out():
    assert set(config_names()) == {*INTENDED, "demo", "justrl"}


@pytest.mark.parametrize("hardware", HARDWARE)
@pytest.mark.parametrize("name", ["justrl_deepseek", "justrl_nemotron"])
def test_other_machines_change_nothing_that_learning_depends_on(name, hardware):
    config = compose(name, [f"+hardware={hardware}"], "cuda")
    assert found(config, "allowed", "different") == set()


def mutated(value):
    """Return another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if value is None:
        return "something"
    if isinstance(value, (int, float)):
        return value + 1
    return [*value[:-1], "other"] if isinstance(value, list) else f"{value}_other"


@pytest.fixture(scope="module")
def composed():
    return compose("justrl_deepseek", [], "cuda")


@pytest.mark.parametrize("stated", LEARNING, ids=lambda stated: stated.key)
def test_a_change_of_any_stated_value_is_found(composed, stated):
    assert len(LEARNING) >= 35
    config = composed.copy()
    value = OmegaConf.select(config, stated.key, default=stated.value)
    value = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    OmegaConf.update(config, stated.key, mutated(value), force_add=True)
    assert stated.key in found(config, "different")
    with pytest.raises(ValueError, match=stated.key):
        check.require_paper(config)
    check.require_paper(check.allow(config, [stated.key, "trainer.total_training_steps"]))


def test_steps_belong_to_their_backbone():
    config = compose("justrl_deepseek", ["trainer.total_training_steps=3440"], "cuda")
    assert found(config, "different") == {"trainer.total_training_steps"}
    folder = "actor_rollout_ref.model.path=/models/OpenMath-Nemotron-1.5B"
    assert found(compose("justrl_nemotron", [folder], "cuda"), "different") == set()


def run(monkeypatch, capsys, *arguments):
    """Return exit status, output and errors of the command."""
    monkeypatch.setenv("JUSTRL_DEVICE", "cuda")
    monkeypatch.setattr("sys.argv", ["recipe.check", *arguments])
    status = check.main()
    return status, capsys.readouterr().out


def test_the_command_lists_differences_and_takes_acknowledgements(monkeypatch, capsys):
    status, text = run(monkeypatch, capsys, "justrl_deepseek", "--no-files")
    assert status == 0
    assert text == f"{len(VALUES)} values: {len(VALUES)} the paper's, 0 of speed and memory alone differ, " + (
        "0 differences acknowledged, 0 not\n"
    )
    changed = ["justrl_deepseek", "data.train_batch_size=128", "trainer.nnodes=2", "--no-files"]
    status, text = run(monkeypatch, capsys, *changed)
    assert status == 1
    line = next(line for line in text.splitlines() if line.startswith("data.train_batch_size"))
    assert line.split()[1:7] == ["256", "128", "different", "paper,", "table", "2"]
    assert "prompts a step" in line
    assert run(monkeypatch, capsys, *changed, "--allow", "data")[0] == 0
    rows = json.loads(run(monkeypatch, capsys, *changed, "--json")[1])
    assert {row["key"]: row["status"] for row in rows if row["status"] != "same"} == {
        "data.train_batch_size": "different",
        "trainer.nnodes": "machine",
    }
    first = {
        line.split()[0] for line in run(monkeypatch, capsys, "justrl_nemotron", "--no-files", "--all")[1].splitlines()
    }
    assert first >= {stated.key for stated in VALUES}


def test_files_are_looked_at_unless_told_not_to(monkeypatch, capsys, tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        run(monkeypatch, capsys, "justrl_deepseek", f"data.val_files={tmp_path}/absent.parquet", "trainer.nnodes=1")
