// What the browser keeps for the page: unsent messages, what is being typed, who is logged in.
//
// One entry for each thing, so that several tabs never write over each other. Without a storage (it can be forbidden, or full)
// everything is kept as long as the page is open; `set` says whether it will be there afterwards.

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

/** What belongs to this tab, and survives its reloads: the same, in the storage of the tab. */
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
      // It is gone with the page.
    }
  },

  remove(key) {
    ofTab.delete(key);
    try {
      window.sessionStorage.removeItem(key);
    } catch {
      // It was not there.
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

  /** The keys that begin so, sorted. */
  keys(prefix) {
    const stored = Object.keys(storage() ?? {}).filter((key) => key.startsWith(PREFIX)).map((key) => key.slice(PREFIX.length));
    return [...new Set([...stored, ...inMemory.keys()])].filter((key) => key.startsWith(prefix)).sort();
  },

  /** Something that begins so will not be there when the page is closed. */
  isFleeting(prefix) {
    return [...inMemory.keys()].some((key) => key.startsWith(prefix));
  },

  /** Calls with the key of what another tab removed, until `signal`. When the browser forgets everything, nothing was removed. */
  onRemoved(tell, signal) {
    const isOne = ({ key, newValue }) => key?.startsWith(PREFIX) && newValue === null;
    addEventListener("storage", (event) => isOne(event) && tell(event.key.slice(PREFIX.length)), { signal });
  },

  /** Forgets what begins so. */
  clear(prefix) {
    for (const key of this.keys(prefix)) this.remove(key);
  },
};
