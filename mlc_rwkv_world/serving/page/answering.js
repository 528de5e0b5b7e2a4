// Answers that are on their way. Each belongs to its conversation, whichever is shown.

import { figuresFrom } from "./figures.js";
import { answer } from "./server.js";

// How often an answer that grows is kept.
const KEEP_MS = 1000;

export class Answering {
  #settings;
  #grown;
  #keep;
  #running = new Map();

  // `grown` hears of a conversation and the message in it that has changed; `keep` keeps it.
  constructor({ settings, grown, keep }) {
    this.#settings = settings;
    this.#grown = grown;
    this.#keep = keep;
  }

  isRunning(conversation) {
    return this.#running.has(conversation.id);
  }

  stop(conversation) {
    this.#running.get(conversation.id)?.abort.abort();
  }

  // Stops it, and keeps nothing of it.
  drop(conversation) {
    this.stop(conversation);
    this.#running.delete(conversation.id);
  }

  // Keeps what has come of all answers, since the page is about to be left: no more comes.
  leave() {
    for (const { conversation } of this.#running.values()) this.#keep(conversation);
    this.#running.clear();
  }

  // Lets the model answer; ends when that has ended, in whichever way.
  async start(conversation) {
    const messages = messagesOf(conversation);
    const message = {
      role: "assistant",
      content: "",
      thought: "",
      end: null,
      problem: "",
      figures: null,
    };
    conversation.messages.push(message);
    const abort = new AbortController();
    this.#running.set(conversation.id, { conversation, abort });
    this.#keep(conversation);
    try {
      await this.#follow(conversation, message, messages, abort.signal);
    } catch (error) {
      message.end = abort.signal.aborted ? "stopped" : "failed";
      if (!abort.signal.aborted) message.problem = error.message;
    }
    if (!this.#running.delete(conversation.id)) return;
    this.#keep(conversation);
    this.#grown(conversation, message);
  }

  async #follow(conversation, message, messages, signal) {
    let end = "stop";
    let last = Date.now();
    for await (const chunk of answer({ ...this.#settings.body(), messages }, signal)) {
      if (chunk.usage) message.figures = figuresFrom(chunk);
      const choice = chunk.choices[0];
      message.content += choice?.delta.content ?? "";
      message.thought += choice?.delta.reasoning_content ?? "";
      end = choice?.finish_reason ?? end;
      this.#grown(conversation, message);
      if (Date.now() - last > KEEP_MS) {
        last = Date.now();
        this.#keep(conversation);
      }
    }
    message.end = end;
  }
}

// The conversation as a request has it.
function messagesOf({ system, messages }) {
  const found = system.trim() ? [{ role: "system", content: system }] : [];
  for (const { role, content, thought } of messages) {
    found.push(thought ? { role, content, reasoning_content: thought } : { role, content });
  }
  return found;
}
