"""What the tests of the report share: a small work folder with pixels, and pages taken apart without a browser."""

import re
from html.parser import HTMLParser

import numpy as np

from ichkit.core.config import Config, EvaluateConfig
from ichkit.imaging.store import Prepared, encode_volume
from ichkit.stages.explain.held_out import Explained
from support.simulated import TASK, make_stack, make_work

CONFIG = Config(evaluate=EvaluateConfig(num_draws=60))


def make_report_work(root, *, is_stacked=True, **options):
    """Two folds of one run, a stack, CQ500, and a 24 x 20 volume for every study."""
    settings = {"runs": ("a",), "num_patients": 24, "num_folds": 2, "folds": (0, 1), "cq500_studies": 20}
    work = make_work(root, **(settings | options))
    if is_stacked:
        make_stack(work, runs=("a",), kinds=("fusion", "blend"))
    write_volumes(work)
    return work


def write_volumes(work):
    """Heads of soft tissue inside bone, brighter from slice to slice."""
    for path, part in Prepared.open(work.prepared, TASK).slices.groupby("volume"):
        y, x = np.mgrid[:24, :20]
        radius = np.hypot((y - 11.5) / 11, (x - 9.5) / 9)
        head = np.where(radius < 0.85, 35, np.where(radius < 1, 900, -800))
        volume = np.stack([head + (radius < 0.3) * 2 * i for i in range(len(part))]).astype(np.int16)
        target = work.prepared / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(encode_volume(volume))


def explain_without_network(prepared, work, run, fold, slice_ids, **_options):
    """What `explain_slices` returns, without weights to compute it from: heat that rises from left to right."""
    slices = prepared.split("train").set_index("slice_id")
    assert (slices.loc[slice_ids, "fold"] == fold).all()
    found = []
    for name in slice_ids:
        row = slices.loc[name]
        hounsfield = prepared.read_slices(row.volume, row.slice_index, row.slice_index + 1)[0]
        heat = np.broadcast_to(np.linspace(0, 1, hounsfield.shape[1], dtype=np.float32), (6, *hounsfield.shape))
        labels = row[list(TASK.classes)].to_numpy(np.float64)
        place = (name, row.study_id, int(row.slice_index), int(row.num_slices), fold)
        found.append(Explained(*place, 0.1, hounsfield, labels, np.full(6, 0.25, np.float32), tuple(range(6)), heat))
    return found


class Page(HTMLParser):
    """The parts of a page: ids, links, pictures, tables by caption, and all text."""

    def __init__(self, text):
        super().__init__()
        self.raw, self.ids, self.links, self.pictures, self.drawings = text, [], [], [], []
        self.tables, self.words, self.headings = {}, [], []
        self._rows, self._cell, self._caption, self._heading = None, None, None, None
        self.feed(text)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    @property
    def references(self):
        """Ids that drawings refer to."""
        return re.findall(r'url\(#([^)]+)\)|xlink:href="#([^"]+)"', self.raw)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        if "id" in found:
            self.ids.append(found["id"])
        if tag == "a":
            self.links.append(found["href"])
        elif tag == "img":
            self.pictures.append(found)
        elif tag == "svg":
            self.drawings.append(found)
        elif tag == "table":
            self._rows, self._caption = [], None
        elif tag == "caption":
            self._caption = []
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._cell = []
        elif tag == "small" and self._cell is not None:
            self._cell.append("|")
        elif tag == "h2":
            self._heading = []

    def handle_endtag(self, tag):
        if tag == "caption":
            self.tables["".join(self._caption).strip()] = self._rows
            self._caption = None
        elif tag in ("td", "th"):
            self._rows[-1].append("".join(self._cell).strip())
            self._cell = None
        elif tag == "h2":
            self.headings.append("".join(self._heading))
            self._heading = None

    def handle_data(self, data):
        self.words.append(data)
        for kept in (self._cell, self._caption, self._heading):
            if kept is not None:
                kept.append(data)
