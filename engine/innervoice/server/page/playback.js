// The sound of replies: a queue on the audio thread, and the exact count of samples that were played of each.

import { RATE } from "./pcm.js";

const KEPT = 16; // responses

/**
 * Plays replies one after another. Events: "begun", "position" (10 a second), "dry" (nothing is left to play),
 * "cleared", each with {response, item, playedMs, waitingMs, underruns}; "heard" with samples as they sounded.
 */
export class Playback extends EventTarget {
  constructor() {
    super();
    this.received = new Map(); // samples by response
    this.dropped = new Set(); // responses that were cleared: what still comes of them is not played
    this.at = null;
    this.underruns = 0;
  }

  /** Open the output; needs a gesture of the user. */
  async open() {
    if (this.context) return this.unlock();
    const context = new AudioContext({ sampleRate: RATE, latencyHint: "interactive" });
    if (!context.audioWorklet) {
      throw new Error("This address is not secure, so the browser plays no sound: use https or localhost.");
    }
    await context.audioWorklet.addModule(new URL("playback-worklet.js", import.meta.url));
    this.node = new AudioWorkletNode(context, "playback", { outputChannelCount: [2], numberOfInputs: 0 });
    this.node.port.onmessage = ({ data }) => this.take(data);
    this.node.connect(context.destination);
    this.context = context;
    context.onstatechange = () => this.dispatchEvent(new CustomEvent("unlocked", { detail: this.isUnlocked }));
    return this.unlock();
  }

  /** Let the sound run. After a reload a browser may wait for a gesture, and its promise with it: this one does not. */
  unlock() {
    return Promise.race([this.context.resume(), new Promise((resolve) => setTimeout(resolve, 400))]);
  }

  get isUnlocked() {
    return this.context?.state === "running";
  }

  /** Choose the device; only where the browser can. */
  async choose(deviceId) {
    await this.context?.setSinkId?.(deviceId);
  }

  /** Milliseconds between a counted sample and the ear. */
  get latencyMs() {
    return 1000 * (this.context?.outputLatency ?? 0);
  }

  /** Whether sound is waiting or being played. */
  get isBusy() {
    return Boolean(this.at?.response) && this.at.waitingMs > 0;
  }

  receivedMs(response) {
    return (1000 * this.receivedSamples(response)) / RATE;
  }

  receivedSamples(response) {
    return this.received.get(response) ?? 0;
  }

  isDropped(response) {
    return this.dropped.has(response);
  }

  /** Count samples of a response that were played before a reload. */
  restore(response, samples) {
    this.received.set(response, samples);
  }

  push(response, item, samples) {
    if (this.dropped.has(response)) return;
    const start = this.receivedSamples(response);
    this.received.set(response, start + samples.length);
    if (!this.at || this.at.response === null) {
      this.at = { response, item, playedMs: (1000 * start) / RATE, waitingMs: 1, underruns: this.underruns };
    }
    this.node?.port.postMessage({ type: "push", response, item, start, samples }, [samples.buffer]);
  }

  end(response) {
    this.trim();
    this.node?.port.postMessage({ type: "end", response });
  }

  /** Forget all responses but the newest few, so that a long conversation costs no more than a short one. */
  trim() {
    for (const set of [this.received, this.dropped]) {
      for (const response of [...set.keys()].slice(0, -KEPT)) set.delete(response);
    }
  }

  /** Play nothing more of a response that still comes. */
  drop(response) {
    this.dropped.add(response);
  }

  /** Stop within 5 ms -> resolves to what was playing, with the exact count. */
  clear() {
    for (const response of this.received.keys()) this.dropped.add(response);
    if (!this.node) return Promise.resolve(null);
    this.node.port.postMessage({ type: "clear" });
    return new Promise((resolve) => this.addEventListener("cleared", (event) => resolve(event.detail), { once: true }));
  }

  take({ type, blocks, response, item, played, waiting, underruns }) {
    if (type === "heard") {
      this.dispatchEvent(new CustomEvent("heard", { detail: blocks }));
      return;
    }
    this.underruns = underruns;
    const detail = { response, item, playedMs: (1000 * played) / RATE, waitingMs: (1000 * waiting) / RATE, underruns };
    this.at = type === "cleared" ? null : detail;
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}
