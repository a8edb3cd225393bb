// A call: one conversation with the server, its microphone and its sound. Knows nothing of how it is shown.

import { Capture } from "./capture.js";
import { Connection } from "./connection.js";
import { Playback } from "./playback.js";
import { Recording } from "./recording.js";
import { decode, encode, level, RATE } from "./pcm.js";

/**
 * Events: "server", "client" and "state" as of the connection; "begun", "position", "dry", "cleared" and "unlocked" as
 * of the playback; "level" and "loudness" of the user's sound and of the reply's; "cut" with {response, item, playedMs,
 * countMs, latencyMs}: the place of the cut in the sound, which is what was played less what the device still held;
 * "latency" with {serverMs, playerMs}: from the end of the user's turn until its reply's sound comes, and on to the ear;
 * "busy" when a reply begins or ends.
 */
export class Call extends EventTarget {
  constructor() {
    super();
    this.connection = new Connection();
    this.playback = new Playback();
    this.recording = new Recording();
    this.capture = new Capture((samples) => this.hear(samples));
    this.isManual = false;
    this.isHolding = false;
    this.isAnswering = false;
    this.sentMs = 0;
    this.turnEnd = null;
    this.arrived = null; // when the first sound since then came
    this.response = null; // the newest
    this.coming = []; // sound that is not played yet: {seq, response, from, to}, in samples of its response
    this.broken = null; // the reply that a reload interrupted: {response, from, skip}
    this.relay(this.connection, ["server", "client", "state"]);
    this.relay(this.playback, ["begun", "position", "dry", "cleared", "unlocked"]);
    this.connection.addEventListener("server", ({ detail }) => this.take(detail));
    this.playback.addEventListener("begun", ({ detail }) => this.firstSound(detail));
    this.playback.addEventListener("position", ({ detail }) => this.acknowledge(detail));
    this.playback.addEventListener("dry", ({ detail }) => this.acknowledge(detail));
    this.playback.addEventListener("cleared", () => (this.coming = []));
    this.playback.addEventListener("heard", ({ detail }) => this.record(detail));
  }

  relay(source, types) {
    for (const type of types) {
      source.addEventListener(type, ({ detail }) => this.emit(type, detail));
    }
  }

