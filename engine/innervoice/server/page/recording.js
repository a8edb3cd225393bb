// The recording of a conversation: the user on the left, the reply as it sounded on the right.

import { RATE, toInt16 } from "./pcm.js";

const MOST_S = 600;

/** Keeps the last ten minutes of both sides, each at the time at which it sounded. */
export class Recording {
  constructor() {
    this.pieces = []; // {side, at, samples}
    this.ends = [0, 0];
  }

  /** Add samples that have just sounded. side: 0 the user, 1 the reply. */
  add(side, samples) {
    const now = Math.round((performance.now() / 1000) * RATE) - samples.length;
    const gap = now - this.ends[side];
    const at = Math.abs(gap) < 0.25 * RATE ? this.ends[side] : now; // callbacks jitter, samples do not
    this.ends[side] = at + samples.length;
    this.pieces.push({ side, at, samples: toInt16(samples) });
    while (this.pieces[0].at < now - MOST_S * RATE) this.pieces.shift();
  }

  get isEmpty() {
    return this.pieces.length === 0;
  }

  /** Make a WAV file of two channels. */
  toBlob() {
    const start = Math.min(...this.pieces.map((piece) => piece.at));
    const end = Math.max(...this.pieces.map((piece) => piece.at + piece.samples.length));
    const sound = new Int16Array(2 * (end - start));
    for (const { side, at, samples } of this.pieces) {
      for (let i = 0; i < samples.length; i++) sound[2 * (at - start + i) + side] = samples[i];
    }
    return new Blob([header(sound.byteLength), sound], { type: "audio/wav" });
  }
}

function header(size) {
  const view = new DataView(new ArrayBuffer(44));
  const text = (at, word) => [...word].forEach((letter, i) => view.setUint8(at + i, letter.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, 36 + size, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true);
  view.setUint16(22, 2, true);
  view.setUint32(24, RATE, true);
  view.setUint32(28, 4 * RATE, true);
  view.setUint16(32, 4, true);
  view.setUint16(34, 16, true);
  text(36, "data");
  view.setUint32(40, size, true);
  return view;
}
