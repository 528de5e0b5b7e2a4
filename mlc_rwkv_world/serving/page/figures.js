// How long an answer was, and how fast it came.

const WHOLE = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const ROUND = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });

// What is kept of the last chunk of an answer.
export function figuresFrom({ usage, timings }) {
  return {
    read: usage.prompt_tokens,
    cached: usage.prompt_tokens_details?.cached_tokens ?? 0,
    written: usage.completion_tokens,
    speed: timings?.predicted_per_second ?? null,
  };
}

// A line of them, "" where there are none.
export function figuresOf(figures) {
  if (!Number.isFinite(figures?.written)) return "";
  const parts = [`${WHOLE.format(figures.written)} tokens`];
  if (Number.isFinite(figures.speed)) parts.push(`${ROUND.format(figures.speed)} a second`);
  if (Number.isFinite(figures.read)) parts.push(`${WHOLE.format(figures.read)} read`);
  if (figures.cached > 0) parts.push(`${WHOLE.format(figures.cached)} of them from the cache`);
  return parts.join(" · ");
}
