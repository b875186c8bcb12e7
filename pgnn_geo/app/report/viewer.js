// One photo at large: two of its pictures with a border between them that can be moved.

const viewer = document.getElementById("viewer");
const part = (id) => document.getElementById(id);
const view = { set: 0, index: 0, why: false };

function openViewer(set, index, why = false) {
  Object.assign(view, { set, index, why });
  if (!viewer.open) viewer.showModal();
  drawViewer();
}

// A stage as large as fits, in the shape of its photo.
function shape(stage, photo, most) {
  const [width, height] = photo.size;
  stage.style.aspectRatio = `${width} / ${height}`;
  stage.style.maxWidth = `calc(${most} * ${width / height})`;
}

function drawViewer() {
  const gallery = galleries[view.set];
  const photo = gallery.photos[view.index];
  part("viewer-title").textContent = photo.id;
  const explained = (gallery.explained || []).some(([name]) => name === photo.id);
  document.querySelector(".tabs").hidden = !explained;
  view.why = view.why && explained;
  part("mode-why").setAttribute("aria-pressed", view.why);
  part("mode-compare").setAttribute("aria-pressed", !view.why);
  part("compare").hidden = view.why;
  part("explain").hidden = !view.why;
  if (view.why) startExplorer(gallery, view.set, photo);
  else drawCompare(gallery, photo);
}

function drawCompare(gallery, photo) {
  const layers = layersOf(gallery, photo).map((layer) => [layer, layerName(gallery, layer)]);
  const before = [part("left").value || "photo", part("right").value];
  const usual = layers.filter(([layer]) => layer !== "truth" && !layer.includes("/")).at(-1)[0];
  options(part("left"), layers, before[0]);
  const kept = layers.some(([layer]) => layer === before[1]) ? before[1] : usual;
  options(part("right"), layers, kept);
  shape(part("compare-stage"), photo, "58vh");
  drawPictures();
  drawScores(gallery, photo);
}

function drawPictures() {
  const gallery = galleries[view.set];
  for (const side of ["left", "right"]) {
    part(`picture-${side}`).replaceChildren(...pictures(gallery, view.index, part(side).value, false));
  }
  drawWipe();
}

function drawWipe() {
  const place = part("wipe").value;
  part("picture-right").style.clipPath = `inset(0 0 0 ${place}%)`;
  part("edge").style.left = `${place}%`;
}

// A row for each class and result: few columns, for narrow screens.
function drawScores(gallery, photo) {
  const keys = gallery.layers.map((layer) => layer.key).filter((key) => photo.iou[key] || photo.sure[key]);
  const measures = [["IoU", "iou"], ["confidence", "sure"]].filter(([, name]) => keys.some((key) => photo[name][key]));
  const rows = photo.labels.flatMap((label) => keys.map((key, index) => make("tr", {},
    index ? null : make("th", { rowspan: keys.length, scope: "rowgroup" },
      make("span", { class: "key", style: `background:${colour(label)}` }), className(gallery, label)),
    make("td", {}, layerName(gallery, key)),
    ...measures.map(([, name]) => make("td", { class: "number" }, score((photo[name][key] || {})[label]))))));
  part("photo-scores").replaceChildren(
    make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "class"), make("th", { scope: "col" }, "result"),
      ...measures.map(([title]) => make("th", { class: "number", scope: "col" }, title)))),
    make("tbody", {}, ...rows));
  part("photo-scores").hidden = !rows.length;
}

// The photo before or after, in the order of the gallery.
function step(by) {
  const order = view.set === state.set ? state.list.map((entry) => entry.index) : [];
  const list = view.why || !order.includes(view.index)
    ? galleries[view.set].photos.map((photo, index) => index)
      .filter((index) => !view.why || galleries[view.set].explained.some(([name]) =>
        name === galleries[view.set].photos[index].id))
    : order;
  view.index = list[(list.indexOf(view.index) + by + list.length) % list.length];
  drawViewer();
}

part("viewer-close").addEventListener("click", () => viewer.close());
part("viewer-previous").addEventListener("click", () => step(-1));
part("viewer-next").addEventListener("click", () => step(1));
part("mode-compare").addEventListener("click", () => { view.why = false; drawViewer(); });
part("mode-why").addEventListener("click", () => { view.why = true; drawViewer(); });
part("left").addEventListener("change", drawPictures);
part("right").addEventListener("change", drawPictures);
part("wipe").addEventListener("input", drawWipe);
part("compare-stage").addEventListener("pointermove", (event) => {
  if (event.pointerType === "touch" && !event.buttons) return;
  const box = part("compare-stage").getBoundingClientRect();
  part("wipe").value = (100 * (event.clientX - box.left)) / box.width;
  drawWipe();
});
viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });
viewer.addEventListener("keydown", (event) => {
  if (event.target.closest("select, input, #own-stage")) return;
  if (event.key === "ArrowLeft") step(-1);
  if (event.key === "ArrowRight") step(1);
});
