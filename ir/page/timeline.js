// Live bytes over program order; the list beside it says whose they are at the cursor.

const SHOWN = 12;

function timeline(app) {
  const canvas = document.getElementById("timeline"), list = document.getElementById("live");
  const view = { at: 0 };
  const count = () => app.stage.timeline.bytes.length;
  const box = () => ({ left: 12, right: canvas.clientWidth - 12, top: 16, bottom: canvas.clientHeight - 8 });
  const xOf = (i) => { const b = box(); return b.left + ((i + 0.5) / count()) * (b.right - b.left); };

  function reset() {
    view.at = app.stage.timeline.peak;
    canvas.setAttribute("aria-valuemax", count() - 1);
    move(view.at);
  }

  function draw() {
    const scale = window.devicePixelRatio || 1, b = box(), { bytes, held, peak } = app.stage.timeline;
    canvas.width = canvas.clientWidth * scale;
    canvas.height = canvas.clientHeight * scale;
    const pen = canvas.getContext("2d"), style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(`--${name}`);
    const { budget, measured } = data.figures;
    const most = 1.08 * Math.max(1, bytes[peak], budget || 0, measured || 0);
    const y = (size) => b.bottom - (size / most) * (b.bottom - b.top);
    pen.scale(scale, scale);
    pen.font = "11px system-ui, sans-serif";
    const columns = Math.max(1, Math.floor(b.right - b.left));
    for (let c = 0; c < columns; c++) {
      const from = Math.floor((c * bytes.length) / columns), to = Math.max(from + 1, Math.floor(((c + 1) * bytes.length) / columns));
      let size = 0;
      for (let i = from; i < to; i++) size = Math.max(size, bytes[i]);
      const n = app.stage.order[Math.min(from, app.stage.order.length - 1)];
      pen.fillStyle = colour("area");
      pen.fillRect(b.left + c, y(size), 1, b.bottom - y(size));
      pen.fillStyle = colour("base");
      pen.fillRect(b.left + c, y(held[from]), 1, b.bottom - y(held[from]));
      if (n !== undefined) {
        pen.fillStyle = colour(PHASES[nodes.phase[n]]);
        pen.fillRect(b.left + c, b.bottom + 2, 1, 3);
        pen.fillRect(b.left + c, y(size) - 1, 1, 1.5);
      }
    }
    const rule = (size, name, dash) => {
      pen.strokeStyle = colour(name);
      pen.lineWidth = 1.5;
      pen.setLineDash(dash);
      pen.beginPath();
      pen.moveTo(b.left, y(size));
      pen.lineTo(b.right, y(size));
      pen.stroke();
      pen.setLineDash([]);
    };
    if (budget) rule(budget, "removed", [7, 4]);
    if (measured) rule(measured, "update", [2, 3]);
    const label = sizeText(bytes[peak]), wide = pen.measureText(label).width;
    const x = Math.max(b.left, Math.min(b.right - wide, xOf(peak) - wide / 2));
    pen.globalAlpha = 0.8;
    pen.fillStyle = colour("paper");
    pen.fillRect(x - 4, y(bytes[peak]) + 4, wide + 8, 15);
    pen.globalAlpha = 1;
    pen.fillStyle = colour("ink");
    pen.fillText(label, x, y(bytes[peak]) + 15);
    const mine = app.picked >= 0 && app.stage.timeline.made.get(app.picked);
    if (mine) {
      pen.fillStyle = colour("saved");
      pen.fillRect(xOf(Math.max(0, mine.first)), b.bottom + 1, Math.max(3, xOf(mine.last) - xOf(Math.max(0, mine.first))), 5);
    }
    pen.strokeStyle = colour("ink");
    pen.lineWidth = 1;
    pen.beginPath();
    pen.moveTo(xOf(view.at), b.top - 6);
    pen.lineTo(xOf(view.at), b.bottom + 6);
    pen.stroke();
  }

  function move(at) {
    view.at = Math.max(0, Math.min(count() - 1, at));
    const n = app.stage.order[view.at], where = n === undefined ? "return" : `${opOf(n)} ${lineOf(n)}`;
    const size = sizeText(app.stage.timeline.bytes[view.at]);
    canvas.setAttribute("aria-valuenow", view.at);
    canvas.setAttribute("aria-valuetext", `${size} live at ${where}`);
    describe(n, size);
    draw();
  }

  function describe(n, size) {
    const { rows, rest, inside } = liveAt(app.stage.timeline, view.at);
    const head = el("h2", "", `${size} live`, el("span", "dim", `at ${view.at}`));
    if (n !== undefined) head.append(nodeLink(app, n));
    const made = rows.slice(0, SHOWN).map((b) => bufferRow(app, b.v, b.node, b.bytes));
    if (rows.length > SHOWN) {
      const more = rows.slice(SHOWN).reduce((sum, b) => sum + b.bytes, 0);
      made.push(el("p", "dim", `${rows.length - SHOWN} more, ${sizeText(more)}`));
    }
    if (rest > 0 && n !== undefined) {
      const inner = [];
      for (let i = 0; inside && i < inside.length; i += 3) inner.push(bufferRow(app, inside[i], inside[i + 1], inside[i + 2]));
      made.unshift(el("p", "", `${sizeText(rest)} inside ${opOf(n)}, of which at its own peak:`), ...inner, el("h3", "", "around it"));
    }
    list.replaceChildren(head, ...made);
  }

  const at = (event) => {
    const b = box(), x = event.clientX - canvas.getBoundingClientRect().left;
    return Math.floor(((x - b.left) / (b.right - b.left)) * count());
  };
  const jump = () => { if (app.stage.order[view.at] !== undefined) app.go(app.stage.order[view.at]); };
  canvas.addEventListener("pointermove", (event) => move(at(event)));
  canvas.addEventListener("click", (event) => { move(at(event)); jump(); });
  canvas.addEventListener("keydown", (event) => {
    const step = event.shiftKey ? Math.max(1, Math.round(count() / 50)) : 1;
    const moves = { ArrowRight: view.at + step, ArrowLeft: view.at - step, ArrowUp: view.at + step, ArrowDown: view.at - step, Home: 0, End: count() - 1 };
    if (event.key in moves) move(moves[event.key]);
    else if (event.key === "Enter") jump();
    else return;
    event.preventDefault();
  });
  new ResizeObserver(() => requestAnimationFrame(draw)).observe(canvas);
  return { reset, draw };
}

function bufferRow(app, v, n, bytes) {
  if (n >= 0) {
    const made = nodeLink(app, n, v);
    made.lastChild.before(made.lastChild.textContent ? el("span", "dim", made.lastChild.textContent) : "");
    made.lastChild.textContent = sizeText(bytes);
    return made;
  }
  return el("div", "link", el("code", "", nameOf(v) || "argument"), el("code", "dim", typeOf(v)), el("span", "size", sizeText(bytes)));
}
