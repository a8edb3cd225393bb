// What a tab remembers of its conversation while the page is loaded again.

const NAME = "conversation";

/**
 * Keep an object for the next loads of this tab. Where the browser has no room for all of it, the fields of `spare` are
 * left out one after another.
 */
export function keep(value, spare = []) {
  for (let num = 0; num <= spare.length; num++) {
    const left = Object.fromEntries(Object.entries(value).filter(([name]) => !spare.slice(0, num).includes(name)));
    try {
      sessionStorage.setItem(NAME, JSON.stringify({ ...left, origin: performance.timeOrigin }));
      return;
    } catch {
      // it has no room: the next try is smaller
    }
  }
}

/** Forget what was kept: the conversation is over. */
export function forget() {
  sessionStorage.removeItem(NAME);
}

/**
 * Return the object that was kept, with shiftS: add it to seconds of the page's clock of then. null: none. It is kept
 * on: a page that is loaded again before its session is back needs it once more.
 */
export function recall() {
  const text = sessionStorage.getItem(NAME);
  if (!text) return null;
  const value = JSON.parse(text);
  return { ...value, shiftS: (value.origin - performance.timeOrigin) / 1000 };
}
