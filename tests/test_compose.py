"""The backbones differ in nothing else, overrides win, and a mistyped key is found wherever it stands."""

import shutil

import pytest
from omegaconf import OmegaConf

from recipe import arms
from recipe import compose as module
from recipe.compose import compose


def test_the_backbones_differ_in_model_steps_and_name_alone():
    def flat(value, prefix=""):
        if not isinstance(value, dict):
            return {prefix: str(value)}
        return {k: v for key, child in value.items() for k, v in flat(child, f"{prefix}.{key}").items()}

    one, other = (flat(OmegaConf.to_container(compose(n, [], "cuda"))) for n in ("justrl_deepseek", "justrl_nemotron"))
    different = {key for key in one if one[key] != other[key]}
    derived = ("justrl_deepseek", one[".actor_rollout_ref.model.path"])  # verl and the recipe repeat both names
    assert {key for key in different if one[key] not in derived and "/justrl_deepseek/" not in one[key]} == {
        ".trainer.total_training_steps"
    }


def test_overrides_win():
    assert compose("demo", ["trainer.total_training_steps=3"], "cpu").trainer.total_training_steps == 3


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        ("demoo", None, "unknown config 'demoo'; there are demo, "),
        ("demo", "actor_rollout_ref.actor.clip_ratio_hihg=0.3", "did you mean actor_rollout_ref.actor.clip_ratio_high"),
        ("demo", "+trainer.save_frq=3", "unknown key trainer.save_frq; did you mean trainer.save_freq"),
        (
            "demo",
            "+actor_rollout_ref.rollout.custom.validation_length=3",
            "unknown key actor_rollout_ref.rollout.custom.v",
        ),
        ("demo", "trainer.save_freq", "Error parsing override"),
        ("demo", "trainer.experiment_name=${nowhere}", "nowhere"),
    ],
)
def test_wrong_use_is_one_line(name, override, message):
    with pytest.raises(ValueError) as caught:
        compose(name, [override] if override else [], "cpu")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_key_mistyped_inside_a_yaml_file_is_found(tmp_path, monkeypatch):
    folder = tmp_path / "config"
    shutil.copytree(module.CONFIG_FOLDER, folder)
    text = (folder / "demo.yaml").read_text()
    (folder / "demo.yaml").write_text(text.replace("total_training_steps", "total_trainig_steps"))
    monkeypatch.setattr(module, "CONFIG_FOLDER", folder)
    with pytest.raises(ValueError, match=r"unknown key trainer\.total_trainig_steps; did you mean"):
        compose("demo", [], "cpu")


GLOBAL = "# @package _global_\n"
FAULTY = {  # an arm's file: words of the line
    f"{GLOBAL}a: [\n": 'faulty.yaml", line 3, column 1; fix the file',
    f"{GLOBAL}data:\n\tseed: 2\n": 'faulty.yaml", line 3, column 1; fix the file',
    f"{GLOBAL}data:\n  seed: 2\n  seed: 2\n": 'found duplicate key seed in "',
    f"{GLOBAL}a: \0\n": 'faulty.yaml", position 23; fix the file',
    f"{GLOBAL}hello\n": "demo +arms=faulty: unknown key hello",
    f"{GLOBAL}justrl:\n  allow: [a]\n": "In 'arms/faulty': ConfigTypeError raised while composing config: Cannot merge",
    f"{GLOBAL}data:\n  seed: ${{\n": "demo: no viable alternative",
} | dict.fromkeys(
    ("", "data:\n  seed: 2\n", f"\ufeff{GLOBAL}data:\n  seed: 2\n", f"{GLOBAL}# caf\udce9\n"),
    "arms/faulty.yaml: write it in UTF-8, beginning with # @package _global_",
)


@pytest.mark.parametrize("content", FAULTY, ids=range(len(FAULTY)))
def test_a_faulty_file_of_an_arm_is_one_line(content, tmp_path, monkeypatch):
    shutil.copytree(module.CONFIG_FOLDER, tmp_path / "config")
    monkeypatch.setattr(module, "CONFIG_FOLDER", tmp_path / "config")
    monkeypatch.setattr(arms, "FOLDER", tmp_path / "config" / "arms")
    (arms.FOLDER / "faulty.yaml").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ValueError) as caught:
        compose("demo", ["+arms=faulty"], "cpu")
    assert FAULTY[content] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_device_must_be_one_of_two(monkeypatch):
    monkeypatch.setenv("JUSTRL_DEVICE", "tpu")
    with pytest.raises(ValueError, match="use cpu or cuda"):
        module.device()
