"""A researcher: from a folder of own labelled scans to external scores by subgroup and a report that validates."""

import shutil
import subprocess

import pandas as pd
import pydicom
import pytest
from support.commands import FAST_STACK, SMALL, call
from support.simulated import TASK

from ichkit import write_phantom

pytestmark = pytest.mark.slow
TOY = ("-c", "demo", *SMALL, *FAST_STACK, "--set", "train.pretrained=none")
READ_AS = dict(zip(TASK.classes, ("EDH", "IPH", "IVH", "SAH", "SDH", "ICH"), strict=True))


def make_own_scans(root):
    """A folder of DICOM as a hospital would export it, and labels per study with a column of hospitals."""
    write_phantom(root / "other", studies=4, test_studies=0, cq500_studies=8, size=64, seed=5, workers=2)
    shutil.move(root / "other" / "cq500", root / "scans")
    reads = pd.read_csv(root / "scans" / "reads.csv")
    (root / "scans" / "reads.csv").unlink()
    votes = {name: reads[[f"R{i}:{column}" for i in (1, 2, 3)]].sum(axis=1) >= 2 for name, column in READ_AS.items()}
    labels = pd.DataFrame(votes).astype(int).assign(patient=reads["name"].str.replace("-", ""))
    uids = {}
    for path in (root / "scans").rglob("*"):
        if path.is_file() and path.suffix not in (".csv", ".json"):
            patient = path.relative_to(root / "scans").parts[0].split()[0].replace("-", "")
            uids.setdefault(patient, str(pydicom.dcmread(path, stop_before_pixels=True).StudyInstanceUID))
    labels["study_id"] = labels.pop("patient").map(uids)
    labels["hospital"] = ["North" if i % 2 else "South" for i in range(len(labels))]
    labels.to_csv(root / "labels.csv", index=False)
    return labels


def test_a_researcher_scores_own_scans_by_subgroup_and_sends_a_report_that_validates(
    phantom_root, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    pytest.importorskip("highdicom")
    labels = make_own_scans(tmp_path)
    asked = ("--rsna", phantom_root / "rsna", "--cq500", phantom_root / "cq500")
    own = ("--external", "clinic=scans", "--labels", "clinic=labels.csv", "--subgroup", "hospital")
    call("prepare", *asked, *own, *TOY, "--set", "prepare.header_facts=[manufacturer,kvp]")
    call("train", "--fold", "0", *TOY)
    call("stack", *TOY)
    call("evaluate", *TOY)
    call("report", *TOY)
    scores = pd.read_parquet(tmp_path / "work" / "scores" / "scores.parquet")
    clinic = scores[scores["dataset"] == "clinic"]
    assert {"hospital=North", "hospital=South"} <= set(clinic["subgroup"])
    auc = clinic[(clinic["metric"] == "roc_auc") & (clinic["subgroup"] == "all") & (clinic["class"] == "any")]
    assert set(auc["n"]) == {len(labels)}
    assert "on clinic, by study" in (tmp_path / "work" / "report.html").read_text()
    call("export", "demo", "--out", "model", *TOY)
    asked = ("--labels", "labels.csv", "--subgroup", "hospital", "--dicom", "--no-page", "--work", "none")
    call("predict", "scans", "--model", "model", *asked, *TOY)
    found = pd.read_csv(tmp_path / "predictions" / "scores.csv")
    assert {"all", "hospital=North", "hospital=South"} == set(found["subgroup"])
    assert set(pd.read_csv(tmp_path / "predictions" / "operating.csv")["chosen_on"]) == {"training", "these scans"}
    reports = list((tmp_path / "predictions" / "dicom").rglob("report.dcm"))
    assert len(reports) == len(pd.read_csv(tmp_path / "predictions" / "studies.csv"))
    if shutil.which("dsrdump") is None:
        pytest.skip("the report was written, but dsrdump (Debian: dcmtk) is not here to check it")
    for path in reports:
        done = subprocess.run(["dsrdump", str(path)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
