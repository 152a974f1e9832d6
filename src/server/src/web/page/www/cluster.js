// @ts-check
// The cluster panel. Shows the nodes, the leader, the node of this page, and the remaining fault tolerance.
//
// Does not cover: polling (watch.js).

import { show } from "./dialogs.js";
import { $, el } from "./dom.js";
import { baseOf } from "./nodes.js";
import { count } from "./text.js";

/** @type {Record<string, string>} */
const ROLES = { NODE_ROLE_FOLLOWER: "follower", NODE_ROLE_LEARNER: "learner", NODE_ROLE_CANDIDATE: "candidate" };
const STATUS = {
  online: "Connected to",
  connecting: "Reconnecting…",
  minority: "No majority",
  offline: "No connection",
};

export class Cluster {
  /** @param {import("./client.js").Client} client */
  constructor(client) {
    this.client = client;
    this.stopping = new AbortController();
    $("status").addEventListener("click", () => this.open(), { signal: this.stopping.signal });
  }

  stop() {
    this.stopping.abort();
  }

  async open() {
    this.client.watch.open();
    this.update();
    await show($("cluster", HTMLDialogElement));
    this.client.watch.close();
  }

  /** Updates the button and, if open, the panel. */
  update() {
    const { client } = this;
    const { status } = client;
    $("status").dataset.status = status;
    $("status-text").textContent = status === "online" ? `${STATUS.online} ${this.#here()}` : STATUS[status];
    const { cluster, isOpen } = client.watch;
    if (!isOpen) return;
    const left = cluster?.failuresTolerated;
    const bears = status === "minority" || status === "offline" ? "No majority: read-only."
      : left === undefined ? "Fault tolerance unknown."
      : left === 0 ? "Can't lose another node." : `Can lose ${count(left, "more node")} without losing data.`;
    $("cluster-bears").textContent = bears;
    $("cluster-bears").dataset.level = left === undefined || left === 0 ? "low" : "good";
    const facts = [
      ["Connected to", this.#here()],
      ["Term", cluster?.term ?? "unknown"],
      ["Revision", cluster?.revision ?? "unknown"],
      ["Stream position", String(client.sync.feed.revision)],
    ];
    $("cluster-facts").replaceChildren(...facts.flatMap(([what, value]) => [el("dt", {}, what), el("dd", {}, value)]));
    $("cluster-nodes").replaceChildren(...(cluster?.nodes ?? []).map((node) => this.#row(node)));
  }

  /** The connected node. Its address may be that of a load balancer. */
  #here() {
    const { nodes, watch: { cluster } } = this.client;
    const answeredBy = nodes.all.length > 1 && nodes.current === nodes.own && cluster?.answeredBy;
    return answeredBy || nodes.nameOf(nodes.current);
  }

  /** @param {Api.Node} node */
  #row(node) {
    const { nodes, status, watch: { cluster } } = this.client;
    const isHere = node.name === this.#here() || baseOf(node.webAddress, location) === nodes.current;
    // Without a quorum, no node has the health of the others. This one is up, because it answers the page.
    const isHealthy = node.healthy ?? ((status !== "offline" && cluster?.answeredBy === node.name) || undefined);
    const health = isHealthy === undefined ? ["unknown", "unknown"] : isHealthy ? ["up", "up"] : ["down", "down"];
    const lag = Number(node.lagEntries ?? 0);
    const leader = el("span", { class: "tag leader" }, "leader");
    return el("tr", { class: isHere ? "here" : "" },
      el("th", { scope: "row" }, node.name, isHere ? el("span", { class: "tag" }, "this page") : null),
      el("td", {}, node.role === "NODE_ROLE_LEADER" ? leader : (ROLES[node.role ?? ""] ?? "unknown")),
      el("td", {}, el("span", { class: `dot ${health[0]}`, "aria-hidden": "true" }), health[1]),
      el("td", {}, node.lagEntries === undefined ? "–" : lag ? `${lag} behind` : "up to date"));
  }
}
