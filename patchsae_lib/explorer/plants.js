/* Planted changes to choose or to guess (plants.py). All words from the data are text. */
(() => {
  "use strict";
  function make(tag, className, ...children) {
    const node = document.createElement(tag);
    node.className = className;
    node.append(...children);
    return node;
  }
  const SIGN = { right: "✓ right", wrong: "✗ fooled", abstains: "– abstains" };

  function start(section) {
    const { kinds, rounds } = JSON.parse(section.querySelector('script[type="application/json"]').textContent);
    const part = (name) => section.querySelector(`.plants-${name}`);
    const list = section.querySelector("select"), modes = [...section.querySelectorAll('input[type="radio"]')];
    const [answers, choices, truth, score, next] = ["answers", "kinds", "truth", "score", "next"].map(part);
    const tally = { right: 0, of: 0 };
    let round = rounds[0];
    const guessing = () => modes.find((mode) => mode.checked).value === "guess";
    const draw = (from) => from[Math.floor(Math.random() * from.length)];

    /* What each method says; the grades, which would tell, only when they are asked for. */
    function show(withGrades) {
      answers.replaceChildren(...round.of.map(({ method, says, grade }) => {
        const chips = says.map(([word, amount]) => make("span", "", `${word} `, make("b", "", amount)));
        const mark = withGrades ? [make("i", `plants-${grade}`, SIGN[grade])] : [];
        return make("div", "", make("dt", "", method), make("dd", "", ...(chips.length ? chips : ["says nothing"]), ...mark));
      }));
    }

    function tell(verdict) {
      const by = (grade) => round.of.filter((each) => each.grade === grade).map((each) => each.method).join(", ") || "none";
      truth.textContent = `${verdict}Planted: ${round.plant}. A method is right if it says ${round.truth}. Fooled: ${by("wrong")}. Right: ${by("right")}.`;
    }

    function look() {
      round = rounds[list.selectedIndex];
      show(true);
      tell("");
    }

    function ask() {
      const kind = draw(kinds), others = rounds.filter((each) => each.kind === kind && each !== round);
      round = draw(others.length ? others : rounds.filter((each) => each.kind === kind)); /* each kind as often */
      show(false);
      truth.textContent = "Which change was planted?";
      for (const button of choices.children) {
        button.textContent = button.dataset.kind;
        button.disabled = false;
      }
      next.disabled = true;
    }

    function guess(kind) {
      const isRight = kind === round.kind;
      tally.of += 1;
      tally.right += isRight;
      for (const button of choices.children) {
        const mark = button.dataset.kind === round.kind ? "✓ " : button.dataset.kind === kind ? "✗ " : "";
        button.textContent = mark + button.dataset.kind;
        button.disabled = true;
      }
      show(true);
      tell(isRight ? "Right. " : "Wrong. ");
      count();
      next.disabled = false;
      next.focus({ preventScroll: true });
    }

    function count() {
      const blind = (tally.of / kinds.length).toFixed(1);
      score.textContent = guessing() ? (tally.of ? `${tally.right} of ${tally.of} right; guessing blindly gives ${blind}.` : `Guessing blindly is right one time in ${kinds.length}.`) : "";
    }

    function begin() {
      list.parentElement.hidden = choices.hidden = true;
      (guessing() ? choices : list.parentElement).hidden = false;
      next.textContent = guessing() ? "next" : "a random one";
      next.disabled = false;
      count();
      (guessing() ? ask : look)();
    }

    choices.append(...kinds.map((kind) => {
      const button = make("button", "", kind);
      Object.assign(button, { type: "button", onclick: () => guess(kind) });
      button.dataset.kind = kind;
      return button;
    }));
    list.addEventListener("change", look);
    next.addEventListener("click", () => {
      if (guessing()) { ask(); choices.firstElementChild.focus({ preventScroll: true }); return; }
      const others = rounds.map((_, i) => i).filter((i) => i !== list.selectedIndex);
      list.selectedIndex = others.length ? draw(others) : 0;
      look();
    });
    for (const mode of modes) mode.addEventListener("change", begin);
    part("game").hidden = false;
    section.dataset.ready = "true";
    begin();
  }
  document.querySelectorAll(".plants:not([data-ready])").forEach(start);
})();
