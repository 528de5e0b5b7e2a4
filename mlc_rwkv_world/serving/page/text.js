// Text as it comes in, as nodes: paragraphs, and code between fences. None of it is HTML.

import { copyButton } from "./copy.js";
import { make } from "./dom.js";

const FENCE = /^\s*(`{3,}|~{3,})[ \t]*([^`]*)$/;
// The beginning of a line that may yet become a fence.
const MAYBE = /^\s*(`{0,2}|~{0,2}|`{3,}[^`]*|~{3,}.*)$/;
// What changes the order of letters unseen, and what cannot be seen at all.
const HIDDEN = /([\p{Bidi_Control}\p{Cc}])/u;

// Writes text that comes piece by piece into `parent`.
export class Writer {
  #parent;
  #block = null;
  // The fence of the code that is being written, "" outside.
  #fence = "";
  #line = "";
  // How much of the line is written, and how many line breaks come before what is written next.
  #written = 0;
  #breaks = 0;

  constructor(parent) {
    this.#parent = parent;
  }

  push(text) {
    const [first, ...others] = text.split("\n");
    this.#line += first;
    for (const line of others) {
      this.#end();
      this.#line = line;
    }
    if (!this.#mayBeFence()) this.#show();
  }

  // No more comes.
  end() {
    if (this.#line) this.#end();
  }

  #mayBeFence() {
    return this.#written === 0 && MAYBE.test(this.#line);
  }

  #end() {
    const fence = this.#written === 0 ? FENCE.exec(this.#line) : null;
    if (fence && !this.#fence) {
      this.#begin(fence[1], fence[2].trim());
    } else if (fence && this.#closes(fence)) {
      this.#fence = "";
      this.#block = null;
    } else if (!this.#fence && !this.#line.trim()) {
      this.#block = null;
    } else {
      this.#show();
      this.#breaks += 1;
    }
    this.#line = "";
    this.#written = 0;
  }

  #closes([, fence, info]) {
    return fence[0] === this.#fence[0] && fence.length >= this.#fence.length && !info.trim();
  }

  #begin(fence, language) {
    this.#fence = fence;
    this.#breaks = 0;
    this.#block = make("code");
    const name = language.split(/\s/)[0];
    this.#parent.append(
      make(
        "figure",
        { className: "code", dir: "ltr" },
        make(
          "figcaption",
          {},
          make("bdi", {}, name || "code"),
          copyButton(this.#block, "Copy the code"),
        ),
        make("pre", { tabIndex: 0, role: "group", "aria-label": name || "code" }, this.#block),
      ),
    );
  }

  // Writes what has come of the line.
  #show() {
    const text = this.#line.slice(this.#written);
    this.#written = this.#line.length;
    if (!text) return;
    if (!this.#block) {
      this.#block = make("p", { dir: "auto" });
      this.#parent.append(this.#block);
      this.#breaks = 0;
    }
    this.#append("\n".repeat(this.#breaks));
    this.#breaks = 0;
    if (!this.#fence) {
      this.#append(text);
      return;
    }
    for (const piece of text.split(HIDDEN)) {
      if (HIDDEN.test(piece) && !"\t\r".includes(piece)) this.#block.append(visible(piece));
      else this.#append(piece);
    }
  }

  #append(text) {
    const last = this.#block.lastChild;
    if (last instanceof Text) last.appendData(text);
    else if (text) this.#block.append(text);
  }
}

// A hidden character in code, that it is there and where; it is still copied as it is.
function visible(character) {
  const code = character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
  return make("span", { className: "hidden-character", "data-code": `U+${code}` }, character);
}
