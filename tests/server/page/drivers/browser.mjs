// What the drivers of the page share: a headless Chromium with a microphone that speaks a recording, and what it saw.
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { join } from "node:path";

const modules = process.env.NODE_MODULES;
const { chromium } = createRequire(modules + "/")("playwright-core");

export const axe = () => readFileSync(join(modules, "axe-core/axe.min.js"), "utf8");
export const base = `${process.env.REALTIME_BASE.replace(/\/v1$/, "")}${process.env.PAGE_PREFIX ?? ""}/`;
export const show = (kind, fields = {}) => console.log(JSON.stringify({ kind, ...fields }));

/** Start the browser. spoken: the microphone's recording; loops: whether it begins again at its end. */
export function launch({ spoken = process.env.REALTIME_SPOKEN, loops = false, flags = [] } = {}) {
  return chromium.launch({
    executablePath: process.env.CHROMIUM,
    args: [
      "--no-sandbox",
      "--use-fake-ui-for-media-stream",
      "--use-fake-device-for-media-stream",
      `--use-file-for-fake-audio-capture=${spoken}${loops ? "" : "%noloop"}`,
      "--autoplay-policy=no-user-gesture-required",
      ...flags,
    ],
  });
}

/** Open the page in a window of its own, and print what goes wrong and what is requested. */
export async function visit(browser, options = {}) {
  const context = await browser.newContext({
    viewport: { width: 1440, height: 900 },
    reducedMotion: "reduce",
    colorScheme: "light",
    ...options,
  });
  const page = await context.newPage();
  page.setDefaultTimeout(90_000);
  page.on("pageerror", (error) => show("error", { message: String(error) }));
  page.on("console", (message) => message.type() === "error" && show("error", { message: message.text() }));
  page.on("request", (request) => request.url().startsWith("http") && show("request", { url: request.url() }));
  page.on("requestfailed", (request) => show("failed", { url: request.url() }));
  page.on("websocket", (socket) => show("socket", { url: socket.url() }));
  await page.addInitScript(rawMicrophone);
  await page.goto(base);
  await watch(page);
  return page;
}

/** Turn the browser's own processing off, which would change the microphone's level. Runs in the page. */
function rawMicrophone() {
  const { mediaDevices } = navigator;
  const open = mediaDevices?.getUserMedia.bind(mediaDevices);
  const raw = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
  if (open) mediaDevices.getUserMedia = ({ audio }) => open({ audio: { ...audio, ...raw } });
}

/** Note what the page's call goes through, in `seen`; again after each load. */
export function watch(page) {
  return page.evaluate(() => {
    const { call } = globalThis.innervoice;
    const seen = { done: [], stats: [], dry: null, cut: null, hidden: "", spoken: "", arrivals: [], levels: [] };
    globalThis.seen = seen;
    call.addEventListener("server", ({ detail }) => {
      if (detail.type === "innervoice.response.stats") seen.stats.push(detail);
      if (detail.type === "response.done") seen.done.push(detail.response);
      if (detail.type === "innervoice.reflection.done") seen.hidden += detail.text;
      if (detail.type === "response.output_audio_transcript.done") seen.spoken += detail.transcript;
      if (detail.type === "input_audio_buffer.speech_started") seen.startedAt = performance.now();
      if (detail.type === "response.output_audio.delta") {
        seen.arrivals.push([detail.response_id, performance.now(), (atob(detail.delta).length / 48)]);
      }
    });
    call.addEventListener("level", ({ detail }) => seen.levels.push(detail));
    call.addEventListener("dry", ({ detail }) => (seen.dry = detail));
    call.playback.addEventListener("cleared", ({ detail }) => {
      seen.cleared = { ...detail, afterMs: performance.now() - seen.startedAt };
    });
    call.addEventListener("cut", ({ detail }) => (seen.cut = detail));
  });
}

/** Wait until a reply has been played to its end -> its counts. number: of the replies since the page was loaded. */
export function played(page, number) {
  return page.evaluate(async (number) => {
    const { seen } = globalThis;
    const { call } = globalThis.innervoice;
    const isHeard = (id) => seen.dry?.response === id && seen.dry.playedMs > call.playback.receivedMs(id) - 0.1;
    const isOver = () => seen.done.length >= number && isHeard(seen.done[number - 1].id);
    const until = performance.now() + 150_000;
    while (!isOver() && performance.now() < until) await new Promise((resolve) => setTimeout(resolve, 50));
    if (!isOver()) throw new Error(`reply ${number} was not played: ${JSON.stringify(seen)}`);
    const { id, status } = seen.done[number - 1];
    const arrivals = seen.arrivals.filter(([response]) => response === id).map(([, at, ms]) => [at, ms]);
    return { id, status, receivedMs: call.playback.receivedMs(id), arrivals, ...seen.dry };
  }, number);
}

/** End the conversation, whose place would be kept for a while otherwise, and the browser. */
export async function leave(browser, page) {
  await page.locator("#end").click();
  await page.waitForFunction(() => globalThis.innervoice.call.connection.state === "idle");
  await browser.close();
}

export const state = (page) => page.locator("#reason").textContent();

/** Say a typed message. */
export async function say(page, text) {
  await page.locator("#text").fill(text);
  await page.keyboard.press("Enter");
}

/** Wait until something is being played for so long. */
export function playing(page, ms, otherThan = null) {
  return page.waitForFunction(
    ([ms, old]) => {
      const { at } = globalThis.innervoice.call.playback;
      return at && at.response !== null && at.response !== old && at.playedMs > ms;
    },
    [ms, otherThan],
    { polling: 50 },
  );
}
