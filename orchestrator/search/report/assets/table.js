// The trials as a paged table with a text filter and sorting: a page of rows is drawn at a time.
const PAGE = 25;
const COMPARISON = /^(.+?)(<=|>=|=|<|>)(.+)$/;

const trialColumns = (report) => [
  { key: "number", title: "#", value: (trial) => trial.number, text: (trial) => (trial.number < 0 ? "arm" : String(trial.number)) },
  { key: "name", title: "name", value: (trial) => trial.name },
  { key: "metric", title: report.format.label, value: (trial) => measured(trial, trial.metric), text: (trial) => report.format.value(measured(trial, trial.metric)) },
  { key: "drop", title: report.format.points ? "drop, points" : "drop", value: (trial) => measured(trial, trial.drop), text: (trial) => report.format.drop(measured(trial, trial.drop)) },
  { key: "latency", title: "latency", value: (trial) => measured(trial, trial.latency_ms), text: (trial) => millisecondsText(measured(trial, trial.latency_ms)),
    below: (trial) => (trial.status === "ok" && trial.latency_ci ? trial.latency_ci.map((end) => numberText(end)).join(" to ") + (trial.p95_ms ? `, p95 ${numberText(trial.p95_ms)}` : "") : "") },
  { key: "speedup", title: "speed-up", value: (trial) => measured(trial, trial.speedup), text: (trial) => timesText(measured(trial, trial.speedup)) },
  { key: "bytes", title: "bytes", value: (trial) => measured(trial, trial.bytes), text: (trial) => (trial.status === "ok" ? sizeText(trial.bytes) : NONE) },
];
const measured = (trial, value) => (trial.status === "ok" ? value : null);

const wordsOf = (trial) =>
  [`#${trial.number}`, trial.name, trial.status, trial.execution, trial.arm, trial.reason, trial.feasible ? "feasible" : "infeasible",
    ...Object.entries(trial.config).map(([name, value]) => `${name}=${value}`)].join(" ").toLowerCase();

// Every word must occur; `latency<3` and `prune.amount>=0.5` compare numbers.
const textFilter = (text, columns, target) => {
  const tests = text.trim().toLowerCase().split(/\s+/).filter(Boolean).map((word) => {
    const parts = COMPARISON.exec(word);
    const wanted = parts ? Number(parts[3]) : NaN;
    if (!parts || !Number.isFinite(wanted)) return (place) => target.words[place].includes(word);
    const column = columns.find((one) => one.key === parts[1]);
    const compare = { "<": (a, b) => a < b, ">": (a, b) => a > b, "<=": (a, b) => a <= b, ">=": (a, b) => a >= b, "=": (a, b) => a === b }[parts[2]];
    return (place) => {
      const trial = target.trials[place];
      const setting = Object.keys(trial.config).find((name) => name.toLowerCase() === parts[1]);
      const value = column ? column.value(trial) : setting === undefined ? null : trial.config[setting];
      return typeof value === "number" && compare(value, wanted);
    };
  });
  return (place) => tests.every((test) => test(place));
};

