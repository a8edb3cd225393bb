// Conversions between the samples of a browser (float) and those of the protocol (PCM16 as base64).

export const RATE = 24000;

/** Encode samples in [-1, 1] as base64 of PCM16. */
export function encode(samples) {
  const bytes = new Uint8Array(toInt16(samples).buffer);
  let text = "";
  for (let i = 0; i < bytes.length; i += 8192) text += String.fromCharCode(...bytes.subarray(i, i + 8192));
  return btoa(text);
}

/** Decode base64 of PCM16 to samples in [-1, 1]. */
export function decode(text) {
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  const values = new Int16Array(bytes.buffer, 0, bytes.length >> 1);
  return Float32Array.from(values, (value) => value / 32768);
}

/** Milliseconds of sound in base64 of PCM16. */
export function lengthMs(text) {
  return (text.length * 3) / 4 / 2 / (RATE / 1000);
}

/** Convert samples in [-1, 1] to 16-bit integers, clipped. */
export function toInt16(samples) {
  return Int16Array.from(samples, (value) => Math.max(-32768, Math.min(32767, Math.round(value * 32767))));
}

/** Measure the level of samples: 0 at -60 dBFS and below, 1 at full scale. */
export function level(samples) {
  let sum = 0;
  for (const value of samples) sum += value * value;
  const decibels = 10 * Math.log10(sum / Math.max(1, samples.length) + 1e-9);
  return Math.max(0, Math.min(1, 1 + decibels / 60));
}
