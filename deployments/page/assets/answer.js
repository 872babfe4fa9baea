// What an answer says: the verdict, its probabilities, and each member's vote.
const MOST_BARS = 10;

const tensor = (reply, name) => reply.outputs.find((output) => output.name === name);
const used = (reply) =>
  (reply.parameters.members_used ?? reply.parameters.members).split(",").filter((name) => name !== "");
// Why a member's vote is not shown.
const silenceOf = (reply, name) => {
  if ((reply.parameters.members_missing ?? "").split(",").includes(name)) return "no answer";
  return reply.parameters.degraded ? "not used" : "not asked";
};
const best = (values) => values.indexOf(Math.max(...values));
const className = (model, place) => model.classes[place] ?? `class ${place}`;

// Of several labels a row those are there whose probability is above this.
let threshold = 0.5;
const labelsOf = (model, probabilities) => {
  const names = probabilities.map((_, place) => className(model, place));
  return names.filter((_, place) => probabilities[place] > threshold).join(", ") || "none";
};
const labelled = (model) => model.task === "multilabel";

const thresholdField = (change) => {
  const field = { type: "number", min: "0", max: "1", step: "0.05", value: String(threshold) };
  const input = make("input", field);
  input.addEventListener("change", () => {
    const wanted = Number(input.value);
    if (input.value !== "" && wanted >= 0 && wanted <= 1) threshold = wanted;
    change();
  });
  return make("label", { class: "quiet" }, "Labels above ", input);
};

const verdictOf = (model, reply, again) => {
  const probabilities = tensor(reply, "probabilities")?.data.flat(Infinity);
  if (!probabilities) {
    const values = tensor(reply, "values").data.flat(Infinity);
    return [make("p", { class: "verdict" }, values.map(short).join(", "))];
  }
  const winner = best(probabilities);
  const order = probabilities.map((_, place) => place).sort((a, b) => probabilities[b] - probabilities[a]);
  const bars = make("div", { class: "bars" });
  for (const place of order.slice(0, MOST_BARS)) {
    bars.append(
      make("span", {}, className(model, place)),
      bar(probabilities[place], labelled(model) ? probabilities[place] > threshold : place === winner),
      make("span", { class: "num" }, percent(probabilities[place])),
    );
  }
  if (labelled(model)) {
    return [make("p", { class: "verdict" }, labelsOf(model, probabilities)), bars, thresholdField(again)];
  }
  const sure = make("small", {}, ` ${percent(probabilities[winner])} sure`);
  return [make("p", { class: "verdict" }, className(model, winner), sure), bars];
};

// Rows of votes [members, outputs] with the members' weights, if the model tells them.
const votesOf = (model, reply) => {
  const found = tensor(reply, "member_probs") ?? tensor(reply, "member_values");
  if (!found) return null;
  const flat = found.data.flat(Infinity);
  const width = flat.length / model.members.length;
  const weights = tensor(reply, "member_weights")?.data.flat(Infinity);
  return model.members.map((member, place) => ({
    name: member.name,
    values: flat.slice(place * width, (place + 1) * width),
    weight: weights?.length === model.members.length ? weights[place] : null,
  }));
};

const votesTable = (model, reply, votes) => {
  const classes = model.task === "classification";
  const probabilities = tensor(reply, "probabilities")?.data.flat(Infinity);
  const winner = probabilities ? best(probabilities) : null;
  const asked = used(reply);
  const rows = votes.map(({ name, values, weight }) => {
    const silent = !asked.includes(name);
    const place = best(values);
    const labels = labelled(model) ? labelsOf(model, values) : "";
    const same = labelled(model) ? labels === labelsOf(model, probabilities) : place === winner;
    const said = labels || (classes ? className(model, place) : values.map(short).join(", "));
    const mark = same ? ["agree", "✓ agrees"] : ["differ", "✗ differs"];
    return make(
      "tr",
      {},
      make("th", { scope: "row" }, name),
      make("td", {}, silent ? silenceOf(reply, name) : said),
      ...(classes ? [make("td", { class: "num" }, silent ? "" : percent(values[place]))] : []),
      ...(probabilities ? [make("td", { class: silent ? "" : mark[0] }, silent ? "" : mark[1])] : []),
      make("td", {}, ...(weight === null || silent ? [] : [bar(weight, same || !probabilities)])),
      make("td", { class: "num" }, weight === null || silent ? "–" : percent(weight)),
    );
  });
  const title = (text, attributes = {}) => make("th", { scope: "col", ...attributes }, text);
  const sure = classes ? [title("Sure", { class: "num" })] : [];
  const vote = probabilities ? [title("Vote")] : [];
  const head = make("tr", {}, title("Member"), title("Says"), ...sure, ...vote, title("Weight", { colspan: "2" }));
  const table = make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows));
  return make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Votes" }, table);
};

const factsOf = (model, reply, seconds) => {
  const count = used(reply).length;
  const exit = tensor(reply, "exit_stage")?.data.flat(Infinity)[0];
  const parts = [`${count} of ${model.members.length} members`, `weight epoch ${reply.parameters.weight_epoch}`];
  if (exit !== undefined && model.stages.length) parts.push(`left at stage ${exit + 1}`);
  return make("p", { class: "quiet facts" }, [...parts, ms(seconds)].join(" · "));
};

const showAnswer = (model, reply, seconds) => {
  const votes = votesOf(model, reply);
  const again = () => showAnswer(model, reply, seconds);
  const parts = [...verdictOf(model, reply, again), factsOf(model, reply, seconds)];
  if (reply.parameters.degraded) {
    parts.unshift(make("p", { class: "notice warn" }, "Degraded: made without a member that should have answered."));
  }
  if (tensor(reply, "rejected")?.data.flat(Infinity)[0]) {
    const words = "Rejected: the ensemble is less sure than its threshold. This is its best guess.";
    parts.unshift(make("p", { class: "notice warn" }, words));
  }
  parts.push(make("h3", {}, "What the members said"));
  parts.push(
    votes
      ? votesTable(model, reply, votes)
      : make("p", { class: "quiet" }, `Asked: ${used(reply).join(", ")}. This model does not tell their votes.`),
  );
  byId("answer").replaceChildren(...parts);
};

const showProblem = (text) => byId("answer").replaceChildren(make("p", { class: "notice bad", role: "alert" }, text));
