// The microphones and speakers that a browser offers, as two lists to choose from.

/** Fills two select elements; names are known only once a microphone was allowed. */
export class Devices {
  constructor(microphone, speaker) {
    this.selects = { audioinput: microphone, audiooutput: speaker };
    speaker.disabled = !("setSinkId" in AudioContext.prototype);
    navigator.mediaDevices?.addEventListener("devicechange", () => this.list());
  }

  async list() {
    const found = (await navigator.mediaDevices?.enumerateDevices()) ?? [];
    for (const [kind, select] of Object.entries(this.selects)) {
      const chosen = select.value;
      const named = found.filter((one) => one.kind === kind && one.deviceId && one.deviceId !== "default");
      const options = named.map((one) => new Option(one.label || "unnamed", one.deviceId));
      select.replaceChildren(new Option("the default", ""), ...options);
      select.value = named.some((one) => one.deviceId === chosen) ? chosen : "";
    }
  }
}
