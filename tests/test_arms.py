"""Each arm changes what it says and nothing else, and arms combine unless they set the same key."""

import re

import pytest
from omegaconf import OmegaConf

from recipe import check, preflight
from recipe.arms import FOLDER, arm_names, arms, title
from recipe.compose import compose, compose_unresolved, config_names
from tests.conftest import ROOT


def keys(arm):
    """Return the keys that an arm's file sets, and those that it says it sets."""
    content = OmegaConf.load(FOLDER / f"{arm}.yaml")
    said = content.justrl.allow[arm]
    del content["justrl"]
    return set(check.flat(content)), set(said)


@pytest.mark.parametrize("arm", arm_names())
def test_an_arm_lists_exactly_the_keys_that_it_sets(arm):
    assert OmegaConf.load(FOLDER / f"{arm}.yaml").justrl.keys() == {"allow"}
    assert keys(arm)[0] == keys(arm)[1]


@pytest.mark.parametrize("arm", arm_names())
@pytest.mark.parametrize("backbone", ["justrl_deepseek", "justrl_nemotron"])
def test_the_check_finds_exactly_the_keys_of_an_arm(backbone, arm):
    config, comparisons = check.compare(backbone, [f"+arms={arm}"], "cuda", [])
    by_status = {status: {c.stated.key for c in comparisons if c.status == status} for status in check.STATUSES}
    assert by_status["different"] == set()
    assert by_status["allowed"] == keys(arm)[1]
    check.require_paper(comparisons)
    preflight.check_config(config)
    assert config.trainer.experiment_name == f"{backbone}_{arm}"


@pytest.mark.parametrize("arm", arm_names())
def test_an_arm_can_be_run_on_the_demo(arm):
    config = compose("demo", [f"+arms={arm}"], "cpu")
    preflight.check_config(config)
    assert arms(config) == [arm]


@pytest.mark.parametrize("arm", arm_names())
def test_an_arm_says_its_name_and_its_source(arm):
    assert re.fullmatch(r"[^:]+: .+ \(.*(arXiv \d{4}\.\d{5}|https://).*\)\.", title(arm)), title(arm)
    assert f"| `{arm}` | {title(arm)} |" in (ROOT / "docs" / "runs.md").read_text().splitlines()


def test_arms_of_a_small_config_exist():
    for name in config_names():
        assert set(compose_unresolved(name, [], "cpu").justrl.arms) <= set(arm_names())


def test_arms_combine():
    config, comparisons = check.compare("justrl_deepseek", ["+arms=[robust_verifier,overlong]"], "cuda", [])
    assert arms(config) == ["robust_verifier", "overlong"]
    assert config.trainer.experiment_name == "justrl_deepseek_robust_verifier_overlong"
    allowed = {c.stated.key for c in comparisons if c.status == "allowed"}
    assert allowed == keys("overlong")[1] | keys("robust_verifier")[1]


def test_the_command_lines_name_and_values_win_over_an_arms():
    given = ["trainer.experiment_name=mine", "reward.reward_kwargs.overlong_buffer_cfg.len=9"]
    config = compose("demo", ["+arms=overlong", *given], "cpu")
    assert config.trainer.experiment_name == "mine"
    assert config.reward.reward_kwargs.overlong_buffer_cfg.len == 9


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("+arms=nothing", "unknown arm 'nothing'; there are "),
        ("+arms=[overlong,nothing]", "unknown arm 'nothing'; there are "),
        ("arms=overlong", r"choose arms by \+arms=NAME or \+arms=\[NAME,NAME\]"),
        ("++arms=overlong", r"choose arms by \+arms=NAME"),
        ("+arms=null", r"choose arms by \+arms=NAME"),
        ("+arms=[gspo,cispo]", "arms gspo and cispo both set .*; choose one of them"),
    ],
)
def test_a_wrong_choice_is_one_line(given, message):
    with pytest.raises(ValueError, match=message) as caught:
        compose("demo", [given], "cpu")
    assert "\n" not in str(caught.value)
