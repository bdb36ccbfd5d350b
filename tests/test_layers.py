"""Who may import whom: rooms in one order, no circle, the two towers apart, each heavy package behind its door."""

import ast
from pathlib import Path

import pytest

from tests.helpers.shards import ROOT

PACKAGE = ROOT / "rhofast"

# A room imports only from rooms after it. `analysis.capacity` is a room of its own within `analysis`.
ROOMS = (
    *("cli", "analysis", "analysis.capacity", "training", "evaluation", "checkpoint", "ingest"),
    *("data", "models", "config", "storage", "distributed", "errors", "display"),
)


DATA_ROOMS = tuple(
    f"data.{room}"
    for room in (
        "loader",
        "sources",
        "sampling",
        "format",
        "decode",
        "codecs",
        "units",
        "types",
        "inside",
        "shaped",
        "image_ops",
    )
)

# Rooms that know nothing of each other, in either direction.
STRANGERS = (("data", "models"), ("storage", "config"), ("storage", "distributed"), ("config", "distributed"))
STRANGERS += (("ingest", "checkpoint"),)

# Text rules without a state that strangers share, so that an address is refused before anything else looks at it.
SHARED = {"storage.address"}

# Heavy packages, and the only places that may import them.
DOORS = {
    "nvidia": ("data.decode",),
    "accelerate": ("training", "evaluation"),
    "torchvision": ("models.backbones.torchvision_video", "models.roi_align"),
    "ray": ("ingest.ray_cluster",),
    "huggingface_hub": ("storage.hub",),
}


def modules() -> dict[str, Path]:
    """Return every module of the package by its dotted name within it; `rhofast` and `__main__` are the entrance."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name not in ("", "__main__") and not name.startswith("recipes"):
            found[name] = path
    return found


def imports(path: Path) -> set[str]:
    """Return the dotted names of everything that a file imports, wherever in the file it does."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def own(path: Path) -> set[str]:
    """Return the package's modules that a file imports."""
    return {name.removeprefix("rhofast.") for name in imports(path)} & MODULES.keys() - FACES


def room_of(module: str, rooms: tuple[str, ...] = ROOMS) -> str:
    """Return the room of a module: the longest prefix of its name that is one."""
    parts = module.split(".")
    for count in range(len(parts), 0, -1):
        name = ".".join(parts[:count])
        if name in rooms:
            return name
    raise AssertionError(f"rhofast.{module} is in none of the rooms {', '.join(rooms)}")


MODULES = modules()
FACES = {name for name, path in MODULES.items() if path.name == "__init__.py" and not imports(path)}


def test_the_rooms_are_all_there_is() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders - {"recipes", "configs"} == {room for room in ROOMS if "." not in room} - {"errors"}
    files = {path.name for path in PACKAGE.iterdir() if path.is_file()}
    assert files == {"__init__.py", "__main__.py", "errors.py", "py.typed"}


@pytest.mark.parametrize("module", MODULES)
def test_rooms_import_downward(module: str) -> None:
    for imported in own(MODULES[module]):
        above, below = ROOMS.index(room_of(module)), ROOMS.index(room_of(imported))
        assert above <= below, f"rhofast.{module} imports rhofast.{imported}"


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("data.")])
def test_rooms_of_data_import_downward(module: str) -> None:
    for imported in own(MODULES[module]):
        if imported.startswith("data."):
            above, below = (DATA_ROOMS.index(room_of(name, DATA_ROOMS)) for name in (module, imported))
            assert above <= below, f"rhofast.{module} imports rhofast.{imported}"


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = {module: own(path) for module, path in MODULES.items()}
    done: set[str] = set()

    def walk(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail[trail.index(module) :], module))
        if module not in done:
            for imported in graph[module] - {module}:
                walk(imported, (*trail, module))
            done.add(module)

    for module in graph:
        walk(module, ())


@pytest.mark.parametrize(("one", "other"), STRANGERS)
def test_strangers_do_not_know_each_other(one: str, other: str) -> None:
    for module, path in MODULES.items():
        for mine, theirs in ((one, other), (other, one)):
            if room_of(module) == mine:
                known = [name for name in own(path) - SHARED if room_of(name) == theirs]
                assert not known, f"rhofast.{module} imports {known}"


@pytest.mark.parametrize("module", MODULES)
def test_heavy_packages_have_their_doors(module: str) -> None:
    roots = {name.split(".")[0] for name in imports(MODULES[module])}
    for package in roots & DOORS.keys():
        assert f"{module}.".startswith(tuple(f"{door}." for door in DOORS[package])), f"{module}: {package}"


def test_the_numbers_of_a_batch_need_numpy_alone() -> None:
    for module in (name for name in MODULES if name.startswith("data.sampling.")):
        roots = {name.split(".")[0] for name in imports(MODULES[module])}
        assert not roots & {"torch", "nvidia", "torchvision", "av", "PIL"}, module


def test_the_trainer_holds_no_method_s_name() -> None:
    from rhofast.models.methods import METHODS

    text = "".join((PACKAGE / name).read_text().lower() for name in ("training/trainer.py", "training/step.py"))
    assert METHODS and not [name for name in METHODS if name in text]
