// What models take as people have it: a text, a sound, a row of named columns. Each gives tensors of a request.
const column = (name, datatype, value) => ({ name, datatype, shape: [1, 1], data: [value] });

const textTensors = () => [column("input", "BYTES", byId("text").value)];

const fieldsOf = () => [...byId("table-part").querySelectorAll("input")];

const tableTensors = (asks) =>
  asks.columns.map(({ name, values }, place) => {
    const field = fieldsOf()[place];
    const text = field.value.trim();
    if (values) return column(name, "BYTES", text === "" ? null : text);
    if (field.validity.badInput || (text !== "" && !Number.isFinite(Number(text)))) {
      field.focus();
      throw new Error(`${name} is not a number`);
    }
    return column(name, "FP64", text === "" ? null : Number(text));
  });

// A field for each column; an empty one is a missing value.
const makeFields = (asks) => {
  const fields = asks.columns.map(({ name, values, fill }, place) => {
    const id = `field-${place}`;
    const input = make("input", { id, type: values ? "text" : "number", autocomplete: "off", "aria-describedby": "row-note" });
    const parts = [make("label", { for: id }, name), input];
    if (values) {
      input.setAttribute("list", `${id}-values`);
      parts.push(make("datalist", { id: `${id}-values` }, ...values.map((value) => make("option", { value }))));
      input.placeholder = "missing";
    } else {
      input.step = "any";
      input.placeholder = `missing, taken as ${short(fill)}`;
    }
    return make("div", {}, ...parts);
  });
  byId("table-part").replaceChildren(...fields);
};

const fillAtRandom = (asks) => {
  asks.columns.forEach(({ values, fill }, place) => {
    const spread = Math.max(1, Math.abs(fill));
    fieldsOf()[place].value = values
      ? (values[Math.floor(values.length * Math.random())] ?? "")
      : String(Number((fill + spread * (Math.random() - 0.5)).toPrecision(3)));
  });
};

const wantedOf = (asks) => {
  if (asks.kind === "text") return `a text; ${asks.tokens} tokens of it are read`;
  if (asks.kind === "audio") return `a sound; its first ${short(asks.seconds)} s are heard, at ${short(asks.rate / 1000)} kHz`;
  return `a row of ${asks.columns.length} columns; an empty field is a missing value`;
};

// A request with all in JSON.
const jsonBody = (model, inputs) => ({
  headers: { "Content-Type": "application/json" },
  blob: new Blob([JSON.stringify({ inputs, outputs: model.outputs.map((name) => ({ name })) })]),
});

// A request with one file behind the header: an element of BYTES is its length and then itself.
const fileBody = (model, bytes) => {
  const raw = new Uint8Array(4 + bytes.length);
  new DataView(raw.buffer).setUint32(0, bytes.length, true);
  raw.set(bytes, 4);
  return binaryBody(model, { name: "input", datatype: "BYTES", shape: [1, 1] }, raw);
};
