"use strict";

// Tables: a click on a heading sorts, the second turns round, the third brings back the order of the report.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], original = [...body.rows];
  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    const numeric = heading.classList.contains("number");
    const order = numeric ? ["descending", "ascending"] : ["ascending", "descending"];
    button.addEventListener("click", () => {
      const next = order[order.indexOf(heading.getAttribute("aria-sort")) + 1];
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      if (next) heading.setAttribute("aria-sort", next);
      const sign = next === "descending" ? -1 : 1;
      const value = row => row.cells[column].dataset.value ?? (numeric ? undefined : row.cells[column].textContent.trim());
      const compare = (one, other) => {
        const [a, b] = [value(one), value(other)];
        if (a === undefined || b === undefined) return (a === undefined) - (b === undefined); // dashes stay below
        return sign * (numeric ? a - b : a.localeCompare(b, undefined, { numeric: true }));
      };
      body.append(...(next ? [...original].sort(compare) : original));
    });
  });
}

// Answers: one test item at a time.
const articles = [...document.querySelectorAll("article.item")];
if (articles.length) {
  const chooser = document.getElementById("answers-item");
  articles.forEach((article, place) => chooser.add(new Option(article.dataset.name, place)));
  const show = place => {
    chooser.value = (place + articles.length) % articles.length;
    articles.forEach((article, other) => { article.hidden = other !== Number(chooser.value); });
  };
  chooser.addEventListener("change", () => show(Number(chooser.value)));
  document.getElementById("answers-previous").addEventListener("click", () => show(Number(chooser.value) - 1));
  document.getElementById("answers-next").addEventListener("click", () => show(Number(chooser.value) + 1));
  document.getElementById("answers-controls").hidden = false;
  show(0);
}

