"use strict";
// The program: columns as Python wrote them, and what follows from them for one stage.

const data = JSON.parse(document.getElementById("data").textContent);
const FORWARD = 0, BACKWARD = 1, UPDATE = 2;
const PHASES = ["forward", "backward", "update"];
const KINDS = ["saved", "again", "offloaded", "fused"];
const KIND_NAMES = { saved: "saved", again: "recomputed", offloaded: "offloaded", fused: "fused" };
const LINKS = new Set(["offload", "fetch"]);
const FENCE = "optimization_barrier";  // hands its operands on, and is passed over here
const { nodes, values, origins } = data;
const nodeCount = nodes.op.length, valueCount = values.type.length;

function starts(counts) {
  const found = new Int32Array(counts.length + 1);
  counts.forEach((count, i) => { found[i + 1] = found[i] + count; });
  return found;
}
const readsFrom = starts(nodes.reads), makesFrom = starts(nodes.makes);
const inputsOf = (n) => nodes.inputs.slice(readsFrom[n], readsFrom[n + 1]);
const outputsOf = (n) => nodes.outputs.slice(makesFrom[n], makesFrom[n + 1]);

function spread(runs) {
  const found = [];
  for (let i = 0; i < runs.length; i += 2) {
    for (let k = 0; k < runs[i + 1]; k++) found.push(runs[i] + k);
  }
  return found;
}

const opOf = (n) => data.texts[nodes.op[n]];
const lineOf = (n) => data.texts[data.lines[origins.line[nodes.origin[n]]][0]];
const codeOf = (n) => data.texts[data.lines[origins.line[nodes.origin[n]]][1]];
const scopeOf = (n) => data.texts[origins.scope[nodes.origin[n]]];
const typeOf = (v) => data.texts[data.types[values.type[v]][0]];
const bytesOf = (v) => data.types[values.type[v]][1];
const nameOf = (v) => (values.name[v] < 0 ? "" : data.texts[values.name[v]]);
const attrsOf = (n) => data.texts[nodes.attrs[n]];
const typesOf = (n) => outputsOf(n).map(typeOf).join(", ");
const sizeOf = (n) => outputsOf(n).reduce((sum, v) => sum + bytesOf(v), 0);

const stageCache = new Map();
function stage(index) {
  let at = index;
  while (data.stages[at].same) at -= 1;
  if (!stageCache.has(at)) stageCache.set(at, readStage(data.stages[at]));
  return stageCache.get(at);
}

function readStage(raw) {
  const s = {
    raw, order: spread(raw.order), all: [],
    holder: new Int32Array(nodeCount).fill(-2),  // -1: of no region, -2: not of this stage
    lane: new Uint8Array(nodeCount), place: new Int32Array(nodeCount),
    times: new Float64Array(nodeCount).fill(1),
    maker: new Int32Array(valueCount).fill(-1), behind: new Map(), users: new Map(),
    primal: new Int32Array(nodeCount).fill(-1), derivatives: new Map(),
    again: new Set(spread(raw.again)), fused: new Set(spread(raw.fused)),
    added: new Set(spread(raw.added || [])), removed: spread(raw.removed || []), changed: new Map(),
    seconds: 0,
  };
  for (let i = 0; i < (raw.changed || []).length; i += 2) s.changed.set(raw.changed[i], raw.changed[i + 1]);
  walk(s, s.order, -1, 1, FORWARD);
  for (const n of s.order) s.seconds += nodes.seconds[n];
  link(s);
  s.edges = edges(s);
  s.timeline = readTimeline(raw.memory);
  return s;
}

function walk(s, order, holder, times, lane) {
  order.forEach((n, i) => {
    if (s.holder[n] !== -2) return;  // the body of two nodes
    s.all.push(n);
    s.holder[n] = holder;
    s.place[n] = holder < 0 ? i : s.place[holder];
    s.times[n] = times;
    s.lane[n] = lane === BACKWARD || nodes.phase[n] === BACKWARD ? BACKWARD : FORWARD;
    const reads = opOf(n) === FENCE ? inputsOf(n) : null;
    outputsOf(n).forEach((v, k) => {
      s.maker[v] = n;
      if (reads) s.behind.set(v, rootOf(s, reads[k]));
    });
    for (const [, , runs, , trips] of data.regions[n] || []) walk(s, spread(runs), n, times * trips, s.lane[n]);
  });
}
const rootOf = (s, v) => (s.behind.has(v) ? s.behind.get(v) : v);

