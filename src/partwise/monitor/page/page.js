"use strict";
// Everything that comes from the run is written as text: textContent and attributes of our own choice, never markup.

const $ = (id) => document.getElementById(id);
const NOTHING = "–";
const state = { metric: "", order: "recent", find: "", by: "versions", seen: null, cursors: {}, source: null, behind: 0 };

// ---- words: as partwise.experiment.words has them ----

function number(value, digits = 3) {
  if (value === null || value === undefined) return NOTHING;
  const size = Math.abs(value);
  let text;
  if (size >= 1e6 || (size > 0 && size < 10 ** -(digits + 3))) text = value.toExponential(2);
  else if (size >= 1000) text = Math.round(value).toLocaleString("en");
  else if (size >= 10) text = value.toFixed(1);
  else if (size > 0 && size < 10 ** -(digits - 1)) text = String(Number(value.toPrecision(digits)));
  else text = value.toFixed(digits);
  return text.replace(/^-/, "−");
}
const count = (value) => (value === null || value === undefined ? NOTHING : value.toLocaleString("en"));
const three = (value) => value.toFixed(value < 9.995 ? 2 : value < 99.95 ? 1 : 0);
function bytes(value) {
  if (value === null || value === undefined) return NOTHING;
  const units = ["B", "kB", "MB", "GB", "TB"];
  let at = 0;
  while (at < units.length - 1 && Math.abs(value) >= 999.5) { value /= 1000; at += 1; }
  return at ? `${three(value)} ${units[at]}` : `${value.toFixed(0)} B`;
}
function duration(value) {
  if (value === null || value === undefined) return NOTHING;
  for (const [from, size, unit] of [[172800, 86400, "days"], [7200, 3600, "h"], [120, 60, "min"]])
    if (value >= from) return `${three(value / size)} ${unit}`;
  return value ? `${three(value)} s` : "0 s";
}
const rough = (value) => (value < 100 ? `${Math.round(value)} s` : value < 6000 ? `${Math.round(value / 60)} min`
  : value < 172800 ? `${(value / 3600).toFixed(1)} h` : `${(value / 86400).toFixed(1)} days`);
const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

// ---- elements ----

function element(tag, text = "", name = "") {
  const made = document.createElement(tag);
  if (text !== "") made.textContent = text;
  if (name) made.className = name;
  return made;
}
function svg(tag, attributes, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text) made.textContent = text;
  return made;
}

// ---- head and tiles ----

function showHead(seen) {
  const run = seen.run;
  $("name").textContent = run.name;
  $("noun").textContent = run.noun;
  document.title = `${run.noun} ${run.version}${run.total ? `/${run.total}` : ""} · ${run.name}`;
  const isFailed = /Error: |^failed|^killed|^client /.test(run.status);
  const pill = $("status"), status = run.status.replace(/^\w+Error: .*/s, "failed");
  if (pill.textContent !== status) pill.textContent = status;
  pill.className = `pill${run.is_running ? " running" : isFailed ? " bad" : ""}`;
  const why = seen.fault || (/Error: /.test(run.status) ? run.status : "");
  if ($("fault").textContent !== why) $("fault").textContent = why;
  $("fault").hidden = !why;
  const isBounded = run.total > 0 && Number.isFinite(run.total); // a number of 400 digits is read as infinity
  $("progress").hidden = !isBounded;
  if (isBounded) {
    $("bar").max = run.total;
    $("bar").value = run.version;
    const left = run.is_running && run.seconds_left !== null ? `, about ${rough(run.seconds_left)} left` : "";
    $("left").textContent = `${count(run.version)} of ${count(run.total)} ${run.noun}s${left}`;
  }
}

function showWritten() {
  if (!state.seen) return;
  const run = state.seen.run;
  const ago = Math.max(0, Date.now() / 1000 - state.behind - run.written_at);
  const when = run.is_running ? `last written ${ago < 2 ? "just now" : `${rough(ago)} ago`}`
    : `written ${new Date((run.written_at + state.behind) * 1000).toLocaleString()}`;
  $("written").textContent = state.isCut ? `${when} · the page’s server does not answer; trying again` : when;
}

