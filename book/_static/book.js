/* Draws what a page carries as data: equations at once, plotly figures and the explorer when they
   come near the screen. */
(() => {
  "use strict";
  const base = document.currentScript.src.replace(/book\.js.*$/, "");
  const root = document.documentElement;
  const style = (name) => getComputedStyle(root).getPropertyValue(name).trim();

  /* Sphinx writes \(..\) and \[..\] as text; an equation's number beside it stays as it is. */
  function drawMath() {
    if (!window.katex) return;
    for (const element of document.querySelectorAll(".math")) {
      for (const node of [...element.childNodes]) {
        const found = node.nodeType === Node.TEXT_NODE && /^\s*\\([([])([^]*)\\[)\]]\s*$/.exec(node.data);
        if (!found) continue;
        const drawn = document.createElement("span");
        katex.render(found[2], drawn, { displayMode: found[1] === "[", throwOnError: false });
        node.replaceWith(drawn);
        if (drawn.scrollWidth > drawn.clientWidth + 1) drawn.tabIndex = 0; /* a keyboard can scroll it, too */
      }
    }
  }

  /* Figures are made in the light palette; a dark page shows the same names in its own colours. */
  const palette = {
    "#1f2a37": "--ink", "#6b7280": "--muted", "#9ca3af": "--reported",
    "#0f766e": "--teal", "#c2410c": "--orange", "#6d28d9": "--violet", "#0369a1": "--blue",
    "#be185d": "--pink", "#4d7c0f": "--green", "#b45309": "--amber",
  };
  const triple = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
  const replacements = Object.entries(palette).map(([light, name]) => {
    const [r, g, b] = triple(light);
    return [light, new RegExp(`^rgba?\\(\\s*${r}\\s*,\\s*${g}\\s*,\\s*${b}\\s*([,)])`), name];
  });
  function recolour(value) {
    if (Array.isArray(value)) return typeof value[0] === "number" ? value : value.map(recolour);
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, recolour(v)]));
    }
    if (typeof value !== "string" || !/^(#|rgb)/.test(value)) return value;
    for (const [light, rgb, name] of replacements) {
      if (value.toLowerCase() === light) return style(name);
      if (rgb.test(value)) {
        const head = (rest) => `${rest === "," ? "rgba" : "rgb"}(${triple(style(name)).join(",")}${rest}`;
        return value.replace(rgb, (_, rest) => head(rest));
      }
    }
    return value;
  }

  /* A text in lines of at most n letters, broken between words. */
  function inLines(text, n) {
    const lines = [""];
    for (const word of text.split(" ")) {
      if (lines.at(-1) && lines.at(-1).length + word.length >= n) lines.push(word);
      else lines.push(`${lines.pop()} ${word}`.trim());
    }
    return lines.join("<br>");
  }

  const SMALL = { size: 11, letter: 6.5 }; /* pixels, of the titles on a narrow screen */

  /* On a narrow screen the titles of panels and of a colour bar would run into each other. */
  function narrowed(layout, width, height) {
    const axes = Object.keys(layout).filter((key) => /^xaxis\d*$/.test(key)).map((key) => layout[key].domain ?? [0, 1]);
    const shorter = (text, pixels) => inLines(text, Math.max(8, Math.floor(pixels / SMALL.letter)));
    layout.annotations = layout.annotations?.map((note) => {
      const panel = axes.find(([start, end]) => Math.abs((start + end) / 2 - note.x) < 0.01);
      if (note.xref !== "paper" || note.showarrow || !panel || axes.length < 2) return note;
      const room = (panel[1] - panel[0]) * (width - 100);
      return { ...note, text: shorter(note.text, room), font: { ...note.font, size: SMALL.size } };
    });
    const bar = layout.coloraxis?.colorbar, title = bar?.title;
    if (!title?.text) return;
    const wrapped = { ...title, text: shorter(title.text, height / 3), font: { ...title.font, size: SMALL.size } };
    layout.coloraxis = { ...layout.coloraxis, colorbar: { ...bar, title: wrapped } };
  }

  function themed(figure, width, height) {
    const layout = recolour(figure.layout);
    if (width < 560) narrowed(layout, width, height);
    const inherited = layout.template?.layout ?? {};
    const margin = { l: 48, r: 16, b: 40, t: 40, ...inherited.margin, ...layout.margin };
    if (!layout.annotations?.length) margin.t = Math.min(margin.t, 16); /* the title is not in the figure */
    const legend = { ...inherited.legend, ...layout.legend };
    if (width < 560 && !legend.orientation) Object.assign(legend, { orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom" });
    const axis = { gridcolor: style("--line"), zerolinecolor: style("--line"), linecolor: style("--reported") };
    for (const key of Object.keys({ xaxis: 0, yaxis: 0, ...layout })) {
      if (!/^[xy]axis\d*$/.test(key)) continue;
      layout[key] = { ...axis, automargin: true, ...layout[key] };
      const title = layout[key].title;
      if (title?.text) layout[key].title = { ...title, font: { size: 13, ...title.font } };
    }
    const hover = { bgcolor: style("--surface"), bordercolor: style("--line"), font: { color: style("--ink") } };
    return {
      ...layout,
      autosize: true,
      uirevision: "stays", /* zoom and hidden traces survive a change of theme */
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { size: 13, ...layout.font, color: style("--ink"), family: getComputedStyle(document.body).fontFamily },
      margin,
      legend,
      hoverlabel: { ...hover, ...layout.hoverlabel },
      ...(matchMedia("(pointer: coarse)").matches && { dragmode: false }), /* a finger scrolls the page */
    };
  }

  const config = {
    responsive: true,
    displaylogo: false,
    displayModeBar: matchMedia("(hover: hover)").matches ? "hover" : false,
    modeBarButtonsToRemove: ["lasso2d", "select2d", "zoomIn2d", "zoomOut2d", "autoScale2d"],
  };
  const figures = new Map(); /* canvas → figure */
  const draw = (canvas) =>
    Plotly.react(canvas, recolour(figures.get(canvas).data), themed(figures.get(canvas), canvas.clientWidth, canvas.clientHeight), config);

  const scripts = new Map();
  function loadScript(path) {
    if (!scripts.has(path)) scripts.set(path, new Promise((done, failed) => {
      const script = document.createElement("script");
      script.src = base + path;
      script.onload = done;
      script.onerror = () => { scripts.delete(path); failed(new Error(`${path} did not load`)); };
      document.head.append(script);
    }));
    return scripts.get(path);
  }

  /* A file of the explorer's data calls this: pages opened from a disk may run scripts, not read. */
  const shards = new Map();
  globalThis.patchsaeShard = (shard) => shards.set(document.currentScript.src, shard);

  /* The explorer's model without a kernel: its state, who is told of changes, and its data. */
  class Model {
    constructor({ bundle, ...state }) {
      Object.assign(this, { bundle, state, told: new Map(), page: `${base}../explorer.html` });
    }
    get(name) { return this.state[name]; }
    set(name, value) {
      if (this.state[name] === value) return;
      this.state[name] = value;
      this.told.get(`change:${name}`)?.forEach((tell) => tell());
    }
    save_changes() {}
    on(event, tell) { this.told.set(event, [...(this.told.get(event) ?? []), tell]); }
    off(event, tell) { this.told.set(event, this.told.get(event)?.filter((other) => other !== tell) ?? []); }
    load = async (name) => {
      const path = `explorer/data/${name}.js`;
      await loadScript(path);
      if (!shards.has(base + path)) throw new Error(`${path} is not whole`);
      return shards.get(base + path);
    };
  }

  async function explore(place) {
    try {
      if (!document.querySelector("link[href$='explorer.css']")) {
        document.head.append(Object.assign(document.createElement("link"), { rel: "stylesheet", href: `${base}explorer/explorer.css` }));
      }
      await loadScript("explorer/explorer.js");
      patchsaeExplorer.render({ model: new Model(JSON.parse(place.dataset.state)), el: place });
    } catch (error) {
      place.textContent = `The explorer cannot be shown: ${error.message}.`;
    }
  }

  function watchFigures() {
    const nearby = new IntersectionObserver((entries) => {
      for (const { isIntersecting, target } of entries) {
        if (!isIntersecting) continue;
        nearby.unobserve(target);
        if (target.matches(".patchsae-explorer")) { explore(target); continue; }
        figures.set(target, JSON.parse(target.parentElement.querySelector("script").textContent));
        loadScript("vendor/plotly.min.js").then(() => draw(target));
      }
    }, { rootMargin: "600px" });
    document.querySelectorAll(".plotly-canvas, .patchsae-explorer").forEach((place) => nearby.observe(place));
    const retheme = () => window.Plotly && figures.forEach((_, canvas) => draw(canvas));
    new MutationObserver(retheme).observe(root, { attributes: true, attributeFilter: ["data-theme"] });
  }

  /* One switch opens or folds all code, on this page and the next ones. */
  function switchCode() {
    const button = document.querySelector(".btn-code-switch");
    if (!button) return;
    const kept = (...value) => { try { return localStorage[value.length ? "setItem" : "getItem"]("patchsae-code", ...value); } catch { return null; } };
    const show = (open) => {
      document.querySelectorAll("details.above-input").forEach((cell) => { cell.open = open; });
      button.setAttribute("aria-pressed", open);
      return open;
    };
    let open = show(kept() === "shown");
    button.addEventListener("click", () => kept((open = show(!open)) ? "shown" : "folded"));
  }

  /* The scoreboard's claims of one verdict, or of one page. */
  function filterClaims() {
    const rows = [...document.querySelectorAll("table.scoreboard tbody tr")];
    if (!rows.length) return;
    const bar = document.createElement("p"), chosen = {};
    bar.className = "filters";
    for (const [key, all] of [["verdict", "every verdict"], ["page", "every page"]]) {
      const values = [...new Set(rows.map((row) => row.dataset[key]))].filter(Boolean);
      const select = document.createElement("select");
      select.setAttribute("aria-label", `Claims of ${all}, or of one`);
      select.append(new Option(all, ""), ...values.map((value) => new Option(value.replace("_", " · "), value)));
      select.addEventListener("change", () => {
        chosen[key] = select.value;
        for (const row of rows) row.hidden = Object.entries(chosen).some(([name, value]) => value && row.dataset[name] !== value);
        count.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} claims`;
      });
      bar.append(select, " ");
    }
    const count = document.createElement("output");
    bar.append(count);
    rows[0].closest("table").before(bar);
  }

  /* The theme follows the reader's place with all links of a page when it does not find its list of
     contents, and stumbles over addresses like #latent=5: it is given the list, or nothing to do. */
  function spyOnContents() {
    if (document.querySelector("nav.page-toc")) document.body.dataset.bsTarget = "nav.page-toc";
    else delete document.body.dataset.bsSpy;
  }

  const start = () => { spyOnContents(); drawMath(); watchFigures(); switchCode(); filterClaims(); };
  document.readyState === "loading" ? document.addEventListener("DOMContentLoaded", start) : start();
})();
