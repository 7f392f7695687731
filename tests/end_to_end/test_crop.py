"""A run on a cropped store: its card, `predict` on the files themselves, and `explain` in the source picture."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from support.commands import do, phantom_options

from ichkit.core.errors import ArtifactError
from ichkit.core.tasks import find_task
from ichkit.engine.heat import heat_maps
from ichkit.engine.inference import load_predictor
from ichkit.imaging.store import Prepared
from ichkit.stages.explain.held_out import explain_slices, read_held_out
from ichkit.stages.predict import run as predict
from ichkit.stages.predict.model import find_model
from ichkit.stages.predict.run import _pixel_settings
from ichkit.stages.prepare import run as prepare
from ichkit.stages.train import run as train
from ichkit.work.artifacts import read_table
from ichkit.work.folder import CARD_NAME, WorkFolder

TASK = find_task("hemorrhage")


@pytest.fixture(
    scope="module", params=[pytest.param(None, id="native"), pytest.param(48, id="resized", marks=pytest.mark.slow)]
)
def trained(request, phantom_root, tiny_config, tmp_path_factory):
    """The config and a work folder with fold 0 trained on the cropped phantom; never written to."""
    work = WorkFolder(tmp_path_factory.mktemp("cropped"))
    changed = tiny_config.prepare.model_copy(update={"crop": "head", "size": request.param})
    config = tiny_config.model_copy(update={"prepare": changed})
    do(prepare, config, work, phantom_options(phantom_root))
    do(train, config, work, run_name="demo", folds=[0])
    return config, work


def test_predict_crops_the_files_as_the_store_of_the_run_was_cropped(trained, phantom_root, tmp_path):
    config, work = trained
    assert json.loads((work.fold("demo", 0) / CARD_NAME).read_text())["steps"] == ["head"]
    # The files alone: neither the crop nor the size comes from the config of this call.
    plain = config.model_copy(update={"prepare": config.prepare.model_copy(update={"crop": "none", "size": None})})
    options = {"path": phantom_root / "cq500", "model": str(work.runs / "demo"), "out": tmp_path / "out"}
    found = do(predict, plain, work, **options).slices.set_index("slice_id")
    expected = read_table(work.fold("demo", 0) / "cq500.parquet").set_index("slice_id")
    shared = expected.index.intersection(found.index)
    assert len(shared) == len(expected) > 100
    names = TASK.probability_columns
    np.testing.assert_allclose(found.loc[shared, names], expected.loc[shared, names], rtol=1e-5)
    assert (tmp_path / "out" / "predictions.html").stat().st_size > 10_000


def test_a_slice_and_its_heat_stand_in_the_source_picture(trained, prepared_once):
    config, work = trained
    cropped, whole = Prepared.open(work.prepared, TASK), Prepared.open(prepared_once.prepared, TASK)
    held_out = read_held_out(cropped, work, "demo", 0)
    ids = held_out["slice_id"].iloc[[7, 40, 90]].to_list()
    predictor = load_predictor(work.fold("demo", 0), "cpu")
    rows = cropped.slices.set_index("slice_id")
    sources = whole.slices.set_index("slice_id")
    for one in explain_slices(cropped, work, "demo", 0, ids, class_names=["any"]):
        row, source = rows.loc[one.slice_id], sources.loc[one.slice_id]
        origin = cropped.origins[row["volume"]]
        picture = whole.read_slices(source["volume"], one.slice_index, one.slice_index + 1)[0]
        assert one.hounsfield.shape == one.heat.shape[1:] == picture.shape == (row["rows"], row["columns"])
        part = np.s_[origin.top : origin.top + origin.height, origin.left : origin.left + origin.width]
        outside = np.ones(picture.shape, bool)
        outside[part] = False
        assert outside.any()
        assert (one.hounsfield[outside] < -1000).all()
        assert not one.heat[0][outside].any()
        volume = cropped.read_volume(row["volume"])
        heat = heat_maps(predictor, volume, np.array([one.slice_index]), one.class_indices)[0, 0]
        if config.prepare.size is None:
            np.testing.assert_array_equal(one.hounsfield[part], picture[part])
            np.testing.assert_allclose(one.heat[0][part], heat, atol=1e-5)
        else:
            is_head = picture[part] > -300
            assert ((one.hounsfield[part] > -300) == is_head).mean() > 0.97
            assert one.heat[0].max() > 0.8 * heat.max()


def test_networks_of_differently_cropped_stores_do_not_predict_together(trained):
    _, work = trained
    one, other = (load_predictor(work.fold("demo", 0), "cpu") for _ in range(2))
    other.card = replace(other.card, steps=())
    model = find_model(work, "demo", TASK)
    with pytest.raises(ArtifactError, match="size, HU range, crop or parts"):
        _pixel_settings({"demo": {0: one, 1: other}}, model, None, SimpleNamespace(judges_hu=True, repairs=False))
