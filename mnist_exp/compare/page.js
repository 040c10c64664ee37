"use strict";
const byId = id => document.getElementById(id), page = JSON.parse(byId("data").textContent), runs = page.runs;
const make = (tag, attributes = {}, text = null) => {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== null) element.textContent = text;
  return element;
};
for (const run of runs) run.text = run.cells.join(" ").toLowerCase();
// what was chosen outlives a reload, by the names of the things: runs come and go while others go on
const KEPT = `mnist_exp ${location.pathname}`;
const chosen = (() => { try { return JSON.parse(sessionStorage.getItem(KEPT)) ?? {}; } catch { return {}; } })();
const keep = changes => { Object.assign(chosen, changes); try { sessionStorage.setItem(KEPT, JSON.stringify(chosen)); } catch { /* a page in a file may keep nothing */ } };

// ------------------------------------------------------------------------------------------------ tables
byId("summary").textContent = `${runs.length} runs, ${page.scored} of them scored on the same test images.`;

function drawAnswer({ title, columns, numeric, rows }) {
  byId("answer").hidden = false; byId("answer-title").textContent = rows.length ? title : `${title}: nothing to compare with`;
  const table = byId("answer-table"), head = table.appendChild(make("thead")).appendChild(make("tr")), body = table.appendChild(make("tbody"));
  for (const name of columns) head.append(make("th", { scope: "col" }, name));
  for (const cells of rows) {
    const row = body.appendChild(make("tr"));
    cells.forEach((text, c) => row.append(make("td", { class: numeric[c] ? "number" : columns[c] === "verdict" ? text : "" }, text)));
  }
}

const place = name => innerWidth > 600 ? 0 : { name: 0, test_acc: 1, val_acc: 2 }[name] ?? 3;  // on a phone the scores come first
const shownColumns = () => page.all.map((name, c) => [name, c]).filter(([name]) => (chosen.columns ?? page.columns).includes(name))
  .sort(([one], [other]) => place(one) - place(other));
function conditionOf(word) {
  const found = /^([^<>=]+)(<=|>=|=|<|>)(.+)$/.exec(word);
  if (found === null) return i => runs[i].text.includes(word.toLowerCase());
  const [, key, sign, wanted] = found, at = page.all.findIndex(name => name === key) >= 0 ? page.all.indexOf(key) : page.all.findIndex(name => name.endsWith(`.${key}`));
  if (at < 0) return () => false;
  return i => {
    const value = runs[i].values[at], number = Number(wanted);
    if (sign === "=") return runs[i].cells[at] === wanted || (typeof value === "number" && value === number);
    if (typeof value !== "number" || Number.isNaN(number)) return false;
    return sign === "<" ? value < number : sign === ">" ? value > number : sign === "<=" ? value <= number : value >= number;
  };
}
function drawTable() {
  const table = byId("table"), sorted = chosen.sort ?? {}; table.replaceChildren();
  const head = make("tr"), columns = shownColumns(); table.appendChild(make("thead")).appendChild(head);
  for (const [name] of columns) {
    const here = sorted.name === name;
    const th = make("th", { scope: "col", "aria-sort": !here ? "none" : sorted.down ? "descending" : "ascending" });
    const button = make("button", { type: "button" }, name + (!here ? "" : sorted.down ? " \u25be" : " \u25b4"));
    button.onclick = () => { keep({ sort: { name, down: here ? !sorted.down : true } }); drawTable(); };
    th.appendChild(button); head.appendChild(th);
  }
  const conditions = (chosen.filter ?? "").split(/\s+/).filter(Boolean).map(conditionOf);
  const order = runs.map((_, i) => i).filter(i => conditions.every(holds => holds(i))), by = page.all.indexOf(sorted.name);
  if (by >= 0) order.sort((a, b) => {
    const x = runs[a].values[by], y = runs[b].values[by];
    if (x === null || y === null) return (x === null) - (y === null);
    const less = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y));
    return sorted.down ? -less : less;
  });
  byId("left-over").textContent = conditions.length ? `${order.length} of ${runs.length}` : "";
  const body = make("tbody");
  for (const i of order) {
    const row = make("tr");
    for (const [, c] of columns) row.appendChild(make("td", typeof runs[i].values[c] === "number" ? { class: "number" } : {}, runs[i].cells[c]));
    body.appendChild(row);
  }
  table.appendChild(body);
}
function drawColumns() {
  for (const name of page.all) {
    const label = make("label"), box = make("input", { type: "checkbox" });
    box.checked = (chosen.columns ?? page.columns).includes(name);
    box.onchange = () => { const others = (chosen.columns ?? page.columns).filter(n => n !== name); keep({ columns: box.checked ? [...others, name] : others }); drawTable(); };
    label.append(box, ` ${name}`); byId("columns").append(label);
  }
}

