// What a tab remembers of its conversation while the page is loaded again.

const NAME = "conversation";

/** Keep a value until the next load of this tab. One that is too large is not kept. */
export function keep(value) {
  try {
    sessionStorage.setItem(NAME, JSON.stringify({ ...value, origin: performance.timeOrigin }));
  } catch {
    sessionStorage.removeItem(NAME);
  }
}

/** Return the value that was kept, once, with shiftS: add it to seconds of the page's clock of then. null: none. */
export function recall() {
  const text = sessionStorage.getItem(NAME);
  sessionStorage.removeItem(NAME);
  if (!text) return null;
  const value = JSON.parse(text);
  return { ...value, shiftS: (value.origin - performance.timeOrigin) / 1000 };
}
