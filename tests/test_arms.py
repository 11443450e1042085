"""Each arm changes what it says and nothing else, and arms combine unless they set the same key."""

import re

import pytest
from omegaconf import OmegaConf

from recipe import arms as module
from recipe import check, preflight
from recipe.arms import FOLDER, HEADER, arm_names, arms, check_files, title
from recipe.compose import compose, compose_unresolved, config_names
from recipe.monitor.arms import arm_of
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
def test_the_check_finds_exactly_the_keys_of_an_arm(arm):
    config, comparisons = check.compare("justrl_deepseek", [f"+arms={arm}"], "cuda", [])
    by_status = {status: {c.stated.key for c in comparisons if c.status == status} for status in check.STATUSES}
    assert by_status["different"] == set()
    assert by_status["allowed"] == keys(arm)[1]
    check.require_paper(comparisons)
    preflight.check_config(config)
    assert config.trainer.experiment_name == f"justrl_deepseek_{arm}"


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
    assert arms(config) == ["overlong", "robust_verifier"]
    assert config.trainer.experiment_name == "justrl_deepseek_overlong_robust_verifier"
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
        ("+arms=[gspo,cispo]", "arms cispo and gspo both set .*; choose one of them"),
        ("+arms=[on_policy,symmetric_clip]", "do not go together: with one update per step nothing is clipped"),
    ],
)
def test_a_wrong_choice_is_one_line(given, message):
    with pytest.raises(ValueError, match=message) as caught:
        compose("demo", [given], "cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["20261128", "'it\\'s données'", "'a,b'"])
def test_a_name_of_any_characters_stays(name):
    plain = compose("demo", [f"trainer.experiment_name={name}"], "cpu").trainer.experiment_name
    config = compose("demo", ["+arms=overlong", f"trainer.experiment_name={name}"], "cpu")
    assert config.trainer.experiment_name == plain


UNLISTED, HEADLESS = "justrl.allow has no entry mine; list the keys", "begin it with the line # @package _global_"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (f"{HEADER}\njustrl: {{allow: {{other: [trainer.seed]}}}}\n", f": {UNLISTED}"),
        (f"{HEADER}\njustrl: {{allow: [mine]}}\n", f": {UNLISTED}"),
        (f"{HEADER}\nhello\n", f": {UNLISTED}"),
        (f"{HEADER}\n- hello\n", f": {UNLISTED}"),
        ("", f": {HEADLESS}"),
        ("justrl: {allow: {mine: [trainer.seed]}}\n", f": {HEADLESS}"),
        (f"\ufeff{HEADER}\njustrl: {{allow: {{mine: [trainer.seed]}}}}\n", f": {HEADLESS}"),
        (f"{HEADER}\na: [\n", ", line 3: expected the node content"),
        (f"{HEADER}\na:\n\tb: 1\n", r", line 3: found character '\t'"),
        (f"{HEADER}\na: 1\na: 2\n", ", line 3: found duplicate key a"),
        (f"{HEADER}\na: \0\n", ": unacceptable character #x0000"),
        (f"{HEADER}\na: \udce4\n", ": 'utf-8' codec can't decode"),
        (f"{HEADER}\na: ${{x\n", ": no viable alternative"),
    ],
)
def test_the_fault_of_an_arms_file_is_one_line_with_its_path(tmp_path, monkeypatch, text, problem):
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(ValueError) as caught:
        check_files(["+arms=[gspo,mine]"])
    assert str(caught.value).startswith(f"{tmp_path}/mine.yaml{problem}")
    assert "\n" not in str(caught.value)


def test_a_run_whose_arm_is_gone_is_not_taken_for_the_baseline():
    config = compose("demo", ["+arms=gspo"], "cpu")
    assert arm_of(config) == "gspo"
    config.justrl.allow = {"demo": ["*"], "gone": ["data.seed"]}
    with pytest.raises(ValueError, match=r"arms/gone\.yaml, its arm's file, is gone"):
        arm_of(config)
    assert arm_of(compose("demo", [], "cpu")) == "baseline"
