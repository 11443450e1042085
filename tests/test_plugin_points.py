"""The names of verl, vLLM, TransferQueue and torch on which this repository depends, in cases/plugin_points.json.

They are read from the sources, and nothing is imported: so they can also be looked up in a version that is not
installed but only unpacked, PLUGIN_SOURCES=FOLDER with FOLDER/verl or FOLDER/vllm; see docs/development.md.

A row is a name with the parameters that it has to have, and the files that use it. It may have more parameters that
have a default where the row ends with "...", and any where it ends with "*". A row without parameters needs the name
alone, the row "" the module. A name that a module imports has to be read there, or replacing it has no effect.
"""

import ast
import json
import os
import re
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from tests.test_house import ROOT, fail_on, product_files, relative, tree

TABLE = json.loads((ROOT / "tests" / "cases" / "plugin_points.json").read_text())
SOURCES = Path(os.environ.get("PLUGIN_SOURCES", "/nowhere"))
PACKAGES = ("verl", "vllm", "transfer_queue")
Function = ast.FunctionDef | ast.AsyncFunctionDef


def source_of(module: str) -> Path | None:
    """Find a module's file, in SOURCES or else installed."""
    package, *rest = module.split(".")
    folder = SOURCES / package
    if not folder.is_dir():
        folder = Path(find_spec(package).submodule_search_locations[0])
    path = folder.joinpath(*rest)
    path = path / "__init__.py" if path.is_dir() else path.with_name(path.name + ".py")
    return path if path.exists() else None


