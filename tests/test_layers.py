"""Who may import whom: strictly downward, the two towers apart, each heavy package behind one door."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "rhofast"

LAYERS = {
    0: ["errors", "rng"],
    1: [
        "activations",
        "board",
        "buffers",
        "interruptions",
        "figures",
        "config",
        "files",
        "data.types",
        "data.containers",
        "data.capabilities",
        "data.dali",
    ],
    2: [
        "capacity",
        *("evals.logistic", "evals.store"),
        *(
            f"data.{name}"
            for name in ("index", "order", "clips", "augment", "codecs", "video", "conveyor", "quarantine")
        ),
        *("data.cache", "data.download", "ingest.probe", "distributed", "optim", "telemetry", "trace"),
    ],
    3: [
        *("evals.scores", "evals.heldout"),
        *(f"data.{name}" for name in ("reader", "remote", "plan", "pipeline", "stats", "mixture", "batch")),
        "agreement",
        *(f"ingest.{name}" for name in ("writer", "transcode", "executors", "recipes", "listing", "guard")),
        *("backbones.slow", "backbones.torchvision_video", "methods.heads", "methods.contract"),
    ],
    4: [
        *(
            "foreign",
            "turns",
            "data.stages",
            "ingest.unit",
            "ingest.checks",
            "ingest.summary",
            "ingest.quality",
            "backbones",
        ),
        *(f"methods.{name}" for name in ("moco", "byol", "simclr", "swav")),
    ],
    5: ["data.loader"],
    6: [
        *(f"ingest.{name}" for name in ("build", "verify", "estimate")),
        "footprint",
        *("methods", "checkpoint", "export", "evals.features"),
    ],
    7: ["workload", "evals.knn", "evals.multiview", "evals.subject", "logbook", "plots", "resume", "saver", "step"],
    8: ["evidence", "train", "report", "pictures", "evals.case"],
    9: [
        "plan_table",
        "show",
        "bench",
        "demo",
        "console",
        "live",
        "evals.neighbors",
        "evals.linear",
        "evals.finetune",
        "evals.embed",
    ],
    10: ["evals.retrieval"],
    11: ["cli_evals", "cli_plan"],
    12: ["cli"],
    13: ["__main__"],
}
LAYER = {module: layer for layer, modules in LAYERS.items() for module in modules}
DATA_TOWER, MODEL_TOWER = (
    ("data.", "ingest."),
    ("activations", "buffers", "backbones", "methods", "optim", "distributed"),
)
DOORS = {
    "nvidia": {"data.dali", "data.pipeline"},
    "accelerate": {"train", "step", "checkpoint", "evals"},
    "torchvision": {"backbones.torchvision_video"},
    "ray": {"ingest.executors"},
}


def modules() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name and not name.startswith("recipes"):
            found[name] = path
    return found


def imports(path: Path) -> set[str]:
    """Dotted names of everything a file imports, wherever in the file it does."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def own(names: set[str]) -> set[str]:
    """Of those, the package's modules."""
    known = set(modules())
    return {name.removeprefix("rhofast.") for name in names if name.removeprefix("rhofast.") in known}


PACKAGES_WITHOUT_CODE = {"data", "ingest", "evals"}
MODULES = sorted(set(modules()) - PACKAGES_WITHOUT_CODE)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_strictly_downward(module: str) -> None:
    assert module in LAYER, f"give rhofast.{module} a place in LAYERS"
    for imported in own(imports(modules()[module])) - PACKAGES_WITHOUT_CODE:
        assert LAYER[imported] < LAYER[module], f"rhofast.{module} imports rhofast.{imported}"


@pytest.mark.parametrize("module", MODULES)
def test_the_towers_do_not_know_each_other(module: str) -> None:
    for mine, other in ((DATA_TOWER, MODEL_TOWER), (MODEL_TOWER, DATA_TOWER)):
        if module.startswith(mine):
            assert not [name for name in own(imports(modules()[module])) if name.startswith(other)]


@pytest.mark.parametrize("module", MODULES)
def test_heavy_packages_have_one_door(module: str) -> None:
    roots = {name.split(".")[0] for name in imports(modules()[module])}
    for package, doors in DOORS.items():
        if package in roots:
            assert any(module == door or module.startswith(f"{door}.") for door in doors), f"{module}: {package}"


def test_the_mathematics_of_the_loader_needs_numpy_alone() -> None:
    for module in ("rng", "data.order", "data.clips", "data.augment", "data.index"):
        roots = {name.split(".")[0] for name in imports(modules()[module])}
        assert not roots & {"torch", "nvidia", "torchvision", "av", "PIL"}, module


def test_the_trainer_holds_no_method_s_name() -> None:
    from rhofast.methods import METHODS

    text = "".join((PACKAGE / name).read_text().lower() for name in ("train.py", "step.py"))
    assert METHODS and not [name for name in METHODS if name in text]