function showTiles(seen) {
  const run = seen.run, title = (seen.metrics.find((m) => m.key === `${run.metric}/${run.scope}`) || {}).title;
  const asked = run.clients ? ` of ${count(run.clients)}` : "";
  const tiles = [
    [capital(run.noun), count(run.version), `${duration(run.seconds)} ${run.is_virtual ? "of virtual time" : "on its clock"}`],
    [title || run.metric || "metric", number(run.value), `best ${number(run.best)}`],
    ["Training loss", number(run.loss), `of the last ${run.noun}`],
    ["Uplink, downlink", `${bytes(run.uplink)}, ${bytes(run.downlink)}`, "from and to all clients"],
    ["Clients heard of", count(run.answered), `${asked ? `${asked.trim()}, ` : ""}${count(run.replies)} replies`],
    ["Staleness", number(run.staleness, 2), `mean of the last ${run.noun}`],
    ["Lost, refused", `${count(run.lost)}, ${count(run.refused)}`, run.skipped ? `${count(run.skipped)} ${run.noun}s skipped` : "tasks that came to nothing"],
  ];
  if (seen.nodes.length && run.is_running)
    tiles.push(["Nodes there", count(seen.nodes.filter((node) => node.is_there).length), `of ${count(seen.nodes.length)}`]);
  if (run.guarantee) tiles.push(["Privacy spent", `ε = ${number(run.epsilon === null ? 0 : run.epsilon)}`, "see below"]);
  $("tiles").replaceChildren(...tiles.map(([what, value, fact]) => {
    const tile = element("div");
    tile.append(element("dt", what), element("dd", value, "value"), element("dd", fact, "fact"));
    return tile;
  }));
}

// ---- curves ----

const WIDE = 520, HIGH = 230, LEFT = 62, RIGHT = 14, TOP = 10, BOTTOM = 30, LETTER = 7.2;

const KINDS = { number, count, bytes, seconds: duration, staleness: (value) => number(value, 2) };
const UNITS = {
  bytes: [[1e12, "TB"], [1e9, "GB"], [1e6, "MB"], [1e3, "kB"], [1, "B"]],
  seconds: [[86400, "days", 172800], [3600, "h", 7200], [60, "min", 120], [1, "s"]],
};

/** Places on an axis at round values, each with its words: in the unit that suits the axis's end. */
function ticks(kind, low, high, wanted) {
  const units = UNITS[kind] || [[1, ""]];
  const [size, unit] = units.find(([of, , from]) => high >= (from || of)) || units[units.length - 1];
  const least = (high - low) / size / wanted, power = 10 ** Math.floor(Math.log10(least));
  let step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= least * 0.999);
  if (kind === "count") step = Math.max(1, step);
  const found = [];
  for (let at = Math.ceil(low / size / step - 1e-9); at * step <= (high / size) * (1 + 1e-9) + 1e-12; at += 1) {
    const value = Number((at * step).toPrecision(12));
    const large = Math.abs(value), digits = Math.floor(Math.log10(large)) - Math.floor(Math.log10(step) + 1e-9); // that two ticks differ in
    const text = large >= 1e6 || (large && large < 1e-4) ? value.toExponential(Math.max(0, Math.min(8, digits)))
      : value.toLocaleString("en", { maximumSignificantDigits: 6 });
    found.push([value * size, value ? `${text}${unit ? ` ${unit}` : ""}`.replace("-", "−") : "0"]);
  }
  return found;
}

function across(curve) {
  if (state.by === "bytes") return curve.uplink.map((up, at) => (up === null ? null : up + curve.downlink[at]));
  return curve[state.by];
}

/** What the axis counts, and how a place on it is written; versions where a curve has no bytes. */
function axis(lines, run) {
  const is = (by) => state.by === by && lines.every((line) => across(line.curve).some((x) => x !== null));
  if (is("seconds")) return { title: run.is_virtual ? "virtual time" : "clock", kind: "seconds", at: across };
  if (is("bytes")) return { title: "bytes up and down", kind: "bytes", at: across };
  return { title: run.noun, kind: "count", at: (curve) => curve.versions };
}

