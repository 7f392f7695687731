"""The inference notebook of a code competition: installs the bundle's wheels, predicts, writes submission.csv."""

from typing import Any

INPUT = "/kaggle/input"
SUBMISSION = "submission.csv"


def make_notebook(slug: str, name: str) -> dict[str, Any]:
    """The notebook as JSON of nbformat 4.

    Args:
        slug: of the data set that holds the bundle.
        name: of the model, for the text.
    """
    cells = [
        ("markdown", _ABOUT.format(name=name)),
        ("code", _PLACES.format(input=INPUT, slug=slug)),
        ("code", _INSTALL),
        ("code", _PREDICT),
        ("code", SUBMIT),
    ]
    return {
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}},
        "cells": [_cell(number, kind, text) for number, (kind, text) in enumerate(cells)],
    }


def _cell(number: int, kind: str, text: str) -> dict[str, Any]:
    lines = [f"{line}\n" for line in text.strip().splitlines()]
    lines[-1] = lines[-1].rstrip("\n")
    cell: dict[str, Any] = {"id": f"cell-{number}", "cell_type": kind, "metadata": {}, "source": lines}
    return cell | ({"execution_count": None, "outputs": []} if kind == "code" else {})


_ABOUT = """
# Inference with {name}

Written by `ichkit kernel`. Attach the bundle as a data set and the competition data; no internet is needed.
Research use only, not a medical device.
"""

_PLACES = """
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd

BUNDLE = Path(os.environ.get("ICHKIT_BUNDLE", "{input}/{slug}"))
DATA = Path(os.environ.get("ICHKIT_RSNA", "{input}/rsna-intracranial-hemorrhage-detection"))
OUT = Path(os.environ.get("ICHKIT_OUT", "."))
# The competition's zip has its folders below one more.
SCANS = next(path for path in (DATA, *sorted(DATA.glob("*"))) if (path / "stage_2_test").is_dir()) / "stage_2_test"
SAMPLE = next(iter(sorted(SCANS.parent.glob("stage_2_sample_submission.csv"))))
"""

_INSTALL = """
# The wheels of the bundle alone; what they need besides is part of the image.
wheels = sorted(map(str, (BUNDLE / "wheels").glob("*.whl")))
subprocess.run([sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", *wheels], check=True)
"""

_PREDICT = """
command = [sys.executable, "-m", "ichkit", "predict", str(SCANS), "--model", str(BUNDLE / "model")]
command += ["--source", "rsna", "--out", str(OUT / "predictions"), "--no-page", "-c", str(BUNDLE / "config.yaml")]
subprocess.run(command, check=True)
"""

SUBMIT = f"""
slices = pd.read_csv(OUT / "predictions" / "slices.csv", dtype={{"slice_id": str}}).set_index("slice_id")
slices = slices[[name for name in slices if name.startswith("p_")]]
long = slices.rename(columns=lambda name: name[2:]).stack()
long.index = [f"{{slice_id}}_{{name}}" for slice_id, name in long.index]
sample = pd.read_csv(SAMPLE)
label = sample["ID"].map(long)
# A slice that cannot be read (predictions/rejected.csv) gets the mean of its class.
means = {{name[2:]: mean for name, mean in slices.mean().items()}}
print(f"{{int(label.isna().sum())}} of {{len(sample)}} rows without a prediction")
sample["Label"] = label.fillna(sample["ID"].str.rpartition("_")[2].map(means))
assert sample["Label"].between(0, 1).all()
sample.to_csv(OUT / "{SUBMISSION}", index=False)
"""
"""Fills the sample submission SAMPLE from OUT/predictions."""
