// The UMD bundle of @openai/agents-realtime in a headless Chromium: the key travels as a sub-protocol.
import { createRequire } from "node:module";
import { createServer } from "node:http";
import { readFileSync } from "node:fs";
import { join } from "node:path";

const modules = process.env.NODE_MODULES;
const load = createRequire(modules + "/");
const { chromium } = load("playwright-core");
const bundle = readFileSync(join(modules, "@openai/agents-realtime/dist/bundle/openai-realtime-agents.umd.js"));
const show = (kind, fields = {}) => console.log(JSON.stringify({ kind, ...fields }));

const pages = createServer((request, response) => {
  const isBundle = request.url === "/bundle.js";
  response.setHeader("Content-Type", isBundle ? "text/javascript" : "text/html");
  response.end(isBundle ? bundle : '<!doctype html><title>client</title><script src="/bundle.js"></script>');
});
await new Promise((resolve) => pages.listen(0, "127.0.0.1", resolve));
const executablePath = process.env.CHROMIUM;
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
const page = await browser.newPage();
page.on("pageerror", (error) => show("error", { message: String(error) }));
await page.goto(`http://127.0.0.1:${pages.address().port}/`);

const seen = await page.evaluate(
  async ({ url, apiKey }) => {
    const { OpenAIRealtimeWebSocket, RealtimeAgent, RealtimeSession } = globalThis.OpenAIAgentsRealtime;
    const transport = new OpenAIRealtimeWebSocket({ url, useInsecureApiKey: true });
    const agent = new RealtimeAgent({ name: "Ada", instructions: "Be brief." });
    const session = new RealtimeSession(agent, { transport });
    const seen = { types: [], errors: [], audio_s: 0 };
    session.on("audio", ({ data }) => (seen.audio_s += data.byteLength / 48000));
    session.on("error", (error) => seen.errors.push(String(error?.error ?? error)));
    const done = new Promise((resolve) =>
      session.on("transport_event", (event) => {
        seen.types.push(event.type);
        if (event.type === "response.done") resolve();
      }),
    );
    await session.connect({ apiKey });
    session.sendMessage("How are you?");
    await done;
    session.close();
    return seen;
  },
  { url: process.env.REALTIME_BASE.replace("http", "ws") + "/realtime?model=gpt-realtime", apiKey: process.env.REALTIME_KEY },
);
show("page", { ...seen, version: browser.version() });
await browser.close();
pages.close();
