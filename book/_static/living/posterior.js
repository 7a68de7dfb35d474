// Chapter 2: an observation is dragged; the posterior, its mean, MAP and MAP's rivals follow.
{
  const { pair, format } = Living;

  Living.figures.posterior = {
    letter: "y",

    controls: () => [{ name: "noise", label: "noise level δ", min: 0.1, max: 1.2, step: 0.05 }],

    compute(data, { point, noise }) {
      const belief = new Living.Mixture(data.prior).posterior(point, noise);
      const [highest, ...others] = belief.stationary();
      return {
        belief,
        mean: belief.mean,
        covariance: belief.covariance,
        highest: highest.x,
        height: highest.logDensity,
        rivals: others.filter((each) => each.maximum),
        passes: others.filter((each) => !each.maximum),
      };
    },

    stages: ({ box }) => [new Living.Stage(box, { xlabel: "x₁", ylabel: "x₂", title: "the posterior of y" })],

    draw([stage], { prior }, { point }, { belief, mean, highest, rivals, passes }) {
      stage.shade((x) => belief.logDensity(x));
      new Living.Mixture(prior).outlines.forEach((line) => stage.line(line, "faint"));
      stage.line([point, mean], "one thin");
      stage.line([point, highest], "two thin dashed");
      passes.forEach(({ x }) => stage.dot(x, "square", "hollow"));
      rivals.forEach(({ x }) => stage.dot(x, "diamond", "two hollow"));
      stage.dot(highest, "diamond", "two");
      stage.dot(mean, "plus", "one");
      stage.dot(point, "cross", "ink");
    },

    tell(data, { point }, { mean, highest, height, rivals, passes }) {
      const lower = ({ logDensity }) => Math.exp(height - logDensity);
      const times = (ratio) => (ratio < 1000 ? `${format(ratio)} times lower` : "over a thousand times lower");
      return [
        ["cross", "ink", `observation y = ${pair(point)}`],
        ["plus", "one", `posterior mean ${pair(mean)}`],
        ["diamond", "two", `MAP, the highest point ${pair(highest)}`],
        ...rivals.map((each) => ["diamond", "two hollow", `rival: a peak at ${pair(each.x)}, ${times(lower(each))}`]),
        ...passes.map((each) => ["square", "hollow", `the pass between them ${pair(each.x)}, ${times(lower(each))}`]),
        ...(rivals.length ? [] : [["square", "hollow", "no rival: the posterior has one peak"]]),
      ];
    },
  };
}
