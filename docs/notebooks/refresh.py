"""Run the notebooks of this folder anew and store their outputs in them.

    python docs/notebooks/refresh.py

Needs the extra `dev`. A notebook runs from top to bottom in an empty folder. What its cells print and draw is stored
without colors, times and paths of the machine; the digest of the code is stored, too, so that a test notices outputs
that are not those of the code.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
MAX_BYTES = 1_000_000
TIMEOUT_S = 1800  # for one cell
_COMMAND = re.compile(r"^(!(?:.*\\\n)*.*)$", flags=re.MULTILINE)  # with the lines that continue it
_RESULT = re.compile(r"-[0-9a-f]{8}\.json")  # the digest of weights, which differ in their last bits
_MACHINE = re.compile(r"(?<![\w.])/(?:home|root|tmp|usr|var|opt|work|mnt|Users)/|\x1b|0x[0-9a-f]{9,}")


def execute(notebook: Any, folder: Path, **parameters: Any) -> None:
    """Run a notebook in a folder, and give its cells the outputs.

    A cell whose command (`!rhofast ...`) fails is an error, although Jupyter goes on after it.

    Args:
        notebook: The notebook, whose first cell with the tag `parameters` assigns what can be changed.
        folder: The current folder of the kernel.
        parameters: Values for names that the cell `parameters` assigns.
    """
    running = copy.deepcopy(notebook)
    changes = "".join(f"\n{name} = {value!r}" for name, value in parameters.items())
    for cell in running.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.source += changes
        elif cell.cell_type == "code":
            cell.source = _COMMAND.sub(r'\1\nassert _exit_code == 0, f"exit code {_exit_code}"', cell.source)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    place = {"metadata": {"path": str(folder)}}
    client = NotebookClient(running, kernel_name="python3", timeout=TIMEOUT_S, record_timing=False, resources=place)
    client.execute(env={**os.environ, "PATH": path, "COLUMNS": "100"})
    for cell, ran in zip(notebook.cells, running.cells, strict=True):
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = ran.outputs, ran.execution_count


def clean(notebook: Any) -> None:
    """Leave out of a notebook what differs from one machine and one run to the next."""
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
            "rhofast": {"code": digest(notebook)},
        }
    )
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({"tags": cell.metadata["tags"]} if "tags" in cell.metadata else {})
        if cell.cell_type == "code":
            cell.outputs = _merged(cell.outputs)


def _merged(outputs: list[Any]) -> list[Any]:
    """Return outputs with streams in one piece, without what was printed over, and with pictures in one format."""
    merged: list[Any] = []
    for output in outputs:
        output.pop("transient", None)
        if "metadata" in output:
            output.metadata = nbformat.from_dict({})
        pictures = {kind: len(data) for kind, data in output.get("data", {}).items() if kind.startswith("image/")}
        for kind in pictures.keys() - {min(pictures, key=pictures.__getitem__, default="")}:
            del output.data[kind]  # PIL gives each picture as PNG and as JPEG
        if merged and output.output_type == "stream" and merged[-1].output_type == "stream":
            merged[-1].text += output.text
        else:
            merged.append(output)
    for output in merged:
        if output.output_type == "stream":
            lines = [line.rpartition("\r")[2].rstrip() for line in output.text.replace("\r\n", "\n").split("\n")]
            output.text = _RESULT.sub("-DIGEST.json", "\n".join(lines))
    return merged


def digest(notebook: Any) -> str:
    """Return the digest of a notebook's code."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256(json.dumps(code).encode()).hexdigest()


def problems(notebook: Any) -> list[str]:
    """Return what is wrong with the outputs of a notebook, one line each."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    found = []
    if notebook.metadata.get("rhofast", {}).get("code") != digest(notebook):
        found.append("the outputs are not those of the code")
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        found.append("the cells were not run once each, from top to bottom")
    for number, cell in enumerate(code, 1):
        if machine := _MACHINE.search("\n".join(map(_words, cell.outputs))):
            found.append(f"cell {number} shows something of the machine: {machine[0]!r}")
        if any(output.output_type == "error" or output.get("name") == "stderr" for output in cell.outputs):
            found.append(f"cell {number} shows an error or a warning")
    if (size := len(nbformat.writes(notebook))) > MAX_BYTES:
        found.append(f"it has {size:,} bytes; at most {MAX_BYTES:,}: draw less")
    return found


def _words(output: Any) -> str:
    """Return what an output shows as text."""
    shown = [data for kind, data in output.get("data", {}).items() if kind.startswith("text/")]
    return "\n".join([output.get("text", ""), *shown])


def main() -> None:
    """Refresh all notebooks."""
    for path in sorted(FOLDER.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        with tempfile.TemporaryDirectory() as folder:
            execute(notebook, Path(folder))
        clean(notebook)
        wrong = problems(notebook)
        nbformat.write(notebook, path)
        print("\n  ".join([f"{path.name}: {path.stat().st_size:,} bytes", *wrong]))
        if wrong:
            sys.exit(1)


if __name__ == "__main__":
    main()
