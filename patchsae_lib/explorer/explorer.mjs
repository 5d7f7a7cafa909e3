/* Every latent, every patch, before and after adaptation. In JupyterLab this is the front of an
   anywidget, in the book the same code runs on files; only `model.load` tells them apart.

   Views are functions of the app that return { element, update }. What is chosen is the model's
   state; a view changes it with `app.set` and is told of changes through `update`. */

const VERSION = 3;
const SCALE = ["#5560c9", "#3a82b8", "#2f9e8f", "#86a63a", "#cf9a00"]; /* patchsae_lib.figures.SCALE */
const GROUPS = [
  ["neither's top", "--x-grey", "circle"], ["top in both", "--x-teal", "circle"],
  ["left the top", "--x-orange", "diamond"], ["new in the top", "--x-violet", "square"],
];
const MODELS = [["--x-teal", "circle"], ["--x-orange", "square"]]; /* CLIP, and the adapted one */
const START = { latent: 0, task: "", image: 0, patch: -1, model: "", label: 0, masks: true, compare: true, switches: "", names: "", marked: "", pinned: -1 };
const STATE = Object.keys(START);
const SPELLED = { label: "class", pinned: "pin" }; /* in an address */
const CITATION = "Companion to Lim et al., Sparse autoencoders reveal selective remapping of visual concepts during adaptation, ICLR 2025";
const LARGE = 60; /* MB of a picture that is read in the page */
const HUGE = 9; /* MB of a picture that is given to the kernel: Jupyter's messages end at 10 */
const TOP = 20; /* of a picture's latents that are compared between models */

/* --- small things ------------------------------------------------------------------------------ */

function make(tag, properties = {}, ...children) {
  const { aria, ...others } = properties;
  const element = Object.assign(document.createElement(tag), others);
  for (const [name, value] of Object.entries(aria ?? {})) element.setAttribute(`aria-${name}`, value);
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const button = (textContent, onclick, more = {}) => make("button", { type: "button", textContent, onclick, ...more });
function bytes(text) {
  const plain = atob(text), out = new Uint8Array(plain.length);
  for (let i = 0; i < out.length; i++) out[i] = plain.charCodeAt(i);
  return out;
}
const TYPES = { int8: Int8Array, uint8: Uint8Array, int16: Int16Array, uint16: Uint16Array, int32: Int32Array, uint32: Uint32Array, float32: Float32Array };
const array = (text, type) => new TYPES[type](bytes(text).buffer);
const clamp = (x, low, high) => Math.max(low, Math.min(high, x));
const plural = (n, word, words = `${word}s`) => `${n.toLocaleString("en")} ${n === 1 ? word : words}`;
const range = (n) => Array.from({ length: n }, (_, i) => i);

/* Two digits, and no more zeros than can be read. */
const short = (x) => x !== 0 && Math.abs(x) < 0.001 ? x.toExponential(1) : String(Number(x.toPrecision(2)));
/* A power of ten for an axis, or a number like 20 or 0.5. */
function power(x) {
  if (x > 0.0009 && x < 1001) return short(x);
  const e = Math.floor(Math.log10(x) + 1e-9), times = Math.round(x / 10 ** e);
  return `${times === 1 ? "" : `${times}·`}10${String(e).replace(/./g, (c) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(c)])}`;
}
const percent = (x) => `${short(100 * x)} %`;

/* The colour at a share 0..1 of the scale. */
function shade(share) {
  const x = clamp(share, 0, 1) * (SCALE.length - 1), i = Math.min(SCALE.length - 2, Math.floor(x));
  const [a, b] = [SCALE[i], SCALE[i + 1]].map((hex) => [1, 3, 5].map((j) => parseInt(hex.slice(j, j + 2), 16)));
  return `rgb(${a.map((c, j) => Math.round(c + (b[j] - c) * (x - i))).join(",")})`;
}

/* --- the data ---------------------------------------------------------------------------------- */

/* Asks the kernel and waits for its answer. */
function asking(model, cleanups) {
  const waiting = new Map(), mine = Math.random().toString(36).slice(2); /* other views of it ask, too */
  let last = 0;
  const hear = ({ answer, error, ...rest }) => {
    const done = waiting.get(answer);
    waiting.delete(answer);
    if (done) error !== undefined ? done.failed(new Error(error)) : done.said(rest);
  };
  model.on("msg:custom", hear);
  cleanups.push(() => model.off("msg:custom", hear));
  return (question, buffers = []) => new Promise((said, failed) => {
    const number = `${mine}-${++last}`;
    waiting.set(number, { said, failed });
    model.send({ ...question, number }, undefined, buffers);
  });
}

/* The models in a worker of the page, one for all explorers of the same models. */
const computers = new Map();

class Computer {
  constructor({ engine, wasm, about }) {
    const source = URL.createObjectURL(new Blob([engine], { type: "text/javascript" }));
    this.worker = new Worker(source);
    this.waiting = new Map();
    this.last = 0;
    this.opened = this.ask("open", { about, wasm });
    const hear = ({ data: { number, answer, error } }) => {
      const { said, failed } = this.waiting.get(number);
      this.waiting.delete(number);
      error === undefined ? said(answer) : failed(new Error(error));
    };
    this.worker.onmessage = hear;
    this.worker.onerror = (event) => { for (const { failed } of this.waiting.values()) failed(new Error(event.message ?? "the worker stopped")); };
  }

  ask(does, more = {}, given = []) {
    return new Promise((said, failed) => {
      const number = ++this.last;
      this.waiting.set(number, { said, failed });
      this.worker.postMessage({ number, does, ...more }, given);
    });
  }
}

/* The same answers from the kernel, for models that no page can hold. */
class KernelComputer {
  constructor(ask) { this.kernel = ask; }

  async ask(does, { pixels, bitmap, ...more } = {}) {
    const given = bitmap ? pixelsOf(bitmap, bitmap.width, bitmap.height) : { pixels, ...more };
    const { pixels: data, ...asked } = does === "look" ? given : more;
    const { reply } = await this.kernel({ does, asked }, data ? [new DataView(data.buffer)] : []);
    return does === "look" ? { id: reply.id, picture: bytes(reply.picture) } : reply;
  }
}

/* Loads the models of a bundle, once a page; `told` hears how far it is, 0 to 1. */
function compute(bundle, told) {
  const { mark, files } = bundle.index.live;
  if (!computers.has(mark)) {
    const start = async () => {
      const computer = new Computer(await bundle.load("live"));
      try {
        await computer.opened;
        for (let file = 0; file < files; file++) {
          await computer.ask("weights", { file, ...await bundle.load(`weights-${file}`) });
          told((file + 1) / files);
          await new Promise((done) => setTimeout(done)); /* the page moves on between two files */
        }
        return computer;
      } catch (error) {
        computer.worker.terminate();
        throw error;
      }
    };
    computers.set(mark, start().catch((error) => { computers.delete(mark); throw error; }));
  }
  return computers.get(mark);
}

/* The pixels of a small picture: RGBA. */
function pixelsOf(source, width, height) {
  const context = make("canvas", { width, height }).getContext("2d", { willReadFrequently: true });
  context.drawImage(source, 0, 0);
  const image = context.getImageData(0, 0, width, height);
  return { pixels: image.data, width, height };
}

/* A canvas with the square that CLIP sees: size × size × 3 bytes. */
function seen(picture) {
  const side = Math.sqrt(picture.length / 3), canvas = make("canvas", { width: side, height: side });
  const context = canvas.getContext("2d"), image = context.createImageData(side, side);
  for (let i = 0, j = 0; i < picture.length; j++) image.data[j] = j % 4 === 3 ? 255 : picture[i++];
  context.putImageData(image, 0, 0);
  return canvas;
}

/* Each file once; one that failed may be tried again. */
function remembering(load) {
  const kept = new Map();
  return (name) => {
    if (!kept.has(name)) kept.set(name, load(name).catch((error) => { kept.delete(name); throw error; }));
    return kept.get(name);
  };
}

async function decoded(source) {
  const image = new Image();
  image.src = source;
  await image.decode();
  return image;
}

class Bundle {
  constructor(load) {
    this.load = remembering(load);
    this.picture = remembering(async (name) => { /* "pictures-7 2": the third of that file */
      const [file, number] = name.split(" ");
      return decoded((await this.load(file)).pictures[number]);
    });
    this.column = remembering((name) => this.readColumn(name));
    const kept = remembering((name) => this.readCodes(name));
    this.codes = (name) => this.own(name) ? this.readCodes(name) : kept(name); /* one's own may change */
    this.known = {}; /* columns that are there */
    this.given = new Map(); /* task → pictures of the reader's own */
  }

  async open() {
    const index = await this.load("index");
    if (index.version !== VERSION) throw new Error(`its version is ${index.version}, ${VERSION} can be read`);
    this.index = index;
    this.labels = array(index.labels, "int16");
    this.size = index.grid[0] * index.grid[1];
    this.k = index.examples.reduce((sum, [, n]) => sum + n, 0);
    this.concepts = new Map(index.concepts.map(([kind, name], i) => [`${kind} ${name}`, i]));
    return this;
  }

  /* What is known of all latents: numbers, words, or null. */
  async readColumn(name) {
    if (name === "concept") await Promise.all([this.column("name"), this.column("found")]); /* what `named` reads */
    const at = this.index.columns.findIndex((column) => column.name === name);
    if (at < 0) return null;
    const { type, names } = this.index.columns[at];
    const values = array((await this.load(`column-${at}`)).values, type);
    return (this.known[name] = names ? Array.from(values, (code) => names[code] ?? "") : values);
  }

  of(latent, name) {
    const value = this.known[name]?.[latent];
    return Number.isNaN(value) ? undefined : value;
  }

  /* The concept that a latent is named by: a key of `concepts`, or "". */
  concept(latent) {
    const name = this.of(latent, "concept");
    return name && this.of(latent, "found") !== 0 ? `${this.of(latent, "kind")} ${name}` : "";
  }

  /* What a latent is called: in words, "no name", or "" where names are not known. */
  named(latent) {
    return this.of(latent, "name") ?? this.concept(latent);
  }

  /* A latent's examples: picture, mask (0..1 a patch, the root of its share of `full`), kind. */
  async latent(latent) {
    const { perShard, examples } = this.index, { k, size } = this;
    const shard = await this.load(`latents-${Math.floor(latent / perShard)}`), row = latent % perShard;
    const part = (name, type) => {
      const all = array(shard[name], type), n = all.length / (array(shard.full, "float32").length);
      return all.slice(row * n, (row + 1) * n);
    };
    const packed = bytes(shard.masks), at = row * k * size;
    const mask = (i) => Float32Array.from({ length: size }, (_, j) => {
      const place = at + i * size + j;
      return (packed[place >> 1] >> 4 * (place & 1) & 15) / 15;
    });
    const images = part("images", "int32"), out = { full: part("full", "float32")[0], shown: [] };
    let i = 0;
    for (const [kind, n] of examples) {
      for (let j = 0; j < n; j++, i++) if (images[i] >= 0) out.shown.push({ kind, picture: images[i], mask: mask(i) });
    }
    for (const [name, type] of [["near", "int32"], ["nearFirst", "int32"], ["cosine", "float32"], ["classes", "int16"], ["levels", "float32"], ["absent", "int32"], ["counts", "uint16"], ["most", "float32"]]) {
      out[name] = [...part(name, type)];
    }
    return out;
  }

  /* A part of a file with as much for each of its latents: the part of one. */
  async part(kind, latent, fields) {
    const { perShard, latents } = this.index, at = Math.floor(latent / perShard), shard = await this.load(`${kind}-${at}`), rows = Math.min(perShard, latents - at * perShard);
    return fields.map(([name, type]) => { const all = array(shard[name], type), n = all.length / rows; return all.slice((latent % perShard) * n, (latent % perShard + 1) * n); });
  }

  /* The cosine of two latents' decoder rows. */
  async cosine(...pair) {
    const [[a], [b]] = await Promise.all(pair.map((latent) => this.part("directions", latent, [["decoder", "int8"]])));
    const dot = (x, y) => x.reduce((sum, v, i) => sum + v * y[i], 0);
    return dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b));
  }

  /* In how many patches of the first task's pictures, seen by CLIP, two latents are active: each,
     and both at once. */
  async together(...pair) {
    const pictures = await Promise.all(range(this.index.tasks[0].pictures).map((i) => this.codes(`0-${i}`))), out = { each: [0, 0], both: 0, n: pictures.length * this.size, pictures: pictures.length };
    for (const [model] of pictures) {
      const [a, b] = pair.map((latent) => model.mask(latent));
      for (let i = 0; i < a.length; i++) { out.each[0] += a[i] > 0; out.each[1] += b[i] > 0; out.both += a[i] > 0 && b[i] > 0; }
    }
    return out;
  }

  /* The first example picture of a latent, or −1. */
  async first(latent) {
    this.firsts ??= array((await this.load("first")).values, "int32");
    return this.firsts[latent];
  }

  className(picture) { return this.index.classes[this.labels[picture]] ?? ""; }

  /* Where to find reference picture number `picture`. */
  async reference(picture) {
    const { perFile } = this.index, name = `pictures-${Math.floor(picture / perFile)}`, at = picture % perFile;
    const [image, { truth }] = await Promise.all([this.picture(`${name} ${at}`), this.load(name)]);
    return { image, truth: truth[at] };
  }

  taskNumber(name) { return Math.max(0, this.index.tasks.findIndex((task) => task.name === name)); }

  /* The pictures of a task, the reader's own at the end. */
  async pictures(number) {
    const task = this.index.tasks[number], file = await this.load(`task-${number}`);
    const images = await Promise.all(range(task.pictures).map((i) => this.picture(`task-${number} ${i}`))), labels = array(file.labels, "int16");
    const said = file.said.map((each) => array(each, "float32")), n = task.classes.length;
    const own = await Promise.all((this.given.get(task.name) ?? []).map(async (one) => ({ image: await (one.image ??= one.canvas ?? decoded(one.picture)), truth: {}, label: -1, said: one.said, name: one.name, id: one.id })));
    return [...images.map((image, i) => ({
      image, truth: file.truth[i], label: labels[i], said: said.map((p) => p.slice(i * n, (i + 1) * n)), name: task.classes[labels[i]] ?? "",
    })), ...own];
  }

  /* A picture of the reader's own, by the name of its codes, or undefined. */
  own(name) {
    const [number, picture] = name.split("-").map(Number), { name: task, pictures } = this.index.tasks[number];
    return this.given.get(task)?.[picture - pictures];
  }

  async readCodes(name) {
    const file = this.own(name) ?? await this.load(`codes-${name}`);
    return file.models.map((model) => {
      const computed = model.values; /* in this page, and not yet packed */
      const starts = computed ? model.starts : array(model.starts, "uint32"), latents = computed ? model.latents : array(model.latents, this.index.number);
      const levels = computed ?? array(model.levels, "uint8"), value = (i) => computed ? levels[i] : model.full * (levels[i] / 255) ** 2;
      const total = new Map();
      for (let i = 0; i < latents.length; i++) total.set(latents[i], (total.get(latents[i]) ?? 0) + value(i) / (starts.length - 1));
      return {
        /* its image-level activation: the mean over tokens */
        total,
        /* [latent, activation] of a token, the strongest first */
        token: (t) => range(starts[t + 1] - starts[t]).map((j) => [latents[starts[t] + j], value(starts[t] + j)]).sort((a, b) => b[1] - a[1] || a[0] - b[0]),
        /* activations of one latent on all patches */
        mask: (latent) => Float32Array.from({ length: this.size }, (_, patch) => {
          for (let i = starts[patch + 1]; i < starts[patch + 2]; i++) if (latents[i] === latent) return value(i);
          return 0;
        }),
      };
    });
  }
}

/* --- drawing pictures -------------------------------------------------------------------------- */

const scratch = document.createElement("canvas");

/* A picture on a canvas, dark and grey where the mask is 0 and as it is where the mask is 1, as in
   patchsae_lib.explorer.drawings.spotlight; `outline`: bits of
   patches to draw a line around; `patch`: one to frame. */
function paint(canvas, { image: source }, bundle, { mask, outline, patch, sharp = 2 } = {}) {
  const { side, grid: [rows, columns] } = bundle.index;
  if (scratch.width !== side || scratch.height !== side) scratch.width = scratch.height = side;
  const work = scratch.getContext("2d", { willReadFrequently: true });
  work.drawImage(source, 0, 0, side, side);
  if (mask) {
    const image = work.getImageData(0, 0, side, side), data = image.data;
    for (let y = 0, i = 0; y < side; y++) {
      const row = Math.floor(y * rows / side) * columns;
      for (let x = 0; x < side; x++, i += 4) {
        const share = mask[row + Math.floor(x * columns / side)], dark = (data[i] + data[i + 1] + data[i + 2]) / 3 * 0.35;
        for (let c = 0; c < 3; c++) data[i + c] = dark + share * (data[i + c] - dark);
      }
    }
    work.putImageData(image, 0, 0);
  }
  canvas.width = canvas.height = side * sharp;
  const context = canvas.getContext("2d"), cell = [canvas.width / columns, canvas.height / rows];
  context.drawImage(scratch, 0, 0, canvas.width, canvas.height);
  const frame = (draw, width) => {
    for (const [colour, extra, dash] of [["#000", 1.5, []], ["#fff", 0, [4, 3]]]) {
      Object.assign(context, { strokeStyle: colour, lineWidth: width + extra, lineCap: "butt" });
      context.setLineDash(dash);
      context.beginPath();
      draw();
      context.stroke();
    }
  };
  if (outline) {
    const inside = (r, c) => Boolean(r >= 0 && c >= 0 && r < rows && c < columns && holds(outline, r * columns + c));
    frame(() => {
      for (let r = 0; r <= rows; r++) for (let c = 0; c <= columns; c++) {
        const [x, y] = [c * cell[0], r * cell[1]];
        if (inside(r, c) !== inside(r - 1, c)) { context.moveTo(x, y); context.lineTo(x + cell[0], y); }
        if (inside(r, c) !== inside(r, c - 1)) { context.moveTo(x, y); context.lineTo(x, y + cell[1]); }
      }
    }, 1.5);
  }
  if (patch >= 0 && patch < bundle.size) {
    context.setLineDash([]);
    const [x, y] = [(patch % columns) * cell[0], Math.floor(patch / columns) * cell[1]];
    for (const [colour, width] of [["#000", 5], ["#fff", 2.5]]) {
      Object.assign(context, { strokeStyle: colour, lineWidth: width });
      context.strokeRect(x, y, cell[0], cell[1]);
    }
  }
}