// ------------------------------------------------------------------------------------------------ charts
const style = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8f6fc0", "#7a7a52", "#b03a5b", "#3c8f8f"];
const colour = i => COLOURS[i % COLOURS.length];
const faint = (hex, share) => `rgba(${[1, 3, 5].map(at => parseInt(hex.slice(at, at + 2), 16)).join()},${share})`;
// Plotly takes some HTML, formulas between dollars and %{values} in text; a name is nothing but a name
const safe = text => String(text).replace(/[&<>$%]/g, c => `&#${c.charCodeAt(0)};`);
const ends = values => values.reduce(([low, high], v) => [Math.min(low, v), Math.max(high, v)], [Infinity, -Infinity]);
const NAMED = 40; // runs with an entry of their own in the legend
const wide = () => window.innerWidth > 700;

function layout(more) {
  const axis = { gridcolor: style("--line"), zerolinecolor: style("--line"), linecolor: style("--line"), automargin: true };
  const { xaxis, yaxis, ...others } = more;
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: style("--ink"), size: 13, family: "system-ui, sans-serif" },
    margin: { l: 56, r: 12, t: 12, b: 48 }, hovermode: "closest", hoverlabel: { namelength: -1, align: "left" },
    legend: wide() ? { x: 1.02, y: 1 } : { x: 0, y: -0.22, yanchor: "top", maxheight: 110 },
    xaxis: { ...axis, ...xaxis }, yaxis: { ...axis, ...yaxis }, ...others,
  };
}
const config = name => ({ responsive: true, displaylogo: false, scrollZoom: false, toImageButtonOptions: { format: "svg", filename: `mnist_exp ${name}` }, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] });
function plot(id, traces, options) {
  const place = byId(id);
  if (!traces.length) { if (place.data) Plotly.purge(place); place.replaceChildren(make("div", { class: "nothing" }, options)); return; }
  if (!place.data) place.replaceChildren();
  Plotly.react(place, traces, layout(options), config(id));
}

