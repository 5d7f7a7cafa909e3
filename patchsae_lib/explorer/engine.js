/* CLIP in two halves, the autoencoder between them, and the prompts of tasks: `patchsae_lib.clip`,
   `.sae` and `.maple` once more, in 32-bit numbers, for a worker of the page.

   Tensors lie in one memory as the kernel wants them: activations row by row, rows padded to fours
   and columns to eights; weights in panels of eight columns (kernel.wat). `T` counts tokens: CLS,
   patches, prompts. */

"use strict";

const EPSILON = 1e-5; /* of layer norms, as in open_clip */
const up = (n, to) => Math.ceil(n / to) * to;
const range = (n) => Array.from({ length: n }, (_, i) => i);

/* Bytes of base64. */
function bytes(text) {
  const plain = atob(text), out = new Uint8Array(plain.length);
  for (let i = 0; i < out.length; i++) out[i] = plain.charCodeAt(i);
  return out;
}

/* The 32-bit numbers of all 65,536 16-bit ones. */
function halves() {
  const out = new Float32Array(65536), bits = new Uint32Array(out.buffer);
  for (let h = 0; h < 65536; h++) {
    const sign = (h & 0x8000) << 16, e = (h >> 10) & 31, m = h & 1023;
    if (e === 0) out[h] = (sign ? -1 : 1) * m * 2 ** -24;
    else bits[h] = sign | (e === 31 ? 0x7f800000 : (e + 112) << 23) | (m << 13);
  }
  return out;
}

/* 1 − erfc by Abramowitz and Stegun's 7.1.26: within 1.5e-7. */
function gelu(x) {
  const y = Math.abs(x) * Math.SQRT1_2, t = 1 / (1 + 0.3275911 * y);
  const tail = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
  const erf = 1 - tail * Math.exp(-y * y);
  return 0.5 * x * (1 + (x < 0 ? -erf : erf));
}
const quickGelu = (x) => x / (1 + Math.exp(-1.702 * x));

/* --- memory and products ------------------------------------------------------------------------ */

class Memory {
  constructor(wasm) {
    this.memory = new WebAssembly.Memory({ initial: 16 });
    this.end = 1024; /* the zeros that stand for no bias come first */
    this.matmul = this.plain;
    try {
      const kernel = new WebAssembly.Instance(new WebAssembly.Module(wasm), { page: { memory: this.memory } });
      this.matmul = kernel.exports.matmul;
    } catch { /* no SIMD: the same in JavaScript, slower */ }
    this.view();
    this.zeros = this.alloc(8192);
  }

  view() { this.f = new Float32Array(this.memory.buffer); }

  /* The address, in bytes, of room for n numbers. */
  alloc(n) {
    const at = this.end;
    this.end = up(at + 4 * n, 64);
    const missing = this.end - this.memory.buffer.byteLength;
    if (missing > 0) { this.memory.grow(Math.ceil(missing / 65536)); this.view(); }
    return at;
  }

  at(address, n) { return this.f.subarray(address >> 2, (address >> 2) + n); }

  plain = (a, lda, b, bias, c, ldc, fours, k, panels, add) => {
    const { f } = this;
    for (let p = 0; p < panels; p++) {
      for (let r = 0; r < 4 * fours; r++) {
        const out = (c + r * ldc >> 2) + 8 * p, sums = f.slice((bias >> 2) + 8 * p, (bias >> 2) + 8 * p + 8);
        for (let i = 0, x = a + r * lda >> 2, w = (b >> 2) + 8 * k * p; i < k; i++, x++, w += 8) {
          for (let j = 0; j < 8; j++) sums[j] += f[x] * f[w + j];
        }
        for (let j = 0; j < 8; j++) f[out + j] = add ? f[out + j] + sums[j] : sums[j];
      }
    }
  };
}

/* --- the models --------------------------------------------------------------------------------- */

