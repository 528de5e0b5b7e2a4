// How answers are chosen: what a person has set; the rest is the server's own.

import { byId, make } from "./dom.js";
import { kept } from "./storage.js";

const NAME = "sampling";
// Name in a request, label, least, most, step, and what it does.
const NUMBERS = [
  ["temperature", "Temperature", 0, 100, "any", "Higher is bolder; 0 takes the likeliest word."],
  ["top_p", "Top p", 0, 1, "any", "Only the likeliest words that together have this share."],
  ["top_k", "Top k", 0, 65536, 1, "Only so many of the likeliest; 0 for all."],
  ["min_p", "Min p", 0, 1, "any", "Only words with this share of the likeliest one's."],
  ["presence_penalty", "Presence penalty", -2, 2, "any", "Against words that were used."],
  ["frequency_penalty", "Frequency penalty", -2, 2, "any", "Against words, each time they were used."],
  ["repetition_penalty", "Repetition penalty", 0.01, 100, "any", "Divides the scores of used words."],
  ["penalty_decay", "Penalty decay", 0, 1, "any", "How much of a penalty is left a word later."],
  ["max_tokens", "Longest answer", 1, 1e6, 1, "In tokens."],
  ["seed", "Seed", 0, Number.MAX_SAFE_INTEGER, 1, "The same one gives the same answer."],
];
const MODES = { off: "Off", short: "A little", on: "On" };

export class Settings {
  #values;
  #fields = new Map();
  #modes = [];

  constructor() {
    const found = kept.read(NAME);
    this.#values = found && typeof found === "object" && !Array.isArray(found) ? found : {};
    for (const number of NUMBERS) this.#addNumber(...number);
    byId("reset").addEventListener("click", () => this.#reset());
  }

  // What a request says of them: only what the server takes.
  body() {
    const found = {};
    for (const [name, field] of this.#fields) {
      const value = this.#values[name];
      if (field.type === "number" && Number.isFinite(value)) found[name] = value;
    }
    if (this.#modes.includes(this.#values.think)) found.think = this.#values.think;
    return found;
  }

  // A model's modes of thinking; where there is but one, nothing is asked.
  offer(modes) {
    if (this.#fields.has("think") || modes.length < 2) return;
    this.#modes = modes;
    const options = modes.map((mode) => make("option", { value: mode }, MODES[mode] ?? mode));
    const field = make("select", {}, make("option", { value: "" }, "Server's own"), ...options);
    field.value = modes.includes(this.#values.think) ? this.#values.think : "";
    field.addEventListener("change", () => this.#set("think", field.value || null));
    this.#add("think", "Thinking", field, "Before the answer, folded.", "prepend");
  }

  #addNumber(name, label, min, max, step, hint) {
    const field = make("input", { type: "number", min, max, step });
    // Keypads of numbers have no minus.
    if (min >= 0) field.inputMode = "decimal";
    const value = this.#values[name];
    if (Number.isFinite(value)) field.value = value;
    field.addEventListener("change", () => {
      if (field.reportValidity()) this.#set(name, field.value === "" ? null : field.valueAsNumber);
    });
    this.#add(name, label, field, hint, "append");
  }

  #add(name, label, field, hint, where) {
    field.id = `set-${name}`;
    field.setAttribute("aria-describedby", `hint-${name}`);
    this.#fields.set(name, field);
    byId("sampling")[where](
      make(
        "div",
        { className: "setting" },
        make("label", { htmlFor: field.id }, label),
        field,
        make("p", { className: "hint", id: `hint-${name}` }, hint),
      ),
    );
  }

  #set(name, value) {
    if (value === null) delete this.#values[name];
    else this.#values[name] = value;
    kept.write(NAME, this.#values);
  }

  #reset() {
    for (const [name, field] of this.#fields) {
      field.value = "";
      this.#set(name, null);
    }
  }
}