// Alignments: both tokenisations over the bytes of the response, broken into lines where no group is cut.
const source = document.getElementById("alignment-data");
if (source) {
  const packed = JSON.parse(source.textContent);
  const listed = members => Array.isArray(members) ? members : [members];
  const groups = packed.groups.map(pairs => pairs.map(pair => pair.map(listed)));
  const data = packed.alignments.map(a => (
    { ...a, student: packed.sides[a.student], teacher: packed.sides[a.teacher], groups: groups[a.groups] }));
  const CELL = 9, HEIGHT = 24, GAP = 46, TOP = 26, NAMES = 16;
  const items = document.getElementById("viewer-item"), rows = document.getElementById("viewer-row");
  const strip = document.getElementById("viewer-strip");
  const named = a => `${a.task} · ${a.item}`;
  const drawn = (name, attributes, parent, text) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    parent.append(element);
    return element;
  };
  const visible = text => text.replaceAll(" ", "·").replaceAll("\n", "⏎").replaceAll("\t", "⇥").replaceAll("\r", "␍");

  // Spans in cells: a cell is a byte; tokens without bytes (a dummy prefix, the end) get room of their own.
  const spans = (side, before, total) => side.ends.map((end, i) => {
    const start = i ? side.ends[i - 1] : 0;
    if (end > start) return [start + before, end + before];
    return end ? [total + before, total + before + Math.max(3, side.tokens[i].length + 1)] : [0, before];
  });

  const draw = () => {
    const a = data.find(one => named(one) === items.value && one.row + "/" + one.method === rows.value);
    const sides = [a.student, a.teacher];
    const before = sides.some(side => side.ends[0] === 0) ? 2 : 0;
    const total = Math.max(...sides.map(side => side.ends.at(-1) ?? 0));
    const places = sides.map(side => spans(side, before, total));
    const groupsOf = sides.map(side => side.tokens.map(() => []));
    a.groups.forEach((group, number) => group.forEach((members, k) => members.forEach(i => groupsOf[k][i].push(number))));
    summarise(a, groupsOf);
    tabulate(a);

    // Where a line may end: no token and no group goes across.
    const end = Math.max(...places.flat().map(place => place[1]), 1);
    const closed = new Array(end + 1).fill(true);
    const forbid = (from, to) => { for (let cell = from + 1; cell < to; cell++) closed[cell] = false; };
    places.flat().forEach(([from, to]) => forbid(from, to));
    for (const group of a.groups) {
      const all = group.flatMap((members, k) => members.map(i => places[k][i]));
      forbid(Math.min(...all.map(p => p[0])), Math.max(...all.map(p => p[1])));
    }
    const room = Math.max(20, Math.floor((strip.clientWidth - 30) / CELL));
    const breaks = [0];
    for (let cell = 1, last = 0; cell <= end; cell++) {
      if (!closed[cell]) continue;
      if (cell - breaks.at(-1) > room && last > breaks.at(-1)) breaks.push(last);
      last = cell;
    }
    breaks.push(end);

    const most = Math.max(...a.kd.map(value => value ?? 0), 1e-9);
    strip.replaceChildren();
    breaks.slice(0, -1).forEach((from, line) => {
      const to = breaks[line + 1], width = (to - from) * CELL + 2, low = TOP + NAMES + HEIGHT + GAP;
      const svg = drawn("svg", { width, height: low + HEIGHT + NAMES + 2, role: "img" }, strip);
      svg.setAttribute("aria-label", `Tokens of bytes ${Math.max(0, from - before)} to ${to - before}`);
      if (!line) {
        drawn("text", { x: 1, y: 11, class: "side" }, svg, `student: ${a.student.name}`);
        drawn("text", { x: 1, y: low + HEIGHT + 13, class: "side" }, svg, `teacher: ${a.teacher.name}`);
      }
      const inside = place => place[0] >= from && place[1] <= to;
      const middle = place => ((place[0] + place[1]) / 2 - from) * CELL;
      a.groups.forEach(([students, teachers], number) => {
        for (const s of students) for (const t of teachers) {
          const ends = [places[0][s], places[1][t]];
          if (!ends.every(inside)) continue;
          const [x, y] = ends.map(middle), bend = TOP + NAMES + HEIGHT + GAP / 2;
          drawn("path", { d: `M${x} ${TOP + NAMES + HEIGHT}C${x} ${bend} ${y} ${bend} ${y} ${low}`, class: "link", "data-group": number }, svg);
        }
      });
      sides.forEach((side, k) => side.tokens.forEach((token, i) => {
        const place = places[k][i];
        if (!inside(place)) return;
        const mine = groupsOf[k][i], x = (place[0] - from) * CELL, y = k ? low : TOP + NAMES;
        const box = drawn("g", { class: mine.length ? "token" : "token masked" }, svg);
        const kd = k || !a.kd.length ? null : a.kd[i];
        const told = [visible(token), mine.length ? `group ${mine.map(n => n + 1).join(", ")}` : "masked"];
        if (kd !== null) told.push(`KD ${kd}`);
        drawn("title", {}, box, told.join(", "));
        if (kd > 0) {
          const height = Math.max(1, kd / most * (TOP - 4));
          drawn("rect", { x: x + 1, y: TOP + NAMES - 2 - height, width: (place[1] - place[0]) * CELL - 2, height, class: "kd" }, svg);
        }
        drawn("rect", { x: x + 1, y, width: Math.max(2, (place[1] - place[0]) * CELL - 2), height: HEIGHT, rx: 3, class: mine.length ? `c${mine[0] % 6}` : "" }, box);
        drawn("text", { x: x + (place[1] - place[0]) * CELL / 2, y: y + 16, "text-anchor": "middle" }, box, visible(token));
        const light = on => svg.querySelectorAll(".link").forEach(link =>
          link.classList.toggle("lit", on && mine.includes(Number(link.dataset.group))));
        box.addEventListener("pointerenter", () => light(true));
        box.addEventListener("pointerleave", () => light(false));
      }));
    });
  };

  const summarise = (a, groupsOf) => {
    const masked = groupsOf.map(side => side.filter(groups => !groups.length).length);
    const alone = a.groups.filter(([s, t]) => s.length === 1 && t.length === 1).length;
    const parts = [
      `${a.student.tokens.length} student and ${a.teacher.tokens.length} teacher tokens`,
      `${a.groups.length} groups, ${alone} of them one to one`,
      `${masked[0]} student and ${masked[1]} teacher tokens masked`,
    ];
    const known = a.kd.filter(value => value !== null);
    if (known.length) parts.push(`KD ${known.reduce((sum, value) => sum + value, 0).toPrecision(4)} in all`);
    else parts.push(a.traced ? "no KD by token: the loss is no sum over tokens" : "KD by token is stored for the responses marked so");
    const own = a.standIn ? ` Groups of shared bytes: the links of ${a.method} itself need the models' entropies, and are stored for the responses marked with KD.` : "";
    document.getElementById("viewer-summary").textContent = parts.join("; ") + "." + own;
  };

  const tabulate = a => {
    const table = document.getElementById("viewer-table");
    table.replaceChildren();
    const add = (section, kind, cells) => {
      const row = section.insertRow();
      for (const text of cells) row.append(Object.assign(document.createElement(kind), { textContent: text }));
    };
    add(table.createTHead(), "th", ["group", "student", "teacher", "KD"]);
    const body = table.createTBody();
    a.groups.forEach(([students, teachers], number) => {
      const kd = students.map(i => a.kd[i]).filter(value => value !== null && value !== undefined);
      add(body, "td", [
        number + 1,
        students.map(i => visible(a.student.tokens[i])).join(" | "),
        teachers.map(i => visible(a.teacher.tokens[i])).join(" | "),
        kd.length ? kd.reduce((sum, value) => sum + value, 0).toPrecision(3) : "–",
      ]);
    });
  };

  const key = a => a.row + "/" + a.method;
  const offer = () => {
    const kept = rows.value, here = data.filter(one => named(one) === items.value);
    rows.replaceChildren();
    for (const a of here) rows.add(new Option(a.row === a.method ? a.row : `${a.row}: ${a.method}`, key(a)));
    const first = here.find(a => key(a) === kept) ?? here.find(a => a.kind === "cross-tokenizer") ?? here[0];
    rows.value = key(first);
    draw();
  };
  const tasks = [...new Set(data.map(a => a.task))];
  for (const task of tasks) {
    const part = tasks.length > 1 ? document.createElement("optgroup") : items;
    if (part !== items) { part.label = task; items.add(part); }
    for (const name of new Set(data.filter(a => a.task === task).map(named))) {
      const traced = data.some(a => named(a) === name && a.traced);
      part.append(new Option(traced ? `${name} (KD)` : name, name));
    }
  }
  const opened = data.find(a => a.traced && a.kind === "cross-tokenizer") ?? data.find(a => a.traced) ?? data[0];
  items.value = named(opened);
  const step = by => {
    items.selectedIndex = (items.selectedIndex + by + items.options.length) % items.options.length;
    offer();
  };
  document.getElementById("viewer-previous").addEventListener("click", () => step(-1));
  document.getElementById("viewer-next").addEventListener("click", () => step(1));
  items.addEventListener("change", offer);
  rows.addEventListener("change", draw);
  document.getElementById("viewer").hidden = false;
  offer();
  new ResizeObserver((entries, observer) => {
    if (observer.width !== strip.clientWidth) { observer.width = strip.clientWidth; draw(); }
  }).observe(strip);
}
