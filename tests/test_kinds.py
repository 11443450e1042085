"""Every malformed config is one line that names the key, with the fix; what verl takes is taken."""

import fnmatch
import runpy
import sys
import typing

import pytest
from omegaconf import OmegaConf

from recipe.compose import compose, verl_config, verl_defaults
from recipe.kinds import KINDS, TABLE, entries, kind_of, listed_kinds, plain

SAVE, LEN = "trainer.save_freq", "actor_rollout_ref.rollout.max_model_len"
MALFORMED = {  # override: the beginning of the line
    "~reward.custom_reward_function": "reward.custom_reward_function: missing; ",
    "~trainer.v1": "trainer.v1: missing; ",
    "trainer.v1=null": "trainer.v1: expected a section, got null; set its keys instead",
    "trainer=null": "trainer: expected a section, got null",
    "trainer=abc": "trainer: expected a section",
    "data=null": "data=null: a section cannot be set; set its keys instead",
    "reward=-1": "reward=-1: a section cannot be set",
    "actor_rollout_ref.rollout.custom=null": "actor_rollout_ref.rollout.custom.validation_response_length: missing; ",
    "~actor_rollout_ref.model.path": "actor_rollout_ref.model.path: missing; ",
    "~data.max_response_length": "data.max_response_length: missing; ",
    "trainer.default_local_dir=null": "trainer.default_local_dir: expected a path, got null; pass another",
    f"{LEN}=32k": f'{LEN}: expected an integer of at least 1 or null, got "32k"; pass another, such as {LEN}=null',
    "data.val_files=[[a.parquet]]": 'data.val_files: expected a file or a list of files, got [["a.parquet"]]',
    "data.val_files=[]": "data.val_files: expected a file or a list of files, got []",
    "data.train_files=7.5": "data.train_files: expected a file or a list of files, got 7.5",
    "trainer.total_training_steps=4380.0": "trainer.total_training_steps: expected an integer of at least 1 or null",
    "trainer.total_training_steps=0": "trainer.total_training_steps: expected an integer of at least 1 or null, got 0",
    "trainer.nnodes=true": "trainer.nnodes: expected an integer of at least 1, got true; pass another, such as",
    "data.train_batch_size=1e3": "data.train_batch_size: expected an integer of at least 1, got 1000.0",
    f"{SAVE}=5.0": f"{SAVE}: expected an integer, got 5.0; pass another, such as {SAVE}=5",
    "trainer.val_before_train=yes": 'trainer.val_before_train: expected true or false, got "yes"',
    "actor_rollout_ref.actor.optim.lr=nan": "actor_rollout_ref.actor.optim.lr: expected a finite number of at least 0",
    "actor_rollout_ref.actor.optim.lr=inf": "actor_rollout_ref.actor.optim.lr: expected a finite number of at least 0",
    "actor_rollout_ref.actor.optim.lr=1e-6x": "actor_rollout_ref.actor.optim.lr: expected a finite number of at least",
    "actor_rollout_ref.actor.entropy_coeff=-inf": "actor_rollout_ref.actor.entropy_coeff: expected a finite number",
    "actor_rollout_ref.actor.clip_ratio_high=-1": "actor_rollout_ref.actor.clip_ratio_high: expected a number of",
    f"{SAVE}={10**23}": f"{SAVE}: expected an integer, below 2**63, got {10**23}; pass another, such as {SAVE}=-1",
    "data.train_files=5": "data.train_files: expected a file or a list of files, got 5; pass another",
    f"trainer.experiment_name={'a' * 241}": "trainer.experiment_name: expected a name of at most 240 bytes",
    "actor_rollout_ref.rollout.gpu_memory_utilization=85": "actor_rollout_ref.rollout.gpu_memory_utilization: expected",
    "trainer.experiment_name=": "trainer.experiment_name: expected a name of at most 240 bytes without",
    "trainer.experiment_name=..": "trainer.experiment_name: expected a name",
    "trainer.experiment_name=a/../..": "trainer.experiment_name: expected a name",
    "trainer.experiment_name=' '": "trainer.experiment_name: expected a name",
    "trainer.experiment_name=???": "trainer.experiment_name: expected a name",
    "trainer.experiment_name=${trainer.experiment_name}": "an interpolation ${...}: Recursive interpolation detected",
    "trainer.device=tpu": 'trainer.device: expected cpu or cuda, got "tpu"',
    "trainer.logger=true": "trainer.logger: expected text or a list of text, got true",
    "data.train_files=/données.parquet": "demo: LexerNoViableAltException: data.train_files=/données.parquet; quote",
    "actor_rollout_ref.rollout.engine_kwargs.vllm=fast": "actor_rollout_ref.rollout.engine_kwargs.vllm: expected",
    "+actor_rollout_ref.model.override_config.attn_implementation=[a]": "actor_rollout_ref.model.override_config.attn",
    "+reward.reward_kwargs.overlong_buffer_cfg.len=4k": "reward.reward_kwargs.overlong_buffer_cfg.len: expected an int",
}
FINE = {  # override: the value that a run gets
    "trainer.experiment_name=20261127": "20261127",
    "actor_rollout_ref.actor.entropy_coeff=0.001": 0.001,
    "actor_rollout_ref.rollout.top_p=0.95": 0.95,
    "actor_rollout_ref.actor.optim.lr=1": 1,
    "actor_rollout_ref.actor.optim.lr=0": 0,
    "++reward.reward_kwargs.overlong_buffer_cfg.penalty_factor=-0.5": -0.5,
    f"trainer.experiment_name={'a' * 240}": "a" * 240,
    "actor_rollout_ref.actor.optim.lr_warmup_steps=null": None,
    "data.seed=null": None,
    "trainer.total_training_steps=null": None,
    f"{LEN}=null": None,
    "trainer.logger=console": "console",
    "reward.custom_reward_function.path=null": None,
    "+actor_rollout_ref.rollout.engine_kwargs.vllm.max_loras=2": 2,
    "algorithm.rollout_correction.rollout_is_threshold='0.5_2.0'": "0.5_2.0",
    "data.train_files='/tmp/données et épreuves.parquet'": "/tmp/données et épreuves.parquet",
    "data.train_files='~/train.parquet'": "/home/somebody/train.parquet",
    "trainer.default_local_dir='~/runs/checkpoints'": "/home/somebody/runs/checkpoints",
}


