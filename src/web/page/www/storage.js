// What the browser keeps for the page: unsent messages, drafts, and the login.
//
// Each item has its own entry, so tabs never overwrite each other. Without storage (forbidden or full), items are kept
// as long as the page is open. `set` returns whether the item outlives the page.

const PREFIX = "quorum-chat/";
const inMemory = new Map();
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
  get(key) {
    try {
      return ofTab.get(key) ?? window.sessionStorage.getItem(key);
    } catch {
      return ofTab.get(key) ?? null;
    }
  },

  set(key, text) {
    ofTab.set(key, text);
    try {
      window.sessionStorage.setItem(key, text);
    } catch {
      // The item is lost with the page.
    }
  },

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
  get(key) {
    const text = inMemory.get(key) ?? storage()?.getItem(PREFIX + key);
    try {
      return text ? JSON.parse(text) : null;
    } catch {
      return null;
    }
  },

  set(key, value) {
    const text = JSON.stringify(value);
    try {
      storage().setItem(PREFIX + key, text);
      inMemory.delete(key);
      return true;
    } catch {
      inMemory.set(key, text);
      return false;
    }
  },

  remove(key) {
    inMemory.delete(key);
    storage()?.removeItem(PREFIX + key);
  },

  /** The keys with this prefix, sorted. */
  keys(prefix) {
    const stored = Object.keys(storage() ?? {}).filter((key) => key.startsWith(PREFIX)).map((key) => key.slice(PREFIX.length));
    return [...new Set([...stored, ...inMemory.keys()])].filter((key) => key.startsWith(prefix)).sort();
  },

  /** Whether an item with this prefix is lost when the page is closed. */
  isFleeting(prefix) {
    return [...inMemory.keys()].some((key) => key.startsWith(prefix));
  },

  /** Calls `tell` with each key that another tab removes, until `signal`. Clearing the whole storage does not count. */
  onRemoved(tell, signal) {
    const isOne = ({ key, newValue }) => key?.startsWith(PREFIX) && newValue === null;
    addEventListener("storage", (event) => isOne(event) && tell(event.key.slice(PREFIX.length)), { signal });
  },

  /** Removes the items with this prefix. */
  clear(prefix) {
    for (const key of this.keys(prefix)) this.remove(key);
  },
};
