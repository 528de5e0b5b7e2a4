// Copying text, also where a page that came without HTTPS has no clipboard.

import { make } from "./dom.js";
import { say } from "./status.js";

const SHOWN = 1500;

// A button that copies the text of `source`: a node, or a function that gives it.
export function copyButton(source, label) {
  const button = make("button", { type: "button", "aria-label": label }, "Copy");
  button.addEventListener("click", async () => {
    const text = source instanceof Node ? source.textContent : source();
    button.textContent = (await copy(text)) ? "Copied" : "Not copied";
    say(button.textContent);
    setTimeout(() => (button.textContent = "Copy"), SHOWN);
  });
  return button;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyBySelection(text);
  }
}

function copyBySelection(text) {
  const focused = document.activeElement;
  const field = make("textarea", { className: "quiet", value: text, readOnly: true });
  document.body.append(field);
  field.select();
  try {
    return document.execCommand("copy");
  } finally {
    field.remove();
    focused?.focus();
  }
}