function figures(seen) {
  const { curves, run } = seen;
  const chosen = seen.metrics.find((m) => m.key === seen.metric.key);
  const better = seen.metric.is_main ? ` (${seen.metric.higher_is_better ? "higher" : "lower"} is better)` : "";
  const spent = curves.loss || curves.metric;
  const line = (curve, name = "", values = curve && curve.values) => (curve ? { curve, name, values } : null);
  return [
    { id: "metric", title: (chosen ? chosen.title : seen.metric.key) + better, kind: "number", lines: [line(curves.metric)] },
    { id: "loss", title: `Training loss of each ${run.noun}’s clients`, kind: "number", lines: [line(curves.loss)] },
    { id: "bytes", title: "Bytes sent so far", kind: "bytes", isFromZero: true,
      lines: spent ? [line(spent, "downlink", spent.downlink), line(spent, "uplink", spent.uplink)] : [] },
    { id: "staleness", title: `Staleness of each ${run.noun}’s replies`, kind: "staleness", isFromZero: true,
      lines: [line(curves.staleness, "mean"), line(curves.most_staleness, "most")] },
    { id: "epsilon", title: "Privacy spent (ε)", kind: "number", isFromZero: true, lines: [line(curves.epsilon)] },
  ].map((figure) => ({ ...figure, lines: figure.lines.filter((l) => l && l.values.length) })).filter((f) => f.lines.length);
}

function showFigures(seen) {
  const wanted = figures(seen), box = $("figures");
  for (const old of [...box.children]) if (!wanted.some((f) => `figure-${f.id}` === old.id)) old.remove();
  wanted.forEach((figure, at) => {
    const place = $(`figure-${figure.id}`) || newFigure(figure.id);
    if (box.children[at] !== place) box.insertBefore(place, box.children[at] || null);
    drawFigure(place, figure, seen.run);
  });
}

function newFigure(id) {
  const place = element("figure"), top = element("div", "", "top");
  place.id = `figure-${id}`;
  top.append(element("h3"), element("span", "", "legend"));
  const picture = svg("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img", tabindex: "0" });
  const caption = element("figcaption");
  place.append(top, picture, caption);
  picture.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect();
    moveCursor(place, (event.clientX - box.left) * (WIDE / box.width));
  });
  picture.addEventListener("pointerleave", () => moveCursor(place, null));
  // read out while it is read, and not with every version
  picture.addEventListener("focus", () => caption.setAttribute("aria-live", "polite"));
  picture.addEventListener("blur", () => { caption.removeAttribute("aria-live"); moveCursor(place, null); });
  picture.addEventListener("keydown", (event) => stepCursor(place, event));
  return place;
}

function drawFigure(place, figure, run) {
  const along = axis(figure.lines, run), picture = place.querySelector("svg");
  const lines = figure.lines.map((l, at) => ({ ...l, at, xs: along.at(l.curve) }));
  const xs = lines.flatMap((l) => l.xs), ys = lines.flatMap((l) => l.values).filter((y) => y !== null);
  const span = (values, isFromZero) => {
    let low = isFromZero ? 0 : Infinity, high = -Infinity;
    for (const v of values) { if (v < low) low = v; if (v > high) high = v; }
    if (!(high >= low)) return [0, 1];
    const least = Math.max(Math.abs(high), 1e-9) * 1e-6;
    return high - low > least ? [low, high] : [isFromZero ? 0 : low - Math.max(least, 0.5), high + Math.max(least, 0.5)];
  };
  const [x0, x1] = span(xs.filter((x) => x !== null), false), [y0, y1] = span(ys, figure.isFromZero);
  const steps = ticks(figure.kind, y0, y1, 4); // their words begin where the figure does
  const left = Math.max(LEFT, 12 + LETTER * Math.max(...steps.map(([, text]) => text.length)));
  const X = (x) => left + ((x - x0) / (x1 - x0)) * (WIDE - left - RIGHT);
  const Y = (y) => HIGH - BOTTOM - ((y - y0) / (y1 - y0)) * (HIGH - TOP - BOTTOM);
  place.querySelector("h3").textContent = figure.title;
  showLegend(place.querySelector(".legend"), lines);
  const parts = [];
  for (const [y, text] of steps) {
    parts.push(svg("line", { class: "grid", x1: left, x2: WIDE - RIGHT, y1: Y(y), y2: Y(y) }));
    parts.push(svg("text", { x: left - 8, y: Y(y) + 4, "text-anchor": "end" }, text));
  }
  for (const [x, text] of ticks(along.kind, x0, x1, 4)) {
    const isEnd = X(x) > WIDE - RIGHT - 24;
    const where = isEnd ? { x: WIDE - RIGHT, "text-anchor": "end" } : { x: X(x), "text-anchor": "middle" };
    parts.push(svg("text", { ...where, y: HIGH - 12 }, text));
  }
  parts.push(svg("line", { class: "axis", x1: left, x2: WIDE - RIGHT, y1: HIGH - BOTTOM, y2: HIGH - BOTTOM }));
  for (const l of [...lines].reverse()) parts.push(...drawLine(l, X, Y)); // the first one on top
  picture.replaceChildren(...parts);
  const say = KINDS[figure.kind];
  const ends = lines.map((l) => `${l.name ? `${l.name} ` : ""}${say(l.values[l.values.length - 1])}`).join(", ");
  picture.setAttribute("aria-label", `${figure.title}, by ${along.title}; last: ${ends}. Arrow keys read it.`);
  place.drawn = { figure, lines, along, X, Y };
  showCursor(place);
}