const outlineOf = (bundle, truth, concept) => {
  const bits = truth?.[bundle.concepts.get(concept)];
  return bits && bytes(bits);
};

const holds = (bits, patch) => Boolean(bits[patch >> 3] >> (patch & 7) & 1);

const legend = (full, note = "activation of a patch") => [
  "0 ", make("span", { className: "scale", role: "img", aria: { label: "from dark to the picture's own colours" } }), ` ${short(full)} ${note}`,
];

/* --- saving a view ----------------------------------------------------------------------------- */

/* A view as SVG: its pictures, lines and words where they are on the screen, without its controls;
   below them a caption, the link and the citation. */
function drawing(element, words) {
  const box = element.getBoundingClientRect(), inks = getComputedStyle(element);
  const out = svg("svg", { xmlns: "http://www.w3.org/2000/svg" }), at = (r) => ({ x: r.left - box.left, y: r.top - box.top });
  const page = [...paths(element)].map((e) => getComputedStyle(e).backgroundColor).find((c) => !/^rgba\(.*, 0\)$|^transparent$/.test(c)) ?? "#fff";
  const skipped = "button:not(.shown), select, input, dialog, .tools, .unseen, .formula, [hidden]";
  let bottom = 0; /* of what is drawn */
  const visit = (node) => {
    if (node.nodeType === Node.TEXT_NODE) { lines(node).forEach((line) => out.append(line)); return; }
    if (node.nodeType !== Node.ELEMENT_NODE || node.matches(skipped)) return;
    const place = node.getBoundingClientRect();
    if (!place.width || !place.height) return;
    if (node.matches("canvas, svg, .bar, .scale, .swatch i, .dots i")) bottom = Math.max(bottom, place.bottom - box.top);
    if (node instanceof HTMLCanvasElement) {
      out.append(svg("image", { ...at(place), width: place.width, height: place.height, href: node.toDataURL("image/png") }));
      return;
    }
    if (node instanceof SVGElement) {
      const copy = node.cloneNode(true), all = [node, ...node.querySelectorAll("*")];
      [copy, ...copy.querySelectorAll("*")].forEach((part, i) => {
        const style = getComputedStyle(all[i]);
        for (const name of ["fill", "stroke", "stroke-width", "stroke-dasharray", "opacity", "font-size", "font-family", "text-anchor"]) part.setAttribute(name, style.getPropertyValue(name));
        part.removeAttribute("class");
        part.removeAttribute("style");
      });
      for (const [name, value] of Object.entries({ ...at(place), width: place.width, height: place.height })) copy.setAttribute(name, value);
      out.append(copy);
      return;
    }
    const style = getComputedStyle(node), fill = style.backgroundColor;
    if (node.matches(".scale, .colours")) {
      const id = `scale${out.querySelectorAll("linearGradient").length}`, colours = node.matches(".scale") ? ["#333", "#fff"] : SCALE;
      out.append(svg("linearGradient", { id }, ...colours.map((colour, i) => svg("stop", { offset: i / (colours.length - 1), "stop-color": colour }))),
        svg("rect", { ...at(place), width: place.width, height: place.height, fill: `url(#${id})` }));
    } else if (node.matches(".bar, .swatch i, .dots i")) {
      const round = node.matches(".circle, .dots i") ? place.width / 2 : 0, { x, y } = at(place);
      out.append(svg("rect", { x, y, width: place.width, height: place.height, rx: round, fill, ...(node.matches(".dots i") && { stroke: style.color }), ...(node.matches(".diamond") && { transform: `rotate(45 ${x + place.width / 2} ${y + place.height / 2}) scale(1)` }) }));
    }
    node.childNodes.forEach(visit);
  };
  const lines = (node) => {
    const text = node.data, style = getComputedStyle(node.parentElement), found = new Map(), reach = document.createRange();
    for (const word of text.matchAll(/\S+/g)) {
      reach.setStart(node, word.index);
      reach.setEnd(node, word.index + word[0].length);
      const place = reach.getBoundingClientRect();
      if (!place.width) continue;
      bottom = Math.max(bottom, place.bottom - box.top);
      const line = found.get(place.top) ?? found.set(place.top, { words: [], place }).get(place.top);
      line.words.push(word[0]);
    }
    return [...found.values()].map(({ words: some, place }) => {
      const { x, y } = at(place), line = svg("text", { x, y: y + place.height * 0.78, fill: style.color, "font-size": style.fontSize, "font-family": style.fontFamily, "font-weight": style.fontWeight });
      line.textContent = some.join(" ");
      return line;
    });
  };
  visit(element);
  const measure = document.createElement("canvas").getContext("2d"), width = Math.max(300, Math.ceil(box.width)), below = [];
  measure.font = `12px ${inks.fontFamily}`;
  for (const text of words) {
    below.push("");
    for (const part of text.split(/(?<=[\s&/])/)) { /* addresses have no spaces */
      if (measure.measureText(below.at(-1) + part).width > width) below.push("");
      below[below.length - 1] += part;
    }
  }
  below.forEach((text, i) => {
    const line = svg("text", { x: 0, y: bottom + 24 + 16 * i, fill: inks.color, "font-size": "12px", "font-family": inks.fontFamily });
    line.textContent = text;
    out.append(line);
  });
  const margin = 16, whole = { width: width + 2 * margin, height: Math.ceil(bottom) + 16 + 16 * below.length + 2 * margin };
  for (const [name, value] of Object.entries({ ...whole, viewBox: `${-margin} ${-margin} ${whole.width} ${whole.height}` })) out.setAttribute(name, value);
  out.prepend(svg("rect", { x: -margin, y: -margin, ...whole, fill: page }));
  return out;
}

function* paths(element) { for (let e = element; e; e = e.parentElement) yield e; }

