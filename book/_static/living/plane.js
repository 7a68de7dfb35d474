// Vectors [a, b] and matrices [[a, b], [c, d]] of the plane, and Gaussian mixtures there.
window.Living = { figures: {} };

Living.plane = {
  plus: (u, v) => [u[0] + v[0], u[1] + v[1]],
  minus: (u, v) => [u[0] - v[0], u[1] - v[1]],
  times: (s, u) => [s * u[0], s * u[1]],
  dot: (u, v) => u[0] * v[0] + u[1] * v[1],
  norm: (u) => Math.hypot(...u),
  identity: [[1, 0], [0, 1]],
  sum: (m, n) => m.map((row, i) => row.map((entry, j) => entry + n[i][j])),
  scaled: (s, m) => m.map((row) => row.map((entry) => s * entry)),
  outer: (u, v) => u.map((a) => v.map((b) => a * b)),
  apply: (m, u) => m.map((row) => row[0] * u[0] + row[1] * u[1]),
  det: ([[a, b], [c, d]]) => a * d - b * c,
  trace: (m) => m[0][0] + m[1][1],
  inverse(m) {
    const [[a, b], [c, d]] = m;
    return Living.plane.scaled(1 / Living.plane.det(m), [[d, -b], [-c, a]]);
  },
  // The greater and the lesser one, from σ₁² + σ₂² and σ₁ σ₂.
  singularValues(m) {
    const squares = m.flat().reduce((sum, entry) => sum + entry * entry, 0);
    const product = Math.abs(Living.plane.det(m));
    const [both, apart] = [squares + 2 * product, squares - 2 * product].map((s) => Math.sqrt(Math.max(s, 0)));
    return [(both + apart) / 2, product > 0 ? (2 * product) / (both + apart) : 0];
  },
  // The lower triangle C with C Cᵀ = m.
  cholesky([[a, b], [, d]]) {
    const root = Math.sqrt(a);
    return [[root, 0], [b / root, Math.sqrt(d - (b * b) / a)]];
  },
  // The points m u + centre for u on the unit circle, or on a share of it: a closed line, or an arc.
  ellipse(centre, m, share = 1) {
    const count = 72 * share;
    return Array.from({ length: count + 1 }, (_, k) => {
      const angle = (2 * Math.PI * k) / 72;
      return Living.plane.plus(centre, Living.plane.apply(m, [Math.cos(angle), Math.sin(angle)]));
    });
  },
};

{
  const { plus, minus, times, dot, identity, sum, scaled, outer, apply, det, trace, inverse } = Living.plane;
  const { cholesky, ellipse } = Living.plane;

  Living.Mixture = class {
    constructor({ weights, means, covariances }) {
      this.parts = weights.map((weight, k) => ({
        weight,
        mean: means[k],
        covariance: covariances[k],
        precision: inverse(covariances[k]),
        height: Math.log(weight) - Math.log(2 * Math.PI) - Math.log(det(covariances[k])) / 2,
      }));
    }

    // log p(x), each part's share of p(x), and its pull Σₖ⁻¹(mₖ − x).
    at(x) {
      const pulls = this.parts.map((part) => apply(part.precision, minus(part.mean, x)));
      const logs = this.parts.map((part, k) => part.height - dot(minus(part.mean, x), pulls[k]) / 2);
      const top = Math.max(...logs);
      const logDensity = top + Math.log(logs.reduce((total, log) => total + Math.exp(log - top), 0));
      return { logDensity, pulls, shares: logs.map((log) => Math.exp(log - logDensity)) };
    }

    logDensity(x) {
      return this.at(x).logDensity;
    }

    score(x) {
      const { shares, pulls } = this.at(x);
      return pulls.map((pull, k) => times(shares[k], pull)).reduce(plus);
    }

    // ∇² log p = Σ πₖ (uₖ uₖᵀ − Σₖ⁻¹) − s sᵀ with the shares π, the pulls u and the score s.
    hessian(x) {
      const { shares, pulls } = this.at(x);
      const bends = pulls.map((pull, k) =>
        scaled(shares[k], sum(outer(pull, pull), scaled(-1, this.parts[k].precision))));
      const score = pulls.map((pull, k) => times(shares[k], pull)).reduce(plus);
      return sum(bends.reduce(sum), scaled(-1, outer(score, score)));
    }

    // Of each part the ellipse of one standard deviation.
    get outlines() {
      return this.parts.map(({ mean, covariance }) => ellipse(mean, cholesky(covariance)));
    }

    get mean() {
      return this.parts.map((part) => times(part.weight, part.mean)).reduce(plus);
    }

    get covariance() {
      const centre = this.mean;
      return this.parts
        .map(({ weight, mean, covariance }) =>
          scaled(weight, sum(covariance, outer(minus(mean, centre), minus(mean, centre)))))
        .reduce(sum);
    }

    // The posterior of this prior for y = x + noise of this standard deviation.
    posterior(y, noise) {
      const variance = scaled(noise ** 2, identity);
      const covariances = this.parts.map(({ precision }) => inverse(sum(precision, inverse(variance))));
      const means = this.parts.map(({ precision, mean }, k) =>
        apply(covariances[k], plus(apply(precision, mean), times(noise ** -2, y))));
      const data = new Living.Mixture({
        weights: this.parts.map((part) => part.weight),
        means: this.parts.map((part) => part.mean),
        covariances: this.parts.map((part) => sum(part.covariance, variance)),
      });
      return new Living.Mixture({ weights: data.at(y).shares, means, covariances });
    }

    // All points of a mixture of two where the score is zero, the highest maximum first. They lie on
    // the ridge x(α) = (Σ αₖ Σₖ⁻¹)⁻¹ Σ αₖ Σₖ⁻¹ mₖ, where α is also the second part's share (Ray and
    // Lindsay 2005): one unknown, one equation. Two roots within 1/2000 of each other are missed.
    stationary() {
      const [one, two] = this.parts;
      const ridge = (a) => {
        const matrix = sum(scaled(1 - a, one.precision), scaled(a, two.precision));
        const pull = plus(times(1 - a, apply(one.precision, one.mean)), times(a, apply(two.precision, two.mean)));
        return apply(inverse(matrix), pull);
      };
      const excess = (a) => this.at(ridge(a)).shares[1] - a;
      // At its right end it is negative, where rounding may leave zero.
      const below = (a) => a === 1 || excess(a) < 0;
      const found = [];
      for (let k = 0; k < 2000; k++) {
        const [left, right] = [k / 2000, (k + 1) / 2000];
        const rises = below(left);
        if (rises !== below(right)) found.push(ridge(root(excess, left, right, rises)));
      }
      return found.map((x) => this.#judged(x)).sort((p, q) => q.maximum - p.maximum || q.logDensity - p.logDensity);
    }

    #judged(x) {
      const bend = this.hessian(x);
      return { x, logDensity: this.logDensity(x), maximum: Number(det(bend) > 0 && trace(bend) < 0) };
    }
  };

  // By bisection, to the last digit.
  const root = (excess, left, right, rises) => {
    for (let k = 0; k < 60; k++) {
      const middle = (left + right) / 2;
      if (excess(middle) < 0 === rises) left = middle;
      else right = middle;
    }
    return (left + right) / 2;
  };
}
