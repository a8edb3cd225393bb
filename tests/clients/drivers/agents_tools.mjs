// @openai/agents-realtime in node: the model calls a tool, the package runs it, and the answer is spoken.
import { createRequire } from "node:module";
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
  execute: async ({ city }) => (show("tool", { city }), "25 degrees"),
});
const agent = new RealtimeAgent({ name: "Ada", instructions: "Be brief.", tools: [weather] });
const session = new RealtimeSession(agent, { transport: new OpenAIRealtimeWebSocket({ url }) });

let numDone = 0, seconds = 0;
session.on("audio", ({ data }) => (seconds += data.byteLength / 48000));
session.on("error", (error) => show("error", { message: JSON.stringify(error) + String(error?.error) }));
session.on("transport_event", (event) => {
  if (event.type === "response.done") numDone += 1;
});

await session.connect({ apiKey: process.env.REALTIME_KEY });
session.sendMessage("How warm is it in Paris?");
const late = Date.now() + 100_000;
while (numDone < 2) {
  if (Date.now() > late) throw new Error("it did not come in time");
  await sleep(10);
}
await sleep(300);
show("history", { items: session.history, sound_s: seconds });
session.close();
await sleep(100);
