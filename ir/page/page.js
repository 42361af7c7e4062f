// The page's state, and what joins its parts.

const byId = (id) => document.getElementById(id);

const app = {
  index: data.stages.length - 1, stage: null, tree: null, open: new Set(), test: null, only: false,
  picked: -1, kin: new Set(), kinds: new Set(KINDS), savedIn: new Map(), againIn: new Map(), savedNodes: new Set(),
  marked: false, longest: { group: 0, node: 0 },
  pick, pickGroup, go, clearFilter,
};
const view = lanes(app), time = timeline(app), details = byId("details"), search = byId("search");

function setStage(index) {
  app.index = index;
  app.stage = stage(index);
  const moved = !data.stages[index].same;
  app.tree = tree(app.stage, moved && byId("only").checked ? app.stage.removed : []);
  if (app.tree.root.parts.size === 1) for (const g of app.tree.root.parts.values()) app.open.add(g.key);
  app.marked = moved && index > 0 && (byId("only").checked || index < data.stages.length - 1);
  countKinds();
  unpick();
  filter();
  figures();
  time.reset();
  byId("stage").value = index;
  byId("stage").setAttribute("aria-valuetext", data.stages[index].name);
  [...byId("stops").children].forEach((stop, i) => stop.classList.toggle("here", i === index));
  byId("passed").replaceChildren(...told(index));
  byId("only-label").hidden = !moved || index === 0;
}

// Which nodes the backward pass reads, and how much of each layer that is.
function countKinds() {
  app.savedIn = new Map();
  app.againIn = new Map();
  app.savedNodes = new Set();
  const counted = new Set(), add = (map, n, size) => {
    for (let g = app.tree.leaf.get(n); g; g = g.parent) map.set(g, (map.get(g) || 0) + size);
  };
  for (const e of app.stage.edges) {
    if (e.kind !== "saved" || counted.has(e.v)) continue;
    counted.add(e.v);
    app.savedNodes.add(e.from);
    add(app.savedIn, e.from, bytesOf(e.v) * app.stage.times[e.from]);
  }
  for (const n of app.stage.again) add(app.againIn, n, 1);
  const groups = [...app.tree.root.parts.values()];
  app.longest = {
    group: Math.max(...groups.flatMap((g) => g.seconds), 0),
    node: app.stage.order.reduce((most, n) => Math.max(most, nodes.seconds[n]), 0),
  };
}

function told(index) {
  const raw = data.stages[index], s = app.stage;
  const found = [el("b", "", raw.name), ` ${s.order.length} nodes, ${secondsText(raw.seconds)}`];
  if (index === 0) return found;
  if (raw.same) return [...found, "  ", el("span", "dim", "changed nothing")];
  for (const [kind, sign, count] of [["added", "+", s.added.size], ["removed", "−", s.removed.length], ["changed", "~", s.changed.size]]) {
    if (count) found.push("  ", el("span", kind, `${sign}${count} ${kind}`));
  }
  return found;
}

function figures() {
  const s = app.stage, { budget, predicted, measured } = data.figures;
  const last = app.index === data.stages.length - 1;
  const saved = [...new Set(s.edges.filter((e) => e.kind === "saved").map((e) => e.v))];
  const rows = [
    ["nodes", countText(s.all.length)],
    ["FLOPs", countText(s.order.reduce((sum, n) => sum + nodes.flops[n], 0))],
    ["estimated time", secondsText(s.seconds)],
    ["predicted peak", sizeText(last && predicted ? predicted : s.timeline.bytes[s.timeline.peak])],
    ["measured by XLA", measured && last ? sizeText(measured) : ""],
    ["budget", budget ? sizeText(budget) : ""],
    ["saved for backward", sizeText(saved.reduce((sum, v) => sum + bytesOf(v), 0))],
    ["recomputed", s.again.size ? `${s.again.size} ops` : ""],
  ];
  byId("figures").replaceChildren(...rows.filter(([, text]) => text).map(([name, text]) => el("div", "", el("dt", "", name), el("dd", "", text))));
  const keys = [["peak", "predicted"], ["measured", "measured by XLA"], ["budget", "budget"]];
  byId("keys").replaceChildren(...keys.filter(([k]) => k === "peak" || data.figures[k]).map(([k, text]) => el("span", k, text)));
}

function pick(n) {
  app.picked = n;
  app.kin = new Set([app.stage.primal[n], ...(app.stage.derivatives.get(n) || [])].filter((m) => m >= 0));
  details.replaceChildren(...showNode(app, n));
  details.scrollTop = 0;
  view.refresh();
  time.draw();
}
function pickGroup(g) {
  app.picked = -1;
  app.kin = new Set();
  details.replaceChildren(...showGroup(app, g).filter(Boolean));
  view.refresh();
  time.draw();
}
function unpick() {
  app.picked = -1;
  app.kin = new Set();
  details.replaceChildren(...showProgram(app));
}
function go(n) {
  pick(n);
  view.show(n);
}

// Words that all have to be found in a node's op, scope, line, code, types or argument names.
const haystacks = new Map();
function haystack(n) {
  if (!haystacks.has(n)) {
    const names = inputsOf(n).map(nameOf).join(" ");
    haystacks.set(n, [opOf(n), scopeOf(n), lineOf(n), codeOf(n), typesOf(n), names].join(" ").toLowerCase());
  }
  return haystacks.get(n);
}
function filter() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  const only = byId("only").checked && app.index > 0 && !data.stages[app.index].same;
  const { stage: s, tree: t } = app;
  const moved = (n) => s.added.has(n) || s.changed.has(n) || t.gone.has(n);
  app.test = words.length || only ? (n) => (!only || moved(n)) && words.every((word) => haystack(n).includes(word)) : null;
  view.refresh();
  byId("matches").textContent = app.test ? `${t.found} ${t.found === 1 ? "node" : "nodes"}` : "";
}
function clearFilter() {
  search.value = "";
  byId("only").checked = false;
  setStage(app.index);
}

function legend() {
  byId("legend").replaceChildren(...KINDS.map((kind) => {
    const made = el("button", "", KIND_NAMES[kind]);
    made.type = "button";
    made.dataset.kind = kind;
    made.setAttribute("aria-pressed", "true");
    made.addEventListener("click", () => {
      const on = !app.kinds.delete(kind);
      if (on) app.kinds.add(kind);
      made.setAttribute("aria-pressed", on);
      view.refresh();
    });
    return made;
  }));
}

function start() {
  byId("title").textContent = data.title;
  legend();
  const slider = byId("stage"), stops = data.stages.map((each, i) => {
    const made = el("button", each.same || i === 0 ? "" : "moved", each.name);
    made.type = "button";
    made.tabIndex = -1;
    made.title = each.name;
    made.addEventListener("click", () => setStage(i));
    return made;
  });
  byId("stops").replaceChildren(...stops);
  slider.max = stops.length - 1;
  const inset = 50 / stops.length;  // so that the thumb stands below the name
  slider.style.width = `calc(${100 - 2 * inset}% + 16px)`;
  slider.style.marginLeft = `calc(${inset}% - 8px)`;
  document.querySelector("nav").hidden = stops.length === 1;
  slider.addEventListener("input", () => setStage(Number(slider.value)));
  search.addEventListener("input", filter);
  byId("only").addEventListener("change", () => setStage(app.index));
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && document.activeElement !== search) {
      search.focus();
      event.preventDefault();
    } else if (event.key === "Escape") {
      if (app.test) clearFilter();
      else { unpick(); view.refresh(); time.draw(); }
      view.focus();
    }
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { view.draw(); time.draw(); });
  setStage(app.index);
}
start();
