// One chart: a figure with a line of values at a step, and a picture that follows the pointer and the arrow keys.

const MARGIN = { top: 14, right: 12, bottom: 24 };
const DIGIT = 7; // how wide a character beside an axis is at most, in pixels
const AIR = 6; // between the first and last point and the ends of the axis
const FEW = 40; // points up to which each is drawn as a dot

class Chart {
  /**
   * @param figure  its element, which the page has already
   * @param about   unit, kind, metrics, and whether its points have error bars
   * @param view    what all charts share: see curves.js
   */
  constructor(figure, about, view) {
    Object.assign(this, { figure, about, view, log: false, lines: [] });
    this.title = figure.querySelector("h3").firstChild.textContent.trim();
    this.readout = figure.querySelector(".readout");
    this.plot = figure.querySelector(".plot");
    this.picture = drawn("svg", { "aria-hidden": "true" });
    this.cursor = drawn("g", { class: "cursor" });
    this.plot.append(this.picture);
    for (const [name, value] of Object.entries({
      role: "slider",
      tabindex: 0,
      "aria-label": `${this.title}: values at a step`,
    }))
      this.plot.setAttribute(name, value);
    this.addTools();
    follow(this);
  }

  addTools() {
    const press = (button, pressed) => button.setAttribute("aria-pressed", pressed);
    this.logButton = element(
      "button",
      {
        type: "button",
        class: "tool",
        "aria-pressed": "false",
        "aria-label": `Logarithmic: ${this.title}`,
        onclick: () => {
          this.log = !this.log;
          press(this.logButton, this.log);
          this.view.drawSoon(this);
        },
      },
      "log",
    );
    this.wideButton = element(
      "button",
      {
        type: "button",
        class: "tool",
        "aria-pressed": "false",
        "aria-label": `Enlarge: ${this.title}`,
        onclick: () => {
          press(this.wideButton, this.figure.classList.toggle("wide"));
        },
      },
      "enlarge",
    );
    this.figure.querySelector(".chart-tools").append(this.logButton, this.wideButton);
  }

  /** Take the lines of the runs that are shown, and make a place for the value of each. */
  take(lines) {
    this.stacked = this.about.kind === "stacked" && lines.length > 0;
    this.steps = [...new Set(lines.flatMap(({ series }) => series.x))].sort((a, b) => a - b);
    if (this.stacked) lines = lines.map((line) => ({ ...line, series: this.onAllSteps(line.series) }));
    this.lines = lines;
    const values = lines
      .flatMap(({ series }) => [series.y, series.low ?? [], series.high ?? []])
      .flat()
      .filter((value) => value !== null);
    const most = values.reduce((a, b) => Math.max(a, b), -Infinity);
    const least = values.reduce((a, b) => Math.min(a, b), Infinity);
    this.extent = [least, most];
    this.logButton.hidden = this.stacked || !(least > 0 && most / least > 20);
    this.log &&= !this.logButton.hidden;
    this.sums = this.stacked ? this.sumsOf(lines) : [];
    this.at = element("b");
    this.values = lines.map((line) => {
      const value = element("span");
      const name = lines.length > 1 || this.stacked ? element("span", { class: "soft" }, ` ${line.name} `) : null;
      return {
        line,
        value,
        item: element(
          "span",
          { class: "item" },
          lines.length > 1 || this.stacked ? this.keyOf(line) : null,
          name,
          value,
        ),
      };
    });
    this.readout.replaceChildren(this.at, ...this.values.map(({ item }) => item));
    this.plot.setAttribute("aria-valuemin", this.steps[0] ?? 0);
    this.plot.setAttribute("aria-valuemax", this.steps.at(-1) ?? 0);
    this.view.drawSoon(this);
  }

  keyOf(line) {
    if (!this.stacked) return key(line.colour, line.dashes);
    return drawn(
      "svg",
      { class: "swatch", viewBox: "0 0 10 10", "aria-hidden": "true" },
      drawn("rect", { class: line.colour, width: 10, height: 10, rx: 2 }),
    );
  }