// repetitions are a group: those of one recipe on the same data
const groups = [...new Set(runs.map(r => r.group))].map(key => runs.map((r, i) => i).filter(i => runs[i].group === key));
function average(members, m) {
  const at = new Map();
  for (const i of members) for (const p of runs[i].curve) if (p[m] !== null) at.set(p[0], [...(at.get(p[0]) ?? []), p[m]]);
  return [...at].sort((a, b) => a[0] - b[0]).filter(([, v]) => v.length > 1).map(([epoch, v]) => {
    const mean = v.reduce((a, b) => a + b) / v.length;
    return { epoch, mean, std: Math.sqrt(v.reduce((a, b) => a + (b - mean) ** 2, 0) / (v.length - 1)) };
  });
}
const best = () => { // runs that have a name in the legend: all, or the best by validation
  const score = i => runs[i].scores.val_acc ?? -1;
  return new Set(runs.map((_, i) => i).sort((a, b) => score(b) - score(a)).slice(0, NAMED));
};
function drawCurves() {
  const m = +byId("curve-metric").value, log = byId("curve-log").checked, named = best(), traces = [];
  const line = i => { const p = runs[i].curve.filter(q => q[m] !== null); return { x: p.map(q => q[0]), y: p.map(q => q[m]) }; };
  const mode = runs.every(r => r.curve.length < 30) ? "lines+markers" : "lines";
  const others = { x: [], y: [], text: [] };
  groups.forEach((members, g) => {
    const hue = colour(g), several = members.length > 1, seen = members.some(i => named.has(i)), id = `group ${g}`;
    const name = safe(runs[members[0]].group_label);
    if (several && seen) {
      const points = average(members, m), low = points.map(p => p.mean - p.std), high = points.map(p => p.mean + p.std);
      traces.push({ x: [...points.map(p => p.epoch), ...points.map(p => p.epoch).reverse()], y: [...high, ...low.reverse()], fill: "toself", fillcolor: faint(hue, .18), line: { width: 0 }, hoverinfo: "skip", showlegend: false, legendgroup: id, type: "scatter", mode: "lines" });
      traces.push({ x: points.map(p => p.epoch), y: points.map(p => p.mean), name: `${name} (mean of ${members.length}, band: std)`, legendgroup: id, line: { color: hue, width: 3 }, mode: "lines", type: "scatter" });
    }
    for (const i of members) {
      const { x, y } = line(i);
      if (!x.length) continue;
      if (named.has(i)) traces.push({ x, y, name: safe(runs[i].label), legendgroup: several ? id : `run ${i}`, showlegend: wide() || !several, line: { color: hue, width: several ? 1 : 2 }, marker: { size: 4 }, opacity: several ? .55 : .9, mode, type: "scatter", hovertemplate: `%{y:.4g}, epoch %{x}<extra>${safe(runs[i].label)}</extra>` });
      else { others.x.push(...x, null); others.y.push(...y, null); others.text.push(...x.map(() => safe(runs[i].label)), ""); }
    }
  });
  if (others.x.length) traces.unshift({ ...others, name: `the other ${runs.length - named.size} runs`, type: "scattergl", mode: "lines", line: { color: style("--soft"), width: 1 }, opacity: .3, hovertemplate: "%{y:.4g}, epoch %{x}<extra>%{text}</extra>" });
  const what = byId("curve-metric").selectedOptions[0].textContent;
  byId("curves-text").textContent = (runs.length > NAMED ? `Named are the ${NAMED} best by validation accuracy. ` : "") + "A click on a name switches it, a double click shows it alone; drag to zoom, double click to see all. The camera saves the picture as SVG.";
  plot("curves", traces, traces.length ? { xaxis: { title: { text: "epoch" } }, yaxis: { title: { text: what }, type: log ? "log" : "linear" } } : "no run has this curve");
}

