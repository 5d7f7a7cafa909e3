/* The gallery of the embedded world. Its container and its choices come from world_gallery.py, the
   pictures of a class from `<class>.js` (patchsae_lib/world/gallery.py), loaded when first shown. */
(() => {
  "use strict";
  const KINDS = {
    cls: "class", group: "group", part: "part", colour: "colour", texture: "texture",
    background: "background", word: "word",
  };
  const HINT = "Point at the picture, tap it, or move over it with the arrow keys.";
  const ZOOM = 6; /* of the canvas for marks: crisp on fine screens */
  const [FILL, LINE, CASING] = ["rgba(15, 118, 110, 0.66)", "#2dd4bf", "rgba(8, 20, 24, 0.85)"];

  const make = (tag, properties = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(properties)) {
      if (key in node) node[key] = value;
      else node.setAttribute(key, value);
    }
    node.append(...children);
    return node;
  };
  const button = (text, onclick, more = {}) => make("button", { type: "button", onclick, ...more }, text);

  /* One of several, as native radio buttons: arrow keys and names come with them. */
  function choice(legend, name, options, onchoose, more = () => ({})) {
    const inputs = options.map((value) => make("input", {
      type: "radio", name: `wg-${name}`, value, onchange: () => onchoose(value),
    }));
    const labels = inputs.map((input) => make("label", more(input.value), input, make("span", {}, input.value)));
    const said = make("span", { className: "wg-said" });
    const node = make("fieldset", { className: `wg-choice wg-${name}` },
      make("legend", {}, legend, said), make("div", { className: "wg-options" }, ...labels));
    const show = (value) => inputs.forEach((input) => { input.checked = input.value === String(value); });
    return { node, labels, said, show };
  }

  function gallery(root) {
    const { size, patch, styles, groups, colours } = JSON.parse(root.querySelector("script").textContent);
    const grid = size / patch;
    const classes = Object.values(groups).flat();
    const state = { cls: classes[0], style: styles[0], colour: Object.keys(colours)[0], scene: 0, wording: 0 };
    let data; /* of the class, scene and style shown */
    let ids; /* what each pixel shows: an index into data.regions */
    let concept = null; /* [kind, name] of the mask shown */
    let at = null; /* the pixel pointed at */
    let turn = 0;

    /* ---- the page's parts ---- */
    const pixels = make("canvas", { width: size, height: size });
    const marks = make("canvas", { width: size * ZOOM, height: size * ZOOM });
    const picture = make("div", { className: "wg-picture", tabIndex: 0, role: "application" }, pixels, marks);
    const here = make("p", { className: "wg-here", role: "status" });
    const caption = make("p");
    const wording = button("", () => choose({ wording: state.wording + 1 }), { className: "wg-quiet" });
    const concepts = make("div", { className: "wg-concepts" });
    const patches = make("input", { type: "checkbox", onchange: () => draw() });

    const style = choice("Style", "style", styles, (value) => choose({ style: value }));
    const colour = choice("Colour", "colour", Object.keys(colours), (value) => choose({ colour: value }),
      (name) => ({ title: name, style: `--swatch: ${colours[name]}` }));
    const why = make("p", { className: "wg-why" });
    let scene = make("span");

    const options = Object.entries(groups).map(([group, members]) =>
      make("optgroup", { label: group }, ...members.map((cls) => make("option", {}, cls))));
    const select = make("select", { "aria-label": "Class", onchange: () => choose({ cls: select.value }) }, ...options);
    const slider = make("input", {
      type: "range", min: 0, max: classes.length - 1, value: 0, "aria-label": "Class, by slider",
      oninput: () => choose({ cls: classes[slider.value] }),
    });
    const step = (by) => {
      const n = classes.length;
      choose({ cls: classes[(classes.indexOf(state.cls) + by + n) % n] });
    };

    root.append(make("div", { className: "wg" },
      make("div", { className: "wg-left" }, picture, here,
        make("div", { className: "wg-caption", "aria-live": "polite" }, caption, wording)),
      make("div", { className: "wg-right" },
        style.node,
        make("div", { className: "wg-choice", role: "group", "aria-label": "Class" },
          make("span", { className: "wg-label" }, "Class"),
          make("div", { className: "wg-class" },
            button("‹", () => step(-1), { "aria-label": "Previous class" }), select,
            button("›", () => step(1), { "aria-label": "Next class" })),
          slider),
        colour.node, why, scene,
        make("div", { className: "wg-choice", role: "group", "aria-label": "Where is" },
          make("span", { className: "wg-label" }, "Where is …"), concepts,
          make("label", { className: "wg-patches" }, patches, `in ${grid} × ${grid} patches, as CLIP reads it`))),
    ));

    /* ---- data ---- */
    const scripts = new Map();
    function load(cls) {
      if (!scripts.has(cls)) {
        scripts.set(cls, new Promise((done, failed) => {
          document.head.append(make("script", {
            src: `${root.dataset.base}${cls}.js`,
            onload: () => done(window.patchsaeWorld[cls]),
            onerror: () => { scripts.delete(cls); failed(new Error(`${cls}.js did not load`)); },
          }));
        }));
      }
      return scripts.get(cls);
    }
    const decode = (url) => { const image = make("img", { src: url }); return image.decode().then(() => image); };
    function unpack(text) {
      const bytes = atob(text);
      const out = new Uint8Array(size * size);
      for (let i = 0, start = 0; i < bytes.length; i += 2) {
        out.fill(bytes.charCodeAt(i), start, start += bytes.charCodeAt(i + 1));
      }
      return out;
    }
    const spoken = (text) => text.replace("{colour}", state.colour);

    /* ---- showing ---- */
    async function choose(change) {
      Object.assign(state, change);
      style.show(state.style);
      colour.show(state.colour);
      select.value = state.cls;
      slider.value = classes.indexOf(state.cls);
      slider.setAttribute("aria-valuetext", state.cls);
      const mine = ++turn;
      let scenes, images;
      try {
        scenes = await load(state.cls);
        const wanted = scenes[state.scene][state.style];
        images = await (wanted.images ??= Promise.all([wanted.picture, wanted.colours ?? []].flat().map(decode)));
      } catch (error) {
        if (mine === turn) here.textContent = `${error.message}: is the folder “${root.dataset.base}” complete?`;
        return;
      }
      if (mine !== turn) return; /* another choice was made meanwhile */
      data = scenes[state.scene][state.style];
      ids = unpack(data.ids);
      const context = pixels.getContext("2d");
      context.drawImage(images[0], 0, 0);
      const layer = Object.keys(colours).indexOf(state.colour) - 1; /* the first is the picture itself */
      if (images[1] && layer >= 0) context.drawImage(images[1], 0, layer * size, size, size, 0, 0, size, size);
      showChoices(scenes);
      showCaption();
      showConcepts();
      draw();
      if ("cls" in change) load(classes[(classes.indexOf(state.cls) + 1) % classes.length]).catch(() => {});
    }

    function showChoices(scenes) {
      colour.node.disabled = !data.colours;
      colour.said.textContent = data.colours ? state.colour : "";
      why.textContent = data.colours ? "" : `A ${state.style} shows no colour, so its captions name none.`;
      const names = scenes.map((one) => {
        const find = (kind) => one[styles[0]].regions.find((region) => region[kind])?.[kind];
        return [find("texture") ?? "plain", find("background"), find("word")].filter(Boolean).join(", ");
      });
      if (scene.dataset.names === names.join()) return;
      const fresh = choice("Scene", "scene", names, (value) => choose({ scene: names.indexOf(value), wording: 0 }));
      fresh.show(names[state.scene]);
      fresh.node.dataset.names = names.join();
      scene.replaceWith(fresh.node);
      scene = fresh.node;
    }

    function showCaption() {
      const which = state.wording % data.captions.length;
      caption.textContent = `“${spoken(data.captions[which])}”`;
      wording.textContent = `another wording (${which + 1} of ${data.captions.length})`;
      picture.setAttribute("aria-label",
        `Picture: ${spoken(data.captions[0])}. The arrow keys move over its patches, Escape ends it.`);
    }

    const shows = (wanted) => (region) => wanted !== null && region[wanted[0]] === wanted[1];
    function showConcepts() {
      if (!data.regions.some(shows(concept))) concept = null;
      concepts.replaceChildren(...Object.entries(KINDS).map(([kind, title]) => {
        const names = [...new Set(data.regions.map((region) => region[kind]).filter(Boolean))];
        const chips = names.map((name) => button(spoken(name), (event) => {
          concept = shows(concept)({ [kind]: name }) ? null : [kind, name];
          const mine = event.currentTarget;
          for (const chip of concepts.querySelectorAll("button")) {
            chip.setAttribute("aria-pressed", chip === mine && concept !== null);
          }
          draw();
        }, { "aria-pressed": shows(concept)({ [kind]: name }), "data-kind": kind }));
        return make("div", { role: "group", "aria-label": title, hidden: !names.length }, make("span", {}, title), ...chips);
      }));
    }

    /* ---- marks ---- */
    function outline(context, inside, colours) {
      context.beginPath();
      for (let y = 0; y < size; y++) {
        for (let x = 0; x < size; x++) {
          const mine = inside(x, y);
          if (x + 1 < size && mine !== inside(x + 1, y)) context.rect((x + 1) * ZOOM, y * ZOOM, 0, ZOOM);
          if (y + 1 < size && mine !== inside(x, y + 1)) context.rect(x * ZOOM, (y + 1) * ZOOM, ZOOM, 0);
        }
      }
      for (const [strokeStyle, lineWidth] of colours) {
        Object.assign(context, { strokeStyle, lineWidth, lineJoin: "round" }).stroke();
      }
    }

    /* How much of a patch is of which region: [region, pixels][], the largest first. */
    function shares(column, row) {
      const count = new Map();
      for (let y = row * patch; y < (row + 1) * patch; y++) {
        for (let x = column * patch; x < (column + 1) * patch; x++) {
          const id = ids[y * size + x];
          count.set(id, (count.get(id) ?? 0) + 1);
        }
      }
      return [...count].sort((a, b) => b[1] - a[1]);
    }

    function draw() {
      const context = marks.getContext("2d");
      context.clearRect(0, 0, marks.width, marks.height);
      const wanted = data.regions.map(shows(concept));
      const cell = patch * ZOOM;
      if (patches.checked) {
        for (let k = 0; k < grid * grid; k++) {
          const [x, y] = [k % grid, Math.floor(k / grid)];
          const covered = shares(x, y).reduce((sum, [id, n]) => sum + wanted[id] * n, 0) / patch ** 2;
          context.fillStyle = `rgba(15, 118, 110, ${0.85 * covered})`;
          context.fillRect(x * cell, y * cell, cell, cell);
          context.strokeStyle = "rgba(255, 255, 255, 0.5)";
          context.strokeRect(x * cell, y * cell, cell, cell);
        }
      } else if (concept) {
        context.fillStyle = FILL;
        ids.forEach((id, i) => {
          if (wanted[id]) context.fillRect((i % size) * ZOOM, Math.floor(i / size) * ZOOM, ZOOM, ZOOM);
        });
        outline(context, (x, y) => wanted[ids[y * size + x]], [[LINE, 4]]);
      }
      if (at && patches.checked) {
        const corner = at.map((v) => Math.floor(v / patch) * cell);
        for (const [strokeStyle, lineWidth] of [[CASING, 10], ["#fff", 5]]) {
          Object.assign(context, { strokeStyle, lineWidth }).strokeRect(...corner, cell, cell);
        }
      } else if (at) {
        const id = ids[at[1] * size + at[0]];
        outline(context, (x, y) => ids[y * size + x] === id, [[CASING, 9], ["#fff", 4]]);
      }
      tell();
    }

    function tell() {
      let said = [HINT];
      const pair = (key, value) => make("span", {}, make("i", {}, key), ` ${value}`);
      if (at && patches.checked) {
        const [column, row] = at.map((v) => Math.floor(v / patch));
        const name = (region) => region.part ?? region.background;
        said = [pair("patch", `row ${row + 1}, column ${column + 1}`), ...shares(column, row).map(([id, n]) =>
          pair(`${Math.round((100 * n) / patch ** 2)} %`, name(data.regions[id])))];
      } else if (at) {
        const region = data.regions[ids[at[1] * size + at[0]]];
        const kinds = Object.keys(KINDS).filter((kind) => region[kind] && kind !== "group");
        said = kinds.map((kind) => pair(KINDS[kind], spoken(region[kind])));
      }
      here.replaceChildren(...said.flatMap((part) => [part, " "]));
    }

    /* ---- pointing ---- */
    const clamp = (v) => Math.max(0, Math.min(size - 1, v));
    function look(place) {
      const same = at && place && ids && ids[at[1] * size + at[0]] === ids[place[1] * size + place[0]];
      at = place;
      if (ids && (patches.checked || !same)) draw();
    }
    const under = (event) => {
      const box = picture.getBoundingClientRect();
      look([(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height]
        .map((v) => clamp(Math.floor(v * size))));
    };
    const middle = () => [size / 2, size / 2];
    picture.addEventListener("pointermove", under);
    picture.addEventListener("pointerdown", under);
    picture.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && look(null));
    picture.addEventListener("focus", () => picture.matches(":focus-visible") && look(at ?? middle()));
    picture.addEventListener("blur", () => look(null));
    picture.addEventListener("keydown", (event) => {
      const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
      const move = moves[event.key];
      if (event.key === "Escape") look(null);
      if (!move) return;
      event.preventDefault();
      look((at ?? middle()).map((v, k) => clamp(v + move[k] * patch)));
    });

    choose({});
  }

  document.querySelectorAll(".world-gallery").forEach(gallery);
})();
