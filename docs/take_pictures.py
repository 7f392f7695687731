"""Takes the pictures of README and docs: `python docs/take_pictures.py ichkit-demo`; needs Chromium.

The folder is that of the README's quick start; report, audit page and predictions are shown as a reader sees them.
Writes `docs/img/*.png`.
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from support.browsers import find_browser  # noqa: E402
from support.tab import Tab, open_tab  # noqa: E402

REPORT, AUDIT, PREDICTIONS = "work/report.html", "work/prepared/audit.html", "predictions/predictions.html"
_WIDTH, _PHONE = 1280, 390
_TWO_COLUMNS = 1060  # of charts in a page of 1280 pixels, less its table of contents
_SETTLE_SECONDS = 1.0  # for the heat map, which is decoded beside the slices


class Picture(NamedTuple):
    """A part of a page: the top, the section with an id, or the first slice viewer whose heading has some words."""

    page: str
    height: int
    section: str = ""
    viewer: str = ""
    width: int = _WIDTH
    is_dark: bool = False


PICTURES = {
    "report.png": Picture(REPORT, 960),
    "board.png": Picture(REPORT, 760, section="board"),
    "curves.png": Picture(REPORT, 760, section="roc", width=_TWO_COLUMNS, is_dark=True),
    "protocols.png": Picture(REPORT, 1100, section="protocols"),
    "viewer.png": Picture(REPORT, 900, viewer="false positive"),
    "predictions.png": Picture(PREDICTIONS, 1000),
    "phone.png": Picture(PREDICTIONS, 1000, viewer="Study", width=_PHONE, is_dark=True),
    "audit.png": Picture(AUDIT, 1000),
}
_SECTION = """(() => {
  const section = document.getElementById(ID).closest("section");
  for (const part of document.querySelectorAll("header, nav, footer, section"))
    part.style.display = part === section ? "" : "none";
  document.body.style.paddingLeft = "1rem";
})()"""
_VIEWER = """(() => {
  const figure = [...document.querySelectorAll(".viewer")].find(
    part => part.closest("details").querySelector("summary").textContent.includes(WORDS));
  for (let part = figure.parentElement; part; part = part.parentElement) if (part.matches("details")) part.open = true;
  for (const part of document.querySelectorAll("nav")) part.style.display = "none";
  document.body.style.paddingLeft = "1rem";
  const fold = figure.closest("details");
  fold.style.scrollMarginTop = 0;
  fold.scrollIntoView({ behavior: "instant" });
  figure.id ||= "shown";
  return figure.id;
})()"""


def main(project: str) -> None:
    """All pictures of a project folder."""
    browser = find_browser()
    if browser is None:
        sys.exit("expected Chromium or Chrome on PATH, found none")
    for name, picture in PICTURES.items():
        path = Path(project, picture.page)
        if not path.is_file():
            sys.exit(f"expected {path}, found none. Run the commands of the README's quick start first.")
        with tempfile.TemporaryDirectory() as scratch:
            size = {"width": picture.width, "height": picture.height}
            with open_tab(browser, path, Path(scratch), **size, is_dark=picture.is_dark) as tab:
                arrange(tab, picture)
                target = ROOT / "docs" / "img" / name
                target.write_bytes(tab.picture())
        print(target)


def arrange(tab: Tab, picture: Picture) -> None:
    """Brings the part of the page into view that the picture shows."""
    tab.run("document.documentElement.style.scrollBehavior = 'auto'")
    if picture.section:
        tab.run(_SECTION.replace("ID", repr(picture.section)))
    if picture.viewer:
        shown = tab.run(_VIEWER.replace("WORDS", repr(picture.viewer)))
        tab.wait_for(f"document.getElementById({shown!r}).dataset.drawn")
        time.sleep(_SETTLE_SECONDS)


if __name__ == "__main__":
    main(*sys.argv[1:])