  emit(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  get isOpen() {
    return this.connection.state === "open";
  }

  /** Whether a reply is being made or played. */
  get isBusy() {
    return this.isAnswering || this.playback.isBusy;
  }

  /** Unlock the sound and connect. key: null where the server needs none. kept: of `remember`, before a reload. */
  async start(key, kept = null) {
    await this.playback.open();
    if (kept) this.restore(kept);
    this.connection.open(key, kept);
  }

  /** What a reloaded page needs to go on: the session, and the place in the sound; null without a session. */
  remember() {
    const { token, lastEvent, after } = this.connection;
    if (!token) return null;
    const at = this.playback.at;
    const next = this.coming[0];
    const played = next && at?.response === next.response ? Math.round((at.playedMs * RATE) / 1000) : next?.from;
    return {
      token,
      lastEvent,
      after: next ? next.seq - 1 : after ?? lastEvent,
      response: this.response,
      isAnswering: this.isAnswering,
      sentMs: this.sentMs,
      broken: next ? { response: next.response, from: next.from, skip: Math.max(0, played - next.from) } : this.broken,
    };
  }

  restore({ response, isAnswering, sentMs, broken }) {
    Object.assign(this, { response, isAnswering, sentMs, broken });
    if (broken) this.playback.restore(broken.response, broken.from + broken.skip);
  }

  /** End the conversation. */
  stop() {
    this.capture.close();
    this.playback.clear();
    this.connection.close();
    this.isAnswering = this.isHolding = false;
    this.emit("busy");
  }

  /** Send a block of the user's sound, unless a key has to be held for it. */
  hear(samples) {
    this.emit("level", level(samples));
    if (!this.isOpen || (this.isManual && !this.isHolding)) return;
    this.recording.add(0, samples);
    if (this.connection.send("input_audio_buffer.append", { audio: encode(samples) })) {
      this.sentMs += (1000 * samples.length) / RATE;
    }
  }

  record(blocks) {
    const joined = new Float32Array(blocks.length * blocks[0].length);
    blocks.forEach((block, i) => joined.set(block, i * block.length));
    this.emit("loudness", level(joined));
    if (this.isOpen) this.recording.add(1, joined);
  }

  /** Begin a turn by hand: the reply stops, and the sound from now on belongs to the turn. */
  hold() {
    if (!this.isManual || this.isHolding) return;
    this.interrupt();
    this.connection.send("input_audio_buffer.clear");
    this.isHolding = true;
    this.heldMs = this.sentMs;
  }

  /** End a turn by hand; one of less than a tenth of a second is dropped. */
  release() {
    if (!this.isHolding) return;
    this.isHolding = false;
    if (this.sentMs - this.heldMs < 120) {
      this.connection.send("input_audio_buffer.clear");
      return;
    }
    this.connection.send("input_audio_buffer.commit");
    this.ask();
  }

  /** Say a typed message. */
  say(text) {
    this.interrupt();
    const item = { type: "message", role: "user", content: [{ type: "input_text", text }] };
    this.connection.send("conversation.item.create", { item });
    this.ask();
  }

  /** Speak a recording in the microphone's place. silenceMs: after it, so that the end of the turn is found. */
  async speak(samples, silenceMs) {
    if (this.isManual) this.hold();
    await this.capture.speak(samples, this.isManual ? 0 : silenceMs);
    if (this.isManual) this.release();
  }

  ask() {
    this.endTurn(performance.now());
    this.connection.send("response.create");
  }

  /** Stop the reply: its sound within 5 ms, its decoding, and what was not heard leaves the dialogue. */
  interrupt() {
    if (this.isAnswering) this.connection.send("response.cancel");
    this.isAnswering = false;
    return this.cut();
  }

  async cut() {
    if (this.response) this.playback.drop(this.response);
    const at = await this.playback.clear();
    if (!at?.response || at.playedMs >= this.playback.receivedMs(at.response) - 1) return;
    this.acknowledge(at);
    const { latencyMs } = this.playback;
    const audio_end_ms = Math.max(0, Math.floor(at.playedMs - latencyMs));
    this.connection.send("conversation.item.truncate", { item_id: at.item, content_index: 0, audio_end_ms });
    this.emit("cut", { response: at.response, item: at.item, playedMs: audio_end_ms, countMs: at.playedMs, latencyMs });
  }

  acknowledge({ response, playedMs }) {
    if (!response) return;
    const played = (playedMs * RATE) / 1000;
    while (this.coming.length && (this.coming[0].response !== response || this.coming[0].to <= played)) {
      if (this.coming[0].response !== response && this.coming.every((one) => one.response !== response)) break;
      this.coming.shift();
    }
    this.connection.send("innervoice.playback.ack", { response_id: response, played_ms: Math.floor(playedMs) });
  }

  endTurn(at) {
    this.turnEnd = at;
    this.arrived = null;
  }

  firstSound() {
    if (this.turnEnd === null || this.arrived === null) return;
    const playerMs = performance.now() + this.playback.latencyMs - this.arrived;
    this.emit("latency", { serverMs: this.arrived - this.turnEnd, playerMs });
    this.turnEnd = null;
  }

  take(event) {
    if (event.type === "session.created" || event.type === "session.updated") this.configure(event);
    if (event.type === "input_audio_buffer.speech_started") this.cut();
    if (event.type === "input_audio_buffer.speech_stopped") {
      this.endTurn(performance.now() - Math.max(0, this.sentMs - event.audio_end_ms));
    }
    if (event.type === "response.created") {
      this.isAnswering = true;
      this.response = event.response.id;
      this.emit("busy");
    }
    if (event.type === "response.output_audio.delta") this.play(event);
    if (event.type === "response.done") {
      this.isAnswering = false;
      this.playback.end(event.response.id);
      this.emit("busy");
    }
  }

  play({ event_seq: seq, response_id: response, item_id: item, delta }) {
    if (this.playback.isDropped(response)) return;
    this.arrived ??= performance.now();
    let samples = decode(delta);
    if (this.broken?.response === response) samples = samples.subarray(this.broken.skip).slice();
    this.broken = null;
    const from = this.playback.receivedSamples(response);
    this.coming.push({ seq, response, from, to: from + samples.length });
    this.playback.push(response, item, samples);
  }

  configure({ type, session }) {
    this.isManual = session.audio?.input?.turn_detection === null;
    if (type !== "session.created" || session.innervoice?.resumed) return;
    this.sentMs = 0;
    this.isAnswering = false;
    this.broken = null;
    if (this.response) this.playback.end(this.response); // of a session that is gone: no more of it comes
    this.emit("busy");
  }
}
