// The key of a server that wants one: asked for, and kept until the tab is closed.

import { byId } from "./dom.js";
import { passing } from "./storage.js";

const NAME = "key";
const dialog = byId("key");
const field = byId("key-text");
const why = byId("key-why");
// A browser that keeps nothing still has it until the page is left.
let current = passing.read(NAME);
let asking = null;

export function key() {
  return typeof current === "string" ? current : null;
}

export function forget() {
  current = null;
  passing.remove(NAME);
}

// Asks for a key because `refused` was not right; gives whether there is one now.
export function ask(refused) {
  // Another request has asked meanwhile, and was given one.
  if (key() !== refused) return Promise.resolve(true);
  asking ??= new Promise((resolve) => {
    why.textContent = refused === null ? "" : "That key is not right.";
    field.value = "";
    dialog.onclose = () => {
      asking = null;
      resolve(key() !== refused);
    };
    dialog.showModal();
    field.focus();
  });
  return asking;
}

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  current = field.value.trim();
  passing.write(NAME, current);
  dialog.close();
});
