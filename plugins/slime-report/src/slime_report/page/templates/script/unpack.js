// The samples of a run as the page holds them: see pack.py. Blocks are unpacked when they are asked for, once.

const CHANNELS = ["advantage", "log_prob", "difference", "entropy"];
const FIELDS = [
  "id",
  "step",
  "prompt",
  "source",
  "dataset",
  "group",
  "index",
  "reward",
  "status",
  "length",
  "why",
  "label",
  "promptTokens",
  "advantage",
  "difference",
  "preview",
  "block",
  "at",
];
const OF_IMAGES = ["width", "height", "bytes", "first", "end", "firstPiece", "endPiece", "blank", "png"];

async function unzip(text) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Parts with their sizes before them. */
function* partsOf(bytes) {
  for (let at = 0; at < bytes.length;) {
    const size = new DataView(bytes.buffer, bytes.byteOffset + at).getUint32(0, true);
    yield bytes.subarray(at + 4, at + 4 + size);
    at += 4 + size;
  }
}

/** A half-precision number from its 16 bits. */
function half(bits) {
  const [sign, exponent, fraction] = [bits & 0x8000 ? -1 : 1, (bits >> 10) & 31, bits & 1023];
  if (exponent === 31) return fraction ? null : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -24 * fraction);
}

function valuesOf(bytes) {
  const values = {};
  for (let at = 0; at < bytes.length;) {
    const view = new DataView(bytes.buffer, bytes.byteOffset + at);
    const size = view.getUint32(1, true);
    values[CHANNELS[view.getUint8(0)]] = Array.from({ length: size / 2 }, (_, place) =>
      half(view.getUint16(5 + 2 * place, true)),
    );
    at += 5 + size;
  }
  return values;
}

class Samples {
  constructor(number) {
    const packed = JSON.parse(byId(`samples-${number}`).textContent);
    Object.assign(this, { number, packed, blocks: { texts: [], images: [], values: [] } });
    this.index = unzip(packed.index).then((bytes) =>
      JSON.parse(new TextDecoder().decode(bytes)).map((row, place) => ({
        ...Object.fromEntries(FIELDS.map((name, field) => [name, row[field]])),
        place,
        element: `sample-${number}-${place}`,
      })),
    );
  }

  /** A part of a row, from `texts` or `values`; null where the page has it not. */
  async part(kind, row) {
    const packed = this.packed[kind][row.block];
    if (packed === undefined) return null;
    this.blocks[kind][row.block] ??= unzip(packed).then((bytes) => [...partsOf(bytes)]);
    return (await this.blocks[kind][row.block])[row.at];
  }

  /** The texts of the tokens, with which are trained. */
  async tokens(row) {
    const bytes = await this.part("texts", row);
    if (bytes === null) return null;
    const [mask, ...pieces] = new TextDecoder().decode(bytes).split("\x1f");
    return { pieces, mask };
  }

  /** The numbers of the response tokens, channel by channel. */
  async values(row) {
    const bytes = await this.part("values", row);
    if (bytes === null) return null;
    const same = (numbers) => (numbers.length === 1 ? Array(row.length).fill(numbers[0]) : numbers); // equal ones are kept once
    return Object.fromEntries(Object.entries(valuesOf(bytes)).map(([channel, numbers]) => [channel, same(numbers)]));
  }

  /** The images that a row shows; null where the page has them not. */
  async images(row) {
    if (this.packed.with_images === null) return [];
    const bytes = await this.part("images", row);
    if (bytes === null) return null;
    return JSON.parse(new TextDecoder().decode(bytes)).map((image) =>
      Object.fromEntries(OF_IMAGES.map((name, field) => [name, image[field]])),
    );
  }

  /** Everything that a search looks at, of all rows, in small letters. */
  texts() {
    this.all ??= this.index.then((rows) =>
      Promise.all(
        rows.map(async (row) => {
          const tokens = await this.tokens(row);
          return [
            row.id,
            row.prompt,
            row.source,
            row.dataset ?? "",
            row.status,
            row.label ?? "",
            tokens ? tokens.pieces.join("") : row.preview,
          ]
            .join("\n")
            .toLowerCase();
        }),
      ),
    );
    return this.all;
  }
}
