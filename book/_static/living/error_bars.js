// Chapter 8: a trained network inverts itself, step by step, and draws its own error bar.
{
  const { pair, power, tenTo } = Living;
  const { minus, norm, scaled, sum, inverse, cholesky, ellipse } = Living.plane;
  const REACH = Math.sqrt(-2 * Math.log(0.1)); // of the ellipse that holds 90 % of a Gaussian
  const TOLERANCE = 1e-9;

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
      new Living.Stage([0, 12, -14, 3], {
        xlabel: "step", title: "bound and true error", height: 330,
        yticks: [2, -2, -6, -10, -14].map((k) => [k, tenTo(k)]),
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
      const drawn = (sizes) => sizes.map((size, k) => [k, Math.log10(Math.max(size, 1e-16))]);
      for (const [sizes, shape, style] of [[bounds, "diamond", "one"], [errors, "disc", "two"]]) {
        decades.line(drawn(sizes), `${style} thin`);
        drawn(sizes).forEach((place) => decades.dot(place, shape, style));
      }
    },

    tell(data, { point }, { answer, bounds, errors, by, covariance, exact, mean }) {
      const off = norm(sum(covariance, scaled(-1, exact)).flat()) / norm(exact.flat());
      const safe = by.filter((how) => how !== "Newton" && how !== "start").length;
      const helped = safe ? `, ${safe} of them shortened or plain` : "";
      return [
        ["cross", "ink", `datum z = ${pair(point)}, where the steps begin up to the factor 1/c`],
        ["plus", "ink", `the network's answer ${pair(answer)}; the exact posterior mean is ${pair(mean)}`],
        ["line", "ink dashed", `its 90 % ellipse, off the exact one (grey) by ${(100 * off).toFixed(1)} % of the covariance`],
        ["diamond", "one", `after ${by.length - 1} steps${helped}: the error is at most ${power(bounds.at(-1))}`],
        ["disc", "two", `and is ${errors.at(-1) < 1e-15 ? `below ${tenTo(-15)}` : power(errors.at(-1))}`],
      ];
    },
  };
}
