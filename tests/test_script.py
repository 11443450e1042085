"""The shell script's own logic: arguments, wrong use, and the commands' --help."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT

SCRIPT = str(ROOT / "run_justrl.sh")
COMMANDS = [
    "data_prep.backbone",
    "data_prep.benchmarks",
    "data_prep.dapo",
    "data_prep.demo",
    "eval.generate",
    "eval.grade",
    "eval.report",
    "recipe.compose",
    "recipe.export",
    "recipe.train",
    "recipe.watch",
]


def run(*arguments):
    """Run a command in the repository's root to its end."""
    return subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demoo"], "unknown config 'demoo'; there are ablation_overlong "),
        (["demo", "justrl"], "more than one config"),
        (["--fast"], "unknown option --fast"),
        (["--only", "everything"], "--only takes data, train, eval or report"),
        (["demo", "+trainer.totl=3"], "unknown key trainer.totl"),
    ],
)
def test_wrong_use_is_one_line_and_status_2(arguments, message):
    done = run(SCRIPT, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command):
    done = run(sys.executable, "-m", command, "--help")
    assert done.returncode == 0
    assert f"python -m {command}" in done.stdout


def test_the_script_has_help():
    assert "examples: ./run_justrl.sh" in run(SCRIPT, "--help").stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["recipe.train", "demo", "data.train_files=absent.parquet"],
        ["recipe.export", "outputs/absent"],
        ["eval.generate", "--model", "models/absent", "--bench", "data", "--output", "outputs/absent"],
        ["eval.grade", "outputs/absent"],
        ["eval.report", "outputs/absent"],
        ["recipe.watch", "outputs/absent"],
        ["data_prep.dapo", "--source", "absent.parquet", "--output", "outputs/absent.parquet"],
    ],
)
def test_every_command_answers_missing_input_with_one_line_and_status_2(arguments):
    done = run(sys.executable, "-m", *arguments)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
