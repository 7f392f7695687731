"""The Python page: its blocks run in order, and the names of the package are light, listed and documented."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import ichkit
from ichkit.work.artifacts import read_table

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The folder in which the blocks of the page ran, and the names they left."""
    folder, names, before = tmp_path_factory.mktemp("page"), {}, Path.cwd()
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    os.chdir(folder)
    try:
        for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
            exec(compile(block, "docs/python.md", "exec"), names)
    finally:
        os.chdir(before)
    return folder, names


def test_the_blocks_of_the_page_run_and_give_the_tables_of_the_work_folder(page):
    folder, names = page
    stored = read_table(folder / "work" / "scores" / "scores.parquet")
    pd.testing.assert_frame_equal(names["scores"], stored)
    pd.testing.assert_frame_equal(ichkit.scores(folder / "work"), stored)
    pd.testing.assert_frame_equal(names["table"], read_table(folder / "work/stacks/demo/blend_oof.parquet"))
    assert set(names["pooled"].source) == {"demo", "demo-lightgbm", "demo-blend"}
    assert (folder / names["made"].csv_path).is_file()


def test_a_loaded_model_predicts_what_the_stack_says_of_the_same_slices(page):
    folder, names = page
    slices, known = names["slices"], read_table(folder / "work/stacks/demo/blend_test.parquet")
    prepared = read_table(folder / "work/prepared/slices.parquet")
    rejected = set(read_table(folder / "work/prepared/rejected.csv").study_id)
    studies = prepared[prepared.split == "test"].groupby("study_id").agg({"series_id": "nunique", "hu_repaired": "max"})
    # `prepare` keeps every series and repairs HU of RSNA; `predict` takes one series of a study as it is.
    plain = set(studies.index[(studies.series_id == 1) & ~studies.hu_repaired.astype(bool)]) - rejected
    both = known[known.study_id.isin(plain)].merge(slices, on="slice_id", suffixes=("", "_again"))
    assert both.study_id.nunique() == len(plain) > 1
    columns = [name for name in known if name.startswith("p_")]
    np.testing.assert_allclose(both[columns], both[[f"{name}_again" for name in columns]], atol=1e-6)


def test_the_package_is_light_lists_its_names_and_each_has_a_docstring():
    code = "import sys, ichkit; print([m for m in ('torch', 'pandas', 'numba', 'click') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert set(dir(ichkit)) == set(ichkit.__all__)
    for name in ichkit.__all__:
        assert getattr(ichkit, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'tarin'"):
        ichkit.tarin  # noqa: B018


def test_a_call_raises_what_the_command_says(tmp_path):
    with pytest.raises(ichkit.IchkitError, match="ichkit prepare"):
        ichkit.train(tmp_path)
    with pytest.raises(ichkit.IchkitError, match="expected a run"):
        ichkit.load_model(tmp_path)
    with pytest.raises(TypeError, match="flods"):
        ichkit.train(tmp_path, flods=[0])
