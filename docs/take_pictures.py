"""Takes the pictures of README and docs: `python docs/take_pictures.py WORK`, after `ichkit report`; needs Chromium.

Writes docs/img/report.png (the top of the page), board.png, gallery.png and protocols.png, each 1280 pixels wide, in
light colours.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# File to the section it shows and its height in pixels.
PICTURES = {
    "report.png": ("overview", 860),
    "board.png": ("board", 720),
    "gallery.png": ("failures", 900),
    "protocols.png": ("protocols", 1100),
}
_WIDTH = 1280
# One section alone, or the top of the page: scrolling to it would depend on when the picture is taken.
_ALONE = (
    "<style>header, nav, footer, section:not(:has(#{anchor})) {{ display: none }} h2 {{ border: 0 !important }}</style>"
)


def main(work: str) -> None:
    """The report of a work folder as pictures."""
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        sys.exit(f"expected one of {', '.join(BROWSERS)} on PATH, found none")
    page = (Path(work) / "report.html").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as scratch:
        for name, (anchor, height) in PICTURES.items():
            alone = "" if anchor == "overview" else _ALONE.format(anchor=anchor)
            shown = Path(scratch, "page.html")
            shown.write_text(page.replace("</head>", f"{alone}</head>", 1), encoding="utf-8")
            target = Path(__file__).parent / "img" / name
            options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
            options += [f"--user-data-dir={scratch}/profile", f"--window-size={_WIDTH},{height}"]
            subprocess.run([browser, *options, f"--screenshot={target}", shown.as_uri()], check=True)
            print(target)


if __name__ == "__main__":
    main(*sys.argv[1:])
