"use strict";
// What the page does: which runs are shown, when a panel is drawn, and the table.
// What a panel draws is in report_panels.js and report_run.js; `data` is what analysis/report_data.py collected.

const data = JSON.parse(document.getElementById("data").textContent);
const { runs, series, split } = data;
const GOOD = new Set(["finished", "early_stopped"]);
const SPLIT = split === "test" ? "test" : "validation";
const INK = "#22282f", SOFT = "#66707a", TRUTH = "#1d3557", PREDICTION = "#e07a5f";
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash"];
const MAX_CHIPS = 12;
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "x"];

// What a run may be filtered by: what the colours say; the other knob, when one alone varies
// besides, which the style of a line says too; and the seed.
const seeds = distinct((run) => run.seed);
const others = data.knobs.filter((knob) => knob !== series.knob);
const otherOf = (run) => run.knobs[data.knobs.indexOf(others[0])];
const otherValues = others.length === 1 ? distinct(otherOf) : [];
const hasOther = otherValues.length > 1 && otherValues.length <= MAX_CHIPS;
const hasStyles = hasOther && otherValues.length <= DASHES.length;
const FILTERS = [
  { name: series.knob, of: (run) => run.series, values: series.names.map((_, i) => i), hidden: new Set() },
  ...(hasOther ? [{ name: others[0], of: otherOf, values: otherValues, hidden: new Set() }] : []),
  ...(seeds.length > 1 ? [{ name: "seed", of: (run) => run.seed, values: seeds, hidden: new Set() }] : []),
];

const state = {
  means: data.groups.length < runs.length,
  chosen: data.best ?? 0,  // whose panels are under One run
  picked: null,  // which row of the table was clicked
  utterance: 0,
};

function distinct(of) {
  const rank = (value) => value ?? Infinity;  // a run that left no config has none of them
  return [...new Set(runs.map(of))].sort((a, b) => (rank(a) > rank(b)) - (rank(a) < rank(b)));
}

const visible = () => runs.filter((run) => FILTERS.every(({ of, hidden }) => !hidden.has(of(run))));
const ended = () => visible().filter((run) => GOOD.has(run.status));
const colour = (run) => series.colours[run.series];
const style = (run) => (hasStyles ? otherValues.indexOf(otherOf(run)) : 0);

// ---- the page: elements, filters, panels that are drawn when they are seen

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

const note = (text) => element("p", { class: "note" }, text);

function mark(paint, symbol) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("width", 22);
  svg.setAttribute("height", 12);
  const line = document.createElementNS(svg.namespaceURI, "line");
  const dash = { dash: "5 3", dot: "1.5 3", dashdot: "6 3 1.5 3", longdash: "9 3" }[symbol];
  const drawn = { x1: 1, x2: 21, y1: 6, y2: 6, stroke: paint, "stroke-width": 3 };
  if (dash) drawn["stroke-dasharray"] = dash;
  for (const [key, value] of Object.entries(drawn)) line.setAttribute(key, value);
  svg.append(line);
  return svg;
}

function chip(label, action, picture = null, more = {}) {
  return element("button", { class: "chip", type: "button", onclick: action, ...more }, picture, label);
}

function fieldset(legend, ...children) {
  return element("fieldset", {}, element("legend", {}, legend), ...children);
}

const pressed = new Map();  // of each button that stays pressed: whether it is

function drawFilters() {
  const bar = FILTERS.map((filter, f) => fieldset(filter.name, ...filter.values.map((value, i) => {
    const { hidden, values } = filter;
    const toggle = ({ detail }) => {
      if (detail > 1) {  // a double click leaves this one alone, or brings all back
        const alone = values.every((other) => other === value || hidden.has(other));
        hidden.clear();
        if (!alone) values.filter((other) => other !== value).forEach((other) => hidden.add(other));
      } else if (!hidden.delete(value)) hidden.add(value);
      changed();
    };
    const colours = f === 0, styles = hasStyles && filter.name === others[0];
    const picture = colours ? mark(series.colours[i]) : styles ? mark(SOFT, DASHES[i]) : null;
    const made = chip(colours ? series.names[i] : text(value), toggle, picture,
      { title: "click to show or hide, double-click to show it alone" });
    pressed.set(made, () => !hidden.has(value));
    return made;
  })));
  if (data.groups.length < runs.length) {
    const names = [["mean over seeds, band from min to max", true], ["every run", false]];
    bar.push(fieldset("lines", ...names.map(([name, means]) => {
      const made = chip(name, () => { state.means = means; changed(); }, null, { class: "chip mode" });
      pressed.set(made, () => state.means === means);
      return made;
    })));
  }
  document.getElementById("filters").replaceChildren(...bar);
}

const panels = new Map();
const watcher = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    const panel = panels.get(target.id);
    panel.seen = isIntersecting;
    if (panel.seen) draw(panel);
  }
}, { rootMargin: "250px" });

// content() gives { traces, layout }, an element, or a text that says what is missing.
function panel(id, content) {
  const figure = document.getElementById(id);
  const place = element("div", { class: "plot" });
  figure.append(place);
  panels.set(id, { content, place, stale: true, seen: false });
  watcher.observe(figure);
}

