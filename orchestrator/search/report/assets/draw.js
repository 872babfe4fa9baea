// What all charts share: elements, scales, axes, and the box that follows the pointer.
const SVG = "http://www.w3.org/2000/svg";

const filled = (node, attributes, children) => {
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
};
const make = (tag, attributes = {}, ...children) => filled(document.createElement(tag), attributes, children);
const shape = (tag, attributes = {}, ...children) => filled(document.createElementNS(SVG, tag), attributes, children);

// A function from a value to a place in pixels, with its inverse and readable ticks.
const scaleOf = (low, high, from, to, log = false) => {
  const bend = log ? Math.log : (value) => value;
  const [a, b] = [bend(low), bend(high)];
  const at = (value) => (a === b ? (from + to) / 2 : from + ((bend(value) - a) / (b - a)) * (to - from));
  at.invert = (place) => {
    const bent = a + ((place - from) / (to - from)) * (b - a);
    return log ? Math.exp(bent) : bent;
  };
  at.ticks = (most) => (log ? logTicks(low, high, most) : evenTicks(low, high, most));
  return at;
};

const evenTicks = (low, high, most) => {
  if (!(high > low)) return [low];
  const rough = (high - low) / Math.max(1, most);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999);
  const found = [];
  for (let count = Math.ceil(low / step - 1e-9); count * step <= high + 1e-9 * step; count += 1) {
    found.push(Number((count * step).toPrecision(12)));
  }
  return found;
};

const logTicks = (low, high, most) => {
  for (const factors of [[1, 2, 3, 4, 5, 6, 8], [1, 2, 5], [1, 3], [1]]) {
    const found = [];
    for (let decade = Math.floor(Math.log10(low)); decade <= Math.ceil(Math.log10(high)); decade += 1) {
      for (const factor of factors) {
        const tick = factor * 10 ** decade;
        if (tick >= low * 0.9999 && tick <= high * 1.0001) found.push(Number(tick.toPrecision(12)));
      }
    }
    if (found.length <= most && found.length >= 2) return found;
  }
  return evenTicks(low, high, Math.max(2, most));
};

const widened = (values, share, log = false) => {
  const finite = values.filter((value) => Number.isFinite(value) && (!log || value > 0));
  if (!finite.length) return [log ? 1 : 0, log ? 10 : 1];
  let [low, high] = [Math.min(...finite), Math.max(...finite)];
  if (log) {
    const room = Math.max(share * Math.log(high / low), 0.05);
    return [low * Math.exp(-room), high * Math.exp(room)];
  }
  const room = share * (high - low) || Math.abs(high) * 0.05 || 1;
  return [low - room, high + room];
};

