// How numbers are written; the same as in words.py.

/** A number for reading: whole numbers with commas, others with up to four significant digits, "–" where there is none. */
function words(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (Number.isInteger(value) && Math.abs(value) < 1e15) return minus(value.toLocaleString("en-US"));
  const size = Math.abs(value);
  if (size >= 1e-4 && size < 1e6) {
    const places = Math.max(0, 3 - Math.floor(Math.log10(size)));
    return minus(value.toLocaleString("en-US", { maximumFractionDigits: places }));
  }
  return minus(value.toExponential(3).replace(/\.?0*e\+?/, "e"));
}

/** A number beside an axis: short, without digits that say nothing. */
function tickWords(value) {
  const size = Math.abs(value);
  if (size >= 1e4 && size < 1e15) {
    const [unit, name] = size >= 1e9 ? [1e9, "G"] : size >= 1e6 ? [1e6, "M"] : [1e3, "k"];
    return minus(`${Number((value / unit).toPrecision(4))}${name}`);
  }
  if (size !== 0 && size < 1e-4) return minus(Number(value.toPrecision(4)).toExponential().replace("e+", "e"));
  return minus(String(Number(value.toPrecision(6))));
}

/** With its sign, for numbers whose sign matters. */
const signed = (value) => (value > 0 ? `+${words(value)}` : words(value));

const minus = (text) => text.replaceAll("-", "−");

const plural = (count, name) => `${words(count)} ${name}${count === 1 ? "" : "s"}`;
