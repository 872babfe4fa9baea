// Parallel coordinates: one line a trial over its settings and what it brought. A band on an axis filters the table.
const OBJECTIVES = (report) => [
  { name: report.format.label, value: (trial) => trial.metric, shown: (value) => shortText(Number(report.format.shown(value).toPrecision(4))) },
  { name: "latency, ms", value: (trial) => trial.latency_ms, shown: (value) => shortText(Number(value.toPrecision(3))), log: true },
  { name: "bytes", value: (trial) => trial.bytes, shown: (value) => sizeText(value), log: true },
];
const ABSENT = -0.13;
const BINS = 5;

// Axes with `place(trial)`: 0 at the bottom, 1 at the top, ABSENT where the trial has no such value.
// Without the few values that lie so far off that the others would be squeezed; those are drawn at the end.
const usualRange = (values) => {
  const sorted = [...values].sort((one, other) => one - other);
  const at = (share) => sorted[Math.round(share * (sorted.length - 1))];
  const span = at(0.95) - at(0.05);
  const low = span > 0 && at(0.05) - at(0) > span ? at(0.05) : at(0);
  const high = span > 0 && at(1) - at(0.95) > 3 * span ? at(0.95) : at(1);
  return { low, high, under: low > at(0), over: high < at(1) };
};

const axesOf = (report) => {
  const { trials, axes } = report.target();
  const settings = axes.map((axis) => ({
    ...axis,
    value: (trial) => trial.config[axis.name],
    shown: (value) => shortText(typeof value === "number" ? Number(value.toPrecision(3)) : value),
  }));
  const measured = OBJECTIVES(report).map((axis) => {
    const values = trials.filter((trial) => trial.status === "ok").map(axis.value).filter(Number.isFinite);
    return { ...axis, objective: true, ...usualRange(values), empty: !values.length };
  });
  return [...settings, ...measured.filter((axis) => !axis.empty)].map((axis) => {
    const choices = axis.values && new Map(axis.values.map((value, place) => [String(value), axis.values.length === 1 ? 0.5 : place / (axis.values.length - 1)]));
    const along = choices ? null : scaleOf(axis.low, axis.high, 0, 1, axis.log);
    const place = (trial) => {
      if (axis.objective && trial.status !== "ok") return ABSENT;
      const value = axis.value(trial);
      if (value === undefined || value === null) return ABSENT;
      return choices ? choices.get(String(value)) ?? ABSENT : Math.max(0, Math.min(1, along(Number(value))));
    };
    const places = trials.map(place);
    const distinct = choices || axis.objective ? [] : [...new Set(trials.map(axis.value))].filter((value) => typeof value === "number");
    const few = distinct.length <= 6 ? distinct.sort((one, other) => one - other) : [];
    const count = choices ? choices.size : few.length;
    // Lines through one value are spread a little, so that their number can be seen.
    const spread = count && trials.length > 40 ? Math.min(0.05, 0.3 / count) : 0;
    const drawn = places.map((at, trial) => at + (at === ABSENT ? 0.03 : spread) * (((trial * 0.618034) % 1) * 2 - 1));
    return { ...axis, choices, along, places, drawn, few, absent: places.includes(ABSENT) };
  });
};

