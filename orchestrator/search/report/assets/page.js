// The page's state, and what happens when it changes: every view is told what did.
const byId = (id) => document.getElementById(id);

const makeReport = (data) => {
  const names = Object.keys(data.targets);
  const report = {
    data, metric: data.metric, format: metricFormats(data.metric), views: [],
    state: { target: names[0], selected: null, brushes: new Map(), text: "", kept: [] },
    target: () => data.targets[report.state.target],
    passes: () => true,
    matches: () => () => true,
    say: (text) => {
      byId("said").textContent = text;
    },
  };
  const tell = (what) => report.views.forEach((view) => view(what));
  const keep = () => {
    const matches = report.matches();
    report.state.kept = report.target().trials.map((_, place) => matches(place) && report.passes(place));
  };
  report.keep = keep;
  report.refilter = () => {
    keep();
    tell("filter");
  };
  report.brush = (axis, range) => {
    if (range) report.state.brushes.set(axis, range);
    else report.state.brushes.delete(axis);
    report.refilter();
  };
  report.select = (place) => {
    report.state.selected = place;
    tell("selected");
    const trial = place === null ? null : report.target().trials[place];
    const target = names.length > 1 ? `target=${encodeURIComponent(report.state.target)}&` : "";
    try {
      history.replaceState(null, "", `#${trial ? `${target}trial=${trial.number}` : ""}`);
    } catch {
      // Inside some frames a page may not change its address; the selection holds all the same.
    }
    report.say(trial ? `${trial.name} is shown in the panel` : "nothing is selected");
  };
  report.aim = (name) => {
    report.state.target = name;
    report.state.selected = null;
    report.state.brushes.clear();
    report.state.kept = report.target().trials.map(() => true);
    tell("target");
    report.refilter();
    for (const part of document.querySelectorAll("[data-target]")) part.hidden = part.dataset.target !== name;
    for (const button of document.querySelectorAll("#targets button")) button.setAttribute("aria-pressed", String(button.value === name));
  };
  report.lines = (trial) => {
    const { value, span, drop, label, points } = report.format;
    const speed = trial.speedup ? `${timesText(trial.speedup)} as fast${spanText(trial.speedup_ci, numberText)}` : "";
    return [
      trial.arm ? `${trial.name} (${trial.arm})` : trial.name,
      `${label} ${value(trial.metric)}${span(trial.metric_ci)}`,
      trial.drop === null || trial.drop === undefined ? "" : `drop ${drop(trial.drop)}${trial.drop_bound === null || trial.drop_bound === undefined ? "" : `, at most ${drop(trial.drop_bound)}`}${points}`,
      `${millisecondsText(trial.latency_ms)}${spanText(trial.latency_ci, numberText)}`,
      speed,
      `${sizeText(trial.bytes)}, ${trial.execution}`,
      trial.feasible ? "" : "not feasible",
    ];
  };
  return report;
};

// `#trial=12` or `#target=edge&trial=12` selects that trial.
const followAddress = (report) => {
  const wanted = new URLSearchParams(location.hash.slice(1));
  const target = wanted.get("target");
  if (target !== null && target in report.data.targets && target !== report.state.target) report.aim(target);
  if (!wanted.has("trial")) return;
  const place = report.target().trials.findIndex((trial) => String(trial.number) === wanted.get("trial"));
  if (place < 0) return;
  report.select(place);
  byId("front").scrollIntoView({ block: "nearest" });
};

const startSearch = (data) => {
  const report = makeReport(data);
  for (const target of Object.values(data.targets)) target.words = target.trials.map(wordsOf);
  report.state.kept = report.target().trials.map(() => true);
  frontChart(byId("front"), byId("front-key"), byId("front-note"), report);
  detailPanel(byId("detail"), report);
  parallelChart(byId("parallel"), byId("chips"), report);
  trialTable({ table: byId("trials"), count: byId("count"), pager: byId("pager"), filter: byId("filter"), settings: byId("settings") }, report);
  volumeChart(byId("volume"), byId("volume-over"), report);
  for (const button of document.querySelectorAll("#targets button")) button.addEventListener("click", () => report.aim(button.value));
  report.keep();
  followAddress(report);
  window.addEventListener("hashchange", () => followAddress(report));
};

const start = () => {
  const root = document.documentElement;
  window.addEventListener("error", (event) => {
    root.dataset.error = `${root.dataset.error ?? ""}${event.message} `;
  });
  document.body.append(tip);
  const data = JSON.parse(byId("figures").textContent);
  try {
    if (data.search) startSearch(data.search);
    if (data.choosing) choosingChart(byId("choosing-plot"), byId("choosing-key"), byId("choosing-table"), data.choosing);
    if (data.comparison) comparisonChart(byId("comparison"), data.comparison);
    for (const [id, curve] of Object.entries(data.curves)) curveChart(byId(id), curve);
    document.querySelectorAll(".maps").forEach(chooseMaps);
  } catch (error) {
    root.dataset.error = String(error && error.stack ? error.stack : error);
    throw error;
  }
  root.dataset.drawnMs = performance.now().toFixed(0);
  requestAnimationFrame(() => setTimeout(() => {
    root.dataset.paintedMs = performance.now().toFixed(0);
  }, 0));
};

start();
