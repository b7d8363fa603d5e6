"use strict";
// What each panel that compares runs draws, from the runs that are shown. Continues report.js.

const NOTHING_SHOWN = "No run is shown: the filters leave none.";

// Plotly reads tags and entities in labels, and a run may be called anything.
const label = (value) => text(value).replaceAll("&", "&amp;").replaceAll("<", "&lt;");
const nameOf = (run) => `<b>${label(run.name)}</b><br>${label(data.groups[run.group])}`
  + (seeds.length > 1 ? `, seed ${label(run.seed)}` : "");

const axis = (title, more = {}) => ({
  title: { text: title, standoff: 8 },
  gridcolor: "#eceff1", zeroline: false, linecolor: "#aab2b9", ticks: "outside", tickcolor: "#aab2b9",
  ticklen: 4, exponentformat: "power", ...more,
});
const UP_TO_1 = { autorangeoptions: { clipmin: 0, clipmax: 1 } };
const log = (title, more = {}) => axis(title, { type: "log", ...more });

// Plotly labels 2 and 5 on a logarithmic axis without their power of ten.
function spelledOut(place, numbers) {
  const powers = numbers.filter((value) => value > 0).map(Math.log10);
  const low = Math.min(...powers), high = Math.max(...powers), span = high - low;
  // Between them, what plotly chooses is spelled out already.
  if (place.type !== "log" || place.tickvals || !powers.length || (span > 0 && span < 0.45)) return place;
  const steps = span > 3 ? [1] : span > 1.6 ? [1, 3] : span > 1 ? [1, 2, 5] : [1, 2, 3, 4, 6, 8];
  const tickvals = [];
  for (let power = Math.floor(low) - 1; power <= high + 1; power++) {
    tickvals.push(...steps.map((step) => Number((step * 10 ** power).toPrecision(3))));
  }
  return { ...place, tickvals, ticktext: tickvals.map(text) };
}

function dressed(layout, traces) {
  const spelled = {};
  for (const name of ["x", "y"]) {
    const place = layout[`${name}axis`], all = traces.flatMap((trace) => trace[name] ?? []);
    if (place) spelled[`${name}axis`] = spelledOut(place, all);
  }
  return {
    height: 350, margin: { l: 66, r: 14, t: 12, b: 46 }, hovermode: "closest", showlegend: false,
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "system-ui, sans-serif", size: 12.5, color: INK },
    hoverlabel: { bgcolor: "#fff", bordercolor: "#cfd4d9", font: { color: INK }, align: "left" },
    ...layout, ...spelled,
  };
}

const FEW = 12;  // runs that are drawn as boldly as a mean
const isPicked = (run) => runs[state.picked] === run;
const meanOf = (group) => `<b>${label(data.groups[group[0].group])}</b>`
  + (group.length > 1 ? `<br>mean of ${group.length}` : `<br>${label(group[0].name)}`);
const has = (column) => column && column.some((value) => value !== null);

function grouped(members) {
  const found = new Map();
  for (const run of members) {
    if (!found.has(run.group)) found.set(run.group, []);
    found.get(run.group).push(run);
  }
  return [...found.values()];
}

// Mean, lowest and highest of y at each x, over the members that have both there.
function overSeeds(members, xOf, yOf) {
  const at = new Map();
  for (const run of members) {
    xOf(run).forEach((x, i) => {
      const y = yOf(run)[i];
      if (x === null || y === null || y === undefined) return;
      if (!at.has(x)) at.set(x, []);
      at.get(x).push(y);
    });
  }
  const x = [...at.keys()];
  if (typeof x[0] === "number") x.sort((a, b) => a - b);
  const ys = x.map((value) => at.get(value));
  return {
    x,
    mean: ys.map((y) => y.reduce((sum, value) => sum + value, 0) / y.length),
    low: ys.map((y) => Math.min(...y)),
    high: ys.map((y) => Math.max(...y)),
    n: Math.max(0, ...ys.map((y) => y.length)),
  };
}

