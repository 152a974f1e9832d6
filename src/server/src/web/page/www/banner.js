// @ts-check
// The banner about the state of the connection.
//
// Does not cover: the state itself (client.js).

import { $ } from "./dom.js";
import { duration } from "./text.js";
import { announce } from "./toasts.js";

/** Shorter interruptions are not shown. */
const QUIET_MS = 1500;
const SENDING = "New messages will be sent automatically.";

export class Banner {
  #client;
  #troubleSince = 0;

  /** @param {import("./client.js").Client} client */
  constructor(client) {
    this.#client = client;
  }

  update() {
    const client = this.#client;
    // The stream of a hidden tab may be stopped.
    const status = client.sync.isAsleep ? "online" : client.status;
    if (status === "online") this.#troubleSince = 0;
    else this.#troubleSince ||= Date.now();
    const shown = status !== "online" && Date.now() - this.#troubleSince >= QUIET_MS ? status : "";
    const { age } = client;
    const known = age === null ? "These messages may be out of date." : `Showing messages as of ${duration(age)} ago.`;
    const words = {
      connecting: "Reconnecting…",
      minority: `Most servers are down. ${known}`,
      offline: `You're offline. ${known}`,
    };
    const text = shown && words[shown];
    const banner = $("banner");
    banner.hidden = !shown;
    // The age changes every second, so screen readers announce only changes of the state.
    $("banner-state").textContent = text;
    $("banner-sending").textContent = SENDING;
    if (banner.dataset.status !== shown) {
      banner.dataset.status = shown;
      announce(shown ? `${text} ${SENDING}` : "Back online");
    }
  }
}