const parallelChart = (box, chips, report) => {
  let axes = [];
  let chart = null;
  const bands = new Map();

  const redraw = () => {
    axes = axesOf(report);
    byId("settings-part").hidden = axes.length < 2;
    if (axes.length < 2) return box.replaceChildren();
    const room = Math.max(box.clientWidth, 280);
    const [left, top, height] = [52, 46, 280];
    const step = Math.max(84, (room - left - 74) / (axes.length - 1));
    const width = left + step * (axes.length - 1) + 74;
    const y = (place) => top + (1 - place) * height;
    const lines = shape("g", { class: "lines" });
    const svg = shape("svg", { width, height: height + top + 62, role: "group", "aria-label": "Parallel coordinates of all trials" }, lines);
    chart = { svg, lines, y, x: (index) => left + index * step, top, height, step };
    axes.forEach((axis, index) => svg.append(drawAxis(axis, index)));
    svg.addEventListener("click", pick);
    box.replaceChildren(svg);
    drawLines();
    return undefined;
  };

  const drawAxis = (axis, index) => {
    const x = chart.x(index);
    const group = shape("g", { class: "axis", transform: `translate(${x},0)` });
    group.append(shape("line", { y1: chart.top, y2: chart.top + chart.height, class: "spine" }));
    const most = Math.floor((chart.step - 6) / 7);
    const cut = (text, length) => (text.length > length ? `${text.slice(0, length - 1)}\u2026` : text);
    const words = axis.objective ? ["", axis.name] : splitName(axis.name);
    words.forEach((word, row) => {
      group.append(shape("text", { x: 0, y: 14 + 15 * row, "text-anchor": "middle", class: axis.objective ? "name objective" : "name" }, cut(word, most)));
    });
    group.append(shape("title", {}, axis.name));
    for (const [place, text] of ticksOf(axis)) {
      group.append(
        shape("line", { x1: -4, x2: 4, y1: chart.y(place), y2: chart.y(place) }),
        shape("text", { x: 8, y: chart.y(place) + 4, class: "tick" }, cut(text, Math.max(6, most - 3))),
      );
    }
    group.append(strip(axis, index));
    return group;
  };

  const splitName = (name) => {
    const dot = name.lastIndexOf(".");
    return dot > 0 ? [name.slice(0, dot), name.slice(dot + 1)] : ["", name];
  };

  const ticksOf = (axis) => {
    const absent = axis.absent ? [[ABSENT, "none"]] : [];
    if (axis.choices) return [...axis.choices].map(([value, place]) => [place, String(value)]).concat(absent);
    if (axis.few.length) return axis.few.map((value) => [axis.low === axis.high ? 0.5 : axis.along(value), axis.shown(value)]).concat(absent);
    const beyond = (place) => (place === 0 && axis.under ? "\u2264 " : place === 1 && axis.over ? "\u2265 " : "");
    const places = axis.low === axis.high ? [0.5] : [0, 0.25, 0.5, 0.75, 1];
    return places.map((place) => [place, beyond(place) + axis.shown(axis.low === axis.high ? axis.low : axis.along.invert(place))]).concat(absent);
  };

  // The strip over an axis takes the pointer and the arrow keys; its band is what the filter keeps.
  const strip = (axis, index) => {
    const band = shape("rect", { x: -8, width: 16, rx: 3, class: "band", visibility: "hidden" });
    const hit = shape("rect", {
      x: -14, width: 28, y: chart.top - 8, height: chart.height + 52, class: "strip", tabindex: "0", role: "slider",
      "aria-label": `Filter by ${axis.name}`, "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": 50,
      "aria-valuetext": "no filter; arrow up or down sets a band, with Shift its size, Delete removes it",
    });
    bands.set(index, { band, hit });
    const placeOf = (event) => 1 - (pointerIn(chart.svg, event)[1] - chart.top) / chart.height;
    let start = null;
    hit.addEventListener("pointerdown", (event) => {
      start = placeOf(event);
      hit.setPointerCapture(event.pointerId);
      event.preventDefault();
      hit.focus({ preventScroll: true });
    });
    hit.addEventListener("pointermove", (event) => {
      if (start === null) return;
      const now = placeOf(event);
      if (Math.abs(now - start) * chart.height > 4) report.brush(axis.name, [Math.min(start, now), Math.max(start, now)]);
    });
    hit.addEventListener("pointerup", (event) => {
      if (start !== null && Math.abs(placeOf(event) - start) * chart.height <= 4) report.brush(axis.name, null);
      start = null;
    });
    hit.addEventListener("click", (event) => event.stopPropagation());
    hit.addEventListener("keydown", (event) => keyed(event, axis));
    const group = shape("g", {}, band, hit);
    showBand(axis, index);
    return group;
  };

  const keyed = (event, axis) => {
    const moved = { ArrowUp: 0.05, ArrowDown: -0.05 }[event.key];
    if (event.key === "Delete" || event.key === "Backspace" || event.key === "Escape") report.brush(axis.name, null);
    else if (moved) {
      const [low, high] = report.state.brushes.get(axis.name) ?? [0.4, 0.6];
      report.brush(axis.name, event.shiftKey ? [low, Math.max(low + 0.02, high + moved)] : [low + moved, high + moved]);
    } else return;
    event.preventDefault();
  };

  const showBand = (axis, index) => {
    const { band, hit } = bands.get(index);
    const range = report.state.brushes.get(axis.name);
    band.setAttribute("visibility", range ? "visible" : "hidden");
    if (!range) return hit.setAttribute("aria-valuetext", "no filter; arrow up or down sets a band, with Shift its size, Delete removes it");
    const [low, high] = range.map((place) => Math.max(ABSENT - 0.05, Math.min(1.03, place)));
    band.setAttribute("y", chart.y(high));
    band.setAttribute("height", Math.max(3, chart.y(low) - chart.y(high)));
    return hit.setAttribute("aria-valuetext", rangeText(axis, range));
  };

  const rangeText = (axis, [low, high]) => {
    if (axis.choices) {
      const inside = [...axis.choices].filter(([, place]) => place >= low && place <= high).map(([value]) => String(value));
      if (axis.absent && low <= ABSENT && high >= ABSENT) inside.push("none");
      return inside.join(", ") || "nothing";
    }
    if (high < 0) return low <= ABSENT && high >= ABSENT ? "none" : "nothing";
    const [from, to] = [low, high].map((place) => axis.shown(axis.along.invert(Math.max(0, Math.min(1, place)))));
    return `${from} to ${to}${axis.absent && low <= ABSENT ? " or none" : ""}`;
  };

  const pathOf = (place) => {
    let path = "";
    axes.forEach((axis, index) => {
      path += `${index ? "L" : "M"}${chart.x(index).toFixed(1)},${chart.y(axis.drawn[place]).toFixed(1)}`;
    });
    return path;
  };

  // Few paths for many lines: those left out, then the kept ones from the worst fifth to the best.
  const drawLines = () => {
    const { trials } = report.target();
    const sign = report.metric.larger ? 1 : -1;
    const finished = trials.flatMap((trial, place) => (trial.status === "ok" ? [place] : []));
    finished.sort((one, other) => sign * (trials[one].metric - trials[other].metric));
    const bin = new Map(finished.map((place, rank) => [place, Math.floor((BINS * rank) / finished.length)]));
    const paths = Array.from({ length: BINS + 2 }, () => "");
    trials.forEach((trial, place) => {
      const group = report.state.kept[place] ? 2 + (bin.get(place) ?? -1) : 0;
      paths[group] += pathOf(place);
    });
    const names = ["out", "failed", ...Array.from({ length: BINS }, (_, place) => `q${place + 1}`)];
    const crowded = finished.length > 150 ? " crowded" : "";
    chart.lines.replaceChildren(
      ...paths.map((path, place) => shape("path", { d: path || "M0,0", class: `line ${names[place]}${crowded}` })),
      shape("path", { d: "M0,0", class: "line selected" }),
    );
    showSelected();
  };

  const showSelected = () => {
    const { selected } = report.state;
    chart.lines.lastChild.setAttribute("d", selected === null ? "M0,0" : pathOf(selected));
  };

  // A click between two axes selects the line that passes nearest.
  const pick = (event) => {
    const [x, y] = pointerIn(chart.svg, event);
    const left = Math.max(0, Math.min(axes.length - 2, Math.floor((x - chart.x(0)) / chart.step)));
    const share = (x - chart.x(left)) / chart.step;
    let [found, best] = [null, 12];
    axes[left].drawn.forEach((place, trial) => {
      const distance = Math.abs(chart.y(place + share * (axes[left + 1].drawn[trial] - place)) - y);
      if (report.state.kept[trial] && distance < best) [found, best] = [trial, distance];
    });
    if (found !== null) report.select(found);
  };

  const drawChips = () => {
    const { brushes } = report.state;
    const shown = axes.filter((axis) => brushes.has(axis.name)).map((axis) =>
      make("button", { type: "button", class: "chip", "aria-label": `Remove the filter by ${axis.name}`, onclick: () => report.brush(axis.name, null) },
        `${axis.name}: ${rangeText(axis, brushes.get(axis.name))} \u00d7`));
    chips.replaceChildren(...shown);
  };

  report.passes = (place) => axes.every((axis) => {
    const range = report.state.brushes.get(axis.name);
    return !range || (axis.places[place] >= range[0] && axis.places[place] <= range[1]);
  });
  report.views.push((what) => {
    if (what === "target") redraw();
    if (axes.length < 2) return;
    if (what === "filter") {
      axes.forEach(showBand);
      drawLines();
    }
    if (what === "selected") showSelected();
    drawChips();
  });
  keepDrawn(box, redraw);
};
