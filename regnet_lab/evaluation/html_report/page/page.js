"use strict";
// Volumes are (D, *spatial) in C order, axes as stored: of a plane's two axes the lower runs to
// the right, the other one up, the first voxel at the lower left.  u is in voxels of the
// fixed grid and warps backward.

const content = JSON.parse(document.getElementById("content").textContent);
const main = document.querySelector("main");
const WIDTH = 150; // pixels of the longest side of a view
const COLORS = ["#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#bcbd22", "#17becf", "#7f7f7f"];

function addElement(tag, text, parent, attributes = {}) {
  const created = document.createElement(tag);
  if (text !== null) created.textContent = text;
  for (const [name, value] of Object.entries(attributes)) created.setAttribute(name, value);
  parent?.append(created);
  return created;
}

function addSection(title) {
  const created = addElement("section", null, main, { id: title.toLowerCase().replaceAll(" ", "-") });
  addElement("h2", title, created);
  addElement("a", title, document.querySelector("nav"), { href: "#" + created.id });
  return created;
}

// --- tables

function parseNumber(text) {
  const value = parseFloat(text.replace(/[<,\s]/g, "")); // "< 0.001", "1,234"
  return Number.isNaN(value) ? null : value;
}

function compareCells(a, b) {
  const [x, y] = [parseNumber(a), parseNumber(b)];
  if (x !== null && y !== null) return x - y;
  if (x !== null || y !== null) return x === null ? 1 : -1; // text comes after numbers
  return a.localeCompare(b);
}

