"""The names of volumes."""

from dataclasses import replace

import pandas as pd
import pytest

from ichkit.sources.plan import StudyTasks
from ichkit.sources.study import PixelSettings

HULL = (-800, 2000)


def key_of(pixels):
    files = {"relative": ["a.dcm", "b.dcm"], "num_bytes": [10, 20], "slice_index": [0, 1], "rows": 4, "columns": 4}
    return StudyTasks(pd.DataFrame({"dataset": "cq500", "study_id": "CQ500CT0", **files}), pixels).keys


JUDGED = PixelSettings(False, HULL, 256, judges_hu=True)
KEYS = {
    "repaired": (PixelSettings(True, HULL, None), "b856bcf67065108a375285d1f465264c"),
    "judged": (JUDGED, "48c3b4ffab4a020da452551292a8f0de"),
}


@pytest.mark.parametrize("name", KEYS)
def test_the_key_of_a_volume_is_that_of_earlier_versions(name):
    pixels, key = KEYS[name]
    assert key_of(pixels) == [key]


def test_a_study_taken_with_any_values_has_another_key_than_one_that_is_judged():
    assert key_of(replace(JUDGED, judges_hu=False)) != key_of(JUDGED)


def test_a_study_that_is_cropped_has_another_key():
    assert key_of(replace(JUDGED, steps=("head",))) != key_of(JUDGED)