function drawLine(line, X, Y) {
  let path = "", isOn = false;
  line.values.forEach((y, at) => {
    if (y === null || line.xs[at] === null) { isOn = false; return; }
    path += `${isOn ? "L" : "M"}${X(line.xs[at]).toFixed(1)} ${Y(y).toFixed(1)}`;
    isOn = true;
  });
  const last = line.values.length - 1;
  const dot = line.values[last] === null || line.xs[last] === null ? [] : [svg("circle", { class: `d${line.at}`, cx: X(line.xs[last]), cy: Y(line.values[last]), r: 4 })];
  const dense = line.values.length > 150 ? " dense" : "";
  return [svg("path", { class: `c${line.at}${dense}`, d: path }), ...dot];
}

function showLegend(legend, lines) {
  legend.replaceChildren();
  if (lines.length < 2) return;
  for (const line of lines) legend.append(element("span", "", `key key-${line.at}`), line.name);
}

function moveCursor(place, x) {
  const { lines, X } = place.drawn, xs = lines[0].xs;
  let best = null;
  if (x !== null) xs.forEach((v, at) => { if (v !== null && (best === null || Math.abs(X(v) - x) < Math.abs(X(xs[best]) - x))) best = at; });
  state.cursors[place.id] = best === null ? null : lines[0].curve.versions[best];
  showCursor(place);
}

/** Where a version is in a curve, or the one next to it; -1 for none. */
function nearest(versions, version) {
  if (version === null || version === undefined) return -1;
  let best = -1;
  versions.forEach((v, at) => { if (best < 0 || Math.abs(v - version) < Math.abs(versions[best] - version)) best = at; });
  return best;
}

function stepCursor(place, event) {
  const versions = place.drawn.lines[0].curve.versions, end = versions.length - 1;
  const at = nearest(versions, state.cursors[place.id]);
  const next = { ArrowLeft: at < 0 ? end : Math.max(0, at - 1), ArrowRight: at < 0 ? end : Math.min(end, at + 1), Home: 0, End: end, Escape: -1 }[event.key];
  if (next === undefined) return;
  event.preventDefault();
  state.cursors[place.id] = next < 0 ? null : versions[next];
  showCursor(place);
}

