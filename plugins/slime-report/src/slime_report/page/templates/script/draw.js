// The shapes of a chart: lines with gaps, bands, error bars, stacks. All return elements of SVG.

/** Runs of neighbouring places that have a number and no missing step between them. */
function stretches(series, gap, value = (place) => series.y[place]) {
  const made = [];
  let now = null;
  series.x.forEach((step, place) => {
    if (value(place) === null) now = null;
    else if (now === null || step - series.x[place - 1] > gap) made.push((now = [place]));
    else now.push(place);
  });
  return made;
}

const pointsOf = (places, x, y) => places.map((place) => `${x(place).toFixed(1)} ${y(place).toFixed(1)}`);

/** A line; a point that stands alone is a dot, and so are the points of a line that has few. */
function lineOf(line, x, y, few) {
  const { series } = line;
  const [atX, atY] = [(place) => x(series.x[place]), (place) => y(series.y[place])];
  const parts = stretches(series, line.gap);
  const path = parts
    .filter((part) => part.length > 1)
    .map((part) => `M${pointsOf(part, atX, atY).join("L")}`)
    .join("");
  const alone = few ? parts.flat() : parts.filter((part) => part.length === 1).flat();
  return [
    drawn("path", { d: path, class: `line d${line.dashes % 6}` }),
    ...alone.map((place) =>
      drawn("circle", { cx: atX(place).toFixed(1), cy: atY(place).toFixed(1), r: 2.5, class: "dot" }),
    ),
  ];
}

/** The band from `low` to `high`. */
function bandOf(line, x, y) {
  const { series } = line;
  const atX = (place) => x(series.x[place]);
  const whole = (place) => (series.low[place] === null || series.high[place] === null ? null : 0);
  const path = stretches(series, line.gap, whole).map((part) => {
    if (part.length === 1) {
      const [at, low, high] = [atX(part[0]), y(series.low[part[0]]), y(series.high[part[0]])];
      return `M${at - 2} ${low}V${high}h4V${low}Z`;
    }
    const upper = pointsOf(part, atX, (place) => y(series.high[place]));
    const lower = pointsOf([...part].reverse(), atX, (place) => y(series.low[place]));
    return `M${upper.join("L")}L${lower.join("L")}Z`;
  });
  return drawn("path", { d: path.join(""), class: "band" });
}

/** An error bar at each point. */
function barsOf(line, x, y) {
  const { series } = line;
  const path = series.x.map((step, place) => {
    if (series.low[place] === null || series.high[place] === null) return "";
    const [at, low, high] = [x(step), y(series.low[place]), y(series.high[place])].map((pixel) => pixel.toFixed(1));
    return `M${at} ${low}V${high}M${at - 3} ${low}h6M${at - 3} ${high}h6`;
  });
  return drawn("path", { d: path.join(""), class: "line thin" });
}

/** Lines that stand on each other. `sums` has the upper edge of each, place by place. */
function stackOf(lines, sums, x, y) {
  return lines.map((line, number) => {
    const places = line.series.x.map((_, place) => place);
    const atX = (place) => x(line.series.x[place]);
    const upper = pointsOf(places, atX, (place) => y(sums[number][place]));
    const lower = pointsOf(places.reverse(), atX, (place) => y(number ? sums[number - 1][place] : 0));
    return drawn("path", { d: `M${upper.join("L")}L${lower.join("L")}Z`, class: `area ${line.colour}` });
  });
}

/** Marks on the axis where steps have no number: it was NaN or infinite. */
function holesOf(line, x, bottom) {
  const { series } = line;
  const made = [];
  for (let place = 0; place < series.x.length; place++) {
    if (series.y[place] !== null) continue;
    const first = place;
    while (place + 1 < series.x.length && series.y[place + 1] === null) place++;
    const [from, to] = [x(series.x[first]), x(series.x[place])];
    const said =
      first === place
        ? `step ${words(series.x[first])}`
        : `steps ${words(series.x[first])} to ${words(series.x[place])}`;
    const title = drawn("title", {}, `no finite number at ${said}`);
    made.push(drawn("rect", { x: from - 2, width: to - from + 4, y: bottom - 4, height: 4, class: "hole" }, title));
  }
  return made;
}
