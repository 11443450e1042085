"""The rules of this repository, each a test that lists every violation."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

PRODUCT_LINES = 16_470  # of Python and shell, without tests; to be lowered towards 6,800
FILE_LINES = 300
FUNCTION_LINES = 40  # of the body, without the docstring
README_LINES = 190
DEPTH = 4  # blocks in one another, the function included

LAYERS = ("common", "reward", "data_prep", "recipe", "eval", "benchmarks")  # each may import those before it
STANDARD_LIBRARY_ALONE = ("reward/justrl.py", "scripts/get_uv.py")
HEAVY = ("torch", "verl", "vllm")
# Modules that may import torch, verl or vllm when they are imported, each because these are its job.
HEAVY_MODULES = {
    "recipe.verl_plugins.agent_loops": "verl loads it by name",
    "recipe.verl_plugins.attention": "verl loads it by name",
    "recipe.verl_plugins.log_probs": "verl loads it by name",
    "recipe.verl_plugins.pass_at_k": "patches verl",
    "recipe.verl_plugins.process_group": "verl loads it as a plugin",
    "recipe.verl_plugins.released": "verl loads it by name",
    "recipe.verl_plugins.replay_buffer": "verl loads it by name",
    "recipe.verl_plugins.scheduler": "vLLM loads it by name",
    "recipe.verl_plugins.trainer": "verl loads it by name",
    "recipe.verl_plugins.training_worker": "verl loads it by name",
    "recipe.verl_plugins.weight_transfer": "verl loads it by name",
    "recipe.cpu.agent_loops": "verl loads it by name",
    "recipe.cpu.platform": "verl loads it as a plugin",
    "recipe.cpu.rollout": "vLLM loads it by name",
    "benchmarks.gpu_kernels": "it measures torch's kernels, in a process of its own",
}

# The glossary: a term that is not used, by pattern, and the one that is. A pattern matches also within a name_with_it.
GLOSSARY = {
    "golds?": "reference answer",
    "walled|behind a wall": "sandboxed",
    "torn": "truncated",
    "written whole|made whole|appears? whole": "written atomically",
    "mend(s|ed|ing)?": "fix, patch",
    "leftovers?": "stale processes",
    "complaints?": "problem",
    "twins?": "duplicate",
    "manners?": "behavior",
    "reckon(s|ed|ing)?": "estimated",
    "hedg(e|es|ed|ing)": "several answers, ambiguous",
    "orphans?": "child processes",
    "warm python": "fork server",
}
# Where a term may stand: (file, pattern) to the reason.
GLOSSARY_EXCEPTIONS = {
    ("CHANGELOG.md", "golds?"): "the old name of a module",
    ("CHANGELOG.md", "warm python"): "the old name of a module",
}
SKIPPED_FOLDERS = {"__pycache__", "build", "data", "models", "outputs", "node_modules"}


@cache
def files(suffix: str) -> list[Path]:
    """List the repository's files of a suffix; what git ignores or a tool made is left out."""
    found = []
    for folder, subfolders, names in os.walk(ROOT):
        skipped = SKIPPED_FOLDERS if Path(folder) == ROOT else {"__pycache__"}
        subfolders[:] = sorted(
            name for name in subfolders if name not in skipped and (name == ".github" or not name.startswith("."))
        )
        found += [Path(folder) / name for name in sorted(names) if name.endswith(suffix)]
    return found


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def product_files() -> list[Path]:
    return [path for path in files(".py") if path.relative_to(ROOT).parts[0] != "tests"]


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def count_lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def fail_on(violations: list[str], rule: str) -> None:
    assert not violations, f"{rule}; {len(violations)} violations:\n" + "\n".join(violations)


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and full name of every import, also of those within functions; relative ones are made absolute."""
    package = module_name(path).split(".")[: None if path.name == "__init__.py" else -1]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def import_violation(own: str, name: str) -> str | None:
    """Say what is wrong with an import of the full name in the package `own`."""
    package = name.split(".")[0]
    if package == "tests":
        return "the product imports tests"
    if package not in LAYERS:
        return None
    if LAYERS.index(package) > LAYERS.index(own):
        return "upward import"
    if (own, package) == ("eval", "recipe"):
        public = name.startswith("recipe.monitor.") and "._" not in name
        return None if public else "of recipe, eval may import public names of recipe.monitor alone"
    return None


def test_imports_run_downward():
    violations = []
    for path in product_files():
        own = path.relative_to(ROOT).parts[0]
        if own in LAYERS:
            found = [(line, name, import_violation(own, name)) for line, name in imports(path)]
            violations += [f"{relative(path)}:{line}: {wrong}: {name}" for line, name, wrong in found if wrong]
    fail_on(violations, f"imports run downward: {' → '.join(reversed(LAYERS))}")


@pytest.mark.parametrize("name", STANDARD_LIBRARY_ALONE)
def test_standard_library_alone(name):
    names = sys.stdlib_module_names | {
        "urllib2",
        "urlparse",
    }  # those two are Python 2's, under which get_uv.py runs too
    violations = [
        f"{name}:{line}: {module}" for line, module in imports(ROOT / name) if module.split(".")[0] not in names
    ]
    fail_on(violations, f"{name} imports the standard library alone")


def test_size_of_the_product():
    shell = [path for path in files(".sh") if path.relative_to(ROOT).parts[0] != "tests"]
    lines = sum(count_lines(path) for path in [*product_files(), *shell])
    assert lines <= PRODUCT_LINES, f"{lines} lines of Python and shell without tests; at most {PRODUCT_LINES}"


def test_size_of_files():
    sizes = {relative(path): count_lines(path) for suffix in (".py", ".sh") for path in files(suffix)}
    violations = [f"{name}: {lines} lines" for name, lines in sizes.items() if lines > FILE_LINES]
    fail_on(violations, f"a file has at most {FILE_LINES} lines")


def test_length_of_the_readme():
    lines = count_lines(ROOT / "README.md")
    assert lines <= README_LINES, f"README.md has {lines} lines; at most {README_LINES}"


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count the lines of a body; a docstring and the comments before the first statement do not count."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def test_size_of_functions():
    violations = []
    for path in files(".py"):
        long = [(function, body_lines(function)) for function in functions(path)]
        long = [(function, lines) for function, lines in long if lines > FUNCTION_LINES]
        violations += [
            f"{relative(path)}:{function.lineno}: {function.name}: {lines} lines" for function, lines in long
        ]
    fail_on(violations, f"the body of a function has at most {FUNCTION_LINES} lines")


BLOCKS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith)
BLOCKS += (ast.Try, ast.TryStar, ast.Match) if sys.version_info >= (3, 11) else (ast.Try, ast.Match)


def too_deep(node: ast.AST, depth: int = 0) -> Iterator[int]:
    """Yield the line of each block that lies deeper than allowed, the outermost of several."""
    for name, value in ast.iter_fields(node):
        children = value if isinstance(value, list) else [value]
        for child in children:
            if not isinstance(child, ast.AST):
                continue
            # An elif is an If alone in the orelse of another, at the other's own depth.
            is_elif = name == "orelse" and isinstance(node, ast.If) and isinstance(child, ast.If) and len(children) == 1
            deeper = depth + (isinstance(child, BLOCKS) and not is_elif)
            if deeper > DEPTH:
                yield child.lineno
            else:
                yield from too_deep(child, deeper)


def test_nesting_is_counted():
    blocks = ["def f():", "if a:", "for b in a:", "while b:", "with b:", "pass"]
    source = "\n".join(" " * i + block for i, block in enumerate(blocks))
    assert list(too_deep(ast.parse(source))) == [5]
    chain = "if a:\n  pass\n" + "elif b:\n  pass\n" * 5
    assert not list(too_deep(ast.parse(chain)))


def test_nesting():
    violations = [f"{relative(path)}:{line}" for path in files(".py") for line in too_deep(tree(path))]
    fail_on(violations, f"blocks are nested at most {DEPTH} deep, the function included")


# Imports the modules that standard input names while torch, verl and vllm refuse to be imported; prints who tried.
IMPORTER = """
import importlib, sys

