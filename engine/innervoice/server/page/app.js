// The page: ties a call to what is shown of it.

import { Call } from "./call.js";
import { Devices } from "./devices.js";
import { EventLog } from "./log.js";
import { Settings } from "./settings.js";
import { Thoughts } from "./thoughts.js";
import { Timeline } from "./timeline.js";
import { Transcript } from "./transcript.js";

const $ = (id) => document.getElementById(id);
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const dark = matchMedia("(prefers-color-scheme: dark)");

const call = new Call();
const transcript = new Transcript($("transcript"), $("caption"));
const thoughts = new Thoughts($("thoughts"));
const log = new EventLog($("log"), $("filter"), $("count"));
const devices = new Devices($("microphone"), $("speaker"));
const settings = new Settings($("settings"), (session) => call.connection.send("session.update", { session }));
setTheme(sessionStorage.getItem("theme") ?? (dark.matches ? "dark" : "light"));
const timeline = new Timeline($("timeline"), () => calm.matches);
const recordings = document.querySelectorAll("[data-recording]");
$("key").value = sessionStorage.getItem("key") ?? "";

let items = new Map(); // the item of each response
let totalMs = null; // from the end of the user's turn to the first sound

// ---- events of the server

const handlers = {
  "session.created": ({ session }) => {
    if (session.innervoice?.resumed) transcript.note("the conversation goes on");
    else call.connection.send("session.update", { session: settings.toUpdate() });
    if (!call.capture.isOpen) openMicrophone();
  },
  "session.updated": () => showTurns(),
  "input_audio_buffer.speech_started": (event) => timeline.userBegan((call.sentMs - event.audio_start_ms) / 1000),
  "input_audio_buffer.speech_stopped": (event) => timeline.userEnded((call.sentMs - event.audio_end_ms) / 1000),
  "conversation.item.added": ({ item }) => showItem(item),
  "conversation.item.input_audio_transcription.completed": (event) => transcript.user(event.item_id, event.transcript),
  "response.created": ({ response }) => timeline.begin(response.id),
  "response.output_item.added": (event) => {
    items.set(event.response_id, event.item.id);
    transcript.reply(event.item.id);
  },
  "response.output_audio_transcript.delta": (event) =>
    transcript.add(event.item_id, event.delta, 1000 * (event.start_time ?? 0)),
  "response.output_text.delta": (event) => transcript.add(event.item_id, event.delta, null),
  "response.done": ({ response }) => finish(response),
  "innervoice.reflection.delta": (event) => {
    thoughts.add(event.response_id, event.segment, event.delta);
    timeline.grow(event.response_id, "reflection", event.segment);
  },
  "innervoice.reflection.done": (event) => thoughts.end(event),
  "innervoice.segment": (event) => timeline.add(event),
  "innervoice.response.stats": (event) => {
    thoughts.budget(event.response_id, event.reflection_caps);
    timeline.budget(event.response_id, event.reflection_caps);
    if (event.audio_ttfp_ms !== null) $("server-part").textContent = `${Math.round(event.audio_ttfp_ms)} ms`;
  },
  error: ({ error }) => transcript.note(error.message),
};

call.addEventListener("server", ({ detail }) => {
  log.add("server", detail);
  handlers[detail.type]?.(detail);
});
call.addEventListener("client", ({ detail }) => {
  if (detail.type !== "input_audio_buffer.append" && detail.type !== "innervoice.playback.ack") log.add("client", detail);
});
call.addEventListener("level", ({ detail }) => ($("level").value = detail));
call.addEventListener("latency", ({ detail }) => {
  totalMs = detail.totalMs;
  $("first-sound").textContent = `${Math.round(totalMs)} ms`;
});
for (const type of ["position", "dry"]) {
  call.addEventListener(type, ({ detail }) => {
    timeline.play(detail.response, detail.playedMs, detail.waitingMs);
    transcript.heard(detail.item, detail.playedMs, call.playback.receivedMs(detail.response));
    $("reserve").textContent = `${(detail.waitingMs / 1000).toFixed(1)} s`;
    $("underruns").textContent = detail.underruns;
  });
}
call.addEventListener("cut", ({ detail }) => {
  timeline.cut(detail.response, detail.playedMs);
  transcript.cut(detail.item, detail.playedMs);
  $("reserve").textContent = "0.0 s";
});
call.addEventListener("state", ({ detail }) => showState(detail));

function showItem(item) {
  if (item.role !== "user") return;
  const part = item.content.find((one) => one.text || one.transcript);
  transcript.user(item.id, part?.text ?? part?.transcript ?? null);
}