function draw(panel) {
  if (!panel.stale) return;
  panel.stale = false;
  const { place } = panel, made = panel.content();
  if (typeof made === "string" || made instanceof Node) {
    Plotly.purge(place);
    place.style.height = "";
    place.replaceChildren(typeof made === "string" ? note(made) : made);
    return;
  }
  if (!place.classList.contains("js-plotly-plot")) place.replaceChildren();
  const layout = dressed(made.layout, made.traces);
  place.style.height = `${layout.height}px`;
  Plotly.react(place, made.traces, layout, {
    displaylogo: false,
    responsive: true,
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
    toImageButtonOptions: { format: "svg", filename: place.parentElement.id },
  });
}

function redraw() {
  for (const panel of panels.values()) {
    panel.stale = true;
    if (panel.seen) draw(panel);
  }
}

function changed() {
  for (const [button, isPressed] of pressed) button.setAttribute("aria-pressed", String(isPressed()));
  drawTable();
  drawChoice();
  redraw();
}

function pick(index) {
  state.picked = state.picked === index ? null : index;
  choose(state.picked ?? data.best ?? 0);
}

function choose(index) {
  state.chosen = index;
  state.utterance = 0;
  changed();
}

// ---- the table of runs

const COLUMNS = [
  { name: "run", value: (run) => run.name, left: true },
  ...data.knobs.map((knob, i) => ({
    name: knob, value: (run) => run.knobs[i], left: runs.some((run) => typeof run.knobs[i] === "string"),
  })),
  ...(seeds.length > 1 ? [{ name: "seed", value: (run) => run.seed }] : []),
  { name: "status", value: (run) => run.status.replaceAll("_", " "), left: true },
  { name: "epoch", value: (run) => run.final["select/epoch"], title: "whose weights were selected" },
  { name: "score", value: (run) => run.final["select/score"], title: "validation; lower is better" },
  ...data.columns.map(({ key, name, title }) => ({ name, title, value: (run) => run.final[key] }))
    .filter(({ value }) => runs.some((run) => (value(run) ?? null) !== null)),
];
const order = { by: COLUMNS.findIndex(({ name }) => name === "score"), down: false };

function text(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  if (Math.abs(value) >= 1e6) return value.toExponential(2);
  return Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(4)));
}

// Runs in the order of a column; those without a value come last, whichever way.
function sorted(shown) {
  const { value } = COLUMNS[order.by], sign = order.down ? -1 : 1;
  const missing = (run) => value(run) === null || value(run) === undefined;
  const compare = (a, b) => typeof a === "number" && typeof b === "number"
    ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
  return shown.toSorted((a, b) =>
    missing(a) - missing(b) || (missing(a) ? 0 : sign * compare(value(a), value(b))));
}

function drawTable() {
  const heads = COLUMNS.map(({ name, title, left }, i) => {
    const direction = i === order.by ? (order.down ? "descending" : "ascending") : null;
    const sort = () => {
      order.down = i === order.by && !order.down;
      order.by = i;
      drawTable();
    };
    return element("th", { "aria-sort": direction, title, class: left ? "left" : null },
      element("button", { onclick: sort }, name));
  });
  const rows = sorted(visible()).map((run) => {
    const index = runs.indexOf(run);
    const cells = COLUMNS.map(({ name, value, left }) => {
      const dot = element("span", { class: "dot", style: `background:${colour(run)}` });
      const bad = name === "status" && !GOOD.has(run.status);
      const kind = [left ? "left" : "", bad ? "bad" : ""].join(" ").trim();
      return element("td", { class: kind || null }, name === "run" ? dot : null,
        text(value(run)), name === "run" && index === data.best ? " ★" : null);
    });
    const row = { onclick: () => pick(index), class: index === state.picked ? "chosen" : null };
    return element("tr", row, ...cells);
  });
  const shown = rows.length ? element("table", {},
    element("thead", {}, element("tr", {}, ...heads)),
    element("tbody", {}, ...rows)) : note(NOTHING_SHOWN);
  const place = document.getElementById("table"), { scrollTop } = place;
  const focused = [...place.querySelectorAll("th button")].indexOf(document.activeElement);
  place.replaceChildren(shown);
  place.scrollTop = scrollTop;
  place.querySelectorAll("th button")[focused]?.focus();
}

// ---- one run

function drawChoice() {
  const which = element("select", { "aria-label": "run", onchange: () => choose(Number(which.value)) },
    ...runs.map((run, i) => element("option", { value: i }, `${run.name}: ${data.groups[run.group]}`
      + (seeds.length > 1 ? `, seed ${text(run.seed)}` : "") + (i === data.best ? " ★" : ""))));
  which.value = String(state.chosen);
  const bar = [element("label", {}, "Run ", which)];
  const utterances = data.details[state.chosen]?.utterances ?? [];
  if (utterances.length > 1) {
    const other = element("select", { "aria-label": "utterance", onchange: () => {
      state.utterance = Number(other.value);
      redraw();
    } }, ...utterances.map(({ name }, i) => element("option", { value: i }, name)));
    other.value = String(state.utterance);
    bar.push(element("label", {}, "Utterance ", other));
  }
  if (!data.details[state.chosen]) {
    const kept = Object.keys(data.details).map(Number);
    bar.push(element("span", {}, "Reconstructions and the model's inside are kept in this page for:"),
      ...kept.map((i) => chip(runs[i].name, () => choose(i), mark(colour(runs[i])))));
  }
  document.getElementById("choice").replaceChildren(...bar);
}
