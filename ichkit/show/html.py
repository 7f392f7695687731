"""Tables and short texts as HTML; all text is escaped."""

import importlib.resources
import re

import jinja2
from markupsafe import Markup, escape

from ichkit.show.table import Table

TABLE_TEMPLATE = "table.html.j2"


def to_html(table: Table) -> Markup:
    """The table as HTML with the style classes of `page.html.j2`."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["inline"] = inline
    template = (importlib.resources.files("ichkit.show") / TABLE_TEMPLATE).read_text(encoding="utf-8")
    return Markup(environment.from_string(template).render(table=table))


def inline(text: str) -> Markup:
    """Escaped text; text between backticks becomes `<code>`.

    Example:
        >>> str(inline("run `ichkit train` & wait"))
        'run <code>ichkit train</code> &amp; wait'
    """
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))
