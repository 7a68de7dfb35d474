// Numbers in words.
Living.format = (value, digits = 2) => value.toFixed(digits).replace("-", "−");
Living.pair = (point) => `(${point.map((entry) => Living.format(entry)).join(", ")})`;
// Such as 2.6·10⁻¹⁴.
Living.power = (value) => {
  const [digits, exponent] = value.toExponential(1).split("e");
  return `${digits}·${Living.tenTo(Number(exponent))}`;
};
Living.tenTo = (exponent) =>
  `10${[...String(exponent)].map((c) => (c === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[c])).join("")}`;
