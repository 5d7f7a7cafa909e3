/* The gallery of the embedded world. Its container and its choices come from world_gallery.py; what
   is known of a class comes from `<class>.js` and `<class>.webp` (patchsae_lib/world/gallery.py). */
(() => {
  "use strict";
  const KINDS = ["part", "cls", "group", "colour", "texture", "background", "word"];
  const title = (kind) => (kind === "cls" ? "class" : kind);
  const HINT = "Point at the picture, tap it, or move over it with the arrow keys.";
  const ZOOM = 6; /* of the canvas for marks: fine lines on coarse pixels */
  const [TEAL, VEIL, LINE, DARK] = ["20, 184, 166", "10, 20, 24", "#2dd4bf", "rgba(10, 20, 24, 0.85)"];

  function make(tag, properties = {}, ...children) {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(properties)) {
      if (key in node) node[key] = value;
      else node.setAttribute(key, value);
    }
    node.append(...children);
    return node;
  }
  const button = (text, onclick, more) => make("button", { type: "button", onclick, ...more }, text);

  /* One of several, as native radio buttons: the keyboard and the names come with them. */
  function choice(name, options, onchoose, look = () => ({})) {
    const inputs = options.map((value, k) =>
      make("input", { type: "radio", name: `wg-${name}`, value, onchange: () => onchoose(value, k) }));
    const said = make("span");
    const labels = inputs.map((input) => make("label", look(input.value), input, make("span", {}, input.value)));
    const node = make("fieldset", { className: `wg-${name}` },
      make("legend", {}, name, said), make("div", {}, ...labels));
    const show = (value, more = "") => {
      inputs.forEach((input) => { input.checked = input.value === value; });
      said.textContent = more;
    };
    return { node, show };
  }

  function gallery(root) {
    const { size, patch, styles, groups, colours } = JSON.parse(root.querySelector("script").textContent);
    const [grid, palette, classes] = [size / patch, Object.keys(colours), Object.values(groups).flat()];
    const state = { cls: classes[0], style: styles[0], colour: palette[0], scene: 0, wording: 0 };
    let data; /* of the class, the scene and the style shown */
    let ids; /* what each pixel shows: an index into data.regions */
    let concept = null; /* [kind, name] of the mask shown */
    let at = null; /* [x, y], the pixel pointed at */
    let turn = 0;

    /* The parts of the page */
    const pixels = make("canvas", { width: size, height: size });
    const marks = make("canvas", { width: size * ZOOM, height: size * ZOOM });
    const picture = make("div", { className: "wg-picture", tabIndex: 0, role: "application" }, pixels, marks);
    const here = make("p", { className: "wg-here", role: "status" }, HINT);
    const caption = make("p");
    const wording = button("", () => choose({ wording: state.wording + 1 }));
    const concepts = make("div", { className: "wg-concepts" });
    const patches = make("input", { type: "checkbox", onchange: draw });
    const style = choice("style", styles, (value) => choose({ style: value }));
    const colour = choice("colour", palette, (value) => choose({ colour: value }),
      (name) => ({ title: name, style: `--swatch: ${colours[name]}` }));
    const why = make("p", { className: "wg-why" });
    let scene = null; /* its choices come with the first class */
    const select = make("select", { "aria-label": "class", onchange: () => choose({ cls: select.value }) },
      ...Object.entries(groups).map(([label, members]) =>
        make("optgroup", { label }, ...members.map((cls) => make("option", {}, cls)))));
    const slider = make("input", {
      type: "range", min: 0, max: classes.length - 1, value: 0, "aria-label": "class, by slider",
      oninput: () => choose({ cls: classes[slider.value] }),
    });
    const neighbour = (by) => classes.at((classes.indexOf(state.cls) + by) % classes.length);
    const step = (text, by, label) => button(text, () => choose({ cls: neighbour(by) }), { "aria-label": label });

    root.append(make("div", { className: "wg" },
      make("div", { className: "wg-controls" }, style.node,
        make("div", { className: "wg-class" }, make("span", { className: "wg-label" }, "class"),
          make("div", {}, step("‹", -1, "previous class"), select, step("›", 1, "next class")), slider),
        make("div", {}, colour.node, why)),
      make("div", { className: "wg-view" }, picture, here),
      make("div", { className: "wg-where" }, make("span", { className: "wg-label" }, "where is …"), concepts,
        make("label", {}, patches, `in ${grid} × ${grid} patches, as CLIP reads it`)),
      make("div", { className: "wg-caption", "aria-live": "polite" }, caption, wording),
    ));

    /* Data */
    const loaded = new Map();
    const arrival = (node) => new Promise((done, failed) => {
      node.onload = () => done(node);
      node.onerror = () => failed(new Error(`${node.src} did not load`));
    });
    function load(cls) {
      if (!loaded.has(cls)) {
        const script = make("script", { src: `${root.dataset.base}${cls}.js` });
        const image = make("img", { src: `${root.dataset.base}${cls}.webp` });
        const both = Promise.all([arrival(script), arrival(image)]);
        loaded.set(cls, both.then(() => ({ scenes: window.patchsaeWorld[cls], image })));
        both.catch(() => loaded.delete(cls)); /* the next choice tries again */
        document.head.append(script);
      }
      return loaded.get(cls);
    }
    function unpack(text) {
      const [bytes, out] = [atob(text), new Uint8Array(size * size)];
      for (let i = 0, start = 0; i < bytes.length; i += 2) {
        out.fill(bytes.charCodeAt(i), start, start += bytes.charCodeAt(i + 1));
      }
      return out;
    }
    const spoken = (text) => text.replace("{colour}", state.colour);

    /* Showing */
    async function choose(change) {
      Object.assign(state, change);
      select.value = state.cls;
      slider.value = classes.indexOf(state.cls);
      slider.setAttribute("aria-valuetext", state.cls);
      const mine = ++turn;
      const got = await load(state.cls).catch((error) => error);
      if (mine !== turn) return; /* another choice was made meanwhile */
      if (got instanceof Error) return void (here.textContent = got.message);
      data = got.scenes[state.scene][state.style];
      ids = unpack(data.ids);
      const layer = data.colours > 1 ? palette.indexOf(state.colour) : 0;
      for (const k of new Set([0, layer])) { /* the whole, then what differs in this colour */
        const from = [0, (data.square + k) * size, size, size];
        pixels.getContext("2d").drawImage(got.image, ...from, 0, 0, size, size);
      }
      showChoices(got.scenes);
      const which = state.wording % data.captions.length;
      caption.textContent = `“${spoken(data.captions[which])}”`;
      wording.textContent = `another wording (${which + 1} of ${data.captions.length})`;
      picture.setAttribute("aria-label", `${spoken(data.captions[0])}; the arrow keys move over its patches`);
      showConcepts();
      draw();
      if ("cls" in change) load(neighbour(1)).catch(() => {});
    }

    function showChoices(scenes) {
      const names = scenes.map((one) => one[styles[0]].regions.find((region) => region.background).background);
      if (!scene) { /* the same for every class */
        scene = choice("scene", names, (_, k) => choose({ scene: k, wording: 0 }));
        why.parentElement.after(scene.node);
      }
      const seen = ["texture", "word"].map((kind) => data.regions.find((region) => region[kind])?.[kind]);
      scene.show(names[state.scene], seen.filter(Boolean).join(", "));
      style.show(state.style);
      colour.show(state.colour, data.colours > 1 ? state.colour : "");
      colour.node.disabled = data.colours === 1;
      why.textContent = data.colours > 1 ? "" : `A ${state.style} shows no colour, so its captions name none.`;
    }

    const shows = (region, [kind, name] = concept ?? []) => region[kind] === name && concept !== null;
    function showConcepts() {
      if (!data.regions.some((region) => shows(region))) concept = null;
      concepts.replaceChildren(...KINDS.flatMap((kind) => {
        const names = [...new Set(data.regions.map((region) => region[kind]).filter(Boolean))];
        const chips = names.map((name) => button(spoken(name), () => {
          concept = shows({ [kind]: name }) ? null : [kind, name];
          draw();
        }, { "data-kind": kind, name }));
        const named = { role: "group", "aria-label": title(kind) };
        return names.length ? make("div", named, make("span", {}, title(kind)), ...chips) : [];
      }));
    }

    /* Marks: [how much of a region, which][] of a patch, the largest first */
    function shares([column, row]) {
      const count = new Map();
      for (let k = 0; k < patch * patch; k++) {
        const id = ids[(row * patch + Math.floor(k / patch)) * size + column * patch + (k % patch)];
        count.set(id, (count.get(id) ?? 0) + 1 / (patch * patch));
      }
      return [...count].map(([id, share]) => [share, data.regions[id]]).sort((a, b) => b[0] - a[0]);
    }
    const patchOf = (place) => place.map((v) => Math.floor(v / patch));

    function draw() {
      if (!data) return;
      for (const chip of concepts.querySelectorAll("button")) {
        chip.setAttribute("aria-pressed", shows({ [chip.dataset.kind]: chip.name }));
      }
      const [context, cell] = [marks.getContext("2d"), patch * ZOOM];
      const fill = (x, y, side, share) => {
        for (const [colour, much] of [[VEIL, 0.42 * (1 - share)], [TEAL, 0.62 * share]]) {
          context.fillStyle = `rgba(${colour}, ${much})`;
          if (much) context.fillRect(x * side, y * side, side, side);
        }
      };
      const stroke = (rectangles, ...pens) => {
        context.beginPath();
        for (const rectangle of rectangles) context.rect(...rectangle);
        for (const [strokeStyle, lineWidth] of pens) Object.assign(context, { strokeStyle, lineWidth }).stroke();
      };
      const square = ([x, y]) => [[x * cell, y * cell, cell, cell]];
      const border = (inside) => [...ids].flatMap((id, i) => { /* flat rectangles between in and out */
        const [x, y] = [i % size, Math.floor(i / size)];
        const left = x && inside(id) !== inside(ids[i - 1]) ? [[x * ZOOM, y * ZOOM, 0, ZOOM]] : [];
        return y && inside(id) !== inside(ids[i - size]) ? [...left, [x * ZOOM, y * ZOOM, ZOOM, 0]] : left;
      });
      context.clearRect(0, 0, marks.width, marks.height);
      const wanted = data.regions.map((region) => shows(region));
      if (patches.checked) {
        for (let k = 0; k < grid * grid; k++) {
          const place = [k % grid, Math.floor(k / grid)];
          const covered = shares(place).reduce((sum, [share, region]) => sum + shows(region) * share, 0);
          if (concept) fill(...place, cell, covered);
          stroke(square(place), ["rgba(255, 255, 255, 0.45)", 2]);
        }
      } else if (concept) {
        ids.forEach((id, i) => fill(i % size, Math.floor(i / size), ZOOM, Number(wanted[id])));
        stroke(border((id) => wanted[id]), [LINE, 4]);
      }
      const pointed = (id) => id === ids[at[1] * size + at[0]];
      if (at) stroke(patches.checked ? square(patchOf(at)) : border(pointed), [DARK, 9], ["#fff", 4]);
      here.replaceChildren(...(at ? whatIsHere() : [HINT]).flatMap((part) => [part, " "]));
    }

    function whatIsHere() {
      const pair = (key, value) => make("span", {}, make("i", {}, key), ` ${value}`);
      if (patches.checked) {
        const [column, row] = patchOf(at);
        return [pair("patch", `row ${row + 1}, column ${column + 1}`), ...shares([column, row]).map(
          ([share, region]) => pair(`${Math.round(100 * share)} %`, region.part ?? region.background))];
      }
      const region = data.regions[ids[at[1] * size + at[0]]];
      const kinds = KINDS.filter((kind) => region[kind] && kind !== "group");
      return kinds.map((kind) => pair(title(kind), spoken(region[kind])));
    }

    /* Pointing, with a mouse, a finger or the arrow keys */
    const look = (place) => { at = place?.map((v) => Math.max(0, Math.min(size - 1, v))); draw(); };
    const under = (event) => {
      const box = picture.getBoundingClientRect();
      look([event.clientX - box.left, event.clientY - box.top].map((v) => Math.floor((v / box.width) * size)));
    };
    picture.addEventListener("pointermove", under);
    picture.addEventListener("pointerdown", under);
    picture.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && look(null));
    picture.addEventListener("focus", () => picture.matches(":focus-visible") && look(at ?? [size / 2, size / 2]));
    picture.addEventListener("blur", () => look(null));
    picture.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (event.key === "Escape") look(null);
      if (!move) return;
      event.preventDefault();
      look((at ?? [size / 2, size / 2]).map((v, k) => v + move[k] * patch));
    });
    choose({});
  }

  document.querySelectorAll(".world-gallery").forEach(gallery);
})();
