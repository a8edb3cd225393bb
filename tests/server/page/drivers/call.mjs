// A call: the microphone asks, the reply is played, spoken over and cut.
// Prints what it saw; with PAGE_SHOTS=FOLDER it also leaves pictures of the page there.
import { join } from "node:path";
import { axe, launch, leave, played, playing, say, show, visit } from "./browser.mjs";

const WIDTHS = [[390, 1300], [820, 1180], [1440, 900]];
const browser = await launch();
const page = await visit(browser);

/** Run axe's checks, and print those that found something. */
async function check(when) {
  const found = await page.evaluate(`${axe()}; axe.run()`);
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

if (process.env.PAGE_SHOTS) await picture("before");
const [key, start] = [page.locator("#key"), page.locator("#start")];
await page.locator("#settings-drawer > summary").click();
await key.fill(process.env.REALTIME_KEY);
await page.locator("[name=schedule]").selectOption("stitch_r");
await page.locator("[name=thought]").fill("30");
await start.focus();
await page.keyboard.press("Enter");
await page.locator("#settings-drawer > summary").click();
show("spoken", await played(page, 1));
show("texts", await page.evaluate(() => ({
  hidden: globalThis.seen.hidden,
  spoken: globalThis.seen.spoken,
  thoughts: [...document.querySelectorAll("#thoughts li:not(.empty-note) p")].map((one) => one.textContent).join(""),
  transcript: [...document.querySelectorAll("#transcript .assistant p")].map((one) => one.textContent).join(""),
  others: document.querySelector("#caption").textContent + document.querySelector("#live-region").textContent,
  stats: globalThis.seen.stats,
  firstSound: document.querySelector("#first-sound").textContent,
})));
show("timeline", await page.evaluate(() => {
  const [reply] = [...globalThis.innervoice.timeline.replies.values()];
  return { ...reply, lag: globalThis.innervoice.timeline.lag };
}));
show("levels", await page.evaluate(() => ({ levels: globalThis.seen.levels, meter: document.querySelector("#level").value })));
await picture("reply");

// A reply that a recording speaks over; one that is over before that is followed by another.
for (let last = await page.evaluate(() => globalThis.seen.done[0].id), i = 0; i < 8; i++) {
  await say(page, `How are you? ${i}`);
  await playing(page, 100, last);
  await page.locator("#questions button").first().click();
  last = await page.evaluate(async () => {
    const { call } = globalThis.innervoice;
    const { response } = call;
    const until = performance.now() + 20_000;
    while (!globalThis.seen.cut && (call.response === response || !call.isAnswering) && performance.now() < until) {
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    return response;
  });
  if (await page.evaluate(() => globalThis.seen.cut)) break;
}
show("cut", await page.evaluate(() => ({
  cut: globalThis.seen.cut,
  cleared: globalThis.seen.cleared,
  marked: document.querySelectorAll("#transcript .cut").length,
})));
await playing(page, 300, await page.evaluate(() => globalThis.seen.cut.response));
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
await leave(browser, page);