class Engine {
  constructor(about, wasm) {
    this.about = about;
    this.m = new Memory(wasm);
    this.codes = new Uint16Array(about.numbers); /* all weights, as they come */
    this.filled = 0;
    this.kept = new Map(); /* pictures that were looked at, by number */
    this.heads = new Map(); /* text features of names under templates, by model */
    this.last = 0;
  }

  /* Take a file of weights: the low bytes of its numbers, then the high ones. The last lays them out. */
  weights(planes, file) {
    const n = planes.length / 2, from = file * this.about.perFile;
    for (let i = 0; i < n; i++) this.codes[from + i] = planes[i] | planes[n + i] << 8;
    this.filled += n;
    if (this.filled < this.codes.length) return;
    const { about } = this, table = halves();
    this.tensors = new Map(about.tensors.map(([name, shape, at, exact]) => {
      const n = shape.reduce((product, side) => product * side, 1);
      if (exact) return [name, { values: new Float32Array(this.codes.slice(at, at + 2 * n).buffer), shape }];
      return [name, { values: Float32Array.from({ length: n }, (_, i) => table[this.codes[at + i]]), shape }];
    }));
    this.codes = null;
    const { vision, text: words, sae } = about;
    const tower = (prefix, { layers, width, heads }) => ({
      width, heads, blocks: range(layers).map((i) => this.block(`${prefix}transformer.resblocks.${i}.`)),
    });
    this.vision = tower("visual.", vision);
    this.words = tower("", words);
    this.conv = this.panels("visual.conv1.weight", true);
    this.projection = this.panels("visual.proj");
    this.textProjection = this.panels("text_projection");
    this.encoder = this.panels("sae.W_enc");
    this.encoderBias = this.vector("sae.b_enc");
    const most = vision.grid[0] * vision.grid[1] + 1 + Math.max(0, ...about.tasks.map((task) => task.visual[1]));
    const T = this.rows = up(Math.max(most, words.context), 8), W = Math.max(vision.width, words.width);
    const room = (columns) => this.m.alloc(T * columns);
    Object.assign(this, {
      x: room(up(W, 8)), h: room(up(W, 8)), qkv: room(3 * up(W, 8)), mixed: room(up(W, 8)), wide: room(up(Math.max(vision.mlp, this.words.blocks[0].up.n), 8)),
      scores: room(T), keys: room(up(W, 8)), values: room(up(W, 8)), patches: room(up(this.conv.k, 8)),
      pre: room(up(sae.latents, 8)), small: this.m.alloc(8 * up(W, 8)), out: this.m.alloc(8 * up(Math.max(vision.mlp, vision.embed), 8)),
    });
    for (const name of [...this.tensors.keys()]) if (this.tensors.get(name).used) this.tensors.delete(name);
  }

  raw(name) { return this.tensors.get(name).values; }

  /* A matrix in panels; `turned`: it is stored (out, in), as torch's linear layers are. */
  panels(name, turned = false) {
    const tensor = this.tensors.get(name), { values, shape } = tensor;
    const n = turned ? shape[0] : shape[1], k = values.length / n;
    const at = this.m.alloc(up(n, 8) * k), into = this.m.at(at, up(n, 8) * k);
    for (let j = 0; j < n; j++) {
      const panel = (j >> 3) * 8 * k + (j & 7);
      for (let i = 0; i < k; i++) into[panel + 8 * i] = values[turned ? j * k + i : i * n + j];
    }
    tensor.used = true;
    return { at, k, n };
  }

  vector(name) {
    const { values } = this.tensors.get(name), at = this.m.alloc(up(values.length, 8));
    this.m.at(at, values.length).set(values);
    return at;
  }

  block(prefix) {
    const linear = (name, weight = `${name}.weight`, bias = `${name}.bias`) => (
      { ...this.panels(prefix + weight, true), bias: this.vector(prefix + bias) });
    return {
      norm1: this.norm(`${prefix}ln_1`), norm2: this.norm(`${prefix}ln_2`),
      into: linear("", "attn.in_proj_weight", "attn.in_proj_bias"), outOf: linear("attn.out_proj"),
      up: linear("mlp.c_fc"), down: linear("mlp.c_proj"),
    };
  }

