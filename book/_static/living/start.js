// Brings the page's living figures to life: <div class="living" data-figure="…"> with its numbers
// in a JSON script. A figure is an object with
//   letter                    of the point that is dragged within data.box
//   controls(data)            what else the reader sets: ranges and choices
//   compute(data, state)      its numbers, without any drawing; the tests compare them with PyTorch
//   stages(data)              its pictures
//   draw(stages, data, state, found)
//   tell(data, state, found)  what the pictures show, in words: [shape, style, text] each
{
  const make = (name, properties, ...children) => {
    const element = Object.assign(document.createElement(name), properties);
    element.append(...children);
    return element;
  };

  // The largest difference between what the page computes and what PyTorch did, over the witnesses.
  Living.check = (name, data) =>
    Math.max(...data.witness.map(({ state, expected }) => {
      const found = Living.figures[name].compute(data, state);
      return Math.max(...Object.keys(expected).map((key) => {
        const [here, there] = [found[key], expected[key]].map((value) => [value].flat(Infinity));
        if (here.length !== there.length) return Infinity;
        return Math.max(...here.map((value, i) => Math.abs(value - there[i])));
      }));
    }));

  const range = ({ label, min, max, step }, value, changed) => {
    const shown = make("output");
    const input = make("input", { type: "range", min, max, step, value });
    const show = (value) => {
      const words = Living.format(value);
      shown.textContent = words;
      input.setAttribute("aria-valuetext", words);
      if (Number(input.value) !== value) input.value = value;
    };
    input.addEventListener("input", () => changed(Number(input.value)));
    return { element: make("label", {}, `${label} = `, shown, input), show };
  };

  const choice = ({ label, options }, value, changed) => {
    const select = make("select", {}, ...options.map((text, i) => make("option", { value: i }, text)));
    const show = (value) => { select.value = value; };
    select.addEventListener("change", () => changed(Number(select.value)));
    return { element: make("label", {}, `${label} `, select), show };
  };

  const line = ([shape, style, text]) => make("li", {}, Living.sign(shape, style), ` ${text}`);

  const verdict = (name, data) => {
    const gap = Living.check(name, data);
    const trusted = gap < 1e-8;
    const words = trusted
      ? `This page has checked itself: at ${data.witness.length} places its numbers differ from PyTorch's by at most ${Living.power(gap)}.`
      : "This page's numbers differ from PyTorch's. Do not trust them.";
    return make("p", { className: trusted ? "living-check" : "living-check failed" }, words);
  };

  Living.start = (box) => {
    const { figure: name } = box.dataset;
    const figure = Living.figures[name];
    const data = JSON.parse(box.querySelector("script").textContent);
    const state = { ...data.start };
    const stages = figure.stages(data);
    const words = make("ul");
    words.setAttribute("aria-live", "polite");

    const update = (change) => {
      Object.assign(state, change);
      const found = figure.compute(data, state);
      stages.forEach((stage) => stage.clear());
      figure.draw(stages, data, state, found);
      stages[0].hold(state.point);
      words.replaceChildren(...figure.tell(data, state, found).map(line));
      for (const { show, read } of knobs) show(read(state));
    };
    const knob = (kind, spec, read, write) => ({
      ...kind(spec, read(state), (value) => update(write(value))), read,
    });
    const along = (axis) => {
      const [min, max] = data.box.slice(2 * axis);
      return knob(range, { label: figure.letter + "₁₂"[axis], min, max, step: 0.05 }, (now) => now.point[axis],
        (value) => ({ point: state.point.map((old, i) => (i === axis ? value : old)) }));
    };
    const knobs = [
      along(0),
      along(1),
      ...figure.controls(data).map((spec) =>
        knob(spec.options ? choice : range, spec, (now) => now[spec.name], (value) => ({ [spec.name]: value }))),
    ];

    stages[0].handle((point) => update({ point }));
    box.replaceChildren(
      make("div", { className: "stages" }, ...stages.map((stage) => stage.element)),
      make("div", { className: "knobs" }, ...knobs.map(({ element }) => element)),
      words,
      verdict(name, data),
      box.querySelector("script"),
    );
    update({});
  };

  addEventListener("DOMContentLoaded", () => document.querySelectorAll(".living").forEach(Living.start));
}
