/* Reference images of a latent and where it is active in them. In JupyterLab this is the front of
   an anywidget, in the book the same code runs on files; only `model.load` tells them apart. */

const ROW = 16; /* pictures in a row of a sheet */
const COLOUR = [255, 92, 0]; /* as in patchsae_lib.localization.overlay */

function make(tag, properties = {}, ...children) {
  const { aria, ...others } = properties;
  const element = Object.assign(document.createElement(tag), others);
  for (const [name, value] of Object.entries(aria ?? {})) element.setAttribute(`aria-${name}`, value);
  element.append(...children);
  return element;
}

const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const array = (text, type) => new type(bytes(text).buffer);

/* Asks the kernel for a file of the bundle. */
function fromKernel(model) {
  const waiting = new Map();
  model.on("msg:custom", ({ loaded, shard }) => {
    waiting.get(loaded)?.(shard);
    waiting.delete(loaded);
  });
  return (name) => new Promise((done, failed) => {
    waiting.set(name, (shard) => shard ? done(shard) : failed(new Error(`${name} is not there`)));
    model.send({ load: name });
  });
}

/* Each file once; one that failed may be tried again. */
function remembering(load) {
  const kept = new Map();
  return (name) => {
    if (!kept.has(name)) kept.set(name, load(name).catch((error) => { kept.delete(name); throw error; }));
    return kept.get(name);
  };
}

class Bundle {
  constructor(load) {
    this.load = remembering(load);
    this.sheet = remembering(async (name) => {
      const image = new Image();
      image.src = (await this.load(name)).sheet;
      await image.decode();
      return image;
    });
  }

  async open() {
    const index = await this.load("index");
    if (index.version !== 1) throw new Error(`its version is ${index.version}, 1 can be read`);
    this.index = index;
    this.labels = array(index.labels, Int16Array);
    this.top = array(index.top, Int32Array);
    this.columns = Object.fromEntries(Object.entries(index.columns).map(([name, column]) => {
      if (typeof column === "string") return [name, array(column, Float32Array)];
      const codes = array(column.codes, Int16Array);
      return [name, Array.from(codes, (code) => column.names[code] ?? "")];
    }));
    return this;
  }

  className(picture) { return this.index.classes[this.labels[picture]] ?? ""; }

  /* The reference images of a latent: picture, mask (0..15 a patch), and the activation of a 15. */
  async references(latent) {
    const { perShard, k, grid } = this.index;
    const shard = await this.load(`latents-${Math.floor(latent / perShard)}`);
    const row = latent % perShard, size = grid[0] * grid[1];
    const images = array(shard.images, Int32Array).slice(row * k, (row + 1) * k);
    const packed = bytes(shard.masks), at = row * k * size;
    const mask = (i) => Uint8Array.from({ length: size }, (_, j) => {
      const place = at + i * size + j;
      return packed[place >> 1] >> 4 * (place & 1) & 15;
    });
    const full = array(shard.full, Float32Array)[row];
    return { full, shown: [...images].flatMap((picture, i) => picture < 0 ? [] : [{ picture, mask: mask(i) }]) };
  }

  /* A picture on a canvas, greyed where the mask is 0 and coloured where not. */
  async draw(canvas, picture, mask) {
    const { side, perSheet, grid: [rows, columns] } = this.index;
    const sheet = await this.sheet(`pictures-${Math.floor(picture / perSheet)}`);
    const place = picture % perSheet;
    canvas.width = canvas.height = side;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(sheet, (place % ROW) * side, Math.floor(place / ROW) * side, side, side, 0, 0, side, side);
    if (!mask) return;
    const image = context.getImageData(0, 0, side, side), data = image.data;
    for (let i = 0; i < side * side; i++) {
      const row = Math.floor(Math.floor(i / side) * rows / side), column = Math.floor((i % side) * columns / side);
      const share = mask[row * columns + column] / 15;
      const grey = (data[4 * i] + data[4 * i + 1] + data[4 * i + 2]) / 3 * 0.55 + 40;
      for (let c = 0; c < 3; c++) {
        data[4 * i + c] = grey + share * (data[4 * i + c] * 0.55 + COLOUR[c] * 0.45 - grey);
      }
    }
    context.putImageData(image, 0, 0);
  }
}

/* Two digits, and no more zeros than can be read. */
const short = (x) => x !== 0 && Math.abs(x) < 0.001 ? x.toExponential(1) : String(Number(x.toPrecision(2)));

function words(bundle, latent) {
  const of = (name) => bundle.columns[name]?.[latent];
  const known = (name) => of(name) !== undefined && !Number.isNaN(of(name));
  const parts = [];
  if (of("concept")) parts.push(`${of("kind")} ${of("concept")}${known("iou") ? `, IoU ${of("iou").toFixed(2)}` : ""}`);
  if (known("n_images")) parts.push(`on ${of("n_images").toLocaleString("en")} pictures (${short(100 * of("frequency"))} %)`);
  if (known("mean")) parts.push(`mean activation ${short(of("mean"))}`);
  if (known("entropy")) parts.push(`label entropy ${of("entropy").toFixed(2)} nats`);
  return parts.join(" · ");
}

