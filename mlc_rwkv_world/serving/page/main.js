// Puts the page together.

import { Chat } from "./chat.js";
import { Composer } from "./composer.js";
import { Conversations, fresh } from "./conversations.js";
import { byId } from "./dom.js";
import { forget, key } from "./key.js";
import { model } from "./server.js";
import { Settings } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import { say, warn } from "./status.js";
import { passing } from "./storage.js";
import { theme, turn } from "./theme.js";

// Which conversation a tab shows.
const CURRENT = "current";

const settings = new Settings();
const conversations = new Conversations(heard);
const chat = new Chat({ settings, keep, changed });
const composer = new Composer({
  send: (text) => chat.ask(text),
  stop: () => chat.stop(),
  up: () => chat.editLast(),
});
chat.use(composer);
const sidebar = new Sidebar({
  create: () => open(fresh()),
  open,
  remove(conversation) {
    chat.forget(conversation);
    conversations.remove(conversation.id);
    if (conversation === chat.conversation) show(fresh());
    else changed();
  },
});

function open(conversation) {
  show(conversation);
  composer.focus();
}

function show(conversation) {
  passing.write(CURRENT, conversation.id);
  byId("system").value = conversation.system;
  chat.show(conversation);
}

function keep(conversation) {
  // A conversation without messages is no more than a thought of one.
  if (!conversation.messages.length) {
    conversations.remove(conversation.id);
  } else if (!conversations.save(conversation)) {
    warn("The browser's storage is full or closed: this conversation ends with the page.");
  }
}

function changed() {
  sidebar.show(conversations.all(), chat.conversation);
  composer.answering(chat.isAnswering());
}

// Another tab has changed a conversation, or deleted it.
function heard(id) {
  const shown = chat.conversation;
  if (id !== shown.id || chat.isAnswering()) changed();
  else show(conversations.get(id) ?? fresh());
}

async function meet() {
  try {
    const { id, think } = await model();
    byId("model").textContent = id;
    document.title = id;
    settings.offer(think ?? []);
  } catch (error) {
    warn(error.message, meet);
  }
}

function nameTheme() {
  const name = { auto: "as the system has it", light: "light", dark: "dark" }[theme()];
  byId("theme").setAttribute("aria-label", `Colours: ${name}`);
  byId("theme").title = `Colours: ${name}`;
  return name;
}

byId("theme").addEventListener("click", () => {
  turn();
  say(`Colours: ${nameTheme()}`);
});
byId("open-settings").addEventListener("click", () => {
  byId("key-section").hidden = key() === null;
  byId("settings").showModal();
});
byId("forget-key").addEventListener("click", () => {
  forget();
  byId("key-section").hidden = true;
  say("The key is forgotten.");
});
byId("system").addEventListener("change", () => {
  chat.conversation.system = byId("system").value;
  keep(chat.conversation);
});
for (const button of document.querySelectorAll("[data-close]")) {
  button.addEventListener("click", () => button.closest("dialog").close());
}
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !event.isComposing && !document.querySelector("dialog[open]")) chat.stop();
});
addEventListener("pagehide", () => chat.leave());
// A page that a browser had put aside has lost its answers, and what other tabs have changed.
addEventListener("pageshow", (event) => event.persisted && location.reload());

nameTheme();
open(conversations.get(passing.read(CURRENT)) ?? fresh());
meet();
