// The tokens of a sample, coloured by one of their values, with all values of the token that is pointed at.

const SHOWN = 3000; // tokens that are shown at once; the rest at the press of a button
// Where the shades of a colouring begin. Those of the advantage follow from the largest one.
const SHADES = {
  log_prob: {
    name: "Log-prob",
    edges: [0.1, 0.5, 1, 2, 5],
    about: "stronger: the model found the token less likely",
    size: (value) => -value,
    less: true,
  },
  difference: {
    name: "Difference",
    edges: [0.01, 0.05, 0.2, 0.5, 1],
    about: "trainer's log-prob minus the engine's",
    signed: true,
  },
  entropy: {
    name: "Entropy",
    edges: [0.1, 0.5, 1, 2, 3],
    about: "stronger: the model was less sure, in nats",
    size: (value) => value,
  },
  advantage: { name: "Advantage", about: "what the token was rewarded by", signed: true },
};

/** The colouring of a channel; `largest` is the largest advantage. */
function shadesOf(channel, largest) {
  const shades = SHADES[channel];
  if (shades.edges) return shades;
  const fifth = (largest || 1) / 5;
  const power = 10 ** Math.floor(Math.log10(fifth));
  const step = power * [5, 2.5, 2, 1].find((factor) => factor * power <= fifth * 1.001);
  return { ...shades, edges: [0.1, 1, 2, 3, 4].map((count) => count * step) };
}

/** The class of a value's shade: s1 to s5, or with a sign p1 to p5 and n1 to n5; none for small ones. */
function shade(value, shades) {
  if (value === null || value === undefined) return "";
  const size = shades.signed ? Math.abs(value) : shades.size(value);
  const level = shades.edges.filter((edge) => size >= edge).length;
  return level ? `${shades.signed ? (value > 0 ? "p" : "n") : "s"}${level}` : "";
}

/** What the colours mean. */
function legendOf(channel, largest) {
  const swatch = (name, text) => element("li", {}, element("i", { class: name }, text));
  if (channel === "mask")
    return element(
      "ul",
      { class: "legend", "aria-label": "Colours" },
      swatch("prompt", "prompt"),
      swatch("trained", "trained"),
      swatch("", "response, not trained"),
    );
  const shades = shadesOf(channel, largest);
  const edge = (value) => tickWords(Number(value.toPrecision(2)));
  const levels = (sign, mark) =>
    shades.edges.map((value, place) => swatch(`${sign}${place + 1}`, `${mark}${edge(value)}`));
  const scale = shades.signed
    ? [...levels("n", "≤ −").reverse(), ...levels("p", "≥ +")]
    : levels("s", shades.less ? "≤ −" : "≥ ");
  return element(
    "ul",
    { class: "legend", "aria-label": "Colours" },
    ...scale,
    element("li", { class: "soft" }, shades.about),
  );
}

/** What is said of a token. */
function saidOfToken(sample, place) {
  const { row, tokens, values } = sample;
  if (row.dataset !== null)
    return "Of the answers to evaluations whole texts are kept, without tokens and their values.";
  const answer = place - row.promptTokens;
  const said = [
    `token ${words(place + 1)} of ${words(tokens.pieces.length)}`,
    `“${tokens.pieces[place].trim() || "space"}”`,
  ];
  const shown = imageAt(sample, place);
  if (shown) said[1] = `image ${shown}`;
  said.push(answer < 0 ? "prompt" : tokens.mask[answer] === "1" ? "trained" : "not trained");
  for (const channel of CHANNELS) {
    const value = answer < 0 ? null : (values?.[channel]?.[answer] ?? null);
    if (value !== null)
      said.push(
        `${SHADES[channel].name.toLowerCase()} ${channel === "entropy" ? wordsOfHalf(value) : signedHalf(value)}`,
      );
  }
  return said.join(" · ");
}

// The values of tokens are kept with three significant digits.
const wordsOfHalf = (value) => words(Number(value.toPrecision(3)));
const signedHalf = (value) => (value > 0 ? `+${wordsOfHalf(value)}` : wordsOfHalf(value));

/**
 * The tokens as one place for the Tab key, in which arrow keys go from token to token.
 * `readout` is where the values of a token are said.
 */
function tokenStrip(sample, channel, largest, readout) {
  const { row, tokens, values } = sample;
  const shades = channel === "mask" ? null : shadesOf(channel, largest);
  const made = tokens.pieces.map((text, place) => {
    const answer = place - row.promptTokens;
    const trained = answer >= 0 && tokens.mask[answer] === "1";
    const name = answer < 0 ? "prompt" : shades ? shade(values?.[channel]?.[answer], shades) : trained ? "trained" : "";
    const shown = imageAt(sample, place);
    return element("i", { class: [name, shown && "shown"].filter(Boolean).join(" ") || null, "data-place": place }, shown ? "▦" : text);
  });
  const strip = element(
    "div",
    {
      class: "tokens",
      role: "group",
      tabindex: 0,
      dir: "auto",
      "aria-label": "Tokens; arrow keys go from token to token",
    },
    ...made.slice(0, SHOWN),
  );
  let now = -1;
  const point = (place) => {
    made[now]?.classList.remove("now");
    now = place;
    made[now]?.classList.add("now");
    readout.textContent =
      now < 0 ? "Point at a token, or use the arrow keys, to read its values." : saidOfToken(sample, now);
  };
  const pointed = (event) => event.target.dataset?.place && point(Number(event.target.dataset.place));
  strip.addEventListener("pointerover", pointed);
  strip.addEventListener("click", pointed);
  strip.addEventListener("keydown", (event) => {
    const last = Math.min(made.length, strip.childElementCount) - 1;
    const to = { ArrowLeft: now - 1, ArrowUp: now - 10, ArrowRight: now + 1, ArrowDown: now + 10, Home: 0, End: last }[
      event.key
    ];
    if (to === undefined) return;
    event.preventDefault();
    point(Math.min(last, Math.max(0, to)));
    made[now].scrollIntoView({ block: "nearest" });
  });
  // An image points at its first token.
  strip.addEventListener("image", ({ detail }) => {
    point(detail);
    made[detail].scrollIntoView({ block: "nearest" });
  });
  point(-1);
  if (made.length <= SHOWN) return [strip];
  const more = element(
    "button",
    {
      type: "button",
      onclick: () => {
        strip.append(...made.slice(SHOWN));
        more.remove();
      },
    },
    `Show the other ${words(made.length - SHOWN)} tokens`,
  );
  return [strip, more];
}
