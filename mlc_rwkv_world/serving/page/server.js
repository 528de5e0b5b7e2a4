// The server's OpenAI interface.

import { eventsOf } from "./events.js";
import { ask, key } from "./key.js";

const BASE = new URL("v1/", document.baseURI);

// Its message is for people.
export class ServerError extends Error {}

// The first model that is served.
export async function model() {
  const response = await send("models", {});
  const { data } = await response.json();
  return data[0];
}

// The chunks of an answer to `body`, until its end; raises a ServerError where that does not come.
export async function* answer(body, signal) {
  const response = await send("chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({
      ...body,
      stream: true,
      stream_options: { include_usage: true },
    }),
    signal,
  });
  try {
    for await (const data of eventsOf(response.body)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ServerError(chunk.error.message);
      yield chunk;
    }
  } catch (error) {
    if (error instanceof ServerError || signal.aborted) throw error;
  }
  throw new ServerError("The connection broke before the answer had ended.");
}

async function send(path, options) {
  for (;;) {
    const used = key();
    const response = await reach(path, used, options);
    if (response.ok) return response;
    if (response.status !== 401) throw new ServerError(await messageOf(response));
    if (!(await ask(used))) throw new ServerError("This server wants a key.");
    options.signal?.throwIfAborted();
  }
}

async function reach(path, used, options) {
  const headers = { ...options.headers };
  if (used !== null) headers.Authorization = `Bearer ${used}`;
  try {
    return await fetch(new URL(path, BASE), {
      ...options,
      headers,
      cache: "no-store",
      credentials: "omit",
    });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    // A key that no header can carry is none, and all else means that nobody is there.
    throw new ServerError("The server cannot be reached.");
  }
}

async function messageOf(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `The server answered with status ${response.status}.`;
  }
}
