// How numbers are written for people, as in the page's own tables.
const NONE = "\u2013";

const numberText = (value, digits = 3) => {
  if (value === null || value === undefined || !Number.isFinite(value)) return NONE;
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-4 || size >= 1e6)) return value.toExponential(digits - 1);
  const decimals = size ? Math.max(0, digits - 1 - Math.floor(Math.log10(size))) : 0;
  return value.toLocaleString("en-US", { minimumFractionDigits: Math.min(decimals, 6), maximumFractionDigits: Math.min(decimals, 6) });
};

// A tick or a setting: no more digits than it has.
const shortText = (value) => {
  if (typeof value !== "number") return String(value);
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return String(Number(value.toPrecision(3)).toExponential()).replace("e+", "e");
  return String(Number(value.toPrecision(6)));
};

const sizeText = (bytes) => {
  if (bytes === null || bytes === undefined) return NONE;
  for (const [unit, factor] of [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]]) {
    if (bytes >= factor) return `${numberText(bytes / factor)}\u00a0${unit}`;
  }
  return `${Math.round(bytes)}\u00a0B`;
};

const timeText = (seconds) => {
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min${whole % 60 ? ` ${whole % 60} s` : ""}`;
  return `${Math.floor(whole / 3600)} h${whole % 3600 >= 60 ? ` ${Math.floor((whole % 3600) / 60)} min` : ""}`;
};

// A long name may be broken after a dot or an underscore.
const soft = (name) => name.replace(/[._]/g, "$&\u200b");

const spanText = (span, format) => (span ? ` (${format(span[0])} to ${format(span[1])})` : "");
const millisecondsText = (value) => (value ? `${numberText(value)}\u00a0ms` : NONE);
const timesText = (value) => (value ? `${numberText(value)}\u00d7` : NONE);

// The run's metric: percent for shares; a drop in points.
const metricFormats = ({ percent, label }) => {
  const shown = (value) => (value === null || value === undefined ? NaN : percent ? 100 * value : value);
  const plain = (value) => (percent ? shown(value).toFixed(1) : numberText(value));
  return {
    label,
    shown,
    tick: (value) => shortText(value),
    value: (value) => (value === null || value === undefined ? NONE : percent ? `${shown(value).toFixed(2)}\u00a0%` : numberText(value, 4)),
    span: (span) => spanText(span, plain),
    drop: (value) => {
      if (value === null || value === undefined) return NONE;
      const text = percent ? (100 * value).toFixed(2) : numberText(value);
      return value > 0 ? `+${text}` : text.replace("-", "\u2212");
    },
    points: percent ? " points" : "",
    unit: percent ? ", %" : "",
  };
};

// A plan as YAML, for reading and for copying into a run file.
const yamlOf = (value, indent = "") => {
  if (Array.isArray(value)) {
    if (!value.length) return "[]";
    if (value.every((item) => item === null || typeof item !== "object")) return `[${value.map((item) => yamlOf(item)).join(", ")}]`;
    return value.map((item) => `\n${indent}- ${yamlOf(item, `${indent}  `).trimStart()}`).join("");
  }
  if (value !== null && typeof value === "object") {
    const entries = Object.entries(value);
    if (!entries.length) return "{}";
    return entries
      .map(([key, item]) => {
        const below = yamlOf(item, `${indent}  `);
        return `\n${indent}${yamlOf(key)}:${below.startsWith("\n") ? "" : " "}${below}`;
      })
      .join("");
  }
  if (typeof value !== "string") return String(value);
  const plain = /^[A-Za-z_][\w./-]*$/.test(value) && !/^(true|false|null|yes|no|on|off|y|n)$/i.test(value);
  return plain ? value : JSON.stringify(value);
};
