"""Modules import only from modules below them in the order of docs/architecture.md."""

import ast
from pathlib import Path

import pytest
from conftest import ROOT

# From the bottom up. A name stands for a module of emaae or for a package of it.
ORDER = (
    "system",
    "knobs schedules config command_line",
    "data",
    "activations models losses optimizers metric_table metrics filters shift evaluation training",
    "runs",
    "sweeps",
    "tracking",
    "loading",
    "corpus",
    "__init__ __main__",
)
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names.split()}
MODULES = sorted((ROOT / "emaae").rglob("*.py"))
AT_MOST = 450  # lines


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


NAMES = {dotted(path) for path in MODULES}


def imported(path: Path) -> set[str]:
    """The modules of emaae that a module imports anywhere, except for types alone."""
    found = set()
    tree = ast.parse(path.read_text())
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in NAMES else node.module)
    return {name for name in found if name in NAMES} - {dotted(path)}


def part(name: str) -> str:
    return (name.split(".") + ["__init__"])[1]


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_a_module_imports_nothing_from_above(path):
    own = LEVEL[part(dotted(path))]
    for name in imported(path):
        assert LEVEL[part(name)] <= own, f"{dotted(path)} imports {name}"


def test_there_are_no_import_cycles():
    imports = {dotted(path): imported(path) for path in MODULES}
    left = dict(imports)
    while left:
        free = {name for name, needs in left.items() if not needs & left.keys()}
        assert free, f"a cycle among {sorted(left)}"
        left = {name: needs for name, needs in left.items() if name not in free}


def test_analysis_is_imported_by_the_command_line_alone():
    for path in MODULES:
        text = path.read_text() if path.name != "__main__.py" else ""
        assert "from analysis" not in text, path
        assert "import analysis" not in text, path


@pytest.mark.parametrize("path", [*MODULES, *sorted((ROOT / "analysis").glob("*.py"))], ids=dotted)
def test_a_module_has_at_most_450_lines(path):
    assert len(path.read_text().splitlines()) <= AT_MOST
