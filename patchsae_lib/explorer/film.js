/* Moves the first frame of each film on the page (film.py, filmstrip.py) through all of them. Words
   are text, and every frame has the scale of the data: `bar` pixels a token, `edge` a logit. */
(() => {
  "use strict";
  const PACE = 700; /* milliseconds a checkpoint */
  const signed = (x) => `${x < 0 ? "−" : "+"}${Math.abs(x).toFixed(2)}`;

  function start(film) {
    const { bar, edge, frames } = JSON.parse(film.querySelector('script[type="application/json"]').textContent);
    const [stage, all] = [film.querySelector(".film-frame"), (what) => [...stage.querySelectorAll(what)]];
    const [play, slide, of] = ["button", "input", "select"].map((what) => film.querySelector(what));
    const bars = all("g"), edges = all("path.raises, path.lowers"), cells = all(".cell"), shares = all(".share");
    const [marker] = all("circle"), points = marker.dataset.points.split(" ").map((p) => p.split(","));
    const words = stage.querySelector("output");
    let timer = 0;

    function show(number) {
      const frame = frames[number], effects = frame.effects[of.selectedIndex].flat(), answers = frame.answers.flat();
      bars.forEach((g, i) => {
        const level = frame.levels[of.selectedIndex][i];
        g.querySelector("rect").style.width = `${level * bar}px`;
        g.querySelector(".level").textContent = level.toFixed(1);
      });
      edges.forEach((path, k) => {
        path.setAttribute("class", effects[k] < 0 ? "lowers" : "raises");
        path.style.strokeWidth = `${Math.abs(effects[k]) * edge}px`;
      });
      cells.forEach((cell, k) => { cell.style.fillOpacity = 0.45 * answers[k]; });
      shares.forEach((share, k) => { share.textContent &&= `${Math.round(100 * answers[k])}%`; });
      marker.style.transform = `translate(${points[number].map((v) => `${v}px`).join(",")})`;
      slide.value = number;
      slide.setAttribute("aria-valuetext", frame.words.split(":")[0]);
      words.textContent = of.selectedIndex ? `${frame.words.split(". The strongest")[0]}. ${strongest(effects)}` : frame.words;
    }

    function strongest(effects) {
      const size = Math.max(...effects.map(Math.abs)), k = effects.findIndex((x) => Math.abs(x) === size);
      const name = bars[Math.floor(k / frames[0].answers.length)].querySelector("title").textContent;
      const to = of.options[1 + (k % frames[0].answers.length)].text;
      return `On pictures of “${of.value}”, the strongest edge is from ${name} to “${to}” (${signed(effects[k])} logits).`;
    }

    function run(on) {
      clearInterval(timer);
      timer = on ? setInterval(() => (Number(slide.value) < frames.length - 1 ? show(Number(slide.value) + 1) : run(false)), PACE) : 0;
      play.textContent = on ? "Pause" : "Play";
      play.setAttribute("aria-pressed", String(on));
      words.setAttribute("aria-live", on ? "off" : "polite"); /* nobody wants all of it read out */
    }

    play.addEventListener("click", () => {
      if (!timer && Number(slide.value) === frames.length - 1) show(0);
      run(!timer);
    });
    slide.addEventListener("input", () => { run(false); show(Number(slide.value)); });
    of.addEventListener("change", () => show(Number(slide.value)));
    let before = null;
    addEventListener("beforeprint", () => { run(false); before = [slide.value, of.selectedIndex]; of.selectedIndex = 0; show(0); });
    addEventListener("afterprint", () => { if (before) { [, of.selectedIndex] = before; show(Number(before[0])); } });
    film.querySelector(".film-controls").hidden = false;
    film.dataset.ready = "true";
    show(0);
  }
  document.querySelectorAll(".film:not([data-ready])").forEach(start);
})();