function addTable({ title, columns, rows, note }) {
  const parent = addSection(title);
  if (note) addElement("p", note, parent);
  const box = addElement("div", null, parent, { class: "scroll" });
  const table = addElement("table", null, box);
  const head = addElement("tr", null, addElement("thead", null, table));
  const body = addElement("tbody", null, table);
  const entries = rows.map((cells) => {
    const row = addElement("tr", null, body);
    for (const cell of cells) addElement("td", cell, row);
    return { cells, row };
  });
  columns.forEach((name, column) => {
    const header = addElement("th", name, head, { scope: "col", tabindex: "0" });
    const sort = () => {
      const descending = header.getAttribute("aria-sort") === "ascending";
      for (const other of head.children) other.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", descending ? "descending" : "ascending");
      entries.sort((a, b) => (descending ? -1 : 1) * compareCells(a.cells[column], b.cells[column]));
      body.append(...entries.map(({ row }) => row));
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

// Return the function value(right, up) of the plane `axes` at index `at` of the third axis.
function extractPlane(volume, shape, axes, at, channel = 0) {
  const strides = shape.map((_, axis) => shape.slice(axis + 1).reduce((a, b) => a * b, 1));
  const third = shape.findIndex((_, axis) => !axes.includes(axis));
  const start = channel * strides[0] * shape[0] + (third < 0 ? 0 : at * strides[third]);
  const [right, up] = axes.map((axis) => strides[axis]);
  return (i, j) => volume[start + i * right + j * up];
}

const grey = (v) => [v, v, v];
function makeDivergingColors(low, high) {
  return (t) => (t < 0 ? low : high).map((c) => Math.round(255 + (c - 255) * Math.min(1, Math.abs(t))));
}
const redBlue = makeDivergingColors([5, 80, 170], [180, 10, 30]);
const tealPurple = makeDivergingColors([0, 120, 105], [85, 40, 140]);
const RED = [230, 0, 26];

// --- views of one plane: each colors voxels and may draw lines over them

function makeViews(loaded, { shape, step, span }) {
  const { fixed, moving, warped, u, jacobian, fixed_labels, warped_labels } = loaded;
  const image = (volume) => (axes, at) => {
    const value = extractPlane(volume, shape, axes, at);
    return (i, j) => grey(value(i, j));
  };
  const difference = (other) => (axes, at) => {
    const [a, b] = [extractPlane(fixed, shape, axes, at), extractPlane(other, shape, axes, at)];
    return (i, j) => redBlue((a(i, j) - b(i, j)) / span);
  };
  const checkerboard = (axes, at) => {
    const sides = [extractPlane(fixed, shape, axes, at), extractPlane(warped, shape, axes, at)];
    return (i, j) => grey(sides[(Math.floor(i / 8) + Math.floor(j / 8)) % 2](i, j));
  };
  const folds = (axes, at) => {
    const value = extractPlane(jacobian, shape, axes, at);
    return (i, j) => (value(i, j) === 0 ? RED : tealPurple((value(i, j) - 128) / 127));
  };
  const faint = (axes, at) => {
    const value = extractPlane(moving, shape, axes, at);
    return (i, j) => grey(Math.round(255 - 0.3 * (255 - value(i, j))));
  };
  const shown = [
    ["fixed", image(fixed)],
    ["moving", image(moving)],
    ["warped moving", image(warped)],
    ["checkerboard fixed / warped", checkerboard],
    ["fixed - moving", difference(moving)],
    ["fixed - warped", difference(warped)],
    ["grid x + u(x)", faint, (...at) => drawGrid(u, shape, step, ...at)],
    ["log det J, folds red", folds],
  ];
  if (fixed_labels) {
    shown.push(["labels: fixed —, warped - -", image(fixed), (pen, axes, at, place) => {
      drawLabelContours(extractPlane(fixed_labels, shape, axes, at), shape, pen, axes, place, []);
      drawLabelContours(extractPlane(warped_labels, shape, axes, at), shape, pen, axes, place, [3, 3]);
    }]);
  }
  return shown;
}

function drawGrid(u, shape, step, pen, axes, at, place) {
  const parts = axes.map((axis) => extractPlane(u, shape, axes, at, axis));
  const [n, m] = axes.map((axis) => shape[axis]);
  const point = (i, j) => place(i + parts[0](i, j) / 100, j + parts[1](i, j) / 100);
  pen.strokeStyle = "navy";
  pen.beginPath();
  for (let i = 0; i < n; i += step[axes[0]]) for (let j = 0; j < m; j++) pen[j ? "lineTo" : "moveTo"](...point(i, j));
  for (let j = 0; j < m; j += step[axes[1]]) for (let i = 0; i < n; i++) pen[i ? "lineTo" : "moveTo"](...point(i, j));
  pen.stroke();
}

// Draw edges between voxels of different labels, in the color of the label.
function drawLabelContours(label, shape, pen, axes, place, dashes) {
  const [n, m] = axes.map((axis) => shape[axis]);
  const at = (i, j) => (i < 0 || j < 0 || i >= n || j >= m ? 0 : label(i, j));
  pen.setLineDash(dashes);
  pen.lineWidth = 1.6;
  for (let i = 0; i < n; i++) for (let j = 0; j < m; j++) {
    const value = at(i, j);
    if (!value) continue;
    pen.strokeStyle = COLORS[value % COLORS.length];
    pen.beginPath();
    for (const [di, dj] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
      if (at(i + di, j + dj) === value) continue;
      pen.moveTo(...place(i + (di - dj) / 2, j + (dj - di) / 2));
      pen.lineTo(...place(i + (di + dj) / 2, j + (dj + di) / 2));
    }
    pen.stroke();
  }
  pen.setLineDash([]);
}

function drawView(canvas, shape, axes, at, color, lines) {
  const [n, m] = axes.map((axis) => shape[axis]);
  const pixels = new ImageData(n, m);
  const getColor = color(axes, at);
  for (let j = 0; j < m; j++) for (let i = 0; i < n; i++) {
    pixels.data.set([...getColor(i, j), 255], 4 * ((m - 1 - j) * n + i));
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

function addPlane(box, example, loaded, axes) {
  const { shape, spacing } = example;
  const row = addElement("div", null, box, { class: "row" });
  const third = shape.findIndex((_, axis) => !axes.includes(axis));
  const label = addElement("label", `axis ${axes[0]} right, axis ${axes[1]} up`, row);
  const longest = Math.max(...shape.map((n, axis) => n * spacing[axis]));
  const size = axes.map((axis) => Math.max(1, Math.round((WIDTH * shape[axis] * spacing[axis]) / longest)));
  const drawn = makeViews(loaded, example).map(([title, color, lines]) => {
    const view = addElement("div", null, row, { class: "view" });
    const canvas = addElement("canvas", null, view, { width: size[0], height: size[1], "data-view": title });
    addElement("span", title, view);
    return (at) => drawView(canvas, shape, axes, at, color, lines);
  });
  const show = (at) => drawn.forEach((draw) => draw(at));
  if (third < 0) return show(0);
  const where = addElement("span", "", label);
  const slider = addElement("input", null, label, { type: "range", min: 0, max: shape[third] - 1, "data-axis": third });
  const move = () => {
    where.textContent = `; axis ${third} = ${slider.value} `;
    show(Number(slider.value));
  };
  slider.value = example.through[third];
  slider.addEventListener("input", move);
  move();
}

async function showCase(box, example) {
  box.replaceChildren();
  const loaded = {};
  for (const [name, packed] of Object.entries(example.volumes)) loaded[name] = await unpack(packed);
  addElement("p", example.note, box);
  const legend = addElement("div", null, box, { class: "legend" });
  for (const [color, text] of [["rgb(230,0,26)", "fold: det J ≤ 0"], ["rgb(85,40,140)", `expansion, log det J = ${example.log_limit}`], ["rgb(0,120,105)", `contraction, log det J = -${example.log_limit}`]]) {
    addElement("span", null, legend, { class: "swatch", style: `background:${color}` });
    legend.append(text);
  }
  const axes = example.shape.length === 2 ? [[0, 1]] : [[0, 1], [0, 2], [1, 2]];
  axes.forEach((pair) => addPlane(box, example, loaded, pair));
  box.dataset.ready = example.title;
}

function addExampleCases(cases) {
  const parent = addSection("Cases");
  const choice = addElement("select", null, parent, { "aria-label": "case" });
  cases.forEach(({ title }, index) => addElement("option", title, choice, { value: index }));
  const box = addElement("div", null, parent, { id: "case" });
  const show = () => showCase(box, cases[choice.value]).catch((error) => { box.textContent = String(error); });
  choice.addEventListener("change", show);
  show();
}

content.tables.forEach(addTable);
if (content.cases.length) addExampleCases(content.cases);
for (const { title, pictures } of content.figures) {
  const parent = addSection(title);
  for (const { name, png } of pictures) addElement("img", null, addElement("figure", null, parent), { alt: name, src: "data:image/png;base64," + png });
}
if (content.texts.length) {
  const parent = addSection("Configuration");
  for (const { title, text } of content.texts) {
    const details = addElement("details", null, parent);
    addElement("summary", title, details);
    addElement("pre", text, details);
  }
}
document.body.dataset.ready = "true";