function finish(response) {
  const item = items.get(response.id);
  const failure = response.status_details?.error;
  if (response.status === "failed") transcript.note(failure?.message ?? "The reply failed.");
  const text = response.output?.[0]?.content?.[0]?.transcript ?? response.output?.[0]?.content?.[0]?.text ?? "";
  $("live-region").textContent = text;
  $("download").disabled = call.recording.isEmpty;
  const counts = response.usage?.output_token_details;
  if (!counts) return;
  const seconds = (call.playback.receivedMs(response.id) / 1000).toFixed(1);
  const label = `Last reply: ${counts.reflection_tokens} hidden tokens, ${seconds} s of sound.`;
  $("timeline").setAttribute("aria-label", label);
  if (!item) items = new Map();
}

function showState({ state, reason, code }) {
  const isOpen = state === "open";
  $("state").dataset.state = state;
  $("reason").textContent = reason;
  $("start").hidden = isOpen || state === "connecting" || state === "waiting";
  for (const id of ["mute", "text"]) $(id).disabled = !isOpen;
  $("stop-reply").hidden = !isOpen;
  $("end").hidden = state === "idle" || state === "refused";
  $("type").querySelector("button").disabled = !isOpen;
  for (const button of recordings) button.disabled = !isOpen;
  $("download").disabled = call.recording.isEmpty;
  if (code === "invalid_api_key") {
    $("settings-drawer").open = true;
    $("key").focus();
  }
  showTurns();
}

function showTurns() {
  $("talk").hidden = !(call.isOpen && call.isManual && call.capture.isOpen);
}

// ---- controls

async function start() {
  const key = $("key").value.trim();
  sessionStorage.setItem("key", key);
  try {
    await call.start(key || null);
  } catch (error) {
    showState({ state: "refused", reason: error.message });
  }
}

async function openMicrophone() {
  try {
    await call.capture.open($("microphone").value);
  } catch (error) {
    const reason = error.name === "NotAllowedError" ? "the browser was not allowed to use it" : error.message;
    transcript.note(`No microphone (${reason}). Type, or let a recording ask.`);
  }
  await devices.list();
  showTurns();
}

async function speak(button) {
  const url = new URL(button.dataset.recording, import.meta.url);
  const sound = await call.playback.context.decodeAudioData(await (await fetch(url)).arrayBuffer());
  const heard = new Audio(url);
  heard.play().catch(() => {});
  await call.speak(sound.getChannelData(0), settings.closingMs);
}

function hold(event) {
  event?.preventDefault();
  call.hold();
  timeline.userBegan();
  $("talk").classList.add("holding");
}

function release() {
  if (call.isHolding) timeline.userEnded();
  call.release();
  $("talk").classList.remove("holding");
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
}

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

$("start").addEventListener("click", start);
$("end").addEventListener("click", () => call.stop());
$("stop-reply").addEventListener("click", () => call.interrupt());
$("mute").addEventListener("click", () => {
  call.capture.isMuted = !call.capture.isMuted;
  $("mute").setAttribute("aria-pressed", call.capture.isMuted);
});
$("talk").addEventListener("pointerdown", hold);
for (const type of ["pointerup", "pointercancel", "pointerleave", "blur"]) $("talk").addEventListener(type, release);
$("talk").addEventListener("keydown", (event) => {
  if ((event.key === " " || event.key === "Enter") && !event.repeat) hold(event);
});
$("talk").addEventListener("keyup", release);
$("type").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (!text) return;
  $("text").value = "";
  call.say(text);
});
for (const button of recordings) button.addEventListener("click", () => speak(button));
$("fold").addEventListener("click", () => {
  const isHidden = !$("thoughts").hidden;
  $("thoughts").hidden = isHidden;
  $("fold").textContent = isHidden ? "Show" : "Hide";
  $("fold").setAttribute("aria-expanded", !isHidden);
});
$("span").addEventListener("change", () => (timeline.spanS = Number($("span").value)));
$("live").addEventListener("click", () => (timeline.lag = 0));
$("theme").addEventListener("click", () => {
  const theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  sessionStorage.setItem("theme", theme);
  setTheme(theme);
  timeline.restyle();
});
$("microphone").addEventListener("change", () => call.isOpen && openMicrophone());
$("speaker").addEventListener("change", () => call.playback.choose($("speaker").value));
$("download").addEventListener("click", () => save(call.recording.toBlob(), "conversation.wav"));
$("copy").addEventListener("click", () => navigator.clipboard.writeText(log.toText()));

window.innervoice = { call, timeline }; // for tests, and for the curious
