// The server's own page in a headless Chromium, whose microphone speaks a recording once.
// Prints what it saw; with PAGE_SHOTS=FOLDER it also leaves pictures of the page there.
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { join } from "node:path";

const modules = process.env.NODE_MODULES;
const { chromium } = createRequire(modules + "/")("playwright-core");
const axe = readFileSync(join(modules, "axe-core/axe.min.js"), "utf8");
const base = process.env.REALTIME_BASE.replace(/\/v1$/, "");
const show = (kind, fields = {}) => console.log(JSON.stringify({ kind, ...fields }));
const WIDTHS = [[390, 1300], [820, 1180], [1440, 900]];

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM,
  args: [
    "--no-sandbox",
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
    `--use-file-for-fake-audio-capture=${process.env.REALTIME_SPOKEN}%noloop`,
    "--autoplay-policy=no-user-gesture-required",
  ],
});
const page = await browser.newPage({ viewport: { width: 1440, height: 900 }, reducedMotion: "reduce", colorScheme: "light" });
page.setDefaultTimeout(60_000);
page.on("pageerror", (error) => show("error", { message: String(error) }));
page.on("console", (message) => message.type() === "error" && show("error", { message: message.text() }));
page.on("request", (request) => request.url().startsWith("http") && show("request", { url: request.url() }));
page.on("requestfailed", (request) => show("failed", { url: request.url() }));

/** Run axe's checks, and print those that found something. */
async function check(when) {
  const found = await page.evaluate(`${axe}; axe.run()`);
  const faults = found.violations.map(({ id, nodes }) => ({ id, nodes: nodes.map((node) => node.target.join(" ")) }));
  show("axe", { when, faults, passes: found.passes.length });
}

/** Take pictures at three widths in both themes, and measure whether anything is wider than the page. */
async function picture(name) {
  for (const [width, height] of WIDTHS) {
    await page.setViewportSize({ width, height });
    for (const theme of ["light", "dark"]) {
      await page.evaluate((wanted) => {
        if (document.documentElement.dataset.theme !== wanted) document.getElementById("theme").click();
      }, theme);
      if (width === 1440 && name === "reply") await check(theme);
      if (!process.env.PAGE_SHOTS) continue;
      await page.waitForTimeout(600);
      await page.screenshot({ path: join(process.env.PAGE_SHOTS, `${name}-${width}-${theme}.png`), fullPage: true });
    }
    const wide = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    show("overflow", { name, width, wide });
  }
  await page.setViewportSize({ width: 1440, height: 900 });
}

/** Wait until a reply has been played to its end -> its counts. */
async function played(number) {
  return page.evaluate(async (number) => {
    const seen = globalThis.seen;
    const isOver = () => seen.done.length >= number && seen.dry?.response === seen.done[number - 1].id;
    const until = performance.now() + 60_000;
    while (!isOver() && performance.now() < until) await new Promise((resolve) => setTimeout(resolve, 50));
    const { call } = globalThis.innervoice;
    if (!isOver()) throw new Error(`reply ${number} was not played: ${JSON.stringify(seen)}`);
    const { id, status } = seen.done[number - 1];
    return { status, receivedMs: call.playback.receivedMs(id), ...seen.dry };
  }, number);
}

await page.goto(`${base}/`);
await page.evaluate(() => {
  const { call } = globalThis.innervoice;
  const seen = { done: [], stats: [], dry: null, cut: null, hidden: "", spoken: "" };
  globalThis.seen = seen;
  call.addEventListener("server", ({ detail }) => {
    if (detail.type === "innervoice.response.stats") seen.stats.push(detail);
    if (detail.type === "response.done") seen.done.push(detail.response);
    if (detail.type === "innervoice.reflection.done") seen.hidden += detail.text;
    if (detail.type === "response.output_audio_transcript.done") seen.spoken += detail.transcript;
    if (detail.type === "input_audio_buffer.speech_started") seen.startedAt = performance.now();
  });
  call.addEventListener("dry", ({ detail }) => (seen.dry = detail));
  call.playback.addEventListener("cleared", ({ detail }) => {
    seen.cleared = { ...detail, afterMs: performance.now() - seen.startedAt };
  });
  call.addEventListener("cut", ({ detail }) => (seen.cut = detail));
});
if (process.env.PAGE_SHOTS) await picture("before");
const [key, start] = [page.locator("#key"), page.locator("#start")];
await page.locator("#settings-drawer > summary").click();
await key.fill(process.env.REALTIME_KEY);
await page.locator("[name=schedule]").selectOption("stitch_r");
await start.focus();
await page.keyboard.press("Enter");
await page.locator("#settings-drawer > summary").click();
show("spoken", await played(1));
show("texts", await page.evaluate(() => ({
  hidden: globalThis.seen.hidden,
  spoken: globalThis.seen.spoken,
  thoughts: [...document.querySelectorAll("#thoughts li:not(.empty-note) p")].map((one) => one.textContent).join(""),
  transcript: [...document.querySelectorAll("#transcript .assistant p")].map((one) => one.textContent).join(""),
  others: document.querySelector("#caption").textContent + document.querySelector("#live-region").textContent,
  stats: globalThis.seen.stats,
  firstSound: document.querySelector("#first-sound").textContent,
})));
await picture("reply");

// A long reply that a recording speaks over.
await page.locator("#text").fill("How are you?");
await page.keyboard.press("Enter");
await page.waitForFunction(() => globalThis.innervoice.call.playback.at?.playedMs > 300, null, { polling: 50 });
await page.locator("[data-recording='question.wav']").click();
await page.waitForFunction(() => globalThis.seen.cut, null, { polling: 50 });
show("cut", await page.evaluate(() => ({
  cut: globalThis.seen.cut,
  cleared: globalThis.seen.cleared,
  marked: document.querySelectorAll("#transcript .cut").length,
})));
await page.waitForFunction((old) => {
  const { at } = globalThis.innervoice.call.playback;
  return at && at.response !== old && at.playedMs > 300;
}, await page.evaluate(() => globalThis.seen.cut.response), { polling: 50 });
show("after", await page.evaluate(() => ({ ...globalThis.innervoice.call.playback.at })));
if (process.env.PAGE_SHOTS) await picture("cut");

// The classes of a reply's words, part by part: while it is played, and once it is cut.
show("words", await page.evaluate(async () => {
  const { Transcript } = await import("/page/transcript.js");
  const list = document.createElement("ol");
  const transcript = new Transcript(list, document.createElement("p"));
  const classes = () => [...list.querySelectorAll("p > span")].map((span) => span.className);
  transcript.reply("item");
  transcript.add("item", "one two six ", 0);
  transcript.add("item", "ten far ", 1200);
  transcript.heard("item", 500, 2000);
  const playing = classes();
  transcript.cut("item", 1300);
  return { playing, cut: classes() };
}));
await browser.close();
