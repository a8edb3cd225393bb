// The openai package of npm over TLS: a message, then speech with a reply that is cancelled, truncated and retrieved.
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";

const load = createRequire(process.env.NODE_MODULES + "/");
const { OpenAI } = load("openai");
const { OpenAIRealtimeWS } = load("openai/realtime/ws");

const show = (kind, fields) => console.log(JSON.stringify({ kind, ...fields }));
const client = new OpenAI({ baseURL: process.env.REALTIME_BASE, apiKey: process.env.REALTIME_KEY });
const options = { ca: readFileSync(process.env.REALTIME_CA) };
const realtime = new OpenAIRealtimeWS({ model: "gpt-realtime", options }, client);

const waiting = [];
const until = (type) => new Promise((resolve) => waiting.push({ type, resolve }));
let text = "", final = null, numBytes = 0, numDeltas = 0, cancelAfter = 0;
realtime.on("event", (event) => {
  if (event.type === "response.output_audio_transcript.delta") text += event.delta;
  if (event.type === "response.output_audio_transcript.done") final = event.transcript;
  if (event.type === "response.output_audio.delta") {
    numBytes += Buffer.from(event.delta, "base64").length;
    if (++numDeltas === cancelAfter) realtime.send({ type: "response.cancel" });
  }
  const found = waiting.findIndex((one) => one.type === event.type);
  if (found >= 0) waiting.splice(found, 1)[0].resolve(event);
});
realtime.on("error", (error) => show("error", { message: String(error) }));

async function reply(numBeforeCancel) {
  text = ""; final = null; numBytes = 0; numDeltas = 0; cancelAfter = numBeforeCancel;
  const done = until("response.done");
  realtime.send({ type: "response.create" });
  const { response } = await done;
  show("reply", { status: response.status, joined: text, final, sound_s: numBytes / 48000, usage: response.usage });
  return response.output[0].id;
}

const { session } = await until("session.created");
show("session", { model: session.model });
const updated = until("session.updated");
realtime.send({ type: "session.update", session: { type: "realtime", audio: { input: { turn_detection: null } } } });
await updated;
const content = [{ type: "input_text", text: "How are you?" }];
realtime.send({ type: "conversation.item.create", item: { type: "message", role: "user", content } });
await reply(0);

const sound = readFileSync(process.env.REALTIME_QUESTION);
for (let start = 0; start < sound.length; start += 4800) {
  const audio = sound.subarray(start, start + 4800).toString("base64");
  realtime.send({ type: "input_audio_buffer.append", audio });
}
realtime.send({ type: "input_audio_buffer.commit" });
const item_id = await reply(1);
const truncated = until("conversation.item.truncated");
realtime.send({ type: "conversation.item.truncate", item_id, content_index: 0, audio_end_ms: 200 });
const { audio_end_ms } = await truncated;
const retrieved = until("conversation.item.retrieved");
realtime.send({ type: "conversation.item.retrieve", item_id });
show("retrieved", { audio_end_ms, item: (await retrieved).item });
realtime.close();
