// Staying at the end while an answer grows, unless the reader has gone elsewhere.

import { byId } from "./dom.js";

const NEAR = 48;

export class Scrolling {
  #node = byId("scroller");
  #button = byId("latest");
  #follows = true;

  constructor() {
    this.#node.addEventListener("scroll", () => this.#look(), { passive: true });
    this.#button.addEventListener("click", () => {
      this.toEnd();
      byId("question").focus();
    });
    new ResizeObserver(() => this.grown()).observe(this.#node);
  }

  toEnd() {
    this.#follows = true;
    this.grown();
  }

  // Something was added or grew.
  grown() {
    if (this.#follows) this.#node.scrollTop = this.#node.scrollHeight;
    this.#look();
  }

  #look() {
    const { scrollTop, scrollHeight, clientHeight } = this.#node;
    this.#follows = scrollHeight - scrollTop - clientHeight < NEAR;
    this.#button.hidden = this.#follows;
  }
}
