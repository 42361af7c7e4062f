// Layers, lines and nodes as a tree, and the rows of what is open.
//
//   group   a scope, a line of code, or the body of a node; `parts` are groups, `pairs` nodes
//   pair    a forward node beside a node of the backward pass, either may be -1; `body` where
//           they have regions

const SCOPES_DEEP = 20;

function tree(s, extra) {
  const t = { s, leaf: new Map(), pairOf: new Map(), root: null, gone: new Set(extra) };
  t.root = level(t, s.order.concat(extra), null, "", (n) => (nodes.phase[n] === BACKWARD ? BACKWARD : FORWARD));
  return t;
}

function group(kind, label, parent, key) {
  return {
    kind, label, parent, key, code: "", parts: new Map(), pairs: null, lists: [[], []],
    depth: parent ? parent.depth + 1 : -1, count: [0, 0], seconds: [0, 0], flops: [0, 0],
    saved: 0, inner: 0, marks: { added: 0, removed: 0, changed: 0 }, hits: 0, row: -1,
  };
}

// One graph, or the bodies of a pair of nodes: its groups below `parent`.
function level(t, list, parent, key, laneOf, regionOf) {
  const root = group("body", "", parent, key);
  if (parent) root.depth = parent.depth;
  for (const n of list) {
    let at = root;
    if (nodes.phase[n] === UPDATE && root.parent === null) at = part(at, "phase", "update");
    if (regionOf && regionOf.has(n)) at = part(at, "region", regionOf.get(n));
    const scope = scopeOf(n);
    for (const name of scope === "" ? [] : scope.split("/", SCOPES_DEEP)) at = part(at, "scope", name);
    at = part(at, "line", lineOf(n));
    at.code = codeOf(n);
    at.lists[laneOf(n)].push(n);
    t.leaf.set(n, at);
    tally(t, at, n, laneOf(n));
  }
  finish(t, root);
  return root;
}

function part(parent, kind, label) {
  const name = `${kind} ${label}`;
  if (!parent.parts.has(name)) parent.parts.set(name, group(kind, label, parent, `${parent.key}\n${name}`));
  return parent.parts.get(name);
}

function tally(t, leaf, n, lane) {
  const { s } = t, gone = t.gone.has(n);
  const mark = gone ? "removed" : s.added.has(n) ? "added" : s.changed.has(n) ? "changed" : "";
  const seconds = gone ? 0 : nodes.seconds[n] * s.times[n];
  for (let g = leaf; g && g.kind !== "body"; g = g.parent) {
    g.count[lane] += gone ? 0 : 1;
    g.seconds[lane] += seconds;
    g.flops[lane] += gone ? 0 : nodes.flops[n] * s.times[n];
  }
  if (mark) for (let g = leaf; g; g = g.parent) g.marks[mark] += 1;
}

// Pair the nodes of each line.
function finish(t, g) {
  if (g.kind === "line") g.pairs = pairsOf(t, g);
  for (const each of g.parts.values()) finish(t, each);
}

function pairsOf(t, g) {
  const [forward, backward] = g.lists, left = new Set(backward), found = [];
  const put = (f, b) => {
    const pair = { kind: "pair", f, b, parent: g, depth: g.depth + 1, key: `${g.key}\n${f} ${b}`, body: null, marks: { added: 0, removed: 0, changed: 0 }, hits: 0, row: -1 };
    if (f >= 0) t.pairOf.set(f, pair);
    if (b >= 0) t.pairOf.set(b, pair);
    pair.body = bodyOf(t, pair);
    found.push(pair);
  };
  const holds = (n) => (data.regions[n] ? 0 : 1), again = (n) => (t.s.again.has(n) ? 1 : 0);
  for (const f of forward) {
    const mine = (t.s.derivatives.get(f) || []).filter((n) => left.has(n)).sort((a, b) => holds(a) - holds(b) || again(a) - again(b) || t.s.place[a] - t.s.place[b]);
    mine.forEach((n) => left.delete(n));
    put(f, mine.length ? mine[0] : -1);
    mine.slice(1).forEach((n) => put(-1, n));
  }
  left.forEach((n) => put(-1, n));
  return found;
}

// Of more regions than one, such as the branches of a cond, each is a group.
function bodyOf(t, pair) {
  const lanes = new Map(), regionOf = new Map();
  for (const [holder, lane] of [[pair.f, FORWARD], [pair.b, BACKWARD]]) {
    const regions = holder < 0 ? [] : data.regions[holder] || [];
    regions.forEach(([name, , runs], k) => {
      const label = opOf(holder) === "cond" ? `branch ${k}` : data.texts[name];
      for (const n of spread(runs)) {
        lanes.set(n, lane === BACKWARD || nodes.phase[n] === BACKWARD ? BACKWARD : FORWARD);
        if (regions.length > 1) regionOf.set(n, label);
      }
    });
  }
  return lanes.size ? level(t, [...lanes.keys()], pair, pair.key, (n) => lanes.get(n), regionOf) : null;
}

// Rows of what is open. With `test`, of the nodes that pass it and of what holds them, all open.
function rowsOf(t, open, test) {
  const rows = [];
  if (test) hit(t, test);
  const shown = (g) => !test || g.hits > 0;
  const isOpen = (g) => (test ? true : open.has(g.key));
  const add = (g) => { g.row = rows.length; rows.push(g); };
  const visit = (g) => {
    for (const each of g.parts.values()) {
      if (!shown(each)) continue;
      add(each);
      if (isOpen(each)) visit(each);
    }
    for (const pair of g.pairs || []) {
      if (!shown(pair)) continue;
      add(pair);
      if (pair.body && isOpen(pair)) visit(pair.body);
    }
  };
  forget(t.root);
  visit(t.root);
  return rows;
}

function forget(g) {
  g.row = -1;
  for (const each of g.parts.values()) forget(each);
  for (const pair of g.pairs || []) {
    pair.row = -1;
    if (pair.body) forget(pair.body);
  }
}

function hit(t, test) {
  const clear = (g) => {
    g.hits = 0;
    for (const each of g.parts.values()) clear(each);
    for (const pair of g.pairs || []) {
      pair.hits = 0;
      if (pair.body) clear(pair.body);
    }
  };
  clear(t.root);
  t.found = 0;
  for (const [n, pair] of t.pairOf) {
    if (!test(n)) continue;
    t.found += 1;
    for (let g = pair; g; g = g.parent) g.hits += 1;
  }
}

// The open row that shows a node, itself or what holds it.
function rowFor(t, n) {
  for (let g = t.pairOf.get(n); g; g = g.parent) if (g.row >= 0) return g.row;
  return -1;
}

// Open all that holds a node.
function reveal(t, open, n) {
  const pair = t.pairOf.get(n);
  for (let g = pair && pair.parent; g; g = g.parent) open.add(g.key);
}
