// Checks recorded events, one a line on stdin, with the parser of @openai/agents-realtime.
import { join } from "node:path";
import { createInterface } from "node:readline";

const dist = join(process.env.NODE_MODULES, "@openai/agents-realtime/dist");
const { parseRealtimeEvent } = await import(join(dist, "openaiRealtimeEvents.mjs"));
const show = (kind, fields) => console.log(JSON.stringify({ kind, ...fields }));

const types = {};
for await (const line of createInterface({ input: process.stdin })) {
  const { data, isGeneric } = parseRealtimeEvent({ data: line });
  const event = JSON.parse(line);
  if (data === null || isGeneric) show("refused", { type: event.type, error: "it was taken for an unknown event", event });
  else types[event.type] = (types[event.type] ?? 0) + 1;
}
show("taken", { types });
