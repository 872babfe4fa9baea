// Metric against latency: every trial a point that can be pointed at, clicked, and reached by the keyboard.
const ARM_SYMBOLS = ["square", "triangle", "turned", "cross", "hexagon", "diamond"];

const frontChart = (box, key, note, report) => {
  let chart = null;
  let points = [];
  let cursor = null;
  let whole = false;
  const marks = { hover: shape("g", { class: "hover" }), selected: shape("g", { class: "selected" }) };

  // From somewhat below the allowed drop up to the best; what lies far off is counted, and shown when asked for.
  const rangeOf = (target, rows) => {
    const { shown } = report.format;
    const sign = report.metric.larger ? 1 : -1;
    const values = rows.map((trial) => sign * shown(trial.metric));
    const [lowest, highest] = [Math.min(...values), Math.max(...values)];
    const level = target.level === null ? highest : Math.min(highest, sign * shown(target.level));
    const sorted = [...values].sort((one, other) => one - other);
    const usual = sorted[Math.floor(sorted.length / 4)];
    const low = Math.max(lowest, Math.min(usual, level - 1.5 * (highest - level || 1e9)));
    const cut = whole || lowest > low - 0.35 * (highest - low) ? lowest : low;
    const ends = widened([sign * cut, sign * highest], 0.09);
    return { ends, off: values.filter((value) => value < cut).length, far: lowest < cut };
  };

  const kindOf = (target, place, trial, { front, outline, arms }) => {
    if (place === target.chosen) return { symbol: "star", className: "chosen", size: 9 };
    if (trial.arm) return { symbol: ARM_SYMBOLS[arms.indexOf(trial.arm) % ARM_SYMBOLS.length], className: "arm", size: 6.5 };
    if (outline.has(place)) return { symbol: "circle", className: "front", size: 5.5 };
    if (front.has(place)) return { symbol: "circle", className: "front small", size: 4 };
    return { symbol: "circle", className: trial.feasible ? "rest" : "rest infeasible", size: 4 };
  };

  const redraw = () => {
    const target = report.target();
    const { shown, label, unit, tick } = report.format;
    const rows = target.trials.filter((trial) => trial.status === "ok");
    if (!rows.length) {
      chart = null;
      points = [];
      box.replaceChildren(make("p", { class: "caption" }, "No trial finished, so there is nothing to draw."));
      return key.replaceChildren();
    }
    const everything = target.parent ? [...rows, target.parent] : rows;
    const { ends, off, far } = rangeOf(target, everything);
    const [low, high] = widened(everything.map((trial) => trial.latency_ms), 0.06, true);
    chart = frameOf(box, {
      height: box.clientWidth < 520 ? 340 : 440,
      x: { low, high, log: true, title: "latency, ms (log scale)", format: shortText },
      y: { low: ends[0], high: ends[1], title: `${label} on validation${unit}`, format: tick },
      label: `${label} against latency of ${rows.length} trials. Arrow keys move from trial to trial, Enter opens one.`,
    });
    chart.svg.setAttribute("tabindex", "0");
    chart.svg.setAttribute("role", "application");
    chart.svg.setAttribute("class", "front-plot");
    drawPoints(target, shown);
    note.replaceChildren(...rangeNote(off, far));
    listen();
    show("target");
  };

  const rangeNote = (off, far) => {
    const switched = () => {
      whole = !whole;
      redraw();
    };
    if (!far && !whole) return [];
    const said = far ? `${off} trial${off === 1 ? " lies" : "s lie"} beyond the plotted range. ` : "";
    return [said, make("button", { type: "button", class: "link", onclick: switched }, whole ? "Only near the front" : "Show all")];
  };

  const drawPoints = (target, shown) => {
    const arms = [...new Set(target.trials.map((trial) => trial.arm).filter(Boolean))];
    const known = { front: new Set(target.front), outline: new Set(target.outline), arms };
    const clip = shape("clipPath", { id: "front-clip" }, shape("rect", {
      x: chart.inner.left - 8, y: chart.inner.top - 8,
      width: chart.inner.right - chart.inner.left + 16, height: chart.inner.bottom - chart.inner.top + 16,
    }));
    const cloud = shape("g", { "clip-path": "url(#front-clip)" });
    chart.layer.append(clip, cloud, marks.hover, marks.selected);
    points = [];
    target.trials.forEach((trial, place) => {
      if (trial.status !== "ok") return;
      const at = { place, trial, x: chart.x(trial.latency_ms), y: chart.y(shown(trial.metric)) };
      if (at.y > chart.inner.bottom + 8 || at.y < chart.inner.top - 8) return;
      at.kind = kindOf(target, place, trial, known);
      points.push(at);
    });
    const order = ["rest infeasible", "rest", "front small", "front", "arm", "chosen"];
    points.sort((one, other) => order.indexOf(one.kind.className) - order.indexOf(other.kind.className));
    drawLines(cloud, target, shown);
    for (const point of points) {
      point.node = symbol(point.kind.symbol, point.kind.size, {
        class: `point ${point.kind.className}`, transform: `translate(${point.x.toFixed(1)},${point.y.toFixed(1)})`,
      });
      cloud.append(point.node);
    }
    const parent = target.parent && { x: chart.x(target.parent.latency_ms), y: chart.y(shown(target.parent.metric)) };
    if (parent) cloud.append(symbol("diamond", 6.5, { class: "point parent", transform: `translate(${parent.x},${parent.y})` }));
    drawLabels(cloud, target, parent);
    drawKey(target, arms, Boolean(parent));
    points.sort((one, other) => one.trial.latency_ms - other.trial.latency_ms);
  };

  const drawLines = (cloud, target, shown) => {
    const steps = target.outline.map((place) => target.trials[place]);
    let path = "";
    steps.forEach((trial, place) => {
      const [x, y] = [chart.x(trial.latency_ms).toFixed(1), chart.y(shown(trial.metric)).toFixed(1)];
      path += place ? `H${x}V${y}` : `M${x},${y}`;
    });
    if (steps.length) cloud.append(shape("path", { d: `${path}H${chart.inner.right}`, class: "staircase" }));
    if (target.level === null) return;
    const y = chart.y(shown(target.level));
    if (y < chart.inner.top || y > chart.inner.bottom) return;
    cloud.append(
      shape("line", { x1: chart.inner.left, x2: chart.inner.right, y1: y, y2: y, class: "level" }),
      shape("text", { x: chart.inner.right - 4, y: y + 15, "text-anchor": "end", class: "label muted" }, "allowed drop"),
    );
  };

  const drawLabels = (cloud, target, parent) => {
    const labels = [];
    const at = (place) => points.find((point) => point.place === place);
    const chosen = target.chosen === null ? null : at(target.chosen);
    const knee = target.knee === null ? null : at(target.knee);
    if (knee) cloud.append(symbol("circle", 10, { class: "knee", transform: `translate(${knee.x},${knee.y})` }));
    if (chosen) labels.push({ ...chosen, text: chosen === knee ? "chosen, knee" : "chosen", className: "chosen" });
    if (knee && knee !== chosen) labels.push({ ...knee, text: "knee", className: "front" });
    if (parent) labels.push({ ...parent, text: "parent", className: "" });
    for (const point of points) if (point.trial.arm && point !== chosen) labels.push({ ...point, text: point.trial.arm, className: "muted" });
    placeLabels(chart.layer, chart.inner, labels);
  };

  const drawKey = (target, arms, parent) => {
    const has = (className) => points.some((point) => point.kind.className === className);
    key.replaceChildren(
      ...[
        has("front") && keyItem("circle", "point front", "front"),
        has("front small") && keyItem("circle", "point front small", "front, for its bytes"),
        has("rest") && keyItem("circle", "point rest", "other trial"),
        has("rest infeasible") && keyItem("circle", "point rest infeasible", "not feasible"),
        parent && keyItem("diamond", "point parent", "parent, eager"),
        has("chosen") && keyItem("star", "point chosen", "chosen"),
        target.knee !== null && keyItem("circle", "knee", "knee of the front"),
        ...arms.map((arm, place) => keyItem(ARM_SYMBOLS[place % ARM_SYMBOLS.length], "point arm", arm)),
      ].filter(Boolean),
    );
  };

  const ring = (group, point, bars) => {
    group.replaceChildren();
    if (!point) return;
    const { trial, x, y } = point;
    if (bars && trial.latency_ci) {
      group.append(shape("line", { x1: chart.x(trial.latency_ci[0]), x2: chart.x(trial.latency_ci[1]), y1: y, y2: y }));
    }
    if (bars && trial.metric_ci) {
      const [low, high] = trial.metric_ci.map((value) => chart.y(report.format.shown(value)));
      group.append(shape("line", { x1: x, x2: x, y1: Math.min(low, chart.inner.bottom), y2: Math.max(high, chart.inner.top) }));
    }
    group.append(shape("circle", { cx: x, cy: y, r: 9 }));
  };

  const point = (found, event = null) => {
    cursor = found;
    ring(marks.hover, found, true);
    if (!found) return hideTip();
    const frame = chart.svg.getBoundingClientRect();
    showTip(report.lines(found.trial), event ? event.clientX : frame.left + found.x, event ? event.clientY : frame.top + found.y);
    return undefined;
  };

  const listen = () => {
    const under = (event) => nearest(points, ...pointerIn(chart.svg, event), 24);
    chart.svg.addEventListener("pointermove", (event) => point(under(event), event));
    chart.svg.addEventListener("pointerleave", () => point(null));
    chart.svg.addEventListener("blur", () => point(null));
    chart.svg.addEventListener("click", (event) => {
      const found = under(event);
      if (found) report.select(found.place);
    });
    chart.svg.addEventListener("keydown", (event) => {
      const found = step(event.key);
      if (found) point(found);
      else if (event.key === "Enter" && cursor) report.select(cursor.place);
      else if (event.key === "Escape") point(null);
      else return;
      if (found) report.say(report.lines(found.trial).filter(Boolean).join(", "));
      event.preventDefault();
    });
  };

  // Left and right go through all trials by latency, up and down along the front.
  const step = (pressed) => {
    const ahead = { ArrowRight: 1, ArrowLeft: -1, ArrowUp: 1, ArrowDown: -1, Home: 0, End: 0 }[pressed];
    if (ahead === undefined || !points.length) return null;
    const front = new Set(report.target().front);
    const through = pressed === "ArrowUp" || pressed === "ArrowDown" ? points.filter((one) => front.has(one.place)) : points;
    if (!through.length) return null;
    if (pressed === "Home" || !cursor) return through[0];
    if (pressed === "End") return through[through.length - 1];
    const here = through.includes(cursor) ? through.indexOf(cursor) : through.filter((one) => one.x <= cursor.x).length - 1;
    return through[Math.max(0, Math.min(through.length - 1, here + ahead))];
  };

  const show = (what) => {
    if (!chart) return;
    if (what !== "filter") ring(marks.selected, points.find((one) => one.place === report.state.selected), true);
    if (what !== "selected") for (const one of points) one.node.classList.toggle("dim", !report.state.kept[one.place]);
  };

  report.views.push((what) => {
    if (what === "target") {
      whole = false;
      redraw();
    } else show(what);
  });
  keepDrawn(box, redraw);
};
