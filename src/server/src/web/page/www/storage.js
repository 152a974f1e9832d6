// @ts-check
// What the browser keeps for the page: unsent messages, drafts, and the login.
//
// Each item has its own entry, so tabs never overwrite each other. Without storage (forbidden or full), items are kept
// as long as the page is open. `set` returns whether the item outlives the page.
//
// Does not cover: the files of the page (worker.js).

const PREFIX = "quorum-chat/";
/** @type {Map<string, string>} */
const inMemory = new Map();
/** @type {Map<string, string>} */
const ofTab = new Map();

function storage() {
  try {
    return window.localStorage;
  } catch {
    return null;
  }
}

/** Items of this tab, which survive a reload. They are in the tab's storage. */
export const tab = {
  /** @param {string} key */
  get(key) {
    try {
      return ofTab.get(key) ?? window.sessionStorage.getItem(key);
    } catch {
      return ofTab.get(key) ?? null;
    }
  },

  /** @param {string} key @param {string} text */
  set(key, text) {
    ofTab.set(key, text);
    try {
      window.sessionStorage.setItem(key, text);
    } catch {
      // The item is lost with the page.
    }
  },

  /** @param {string} key */
  remove(key) {
    ofTab.delete(key);
    try {
      window.sessionStorage.removeItem(key);
    } catch {
      // It was not stored.
    }
  },
};

export const keep = {
  /** The type is what the caller has kept there. It is not checked.
   * @template [T=unknown] @param {string} key @returns {T | null} */
  get(key) {
    const text = inMemory.get(key) ?? storage()?.getItem(PREFIX + key);
    try {
      return text ? JSON.parse(text) : null;
    } catch {
      return null;
    }
  },

  /** @param {string} key @param {unknown} value */
  set(key, value) {
    const text = JSON.stringify(value);
    try {
      window.localStorage.setItem(PREFIX + key, text);
      inMemory.delete(key);
      return true;
    } catch {
      inMemory.set(key, text);
      return false;
    }
  },

  /** @param {string} key */
  remove(key) {
    inMemory.delete(key);
    storage()?.removeItem(PREFIX + key);
  },

  /** The keys with this prefix, sorted.
   * @param {string} prefix */
  keys(prefix) {
    const stored = Object.keys(storage() ?? {}).filter((key) => key.startsWith(PREFIX));
    const keys = new Set([...stored.map((key) => key.slice(PREFIX.length)), ...inMemory.keys()]);
    return [...keys].filter((key) => key.startsWith(prefix)).sort();
  },

  /** Whether an item with this prefix is lost when the page is closed.
   * @param {string} prefix */
  isFleeting(prefix) {
    return [...inMemory.keys()].some((key) => key.startsWith(prefix));
  },

  /** Calls `tell` with each key that another tab removes, until `signal`. Clearing the whole storage does not count.
   * @param {(key: string) => void} tell @param {AbortSignal} [signal] */
  onRemoved(tell, signal) {
    addEventListener("storage", ({ key, newValue }) => {
      if (key?.startsWith(PREFIX) && newValue === null) tell(key.slice(PREFIX.length));
    }, { signal });
  },

  /** Removes the items with this prefix.
   * @param {string} prefix */
  clear(prefix) {
    for (const key of this.keys(prefix)) this.remove(key);
  },
};
