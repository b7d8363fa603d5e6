"use strict";
// What the page does: which runs are shown, which run is looked at, when a figure is drawn. The
// figures are plotly's, made by analysis/report.py; each trace says in `meta` whose runs it shows.

const page = JSON.parse(document.getElementById("page").textContent);
const find = (selector, within = document) => [...within.querySelectorAll(selector)];
const hidden = page.filters.map(() => new Set());  // values of each filter that are not shown
const state = { means: true, picked: null, run: page.best ?? 0, utterance: 0, unit: 0 };
const isShown = (run) => page.filters.every(({ of }, i) => !hidden[i].has(of[run]));

// ---- figures: drawn when they are seen, again when something changes

const dark = matchMedia("(prefers-color-scheme: dark)");
const config = {
  displaylogo: false, responsive: true, showSendToCloud: false, plotlyServerURL: "",
  modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
};
let printing = false;

// What a figure shows now: of one run it is the chosen one's.
function content(figure) {
  const { figure: name, of } = figure.dataset;
  const key = [name, ...(of ? of.split(" ").map((part) => state[part]) : [])].join("/");
  return page.figures[key] ?? page.figures[`${name}/${state.run}`]
    ?? "This run is not shown in full: choose a run marked with ●.";
}

const isPicked = ({ meta }) => meta?.kind !== "mean" && meta?.runs.length === 1 && meta.runs[0] === state.picked;

// A mean stands for all of its seeds: where some are left out, every run is drawn.
function isVisible(trace) {
  const { runs = [], kind } = trace.meta ?? {};
  if (!runs.length) return true;
  const apart = !state.means || page.filters.some(({ name }, i) => name === "seed" && hidden[i].size);
  return runs.some(isShown) && (!kind || isPicked(trace) || (kind === "each") === apart);
}

function draw(figure) {
  const place = figure.querySelector(".plot"), found = content(figure);
  figure.dataset.drawn = "yes";
  if (typeof found === "string") {
    Plotly.purge(place);
    place.style.height = "";
    place.replaceChildren(Object.assign(document.createElement("p"), { className: "note", textContent: found }));
    return;
  }
  let text = JSON.stringify({ ...found.figure, layout: { ...found.figure.layout, template: page.template } });
  if (dark.matches && !printing) {
    for (const [light, other] of Object.entries(page.dark)) text = text.replaceAll(light, other);
  }
  const { data, layout } = JSON.parse(text), named = new Set();
  for (const trace of data) {
    trace.visible = isVisible(trace);
    // Whichever of its traces are shown, a setting is in the legend once.
    trace.showlegend = trace.visible && Boolean(trace.name) && !named.has(trace.name);
    if (trace.visible) named.add(trace.name);
    if (isPicked(trace)) {
      trace.line = { ...trace.line, width: 5 };
      trace.marker = { ...trace.marker, size: 15 };
    }
  }
  if (!place.classList.contains("js-plotly-plot")) place.replaceChildren();
  place.style.height = `${layout.height}px`;
  place.setAttribute("aria-label", found.text);
  Plotly.react(place, data, layout, config);
}

const watcher = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    target.dataset.seen = isIntersecting ? "yes" : "";
    if (isIntersecting && !target.dataset.drawn) draw(target);
  }
}, { rootMargin: "250px" });

function redraw() {
  for (const figure of find("figure[data-figure]")) {
    figure.dataset.drawn = "";
    if (figure.dataset.seen || printing) draw(figure);
  }
}

// ---- what is shown

function changed() {
  for (const button of find("button[data-value]")) {
    button.setAttribute("aria-pressed", String(!hidden[button.dataset.filter].has(Number(button.dataset.value))));
  }
  for (const button of find("button[data-means]")) {
    button.setAttribute("aria-pressed", String((button.dataset.means === "yes") === state.means));
  }
  for (const row of find("#table tbody tr")) {
    const run = Number(row.dataset.run);
    row.hidden = !isShown(run);
    row.classList.toggle("chosen", run === state.picked);
  }
  document.getElementById("none").hidden = page.runs.some((_, run) => isShown(run));
  redraw();
}

for (const button of find("button[data-value]")) {
  const filter = Number(button.dataset.filter), value = Number(button.dataset.value);
  button.onclick = ({ detail, shiftKey }) => {
    const values = page.filters[filter].values.map((_, i) => i), off = hidden[filter];
    if (detail > 1 || shiftKey) {  // this one alone, or all again
      const alone = values.every((other) => other === value || off.has(other));
      off.clear();
      if (!alone) values.filter((other) => other !== value).forEach((other) => off.add(other));
    } else if (!off.delete(value)) off.add(value);
    changed();
  };
}
for (const button of find("button[data-means]")) {
  button.onclick = () => { state.means = button.dataset.means === "yes"; changed(); };
}

// ---- the table

for (const head of find("#table th")) {
  head.querySelector("button").onclick = () => {
    const column = head.cellIndex, down = head.getAttribute("aria-sort") === "ascending";
    find("#table th").forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const value = (row) => row.cells[column].dataset.value ?? row.cells[column].innerText;
    const compare = (a, b) => {  // what is missing comes last, whichever way
      if (a === "" || b === "") return (a === "") - (b === "");
      return (down ? -1 : 1) * (isNaN(a) || isNaN(b) ? a.localeCompare(b, "en", { numeric: true }) : a - b);
    };
    const body = head.closest("table").tBodies[0];
    body.append(...[...body.rows].sort((a, b) => compare(value(a), value(b))));
  };
}
for (const row of find("#table tbody tr")) {
  row.onclick = () => {
    const run = Number(row.dataset.run);
    state.picked = state.picked === run ? null : run;
    choose(state.picked ?? page.best ?? 0);
  };
}

// ---- one run

const selects = Object.fromEntries(["run", "utterance", "unit"].map((name) => [name, document.getElementById(`choose-${name}`)]));

function choose(run) {
  Object.assign(state, { run, utterance: 0, unit: 0 });
  selects.run.value = String(run);
  const { utterances = [], units = [] } = page.choices[run] ?? {};
  for (const [name, options] of [["utterance", utterances], ["unit", units]]) {
    selects[name].replaceChildren(...options.map((text, i) => new Option(text, i)));
    selects[name].parentElement.hidden = !options.length;
  }
  changed();
}
selects.run.onchange = () => choose(Number(selects.run.value));
for (const name of ["utterance", "unit"]) {
  selects[name].onchange = () => { state[name] = Number(selects[name].value); redraw(); };
}

// ---- paper, the dark, where the reader is

addEventListener("beforeprint", () => {
  printing = true;
  document.body.classList.add("printing");
  redraw();
});
addEventListener("afterprint", () => {
  printing = false;
  document.body.classList.remove("printing");
  redraw();
});
dark.addEventListener("change", redraw);

const links = find("nav a");
addEventListener("scroll", () => {
  const passed = links.filter((link) => document.querySelector(link.hash).getBoundingClientRect().top < 140);
  links.forEach((link) => link.classList.toggle("here", link === (passed.at(-1) ?? links[0])));
}, { passive: true });
links[0].classList.add("here");
find("figure[data-figure]").forEach((figure) => watcher.observe(figure));
choose(state.run);
