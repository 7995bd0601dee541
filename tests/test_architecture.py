"""The rules that keep the project small: imports go downward, files and functions stay short."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAX_FILE, MAX_FUNCTION = 400, 60
LEVELS = {
    "axes": 0, "specs": 0, "errors": 0, "report": 0, "blinding": 0, "evidence": 0, "live_tools": 0,
    "text": 1, "html": 1,
    "models": 2,
    "activations": 3,
    "learners": 4,
    "lenses": 5,
    "methods": 6, "agents": 6,
    "entry": 7,
    "app": 8, "demo": 8, "dashboard": 8, "results": 8,
}  # fmt: skip
CONFIG_LIBRARIES = {"hydra", "omegaconf"}


def sources() -> list[Path]:
    """Every Python file that git would keep."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    return [ROOT / name for name in listed if (ROOT / name).exists()]


def product() -> list[Path]:
    return [path for path in sources() if path.relative_to(ROOT).parts[0] in ("diffing", "trackers")]


def imports(path: Path) -> Iterator[str]:
    """Dotted names that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part_of(dotted: str) -> str:
    """The part of `diffing` a dotted name or a path belongs to."""
    return dotted.split(".")[1]


def test_imports_go_downward_only() -> None:
    upward = []
    for path in product():
        relative = path.relative_to(ROOT)
        if relative.parts[0] != "diffing" or (len(relative.parts) == 2 and relative.stem == "__init__"):
            continue
        here = part_of(".".join(relative.with_suffix("").parts))
        for name in imports(path):
            if name.startswith("diffing.") and part_of(name) in LEVELS:
                there = part_of(name)
                if there != here and LEVELS[there] >= LEVELS[here] and LEVELS[here] != 0:
                    upward.append(f"{relative} -> {name}")
                if LEVELS[here] == 0 and LEVELS[there] > 0:
                    upward.append(f"{relative} -> {name}")
                if here == "agents" and LEVELS[there] > 0 and there != "agents":
                    upward.append(f"{relative} -> {name} (agents import level 0 only)")
    assert not upward


def test_every_part_has_a_level() -> None:
    parts = {path.relative_to(ROOT / "diffing").parts[0].removesuffix(".py") for path in product()
             if path.is_relative_to(ROOT / "diffing")} - {"__init__"}  # fmt: skip
    assert parts <= set(LEVELS), f"parts without a level: {parts - set(LEVELS)}"


def test_trackers_know_nothing_of_diffing_and_only_entry_points_know_trackers() -> None:
    wrong = []
    for path in product():
        relative = path.relative_to(ROOT)
        inside_trackers = relative.parts[0] == "trackers"
        level = 0 if inside_trackers else LEVELS.get(part_of(".".join(relative.with_suffix("").parts)), 0)
        for name in imports(path):
            package = name.split(".")[0]
            if inside_trackers and package == "diffing":
                wrong.append(f"{relative} -> {name}")
            if not inside_trackers and level < 7 and package in CONFIG_LIBRARIES | {"trackers", "streamlit"}:
                wrong.append(f"{relative} -> {name}")
            if package == "wandb" and relative.name != "wandb_client.py":
                wrong.append(f"{relative} -> {name}")
    assert not wrong


def test_no_method_imports_another() -> None:
    wrong = []
    for path in (ROOT / "diffing" / "methods").rglob("*.py"):
        own = path.relative_to(ROOT / "diffing" / "methods").parts[0].removesuffix(".py")
        for name in imports(path):
            other = re.match(r"diffing\.methods\.(\w+)", name)
            if other and own != "__init__" and other[1] != own and not other[1].startswith("base"):
                wrong.append(f"{path.name} -> {name}")
    assert not wrong


def test_every_method_has_its_yaml_and_its_test() -> None:
    methods = {
        path.stem for path in (ROOT / "diffing" / "methods").iterdir() if not path.name.startswith(("_", "base"))
    }
    assert methods, "no methods found"
    assert methods == {path.stem for path in (ROOT / "conf" / "diffing" / "method").glob("*.yaml")}
    assert methods <= {path.stem.removeprefix("test_") for path in (ROOT / "tests" / "methods").glob("test_*.py")}


def test_files_and_functions_stay_short() -> None:
    too_long = []
    for path in sources():
        text, relative = path.read_text("utf-8"), path.relative_to(ROOT)
        if (lines := text.count("\n")) > MAX_FILE:
            too_long.append(f"{relative}: {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                size = (node.end_lineno or node.lineno) - node.lineno + 1
                if size > MAX_FUNCTION:
                    too_long.append(f"{relative}:{node.lineno} {node.name}: {size} lines")
    assert not too_long


def test_there_is_no_utils_module_and_no_broad_except() -> None:
    wrong = [path.name for path in sources() if path.stem in ("utils", "helpers", "common")]
    for path in product():
        if "app" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ExceptHandler):
                names = {getattr(n, "id", None) for n in ast.walk(node.type)} if node.type else {None}
                if node.type is None or names & {"Exception", "BaseException"}:
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not wrong


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        str(path.relative_to(ROOT)) for path in product() if not ast.get_docstring(ast.parse(path.read_text("utf-8")))
    ]
    assert not silent


@pytest.mark.parametrize("package", ["diffing", "diffing.report", "diffing.evidence", "trackers"])
def test_importing_the_light_parts_loads_no_heavy_library(package: str) -> None:
    heavy = "torch transformers peft wandb streamlit inspect_ai lightning hydra"
    code = f"import sys, {package}; print(*[name for name in '{heavy}'.split() if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.split() == []
