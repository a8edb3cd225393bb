// The timeline: when each segment of a reply was decoded, and when its sound was played, over one axis of time.

const KEPT_S = 600;
const SAVED_S = 180;
const REST_S = 3; // without anything new, after which the view stands still
const LANES = [
  ["user", "You"],
  ["reflection", "Thought"],
  ["transcript", "Words"],
  ["speech", "Speech"],
  ["sent", "Received"],
  ["sound", "Heard"],
];
const [THOUGHT, SENT, HEARD] = [1, 4, 5];
const now = () => performance.now() / 1000;

/** Draws on a canvas. Times are in seconds of the page's clock, places in the sound in milliseconds. */
export class Timeline {
  constructor(canvas, isCalm) {
    this.canvas = canvas;
    this.isCalm = isCalm; // whether the user asked for little motion
    this.replies = new Map();
    this.users = [];
    this.reserve = [];
    this.spanS = 20;
    this.lag = 0; // seconds that the view is behind the present
    this.zero = 0; // the time of 0:00
    this.newest = now(); // when something happened last
    this.running = null; // the reply that is being made
    this.isLinked = false; // whether there is a connection: without one nothing happens
    this.restyle();
    this.watch();
    this.frame();
  }

  /** Read the colours again, after a change of the theme. */
  restyle() {
    const style = getComputedStyle(this.canvas);
    const read = (name) => style.getPropertyValue(`--${name}`).trim();
    const names = ["user", "reflection", "transcript", "speech", "sound", "ink", "muted", "line", "surface", "bad"];
    this.colours = Object.fromEntries(names.map((name) => [name, read(name)]));
    this.font = style.fontFamily;
  }

  stir() {
    this.newest = now();
  }

  /** The right end of what is shown: now, or shortly after the last thing that happened. */
  get present() {
    const isUnderWay = this.running !== null || this.users.at(-1)?.to === null; // a reply, or speech of the user
    if (this.isLinked && isUnderWay) this.stir();
    return Math.min(now(), this.newest + REST_S);
  }

  begin(response) {
    this.stir();
    this.running = response;
    this.replies.set(response, { start: now(), open: null, segments: [], arrivals: [], plays: [], grants: [], cutMs: null });
    this.trim();
  }

  /** End a reply; by default whatever is open, because its session is gone. */
  end(response = this.running) {
    if (this.running === response) this.running = null;
    if (this.running === null) this.stir();
  }

  /** Let the open segment of a reply grow, as its text or sound arrives: a delta of the kind. */
  grow({ response_id: response, segment = null, cap = null, spent = 0 }, kind) {
    const reply = this.replies.get(response);
    if (!reply || (kind === "speech" && reply.open?.kind === "reflection")) return; // sound comes after its codes
    if (reply.open?.kind !== kind || reply.open.segment !== segment) {
      reply.open = { kind, segment, from: this.lastEnd(reply) };
    }
    Object.assign(reply.open, { to: now(), tokens: spent, cap });
    this.stir();
  }

  /** Note that so much sound of a reply has come. */
  receive(response, ms) {
    const reply = this.replies.get(response);
    if (!reply) return;
    const last = reply.arrivals.at(-1);
    if (last && now() - last.at < 0.03) last.ms += ms; // pieces of one chunk
    else reply.arrivals.push({ at: now(), ms });
  }

  /** Note a budget when it is given: an event `innervoice.reflection.started` or `.skipped`. */
  grant({ response_id: response, t_ms: t, cap = 0, reserve_ms: ms }) {
    const reply = this.replies.get(response);
    reply?.grants.push({ at: reply.start + t / 1000, cap, ms });
  }

  lastEnd(reply) {
    return reply.segments.at(-1)?.to ?? reply.start;
  }

  /** Add a segment that has ended: an event `innervoice.segment`. */
  add(event) {
    const reply = this.replies.get(event.response_id);
    if (!reply) return;
    const from = this.lastEnd(reply);
    const to = Math.max(from, reply.start + event.t_ms / 1000);
    const { kind, index, num_tokens, spent, cap = null, audio_start_ms: fromMs, audio_end_ms: toMs } = event;
    reply.segments.push({ kind, index, tokens: spent ?? num_tokens, cap, from, to, fromMs, toMs });
    reply.open = null;
  }

  /** Return the last minutes, as `restore` takes them. */
  save() {
    const { users, zero, newest, running } = this;
    const isRecent = (at) => at > newest - SAVED_S;
    const reserve = this.reserve.filter((point) => isRecent(point.at));
    return { replies: [...this.replies].filter(([, reply]) => isRecent(reply.start)), users, reserve, zero, newest, running };
  }

