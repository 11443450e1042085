"""Each thing that a run lacks is found before anything starts, and named in one line."""

import functools
import os
import shutil
from collections import namedtuple

import numpy
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf
from safetensors.numpy import save_file

from data_prep.demo import problems as demo
from data_prep.rows import row, write_rows
from recipe import plan, preflight
from recipe.compose import compose, verl_defaults
from recipe.kinds import check_kinds, plain
from recipe.memory import BACKBONE
from recipe.monitor.loggers import use_wandb

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def ready(tmp_path):
    """A demo config whose data, model and folders are all there."""
    demo.write(tmp_path, train=64, test=8)
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "tokenizer.json").write_text("{}")
    save_file({"w": numpy.zeros((1000, 500), "float32")}, model / "model.safetensors")
    overrides = [
        f"data.train_files={tmp_path}/train.parquet",
        f"data.val_files={tmp_path}/test.parquet",
        f"actor_rollout_ref.model.path={model}",
        f"trainer.default_local_dir={tmp_path}/run/checkpoints",
    ]
    return tmp_path, overrides


MUTATIONS = {"null": None, "text": "abc", "a list": ["a", ["b"]], "a negative number": -1, "half": 0.5, "true": True}
REMOVED = object()


def all_keys(values, prefix=()):
    """Yield the path of every section and leaf."""
    for name, value in values.items():
        yield (*prefix, name)
        if isinstance(value, dict):
            yield from all_keys(value, (*prefix, name))


def put(node, path, value):
    """Set or remove a key of a config or dictionary."""
    *sections, name = path
    for section in sections:
        node = node[section]
    if value is REMOVED:
        node.pop(name)
    else:
        node[name] = value


def check_all(config):
    """Check as recipe.check and recipe.train do what they have composed."""
    use_wandb(config)
    preflight.check_config(config)
    preflight.check_machine(config)
    preflight.demand_here(config)
    plan.estimate(config, "H100-80GB", config.trainer.n_gpus_per_node)


def found_with(config, values, path, value):
    """Return the one line about a config of which a key has another value, "" where it passes."""
    try:
        instead = check_kinds(values, verl_defaults())
        put(config, path, value)
        for key, other in instead.items():
            OmegaConf.update(config, key, other)
        check_all(config)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("mutation", [*MUTATIONS, "removed"])
def test_every_key_set_to_anything_is_one_line_or_works(ready, mutation, monkeypatch):
    """Each key of the composed demo, one at a time; what passes the kinds goes through all other checks."""
    monkeypatch.setattr(plan, "model_shape", lambda path: BACKBONE)
    monkeypatch.chdir(ready[0])
    config, value = compose("demo", ready[1], "cpu"), MUTATIONS.get(mutation, REMOVED)
    OmegaConf.set_struct(config, False)
    values, refused = plain(config), 0
    paths = list(all_keys(values))
    assert len(paths) > 1000
    for path in paths:
        before = functools.reduce(dict.__getitem__, path, values)
        put(values, path, value)
        line = found_with(config, values, path, value)
        assert "\n" not in line
        assert not line or ".".join(path) in line
        refused += bool(line)
        put(values, path, before)
        put(config, path, before)
    preflight.check(config)
    assert refused > 200


