// Chapter 8: a trained network inverts itself, step by step, and draws its own error bar.
{
  const { pair, power, tenTo } = Living;
  const { minus, norm, scaled, sum, inverse, cholesky, ellipse } = Living.plane;
  const REACH = Math.sqrt(-2 * Math.log(0.1)); // of the ellipse that holds 90 % of a Gaussian
  const TOLERANCE = 1e-9;
  const SMALLEST = 1e-16; // that is drawn

  const symmetric = (m) => scaled(0.5, sum(m, [[m[0][0], m[1][0]], [m[0][1], m[1][1]]]));
  const rim = (centre, covariance) => ellipse(centre, scaled(REACH, cholesky(covariance)));

  Living.figures.error_bars = {
    letter: "z",

    controls: () => [],

    compute(data, { point }) {
      const net = new Living.Network(data.net);
      const made = net.inverse(point, TOLERANCE, 3); // with three more, as good as doubles allow
      const [steps, best] = [made.slice(0, -3), made.at(-1).x];
      const answer = steps.at(-1).x;
      const belief = new Living.Mixture(data.prior).posterior(point, data.noise);
      return {
        answer,
        path: steps.map(({ x }) => x),
        by: steps.map(({ by }) => by),
        bounds: steps.map(({ bound }) => bound),
        errors: steps.map(({ x }) => norm(minus(x, best))),
        covariance: symmetric(scaled(data.noise ** 2, inverse(net.jacobian(answer)))),
        belief,
        mean: belief.mean,
        exact: belief.covariance,
      };
    },

    stages: ({ box }) => [
      new Living.Stage(box, { xlabel: "x₁", ylabel: "x₂", title: "steps and ellipses" }),
      new Living.Stage([0, 8, -17, 3], {
        xlabel: "step", title: "distance to φ⁻¹(z): bound and truth", height: 330,
        yticks: [0, -4, -8, -12, -16].map((k) => [k, tenTo(k)]),
      }),
    ],

    draw([plane, decades], data, { point }, { answer, path, bounds, errors, covariance, belief, mean, exact }) {
      plane.shade((x) => belief.logDensity(x));
      plane.line(rim(mean, exact), "wide faint");
      plane.line(rim(answer, covariance), "ink dashed");
      plane.line(path, "two thin");
      path.forEach((x) => plane.dot(x, "disc", "two"));
      plane.dot(point, "cross", "ink");
      plane.dot(answer, "plus", "ink");
      const drawn = (sizes) => sizes.map((size, k) => [k, Math.log10(Math.max(size, SMALLEST))]);
      for (const [sizes, shape, style] of [[bounds, "diamond", "one"], [errors, "disc", "two"]]) {
        decades.line(drawn(sizes), `${style} thin`);
        drawn(sizes).forEach((place) => decades.dot(place, shape, style));
      }
    },

    tell(data, { point }, { answer, bounds, errors, by, covariance, exact, mean }) {
      const start = Living.plane.times(1 / data.net.scale, point);
      const clear = Math.max(errors.findLastIndex((error) => error > 1e-12), 0); // of rounding
      const times = (bounds[clear] / errors[clear]).toFixed(0);
      const off = norm(sum(covariance, scaled(-1, exact)).flat()) / norm(exact.flat());
      const count = (kind) => by.filter((how) => how === kind).length;
      const helped = ["a quarter of Newton's", "plain"].filter(count).map((kind) => `, ${count(kind)} of them ${kind}`).join("");
      return [
        ["cross", "ink", `datum z = ${pair(point)}; the steps begin at z/c = ${pair(start)}`],
        ["plus", "ink", `the network's answer ${pair(answer)}; the exact posterior mean is ${pair(mean)}`],
        ["line", "ink dashed", `its 90\u00a0% ellipse, over the exact one (grey): the covariances differ by ${(100 * off).toFixed(1)}\u00a0%`],
        ["diamond", "one", `after ${by.length - 1} steps${helped}: at most ${power(bounds.at(-1))} from φ⁻¹(z)`],
        ["disc", "two", `the steps; after step ${clear} the distance is ${power(errors[clear])}, and the bound is ${times} times that`],
      ];
    },
  };
}
