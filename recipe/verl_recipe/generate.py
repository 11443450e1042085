"""Write this recipe as a folder of verl-recipe: python -m recipe.verl_recipe.generate [--output build/verl-recipe]

In a checkout of verl the repository github.com/verl-project/verl-recipe is the folder `recipe`. `OUTPUT/justrl` gets
copies of the modules without which a run is not JustRL or not correct, under their names there, with configs, run
scripts, README and REQUIRED_VERL.txt. The folder is generated, never edited.

example: python -m recipe.verl_recipe.generate --output ../verl/recipe
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jinja2
import yaml

from common import command
from common.command import Failure, run
from common.processes import REPOSITORY
from recipe import paper
from recipe.software import software

PACKAGE, REQUIRED, LOOPS = "recipe.justrl", "REQUIRED_VERL.txt", "agent_loops.yaml"
COPIED = yaml.safe_load(Path(__file__).with_name("copied.yaml").read_text())
# Modules of this repository that a file needs, by its suffix: those it imports, or a config names.
NEEDED = {
    ".py": re.compile(r"^ *(?:from|import) ((?:common|reward|data_prep|recipe|eval)\b[\w.]*)", re.MULTILINE),
    ".yaml": re.compile(r"JUSTRL_ROOT|\brecipe\.[\w.]+"),
}


def renamed(text: str) -> str:
    """Give modules their names there, where they are imported and where texts name them or their files."""
    names = {old: f"{PACKAGE}.{new}" for old, new in (COPIED["modules"] | COPIED["instead"]).items()}
    names |= {f"{old.replace('.', '/')}.py": f"{new.replace('.', '/')}.py" for old, new in names.items()}
    longest_first = sorted(names, key=len, reverse=True)
    return re.sub(rf"(?<![\w.])(?:{'|'.join(map(re.escape, longest_first))})(?!\w)", lambda m: names[m[0]], text)


def edited(name: str) -> str:
    """Return a config with its edits; ValueError if one does not fit exactly one place."""
    text = (REPOSITORY / "recipe" / "config" / f"{name}.yaml").read_text()
    for pattern, replacement in COPIED["edits"][name]:
        text, count = re.subn(pattern, replacement, text, flags=re.MULTILINE)
        if count != 1:
            raise ValueError(f"{name}.yaml: {pattern} fits {count} places, not one; adapt copied.yaml")
    return renamed(text)


def check_names(folder: Path) -> None:
    """Raise ValueError if a generated file needs a module of this repository that is not there."""
    there = {f"{PACKAGE}.{path.stem}" for path in folder.glob("*.py")}
    for path in [*folder.rglob("*.py"), *folder.rglob("*.yaml")]:
        for name in NEEDED[path.suffix].findall(path.read_text()):
            if not there & {name, name.rpartition(".")[0]}:  # a config names a class of a module
                raise ValueError(f"{path.name} needs {name}, which is not copied; adapt copied.yaml")


def render(template: str, **context: Any) -> str:
    options: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True, "undefined": jinja2.StrictUndefined}
    return jinja2.Template(Path(__file__).with_name(template).read_text(), **options).render(context) + "\n"


def described() -> dict[str, Any]:
    """Return what templates show: the source, the versions that it requires, and what the paper publishes."""
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    requirements = (REPOSITORY / "requirements" / "gpu.in").read_text()
    published = json.loads((REPOSITORY / "eval" / "published.json").read_text())
    runs = []
    for model, stated in paper.BACKBONES.items():
        config, backbone = f"justrl_{stated['name'].lower()}", model.rpartition("/")[2]
        script = f"run_{backbone.lower().replace('-', '_')}.sh"
        before, after = (published["models"][name] for name in (backbone, f"JustRL-{stated['name']}-1.5B"))
        one = {"config": config, "script": script, "model": model, "backbone": backbone, "before": before}
        runs.append(stated | one | {"after": after, "curve": paper.PAPER["aime24"][stated["name"]]})
    return {
        "source": f"{citation['title']} {citation['version']}, commit {software()['commit']}",
        "authors": citation["authors"][0]["name"],
        "versions": dict(re.findall(r"^([\w-]+)(?:\[.*\])?==(\S+)", requirements, flags=re.MULTILINE)),
        "benchmarks": published["benchmarks"],
        "gpu_hours": paper.PAPER["gpu_hours"],
        "runs": runs,
    }


def write(folder: Path) -> None:
    """Write the files into an empty folder, formatted as verl-recipe's ruff does."""
    context = described()
    header, note = render("header.j2", **context), f"# Generated from {context['source']}: not to be edited here.\n"
    files = {name: REPOSITORY / f"{module.replace('.', '/')}.py" for module, name in COPIED["modules"].items()}
    texts = {name: renamed(path.read_text()) for name, path in files.items()}
    for name, text in (texts | {"__init__": ""}).items():
        (folder / f"{name}.py").write_text(header + text)
    (folder / "config").mkdir()
    for name in COPIED["edits"]:
        (folder / "config" / f"{name}_trainer.yaml").write_text(note + edited(name))
    (folder / LOOPS).write_text(note + renamed((REPOSITORY / "recipe" / "verl_plugins" / LOOPS).read_text()))
    for one in context["runs"]:
        (folder / one["script"]).write_text(render("run.sh.j2", header=header, **one))
        (folder / one["script"]).chmod(0o755)
    titles = {name: text.split('"""')[1].split("\n")[0] for name, text in texts.items()}
    for name in (REQUIRED, "README.md"):
        (folder / name).write_text(render(f"{name}.j2", titles=titles, **context))
    check_names(folder)
    for action in (["check", "--fix"], ["format"]):
        options = ["--config", str(Path(__file__).with_name("lint.toml")), "--no-cache", "--no-respect-gitignore"]
        ruff = [sys.executable, "-m", "ruff", *action, *options, "."]
        done = subprocess.run(ruff, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise Failure(f"ruff of the generated folder: {(done.stdout + done.stderr).strip()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    output = REPOSITORY / "build" / "verl-recipe"
    parser.add_argument(
        "--output", type=command.path, default=output, help="the folder above justrl (default %(default)s)"
    )
    target = parser.parse_args().output / "justrl"
    if target.exists() and not (target / REQUIRED).is_file():
        raise ValueError(f"{target} is not a folder that this command wrote; move it away")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as aside:
        made = Path(aside) / "justrl"
        made.mkdir()
        write(made)
        if target.exists():
            shutil.rmtree(target)
        made.rename(target)
    print(f"wrote {target}")


if __name__ == "__main__":
    run(main)
