"use strict";
// Figures, classes, curves, settings, supervision and cost, from the data of the page.

const report = JSON.parse(document.getElementById("data").textContent);

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) element.setAttribute(name, "");
    else if (value !== undefined && value !== null && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

function vector(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const percent = (value) => (value === null || value === undefined ? "–" : (100 * value).toFixed(1));

function table(heads, rows, numeric = []) {
  const cell = (tag, content, column) => {
    const number = numeric.includes(column) ? "number" : "wide";
    return make(tag, { class: number, scope: tag === "th" ? "col" : null }, content);
  };
  return make("div", { class: "scroll" }, make("table", {},
    make("thead", {}, make("tr", {}, ...heads.map((head, column) => cell("th", head, column)))),
    make("tbody", {}, ...rows.map((row) =>
      make("tr", {}, ...row.map((content, column) => cell("td", content, column)))))));
}

function show(id, ...content) {
  const section = document.getElementById(id);
  section.hidden = false;
  section.querySelector(".content").replaceChildren(...content);
}

// Folders of runs are called by what differs in their names.
if (report.runs.length > 1) {
  const parts = report.runs.map((run) => run.name.split("/"));
  let same = 0;
  while (parts.every((part) => same < part.length - 1 && part[same] === parts[0][same])) same += 1;
  report.runs.forEach((run, number) => { run.name = parts[number].slice(same).join("/"); });
}

const results = report.runs.flatMap((run) => run.results.map((result) => ({ ...result, run: run.name })));
const named = (result) => (report.runs.length > 1 ? `${result.run}: ${result.title}` : result.title);

function figures() {
  document.getElementById("subtitle").textContent = report.runs.map((run) => run.name).join(", ");
  const notes = report.notes.map((text) => make("p", { class: "note" }, text));
  if (!results.length) {
    show("figures", make("p", {}, "Nothing was measured: no photos with true masks were given."), ...notes);
    return;
  }
  const rows = results.map((result) => [
    ...(report.runs.length > 1 ? [result.run] : []), result.title, result.photos,
    percent(result.scores.miou),
    result.interval ? `${percent(result.interval[0])} to ${percent(result.interval[1])}` : "–",
    percent(result.scores.precision), percent(result.scores.recall)]);
  const heads = [...(report.runs.length > 1 ? ["run"] : []), "result", "photos", "mIoU",
    "95 % interval", "precision", "recall"];
  const first = heads.indexOf("mIoU");
  const content = [table(heads, rows, [first, first + 1, first + 2, first + 3])];
  for (const cell of content[0].querySelectorAll(`td:nth-child(${first + 1})`)) cell.classList.add("big");
  const spread = seeds();
  if (spread) content.push(spread);
  content.push(make("p", { class: "quiet" }, "Per cent. mIoU has the background in it; precision and recall are " +
    "means over the classes without it. The interval is a bootstrap over photos: how much the figure would " +
    "change with other photos, not with other seeds."));
  show("figures", ...content, ...notes);
}

// Mean and standard deviation of runs that differ in nothing but their seeds.
function seeds() {
  if (report.runs.length < 2 || !report.settings.length) return null;
  if (report.settings.some(([name]) => !/(^|\.)seed$/.test(name))) return null;
  const rows = [...new Set(results.map((result) => result.key))].map((key) => {
    const same = results.filter((result) => result.key === key);
    const cells = ["miou", "precision", "recall"].map((measure) => {
      const values = same.map((result) => result.scores[measure]);
      const mean = values.reduce((a, b) => a + b, 0) / values.length;
      const variance = values.reduce((a, b) => a + (b - mean) ** 2, 0) / Math.max(1, values.length - 1);
      return `${percent(mean)} ± ${percent(Math.sqrt(variance))}`;
    });
    return [same[0].title, String(same.length), ...cells];
  });
  return make("div", {}, make("h3", {}, "Mean and standard deviation over seeds"),
    table(["result", "seeds", "mIoU", "precision", "recall"], rows, [1, 2, 3, 4]));
}

function classes() {
  if (!results.length) return;
  const names = [...new Set(results.flatMap((result) => Object.keys(result.scores.per_class)))];
  const legend = make("ul", { class: "legend" }, ...results.map((result, number) =>
    make("li", {}, make("span", { class: `key s${number % 8}` }), named(result))));
  const rows = names.map((name) => make("div", { class: "class" }, make("span", {}, name),
    make("div", { class: "bars" }, ...results.map((result, number) => {
      const scores = result.scores.per_class[name] || {};
      const text = `${percent(scores.iou)} (P ${percent(scores.precision)}, R ${percent(scores.recall)})`;
      return make("div", { class: "track", title: named(result) },
        make("div", { "aria-hidden": "true" },
          make("i", { class: `s${number % 8}`, style: `width:${100 * (scores.iou || 0)}%` })),
        make("span", {}, make("span", { class: "unseen" }, `${named(result)}: `), text));
    }))));
  show("classes", make("p", { class: "quiet" }, "IoU of each class in per cent; P is precision, R recall."),
    legend, ...rows);
}

function curves() {
  const series = new Map();
  report.runs.forEach((run, number) => run.curves.forEach((curve) => {
    const key = `${curve.training}: ${curve.quantity}`;
    if (!series.has(key)) series.set(key, []);
    series.get(key).push({ number, name: run.name, points: curve.points });
  }));
  const drawn = [...series].filter(([, lines]) => lines.some((line) => line.points.length > 1));
  if (!drawn.length) return;
  const colours = [..."12345678"].map((number) => `var(--bar${number})`);
  show("curves", ...drawn.map(([title, lines]) => {
    const all = lines.flatMap((line) => line.points);
    const [low, high] = [Math.min(...all.map((p) => p[1])), Math.max(...all.map((p) => p[1]))];
    const [start, last] = [Math.min(...all.map((p) => p[0])), Math.max(...all.map((p) => p[0]))];
    const x = (step) => 46 + ((step - start) / (last - start || 1)) * 300;
    const y = (value) => 142 - ((value - low) / (high - low || 1)) * 120;
    const label = (value) => Number(value.toPrecision(3)).toString();
    const picture = vector("svg", { viewBox: "0 0 360 170", role: "img",
      "aria-label": `${title}: from ${label(lines[0].points[0][1])} to ${label(lines[0].points.at(-1)[1])}` },
    vector("text", { x: 40, y: 26, "text-anchor": "end" }, label(high)),
    vector("text", { x: 40, y: 146, "text-anchor": "end" }, label(low)),
    vector("text", { x: 346, y: 162, "text-anchor": "end" }, `step ${last}`),
    ...lines.map((line) => vector("polyline", { stroke: colours[line.number % 8],
      points: line.points.map(([step, value]) => `${x(step)},${y(value)}`).join(" ") })));
    return make("figure", {}, picture, make("figcaption", {}, title));
  }));
}

function settings() {
  if (!report.settings.length) return;
  show("settings", table(["setting", ...report.runs.map((run) => run.name)],
    report.settings.map(([name, values]) => [make("code", {}, name), ...values])));
}

function supervision() {
  show("supervision", ...report.runs.map((run) => make("div", {},
    report.runs.length > 1 ? make("h3", {}, run.name) : null,
    make("ul", {}, ...run.supervision.map((line) => make("li", {}, line)),
      run.seed === null || run.seed === undefined ? null : make("li", {}, `seed: ${run.seed}`)))));
}

function cost() {
  const runs = report.runs.filter((run) => run.cost.length);
  if (!runs.length) return;
  const size = (bytes) => (bytes === null ? "–" : bytes < 1e9 ? `${(bytes / 1e6).toFixed(0)} MB` : `${(bytes / 1e9).toFixed(1)} GB`);
  const time = (seconds) => (seconds < 90 ? `${seconds.toFixed(1)} s` : `${(seconds / 60).toFixed(1)} min`);
  show("cost", ...runs.map((run) => {
    const rows = run.cost.map((stage) => [stage.stage, time(stage.seconds), time(stage.processor_seconds),
      size(stage.peak_memory), size(stage.disk)]);
    const total = (key) => time(run.cost.reduce((sum, stage) => sum + stage[key], 0));
    rows.push(["all", total("seconds"), total("processor_seconds"), "", ""]);
    return make("div", {}, report.runs.length > 1 ? make("h3", {}, run.name) : null,
      table(["stage", "clock", "processor", "memory, most so far", "disk, at its end"], rows, [1, 2, 3, 4]));
  }));
}

figures();
classes();
curves();
settings();
supervision();
cost();
document.getElementById("footer").textContent = `Made by pgnn_geo ${report.version}.`;
