// Text as a font can show it.

/** Make a space of each control character, which would be shown as a box. */
export function visible(text) {
  return text.replace(/[\u0000-\u001f\u007f]/g, " ");
}