@pytest.mark.parametrize("override", MALFORMED)
def test_a_malformed_value_is_one_line(override):
    with pytest.raises(ValueError) as caught:
        compose("demo", [override], "cpu")
    assert str(caught.value).startswith(MALFORMED[override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("override", FINE)
def test_what_verl_takes_is_taken(override, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    value = OmegaConf.select(compose("demo", [override], "cpu"), override.lstrip("+").split("=")[0])
    assert value == FINE[override]
    assert type(value) is type(FINE[override])


COMMANDS = {
    "recipe.compose": [],
    "recipe.check": ["--no-files"],
    "recipe.plan": ["--gpus", "1", "--gpu", "H200"],
    "recipe.nodes": [],
    "recipe.train": [],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("override", list(MALFORMED)[:12:2])
def test_every_command_ends_with_the_line_and_status_2(command, override, monkeypatch, capsys):
    monkeypatch.setenv("JUSTRL_DEVICE", "cpu")
    monkeypatch.setattr("sys.argv", [command, *COMMANDS[command], "--", "demo", override])
    monkeypatch.delitem(sys.modules, command, raising=False)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(command, run_name="__main__", alter_sys=True)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"{command}: {MALFORMED[override]}")


def fields(node, prefix=""):
    """Yield key, default and annotation of what verl's configs give to a data class."""
    from hydra.utils import get_class

    known = typing.get_type_hints(get_class(node["_target_"])) if "_target_" in node else {}
    for name, value in node.items():
        if isinstance(value, dict):
            yield from fields(value, f"{prefix}{name}.")
        elif name in known and name != "_target_":
            yield f"{prefix}{name}", value, known[name]


def test_the_kinds_are_those_of_verls_data_classes():
    """Each annotated type passes: no number without a point is taken for an integer, and null where it is optional."""
    samples = {bool: True, int: 3, float: 0.5, str: "auto", type(None): None, dict: {}}
    compared = 0
    for key, default, annotation in fields(verl_defaults()):
        kinds = listed_kinds(key) or kind_of(default)
        if isinstance(default, list) or not kinds or key == "actor_rollout_ref.rollout.name":  # the trainer needs one
            continue
        for kind in typing.get_args(annotation) or [annotation]:
            if kind in samples:
                compared += 1
                passes = samples[kind] == default or any(KINDS[name][1](samples[kind]) for name in kinds)
                assert passes, f"{key}: {annotation} has {kind}, and the kinds are {kinds}"
    assert compared > 400


def test_the_table_has_known_kinds_and_keys():
    keys = [key for values in (verl_defaults(), plain(compose("demo", [], "cpu"))) for key, _, _ in entries(values, {})]
    for pattern, kinds in TABLE.items():
        assert all(kind in KINDS for kind in kinds.split(" or ")), pattern
        of_an_arm = "reward_kwargs" in pattern or "mixed_precision" in pattern
        assert of_an_arm or fnmatch.filter(keys, pattern), f"{pattern} matches no key"
    assert verl_config().trainer.nnodes == 1, "the cached defaults stay as they are"
