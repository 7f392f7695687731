"""The unit that the windows of a page are given in."""

from types import SimpleNamespace

import pytest

from ichkit.stages.report.report_data import ReportData


@pytest.mark.parametrize(("settings", "unit"), [({}, "HU"), ({"sequences": {"names": ["dwi"]}}, "stored intensities")])
def test_windows_are_in_hounsfield_units_unless_the_scans_are_mr(settings, unit):
    of_scans = SimpleNamespace(prepared=SimpleNamespace(manifest=SimpleNamespace(settings=settings)))
    assert ReportData.pixel_unit.fget(of_scans) == unit
