// The samples of a run: what to look for above, the list, and beside it the sample that is chosen.

const fromWhere = (row) => (row.dataset === null ? "training" : `evaluation ${row.dataset}`);

class Browser {
  constructor(place) {
    Object.assign(this, { place, channel: "mask", prompt: null, beside: false, turn: 0 });
    this.list = new List((row, byPointer) => this.open(row, byPointer));
    this.search = element("input", { type: "search", autocomplete: "off", oninput: () => this.find() });
    this.from = element("select", { onchange: () => this.find() });
    this.why = element("select", { onchange: () => this.find() });
    this.status = element("select", { onchange: () => this.find() });
    this.first = element("input", { type: "number", "aria-label": "Samples from step", oninput: () => this.find() });
    this.last = element("input", { type: "number", "aria-label": "Samples up to step", oninput: () => this.find() });
    this.found = element("output", { "aria-live": "polite" });
    this.ofPrompt = element("button", { type: "button", hidden: true, onclick: () => this.only(null) });
    this.none = element("p", { class: "nothing", hidden: true }, "No sample is like this. Ask for less above.");
    this.detail = element("article", { class: "detail", tabindex: -1, "aria-label": "Sample" });
    place.append(
      element(
        "form",
        { class: "tools", role: "search", "aria-label": "Samples", onsubmit: (event) => event.preventDefault() },
        element("label", { class: "grow" }, "Search ", this.search),
        element("label", {}, "From ", this.from),
        element("label", {}, "Kept as ", this.why),
        element("label", {}, "Status ", this.status),
        element("span", { class: "pair" }, "Steps ", this.first, " to ", this.last),
        this.ofPrompt,
        this.found,
      ),
      element(
        "div",
        { class: "browser" },
        element("div", { class: "listing" }, this.list.grid, this.none),
        this.detail,
      ),
    );
  }

  /** Show the samples of another run. */
  async take(number) {
    const samples = new Samples(number);
    const turn = ++this.turn;
    const rows = await samples.index;
    if (turn !== this.turn) return;
    Object.assign(this, { samples, rows, prompt: null });
    const choices = (select, all, values) =>
      select.replaceChildren(
        element("option", { value: "" }, all),
        ...[...new Set(values)].sort().map((value) => element("option", { value }, reasonWords(value))),
      );
    choices(this.from, "anywhere", rows.map(fromWhere));
    choices(
      this.why,
      "any reason",
      rows.flatMap(({ why }) => why),
    );
    choices(
      this.status,
      "any",
      rows.map(({ status }) => status),
    );
    this.search.value = this.first.value = this.last.value = "";
    if (!samples.packed.channels.includes(this.channel)) this.channel = "mask";
    this.sayLeftOut(samples);
    this.place.hidden = !rows.length;
    this.list.have(rows);
    await this.find();
    // At first one of the newest, if there is one with values.
    if (rows.length)
      await this.list.pick(
        Math.max(
          0,
          this.list.rows.findIndex((row) => row.advantage !== null || row.difference !== null),
        ),
      );
  }

  sayLeftOut({ packed, number }) {
    const said = [];
    if (packed.with_text < this.rows.length) said.push(`the tokens of ${words(packed.with_text)}`);
    if (packed.with_images !== null && packed.with_images < this.rows.length)
      said.push(`the images of ${words(packed.with_images)}`);
    if (packed.channels.length && packed.with_values < this.rows.length)
      said.push(`the tokens' values of ${words(packed.with_values)}`);
    const place = document.querySelector(`#samples [data-run="${number}"] [data-left-out]`);
    if (place && said.length)
      place.textContent = `So that the page stays under 10 MB, it has ${said.join(" and ")} of them; the best and worst come first.`;
  }

  /** Show only the samples of a prompt; null: of all. */
  only(prompt) {
    this.prompt = prompt;
    return this.find();
  }

  /** Show the rows that are like what was asked for. */
  async find() {
    const wanted = this.search.value.trim().toLowerCase();
    const turn = ++this.turn;
    if (wanted && !this.samples.searched) this.found.textContent = "Searching…";
    const texts = wanted ? await this.samples.texts() : null;
    this.samples.searched ||= texts !== null;
    if (turn !== this.turn) return;
    const [first, last] = [this.first, this.last].map(({ value }) => (value === "" ? null : Number(value)));
    const rows = this.rows.filter(
      (row) =>
        (!this.prompt || row.prompt === this.prompt) &&
        (!this.from.value || fromWhere(row) === this.from.value) &&
        (!this.why.value || row.why.includes(this.why.value)) &&
        (!this.status.value || row.status === this.status.value) &&
        (first === null || row.step >= first) &&
        (last === null || row.step <= last) &&
        (!wanted || texts[row.place].includes(wanted)),
    );
    this.list.show(rows);
    this.none.hidden = rows.length > 0;
    this.found.textContent =
      rows.length === this.rows.length
        ? plural(rows.length, "sample")
        : `${words(rows.length)} of ${plural(this.rows.length, "sample")}`;
    this.ofPrompt.hidden = this.prompt === null;
    this.ofPrompt.replaceChildren("one prompt: ", element("bdi", {}, this.prompt ?? ""), " ✕");
    this.ofPrompt.setAttribute("aria-label", `Show the samples of all prompts, not only of ${this.prompt}`);
  }

