// From values to pixels, and where the ticks of an axis stand.

/** A scale from [low, high] to [start, end] pixels; with `log`, of positive values. */
function scale(low, high, start, end, log = false) {
  const [into, outOf] = log ? [Math.log10, (value) => 10 ** value] : [Number, Number];
  const [from, to] = [into(low), into(high)];
  const perUnit = (end - start) / (to - from || 1);
  const place = (value) => start + (into(value) - from) * perUnit;
  place.back = (pixel) => outOf(from + (pixel - start) / perUnit);
  return place;
}

/** About `count` round numbers from low to high. */
function ticks(low, high, count) {
  const rough = (high - low) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999);
  if (!Number.isFinite(step) || step <= 0) return [low];
  const made = [];
  for (let number = Math.ceil(low / step - 1e-9); number * step <= high + step * 1e-9; number++)
    made.push(number * step);
  return made;
}

/** Powers of ten, and where these are few, twice and five times them. */
function logTicks(low, high, count) {
  const [from, to] = [Math.floor(Math.log10(low)), Math.ceil(Math.log10(high))];
  const factors = to - from <= 2 ? [1, 2, 5] : [1];
  const every = Math.max(1, Math.ceil((to - from) / count));
  const made = [];
  for (let power = from; power <= to; power += every) for (const factor of factors) made.push(factor * 10 ** power);
  return made.filter((value) => value >= low * 0.999 && value <= high * 1.001);
}

/** Where in ascending `steps` the one nearest to `step` stands. */
function nearest(steps, step) {
  let [low, high] = [0, steps.length - 1];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (steps[middle] < step) low = middle + 1;
    else high = middle;
  }
  return low > 0 && step - steps[low - 1] <= steps[low] - step ? low - 1 : low;
}

/** The distance between neighbours above which steps are missing between them: three times the usual one. */
function gapOf(steps) {
  if (steps.length < 5) return Infinity;
  const distances = steps
    .slice(1)
    .map((step, place) => step - steps[place])
    .sort((a, b) => a - b);
  return 3 * distances[distances.length >> 1];
}
