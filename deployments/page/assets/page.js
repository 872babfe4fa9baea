// The page: polls /status, switches between models, asks questions.
const POLL_MS = 2000;
const LISTED = 4096;
const past = new History();
let chosen = null;
let row = null;
let sound = null;
let recording = null;

const headers = () => {
  const key = sessionStorage.getItem("key");
  return key ? { Authorization: `Bearer ${key}` } : {};
};

const setState = (level, text) => {
  document.querySelector("#state .dot").className = `dot ${level}`;
  if (byId("state-text").textContent !== text) byId("state-text").textContent = text;
};

const model = () => past.of(past.samples.at(-1), chosen);

const choose = (name) => {
  chosen = name;
  preparePlayground();
  showModel(past, chosen);
};

const showTabs = (models) => {
  const names = models.map((found) => found.name);
  const tabs = byId("models");
  const shown = [...tabs.querySelectorAll("input")].map((input) => input.value);
  if (names.join("\n") === shown.join("\n")) return;
  if (!names.includes(chosen)) chosen = names[0];
  tabs.replaceChildren(tabs.querySelector("legend"));
  for (const name of names) {
    const input = make("input", { type: "radio", name: "model", value: name });
    input.checked = name === chosen;
    input.addEventListener("change", () => choose(name));
    tabs.append(make("label", {}, input, name));
  }
  preparePlayground();
};

const poll = async () => {
  try {
    const reply = await fetch("/status", { headers: headers(), cache: "no-store" });
    const refused = reply.status === 401 || reply.status === 403;
    byId("key-form").hidden = !refused;
    if (refused) return setState("bad", "an API key is needed");
    if (!reply.ok) return setState("bad", (await reply.json()).error);
    const found = await reply.json();
    past.add(performance.now(), found);
    byId("shown").hidden = false;
    byId("version").textContent = `orchestrator ${found.version}`;
    showTabs(found.models);
    showModel(past, chosen);
    const unready = found.models.filter((one) => one.problem).length;
    const all = found.models.length === 1 ? "ready" : `all ${found.models.length} models ready`;
    return unready ? setState("warn", `${unready} of ${found.models.length} not ready`) : setState("good", all);
  } catch {
    return setState("bad", "the server does not answer");
  }
};

const preparePlayground = () => {
  const { input, asks } = model();
  const kind = asks.kind ?? "row";
  const image = kind === "row" && takesImages(input);
  const numbers = input.datatype === "UINT8" ? "whole numbers from 0 to 255" : "numbers";
  row = null;
  sound = null;
  for (const name of ["text", "audio", "table", "row"]) byId(`${name}-part`).hidden = name !== kind;
  byId("image-part").hidden = !image;
  byId("random").hidden = kind === "text" || kind === "audio";
  byId("record").hidden = kind !== "audio" || !canRecord();
  for (const canvas of ["preview", "wave"]) byId(canvas).hidden = true;
  byId("drop-text").textContent = "Drop an image here, or choose one";
  byId("sound-text").textContent = "Drop a sound here, or choose a file";
  byId("wanted").textContent = image
    ? `an image, scaled to ${input.shape[2]} × ${input.shape[1]} pixels, or its values`
    : `a row of ${sizeOf(input)} ${numbers}`;
  if (kind !== "row") byId("wanted").textContent = wantedOf(asks);
  if (kind === "table") makeFields(asks);
  byId("row-label").textContent = `Row of ${sizeOf(input)} ${numbers}`;
  for (const field of ["row", "text"]) byId(field).value = "";
  note("");
  byId("answer").replaceChildren(
    make("p", { class: "quiet empty" }, "The answer, and what every member said, appears here."),
  );
};

const note = (text) => {
  byId("row-note").textContent = text;
  for (const field of ["row", "text"]) byId(field).setAttribute("aria-invalid", String(text !== ""));
};

const take = (values) => {
  row = values;
  note("");
  // A large image's numbers help nobody, and make the field slow.
  byId("row").value = values.length <= LISTED ? values.join(", ") : "";
};

const takeFile = async (file) => {
  if (!file) return;
  try {
    take(await readImage(file, model().input, byId("preview")));
    byId("preview").hidden = false;
    byId("drop-text").textContent = `${file.name}, as the model sees it`;
    await ask();
  } catch {
    showProblem(`${file.name} is no image that this browser can read.`);
  }
};

