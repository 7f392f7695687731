"use strict";
// Tables sort, filter, copy and download; studies are scrolled. Without this script the page shows the same content.
(() => {
const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};

// ---- tables ----
const MANY_ROWS = 8;
function textOf(cell) {
  const id = cell.querySelector("details.id");
  if (id) return id.dataset.full;
  const small = cell.querySelector("small");
  const whole = cell.cloneNode(true);
  for (const part of whole.querySelectorAll("small, details")) part.remove();
  const text = whole.textContent.trim();
  return small ? `${text} (${small.textContent.trim()})` : text;
}
function keyOf(cell) {
  if (cell.dataset.key) return Number(cell.dataset.key);
  const text = textOf(cell);
  const number = /^[+-]?[\d,]*\.?\d+(e[+-]?\d+)?/i.exec(text);
  if (number) return Number(number[0].replaceAll(",", ""));
  return text === "-" || text === "" ? null : text.toLowerCase();
}
function compare(one, other) {
  if (one === null || other === null) return (one === null) - (other === null);
  if (typeof one === "number" && typeof other === "number") return one - other;
  return String(one).localeCompare(String(other), "en", { numeric: true });
}
const linesOf = table => [...table.rows].filter(row => !row.hidden).map(row => [...row.cells].map(textOf));
const NUMBER = /^[+-]?\d[\d.,]*( ?%)?\*?( \([\d.,% +to-]*\))?$/;  // of show/spreadsheet.py
function quote(text) {
  const isFormula = /^[=+\-@\t\r]/.test(text) && !NUMBER.test(text) && text !== "-";
  const safe = isFormula ? `'${text}` : text;
  return /[",\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}
function copy(text, button) {
  const said = ok => { button.textContent = ok ? "copied" : "not copied"; setTimeout(() => { button.textContent = "copy"; }, 1500); };
  if (navigator.clipboard) { navigator.clipboard.writeText(text).then(() => said(true), () => said(false)); return; }
  const area = make("textarea", { value: text });
  document.body.append(area); area.select();
  said(document.execCommand("copy")); area.remove();
}
function save(text, name) {
  const link = make("a", { href: URL.createObjectURL(new Blob([text], { type: "text/csv" })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
for (const table of document.querySelectorAll(".scroll > table")) {
  if (table.closest(".viewer")) continue;
  const head = table.tHead && table.tHead.rows[0], body = table.tBodies[0];
  if (!head || body.rows.length < 2) continue;
  [...head.cells].forEach((cell, column) => {
    if (!cell.textContent.trim()) return;
    const button = make("button", { type: "button", className: "sort" }, ...cell.childNodes);
    cell.replaceChildren(button);
    button.addEventListener("click", () => {
      const isDown = cell.getAttribute("aria-sort") === "ascending", sign = isDown ? -1 : 1;
      for (const other of head.cells) other.removeAttribute("aria-sort");
      cell.setAttribute("aria-sort", isDown ? "descending" : "ascending");
      const rows = [...body.rows].map(row => [keyOf(row.cells[column]), row]);
      rows.sort(([one], [other]) => one === null || other === null ? compare(one, other) : sign * compare(one, other));
      body.append(...rows.map(([, row]) => row));
    });
  });
  const tools = make("div", { className: "tools" });
  if (body.rows.length >= MANY_ROWS) {
    const filter = make("input", { type: "search", placeholder: "filter rows" });
    filter.setAttribute("aria-label", `Filter rows of ${table.caption ? table.caption.textContent.trim() : "the table"}`);
    filter.addEventListener("input", () => {
      const wanted = filter.value.toLowerCase().split(/\s+/);
      for (const row of body.rows) {
        const text = [...row.cells].map(textOf).join(" ").toLowerCase();
        row.hidden = !wanted.every(word => text.includes(word));
      }
    });
    tools.append(filter);
  }
  const copying = make("button", { type: "button" }, "copy"), saving = make("button", { type: "button" }, "CSV");
  copying.addEventListener("click", () => copy(linesOf(table).map(line => line.join("\t")).join("\n"), copying));
  saving.addEventListener("click", () => {
    const name = (table.caption ? table.caption.textContent : "table").trim().toLowerCase().replace(/[^a-z0-9]+/g, "-");
    save(linesOf(table).map(line => line.map(quote).join(",")).join("\r\n") + "\r\n", `${name}.csv`);
  });
  tools.append(copying, saving);
  table.parentElement.before(tools);
}

// ---- fold all ----
const folds = [...document.querySelectorAll("section > details")];
const foldAll = document.querySelector("[data-fold-all]");
if (foldAll && folds.length > 1) {
  foldAll.hidden = false;
  foldAll.addEventListener("click", () => {
    const isOpen = folds.some(fold => fold.open);
    for (const fold of folds) fold.open = !isOpen;
    foldAll.textContent = isOpen ? "unfold all" : "fold all";
  });
}

// ---- slice viewer ----
const HEAT = [[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]], STRENGTH = 0.6;
function heatColour(level) {
  const at = level * (HEAT.length - 1), low = Math.min(Math.floor(at), HEAT.length - 2), share = at - low;
  return HEAT[low].map((value, i) => value + share * (HEAT[low + 1][i] - value));
}
function toHounsfield(code, knots) {
  let i = 1;
  while (i < knots.length - 1 && code > knots[i][1]) i += 1;
  const [[fromHu, from], [toHu, to]] = [knots[i - 1], knots[i]];
  return fromHu + (code - from) / (to - from) * (toHu - fromHu);
}
const viewers = new Map();
for (const figure of document.querySelectorAll("figure.viewer")) {
  const data = JSON.parse(figure.dataset.viewer), side = data.side, last = data.shown.length - 1;
  const tables = data.windows.map(([, level, width]) => Uint8ClampedArray.from({ length: 256 }, (_, code) =>
    Math.round(255 * (toHounsfield(code, data.knots) - level + width / 2) / width)));
  const panes = make("div", { className: "panes", tabIndex: 0 });
  panes.setAttribute("role", "group");
  panes.setAttribute("aria-label", `Slices of ${figure.dataset.title}: arrow keys scroll, H switches the heat map, K goes to the next key slice, W changes the window`);
  const canvases = data.windows.map(([name, level, width]) => {
    const canvas = make("canvas", { width: side, height: side });
    panes.append(make("div", {}, canvas, make("span", {}, name.includes("/") ? name : `${name} ${level}/${width}`)));
    return canvas;
  });
  const choices = make("span", { className: "choices" });
  choices.setAttribute("role", "group");
  choices.setAttribute("aria-label", "Windows");
  ["all windows", ...data.windows.map(([name]) => name)].forEach((name, i) => {
    const button = make("button", { type: "button" }, name);
    button.addEventListener("click", () => choose(i - 1));
    choices.append(button);
  });
  let only = -1;  // the window that is shown alone
  function choose(which) {
    only = which;
    panes.classList.toggle("single", only >= 0);
    [...panes.children].forEach((pane, i) => { pane.hidden = only >= 0 && i !== only; });
    [...choices.children].forEach((button, i) => button.setAttribute("aria-pressed", String(i - 1 === only)));
    draw();
  }
  const slider = make("input", { type: "range", min: 0, max: last, step: 1 });
  slider.setAttribute("aria-label", `Slice of ${figure.dataset.title}`);
  const place = make("output"), bar = make("div", { className: "bar" }, slider, place);
  const heatBox = make("input", { type: "checkbox", checked: true });
  const scale = make("span", { className: "scale" }, "0", make("i"), "1");
  if (data.heat) bar.append(make("label", {}, heatBox, " heat map"), scale);
  const keyButtons = data.keys.map(at => {
    const button = make("button", { type: "button" }, `${data.shown[at]}`);
    button.setAttribute("aria-label", `key slice ${data.shown[at]}`);
    button.addEventListener("click", () => go(at));
    return button;
  });
  const keys = make("span", { className: "keys" }, "key slices: ", ...keyButtons);
  bar.append(...(keyButtons.length ? [keys] : []), choices);
  const cursor = figure.querySelector(".cursor"), plot = figure.querySelector(".plot");
  const fold = figure.parentElement, heading = fold.querySelector("[data-remark]"), folded = heading.textContent;
  const nows = [...figure.querySelectorAll("[data-now]")], note = make("p", { className: "muted now" });
  figure.querySelector(".stills").replaceWith(panes, bar, note);
  let at = data.keys[0] ?? 0, picture = null, heat = null, hasBegun = false;
  const scratch = make("canvas", { width: side, height: side }).getContext("2d", { willReadFrequently: true });
  function pixels(image, size, number) {
    const column = number % data.columns, row = Math.floor(number / data.columns);
    scratch.clearRect(0, 0, side, side);
    scratch.drawImage(image, column * size, row * size, size, size, 0, 0, side, side);
    return scratch.getImageData(0, 0, side, side).data;
  }
  function draw() {
    if (!picture) return;
    const codes = pixels(picture, side, at), number = data.heat_at[at];
    const hot = heat && heatBox.checked && number !== undefined ? pixels(heat, data.heat_side, number) : null;
    canvases.forEach((canvas, which) => {
      const context = canvas.getContext("2d"), image = context.createImageData(side, side), out = image.data;
      for (let i = 0; i < out.length; i += 4) {
        const grey = tables[which][codes[i]];
        out[i] = out[i + 1] = out[i + 2] = grey; out[i + 3] = 255;
        if (hot && (which === 0 || which === only)) {
          const level = hot[i] / 255, share = STRENGTH * level, colour = heatColour(level);
          for (let c = 0; c < 3; c += 1) out[i + c] = (1 - share) * grey + share * colour[c];
        }
      }
      context.putImageData(image, 0, 0);
    });
    figure.dataset.drawn = String(data.shown[at]);
  }
  function go(wanted) {
    at = Math.max(0, Math.min(last, wanted));
    slider.value = at;
    const slice = data.shown[at], truth = data.truth && data.truth[slice];
    const mm = data.positions_mm[slice];
    place.textContent = `slice ${slice} (${slice + 1} of ${data.probabilities.length})` + (mm === null ? "" : `, ${mm} mm`);
    slider.setAttribute("aria-valuetext", place.textContent);
    title();
    cursor.style.left = `${100 * (slice + 0.5) / data.probabilities.length}%`;
    nows.forEach((cell, c) => {
      const label = !truth || truth[c] === null ? "" : ` (truth: ${truth[c] ? "positive" : "negative"})`;
      cell.textContent = data.probabilities[slice][c].toFixed(3) + label;
    });
    const name = data.heat_class[at];
    note.textContent = !data.heat ? "" : !heatBox.checked ? "The heat map is switched off." : name === undefined
      ? "No heat map for this slice: it is computed for the most probable slices." : `Heat map: ${name}, faded by its probability, inside the head.`;
    keyButtons.forEach((button, i) => button.setAttribute("aria-pressed", String(data.keys[i] === at)));
    draw();
  }
  function title() {  // of a folded study why it is listed
    const remark = data.remarks[data.shown[at]];
    if (folded) heading.textContent = fold.open ? `: slice ${data.shown[at]}${remark ? `, ${remark}` : ""}` : folded;
  }
  fold.addEventListener("toggle", title);
  function begin() {
    if (hasBegun) return;
    hasBegun = true;
    const load = (uri, use) => { const image = new Image(); image.onload = () => { use(image); draw(); }; image.src = uri; };
    load(data.sprite, image => { picture = image; });
    if (data.heat) load(data.heat, image => { heat = image; });
  }
  for (const part of [panes, slider]) part.addEventListener("focus", begin);
  slider.addEventListener("input", () => go(Number(slider.value)));
  heatBox.addEventListener("change", () => go(at));
  const steps = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 5, PageDown: -5, Home: -1e6, End: 1e6 };
  panes.addEventListener("keydown", event => {
    const key = event.key.toLowerCase();
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key in steps) go(at + steps[event.key]);
    else if (key === "h" && data.heat) { heatBox.checked = !heatBox.checked; go(at); }
    else if (key === "w") choose((only + 2) % (data.windows.length + 1) - 1);
    else if (key === "k" && data.keys.length) go(data.keys[(data.keys.indexOf(at) + 1) % data.keys.length]);
    else return;
    event.preventDefault();
  });
  panes.addEventListener("click", () => panes.focus());
  panes.addEventListener("wheel", event => {  // once the images are clicked, so that the page can be scrolled past them
    const before = at;
    if (document.activeElement !== panes) return;
    go(at - Math.sign(event.deltaY));
    if (at !== before) event.preventDefault();
  }, { passive: false });
  const nearest = slice => data.shown.reduce((best, one, i) =>
    Math.abs(one - slice) < Math.abs(data.shown[best] - slice) ? i : best, 0);
  plot.addEventListener("click", event => {
    const box = plot.getBoundingClientRect();
    go(nearest(Math.floor((event.clientX - box.left) / box.width * data.probabilities.length)));
  });
  viewers.set(figure.id, slice => {
    begin();
    if (slice !== null) go(nearest(slice));
    setTimeout(() => panes.focus({ preventScroll: true }));  // after the browser went to the figure, which takes the focus
  });
  choose(window.matchMedia("(max-width: 40rem)").matches ? 0 : -1);
  go(at);
  if ("IntersectionObserver" in window) new IntersectionObserver((entries, self) => {
    if (entries.some(entry => entry.isIntersecting)) { begin(); self.disconnect(); }
  }, { rootMargin: "600px" }).observe(figure);
  else begin();
}
// A link into a folded part opens it; one to a slice shows the slice.
function reveal(id) {
  for (let part = document.getElementById(id); part; part = part.parentElement) if (part.tagName === "DETAILS") part.open = true;
}
document.addEventListener("click", event => {
  const link = event.target.closest("a[href^='#']");
  if (!link) return;
  const id = link.getAttribute("href").slice(1), show = viewers.get(id);
  reveal(id);
  if (show) show(link.dataset.slice === undefined ? null : Number(link.dataset.slice));
});
reveal(location.hash.slice(1));
})();
