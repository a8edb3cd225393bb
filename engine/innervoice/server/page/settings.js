// The settings of a session: a form, and the update that it stands for.

/** Reads a form and shows the session that the server confirmed. Calls onChange with the fields of an update. */
export class Settings {
  constructor(form, onChange) {
    this.form = form;
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("change", () => {
      this.shade();
      if (form.reportValidity()) onChange(this.toUpdate());
    });
    this.shade();
  }

  /** Return the session's fields as the form has them. */
  toUpdate() {
    const { instructions, schedule, thought, temperature, turns, threshold, silence } = this.form.elements;
    const update = {
      type: "realtime",
      instructions: instructions.value,
      audio: { input: { turn_detection: this.detection(turns.value, threshold.value, silence.value) } },
      innervoice: { schedule: schedule.value || null, reflection_budget: Number(thought.value) || null },
    };
    if (temperature.value !== "") update.temperature = Number(temperature.value);
    return update;
  }

  /** Show the settings of a session that goes on. */
  show(session) {
    const { instructions, schedule, thought, temperature, turns, threshold, silence } = this.form.elements;
    const detection = session.audio.input.turn_detection;
    instructions.value = session.instructions;
    schedule.value = session.innervoice?.schedule ?? "";
    thought.value = session.innervoice?.reflection_budget ?? "";
    temperature.value = session.temperature ?? "";
    turns.value = detection?.type ?? "manual";
    threshold.value = detection?.threshold ?? threshold.value;
    silence.value = detection?.silence_duration_ms ?? silence.value;
    this.shade();
  }

  detection(turns, threshold, silence) {
    if (turns === "manual") return null;
    if (turns === "semantic_vad") return { type: turns };
    return { type: turns, threshold: Number(threshold), silence_duration_ms: Number(silence) };
  }

  /** Silence that ends a turn, with some to spare, in milliseconds. */
  get closingMs() {
    const { turns, silence } = this.form.elements;
    return turns.value === "semantic_vad" ? 4000 : Number(silence.value) + 700;
  }

  shade() {
    const { turns, threshold, silence } = this.form.elements;
    threshold.disabled = silence.disabled = turns.value !== "server_vad";
  }
}
