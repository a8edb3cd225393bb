// The words of both sides. Words of a reply are pale until their sound is heard, and struck out if it never was.

/** Shows turns in a DOM list, and the words that are being heard in a caption. */
export class Transcript {
  constructor(list, caption) {
    this.list = list;
    this.caption = caption;
    this.replies = new Map(); // by item
    this.turns = new Map(); // of the user, by item
  }

  /** Show a turn of the user. text: null for speech of which there are no words yet. */
  user(item, text) {
    const body = this.turns.get(item) ?? this.turn("user", "You");
    this.turns.set(item, body);
    body.textContent = text ?? "spoken turn";
    body.classList.toggle("wordless", text === null);
  }

  /** Begin a reply. */
  reply(item) {
    this.replies.set(item, { body: this.turn("assistant", "Voice"), pieces: [], playedMs: 0, cutMs: null });
  }

  /** Add words of a reply; startMs: the place of their sound, null for text without sound. */
  add(item, text, startMs) {
    const reply = this.replies.get(item);
    if (!reply) return;
    const span = document.createElement("span");
    span.textContent = text;
    reply.body.append(span);
    reply.pieces.push({ span, text, startMs });
    this.paint(reply);
    this.follow();
  }

  /** Note how much of a reply was heard. */
  heard(item, playedMs) {
    const reply = this.replies.get(item);
    if (!reply || reply.cutMs !== null) return;
    reply.playedMs = playedMs;
    this.paint(reply);
    this.caption.textContent = reply.pieces.filter(isHeard(reply)).map((piece) => piece.text).join("").slice(-90);
  }

  /** Cut a reply at the sound that was heard. */
  cut(item, playedMs) {
    const reply = this.replies.get(item);
    if (!reply) return;
    reply.cutMs = reply.playedMs = playedMs;
    reply.body.closest("li").classList.add("cut");
    this.paint(reply);
  }

  /** Add a line between turns. */
  note(text) {
    const row = document.createElement("li");
    row.className = "note";
    row.textContent = text;
    this.list.append(row);
    this.follow();
  }

  paint(reply) {
    const test = isHeard(reply);
    for (const piece of reply.pieces) {
      piece.span.className = test(piece) ? "" : reply.cutMs === null ? "coming" : "unheard";
    }
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
    this.follow();
    return body;
  }

  follow() {
    this.list.scrollTop = this.list.scrollHeight;
  }
}

function isHeard(reply) {
  return ({ startMs }) => startMs === null || startMs < reply.playedMs;
}
