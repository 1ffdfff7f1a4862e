// The images that a sample shows, as small pictures with the tokens that stand for them.

/** The number of the image, from 1, that the token at a place belongs to; 0 for text. */
function imageAt({ images }, place) {
  return (images ?? []).findIndex(({ firstPiece, endPiece }) => firstPiece !== null && firstPiece <= place && place < endPiece) + 1;
}

/** What is said of an image. */
function saidOfImage(image, number) {
  return [
    `image ${number}`,
    image.width === null ? "cannot be decoded" : `${words(image.width)} × ${words(image.height)} pixels`,
    image.first === null
      ? "tokens unknown"
      : `tokens ${words(image.first + 1)} to ${words(image.end)} (${words(image.end - image.first)})`,
    image.blank ? "blank: one colour" : null,
    image.png === null && image.width !== null ? "picture left out" : null,
  ]
    .filter(Boolean)
    .join(" · ");
}

/** The images of a sample, each a button that goes to its first token; null where it shows none. */
function imagesOf({ row, images }) {
  if (images === null)
    return element("p", { class: "soft" }, "The images of this sample are left out, so that the page stays under 10 MB.");
  if (!images.length) return null;
  const tokens = images.reduce((sum, { first, end }) => sum + (first === null ? 0 : end - first), 0);
  const missing = images.filter(({ png }) => png === null).length;
  const pictures = images.map((image, place) => {
    const said = saidOfImage(image, place + 1);
    const go = (event) =>
      event.currentTarget
        .closest(".card")
        .querySelector(".tokens")
        ?.dispatchEvent(new CustomEvent("image", { detail: image.firstPiece }));
    const small = Math.max(image.width ?? 0, image.height ?? 0) <= 40;
    const picture = image.png
      ? element("img", { src: `data:image/png;base64,${image.png}`, alt: said, class: small ? "tiny" : null })
      : element("span", { class: "no-picture", "aria-hidden": "true" }, "–");
    return element(
      "li",
      {},
      element("button", { type: "button", disabled: image.firstPiece === null, "aria-label": `${said}; go to its tokens`, onclick: go }, picture),
      element("span", { "aria-hidden": "true" }, said),
    );
  });
  const said = [plural(images.length, "image"), tokens ? plural(tokens, "token") : null, missing ? `${words(missing)} without picture` : null];
  return element(
    "section",
    { class: "images", "aria-label": `Images of sample ${row.id}` },
    element("h4", {}, said.filter(Boolean).join(", ")),
    element("ul", {}, ...pictures),
  );
}
