"""The scripts of a winner's archive: prepare, train and predict, each with the paths of SETTINGS.json alone."""

from collections.abc import Sequence

from ichkit.stages.kernel.notebook import SUBMISSION, SUBMIT

SETTINGS = {
    "RAW_DATA_DIR": "data/rsna",
    "TEST_DATA_DIR": "data/rsna/stage_2_test",
    "SAMPLE_SUBMISSION": "data/rsna/stage_2_sample_submission.csv",
    "EXTERNAL_DATA_DIR": "data/cq500",
    "CLEAN_DATA_DIR": "work/prepared",
    "TRAIN_DATA_CLEAN_PATH": "work/prepared/slices.parquet",
    "TEST_DATA_CLEAN_PATH": "work/prepared/slices.parquet",
    "WORK_DIR": "work",
    "CHECKPOINT_DIR": "work/runs",
    "MODEL_DIR": "model",
    "CONFIG_DIR": "config",
    "SUBMISSION_DIR": "submissions",
}
"""Key of SETTINGS.json to a path relative to the archive."""

_HEAD = '''"""{about} Paths are those of SETTINGS.json."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
SETTINGS = {{name: ROOT / path for name, path in json.loads((ROOT / "SETTINGS.json").read_text()).items()}}


def ichkit(*words):
    subprocess.run([sys.executable, "-m", "ichkit", *map(str, words)], check=True)


CONFIG, WORK = SETTINGS["CONFIG_DIR"], SETTINGS["WORK_DIR"]
'''

_PREPARE = """
words = [{words}]
if SETTINGS["EXTERNAL_DATA_DIR"].is_dir():  # only scored, never trained on
    words += ["--cq500", SETTINGS["EXTERNAL_DATA_DIR"]]
ichkit("prepare", *words, "-c", CONFIG / "{config}", "--work", WORK)
"""

_PREDICT = """
import pandas as pd

OUT, SAMPLE = SETTINGS["SUBMISSION_DIR"], SETTINGS["SAMPLE_SUBMISSION"]
words = ["--source", "rsna", "--model", SETTINGS["MODEL_DIR"], "--out", OUT / "predictions", "--no-page"]
ichkit("predict", SETTINGS["TEST_DATA_DIR"], *words, "-c", CONFIG / "{config}")
"""


def write_prepare(config: str, options: Sequence[str]) -> str:
    """The script that reads RAW_DATA_DIR and writes CLEAN_DATA_DIR.

    Args:
        options: of `prepare`, besides its sources, that other patients or studies would be trained on without.
    """
    words = ", ".join(['"--rsna"', 'SETTINGS["RAW_DATA_DIR"]', *(f'"{word}"' for word in options)])
    return _HEAD.format(about="Converts the scans of the competition.") + _PREPARE.format(words=words, config=config)


def write_train(configs: Sequence[tuple[str, str]], stack: str | None) -> str:
    """The script that trains every run and fits the second stage.

    Args:
        configs: name of a run and its config file.
        stack: name of the stack; None without a second stage.
    """
    lines = [f'ichkit("train", "--run", "{run}", "-c", CONFIG / "{config}", "--work", WORK)' for run, config in configs]
    if stack is not None:
        runs, config = ",".join(run for run, _ in configs), configs[0][1]
        lines.append(
            f'ichkit("stack", "--runs", "{runs}", "--name", "{stack}", "-c", CONFIG / "{config}", "--work", WORK)'
        )
    return "\n".join([_HEAD.format(about="Trains the networks of all folds and the second stage."), *lines, ""])


def write_predict(config: str) -> str:
    """The script that predicts TEST_DATA_DIR with MODEL_DIR and fills the sample submission."""
    return _HEAD.format(about="Predicts new scans and writes a submission.") + _PREDICT.format(config=config) + SUBMIT


ENTRY_POINTS = f"""# Entry points

Run from the top of the archive, after `pip install -r requirements.txt` and `pip install --no-deps code/*.whl`. All
paths are in SETTINGS.json.

1. `python prepare_data.py` reads RAW_DATA_DIR (and EXTERNAL_DATA_DIR if it exists) and writes CLEAN_DATA_DIR.
2. `python train.py` reads CLEAN_DATA_DIR, keeps checkpoints in CHECKPOINT_DIR, and resumes where it was stopped. It
   does not touch MODEL_DIR.
3. `python predict.py` reads TEST_DATA_DIR and SAMPLE_SUBMISSION, loads MODEL_DIR, and writes
   SUBMISSION_DIR/{SUBMISSION}.

`predict.py` needs neither of the others: MODEL_DIR holds the trained model. To predict with a newly trained one, run
`python -m ichkit export NAME --work WORK_DIR --out FOLDER` and set MODEL_DIR to that folder.
"""