  norm(name) { return { gain: this.raw(`${name}.weight`), bias: this.raw(`${name}.bias`) }; }

  /* Rows of x times a matrix, to c, or added to what is there. */
  product(x, width, T, matrix, c, add = 0, bias = matrix.bias ?? this.m.zeros) {
    this.m.matmul(x, 4 * width, matrix.at, bias, c, 4 * up(matrix.n, 8), up(T, 4) / 4, matrix.k, up(matrix.n, 8) / 8, add);
  }

  layerNorm(from, to, T, W, { gain, bias }) {
    const { f } = this.m;
    for (let t = 0; t < T; t++) {
      const a = (from >> 2) + t * W, b = (to >> 2) + t * W;
      let mean = 0, square = 0;
      for (let i = 0; i < W; i++) mean += f[a + i];
      mean /= W;
      for (let i = 0; i < W; i++) square += (f[a + i] - mean) ** 2;
      const scale = 1 / Math.sqrt(square / W + EPSILON);
      for (let i = 0; i < W; i++) f[b + i] = (f[a + i] - mean) * scale * gain[i] + bias[i];
    }
  }

  /* The first `n` of T tokens look at all (a text's: at those up to them) and become `mixed`. */
  attend(T, n, tower, causal) {
    const { f } = this.m, { width: W, heads } = tower, d = W / heads, T8 = up(T, 8), scale = 1 / Math.sqrt(d);
    const qkv = this.qkv >> 2, keys = this.keys >> 2, values = this.values >> 2, scores = this.scores >> 2;
    for (let head = 0; head < heads; head++) {
      for (let t = 0; t < T; t++) {
        const k = qkv + t * 3 * W + W + head * d, v = k + W, key = keys + (t >> 3) * 8 * d + (t & 7);
        for (let i = 0; i < d; i++) {
          f[key + 8 * i] = f[k + i];
          f[values + (i >> 3) * 8 * T + 8 * t + (i & 7)] = f[v + i];
        }
      }
      this.m.matmul(this.qkv + 4 * head * d, 12 * W, this.keys, this.m.zeros, this.scores, 4 * T8, up(n, 4) / 4, d, T8 / 8, 0);
      for (let t = 0; t < n; t++) softmax(f, scores + t * T8, causal ? t + 1 : T, T8, scale);
      this.m.matmul(this.scores, 4 * T8, this.values, this.m.zeros, this.mixed + 4 * head * d, 4 * W, up(n, 4) / 4, T, d / 8, 0);
    }
  }

  /* The first `n` tokens of x go through a block; the others give them keys and values alone. */
  through(block, T, n, tower, causal = false) {
    const { f } = this.m, W = tower.width;
    this.layerNorm(this.x, this.h, T, W, block.norm1);
    this.product(this.h, W, T, block.into, this.qkv);
    this.attend(T, n, tower, causal);
    this.product(this.mixed, W, n, block.outOf, this.x, 1);
    this.layerNorm(this.x, this.h, n, W, block.norm2);
    this.product(this.h, W, n, block.up, this.wide);
    const act = this.about.quickGelu ? quickGelu : gelu;
    for (let i = this.wide >> 2, end = i + n * block.up.n; i < end; i++) f[i] = act(f[i]);
    this.product(this.wide, block.up.n, n, block.down, this.x, 1);
  }