  /** The same values, with null at steps that only others have, so that values can be added. */
  onAllSteps(series) {
    const at = new Map(series.x.map((step, place) => [step, series.y[place]]));
    return { x: this.steps, y: this.steps.map((step) => at.get(step) ?? null) };
  }

  sumsOf(lines) {
    const sums = [];
    for (const { series } of lines)
      sums.push(series.y.map((value, place) => (value ?? 0) + (sums.at(-1)?.[place] ?? 0)));
    return sums;
  }

  /** The first and last step that are shown. */
  get range() {
    return this.view.range ?? [this.view.steps[0], this.view.steps[1]];
  }

  draw() {
    const [width, height] = [this.plot.clientWidth, this.plot.clientHeight];
    if (!width || !height) return;
    this.picture.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const [low, high] = this.heights();
    const [first, last] = this.range;
    const bottom = height - MARGIN.bottom;
    this.valueTicks = this.log ? logTicks(low, high, 4) : ticks(low, high, height > 260 ? 8 : 5);
    this.left = Math.max(44, 14 + DIGIT * Math.max(...this.valueTicks.map((value) => tickWords(value).length)));
    this.x = scale(first, last > first ? last : first + 1, this.left + AIR, width - MARGIN.right - AIR);
    this.y = scale(low, high, bottom, MARGIN.top, this.log);
    if (!this.lines.length) {
      this.picture.replaceChildren(
        drawn("text", { x: width / 2, y: height / 2, class: "tick middle" }, "No values of the runs that are shown."),
      );
      return;
    }
    const inside = `${this.figure.id}-inside`;
    const frame = {
      x: this.left,
      y: MARGIN.top - 4,
      width: Math.max(0, width - this.left - MARGIN.right),
      height: bottom - MARGIN.top + 5,
    };
    this.picture.replaceChildren(
      drawn("clipPath", { id: inside }, drawn("rect", frame)),
      this.axes(width, bottom, low, high),
      drawn("g", { "clip-path": `url(#${inside})` }, ...this.shapes(bottom)),
      this.marks(bottom),
      this.cursor,
    );
    this.point();
  }

  /** The lowest and the highest value that the picture has room for. */
  heights() {
    const [first, last] = this.range;
    if (this.stacked) {
      const top = this.sums
        .at(-1)
        .reduce(
          (most, sum, place) => (this.within(this.lines[0].series.x[place], first, last) ? Math.max(most, sum) : most),
          0,
        );
      return [0, top * 1.05 || 1];
    }
    let [low, high] = [Infinity, -Infinity];
    for (const { series } of this.lines)
      series.x.forEach((step, place) => {
        if (!this.within(step, first, last)) return;
        for (const value of [series.y[place], series.low?.[place] ?? null, series.high?.[place] ?? null]) {
          if (value === null || (this.log && value <= 0)) continue;
          low = Math.min(low, value);
          high = Math.max(high, value);
        }
      });
    if (low > high || (low === 0 && high === 0)) return this.log ? [1, 10] : [0, 1];
    if (this.log) return low === high ? [low / 2, high * 2] : [low, high];
    if (low >= 0 && low < 0.4 * high) low = 0; // close to zero: show it
    const spread = high - low > 1e-6 * Math.abs(high) ? high - low : Math.abs(high) || 1; // the same but for rounding
    const air = spread * 0.05;
    return [low === 0 ? 0 : low - air, high + air];
  }

  within(step, first, last) {
    return step >= first && step <= last;
  }

  axes(width, bottom, low, high) {
    const group = drawn("g");
    for (const value of this.valueTicks) {
      const y = this.y(value).toFixed(1);
      group.append(
        drawn("line", { x1: this.left, x2: width - MARGIN.right, y1: y, y2: y, class: "grid" }),
        drawn("text", { x: this.left - 8, y, dy: "0.32em", class: "tick end" }, tickWords(value)),
      );
    }
    const whole = ticks(...this.range, Math.max(2, width / 65)).filter(Number.isInteger);
    for (const step of whole)
      group.append(
        drawn("text", { x: this.x(step).toFixed(1), y: bottom + 17, class: "tick middle" }, tickWords(step)),
      );
    group.append(drawn("line", { x1: this.left, x2: width - MARGIN.right, y1: bottom, y2: bottom, class: "axis" }));
    return group;
  }

