"""What every page shares: one frame, one style sheet, pictures inside, no script and no network."""

import base64
import functools
import importlib.resources
import re
from typing import Any

import cv2
import jinja2
import numpy as np
from markupsafe import Markup, escape

_FRAME = "ichkit.show"


def render(room: str, template: str, **values: Any) -> str:
    """A page of the package `room`; whatever is not marked as safe is escaped, and an unknown name is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(functools.partial(read_template, room)),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["inline"] = inline
    return environment.get_template(template).render(**values)


def inline(text: str) -> Markup:
    """Escaped text in which what stands between backticks is code.

    Example:
        >>> str(inline("run `ichkit train` & wait"))
        'run <code>ichkit train</code> &amp; wait'
    """
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def encode_jpeg(image: np.ndarray, quality: int) -> str:
    """A (H, W) or (H, W, 3) uint8 picture, RGB where it has colours, as the data URI of a JPEG."""
    pixels = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    _, jpeg = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return "data:image/jpeg;base64," + base64.b64encode(jpeg.tobytes()).decode()


def read_template(room: str, name: str) -> str:
    """The source of a template of the package `room`, else of the frame that all pages share."""
    own = importlib.resources.files(room) / name
    return (own if own.is_file() else importlib.resources.files(_FRAME) / name).read_text(encoding="utf-8")