class Refuse:
    tried = False
    def find_spec(self, name, path=None, target=None):
        if name in HEAVY:
            self.tried = True
            raise ImportError(name)

refuse = Refuse()
sys.meta_path.insert(0, refuse)
for module in sys.stdin.read().split():
    refuse.tried = False
    try:
        importlib.import_module(module)
    except ImportError:
        if not refuse.tried:
            raise
    if refuse.tried:
        print(module)
"""


def test_light_imports():
    modules = [module_name(path) for path in product_files() if path.relative_to(ROOT).parts[0] in LAYERS]
    modules.sort(key=HEAVY_MODULES.__contains__)  # those last: what they leave half imported disturbs no other
    command = [sys.executable, "-c", IMPORTER.replace("HEAVY", repr(HEAVY))]
    done = subprocess.run(command, input="\n".join(modules), cwd=ROOT, text=True, stdout=subprocess.PIPE, check=True)
    heavy = done.stdout.split()
    fail_on([module for module in heavy if module not in HEAVY_MODULES], f"a module imports none of {', '.join(HEAVY)}")
    fail_on([module for module in HEAVY_MODULES if module not in heavy], "HEAVY_MODULES lists no other modules")


def test_glossary():
    violations = []
    paths = [path for suffix in (".py", ".md", ".yaml", ".sh") for path in files(suffix) if path != Path(__file__)]
    for path in paths:
        violations += [
            f"{relative(path)}:{number}: {found}; the term is: {term}"
            for number, line in enumerate(path.read_text().splitlines(), 1)
            for found, term in forbidden_terms(relative(path), line)
        ]
    fail_on(violations, "one term for one thing")


def forbidden_terms(file: str, line: str) -> Iterator[tuple[str, str]]:
    """Yield each term of a line that is not used, and the one to use; quotations in documents do not count."""
    if file.endswith(".md"):
        line = re.sub(r'"[^"]*"|“[^”]*”', "", line)
    for pattern, term in GLOSSARY.items():
        # Bounded by anything but a letter, so that snake_case counts; also the beginning of a CamelCase name.
        match = re.search(rf"(?<![A-Za-z])(?i:{pattern.replace(' ', '[ _]')})(?![a-z])", line)
        if match and (file, pattern) not in GLOSSARY_EXCEPTIONS:
            yield match[0], term


def test_glossary_exceptions_are_needed():
    for file, pattern in GLOSSARY_EXCEPTIONS:
        assert re.search(pattern.replace(" ", "[ _]"), (ROOT / file).read_text()), f"{file} has no {pattern}"