const trialTable = ({ table, count, pager, filter, settings }, report) => {
  const sort = { key: "number", down: false };
  let page = 0;
  let order = [];

  const columns = () => {
    const own = trialColumns(report);
    if (!settings.checked) return own;
    const names = [...report.target().axes.map((axis) => axis.name)];
    return own.concat(names.map((name) => ({
      key: `config:${name}`, title: name, value: (trial) => trial.config[name],
      text: (trial) => (trial.config[name] === undefined ? NONE : shortText(trial.config[name])),
    })));
  };

  const sorted = () => {
    const { trials } = report.target();
    const column = columns().find((one) => one.key === sort.key) ?? trialColumns(report)[0];
    const values = trials.map(column.value);
    const missing = (value) => value === null || value === undefined;
    const compare = (one, other) => {
      const [a, b] = [values[one], values[other]];
      if (missing(a) || missing(b)) return missing(a) - missing(b) || one - other; // those without a value stay at the end
      const ahead = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
      return (sort.down ? -ahead : ahead) || one - other;
    };
    return trials.map((_, place) => place).filter((place) => report.state.kept[place]).sort(compare);
  };

  const head = () => make("thead", {}, make("tr", {}, ...columns().map((column) => {
    const mine = column.key === sort.key;
    const press = () => {
      sort.down = mine ? !sort.down : false;
      sort.key = column.key;
      page = 0;
      render();
      table.querySelector(`[data-key="${CSS.escape(column.key)}"]`)?.focus();
    };
    return make("th", { scope: "col", class: column.text && column.key !== "number" ? "num" : null, "aria-sort": mine ? (sort.down ? "descending" : "ascending") : null },
      make("button", { type: "button", class: "sort", "data-key": column.key, onclick: press }, column.title, make("span", { "aria-hidden": "true" }, mine ? (sort.down ? " \u25be" : " \u25b4") : "")));
  })));

  const row = (place) => {
    const target = report.target();
    const trial = target.trials[place];
    const chosen = place === report.state.selected;
    return make("tr", { class: chosen ? "picked" : null, "aria-current": chosen ? "true" : null, onclick: () => report.select(place) },
      ...columns().map((column) => {
        if (column.key === "name") {
          const name = make("button", { type: "button", class: "link", "data-trial": place }, trial.name);
          return make("td", {}, name, ...tagsOf(target, place), make("small", {}, trial.status === "ok" ? trial.execution : trial.reason));
        }
        const below = column.below?.(trial);
        return make("td", { class: column.key === "number" ? null : "num" }, column.text(trial), below ? make("small", {}, below) : null);
      }));
  };

  const turn = (to, text, label) =>
    make("button", { type: "button", "aria-label": label, disabled: to < 0 || to * PAGE >= order.length, onclick: () => {
      page = to;
      render();
    } }, text);

  const render = () => {
    order = sorted();
    const all = report.target().trials.length;
    page = Math.max(0, Math.min(page, Math.ceil(order.length / PAGE) - 1));
    table.replaceChildren(head(), make("tbody", {}, ...order.slice(page * PAGE, (page + 1) * PAGE).map(row)));
    count.textContent = `${order.length === all ? "" : `${order.length} of `}${all} trial${all === 1 ? "" : "s"}`;
    const pages = Math.ceil(order.length / PAGE);
    pager.hidden = pages < 2;
    pager.replaceChildren(turn(page - 1, "\u2039", "Previous page"), make("span", {}, `page ${page + 1} of ${pages}`), turn(page + 1, "\u203a", "Next page"));
  };

  const setText = () => {
    report.state.text = filter.value;
    page = 0;
    report.refilter();
  };
  filter.addEventListener("input", setText);
  settings.addEventListener("change", () => render());
  report.matches = () => textFilter(report.state.text, trialColumns(report), report.target());
  report.views.push((what) => {
    if (what === "target") page = 0;
    if (what === "selected" && report.state.selected !== null) {
      const place = order.indexOf(report.state.selected);
      if (place >= 0) page = Math.floor(place / PAGE);
    }
    const held = document.activeElement?.dataset?.trial;
    render();
    if (held !== undefined) table.querySelector(`[data-trial="${held}"]`)?.focus({ preventScroll: true });
  });
  render();
};

const tagsOf = (target, place) => {
  const trial = target.trials[place];
  const tags = [];
  if (trial.status !== "ok") tags.push([trial.status, "failed"]);
  else if (!trial.feasible) tags.push(["not feasible", "failed"]);
  if (trial.arm && trial.arm !== trial.name) tags.push([trial.arm, "plain"]);
  if (place === target.chosen) tags.push(["chosen", "chosen"]);
  else if (target.front.includes(place)) tags.push(["front", ""]);
  if (place === target.knee) tags.push(["knee", ""]);
  return tags.map(([text, kind]) => make("span", { class: `tag ${kind}` }, text));
};
