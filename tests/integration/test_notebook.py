"""The notebook of the documentation: it runs from top to bottom, and what is stored in it is what it gives."""

import importlib.util
import os
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import pytest
from PIL import Image

from tests.helpers.results import read_one
from tests.helpers.shards import ROOT

NOTEBOOK = ROOT / "docs" / "notebooks" / "first_hour.ipynb"
CHANCE = 1 / 8


def load_refresh() -> ModuleType:
    spec = importlib.util.spec_from_file_location("rhofast_docs_refresh", NOTEBOOK.parent / "refresh.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


REFRESH = load_refresh()


@pytest.fixture
def notebook() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def outputs_of(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def test_the_stored_outputs_are_those_of_the_code_and_fit_for_the_web(notebook: Any) -> None:
    assert REFRESH.problems(notebook) == [], "refresh it: python docs/notebooks/refresh.py"
    pictures = [kind for output in outputs_of(notebook) for kind in output.get("data", {}) if kind.startswith("image/")]
    assert len(pictures) == 5  # stored frames, two clips, augmented clips, curves, neighbors
    said = "\n".join(output.get("text", "") for output in outputs_of(notebook))
    trained, untrained = (float(re.findall(rf"│ {name} +│ +([\d.]+)%", said)[0]) for name in ("trained", "untrained"))
    assert trained > untrained + 20 and untrained > 100 * CHANCE


def test_every_piece_of_code_has_a_sentence_before_it_or_follows_one_that_has(notebook: Any) -> None:
    kinds = "".join("c" if cell.cell_type == "code" else "m" for cell in notebook.cells)
    assert re.fullmatch(r"m(m?c{1,2})+m", kinds), kinds
    links = re.findall(
        r"\]\(([^)#]+)", "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    )
    assert links and [link for link in links if not (NOTEBOOK.parent / link).exists()] == []


def test_what_a_notebook_must_not_show_is_found(notebook: Any) -> None:
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    code[0].outputs = [nbformat.v4.new_output("stream", text="written to /home/somebody/first_hour")]
    code[1].outputs = [nbformat.v4.new_output("stream", text="\x1b[1Ain red")]
    code[2].outputs = [nbformat.v4.new_output("stream", name="stderr", text="a warning")]
    code[3].source += "  # later"
    found = REFRESH.problems(notebook)
    assert found == [
        "the outputs are not those of the code",
        "cell 1 shows something of the machine: '/home/'",
        "cell 2 shows something of the machine: '\\x1b'",
        "cell 3 shows an error or a warning",
    ]


def test_a_command_that_fails_ends_the_notebook(tmp_path: Path) -> None:
    cells = [nbformat.v4.new_code_cell("!rhofast configs show nothing"), nbformat.v4.new_code_cell("never = 1")]
    with pytest.raises(Exception, match="exit code 2"):
        REFRESH.execute(nbformat.v4.new_notebook(cells=cells), tmp_path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # of Jupyter's libraries
def test_the_notebook_runs_from_top_to_bottom(notebook: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    REFRESH.execute(notebook, tmp_path, COUNT=32, STEPS=2)  # raises what a cell raises
    REFRESH.clean(notebook)
    assert REFRESH.problems(notebook) == []

    out = tmp_path / "first_hour"
    result = read_one(out / "first", "knn")
    assert (
        result["trained"]["samples"] == 8 and result["untrained"]["measures"]["top-1"] > CHANCE
    )  # two steps are no training
    assert Image.open(out / "neighbors.png").size[0] > 500
    assert (out / "first.safetensors").stat().st_size > 1_000_000
    said = "\n".join(output.get("text", "") for output in outputs_of(notebook))
    assert re.search(r"step 2 of 2: kNN \d+\.\d%", said)
    assert re.search(r"cosine of clips of one video: \d\.\d\d", said)
