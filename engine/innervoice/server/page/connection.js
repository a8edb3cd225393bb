// The WebSocket to the server: its events, the reason of its state, and its return after a loss.

const WAITS_S = [0.5, 1, 2, 4, 8, 15]; // the last again and again

/**
 * A connection that comes back by itself, for as long as the page is open. Events: "state" with {state, reason}, "server" and "client" with each
 * event of the protocol. States: idle, connecting, open, waiting, refused.
 */
export class Connection extends EventTarget {
  constructor() {
    super();
    this.state = "idle";
    this.token = null;
    this.lastEvent = 0;
    this.tries = 0;
    this.told = { state: "idle", reason: "Not connected.", code: null }; // of the last "state"
    this.after = null; // while events are sent again after a reload: the last of them that came
    this.isRepeat = false; // whether the event at hand was received before a loss or a reload
    addEventListener("online", () => this.retry());
  }

  /**
   * Connect; key: null where the server needs none. kept: a session of before a reload, {token, lastEvent, after}:
   * events behind `after` are sent again.
   */
  open(key = null, kept = null) {
    this.key = key;
    this.tries = 0;
    this.isReturning = kept !== null;
    this.token = kept?.token ?? null;
    this.lastEvent = kept?.lastEvent ?? 0;
    this.after = kept?.after ?? null;
    this.connect();
  }

  /** End the session. */
  close() {
    clearTimeout(this.timer);
    this.token = null;
    this.leave();
    this.change("idle", "Not connected.");
  }

  /** Try now rather than at the end of the wait. */
  retry() {
    if (this.state === "waiting") this.connect();
  }

  /** Send an event -> whether the connection was open. */
  send(type, fields = {}) {
    if (this.socket?.readyState !== WebSocket.OPEN) return false;
    const event = { type, ...fields };
    this.socket.send(JSON.stringify(event));
    this.dispatchEvent(new CustomEvent("client", { detail: event }));
    return true;
  }

  connect() {
    clearTimeout(this.timer);
    this.leave();
    this.error = null;
    this.change("connecting", this.token ? "Taking the session up again…" : "Connecting…");
    const url = new URL("v1/realtime?innervoice=1", document.baseURI);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    if (this.token) {
      url.searchParams.set("resume", this.token);
      url.searchParams.set("last_event", this.after ?? this.lastEvent);
    }
    const protocols = ["realtime"];
    if (this.key) protocols.push(`openai-insecure-api-key.${this.key}`);
    const socket = new WebSocket(url, protocols);
    this.socket = socket;
    socket.onmessage = ({ data }) => this.take(JSON.parse(data));
    socket.onclose = (event) => this.lost(event);
  }

  leave() {
    if (!this.socket) return;
    this.socket.onmessage = this.socket.onclose = null;
    this.socket.close(1000);
    this.socket = null;
  }

  take(event) {
    this.isRepeat = event.event_seq <= this.lastEvent;
    if (event.event_seq > this.lastEvent) this.lastEvent = event.event_seq;
    if (event.event_seq && this.after !== null) this.after = this.isRepeat ? event.event_seq : null;
    if (event.type === "session.created" || event.type === "session.updated") {
      this.token = event.session.innervoice?.resume_token ?? this.token;
      this.tries = 0;
      this.isReturning = false;
      if (this.state !== "open") this.change("open", "Connected.");
    }
    if (event.type === "error") this.error = event.error;
    this.dispatchEvent(new CustomEvent("server", { detail: event }));
  }

  lost({ code }) {
    this.socket = null;
    const { error } = this;
    const reason = error?.message ?? reasonOf(code, this.state);
    if (error?.code === "invalid_resume_token") {
      Object.assign(this, { token: null, lastEvent: 0, after: null });
      if (this.isReturning) this.change("idle", "The conversation from before is over.", error.code);
      else this.connect();
      return;
    }
    if (code === 1008 || error?.code === "invalid_api_key" || error?.code === "session_taken_over") {
      this.change("refused", reason, error?.code);
      return;
    }
    const waitS = Math.max(error?.retry_after ?? 0, WAITS_S[Math.min(this.tries++, WAITS_S.length - 1)]);
    this.change("waiting", `${reason} Next try in ${waitS} s.`, error?.code);
    this.timer = setTimeout(() => this.connect(), 1000 * waitS);
  }

  change(state, reason, code = null) {
    this.state = state;
    this.told = { state, reason, code };
    this.dispatchEvent(new CustomEvent("state", { detail: this.told }));
  }
}

function reasonOf(code, state) {
  if (state === "connecting") return "The server does not answer.";
  const known = { 1001: "The server is shutting down.", 1006: "The connection was lost.", 1011: "The server failed." };
  return known[code] ?? `The connection was closed (code ${code}).`;
}