  /** Show what was shown before a reload. shiftS: from the page's clock of then to that of now. */
  restore({ replies, users, reserve, zero, newest, running }, shiftS) {
    const shift = (fields, names) => names.forEach((name) => (fields[name] = fields[name] == null ? fields[name] : fields[name] + shiftS));
    for (const [id, reply] of replies) {
      shift(reply, ["start", "cutAt"]);
      for (const span of [...reply.segments, ...reply.plays, ...(reply.open ? [reply.open] : [])]) shift(span, ["from", "to"]);
      for (const point of [...reply.grants, ...reply.arrivals]) shift(point, ["at"]);
      this.replies.set(id, reply);
    }
    for (const turn of users) shift(turn, ["from", "to"]);
    for (const point of reserve) shift(point, ["at"]);
    Object.assign(this, { users, reserve, running, zero: zero + shiftS, newest: newest + shiftS });
  }

  /** Note how much of a reply was played by now, and how much waits. */
  play(response, playedMs, waitingMs) {
    const at = now();
    const before = this.reserve.at(-1);
    if (at - (before?.at ?? -Infinity) > 0.4) { // between them nothing is known: no line joins the two
      if (before?.ms) this.reserve.push({ at: before.at, ms: 0 });
      this.reserve.push({ at: at - 0.1, ms: 0 });
    }
    this.reserve.push({ at, ms: waitingMs });
    this.stir();
    const reply = this.replies.get(response);
    if (!reply) return;
    const last = reply.plays.at(-1);
    const from = at - (playedMs - (last?.toMs ?? 0)) / 1000;
    if (playedMs <= (last?.toMs ?? 0)) return;
    if (last && from - last.to < 0.06) Object.assign(last, { to: at, toMs: playedMs });
    else reply.plays.push({ from, to: at, fromMs: last?.toMs ?? 0, toMs: playedMs });
  }

  cut(response, playedMs) {
    const reply = this.replies.get(response);
    if (!reply) return;
    reply.cutMs = playedMs;
    reply.cutAt = now();
    this.stir();
    this.reserve.push({ at: now(), ms: 0 });
  }

  userBegan(agoS = 0) {
    this.userEnded(agoS); // of a turn whose end was lost with a connection
    this.users.push({ from: now() - agoS, to: null });
    this.stir();
  }

  userEnded(agoS = 0) {
    const last = this.users.at(-1);
    if (last && last.to === null) last.to = Math.max(last.from, now() - agoS);
  }

  trim() {
    const oldest = this.newest - KEPT_S;
    for (const [id, reply] of this.replies) if (reply.start < oldest) this.replies.delete(id);
    this.users = this.users.filter((turn) => (turn.to ?? now()) > oldest);
    this.reserve = this.reserve.filter((point) => point.at > oldest);
  }

  /** Move the view by a share of its width, to the past or back to the present. */
  move(share) {
    this.lag = Math.max(0, Math.min(KEPT_S, this.lag - share * this.spanS));
  }