const names = [...new Set(runs.flatMap(r => Object.keys(r.parameters)))];
names.forEach(name => byId("parameter").append(make("option", { value: name }, name)));
const scoreName = () => byId("score").selectedOptions[0].textContent;
function drawScatter() {
  const name = byId("parameter").value, key = byId("score").value;
  const spots = runs.map((r, i) => [r.parameters[name], r.scores[key], i]).filter(s => s[0] !== null && s[0] !== undefined && s[1] !== null);
  const numeric = spots.every(s => typeof s[0] === "number"), log = numeric && byId("scatter-log").checked;
  const trace = { x: spots.map(s => numeric ? s[0] : safe(s[0])), y: spots.map(s => s[1]), text: spots.map(s => safe(runs[s[2]].label)), mode: "markers", type: spots.length > 500 ? "scattergl" : "scatter", marker: { size: 9, color: spots.map(s => colour(groups.findIndex(g => g.includes(s[2])))), opacity: .8 }, hovertemplate: `%{text}<br>${safe(name)}=%{x}<br>%{y:.4f}<extra></extra>` };
  plot("scatter", spots.length ? [trace] : [], spots.length ? { xaxis: { title: { text: safe(name) }, type: !numeric ? "category" : log ? "log" : "linear" }, yaxis: { title: { text: scoreName() } } } : "no run has both");
}
function drawParallel() {
  const key = byId("score").value, rows = runs.filter(r => r.scores[key] !== null);
  const dimensions = names.map(name => {
    const values = rows.map(r => r.parameters[name] ?? null), known = values.filter(v => v !== null), kinds = [...new Set(known.map(String))];
    if (kinds.length < 2) return null;
    const label = safe(name.split(".").at(-1));
    if (!known.every(v => typeof v === "number")) return { label, values: values.map(v => v === null ? -1 : kinds.indexOf(String(v))), tickvals: kinds.map((_, i) => i), ticktext: kinds.map(k => k.length > 14 ? `${k.slice(0, 13)}\u2026` : k) };
    const [low, high] = ends(known), log = low > 0 && high / low > 30;
    if (!log) return { label, values: values.map(v => v ?? low) };
    const tens = Array.from({ length: Math.ceil(Math.log10(high)) - Math.floor(Math.log10(low)) + 1 }, (_, i) => Math.floor(Math.log10(low)) + i);
    return { label: `${label} (log)`, values: values.map(v => Math.log10(v ?? low)), tickvals: tens, ticktext: tens.map(t => String(+`1e${t}`)) };
  }).filter(Boolean);
  const scores = rows.map(r => r.scores[key]);
  const fits = dimensions.length && new Set(scores).size > 1;
  if (fits) dimensions.push({ label: key, values: scores });
  const line = { color: scores, colorscale: "Viridis", reversescale: key !== "val_loss", showscale: wide(), colorbar: { title: { text: key } } };
  plot("parallel", fits ? [{ type: "parcoords", dimensions: dimensions.slice(wide() ? -9 : -4), line, labelfont: { size: 12 }, tickfont: { size: 11 } }] : [], fits ? { margin: { l: 56, r: 40, t: 48, b: 24 } } : "nothing differs between runs with this score");
}
function drawSearch() {
  (page.search ?? []).forEach(({ title, figure }, i) => {
    const id = `search-${i}`;
    byId("search").hidden = false;
    byId("search").append(make("h3", {}, title), make("div", { class: "chart", id }));
    whenSeen(id, () => {
      const { xaxis, yaxis, ...rest } = layout({}), given = figure.layout ?? {};
      const axes = Object.fromEntries(Object.keys({ xaxis: 0, yaxis: 0, ...given }).filter(k => /^[xy]axis\d*$/.test(k)).map(k => [k, { ...(k[0] === "x" ? xaxis : yaxis), ...given[k] }]));
      Plotly.react(byId(id), figure.data, { ...given, ...rest, ...axes, margin: { l: 60, r: 20, t: 40, b: 60 }, showlegend: given.showlegend ?? true }, config(title));
    });
  });
}

