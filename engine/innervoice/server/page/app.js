// The page: ties a call to what is shown of it.

import { Call } from "./call.js";
import { Devices } from "./devices.js";
import { EventLog } from "./log.js";
import { forget, keep, recall } from "./memory.js";
import { lengthMs } from "./pcm.js";
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
setTheme();
const timeline = new Timeline($("timeline"), () => calm.matches);
$("key").value = sessionStorage.getItem("key") ?? "";

let lock = null; // on the screen
const items = new Map(); // the item of each response

// ---- events of the server

const handlers = {
  "session.created": ({ session }) => {
    if (session.innervoice?.resumed) {
      settings.show(session);
      transcript.note(goesOn(session.innervoice.missed_events));
    } else {
      if (items.size) transcript.note("The earlier conversation is over: a new one begins.");
      transcript.abandon();
      timeline.userEnded();
      timeline.end();
      call.connection.send("session.update", { session: settings.toUpdate() });
    }
    if (!call.capture.isOpen && call.playback.isUnlocked) openMicrophone();
    stayAwake();
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
  "response.output_audio_transcript.delta": (event) => {
    transcript.add(event.item_id, event.delta, 1000 * (event.start_time ?? 0));
    timeline.grow(event, "transcript");
  },
  "response.output_audio.delta": (event) => {
    timeline.grow(event, "speech");
    timeline.receive(event.response_id, lengthMs(event.delta));
  },
  "response.output_text.delta": (event) => transcript.add(event.item_id, event.delta, null),
  "response.done": ({ response }) => finish(response),
  "innervoice.reflection.started": (event) => {
    thoughts.begin(event);
    timeline.grant(event);
  },
  "innervoice.reflection.skipped": (event) => {
    thoughts.skip(event);
    timeline.grant(event);
  },
  "innervoice.reflection.delta": (event) => {
    thoughts.add(event);
    timeline.grow(event, "reflection");
  },
  "innervoice.reflection.done": (event) => thoughts.end(event),
  "innervoice.segment": (event) => timeline.add(event),
  error: ({ error }) => call.isOpen && transcript.note(error.message), // else it is the reason of the state
};

call.addEventListener("server", ({ detail }) => {
  if (call.connection.isRepeat) return; // shown before a reload; its sound was not played
  log.add("server", detail);
  handlers[detail.type]?.(detail);
});
call.addEventListener("client", ({ detail }) => {
  if (detail.type !== "input_audio_buffer.append" && detail.type !== "innervoice.playback.ack") log.add("client", detail);
});
call.addEventListener("level", ({ detail }) => ($("level").value = detail));
call.addEventListener("loudness", ({ detail }) => ($("loudness").value = detail));
call.addEventListener("unlocked", () => showState(call.connection.told));
call.addEventListener("latency", ({ detail }) => {
  $("first-sound").textContent = duration(detail.serverMs + detail.playerMs);
  $("parts").textContent = durations(detail.serverMs, detail.playerMs);
  $("delay").textContent = `(${Math.round(call.playback.latencyMs)} ms behind)`;
});
for (const type of ["position", "dry"]) {
  call.addEventListener(type, ({ detail }) => {
    timeline.play(detail.response, detail.playedMs, detail.waitingMs);
    transcript.heard(detail.item, detail.playedMs, call.playback.receivedMs(detail.response));
    $("reserve").textContent = `${(detail.waitingMs / 1000).toFixed(1)} s`;
    $("underruns").textContent = detail.underruns;
  });
}
for (const type of ["busy", "begun", "position", "dry", "cleared"]) call.addEventListener(type, showStop);
call.addEventListener("cut", ({ detail }) => {
  timeline.cut(detail.response, detail.playedMs);
  transcript.cut(detail.item, detail.playedMs);
  $("reserve").textContent = "0.0 s";
});
call.addEventListener("state", ({ detail }) => showState(detail));

function duration(ms) {
  return ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;
}

/** Two parts of a time, in one unit. */
function durations(one, other) {
  if (one + other < 1000) return `${Math.round(one)} + ${Math.round(other)} ms`;
  return `${(one / 1000).toFixed(1)} + ${(other / 1000).toFixed(1)} s`;
}

function showItem(item) {
  if (item.role !== "user") return;
  const part = item.content.find((one) => one.text || one.transcript);
  transcript.user(item.id, part?.text ?? part?.transcript ?? null);
}

function finish(response) {
  timeline.end(response.id);
  const failure = response.status_details?.error;
  if (response.status === "failed") transcript.note(failure?.message ?? "The reply failed.");
  const text = response.output?.[0]?.content?.[0]?.transcript ?? response.output?.[0]?.content?.[0]?.text ?? "";
  $("live-region").textContent = text;
  transcript.end(items.get(response.id), call.playback.receivedMs(response.id) > 0 ? "heard" : response.status);
  $("download").disabled = call.recording.isEmpty;
  const counts = response.usage?.output_token_details;
  if (!counts) return;
  const seconds = (call.playback.receivedMs(response.id) / 1000).toFixed(1);
  const label = `Last reply: ${counts.reflection_tokens} hidden tokens, ${seconds} s of sound.`;
  $("timeline").setAttribute("aria-label", label);
  while (items.size > 100) items.delete(items.keys().next().value);
}

function goesOn(numMissed) {
  return numMissed ? `The conversation goes on; ${numMissed} events were missed.` : "The conversation goes on.";
}

function showState({ state, reason, code }) {
  const isOpen = state === "open";
  const isMute = isOpen && !call.playback.isUnlocked;
  $("state").dataset.state = state;
  timeline.isLinked = isOpen;
  $("reason").textContent = isMute ? "Connected, without sound yet." : code === "invalid_api_key" ? keyReason() : reason;
  $("start").hidden = (isOpen && !isMute) || state === "connecting";
  $("start").textContent = isMute ? "Turn the sound on" : state === "waiting" ? "Try now" : "Start";
  for (const id of ["mute", "text"]) $(id).disabled = !isOpen;
  $("end").hidden = state === "idle" || state === "refused";
  if (state === "idle") {
    timeline.userEnded();
    timeline.end();
    if (code) forget(); // the session is gone
  }
  if (!isOpen && !call.playback.isBusy) transcript.hush();
  $("type").querySelector("button").disabled = !isOpen;
  for (const button of $("questions").children) button.disabled = !isOpen;
  $("download").disabled = call.recording.isEmpty;
  $("key-reason").hidden = code !== "invalid_api_key";
  if (code === "invalid_api_key") {
    $("key-reason").textContent = $("reason").textContent;
    $("settings-drawer").open = true;
    $("key").focus();
  }
  showTurns();
  showStop();
}

function keyReason() {
  if ($("key").value.trim()) return "The server does not accept this key. Correct it under Settings, then press Start.";
  return "The server asks for a key. Type it under Settings, then press Start.";
}

/** Offer to stop a reply while there is one. */
function showStop() {
  const stop = $("stop-reply");
  const hadFocus = document.activeElement === stop;
  stop.hidden = !call.playback.isBusy && !(call.isOpen && call.isAnswering);
  if (hadFocus && stop.hidden) $("text").focus();
}

function showTurns() {
  $("talk").hidden = !(call.isOpen && call.isManual && call.capture.isOpen);
}

// ---- controls

async function start() {
  if (call.isOpen) {
    await call.playback.unlock();
    if (!call.capture.isOpen) await openMicrophone();
    return;
  }
  if (call.connection.state === "waiting") {
    call.connection.retry();
    return;
  }
  const fault = settings.fault();
  if (fault) {
    showState({ state: "refused", reason: `Under Settings, ${fault}` });
    $("settings-drawer").open = true;
    settings.form.reportValidity();
    return;
  }
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

/** Keep a phone's screen on during a conversation, where the browser lets a page ask for it. */
async function stayAwake() {
  if (document.visibilityState !== "visible" || lock?.released === false) return;
  lock = await navigator.wakeLock?.request("screen").catch(() => null);
}

/** Make a button of each recording that can ask. */
async function listQuestions() {
  const answer = await fetch(new URL("questions.json", import.meta.url));
  for (const { file, text } of await answer.json()) {
    const button = document.createElement("button");
    button.type = "button";
    button.disabled = !call.isOpen;
    button.textContent = `▸ ${text}`;
    button.addEventListener("click", () => speak(file));
    $("questions").append(button);
  }
}

async function speak(file) {
  const url = new URL(file, import.meta.url);
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

/** Set the theme: the one that was chosen, or else the system's. */
function setTheme() {
  document.documentElement.dataset.theme = sessionStorage.getItem("theme") ?? (dark.matches ? "dark" : "light");
}

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

document.addEventListener("visibilitychange", () => call.isOpen && stayAwake());
$("start").addEventListener("click", start);
$("end").addEventListener("click", () => {
  call.stop();
  forget();
  lock?.release();
});
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
listQuestions();
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
  setTheme();
  timeline.restyle();
});
dark.addEventListener("change", () => {
  setTheme();
  timeline.restyle();
});
$("key").addEventListener("keydown", (event) => event.key === "Enter" && start());
$("microphone").addEventListener("change", () => call.isOpen && openMicrophone());
$("speaker").addEventListener("change", () => call.playback.choose($("speaker").value));
$("download").addEventListener("click", () => save(call.recording.toBlob(), "conversation.wav"));
$("copy").addEventListener("click", () => navigator.clipboard.writeText(log.toText()));

// ---- a reload: what was shown is shown again, and the session goes on

addEventListener("pagehide", () => {
  const session = call.remember();
  if (!session) return;
  const shown = { thoughts: thoughts.save(), timeline: timeline.save(), transcript: transcript.save() };
  keep({ session, items: [...items], ...shown }, ["timeline", "thoughts", "transcript"]);
});

async function comeBack(kept) {
  if (kept.transcript) transcript.restore(kept.transcript);
  if (kept.thoughts) thoughts.restore(kept.thoughts);
  if (kept.timeline) timeline.restore(kept.timeline, kept.shiftS);
  for (const [response, item] of kept.items) items.set(response, item);
  await call.start($("key").value || null, kept.session);
}

const kept = recall();
if (kept) comeBack(kept);

window.innervoice = { call, timeline }; // for tests, and for the curious
