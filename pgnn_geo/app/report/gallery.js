// The gallery: cards are made as they are scrolled to, pictures are loaded as they are seen.

const BATCH = 48;
const galleries = report.galleries;
const field = (name) => document.getElementById(`gallery-${name}`);
const state = { set: 0, list: [], shown: 0 };

const colour = (label) => `rgb(${report.palette[label].join(",")})`;
const className = (gallery, label) => gallery.classes[label - 1];
const score = (value) => (value === undefined ? "–" : (value / 10).toFixed(1));

// A picture of a photo: "photo", a layer such as "pgnn", or one of its maps, "pgnn/3".
function source(gallery, index, layer) {
  const start = `${gallery.folder}/${index}`;
  return layer === "photo" ? `${start}.jpg` : `${start}-${layer.replace("/", "-")}.png`;
}

function layerName(gallery, layer) {
  if (layer === "photo") return "photo";
  const [key, label] = layer.split("/");
  const { title } = gallery.layers.find((each) => each.key === key);
  return label ? `${title.replace(", labels", "")}, map of ${className(gallery, label)}` : title;
}

function layersOf(gallery, photo) {
  const maps = Object.entries(photo.maps)
    .flatMap(([key, labels]) => labels.map((label) => `${key}/${label}`));
  const labels = gallery.layers.map((layer) => layer.key).filter((key) => photo.there.includes(key));
  return ["photo", ...maps, ...labels];
}

// The photo, and what is painted over it.
function pictures(gallery, index, layer, lazy) {
  const photo = gallery.photos[index];
  const names = photo.tags.map((label) => className(gallery, label)).join(", ");
  const loading = lazy ? "lazy" : "eager";
  const base = make("img", { src: source(gallery, index, "photo"), loading, decoding: "async",
    alt: `Photo ${photo.id}${names ? `, tagged ${names}` : ""}`, width: photo.size[0], height: photo.size[1] });
  if (layer === "photo") return [base];
  const kind = layer.includes("/") ? "map" : "labels";
  const over = make("img", { src: source(gallery, index, layer), loading, decoding: "async", class: kind,
    alt: `${layerName(gallery, layer)} of ${photo.id}` });
  return [base, over];
}

// Mean IoU of the classes of a photo, or that of one class; undefined without a truth.
function iouOf(photo, key, label) {
  const values = photo.iou[key];
  if (!values) return undefined;
  if (label) return values[label];
  const all = Object.values(values);
  return all.length ? all.reduce((a, b) => a + b, 0) / all.length : undefined;
}

function sureOf(photo, key, label) {
  const values = photo.sure[key];
  if (!values) return undefined;
  if (label) return values[label];
  const all = Object.values(values);
  return all.length ? Math.min(...all) : undefined;
}

function card(gallery, index, value, layer, open) {
  const photo = gallery.photos[index];
  const [width, height] = photo.size;
  const chips = photo.tags.map((label) => make("span", { class: "chip" },
    make("span", { class: "key", style: `background:${colour(label)}` }), className(gallery, label)));
  const frame = make("span", { class: width / height < 4 / 3 ? "frame tall" : "frame",
    style: `aspect-ratio:${width}/${height}` }, ...pictures(gallery, index, layer, true));
  const shot = make("span", { class: "shot" }, frame);
  const button = make("button", { type: "button", class: "card" }, shot,
    make("span", { class: "caption" }, value, make("b", {}, photo.id), ...chips));
  button.addEventListener("click", () => open(index));
  return button;
}

function options(select, entries, chosen) {
  select.replaceChildren(...entries.map(([value, text]) => make("option", { value }, text)));
  if (entries.some(([value]) => String(value) === String(chosen))) select.value = chosen;
}

