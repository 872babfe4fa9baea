// The front of ensembles and models: a point a row of the table; choosing one marks the other.
const CHOICES = {
  chosen: ["star", "chosen", 9], baseline: ["square", "arm", 6.5], "single model": ["circle", "parent", 5], ensemble: ["diamond", "front", 6],
};

const choosingChart = (box, key, table, { points, percent, title }) => {
  const shown = (value) => (percent ? 100 * value : value);
  const rows = [...table.tBodies[0].rows];
  let picked = null;
  let places = [];
  const ring = shape("g", { class: "selected" });
  const pick = (place) => {
    picked = place;
    rows.forEach((row, at) => row.classList.toggle("picked", at === place));
    ring.replaceChildren();
    if (place === null) return;
    const { x, y } = places[place];
    ring.append(shape("circle", { cx: x, cy: y, r: 11 }));
  };
  rows.forEach((row, place) => {
    row.addEventListener("click", () => pick(place));
    row.addEventListener("keydown", (event) => {
      if (event.key === "Enter") pick(place);
    });
  });
  const kinds = Object.keys(CHOICES).filter((kind) => points.some((point) => point.kind === kind));
  key.replaceChildren(...kinds.map((kind) => keyItem(CHOICES[kind][0], `point ${CHOICES[kind][1]}`, kind)));
  keepDrawn(box, () => {
    const [low, high] = widened(points.map((point) => point.latency), 0.06, true);
    const [bottom, top] = widened(points.flatMap((point) => point.ci).map(shown), 0.05);
    const chart = frameOf(box, {
      height: 380, label: `${title} against expected latency; every point is a row of the table below`,
      x: { low, high, log: true, title: "expected latency of a call, ms (log scale)", format: shortText },
      y: { low: bottom, high: top, title: percent ? `${title}, %` : title, format: shortText },
    });
    chart.svg.classList.add("front-plot");
    places = points.map((point) => ({ x: chart.x(point.latency), y: chart.y(shown(point.value)), lines: point.lines.filter(Boolean) }));
    points.forEach((point, place) => {
      const [kind, className, size] = CHOICES[point.kind];
      const { x, y } = places[place];
      const [from, to] = point.ci.map((end) => chart.y(shown(end)));
      chart.layer.append(
        shape("line", { x1: x, x2: x, y1: from, y2: to, class: "axis-span" }),
        symbol(kind, size, { class: `point ${className}`, transform: `translate(${x},${y})` }),
      );
    });
    pointed(chart, places);
    chart.layer.append(ring);
    chart.svg.addEventListener("click", (event) => {
      const found = nearest(places, ...pointerIn(chart.svg, event), 40);
      if (!found) return;
      const place = places.indexOf(found);
      pick(place);
      rows[place].scrollIntoView({ block: "nearest" });
    });
    pick(picked);
  });
};
