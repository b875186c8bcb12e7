// The edges to a position: heat over the photo and its partners, and the strongest drawn.

const LINES = 6;
const explorer = { entry: null, cell: null };

function bytes(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

function startExplorer(gallery, set, photo) {
  if (!window.pgnnExplained || !window.pgnnExplained[set]) {
    const script = make("script", { src: `${gallery.folder}/explained.js` });
    script.addEventListener("load", () => startExplorer(gallery, set, photo));
    script.addEventListener("error", () => {
      part("explain-text").textContent = `${gallery.folder}/explained.js is missing beside this page.`;
    });
    document.head.append(script);
    return;
  }
  const entries = window.pgnnExplained[set].filter((entry) => entry.images[0] === photo.id);
  const kinds = { propagation: "class evidence", attention: "attention between patches" };
  options(part("entry"), entries.map((entry, index) =>
    [index, `${className(gallery, entry.label)}: ${kinds[entry.kind]}`]), 0);
  part("explain-choice").hidden = entries.length < 2;
  part("entry").onchange = () => chooseEntry(gallery, photo, entries[part("entry").value]);
  chooseEntry(gallery, photo, entries[0]);
}

function chooseEntry(gallery, photo, entry) {
  explorer.entry = { ...entry, gallery, photo, own: bytes(entry.own), partners: bytes(entry.partners),
    evidence: bytes(entry.evidence), prototypes: entry.prototypes && bytes(entry.prototypes) };
  const name = className(gallery, entry.label);
  const asked = entry.kind === "attention" ? "which patches does it attend to?"
    : `where does its evidence for ${name} come from?`;
  part("explain-hint").textContent = `Click on a position, or move with the arrow keys: ${asked} ` +
    `${entry.side} × ${entry.side} positions.`;
  const places = new Map(gallery.photos.map((each, index) => [each.id, index]));
  const fill = (stage, index) => {
    const side = stage.id === "own-stage" ? entry.side : entry.partnerSide;
    stage.replaceChildren(...pictures(gallery, index, "photo", false),
      make("canvas", { width: side, height: side, "aria-hidden": "true" }));
  };
  shape(part("own-stage"), photo, "52vh");
  fill(part("own-stage"), places.get(photo.id));
  part("own").querySelector("figcaption").textContent = `${photo.id}, ${name}`;
  part("partners").replaceChildren(...entry.images.slice(1).map((image) => {
    const stage = make("div", { class: "stage" });
    const other = gallery.photos[places.get(image)];
    stage.style.aspectRatio = `${other.size[0]} / ${other.size[1]}`;
    fill(stage, places.get(image));
    return make("figure", {}, stage, make("figcaption", {}, image));
  }));
  // Begin where there is most evidence.
  chooseCell(explorer.entry.evidence.indexOf(Math.max(...explorer.entry.evidence)));
}

function heat(canvas, values) {
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  const steps = [[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]];
  values.forEach((value, index) => {
    const place = (value / 255) * (steps.length - 1);
    const low = Math.min(steps.length - 2, Math.floor(place));
    for (let c = 0; c < 3; c += 1) {
      image.data[4 * index + c] = steps[low][c] + (place - low) * (steps[low + 1][c] - steps[low][c]);
    }
    image.data[4 * index + 3] = 105 + 0.4 * value;
  });
  context.putImageData(image, 0, 0);
}

function chooseCell(cell) {
  const { entry } = explorer;
  explorer.cell = cell;
  const [n, m] = [entry.side ** 2, entry.partnerSide ** 2];
  const count = entry.images.length - 1;
  const own = entry.own.subarray(cell * n, (cell + 1) * n);
  const far = entry.partners.subarray(cell * count * m, (cell + 1) * count * m);
  heat(part("own-stage").querySelector("canvas"), own);
  const stages = [...part("partners").querySelectorAll(".stage")];
  stages.forEach((stage, index) => heat(stage.querySelector("canvas"), far.subarray(index * m, (index + 1) * m)));
  drawLines(own, far, stages);
  describe(own, far);
}

// The strongest of each side: the two have scales of their own.
function strongest(values, without) {
  return [...values.keys()].filter((index) => values[index] > 0 && index !== without)
    .sort((a, b) => values[b] - values[a]).slice(0, LINES / 2);
}

function drawLines(own, far, stages) {
  const { entry, cell } = explorer;
  const board = part("evidence-board").getBoundingClientRect();
  const at = (stage, side, index) => {
    const box = stage.getBoundingClientRect();
    const [x, y] = [index % side, Math.floor(index / side)];
    return { x: box.left - board.left + ((x + 0.5) * box.width) / side,
      y: box.top - board.top + ((y + 0.5) * box.height) / side, width: box.width / side, height: box.height / side };
  };
  const here = at(part("own-stage"), entry.side, cell);
  const m = entry.partnerSide ** 2;
  const ends = [
    ...strongest(own, cell).map((index) => [at(part("own-stage"), entry.side, index), own[index]]),
    ...strongest(far, -1).map((index) =>
      [at(stages[Math.floor(index / m)], entry.partnerSide, index % m), far[index]])];
  part("lines").replaceChildren(
    ...ends.map(([end, value]) => vector("line", { x1: here.x, y1: here.y, x2: end.x, y2: end.y,
      "stroke-width": 0.8 + (3 * value) / 255 })),
    vector("rect", { x: here.x - here.width / 2, y: here.y - here.height / 2, width: here.width, height: here.height }));
}

function describe(own, far) {
  const { entry, cell } = explorer;
  const name = className(entry.gallery, entry.label);
  const sum = (values) => values.reduce((a, b) => a + b, 0);
  const top = strongest(own, -1).map((index) => own[index]);
  const share = Math.round((100 * sum(top)) / Math.max(1, sum(own)));
  const m = entry.partnerSide ** 2;
  const parts = entry.images.slice(1).map((image, index) => [image, sum(far.subarray(index * m, (index + 1) * m))]);
  const all = Math.max(1, sum(parts.map(([, value]) => value)));
  const [row, column] = [Math.floor(cell / entry.side) + 1, (cell % entry.side) + 1];
  const others = parts.length
    ? ` Of the partners, ${parts.map(([image, value]) => `${image} gives ${Math.round((100 * value) / all)} %`).join(", ")}.`
    : "";
  part("explain-text").textContent = `Row ${row}, column ${column}: evidence for ${name} ` +
    `${Math.round((100 * entry.evidence[cell]) / 255)} % of the photo's highest. Within the photo, the ${top.length} ` +
    `strongest places give ${share} % of ${entry.kind === "attention" ? "what it attends to" : "it"}.${others}`;
  drawPrototypes();
}

function drawPrototypes() {
  const { entry, cell } = explorer;
  if (!entry.prototypes) {
    part("prototypes").replaceChildren();
    return;
  }
  const count = entry.gallery.classes.length;
  const values = [...entry.prototypes.subarray(cell * count, (cell + 1) * count)];
  const order = [...values.keys()].sort((a, b) => values[b] - values[a]).slice(0, 6);
  part("prototypes").replaceChildren(make("h3", {}, "Similarity to the class prototypes"),
    ...order.map((index) => make("div", { class: "track" }, make("span", {}, entry.gallery.classes[index]),
      make("div", { "aria-hidden": "true" }, make("i", { style: `width:${Math.min(100, values[index])}%` })),
      make("span", {}, (values[index] / 100).toFixed(2)))));
}

part("own-stage").addEventListener("click", (event) => {
  const box = part("own-stage").getBoundingClientRect();
  const { side } = explorer.entry;
  const place = (offset, size) => Math.min(side - 1, Math.max(0, Math.floor((offset * side) / size)));
  chooseCell(place(event.clientY - box.top, box.height) * side + place(event.clientX - box.left, box.width));
});
part("own-stage").addEventListener("keydown", (event) => {
  const { side } = explorer.entry;
  const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  if (!moves[event.key]) return;
  event.preventDefault();
  const clamp = (value) => Math.min(side - 1, Math.max(0, value));
  const [down, right] = moves[event.key];
  chooseCell(clamp(Math.floor(explorer.cell / side) + down) * side + clamp((explorer.cell % side) + right));
});
window.addEventListener("resize", () => {
  if (viewer.open && view.why && explorer.entry) chooseCell(explorer.cell);
});

startGallery();
document.getElementById("contents").replaceChildren(...[...document.querySelectorAll("main > section")]
  .filter((section) => !section.hidden)
  .map((section) => make("a", { href: `#${section.id}` }, section.querySelector("h2").textContent)));
