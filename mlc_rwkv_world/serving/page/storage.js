// The browser's storage, which may be full, forbidden, or hold what somebody else wrote.

const PREFIX = "mlc-rwkv-world/";

export class Storage {
  // `area` gives localStorage or sessionStorage; even asking for them can fail.
  constructor(area) {
    this.area = area;
  }

  // What was kept under `name`, or null.
  read(name) {
    try {
      return JSON.parse(this.area().getItem(PREFIX + name));
    } catch {
      return null;
    }
  }

  // Whether it was kept.
  write(name, value) {
    try {
      this.area().setItem(PREFIX + name, JSON.stringify(value));
      return true;
    } catch {
      return false;
    }
  }

  remove(name) {
    try {
      this.area().removeItem(PREFIX + name);
    } catch {
      // What cannot be reached is not there.
    }
  }

  // The names that begin with `start`.
  names(start) {
    try {
      return Object.keys(this.area())
        .filter((key) => key.startsWith(PREFIX + start))
        .map((key) => key.slice(PREFIX.length));
    } catch {
      return [];
    }
  }

  // Calls `hear` with the name of what another tab has changed.
  watch(hear) {
    addEventListener("storage", (event) => {
      if (event.key?.startsWith(PREFIX)) hear(event.key.slice(PREFIX.length));
    });
  }
}

export const kept = new Storage(() => localStorage);
// Ends with the tab.
export const passing = new Storage(() => sessionStorage);
