// The words of both sides. Words of a reply are pale until their sound is heard, and struck out if it never was.

import { visible } from "./text.js";

const CAPTION = 90; // characters
const MOST = 100; // turns that are shown
const WITHOUT_WORDS = { heard: "(sound without words)", failed: "(the reply failed)", cancelled: "(stopped)" };

/** Shows turns in a DOM list, and the words that are being heard in a caption. */
export class Transcript {
  constructor(list, caption) {
    this.list = list;
    this.caption = caption;
    this.replies = new Map(); // by item
    this.spoken = null; // the reply whose words are in the caption
    this.turns = new Map(); // of the user, by item
    new ResizeObserver(() => this.follow()).observe(list);
  }

  /** Show a turn of the user. text: null for speech of which there are no words yet. */
  user(item, text) {
    const body = this.turns.get(item) ?? this.turn("user", "You");
    this.turns.set(item, body);
    body.textContent = text ?? "(spoken)";
    body.classList.toggle("wordless", text === null);
  }

  /** Begin a reply. */
  reply(item) {
    this.replies.set(item, { body: this.turn("assistant", "Voice"), words: [], playedMs: 0, receivedMs: 0, isCut: false, isOver: false });
  }

  /** Add a part of a reply; startMs: the place where its sound begins, null for text without sound. */
  add(item, text, startMs) {
    const reply = this.replies.get(item);
    if (!reply) return;
    for (const word of visible(text).match(/\s*\S+\s*|\s+/g) ?? []) {
      const span = document.createElement("span");
      span.textContent = reply.words.length ? word : word.trimStart();
      reply.body.append(span);
      reply.words.push({ span, word, startMs, atMs: startMs });
    }
    this.paint(reply);
    this.follow();
  }

  /** Note how much of a reply was received and heard. */
  heard(item, playedMs, receivedMs) {
    const reply = this.replies.get(item);
    if (!reply || reply.isCut) return;
    Object.assign(reply, { playedMs, receivedMs });
    this.spoken = reply;
    this.paint(reply);
  }

  /** Empty the caption: nobody speaks. */
  hush() {
    this.spoken = null;
    this.caption.textContent = "";
  }

  /** End a reply; one without words says what became of it. outcome: "heard" if it had sound, or else its status. */
  end(item, outcome) {
    const reply = this.replies.get(item);
    if (!reply) return;
    reply.isOver = true;
    if (!reply.words.some(({ word }) => word.trim())) this.mark(reply, WITHOUT_WORDS[outcome] ?? "(nothing)");
  }

  mark({ body }, text) {
    body.textContent = text;
    body.classList.add("wordless");
  }

  /** Cut the replies that nobody goes on with, because their session is gone. */
  abandon() {
    for (const [item, { isOver, playedMs }] of this.replies) if (!isOver) this.cut(item, playedMs);
  }

  /** Cut a reply at the sound that was heard. */
  cut(item, playedMs) {
    const reply = this.replies.get(item);
    if (!reply) return;
    Object.assign(reply, { playedMs, isCut: true, isOver: true });
    reply.body.closest("li").classList.add("cut");
    this.paint(reply);
  }

  /** Add a line between turns, unless it stands there already. */
  note(text) {
    const last = this.list.lastElementChild;
    if (last?.className === "note" && last.textContent === text) return;
    const row = document.createElement("li");
    row.className = "note";
    row.textContent = text;
    this.list.append(row);
    this.follow();
  }

  paint(reply) {
    spread(reply);
    for (const word of reply.words) {
      word.span.className = isHeard(reply, word) ? "" : reply.isCut ? "unheard" : "coming";
    }
    if (reply !== this.spoken) return;
    const heard = reply.words.filter((word) => isHeard(reply, word)).map(({ word }) => word).join("").trim();
    // The caption's last part begins with a word that is whole.
    this.caption.textContent = heard.length > CAPTION ? `… ${heard.slice(-CAPTION).replace(/^\S*\s+/, "")}` : heard;
  }

  turn(side, name) {
    const row = document.createElement("li");
    const label = document.createElement("span");
    const body = document.createElement("p");
    row.className = `turn ${side}`;
    label.className = "who";
    label.textContent = name;
    row.append(label, body);
    this.list.append(row);
    this.trim();
    this.follow();
    return body;
  }

  /** Show the newest turns only, so that a long conversation costs no more than a short one. */
  trim() {
    while (this.list.children.length > MOST) this.list.firstElementChild.remove();
    for (const [item, { body }] of this.replies) if (!this.list.contains(body)) this.replies.delete(item);
    for (const [item, body] of this.turns) if (!this.list.contains(body)) this.turns.delete(item);
  }

  /** Return all that is shown, as `restore` takes it. */
  save() {
    const turns = [...this.turns].map(([item, body]) => [body, { item, text: isWordless(body) ? null : body.textContent }]);
    const replies = [...this.replies].map(([item, { words, body, ...kept }]) => {
      const text = isWordless(body) ? body.textContent : null;
      return [body, { ...kept, item, text, words: words.map(({ word, startMs }) => [word, startMs]) }];
    });
    const places = new Map([...turns, ...replies]);
    return [...this.list.querySelectorAll(".turn p")].map((body) => places.get(body)).filter(Boolean);
  }

  /** Show what was shown before a reload. */
  restore(saved) {
    for (const { item, text, words, playedMs, receivedMs, isCut, isOver } of saved) {
      if (!words) {
        this.user(item, text);
        continue;
      }
      this.reply(item);
      for (const [word, startMs] of words) this.add(item, word, startMs);
      const reply = this.replies.get(item);
      Object.assign(reply, { playedMs, receivedMs, isOver });
      if (isCut) this.cut(item, playedMs);
      else this.paint(reply);
      if (text !== null) this.mark(reply, text);
    }
  }

  follow() {
    this.list.scrollTop = this.list.scrollHeight;
  }
}

/** Give each word its place in the sound: a part's words share the sound up to the next part by their length. */
function spread({ words, receivedMs }) {
  for (let first = 0; first < words.length; ) {
    const { startMs } = words[first];
    if (startMs === null) return;
    let last = first;
    while (words[last + 1]?.startMs === startMs) last++;
    const end = Math.max(startMs, words[last + 1]?.startMs ?? receivedMs);
    const part = words.slice(first, last + 1);
    const length = part.reduce((sum, { word }) => sum + word.length, 0);
    let before = 0;
    for (const word of part) {
      word.atMs = startMs + ((end - startMs) * before) / length;
      before += word.word.length;
    }
    first = last + 1;
  }
}

function isHeard({ playedMs }, { atMs }) {
  return atMs === null || atMs < playedMs;
}

function isWordless(body) {
  return body.classList.contains("wordless");
}
