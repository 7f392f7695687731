"""HTML pages with one style sheet, one script, embedded images and no network access; all text is escaped.

A content security policy allows this script alone and nothing from elsewhere; without scripts a page shows the same.
"""

import base64
import functools
import hashlib
import importlib.resources
import re
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np
from markupsafe import Markup, escape

from ichkit.show.table import Table

SCRIPT = "page.js"
TABLE_TEMPLATE = "table.html.j2"
SHARED = ("page.html.j2", "sections.html.j2", TABLE_TEMPLATE, SCRIPT)
"""Files of this package that pages are made of."""
_FRAME = "ichkit.show"
_HEAD_CHARACTERS = 2000
_OPTION, _KEPT = re.compile(r"(?<!\S)--?[a-z][\w-]*"), r'<span class="option">\g<0></span>'


def render(room: str, template: str, **values: Any) -> str:
    """Renders a template of the package `room`; values are escaped, an undefined name is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(functools.partial(read_template, room)),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"inline": inline, "table": to_html}
    script = read_template(_FRAME, SCRIPT)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    return environment.get_template(template).render(script=Markup(script), policy=policy, **values)


def read_meta(path: Path, name: str) -> str | None:
    """The hexadecimal value of a `<meta>` element in the head of a page; None if there is no such page or element."""
    if not path.is_file():
        return None
    with path.open(encoding="utf-8", errors="replace") as file:
        found = re.search(rf'name="{name}" content="([0-9a-f]*)"', file.read(_HEAD_CHARACTERS))
    return found[1] if found else None


def to_html(table: Table) -> Markup:
    """The table as HTML with the style classes of `page.html.j2`."""
    return Markup(render(_FRAME, TABLE_TEMPLATE, table=table))


def inline(text: str) -> Markup:
    """Escaped text; text between backticks becomes `<code>`, in which no line breaks inside an option.

    Example:
        >>> str(inline("run `ichkit train` & wait"))
        'run <code>ichkit train</code> &amp; wait'
    """
    code = re.sub(r"`([^`]+)`", lambda found: f"<code>{_OPTION.sub(_KEPT, found[1])}</code>", str(escape(text)))
    return Markup(code)


def encode_jpeg(image: np.ndarray, quality: int) -> str:
    """A grey (H, W) or RGB (H, W, 3) uint8 image as the data URI of a JPEG."""
    pixels = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    _, jpeg = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return "data:image/jpeg;base64," + base64.b64encode(jpeg.tobytes()).decode()


def encode_webp(image: np.ndarray, quality: int) -> str:
    """A grey (H, W) or RGB (H, W, 3) uint8 image as the data URI of a WebP, a third smaller than a JPEG."""
    pixels = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    _, webp = cv2.imencode(".webp", pixels, [cv2.IMWRITE_WEBP_QUALITY, quality])
    return "data:image/webp;base64," + base64.b64encode(webp.tobytes()).decode()


def size_of(uri: str) -> tuple[int, int]:
    """Width and height in pixels of a picture given as a data URI."""
    content = np.frombuffer(base64.b64decode(uri.partition(",")[2]), np.uint8)
    image = cv2.imdecode(content, cv2.IMREAD_GRAYSCALE)
    assert image is not None
    return image.shape[1], image.shape[0]


def read_template(room: str, name: str) -> str:
    """The source of a template of the package `room`, or of a template shared by all pages."""
    own = importlib.resources.files(room) / name
    return (own if own.is_file() else importlib.resources.files(_FRAME) / name).read_text(encoding="utf-8")
