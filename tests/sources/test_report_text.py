"""Reports to labels: what is said, denied, doubted, or stands in another section."""

import pytest
from support.simulated import TASK

from ichkit.sources.report_text import label_report

FINDINGS = [
    ("No acute intracranial hemorrhage.", {}),
    ("Normal examination.", {}),
    ("Findings are negative for hemorrhage, mass or infarct.", {}),
    ("Subdural, subarachnoid or epidural haemorrhage is not seen.", {}),
    ("The subdural hematoma has resolved.", {}),
    ("History of subdural hematoma. No acute intracranial hemorrhage.", {}),
    ("Large scalp hematoma. No intracranial hemorrhage.", {}),
    ("Hematoma of the scalp over the left parietal bone.", {}),
    ("Subdural hygroma without blood.", {}),
    ("Right frontal subdural hematoma, 5 mm. No midline shift.", {"subdural": 1}),
    ("No mass effect or midline shift with a small subdural hematoma.", {"subdural": 1}),
    ("Compared with the prior CT, the left subdural hematoma has increased.", {"subdural": 1}),
    ("No significant change in the large right subdural hematoma.", {"subdural": 1}),
    ("No interval increase in size of the left convexity subdural hematoma.", {"subdural": 1}),
    ("The left subdural hematoma is not significantly changed.", {"subdural": 1}),
    ("The small SAH has not increased.", {"subarachnoid": 1}),
    ("No change in ventricular size or new hemorrhage.", {}),
    ("No change in the ventricles, no hemorrhage.", {}),
    ("No midline shift from the left subdural hematoma.", {"subdural": 1}),
    ("No significant mass effect related to the small epidural hematoma.", {"epidural": 1}),
    ("No midline shift from mass or hemorrhage.", {}),
    ("Old left subdural hematoma.", {"subdural": None}),
    ("No subdural hematoma but there is subarachnoid blood in the cisterns.", {"subarachnoid": 1}),
    ("Left thalamic hemorrhage with intraventricular extension.", {"intraparenchymal": 1, "intraventricular": 1}),
    ("Hemorrhagic contusions in both frontal lobes.", {"intraparenchymal": 1}),
    ("Blood in the left lateral ventricle.", {"intraventricular": 1}),
    ("Extradural haematoma\nof the left convexity.", {"epidural": 1}),
    ("INDICATION: Fall. FINDINGS: Acute left subdural hematoma.", {"subdural": 1}),
    ("TECHNIQUE: CT without contrast FINDINGS: Small SAH.", {"subarachnoid": 1}),
    ("Clinical history: SDH? Findings: No subdural hematoma.", {}),
    ("COMPARISON: CT 01/01. IMPRESSION:\nAcute SDH.", {"subdural": 1}),
    ("FINDINGS: No hemorrhage. COMPARISON: prior CT with subdural hematoma.", {}),
    ("Acute SDH. Clinical correlation: trauma. Small SAH.", {"subdural": 1, "subarachnoid": 1}),
    ("Previously noted SDH no longer visible.", {}),
    ("Chronic right subdural hematoma.", {"subdural": 1}),
    ("Acute subdural hematoma, midline shift is not seen.", {"subdural": 1}),
    ("Subdural hematoma, epidural hematoma and SAH are not seen.", {}),
    ("Acute subdural hematoma, possibly epidural hematoma.", {"subdural": 1, "epidural": None}),
    ("Small SAH cannot be excluded.", {"subarachnoid": None}),
    ("Possible trace subarachnoid hemorrhage.", {"subarachnoid": None}),
    ("INDICATION: rule out subdural hematoma\nIMPRESSION: No hemorrhage.", {}),
    ("History: known SDH.\nFindings: new epidural hematoma.", {"epidural": 1}),
]


@pytest.mark.parametrize(("text", "found"), FINDINGS, ids=[text[:40] for text, _ in FINDINGS])
def test_a_report_gives_the_labels_that_a_reader_would_give(text, found):
    expected = {name: found.get(name, 0) for name in TASK.subtypes}
    expected["any"] = 1 if 1 in found.values() else None if None in found.values() else 0
    assert label_report(text, TASK.classes, "any") == expected


def test_blood_without_a_place_leaves_the_subtypes_open_that_nobody_denied():
    labels = label_report("Acute intracranial hemorrhage. No subdural hematoma.", TASK.classes, "any")
    assert labels == {**dict.fromkeys(TASK.classes), "subdural": 0, "any": 1}


@pytest.mark.parametrize("text", ["INDICATION: Subdural hematoma?", "Technique: CT of the head. Comparison: none."])
def test_a_report_without_findings_says_nothing(text):
    assert label_report(text, TASK.classes, TASK.any_class) == dict.fromkeys(TASK.classes)


def test_a_report_without_words_says_nothing():
    assert label_report(" - \n", TASK.classes, "any") == dict.fromkeys(TASK.classes)


def test_a_task_without_an_umbrella_class_has_no_label_for_it():
    assert label_report("Acute SDH.", ("epidural", "subdural"), None) == {"epidural": 0, "subdural": 1}
