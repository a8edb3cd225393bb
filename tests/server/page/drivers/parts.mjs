// A session that is kept over quick reloads, refused settings, and parts of the page by themselves: tries of a lost
// connection, the reserve's line, a view that rests, replies without words.
import { join } from "node:path";
import { launch, leave, played, say, show, state, visit, watch } from "./browser.mjs";

const browser = await launch();
const page = await visit(browser);
const reason = () => state(page);

// The theme is the system's until one is chosen.
const becomes = (name) => page.waitForFunction((wanted) => document.documentElement.dataset.theme === wanted, name);
await becomes("light");
for (const colorScheme of ["dark", "light"]) {
  await page.emulateMedia({ colorScheme });
  await becomes(colorScheme);
  show("theme", { colorScheme });
}

// Settings that cannot be used keep a call from beginning.
const field = (name) => page.locator(`[name=${name}]`);
await page.locator("#settings-drawer > summary").click();
await page.locator("#key").fill(process.env.REALTIME_KEY);
await field("turns").selectOption("manual");
for (const [name, value, good] of [["temperature", "99", "0.8"], ["thought", "0", "30"]]) {
  await field(name).fill(value);
  await page.locator("#start").click();
  const update = await page.evaluate(async () => {
    const { Settings } = await import("/page/settings.js");
    return new Settings(document.getElementById("settings"), () => {}).toUpdate();
  });
  const opened = await page.evaluate(() => globalThis.innervoice.call.connection.state);
  show("unusable", { name, opened, reason: await reason(), update });
  await field(name).fill(good);
}
const isStopShown = () => page.locator("#stop-reply").isVisible();
await page.locator("#start").click();
await page.waitForFunction(() => globalThis.innervoice.call.isOpen && globalThis.innervoice.call.isManual);
const stops = [await isStopShown()];
await page.evaluate(() => scrollTo(0, 0));
await say(page, "How are you?");
show("typed", { scrolled: await page.evaluate(() => scrollY) });
await page.waitForFunction(() => globalThis.innervoice.call.isBusy);
stops.push(await isStopShown());
await page.waitForFunction(() => document.getElementById("parts").textContent !== "–");
show("parts", await page.evaluate(() => ({
  isAnswering: globalThis.innervoice.call.isAnswering,
  parts: document.getElementById("parts").textContent,
})));

/** Take pictures in both themes, and measure whether anything is wider than the page or its parts. */
async function pictures(name) {
  for (const [width, height] of [[320, 640], [390, 844], [820, 1180], [1440, 900]]) {
    await page.setViewportSize({ width, height });
    const right = await page.evaluate(() => {
      const ends = [...document.querySelectorAll("header *, .dock *, .questions *")].map((one) => one.getBoundingClientRect().right);
      return Math.max(document.documentElement.scrollWidth, ...ends);
    });
    show("wide", { name, width, by: right - width });
    for (const scheme of process.env.PAGE_SHOTS ? ["light", "dark"] : []) {
      await page.emulateMedia({ colorScheme: scheme });
      await page.waitForTimeout(600);
      await page.screenshot({ path: join(process.env.PAGE_SHOTS, `${name}-${width}-${scheme}.png`) });
      if (width < 900) await page.screenshot({ path: join(process.env.PAGE_SHOTS, `${name}-${width}-${scheme}-full.png`), fullPage: true });
    }
  }
  await page.setViewportSize({ width: 1440, height: 900 });
}
await page.locator("#settings-drawer > summary").click();
await pictures("during");
await played(page, 1);
stops.push(await isStopShown());
show("stops", { stops });
await pictures("after");

// Two loads in quick succession, of which the first has no session yet when it ends.
const turns = () => page.evaluate(() => [...document.querySelectorAll("#transcript .turn p")].map((one) => one.textContent));
show("before", { turns: await turns(), token: await page.evaluate(() => globalThis.innervoice.call.connection.token) });
for (const ms of [150, 0, 0]) {
  await page.reload({ waitUntil: ms ? "load" : "commit" });
  await page.waitForTimeout(ms);
}
await page.waitForFunction(() => globalThis.innervoice?.call.isOpen);
await watch(page);
show("reloaded", { turns: await turns(), token: await page.evaluate(() => globalThis.innervoice.call.connection.token) });
await say(page, "And you?");
show("goes-on", await played(page, 1));
await page.locator("#end").click();
await page.waitForFunction(() => globalThis.innervoice.call.connection.state === "idle");
await page.reload();
show("ended", { state: await page.evaluate(() => globalThis.innervoice.call.connection.state), turns: await turns() });

