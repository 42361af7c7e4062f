// The panel about one node or layer: what it is, where it comes from, what it costs, whom it knows.

function nodeLink(app, n, v, note) {
  const made = el("button", "link", el("b", "mono", opOf(n)), el("span", "dim", note || (v === undefined ? typesOf(n) : typeOf(v))));
  made.append(el("span", "size", lineOf(n).replace(/^.*\//, "")));
  made.type = "button";
  made.dataset.node = n;
  made.addEventListener("click", () => app.go(n));
  return made;
}

function lineLink(app, n, size) {
  const made = el("button", "link", el("b", "mono", lineOf(n).replace(/^.*\//, "") || "no line"), el("code", "dim", codeOf(n)), el("span", "size", size));
  made.type = "button";
  made.addEventListener("click", () => app.go(n));
  return made;
}

function facts(rows) {
  const body = el("tbody");
  for (const [name, text] of rows) body.append(el("tr", "", el("th", "", name), el("td", "", text)));
  return el("table", "", body);
}

function section(title, items, most = 40) {
  if (!items.length) return [];
  const shown = items.slice(0, most).map((make) => make());
  if (items.length > most) shown.push(el("p", "dim", `${items.length - most} more`));
  return [el("h3", "", title), ...shown];
}

function showNode(app, n) {
  const s = app.stage, t = app.tree, gone = t.gone.has(n);
  const phase = s.lane[n] === BACKWARD ? "backward" : PHASES[nodes.phase[n]];
  const head = el("h2", "", el("code", "", opOf(n)), el("span", `pill ${phase}`, phase));
  if (s.again.has(n)) head.append(el("span", "pill again", "recomputed"));
  if (app.savedNodes.has(n)) head.append(el("span", "pill saved", "saved for backward"));
  if (gone) head.append(el("span", "pill removed", "removed by this pass"));
  else if (app.index > 0 && s.added.has(n)) head.append(el("span", "pill added", "added by this pass"));
  else if (s.changed.has(n)) head.append(el("span", "pill changed", "changed by this pass"));
  const source = el("div", "source", el("span", "dim", lineOf(n) || "no line of yours"), el("code", "", codeOf(n)));
  const runs = s.times[n], buffer = s.timeline.made.get(n);
  const share = gone ? 0 : (nodes.seconds[n] * runs) / s.seconds;
  const rows = [
    ["type", el("code", "", typesOf(n))],
    ["bytes", sizeText(sizeOf(n)) + (outputsOf(n).some((v) => s.fused.has(v)) ? ", never in memory: made in the loop of its reader" : "")],
    ["FLOPs", countText(nodes.flops[n]) + (runs > 1 ? ` × ${runs} runs` : "")],
    ["time", `${secondsText(nodes.seconds[n] * runs)}, ${percent(share)} of the step, estimated`],
  ];
  if (scopeOf(n)) rows.push(["scope", el("code", "", scopeOf(n))]);
  if (buffer) rows.push(["live", `positions ${Math.max(0, buffer.first)} to ${buffer.last} of ${s.timeline.bytes.length - 1}`]);
  if (attrsOf(n)) rows.push(["attrs", el("code", "", attrsOf(n))]);
  if (s.changed.has(n)) rows.push(["changed", data.texts[s.changed.get(n)] || "in its body"]);
  const told = decisionsFor(n);
  for (const d of told) rows.push([KIND_NAMES[d.action] || d.action, `${sizeText(d.bytes)}: ${d.reason}`]);
  const primal = s.primal[n] >= 0 ? [() => nodeLink(app, s.primal[n])] : [];
  const later = s.derivatives.get(n) || [], derivatives = later.filter((m) => !s.again.has(m)), copies = later.filter((m) => s.again.has(m));
  const operands = inputsOf(n).map((v) => () => operand(app, v));
  const readers = outputsOf(n).flatMap((v) => (s.users.get(v) || []).map((u) => () => {
    const made = nodeLink(app, u, v), kind = kindOf(s, n, u, v);
    if (kind !== "plain") made.firstChild.after(el("span", kind, KIND_NAMES[kind]));
    return made;
  }));
  return [head, source, facts(rows),
    ...section(s.again.has(n) ? "computes again" : "derivative of", primal), ...section("its derivative", derivatives.map((m) => () => nodeLink(app, m))),
    ...section("recomputed as", copies.map((m) => () => nodeLink(app, m))),
    ...section("operands", operands), ...section("read by", readers)];
}

function operand(app, v) {
  v = rootOf(app.stage, v);
  const from = app.stage.maker[v];
  if (from >= 0) return nodeLink(app, from, v);
  const name = nameOf(v) || "argument of this body";
  return el("div", "plain-operand", el("code", "", name), " ", el("code", "dim", typeOf(v)));
}

// What the memory plan says of values like this one: it names them by op, type, line and scope.
function decisionsFor(n) {
  const name = `${opOf(n)} ${typesOf(n)}`;
  return data.decisions.filter((d) => d.value === name && d.source === lineOf(n) && d.scope === scopeOf(n)).slice(0, 3);
}

function showGroup(app, g) {
  const head = el("h2", "", g.kind === "line" ? el("code", "", g.label || "no line") : g.label);
  const source = g.kind === "line" ? el("div", "source", el("code", "", g.code)) : null;
  const rows = [];
  for (const [lane, name] of [[FORWARD, g.kind === "phase" ? "update" : "forward"], [BACKWARD, "backward"]]) {
    if (!g.count[lane]) continue;
    rows.push([name, `${g.count[lane]} ops, ${countText(g.flops[lane])} FLOPs, ${percent(g.seconds[lane] / app.stage.seconds)} of the time`]);
  }
  if (app.savedIn.get(g)) rows.push(["saved", `${sizeText(app.savedIn.get(g))} for the backward pass`]);
  if (app.againIn.get(g)) rows.push(["recomputed", `${app.againIn.get(g)} ops`]);
  const inside = [];
  for (const [n, pair] of app.tree.pairOf) {
    for (let up = pair.parent; up; up = up.parent) if (up === g) inside.push(n);
  }
  inside.sort((a, b) => nodes.seconds[b] * app.stage.times[b] - nodes.seconds[a] * app.stage.times[a]);
  return [head, source, facts(rows), ...section("longest", inside.map((n) => () => nodeLink(app, n)), 10)];
}

function showProgram(app) {
  const s = app.stage, byOp = new Map();
  for (const n of s.order) byOp.set(opOf(n), (byOp.get(opOf(n)) || 0) + nodes.seconds[n]);
  const top = [...byOp].sort((a, b) => b[1] - a[1]).slice(0, 8);
  const saved = new Map(), again = new Map(), counted = new Set();
  const add = (map, n, size) => {
    const known = map.get(lineOf(n)) || [0, n];
    map.set(lineOf(n), [known[0] + size, known[1]]);
  };
  for (const e of s.edges) {
    if (e.kind !== "saved" || counted.has(e.v)) continue;
    counted.add(e.v);
    add(saved, e.from, bytesOf(e.v));
  }
  for (const n of s.again) add(again, n, 1);
  const lines = (map, text) => [...map.values()].sort((a, b) => b[0] - a[0]).map(([size, n]) => () => lineLink(app, n, text(size)));
  const rows = data.decisions.reduce((found, d) => {
    const kind = found.get(d.action) || [0, 0];
    return found.set(d.action, [kind[0] + 1, kind[1] + d.bytes]);
  }, new Map());
  return [
    el("h2", "", data.title),
    el("p", "dim", "Pick a layer, a line or a node. Arrow keys walk the tree, Enter opens, / filters, Escape goes back."),
    ...(rows.size ? [el("h3", "", "memory plan"), facts([...rows].map(([action, [count, size]]) => [action, `${count} values, ${sizeText(size)}`]))] : []),
    ...section("saved for the backward pass, by line", lines(saved, sizeText), 8),
    ...section("recomputed, by line", lines(again, (count) => `${count} ops`), 6),
    el("h3", "", "estimated time by op"),
    facts(top.map(([name, seconds]) => [name, `${percent(seconds / s.seconds)}, ${secondsText(seconds)}`])),
  ];
}