  watch() {
    let dragged = null;
    const { canvas } = this;
    canvas.addEventListener("pointerdown", (event) => {
      dragged = { x: event.clientX, lag: this.lag };
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!dragged) return;
      const moved = ((event.clientX - dragged.x) / canvas.clientWidth) * this.spanS;
      this.lag = Math.max(0, Math.min(KEPT_S, dragged.lag + moved));
    });
    canvas.addEventListener("pointerup", () => (dragged = null));
    canvas.addEventListener("pointercancel", () => (dragged = null));
    canvas.addEventListener("keydown", (event) => {
      const shares = { ArrowLeft: -0.2, ArrowRight: 0.2, Home: -KEPT_S, End: KEPT_S };
      if (!(event.key in shares)) return;
      event.preventDefault();
      this.move(shares[event.key]);
    });
  }

  frame() {
    this.draw();
    if (this.isCalm()) setTimeout(() => this.frame(), 500);
    else requestAnimationFrame(() => this.frame());
  }

  draw() {
    const { canvas } = this;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    const scale = devicePixelRatio;
    if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
      canvas.width = Math.round(width * scale);
      canvas.height = Math.round(height * scale);
    }
    const pen = canvas.getContext("2d");
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.clearRect(0, 0, width, height);
    const left = width < 520 ? 68 : 78;
    const view = { pen, left, width, height, top: 6, foot: 20, end: this.present - this.lag + 0.04 * this.spanS };
    view.reserveTop = height - view.foot - 44;
    view.lane = (view.reserveTop - view.top - 6) / LANES.length;
    view.x = (t) => width - ((view.end - t) / this.spanS) * (width - left);
    this.drawFrame(view);
    pen.save();
    pen.beginPath();
    pen.rect(left, 0, width - left, height);
    pen.clip();
    for (const turn of this.users) this.block(view, 0, turn.from, turn.to ?? now(), this.colours.user);
    view.points = between(this.reserve, view.end - this.spanS, view.end);
    view.mostMs = Math.max(1000, ...view.points.map((point) => point.ms));
    this.drawReserve(view);
    view.starts = this.starts(view.end - this.spanS);
    for (const reply of this.replies.values()) this.drawReply(view, reply);
    this.drawNow(view);
    pen.restore();
  }

  /** When thoughts, sound and budgets of all replies begin, after a time: a label ends before the next one of its kind. */
  starts(after) {
    const replies = [...this.replies.values()];
    const seen = (times) => times.filter((at) => at > after);
    const thoughts = replies.flatMap(({ segments, open }) => [...segments, ...(open ? [open] : [])])
      .filter(({ kind }) => kind === "reflection").map(({ from }) => from);
    const arrivals = replies.flatMap((reply) => reply.arrivals.map(({ at }) => at));
    const grants = replies.flatMap((reply) => reply.grants.map(({ at }) => at));
    return { [THOUGHT]: seen(thoughts), [SENT]: seen(arrivals), grants: seen(grants) };
  }

  /** Whether a text that begins at a place (px) ends before the next start behind a time, and before the edge. */
  fits({ pen, x, width, starts }, kind, after, place, text) {
    if (place < 0) return false;
    const next = Math.min(Infinity, ...starts[kind].filter((at) => at > after));
    return place + pen.measureText(text).width + 6 < Math.min(width, next === Infinity ? width : x(next));
  }

  drawFrame({ pen, left, width, top, lane, height, foot, end, x, reserveTop }) {
    pen.font = `500 11px ${this.font}`;
    pen.textBaseline = "middle";
    LANES.forEach(([key, name], i) => {
      const y = top + i * lane;
      pen.fillStyle = this.colours[key] ?? this.colours.sound;
      pen.fillRect(0, y + lane / 2 - 5, 3, 10);
      pen.fillStyle = this.colours.ink;
      pen.fillText(name, 10, y + lane / 2);
      pen.fillStyle = this.colours.line;
      pen.fillRect(left, Math.round(y + lane) - 0.5, width - left, 1);
    });
    pen.fillStyle = this.colours.ink;
    pen.fillText("Reserve", 10, reserveTop + 24);
    const step = this.spanS > 60 ? 20 : this.spanS > 15 ? 5 : 1;
    pen.textAlign = "center";
    const last = end - this.zero;
    for (let t = Math.max(0, Math.ceil((last - this.spanS) / step) * step); t < last; t += step) {
      const place = x(this.zero + t);
      if (place < left + 12 || place > width - 14) continue;
      pen.fillStyle = this.colours.line;
      pen.fillRect(Math.round(place), top, 1, height - foot - top);
      pen.fillStyle = this.colours.muted;
      pen.fillText(`${Math.floor(t / 60)}:${String(Math.floor(t % 60)).padStart(2, "0")}`, place, height - 8);
    }
    pen.textAlign = "left";
  }

  drawReply(view, reply) {
    const spoken = reply.segments.filter((segment) => segment.kind === "speech");
    for (const segment of reply.segments) {
      const lane = LANES.findIndex(([key]) => key === segment.kind);
      if (lane < 0) continue;
      const colour = this.colours[segment.kind];
      this.block(view, lane, segment.from, segment.to, colour);
      if (segment.kind === "reflection") this.drawBudget(view, segment);
      if (reply.cutMs === null) continue;
      const sound = segment.kind === "speech" ? segment : segment.kind === "transcript" ? spoken[segment.index] : null;
      if (!sound || sound.toMs <= reply.cutMs) continue;
      this.hatchFrom(view, lane, segment, (reply.cutMs - sound.fromMs) / (sound.toMs - sound.fromMs));
    }
    if (reply.open) {
      const lane = LANES.findIndex(([key]) => key === reply.open.kind);
      this.block(view, lane, reply.open.from, reply.open.to, this.colours[reply.open.kind]);
      if (reply.open.kind === "reflection") this.drawBudget(view, reply.open);
    }
    for (const grant of reply.grants) this.drawGrant(view, grant);
    for (const { at, ms } of reply.arrivals) {
      this.block(view, SENT, at, at, this.colours.sound);
      this.label(view, SENT, at, at + 0.02, `${(ms / 1000).toFixed(1)} s`, this.colours.muted);
    }
    for (const { from, to } of reply.plays) this.block(view, HEARD, from, to, this.colours.sound);
    if (reply.cutMs !== null) this.drawCut(view, reply.cutAt);
  }

  block({ pen, x, top, lane }, index, from, to, colour) {
    const start = x(from);
    const size = Math.max(3, x(to) - start - 1);
    pen.fillStyle = colour;
    pen.beginPath();
    pen.roundRect(start, top + index * lane + 5, size, lane - 10, Math.min(4, size / 2));
    pen.fill();
  }

  /** A text in a block, or behind it where it has room, or nowhere. */
  label(view, index, from, to, text, colour = this.colours.ink) {
    const { pen, x, top, lane } = view;
    const isInside = x(to) - x(from) > pen.measureText(text).width + 8;
    if (!isInside && !this.fits(view, index, from, x(to) + 4, text)) return;
    pen.fillStyle = isInside ? this.colours.surface : colour;
    pen.fillText(text, isInside ? x(from) + 5 : x(to) + 4, top + (index + 0.5) * lane);
  }

  /** Under a reflection a bar of its budget, filled by what it spent. */
  drawBudget(view, segment) {
    const { pen, x, top, lane } = view;
    const { cap, tokens } = segment;
    this.label(view, THOUGHT, segment.from, segment.to, cap === null ? `${tokens}` : `${tokens} of ${cap}`);
    if (cap === null) return;
    const y = top + 2 * lane - 4;
    const size = Math.max(2, x(segment.to) - x(segment.from) - 1);
    pen.fillStyle = this.colours.line;
    pen.fillRect(x(segment.from), y, size, 2);
    pen.fillStyle = this.colours.ink;
    pen.fillRect(x(segment.from), y, size * Math.min(1, segment.tokens / Math.max(1, cap)), 2);
  }

  /** On the reserve: the moment at which it was turned into a budget, and the tokens that it bought. */
  drawGrant(view, { at, cap, ms }) {
    const { pen, x, height, foot, reserveTop, mostMs } = view;
    if (ms === null || ms === undefined) return;
    const base = height - foot;
    const y = base - (Math.min(ms, mostMs) / mostMs) * (base - reserveTop - 4);
    pen.fillStyle = this.colours.reflection;
    pen.strokeStyle = this.colours.surface;
    pen.lineWidth = 1.5;
    pen.beginPath();
    pen.arc(x(at), y, 4, 0, 7);
    pen.fill();
    pen.stroke();
    if (cap !== null && this.fits(view, "grants", at, x(at) + 7, `${cap}`)) pen.fillText(`${cap}`, x(at) + 7, Math.max(y, reserveTop + 6));
  }

  hatchFrom({ pen, x, top, lane }, index, segment, share) {
    const from = x(segment.from) + Math.max(0, share) * (x(segment.to) - x(segment.from));
    const size = Math.max(2, x(segment.to) - from);
    const y = top + index * lane + 5;
    pen.save();
    pen.beginPath();
    pen.rect(from, y, size, lane - 10);
    pen.clip();
    pen.fillStyle = this.colours.surface;
    pen.globalAlpha = 0.55;
    pen.fillRect(from, y, size, lane - 10);
    pen.globalAlpha = 1;
    pen.strokeStyle = this.colours.bad;
    pen.lineWidth = 1.5;
    pen.beginPath();
    for (let at = from - lane; at < from + size + lane; at += 5) {
      pen.moveTo(at, y + lane);
      pen.lineTo(at + lane, y);
    }
    pen.stroke();
    pen.restore();
  }

  drawCut({ pen, x, top, reserveTop }, at) {
    pen.fillStyle = this.colours.bad;
    pen.fillRect(x(at) - 1, top, 2, reserveTop - top);
  }

  drawReserve({ pen, x, left, height, foot, reserveTop, points, mostMs: most }) {
    const base = height - foot;
    const y = (ms) => base - (ms / most) * (base - reserveTop - 4);
    if (points.length) {
      pen.beginPath();
      pen.moveTo(x(points[0].at), base);
      for (const point of points) pen.lineTo(x(point.at), y(point.ms));
      pen.lineTo(x(points.at(-1).at), base);
      pen.fillStyle = this.colours.sound;
      pen.globalAlpha = 0.28;
      pen.fill();
      pen.globalAlpha = 1;
    }
    pen.fillStyle = this.colours.muted;
    pen.fillText(`${(most / 1000).toFixed(1)} s`, left + 6, reserveTop + 8);
  }

  drawNow({ pen, x, top, height, foot }) {
    if (this.lag > 0.05 * this.spanS || this.present < now()) return;
    pen.fillStyle = this.colours.ink;
    pen.fillRect(x(now()), top, 1.5, height - foot - top);
    pen.beginPath();
    pen.arc(x(now()) + 0.75, top, 3.5, 0, 7);
    pen.fill();
  }
}

/** The points of a line within a span of time, with those in which it crosses the span's ends. */
export function between(points, from, to) {
  const found = [];
  points.forEach((point, i) => {
    const before = points[i - 1];
    for (const edge of before ? [from, to] : []) {
      if (before.at >= edge || point.at <= edge) continue;
      found.push({ at: edge, ms: before.ms + ((point.ms - before.ms) * (edge - before.at)) / (point.at - before.at) });
    }
    if (point.at >= from && point.at <= to) found.push(point);
  });
  return found;
}
