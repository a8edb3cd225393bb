// The page of a server with a key, behind TLS and below a path.
import { launch, leave, played, say, show, visit } from "./browser.mjs";

const browser = await launch({ flags: ["--ignore-certificate-errors"] });
const page = await visit(browser, { ignoreHTTPSErrors: true });
await page.locator("#start").click();
await page.waitForFunction(() => document.querySelector("#state").dataset.state === "refused");
show("keyless", await page.evaluate(() => {
  const { top, bottom } = document.getElementById("key-reason").getBoundingClientRect();
  const dock = document.querySelector(".dock").getBoundingClientRect();
  return {
    reason: document.getElementById("key-reason").textContent,
    focused: document.activeElement.id,
    isInView: top >= 0 && bottom <= innerHeight && (bottom <= dock.top || top >= dock.bottom),
  };
}));
if (process.env.PAGE_SHOTS) await page.screenshot({ path: `${process.env.PAGE_SHOTS}/keyless.png` });
await page.locator("[name=turns]").selectOption("manual"); // the microphone interrupts nothing
await page.locator("#key").fill(process.env.REALTIME_KEY);
await page.locator("#start").click();
await page.waitForFunction(() => globalThis.innervoice.call.isOpen);
await say(page, "How are you?");
show("spoken", await played(page, 1));
show("notes", { notes: await page.locator("#transcript .note").allTextContents() });
await leave(browser, page);