  /* Residual tokens (T, width) of a picture: side × side × 3 bytes. `task`: with its prompts. */
  tokens(picture, task) {
    const { vision, block } = this.about, { f } = this.m, { patch, grid, width: W } = vision, side = grid[1] * patch;
    let at = this.patches >> 2;
    for (let gy = 0; gy < grid[0]; gy++) for (let gx = 0; gx < grid[1]; gx++) for (let c = 0; c < 3; c++) {
      for (let y = 0; y < patch; y++) for (let x = 0; x < patch; x++) {
        f[at++] = (picture[3 * ((gy * patch + y) * side + gx * patch + x) + c] / 255 - vision.mean[c]) / vision.std[c];
      }
    }
    const n = grid[0] * grid[1];
    this.product(this.patches, this.conv.k, n, this.conv, this.x + 4 * W);
    const cls = this.raw("visual.class_embedding"), position = this.raw("visual.positional_embedding"), x = this.x >> 2;
    f.set(cls, x);
    for (let i = 0; i < (n + 1) * W; i++) f[x + i] += position[i];
    const [depth, extra] = task ? task.visual : [0, 0], prompts = task && depth ? this.raw(`${task.name}.visual`) : null;
    const place = (row) => f.set(prompts.subarray(row * extra * W, (row + 1) * extra * W), x + (n + 1) * W);
    if (prompts) place(0);
    const T = n + 1 + (prompts ? extra : 0);
    this.layerNorm(this.x, this.x, T, W, this.norm("visual.ln_pre"));
    for (let i = 0; i <= block; i++) {
      if (prompts && i > 0 && i < depth) place(i);
      this.through(this.vision.blocks[i], T, T, this.vision);
    }
    return this.m.at(this.x, T * W).slice();
  }

  /* Active latents of tokens (n, width): in order of tokens, `starts` (n + 1), `latents`, `values`. */
  encode(z, n) {
    const { f } = this.m, { width: W } = this.about.vision, { latents: D, threshold } = this.about.sae;
    const bDec = this.raw("sae.b_dec"), h = this.h >> 2;
    for (let t = 0; t < n; t++) for (let i = 0; i < W; i++) f[h + t * W + i] = z[t * W + i] - bDec[i];
    this.product(this.h, W, n, this.encoder, this.pre, 0, this.encoderBias);
    const starts = new Uint32Array(n + 1), latents = [], values = [], D8 = up(D, 8);
    for (let t = 0; t < n; t++) {
      for (let i = 0, at = (this.pre >> 2) + t * D8; i < D; i++) if (f[at + i] > threshold) { latents.push(i); values.push(f[at + i]); }
      starts[t + 1] = latents.length;
    }
    return { starts, latents: Uint32Array.from(latents), values: Float32Array.from(values) };
  }

  /* Tokens (T, width) of latents, times `factor(latent, token)`, and of `added` ones; the prompts' stay as in z. */
  decode(code, z, n, factor, added) {
    const { width: W } = this.about.vision, out = z.slice(), rows = this.raw("sae.W_dec"), bDec = this.raw("sae.b_dec");
    const write = (t, latent, value) => {
      for (let i = 0, a = t * W, b = latent * W; i < W; i++) out[a + i] += value * rows[b + i];
    };
    for (let t = 0; t < n; t++) {
      out.set(bDec, t * W);
      for (let i = code.starts[t]; i < code.starts[t + 1]; i++) {
        const value = code.values[i] * factor(code.latents[i], t);
        if (value) write(t, code.latents[i], value);
      }
    }
    for (const { latent, value, tokens } of added) for (const t of tokens) write(t, latent, value);
    return out;
  }

  /* A picture's features (embed,), unit norm, from its tokens. */
  features(z, task) {
    const { vision, block } = this.about, { f } = this.m, W = vision.width, T = z.length / W, n = vision.grid[0] * vision.grid[1] + 1;
    f.set(z, this.x >> 2);
    for (let i = block + 1; i < vision.layers; i++) {
      if (task && i < task.visual[0]) f.set(this.raw(`${task.name}.visual`).subarray(i * task.visual[1] * W, (i + 1) * task.visual[1] * W), (this.x >> 2) + n * W);
      this.through(this.vision.blocks[i], T, i === vision.layers - 1 ? 1 : T, this.vision);
    }
    this.layerNorm(this.x, this.small, 1, W, this.norm("visual.ln_post"));
    this.product(this.small, W, 1, this.projection, this.out);
    return unit(this.m.at(this.out, vision.embed).slice());
  }

