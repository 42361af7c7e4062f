// The rows on the screen: forward to the left, backward to the right, reads between them.

const ROW = 26, GUTTER = 110, SPARE = 6;

function lanes(app) {
  const scroll = document.getElementById("scroll"), box = document.getElementById("rows");
  const canvas = document.getElementById("edges");
  const view = { active: 0, side: 0 };
  let rows = [], arcs = [], queued = false;

  function refresh() {
    rows = rowsOf(app.tree, app.open, app.test);
    view.active = Math.min(view.active, Math.max(0, rows.length - 1));
    box.style.height = `${Math.max(1, rows.length) * ROW}px`;
    scroll.setAttribute("aria-rowcount", rows.length);
    arcs = gather(app, rows);
    draw();
  }

  function draw() {
    queued = false;
    const first = Math.max(0, Math.floor(scroll.scrollTop / ROW) - SPARE);
    const last = Math.min(rows.length, Math.ceil((scroll.scrollTop + scroll.clientHeight) / ROW) + SPARE);
    const made = [];
    for (let i = first; i < last; i++) made.push(rowElement(app, rows[i], i, view));
    if (!rows.length) made.push(el("p", "empty", app.test ? "No node matches." : "The graph has no nodes."));
    box.replaceChildren(...made);
    if (rows.length) scroll.setAttribute("aria-activedescendant", `row${view.active}`);
    drawArcs(app, canvas, scroll, arcs);
  }
  const later = () => {
    if (!queued) { queued = true; requestAnimationFrame(draw); }
  };

  function toRow(index) {
    const top = index * ROW;
    if (top < scroll.scrollTop || top + 2 * ROW > scroll.scrollTop + scroll.clientHeight) {
      scroll.scrollTop = Math.max(0, top - scroll.clientHeight / 2);
    }
  }

  function choose(index, side) {
    const row = rows[index];
    if (!row) return;
    view.active = index;
    view.side = row.kind !== "pair" ? 0 : (side === 1 && row.b >= 0) || row.f < 0 ? 1 : 0;
    toRow(index);
    if (row.kind === "pair") app.pick(view.side === 1 ? row.b : row.f);
    else app.pickGroup(row);
  }

  function toggle(row, wanted) {
    if (!opens(row) || app.test) return;
    if (wanted === undefined ? app.open.has(row.key) : !wanted) app.open.delete(row.key);
    else app.open.add(row.key);
    refresh();
  }

  function show(n) {
    const pair = app.tree.pairOf.get(n);
    if (!pair) return;
    if (app.test && pair.hits === 0) app.clearFilter();
    reveal(app.tree, app.open, n);
    refresh();
    view.active = pair.row;
    view.side = pair.b === n ? 1 : 0;
    toRow(pair.row);
    draw();
  }

  box.addEventListener("click", (event) => {
    const line = event.target.closest(".row"), cell = event.target.closest(".cell");
    if (!line || !cell || cell.classList.contains("blank")) return;
    const index = Number(line.dataset.index), row = rows[index];
    const side = cell === line.lastElementChild ? 1 : 0;
    choose(index, side);
    if (row.kind !== "pair" || event.target.closest(".twist")) toggle(row);
  });
  scroll.addEventListener("scroll", later, { passive: true });
  new ResizeObserver(later).observe(scroll);
  scroll.addEventListener("keydown", (event) => {
    const row = rows[view.active], page = Math.floor(scroll.clientHeight / ROW) - 1;
    const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -rows.length, End: rows.length };
    if (!row || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key in moves) {
      choose(Math.max(0, Math.min(rows.length - 1, view.active + moves[event.key])), view.side);
    } else if (event.key === "ArrowRight") {
      if (opens(row) && view.side === 0 && !isOpen(app, row)) toggle(row, true);
      else choose(view.active, 1);
    } else if (event.key === "ArrowLeft") {
      if (row.kind === "pair" && view.side === 1 && row.f >= 0) choose(view.active, 0);
      else if (opens(row) && isOpen(app, row) && !app.test) toggle(row, false);
      else {
        let up = row.parent;
        while (up && up.row < 0) up = up.parent;
        if (up) choose(up.row, 0);
      }
    } else if (event.key === "Enter" || event.key === " ") {
      choose(view.active, view.side);
      toggle(row);
    } else return;
    event.preventDefault();
  });
  return { refresh, draw: later, show, focus: () => scroll.focus() };
}