// Lines of runs: a mean with its band for each setting, or every run; the picked run edged in black.
function lines(members, xOf, yOf, { pale = false, mode = "lines", shape = "linear" } = {}) {
  const traces = [], opacity = pale ? 0.45 : 1, width = pale ? 1.3 : 2;
  const thin = members.length > FEW ? 0.7 : 1;
  const line = (run) => ({ color: colour(run), width, dash: DASHES[style(run)], shape });
  if (state.means) {
    const told = members.filter((run) => !["diverged", "failed"].includes(run.status));
    for (const group of grouped(told)) {
      const [run] = group, found = overSeeds(group, xOf, yOf);
      if (found.n > 1 && !pale) {
        traces.push({
          x: [...found.x, ...found.x.toReversed()], y: [...found.high, ...found.low.toReversed()],
          fill: "toself", fillcolor: colour(run) + "22", line: { width: 0 }, mode: "lines",
          hoverinfo: "skip",
        });
      }
      traces.push({
        x: found.x, y: found.mean, mode, line: line(run), opacity, meta: meanOf(group),
        marker: { size: 6, color: colour(run), symbol: SYMBOLS[style(run)] },
        hovertemplate: "%{meta}<br>%{x}: %{y:.4~g}<extra></extra>",
      });
    }
  } else {
    for (const run of members) {
      traces.push({
        x: xOf(run), y: yOf(run), mode, opacity: thin * opacity, meta: nameOf(run),
        line: { ...line(run), width: thin * width }, marker: { size: 4, color: colour(run) },
        hovertemplate: "%{meta}<br>%{x}: %{y:.4~g}<extra></extra>",
      });
    }
  }
  for (const run of members.filter(isPicked)) {
    const traced = { x: xOf(run), y: yOf(run), mode: "lines", meta: nameOf(run) };
    traces.push({ ...traced, line: { color: "#000", width: pale ? 3 : 5, shape }, hoverinfo: "skip" });
    traces.push({
      ...traced, line: { color: colour(run), width: pale ? 1.2 : 2.2, shape },
      hovertemplate: "%{meta}<br>%{x}: %{y:.4~g}<extra></extra>",
    });
  }
  return traces;
}

const positive = (value) => value > 0 ? value : null;  // a logarithmic axis shows nothing else

function overEpochs(columns, yaxis) {
  const shown = visible();
  if (!shown.length) return NOTHING_SHOWN;
  const traces = columns.flatMap(([column, options]) =>
    lines(shown.filter((run) => has(run.epochs[column])), (run) => run.epochs.epoch,
      (run) => yaxis.type === "log" ? run.epochs[column].map(positive) : run.epochs[column], options));
  if (!traces.length) return `No run that is shown has logged ${columns[0][0]}.`;
  return { traces, layout: { xaxis: axis("epoch"), yaxis } };
}

// A point per run that ended well; extra is what the pointer says besides.
function points(xOf, yOf, extra = () => "") {
  const found = ended().filter((run) => xOf(run) !== null && yOf(run) !== null);
  const at = (run) => `${nameOf(run)}<br>${extra(run)}`;
  const traces = series.names.map((name, i) => found.filter((run) => run.series === i))
    .filter((members) => members.length)
    .map((members) => ({
      x: members.map(xOf), y: members.map(yOf), text: members.map(at), mode: "markers",
      marker: {
        size: 10, opacity: 0.85, color: colour(members[0]),
        symbol: members.map((run) => SYMBOLS[style(run)]), line: { color: "#fff", width: 1 },
      },
      hovertemplate: "%{text}<br>%{x:.4~g}, %{y:.4~g}<extra></extra>",
    }));
  for (const run of found.filter(isPicked)) {
    traces.push({
      x: [xOf(run)], y: [yOf(run)], mode: "markers", hoverinfo: "skip",
      marker: { size: 16, symbol: "circle-open", color: "#000", line: { width: 2.2 } },
    });
  }
  return traces;
}

function scatter(xOf, yOf, layout, missing, extra) {
  if (!visible().length) return NOTHING_SHOWN;
  const traces = points(xOf, yOf, extra);
  return traces.length ? { traces, layout } : missing;
}

const level = (y) => ({
  type: "line", xref: "paper", x0: 0, x1: 1, y0: y, y1: y,
  line: { color: "#8a939b", width: 1, dash: "dot" }, layer: "below",
});

// ---- fronts, as analysis/fronts.py has them

function paretoFront(points) {
  const front = [];
  for (const point of points.toSorted((a, b) => a[0] - b[0] || a[1] - b[1])) {
    if (!front.length || point[1] < front.at(-1)[1]) front.push(point);
  }
  return front;
}

function hypervolume(points) {
  let volume = 0, above = 1;
  for (const [fvu, cost] of paretoFront(points)) {
    if (fvu >= 1 || cost >= 1) continue;
    volume += (1 - fvu) * (above - cost);
    above = cost;
  }
  return volume;
}

