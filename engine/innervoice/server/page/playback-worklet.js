// Plays replies sample by sample and counts them. Runs on the audio thread.

const START_S = 0.08; // of sound that has to wait before a reply begins, or goes on after a gap
const FADE_S = 0.005;
const POST_S = 0.1;

class Playback extends AudioWorkletProcessor {
  constructor() {
    super();
    this.queue = []; // blocks {response, item, start, samples}; start: samples of the response before them
    this.read = 0; // samples of the first block that are played
    this.waiting = 0; // samples in the queue that are not
    this.played = 0; // of the current response
    this.current = null;
    this.isRunning = false;
    this.ended = new Set(); // responses of which everything has come
    this.underruns = 0;
    this.fading = 0; // samples of a fade that are left
    this.heard = [];
    this.since = 0;
    this.port.onmessage = ({ data }) => this[data.type](data);
  }

  push({ response, item, start, samples }) {
    this.queue.push({ response, item, start, samples });
    this.waiting += samples.length;
  }

  end({ response }) {
    this.ended.add(response);
    if (this.ended.size > 16) this.ended.delete(this.ended.values().next().value);
  }

  clear() {
    if (this.isRunning && this.queue.length) this.fading = Math.round(FADE_S * sampleRate);
    else this.finishClear();
  }

  finishClear() {
    this.queue = [];
    this.read = this.waiting = this.fading = 0;
    this.isRunning = false;
    this.post("cleared");
    this.current = null;
  }

  begin(block) {
    if (this.current) this.post("position");
    this.current = { response: block.response, item: block.item };
    this.played = block.start;
    this.post("begun");
  }

  /** Begin, or go on: a response that had run dry before its end has had a gap. */
  run() {
    this.isRunning = true;
    if (this.queue[0].response === this.current?.response) this.underruns++;
  }

  next() {
    const block = this.queue[0];
    if (block.response !== this.current?.response) this.begin(block);
    const value = block.samples[this.read++];
    this.waiting--;
    this.played++;
    if (this.read >= block.samples.length) {
      this.queue.shift();
      this.read = 0;
    }
    return value;
  }

  post(type) {
    const { response = null, item = null } = this.current ?? {};
    const { played, waiting, underruns } = this;
    this.port.postMessage({ type, response, item, played, waiting, underruns });
    this.since = 0;
  }

  ready() {
    const first = this.queue[0];
    return first && (this.waiting >= START_S * sampleRate || this.ended.has(first.response));
  }

  process(_, [[left, right]]) {
    if (!this.isRunning && this.ready()) this.run();
    for (let i = 0; i < left.length; i++) {
      left[i] = this.isRunning && this.queue.length ? this.next() : 0;
      if (this.fading) {
        left[i] *= this.fading / (FADE_S * sampleRate);
        if (--this.fading === 0 || !this.queue.length) this.finishClear();
      }
    }
    if (right) right.set(left);
    if (this.isRunning && !this.queue.length) {
      this.isRunning = false;
      this.post("dry");
    }
    this.since += left.length;
    if (this.isRunning && this.since >= POST_S * sampleRate) this.post("position");
    this.record(left);
    return true;
  }

  record(samples) {
    this.heard.push(samples.slice());
    if (this.heard.length < 32) return;
    this.port.postMessage({ type: "heard", blocks: this.heard });
    this.heard = [];
  }
}

registerProcessor("playback", Playback);
