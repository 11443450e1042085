"""The documents name what exists: links, modules, files, options."""

import re
from pathlib import Path

from tests.test_house import LAYERS, ROOT, fail_on, files, relative

OLD_NAMES = ("CHANGELOG.md",)  # tables of what was renamed


def headings(path: Path) -> set[str]:
    """Return the anchors of a document, as GitHub makes them of headings, and those of its <a id="...">."""
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.S)
    titles = re.findall(r"^#+ (.*)$", text, flags=re.M)
    made = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    return made | set(re.findall(r'<a id="([^"]+)">', text))


def leads_somewhere(path: Path, target: str) -> bool:
    name, _, anchor = target.partition("#")
    document = path.parent / name if name else path
    return document.exists() and (not anchor or anchor in headings(document))


def test_links():
    violations = []
    for path in files(".md"):
        targets = re.findall(r"\]\(([^)\s]+)\)", path.read_text())
        local = [target for target in targets if not re.match("[a-z]+:", target)]
        violations += [f"{relative(path)}: {target}" for target in local if not leads_somewhere(path, target)]
    fail_on(violations, "a link leads to a file and a heading that exist")


def documents() -> list[Path]:
    return [path for path in files(".md") + files(".yaml") if relative(path) not in OLD_NAMES]


def module_file(module: str) -> Path:
    path = ROOT / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def test_modules():
    violations = []
    for path in documents():
        modules = re.findall(rf"-m ((?:{'|'.join(LAYERS)})[\w.]*\w)", path.read_text())
        violations += [f"{relative(path)}: {module}" for module in modules if not module_file(module).exists()]
    fail_on(violations, "a module of a command exists")


def test_files():
    violations = []
    pattern = rf"(?<![\w/.-])(?:{'|'.join([*LAYERS, 'docs', 'scripts', 'tests'])})/[\w/.-]+\.(?:py|sh|yaml|md|json)\b"
    for path in documents():
        names = re.findall(pattern, path.read_text())
        violations += [f"{relative(path)}: {name}" for name in names if not (ROOT / name).exists()]
    fail_on(violations, "a file that is named exists")


def test_options():
    """An option of a command is one that some module of the product has."""
    violations = []
    source = "\n".join(path.read_text() for path in files(".py") if path.parent != ROOT / "tests")
    for path in documents():
        commands = re.findall(rf"-m (?:{'|'.join(LAYERS)})[^\n`]*", path.read_text().replace("\\\n", " "))
        options = {option for command in commands for option in re.findall(r" (--[a-z][a-z-]*)", command)}
        violations += [f"{relative(path)}: {option}" for option in sorted(options) if f'"{option}"' not in source]
    fail_on(violations, "an option of a command exists")


def test_ruff_of_pre_commit():
    pinned = re.search(r"^ruff==(.*)$", (ROOT / "requirements" / "cpu.in").read_text(), flags=re.M)
    assert f"rev: v{pinned[1]}\n" in (ROOT / ".pre-commit-config.yaml").read_text()
