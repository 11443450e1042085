"""The backbones differ in nothing else, overrides win, and a mistyped key is found wherever it stands."""

import shutil

import pytest
from omegaconf import OmegaConf

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


def test_the_device_must_be_one_of_two(monkeypatch):
    monkeypatch.setenv("JUSTRL_DEVICE", "tpu")
    with pytest.raises(ValueError, match="use cpu or cuda"):
        module.device()
