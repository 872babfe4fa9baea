// A line chart over the last minutes: `lines` are [class, [[time, value or null], ...]].
const HEIGHT = 132;

const niceTop = (value) => {
  if (!(value > 0)) return 1;
  const unit = 10 ** Math.floor(Math.log10(value));
  return unit * [1, 1.5, 2, 3, 5, 7.5, 10].find((step) => step * unit >= value);
};

const drawChart = (box, lines, now, words) => {
  const width = Math.max(200, box.clientWidth);
  const [left, right, top, bottom] = [44, 4, 10, 20];
  const values = lines.flatMap(([, points]) => points.map(([, value]) => value ?? 0));
  const high = niceTop(Math.max(0, ...values));
  const x = (time) => left + (width - left - right) * (1 - (now - time) / KEPT_MS);
  const y = (value) => top + (HEIGHT - top - bottom) * (1 - value / high);
  const svg = draw("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": words });
  for (const value of [0, high / 2, high]) {
    svg.append(draw("line", { class: "grid", x1: left, x2: width - right, y1: y(value), y2: y(value) }));
    svg.append(draw("text", { x: left - 8, y: y(value) + 4, "text-anchor": "end" }, short(value)));
  }
  for (const [minutes, anchor] of [[3, "start"], [2, "middle"], [1, "middle"], [0, "end"]]) {
    const text = minutes ? `−${minutes} min` : "now";
    svg.append(draw("text", { x: x(now - minutes * 60000), y: HEIGHT - 4, "text-anchor": anchor }, text));
  }
  for (const [name, points] of lines) {
    let path = "";
    let joined = false;
    for (const [time, value] of points) {
      if (value !== null) path += `${joined ? "L" : "M"}${x(time).toFixed(1)},${y(value).toFixed(1)}`;
      joined = value !== null;
    }
    if (name === "area" && points.length) {
      const [first, last] = [x(points[0][0]), x(points.at(-1)[0])];
      path += `L${last.toFixed(1)},${y(0)}L${first.toFixed(1)},${y(0)}Z`;
    }
    svg.append(draw("path", { class: name, d: path }));
    // A point without neighbours has no line.
    const at = (place) => points[place]?.[1] ?? null;
    const lone = (_, place) => at(place) !== null && at(place - 1) === null && at(place + 1) === null;
    for (const [time, value] of name === "area" ? [] : points.filter(lone)) {
      svg.append(draw("circle", { class: name, cx: x(time), cy: y(value), r: 2.5 }));
    }
  }
  box.replaceChildren(svg);
};
