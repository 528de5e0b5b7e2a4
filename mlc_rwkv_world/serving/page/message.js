// One message as it is shown.

import { copyButton } from "./copy.js";
import { make } from "./dom.js";
import { figuresOf } from "./figures.js";
import { Writer } from "./text.js";

const ENDS = {
  empty: "The answer is empty.",
  length: "The answer has reached its greatest length.",
  stopped: "Stopped.",
  left: "The page was left before the answer had ended.",
};

export class MessageView {
  #message;
  #text = make("div", { className: "text" });
  #content = new Growing(this.#text);
  #thought = null;
  #note = make("p", { className: "note" });
  #waiting = make("p", { className: "waiting", "aria-hidden": "true" }, ...dots());
  #actions = make("div", { className: "actions" });

  // `actions` are pairs of a label and what pressing it does.
  constructor(message, actions) {
    this.#message = message;
    const asked = message.role === "user";
    this.node = make(
      "article",
      { className: asked ? "message asked" : "message answer" },
      make("h2", { className: "quiet" }, asked ? "You" : "Answer"),
      this.#text,
    );
    if (!asked) this.node.append(this.#waiting, this.#note);
    this.node.append(this.#actions);
    this.#actions.append(copyButton(() => message.content, "Copy the message"));
    for (const [label, act] of actions) this.#actions.append(action(label, act));
    this.refresh();
  }

  // Shows what the message has become; texts only grow.
  refresh() {
    const message = this.#message;
    const over = message.end !== null;
    this.#content.grow(message.content, over);
    if (message.role === "user") return;
    this.#showThought(over);
    this.node.setAttribute("aria-busy", String(!over));
    this.#waiting.hidden = over || message.content !== "";
    this.#actions.hidden = !over;
    this.#note.hidden = !over;
    this.#note.classList.toggle("problem", Boolean(message.problem));
    if (over) this.#note.textContent = noteOf(message);
  }

  // Lets the text be written anew: `done` gets it, or null.
  edit(done) {
    const field = make("textarea", { value: this.#message.content, dir: "auto", rows: 3 });
    field.setAttribute("aria-label", "Your message");
    const leave = (text) => {
      form.remove();
      this.node.classList.remove("edited");
      done(text);
    };
    const form = make(
      "form",
      { className: "edit" },
      field,
      make(
        "div",
        { className: "choices" },
        action("Cancel", () => leave(null)),
        make("button", { type: "submit", className: "primary" }, "Send"),
      ),
    );
    const send = () => field.value.trim() && leave(field.value);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      send();
    });
    field.addEventListener("keydown", (event) => {
      if (event.isComposing) return;
      if (event.key === "Escape") leave(null);
      else if (event.key === "Enter" && !event.shiftKey) send();
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    this.node.classList.add("edited");
    this.node.append(form);
    field.focus({ preventScroll: true });
    form.scrollIntoView({ block: "nearest" });
    field.setSelectionRange(field.value.length, field.value.length);
  }

  #showThought(over) {
    const { thought, content } = this.#message;
    if (!thought) return;
    if (!this.#thought) {
      const text = make("div", { className: "text" });
      this.#thought = { text: new Growing(text), label: make("summary") };
      this.#text.before(make("details", { className: "thought" }, this.#thought.label, text));
    }
    const thinks = !over && !content;
    this.#thought.label.textContent = thinks ? "Thinking…" : "Thought";
    this.#thought.text.grow(thought, !thinks);
  }
}

// A text that is shown as it grows.
class Growing {
  #writer;
  #shown = 0;
  #over = false;

  constructor(node) {
    this.#writer = new Writer(node);
  }

  grow(text, over) {
    this.#writer.push(text.slice(this.#shown));
    this.#shown = text.length;
    if (over && !this.#over) this.#writer.end();
    this.#over = over;
  }
}

function noteOf(message) {
  const end = message.end === "stop" && !message.content ? "empty" : message.end;
  const parts = [message.problem || ENDS[end], figuresOf(message.figures)];
  return parts.filter(Boolean).join(" ");
}

function action(label, act) {
  const button = make("button", { type: "button" }, label);
  button.addEventListener("click", act);
  return button;
}

function dots() {
  return [1, 2, 3].map(() => make("span"));
}