  /* The features of a text, unit norm. Throws for a word that the tokenizer does not know. */
  text(sentence, task) {
    const { text } = this.about, { f } = this.m, W = text.width;
    const words = sentence.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? [];
    const ids = [text.words.length + 1, ...words.map((word) => text.words.indexOf(word) + 1), text.words.length + 2];
    if (ids.includes(0)) throw new Error(`CLIP does not know the word “${words[ids.indexOf(0) - 1]}”`);
    if (ids.length > text.context) throw new Error(`“${sentence}” is longer than ${text.context - 2} words`);
    const table = this.raw("token_embedding.weight"), position = this.raw("positional_embedding"), x = this.x >> 2;
    ids.forEach((id, t) => { for (let i = 0; i < W; i++) f[x + t * W + i] = table[id * W + i] + position[t * W + i]; });
    const [depth, extra] = task ? task.text : [0, 0], prompts = depth ? this.raw(`${task.name}.text`) : null;
    for (let i = 0; i < text.layers; i++) {
      if (i < depth) for (let j = 0; j < extra * W; j++) f[x + W + j] = prompts[i * extra * W + j] + (i ? 0 : position[W + j]);
      this.through(this.words.blocks[i], ids.length, ids.length, this.words, true);
    }
    this.layerNorm(this.x + 4 * W * (ids.length - 1), this.small, 1, W, this.norm("ln_final"));
    this.product(this.small, W, 1, this.textProjection, this.out);
    return unit(this.m.at(this.out, this.about.vision.embed).slice());
  }

  /* The head of a model, features of each name: their mean over templates, normalised. */
  head(names, templates, task) {
    const key = JSON.stringify([names, templates, task?.name ?? ""]);
    if (!this.heads.has(key)) {
      this.heads.set(key, names.map((name) => {
        const all = templates.map((template) => this.text(template.replace("{}", () => name), task));
        return unit(all[0].map((_, i) => all.reduce((sum, one) => sum + one[i], 0)));
      }));
    }
    return this.heads.get(key);
  }

  /* Probabilities of tokens under a head. */
  said(z, head, task) {
    const features = this.features(z, task);
    const logits = head.map((row) => this.about.logitScale * row.reduce((sum, x, i) => sum + x * features[i], 0));
    softmax(logits, 0, logits.length, logits.length, 1);
    return logits;
  }
}

function softmax(f, at, n, all, scale) {
  let top = -Infinity, sum = 0;
  for (let i = at; i < at + n; i++) if (f[i] > top) top = f[i];
  for (let i = at; i < at + n; i++) sum += f[i] = Math.exp((f[i] - top) * scale);
  for (let i = at; i < at + n; i++) f[i] /= sum;
  for (let i = at + n; i < at + all; i++) f[i] = 0;
}

function unit(x) {
  const norm = Math.sqrt(x.reduce((sum, value) => sum + value * value, 0));
  return x.map((value) => value / norm);
}

/* --- pictures of any size ------------------------------------------------------------------------ */

/* Pillow's bicubic weights for each of `size` places along `length` pixels, of which the middle is
   used: first pixel and weights. */
function bicubic(length, from, span, size) {
  const scale = span / size, wide = Math.max(scale, 1), reach = 2 * wide;
  const weight = (x) => {
    const y = Math.abs(x);
    return y < 1 ? (1.5 * y - 2.5) * y * y + 1 : y < 2 ? ((-0.5 * y + 2.5) * y - 4) * y + 2 : 0;
  };
  return range(size).map((i) => {
    const centre = from + (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - reach + 0.5)), end = Math.min(length, Math.trunc(centre + reach + 0.5));
    const weights = range(end - first).map((j) => weight((j + first - centre + 0.5) / wide));
    const sum = weights.reduce((a, b) => a + b, 0);
    return { first, weights: weights.map((w) => w / sum) };
  });
}

