// The microphone's samples at 24 kHz, in blocks of 40 ms. Runs on the audio thread.

const RATE = 24000;
const BLOCK = 960;
const REACH = 16; // input samples on each side of an output sample, at the lower of both rates

/** Resamples by a windowed sinc, for browsers that give the microphone at the device's rate only. */
class Resampler {
  constructor(from, to) {
    this.step = from / to;
    this.cutoff = Math.min(1, to / from);
    this.reach = Math.ceil(REACH / this.cutoff);
    this.kept = new Float32Array(2 * this.reach);
    this.at = this.reach; // place of the next output sample in `kept`
  }

  convert(input) {
    const joined = new Float32Array(this.kept.length + input.length);
    joined.set(this.kept);
    joined.set(input, this.kept.length);
    const made = [];
    while (this.at + this.reach < joined.length) {
      made.push(this.sample(joined, this.at));
      this.at += this.step;
    }
    const start = Math.max(0, Math.floor(this.at) - this.reach);
    this.kept = joined.slice(start);
    this.at -= start;
    return made;
  }

  sample(joined, at) {
    let sum = 0;
    for (let i = Math.ceil(at - this.reach); i < at + this.reach; i++) {
      const x = i - at;
      const angle = Math.PI * x * this.cutoff;
      const sinc = angle === 0 ? 1 : Math.sin(angle) / angle;
      sum += (joined[i] ?? 0) * sinc * (0.5 + 0.5 * Math.cos((Math.PI * x) / this.reach));
    }
    return sum * this.cutoff;
  }
}

class Capture extends AudioWorkletProcessor {
  constructor() {
    super();
    this.resampler = sampleRate === RATE ? null : new Resampler(sampleRate, RATE);
    this.block = new Float32Array(BLOCK);
    this.filled = 0;
  }

  process([[input]]) {
    if (!input) return true;
    for (const value of this.resampler ? this.resampler.convert(input) : input) {
      this.block[this.filled++] = value;
      if (this.filled === BLOCK) {
        this.port.postMessage(this.block, [this.block.buffer]);
        this.block = new Float32Array(BLOCK);
        this.filled = 0;
      }
    }
    return true;
  }
}

registerProcessor("capture", Capture);
