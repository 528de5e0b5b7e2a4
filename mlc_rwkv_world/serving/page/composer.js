// Where messages are written.

import { byId } from "./dom.js";

const HIGHEST = 240;
// A keyboard on a screen has no Shift+Enter; there the button sends.
const TOUCHED = matchMedia("(pointer: coarse)");

export class Composer {
  #field = byId("question");
  #send = byId("send");
  #stop = byId("stop");
  #answering = false;

  // `up` is called for the arrow key in an empty field.
  constructor({ send, stop, up }) {
    const hand = () => {
      const text = this.#field.value;
      if (this.#answering || !text.trim()) return;
      this.put("");
      send(text);
    };
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      hand();
    });
    this.#stop.addEventListener("click", stop);
    this.#field.addEventListener("input", () => this.#fit());
    this.#field.addEventListener("keydown", (event) => {
      // Enter takes what an input method proposes.
      if (event.isComposing) return;
      if (event.key === "Enter" && !event.shiftKey && !TOUCHED.matches) {
        event.preventDefault();
        hand();
      } else if (event.key === "ArrowUp" && !this.#field.value && up()) {
        event.preventDefault();
      }
    });
    this.#fit();
  }

  get isEmpty() {
    return !this.#field.value.trim();
  }

  put(text) {
    this.#field.value = text;
    this.#fit();
  }

  // Focuses the field, but not where that would bring a keyboard up over the messages.
  focus() {
    const node = TOUCHED.matches ? byId("scroller") : this.#field;
    node.focus({ preventScroll: true });
  }

  // While an answer comes there is a button that stops it.
  answering(now) {
    const focused = [this.#send, this.#stop].includes(document.activeElement);
    this.#answering = now;
    this.#send.hidden = now;
    this.#stop.hidden = !now;
    this.#fit();
    if (focused) this.focus();
  }

  #fit() {
    this.#send.disabled = !this.#field.value.trim();
    this.#field.style.height = "auto";
    this.#field.style.height = `${Math.min(this.#field.scrollHeight, HIGHEST)}px`;
  }
}
