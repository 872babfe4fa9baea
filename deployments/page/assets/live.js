// What one model does now: tiles, charts, members and exits.
const tile = (name, value, level = "") => [
  make("dt", {}, name),
  make("dd", level ? { class: level } : {}, value),
];

const share = (part, whole) => (whole > 0 ? part / whole : null);
const shareText = (value) => (value === null ? "–" : percent(value, value > 0 && value < 0.001 ? 2 : 1));

const showTiles = (model, span, bounds) => {
  const spent = span ? minus(span.now.latency, span.before.latency) : model.latency;
  const statuses = (read) => read(model.statuses) - (span ? read(span.before.statuses) : 0);
  const counted = (name) => model[name] - (span ? span.before[name] : 0);
  const [asked, failed] = [statuses(total), statuses(errors)];
  const wrong = share(failed, asked);
  const degraded = share(counted("degraded"), counted("answers"));
  const pairs = [
    tile("Requests/s", span ? short(asked / span.seconds) : "–"),
    tile("Median", ms(quantile(bounds, spent, 0.5))),
    tile("99th percentile", ms(quantile(bounds, spent, 0.99))),
    tile("Refused or failed", shareText(wrong), wrong > 0.01 ? "bad" : ""),
    tile("Degraded", shareText(degraded), degraded > 0 ? "warn" : ""),
    ...(model.outputs.includes("rejected") ? [tile("Rejected rows", short(counted("rejected")))] : []),
    tile("Weight epoch", model.weight_epoch === null ? "–" : short(model.weight_epoch)),
  ];
  byId("tiles").replaceChildren(...pairs.map((pair) => make("div", {}, ...pair)));
};

const showCharts = (steps, now) => {
  const points = (name) => steps.map((step) => [step.time, step[name]]);
  const thousand = (name) => steps.map((step) => [step.time, step[name] === null ? null : step[name] * 1000]);
  const last = steps.at(-1);
  const perSecond = points("perSecond");
  const rate = last ? `${short(last.perSecond)} requests per second now` : "no figures yet";
  const times = last ? `median ${ms(last.median)}, 99th percentile ${ms(last.slow)} now` : "no figures yet";
  drawChart(byId("traffic"), [["area", perSecond], ["s1", perSecond]], now, rate);
  drawChart(byId("latency"), [["s1", thousand("median")], ["s2", thousand("slow")]], now, times);
};

const stateOf = (member, failed, rows) => {
  if (member.ejected) return ["bad", "ejected: disagrees"];
  if (member.breaker >= 2) return ["bad", "breaker open"];
  if (member.breaker >= 1) return ["warn", "breaker half open"];
  if (failed > 0) return rows > 0 ? ["warn", "fails at times"] : ["bad", "fails"];
  return rows > 0 ? ["good", "answers"] : ["", "idle"];
};

const showMembers = (model, span, bounds) => {
  const rows = model.members.map((member, place) => {
    const before = span?.before.members[place];
    const spent = before ? minus(member.latency, before.latency) : member.latency;
    const failed = member.failures - (before?.failures ?? 0);
    const answered = member.rows - (before?.rows ?? 0);
    const [level, text] = stateOf(member, failed, answered);
    const detail = member.fallback ? "eager: its compiled form could not run" : member.execution;
    const cells = [
      span ? short(answered / span.seconds) : "–",
      ms(quantile(bounds, spent, 0.5)),
      ms(quantile(bounds, spent, 0.99)),
      short(failed),
      short(member.batch_rows),
      short(member.queued_rows),
    ];
    return make(
      "tr",
      {},
      make("th", { scope: "row" }, member.name, make("small", {}, detail)),
      make("td", {}, make("span", { class: `dot ${level}`, "aria-hidden": "true" }), text),
      ...cells.map((cell) => make("td", { class: "num" }, cell)),
    );
  });
  byId("members").replaceChildren(...rows);
};

const showExits = (model) => {
  byId("exits-part").hidden = model.stages.length === 0;
  const counts = model.stages.map((_, stage) => model.exits[String(stage)] ?? 0);
  const rows = counts.reduce((sum, count) => sum + count, 0);
  const shares = counts.map((count) => share(count, rows) ?? 0);
  const color = (stage) => `c${Math.min(stage, 4)}`;
  const parts = shares.map((value, stage) => {
    const part = make("span", { class: color(stage) });
    part.style.width = `${100 * value}%`;
    return part;
  });
  const words = model.stages.map((name, stage) => `stage ${stage + 1}, ${name}: ${rows ? percent(shares[stage]) : "–"}`);
  byId("exits").replaceChildren(...(rows ? parts : []));
  byId("exits").setAttribute("aria-label", words.join("; "));
  byId("exits-key").replaceChildren(
    ...words.map((text, stage) => make("li", {}, make("i", { class: color(stage), "aria-hidden": "true" }), text)),
  );
};

const showModel = (history, name) => {
  const last = history.samples.at(-1);
  const model = history.of(last, name);
  const [span, bounds] = [history.window(name), last.found.latency_bounds_s];
  byId("about").textContent = `${model.description}, version ${model.version}`;
  byId("problem").hidden = !model.problem;
  byId("problem").textContent = model.problem ? `Cannot answer now: ${model.problem}` : "";
  showTiles(model, span, bounds);
  showCharts(history.steps(name), last.time);
  showMembers(model, span, bounds);
  showExits(model);
};