function showCursor(place) {
  const { figure, lines, along, X } = place.drawn, picture = place.querySelector("svg");
  const caption = place.querySelector("figcaption"), curve = lines[0].curve;
  picture.querySelectorAll(".cursor").forEach((old) => old.remove());
  const at = nearest(curve.versions, state.cursors[place.id]);
  if (at < 0 || lines[0].xs[at] === null) {
    const kept = curve.versions.length, of = curve.of;
    const text = kept < of ? `by ${along.title}; ${count(kept)} of ${count(of)} points, every extreme among them` : `by ${along.title}`;
    if (caption.textContent !== text) caption.textContent = text;
    return;
  }
  const x = X(lines[0].xs[at]);
  picture.append(svg("line", { class: "cursor", x1: x, x2: x, y1: TOP, y2: HIGH - BOTTOM }));
  const read = lines.map((l) => {
    const there = nearest(l.curve.versions, curve.versions[at]);
    return there < 0 ? "" : `${l.name ? `${l.name} ` : ""}${KINDS[figure.kind](l.values[there])}`;
  }).filter((text) => text);
  const where = along.title === state.seen.run.noun ? "" : `, ${KINDS[along.kind](lines[0].xs[at])}`;
  caption.textContent = `${state.seen.run.noun} ${count(curve.versions[at])}${where}: ${read.join(", ")}`;
}

// ---- clients ----

const COLUMNS = [
  ["client", "number", (c) => c.name],
  ["last reply", "recent", (c) => duration(c.seconds)],
  ["replies", "replies", (c) => count(c.replies)],
  ["for version", "", (c) => (c.replies ? count(c.version) : NOTHING)],
  ["staleness", "staleness", (c) => (c.replies ? count(c.staleness) : NOTHING)],
  ["in the mean", "", (c) => number(c.mean_staleness, 2)],
  ["loss", "", (c) => number(c.loss)],
  ["uplink", "uplink", (c) => bytes(c.uplink)],
  ["downlink", "downlink", (c) => bytes(c.downlink)],
  ["lost", "lost", (c) => count(c.lost)],
  ["refused", "refused", (c) => count(c.refused)],
];

function makeHeads() {
  for (const [title, order] of COLUMNS) {
    const head = element("th", order ? "" : title, title === "client" ? "left" : "");
    head.scope = "col";
    head.dataset.order = order;
    if (order) {
      const button = element("button", title);
      button.type = "button";
      button.addEventListener("click", () => { state.order = order; listen(); });
      head.append(button);
    }
    $("heads").append(head);
  }
  markHeads();
}

function markHeads() {
  for (const head of $("heads").children) {
    if (head.dataset.order === state.order) head.setAttribute("aria-sort", state.order === "number" ? "ascending" : "descending");
    else head.removeAttribute("aria-sort");
  }
}

function showClients(seen) {
  $("lines").replaceChildren(...seen.clients.map((client) => {
    const row = element("tr");
    for (const [title, , say] of COLUMNS) {
      const cell = element(title === "client" ? "th" : "td", say(client));
      if (title === "client") cell.scope = "row";
      if ((title === "lost" || title === "refused") && client[title]) cell.className = "bad";
      row.append(cell);
    }
    return row;
  }));
  const run = seen.run, kept = seen.clients.length;
  const silent = run.clients > run.answered ? `; ${count(run.clients - run.answered)} of ${count(run.clients)} were not heard of yet` : "";
  const first = kept < seen.num_found ? `The first ${count(kept)} of ` : "";
  const which = state.find ? (kept ? `${first}${count(seen.num_found)} found` : "Nobody of that number or name was heard of") : `${count(kept)} of ${count(run.answered)} that were heard of${silent}`;
  $("shown").textContent = `${which}. “Last reply” is on the run’s clock; staleness counts versions made while the client worked.`;
}

// ---- nodes, what went wrong, and what runs ----

function showNodes(seen) {
  $("nodes").hidden = !seen.nodes.length;
  $("node-lines").replaceChildren(...seen.nodes.map((node) => {
    const row = element("tr"), name = element("th", node.name);
    name.scope = "row";
    const now = !seen.run.is_running ? NOTHING : node.is_there ? "there" : "gone";
    row.append(name, element("td", now, now === "gone" ? "left bad" : "left"), element("td", duration(node.since)),
      element("td", count(node.clients)), element("td", count(node.errors), node.errors ? "bad" : ""),
      element("td", count(node.rejected), node.rejected ? "bad" : ""));
    return row;
  }));
}

