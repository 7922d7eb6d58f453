// Numbers and ids for people: every number gets its unit, and what is not known is a dash.

export const NONE = "–";
const known = (value) => value !== null && value !== undefined;

export const count = (value) => (known(value) ? value.toLocaleString("en") : NONE);
export const money = (value) => (known(value) ? `${count(value)} µc` : NONE);
export const perSecond = (value) => (known(value) ? `${value >= 100 ? Math.round(value) : value.toFixed(1)} tok/s` : NONE);
export const percent = (value) => (known(value) ? `${Math.round(value * 100)} %` : NONE);
export const shortId = (id) => (id ? `${id.slice(0, 6)}…${id.slice(-4)}` : NONE);

export function duration(ms) {
  if (!known(ms)) return NONE;
  if (ms < 1000) return `${Math.round(ms)} ms`;
  const s = ms / 1000;
  if (s < 60) return `${s.toFixed(1)} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${Math.floor(s % 60)} s`;
  return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
}

export const age = (ms, now) => (known(ms) ? `${duration(Math.max(0, now - ms))} ago` : NONE);

export function bytes(value) {
  if (!known(value)) return NONE;
  const gib = value / 2 ** 30;
  return gib >= 1 ? `${gib.toFixed(1)} GiB` : `${Math.round(value / 2 ** 20)} MiB`;
}

// The value that 95 of 100 stay below; of few values, the largest.
export function p95(values) {
  const sorted = values.filter(known).sort((a, b) => a - b);
  return sorted.length ? sorted[Math.min(sorted.length - 1, Math.ceil(sorted.length * 0.95) - 1)] : null;
}