function fvuAt(points, sparsity) {
  const front = paretoFront(points).map(([fvu, cost]) => [1 - cost, fvu]), near = 1e-9;
  if (!front.length || sparsity < front[0][0] - near || sparsity > front.at(-1)[0] + near) return null;
  const after = front.findIndex(([reached]) => reached >= sparsity - near);
  const [x1, y1] = front[after], [x0, y0] = front[Math.max(0, after - 1)];
  return x1 === x0 ? y1 : y0 + (y1 - y0) * Math.min(1, (sparsity - x0) / (x1 - x0));
}

function frontsBySeries() {
  const found = ended().filter(({ final }) => final.fvu !== null && final.sparsity !== null);
  return series.names.map((name, i) => {
    const members = found.filter((run) => run.series === i);
    return { i, name, costs: members.map(({ final }) => [final.fvu, 1 - final.sparsity]) };
  }).filter(({ costs }) => costs.length);
}

const NO_END = "No run that is shown has ended well yet.";

panel("fvu-sparsity", () => {
  const layout = { xaxis: axis(`${SPLIT} sparsity (fraction of zeros)`, UP_TO_1), yaxis: log(`${SPLIT} fvu`) };
  const found = scatter(({ final }) => final.sparsity, ({ final }) => final.fvu, layout, NO_END,
    ({ final }) => `score ${text(final["select/score"])}<br>sparsity, fvu:`);
  if (!found.traces) return found;
  const fronts = frontsBySeries().map(({ i, costs }) => {
    const front = paretoFront(costs);
    return {
      x: front.map(([, cost]) => 1 - cost), y: front.map(([fvu]) => fvu), mode: "lines",
      line: { color: series.colours[i], width: 1.3 }, hoverinfo: "skip",
    };
  });
  return { ...found, traces: [...fronts, ...found.traces] };
});

panel("fronts", () => {
  const fronts = frontsBySeries();
  if (!fronts.length) return visible().length ? NO_END : NOTHING_SHOWN;
  const sparsities = [0.8, 0.9, 0.95];
  const heads = [series.knob, "runs", "hypervolume", ...sparsities.map((s) => `fvu at ${s}`)];
  const row = ({ i, name, costs }) => {
    const dot = i === null ? null : element("span", { class: "dot", style: `background:${series.colours[i]}` });
    const numbers = [costs.length, hypervolume(costs), ...sparsities.map((s) => fvuAt(costs, s))];
    return element("tr", {}, element("td", {}, dot, name),
      ...numbers.map((value) => element("td", {}, text(value))));
  };
  const rows = fronts.toSorted((a, b) => hypervolume(b.costs) - hypervolume(a.costs)).map(row);
  if (fronts.length > 1) {
    rows.push(row({ i: null, name: "all that are shown", costs: fronts.flatMap(({ costs }) => costs) }));
  }
  return element("table", {},
    element("thead", {}, element("tr", {}, ...heads.map((head) => element("th", {}, head)))),
    element("tbody", {}, ...rows));
});

// ---- over epochs

panel("losses", () =>
  overEpochs([["train/loss", { pale: true }], ["val/loss"]], log("loss")));
panel("fvu", () => overEpochs([["val/fvu"]], log("validation fvu")));
panel("alpha-epochs", () => overEpochs([["alpha"]], axis("alpha", { rangemode: "tozero" })));
panel("lambda-epochs", () => overEpochs([["lambda_eff"]], log("lambda_eff")));
panel("similarity-epochs", () => overEpochs(
  [["val/self_similarity_20ms"], ["val/self_similarity_80ms", { pale: true }]],
  axis("self-similarity")));
panel("dead", () => overEpochs([["val/dead"]],
  axis("dead units (fraction)", { rangemode: "tozero" })));

panel("mse-alpha-epochs", () => {
  const members = visible().filter(({ epochs }) => has(epochs.alpha) && has(epochs["val/mse"]));
  if (!members.length) return visible().length ? "No run that is shown has a history." : NOTHING_SHOWN;
  const path = (x, y, run, meta, picked) => {
    const last = x.length - 1, template = "%{meta}<br>alpha %{x:.4~g}, mse %{y:.4~g}<extra></extra>";
    const width = picked || state.means || members.length <= FEW ? 2 : 1;
    const line = { color: colour(run), width, dash: DASHES[style(run)] };
    const ends = { symbol: ["circle-open", "circle"], size: width > 1 ? 8 : 5, color: colour(run) };
    const edge = { x, y, mode: "lines", line: { color: "#000", width: 5 }, hoverinfo: "skip" };
    return [
      ...(picked ? [edge] : []),
      { x, y, mode: "lines", line, opacity: width > 1 ? 1 : 0.6, meta, hovertemplate: template },
      { x: [x[0], x[last]], y: [y[0], y[last]], mode: "markers", marker: ends, meta, hovertemplate: template },
    ];
  };
  const own = (run, picked) => path(run.epochs.alpha, run.epochs["val/mse"], run, nameOf(run), picked);
  const traces = state.means ? grouped(members).flatMap((group) => {
    const mean = (column) => overSeeds(group, (run) => run.epochs.epoch, (run) => run.epochs[column]).mean;
    return path(mean("alpha"), mean("val/mse"), group[0], meanOf(group));
  }) : members.flatMap((run) => own(run, false));
  traces.push(...members.filter(isPicked).flatMap((run) => own(run, true)));
  return { traces, layout: { xaxis: axis("alpha"), yaxis: log("validation mse") } };
});