const byte = (x) => Math.max(0, Math.min(255, Math.floor(x + 0.5)));

/* The pixels of a picture that the browser has decoded, RGBA: at most four million, which the browser
   scales it to, since all at once would need more memory than the models. */
function pixelsOf(bitmap) {
  const scale = Math.min(1, Math.sqrt(4e6 / (bitmap.width * bitmap.height)));
  const [width, height] = [bitmap.width, bitmap.height].map((side) => Math.max(1, Math.round(side * scale)));
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, width, height);
  bitmap.close();
  return { pixels: context.getImageData(0, 0, width, height).data, width, height };
}

/* The largest square of RGBA pixels, on white, as size × size × 3 bytes: `pictures.square`. */
function square(pixels, width, height, size) {
  const side = Math.min(width, height), rgb = new Uint8Array(3 * width * height);
  for (let i = 0, j = 0; j < rgb.length; i += 4) {
    const alpha = pixels[i + 3] / 255;
    for (let c = 0; c < 3; c++) rgb[j++] = byte(pixels[i + c] * alpha + 255 * (1 - alpha));
  }
  if (width === size && height === size) return rgb;
  const across = bicubic(width, (width - side) / 2, side, size), down = bicubic(height, (height - side) / 2, side, size);
  const rows = new Uint8Array(3 * size * height), out = new Uint8Array(3 * size * size);
  for (let y = 0; y < height; y++) across.forEach(({ first, weights }, x) => {
    for (let c = 0; c < 3; c++) {
      let sum = 0;
      for (let i = 0; i < weights.length; i++) sum += weights[i] * rgb[3 * (y * width + first + i) + c];
      rows[3 * (y * size + x) + c] = byte(sum);
    }
  });
  down.forEach(({ first, weights }, y) => {
    for (let x = 0; x < 3 * size; x++) {
      let sum = 0;
      for (let i = 0; i < weights.length; i++) sum += weights[i] * rows[3 * (first + i) * size + x];
      out[3 * y * size + x] = byte(sum);
    }
  });
  return out;
}

/* --- what the page asks -------------------------------------------------------------------------- */

const KEPT = 60; /* pictures whose tokens are remembered */
const TRIED = 24, STEPS = 12, DRAWS = 20; /* of the search for the fewest latents */
let engine;

/* What one or two models make of a picture in a task: tokens, latents, and their head. */
function views({ id, task: number, names }) {
  const { tasks, vision } = engine.about, task = tasks[number], one = engine.kept.get(id);
  if (!one) throw new Error("this picture was forgotten: add it again");
  engine.kept.delete(id);
  engine.kept.set(id, one); /* the last used is the last */
  for (const old of [...engine.kept.values()].slice(0, -KEPT)) old.seen.clear();
  const n = vision.grid[0] * vision.grid[1] + 1;
  return (task.adapted ? [null, task] : [null]).map((adapted) => {
    const key = adapted ? task.name : "";
    if (!one.seen.has(key)) {
      const z = engine.tokens(one.picture, adapted);
      one.seen.set(key, { z, code: engine.encode(z, n) });
    }
    const head = engine.head(names ?? task.names, [adapted ? task.adapted : task.template], adapted);
    return { ...one.seen.get(key), n, head, adapted };
  });
}

/* Probabilities with some latents switched: `factors` [latent, factor] and `added` [latent, value],
   in all patches and CLS, or in `patches` alone. */
function switched({ z, code, n, head, adapted }, { factors = [], added = [], patches = null }) {
  const factor = new Map(factors), where = patches && new Set(patches.map((patch) => patch + 1));
  const inside = (t) => !where || where.has(t);
  const more = added.map(([latent, value]) => ({ latent, value, tokens: range(n).filter((t) => t > 0 && inside(t)) }));
  return engine.said(engine.decode(code, z, n, (latent, t) => inside(t) ? factor.get(latent) ?? 1 : 1, more), head, adapted);
}

