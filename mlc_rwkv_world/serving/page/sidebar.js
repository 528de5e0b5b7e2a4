// The list of conversations: beside the messages, or over them where there is no room.

import { confirmed } from "./confirm.js";
import { titleOf } from "./conversations.js";
import { byId, make } from "./dom.js";

const NARROW = matchMedia("(max-width: 52rem)");

export class Sidebar {
  #node = byId("sidebar");
  #main = byId("main");
  #veil = byId("veil");
  #opener = byId("open-sidebar");
  #list = byId("conversations");
  #open;
  #remove;

  constructor({ create, open, remove }) {
    this.#open = open;
    this.#remove = remove;
    byId("new").addEventListener("click", () => {
      this.close();
      create();
    });
    this.#opener.addEventListener("click", () => this.#show(true));
    byId("close-sidebar").addEventListener("click", () => this.close());
    this.#veil.addEventListener("click", () => this.close());
    this.#node.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !this.#isOver) return;
      event.stopPropagation();
      this.close();
    });
    NARROW.addEventListener("change", () => this.#show(false));
    this.#show(false);
  }

  // Goes away, where it is over the messages.
  close() {
    if (!this.#isOver) return;
    this.#show(false);
    this.#opener.focus();
  }

  show(conversations, current) {
    this.#list.replaceChildren(
      ...conversations.map((conversation) => this.#item(conversation, conversation === current)),
    );
  }

  get #isOver() {
    return !this.#veil.hidden;
  }

  #show(over) {
    this.#veil.hidden = !over;
    this.#main.inert = over;
    this.#node.inert = NARROW.matches && !over;
    this.#node.classList.toggle("over", over);
    this.#opener.setAttribute("aria-expanded", String(over));
    if (over) byId("new").focus();
  }

  #item(conversation, isCurrent) {
    const title = titleOf(conversation);
    const open = make("button", { type: "button", className: "title" }, make("bdi", {}, title));
    if (isCurrent) open.setAttribute("aria-current", "true");
    open.addEventListener("click", () => {
      this.close();
      this.#open(conversation);
    });
    const remove = make("button", { type: "button", className: "remove" }, "Delete");
    remove.setAttribute("aria-label", `Delete: ${title}`);
    remove.addEventListener("click", async () => {
      const sure = await confirmed("Delete this conversation?", title);
      if (!sure) return;
      this.#remove(conversation);
      byId("new").focus();
    });
    return make("li", {}, open, remove);
  }
}