// Users of values; and the forward node that each backward node differentiates: origins tell.
function link(s) {
  const first = new Map();
  for (const n of s.all) {
    for (const v of readsOf(s, n)) {
      if (!s.users.has(v)) s.users.set(v, []);
      s.users.get(v).push(n);
    }
    if (s.lane[n] === FORWARD && nodes.phase[n] === FORWARD && known(n) && !first.has(nodes.origin[n])) {
      first.set(nodes.origin[n], n);
    }
  }
  for (const n of s.all) {
    if (s.lane[n] !== BACKWARD || !first.has(nodes.origin[n])) continue;
    const f = first.get(nodes.origin[n]);
    s.primal[n] = f;
    if (!s.derivatives.has(f)) s.derivatives.set(f, []);
    s.derivatives.get(f).push(n);
  }
}
const readsOf = (s, n) => (opOf(n) === FENCE ? [] : [...new Set(inputsOf(n).map((v) => rootOf(s, v)))]);
const known = (n) => nodes.origin[n] !== data.unknown;

function kindOf(s, from, to, v) {
  if (LINKS.has(opOf(from)) || LINKS.has(opOf(to))) return "offloaded";
  if (s.again.has(from) && s.lane[to] === BACKWARD) return "again";
  if (s.fused.has(v)) return "fused";
  return s.lane[from] === FORWARD && nodes.phase[from] === FORWARD && s.lane[to] === BACKWARD ? "saved" : "plain";
}

// Every read of one node's result by another, fences aside, as { from, to, v, kind }.
function edges(s) {
  const found = [];
  for (const n of s.all) {
    for (const v of readsOf(s, n)) {
      const from = s.maker[v];
      if (from >= 0) found.push({ from, to: n, v, kind: kindOf(s, from, n, v) });
    }
  }
  return found;
}

function readTimeline(memory) {
  let sum = 0;
  const bytes = memory.bytes.map((change) => (sum += change));
  const [value, maker, first, last, kind] = memory.buffers;
  const buffers = value.map((v, i) => ({ v, node: maker[i], first: first[i], last: last[i], kind: kind[i], bytes: bytesOf(v) }));
  const held = new Array(bytes.length + 1).fill(0);  // by arguments
  for (const b of buffers) {
    if (b.kind !== 0) continue;
    held[Math.max(0, b.first)] += b.bytes;
    held[b.last + 1] -= b.bytes;
  }
  for (let i = 1; i < held.length; i++) held[i] += held[i - 1];
  const peak = bytes.reduce((best, b, i) => (b > bytes[best] ? i : best), 0);
  const made = new Map();
  for (const b of buffers) if (b.node >= 0 && !made.has(b.node)) made.set(b.node, b);
  return { bytes, held, buffers, peak, made, inside: memory.inside };
}

function liveAt(timeline, position) {
  const rows = timeline.buffers.filter((b) => b.first <= position && position <= b.last);
  const inside = timeline.inside[position];
  const rest = timeline.bytes[position] - rows.reduce((sum, b) => sum + b.bytes, 0);
  return { rows: rows.sort((a, b) => b.bytes - a.bytes), rest, inside };
}

// Text for people.
function sizeText(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (Math.abs(bytes) >= 1024 && unit < 4) { bytes /= 1024; unit += 1; }
  return unit === 0 ? `${bytes} B` : `${bytes.toFixed(1)} ${units[unit]}`;
}
function countText(count) {
  const units = ["", " k", " M", " G", " T", " P"];
  let unit = 0;
  while (count >= 1000 && unit < 5) { count /= 1000; unit += 1; }
  return unit === 0 ? String(count) : `${count.toFixed(count < 10 ? 2 : count < 100 ? 1 : 0)}${units[unit]}`;
}
function secondsText(seconds) {
  if (seconds === 0) return "0";
  if (seconds < 1e-3) return `${(seconds * 1e6).toPrecision(3)} µs`;
  return seconds < 1 ? `${(seconds * 1e3).toPrecision(3)} ms` : `${seconds.toPrecision(3)} s`;
}
const percent = (part) => `${(100 * part).toFixed(part < 0.0995 ? 1 : 0)}%`;

// An element; text becomes a text node, never markup.
function el(tag, className, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}
