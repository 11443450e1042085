"""A comparison is the same runs whatever happens to one of them: baseline and arms with the same seeds."""

import shlex
import shutil
import sys

import pytest
from omegaconf import OmegaConf

from common.command import Failure
from common.files import write_text
from recipe import compare
from recipe.compose import compose
from tests.conftest import ROOT


@pytest.fixture
def command(monkeypatch, capsys):
    """Run recipe.compare with arguments, and return the lines that it printed."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["compare", *arguments])
        compare.main()
        return capsys.readouterr().out.splitlines()

    return call


def test_every_round_has_the_baseline_and_all_arms(command):
    folders = command("demo", "overlong", "robust_verifier,overlong", "--seeds", "2", "--folders")
    names = ["demo", "demo_overlong", "demo_overlong_robust_verifier"]
    assert folders == [f"outputs/{name}_seed{seed}" for seed in (1, 2) for name in names]


def test_runs_of_a_round_differ_in_their_arms_alone(command):
    lines = command(
        "demo", "overlong", "--seeds", "2", "--print", "trainer.total_training_steps=7", f"{compare.NAME}=x"
    )
    configs = []
    for line in lines:
        script, name, *arguments = shlex.split(line)
        assert script == "./run_justrl.sh"
        assert arguments[-2:] == ["--only", "train"]
        configs.append(compose(name, [each for each in arguments if "=" in each], "cpu"))
    assert [config.trainer.experiment_name for config in configs] == [
        "x_seed1",
        "x_overlong_seed1",
        "x_seed2",
        "x_overlong_seed2",
    ]
    assert [config.data.seed for config in configs] == [1, 1, 2, 2]
    assert [config.actor_rollout_ref.rollout.seed for config in configs] == [1000, 1000, 2000, 2000]
    assert {config.trainer.total_training_steps for config in configs} == {7}
    assert ["max_resp_len" in (config.reward.get("reward_kwargs") or {}) for config in configs] == [False, True] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "nothing"], "unknown arm 'nothing'; there are "),
        (["demo", "overlong", "data.seed=4"], "data.seed=4: each run has its own; use --seeds"),
        (["demo"], "name an arm to compare; there are "),
        (["demo", "overlong", "gspo", "overlong"], "overlong: given twice"),
        (["demo", "tis,gspo", "gspo,tis"], "gspo,tis: given twice"),
        (["demo", "+arms=gspo"], r"name arms without \+arms="),
        (["demo", "gspo", "++trainer.experiment_name=x"], "each run has its own"),
        (["demo", "gspo", "trainer.default_local_dir=/x/checkpoints"], "all runs would share /x"),
        (["demo", "gspo", "actor_rollout_ref.actor.clip_ratio_high=0.3"], "clip_ratio_high: the arm gspo sets it"),
        (["demo", "dynamic_sampling", "actor_rollout_ref.rollout.n=1"], "the one response of a group cannot differ"),
        (["demo", "gspo", "+trainer.nothing=4"], "unknown key trainer.nothing"),
        (["justrl_deepseek", "overlong", "data.train_batch_size=128"], "data.train_batch_size: expected 256"),
    ],
)
def test_wrong_use_is_found_before_the_first_run(command, monkeypatch, arguments, message):
    monkeypatch.setattr(compare, "train", lambda _: pytest.fail("a run was started"))
    with pytest.raises(ValueError, match=message):
        command(*arguments)


def test_a_run_that_fails_is_reported_and_the_others_go_on(command, monkeypatch):
    started = []
    monkeypatch.setattr(compare, "train", lambda each: started.append(each.name) or each.name == "demo_overlong_seed1")
    with pytest.raises(Failure, match=r"1 of 4 runs did not finish: demo_overlong_seed1; see"):
        command("demo", "overlong", "--seeds", "2")
    assert started == ["demo_seed1", "demo_overlong_seed1", "demo_seed2", "demo_overlong_seed2"]


def test_a_run_with_other_values_is_not_taken_for_one_of_the_comparison(command, monkeypatch):
    monkeypatch.setattr(compare, "train", lambda _: 0)
    folder = ROOT / "outputs" / "test_changed_gspo_seed1"
    arguments = ["demo", "gspo", "--seeds", "1", "trainer.experiment_name=test_changed"]
    seeds = [f"{key}={value}" for key, value in compare.SEEDS.items()]
    config = compose("demo", ["+arms=gspo", *seeds, f"trainer.experiment_name={folder.name}"], "cpu")
    write_text(folder / "config.yaml", OmegaConf.to_yaml(config))
    command(*arguments)
    with pytest.raises(ValueError, match=r"holds a run with another actor_rollout_ref\.actor\.optim\.lr.*; delete it"):
        command(*arguments, "actor_rollout_ref.actor.optim.lr=1e-3")
    shutil.rmtree(folder)
