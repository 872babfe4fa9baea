// Small helpers: elements without markup from text, and numbers for people.
const byId = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

const fill = (node, attributes, children) => {
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
};
const make = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const draw = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)} %`;

// Three significant digits, as far as they say something.
const short = (value) => {
  if (value === null || !Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-4) return value.toExponential(1);
  return size >= 100 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(3)));
};
const ms = (seconds) => (seconds === null ? "–" : `${short(seconds * 1000)} ms`);

const bar = (share, top) => {
  const inside = make("span");
  inside.style.width = `${Math.max(0, Math.min(100, 100 * share))}%`;
  return make("div", { class: top ? "track top" : "track", "aria-hidden": "true" }, inside);
};
