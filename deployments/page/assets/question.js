// From what people give to the tensor that the model takes.
const sizeOf = (input) => input.shape.reduce((product, size) => product * size, 1);
const takesImages = (input) =>
  input.datatype === "UINT8" && input.shape.length === 3 && [1, 3].includes(input.shape[0]);

// Numbers of a row, with any mix of commas, blanks and brackets between them.
const parseRow = (text, input) => {
  const words = text.split(/[\s,;[\]]+/).filter((word) => word !== "");
  const values = words.map(Number);
  const wrong = values.findIndex((value) => !Number.isFinite(value));
  if (wrong >= 0) throw new Error(`"${words[wrong].slice(0, 20)}" is not a number`);
  if (values.length !== sizeOf(input)) throw new Error(`${values.length} of ${sizeOf(input)} numbers`);
  const outside = (value) => !Number.isInteger(value) || value < 0 || value > 255;
  if (input.datatype === "UINT8" && values.some(outside)) throw new Error("pixels are whole numbers from 0 to 255");
  return values;
};

// An image file, scaled to what the model takes: values in [channel, row, column] order.
const readImage = async (file, input, canvas) => {
  const [channels, height, width] = input.shape;
  const bitmap = await createImageBitmap(file, { resizeWidth: width, resizeHeight: height, resizeQuality: "high" });
  [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#fff";
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0, width, height);
  const image = context.getImageData(0, 0, width, height);
  const values = pixelsOf(image.data, channels);
  if (channels === 1) {
    for (let place = 0; place < values.length; place += 1) image.data.fill(values[place], 4 * place, 4 * place + 3);
    context.putImageData(image, 0, 0);
  }
  return values;
};

// Grey is weighted as in ITU-R 601-2.
const pixelsOf = (rgba, channels) => {
  const values = [];
  for (let channel = 0; channel < channels; channel += 1) {
    for (let place = 0; place < rgba.length; place += 4) {
      const [red, green, blue] = rgba.subarray(place, place + 3);
      values.push(channels === 3 ? rgba[place + channel] : Math.round(0.299 * red + 0.587 * green + 0.114 * blue));
    }
  }
  return values;
};

// One row by the binary tensor extension: a JSON header, then the little-endian numbers.
const ARRAYS = { UINT8: Uint8Array, INT16: Int16Array, INT32: Int32Array };
const rowBody = (model, values) => {
  const { name, datatype, shape } = model.input;
  const raw = (ARRAYS[datatype] ?? Float32Array).from(values);
  return binaryBody(model, { name, datatype, shape: [1, ...shape] }, raw);
};

const binaryBody = (model, tensor, raw) => {
  const input = { ...tensor, parameters: { binary_data_size: raw.byteLength } };
  const header = new TextEncoder().encode(
    JSON.stringify({ inputs: [input], outputs: model.outputs.map((output) => ({ name: output })) }),
  );
  return {
    headers: { "Inference-Header-Content-Length": String(header.length) },
    blob: new Blob([header, raw]),
  };
};
