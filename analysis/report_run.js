"use strict";
// What the page shows of one run: its training, an utterance, the inside of its model. Continues
// report_panels.js, and begins the page.

const detailOf = () => data.details[state.chosen] ?? {};
const utteranceOf = () => detailOf().utterances?.[state.utterance];
const NO_HISTORY = "This run has not finished an epoch.";
const NO_MODEL = "The model of this run is not in this page: choose one of those above.";
const absent = (what) => data.details[state.chosen]
  ? `This run has no ${what}.` : NO_MODEL;
const above = { orientation: "h", x: 1, xanchor: "right", y: 1.01, yanchor: "bottom" };

function own(columns, yaxis) {
  const { epochs, final } = runs[state.chosen], chosen = final["select/epoch"];
  if (!has(epochs.epoch)) return NO_HISTORY;
  const traces = columns.filter(([column]) => has(epochs[column])).map(([column, color, name]) => ({
    x: epochs.epoch, y: epochs[column], mode: epochs.epoch.length > 1 ? "lines" : "markers", name,
    line: { color, width: 2 }, hovertemplate: `${name}<br>epoch %{x}: %{y:.4~g}<extra></extra>`,
  }));
  const shapes = chosen === null ? [] : [{
    type: "line", yref: "paper", y0: 0, y1: 1, x0: chosen, x1: chosen, line: { color: SOFT, width: 1.2, dash: "dot" },
  }];
  const layout = { xaxis: axis("epoch"), yaxis, shapes, showlegend: true, legend: above };
  return { traces, layout: { ...layout, margin: { l: 66, r: 14, t: 30, b: 46 } } };
}

panel("run-losses", () =>
  own([["train/loss", TRUTH, "training"], ["val/loss", PREDICTION, "validation"]], log("loss")));
panel("run-alpha", () => own(
  [["alpha", "#b08900", "alpha"], ["val/sparsity", "#3d7a5f", "validation sparsity"], ["val/dead", "#7d5a9e", "dead"]],
  axis("fraction", { range: [-0.02, 1.02] })));

panel("reconstruction", () => {
  const found = utteranceOf();
  if (!found) return absent("reconstructions");
  const { channels, truth, prediction, r } = found, n = channels.length, half = Math.ceil(n / 2);
  const traces = [], layout = {
    height: 108 * half + 90, margin: { l: 46, r: 14, t: 44, b: 44 }, annotations: [], showlegend: true,
    legend: { ...above, y: 1 + 12 / (108 * half), traceorder: "reversed" },
  };
  const seconds = truth[0].map((_, i) => i / 50);
  const row = (1 + 0.3 / half) / half;
  channels.forEach((channel, i) => {
    const suffix = i ? i + 1 : "", side = i % 2, down = Math.floor(i / 2);
    const top = 1 - down * row, bottom = top - row * 0.7;
    layout[`yaxis${suffix}`] = axis("", {
      domain: [Math.max(0, bottom), top], anchor: `x${suffix}`, nticks: 4,
    });
    const last = i >= n - 2;
    layout[`xaxis${suffix}`] = axis(last ? "seconds" : "", {
      domain: side ? [0.53, 1] : [0, 0.47], anchor: `y${suffix}`, showticklabels: last,
      matches: i ? "x" : undefined,
    });
    layout.annotations.push({
      text: `<b>${label(channel)}</b>${channel === "pitch" ? " (Hz)" : ""}  r ${text(r[i] && Number(r[i].toFixed(3)))}`,
      xref: `x${suffix} domain`, yref: `y${suffix} domain`, x: 0, y: 1, yanchor: "bottom", xanchor: "left", showarrow: false,
      font: { size: 12 },
    });
    for (const [name, y, color, width] of [
      ["prediction", prediction[i], PREDICTION, 3], ["truth", truth[i], TRUTH, 1.3],
    ]) {
      traces.push({
        x: seconds, y, name, xaxis: `x${suffix}`, yaxis: `y${suffix}`, mode: "lines",
        line: { color, width }, showlegend: i === 0, legendgroup: name,
        hovertemplate: `${name} %{y:.4~g}<br>%{x:.2f} s<extra></extra>`,
      });
    }
  });
  return { traces, layout };
});

function bytes(base64) {
  return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
}

