"""Imports of the house as a graph, read from the source: lazy and type-only imports count."""

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

# Floors of each room, lowest first: a module imports from lower floors only, never from its neighbours on one floor.
# Rooms stand above each other in the same way.
Floors = dict[str, Sequence[set[str]]]

ROOT = Path(__file__).resolve().parents[2]
# Rooms, the ground floor first, and the floors of their sub-rooms, lowest first.
FLOORS: Floors = {
    "runtime": [
        {"errors", "progress"},
        {"files", "lazy", "units", "processor"},
        {"graph"},
        {"formats", "images"},
        {"exactness", "contract"},
        {"onnx_session"},
        {"memory"},
        {"compile"},
        {"inference"},
        {"profiling"},
        {"report"},
        {"commands"},
    ],
    "export": [
        {"formats"},
        {"activations", "trace"},
        {"parity", "runtime_check"},
        {"quantization", "fit"},
        {"blame", "exporter"},
        {"commands"},
    ],
    "model_zoo": [
        {"extras", "fields"},
        {"training_config"},
        {"networks", "recipes"},
        {"weights"},
        {"network"},
        {"training"},
        {"demo"},
        {"commands"},
    ],
}


@dataclass(frozen=True)
class Import:
    """One import: the module that imports and the module it imports from, dotted, without ``firebox.``."""

    importer: str
    imported: str
    line: int

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


def modules(root: Path, rooms: Sequence[str]) -> dict[str, Path]:
    """Dotted name and path of each module of the rooms; a package stands for its ``__init__.py``."""
    found = {}
    for path in sorted(path for room in rooms for path in (root / room).rglob("*.py")):
        found[".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")] = path
    return found


def imports(root: Path, rooms: Sequence[str]) -> Iterator[Import]:
    """All imports between modules of the rooms, wherever they stand in a file."""
    known = modules(root, rooms)
    for name, path in known.items():
        package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
        for node in ast.walk(ast.parse(path.read_text())):
            for target in _targets(node, package):
                if target in known:
                    yield Import(name, target, node.lineno)  # pyright: ignore[reportAttributeAccessIssue]
                elif target.rpartition(".")[0] in known:
                    yield Import(name, target.rpartition(".")[0], node.lineno)  # pyright: ignore[reportAttributeAccessIssue]


def _targets(node: ast.AST, package: list[str]) -> Iterator[str]:
    """Dotted names that a statement imports: a module, or a name in a module."""
    if isinstance(node, ast.Import):
        yield from (alias.name.removeprefix("firebox.") for alias in node.names if alias.name.startswith("firebox."))
    elif isinstance(node, ast.ImportFrom):
        base = package[: len(package) - node.level + 1] if node.level else []
        source = [*base, *(node.module or "").split(".")] if node.module else base
        if not node.level:
            if source[:1] != ["firebox"]:
                return
            source = source[1:]
        yield from (".".join([*source, alias.name]) for alias in node.names)


def circles(edges: Iterator[Import]) -> list[str]:
    """The modules of the first circle, in order; empty if there is none."""
    sorter: TopologicalSorter[str] = TopologicalSorter()
    for edge in edges:
        if edge.imported != edge.importer:
            sorter.add(edge.importer, edge.imported)
    try:
        sorter.prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def misplaced(root: Path, floors: Floors) -> list[str]:
    """Sub-rooms without a floor, and floors without a sub-room."""
    found = []
    for room, levels in floors.items():
        names = {name for level in levels for name in level}
        there = {
            path.stem for path in (root / room).iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
        }
        found += [f"{room}/{name} has no floor" for name in sorted(there - names - {"__init__"})]
        found += [f"{room}/{name} has a floor and does not exist" for name in sorted(names - there)]
    return found


def upward(edges: Iterator[Import], floors: Floors) -> list[str]:
    """Imports that run upward, sideways between sub-rooms of one floor, or into commands."""
    rooms = list(floors)
    level = {(room, name): index for room in rooms for index, names in enumerate(floors[room]) for name in names}
    found = []
    for edge in edges:
        room, own, *_ = [*edge.importer.split("."), ""]
        target_room, other, *_ = [*edge.imported.split("."), ""]
        if room != target_room:
            wrong = rooms.index(target_room) > rooms.index(room)
        elif not own or own == other:
            wrong = False
        else:
            # The face of a room stands above all that it shows.
            wrong = not other or level.get((room, other), 0) >= level.get((room, own), 0)
        if wrong or (other == "commands" and own != "commands"):
            found.append(str(edge))
    return found
