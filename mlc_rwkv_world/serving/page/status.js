// What is said to those who do not see the page, and what everybody has to know.

import { byId, make } from "./dom.js";

// Read out by screen readers, and not shown.
export function say(text) {
  byId("status").textContent = text;
}

// Shown above the message box until it is put away, or until `retry` was pressed.
export function warn(text, retry = null) {
  const notice = byId("notice");
  const close = make("button", { type: "button" }, retry ? "Try again" : "Close");
  close.addEventListener("click", () => {
    notice.replaceChildren();
    retry?.();
  });
  notice.replaceChildren(make("span", {}, text), close);
}
