"""The site of the documentation: it is built without a warning, every link of it ends somewhere, the code is on it."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest
from click import Group

import ichkit
from ichkit.cli.main import main
from ichkit.core.config import Config
from ichkit.core.config_errors import list_settings

ROOT = Path(__file__).parents[2]
LOADED = {"script": "src", "img": "src", "link": "href", "source": "src", "iframe": "src"}


class Page(HTMLParser):
    """Where a page goes, what it loads, and the names of its places."""

    def __init__(self, text):
        super().__init__()
        self.ends, self.loaded, self.places = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.places |= {found[name] for name in ("id", "name") if found.get(name)}
        if tag == "a" and found.get("href"):
            self.ends.append(found["href"])
        elif found.get(LOADED.get(tag, "")) and found.get("rel") not in ("canonical", "prev", "next"):
            self.loaded.append(found[LOADED[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Path to text of every page that `mkdocs build --strict` writes."""
    for name in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(name, reason="needs pip install '.[docs]'")
    target = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(target)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return {path: path.read_text(encoding="utf-8") for path in target.rglob("*.html")}


def test_every_page_of_the_repository_is_on_the_site(site):
    (top,) = {path.parent for path in site if path.name == "index.html"}
    pages = [path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")]
    assert {top / page for page in pages} <= site.keys()
    assert {top / name for name in ("CONTRIBUTING.html", "CHANGELOG.html", "commands.html")} <= site.keys()
    assert "Research use only" in site[top / "index.html"]


def test_every_link_of_the_site_ends_at_a_file_and_a_place_and_nothing_is_loaded_from_elsewhere(site):
    pages = {path: Page(text) for path, text in site.items() if path.name != "404.html"}
    dead, elsewhere, num_links = [], [], 0
    for path, page in pages.items():
        for link in [*page.ends, *page.loaded]:
            if urlsplit(link).scheme or link.startswith("//"):
                if link in page.loaded and not link.startswith("data:"):
                    elsewhere.append(link)
                continue
            num_links += 1
            file, place = urldefrag(link)
            target = (path.parent / unquote(file)).resolve() if file else path
            target = target / "index.html" if target.is_dir() else target
            if not target.exists() or (place and target in pages and unquote(place) not in pages[target].places):
                dead.append(f"{path.name}: {link}")
    assert (dead, elsewhere) == ([], [])
    assert num_links > 1000


def test_every_command_setting_and_public_name_is_on_the_site(site):
    (top,) = {path.parent for path in site if path.name == "index.html"}
    shown = site[top / "commands.html"]
    for name, command in main.commands.items():
        names = [f"{name} {inner}" for inner in command.commands] if isinstance(command, Group) else [name]
        for full in names:
            assert command.hidden or f"<code>ichkit {full}</code>" in shown, full
    text = site[top / "settings.html"]
    missing = [name for name in list_settings(Config) if f"<code>{name}</code>" not in text]
    assert missing == []
    places = Page(site[top / "reference.html"]).places
    for name in set(ichkit.__all__) - {"__version__"}:
        assert f"{getattr(ichkit, name).__module__}.{name}" in places, name
    assert "ichkit.api.LoadedModel.predict" in places


def test_no_page_of_the_site_says_more_than_its_words(site):
    """What mkdocs leaves of a text that it did not understand."""
    for path, text in site.items():
        visible = re.sub(r"<(script|style|code|pre)\b.*?</\1>", "", text, flags=re.DOTALL)
        for left in (":::", "**`", "](", "```", "&lt;br"):
            assert left not in visible, (path.name, left)
