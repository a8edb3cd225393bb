// A conversation that goes on: over a lost connection, over a reload in the midst of a reply, and after a refusal.
import { launch, leave, played, playing, say, show, state, visit, watch } from "./browser.mjs";

const browser = await launch({ loops: true });
const page = await visit(browser);
await page.locator("#settings-drawer > summary").click();
await page.locator("#key").fill(process.env.REALTIME_KEY);
await page.locator("[name=turns]").selectOption("manual");
await page.locator("#start").click();
await page.waitForFunction(() => globalThis.innervoice.call.isOpen && globalThis.innervoice.call.isManual);
await page.waitForFunction(() => !document.getElementById("talk").hidden);

// Push to talk, by the keyboard: a turn while the key is held; too short a one is none.
await page.locator("#talk").focus();
await page.keyboard.down("Space");
await page.waitForTimeout(1200);
await page.keyboard.up("Space");
show("held", await played(page, 1));
await page.keyboard.down("Space");
await page.keyboard.up("Space");

// The connection is lost in the midst of a reply: it comes back, and the reply is played whole.
await say(page, "How are you?");
await playing(page, 200, await page.evaluate(() => globalThis.seen.done[0].id));
await page.evaluate(() => globalThis.innervoice.call.connection.socket.close(4000));
await page.waitForFunction(() => !globalThis.innervoice.call.isOpen);
show("lost", { reason: await state(page) });
await page.waitForFunction(() => globalThis.innervoice.call.isOpen);
show("reconnected", await played(page, 2));

// The page is loaded again in the midst of a reply: what was not played is played.
await say(page, "And you?");
const old = await page.evaluate(() => globalThis.seen.done[1].id);
await playing(page, 500, old);
const shown = () => page.evaluate(() => ({
  turns: [...document.querySelectorAll("#transcript .turn p")].map((one) => one.textContent),
  thoughts: document.querySelectorAll("#thoughts li:not(.empty-note)").length,
  replies: globalThis.innervoice.timeline.replies.size,
  at: { ...globalThis.innervoice.call.playback.at },
}));
show("before", await shown());
await page.reload();
await watch(page);
await page.waitForFunction(() => globalThis.innervoice.call.isOpen);
await page.waitForFunction(() => globalThis.innervoice.call.playback.at !== null, null, { polling: 20 });
show("reloaded", { ...(await shown()), turnsValue: await page.locator("[name=turns]").inputValue() });
await page.waitForFunction(() => {
  const { call } = globalThis.innervoice;
  const { dry } = globalThis.seen;
  return !call.isAnswering && dry !== null && dry.playedMs > call.playback.receivedMs(dry.response) - 0.1;
}, null, { polling: 50 });
show("finished", await page.evaluate(() => ({
  ...globalThis.seen.dry,
  receivedMs: globalThis.innervoice.call.playback.receivedMs(globalThis.seen.dry.response),
})));
const after = await page.evaluate(() => globalThis.seen.done.length);
await say(page, "Good bye.");
show("last", await played(page, after + 1));

// Another page finds no room, says when it will try again, and gets in once there is.
const other = await visit(browser);
await other.locator("#settings-drawer > summary").click();
await other.locator("#key").fill(process.env.REALTIME_KEY);
await other.locator("#start").click();
await other.waitForFunction(() => document.querySelector("#state").dataset.state === "waiting");
show("refused", { reason: await state(other) });
await page.locator("#end").click();
await other.waitForFunction(() => globalThis.innervoice.call.isOpen);
show("admitted", { reason: await state(other) });
await leave(browser, other);
