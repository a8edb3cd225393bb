// The log of all events of a connection, in both directions.

const MOST = 1000;
const LONG = 96;

/** Lists events in a DOM list, filtered by a text; long sound is shown by its length. */
export class EventLog {
  constructor(list, filter, count) {
    this.list = list;
    this.filter = filter;
    this.count = count;
    this.entries = [];
    filter.addEventListener("input", () => this.sift());
  }

  /** Add an event. direction: "client" or "server". */
  add(direction, event) {
    const text = JSON.stringify(event, shortened);
    const row = document.createElement("li");
    const details = document.createElement("details");
    const summary = document.createElement("summary");
    const type = document.createElement("span");
    row.className = `${direction}${event.type === "error" ? " error" : ""}`;
    type.className = "type";
    type.textContent = event.type;
    const arrow = direction === "client" ? "↑ sent" : "↓ got";
    summary.append(`${(performance.now() / 1000).toFixed(2).padStart(7)} ${arrow} `, type);
    details.append(summary);
    details.addEventListener("toggle", () => this.unfold(details, event), { once: true });
    row.append(details);
    this.entries.push({ text: `${direction} ${text}`.toLowerCase(), event, direction, row });
    row.hidden = !this.matches(this.entries.at(-1));
    this.list.append(row);
    if (this.entries.length > MOST) this.entries.shift().row.remove();
    this.count.textContent = this.entries.length;
    const { list } = this;
    if (list.scrollHeight - list.scrollTop - list.clientHeight < 80) list.scrollTop = list.scrollHeight;
  }

  unfold(details, event) {
    const body = document.createElement("pre");
    body.textContent = JSON.stringify(event, shortened, 2);
    details.append(body);
  }

  matches(entry) {
    return entry.text.includes(this.filter.value.trim().toLowerCase());
  }

  sift() {
    for (const entry of this.entries) entry.row.hidden = !this.matches(entry);
  }

  /** Return the events that are shown, one JSON object a line. */
  toText() {
    const shown = this.entries.filter((entry) => this.matches(entry));
    return shown.map(({ direction, event }) => JSON.stringify({ direction, ...event }, shortened)).join("\n");
  }
}

function shortened(key, value) {
  const isSound = (key === "audio" || key === "delta") && typeof value === "string" && value.length > LONG;
  return isSound && /^[A-Za-z0-9+/=]+$/.test(value) ? `(${Math.round((value.length * 3) / 4)} bytes)` : value;
}
