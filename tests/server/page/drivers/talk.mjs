// A page that talks for PAGE_MINUTES: its microphone asks again and again. Prints memory and clocks every quarter of a minute.
import { readFileSync } from "node:fs";
import { launch, leave, show, visit } from "./browser.mjs";

const browser = await launch({ loops: true, flags: ["--js-flags=--expose-gc"] });
const page = await visit(browser);
const processes = await browser.newBrowserCDPSession();

/** Megabytes that the page's process has in memory. */
async function residentMb() {
  const { processInfo } = await processes.send("SystemInfo.getProcessInfo");
  const sizes = processInfo.filter(({ type }) => type === "renderer").map(({ id }) => {
    const found = /^Rss:\s+(\d+) kB/m.exec(readFileSync(`/proc/${id}/smaps_rollup`, "utf8"));
    return Number(found[1]) / 1024;
  });
  return Math.max(...sizes);
}

const sample = () => page.evaluate(() => {
  globalThis.gc();
  const { call } = globalThis.innervoice;
  const now = performance.now();
  return {
    atMs: now,
    heapMb: performance.memory.usedJSHeapSize / 2 ** 20,
    nodes: document.getElementsByTagName("*").length,
    sentMs: call.sentMs,
    playClockMs: 1000 * call.playback.context.currentTime,
    captureClockMs: 1000 * call.capture.context.currentTime,
    replies: globalThis.talked.replies,
    cuts: globalThis.talked.cuts,
    faults: globalThis.talked.faults,
    lagMs: globalThis.talked.lagMs,
    state: call.connection.state,
  };
});

await page.locator("#start").click();
await page.waitForFunction(() => globalThis.innervoice.call.isOpen && globalThis.innervoice.call.capture.isOpen);
await page.evaluate(() => {
  const { call } = globalThis.innervoice;
  const talked = { replies: 0, cuts: 0, faults: [], lagMs: 0 };
  globalThis.talked = talked;
  globalThis.seen.levels = globalThis.seen.arrivals = { push() {} }; // what the tests keep is no memory of the page
  const cut = new Set();
  call.addEventListener("cut", ({ detail }) => cut.add(detail.response) && talked.cuts++);
  call.addEventListener("server", ({ detail }) => {
    if (detail.type === "error") talked.faults.push(detail.error.message);
    if (detail.type === "response.done") globalThis.seen.done.length = 0;
  });
  let last = null; // where the sound ran dry
  call.addEventListener("dry", ({ detail }) => (last = { ...detail, receivedMs: call.playback.receivedMs(detail.response) }));
  call.addEventListener("begun", () => {
    if (last && !cut.has(last.response)) {
      talked.replies++;
      talked.lagMs = Math.max(talked.lagMs, Math.abs(last.receivedMs - last.playedMs));
    }
    last = null;
  });
});
const until = Date.now() + 60_000 * Number(process.env.PAGE_MINUTES ?? 30);
while (Date.now() < until) {
  await page.waitForTimeout(15_000);
  show("sample", { ...(await sample()), residentMb: await residentMb() });
}
await leave(browser, page);