function gallerySet() {
  state.set = Number(field("set").value || 0);
  const gallery = galleries[state.set];
  const labels = gallery.layers.filter((layer) => layer.labels);
  const predicted = labels.filter((layer) => layer.key !== "truth");
  const classes = gallery.classes.map((name, index) => [index + 1, name])
    .filter(([label]) => gallery.photos.some((photo) => photo.labels.includes(label)));
  options(field("class"), [["", "all classes"], ...classes], field("class").value);
  options(field("layer"), [["photo", "photo"], ...labels.map((layer) => [layer.key, layer.title])],
    field("layer").value || predicted.at(-1).key);
  const orders = [];
  for (const { key, title } of predicted) {
    if (gallery.photos.some((photo) => photo.iou[key])) {
      orders.push([`iou/${key}`, `IoU of ${title}, worst first`], [`-iou/${key}`, `IoU of ${title}, best first`]);
    }
    if (gallery.photos.some((photo) => photo.sure[key])) {
      orders.push([`sure/${key}`, `confidence of ${title}, least first`]);
    }
  }
  const last = predicted.at(-1).key;
  const best = orders.some(([value]) => value === `iou/${last}`) ? `iou/${last}` : "name";
  options(field("order"), [...orders, ["name", "name"]], field("order").value || best);
  galleryList();
}

function galleryList() {
  const gallery = galleries[state.set];
  const label = Number(field("class").value);
  const wanted = field("name").value.trim().toLowerCase();
  const [order, key] = field("order").value.split("/");
  const measure = order === "sure" ? sureOf : iouOf;
  state.list = gallery.photos.map((photo, index) => ({ index, value: key && measure(photo, key, label) }))
    .filter(({ index }) => {
      const photo = gallery.photos[index];
      return (!label || photo.labels.includes(label)) && photo.id.toLowerCase().includes(wanted);
    });
  if (key) {
    const sign = order.startsWith("-") ? -1 : 1;
    // What has no value comes last.
    state.list.sort((a, b) => (a.value === undefined) - (b.value === undefined) || sign * (a.value - b.value));
  }
  state.shown = 0;
  document.getElementById("cards").replaceChildren();
  field("count").textContent = `${state.list.length} of ${gallery.photos.length} photos`;
  galleryMore();
}

function galleryMore() {
  const gallery = galleries[state.set];
  const layer = field("layer").value;
  const part = state.list.slice(state.shown, state.shown + BATCH);
  state.shown += part.length;
  document.getElementById("cards").append(...part.map(({ index, value }) => {
    const there = layer === "photo" || gallery.photos[index].there.includes(layer) ? layer : "photo";
    const low = value !== undefined && value < 500 ? " low" : "";
    const text = value === undefined ? null : make("span", { class: `value${low}` }, score(value));
    return make("li", {}, card(gallery, index, text, there, (i) => openViewer(state.set, i)));
  }));
  // Watched anew: the end may still be in sight.
  ending.disconnect();
  if (state.shown < state.list.length) ending.observe(document.getElementById("more"));
}

const ending = new IntersectionObserver((entries) => {
  if (entries.some((entry) => entry.isIntersecting)) galleryMore();
}, { rootMargin: "800px" });

function startGallery() {
  if (!galleries.length) return;
  document.getElementById("gallery").hidden = false;
  options(field("set"), galleries.map((gallery, index) => [index, report.runs.length > 1
    ? `${report.runs[gallery.run].name}, ${gallery.title}` : gallery.title]), 0);
  field("set").closest("label").hidden = galleries.length < 2;
  field("set").addEventListener("change", gallerySet);
  for (const name of ["class", "layer", "order"]) field(name).addEventListener("change", galleryList);
  field("name").addEventListener("input", galleryList);
  document.querySelector(".controls").addEventListener("submit", (event) => event.preventDefault());
  gallerySet();

  const explained = galleries.findIndex((gallery) => gallery.explained);
  if (explained < 0) return;
  const gallery = galleries[explained];
  const places = new Map(gallery.photos.map((photo, index) => [photo.id, index]));
  const seen = [...new Set(gallery.explained.map(([name]) => name))].filter((name) => places.has(name));
  document.getElementById("why").hidden = false;
  document.querySelector("#why .strip").replaceChildren(...seen.map((name) =>
    card(gallery, places.get(name), null, "photo", (index) => openViewer(explained, index, true))));
}
