"""Every shipped config is the paper's up to what it says, and a change of any stated value is found."""

import json

import pytest
from omegaconf import OmegaConf

from common.command import Failure
from recipe import attention, check
from recipe.compose import CONFIG_FOLDER, compose, config_names
from recipe.paper import VALUES

HARDWARE = sorted(path.stem for path in (CONFIG_FOLDER / "hardware").glob("*.yaml"))
VERIFIER = "reward.custom_reward_function.path"
LEARNING = [stated for stated in VALUES if not stated.machine]


def found(name, *statuses, overrides=(), device="cuda", allow=()):
    _, comparisons = check.compare(name, list(overrides), device, list(allow))
    return {c.stated.key for c in comparisons if c.status in statuses}


@pytest.mark.parametrize("name", ["justrl_deepseek", "justrl_nemotron"])
def test_backbones_are_the_papers(name):
    assert found(name, "machine", "different") == {attention.KEY}, "flash-attn is not installed here"
    assert found(name, "allowed") == set()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_demo_differs_in_size_alone(device):
    different = found("demo", "allowed", "different", device=device)
    assert not {key for key in different if key.startswith(("algorithm", "reward"))}
    assert found("demo", "different", overrides=["data.seed=2"], device=device) == set()
    config = compose("demo", [], device)
    assert config.data.train_batch_size // config.actor_rollout_ref.actor.ppo_mini_batch_size == 4


def test_no_config_is_left_out():
    demos = {"demo", "demo_hard", "demo_pretrained"}
    assert set(config_names()) == demos | {"justrl_deepseek", "justrl_nemotron", "gsm8k", "justrl", "opd"}


@pytest.mark.parametrize("hardware", HARDWARE)
@pytest.mark.parametrize("name", ["justrl_deepseek", "justrl_nemotron"])
def test_other_machines_change_nothing_that_learning_depends_on(name, hardware):
    assert found(name, "allowed", "different", overrides=[f"+hardware={hardware}"]) == set()


def mutated(value):
    """Return another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if value is None:
        return "something"
    if isinstance(value, float):
        return value / 2 or 0.5
    if isinstance(value, int):
        return value + 1
    return [*value[:-1], mutated(value[-1])] if isinstance(value, list) else f"{value}_other"


@pytest.mark.parametrize("stated", LEARNING, ids=lambda stated: stated.key)
def test_a_change_of_any_stated_value_is_found(stated):
    assert len(LEARNING) >= 35
    value = OmegaConf.select(check.shipped_config("justrl_deepseek", (), "cuda")[0], stated.key, default=stated.value)
    value = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    override = f"++{stated.key}={json.dumps(mutated(value))}"
    _, comparisons = check.compare("justrl_deepseek", [override], "cuda", [])
    assert stated.key in {c.stated.key for c in comparisons if c.status == "different"}
    with pytest.raises(ValueError, match=stated.key):
        check.require_paper(comparisons)


@pytest.mark.parametrize(
    "override",
    [
        "data.train_files=other.parquet",
        "actor_rollout_ref.rollout.response_length=2048",
        "actor_rollout_ref.actor.fsdp_config.model_dtype=bfloat16",
        "+actor_rollout_ref.actor.optim.override_optimizer_config.eps=0.1",
        "actor_rollout_ref.model.custom_chat_template=hello",
        "reward.reward_manager.source=importlib",
        "actor_rollout_ref.rollout.agent.agent_loop_manager_class=null",
        "trainer.val_only=true",
    ],
)
def test_what_nobody_stated_may_not_change_silently_either(override):
    key = override.lstrip("+").split("=")[0]
    assert found("justrl_deepseek", "different", overrides=[override]) == {key}
    assert found("justrl_deepseek", "different", overrides=[override], allow=[key]) == set()


def test_an_arms_own_difference_is_its_own_value_alone():
    path = "reward.custom_reward_function.path=/other/reward.py"
    assert found("justrl_deepseek", "different", overrides=["+arms=robust_verifier", path]) == {VERIFIER}
    length = "reward.reward_kwargs.overlong_buffer_cfg.len"
    assert found("justrl_deepseek", "different", overrides=["+arms=overlong", f"{length}=1"]) == {length}


def test_places_and_logging_are_free():
    free = ["trainer.experiment_name=x", "trainer.logger=[console]", "trainer.default_local_dir=/x/checkpoints"]
    assert found("justrl_deepseek", "allowed", "different", overrides=free) == set()


def test_steps_belong_to_their_backbone():
    steps = ["trainer.total_training_steps=3440"]
    assert found("justrl_deepseek", "different", overrides=steps) == {"trainer.total_training_steps"}
    folder = ["actor_rollout_ref.model.path=/models/OpenMath-Nemotron-1.5B"]
    assert found("justrl_nemotron", "different", overrides=folder) == set()
    other = ["actor_rollout_ref.model.path=unsloth/OpenMath-Nemotron-1.5B"]
    assert "actor_rollout_ref.model.path" in found("justrl_nemotron", "different", overrides=other)


def test_a_mistyped_acknowledgement_is_an_error():
    with pytest.raises(ValueError, match=r"--allow data\.sed: no such key"):
        found("justrl_deepseek", allow=["data.sed"])


def run(monkeypatch, capsys, *arguments):
    """Return the problem for which the command fails, None where it succeeds, and its output."""
    monkeypatch.setenv("JUSTRL_DEVICE", "cuda")
    monkeypatch.setattr("sys.argv", ["recipe.check", *arguments])
    problem = None
    try:
        check.main()
    except Failure as failure:
        problem = str(failure)
    return problem, capsys.readouterr().out


def test_the_command_lists_differences_and_takes_acknowledgements(monkeypatch, capsys):
    problem, text = run(monkeypatch, capsys, "justrl_deepseek", "--no-files")
    assert problem is None
    assert text == f"{len(VALUES)} values checked: {len(VALUES) - 1} match the paper, " + (
        "1 differ in speed or memory only, 0 differ and are allowed, 0 differ\n"
    )
    changed = ["justrl_deepseek", "data.train_batch_size=128", "trainer.nnodes=2", "--no-files"]
    problem, text = run(monkeypatch, capsys, *changed)
    key = "data.train_batch_size"
    assert problem == f"{key}: expected 256 (paper, table 2), got 128; pass --allow {key} to keep it"
    line = next(line for line in text.splitlines() if line.startswith(key))
    assert line.split()[1:7] == ["256", "128", "different", "paper,", "table", "2"]
    assert "prompts per step" in line
    assert run(monkeypatch, capsys, *changed, "--allow", "data")[0] is None
    rows = json.loads(run(monkeypatch, capsys, *changed, "--json")[1])
    assert {row["key"]: row["status"] for row in rows if row["status"] != "same"} == {
        "data.train_batch_size": "different",
        "trainer.nnodes": "machine",
        attention.KEY: "machine",
    }
    first = {
        line.split()[0] for line in run(monkeypatch, capsys, "justrl_nemotron", "--no-files", "--all")[1].splitlines()
    }
    assert first >= {stated.key for stated in VALUES}


def test_files_are_looked_at_unless_told_not_to(monkeypatch, capsys, tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        run(monkeypatch, capsys, "justrl_deepseek", f"data.val_files={tmp_path}/absent.parquet", "trainer.nnodes=1")
