"""The notebook for Kaggle: its cells run, at toy size, from prepared data to an export that predicts."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import SMALL, TINY, call

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "train_on_kaggle.ipynb"


def code_cells():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return [
        ("parameters" in cell["metadata"].get("tags", ()), "".join(cell["source"])) for cell in cells if is_code(cell)
    ]


def is_code(cell):
    return cell["cell_type"] == "code"


def test_the_notebook_is_one_and_its_parameters_are_plain_values():
    nbformat = pytest.importorskip("nbformat")
    nbformat.validate(nbformat.read(NOTEBOOK, as_version=4))
    ((_, text),) = [cell for cell in code_cells() if cell[0]]
    values = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(text).body}
    assert set(values) == {"RSNA", "ICHKIT", "PLACE", "CONFIG", "STUDIES", "FOLDS", "SETTINGS", "TRAIN_HOURS"}
    assert values["TRAIN_HOURS"] < 12
    # No output of somebody's run is stored.
    assert all(not cell["outputs"] for cell in json.loads(NOTEBOOK.read_text())["cells"] if is_code(cell))


@pytest.mark.slow
def test_the_cells_train_score_and_export_a_model_that_predicts(phantom_root, tmp_path):
    place = tmp_path / "working"
    place.mkdir()
    settings = [*TINY, "prepare.size=null", "train.pretrained=none"]
    settings += ["stack.fusion.epochs=2", "stack.fusion.num_seeds=1", "stack.num_parts=2"]
    parameters = {
        "RSNA": str(phantom_root / "rsna"),
        "ICHKIT": "unused",
        "PLACE": str(place),
        "CONFIG": "demo",
        "STUDIES": 12,
        "FOLDS": "0,1",
        "SETTINGS": settings,
        "TRAIN_HOURS": 1.0,
    }
    toy = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
    script = "\n\n".join(toy if is_parameters else text for is_parameters, text in code_cells())
    (tmp_path / "notebook.py").write_text(script)
    words = [sys.executable, str(tmp_path / "notebook.py")]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    (exported,) = (place / "export").iterdir()
    assert {"manifest.json", "model-card.md", "thresholds.json"} <= {path.name for path in exported.iterdir()}
    assert (place / "work" / "report.html").is_file()
    asked = (
        "predict",
        phantom_root / "cq500",
        "--model",
        exported,
        "--out",
        tmp_path / "out",
        "--work",
        tmp_path / "w",
    )
    call(*asked, "--no-page", "-c", "demo", *SMALL)
    assert (tmp_path / "out" / "studies.csv").is_file()
