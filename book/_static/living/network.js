// The book's invertible network φ = c (Id − L g) with one dense block, as invbayes computes it: its
// value, its Jacobian, and its inverse to a guaranteed error.
{
  const { plus, minus, times, norm, identity, sum, scaled, apply, inverse } = Living.plane;

  // Float64, in the byte order of all machines that show web pages: little end first.
  const numbers = (text) => new Float64Array(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);

  // W u, and the same W times two columns.
  const product = (weight, u) => {
    const width = u.length;
    return Array.from({ length: weight.length / width }, (_, i) => {
      let total = 0;
      for (let j = 0; j < width; j++) total += weight[i * width + j] * u[j];
      return total;
    });
  };

  Living.Network = class {
    constructor({ lipschitz, scale, weights, biases, sharpnesses }) {
      Object.assign(this, { lipschitz, scale });
      this.weights = weights.map(numbers);
      this.biases = biases.map(numbers);
      this.sharpnesses = sharpnesses.map(numbers);
    }

    // L g(x) and its Jacobian, carried forward layer by layer. The first units of a layer are
    // straight, the others bent: b ↦ (√((s b)² + 1) − 1)/s.
    residual(x) {
      let [value, ...columns] = [x, [1, 0], [0, 1]];
      this.weights.forEach((weight, layer) => {
        value = product(weight, value).map((entry, i) => entry + this.biases[layer][i]);
        columns = columns.map((column) => product(weight, column));
        const sharpness = this.sharpnesses[layer];
        if (!sharpness) return;
        const straight = value.length - sharpness.length;
        for (let i = straight; i < value.length; i++) {
          const [s, b] = [sharpness[i - straight], value[i]];
          const root = Math.sqrt((s * b) ** 2 + 1);
          value[i] = (s * b * b) / (root + 1);
          for (const column of columns) column[i] *= (s * b) / root;
        }
      });
      const jacobian = [0, 1].map((i) => columns.map((column) => this.lipschitz * column[i]));
      return { value: times(this.lipschitz, value), jacobian };
    }

    image(x) {
      return times(this.scale, minus(x, this.residual(x).value));
    }

    jacobian(x) {
      return scaled(this.scale, sum(identity, scaled(-1, this.residual(x).jacobian)));
    }

    // Steps towards the x with φ(x) = z, without end: at each the point, what led to it, and the bound
    // |x − x*| ≤ |z/c + L g(x) − x| / (1 − L), rounding included.
    *steps(z) {
      const target = times(1 / this.scale, z);
      for (let step = this.#judged(target, target, "start"); ; step = this.#advance(step, target)) yield step;
    }

    // Those until the bound is at most tol, and so many more.
    inverse(z, tol, more = 0) {
      const made = [];
      for (const step of this.steps(z)) {
        made.push(step);
        if (made.length > more && made.at(-1 - more).bound <= tol) return made;
        if (made.length > 3000) throw new Error(`the inverse misses the tolerance ${tol}`);
      }
    }

    #judged(x, target, by) {
      const { value, jacobian } = this.residual(x);
      const residual = minus(plus(target, value), x);
      const rounding = 2 ** -52 * (norm(target) + norm(value) + norm(x));
      const size = norm(residual);
      return { x, by, residual, size, jacobian, bound: (size + rounding) / (1 - this.lipschitz) };
    }

    // Newton's step, else a quarter of it, else the plain one, which shrinks the residual by L.
    #advance({ x, residual, size, jacobian }, target) {
      const step = apply(inverse(sum(identity, scaled(-1, jacobian))), residual);
      const enough = Math.max(this.lipschitz, 0.9) * size;
      for (const [by, length] of [["Newton", 1], ["a quarter of Newton's", 0.25]]) {
        const trial = this.#judged(plus(x, times(length, step)), target, by);
        if (trial.size <= enough) return trial;
      }
      return this.#judged(plus(x, residual), target, "plain");
    }
  };
}
