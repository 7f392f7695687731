"""`predict --source rsna`: the slices that `submit` predicts, with the same probabilities."""

import numpy as np
import pandas as pd
import pytest
from support.commands import do
from support.simulated import TASK

from ichkit.core.errors import ConfigError
from ichkit.stages.predict import run as predict
from ichkit.stages.scores import submit
from ichkit.stages.train import run as train


@pytest.mark.slow
def test_test_scans_get_the_probabilities_of_the_submission(prepared_work, phantom_root, tiny_config, tmp_path):
    do(train, tiny_config, prepared_work, run_name="demo", folds=[0])
    sent = do(submit, tiny_config, prepared_work, source="demo", submissions=tmp_path / "submissions")
    expected = pd.read_csv(sent.csv_path).set_index("ID")["Label"]
    wanted = set(expected.index.str.rpartition("_").get_level_values(0))
    scans = next((phantom_root / "rsna").rglob("stage_2_test"))
    options = {"path": scans, "model": str(prepared_work.runs / "demo")}
    found = do(predict, tiny_config, prepared_work, **options, source="rsna", out=tmp_path / "rsna")
    assert wanted - set(found.slices["slice_id"]) == {one.slice_id for one in sent.imputed}
    for name in TASK.classes:
        labels = expected[found.slices["slice_id"] + f"_{name}"]
        np.testing.assert_allclose(found.slices[f"p_{name}"], labels, atol=1e-6)
    assert found.series_choice["chosen"].all()
    # By the rules of other folders, slices at places that were scanned twice are left out.
    other = do(predict, tiny_config, prepared_work, **options, out=tmp_path / "any", has_page=False)
    assert len(other.slices) < len(found.slices)


def test_a_source_without_rules_of_its_own_and_a_choice_of_series_are_refused(prepared_once, tiny_config, tmp_path):
    for options, message in (
        ({"source": "folder"}, 'predict --source: "folder" has no rules of its own for scans'),
        ({"source": "rsna", "series_override": tmp_path / "mine.csv"}, "leave out --series-override"),
    ):
        with pytest.raises(ConfigError, match=message):
            predict.plan(tiny_config, prepared_once, predict.PredictOptions(path=tmp_path, model="demo", **options))
