// The hidden reflections of replies, each in a card of its own, as they are thought.

import { visible } from "./text.js";

const MOST = 100; // cards that are shown

/** Shows reflections in a DOM list: their text, and what they spend of the budget that the unplayed sound pays for. */
export class Thoughts {
  constructor(list) {
    this.list = list;
    this.cards = new Map(); // by response, cards by segment
  }

  /** Open a card: an event `innervoice.reflection.started`. */
  begin(event) {
    this.update(event);
  }

  /** Add text: an event `innervoice.reflection.delta`. */
  add(event) {
    const card = this.card(event);
    card.text += visible(event.delta);
    this.update(event);
  }

  /** End a reflection: an event `innervoice.reflection.done`. */
  end(event) {
    const card = this.card(event);
    Object.assign(card, { text: visible(event.text).trim(), injected: event.injected, isOver: true });
    this.update(event);
  }

  /** Note reflections that there was no sound to pay for: an event `innervoice.reflection.skipped`. */
  skip({ num_skipped: num, reserve_ms: reserveMs }) {
    const row = document.createElement("li");
    row.className = "skipped";
    row.textContent = `${num === 1 ? "No thought" : `${num} thoughts left out`}: ${seconds(reserveMs)} of sound left.`;
    this.append(row);
  }

  /** Return all cards, as `restore` takes them. */
  save() {
    const cards = [...this.cards].flatMap(([response, found]) => [...found].map(([segment, card]) => ({ response, segment, ...card })));
    return cards.map(({ row: _row, body: _body, foot: _foot, meter: _meter, ...kept }) => kept);
  }

  /** Show the cards of before a reload. */
  restore(saved) {
    for (const { response, segment, ...fields } of saved) {
      const card = this.card({ response_id: response, segment });
      Object.assign(card, fields);
      this.paint(card);
    }
  }

  update({ cap, spent, reserve_ms: reserveMs, ...event }) {
    const card = this.card(event);
    if (cap !== undefined) Object.assign(card, { cap, spent });
    card.reserveMs ??= reserveMs ?? null; // of the moment at which it opened
    this.paint(card);
    this.list.scrollTop = this.list.scrollHeight;
  }

  card({ response_id: response, segment }) {
    const cards = this.cards.get(response) ?? new Map();
    this.cards.set(response, cards);
    if (!cards.has(segment)) cards.set(segment, this.make());
    return cards.get(segment);
  }

  make() {
    const row = document.createElement("li");
    const body = document.createElement("p");
    const foot = document.createElement("span");
    const meter = document.createElement("meter");
    foot.className = "spent";
    meter.setAttribute("aria-label", "share of the budget that was spent");
    row.append(body, meter, foot);
    this.append(row);
    return { row, body, foot, meter, text: "", spent: 0, cap: null, reserveMs: null, injected: false, isOver: false };
  }

  append(row) {
    this.list.append(row);
    while (this.list.children.length > MOST) this.list.firstElementChild.remove();
    if (this.cards.size > MOST) this.cards.delete(this.cards.keys().next().value);
    this.list.scrollTop = this.list.scrollHeight;
  }

  paint({ row, body, foot, meter, text, spent, cap, reserveMs, injected, isOver }) {
    body.textContent = text.trimStart();
    row.classList.toggle("open", !isOver);
    row.classList.toggle("empty", isOver && !text.trim());
    const budget = cap === null ? "" : ` of ${cap}`;
    const paid = cap === null || !reserveMs ? "" : `, paid by ${seconds(reserveMs)} of sound`;
    foot.textContent = injected ? "injected" : `${spent}${budget} tokens${paid}${isOver ? "" : "…"}`;
    meter.hidden = cap === null;
    if (cap === null) return;
    meter.max = Math.max(1, cap);
    meter.value = Math.min(spent, meter.max);
  }
}

function seconds(ms) {
  return `${(ms / 1000).toFixed(1)} s`;
}
