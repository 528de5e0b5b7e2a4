// The conversations that this browser keeps: each under a name of its own, so that tabs do not
// write over each other's.
//
// A conversation has an id, the time of its last change, a system text and messages; a message a
// role and its content; an answer a thought, figures, and how it ended where not by itself.

import { kept } from "./storage.js";

const FOLDER = "conversation/";
const LONGEST_TITLE = 80;

export function fresh() {
  const random = crypto.getRandomValues(new Uint32Array(2));
  const id = [Date.now(), ...random].map((part) => part.toString(36)).join("-");
  return { id, changed: 0, system: "", messages: [] };
}

// What the conversation is about: the first line of its first message.
export function titleOf(conversation) {
  const first = conversation.messages.find((message) => message.role === "user");
  const line = first?.content.trim().split("\n")[0] ?? "";
  return [...line.slice(0, 4 * LONGEST_TITLE)].slice(0, LONGEST_TITLE).join("") || "New conversation";
}

export class Conversations {
  #all = new Map();
  #heard;

  // `heard` is called with the id of a conversation that another tab has changed.
  constructor(heard) {
    this.#heard = heard;
    for (const name of kept.names(FOLDER)) this.#load(name);
    kept.watch((name) => {
      if (!name.startsWith(FOLDER)) return;
      this.#load(name);
      this.#heard(name.slice(FOLDER.length));
    });
  }

  // All of them, the latest first.
  all() {
    return [...this.#all.values()].sort((one, other) => other.changed - one.changed);
  }

  get(id) {
    return this.#all.get(id) ?? null;
  }

  // Whether it could be kept; it is in the list all the same, until the page is left.
  save(conversation) {
    conversation.changed = Date.now();
    this.#all.set(conversation.id, conversation);
    return kept.write(FOLDER + conversation.id, conversation);
  }

  remove(id) {
    this.#all.delete(id);
    kept.remove(FOLDER + id);
  }

  #load(name) {
    const id = name.slice(FOLDER.length);
    const found = checked(kept.read(name), id);
    if (found) this.#all.set(id, found);
    else this.#all.delete(id);
  }
}

// `value` as a conversation, or null where it is none: storage may hold anything.
function checked(value, id) {
  if (!Array.isArray(value?.messages)) return null;
  const messages = value.messages.map(checkedMessage).filter(Boolean);
  if (!messages.length) return null;
  return { id, changed: Number(value.changed) || 0, system: textOf(value.system), messages };
}

function checkedMessage(value) {
  if (value?.role === "user") return { role: "user", content: textOf(value.content) };
  if (value?.role !== "assistant") return null;
  return {
    role: "assistant",
    content: textOf(value.content),
    thought: textOf(value.thought),
    // A page that was left while an answer came has kept what there was.
    end: value.end === null ? "left" : textOf(value.end),
    problem: textOf(value.problem),
    figures: typeof value.figures === "object" ? value.figures : null,
  };
}

function textOf(value) {
  return typeof value === "string" ? value : "";
}
