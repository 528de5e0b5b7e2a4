// Asking before something is lost.

import { byId } from "./dom.js";

const dialog = byId("confirm");

byId("confirm-yes").addEventListener("click", () => dialog.close("yes"));

// Whether the person agrees; `about` says what it is about.
export function confirmed(question, about) {
  byId("confirm-title").textContent = question;
  byId("confirm-text").textContent = about;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.onclose = () => resolve(dialog.returnValue === "yes");
  });
}
