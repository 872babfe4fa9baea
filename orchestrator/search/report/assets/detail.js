// Everything about the selected trial: figures, plan, audit, verdict, and why it failed if it did.
const AUDIT_LABELS = { macs: "operations a row", params: "parameters", zeros: "weights that are zero", bytes: "bytes" };

const detailPanel = (box, report) => {
  const facts = (pairs) => make("dl", {}, ...pairs.filter(([, value]) => value && value !== NONE).flatMap(([name, value]) => [make("dt", {}, soft(name)), make("dd", {}, value)]));

  const figures = (trial) => {
    const { value, span, drop, label, points } = report.format;
    const bound = trial.drop_bound === null || trial.drop_bound === undefined ? "" : `, at most ${drop(trial.drop_bound)} (upper bound)`;
    return facts([
      [`${label} on validation`, `${value(trial.metric)}${span(trial.metric_ci)}`],
      ["drop against the parent", trial.drop === null || trial.drop === undefined ? "" : `${drop(trial.drop)}${points}${bound}`],
      ["latency", `${millisecondsText(trial.latency_ms)}${spanText(trial.latency_ci, numberText)}`],
      ["95th percentile", trial.p95_ms ? millisecondsText(trial.p95_ms) : ""],
      ["speed-up", trial.speedup ? `${timesText(trial.speedup)}${spanText(trial.speedup_ci, numberText)}` : ""],
      ["bytes", trial.bytes ? sizeText(trial.bytes) : ""],
    ]);
  };

  const auditPairs = (audit) => Object.entries(audit).flatMap(([name, value]) => {
    if (["int8", "fp8"].includes(name) && value) {
      const left = (value.fell_back ?? []).map((one) => `${one.layer}: ${one.why}`).join("; ");
      return [[`work in ${name}`, `${(100 * value.share).toFixed(1)}\u00a0%`], ["left in float", left]];
    }
    if (value === null || value === undefined) return [];
    if (name === "decided") return value.filter((step) => Object.keys(step).length > 1).map(({ kind, ...facts }) => [`${kind} reached`, Object.entries(facts).map(([what, found]) => `${what.replaceAll("_", " ")} ${typeof found === "number" ? numberText(found, 4) : typeof found === "object" ? JSON.stringify(found) : found}`).join(", ")]);
    const text = name === "bytes" ? sizeText(value) : name === "zeros" ? `${(100 * value).toFixed(1)}\u00a0%` : typeof value === "number" ? (Number.isInteger(value) ? value.toLocaleString("en-US") : numberText(value, 4)) : typeof value === "object" ? JSON.stringify(value) : String(value);
    return [[AUDIT_LABELS[name] ?? name.replaceAll("_", " "), text]];
  });

  const verdict = (found) => {
    const held = found.holds ? "The promise holds" : found.status === "fails" ? "The promise does not hold" : "Whether the promise holds cannot be told";
    return make("p", { class: `said ${found.holds ? "kept" : "broken"}` }, make("strong", {}, `${held}: `), found.reason ?? "");
  };

  const planOf = (trial) => (trial.plan ?? []).map((step) => report.data.steps[step]);
  const part = (title, ...content) => make("div", {}, make("h4", {}, title), ...content);

  const trialParts = (trial) => {
    const settings = Object.entries(trial.config);
    const plan = planOf(trial);
    const audit = trial.audit ? auditPairs(trial.audit) : [];
    const failed = trial.status !== "ok";
    return [
      failed ? make("p", { class: "said broken" }, make("strong", {}, `${trial.status}: `), trial.reason || "no reason was recorded") : null,
      ...trial.violations.map((text) => make("p", { class: "said broken" }, make("strong", {}, "Not feasible: "), text)),
      trial.verdict ? verdict(trial.verdict) : null,
      failed ? null : figures(trial),
      settings.length ? part("Settings", facts(settings.map(([name, value]) => [name, shortText(value)]))) : null,
      audit.length ? part("Audit", facts(audit)) : null,
      plan.length ? part("Plan", make("pre", { tabindex: "0" }, make("code", {}, yamlOf(plan).trimStart()))) : null,
      plan.length || !trial.plan || failed ? null : part("Plan", make("p", { class: "caption" }, "No step: the model as it is.")),
      trial.digest ? part("Artifact", make("code", { class: "digest" }, trial.digest)) : null,
    ];
  };

  const render = () => {
    const { selected } = report.state;
    const target = report.target();
    if (selected === null) {
      return box.replaceChildren(make("p", { class: "caption" }, "Select a trial: click a point, a line or a row, or move with the arrow keys and press Enter."));
    }
    const trial = target.trials[selected];
    const close = make("button", { type: "button", class: "close", "aria-label": "Close", onclick: () => report.select(null) }, "\u00d7");
    const when = trial.seconds ? `, after ${timeText(trial.seconds)}` : "";
    return box.replaceChildren(
      close,
      make("h3", { tabindex: "-1" }, trial.name),
      make("p", { class: "caption" }, `${trial.number < 0 ? "arm" : `trial ${trial.number}`}, ${trial.execution}${when}`, ...tagsOf(target, selected)),
      ...trialParts(trial).filter(Boolean),
    );
  };

  // A trial chosen far from the panel, in the table say, brings the panel along until its own place is in view.
  const home = box.parentElement;
  const inView = () => {
    const { top, bottom } = home.getBoundingClientRect();
    return top < window.innerHeight - 120 && bottom > 120;
  };
  const settle = () => box.classList.toggle("floating", report.state.selected !== null && !inView());
  new IntersectionObserver(() => {
    if (inView()) settle();
  }, { threshold: [0, 0.25, 0.5] }).observe(home);
  report.views.push((what) => {
    if (what === "filter") return;
    render();
    settle();
  });
  render();
};
