"use strict";
// Volumes are (D, *spatial) in C order, axes as stored: of a plane's two axes the lower runs to
// the right, the other one up, the first voxel at the lower left.  u is in voxels, pull-back.

const content = JSON.parse(document.getElementById("content").textContent);
const main = document.querySelector("main");
const WIDTH = 150; // pixels of the longest side of a picture
const COLOURS = ["#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#bcbd22", "#17becf", "#7f7f7f"];

function element(tag, text, parent, attributes = {}) {
  const made = document.createElement(tag);
  if (text !== null) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  parent?.append(made);
  return made;
}

function section(title) {
  const made = element("section", null, main, { id: title.toLowerCase().replaceAll(" ", "-") });
  element("h2", title, made);
  element("a", title, document.querySelector("nav"), { href: "#" + made.id });
  return made;
}

// --- tables

function number(text) {
  const value = parseFloat(text.replace(/[<,\s]/g, "")); // "< 0.001", "1,234"
  return Number.isNaN(value) ? null : value;
}

function compare(a, b) {
  const [x, y] = [number(a), number(b)];
  if (x !== null && y !== null) return x - y;
  if (x !== null || y !== null) return x === null ? 1 : -1; // what is no number comes last
  return a.localeCompare(b);
}

function table({ title, columns, rows, note }) {
  const place = section(title);
  if (note) element("p", note, place);
  const box = element("div", null, place, { class: "scroll" });
  const made = element("table", null, box);
  const head = element("tr", null, element("thead", null, made));
  const body = element("tbody", null, made);
  const shown = rows.map((cells) => {
    const row = element("tr", null, body);
    for (const cell of cells) element("td", cell, row);
    return { cells, row };
  });
  columns.forEach((name, place) => {
    const header = element("th", name, head, { scope: "col", tabindex: "0" });
    const sort = () => {
      const down = header.getAttribute("aria-sort") === "ascending";
      for (const other of head.children) other.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", down ? "descending" : "ascending");
      shown.sort((a, b) => (down ? -1 : 1) * compare(a.cells[place], b.cells[place]));
      body.append(...shown.map(({ row }) => row));
    };
    header.addEventListener("click", sort);
    header.addEventListener("keydown", (event) => event.key === "Enter" && sort());
  });
}

// --- volumes

async function unpack({ data, type }) {
  const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const buffer = await new Response(stream).arrayBuffer();
  return type === "uint8" ? new Uint8Array(buffer) : new Int16Array(buffer);
}

// The plane `axes` of a volume at index `at` of the third axis: value(right, up).
function cut(volume, shape, axes, at, channel = 0) {
  const strides = shape.map((_, axis) => shape.slice(axis + 1).reduce((a, b) => a * b, 1));
  const third = shape.findIndex((_, axis) => !axes.includes(axis));
  const start = channel * strides[0] * shape[0] + (third < 0 ? 0 : at * strides[third]);
  const [right, up] = axes.map((axis) => strides[axis]);
  return (i, j) => volume[start + i * right + j * up];
}

const grey = (v) => [v, v, v];
function diverging(low, high) {
  return (t) => (t < 0 ? low : high).map((c) => Math.round(255 + (c - 255) * Math.min(1, Math.abs(t))));
}
const redBlue = diverging([5, 80, 170], [180, 10, 30]);
const tealPurple = diverging([0, 120, 105], [85, 40, 140]);
const RED = [230, 0, 26];

// --- pictures of one plane: each view colours voxels and may draw lines over them

function views(loaded, { shape, step, span }) {
  const { fixed, moving, warped, u, jacobian, fixed_labels, warped_labels } = loaded;
  const image = (volume) => (axes, at) => {
    const value = cut(volume, shape, axes, at);
    return (i, j) => grey(value(i, j));
  };
  const difference = (other) => (axes, at) => {
    const [a, b] = [cut(fixed, shape, axes, at), cut(other, shape, axes, at)];
    return (i, j) => redBlue((a(i, j) - b(i, j)) / span);
  };
  const checkerboard = (axes, at) => {
    const sides = [cut(fixed, shape, axes, at), cut(warped, shape, axes, at)];
    return (i, j) => grey(sides[(Math.floor(i / 8) + Math.floor(j / 8)) % 2](i, j));
  };
  const folds = (axes, at) => {
    const value = cut(jacobian, shape, axes, at);
    return (i, j) => (value(i, j) === 0 ? RED : tealPurple((value(i, j) - 128) / 127));
  };
  const faint = (axes, at) => {
    const value = cut(moving, shape, axes, at);
    return (i, j) => grey(Math.round(255 - 0.3 * (255 - value(i, j))));
  };
  const shown = [
    ["fixed", image(fixed)],
    ["moving", image(moving)],
    ["warped moving", image(warped)],
    ["checkerboard fixed / warped", checkerboard],
    ["fixed - moving", difference(moving)],
    ["fixed - warped", difference(warped)],
    ["grid x + u(x)", faint, (...at) => gridLines(u, shape, step, ...at)],
    ["log det J, folds red", folds],
  ];
  if (fixed_labels) {
    shown.push(["labels: fixed —, warped - -", image(fixed), (pen, axes, at, place) => {
      outline(cut(fixed_labels, shape, axes, at), shape, pen, axes, place, []);
      outline(cut(warped_labels, shape, axes, at), shape, pen, axes, place, [3, 3]);
    }]);
  }
  return shown;
}