let listed = "";
function showIncidents(seen) {
  const key = JSON.stringify(seen.incidents);
  if (key === listed) return; // so that what is unfolded stays unfolded while nothing is new
  listed = key;
  if (!seen.incidents.length) { $("incidents").replaceChildren(element("p", "None.", "muted")); return; }
  const table = element("table"), heads = element("tr"), body = element("tbody"), head = element("thead");
  for (const [title, left] of [["what", 1], ["who", 1], ["version", 0], ["clock", 0], ["why", 1]]) {
    const cell = element("th", title, left ? "left" : "");
    cell.scope = "col";
    heads.append(cell);
  }
  head.append(heads);
  for (const one of seen.incidents) {
    const row = element("tr"), why = element("td", one.reason, "left reason");
    if (one.traceback) {
      const more = element("details");
      more.append(element("summary", "the node’s own traceback"), element("pre", one.traceback));
      why.append(more);
    }
    row.append(element("td", one.stage ? `${one.kind} in ${one.stage}` : one.kind, "left bad"),
      element("td", one.name || NOTHING, "left"), element("td", count(one.version)), element("td", duration(one.seconds)), why);
    body.append(row);
  }
  table.append(head, body);
  const box = element("div", "", "scroll tall");
  box.setAttribute("role", "region");
  box.setAttribute("aria-labelledby", "incidents-title");
  box.tabIndex = 0;
  box.append(table);
  const failed = seen.nodes.reduce((sum, node) => sum + node.errors + node.rejected, 0);
  const all = seen.run.lost + seen.run.refused + seen.run.skipped + failed;
  const more = all > seen.incidents.length ? ` The last ${count(seen.incidents.length)} of ${count(all)}.` : "";
  $("incidents").replaceChildren(box, element("p", `The latest first.${more}`, "muted small"));
}

function showAbout(seen) {
  const run = seen.run, facts = Object.entries(run.about).filter(([, value]) => value);
  facts.unshift(["folder", run.folder]);
  if (run.guarantee) facts.push(["privacy", run.guarantee]);
  $("about").replaceChildren(...facts.map(([key, value]) => {
    const line = element("div");
    line.append(element("dt", key), element("dd", value));
    return line;
  }));
}

function showMetrics(seen) {
  const keys = seen.metrics.map((m) => m.key).join("\n");
  const select = $("metric");
  if (select.dataset.keys !== keys) {
    select.dataset.keys = keys;
    select.replaceChildren(...seen.metrics.map((m) => { const option = element("option", m.title); option.value = m.key; return option; }));
  }
  if (select.value !== seen.metric.key) select.value = seen.metric.key;
}

// ---- the stream ----

function show(seen) {
  state.seen = seen;
  state.behind = Date.now() / 1000 - seen.run.now;
  showHead(seen);
  showWritten();
  showTiles(seen);
  showMetrics(seen);
  showFigures(seen);
  showClients(seen);
  showNodes(seen);
  showIncidents(seen);
  showAbout(seen);
}

function listen() {
  if (state.source) state.source.close();
  markHeads();
  const asked = new URLSearchParams({ metric: state.metric, order: state.order, find: state.find });
  const source = new EventSource(`events?${asked}`);
  source.onmessage = (event) => { state.isCut = false; show(JSON.parse(event.data)); };
  source.onerror = () => {
    state.isCut = true;
    showWritten();
    // a browser gives up by itself when the answer was no stream, as from a server that has too many viewers
    if (source.readyState === EventSource.CLOSED && state.source === source) setTimeout(() => state.source === source && listen(), 3000);
  };
  state.source = source;
}

makeHeads();
$("metric").addEventListener("change", (event) => { state.metric = event.target.value; listen(); });
$("choices").addEventListener("submit", (event) => event.preventDefault());
document.querySelectorAll('input[name="by"]').forEach((input) => input.addEventListener("change", () => {
  state.by = input.value;
  if (state.seen) showFigures(state.seen);
}));
let waiting = 0;
$("search").addEventListener("submit", (event) => event.preventDefault());
$("find").addEventListener("input", (event) => {
  state.find = event.target.value;
  clearTimeout(waiting);
  waiting = setTimeout(listen, 250);
});
setInterval(showWritten, 1000);
listen();