const takeSound = async (bytes, name, { trimmed = false } = {}) => {
  const { rate, seconds } = model().asks;
  try {
    const heard = await decodeSound(bytes, rate);
    const samples = trimmed ? withoutSilence(heard, rate) : heard;
    // The server reads WAV files as they are; all else was decoded here.
    sound = isWav(bytes) ? bytes : wavOf(samples, rate);
    byId("wave").hidden = false;
    drawWave(byId("wave"), samples, rate, seconds);
    byId("wave").dataset.seconds = samples.length / rate;
    byId("sound-text").textContent = `${name}, ${short(samples.length / rate)} s`;
    await ask();
  } catch {
    showProblem(`${name} is no sound that this browser can read.`);
  }
};

const takeSoundFile = async (file) => {
  if (file) await takeSound(new Uint8Array(await file.arrayBuffer()), file.name);
};

const record = async () => {
  if (recording) return recording.stop();
  try {
    recording = await startRecording();
  } catch {
    return note("The microphone is not available, or this page may not use it.");
  }
  note("");
  byId("record").textContent = "Stop and ask";
  byId("record").setAttribute("aria-pressed", "true");
  const asked = chosen;
  const bytes = await recording.bytes;
  recording = null;
  byId("record").textContent = "Record with the microphone";
  byId("record").setAttribute("aria-pressed", "false");
  return asked === chosen ? takeSound(bytes, "Recording", { trimmed: true }) : undefined;
};

// The request that the filled-in form is; its errors are for people.
const question = (asked) => {
  const { kind } = asked.asks;
  if (kind === "text") return jsonBody(asked, textTensors());
  if (kind === "table") return jsonBody(asked, tableTensors(asked.asks));
  if (kind === "audio") {
    if (sound === null) throw new Error("give a sound first");
    return fileBody(asked, sound);
  }
  if (byId("row").value.trim()) row = parseRow(byId("row").value, asked.input);
  if (row === null) throw new Error("give a row first");
  return rowBody(asked, row);
};

const FOCUS = { text: "text", audio: "sound", table: null };

const ask = async () => {
  const asked = model();
  let sent;
  try {
    sent = question(asked);
    note("");
  } catch (error) {
    note(error.message);
    const place = asked.asks.kind ? FOCUS[asked.asks.kind] : "row";
    if (place) byId(place).focus();
    return;
  }
  byId("send").disabled = true;
  try {
    const started = performance.now();
    const reply = await fetch(`/v2/models/${encodeURIComponent(asked.name)}/infer`, {
      method: "POST",
      headers: { ...headers(), ...sent.headers },
      body: sent.blob,
    });
    const found = await reply.json();
    const seconds = (performance.now() - started) / 1000;
    if (reply.ok) showAnswer(asked, found, seconds);
    else showProblem(`${reply.status}: ${found.error}`);
  } catch {
    showProblem("The server does not answer.");
  } finally {
    byId("send").disabled = false;
  }
};

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", byId("key").value.trim());
  poll();
});
byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
byId("row").addEventListener("input", () => { row = null; note(""); });
byId("text").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
  event.preventDefault();
  ask();
});
byId("random").addEventListener("click", () => {
  const { input, asks } = model();
  if (asks.kind === "table") {
    fillAtRandom(asks);
    ask();
    return;
  }
  const value = input.datatype === "UINT8" ? () => Math.floor(256 * Math.random()) : () => Number((2 * Math.random() - 1).toFixed(3));
  byId("preview").hidden = true;
  byId("drop-text").textContent = "Drop an image here, or choose one";
  take(Array.from({ length: sizeOf(input) }, value));
  ask();
});
byId("file").addEventListener("change", (event) => takeFile(event.target.files[0]));
byId("sound").addEventListener("change", (event) => takeSoundFile(event.target.files[0]));
byId("record").addEventListener("click", record);
const droppable = (drop, taken) => {
  drop.addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    taken(event.dataTransfer.files[0]);
  });
};
droppable(byId("drop"), takeFile);
droppable(byId("sound-drop"), takeSoundFile);
new ResizeObserver(() => { if (chosen) showModel(past, chosen); }).observe(byId("traffic"));
poll();
setInterval(() => { if (!document.hidden) poll(); }, POLL_MS);