panel("raster", () => {
  const found = utteranceOf();
  if (!found?.raster) return absent("model, and so no encodings");
  const { raster, channels, truth } = found, n = truth[0].length, all = bytes(raster.data);
  const rows = raster.units.map((_, i) => Array.from(all.subarray(i * n, (i + 1) * n), (v) => v / 255));
  const seconds = truth[0].map((_, i) => i / 50);
  const moving = channels.map((name, i) => [name, truth[i]]).filter(([name]) => !["pitch", "loudness"].includes(name));
  const traces = moving.map(([name, y], i) => {
    const mean = y.reduce((a, b) => a + b, 0) / n;
    const sd = Math.sqrt(y.reduce((a, b) => a + (b - mean) ** 2, 0) / n) || 1;
    return {
      x: seconds, y: y.map((v) => (v - mean) / sd / 2.5 - i), customdata: y, mode: "lines", line: { color: TRUTH, width: 1.2 },
      hovertemplate: `${name} %{customdata:.3~g}<br>%{x:.2f} s<extra></extra>`, yaxis: "y2",
    };
  });
  traces.push({
    type: "heatmap", x: seconds, z: rows, zmin: 0, zmax: 1, showscale: false,
    colorscale: [[0, "#fff"], [0.15, "#b9c8d8"], [1, "#0b1f36"]],
    customdata: raster.units.map((unit) => Array(n).fill(unit)),
    hovertemplate: "unit %{customdata}<br>%{x:.2f} s, %{z:.0%} of its maximum<extra></extra>",
  });
  const counts = `${raster.units.length} of ${raster.n_units} units fire in this utterance; `
    + `${(100 * raster.zeros).toFixed(1)} % of its encoding is 0`;
  return { traces, layout: {
    height: 720, annotations: [{
      text: counts, xref: "paper", yref: "paper", x: 1, y: 0.565, yanchor: "bottom", showarrow: false, font: { size: 12 },
    }],
    xaxis: axis("seconds", { anchor: "y" }),
    yaxis: axis("unit, by time of peak", { domain: [0, 0.56], autorange: "reversed", showgrid: false }),
    yaxis2: axis("", {
      domain: [0.61, 1], ticks: "", tickfont: { size: 11 },
      tickvals: moving.map((_, i) => -i), ticktext: moving.map(([name]) => name),
    }),
  } };
});

// Small pictures (n, channel, frame) in one heatmap, each over its own maximum.
function tiles(pictures, names, channels, across = 8) {
  const height = channels.length + 2, width = pictures[0][0].length + 1;
  const n = Math.min(across, pictures.length), down = Math.ceil(pictures.length / n);
  const blank = () => Array(n * width - 1).fill(null);
  const z = Array.from({ length: down * height }, blank), said = z.map(blank), annotations = [];
  pictures.forEach((picture, i) => {
    const top = Math.floor(i / n) * height + 2, left = (i % n) * width;
    const peak = Math.max(...picture.flat().map(Math.abs)) || 1, frames = width - 1;
    picture.forEach((row, c) => row.forEach((value, t) => {
      z[top + c][left + t] = value / peak;
      said[top + c][left + t] = `${names[i]}, ${channels[c]}, ${20 * (t - (frames - 1) / 2)} ms<br>${text(value)}`;
    }));
    annotations.push({
      text: names[i], x: left + (frames - 1) / 2, y: top - 0.6, yanchor: "bottom", showarrow: false,
      font: { size: 10.5, color: SOFT },
    });
  });
  const ticks = Array.from({ length: down }, (_, i) => channels.map((_, c) => i * height + 2 + c)).flat();
  const traces = [{
    type: "heatmap", z, text: said, hovertemplate: "%{text}<extra></extra>", hoverongaps: false, zmin: -1, zmax: 1,
    colorscale: [[0, "#2166ac"], [0.25, "#92c5de"], [0.5, "#f7f7f7"], [0.75, "#f4a582"], [1, "#b2182b"]],
    colorbar: {
      thickness: 9, len: 0.4, outlinewidth: 0, tickvals: [-1, 0, 1],
      title: { text: "of its<br>maximum", font: { size: 11 } },
    },
  }];
  return { traces, layout: {
    height: 40 + 13.5 * down * height, annotations, margin: { l: 50, r: 10, t: 4, b: 34 },
    xaxis: axis("frames of 20 ms", { showticklabels: false, showgrid: false, ticks: "", linecolor: "rgba(0,0,0,0)" }),
    yaxis: axis("", {
      autorange: "reversed", showgrid: false, ticks: "", tickvals: ticks, linecolor: "rgba(0,0,0,0)",
      ticktext: ticks.map((_, i) => channels[i % channels.length]), tickfont: { size: 9.5 },
    }),
  } };
}

panel("kernels", () => {
  const { kernels, channels } = detailOf();
  return kernels ? tiles(kernels, kernels.map((_, i) => `no. ${i + 1}`), channels) : absent("model that can be loaded");
});
panel("primitives", () => {
  const { primitives, units, channels } = detailOf();
  if (!primitives) return absent(data.details[state.chosen]?.kernels
    ? "utterances to choose units by" : "model that can be loaded");
  return primitives.length ? tiles(primitives, units.map((unit) => `unit ${unit}`), channels)
    : "No unit of this model fires on the utterances that were kept.";
});

// ---- begin

const sections = [...document.querySelectorAll("nav a")].map((link) => [link, document.querySelector(link.hash)]);
addEventListener("scroll", () => {
  const passed = sections.filter(([, section]) => section.getBoundingClientRect().top < 140);
  const here = (passed.at(-1) ?? sections[0])[0];
  for (const [link] of sections) link.classList.toggle("here", link === here);
}, { passive: true });
sections[0][0].classList.add("here");
drawFilters();
changed();
