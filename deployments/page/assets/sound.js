// Sound in the browser: any file that it can decode, or the microphone, to a WAV file at the model's rate.
const LONGEST_MS = 20000;
const QUIET = 0.02;

const isWav = (bytes) => String.fromCharCode(...bytes.slice(0, 4)) === "RIFF";
const canRecord = () => Boolean(navigator.mediaDevices?.getUserMedia && globalThis.MediaRecorder);

// Samples of one channel at a rate in Hz, from the bytes of a file.
const decodeSound = async (bytes, rate) => {
  const decoded = await new OfflineAudioContext(1, 1, rate).decodeAudioData(bytes.slice().buffer);
  const mixed = new Float32Array(decoded.length);
  for (let channel = 0; channel < decoded.numberOfChannels; channel += 1) {
    decoded.getChannelData(channel).forEach((value, place) => { mixed[place] += value / decoded.numberOfChannels; });
  }
  return mixed;
};

// A recording begins with silence, which the model would see instead of the end.
const withoutSilence = (samples, rate) => {
  const first = samples.findIndex((value) => Math.abs(value) > QUIET);
  return samples.slice(Math.max(0, first - Math.round(rate / 20)));
};

// A PCM WAV file of one channel of 16 bits.
const wavOf = (samples, rate) => {
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const text = (place, word) => [...word].forEach((letter, at) => view.setUint8(place + at, letter.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, 36 + 2 * samples.length, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true);
  view.setUint16(22, 1, true);
  view.setUint32(24, rate, true);
  view.setUint32(28, 2 * rate, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  text(36, "data");
  view.setUint32(40, 2 * samples.length, true);
  samples.forEach((value, place) => view.setInt16(44 + 2 * place, Math.round(32767 * Math.max(-1, Math.min(1, value))), true));
  return new Uint8Array(view.buffer);
};

// Records until `stop` is called, or for LONGEST_MS; gives the bytes of what the browser's recorder wrote.
const startRecording = async () => {
  const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
  const recorder = new MediaRecorder(stream);
  const parts = [];
  recorder.addEventListener("dataavailable", (event) => parts.push(event.data));
  const done = new Promise((resolve) => { recorder.addEventListener("stop", resolve, { once: true }); });
  const stop = () => { if (recorder.state !== "inactive") recorder.stop(); };
  recorder.start();
  const timer = setTimeout(stop, LONGEST_MS);
  const bytes = done.then(async () => {
    clearTimeout(timer);
    stream.getTracks().forEach((track) => track.stop());
    return new Uint8Array(await new Blob(parts).arrayBuffer());
  });
  return { stop, bytes };
};

// The part that the model hears, as a waveform; what is cut off is drawn pale.
const drawWave = (canvas, samples, rate, seconds) => {
  const { width, height } = canvas;
  const context = canvas.getContext("2d");
  const style = getComputedStyle(canvas);
  const shown = Math.max(samples.length, Math.round(rate * seconds));
  const loudest = samples.reduce((most, value) => Math.max(most, Math.abs(value)), 0.05);
  context.clearRect(0, 0, width, height);
  for (let column = 0; column < width; column += 1) {
    const part = samples.subarray(Math.floor((column * shown) / width), Math.ceil(((column + 1) * shown) / width));
    const peak = part.reduce((most, value) => Math.max(most, Math.abs(value)), 0) / loudest;
    const heard = (column * shown) / width < rate * seconds;
    context.fillStyle = style.getPropertyValue(heard ? "--s1" : "--strong");
    const tall = Math.max(1, peak * (height - 4));
    context.fillRect(column, (height - tall) / 2, 1, tall);
  }
};
