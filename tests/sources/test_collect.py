"""The counts of a source for the manifest."""

from types import SimpleNamespace

import pandas as pd

from ichkit.sources import collect


def test_an_image_whose_pixels_failed_was_not_read_and_refused_zip_members_were_found(monkeypatch):
    failed = pd.DataFrame({"split": ["train", "train"], "reason": "truncated"})
    monkeypatch.setattr(collect, "collect_failures", lambda planned, records: failed)
    plan = SimpleNamespace(files=pd.DataFrame({"split": ["train"] * 5 + ["test"] * 3}))
    planned = SimpleNamespace(plan=plan, num_images=11, num_beyond_limit=2)
    assert collect.count_images(planned, {}, num_refused=4) == {
        "found": 15,
        "beyond_limit": 2,
        "read": {"test": 3, "train": 3},
    }
