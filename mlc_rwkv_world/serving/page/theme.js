// Light, dark, or as the system has it.

import { kept } from "./storage.js";

const THEMES = ["auto", "light", "dark"];
const NAME = "theme";

export function theme() {
  const found = kept.read(NAME);
  return THEMES.includes(found) ? found : "auto";
}

// Takes the next one.
export function turn() {
  const next = THEMES[(THEMES.indexOf(theme()) + 1) % THEMES.length];
  kept.write(NAME, next);
  apply(next);
  return next;
}

function apply(name) {
  document.documentElement.dataset.theme = name;
}

apply(theme());