// A server that is away for long, then back without the session. Sockets and waits are the test's own.
show("tries", await page.evaluate(async () => {
  const { Connection } = await import("/page/connection.js");
  const { WebSocket: Real, setTimeout: wait } = globalThis;
  const [sockets, waits, states] = [[], [], []];
  globalThis.WebSocket = class {
    constructor(url) {
      this.url = url;
      sockets.push(this);
    }
    close() {}
  };
  globalThis.setTimeout = (run, ms) => waits.push({ run, ms });
  const answer = (event) => sockets.at(-1).onmessage({ data: JSON.stringify(event) });
  const lose = (code = 1006) => sockets.at(-1).onclose({ code });
  const connection = new Connection();
  connection.addEventListener("state", ({ detail }) => states.push(detail));
  connection.open();
  answer({ type: "session.created", event_seq: 1, session: { innervoice: { resume_token: "old" } } });
  lose();
  for (let i = 0; i < 12; i++) {
    waits.at(-1).run();
    lose();
  }
  const asked = sockets.length;
  connection.retry();
  answer({ type: "error", error: { code: "invalid_resume_token", message: "No session." } });
  lose(1008);
  const [lost, fresh] = sockets.slice(-2).map(({ url }) => String(url));
  const waiting = states.filter(({ state }) => state === "waiting").map(({ reason }) => reason);
  answer({ type: "session.created", event_seq: 1, session: { innervoice: { resume_token: "new" } } });
  Object.assign(globalThis, { WebSocket: Real, setTimeout: wait });
  return { waits: waits.map(({ ms }) => ms), asked, tried: sockets.length, lost, fresh, waiting, last: states.at(-1) };
}));

// The reserve ends where its reports end, is scaled by what is in view, and the view rests when nothing happens.
show("timeline", await page.evaluate(async () => {
  const { between } = await import("/page/timeline.js");
  const { timeline } = globalThis.innervoice;
  const at = performance.now() / 1000;
  timeline.begin("r");
  timeline.reserve = [{ at: at - 8, ms: 1800 }];
  timeline.play("r", 100, 900);
  const joined = between(timeline.reserve, at - 7, at - 1).map(({ ms }) => ms);
  const edge = between([{ at: 0, ms: 4000 }, { at: 10, ms: 0 }], 5, 20);
  timeline.isLinked = true;
  const running = timeline.present - performance.now() / 1000;
  timeline.isLinked = false;
  timeline.newest = at - 200;
  const lost = timeline.present - at;
  timeline.end("r");
  timeline.newest = at - 100;
  timeline.isLinked = true;
  const resting = timeline.present - at;
  const kept = timeline.save();
  timeline.restore(structuredClone(kept), -50);
  return { joined, edge, running, lost, resting, moved: timeline.present - at, zero: timeline.zero };
}));

// What is said of replies without words, in the caption as well.
show("wordless", await page.evaluate(async () => {
  const { Transcript } = await import("/page/transcript.js");
  const [list, caption] = [document.createElement("ol"), document.createElement("p")];
  const transcript = new Transcript(list, caption);
  for (const outcome of ["heard", "failed", "cancelled", "completed"]) {
    transcript.reply(outcome);
    transcript.end(outcome, outcome);
  }
  transcript.reply("open");
  transcript.add("open", "one two", 0);
  transcript.heard("open", 400, 400);
  const spoken = [caption.textContent];
  transcript.add("open", " six ten", 0);
  spoken.push(caption.textContent, [...list.querySelectorAll("span[class='']")].map((one) => one.textContent).join("").trim());
  transcript.note("once");
  transcript.note("once");
  transcript.abandon();
  const saved = JSON.parse(JSON.stringify(transcript.save()));
  const again = new Transcript(document.createElement("ol"), caption);
  again.restore(saved);
  const texts = (one) => [...one.list.querySelectorAll(".turn p")].map((body) => body.textContent);
  return { texts: texts(transcript), again: texts(again), spoken, notes: list.querySelectorAll(".note").length,
    cut: list.querySelectorAll(".cut").length };
}));
await browser.close();
