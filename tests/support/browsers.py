"""A headless Chromium that looks at a page: what loads, what links, what sticks out, what the console says."""

import html
import json
import re
import shutil
import subprocess

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_SECONDS = 120
# A page in a frame has the frame's width to its media queries; a window could not be narrower than about 500 pixels.
_HARNESS = """<!doctype html><meta charset="utf-8"><body><script>
const page = PAGE, widths = WIDTHS, found = {};
function look(frame, width) {
  const view = frame.contentWindow, root = frame.contentDocument, wide = [];
  for (const part of root.querySelectorAll("details")) part.open = true;
  for (const part of root.body.querySelectorAll("*")) {
    const box = part.getBoundingClientRect();
    if (part.closest(".scroll, nav ol, pre, svg") || !box.width) continue;
    if (box.right > width + 0.5 || box.left < -0.5) wide.push(part.tagName + "." + part.className);
  }
  const ends = [...root.querySelectorAll("a[href]")].map(link => link.getAttribute("href"));
  found[width] = {
    inner_width: view.innerWidth, scroll_width: root.documentElement.scrollWidth, wide,
    broken_pictures: [...root.images].filter(image => !image.complete || !image.naturalWidth).length,
    pictures: root.images.length, links: ends.length,
    dead_links: ends.filter(end => !end.startsWith("#") || !root.getElementById(end.slice(1))),
    elsewhere: view.performance.getEntriesByType("resource").map(entry => entry.name)
      .filter(name => !name.startsWith("data:")),
    // Of a figure in two widths exactly one is drawn.
    empty_drawings: [...root.querySelectorAll("svg")].filter(drawing => !drawing.closest(".twin"))
      .filter(drawing => !drawing.getBoundingClientRect().height).length +
      [...root.querySelectorAll(".twin")].filter(twin =>
        [...twin.children].filter(part => part.getBoundingClientRect().height > 40).length !== 1).length,
  };
  if (Object.keys(found).length === widths.length) {
    const out = document.createElement("pre");
    out.id = "findings"; out.textContent = JSON.stringify(found); document.body.append(out);
  }
}
for (const width of widths) {
  const frame = document.createElement("iframe");
  frame.style = `width:${width}px;height:800px;border:0`;
  frame.onload = () => look(frame, width);  // which waits for every picture
  frame.srcdoc = page; document.body.append(frame);
}
</script>"""

_ACTOR = """<!doctype html><meta charset="utf-8"><body><script>
const frame = document.createElement("iframe");
frame.style = "width:1280px;height:900px;border:0";
const wait = milliseconds => new Promise(done => setTimeout(done, milliseconds));
// Waits take no real time here (--virtual-time-budget), decoding a picture does; messages pass in real time.
const turn = () => new Promise(done => {
  const channel = new MessageChannel();
  channel.port1.onmessage = done; channel.port2.postMessage(0);
});
const until = async isSo => {
  for (let tries = 0; tries < 2000 && !isSo(); tries++) {
    for (let turns = 0; turns < 20; turns++) await turn();
    await wait(20);
  }
};
frame.onload = async () => {
  frame.onload = null;
  const view = frame.contentWindow, root = frame.contentDocument;
  const keydown = key => new view.KeyboardEvent("keydown", { key, bubbles: true, cancelable: true });
  const press = (part, key) => part.dispatchEvent(keydown(key));
  // A fragment would be of the harness, because a frame without an address has the base of its parent.
  root.addEventListener("click", event => { if (event.target.closest("a")) event.preventDefault(); });
  let found;
  try { found = await (async () => { ACTIONS })(); } catch (error) { found = { error: String(error) }; }
  const out = document.createElement("pre");
  out.id = "findings"; out.textContent = JSON.stringify(found); document.body.append(out);
};
frame.srcdoc = PAGE; document.body.append(frame);
</script>"""


def find_browser():
    """The path of a Chromium, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def look_at(browser, page, widths, scratch):
    """What the page is at each width: findings by width, and every line of its console.

    Args:
        page: HTML.
        scratch: an empty folder of its own.
    """
    found, console = _run(browser, _HARNESS.replace("WIDTHS", json.dumps(list(widths)), 1), page, scratch)
    return {int(width): of_width for width, of_width in found.items()}, console


def act_on(browser, page, actions, scratch):
    """What an async JavaScript function body returns (JSON) that acts on a page, and every line of its console.

    Args:
        actions: may use `root` (the document), `view` (its window), `press(element, key)`, `await wait(ms)` and
            `await until(isSo)`.
    """
    return _run(browser, _ACTOR.replace("ACTIONS", actions, 1), page, scratch)


def _run(browser, template, page, scratch):
    text = json.dumps(page).replace("<", "\\u003c")
    harness = scratch / "harness.html"
    harness.write_text(template.replace("PAGE", text, 1))
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--log-level=0"]
    options += [f"--user-data-dir={scratch / 'profile'}", "--virtual-time-budget=60000", "--window-size=1700,1000"]
    command = [browser, *options, "--dump-dom", harness.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True)
    findings = re.search(r'<pre id="findings">(.*?)</pre>', done.stdout, re.DOTALL)
    assert findings, f"the page was not looked at: {done.stderr[-2000:]}"
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(html.unescape(findings[1])), console