// Axes and grid in a box; the caller draws into `layer`. A title stands above the y axis, unrotated.
const frameOf = (box, { height, x, y, label, left = null }) => {
  const width = Math.max(240, box.clientWidth);
  const margin = { left: left ?? 56, right: 14, top: y.title ? 30 : 12, bottom: x.title ? 48 : 28 };
  const inner = { left: margin.left, right: width - margin.right, top: margin.top, bottom: height - margin.bottom };
  const xAt = scaleOf(x.low, x.high, inner.left, inner.right, x.log);
  const yAt = scaleOf(y.low, y.high, inner.bottom, inner.top, y.log);
  const grid = shape("g", { class: "axis", "aria-hidden": "true" });
  for (const tick of y.ticks ?? yAt.ticks(Math.max(2, Math.floor((inner.bottom - inner.top) / 40)))) {
    const place = yAt(tick.at ?? tick);
    grid.append(
      shape("line", { x1: inner.left, x2: inner.right, y1: place, y2: place }),
      shape("text", { x: inner.left - 8, y: place + 4, "text-anchor": "end" }, tick.label ?? y.format(tick)),
    );
  }
  for (const tick of xAt.ticks(Math.max(2, Math.floor((inner.right - inner.left) / 60)))) {
    const place = xAt(tick);
    grid.append(
      shape("line", { x1: place, x2: place, y1: inner.top, y2: inner.bottom }),
      shape("text", { x: place, y: inner.bottom + 18, "text-anchor": "middle" }, x.format(tick)),
    );
  }
  if (y.title) grid.append(shape("text", { x: 0, y: 14, class: "title" }, y.title));
  if (x.title) grid.append(shape("text", { x: inner.right, y: height - 8, "text-anchor": "end", class: "title" }, x.title));
  const layer = shape("g");
  const svg = shape("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label }, grid, layer);
  box.replaceChildren(svg);
  return { svg, layer, grid, x: xAt, y: yAt, inner, width, height };
};

const SYMBOLS = {
  circle: (r) => `M${-r},0A${r},${r} 0 1,0 ${r},0A${r},${r} 0 1,0 ${-r},0Z`,
  diamond: (r) => `M0,${-1.25 * r}L${1.1 * r},0L0,${1.25 * r}L${-1.1 * r},0Z`,
  square: (r) => `M${-0.9 * r},${-0.9 * r}h${1.8 * r}v${1.8 * r}h${-1.8 * r}Z`,
  triangle: (r) => `M0,${-1.15 * r}L${1.1 * r},${0.85 * r}L${-1.1 * r},${0.85 * r}Z`,
  turned: (r) => `M0,${1.15 * r}L${1.1 * r},${-0.85 * r}L${-1.1 * r},${-0.85 * r}Z`,
  cross: (r) => {
    const [a, b] = [0.4 * r, 1.15 * r];
    return `M${-a},${-b}h${2 * a}v${b - a}h${b - a}v${2 * a}h${a - b}v${b - a}h${-2 * a}v${a - b}h${a - b}v${-2 * a}h${b - a}Z`;
  },
  hexagon: (r) => `M0,${-1.1 * r}L${0.95 * r},${-0.55 * r}V${0.55 * r}L0,${1.1 * r}L${-0.95 * r},${0.55 * r}V${-0.55 * r}Z`,
  star: (r) => {
    const corner = (place) => {
      const [size, angle] = [place % 2 ? 0.5 * r : 1.25 * r, (place * Math.PI) / 5 - Math.PI / 2];
      return `${(size * Math.cos(angle)).toFixed(2)},${(size * Math.sin(angle)).toFixed(2)}`;
    };
    return `M${Array.from({ length: 10 }, (_, place) => corner(place)).join("L")}Z`;
  },
};
const symbol = (kind, radius, attributes) => shape("path", { d: SYMBOLS[kind](radius), ...attributes });
const keyItem = (kind, className, text) =>
  make("li", {}, shape("svg", { width: 16, height: 16, viewBox: "-8 -8 16 16", "aria-hidden": "true" }, symbol(kind, 5.5, { class: className })), text);

// Labels that would cover an earlier one or leave the frame are moved, or left out if there is no room.
const placeLabels = (layer, inner, labels) => {
  const taken = labels.map(({ x, y }) => ({ left: x - 7, right: x + 7, top: y - 7, bottom: y + 7 }));
  const free = (box) =>
    box.left >= inner.left - 4 && box.right <= inner.right + 8 && box.top >= inner.top - 14 && box.bottom <= inner.bottom &&
    !taken.some((other) => box.left < other.right && box.right > other.left && box.top < other.bottom && box.bottom > other.top);
  for (const { x, y, text, className } of labels) {
    const half = 3.4 * text.length + 2;
    const spots = [[0, -14], [0, 22], [half + 14, 4], [-half - 14, 4], [0, -30], [0, 38], [half + 10, -16], [-half - 10, -16]];
    const spot = spots
      .map(([dx, dy]) => ({ left: x + dx - half, right: x + dx + half, top: y + dy - 12, bottom: y + dy + 3, x: x + dx, y: y + dy }))
      .find(free);
    if (!spot) continue;
    taken.push(spot);
    layer.append(shape("text", { x: spot.x, y: spot.y, "text-anchor": "middle", class: `label ${className}` }, text));
  }
};

const tip = make("div", { class: "tip", role: "presentation", hidden: true });
const showTip = (lines, x, y) => {
  const [head, ...rest] = lines.filter(Boolean);
  tip.replaceChildren(make("b", {}, head), ...rest.map((line) => make("div", {}, line)));
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const beside = x + 16 + width > window.innerWidth ? x - 16 - width : x + 16;
  tip.style.left = `${Math.max(4, beside)}px`;
  tip.style.top = `${Math.max(4, Math.min(y + 12, window.innerHeight - height - 4))}px`;
};
const hideTip = () => {
  tip.hidden = true;
};

// Draws now, and again whenever the box becomes wider or narrower.
const keepDrawn = (box, redraw) => {
  let width = box.clientWidth;
  redraw();
  new ResizeObserver(() => {
    if (box.clientWidth === width || !box.clientWidth) return;
    width = box.clientWidth;
    redraw();
  }).observe(box);
};

const nearest = (points, x, y, reach) => {
  let [found, best] = [null, reach * reach];
  for (const point of points) {
    const distance = (point.x - x) ** 2 + (point.y - y) ** 2;
    if (distance < best) [found, best] = [point, distance];
  }
  return found;
};

const pointerIn = (svg, event) => {
  const frame = svg.getBoundingClientRect();
  return [event.clientX - frame.left, event.clientY - frame.top];
};
