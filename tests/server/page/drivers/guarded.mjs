// The page of a server with a key, behind TLS and below a path.
import { launch, leave, played, say, show, state, visit } from "./browser.mjs";

const browser = await launch({ flags: ["--ignore-certificate-errors"] });
const page = await visit(browser, { ignoreHTTPSErrors: true });
await page.locator("#start").click();
await page.waitForFunction(() => document.querySelector("#state").dataset.state === "refused");
show("keyless", { reason: await state(page), focused: await page.evaluate(() => document.activeElement.id) });
await page.locator("[name=turns]").selectOption("manual"); // the microphone interrupts nothing
await page.locator("#key").fill(process.env.REALTIME_KEY);
await page.locator("#start").click();
await page.waitForFunction(() => globalThis.innervoice.call.isOpen);
await say(page, "How are you?");
show("spoken", await played(page, 1));
await leave(browser, page);