panel("mse-alpha-runs", () => scatter(
  ({ final }) => final["select/alpha"], ({ final }) => final.mse,
  { xaxis: axis("alpha at the selected epoch", UP_TO_1), yaxis: log(`${SPLIT} mse`) }, NO_END,
  () => "alpha, mse:"));

// ---- shift tolerance

const NO_SHIFT = "No run that is shown has measured its shift tolerance.";
const persistence = ({ final }) => final["shift/persistence"];

panel("sparsity-persistence", () => scatter(
  ({ final }) => final.sparsity, persistence,
  {
    xaxis: axis(`${SPLIT} sparsity (fraction of zeros)`, UP_TO_1), shapes: [level(1)],
    yaxis: axis("persistence (encoding / input)"),
  },
  NO_SHIFT,
  ({ final }) => `fvu ${text(final.fvu)}, half-life ${text(final["shift/half_life_ms"])} ms`
    + "<br>sparsity, persistence:"));

panel("guard", () => scatter(
  ({ final }) => final["shift/participation_ratio"], persistence,
  {
    xaxis: log("participation ratio (directions in use)"), shapes: [level(1)],
    yaxis: axis("persistence (encoding / input)"),
  },
  NO_SHIFT, () => "participation ratio, persistence:"));

function curves(name, x, layout) {
  if (!visible().length) return NOTHING_SHOWN;
  const members = visible().filter(({ curves }) => curves[name] && has(curves[name].encoding));
  if (!members.length) return `No run that is shown has a ${name.replace("_", "-")} curve (curves.json).`;
  const traces = lines(members, ({ curves }) => curves[name][x], ({ curves }) => curves[name].encoding,
    { mode: name === "self_similarity" ? "lines" : "lines+markers" });
  const input = overSeeds(members.filter(({ curves }) => has(curves[name].input)),
    ({ curves }) => curves[name][x], ({ curves }) => curves[name].input);
  traces.push({
    x: input.x, y: input.mean, mode: "lines", meta: "<b>input</b>", line: { color: "#000", width: 1.6, dash: "dash" },
    hovertemplate: "%{meta}<br>%{x}: %{y:.4~g}<extra></extra>",
  });
  return { traces, layout };
}

panel("self-similarity", () => curves("self_similarity", "lag_ms",
  { xaxis: axis("lag (ms)"), yaxis: axis("self-similarity"), shapes: [level(0.5)] }));
panel("gain", () => curves("gain", "shift_ms",
  { xaxis: axis("shift (ms)", { type: "log", tickvals: [5, 10, 20, 40] }), yaxis: axis("gain") }));
panel("lowpass", () => curves("lowpass", "cutoff",
  { xaxis: axis("cutoff (fraction of 25 Hz, the Nyquist frequency)"), yaxis: log("fvu after smoothing") }));

// ---- channels and units

panel("r-channels", () => {
  if (!visible().length) return NOTHING_SHOWN;
  const members = ended().filter((run) => has(run.r));
  if (!members.length) return NO_END;
  const traces = lines(members, () => data.channels, (run) => run.r, { mode: "lines+markers" });
  return { traces, layout: { xaxis: axis("channel"), yaxis: axis(`${SPLIT} r`) } };
});

panel("density", () => {
  if (!visible().length) return NOTHING_SHOWN;
  const edges = data.density_edges;
  const middle = edges.slice(1).map((edge, i) => 10 ** ((edge + edges[i]) / 2));
  const members = ended().filter((run) => run.density);
  if (!members.length) return NO_END;
  const traces = lines(members, () => middle, (run) => run.density, { shape: "hvh" });
  return { traces, layout: { xaxis: log(`fraction of ${SPLIT} frames`), yaxis: axis("units per quarter decade") } };
});