/* Latents by what they write in all tokens, the largest first. */
function largest({ code }) {
  const sums = new Map();
  code.latents.forEach((latent, i) => sums.set(latent, (sums.get(latent) ?? 0) + code.values[i]));
  return [...sums].sort((a, b) => b[1] - a[1] || a[0] - b[0]).map(([latent]) => latent);
}

const argmax = (values) => values.indexOf(Math.max(...values));

const jobs = {
  open({ about, wasm }) { engine = new Engine(about, bytes(wasm)); },

  async weights({ file, codes }) {
    const { readable, writable } = new DecompressionStream("deflate"), writer = writable.getWriter();
    writer.write(bytes(codes)).catch(() => {}); /* the reader hears of it; a Blob's stream fails in WebKit */
    writer.close().catch(() => {});
    engine.weights(new Uint8Array(await new Response(readable).arrayBuffer()), file);
  },

  look({ bitmap, passing, ...given }) {
    const { pixels, width, height } = bitmap ? pixelsOf(bitmap) : given;
    const picture = square(pixels, width, height, engine.about.vision.grid[1] * engine.about.vision.patch);
    engine.kept.set(++engine.last, { picture, passing, seen: new Map() });
    const states = [...engine.kept].filter(([, one]) => one.passing); /* of a drawing */
    if (states.length > 5) engine.kept.delete(states[0][0]);
    return { id: engine.last, picture };
  },

  see(asked) {
    return views(asked).map((view) => ({ code: view.code, said: engine.said(view.z, view.head, view.adapted), decoded: switched(view, {}) }));
  },

  steer(asked) { return views(asked).map((view) => switched(view, asked)); },

  /* Removes, one at a time, the latent without which the answer is least sure, until it is another
     one; and as many at random, `DRAWS` times. */
  fewest(asked) {
    const view = views(asked)[asked.model], order = largest(view), off = [];
    const without = (latents) => switched(view, { factors: latents.map((latent) => [latent, 0]) });
    const steps = [{ off: [], said: without([]) }], answer = argmax(steps[0].said);
    while (off.length < STEPS && argmax(steps.at(-1).said) === answer) {
      const tried = order.filter((latent) => !off.includes(latent)).slice(0, TRIED).map((latent) => ({ latent, said: without([...off, latent]) }));
      if (!tried.length) break;
      const best = tried.reduce((a, b) => b.said[answer] < a.said[answer] ? b : a);
      off.push(best.latent);
      steps.push({ off: [...off], said: best.said });
    }
    let changed = 0, seed = 1;
    const random = () => (seed = seed * 48271 % 2147483647) / 2147483647;
    for (let i = 0; i < DRAWS; i++) {
      const left = [...order], drawn = off.map(() => left.splice(Math.floor(random() * left.length), 1)[0]);
      if (argmax(without(drawn)) !== answer) changed++;
    }
    return { steps, answer, random: [changed, DRAWS] };
  },

  /* By how much the probability of a class falls without a patch's latents, and without a latent. */
  why(asked) {
    const view = views(asked)[asked.model], all = switched(view, {})[asked.label], active = largest(view);
    const patches = Float32Array.from({ length: view.n - 1 }, (_, patch) => all - switched(view, { factors: active.map((latent) => [latent, 0]), patches: [patch] })[asked.label]);
    const latents = active.slice(0, 2 * TRIED).map((latent) => [latent, all - switched(view, { factors: [[latent, 0]] })[asked.label]]);
    return { all, patches, latents: latents.sort((a, b) => b[1] - a[1]) };
  },
};

onmessage = async ({ data: { number, does, ...asked } }) => {
  try {
    postMessage({ number, answer: await jobs[does](asked) });
  } catch (error) {
    postMessage({ number, error: error.message });
  }
};