  shapes(bottom) {
    if (this.stacked) return stackOf(this.lines, this.sums, this.x, this.y);
    const y = this.log ? (value) => (value > 0 ? this.y(value) : bottom) : this.y;
    return this.lines.map((line) => {
      const few = line.series.x.length <= FEW;
      const spread = line.series.low && line.series.high;
      return drawn(
        "g",
        { class: line.colour },
        spread && !this.about.evaluates ? bandOf(line, this.x, y) : null,
        spread && this.about.evaluates ? barsOf(line, this.x, y) : null,
        ...lineOf(line, this.x, y, few || this.about.evaluates),
        ...holesOf(line, this.x, bottom),
      );
    });
  }

  /** Where runs were resumed, and where alarms say that something begins. */
  marks(bottom) {
    const group = drawn("g");
    const [first, last] = this.range;
    for (const [step, names] of this.view.resumed())
      if (this.within(step, first, last)) {
        const x = this.x(step).toFixed(1);
        group.append(
          drawn(
            "line",
            { x1: x, x2: x, y1: MARGIN.top, y2: bottom, class: "resumed" },
            drawn("title", {}, `${names.join(", ")} was resumed after step ${words(step)}`),
          ),
        );
        group.append(drawn("text", { x, y: MARGIN.top - 3, class: "tick middle resumed-name" }, "resumed"));
      }
    for (const { step, text } of this.view.alarms(this.figure.id))
      if (this.within(step, first, last)) {
        const x = this.x(step);
        group.append(drawn("path", { d: `M${x} ${bottom}l-6 -10h12z`, class: "alarm" }, drawn("title", {}, text)));
      }
    return group;
  }

  /** Show the values at the step of the view, or the last ones. */
  point() {
    if (!this.x || !this.lines.length) return;
    const { step } = this.view;
    const at = this.steps[nearest(this.steps, step ?? this.steps.at(-1))];
    this.at.textContent = `step ${words(step ?? at)}`;
    const dots = [];
    for (const { line, value } of this.values) {
      const place = nearest(line.series.x, step ?? at);
      value.textContent = ` ${this.saidOf(line, place, step ?? at)}`;
      const y = this.stacked ? this.sums[this.lines.indexOf(line)][place] : line.series.y[place];
      const x = line.series.x[place];
      if (step !== null && y !== null && !(this.log && y <= 0) && this.within(x, ...this.range))
        dots.push(drawn("circle", { cx: this.x(x), cy: this.y(y), r: 4, class: `dot ${line.colour}` }));
    }
    const said = [this.at.textContent, ...this.values.map(({ item }) => item.textContent.trim())].join("; ");
    this.plot.setAttribute("aria-valuenow", at);
    this.plot.setAttribute("aria-valuetext", said);
    if (step === null || !this.within(step, ...this.range)) return this.cursor.replaceChildren();
    const x = this.x(step).toFixed(1);
    this.cursor.replaceChildren(
      drawn("line", { x1: x, x2: x, y1: MARGIN.top, y2: this.plot.clientHeight - MARGIN.bottom }),
      ...dots,
    );
  }

  saidOf({ series }, place, step) {
    const value = series.y[place];
    const [low, high] = [series.low?.[place] ?? null, series.high?.[place] ?? null];
    const spread = low !== null && high !== null ? ` (${words(low)} to ${words(high)})` : "";
    const elsewhere = series.x[place] !== step ? ` at ${words(series.x[place])}` : "";
    return `${value === null ? "no finite number" : words(value)}${spread}${elsewhere}`;
  }
}