/* Calls back when a figure of the same cell is pointed at or clicked on; returns how to stop. */
function follow(el, pointed, clicked) {
  const followed = new Set();
  const latentOf = (event) => event.points.map((point) => point.customdata).find(Number.isInteger);
  const listen = (plot) => {
    if (followed.has(plot) || !plot.on) return;
    followed.add(plot);
    plot.on("plotly_click", (event) => latentOf(event) !== undefined && clicked(latentOf(event)));
    plot.on("plotly_hover", (event) => latentOf(event) !== undefined && pointed(latentOf(event), event.event));
    plot.on("plotly_unhover", () => pointed(undefined));
  };
  let watch, stopped = false;
  const begin = () => {
    if (stopped) return;
    if (!el.isConnected) { requestAnimationFrame(begin); return; } /* JupyterLab renders before it shows */
    const scope = el.closest(".cell_output, .jp-OutputArea");
    if (!scope) return;
    const look = () => scope.querySelectorAll(".js-plotly-plot").forEach(listen);
    watch = new MutationObserver(look);
    watch.observe(scope, { subtree: true, childList: true, attributes: true, attributeFilter: ["class"] });
    look();
  };
  begin();
  return () => { stopped = true; watch?.disconnect(); };
}

function render({ model, el }) {
  el.classList.add("patchsae-explorer");
  const bundle = new Bundle(model.load ?? fromKernel(model));
  const number = make("input", { type: "number", min: 0, step: 1 });
  const step = (by, sign, said) => make("button", { type: "button", textContent: sign, aria: { label: said }, onclick: () => choose(model.get("latent") + by) });
  const tick = make("input", { type: "checkbox", checked: model.get("masks") });
  const controls = make("div", { className: "controls" },
    make("label", {}, "latent ", number), step(-1, "‹", "the latent before"), step(1, "›", "the next latent"),
    make("label", {}, tick, " masks"));
  const about = make("p", { className: "about", aria: { live: "polite" } });
  const strip = make("div", { className: "strip" });
  const legend = make("p", { className: "legend" });
  const card = make("div", { className: "patchsae-card" }, make("canvas"), make("span"));
  el.replaceChildren(controls, about, strip, legend);

  function choose(latent) {
    const last = (bundle.index?.latents ?? Infinity) - 1;
    if (!Number.isFinite(latent)) return;
    model.set("latent", Math.max(0, Math.min(last, Math.round(latent))));
    model.save_changes();
  }

  let turn = 0; /* an answer that comes late is of no use */
  async function show() {
    const mine = ++turn, latent = model.get("latent");
    number.value = latent;
    tick.checked = model.get("masks");
    try {
      if (!bundle.index) await bundle.open();
      number.max = bundle.index.latents - 1;
      if (latent >= bundle.index.latents) throw new Error(`there are ${bundle.index.latents} latents, from 0`);
      const { full, shown } = await bundle.references(latent);
      const figures = await Promise.all(shown.map(async ({ picture, mask }, i) => {
        const said = bundle.className(picture);
        const canvas = make("canvas", { role: "img", aria: { label: `reference image ${i + 1}${said && `: ${said}`}` } });
        await bundle.draw(canvas, picture, model.get("masks") && mask);
        return make("figure", {}, canvas, make("figcaption", { textContent: said, title: said }));
      }));
      if (mine !== turn) return;
      about.textContent = words(bundle, latent);
      strip.replaceChildren(...(figures.length ? figures : ["Never active: no reference images."]));
      legend.replaceChildren(...(model.get("masks") && figures.length ? ["0 ", make("span", { className: "scale" }), ` ${short(full)} activation of a patch`] : []));
    } catch (error) {
      if (mine !== turn) return;
      about.textContent = `Latent ${latent} cannot be shown: ${error.message}.`;
      strip.replaceChildren();
      legend.replaceChildren();
    }
  }

  let pointedAt;
  async function point(latent, event) {
    pointedAt = latent;
    const picture = bundle.top?.[latent] ?? -1;
    const [canvas, text] = card.children;
    try {
      if (picture < 0) throw new Error("no reference image");
      await bundle.draw(canvas, picture);
    } catch {
      card.remove();
      return;
    }
    if (pointedAt !== latent || !el.isConnected) return;
    text.textContent = bundle.className(picture);
    document.body.append(card);
    const room = card.getBoundingClientRect();
    const left = event.clientX > innerWidth / 2 ? event.clientX - room.width - 24 : event.clientX + 24;
    card.style.left = `${Math.max(4, left)}px`;
    card.style.top = `${Math.max(4, event.clientY - room.height - 16)}px`;
  }

  number.onchange = () => choose(number.valueAsNumber);
  tick.onchange = () => { model.set("masks", tick.checked); model.save_changes(); };
  model.on("change:latent", show);
  model.on("change:masks", show);
  const unfollow = follow(el, point, choose);
  show();
  return () => {
    model.off("change:latent", show);
    model.off("change:masks", show);
    unfollow();
    card.remove();
  };
}

export default { render };