// ------------------------------------------------------------------------------------------------ one run, two runs
runs.forEach((r, i) => {
  for (const id of ["left", "right"]) byId(id).append(make("option", { value: i }, r.full));
  if (page.confusions[i]) byId("confused").append(make("option", { value: i }, r.full));
});
if (runs.length > 1) byId("right").value = 1;
function drawDifference() {
  const a = +byId("left").value, b = +byId("right").value, table = byId("difference"); table.replaceChildren();
  const [one, two] = [a, b].map(i => Object.assign(Object.create(null), page.common, page.configs[i]));
  const keys = [...new Set([...Object.keys(one), ...Object.keys(two)])].filter(k => one[k] !== two[k]).sort();
  const head = make("tr"); for (const t of ["key", runs[a]?.name, runs[b]?.name]) head.append(make("th", {}, t)); table.append(head);
  if (!keys.length) { const row = make("tr"); row.append(make("td", { colspan: 3 }, "the same config")); table.append(row); }
  for (const k of keys) { const row = make("tr"); for (const t of [k, one[k] ?? "-", two[k] ?? "-"]) row.append(make("td", {}, t)); table.append(row); }
}
function drawConfusion() {
  const table = byId("confusion"), choice = byId("confused").value; table.replaceChildren();
  if (choice === "") { const row = make("tr"); row.append(make("td", {}, "no run has test predictions")); table.append(row); return; }
  const { classes, counts: matrix } = page.confusions[+choice], most = Math.max(1, ends(matrix.flatMap((r, i) => r.filter((_, j) => i !== j)))[1]);
  const head = make("tr"); head.append(make("th", {}, "true \\ said")); classes.forEach(name => head.append(make("th", { scope: "col", class: classes.some(c => c.length > 3) ? "long" : "" }, name))); table.append(head);
  matrix.forEach((counts, i) => {
    const row = make("tr"); row.append(make("th", { scope: "row" }, classes[i]));
    counts.forEach((n, j) => row.append(make("td", i !== j && n ? { style: `background: rgb(213 94 0 / ${.12 + .6 * n / most})` } : { style: "color: var(--soft)" }, n || "")));
    table.append(row);
  });
}
byId("wall-text").textContent = page.wall.length ? `The test images that most of the ${page.scored} runs get wrong, and what they said.` : "No run here kept pictures of its mistakes.";
for (const digit of page.wall) {
  const figure = make("figure"), said = new Map();
  for (const [run, guess] of Object.entries(digit.said)) said.set(guess, said.get(guess) ?? []).get(guess).push(runs[run].name);
  figure.append(make("img", { src: "data:image/png;base64," + digit.image, alt: `test image ${digit.index}: ${digit.label}` }));
  const caption = make("figcaption", {}, `${digit.label}, said `);
  [...said].sort((a, b) => b[1].length - a[1].length).forEach(([guess, who]) => {
    caption.append(make("b", { title: who.join("\n") }, `${guess}`), make("span", {}, ` by ${who.length} `));
  });
  caption.append(make("br"), make("span", {}, `#${digit.index}, wrong in ${Object.keys(digit.said).length} of ${page.scored}`));
  figure.append(caption); byId("wall").append(figure);
}

// ------------------------------------------------------------------------------------------------ in which order
const charts = { curves: drawCurves, scatter: drawScatter, parallel: drawParallel };
const seen = new Set();
const watcher = new IntersectionObserver(entries => { for (const e of entries) if (e.isIntersecting) { watcher.unobserve(e.target); const draw = waiting.get(e.target.id); seen.add(e.target.id); draw(); } }, { rootMargin: "300px" });
const waiting = new Map();
function whenSeen(id, draw) { waiting.set(id, draw); watcher.observe(byId(id)); }
const redraw = (...ids) => { for (const id of ids) if (seen.has(id)) charts[id](); };
for (const [id, draw] of [["curve-metric", () => redraw("curves")], ["curve-log", () => redraw("curves")], ["parameter", () => redraw("scatter")], ["scatter-log", () => redraw("scatter")], ["score", () => redraw("scatter", "parallel")], ["left", drawDifference], ["right", drawDifference], ["confused", drawConfusion]]) {
  const control = byId(id), box = control.type === "checkbox";
  const text = () => box ? control.checked : control.selectedOptions[0]?.textContent;
  if (chosen[id] !== undefined) { if (box) control.checked = chosen[id]; else for (const option of control.options) if (option.textContent === chosen[id]) control.value = option.value; }
  control.onchange = () => { keep({ [id]: text() }); draw(); };
}
byId("filter").value = chosen.filter ?? "";
byId("filter").oninput = () => { keep({ filter: byId("filter").value }); drawTable(); };
if (page.answer) drawAnswer(page.answer);
drawColumns(); drawTable(); if (runs.length) drawDifference(); drawConfusion();
if (chosen.scroll) scrollTo(0, chosen.scroll);
addEventListener("scroll", () => keep({ scroll: scrollY }), { passive: true });

// what is read is there before the library that draws
addEventListener("DOMContentLoaded", () => requestAnimationFrame(() => setTimeout(() => {
  const script = make("script", {}, byId("plotly").textContent); document.body.append(script);
  for (const [id, draw] of Object.entries(charts)) whenSeen(id, draw);
  drawSearch();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraw(...Object.keys(charts)));
  document.documentElement.dataset.ready = "yes";
})));
// served by compare --serve, it is asked whether there is news
if (page.live) setInterval(async () => { try { if (await (await fetch("version")).text() !== page.live) location.reload(); } catch { /* it is served no more */ } }, 2000);