const opens = (row) => row.kind !== "pair" || row.body !== null;
const isOpen = (app, row) => app.test !== null || app.open.has(row.key);

function rowElement(app, row, index, view) {
  const made = el("div", `row ${row.kind === "pair" ? "pair" : "group"}${row.depth === 0 ? " top" : ""}`);
  made.id = `row${index}`;
  made.dataset.index = index;
  made.setAttribute("role", "row");
  made.setAttribute("aria-rowindex", index + 1);
  made.setAttribute("aria-level", row.depth + 1);
  if (opens(row)) made.setAttribute("aria-expanded", isOpen(app, row));
  made.style.top = `${index * ROW}px`;
  const cells = row.kind === "pair"
    ? [nodeCell(app, row.f, row), nodeCell(app, row.b, null)]
    : [groupCell(app, row, FORWARD), groupCell(app, row, BACKWARD)];
  cells[0].style.paddingLeft = `${8 + 14 * row.depth}px`;
  cells.forEach((cell) => cell.setAttribute("role", "gridcell"));
  if (index === view.active) {
    made.classList.add("active");
    cells[view.side].classList.add("at");
  }
  made.append(cells[0], el("span"), cells[1]);
  return made;
}

const twist = () => { const made = el("span", "twist", "›"); made.setAttribute("aria-hidden", "true"); return made; };

