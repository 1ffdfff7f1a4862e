// Elements of the page. Whatever the data holds becomes text or the value of an attribute, never markup.

const byId = (id) => document.getElementById(id);

/** Make an element; attributes named on… are listeners, those that are false or null are left out. */
function element(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

/** The same of SVG. */
function drawn(name, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

function filled(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

/** The key of a line in a legend: its colour and its dashes. */
function key(colour, dashes) {
  const line = drawn("line", { x1: 0, x2: 24, y1: 4, y2: 4, class: `line d${dashes % 6}` });
  return drawn("svg", { class: `key ${colour}`, viewBox: "0 0 24 8", "aria-hidden": "true" }, line);
}