  /** Choose a sample wherever it is, even if the list did not show it. */
  async go(place) {
    const row = this.rows[place];
    if (!row) return;
    if (!this.list.rows.includes(row)) {
      this.search.value =
        this.from.value =
        this.why.value =
        this.status.value =
        this.first.value =
        this.last.value =
          "";
      await this.only(null);
    }
    await this.list.pick(this.list.rows.indexOf(row));
    this.detail.scrollIntoView({ block: "nearest" });
  }

  async open(row, byPointer) {
    this.row = row;
    const shown = await this.load(row);
    const same = this.rows
      .filter(({ prompt }) => prompt === row.prompt)
      .sort((a, b) => a.step - b.step || a.place - b.place);
    const far = [same[0], same.at(-1)].find(({ step }) => step !== row.step);
    const other = this.beside ? far : null;
    const pair = other ? [shown, await this.load(other)].sort((a, b) => a.row.step - b.row.step) : [shown];
    if (this.row !== row) return;
    this.detail.id = row.element;
    this.detail.setAttribute("aria-label", `Sample ${row.id}`);
    const readout = element("p", { class: "readout", "aria-live": "polite" });
    this.detail.replaceChildren(
      this.colours(shown),
      legendOf(this.channel, this.samples.packed.largest_advantage),
      readout,
      element("div", { class: other ? "pair-of" : "one" }, ...pair.map((one) => this.card(one, readout))),
      this.siblings(row, same, far !== undefined),
    );
    if (byPointer && matchMedia("(max-width: 70rem)").matches) this.detail.scrollIntoView({ block: "start" });
  }

  async load(row) {
    const [tokens, images, values] = await Promise.all([
      this.samples.tokens(row),
      this.samples.images(row),
      this.samples.values(row),
    ]);
    return { row, tokens, images, values };
  }

  /** What colours the tokens; what the run has not is told, and cannot be chosen. */
  colours({ values }) {
    const names = { mask: "Mask", ...Object.fromEntries(CHANNELS.map((channel) => [channel, SHADES[channel].name])) };
    const choices = Object.entries(names).map(([channel, name]) => {
      const there = channel === "mask" || this.samples.packed.channels.includes(channel);
      const input = element("input", {
        type: "radio",
        name: "channel",
        value: channel,
        checked: channel === this.channel,
        disabled: !there,
        onchange: async () => {
          this.channel = channel;
          await this.open(this.row);
          this.detail.querySelector("input:checked").focus();
        },
      });
      return element(
        "label",
        { class: "choice", title: there ? null : `This run recorded no ${name.toLowerCase()}.` },
        input,
        name,
      );
    });
    const missing =
      this.channel !== "mask" && !values?.[this.channel]
        ? element("p", { class: "soft" }, `This sample has no ${names[this.channel].toLowerCase()} here.`)
        : null;
    return element("fieldset", { class: "colours" }, element("legend", {}, "Colour by"), ...choices, missing);
  }

  /** One sample: its numbers and its tokens. */
  card(sample, readout) {
    const { row, tokens } = sample;
    const facts = [
      ["step", words(row.step)],
      ["reward", row.reward === null ? null : words(row.reward)],
      ["advantage", row.advantage === null ? null : signed(row.advantage)],
      ["length", plural(row.length, "token")],
      ["status", row.status],
      [
        "group",
        row.group === null ? null : `${words(row.group)}${row.index === null ? "" : `, sample ${words(row.index)}`}`,
      ],
      ["evaluation", row.dataset],
      ["label", row.label],
      ["row", row.source],
      ["kept as", row.why.map(reasonWords).join(", ")],
    ].filter(([, value]) => value !== null && value !== "");
    return element(
      "div",
      { class: "card" },
      element("h3", {}, "Sample ", element("bdi", {}, row.id)),
      element(
        "dl",
        { class: "facts small" },
        ...facts.map(([name, value]) =>
          element("div", {}, element("dt", {}, name), element("dd", {}, element("bdi", {}, value))),
        ),
      ),
      imagesOf(sample),
      ...(tokens
        ? tokenStrip(sample, this.channel, this.samples.packed.largest_advantage, readout)
        : [
            element(
              "p",
              { class: "nothing" },
              "The tokens of this sample are left out, so that the page stays under 10 MB. It begins: ",
              element("bdi", {}, row.preview),
            ),
          ]),
    );
  }

  /** The other samples of the prompt, early and late. */
  siblings(row, same, far) {
    if (same.length < 2) return element("p", { class: "soft" }, "No other sample of this prompt was kept.");
    const beside = element(
      "button",
      {
        type: "button",
        "aria-pressed": String(this.beside),
        onclick: async () => {
          this.beside = !this.beside;
          await this.open(this.row);
          this.detail.querySelector("nav button")?.focus();
        },
      },
      "early and late side by side",
    );
    const near = same.length <= 12 ? same : [...same.slice(0, 6), ...same.slice(-6)];
    return element(
      "nav",
      { class: "siblings", "aria-label": "Samples of the same prompt" },
      element("h4", {}, `Same prompt, ${plural(same.length, "sample")}`),
      far ? beside : null,
      element(
        "ul",
        {},
        ...near.map((other) =>
          element(
            "li",
            {},
            element(
              "a",
              { href: `#${other.element}`, "aria-current": other === row ? "true" : null },
              `step ${words(other.step)}`,
              other.reward === null ? null : `: ${words(other.reward)}`,
            ),
          ),
        ),
      ),
      element("a", { href: "#samples", "data-prompt": row.prompt }, "only these in the list"),
    );
  }
}
