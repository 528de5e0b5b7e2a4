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
  const { written, speed, read, cached } = figures;
  let line = written === 1 ? "1 token" : `${WHOLE.format(written)} tokens`;
  if (Number.isFinite(speed)) line += `, ${ROUND.format(speed)} a second`;
  if (Number.isFinite(read)) line += ` · ${WHOLE.format(read)} read`;
  if (cached > 0) line += `, ${WHOLE.format(cached)} from the cache`;
  return line;
}
