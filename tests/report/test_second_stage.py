"""The second stage in detail: what its models say of themselves."""

import pandas as pd
from support.reports import CONFIG, make_report_work
from support.simulated import TASK, rewrite_tables

from ichkit.stages.report import run as report
from ichkit.stages.report.second_stage import make_second_stage


def test_features_without_a_split_are_no_table_of_zeros(tmp_path):
    work = make_report_work(tmp_path / "work")
    table = pd.DataFrame({"feature": ["p_any", "gap"], **dict.fromkeys([*TASK.classes, "mean"], 0.0)})

    def blocks():
        (stack,) = (path for path in work.stacks.iterdir() if path.is_dir())
        rewrite_tables(stack, {"lightgbm/importance.csv": table})
        given = report.collect(report.plan(CONFIG, work, report.ReportOptions(tmp_path / "submissions")))
        return make_second_stage(given).blocks

    assert "lightgbm: no tree has a split" in blocks()[-1].text
    table.loc[0, "mean"] = 0.5
    assert [row[0] for row in blocks()[-1].rows] == ["p any"]
