// The conversation that is shown: asking, stopping, asking again, editing, taking back.

import { Answering } from "./answering.js";
import { byId } from "./dom.js";
import { MessageView } from "./message.js";
import { Scrolling } from "./scrolling.js";
import { say } from "./status.js";

export class Chat {
  #node = byId("messages");
  #scrolling = new Scrolling();
  #views = new Map();
  #waiting = new Set();
  #conversation;
  #answering;
  #keep;
  #changed;
  #composer = null;

  // `keep` keeps a conversation; `changed` hears that another, or another state of it, is shown.
  constructor({ settings, keep, changed }) {
    this.#keep = keep;
    this.#changed = changed;
    this.#answering = new Answering({
      settings,
      keep,
      grown: (conversation, message) => this.#grown(conversation, message),
    });
  }

  // Where questions are written, and put back to.
  use(composer) {
    this.#composer = composer;
  }

  get conversation() {
    return this.#conversation;
  }

  isAnswering(conversation = this.#conversation) {
    return this.#answering.isRunning(conversation);
  }

  show(conversation) {
    this.#conversation = conversation;
    this.#render();
    this.#scrolling.toEnd();
  }

  ask(text) {
    this.#conversation.messages.push({ role: "user", content: text });
    this.#answer();
  }

  stop() {
    this.#answering.stop(this.#conversation);
  }

  forget(conversation) {
    this.#answering.drop(conversation);
  }

  leave() {
    this.#answering.leave();
  }

  // Lets the last message be written anew; gives whether there is one.
  editLast() {
    const { messages } = this.#conversation;
    const index = messages.findLastIndex((message) => message.role === "user");
    if (index < 0 || this.isAnswering()) return false;
    this.#edit(index);
    return true;
  }

  #answer() {
    const conversation = this.#conversation;
    const ended = this.#answering.start(conversation);
    this.#render();
    this.#scrolling.toEnd();
    say("The answer is coming.");
    ended.then(() => {
      if (conversation !== this.#conversation) return;
      const last = conversation.messages.at(-1);
      say(last.problem || (last.end === "stopped" ? "Stopped." : "The answer is there."));
    });
  }

  #retry() {
    this.#conversation.messages.pop();
    this.#answer();
    this.#composer.focus();
  }

  #edit(index) {
    const { messages } = this.#conversation;
    this.#views.get(messages[index]).edit((text) => {
      this.#composer.focus();
      if (text === null) return;
      messages.length = index;
      this.ask(text);
    });
  }

  // Takes the last question and its answer back, to where questions are written.
  #undo() {
    const conversation = this.#conversation;
    const index = conversation.messages.findLastIndex((message) => message.role === "user");
    const [asked] = conversation.messages.splice(index);
    this.#keep(conversation);
    this.#render();
    if (this.#composer.isEmpty) this.#composer.put(asked.content);
    this.#composer.focus();
    say("Your last message was taken back.");
  }

  #render() {
    const { messages } = this.#conversation;
    this.#views.clear();
    messages.forEach((message, index) => {
      this.#views.set(message, new MessageView(message, this.#actions(messages, index)));
    });
    this.#node.replaceChildren(...[...this.#views.values()].map((view) => view.node));
    this.#node.classList.toggle("answering", this.isAnswering());
    byId("greeting").hidden = messages.length > 0;
    this.#changed();
  }

  #actions(messages, index) {
    if (messages[index].role === "user") return [["Edit", () => this.#edit(index)]];
    if (index < messages.length - 1) return [];
    return [
      ["Retry", () => this.#retry()],
      ["Undo", () => this.#undo()],
    ];
  }

  // Shows growth once for each frame, since tokens can come faster.
  #grown(conversation, message) {
    if (message.end !== null) {
      this.#waiting.delete(message);
      this.#views.get(message)?.refresh();
      if (conversation === this.#conversation) {
        this.#node.classList.remove("answering");
        this.#scrolling.grown();
      }
      this.#changed();
      return;
    }
    if (!this.#waiting.size) requestAnimationFrame(() => this.#showGrown());
    this.#waiting.add(message);
  }

  #showGrown() {
    for (const message of this.#waiting) this.#views.get(message)?.refresh();
    this.#waiting.clear();
    this.#scrolling.grown();
  }
}