function gridLines(u, shape, step, pen, axes, at, place) {
  const parts = axes.map((axis) => cut(u, shape, axes, at, axis));
  const [n, m] = axes.map((axis) => shape[axis]);
  const point = (i, j) => place(i + parts[0](i, j) / 100, j + parts[1](i, j) / 100);
  pen.strokeStyle = "navy";
  pen.beginPath();
  for (let i = 0; i < n; i += step[axes[0]]) for (let j = 0; j < m; j++) pen[j ? "lineTo" : "moveTo"](...point(i, j));
  for (let j = 0; j < m; j += step[axes[1]]) for (let i = 0; i < n; i++) pen[i ? "lineTo" : "moveTo"](...point(i, j));
  pen.stroke();
}

// Edges between voxels of different labels, in the colour of the label.
function outline(label, shape, pen, axes, place, dashes) {
  const [n, m] = axes.map((axis) => shape[axis]);
  const at = (i, j) => (i < 0 || j < 0 || i >= n || j >= m ? 0 : label(i, j));
  pen.setLineDash(dashes);
  pen.lineWidth = 1.6;
  for (let i = 0; i < n; i++) for (let j = 0; j < m; j++) {
    const own = at(i, j);
    if (!own) continue;
    pen.strokeStyle = COLOURS[own % COLOURS.length];
    pen.beginPath();
    for (const [di, dj] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
      if (at(i + di, j + dj) === own) continue;
      pen.moveTo(...place(i + (di - dj) / 2, j + (dj - di) / 2));
      pen.lineTo(...place(i + (di + dj) / 2, j + (dj + di) / 2));
    }
    pen.stroke();
  }
  pen.setLineDash([]);
}

function paint(canvas, shape, axes, at, colour, lines) {
  const [n, m] = axes.map((axis) => shape[axis]);
  const pixels = new ImageData(n, m);
  const find = colour(axes, at);
  for (let j = 0; j < m; j++) for (let i = 0; i < n; i++) {
    pixels.data.set([...find(i, j), 255], 4 * ((m - 1 - j) * n + i));
  }
  const small = new OffscreenCanvas(n, m);
  small.getContext("2d").putImageData(pixels, 0, 0);
  const pen = canvas.getContext("2d");
  pen.imageSmoothingEnabled = false;
  pen.drawImage(small, 0, 0, canvas.width, canvas.height);
  const [sx, sy] = [canvas.width / n, canvas.height / m];
  pen.lineWidth = 0.8;
  lines?.(pen, axes, at, (i, j) => [(i + 0.5) * sx, (m - 0.5 - j) * sy]);
}

function plane(box, kept, loaded, axes) {
  const { shape, spacing } = kept;
  const row = element("div", null, box, { class: "row" });
  const third = shape.findIndex((_, axis) => !axes.includes(axis));
  const label = element("label", `axis ${axes[0]} right, axis ${axes[1]} up`, row);
  const longest = Math.max(...shape.map((n, axis) => n * spacing[axis]));
  const size = axes.map((axis) => Math.max(1, Math.round((WIDTH * shape[axis] * spacing[axis]) / longest)));
  const drawn = views(loaded, kept).map(([title, colour, lines]) => {
    const view = element("div", null, row, { class: "view" });
    const canvas = element("canvas", null, view, { width: size[0], height: size[1], "data-view": title });
    element("span", title, view);
    return (at) => paint(canvas, shape, axes, at, colour, lines);
  });
  const show = (at) => drawn.forEach((draw) => draw(at));
  if (third < 0) return show(0);
  const where = element("span", "", label);
  const slider = element("input", null, label, { type: "range", min: 0, max: shape[third] - 1, "data-axis": third });
  const move = () => {
    where.textContent = `; axis ${third} = ${slider.value} `;
    show(Number(slider.value));
  };
  slider.value = kept.through[third];
  slider.addEventListener("input", move);
  move();
}

async function showCase(box, kept) {
  box.replaceChildren();
  const loaded = {};
  for (const [name, packed] of Object.entries(kept.volumes)) loaded[name] = await unpack(packed);
  element("p", kept.note, box);
  const legend = element("div", null, box, { class: "legend" });
  for (const [colour, text] of [["rgb(230,0,26)", "fold: det J ≤ 0"], ["rgb(85,40,140)", `expansion, log det J = ${kept.log_limit}`], ["rgb(0,120,105)", `contraction, log det J = -${kept.log_limit}`]]) {
    element("span", null, legend, { class: "swatch", style: `background:${colour}` });
    legend.append(text);
  }
  const axes = kept.shape.length === 2 ? [[0, 1]] : [[0, 1], [0, 2], [1, 2]];
  axes.forEach((pair) => plane(box, kept, loaded, pair));
  box.dataset.ready = kept.title;
}

function gallery(cases) {
  const place = section("Cases");
  const choice = element("select", null, place, { "aria-label": "case" });
  cases.forEach(({ title }, index) => element("option", title, choice, { value: index }));
  const box = element("div", null, place, { id: "case" });
  const show = () => showCase(box, cases[choice.value]).catch((error) => { box.textContent = String(error); });
  choice.addEventListener("change", show);
  show();
}

content.tables.forEach(table);
if (content.cases.length) gallery(content.cases);
for (const { title, pictures } of content.figures) {
  const place = section(title);
  for (const { name, png } of pictures) element("img", null, element("figure", null, place), { alt: name, src: "data:image/png;base64," + png });
}
if (content.texts.length) {
  const place = section("Configuration");
  for (const { title, text } of content.texts) {
    const details = element("details", null, place);
    element("summary", title, details);
    element("pre", text, details);
  }
}
document.body.dataset.ready = "true";
