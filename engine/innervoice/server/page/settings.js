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

  /** Return the first setting that cannot be used, with the browser's reason; null: there is none. */
  fault() {
    const field = [...this.form.elements].find((one) => one.willValidate && !one.checkValidity());
    return field ? `${field.labels[0].firstChild.textContent.trim()}: ${field.validationMessage}` : null;
  }

  /** Return the session's fields as the form has them, without those that cannot be used. */
  toUpdate() {
    const { instructions, schedule, thought, temperature, turns } = this.form.elements;
    const innervoice = { schedule: schedule.value || null };
    if (thought.checkValidity()) innervoice.reflection_budget = number(thought);
    const update = {
      type: "realtime",
      instructions: instructions.value,
      audio: { input: { turn_detection: this.detection(turns.value) } },
      innervoice,
    };
    const warmth = number(temperature);
    if (warmth !== null) update.temperature = warmth;
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

  detection(type) {
    if (type === "manual") return null;
    if (type === "semantic_vad") return { type };
    const [threshold, silence] = [number(this.form.elements.threshold), number(this.form.elements.silence)];
    return { type, ...(threshold !== null && { threshold }), ...(silence !== null && { silence_duration_ms: silence }) };
  }

  /** Silence that ends a turn, with some to spare, in milliseconds. */
  get closingMs() {
    const { turns, silence } = this.form.elements;
    return turns.value === "semantic_vad" ? 4000 : (number(silence) ?? 500) + 700;
  }

  shade() {
    const { turns, threshold, silence } = this.form.elements;
    threshold.disabled = silence.disabled = turns.value !== "server_vad";
  }
}

/** The number in a field; null where there is none, or one that cannot be used. */
function number(field) {
  return field.value === "" || field.validity.valid === false ? null : Number(field.value);
}