function groupCell(app, g, lane) {
  const cell = el("div", `cell ${lane === BACKWARD ? "backward" : g.kind === "phase" ? "update" : "forward"}`);
  const s = app.stage;
  if (lane === FORWARD) {
    const label = g.kind === "line" ? g.label.replace(/^.*\//, "") || "no line" : g.label;
    const name = el("span", g.kind === "line" ? "name mono" : "name", label);
    name.style.color = "var(--ink)";
    cell.append(twist(), name, el("code", "text", g.kind === "line" ? g.code : ""), ...(app.marked ? marksOf(g) : []));
    if (g.kind === "line") cell.title = `${g.label}  ${g.code}`;
  }
  if (!g.count[lane]) {
    if (lane === BACKWARD) cell.classList.add("blank");
    return cell;
  }
  const saved = lane === FORWARD && app.savedIn.get(g);
  if (saved) cell.append(el("span", "mark saved", `${sizeText(saved)} saved`));
  const again = lane === BACKWARD && app.againIn.get(g);
  if (again) cell.append(el("span", "mark again", `${again} recomputed`));
  cell.append(el("span", "size", `${g.count[lane]} ${g.count[lane] === 1 ? "op" : "ops"}`), bar(g.seconds[lane], app.longest.group, s.seconds));
  return cell;
}

function marksOf(g) {
  const signs = { added: "+", removed: "−", changed: "~" };
  return Object.keys(signs).filter((k) => g.marks[k]).map((k) => el("span", `mark ${k}`, `${signs[k]}${g.marks[k]}`));
}

// Estimated time beside that of the longest of its kind.
function bar(seconds, longest, all) {
  const fill = el("i"), made = el("span", "bar", fill);
  fill.style.width = `${Math.min(100, 100 * (seconds / longest || 0))}%`;
  made.title = `${percent(seconds / all || 0)} of the estimated time`;
  return made;
}

function nodeCell(app, n, row) {
  if (n < 0) return el("div", "cell blank");
  const s = app.stage, gone = app.tree.gone.has(n);
  const phase = s.lane[n] === BACKWARD ? "backward" : PHASES[nodes.phase[n]];
  const cell = el("div", `cell ${phase}${gone ? " gone" : ""}`);
  if (n === app.picked) cell.classList.add("picked");
  else if (app.kin.has(n)) cell.classList.add("kin");
  if (row && row.body) cell.append(twist());
  else if (row) cell.append(el("span", "twist"));
  cell.dataset.node = n;
  cell.append(el("code", "name", opOf(n)));
  const mark = gone ? ["removed", "−"] : s.added.has(n) ? ["added", "+"] : s.changed.has(n) ? ["changed", "~"] : null;
  if (mark && app.marked) cell.append(el("span", `mark ${mark[0]}`, mark[1]));
  if (s.again.has(n)) cell.append(el("span", "mark again", "recomputed"));
  else if (app.savedNodes.has(n)) cell.append(el("span", "mark saved", "saved"));
  cell.append(el("code", "text", typesOf(n)), el("span", "size", sizeText(sizeOf(n))));
  if (!gone) cell.append(bar(nodes.seconds[n] * s.times[n], app.longest.node, s.seconds));
  return cell;
}

// Reads between open rows, one arc for all of a kind between two rows. Within a lane only those of
// what is picked, recomputed or offloaded.
function gather(app, rows) {
  const found = new Map(), { s } = app.tree;
  for (const e of s.edges) {
    const from = rowFor(app.tree, e.from), to = rowFor(app.tree, e.to);
    if (from < 0 || to < 0) continue;
    const across = s.lane[e.from] !== s.lane[e.to] || e.kind === "again" || e.kind === "offloaded";
    const mine = e.from === app.picked || e.to === app.picked;
    if (!mine && (!across || e.kind === "plain")) continue;
    if (!mine && !app.kinds.has(e.kind)) continue;
    const key = `${from} ${to} ${s.lane[e.from]} ${s.lane[e.to]} ${e.kind} ${mine}`;
    const known = found.get(key);
    if (known) known.bytes += bytesOf(e.v);
    else found.set(key, { from, to, a: s.lane[e.from], b: s.lane[e.to], kind: e.kind, mine, bytes: bytesOf(e.v) });
  }
  return [...found.values()].sort((x, y) => x.mine - y.mine);
}

function drawArcs(app, canvas, scroll, arcs) {
  const width = GUTTER, height = scroll.clientHeight, scale = window.devicePixelRatio || 1;
  canvas.style.left = `${(scroll.clientWidth - GUTTER) / 2}px`;
  if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
  }
  const pen = canvas.getContext("2d"), style = getComputedStyle(document.documentElement);
  const colours = Object.fromEntries([...KINDS, "plain"].map((kind) => [kind, style.getPropertyValue(`--${kind}`)]));
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.clearRect(0, 0, width, height);
  for (const arc of arcs) {
    const y1 = arc.from * ROW + ROW / 2 - scroll.scrollTop, y2 = arc.to * ROW + ROW / 2 - scroll.scrollTop;
    if (Math.max(y1, y2) < 0 || Math.min(y1, y2) > height) continue;
    if (y1 === y2 && arc.a === arc.b) continue;
    const x1 = arc.a === BACKWARD ? width - 4 : 4, x2 = arc.b === BACKWARD ? width - 4 : 4;
    const bow = arc.a === arc.b ? (arc.a === BACKWARD ? -1 : 1) * Math.min(60, 18 + Math.abs(y2 - y1) / 4) : 0;
    const c1 = arc.a === arc.b ? x1 + bow : width / 2, c2 = arc.a === arc.b ? x2 + bow : width / 2;
    pen.strokeStyle = colours[arc.kind];
    pen.globalAlpha = arc.mine ? 1 : app.picked >= 0 ? 0.25 : 0.6;
    pen.lineWidth = Math.max(1, Math.min(6, Math.log2(1 + arc.bytes / 4096) / 2.2)) + (arc.mine ? 0.8 : 0);
    pen.setLineDash(arc.kind === "fused" ? [4, 3] : []);
    pen.beginPath();
    pen.moveTo(x1, y1);
    pen.bezierCurveTo(c1, y1, c2, y2, x2, y2);
    pen.stroke();
    pen.setLineDash([]);
    pen.fillStyle = pen.strokeStyle;
    pen.beginPath();
    pen.arc(x2, y2, 1.5 + pen.lineWidth / 2, 0, 7);
    pen.fill();
  }
}
