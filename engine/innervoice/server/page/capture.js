// The user's sound: a microphone, or a recording that is spoken in its place, in blocks of 40 ms at 24 kHz.

import { RATE } from "./pcm.js";

const BLOCK = 960;
const BLOCK_MS = (1000 * BLOCK) / RATE;

/** Calls `onBlock` with samples. While a recording is spoken, the microphone's blocks are dropped. */
export class Capture {
  constructor(onBlock) {
    this.onBlock = onBlock;
    this.isMuted = false;
    this.speaking = null;
  }

  get isOpen() {
    return Boolean(this.stream);
  }

  /** Open a microphone, the browser's default without an id. Rejects as getUserMedia does. */
  async open(deviceId) {
    this.close();
    if (!navigator.mediaDevices) {
      throw new Error("This address is not secure, so the browser offers no microphone: use https or localhost.");
    }
    const wanted = { echoCancellation: true, noiseSuppression: true, autoGainControl: true, channelCount: 1 };
    if (deviceId) wanted.deviceId = { exact: deviceId };
    this.stream = await navigator.mediaDevices.getUserMedia({ audio: wanted });
    await this.listen({ sampleRate: RATE }).catch(() => this.listen({})); // Firefox wants the device's own rate
    for (const track of this.stream.getTracks()) track.onended = () => this.close();
  }

  async listen(options) {
    const context = new AudioContext(options);
    try {
      await context.audioWorklet.addModule(new URL("capture-worklet.js", import.meta.url));
      const source = context.createMediaStreamSource(this.stream);
      const node = new AudioWorkletNode(context, "capture", { numberOfOutputs: 0 });
      node.port.onmessage = ({ data }) => this.take(data);
      source.connect(node);
      await context.resume();
      this.context = context;
    } catch (error) {
      await context.close();
      throw error;
    }
  }

  take(samples) {
    if (this.speaking) return;
    this.onBlock(this.isMuted ? new Float32Array(samples.length) : samples);
  }

  /** Speak a recording in real time, then silence for so long; a second one takes the first one's place. */
  speak(samples, silenceMs) {
    this.hush();
    const total = samples.length + (silenceMs / 1000) * RATE;
    const began = performance.now();
    let sent = 0;
    return new Promise((resolve) => {
      const step = () => {
        while (sent < total && sent / RATE < (performance.now() - began + BLOCK_MS) / 1000) {
          const block = new Float32Array(BLOCK);
          block.set(samples.subarray(sent, sent + BLOCK));
          sent += BLOCK;
          this.onBlock(block);
        }
        if (sent >= total) this.hush();
      };
      this.speaking = { timer: setInterval(step, BLOCK_MS / 2), resolve };
    });
  }

  /** End the recording that is spoken. */
  hush() {
    if (!this.speaking) return;
    const { timer, resolve } = this.speaking;
    clearInterval(timer);
    this.speaking = null;
    resolve();
  }

  /** Give the microphone back. */
  close() {
    this.hush();
    for (const track of this.stream?.getTracks() ?? []) track.stop();
    this.context?.close();
    this.stream = this.context = null;
  }
}
