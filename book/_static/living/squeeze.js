// Chapter 3: what a trained block stretches and squeezes, beside what it was asked for.
{
  const { pair, format } = Living;
  const { plus, minus, times, norm, apply, sum, scaled, identity, inverse } = Living.plane;
  const { singularValues, det, ellipse } = Living.plane;
  const RADIUS = 0.5; // of the circle, in the plane of x
  const SHOWN = [0.02, 30]; // of the axis of stretchings
  const scale = (value) => Math.log10(Math.min(Math.max(value, SHOWN[0]), SHOWN[1]));

  // The z whose posterior mean is x, by Newton's method, with steps that are halved until they help.
  const undoMean = (prior, x, noise) => {
    let z = x;
    for (let k = 0; k < 200; k++) {
      const belief = prior.posterior(z, noise);
      const gap = minus(x, belief.mean);
      if (norm(gap) < 1e-13) break;
      const step = apply(inverse(scaled(noise ** -2, belief.covariance)), gap);
      let length = 1;
      const away = (t) => norm(minus(x, prior.posterior(plus(z, times(t, step)), noise).mean));
      while (length > 1e-6 && away(length) >= norm(gap)) length /= 2;
      if (length <= 1e-6) break; // rounding leaves nothing to gain
      z = plus(z, times(length, step));
    }
    return z;
  };

  // The maps that networks were asked for, and their Jacobians, at x.
  const ASKED = {
    mean(prior, x, noise) {
      const image = undoMean(prior, x, noise);
      return { image, jacobian: scaled(noise ** 2, inverse(prior.posterior(image, noise).covariance)) };
    },
    ideal(prior, x, noise) {
      return {
        image: minus(x, times(noise ** 2, prior.score(x))),
        jacobian: sum(identity, scaled(-(noise ** 2), prior.hessian(x))),
      };
    },
  };

  Living.figures.squeeze = {
    letter: "x",

    controls: ({ nets }) => [{ name: "chosen", label: "network:", options: nets.map(({ label }) => label) }],

    compute(data, { point, chosen }) {
      const { net: numbers, asked } = data.nets[chosen];
      const net = new Living.Network(numbers);
      const wanted = ASKED[asked](new Living.Mixture(data.prior), point, data.noise);
      const jacobian = net.jacobian(point);
      return {
        net,
        image: net.image(point),
        jacobian,
        stretch: singularValues(jacobian),
        allowed: [1 + net.lipschitz, 1 - net.lipschitz].map((factor) => factor * net.scale),
        asked: wanted.image,
        askedJacobian: wanted.jacobian,
        askedStretch: singularValues(wanted.jacobian),
        mirrored: det(wanted.jacobian) < 0,
      };
    },

    stages: ({ box, window }) => [
      new Living.Stage(box, { xlabel: "x₁", ylabel: "x₂", title: "a point and a circle" }),
      new Living.Stage(window, { xlabel: "z₁", ylabel: "z₂", title: "where they go (ellipses: to first order)" }),
      new Living.Stage([...SHOWN.map(scale), 0, 3], {
        xlabel: "stretching (logarithmic)", title: "asked for, allowed, done", height: 90, yticks: [],
        xticks: [0.03, 0.1, 0.3, 1, 3, 10].map((value) => [scale(value), String(value)]),
      }),
    ],

    draw([left, right, strip], { lattice, prior, noise, nets }, { point, chosen }, found) {
      const { net, image, jacobian, stretch, allowed, asked, askedJacobian, askedStretch } = found;
      const draft = (stage, rows) => {
        const columns = rows[0].map((_, k) => rows.map((row) => row[k]));
        for (const line of [...rows, ...columns]) stage.line(line, "faint thin");
      };
      draft(left, lattice);
      draft(right, lattice.map((row) => row.map((x) => net.image(x))));
      const mixture = new Living.Mixture(prior);
      mixture.outlines.forEach((line) => left.line(line, "faint"));
      const folds = (x) => det(ASKED.ideal(mixture, x, noise).jacobian) < 0;
      if (nets[chosen].asked === "ideal")
        lattice.flat().filter(folds).forEach((x) => left.dot(x, "speck", "two thick"));
      // A quarter of the circle is thick and ends in a dot: it tells which way round an image runs.
      const ring = (stage, centre, matrix, style, thick) => {
        stage.line(ellipse(centre, scaled(RADIUS, matrix)), style);
        const quarter = ellipse(centre, scaled(RADIUS, matrix), 0.25);
        stage.line(quarter, thick);
        stage.dot(quarter.at(-1), "disc", thick);
      };
      ring(left, point, identity, "one", "one thick");
      left.dot(point, "cross", "ink");
      ring(right, asked, askedJacobian, "two dashed", "two thick");
      ring(right, image, jacobian, "one", "one thick");
      right.dot(asked, "diamond", "two hollow");
      right.dot(image, "disc", "one");
      strip.line(allowed.map((value) => [scale(value), 1.5]), "wide faint");
      askedStretch.forEach((value) => strip.dot([scale(value), 2.2], "diamond", "two hollow"));
      stretch.forEach((value) => strip.dot([scale(value), 0.8], "disc", "one"));
    },

    tell(data, { point }, { net, image, asked, stretch, askedStretch, allowed, mirrored }) {
      const span = ([most, least], digits = 2) => `${format(least, digits)} to ${format(most, digits)}`;
      return [
        ["cross", "ink", `x = ${pair(point)}`],
        ["line", "wide faint", `L and the scale c = ${format(net.scale)} allow the network to stretch by ${span(allowed)}`],
        ["diamond", "two hollow", `asked for here: ${span(askedStretch)}${mirrored ? ", and turned over, which no network can do" : ""}; image ${pair(asked)}`],
        ["disc", "one", `done here: ${span(stretch)}; image ${pair(image)}, off by ${format(norm(minus(image, asked)))}`],
      ];
    },
  };
}