@cache
def names_of(module: str) -> dict[str, ast.AST]:
    """Return what a module defines and imports; not within functions and classes, but within `if` and `try`."""
    path = source_of(module)
    if path is None:
        return {}
    found: dict[str, ast.AST] = {}
    blocks = [ast.parse(path.read_text())]
    while blocks:
        for node in ast.iter_child_nodes(blocks.pop()):
            if isinstance(node, (Function, ast.ClassDef)):
                found[node.name] = node
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                found |= {alias.asname or alias.name: node for alias in node.names}
            elif isinstance(node, (ast.Assign, ast.AnnAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found |= {target.id: node for target in targets if isinstance(target, ast.Name)}
            elif isinstance(node, (ast.If, ast.Try, ast.ExceptHandler, ast.With)):
                blocks.append(node)
    return found


def define(module: str, name: str) -> tuple[str, ast.AST | None]:
    """Follow imports to where a name of a module is defined; the module, and None if it is not."""
    node = names_of(module).get(name)
    if not isinstance(node, ast.ImportFrom):
        return module, node
    package = module if source_of(module).name == "__init__.py" else module.rpartition(".")[0]
    above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
    origin = ".".join([*above, *([node.module] if node.module else [])])
    original = next(alias.name for alias in node.names if (alias.asname or alias.name) == name)
    return (origin, node) if source_of(f"{origin}.{original}") else define(origin, original)


def member(module: str, owner: ast.ClassDef, name: str) -> ast.AST | None:
    """Find a method or attribute of a class or of its bases; what its methods set on `self` counts."""
    for node in ast.walk(owner):
        if isinstance(node, Function) and node.name == name and node in owner.body:
            return node
        if isinstance(node, ast.Attribute) and ast.unparse(node) == f"self.{name}" and isinstance(node.ctx, ast.Store):
            return node
        if isinstance(node, ast.AnnAssign) and node in owner.body and ast.unparse(node.target) == name:
            return node
    for base in owner.bases:
        origin, found = define(module, ast.unparse(base))
        if isinstance(found, ast.ClassDef) and (inherited := member(origin, found, name)):
            return inherited
    return None


def parameters(module: str, node: ast.AST) -> tuple[list[str], set[str]]:
    """Return the names of a function's parameters, or of those that make an instance, and which have no default."""
    if isinstance(node, ast.ClassDef):
        made = member(module, node, "__init__")
        if made is None:  # a dataclass
            fields = [field for field in node.body if isinstance(field, ast.AnnAssign)]
            return [field.target.id for field in fields], {field.target.id for field in fields if field.value is None}
        names, required = parameters(module, made)
        return names[1:], required - {"self"}
    taken = node.args
    positional = [argument.arg for argument in taken.posonlyargs + taken.args]
    required = set(positional[: len(positional) - len(taken.defaults)])
    required |= {argument.arg for argument, value in zip(taken.kwonlyargs, taken.kw_defaults, strict=True) if not value}
    names = positional + [argument.arg for argument in taken.kwonlyargs]
    names += [sign + more.arg for sign, more in (("*", taken.vararg), ("**", taken.kwarg)) if more]
    return names, required


def problem(module: str, point: str) -> str | None:
    """Say what is wrong with a row of the table."""
    path, _, wanted = point.rstrip(")").partition("(")
    name, _, attribute = path.partition(".")
    if source_of(module) is None or not name:
        return None if source_of(module) else "no such module"
    origin, node = define(module, name)
    if node is not None and attribute:
        node = member(origin, node, attribute) if isinstance(node, ast.ClassDef) else None
    if node is None:
        return "is gone"
    imported = isinstance(names_of(module)[name], (ast.Import, ast.ImportFrom))
    if not wanted and imported and source_of(module).name != "__init__.py":
        loads = [part for part in ast.walk(ast.parse(source_of(module).read_text())) if isinstance(part, ast.Name)]
        return None if any(part.id == name for part in loads) else "is imported there and no longer used"
    if not point.endswith(")"):
        return None
    if not isinstance(node, (Function, ast.ClassDef)):
        return "is no function"
    names, required = parameters(origin, node)
    *expected, more = [*wanted.split(", "), ""] if wanted[-1] not in ".*" else wanted.split(", ")
    inside = [each for each in names if each in expected] == expected
    if inside and (more == "*" or (more == "..." and required <= set(expected))):
        return None
    return None if names == expected else f"has ({', '.join(names)})"


def test_every_plugin_point_is_there():
    moved = [
        f"{module}: {point}: {wrong}; used in {', '.join(users.split())}"
        for module, points in TABLE.items()
        for point, users in points.items()
        if (wrong := problem(module, point))
    ]
    fail_on(moved, "plugin points are where the table has them")


def used_names(path: Path) -> Iterator[tuple[str, str]]:
    """Yield module and name of what a file imports from PACKAGES, and of what it takes from their modules."""
    modules = {}  # as the file has them
    for node in ast.walk(tree(path)):
        package = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
        for alias in node.names if isinstance(node, (ast.Import, ast.ImportFrom)) else ():
            name = package + alias.name
            if name.split(".")[0] in PACKAGES and source_of(name):
                modules[alias.asname or alias.name] = name
            elif name.split(".")[0] in PACKAGES:
                yield node.module, alias.name
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute) and (module := modules.get(ast.unparse(node.value))):
            yield module, node.attr


def test_the_table_has_every_name_and_its_users():
    rows = [
        (module, point.partition("(")[0], users.split())
        for module, row in TABLE.items()
        for point, users in row.items()
    ]
    listed = {(module, name.split(".")[0], user) for module, name, users in rows for user in users}
    used = {(*name, relative(path)) for path in product_files() for name in used_names(path)}
    missing = [f"not in the table: {module}: {name}: {user}" for module, name, user in sorted(used - listed)]
    for path in [*(ROOT / "recipe" / "verl_plugins").glob("*.py"), *(ROOT / "recipe" / "cpu").glob("*.py")]:
        members = {name.split(".")[1] for _, name, users in rows if "." in name and relative(path) in users}
        called = set(re.findall(r"super\(\)\.(_?[a-z]\w+)", path.read_text()))
        missing += [f"not in the table: {relative(path)}: super().{name}" for name in sorted(called - members)]
    unused = [
        f"not in {user}: {module}: {name}"
        for module, name, users in rows
        for user in users
        if (name.split(".")[-1] or module).strip("_") not in (ROOT / user).read_text()
    ]
    fail_on(missing + unused, "the table of plugin points is that of the code")
