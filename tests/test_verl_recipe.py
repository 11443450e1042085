"""The folder that `make verl-recipe` writes: formatted as verl-recipe's, whole, and with this recipe's config."""

import ast
import importlib.metadata
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from recipe.check import flat
from recipe.compose import compose_unresolved, hydra_compose, verl_config_folder
from recipe.verl_plugins.run_file import RUN_FILE
from recipe.verl_recipe import generate, main_justrl
from tests.conftest import ROOT

OPTIONAL = {"flash_attn"}
VLLM = "actor_rollout_ref.rollout.engine_kwargs.vllm"
# What the copies change in the config, beside our own section, by key.
CHANGED = {
    "actor_rollout_ref.model.external_lib": "recipe.justrl.attention",
    "actor_rollout_ref.rollout.agent.agent_loop_config_path": "./recipe/justrl/agent_loops.yaml",
    "actor_rollout_ref.rollout.agent.agent_loop_manager_class": "recipe.justrl.agent_loops.AgentLoopManager",
    "actor_rollout_ref.rollout.checkpoint_engine.custom_backend_module": "recipe.justrl.weight_transfer",
    f"{VLLM}.scheduler_cls": "recipe.justrl.scheduler.Scheduler",
    f"{VLLM}.worker_extension_cls": "recipe.justrl.weight_transfer.WorkerExtension",
    "reward.custom_reward_function.path": "pkg://recipe.justrl.reward",
    "trainer.v1.sampler.custom_sampler.path": "pkg://recipe.justrl.replay_buffer",
}


def run(*arguments, folder=ROOT):
    return subprocess.run([sys.executable, "-m", *map(str, arguments)], cwd=folder, capture_output=True, text=True)


def make_checkout(path: Path) -> Path:
    """Make a folder like a checkout of verl with the generated folder; return that."""
    (path / "verl").symlink_to(verl_config_folder().parent.parent)
    done = run("recipe.verl_recipe.generate", "--output", path / "recipe")
    assert done.returncode == 0, done.stderr
    return path / "recipe" / "justrl"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The generated folder; only to be read."""
    return make_checkout(tmp_path_factory.mktemp("checkout"))


def test_it_passes_verl_recipes_ruff_and_shellcheck(folder):
    settings = ["--config", ROOT / "recipe" / "verl_recipe" / "lint.toml", "--no-cache"]
    for command in (["check"], ["format", "--check"]):
        done = run("ruff", *command, *settings, ".", folder=folder)
        assert done.returncode == 0, done.stdout
    scripts = sorted(folder.glob("run_*.sh"))
    assert len(scripts) == 2
    done = subprocess.run([Path(sys.executable).with_name("shellcheck"), *scripts], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def imported(path):
    """Yield the module of each import of a file, and the name that is taken from it or None."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module, alias.name) for alias in node.names)


def is_there(module, name, root):
    """Return whether the source below a folder has a module and, in it, a name; nothing is imported."""
    path = root.joinpath(*module.split("."))
    if name and (path / f"{name}.py").is_file():
        return True
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return source.is_file() and (name is None or name in source.read_text())


def test_every_import_resolves_in_the_folder_verl_or_a_library(folder):
    checkout, missing = folder.parent.parent, []
    for path in folder.glob("*.py"):
        for module, name in imported(path):
            top = module.split(".")[0]
            if top in ("recipe", "verl"):
                found = is_there(module, name, checkout)
            else:
                found = top in OPTIONAL or (importlib.util.find_spec(top) and not (ROOT / top).exists())
            missing += [] if found else [f"{path.name}: {module} {name}"]
    assert not missing
    for path in [*folder.rglob("*.py"), *folder.rglob("*.yaml")]:
        assert "verl_plugins" not in path.read_text(), path
        assert "Generated from JustRL on verl " in path.read_text(), path


@pytest.mark.parametrize("name", ["justrl_deepseek", "justrl_nemotron"])
def test_the_config_is_this_recipes(folder, name, monkeypatch):
    monkeypatch.chdir(folder.parent.parent)
    theirs = flat(hydra_compose(folder / "config", f"{name}_trainer", []))
    ours = {
        key: value for key, value in flat(compose_unresolved(name, [], "cuda")).items() if not key.startswith("justrl.")
    }
    assert {key: value for key, value in theirs.items() if ours.get(key) != value} == CHANGED
    assert not ours.keys() - theirs.keys()


def test_the_documents_state_the_version_and_the_papers_numbers(folder):
    required = dict(line.split("=", 1) for line in (folder / "REQUIRED_VERL.txt").read_text().splitlines()[1:])
    assert required["TAG"] == f"v{importlib.metadata.version('verl')}"
    assert required["PIP_INSTALL"].endswith(f'=={importlib.metadata.version("verl")}"')
    readme = (folder / "README.md").read_text()
    assert "| AIME24 | 29.90 | 52.60 | 58.75 | 69.69 |" in readme
    assert "| mean | 37.65 | 54.87 | 56.74 | 64.32 |" in readme
    assert "has not been run\non a GPU" in readme
    for name in ("REQUIRED_VERL.txt", *(path.name for path in folder.glob("run_*.sh"))):
        assert name in readme


def test_the_processes_of_a_run_get_its_variables(folder, monkeypatch):
    monkeypatch.chdir(folder.parent.parent)
    monkeypatch.setenv("VERL_USE_EXTERNAL_MODULES", "theirs")
    monkeypatch.delenv(RUN_FILE, raising=False)
    config = hydra_compose(folder / "config", "justrl_deepseek_trainer", ["actor_rollout_ref.nccl_timeout=7"])
    variables = main_justrl.environment(config)
    assert variables["VERL_USE_EXTERNAL_MODULES"].endswith("process_group,theirs")
    assert variables["JUSTRL_NCCL_TIMEOUT"] == "7"
    assert Path(variables[RUN_FILE]).parent == Path("outputs/justrl_deepseek").resolve()
    assert variables["PYTHONPATH"].split(":")[0] == str(folder.parent.parent)
    assert 'recipe.justrl.process_group"' in (folder / "main_justrl.py").read_text()


def test_another_folder_is_kept_and_an_own_one_made_again(tmp_path):
    target = tmp_path / "justrl"
    target.mkdir()
    (target / "mine.py").write_text("")
    done = run("recipe.verl_recipe.generate", "--output", tmp_path)
    assert done.returncode == 2
    assert (
        done.stderr == f"recipe.verl_recipe.generate: {target} is not a folder that this command wrote; move it away\n"
    )
    assert [path.name for path in target.iterdir()] == ["mine.py"]

    (target / "REQUIRED_VERL.txt").write_text("")
    assert run("recipe.verl_recipe.generate", "--output", tmp_path).returncode == 0
    assert not (target / "mine.py").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["justrl"], "nothing is left beside it"


def test_a_module_that_is_not_copied_is_an_error(tmp_path, monkeypatch):
    modules = {old: new for old, new in generate.COPIED["modules"].items() if new != "run_file"}
    monkeypatch.setitem(generate.COPIED, "modules", modules)
    with pytest.raises(ValueError, match=r"needs recipe\.verl_plugins\.run_file, which is not copied"):
        generate.write(tmp_path)


def test_an_edit_that_no_longer_fits_is_an_error(monkeypatch):
    monkeypatch.setitem(generate.COPIED["edits"], "justrl", [["nowhere", ""]])
    with pytest.raises(ValueError, match="fits 0 places, not one"):
        generate.edited("justrl")
