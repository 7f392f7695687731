"""A page with a table of errors and slice viewers, for tests in a browser and without one."""

import numpy as np

from ichkit.show.blocks import Card, Prose, Section
from ichkit.show.page import encode_webp, render
from ichkit.show.table import Cell, Table
from ichkit.show.viewer import Viewed, make_viewer

CLASSES = ("left", "right")
ROOM, TEMPLATE = "ichkit.stages.predict", "predictions.html.j2"


def head(num_slices=6, side=64, noise=0.0, seed=0):
    """Brain inside bone; the middle is brighter from slice to slice."""
    y, x = np.mgrid[:side, :side] / (side / 2) - 1
    radius = np.hypot(x, y)
    flat = np.where(radius < 0.7, 30, np.where(radius < 0.8, 1000, -1000))
    volume = np.stack([flat + (radius < 0.2) * 8 * i for i in range(num_slices)])
    return (volume + np.random.default_rng(seed).normal(0, noise, volume.shape)).astype(np.int16)


def view(volume, anchor="s1", num_studies=1, heat=None, keys=(3, 2), remarks=None, **options):
    """A viewer of two classes, the first of which is positive in slices 2 and 3."""
    num_slices = len(volume)
    p = np.stack([np.linspace(0, 0.9, num_slices), np.full(num_slices, 0.25)], axis=1)
    labels = np.zeros((num_slices, 2))
    labels[2:4, 0] = 1
    heat = {3: ("left", np.ones(volume.shape[1:]))} if heat is None else heat
    still = Card(encode_webp(np.zeros((8, 8), np.uint8), 50), (8, 8), "a key slice", "", "slice 3", ())
    remarks = {3: "false negative, left 0.540"} if remarks is None else remarks
    positions_mm = np.arange(num_slices) * 5.0
    study = Viewed(anchor, f"Study {anchor}", volume, p, positions_mm, labels, heat, keys, [still], remarks)
    return make_viewer(study, CLASSES, {"left": 0.4}, num_studies, **options)


def make_page(*, is_open=True):
    """A table with links into two viewers."""
    rows = [[Cell("b", link="s1", slice_index=4), "2"], [Cell("a", link="s2", slice_index=1), "10"]]
    rows += [
        [Cell(f"c{i}", full="-1|whole-c3" if i == 3 else f"whole-c{i}"), "-" if i == 5 else f"{i}.5"] for i in range(8)
    ]
    table = Table("Errors", ("name", "number"), rows, descending="number")
    viewers = [view(head(), name, is_open=is_open) for name in ("s1", "s2")]
    sections = [Section("errors", "Errors", [table]), Section("slices", "Slices", [Prose("x"), *viewers])]
    return render(ROOM, TEMPLATE, sections=sections, made="made", notice="notice")
