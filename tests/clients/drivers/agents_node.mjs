// @openai/agents-realtime in node: its default session, a message, and loud speech over the reply.
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";

const load = createRequire(process.env.NODE_MODULES + "/");
const { OpenAIRealtimeWebSocket, RealtimeAgent, RealtimeSession, tool } = load("@openai/agents-realtime");
const { z } = load("zod");

const show = (kind, fields = {}) => console.log(JSON.stringify({ kind, ...fields }));
const url = process.env.REALTIME_BASE.replace("http", "ws") + "/realtime?model=gpt-realtime";
const weather = tool({
  name: "weather",
  description: "The weather of a city.",
  parameters: z.object({ city: z.string() }),
  execute: async ({ city }) => (show("tool", { city }), "sunny"),
});
const agent = new RealtimeAgent({ name: "Ada", instructions: "Be brief.", tools: [weather] });
const session = new RealtimeSession(agent, { transport: new OpenAIRealtimeWebSocket({ url }) });

let numDone = 0, hasSound = false;
session.on("audio", ({ data }) => {
  hasSound = true;
  show("audio", { seconds: data.byteLength / 48000 });
});
session.on("audio_interrupted", () => show("interrupted"));
session.on("error", (error) => show("error", { message: JSON.stringify(error) + String(error?.error) }));
session.on("transport_event", (event) => {
  if (event.type === "response.done") numDone += 1;
});

async function until(holds) {
  const late = Date.now() + 150_000;
  while (!holds()) {
    if (Date.now() > late) throw new Error("it did not come in time");
    await sleep(10);
  }
}

await session.connect({ apiKey: process.env.REALTIME_KEY });
session.sendMessage("How are you?");
await until(() => hasSound);
const speech = readFileSync(process.env.REALTIME_QUESTION);
const silence = Buffer.alloc(4800);
const blocks = [];
for (let start = 0; start < speech.length; start += 4800) blocks.push(speech.subarray(start, start + 4800));
for (let i = 0; i < 45; i += 1) blocks.push(silence);
for (const block of blocks) {
  session.sendAudio(block.buffer.slice(block.byteOffset, block.byteOffset + block.length));
  await sleep(100);
}
await until(() => numDone === 2);
await sleep(300);
show("history", { items: session.history });
session.close();
await sleep(100);
