"""The house: rooms of at most twenty modules, two levels below a wing at most, and no circle of imports."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "src"
PACKAGE = SOURCE / "tenfold"
MOST = 20  # modules of a room


def modules() -> dict[str, Path]:
    """Every module by its dotted name; a package stands for its `__init__`."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """What a module imports of tenfold: at the top, inside functions, and for type checkers alike."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if alias.name.startswith("tenfold")}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("tenfold"):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                names.add(whole if whole in known else node.module)
    return names


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected parts of more than one module (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for other in graph[module]:
            if other not in index:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], index[other])
        if low[module] == index[module]:
            part = []
            while not part or part[-1] != module:
                part.append(stack.pop())
            if len(part) > 1:
                found.append(sorted(part))

    for module in graph:
        if module not in index:
            visit(module)
    return found


def test_no_circle_of_imports() -> None:
    known = modules()
    # The package's own `__init__` offers names lazily and tells type checkers of them; nobody imports it for anything
    # but its version.
    graph = {name: {other for other in imports(path, known) if other in known} for name, path in known.items()}
    assert len(graph) > 200
    assert circles(graph) == []


def test_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


def test_no_room_has_more_than_twenty_modules() -> None:
    rooms = Counter(path.parent for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
    crowded = {str(room.relative_to(SOURCE)): count for room, count in rooms.items() if count > MOST}
    crowded.pop("tenfold", None)  # the root is the house itself: command line, registry, configuration
    assert crowded == {}


def test_nothing_goes_deeper_than_a_wing_s_rooms() -> None:
    deep = [path for path in PACKAGE.rglob("*.py") if len(path.relative_to(PACKAGE).parts) > 3]
    assert deep == []


def test_every_room_says_what_it_is() -> None:
    for path in PACKAGE.rglob("__init__.py"):
        first = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")[0]
        assert first.endswith("."), f"{path} has no sentence: {first!r}"


def test_every_module_with_behaviour_has_a_test_of_its_name_or_is_listed() -> None:
    """A same-named test, in the same room; what is tested elsewhere says where."""
    tests = Path(__file__).parent
    missing = []
    for path in sorted(PACKAGE.rglob("*.py")):
        own = path.relative_to(PACKAGE)
        if path.name.startswith("__") or str(own) in ELSEWHERE or own.parts[0] in ("bench", "tour"):
            continue
        if not (tests / own.parent / f"test_{own.name}").exists():
            missing.append(str(own))
    assert missing == []
    stale = [name for name in ELSEWHERE if not (PACKAGE / name).exists() or not (tests / ELSEWHERE[name]).exists()]
    assert stale == []


ELSEWHERE: dict[str, str] = {
    "language/drafting/reference_trees.py": "language/drafting/test_speculation.py",  # fixed shapes only
    "moved.py": "test_public_names.py",  # the former paths are public names
    "engine/heartbeat.py": "reliability/test_nonfinite.py",  # a rank is lost by killing its process
    "kernels/bag_calls.py": "kernels/test_structures.py",  # fields only; their sizes are compared with bag.cpp
    "vision/pretraining/network.py": "vision/pretraining/test_losses.py",  # a backbone and two heads, joined
}
"""module -> the test file that tests it, where that has another name."""