function download(content, name, type) {
  const url = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  make("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

async function save(element, app, name, kind) {
  const state = app.bundle.index.tasks.length ? `latent ${app.get("latent")}, task ${app.task().title}` : `latent ${app.get("latent")}`;
  const picture = drawing(element, [state, app.link(), CITATION]);
  const text = new XMLSerializer().serializeToString(picture);
  const file = `patchsae-${name}-${app.get("latent")}.${kind}`;
  if (kind === "svg") { download(text, file, "image/svg+xml"); return; }
  const image = await decoded(`data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`);
  const canvas = make("canvas", { width: 2 * image.width, height: 2 * image.height });
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  canvas.toBlob((blob) => download(blob, file), "image/png");
}

/* --- what views have in common ----------------------------------------------------------------- */

/* A part of the explorer with its name, its tools and what saves it. */
function section(app, name, title, tools = [], more = []) {
  const body = make("div", { className: "content" });
  const saving = ["png", "svg"].map((kind) => button(kind.toUpperCase(), app.careful(() => save(element, app, name, kind)), { title: `save this part as ${kind.toUpperCase()}`, aria: { label: `save ${title} as ${kind.toUpperCase()}` } }));
  const head = make(app.linked ? "h2" : "h3", { textContent: title });
  const element = make("section", { className: `view ${name}`, aria: { label: title } },
    make("header", {}, head, make("div", { className: "tools" }, ...tools, ...saving, ...more)));
  return { element, body, head };
}

const choice = (name, options, onchange) => {
  const select = make("select", { onchange: () => onchange(select.value), aria: { label: name } }, ...options.map(([value, textContent]) => make("option", { value, textContent })));
  return [make("label", {}, `${name} `, select), select];
};

/* A latent as a button: its number and, where known, its concept. */
function latentButton(app, latent, textContent = `${latent}`) {
  return button(textContent, ({ currentTarget }) => {
    app.stays = Boolean(currentTarget.closest(".picture-view, .steer, .draw")); /* with the picture it was found in */
    app.set({ latent });
  }, { className: "shown latent", title: `latent ${latent}`, aria: { label: `latent ${latent}`, ...(latent === app.get("latent") && { current: "true" }) } });
}

/* A latent as a button with its first example picture, and words below it. */
async function tile(app, latent, picture, said, below) {
  const { bundle } = app, canvas = make("canvas", { aria: { hidden: "true" } });
  if (picture >= 0) paint(canvas, await bundle.reference(picture), bundle, { sharp: 1 });
  const open = make("button", { type: "button", className: "shown picture tile", title: said, onclick: () => app.set({ latent }), aria: { label: said } }, canvas);
  open.dataset.latent = latent;
  const figure = make("figure", {}, open, make("figcaption", {}, ...below.flatMap((line) => [make("br"), line]).slice(1)));
  mark(figure, app.get("latent"));
  return figure;
}

/* The latents that the reader has put on a list, as it stands in an address: "12,40". */
const listed = (app) => app.get("marked").split(",").filter((one) => /^\d+$/.test(one)).map(Number).filter((latent) => latent < app.bundle.index.latents);

const bar = (share, colour = "") => make("span", { className: "track" }, Object.assign(make("span", { className: "bar" }), { style: `width:${(100 * clamp(share, 0, 1)).toFixed(1)}%;${colour && `background:var(${colour})`}` }));

/* A share of n pictures: a bar, or of fewer than ten a dot for each; and in words. */
function portion(value, n, colour) {
  if (!(n < 10)) return [bar(value, colour), `${Math.round(100 * value)} %`];
  const k = Math.round(value * n), dots = range(n).map((i) => Object.assign(make("i", { className: i < k ? "" : "hollow" }), { style: `color:var(${colour})` }));
  return [make("span", { className: "dots", aria: { hidden: true } }, ...dots), `${k} of ${n}`];
}

const swatch = (said, colour, shape) => make("span", { className: "swatch" }, Object.assign(make("i", { className: shape }), { style: `background:var(${colour})` }), ` ${said}`);

/* Marks the button of the latent that is chosen. */
function mark(element, latent) {
  for (const one of element.querySelectorAll("button.latent, button.tile")) Number(one.dataset.latent ?? one.textContent) === latent ? one.setAttribute("aria-current", "true") : one.removeAttribute("aria-current");
}

/* Updates in turn: an answer that comes late is of no use, an error is said. */
function careful(body, work) {
  let turn = 0;
  return async (...given) => {
    const mine = ++turn;
    try {
      await work(() => mine === turn, ...given);
      if (mine === turn) body.parentElement.classList.remove("failed");
    } catch (error) {
      if (mine === turn) body.parentElement.classList.add("failed");
      if (mine === turn) body.replaceChildren(make("p", { className: "trouble", role: "alert", textContent: `This cannot be shown: ${error.message}.` }));
    }
  };
}

/* The patch of a picture that is pointed at. */
function patchAt(canvas, event, [rows, columns]) {
  const box = canvas.getBoundingClientRect();
  const column = clamp(Math.floor((event.clientX - box.left) / box.width * columns), 0, columns - 1);
  return clamp(Math.floor((event.clientY - box.top) / box.height * rows), 0, rows - 1) * columns + column;
}

/* A card that follows the pointer: a latent's first picture and what is known of it. */
function pointing(app) {
  const card = make("div", { className: "patchsae-card" }, make("canvas"), make("span"));
  let now;
  async function show(latent, event) {
    now = latent;
    if (latent === undefined) { card.remove(); return; }
    const [canvas, text] = card.children;
    try {
      const picture = await app.bundle.first(latent);
      if (picture < 0) throw new Error("never active");
      const place = await app.bundle.reference(picture);
      if (now !== latent || !app.el.isConnected) return;
      paint(canvas, place, app.bundle, { sharp: 1 });
      text.textContent = [`latent ${latent}`, app.bundle.named(latent) || app.bundle.className(picture)].filter(Boolean).join(" · ");
    } catch {
      if (now === latent) card.remove();
      return;
    }
    document.body.append(card);
    const room = card.getBoundingClientRect();
    const left = event.clientX > innerWidth / 2 ? event.clientX - room.width - 24 : event.clientX + 24;
    card.style.left = `${clamp(left, 4, innerWidth - room.width - 4)}px`;
    card.style.top = `${Math.max(4, event.clientY - room.height - 16)}px`;
  }
  return { show, remove: () => { now = undefined; card.remove(); } };
}

/* Points over two logarithmic axes, to look at, point at, zoom and brush. */
function scatter(app, { x, y, label, chosen, brushed, ticks = (v) => power(v), square = false }) {
  const canvas = make("canvas", { tabIndex: 0, role: "img" }), axes = svg("svg", { class: "axes", "aria-hidden": "true" });
  const element = make("div", { className: `plot${square ? " square" : ""}` }, canvas, axes);
  const card = pointing(app), M = { left: 62, right: 12, top: 10, bottom: 42 };
  const still = document.createElement("canvas");
  let points = [], view, whole, dragged, tool = "move", width = 0, height = 0;

  const log = (v) => Math.log10(v);
  function extent(values) {
    const some = values.filter((v) => v > 0).map(log);
    const low = some.reduce((a, b) => Math.min(a, b), Infinity), high = some.reduce((a, b) => Math.max(a, b), -Infinity);
    return some.length ? [low - 0.04 * (high - low || 1), high + 0.04 * (high - low || 1)] : [-1, 1];
  }
  /* `points`: [{ latent, x, y, colour, shape, size, front }]; what is 0 lies on the edge. */
  function set(given) {
    points = given;
    const both = square && extent(points.flatMap((p) => [p.x, p.y]));
    whole = { x: both || extent(points.map((p) => p.x)), y: both || extent(points.map((p) => p.y)) };
    for (const p of points) for (const axis of ["x", "y"]) p[`l${axis}`] = p[axis] > 0 ? log(p[axis]) : whole[axis][0];
    view = view && !square ? view : structuredClone(whole);
    draw();
  }
  const px = (v) => M.left + (v - view.x[0]) / (view.x[1] - view.x[0]) * (width - M.left - M.right);
  const py = (v) => height - M.bottom - (v - view.y[0]) / (view.y[1] - view.y[0]) * (height - M.top - M.bottom);
  const back = (at) => [view.x[0] + (at.x - M.left) / (width - M.left - M.right) * (view.x[1] - view.x[0]), view.y[0] + (height - M.bottom - at.y) / (height - M.top - M.bottom) * (view.y[1] - view.y[0])];

  /* All that does not change with the latent: points on a canvas of its own, axes beside it. */
  function draw() {
    const room = element.getBoundingClientRect();
    if (!room.width || !view) return;
    [width, height] = [room.width, room.height];
    const ratio = devicePixelRatio || 1, style = getComputedStyle(app.el), ink = (name) => style.getPropertyValue(name).trim() || "#888";
    canvas.width = still.width = width * ratio;
    canvas.height = still.height = height * ratio;
    const c = still.getContext("2d");
    c.scale(ratio, ratio);
    within(c);
    if (square) {
      Object.assign(c, { strokeStyle: ink("--x-grey"), lineWidth: 1 });
      c.setLineDash([2, 4]);
      c.beginPath();
      c.moveTo(px(whole.x[0]), py(whole.y[0]));
      c.lineTo(px(whole.x[1]), py(whole.y[1]));
      c.stroke();
      c.setLineDash([]);
    }
    /* one path for each look: tens of thousands of points take a few milliseconds */
    const looks = new Map();
    for (const p of points) {
      const key = `${p.front ? 1 : 0}|${p.colour}|${p.shape ?? "circle"}|${p.size ?? 2.2}|${p.dim ? 1 : 0}`;
      (looks.get(key) ?? looks.set(key, []).get(key)).push(p);
    }
    for (const [key, some] of [...looks].sort(([a], [b]) => a < b ? -1 : 1)) {
      const [, colour, shape, size, dim] = key.split("|"), r = Number(size);
      c.fillStyle = colour.startsWith("--") ? ink(colour) : colour;
      c.globalAlpha = dim === "1" ? 0.12 : 0.85;
      c.beginPath();
      for (const p of some) {
        const [a, b] = [px(p.lx), py(p.ly)];
        if (shape === "circle") { c.moveTo(a + r, b); c.arc(a, b, r, 0, 7); }
        else if (shape === "square") c.rect(a - r, b - r, 2 * r, 2 * r);
        else { c.moveTo(a, b - 1.3 * r); c.lineTo(a + 1.3 * r, b); c.lineTo(a, b + 1.3 * r); c.lineTo(a - 1.3 * r, b); c.closePath(); }
      }
      c.fill();
    }
    drawAxes();
    point();
  }

  const within = (c) => {
    c.beginPath();
    c.rect(M.left - 5, M.top - 5, width - M.left - M.right + 10, height - M.top - M.bottom + 10);
    c.clip();
  };

  /* The points, and on them the ring around the latent that is chosen. */
  function point() {
    if (!still.width || !view) return;
    const style = getComputedStyle(app.el), ink = (name) => style.getPropertyValue(name).trim() || "#888", c = canvas.getContext("2d"), ratio = devicePixelRatio || 1;
    c.setTransform(1, 0, 0, 1, 0, 0);
    c.clearRect(0, 0, canvas.width, canvas.height);
    c.drawImage(still, 0, 0);
    c.setTransform(ratio, 0, 0, ratio, 0, 0);
    c.save();
    within(c);
    const mark = points.find((p) => p.latent === app.get("latent"));
    if (mark) {
      for (const [colour, line] of [["--x-page", 5], ["--x-ink", 2]]) {
        Object.assign(c, { strokeStyle: ink(colour), lineWidth: line });
        c.beginPath();
        c.arc(px(mark.lx), py(mark.ly), 8, 0, 7);
        c.stroke();
      }
    }
    if (dragged?.box) {
      Object.assign(c, { strokeStyle: ink("--x-ink"), lineWidth: 1 });
      c.setLineDash([4, 3]);
      c.strokeRect(dragged.from.x, dragged.from.y, dragged.to.x - dragged.from.x, dragged.to.y - dragged.from.y);
    }
    c.restore();
  }

  function drawAxes() {
    const parts = [svg("path", { d: `M${M.left - 5} ${M.top}V${height - M.bottom + 5}H${width - M.right}`, class: "axis" })];
    const marks = ([low, high]) => {
      const step = Math.max(1, Math.ceil((high - low) / 6)), out = [];
      for (let e = Math.floor(low); e <= high; e += step) for (const m of high - low < 1.2 ? [1, 2, 5] : [1]) out.push(e + log(m));
      return out.filter((v) => v >= low - 1e-6 && v <= high + 1e-6);
    };
    for (const v of marks(view.x)) {
      parts.push(svg("path", { d: `M${px(v)} ${height - M.bottom + 5}v4`, class: "axis" }));
      parts.push(Object.assign(svg("text", { x: px(v), y: height - M.bottom + 21, "text-anchor": "middle" }), { textContent: ticks(10 ** v, "x") }));
    }
    for (const v of marks(view.y)) {
      parts.push(svg("path", { d: `M${M.left - 9} ${py(v)}h4`, class: "axis" }));
      parts.push(Object.assign(svg("text", { x: M.left - 12, y: py(v) + 4, "text-anchor": "end" }), { textContent: ticks(10 ** v, "y") }));
    }
    parts.push(Object.assign(svg("text", { x: (width + M.left - M.right) / 2, y: height - 4, "text-anchor": "middle" }), { textContent: x() }));
    parts.push(Object.assign(svg("text", { x: 0, y: 0, "text-anchor": "middle", transform: `translate(11 ${(height - M.bottom + M.top) / 2}) rotate(-90)` }), { textContent: y() }));
    axes.setAttribute("viewBox", `0 0 ${width} ${height}`);
    axes.replaceChildren(...parts);
    canvas.setAttribute("aria-label", `${label()}: ${plural(points.length, "point")} by ${x()} and ${y()}.`);
  }

  function nearest(at, reach = 12) {
    let best, least = reach * reach;
    for (const p of points) {
      const d = (px(p.lx) - at.x) ** 2 + (py(p.ly) - at.y) ** 2 - (p.front ? 9 : 0);
      if (d < least) [best, least] = [p, d];
    }
    return best;
  }
  const place = (event) => { const r = canvas.getBoundingClientRect(); return { x: event.clientX - r.left, y: event.clientY - r.top }; };

  function zoom(factor, at = { x: (width + M.left) / 2, y: (height - M.bottom) / 2 }) {
    const fixed = back(at);
    ["x", "y"].forEach((axis, i) => { view[axis] = view[axis].map((v) => fixed[i] + (v - fixed[i]) * factor); });
    draw();
  }
  function reset() { view = structuredClone(whole); draw(); }

  const fingers = new Map();
  canvas.onpointerdown = (event) => {
    fingers.set(event.pointerId, place(event));
    if (!view || event.button || fingers.size > 1) return;
    dragged = { from: place(event), to: place(event), view: structuredClone(view), box: false, moved: false };
    if (event.pointerType === "mouse" || tool === "select") canvas.setPointerCapture(event.pointerId);
  };
  canvas.onpointermove = (event) => {
    const at = place(event);
    if (fingers.size === 2 && fingers.has(event.pointerId)) { /* pinch */
      const [a, b] = [...fingers.values()], was = Math.hypot(a.x - b.x, a.y - b.y);
      fingers.set(event.pointerId, at);
      const [c, d] = [...fingers.values()], is = Math.hypot(c.x - d.x, c.y - d.y);
      dragged = undefined;
      if (is > 10 && was > 10) zoom(was / is, { x: (c.x + d.x) / 2, y: (c.y + d.y) / 2 });
      return;
    }
    if (dragged && fingers.has(event.pointerId)) {
      dragged.to = at;
      dragged.moved ||= Math.hypot(at.x - dragged.from.x, at.y - dragged.from.y) > 4;
      if (!dragged.moved) return;
      card.remove();
      if (tool === "select" || event.shiftKey || dragged.box) dragged.box = true;
      else {
        const kx = (dragged.view.x[1] - dragged.view.x[0]) / (width - M.left - M.right), ky = (dragged.view.y[1] - dragged.view.y[0]) / (height - M.top - M.bottom);
        view.x = dragged.view.x.map((v) => v - (at.x - dragged.from.x) * kx);
        view.y = dragged.view.y.map((v) => v + (at.y - dragged.from.y) * ky);
      }
      dragged.box ? point() : draw();
      return;
    }
    const found = view && event.pointerType === "mouse" && nearest(at);
    canvas.style.cursor = found ? "pointer" : "";
    card.show(found ? found.latent : undefined, event);
  };
  const lifted = (event) => {
    const was = dragged;
    fingers.delete(event.pointerId);
    dragged = undefined;
    if (!was) return;
    if (event.type === "pointercancel") { /* the page is scrolled instead */
      view = was.view;
      draw();
    } else if (was.box) {
      const [x0, x1] = [was.from.x, was.to.x].sort((a, b) => a - b), [y0, y1] = [was.from.y, was.to.y].sort((a, b) => a - b);
      brushed?.(points.filter((p) => px(p.lx) >= x0 && px(p.lx) <= x1 && py(p.ly) >= y0 && py(p.ly) <= y1).map((p) => p.latent));
      draw();
    } else if (!was.moved) {
      const found = nearest(place(event), event.pointerType === "mouse" ? 12 : 28);
      if (found) { card.remove(); (chosen ?? ((p) => app.set({ latent: p.latent })))(found); }
    }
  };
  canvas.onpointerup = canvas.onpointercancel = lifted;
  canvas.onpointerleave = () => card.remove();
  /* the wheel scrolls the page, unless the map was clicked on before or ctrl is held */
  canvas.addEventListener("wheel", (event) => {
    if (!view || !event.ctrlKey && document.activeElement !== canvas) return;
    event.preventDefault();
    zoom(event.deltaY > 0 ? 1.15 : 1 / 1.15, place(event));
  }, { passive: false });
  canvas.ondblclick = reset;
  const watch = new ResizeObserver(draw);
  watch.observe(element);
  app.cleanups.push(() => { watch.disconnect(); card.remove(); });
  return { element, set, draw, point, zoom, reset, use: (name) => { tool = name; canvas.classList.toggle("selecting", name === "select"); } };
}

/* --- the map of latents ------------------------------------------------------------------------ */

const TILES = 12, LIST = " list"; /* no kind begins with a space */

function mapView(app) {
  const { bundle } = app;
  const colours = [["entropy", "label entropy"], ["iou", "IoU with its concept"], ["group", "change in this task"]];
  const [colourBy, select] = choice("colour", colours, () => update());
  const plot = scatter(app, {
    x: () => "activated frequency (share of pictures)", y: () => "mean activation", label: () => `Latents coloured by ${colours.find(([v]) => v === select.value)[1]}`,
    ticks: (v, axis) => axis === "x" ? percent(v) : power(v), brushed: (latents) => { app.some = latents.length ? { latents, why: "in the box" } : null; update(); list(); },
  });
  const tool = (name, textContent) => button(textContent, () => {
    plot.use(name);
    tools.forEach((b) => b.setAttribute("aria-pressed", b.textContent === textContent));
  }, { aria: { pressed: name === "move" } });
  const tools = [tool("move", "move"), tool("select", "select")];
  const zooms = [["+", "zoom in", () => plot.zoom(0.7)], ["−", "zoom out", () => plot.zoom(1 / 0.7)], ["⤢", "show all", () => plot.reset()]]
    .map(([sign, said, act]) => button(sign, act, { title: said, aria: { label: said } }));
  const csv = button("CSV", app.careful(() => table()), { title: "save the table of latents", aria: { label: "save the table of latents as CSV" } });
  const { element, body } = section(app, "map", "Map of latents", [], [csv]);
  const key = make("p", { className: "legend" }), found = make("div", { className: "found" });
  const [galleries, gallery] = choice("gallery", [["", "of a kind"], [LIST, "your list"]], app.careful(() => ofKind(gallery.value)));
  const search = make("input", { type: "search", placeholder: "a number or a word: 12, wheel, bird, writing, no name", aria: { label: "search latents by number or name" } });
  search.oninput = app.careful(() => look(search.value.trim()));
  search.onkeydown = (event) => {
    if (event.key !== "Enter") return;
    const first = app.some?.latents[0]; /* of a search only one that is called so */
    if (first !== undefined && app.some.called !== false) app.set({ latent: first });
  };
  app.search = () => search.focus();
  const asks = make("div", { className: "tools line" }, make("label", { className: "wide" }, search));
  element.querySelector("header").after(body, asks, make("div", { className: "tools line" }, colourBy, galleries, ...tools, ...zooms), plot.element, key, found);
  let ready = false;

  /* Shows the latents that are named by a concept of a kind, the best first, or those on the list. */
  async function ofKind(kind) {
    await Promise.all(["concept", "kind", "iou", "top_class"].map((name) => bundle.column(name)));
    const named = () => range(bundle.index.latents).filter((latent) => bundle.concept(latent) && bundle.of(latent, "kind") === kind).sort(byIou);
    app.some = kind === LIST ? { latents: listed(app), why: "on your list" } : kind ? { latents: named(), why: `named by a ${kind}` } : null;
    search.value = "";
    update();
    list();
  }

  async function kinds() {
    await bundle.column("kind");
    await bundle.column("concept");
    const all = new Set(range(bundle.index.latents).filter((latent) => bundle.concept(latent)).map((latent) => bundle.of(latent, "kind")));
    gallery.append(...[...all].sort().map((kind) => make("option", { value: kind, textContent: kind })));
    if (!app.get("marked")) return;
    gallery.value = LIST; /* of a link */
    await ofKind(LIST);
  }
  kinds().catch(() => undefined); /* then there is the list alone */

  const byIou = (a, b) => (bundle.of(b, "iou") ?? -1) - (bundle.of(a, "iou") ?? -1);

  /* Why a word finds a latent, and how good a reason that is: [0 to 2, in words]; or undefined. */
  function match(latent, word) {
    const { synonyms } = bundle.index, said = `${bundle.named(latent)} ${bundle.concept(latent)}`.toLowerCase();
    if (said.includes(word)) return [0, "name"];
    const key = synonyms[word] ? word : word.replace(/s$/, ""), meant = synonyms[key]?.find((name) => said.split(/\W+/).includes(name));
    if (meant) return [1, `${bundle.concepts.has(`group ${key}`) ? "group" : "synonym"}: ${key} → ${meant}`];
    const top = bundle.of(latent, "top_class") ?? "";
    return top.toLowerCase().includes(word) ? [2, `strongest on ${top}`] : undefined;
  }

  async function look(text) {
    await Promise.all(["concept", "kind", "iou", "top_class", "entropy"].map((name) => bundle.column(name)));
    const words = text.toLowerCase().split(/\s+/).filter(Boolean);
    gallery.value = "";
    if (!words.length) app.some = null;
    else if (/^\d+$/.test(text)) app.some = { latents: Number(text) < bundle.index.latents ? [Number(text)] : [], why: `with the number ${text}` };
    else {
      const fits = new Map(range(bundle.index.latents).filter((latent) => bundle.of(latent, "frequency") > 0).map((latent) => [latent, words.map((word) => match(latent, word))]).filter(([, found]) => found.every(Boolean)));
      const rank = (latent) => Math.max(...(fits.get(latent) ?? []).map(([order]) => order));
      const latents = [...fits.keys()].sort((a, b) => rank(a) - rank(b) || (rank(a) < 2 ? byIou(a, b) : bundle.of(a, "entropy") - bundle.of(b, "entropy")));
      app.some = { latents, called: rank(latents[0]) === 0, why: `for “${text}”`, because: (latent) => [...new Set(fits.get(latent).map(([, said]) => said))].join(", ") };
    }
    update();
    list();
  }

  const list = careful(body, async (current) => {
    if (!app.some) { found.replaceChildren(); return; }
    const { latents, why, because } = app.some, first = latents.slice(0, TILES);
    const pictures = await Promise.all(first.map((latent) => bundle.first(latent)));
    const items = await Promise.all(first.map((latent, i) => {
      const name = bundle.named(latent), top = bundle.of(latent, "top_class"), iou = bundle.of(latent, "iou");
      const below = [`${latent}: ${name && name !== "no name" ? name : top ? `no name, strongest on ${top}` : "no name"}`, iou !== undefined && `IoU ${iou.toFixed(2)}`, because?.(latent)].filter(Boolean);
      return tile(app, latent, pictures[i], `latent ${below.join(", ")}`, below);
    }));
    if (!current()) return;
    (why.startsWith("in the") ? key : asks).after(found); /* below what was asked, not out of sight */
    const clear = button("clear", () => { app.some = null; search.value = gallery.value = ""; update(); list(); search.focus(); });
    const more = latents.length > TILES ? `, the first ${TILES}${why.startsWith("in the") ? "" : because ? ", names before synonyms, by IoU, then those without a name, by label entropy" : " by IoU"}` : "";
    found.replaceChildren(make("p", {}, `${plural(latents.length, "latent")} ${why}${more}. `, clear), make("div", { className: "strip" }, ...items));
    app.say(`${plural(latents.length, "latent")} ${why}.`);
  });

  async function table() {
    const names = bundle.index.columns.map((column) => column.name);
    const columns = await Promise.all(names.map((name) => bundle.column(name)));
    /* words in quotes; one that a spreadsheet would take for a formula gets an apostrophe */
    const quoted = (v) => typeof v === "number" ? (Number.isNaN(v) ? "" : String(v)) : `"${v.replace(/^[=+\-@\t\r]/, "'$&").replaceAll('"', '""')}"`;
    const rows = (app.some?.latents ?? range(bundle.index.latents)).map((latent) => [latent, ...columns.map((column) => quoted(column[latent]))].join(","));
    download([["latent", ...names].map(quoted).join(","), ...rows].join("\n"), "latents.csv", "text/csv");
  }

  const update = careful(body, async (current) => {
    const by = select.value, name = by === "group" ? "" : by;
    const [x, y, z] = await Promise.all(["frequency", "mean", name].map((each) => each ? bundle.column(each) : null));
    const task = app.task(), groups = by === "group" && task?.models.length === 2
      ? array((await bundle.load(`task-${app.taskNumber()}`)).groups, "uint8") : null;
    if (!current()) return;
    if (!x || !y) throw new Error("the bundle has no frequency and mean");
    body.replaceChildren();
    ready = true;
    const known = z ? Array.from(z).filter((v) => !Number.isNaN(v)) : [];
    const most = known.reduce((a, b) => Math.max(a, b), 0) || 1;
    const some = app.some && new Set(app.some.latents), points = [];
    for (let latent = 0; latent < x.length; latent++) {
      if (!(x[latent] > 0)) continue;
      const of = groups?.[latent] ?? 0, value = z?.[latent];
      const colour = groups ? GROUPS[of][1] : value === undefined || Number.isNaN(value) ? "--x-grey" : shade(Math.round(24 * value / most) / 24);
      points.push({ latent, x: x[latent], y: y[latent], colour, dim: some && !some.has(latent), front: some ? some.has(latent) : of > 1,
        shape: groups ? GROUPS[of][2] : "circle", size: of > 1 ? 4 : some?.has(latent) ? 3.2 : 2.2 });
    }
    plot.set(points);
    const silent = x.length - points.length;
    const scale = make("span", { className: "colours", role: "img", aria: { label: "from blue to yellow" } });
    const swatches = GROUPS.map((group) => swatch(...group));
    key.replaceChildren(...(by === "group"
      ? groups ? [`${task.title}, strongest change in any class: `, ...swatches] : ["Choose a task with an adapted model to see what it changes."]
      : ["0 ", scale, ` ${short(most)} ${by === "iou" ? "IoU" : "nats"}; grey: not known`]), silent ? `. ${plural(silent, "latent")} never active, not shown.` : "");
  });
  return { element, themed: plot.draw, update: (changed) => {
    if (changed.has("latent")) mark(found, app.get("latent"));
    if (changed.has("marked") && ready && (gallery.value === LIST || app.get("marked") && !app.some && !gallery.value)) {
      gallery.value = LIST;
      ofKind(LIST).catch(() => undefined);
    }
    return !ready || body.children.length || changed.has("task") && select.value === "group" ? update() : plot.point();
  } };
}

/* --- a latent ---------------------------------------------------------------------------------- */

const FORMULAS = {
  "activated frequency": "<mfrac><mrow><mo>|</mo><mo>{</mo><mi>x</mi><mo>:</mo><msub><mover><mi>f</mi><mo>¯</mo></mover><mi>s</mi></msub><mo>(</mo><mi>x</mi><mo>)</mo><mo>&gt;</mo><mn>0</mn><mo>}</mo><mo>|</mo></mrow><mi>N</mi></mfrac>",
  "mean activation": "<mfrac><mrow><munder><mo>∑</mo><mi>x</mi></munder><msub><mover><mi>f</mi><mo>¯</mo></mover><mi>s</mi></msub><mo>(</mo><mi>x</mi><mo>)</mo></mrow><mrow><mo>|</mo><mo>{</mo><mi>x</mi><mo>:</mo><msub><mover><mi>f</mi><mo>¯</mo></mover><mi>s</mi></msub><mo>(</mo><mi>x</mi><mo>)</mo><mo>&gt;</mo><mn>0</mn><mo>}</mo><mo>|</mo></mrow></mfrac>",
  "label entropy": "<mo>−</mo><munder><mo>∑</mo><mi>c</mi></munder><msub><mi>p</mi><mi>c</mi></msub><mi>log</mi><msub><mi>p</mi><mi>c</mi></msub>",
  "label spread": "<msqrt><mrow><munder><mo>∑</mo><mi>i</mi></munder><msub><mi>w</mi><mi>i</mi></msub><msup><mrow><mo>(</mo><msub><mi>c</mi><mi>i</mi></msub><mo>−</mo><mover><mi>c</mi><mo>¯</mo></mover><mo>)</mo></mrow><mn>2</mn></msup></mrow></msqrt>",
  "partner": "<mi>cos</mi><mo>(</mo><msub><mi>w</mi><mi>s</mi></msub><mo>,</mo><msub><msup><mi>w</mi><mo>′</mo></msup><mrow><mi>π</mi><mo>(</mo><mi>s</mi><mo>)</mo></mrow></msub><mo>)</mo>",
  "IoU": "<mfrac><mrow><mo>|</mo><mi>A</mi><mo>∩</mo><mi>T</mi><mo>|</mo></mrow><mrow><mo>|</mo><mi>A</mi><mo>∪</mo><mi>T</mi><mo>|</mo></mrow></mfrac>",
};
const MEANT = {
  "activated frequency": "the share of pictures in which it is active; f̄(x) is the mean over tokens",
  "mean activation": "f̄(x), on average over those pictures",
  "label entropy": "of the classes of its ten reference images, by activation (eq. 3); 0: all of one class",
  "label spread": "of the class numbers of its reference images; related classes are neighbours",
  "IoU": "patches where it is above a threshold (A) and where its concept is (T), on pictures that chose neither concept nor threshold",
  "partner": "cosine of its decoder row w and that of the latent π(s) which is matched with it in an equally long training from another seed",
};

function latentView(app) {
  const { bundle } = app;
  const number = make("input", { type: "number", min: 0, step: 1, aria: { label: "latent" } });
  number.onchange = () => {
    if (Number.isFinite(number.valueAsNumber)) app.set({ latent: Math.round(number.valueAsNumber) });
    number.value = app.get("latent");
  };
  const step = (by, sign, said) => button(sign, () => app.step(by), { aria: { label: said }, title: said });
  const outlines = make("input", { type: "checkbox", checked: true, onchange: () => update() });
  const masks = make("input", { type: "checkbox", onchange: () => app.set({ masks: masks.checked }) });
  const [from, source] = choice("pictures of", [["", "what it was scanned on"]], () => update());
  const { element, body, head } = section(app, "latent", "Latent");
  const star = button("☆ list", () => {
    const all = listed(app), latent = app.get("latent");
    app.set({ marked: (all.includes(latent) ? all.filter((one) => one !== latent) : [...all, latent]).join(",") });
  }, { title: "put this latent on your list, or take it off; the address holds the list" });
  const pin = button("pin", () => app.pin(), { title: "keep this latent beside the next one, to compare them" });
  const starred = () => {
    const on = listed(app).includes(app.get("latent"));
    star.textContent = on ? "★ list" : "☆ list";
    star.setAttribute("aria-pressed", String(on));
    pin.setAttribute("aria-pressed", String(app.get("pinned") === app.get("latent")));
  };
  const tools = make("div", { className: "tools line" }, make("label", {}, "latent ", number), step(-1, "‹", "the latent before"), step(1, "›", "the next latent"),
    make("label", {}, masks, " masks"), make("label", { className: "truth" }, outlines, " outline of its concept"), from, star, pin);
  const sides = make("div", { className: "sides" }), relation = make("p", { className: "relation", hidden: app.get("pinned") < 0 });
  const classes = make("div", { className: "classes" }), near = make("div", { className: "near" }), strengths = make("div", { className: "strengths" }), effects = make("div", { className: "effects" });
  const formulas = button("formulas", () => formulas.setAttribute("aria-pressed", String(sides.classList.toggle("with-formulas"))), { aria: { pressed: false } });
  const inside = [tools, make("div", {}, relation), sides, make("div", { className: "tools line" }, formulas), strengths, make("div", { className: "pair" }, classes, effects), near];
  element.querySelector("header").after(body, ...inside);
  const TITLES = { highest: "Most active", quantiles: "A quarter, half and three quarters down the list of pictures where it is active", random: "Three of those pictures at random" };

  function statistics(latent) {
    const of = (name) => bundle.of(latent, name), rows = [];
    const row = (name, value) => value !== undefined && rows.push([name, value]);
    row("activated frequency", of("frequency") !== undefined ? `${percent(of("frequency"))}${of("n_images") !== undefined ? ` (${plural(of("n_images"), "picture")})` : ""}` : undefined);
    row("mean activation", of("mean") !== undefined ? short(of("mean")) : undefined);
    row("label entropy", of("entropy") !== undefined ? `${of("entropy").toFixed(2)} nats` : undefined);
    row("label spread", of("label_std") !== undefined ? of("label_std").toFixed(1) : undefined);
    row("IoU", of("iou") !== undefined ? `${of("iou").toFixed(2)}${of("z") !== undefined ? `, ${of("z").toFixed(1)} σ from chance` : ""}` : undefined);
    row("partner", of("partner") !== undefined ? `${of("partner").toFixed(2)}, ${of("partner") >= 0.9 ? "found again" : of("partner") >= 0.7 ? "perhaps found again" : "not found again"} with another seed` : undefined);
    return make("dl", { className: "stats" }, ...rows.map(([name, value]) => {
      const formula = make("span", { className: "formula", title: MEANT[name] });
      formula.innerHTML = `<math displaystyle="true">${FORMULAS[name]}</math>`; /* constants of this file */
      return make("div", {}, make("dt", { textContent: name, title: MEANT[name] }), make("dd", {}, make("b", { textContent: value }), formula));
    }));
  }

  /* Pictures with words below them, in rows with a title. */
  async function pictured(rows, full, concept) {
    const show = app.get("masks"), lined = outlines.checked && concept;
    return Promise.all(rows.map(async ([title, some]) => {
      const figures = await Promise.all(some.map(async ({ place, mask, said, act }, i) => {
        const canvas = make("canvas", { role: "img", aria: { label: `${title}, ${i + 1}${said && `: ${said}`}` } });
        paint(canvas, await place(), bundle, { mask: show && mask, outline: lined && outlineOf(bundle, (await place()).truth, concept) });
        const picture = act ? make("button", { type: "button", className: "shown picture", onclick: act, aria: { label: `open picture ${i + 1}: ${said}` } }, canvas) : canvas;
        return make("figure", {}, picture, make("figcaption", { textContent: said, title: said }));
      }));
      return make("div", { className: "strip-row" }, make("p", { className: "strip-title", textContent: title }), make("div", { className: "strip" }, ...figures));
    }));
  }

  async function ofTask(number, latent) {
    const task = bundle.index.tasks[number], pictures = await bundle.pictures(number);
    const seen = await Promise.all(pictures.map((_, i) => bundle.codes(`${number}-${i}`)));
    const models = task.models.map((_, m) => seen.map((codes, i) => [codes[m]?.total.get(latent) ?? 0, i]).filter(([level]) => level > 0).sort((a, b) => b[0] - a[0]).slice(0, 6));
    const masks = models.map((order, m) => order.map(([, i]) => seen[i][m].mask(latent)));
    const full = masks.flat().reduce((most, mask) => mask.reduce((a, b) => Math.max(a, b), most), 0) || 1;
    const rows = models.map((order, m) => [`Most active in ${task.models[m]}, of ${plural(pictures.length, "picture")}`, order.map(([, i], j) => ({
      place: async () => pictures[i], mask: masks[m][j].map((v) => Math.sqrt(v / full)), said: pictures[i].name,
      act: () => app.set({ task: task.name, image: i, patch: -1, ...(task.name !== app.get("task") && { label: 0 }) }),
    }))]);
    return { rows, full };
  }

  const update = careful(body, async (current) => {
    const latent = app.get("latent");
    number.value = latent;
    number.max = bundle.index.latents - 1;
    masks.checked = app.get("masks");
    head.textContent = `Latent ${latent}`;
    starred();
    const wanted = ["frequency", "mean", "entropy", "n_images", "label_std", "concept", "kind", "iou", "z", "found", "top_class", "lies_on", "partner"];
    const [data] = await Promise.all([bundle.latent(latent), ...wanted.map((name) => bundle.column(name))]);
    from.hidden = !bundle.index.tasks.length;
    if (source.options.length !== bundle.index.tasks.length + 1) {
      source.append(...bundle.index.tasks.map((task, i) => make("option", { value: i, textContent: task.title })));
    }
    element.querySelector(".truth").hidden = !bundle.index.concepts.length;
    const pinned = app.get("pinned"), two = pinned >= 0 && pinned !== latent;
    const shown = await Promise.all((two ? [latent, pinned] : [latent]).map((each) => side(each, two)));
    const [around, counted, changes] = await Promise.all([neighbours(data), histogram(data), affected(latent)]);
    if (!current()) return;
    body.replaceChildren();
    sides.replaceChildren(...shown);
    sides.classList.toggle("two", two);
    relation.hidden = pinned < 0;
    relation.textContent = two ? "Comparing …" : "This latent is pinned: choose another one to compare.";
    strengths.replaceChildren(...counted);
    effects.replaceChildren(...changes);
    ofClasses(data);
    near.replaceChildren(...around);
    app.say(`Latent ${latent}. ${shown[0].querySelector(".about").textContent}`);
    if (two) relate(latent, pinned);
  });

  /* What is known of one latent: its name, its pictures and its numbers. */
  async function side(latent, two) {
    const data = await bundle.latent(latent), concept = bundle.concept(latent), masked = app.get("masks");
    let rows, { full } = data;
    if (source.value) ({ rows, full } = await ofTask(Number(source.value), latent));
    else rows = bundle.index.examples.map(([kind]) => [TITLES[kind] ?? kind, data.shown.filter((one) => one.kind === kind).map(({ picture, mask }) => ({ place: () => bundle.reference(picture), mask, said: bundle.className(picture) }))]);
    const drawn = await pictured(rows.filter(([, some]) => some.length), full, concept), there = drawn.length > 0;
    const called = bundle.named(latent), on = bundle.of(latent, "lies_on"), top = bundle.of(latent, "top_class");
    const name = called === "no name" ? "It has no name" : called && `Its name: ${called}`;
    const textContent = name ? `${[name, on].filter(Boolean).join("; ")}.` : top ? `Most active on: ${top}.` : "";
    const none = make("p", { textContent: source.value ? "Not active in any of these pictures." : "Never active: no reference images." });
    return make("div", { className: "side" },
      two && make("p", { className: "side-title" }, latentButton(app, latent, `latent ${latent}`), ...latent === app.get("pinned") ? [" pinned ", button("unpin", () => app.set({ pinned: -1 }))] : []),
      make("p", { className: "about", textContent }), make("div", { className: "strips" }, ...there ? drawn : [none]),
      make("p", { className: "legend" }, ...masked && there ? legend(full) : [], ...outlines.checked && concept && there ? [`; dashed: where ${called} truly is`] : []), statistics(latent));
  }

  /* How two latents are related: their directions, and where both are active. */
  const relate = careful(relation, async (current, latent, pinned) => {
    const cosine = await bundle.cosine(latent, pinned), said = `Cosine of the decoder rows of ${latent} and ${pinned}: ${cosine.toFixed(2)}. `;
    const asked = () => current() && app.get("latent") === latent && app.get("pinned") === pinned;
    if (asked()) relation.textContent = said;
    if (!asked() || !bundle.index.tasks.length) return;
    const { each: [a, b], both, n, pictures } = await bundle.together(latent, pinned);
    if (asked()) relation.textContent = `${said}Of ${plural(n, "patch", "patches")} in ${plural(pictures, "picture")} (${bundle.index.tasks[0].title}) they are active in ${a.toLocaleString("en")} and ${b.toLocaleString("en")}, both at once in ${both.toLocaleString("en")}; by chance ${short(a * b / n)}.`;
  });

  /* How strong it is in how many pictures, and the strongest patches at quantiles of the list. */
  async function histogram({ counts, most: [most], shown }) {
    const n = counts.reduce((a, b) => a + b, 0), top = Math.max(...counts), all = bundle.index.counted;
    if (!n) return [];
    const W = 260, H = 154, L = 34, wide = (W - L - 10) / counts.length, y = (v) => H - 34 - (Math.log10(v) + 0.3) / (Math.log10(top) + 0.3) * (H - 54), x = (i) => L + i * wide;
    const text = (textContent, attributes) => Object.assign(svg("text", attributes), { textContent });
    const chart = svg("svg", { viewBox: `0 0 ${W} ${H}`, class: "chart", role: "img", "aria-label": `Pictures by activation, from 0 to ${short(most)} in ${counts.length} equal bins: ${counts.join(", ")}` });
    for (let v = 1; v <= top; v *= 10) chart.append(svg("path", { d: `M${L} ${y(v)}H${W - 10}`, class: "grid" }), text(v, { x: L - 6, y: y(v) + 4, "text-anchor": "end" }));
    counts.forEach((count, i) => count && chart.append(svg("rect", { x: x(i) + 1, y: y(count), width: wide - 2, height: H - 34 - y(count), class: "column" })));
    for (const [v, i, anchor] of [[0, 0, "start"], [most / 2, counts.length / 2, "middle"], [most, counts.length, "end"]]) chart.append(text(short(v), { x: x(i), y: H - 19, "text-anchor": anchor }));
    chart.append(text("activation, mean over a picture's tokens", { x: W - 10, y: H - 3, "text-anchor": "end" }));
    const samples = [["first", shown.find(({ kind }) => kind === "highest")], ...shown.filter(({ kind }) => kind === "quantiles").map((one, i) => [["¼ down", "½ down", "¾ down"][i], one])];
    const crops = await Promise.all(samples.filter(([, one]) => one && Math.max(...one.mask) > 0).map(async ([said, one]) => {
      const canvas = make("canvas", { width: 96, height: 96, role: "img", aria: { label: `${said}: its strongest patch, of ${bundle.className(one.picture) || "a picture"}` } });
      const { image } = await bundle.reference(one.picture), [rows, columns] = bundle.index.grid, at = one.mask.indexOf(Math.max(...one.mask));
      const place = [at % columns, Math.floor(at / columns)], from = place.map((v, i) => clamp(v - 1, 0, Math.max(0, [columns, rows][i] - 3))), cell = [image.width / columns, image.height / rows], context = canvas.getContext("2d");
      context.drawImage(image, from[0] * cell[0], from[1] * cell[1], 3 * cell[0], 3 * cell[1], 0, 0, 96, 96);
      for (const [strokeStyle, lineWidth] of [["#000", 4], ["#fff", 2]]) { Object.assign(context, { strokeStyle, lineWidth }); context.strokeRect(32 * (place[0] - from[0]) + 1, 32 * (place[1] - from[1]) + 1, 30, 30); }
      return make("figure", {}, canvas, make("figcaption", { textContent: said }));
    }));
    return [make("div", {}, make("p", { className: "strip-title", textContent: `Active in ${n.toLocaleString("en")} of ${plural(all, "picture")}; log counts` }), chart),
      make("div", {}, make("p", { className: "strip-title", textContent: "The strongest patch of the first reference image, and of pictures down this list" }), make("div", { className: "strip" }, ...crops))];
  }

  /* The classes that it raises and lowers, beside what a random direction does. */
  async function affected(latent) {
    if (!bundle.index.effects) return [];
    const [classes, logits, [usual]] = await bundle.part("effects", latent, [["classes", "int16"], ["logits", "float32"], ["null", "float32"]]);
    if (!logits.some((v) => v)) return [];
    const most = Math.max(...logits.map(Math.abs)), signed = (v) => `${v < 0 ? "−" : "+"}${short(Math.abs(v))}`;
    const list = [...logits].map((v, i) => { const noise = Math.abs(v) <= usual, name = bundle.index.classes[classes[i]];
      return make("li", { className: noise ? "noise" : "" }, make("span", { className: "name", textContent: name, title: name }), bar(Math.abs(v) / most, noise ? "--x-grey" : MODELS[v < 0 ? 1 : 0][0]), make("span", { className: "value", textContent: signed(v) })); });
    const lists = [["Raised", list.filter((_, i) => logits[i] > 0)], ["Lowered", list.filter((_, i) => logits[i] < 0)]], clear = logits.filter((v) => Math.abs(v) > usual).length;
    return [make("p", { className: "strip-title", textContent: `What it adds to classes in its strongest pictures: logits above the mean class. Grey: up to ${short(usual)}, which one in 20 random directions of its length exceeds${clear ? "" : "; here all is grey"}` }),
      ...lists.flatMap(([title, items]) => items.length ? [make("p", { className: "strip-title", textContent: title }), make("ul", { className: "bars" }, ...items)] : [])];
  }

  function ofClasses(data) {
    const rows = data.classes.map((c, i) => [bundle.index.classes[c], data.levels[i]]).filter(([name, level]) => name !== undefined && level > 0);
    if (!rows.length) { classes.replaceChildren(); return; }
    classes.replaceChildren(make("p", { className: "strip-title", textContent: `Classes, by active tokens a picture${rows.length >= 8 ? " (the first 8)" : ""}` }),
      make("ul", { className: "bars" }, ...rows.map(([name, level]) => make("li", {}, make("span", { className: "name", textContent: name, title: name }), bar(level / rows[0][1]), make("span", { className: "value", textContent: short(level) })))));
  }

  async function neighbours(data) {
    if (!data.near.length) return [];
    const figures = await Promise.all(data.near.map((latent, i) => {
      const cosine = data.cosine[i].toFixed(2), name = bundle.named(latent);
      return tile(app, latent, data.nearFirst[i], `latent ${latent}, cosine ${cosine}${name && `, ${name}`}`, [latent, cosine]);
    }));
    return [make("p", { className: "strip-title", textContent: "Nearest latents, by cosine of decoder directions" }), make("div", { className: "strip" }, ...figures)];
  }

  return { element, update: (changed) => {
    starred();
    return ["latent", "masks", "pinned"].some((name) => changed.has(name)) || changed.has("pictures") && source.value || !sides.children.length ? update() : undefined;
  } };
}

/* --- a picture --------------------------------------------------------------------------------- */

function pictureView(app) {
  const { bundle } = app;
  const compare = make("input", { type: "checkbox", onchange: () => app.set({ compare: compare.checked }) });
  const side = choice("model", [], (model) => app.set({ model }));
  const [tasks, task] = choice("task", bundle.index.tasks.map(({ name, title }) => [name, title]), (name) => app.set({ task: name, image: 0, patch: -1, label: 0 }));
  const { element, body } = section(app, "picture-view", "A picture, patch by patch");
  const file = make("input", { type: "file", accept: "image/*", hidden: true });
  const upload = button("add your picture", () => file.click());
  file.onchange = () => file.files[0] && app.add(file.files[0]).finally(() => { file.value = ""; });
  const said = make("p", { className: "trouble", role: "alert", hidden: true });
  app.complain = (text) => { said.textContent = text; said.hidden = !text; };
  const both = make("label", {}, compare, " side by side");
  const computes = app.live || bundle.index.live?.files;
  const camera = button("camera", app.careful(() => film(app)), { title: "take a picture; it stays in this page" });
  const tools = make("div", { className: "tools line" }, tasks, both, side[0], computes && upload, computes && file, app.computes() && navigator.mediaDevices && camera);
  if (computes) {
    element.ondragover = (event) => event.preventDefault();
    element.ondrop = (event) => { event.preventDefault(); if (event.dataTransfer.files[0]) app.add(event.dataTransfer.files[0]); };
    const paste = ({ clipboardData }) => { if (clipboardData.files[0] && (app.linked || app.el.contains(document.activeElement))) app.add(clipboardData.files[0]); };
    document.addEventListener("paste", paste);
    app.cleanups.push(() => document.removeEventListener("paste", paste));
  }
  const thumbs = make("div", { className: "thumbs", role: "group", aria: { label: "pictures of the task" } });
  const large = make("div", { className: "large" }), scale = make("p", { className: "legend" }), lists = make("div", { className: "lists" });
  const why = !app.live && bundle.index.live?.why && make("p", { className: "legend", textContent: `Pictures of yours: ${bundle.index.live.why}. In JupyterLab, notebook 6 looks at them.` });
  const inside = [tools, why, said, thumbs, make("div", { className: "pair" }, make("div", {}, large, scale), lists)].filter(Boolean);
  element.querySelector("header").after(body, ...inside);
  let pictures = [], codes, drawn, shown = -1, hovered = null;

  function models() {
    const names = app.task().models, one = Math.max(0, names.indexOf(app.get("model")));
    return app.get("compare") ? range(names.length) : [one];
  }

  function drawLarge() {
    const latent = app.get("latent"), masks = codes.map((model) => model.mask(latent));
    const full = masks.reduce((most, mask) => mask.reduce((a, b) => Math.max(a, b), most), 0);
    const picture = pictures[shown], names = app.task().models, classes = app.task().classes;
    const outline = outlineOf(bundle, picture.truth, bundle.concept(latent));
    const focused = [...large.children].findIndex((figure) => figure.contains(document.activeElement));
    const painted = [], repaint = () => painted.forEach(({ canvas, m }) => paint(canvas, picture, bundle, {
      mask: app.get("masks") && full > 0 && masks[m].map((v) => Math.sqrt(v / full)), outline, patch: hovered ? hovered.patch : app.get("patch"), sharp: 4,
    }));
    const point = (to) => {
      if (to?.patch === hovered?.patch && to?.m === hovered?.m) return;
      hovered = to;
      repaint();
      drawLists();
    };
    large.replaceChildren(...models().map((m) => {
      const canvas = make("canvas", { tabIndex: 0, role: "application", aria: { label: `picture ${shown + 1}, ${picture.name}, in ${names[m]}; arrow keys with shift move from patch to patch`, roledescription: "picture of patches" } });
      painted.push({ canvas, m });
      canvas.onpointermove = (event) => event.pointerType === "mouse" && point({ patch: patchAt(canvas, event, bundle.index.grid), m });
      canvas.onpointerleave = () => point(null);
      canvas.onclick = (event) => { hovered = null; app.set({ patch: patchAt(canvas, event, bundle.index.grid), model: names[m] }); };
      canvas.onkeydown = (event) => {
        const [, columns] = bundle.index.grid, by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
        if (!event.shiftKey || !by) return;
        event.preventDefault();
        event.stopPropagation();
        app.set({ patch: clamp(Math.max(0, app.get("patch")) + by, 0, bundle.size - 1) });
      };
      const order = [...picture.said[m]].map((p, c) => [p, c]).sort((a, b) => b[0] - a[0]).slice(0, 3);
      const right = picture.label < 0 ? "" : order[0][1] === picture.label ? "✓ " : "✗ ";
      return make("figure", {}, canvas, make("figcaption", {}, make("b", { textContent: names[m] }), ` says ${right}${order.map(([p, c]) => `${classes[c]} ${p.toFixed(2)}`).join(", ")}`));
    }));
    repaint();
    if (focused >= 0) large.querySelectorAll("canvas")[focused]?.focus({ preventScroll: true });
    const level = codes.map((model, m) => `${names[m]} ${short(model.total.get(latent) ?? 0)}`).join(", ");
    scale.replaceChildren(...(full ? [...(app.get("masks") ? legend(full) : []), `${app.get("masks") ? "; l" : "L"}atent ${latent}, mean over tokens: ${level}`] : [`Latent ${latent} is not active in this picture.`]), outline ? `; dashed: ${bundle.named(latent)}` : "");
  }

  const words = (latent) => bundle.named(latent) || bundle.of(latent, "top_class") || "";

  function drawLists() {
    const patch = hovered ? hovered.patch : app.get("patch"), names = app.task().models;
    const parts = [], focused = lists.contains(document.activeElement) && document.activeElement.getAttribute("aria-label");
    if (patch >= 0) {
      const one = hovered ? hovered.m : Math.max(0, names.indexOf(app.get("model"))), each = codes.map((model) => new Map(model.token(patch + 1)));
      const [, columns] = bundle.index.grid, truth = Object.entries(pictures[shown].truth ?? {}).filter(([, bits]) => holds(bytes(bits), patch)).map(([c]) => bundle.index.concepts[c]).filter(([kind]) => !kind.includes(" ")).map((concept) => concept.join(" ")); /* single concepts */
      const rows = [...each[one]].slice(0, 12), most = Math.max(1e-9, ...each.map((levels) => Math.max(0, ...rows.map(([latent]) => levels.get(latent) ?? 0))));
      parts.push(make("p", { className: "strip-title", textContent: `Patch in row ${Math.floor(patch / columns) + 1}, column ${patch % columns + 1}: ${plural(each[one].size, "latent")} of ${names[one]}, by activation` }),
        truth.length ? make("p", { className: "truth-line", textContent: `Truly there: ${truth.join(", ")}` }) : null,
        make("table", {}, make("thead", {}, make("tr", {}, ...["latent", "", ...names].map((name) => name ? make("th", { textContent: name, scope: "col" }) : make("td")))),
          make("tbody", {}, ...rows.map(([latent]) => make("tr", {}, make("td", {}, latentButton(app, latent)), make("td", { textContent: words(latent), className: "what" }),
            ...each.map((levels, m) => make("td", { className: "level" }, bar((levels.get(latent) ?? 0) / most, MODELS[m][0]), make("span", { className: "value", textContent: short(levels.get(latent) ?? 0) })))))))
      , button("the whole picture", () => app.set({ patch: -1 })));
    } else {
      const tops = codes.map((model) => [...model.total].sort((a, b) => b[1] - a[1] || a[0] - b[0]).slice(0, TOP).map(([latent]) => latent));
      const lists = tops.length === 1 ? [["", tops[0]]] : [
        [`in both models' ${TOP} strongest`, tops[0].filter((latent) => tops[1].includes(latent))],
        [`only in ${names[0]}'s`, tops[0].filter((latent) => !tops[1].includes(latent))],
        [`only in ${names[1]}'s`, tops[1].filter((latent) => !tops[0].includes(latent))]];
      parts.push(make("p", { className: "strip-title", textContent: `The ${TOP} strongest latents of the whole picture, by mean over tokens. Point at a patch for its own.` }),
        ...lists.map(([title, some]) => make("div", {}, title && make("p", { className: "strip-title", textContent: `${title}: ${some.length}` }),
          make("ul", { className: "chips" }, ...some.map((latent) => make("li", {}, latentButton(app, latent), make("span", { textContent: ` ${words(latent)}` })))))));
    }
    lists.replaceChildren(...parts.filter(Boolean));
    if (focused) [...lists.querySelectorAll("button")].find((one) => one.getAttribute("aria-label") === focused)?.focus({ preventScroll: true });
  }

  const update = careful(body, async (current) => {
    const number = app.taskNumber();
    task.value = app.task().name;
    const all = await bundle.pictures(number), image = clamp(app.get("image"), 0, all.length - 1);
    const [seen] = await Promise.all([bundle.codes(`${number}-${image}`), ...["concept", "kind", "top_class"].map((name) => bundle.column(name))]);
    if (!current()) return;
    const names = app.task().models, focused = thumbs.contains(document.activeElement);
    [pictures, codes, drawn, shown, hovered] = [all, seen, number, image, null];
    compare.checked = app.get("compare");
    both.hidden = names.length < 2;
    side[0].hidden = names.length < 2;
    side[1].replaceChildren(...names.map((textContent) => make("option", { textContent, selected: textContent === app.get("model") })));
    thumbs.replaceChildren(...all.map((picture, i) => {
      const canvas = make("canvas", { aria: { hidden: "true" } });
      paint(canvas, picture, bundle, { sharp: 1 });
      return make("button", { type: "button", className: "shown picture", title: picture.name, onclick: () => app.set({ image: i, patch: -1 }), aria: { label: `picture ${i + 1}: ${picture.name}`, pressed: i === image } }, canvas);
    }));
    if (focused) thumbs.children[image]?.focus({ preventScroll: true });
    body.replaceChildren();
    drawLarge();
    drawLists();
  });

  /* The picture of the task in which a latent that was chosen elsewhere is strongest. */
  async function follow(latent) {
    const number = app.taskNumber(), at = array((await bundle.load(`task-${number}`)).strongest, "int16")[latent];
    if (at >= 0 && number === app.taskNumber() && latent === app.get("latent")) app.set({ image: at, patch: -1 });
  }

  return { element, update: (changed) => {
    if (codes && changed.has("latent") && !changed.has("image") && !changed.has("task") && shown < app.task().pictures && !app.stays) follow(app.get("latent")).catch(() => undefined);
    app.stays = false;
    const light = codes && drawn === app.taskNumber() && ![...changed].some((name) => ["task", "image", "pictures", "compare", "model"].includes(name));
    if (!light) return update();
    drawLarge();
    drawLists();
    if (changed.has("patch")) app.say(lists.firstElementChild?.textContent ?? "");
  } };
}

/* --- latents switched and strengthened ---------------------------------------------------------- */

const SHOWN_SWITCHES = 14, SHOWN_CLASSES = 6;

/* What is switched, as it stands in an address: "12:0,40:2.5,+7:1.5" (added ones with a plus). */
const spellSwitches = ({ factors, added }) => [...[...factors].map((pair) => pair.join(":")), ...[...added].map((pair) => `+${pair.join(":")}`)].join(",");
function parseSwitches(text, latents) {
  const out = { factors: new Map(), added: new Map() };
  for (const [, plus, latent, value] of (text ?? "").matchAll(/(\+?)(\d+):(\d+(?:\.\d+)?)/g)) if (latent < latents) out[plus ? "added" : "factors"].set(Number(latent), Number(value));
  return out;
}

function steerView(app) {
  const { bundle } = app, { live } = bundle.index;
  const { element, body } = section(app, "steer", "Switch, steer, and ask why");
  const invitation = make("p", {}, "Which latents does an answer rest on? ", button(live.files ? `load them (${live.megabytes} MB)` : "ask the kernel", () => load(), { className: "begin" }));
  const progress = make("progress", { max: 1, value: 0, hidden: true, aria: { label: "models loaded" } });
  const names = make("input", { type: "text", placeholder: "your own classes: cat, dog, red car", aria: { label: "names of classes, with commas between" } });
  const brushing = make("input", { type: "checkbox", onchange: () => { brushed.clear(); canvas.style.touchAction = brushing.checked ? "none" : ""; change(); } });
  const canvas = make("canvas", { tabIndex: 0, role: "application", aria: { label: "the picture; with brush on, patches are chosen by pointer or by shift, arrow keys and space", roledescription: "picture of patches" } });
  const answers = make("div", { className: "answers" }), sliders = make("ul", { className: "sliders" }), told = make("div", { className: "told", aria: { live: "polite" } });
  const adds = button("add the chosen latent", app.careful(async () => { switches.added.set(app.get("latent"), 1); await strengths(); change(); }), { title: "put it into all patches, or into the brushed ones" });
  const resets = button("as it was", () => { switches = parseSwitches("", 0); effect = null; brushed.clear(); told.replaceChildren(); change(); });
  const whose = choice("model", [], () => { told.replaceChildren(); draw(); });
  const fewest = button("fewest that change the answer", app.careful(() => findFewest())), why = button("why this answer?", app.careful(() => findWhy()));
  const exports = button("export", app.careful(() => write()), { title: "save the picture, what is switched, and the answers" });
  const tools = make("div", { className: "tools line" }, make("label", {}, brushing, " brush patches"), adds, resets, exports);
  const inside = make("div", { className: "pair", hidden: true }, make("div", {}, canvas, tools, make("label", { className: "wide" }, names), answers),
    make("div", {}, make("div", { className: "tools line" }, whose[0], fewest, why), told, sliders));
  element.querySelector("header").after(body, invitation, progress, inside);
  /* `shown`: what is on the screen, replaced together: { picture, id, task, names, classes, models, views } */
  let computer, shown, now, switches = parseSwitches(app.get("switches"), bundle.index.latents), brushed = new Set(), cursor = 0, effect = null, key = "", moved = 0;
  const load = app.careful(() => begin());

  async function begin() {
    progress.hidden = false;
    try {
      computer = await app.compute((share) => { progress.value = share; });
      invitation.hidden = true;
      inside.hidden = false;
      await update();
    } finally { progress.hidden = true; }
  }

  const asked = ({ id, task, names: named } = shown) => ({ id, task, names: named, factors: [...switches.factors], added: [...switches.added].map(([latent, times]) => [latent, times * full.get(latent)]), patches: brushed.size ? [...brushed] : null });
  const ownNames = () => { const all = names.value.split(",").map((name) => name.trim()).filter(Boolean); return all.length > 1 ? all : undefined; };
  /* What is added is as strong as the latent is in its reference images, times the slider. */
  const full = new Map();
  const strengths = () => Promise.all([...switches.added.keys()].map(async (latent) => full.set(latent, (await bundle.latent(latent)).full)));

  /* Answers follow the sliders: while one is computed only the last of the next is kept. */
  let busy = false, again = false, where = ""; /* what is said before the answers */
  async function change() {
    app.set({ switches: spellSwitches(switches) });
    if (busy) { again = true; return; }
    busy = true;
    try {
      do {
        again = false;
        const mine = shown, said = await computer.ask("steer", asked());
        if (mine === shown) { now = said; draw(); }
      } while (again);
      app.trouble();
      app.say(where + shown.models.map((model, m) => `${model}: ${first(now[m])}`).join(", "));
      where = "";
    } catch (error) { app.trouble(error); } finally { busy = false; }
  }

  /* The most probable class, in words. */
  const first = (said) => { const c = said.indexOf(Math.max(...said)); return `${shown.classes[c]} ${said[c].toFixed(2)}`; };

  function drawAnswers() {
    const { classes: all, models, views } = shown;
    const order = range(all.length).sort((a, b) => Math.max(...now.map((p) => p[b])) - Math.max(...now.map((p) => p[a]))).slice(0, SHOWN_CLASSES);
    answers.replaceChildren(make("p", { className: "strip-title" }, "Probability of a class, from the latents as they are set; the line: without the autoencoder", ...models.length > 1 ? [". ", ...models.map((name, m) => swatch(name, ...MODELS[m]))] : []),
      make("ul", { className: "bars now" }, ...order.map((c) => make("li", {}, make("span", { className: "name", textContent: all[c], title: all[c] }),
        make("span", {}, ...now.map((p, m) => { const track = bar(p[c], MODELS[m][0]); track.append(Object.assign(make("i", { className: "was" }), { style: `left:${(100 * views[m].said[c]).toFixed(1)}%` })); return track; })),
        make("span", { className: "value", textContent: now.map((p) => p[c].toFixed(2)).join(" · ") })))));
  }

  /* Latents of the brushed patches or of the picture, by what they write in either model. */
  function strongest() {
    const sums = new Map(), inside = brushed.size ? (t) => brushed.has(t - 1) : () => true;
    for (const { code } of shown.views) for (let t = 0; t + 1 < code.starts.length; t++) if (inside(t)) {
      for (let i = code.starts[t]; i < code.starts[t + 1]; i++) sums.set(code.latents[i], (sums.get(code.latents[i]) ?? 0) + code.values[i]);
    }
    const some = [...sums].sort((a, b) => b[1] - a[1] || a[0] - b[0]).map(([latent]) => latent).slice(0, SHOWN_SWITCHES);
    return [...new Set([...switches.added.keys(), ...switches.factors.keys(), ...some])];
  }

  function drawSliders() {
    const focused = sliders.contains(document.activeElement) && document.activeElement.textContent;
    sliders.replaceChildren(...strongest().map((latent) => {
      const isNew = switches.added.has(latent), map = isNew ? switches.added : switches.factors, value = map.get(latent) ?? 1;
      const said = make("span", { className: "value" }), slider = make("input", { type: "range", min: 0, max: 4, step: 0.1, value, aria: { label: `${isNew ? "added " : ""}latent ${latent}${bundle.named(latent) && `, ${bundle.named(latent)}`}: strength` } });
      slider.dataset.latent = latent;
      const tell = (v) => { said.textContent = v === 0 ? "off" : `${isNew ? "+" : "×"} ${v}`; slider.setAttribute("aria-valuetext", said.textContent); };
      tell(value);
      slider.oninput = () => {
        const v = slider.valueAsNumber;
        isNew ? v === 0 ? map.delete(latent) : map.set(latent, v) : v === 1 ? map.delete(latent) : map.set(latent, v);
        tell(v);
        change();
      };
      return make("li", {}, latentButton(app, latent), make("span", { className: "name", textContent: bundle.named(latent), title: bundle.named(latent) }), slider, said);
    }));
    if (focused) [...sliders.querySelectorAll("button")].find((one) => one.textContent === focused)?.focus({ preventScroll: true });
  }

  function draw() {
    if (!shown) return;
    const latent = app.get("latent"), m = Math.max(0, whose[1].selectedIndex), { code } = shown.views[m];
    const mask = new Float32Array(bundle.size);
    if (effect) { const most = Math.max(1e-9, ...effect); effect.forEach((value, i) => { mask[i] = Math.max(0, value) / most; }); }
    else for (let patch = 0; patch < bundle.size; patch++) for (let i = code.starts[patch + 1]; i < code.starts[patch + 2]; i++) if (code.latents[i] === latent) mask[patch] = code.values[i];
    const most = mask.reduce((a, b) => Math.max(a, b), 0), bits = new Uint8Array(Math.ceil(bundle.size / 8));
    for (const patch of brushed) bits[patch >> 3] |= 1 << (patch & 7);
    paint(canvas, { image: shown.picture.image }, bundle, { mask: (effect || app.get("masks")) && most > 0 && mask.map((v) => Math.sqrt(v / most)), outline: brushed.size && bits, patch: brushing.checked && document.activeElement === canvas ? cursor : -1, sharp: 4 });
    drawAnswers();
    if (!document.activeElement?.dataset?.latent) drawSliders();
  }

  const patchOf = (event) => patchAt(canvas, event, bundle.index.grid);
  const brush = (patch, off) => { off ? brushed.delete(patch) : brushed.add(patch); effect = null; sliders.contains(document.activeElement) && document.activeElement.blur(); change(); };
  let erasing = false, painting = false;
  canvas.onpointerdown = (event) => {
    if (!brushing.checked || event.button) return;
    event.preventDefault();
    canvas.focus({ preventScroll: true });
    canvas.setPointerCapture(event.pointerId);
    [painting, erasing] = [true, brushed.has(patchOf(event))];
    brush(patchOf(event), erasing);
  };
  canvas.onpointermove = (event) => painting && brushed.has(patchOf(event)) === erasing && brush(patchOf(event), erasing);
  canvas.onpointerup = canvas.onpointercancel = () => { painting = false; };
  canvas.onkeydown = (event) => {
    const [, columns] = bundle.index.grid, by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
    if (!brushing.checked || !(event.key === " " || event.shiftKey && by)) return;
    event.preventDefault();
    event.stopPropagation();
    if (by) cursor = clamp(cursor + by, 0, bundle.size - 1); else brush(cursor, brushed.has(cursor));
    const place = `row ${Math.floor(cursor / columns) + 1}, column ${cursor % columns + 1}${brushed.has(cursor) ? ", brushed" : ""}`;
    if (by) { app.say(place); draw(); } else where = `${place}. `;
  };
  names.onchange = () => app.set({ names: names.value });

  async function findFewest() {
    const m = Math.max(0, whose[1].selectedIndex), all = shown.classes, mine = moved;
    effect = null;
    told.replaceChildren("Searching …");
    const { steps, answer, random: [changed, draws] } = await computer.ask("fewest", { ...asked(), model: m });
    if (mine !== moved) return; /* another picture is shown */
    const last = steps.at(-1), found = last.said.indexOf(Math.max(...last.said)), is = found !== answer;
    const rows = steps.map(({ off, said }, i) => make("li", {}, ...(i ? ["without ", latentButton(app, off.at(-1)), ` ${bundle.named(off.at(-1))}: `] : ["all on: "]), `${all[answer]} ${said[answer].toFixed(2)}`));
    told.replaceChildren(make("p", {}, is ? `Without ${plural(last.off.length, "latent")} the answer is ${all[found]}, no longer ${all[answer]}. ` : `${all[answer]} is still the answer without ${plural(last.off.length, "latent")}. `,
      `As many drawn at random from those active change it in ${changed} of ${draws} draws.`), make("ol", { start: 0 }, ...rows));
    brushed.clear();
    switches = { factors: new Map(last.off.map((latent) => [latent, 0])), added: new Map() };
    change();
  }

  async function findWhy() {
    const m = Math.max(0, whose[1].selectedIndex), all = shown.classes, { decoded } = shown.views[m], label = decoded.indexOf(Math.max(...decoded)), mine = moved;
    told.replaceChildren("Computing …");
    const { all: before, patches, latents } = await computer.ask("why", { ...asked(), model: m, label });
    if (mine !== moved) return;
    effect = patches;
    const strong = latents.filter(([, fall]) => fall >= 0.005).slice(0, 8); /* what does not round to 0 */
    told.replaceChildren(make("p", {}, `With all latents on, ${all[label]} has ${before.toFixed(2)}. Lit: patches without whose latents it falls most (at most by ${Math.max(...patches).toFixed(2)}). ${strong.length ? "Single latents without which it falls most:" : "Without any single latent it falls by less than 0.005."}`),
      make("ul", { className: "chips" }, ...strong.map(([latent, fall]) => make("li", {}, latentButton(app, latent), ` ${bundle.named(latent)} −${fall.toFixed(2)}`))), button("back to the latent's mask", () => { effect = null; told.replaceChildren(); draw(); }));
    draw();
  }

  async function write() {
    const square = make("canvas", { width: bundle.index.side, height: bundle.index.side });
    square.getContext("2d").drawImage(shown.picture.image, 0, 0, square.width, square.height);
    const said = now.map((p, m) => ({ model: shown.models[m], before: [...shown.views[m].said], now: [...p] }));
    download(JSON.stringify({ picture: square.toDataURL("image/png"), switches: app.get("switches"), patches: [...brushed], classes: shown.classes, answers: said, link: app.link(), citation: CITATION }, null, 1), "patchsae-steered.json", "application/json");
  }

  const update = careful(body, async (current) => {
    if (!computer) return;
    const number = app.taskNumber(), all = await bundle.pictures(number), at = clamp(app.get("image"), 0, all.length - 1);
    await Promise.all(["concept", "kind", "mean"].map((name) => bundle.column(name)));
    await strengths();
    const id = all[at].id ?? await app.idOf(all[at].image), which = `${number} ${id} ${names.value}`;
    if (which !== key) {
      const named = ownNames(), task = bundle.index.tasks[number], { models } = task;
      const next = { picture: all[at], id, task: number, names: named, classes: named ?? task.classes, models };
      let steered;
      try {
        if (names.value.trim() && !named) throw new Error("one class alone is always the answer: name at least two");
        next.views = await computer.ask("see", { id, task: number, names: named });
        steered = await computer.ask("steer", asked(next));
      } catch (error) {
        if (!names.value.trim()) throw error;
        if (current()) told.replaceChildren(make("p", { className: "trouble", textContent: `${error.message}.` })); /* what is shown stays */
        return;
      }
      if (!current()) return;
      [shown, now, key, effect] = [next, steered, which, null];
      told.replaceChildren();
      whose[0].hidden = models.length < 2;
      const chosen = Math.max(0, whose[1].selectedIndex);
      whose[1].replaceChildren(...models.map((textContent, m) => make("option", { textContent, selected: m === chosen })));
    }
    if (!current()) return;
    body.replaceChildren();
    draw();
  });

  names.value = app.get("names");
  return { element, update: (changed) => {
    if (["task", "image", "pictures", "names"].some((name) => changed.has(name))) moved++;
    if (changed.has("names")) names.value = app.get("names");
    if (!computer) return live.files && app.computing() || switches.factors.size + switches.added.size || names.value ? load() : undefined;
    if (changed.has("switches") && app.get("switches") !== spellSwitches(switches)) { switches = parseSwitches(app.get("switches"), bundle.index.latents); key = ""; }
    if (["task", "image", "pictures", "switches", "names"].some((name) => changed.has(name))) return update();
    if (["latent", "masks"].some((name) => changed.has(name))) draw();
  } };
}

/* --- a picture of one's own ---------------------------------------------------------------------- */

const DRAWING = "your drawing";

/* A scene of stamps and strokes over a background, looked at while it is drawn. */
function drawView(app) {
  const { bundle } = app, { element, body } = section(app, "draw", "Draw a picture");
  const invitation = make("p", {}, "What does CLIP see in a picture of yours? ", button("draw one", app.careful(() => begin()), { className: "begin" }));
  const canvas = make("canvas", { tabIndex: 0, role: "application", aria: { label: "your drawing; arrow keys move what was put last, + and − change its size, delete removes it", roledescription: "drawing" } });
  const [styles, style] = choice("style", [], () => ground()), [grounds, background] = choice("background", [], () => ground());
  const [objects, object] = choice("object", [], () => undefined);
  const puts = button("put it", () => put({ image: stamps.objects[style.selectedIndex][object.selectedIndex], x: side / 2, y: side * 0.55, scale: 0.8 }));
  const piece = button("put the chosen patch", app.careful(() => cut()), { title: "from the picture above: choose a patch there first" });
  const colours = make("div", { className: "palette", role: "group", aria: { label: "colour of the brush" } });
  const width = make("input", { type: "range", min: 1, max: 24, value: 6, aria: { label: "width of the brush" } });
  const size = make("input", { type: "range", min: 0.2, max: 2, step: 0.05, value: 0.8, aria: { label: "size of what was put last" } });
  const undo = button("undo", () => { items.pop(); chosen = items.findLastIndex((item) => item.image); paintAll(); }), clear = button("clear", () => { items = []; chosen = -1; paintAll(); });
  const said = make("p", { className: "about" });
  const inside = make("div", { className: "pair", hidden: true }, make("div", {}, canvas, said),
    make("div", {}, make("div", { className: "tools line" }, styles, grounds), make("div", { className: "tools line" }, objects, puts, piece),
      make("div", { className: "tools line" }, make("label", { className: "wide" }, "size ", size)),
      make("div", { className: "tools line" }, colours, make("label", { className: "wide" }, "brush ", width)), make("div", { className: "tools line" }, undo, clear)));
  element.querySelector("header").after(body, invitation, inside);
  const { side } = bundle.index, work = make("canvas", { width: side, height: side });
  let stamps, items = [], chosen = -1, under = null, colour = "", held = null, busy = false, again = false;

  async function begin() {
    const before = [...invitation.childNodes];
    invitation.replaceChildren("Loading …");
    const [content] = await Promise.all([bundle.load("stamps"), app.compute((share) => { invitation.textContent = `Loading … ${percent(share)}`; })])
      .catch((error) => { invitation.replaceChildren(...before); throw error; });
    const options = (select, names) => select.replaceChildren(...names.map((textContent) => make("option", { textContent })));
    options(style, content.styles);
    options(background, content.backgrounds);
    options(object, content.classes);
    stamps = { ...content, objects: content.objects.map((some) => some.map((uri) => decoded(uri))), grounds: content.grounds.map((some) => some.map((uri) => decoded(uri))) };
    const paints = [["", "move"], ...Object.entries(content.colours)].map(([name, rgb]) => {
      const one = button(name ? "" : "move", () => { colour = name && `rgb(${rgb})`; paints.forEach((other) => other.setAttribute("aria-pressed", other === one)); }, { title: name ? `draw in ${name}` : "move what was put", aria: { label: name ? `draw in ${name}` : "move what was put", pressed: !name } });
      if (name) one.style.background = `rgb(${rgb})`;
      return one;
    });
    colours.replaceChildren(...paints);
    invitation.hidden = true;
    inside.hidden = false;
    object.selectedIndex = Math.max(0, content.classes.indexOf("owl"));
    await ground();
    await put({ image: stamps.objects[0][object.selectedIndex], x: side / 2, y: side * 0.55, scale: 0.8 });
  }

  async function ground() { under = await stamps.grounds[style.selectedIndex][background.selectedIndex]; paintAll(); }
  async function put(item) {
    items.push({ ...item, image: await item.image });
    chosen = items.length - 1;
    size.value = item.scale;
    paintAll();
  }
  /* Nine patches of the picture above, as a piece to put. */
  async function cut() {
    const all = await bundle.pictures(app.taskNumber()), { image } = all[clamp(app.get("image"), 0, all.length - 1)], patch = app.get("patch");
    if (patch < 0) throw new Error("choose a patch of the picture first");
    const [rows, columns] = bundle.index.grid, cell = image.width / columns, out = make("canvas", { width: 3 * side / columns, height: 3 * side / rows });
    out.getContext("2d").drawImage(image, (patch % columns - 1) * cell, (Math.floor(patch / columns) - 1) * cell, 3 * cell, 3 * cell, 0, 0, out.width, out.height);
    await put({ image: out, x: side / 2, y: side / 2, scale: 1 });
  }

  function paintAll() {
    const c = work.getContext("2d", { willReadFrequently: true });
    c.drawImage(under, 0, 0, side, side);
    for (const item of items) {
      if (item.image) {
        const [w, h] = [item.image.width * item.scale, item.image.height * item.scale];
        c.drawImage(item.image, item.x - w / 2, item.y - h / 2, w, h);
      } else {
        Object.assign(c, { strokeStyle: item.colour, lineWidth: item.width, lineCap: "round", lineJoin: "round" });
        c.beginPath();
        item.points.forEach(([x, y], i) => i ? c.lineTo(x, y) : c.moveTo(x, y));
        if (item.points.length === 1) c.lineTo(item.points[0][0] + 0.1, item.points[0][1]);
        c.stroke();
      }
    }
    canvas.width = canvas.height = 4 * side;
    const large = canvas.getContext("2d");
    large.drawImage(work, 0, 0, canvas.width, canvas.height);
    const item = items[chosen];
    if (item && document.activeElement === canvas) {
      large.strokeStyle = "#fff";
      large.setLineDash([6, 4]);
      const [w, h] = [item.image.width * item.scale, item.image.height * item.scale];
      large.strokeRect(4 * (item.x - w / 2), 4 * (item.y - h / 2), 4 * w, 4 * h);
    }
    look();
  }

  /* The models look at the last state while one draws on. */
  async function look() {
    if (busy) { again = true; return; }
    busy = true;
    try {
      do {
        again = false;
        const picture = await app.look(work, DRAWING, true);
        if (!picture) { again = true; continue; }
        const { classes, models, name } = app.task();
        for (const [task, all] of bundle.given) if (task !== name) bundle.given.set(task, all.filter((one) => one.name !== DRAWING));
        said.textContent = picture.said.map((p, m) => { const best = p.indexOf(Math.max(...p)); return `${models[m]}: ${classes[best]} ${p[best].toFixed(2)}`; }).join(" · ");
      } while (again);
      app.say(said.textContent);
    } catch (error) { app.trouble(error); } finally { busy = false; }
  }

  const place = (event) => { const box = canvas.getBoundingClientRect(); return [(event.clientX - box.left) / box.width * side, (event.clientY - box.top) / box.height * side]; };
  const inItem = ([x, y]) => ({ image, x: a, y: b, scale }) => image && Math.abs(x - a) <= image.width * scale / 2 && Math.abs(y - b) <= image.height * scale / 2;
  canvas.onpointerdown = (event) => {
    if (event.button || !stamps) return;
    event.preventDefault(); /* nothing is selected */
    canvas.setPointerCapture(event.pointerId);
    canvas.focus({ preventScroll: true });
    const at = place(event);
    if (colour) { items.push(held = { colour, width: width.valueAsNumber, points: [at] }); paintAll(); return; }
    chosen = items.findLastIndex(inItem(at));
    held = chosen < 0 ? null : { moves: items[chosen], from: at };
    if (held) size.value = items[chosen].scale;
    paintAll();
  };
  canvas.onpointermove = (event) => {
    if (!held) return;
    const [x, y] = place(event);
    if (held.points) held.points.push([x, y]);
    else { held.moves.x += x - held.from[0]; held.moves.y += y - held.from[1]; held.from = [x, y]; }
    paintAll();
  };
  canvas.onpointerup = canvas.onpointercancel = () => { held = null; };
  canvas.onfocus = canvas.onblur = () => stamps && under && paintAll();
  size.oninput = () => { if (items[chosen]) { items[chosen].scale = size.valueAsNumber; paintAll(); } };
  canvas.onkeydown = (event) => {
    const item = items[chosen], by = { ArrowLeft: [-2, 0], ArrowRight: [2, 0], ArrowUp: [0, -2], ArrowDown: [0, 2] }[event.key];
    if (!item || event.ctrlKey || event.metaKey) return;
    if (by) { item.x += by[0]; item.y += by[1]; } else if (event.key === "+" || event.key === "-") size.value = item.scale = clamp(item.scale * (event.key === "+" ? 1.1 : 1 / 1.1), 0.2, 2);
    else if (event.key === "Delete" || event.key === "Backspace") { items.splice(chosen, 1); chosen = items.findLastIndex(({ image }) => image); } else return;
    event.preventDefault();
    event.stopPropagation();
    paintAll();
  };
  return { element, update: (changed) => { if (stamps && changed.has("task")) look(); } };
}

/* Decodes a picture's file. A JPEG is decoded at a smaller scale where the browser can: in full, 40
   megapixels are 160 MB. Browsers whose frames have no rotation would leave it out. */
async function bitmapOf(file) {
  if (file.type === "image/jpeg" && "rotation" in (globalThis.VideoFrame?.prototype ?? {})) {
    const decoder = new ImageDecoder({ data: file.stream(), type: file.type, desiredWidth: 2000, desiredHeight: 2000 }); /* 4 million pixels, as in the engine */
    const { image } = await decoder.decode().catch(() => ({}));
    const bitmap = image && await createImageBitmap(image);
    image?.close();
    decoder.close();
    if (bitmap) return bitmap;
  }
  return createImageBitmap(file, { imageOrientation: "from-image" });
}

/* Takes a picture with the camera; it is asked for only here. */
async function film(app) {
  const stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  const video = make("video", { autoplay: true, playsInline: true, muted: true, srcObject: stream, width: 320 });
  const end = () => { stream.getTracks().forEach((track) => track.stop()); dialog.remove(); };
  const take = button("take it", app.careful(async () => {
    const image = await createImageBitmap(video);
    dialog.close();
    await app.look(image, "your picture");
  }));
  take.disabled = true; /* before there is a picture */
  video.onloadeddata = () => { take.disabled = false; };
  const dialog = make("dialog", { aria: { label: "camera" }, onclose: end }, video, make("p", {}, take, " ", button("close", () => dialog.close())));
  app.el.append(dialog);
  dialog.showModal();
}

/* --- a class ----------------------------------------------------------------------------------- */

function classView(app) {
  const { bundle } = app;
  const [which, select] = choice("class", [], (label) => app.set({ label: Number(label) }));
  const { element, body } = section(app, "class-view", "A class, before and after");
  const heading = make("p", { className: "about" }), key = make("p", { className: "legend" });
  const plot = scatter(app, { x: () => `active tokens a picture, ${data.task.models[0]}`, y: () => data.task.models[1], square: true, label: () => "Latents of the class before and after adaptation" });
  const nothing = make("p", { textContent: "There is no adapted model for these pictures: choose another task." });
  const k = make("input", { type: "range", min: 0, step: 1, oninput: () => curves(), aria: { label: "how many latents" } });
  const [, mode] = choice("on or off", [["0", "only the class's first latents are on"], ["1", "the class's first latents are off"]], () => curves());
  const title = make("p", { className: "strip-title" }), lines = make("p", { className: "legend" }), drawn = make("div"), given = make("div");
  const answers = make("div", { className: "answers" }, title, lines, drawn, make("div", { className: "tools line" }, mode, k), given), without = make("div", { className: "without" });
  const pair = make("div", { className: "pair" }, make("div", {}, plot.element, key), make("div", {}, answers, without));
  element.querySelector("header").after(body, make("div", { className: "tools line" }, which), heading, nothing, pair);
  let data, off = new Set(), asked = "", answer, wrong = "", question = 0;

  /* Curves of the share of right answers over k, and what is answered at one k. */
  function curves() {
    answers.hidden = !data.shares;
    if (!data.shares) return;
    const { ks, task, label } = data, n = task.classes.length, m = Number(mode.value), at = Number(k.value);
    const share = (model, i, c) => data.shares[model][(m * ks.length + i) * n + c] / 255;
    const W = 320, H = 150, L = 34, x = (i) => L + i * (W - L - 20) / Math.max(1, ks.length - 1), y = (v) => H - 24 - v * (H - 34);
    const chart = svg("svg", { viewBox: `0 0 ${W} ${H}`, class: "chart", role: "img", "aria-label": `Share of the pictures of ${task.classes[label]} that are given their class, by how many latents are ${m ? "off" : "on"}` });
    for (const v of [0, 0.5, 1]) chart.append(svg("path", { d: `M${L} ${y(v)}H${W - 20}`, class: "grid" }), Object.assign(svg("text", { x: L - 6, y: y(v) + 4, "text-anchor": "end" }), { textContent: v }));
    ks.forEach((each, i) => chart.append(Object.assign(svg("text", { x: x(i), y: H - 6, "text-anchor": "middle" }), { textContent: each })));
    chart.append(svg("path", { d: `M${x(at)} ${y(1)}V${y(0)}`, class: "axis" }));
    MODELS.forEach(([colour], model) => {
      const heights = ks.map((_, i) => y(share(model, i, label)));
      chart.append(svg("path", { d: `M${heights.map((v, i) => `${x(i)} ${v}`).join("L")}`, fill: "none", style: `stroke:var(${colour});stroke-width:2.5${model ? ";stroke-dasharray:6 3" : ""}` }));
      heights.forEach((v, i) => chart.append(svg("rect", { x: x(i) - 3, y: v - 3, width: 6, height: 6, rx: model ? 0 : 3, style: `fill:var(${colour})` })));
    });
    title.textContent = `Given their class, of the pictures of ${task.classes[label]} (${data.n})`;
    lines.replaceChildren(...MODELS.map((look, model) => swatch(task.models[model], ...look)));
    drawn.replaceChildren(chart);
    k.setAttribute("aria-valuetext", plural(ks[at], "latent")); /* and not the place on the scale */
    given.replaceChildren(make("p", { className: "strip-title", textContent: `With ${plural(ks[at], "latent")} ${m ? "off" : "on"} they are taken for` }), taken(MODELS.map((_, model) => range(n).map((c) => share(model, at, c))), data.n));
  }

  /* What pictures are taken for: the answers given most by either model. */
  function taken(shares, n) {
    const { task, label } = data, most = (c) => Math.max(...shares.map((of) => of[c]));
    const order = range(task.classes.length).filter((c) => most(c) > 0.001).sort((a, b) => most(b) - most(a)).slice(0, 5);
    return make("ul", { className: "bars two" }, ...order.map((c) => make("li", {}, make("span", { className: "name", textContent: `${task.classes[c]}${c === label ? " ✓" : ""}`, title: task.classes[c] }),
      ...shares.map((of, m) => { const [drawing, textContent] = portion(of[c], n, MODELS[m][0]); return make("span", { className: "cell" }, drawing, make("span", { className: "value", textContent })); }))));
  }

  /* With a kernel: switch latents off one by one. */
  function switches() {
    if (!app.live) return;
    const { task, label } = data, now = `${task.name} ${label}`;
    if (asked !== now) { [off, asked, answer, wrong] = [new Set(), now, undefined, ""]; question++; }
    const boxes = [...data.latents.slice(0, 12)].map((latent) => make("li", {}, make("label", {},
      make("input", { type: "checkbox", value: latent, checked: !off.has(latent), onchange: (event) => ask(latent, !event.target.checked) }), ` ${latent} ${bundle.named(latent)}`)));
    without.replaceChildren(make("p", { className: "strip-title", textContent: "Switch latents off, and ask the kernel" }), make("ul", { className: "switches" }, ...boxes),
      ...(wrong ? [make("p", { className: "trouble", role: "alert", textContent: `${wrong}.` })] : []),
      ...(answer ? [make("p", { className: "strip-title", textContent: `With ${plural(off.size, "latent")} off they are taken for` }), taken(answer.shares, answer.n)] : []));
  }
  async function ask(latent, isOff) {
    isOff ? off.add(latent) : off.delete(latent);
    const mine = ++question;
    let found, failed = "";
    try {
      found = (await app.ask({ without: [...off], task: data.task.name, label: data.label }));
    } catch (error) { failed = error.message; }
    if (mine !== question) return;
    [answer, wrong] = [found, failed];
    switches();
    without.querySelector(`input[value="${latent}"]`)?.focus({ preventScroll: true });
    app.say(failed || `${plural(off.size, "latent")} off.`);
  }

  const update = careful(body, async (current) => {
    const task = app.task(), number = app.taskNumber(), label = clamp(app.get("label"), 0, task.classes.length - 1);
    const adapted = task.models.length === 2;
    nothing.hidden = adapted;
    for (const part of [pair, heading, which]) part.hidden = !adapted;
    if (!adapted) { body.replaceChildren(); return; }
    const [file] = await Promise.all([bundle.load(`class-${number}-${label}`), bundle.column("concept"), bundle.column("kind")]);
    if (!current()) return;
    body.replaceChildren();
    select.replaceChildren(...task.classes.map((textContent, value) => make("option", { value, textContent, selected: value === label })));
    data = { task, label, ks: file.ks, n: file.n, latents: array(file.latents, "int32"), levels: file.levels.map((x) => array(x, "float32")), groups: array(file.groups, "uint8"), shares: file.shares?.map((x) => array(x, "uint8")) };
    const counts = GROUPS.map((_, g) => data.groups.reduce((n, each) => n + (each === g), 0));
    plot.set([...data.latents].map((latent, i) => ({ latent, x: data.levels[0][i], y: data.levels[1][i], colour: GROUPS[data.groups[i]][1], shape: GROUPS[data.groups[i]][2], size: data.groups[i] > 1 ? 5 : 2.6, front: data.groups[i] > 1 })));
    heading.textContent = `${task.title}: ${task.classes[label]}. A latent on the dotted line is in as many tokens of a picture after adaptation as before.`;
    key.replaceChildren(...GROUPS.map(([said, ...look], g) => swatch(`${said} (${counts[g]})`, ...look)), make("span", { textContent: " Top: the first 50 of the class; left it: beyond the first 100." }));
    if (data.ks && Number(k.max) !== data.ks.length - 1) { k.max = data.ks.length - 1; k.value = Math.min(3, data.ks.length - 1); }
    curves();
    switches();
  });

  return { element, themed: plot.draw, update: (changed) => !data || body.children.length || ["task", "label"].some((name) => changed.has(name)) ? update() : plot.point() };
}

/* --- a guess ----------------------------------------------------------------------------------- */

/* What is guessed, and among what: another picture, or the name among others. */
const LEVELS = [["picture", "another picture"], ["easy", "its name, easy: of different kinds"], ["medium", "its name, medium: of one kind"], ["hard", "its name, hard: of one group of classes"]];
const ASKED = ["Of the four below them exactly one activates it too; one of the others is of the same class, if there is one.", "One of the four names below them is its own."];

const shuffled = (some) => some.map((one) => [Math.random(), one]).sort((a, b) => a[0] - b[0]).map(([, one]) => one);

const spoken = ([kind, name]) => ["class", "part", "sign"].includes(kind) || kind.includes(" ") ? name : `${kind} ${name}`;

/* Three concepts, [kind, name], to take for that of a latent; fewer if there are not enough. No two
   of the four share a word or are a group and one of its classes: nothing but the pictures tells. */
function distractors(bundle, latent, level) {
  const { concepts, synonyms } = bundle.index, own = [bundle.of(latent, "kind"), bundle.of(latent, "concept")];
  const groups = concepts.filter(([kind]) => kind === "group").map(([, group]) => [group, ...synonyms[group] ?? []]);
  const words = ([, name]) => name.split(" ").filter((word) => !["of", "in", "a", "an"].includes(word));
  const groupOf = (concept) => groups.find((group) => words(concept).some((word) => group.includes(word)))?.[0];
  const far = (a, b) => !words(a).some((word) => words(b).includes(word)) && !(groupOf(a) && groupOf(a) === groupOf(b) && [a, b].some(([kind]) => kind === "group"));
  const chosen = [own], fits = {
    easy: ([kind]) => !kind.includes(" ") && chosen.every(([other]) => other !== kind),
    medium: ([kind]) => kind === own[0],
    hard: (concept) => concept[0] === own[0] && groupOf(concept) && groupOf(concept) === groupOf(own),
  };
  for (const concept of shuffled(concepts)) if (chosen.length < 4 && fits[level](concept) && chosen.every((other) => far(concept, other))) chosen.push(concept);
  return chosen.slice(1);
}

function guessView(app) {
  const { bundle } = app;
  const [levels, level] = choice("guess", bundle.index.concepts.length ? LEVELS : LEVELS.slice(0, 1), () => { clear(); count(); });
  const { element, body } = section(app, "guess", "Guess: does a latent mean what you think?");
  const intro = make("p");
  const known = make("div", { className: "strip" }), row = make("div", { className: "strip guesses" }), said = make("p", { className: "about" });
  const scores = Object.fromEntries(LEVELS.map(([name]) => [name, { right: 0, of: 0 }])), tally = make("p", { className: "legend" });
  const again = button("start", () => next());
  element.querySelector("header").after(body, intro, make("div", { className: "tools line" }, levels, again, tally), known, row, said);

  function clear() {
    for (const part of [body, known, row, said]) part.replaceChildren();
    again.textContent = "start";
  }
  function count() {
    const { right, of } = scores[level.value];
    intro.textContent = `Three pictures that activate a latent, with where. ${ASKED[level.value === "picture" ? 0 : 1]} Whoever guesses blindly is right one time in four.`;
    tally.textContent = of ? `${right} of ${of} right; guessing blindly gives ${short(of / 4)}.` : "";
  }
  count();

  const drawn = async (label, { picture, mask }) => {
    const canvas = make("canvas", label ? { role: "img", aria: { label } } : { aria: { hidden: "true" } });
    paint(canvas, await bundle.reference(picture), bundle, { mask });
    return canvas;
  };

  /* What can be chosen, the right one first, and what is shown of it after the guess. */
  async function choices(latent, data) {
    if (level.value !== "picture") return [[bundle.of(latent, "kind"), bundle.of(latent, "concept")], ...distractors(bundle, latent, level.value)].map(spoken).map((textContent) => ({ element: button(textContent, null), after: () => undefined }));
    const top = data.shown.filter((one) => one.kind === "highest").slice(0, 3).map((one) => one.picture), rest = data.shown.filter((one) => one.kind === "random" && !top.includes(one.picture));
    const [answer] = shuffled(rest), others = data.absent.filter((picture) => picture >= 0).map((picture) => ({ picture }));
    return Promise.all((answer ? [answer, ...others] : []).map(async (one) => {
      const element = make("button", { type: "button", className: "shown picture" }, await drawn("", { picture: one.picture }));
      return { element, after: async () => { if (one === answer) element.replaceChildren(await drawn("", answer)); } };
    }));
  }

  const next = careful(body, async (current) => {
    const [active] = await Promise.all(["frequency", "concept", "kind", "iou"].map((name) => bundle.column(name))), kind = level.value;
    let tries = 0;
    for (const latent of shuffled(range(bundle.index.latents).filter((each) => active[each] > 0))) {
      if (kind !== "picture" && !(bundle.concept(latent) && distractors(bundle, latent, kind).length === 3)) continue;
      if (tries++ > 100) break;
      const data = await bundle.latent(latent), top = data.shown.filter((one) => one.kind === "highest").slice(0, 3), options = top.length < 3 ? [] : await choices(latent, data);
      if (options.length < 4) continue;
      const shown = await Promise.all(top.map(async (one) => make("figure", {}, await drawn(`activates it: ${bundle.className(one.picture)}`, one))));
      if (!current()) return;
      const [answer] = options, name = [bundle.named(latent), bundle.of(latent, "iou") !== undefined && `IoU ${bundle.of(latent, "iou").toFixed(2)}`].filter(Boolean).join(", ");
      known.replaceChildren(...shown);
      row.classList.remove("done");
      row.classList.toggle("names", kind !== "picture");
      row.replaceChildren(...shuffled(options).map((option, i) => {
        const { element: one } = option, note = make("figcaption");
        if (kind === "picture") one.setAttribute("aria-label", `picture ${i + 1}`);
        option.tell = (chosen) => { note.textContent = option === answer ? (kind === "picture" ? "✓ active here" : "✓ its name") : option === chosen ? (kind === "picture" ? "✗ not active" : "✗ not its name") : ""; option.after(); };
        one.onclick = () => {
          if (row.classList.contains("done")) return;
          row.classList.add("done");
          scores[kind].of++;
          scores[kind].right += option === answer;
          options.forEach((each) => each.tell(option));
          said.replaceChildren(`${option === answer ? "Right" : "Wrong"}: this is `, latentButton(app, latent, `latent ${latent}`), ` ${name}.`);
          count();
          app.say(said.textContent);
        };
        return make("figure", {}, one, note);
      }));
      body.replaceChildren();
      said.textContent = "Which one?";
      again.textContent = "another latent";
      return;
    }
    throw new Error(kind === "picture" ? "there are too few pictures for a guess" : "no latent has such a name");
  });
  return { element, update: () => undefined }; /* it loads nothing before somebody plays */
}

const VIEWS = { map: mapView, latent: latentView, picture: pictureView, steer: steerView, draw: drawView, class: classView, guess: guessView };

/* --- a glimpse --------------------------------------------------------------------------------- */

/* One picture, from one file: the strongest latents of the patch that is pointed at. */
function glimpse(model, el) {
  const canvas = make("canvas", { tabIndex: 0, role: "application", aria: { label: "a picture; point at a patch, or move with the arrow keys, to see its strongest latents", roledescription: "picture of patches" } });
  const list = make("div", { className: "glimpses", aria: { live: "polite" } }), more = make("p", {}, "Each row is a latent: where it is active in the pictures that activate it most. ");
  if (model.page) more.append(make("a", { href: `${model.page}#view=draw`, textContent: "Draw a picture of your own" }), " or ", make("a", { href: model.page, textContent: "look at all latents" }), ".");
  async function start() {
    const data = await model.load("glimpse"), [rows, columns] = data.grid, size = rows * columns;
    const patches = array(data.patches, "int16"), bundle = { index: { side: 112, grid: data.grid }, size };
    const [image, ...pictures] = await Promise.all([data.picture, ...data.pictures].map(decoded));
    const few = { index: { side: 64, grid: data.grid }, size }, of = (patch) => [...patches.slice(3 * patch, 3 * patch + 3)].filter((i) => i >= 0).map((i) => data.latents[i]);
    let patch = -1;
    function show(to) {
      if (to === patch) return;
      patch = to;
      paint(canvas, { image }, bundle, { patch, sharp: 4 });
      list.replaceChildren(...of(patch).map((latent) => {
        const masks = bytes(latent.masks), said = latent.name || `latent ${latent.number}`;
        return make("div", {}, make("p", { className: "strip-title" }, model.page ? make("a", { href: `${model.page}#latent=${latent.number}&view=latent`, textContent: `latent ${latent.number}` }) : `latent ${latent.number}`, latent.name && ` · ${latent.name}`),
          make("div", { className: "strip" }, ...latent.pictures.map((number, i) => {
            const one = make("canvas", { role: "img", aria: { label: `${said}, picture ${i + 1}` } });
            paint(one, { image: pictures[number] }, few, { mask: Float32Array.from({ length: size }, (_, j) => { const at = i * size + j; return (masks[at >> 1] >> 4 * (at & 1) & 15) / 15; }) });
            return one;
          })));
      }));
      if (!list.childElementCount) list.textContent = "No latent is active in this patch.";
    }
    canvas.onpointermove = canvas.onpointerdown = (event) => show(patchAt(canvas, event, data.grid));
    canvas.onkeydown = (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
      if (!by || patch + by < 0 || patch + by >= size) return;
      event.preventDefault();
      show(patch + by);
    };
    el.replaceChildren(make("div", { className: "pair glimpse" }, canvas, make("div", {}, list, more)));
    show(data.begin);
    el.dataset.ready = "true";
  }
  start().catch(() => undefined); /* the page shows the picture alone */
  return () => undefined;
}

/* --- figures beside it ------------------------------------------------------------------------- */

/* Calls back when a plotly figure of the same cell is pointed at or clicked on; returns how to stop. */
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

/* --- the whole --------------------------------------------------------------------------------- */

const KEYS = [["← →", "the latent before, the next one"], ["[ ]", "the picture before, the next one"], ["shift + arrows", "on a picture: from patch to patch"], ["m", "masks on or off"], ["c", "models side by side or one at a time"], ["p", "pin the latent, to compare it with another, or unpin it"], ["/", "search"], ["?", "this list"]];

/* The part of an address that names a state, and back. */
function spell(state) {
  const parts = ["latent", "task", "image", "patch", "model", "label", "switches", "names", "marked", "pinned", "masks", "compare"].filter((name) => name === "latent" || state[name] !== START[name]);
  return `#${parts.map((name) => `${SPELLED[name] ?? name}=${encodeURIComponent(state[name])}`).join("&")}`;
}
function parse(hash) {
  const given = new URLSearchParams(hash.replace(/^#/, "")), out = {};
  if (!["latent", "image", "task", "view"].some((name) => given.has(name))) return null;
  for (const [name, usual] of Object.entries(START)) {
    const text = given.get(SPELLED[name] ?? name);
    if (text === null) { if (!["task", "latent"].includes(name)) out[name] = usual; }
    else if (typeof usual === "string") out[name] = text;
    else if (typeof usual === "boolean") out[name] = text !== "false";
    else if (/^-?\d+$/.test(text)) out[name] = Number(text);
  }
  return { state: out, view: given.get("view") };
}

function render({ model, el }) {
  el.classList.add("patchsae-explorer");
  if (model.get("views")?.join() === "glimpse") return glimpse(model, el);
  el.dataset.lmSuppressShortcuts = "true"; /* JupyterLab leaves the keys to us */
  const cleanups = [], live = !model.load, ask = live ? asking(model, cleanups) : null;
  const bundle = new Bundle(model.load ?? (async (name) => (await ask({ load: name })).shard));
  const line = make("p", { className: "unseen", role: "status", aria: { live: "polite" } });
  const app = {
    el, bundle, cleanups, ask, live: live && Boolean(model.get("live")), linked: Boolean(model.get("linked")),
    get: (name) => model.get(name) ?? START[name],
    set(values) {
      const last = bundle.index.latents - 1, tasks = bundle.index.tasks;
      if ("latent" in values) values.latent = clamp(values.latent, 0, last);
      if ("pinned" in values) values.pinned = clamp(values.pinned, -1, last);
      if ("image" in values) values.image = Math.max(0, values.image); /* views know where it ends */
      if ("label" in values) values.label = Math.max(0, values.label);
      if ("patch" in values) values.patch = clamp(values.patch, -1, bundle.size - 1);
      if ("task" in values && tasks.length && !tasks.some(({ name }) => name === values.task)) values.task = tasks[0].name;
      for (const [name, value] of Object.entries(values)) model.set(name, value);
      model.save_changes();
    },
    /* To the next latent that is ever active, in either direction, one step after the other; the
       address is replaced. */
    step: (by) => (steps = steps.then(async () => {
      const active = await bundle.column("frequency").catch(() => null), there = (latent) => latent >= 0 && latent < bundle.index.latents;
      let latent = app.get("latent") + by;
      while (there(latent) && active && !(active[latent] > 0)) latent += by;
      if (!there(latent)) return;
      stepped = performance.now();
      app.set({ latent });
    })),
    pin: () => app.set({ pinned: app.get("pinned") === app.get("latent") ? -1 : app.get("latent") }),
    taskNumber: () => bundle.taskNumber(app.get("task")),
    task: () => bundle.index.tasks[app.taskNumber()],
    say: (text) => { line.textContent = text; },
    /* what a button does; if it cannot, that is said at the top */
    careful: (act) => async () => {
      try { await act(); wrong.hidden = true; } catch (error) { wrong.textContent = `${error.message}.`; wrong.hidden = false; }
    },
    state: () => Object.fromEntries(STATE.map((name) => [name, app.get(name)])),
    link: () => live ? spell(app.state()) : `${(app.linked || !model.page ? location.href.replace(/#.*/, "") : new URL(model.page, location.href).href)}${spell(app.state())}`,
    /* --- the models in this page, once they are asked for */
    computes: () => Boolean(bundle.index.live?.files || app.live && bundle.index.live),
    computing: () => !bundle.index.live?.files || computers.has(bundle.index.live.mark),
    compute: async (told = () => undefined) => bundle.index.live.files ? compute(bundle, told) : kernel,
    trouble: (error) => { wrong.textContent = error ? `${error.message}.` : ""; wrong.hidden = !error; },
    /* The number under which the models know a picture of the bundle. */
    async idOf(image) {
      if (!known.has(image)) {
        const { id } = await (await app.compute()).ask("look", pixelsOf(image, image.width, image.height));
        known.set(image, id);
      }
      return known.get(image);
    },
    /* Shows a picture of the reader's own, or another state of the one called `name`. */
    async look(source, name, replaced = false) {
      const computer = await app.compute(), task = app.task().name, number = app.taskNumber();
      const { id, picture } = await (source instanceof ImageBitmap ? computer.ask("look", { bitmap: source }, [source]) : computer.ask("look", { ...pixelsOf(source, source.width, source.height), passing: replaced }));
      const views = await computer.ask("see", { id, task: number });
      const shown = { name, id, canvas: seen(picture), models: views.map(({ code }) => code), said: views.map(({ said }) => said) };
      if (replaced && number !== app.taskNumber()) return null; /* it is looked at again, there */
      received({ task, picture: shown }, replaced);
      return shown;
    },
    async add(file) {
      app.complain("");
      try {
        if (!app.live && bundle.index.live?.files) {
          if (file.size > LARGE * 2 ** 20) throw new Error(`${file.name} has ${(file.size / 2 ** 20).toFixed(0)} MB, more than ${LARGE}`);
          app.say(`reading ${file.name}`);
          const image = await bitmapOf(file).catch(() => { throw new Error(`${file.name} cannot be read as a picture`); });
          await app.look(image, file.name);
          return;
        }
        if (file.size > HUGE * 2 ** 20) throw new Error(`${file.name} has ${(file.size / 2 ** 20).toFixed(0)} MB, more than ${HUGE}`);
        app.say(`reading ${file.name}`);
        await ask({ picture: file.name, task: app.task().name }, [new DataView(await file.arrayBuffer())]); /* all views hear of it */
      } catch (error) { app.complain(`${error.message}.`); app.say(error.message); }
    },
  };

  const kernel = live && new KernelComputer(ask);
  const known = new WeakMap(); /* pictures of the bundle → their numbers */

  function received({ task, picture }, replaced = false) {
    if (!bundle.index.tasks.some(({ name }) => name === task)) return;
    app.complain?.("");
    const before = bundle.given.get(task) ?? [], at = replaced ? before.findIndex(({ name }) => name === picture.name) : -1;
    const all = at < 0 ? [...before, picture] : before.with(at, picture);
    bundle.given.set(task, all);
    const image = bundle.index.tasks[bundle.taskNumber(task)].pictures + (at < 0 ? all.length - 1 : at);
    app.set({ task, image, ...at < 0 && { patch: -1 } });
    schedule("pictures");
    if (at < 0) app.say(`${picture.name} was added.`);
  }

  /* Changes of one moment are shown together, once. */
  let changed = new Set(), pending = false, views = [], possible = [];
  function schedule(name) {
    changed.add(name);
    if (pending) return;
    pending = true;
    queueMicrotask(() => {
      const these = changed;
      [changed, pending] = [new Set(), false];
      if (!bundle.index) return;
      for (const view of views) view.update(these);
      if (app.linked) remember();
      if (open) open.href = app.link();
      now.textContent = `latent ${app.get("latent")}`;
    });
  }

  /* The address follows what is chosen; quick steps share an entry of the history. */
  let stepped = 0, steps = Promise.resolve();
  function remember() {
    const hash = spell(app.state());
    if (hash === location.hash) return;
    const quick = performance.now() - stepped < 400;
    stepped = performance.now();
    quick || !location.hash ? history.replaceState(null, "", hash) : history.pushState(null, "", hash);
  }
  function recall() {
    const wanted = parse(location.hash);
    if (!wanted) return;
    const { view, state } = wanted;
    stepped = performance.now();
    app.set(state);
    views[possible.indexOf(view)]?.element.scrollIntoView();
  }

  const keys = make("input", { type: "checkbox", checked: true }); /* single keys can be in the way of other tools */
  const help = make("dialog", { className: "help", aria: { label: "keyboard" } }, make("p", {}, make("b", { textContent: "Keyboard" })),
    make("table", {}, make("tbody", {}, ...KEYS.map(([keys, does]) => make("tr", {}, make("th", { scope: "row" }, make("kbd", { textContent: keys })), make("td", { textContent: does }))))),
    make("label", {}, keys, " these keys are on"), button("close", () => help.close()));
  const names = [...(model.get("views") ?? Object.keys(VIEWS))].filter((name) => VIEWS[name]);
  const open = !live && !app.linked && model.page ? make("a", { href: model.page, textContent: "open in the explorer", className: "open" }) : null;
  const helpButton = button("?", () => help.showModal(), { title: "keyboard", aria: { label: "help: the keyboard" } });
  const top = make("div", { className: "tools top" });
  const grid = make("div", { className: "views" }), now = make("span", { className: "now" });
  const wrong = make("p", { className: "trouble", role: "alert", hidden: true });
  const waiting = make("p", { className: "waiting", textContent: "Loading …" });
  el.replaceChildren(waiting);

  const typing = (target) => target?.closest?.("input:not([type=checkbox]), textarea, select, [contenteditable=true], .draw canvas");
  function pressed(event) {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || !keys.checked || typing(event.target) || help.open || !bundle.index) return;
    const { key, shiftKey } = event, by = { ArrowLeft: -1, ArrowRight: 1 }[key], turn = { "[": -1, "]": 1 }[key];
    if (by && !shiftKey) app.step(by);
    else if (turn && bundle.index.tasks.length) {
      const count = app.task().pictures + (bundle.given.get(app.task().name)?.length ?? 0);
      app.set({ image: clamp(Math.min(app.get("image"), count - 1) + turn, 0, count - 1), patch: -1 });
    } else if (key === "m") app.set({ masks: !app.get("masks") });
    else if (key === "c") app.set({ compare: !app.get("compare") });
    else if (key === "p") app.pin();
    else if (key === "/" && app.search) app.search();
    else if (key === "?") help.showModal();
    else return;
    event.preventDefault();
    event.stopPropagation();
  }
  const heard = app.linked ? document : el;
  heard.addEventListener("keydown", pressed, true); /* before Sphinx, which has a / of its own */
  cleanups.push(() => heard.removeEventListener("keydown", pressed, true));

  for (const name of STATE) {
    const tell = () => schedule(name);
    model.on(`change:${name}`, tell);
    cleanups.push(() => model.off(`change:${name}`, tell));
  }
  const themed = new MutationObserver(() => views.forEach((view) => view.themed?.()));
  themed.observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
  themed.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light"] });
  cleanups.push(() => themed.disconnect());

  /* What a page that says nothing begins with: the latent that overlaps its concept best, and a
     task that a model was adapted to. */
  async function usual() {
    const out = {}, [iou, frequency] = await Promise.all(["iou", "frequency"].map((name) => bundle.column(name).catch(() => null)));
    const by = iou ?? frequency, best = by?.reduce((top, value, i) => value > (by[top] || -1) ? i : top, 0);
    if (model.get("latent") === undefined) out.latent = best ?? 0;
    if (!model.get("task")) out.task = (bundle.index.tasks.find(({ models }) => models.length === 2) ?? bundle.index.tasks[0])?.name ?? "";
    return out;
  }

  /* What is heard from elsewhere: the address, figures and links around it, the kernel. */
  function listen() {
    if (app.linked) {
      addEventListener("hashchange", recall);
      cleanups.push(() => removeEventListener("hashchange", recall));
    }
    const card = pointing(app);
    cleanups.push(card.remove, follow(el, card.show, (latent) => app.set({ latent })));
    if (!live) return;
    const clicked = (event) => { /* a link to the explorer's page leads to this one instead */
      const wanted = parse(event.target.closest?.("a")?.href.match(/explorer\.html[^#]*(#.*)/)?.[1] ?? "");
      if (!wanted || event.defaultPrevented || !el.closest(".jp-Notebook")?.contains(event.target)) return;
      const home = event.target.closest(".jp-OutputArea"); /* a cell's own explorer comes first */
      if (home?.querySelector(".patchsae-explorer") && !home.contains(el)) return;
      event.preventDefault();
      event.stopPropagation();
      app.set(wanted.state);
      el.scrollIntoView({ block: "nearest" });
    };
    document.addEventListener("click", clicked, true);
    const later = ({ added }) => added && received(added);
    model.on("msg:custom", later);
    cleanups.push(() => document.removeEventListener("click", clicked, true), () => model.off("msg:custom", later));
  }

  async function start() {
    try {
      await bundle.open();
      const { tasks, live } = bundle.index;
      const has = tasks.length > 0, computes = has && app.computes();
      const shows = { picture: has, class: has, steer: computes, draw: computes && live.stamps };
      possible = names.filter((name) => shows[name] !== false);
      if (!possible.length) throw new Error("it has no pictures of tasks");
      const wanted = app.linked ? parse(location.hash) : null;
      stepped = performance.now(); /* no entry of its own in the history */
      app.set({ ...await usual(), ...wanted?.state });
      await null; /* this change is told while there is nothing to draw */
      views = possible.map((name) => VIEWS[name](app));
      const own = [open, helpButton].filter(Boolean), jumps = possible.map((name, i) => button(name, () => views[i].element.scrollIntoView({ behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" })));
      top.hidden = views.length === 1;
      if (top.hidden) views[0].element.querySelector("header .tools").append(...own);
      else top.append(...jumps, now, ...own);
      if (open) open.href = app.link();
      now.textContent = `latent ${app.get("latent")}`;
      grid.replaceChildren(...views.map((view) => view.element));
      grid.classList.toggle("one", views.length === 1);
      el.replaceChildren(line, top, wrong, grid, help);
      listen();
      const everything = new Set(STATE); /* first what is on the screen first */
      await Promise.all(views.slice(0, 2).map((view) => view.update(everything)));
      performance.mark("patchsae-usable"); /* for the benchmark */
      await new Promise((done) => setTimeout(done));
      await Promise.all(views.slice(2).map((view) => view.update(everything)));
      views[possible.indexOf(wanted?.view)]?.element.scrollIntoView();
      if (app.live) {
        const { pictures } = await ask({ pictures: true });
        bundle.given.clear(); /* the answer is the whole list */
        for (const { task, picture } of pictures) bundle.given.set(task, [...(bundle.given.get(task) ?? []), picture]);
        if (pictures.length) schedule("pictures");
      }
      el.dataset.ready = "true";
    } catch (error) {
      el.replaceChildren(make("p", { className: "trouble", role: "alert", textContent: `The explorer cannot be shown: ${error.message}.` }));
    }
  }
  const started = start();
  return () => { started.finally(() => cleanups.forEach((clean) => clean())); };
}

export default { render };
