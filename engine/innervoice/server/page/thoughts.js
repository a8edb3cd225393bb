// The hidden reflections of replies, each in a card of its own, as they are thought.

import { visible } from "./text.js";

/** Shows reflections in a DOM list: their text, and what they spent of the budget that the playback clock gave. */
export class Thoughts {
  constructor(list) {
    this.list = list;
    this.cards = new Map(); // by response, cards in order
  }

  /** Add text to a reflection. */
  add(response, segment, text) {
    const card = this.card(response, segment);
    card.body.textContent += visible(text);
    card.tokens++;
    this.paint(card);
    this.list.scrollTop = this.list.scrollHeight;
  }

  /** End a reflection: an event `innervoice.reflection.done`. */
  end({ response_id: response, segment, text, spent: tokens, injected }) {
    const card = this.card(response, segment);
    card.body.textContent = visible(text).trim();
    Object.assign(card, { tokens, injected, isOver: true });
    card.row.classList.remove("open");
    if (!text.trim()) card.row.classList.add("empty");
    this.paint(card);
  }

  /** Note the budgets of a reply's reflections, in order; null: none. */
  budget(response, caps) {
    [...(this.cards.get(response)?.values() ?? [])].forEach((card, i) => {
      card.cap = caps[i] ?? null;
      this.paint(card);
    });
  }

  card(response, segment) {
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
    row.className = "open";
    foot.className = "spent";
    meter.hidden = true;
    meter.setAttribute("aria-label", "share of the budget that was spent");
    row.append(body, meter, foot);
    this.list.append(row);
    return { row, body, foot, meter, tokens: 0, cap: null, injected: false, isOver: false };
  }

  paint({ foot, meter, tokens, cap, injected, isOver }) {
    const budget = cap === null ? "" : ` of ${cap}`;
    foot.textContent = `${tokens}${budget} tokens${injected ? ", injected" : ""}${isOver ? "" : "…"}`;
    meter.hidden = cap === null;
    if (cap === null) return;
    meter.max = Math.max(1, cap);
    meter.value = Math.min(tokens, meter.max);
  }
}
