// The plain charts: training curves, hypervolume, and models beside ensembles.
const seriesColor = (place) => `s${(place % 6) + 1}`;

const pointed = (chart, points) => {
  const mark = shape("circle", { r: 5, class: "pointed", visibility: "hidden" });
  chart.layer.append(mark);
  chart.svg.addEventListener("pointermove", (event) => {
    const found = nearest(points, ...pointerIn(chart.svg, event), 40);
    mark.setAttribute("visibility", found ? "visible" : "hidden");
    if (!found) return hideTip();
    mark.setAttribute("cx", found.x);
    mark.setAttribute("cy", found.y);
    return showTip(found.lines, event.clientX, event.clientY);
  });
  chart.svg.addEventListener("pointerleave", () => {
    mark.setAttribute("visibility", "hidden");
    hideTip();
  });
};

const curveChart = (box, { title, series, percent }) => {
  const shown = (value) => (percent ? 100 * value : value);
  const all = series.flatMap((one) => one.points);
  const plot = make("div");
  const key = make("ul", { class: "key" }, ...series.map((one, place) =>
    make("li", {}, shape("svg", { width: 18, height: 10, "aria-hidden": "true" }, shape("line", { x1: 0, x2: 16, y1: 5, y2: 5, class: `curve ${seriesColor(place)}` })), one.name)));
  box.replaceChildren(plot, key);
  keepDrawn(plot, () => {
    const [low, high] = widened(all.map(([, value]) => shown(value)), 0.06);
    const epochs = widened(all.map(([epoch]) => epoch), 0.02);
    const chart = frameOf(plot, {
      height: 280, label: title,
      x: { low: epochs[0], high: epochs[1], title: "epoch", format: (tick) => (Number.isInteger(tick) ? String(tick) : "") },
      y: { low, high, title: percent ? `${title}, %` : title, format: shortText },
    });
    const points = [];
    series.forEach((one, place) => {
      const at = one.points.map(([epoch, value]) => ({ x: chart.x(epoch), y: chart.y(shown(value)), lines: [one.name, `epoch ${epoch}: ${numberText(shown(value), 4)}`] }));
      points.push(...at);
      chart.layer.append(shape("path", { d: `M${at.map(({ x, y }) => `${x.toFixed(1)},${y.toFixed(1)}`).join("L")}`, class: `curve ${seriesColor(place)}` }));
      if (at.length < 30) for (const { x, y } of at) chart.layer.append(shape("circle", { cx: x, cy: y, r: 2.5, class: `dot ${seriesColor(place)}` }));
    });
    pointed(chart, points);
  });
};

const volumeChart = (box, switches, report) => {
  let over = "trials";
  const redraw = () => {
    const { volume } = report.target();
    const known = volume && volume[over] ? volume[over] : volume?.trials;
    box.parentElement.hidden = !known?.length;
    if (!known?.length) return;
    const time = known !== volume.trials;
    const [low, high] = widened([0, ...known.map(([, value]) => value)], 0.05);
    const end = known[known.length - 1][0];
    const chart = frameOf(box, {
      height: 240, label: "Hypervolume of the front as the search went on",
      x: { low: time ? 0 : Math.min(known[0][0], 0), high: Math.max(end, 1), title: time ? "time since the start" : "trial", format: time ? timeText : (tick) => (Number.isInteger(tick) ? String(tick) : "") },
      y: { low: Math.max(0, low), high, format: shortText },
    });
    let path = `M${chart.x(known[0][0])},${chart.inner.bottom}`;
    for (const [x, value] of known) path += `H${chart.x(x).toFixed(1)}V${chart.y(value).toFixed(1)}`;
    chart.layer.append(shape("path", { d: path, class: "curve s1" }));
    pointed(chart, known.map(([x, value]) => ({ x: chart.x(x), y: chart.y(value), lines: [time ? timeText(x) : `trial ${x}`, `hypervolume ${numberText(value, 4)}`] })));
  };
  const choose = (what) => {
    over = what;
    drawSwitches();
    redraw();
  };
  const drawSwitches = () => {
    const timed = Boolean(report.target().volume?.time);
    switches.hidden = !timed;
    switches.replaceChildren(...[["trials", "by trial"], ["time", "by time"]].map(([what, text]) =>
      make("button", { type: "button", "aria-pressed": String(over === what), onclick: () => choose(what) }, text)));
  };
  report.views.push((what) => {
    if (what !== "target") return;
    drawSwitches();
    redraw();
  });
  drawSwitches();
  keepDrawn(box, redraw);
};

const comparisonChart = (box, { rows, best, percent, title }) => {
  const shown = (value) => (percent ? 100 * value : value);
  const kinds = [...new Set(rows.map((row) => row.kind))];
  const symbols = { "single model": ["circle", "single"], "chosen variant": ["star", "chosen"], ensemble: ["diamond", "group"] };
  const plot = make("div");
  box.replaceChildren(plot, make("ul", { class: "key" }, ...kinds.map((kind) => keyItem(symbols[kind][0], `mark ${symbols[kind][1]}`, kind))));
  keepDrawn(plot, () => {
    const longest = Math.max(...rows.map((row) => row.name.length));
    const most = Math.max(10, Math.floor(plot.clientWidth / 24));
    const [low, high] = widened(rows.flatMap((row) => [row.value, ...(row.ci ?? [])]).map(shown), 0.04);
    const chart = frameOf(plot, {
      height: 64 + 34 * rows.length, label: title, left: Math.min(longest, most) * 7.2 + 18,
      x: { low, high, title: percent ? `${title}, %` : title, format: shortText },
      y: { low: -0.5, high: rows.length - 0.5, ticks: rows.map((row, at) => ({ at, label: row.name.length > most ? `${row.name.slice(0, most - 1)}\u2026` : row.name })) },
    });
    if (best !== null) chart.layer.append(shape("line", { x1: chart.x(shown(best)), x2: chart.x(shown(best)), y1: chart.inner.top, y2: chart.inner.bottom, class: "level" }));
    pointed(chart, rows.map((row, at) => {
      const [x, y] = [chart.x(shown(row.value)), chart.y(at)];
      const [kind, className] = symbols[row.kind];
      if (row.ci) chart.layer.append(shape("line", { x1: chart.x(shown(row.ci[0])), x2: chart.x(shown(row.ci[1])), y1: y, y2: y, class: `bar-line ${className}` }));
      chart.layer.append(symbol(kind, 6, { class: `mark ${className}`, transform: `translate(${x},${y})` }));
      return { x, y, lines: [row.name, row.text] };
    }));
  });
};
