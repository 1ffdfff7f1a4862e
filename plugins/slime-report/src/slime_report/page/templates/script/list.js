// The list of samples: a grid of which only the rows in sight exist.

const COLUMNS = [
  { name: "Step", of: (row) => row.step, said: (row) => words(row.step), number: true, width: "3rem" },
  { name: "Reward", of: (row) => row.reward, said: (row) => words(row.reward), number: true, width: "4rem" },
  { name: "Length", of: (row) => row.length, said: (row) => words(row.length), number: true, width: "3.6rem" },
  {
    name: "Largest Δ",
    title: "largest log-prob difference between trainer and engine",
    of: (row) => row.difference,
    said: (row) => words(row.difference),
    number: true,
    width: "5.2rem",
  },
  {
    name: "Kept as",
    width: "7.5rem",
    class: "reason",
    of: (row) => row.why.join(),
    said: (row) =>
      [
        ...(row.dataset === null
          ? row.why.map((reason) => (reason === "largest_difference" ? "largest Δ" : reasonWords(reason)))
          : [`eval ${row.dataset}`]),
        ...(row.status === "completed" ? [] : [row.status]),
      ].join(", "),
  },
  {
    name: "Response",
    of: (row) => row.preview,
    said: (row) => row.preview || "empty",
    width: "minmax(0, 1fr)",
    class: "preview",
  },
];
const reasonWords = (reason) => reason.replaceAll("_", " ");

class List {
  /** @param choose  called with the row that is chosen, and whether a pointer chose it */
  constructor(choose) {
    Object.assign(this, { choose, rows: [], now: -1, columns: [], sorted: COLUMNS[0], descending: true });
    this.head = element("div", { role: "row", class: "row head" });
    this.space = element("div", { class: "space", role: "presentation" });
    this.view = element("div", { class: "rows", role: "rowgroup", tabindex: -1 }, this.space);
    this.grid = element(
      "div",
      { class: "list", role: "grid", tabindex: 0, "aria-label": "Samples; arrow keys choose one" },
      element("div", { role: "rowgroup" }, this.head),
      this.view,
    );
    this.view.addEventListener("scroll", () => this.draw());
    this.grid.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.draw()).observe(this.view);
  }

  /** Have the columns in which any of these rows has a value. */
  have(rows) {
    this.columns = COLUMNS.filter((column) => rows.some((row) => column.of(row) !== null));
    if (!this.columns.includes(this.sorted)) this.sorted = COLUMNS[0];
    this.heads = this.columns.map((column) =>
      element(
        "span",
        { role: "columnheader", class: column.class ?? "num" },
        element("button", { type: "button", title: column.title, onclick: () => this.sort(column) }, column.name),
      ),
    );
    this.head.replaceChildren(...this.heads);
    this.grid.style.setProperty("--columns", this.columns.map(({ width }) => width).join(" "));
    this.grid.style.setProperty("--numbers", this.columns.filter(({ number }) => number).length);
  }

  /** Show rows, in the order of the sorted column. The chosen row stays chosen if it is among them. */
  show(rows) {
    const chosen = this.rows[this.now];
    const { of } = this.sorted;
    const sign = this.descending ? -1 : 1;
    this.rows = [...rows].sort((a, b) => this.compare(of(a), of(b), sign) || a.place - b.place);
    this.now = this.rows.indexOf(chosen);
    this.grid.setAttribute("aria-rowcount", this.rows.length + 1);
    this.heads.forEach((head, place) =>
      head.setAttribute(
        "aria-sort",
        this.columns[place] !== this.sorted ? "none" : this.descending ? "descending" : "ascending",
      ),
    );
    if (this.now < 0) this.view.scrollTop = 0;
    this.draw();
  }

  /** What has no value comes last, whichever way the rest is sorted. */
  compare(a, b, sign) {
    if (a === null || b === null) return (a === null) - (b === null);
    return sign * (a < b ? -1 : a > b ? 1 : 0);
  }

  /** Sort by a column: numbers from the largest on, at first. */
  sort(column) {
    this.descending = column === this.sorted ? !this.descending : column.number;
    this.sorted = column;
    this.show(this.rows);
  }

  get rowHeight() {
    return Number.parseFloat(getComputedStyle(this.grid).getPropertyValue("--row")) || 36;
  }

  draw() {
    const height = this.rowHeight;
    this.space.style.height = `${this.rows.length * height}px`;
    const first = Math.max(0, Math.floor(this.view.scrollTop / height) - 5);
    const last = Math.min(this.rows.length, Math.ceil((this.view.scrollTop + this.view.clientHeight) / height) + 5);
    const made = [];
    for (let place = first; place < last; place++) {
      const row = this.rows[place];
      const cells = this.columns.map((column) =>
        element("span", { role: "gridcell", class: column.class ?? "num" }, column.said(row)),
      );
      const line = element(
        "div",
        {
          role: "row",
          class: "row",
          id: `row-${row.element}`,
          "aria-rowindex": place + 2,
          "aria-selected": place === this.now ? "true" : "false",
          onclick: () => this.pick(place, true),
        },
        ...cells,
      );
      line.style.top = `${place * height}px`;
      made.push(line);
    }
    this.space.replaceChildren(...made);
    const chosen = this.rows[this.now];
    if (chosen && byId(`row-${chosen.element}`))
      this.grid.setAttribute("aria-activedescendant", `row-${chosen.element}`);
    else this.grid.removeAttribute("aria-activedescendant");
  }

  /** Choose the row at a place; the promise that it is shown. */
  pick(place, byPointer = false) {
    if (!this.rows.length) return undefined;
    this.now = Math.min(this.rows.length - 1, Math.max(0, place));
    const [top, height] = [this.now * this.rowHeight, this.rowHeight];
    const below = top + height - this.view.clientHeight;
    this.view.scrollTop = Math.min(top, Math.max(below, this.view.scrollTop));
    this.draw();
    return this.choose(this.rows[this.now], byPointer);
  }

  key(event) {
    if (event.target !== this.grid && event.target !== this.view) return;
    const page = Math.max(1, Math.floor(this.view.clientHeight / this.rowHeight) - 1);
    const to = {
      ArrowDown: this.now + 1,
      ArrowUp: this.now - 1,
      PageDown: this.now + page,
      PageUp: this.now - page,
      Home: 0,
      End: this.rows.length - 1,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this.pick(to);
  }
}
