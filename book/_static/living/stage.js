// A picture of a part of the plane, in SVG, with a handle that is dragged.
{
  const make = (name, attributes = {}, ...children) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children);
    return element;
  };

  // What marks a point; each can be told without colour.
  const SHAPES = {
    cross: "M-6,-6 L6,6 M-6,6 L6,-6",
    plus: "M-7,0 L7,0 M0,-7 L0,7",
    diamond: "M0,-7 L6,0 L0,7 L-6,0 Z",
    ring: "M-5,0 A5,5 0 1 0 5,0 A5,5 0 1 0 -5,0 Z",
    square: "M-4,-4 H4 V4 H-4 Z",
    disc: "M-4,0 A4,4 0 1 0 4,0 A4,4 0 1 0 -4,0 Z",
    speck: "M-2.5,0 H2.5",
    line: "M-9,0 H9",
  };

  Living.mark = (shape, style) => make("path", { d: SHAPES[shape], class: `spot ${shape} ${style}` });

  // A mark for the text beside a picture.
  Living.sign = (shape, style) =>
    make("svg", { viewBox: "-9 -9 18 18", class: "sign", "aria-hidden": "true" }, Living.mark(shape, style));

  // The whole numbers of an axis, at most eight of them, and their labels.
  const whole = (low, high) => {
    const every = Math.ceil((high - low) / 8);
    const first = Math.ceil(low / every) * every;
    return Array.from({ length: Math.floor((high - first) / every) + 1 }, (_, k) => {
      const value = first + k * every;
      return [value, String(value).replace("-", "−")];
    });
  };

  const WIDTH = 400;

  Living.Stage = class {
    // The box is [left, right, bottom, top]; without a height both axes have one unit. `ticks` are
    // pairs of a place and its label.
    constructor([left, right, bottom, top], { xlabel, ylabel = "", title, height, xticks, yticks }) {
      Object.assign(this, { left, right, bottom, top });
      this.height = height ?? (WIDTH * (top - bottom)) / (right - left);
      this.moving = make("g");
      this.window = make("svg", { width: WIDTH, height: this.height, overflow: "hidden" }, this.moving);
      this.element = make("svg", {
        viewBox: `-52 -30 ${WIDTH + 62} ${this.height + 76}`,
        class: "stage",
        "aria-hidden": "true",  // the list beside it says the same in words
      });
      const frame = make("rect", { width: WIDTH, height: this.height, class: "frame" });
      this.element.append(frame, this.window);
      this.#label({ xlabel, ylabel, title, xticks, yticks });
    }

    place([x, y]) {
      return [
        ((x - this.left) / (this.right - this.left)) * WIDTH,
        ((this.top - y) / (this.top - this.bottom)) * this.height,
      ];
    }

    #label({ xlabel, ylabel, title, xticks, yticks }) {
      const write = (x, y, words, anchor = "middle") =>
        this.element.append(make("text", { x, y, "text-anchor": anchor }, words));
      for (const [x, label] of xticks ?? whole(this.left, this.right))
        write(this.place([x, 0])[0], this.height + 19, label);
      for (const [y, label] of yticks ?? whole(this.bottom, this.top))
        write(-8, this.place([0, y])[1] + 5, label, "end");
      write(WIDTH / 2, this.height + 41, xlabel);
      write(-38, this.height / 2 + 5, ylabel);
      write(WIDTH / 2, -12, title);
    }

    clear() {
      this.moving.replaceChildren();
    }

    line(points, style) {
      const path = points.map((point) => this.place(point).map((v) => v.toFixed(2)).join(",")).join(" ");
      this.moving.append(make("polyline", { points: path, class: style }));
    }

    dot(point, shape, style) {
      const mark = Living.mark(shape, style);
      mark.setAttribute("transform", `translate(${this.place(point)})`);
      this.moving.append(mark);
    }

    // Darker where the density is higher.
    shade(logDensity, columns = 80) {
      const rows = Math.round((columns * this.height) / WIDTH);
      const canvas = Object.assign(document.createElement("canvas"), { width: columns, height: rows });
      const values = Float64Array.from({ length: columns * rows }, (_, k) =>
        logDensity([
          this.left + ((this.right - this.left) * ((k % columns) + 0.5)) / columns,
          this.top - ((this.top - this.bottom) * (Math.floor(k / columns) + 0.5)) / rows,
        ]));
      const top = values.reduce((a, b) => Math.max(a, b));
      const pixels = new ImageData(columns, rows);
      values.forEach((value, k) => pixels.data.set([86, 150, 200, 200 * Math.exp(value - top)], 4 * k));
      canvas.getContext("2d").putImageData(pixels, 0, 0);
      this.moving.append(make("image", {
        href: canvas.toDataURL(), width: WIDTH, height: this.height, preserveAspectRatio: "none",
      }));
    }

    // A handle at the point; `moved` hears where a mouse or a finger takes it, or where one taps.
    handle(moved) {
      this.grip = make("circle", { r: 24, class: "grip" });
      this.window.append(this.grip);
      const at = ({ clientX, clientY }) => {
        const frame = this.element.querySelector(".frame").getBoundingClientRect();
        const [u, v] = [(clientX - frame.left) / frame.width, (clientY - frame.top) / frame.height];
        const inside = (t) => Math.min(Math.max(t, 0), 1);
        return [
          this.left + (this.right - this.left) * inside(u),
          this.top - (this.top - this.bottom) * inside(v),
        ];
      };
      // A selected label would be dragged in place of the point.
      this.element.addEventListener("mousedown", (event) => event.preventDefault());
      // Chromium ignores touch-action on a part of an SVG: without this a finger scrolls the page.
      this.grip.addEventListener("touchstart", (event) => event.preventDefault(), { passive: false });
      this.grip.addEventListener("pointerdown", (event) => this.grip.setPointerCapture(event.pointerId));
      const follow = (event) => {
        if (this.grip.hasPointerCapture(event.pointerId)) moved(at(event));
      };
      this.grip.addEventListener("pointermove", follow);
      this.element.addEventListener("click", (event) => moved(at(event)));
    }

    hold(point) {
      const [cx, cy] = this.place(point);
      this.grip.setAttribute("cx", cx);
      this.grip.setAttribute("cy", cy);
    }
  };
}