def problem(overrides, *more):
    """Return the one line that the checks raise."""
    with pytest.raises(ValueError) as caught:
        preflight.check(compose("demo", [*overrides, *more], "cpu"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_all_there(ready):
    preflight.check(compose("demo", ready[1], "cpu"))


def test_data(ready):
    assert "no such file" in problem(ready[1], "data.train_files=absent.parquet")
    truncated = ready[0] / "truncated.parquet"
    truncated.write_bytes((ready[0] / "train.parquet").read_bytes()[:-50])
    assert "truncated" in problem(ready[1], f"data.val_files={truncated}")
    write_rows(ready[0] / "few.parquet", [row("demo", "p", "1", 0, "train")], {})
    assert "lower data.train_batch_size to 1" in problem(ready[1], f"data.train_files={ready[0]}/few.parquet")


def test_model(ready):
    assert "has no model" in problem(ready[1], "actor_rollout_ref.model.path=null")
    assert "no such folder" in problem(ready[1], "actor_rollout_ref.model.path=/no/such/model")
    (ready[0] / "model" / "config.json").write_text('{"max_position_embeddings": 100}')
    assert "its context is 100 tokens" in problem(ready[1])
    (ready[0] / "model" / "tokenizer.json").unlink()
    assert "has no tokenizer" in problem(ready[1])
    (ready[0] / "model" / "config.json").unlink()
    assert "has no config.json" in problem(ready[1])


REWARDS = {  # a reward file, and words of the line
    "def compute_score(": "cannot be loaded: SyntaxError: ",
    "import no_such_module": "cannot be loaded: ModuleNotFoundError: No module named 'no_such_module'",
    "import sys; sys.exit('bye')": "cannot be loaded: SystemExit: bye",
    "raise RuntimeError('first\\nsecond')": "cannot be loaded: RuntimeError: first; fix it",
    "\0": "cannot be loaded: ",
    "compute_score = 3": "has no function compute_score; set reward.custom_reward_function.name",
    "def compute_score(text): return 1.0": "compute_score cannot be called: ",
    "def compute_score(solution_str, ground_truth): return 1.0": "verl passes data_source, solution_str, ground_truth",
    "def compute_score(data_source, solution_str, ground_truth, extra_info, key): pass": "required argument: 'key'",
    "async def compute_score(data_source, solution_str, ground_truth, extra_info=None): return 1.0": "",
    "def compute_score(**kwargs): return 1.0": "",
    "class compute_score:\n def __init__(self, data_source, solution_str, ground_truth, extra_info): pass": "",
}


@pytest.mark.parametrize("text", REWARDS)
def test_reward_files(ready, text):
    path = ready[0] / "a reward, ü.py"
    path.write_text(text)
    override = f"reward.custom_reward_function.path='{path}'"
    without_options = "~reward.custom_reward_function.reward_kwargs"
    if REWARDS[text]:
        assert REWARDS[text] in problem(ready[1], override, without_options)
    else:
        preflight.check(compose("demo", [*ready[1], override, without_options], "cpu"))


def test_rewards_that_are_no_files(ready):
    path = "reward.custom_reward_function.path"
    assert "is a folder" in problem(ready[1], f"{path}={ready[0]}")
    assert f"{path}: pkg://no.such.module: no such package" in problem(ready[1], f"{path}=pkg://no.such.module")
    preflight.check(compose("demo", [*ready[1], f"{path}=pkg://reward.justrl"], "cpu"))
    options = "reward.custom_reward_function.reward_kwargs"
    assert f"{options}={{'shadow': True, 'wrong': 'x'}}: " in problem(ready[1], f"+{options}.wrong=x")
    assert "it must be a non-empty string" in problem(ready[1], f"+{options}.window=-1")


def test_rows(ready):
    """Found before the model is looked at."""
    path = ready[0] / "rows.parquet"
    rows = pq.read_table(ready[0] / "train.parquet").to_pylist()
    for each in rows:
        each["reward_model"]["ground_truth"] = 7
    pq.write_table(pa.Table.from_pylist(rows), path)
    for key in ("data.train_files", "data.val_files"):
        line = f"{key}: {path}: row 0 (the first is 0): reward_model.ground_truth is int64 (7), not text; "
        assert problem(ready[1], f"{key}={path}").startswith(line)
    assert "data.train_batch_size to 8 or less" in problem(ready[1], "data.train_max_samples=8")


def test_folders(ready, monkeypatch):
    (ready[0] / "outputs").write_text("")
    folder = "trainer.default_local_dir"
    assert f"{folder}: {ready[0]}/outputs is a file" in problem(
        ready[1], f"{folder}={ready[0]}/outputs/demo/checkpoints"
    )
    assert "File name too long" in problem(ready[1], f"{folder}=/{'a' * 300}/checkpoints")
    assert "is a folder" in problem(ready[1], f"data.val_files={ready[0]}")
    monkeypatch.setenv("RAY_TMPDIR", "/scratch" * 6)
    assert problem(ready[1]).startswith("RAY_TMPDIR=/scratch/")
    monkeypatch.delenv("RAY_TMPDIR")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "may not be written to" in problem(ready[1])


def test_names_with_spaces_and_other_letters(ready):
    folder = ready[0] / "données de test"
    shutil.copytree(ready[0], folder, ignore=lambda *_: ["données de test"])
    names = {"data.train_files": "train.parquet", "data.val_files": "test.parquet"}
    names |= {"actor_rollout_ref.model.path": "model", "trainer.default_local_dir": "run/checkpoints"}
    preflight.check(compose("demo", [f"{key}='{folder}/{name}'" for key, name in names.items()], "cpu"))


def test_reward_and_batch(ready):
    assert "no such file" in problem(ready[1], "reward.custom_reward_function.path=reward/absent.py")
    assert "has no function score" in problem(ready[1], "reward.custom_reward_function.name=score")
    mistyped = "+reward.custom_reward_function.reward_kwargs.windw=50"
    assert "has no option windw; there are" in problem(ready[1], mistyped)
    (ready[0] / "own.py").write_text("def compute_score(data_source, solution_str, ground_truth, extra_info): ...")
    own = f"reward.custom_reward_function.path={ready[0]}/own.py"
    remove = "~reward.custom_reward_function.reward_kwargs.shadow"
    assert problem(ready[1], own).endswith(f"has no option shadow; it takes none; to remove it pass '{remove}'")
    preflight.check(compose("demo", [*ready[1], own, remove], "cpu"))
    (ready[0] / "own.py").write_text("class Stop(BaseException): ...\nraise Stop('no')")
    assert "own.py: cannot be loaded: Stop: no; fix it" in problem(ready[1], own)
    assert "is not a multiple" in problem(ready[1], "actor_rollout_ref.actor.ppo_mini_batch_size=12")
    assert "larger than" in problem(ready[1], "actor_rollout_ref.actor.ppo_mini_batch_size=64")


@pytest.mark.parametrize("key", preflight.NAMES)
def test_names_that_verl_looks_up(ready, key):
    known = preflight.names_of_verl(key)
    assert len(known) > 8
    assert f"{key}: verl has no foo; use one of {', '.join(known)}" in problem(ready[1], f"{key}=foo")
    if key != "trainer.logger":
        libraries = "actor_rollout_ref.model.external_lib=[recipe.verl_plugins.attention,recipe.mine]"
        preflight.check(compose("demo", [*ready[1], f"{key}=foo", libraries], "cpu"))


def test_sampling(ready):
    on = "algorithm.filter_groups.enable=true"
    assert "cannot differ" in problem(ready[1], on, "actor_rollout_ref.rollout.n=1")
    metric = "algorithm.filter_groups.metric"
    assert "the reward returns no such number; use reward or one of score, acc" in problem(ready[1], on, f"{metric}=x")
    assert "no such number" in problem(ready[1], on, f"{metric}=pred"), "a text"
    preflight.check(compose("demo", [*ready[1], on, f"{metric}=acc"], "cpu"))
    mode = "trainer.v1.trainer_mode"
    assert f"{mode}=separate_async: not supported" in problem(ready[1], f"{mode}=separate_async")
    assert "use ReplayBufferAsync" in problem(ready[1], f"{mode}=colocate_async")


def test_lengths_and_steps(ready):
    assert "max_model_len allows 100 tokens" in problem(ready[1], "actor_rollout_ref.rollout.max_model_len=100")
    tokens = "actor_rollout_ref.actor.ppo_max_token_len_per_gpu"
    assert f"{tokens} allows 127 tokens" in problem(ready[1], f"{tokens}=127")
    preflight.check(compose("demo", [*ready[1], f"{tokens}=128"], "cpu"))
    longer = "actor_rollout_ref.rollout.custom.validation_response_length=65"
    assert "max_model_len allows 128 tokens, and prompt plus response may have 129" in problem(ready[1], longer)
    preflight.check(compose("demo", [*ready[1], longer, "actor_rollout_ref.rollout.max_model_len=129"], "cpu"))
    assert "end after 18 steps" in problem(ready[1], "trainer.total_epochs=9")


def test_ray_cpus(ready):
    assert preflight.ray_cpus_needed(compose("demo", ready[1], "cpu")) == 6
    assert "set ray_kwargs.ray_init.num_cpus=6" in problem(ready[1], "ray_kwargs.ray_init.num_cpus=5")
    preflight.check(compose("demo", [*ready[1], "ray_kwargs.ray_init.num_cpus=6"], "cpu"))


def test_the_largest_weight_must_fit_the_shared_memory(ready):
    key = "actor_rollout_ref.rollout.checkpoint_engine.update_weights_bucket_megabytes"
    assert "largest weight has 2 MiB; set it to 2 or more" in problem(ready[1], f"{key}=1")
    preflight.check(compose("demo", [*ready[1], f"{key}=2"], "cpu"))


def test_disk(ready, monkeypatch):
    assert preflight.weight_sizes(str(ready[0] / "model")) == [500_000]
    needed = 5 * 500_000 * preflight.BYTES_PER_PARAMETER
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(needed, 1, needed - 1))
    assert "GB needed for 5 checkpoints" in problem(ready[1])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(needed, 0, needed))
    preflight.check(compose("demo", ready[1], "cpu"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(needed, needed - 1, needed // 5))
    monkeypatch.setattr(preflight, "complete_checkpoints", lambda folder: [5, 10, 15, 20])
    preflight.check(compose("demo", ready[1], "cpu"))  # a resume: those that are there need no more room
