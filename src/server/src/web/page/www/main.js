// @ts-check
// The start of the page, once boot.js has loaded everything. Chooses between login and chat, and connects the views to
// the client.
//
// The modules, from the bottom up, are api.js (one call), nodes.js and retry.js (failover and retries), feed.js (the
// stream), conversation.js and store.js (the data), receipts.js and outbox.js (outgoing receipts and messages), sync.js
// (the data and the cluster), and client.js (all of them, for one account). The views are people.js, chat.js (with
// loader.js, reading.js, banner.js, composer.js, picks.js, find.js, messages.js), list.js, cluster.js and auth.js. In
// addition, places.js is about the way back, and shell.js about keeping the page in the browser.

import { changePassword, drawPrivacy, showSessions } from "./account.js";
import { Auth, nameProblem } from "./auth.js";
import { Chat } from "./chat.js";
import { Client } from "./client.js";
import { Cluster } from "./cluster.js";
import { guardDrops, refuseFiles } from "./composer.js";
import { confirm, confirmWithPassword, show } from "./dialogs.js";
import { $, eachFrame, focused } from "./dom.js";
import { Nodes } from "./nodes.js";
import { People } from "./people.js";
import * as places from "./places.js";
import { Session } from "./session.js";
import { keepShell } from "./shell.js";
import { keep } from "./storage.js";
import { count, oneLine } from "./text.js";
import { clearToasts, dismiss, notifications, toast } from "./toasts.js";

/**
 * @typedef {import("./api.js").Failure} Failure
 * @typedef {import("./conversation.js").Conversation} Conversation
 * @typedef {import("./conversation.js").Message} Message
 * @typedef {import("./session.js").Note} Note
 */
/** What exists while an account is logged in.
 * @typedef {object} App
 * @property {Client} client
 * @property {People} people
 * @property {Chat} chat
 * @property {Cluster} cluster
 * @property {Map<Conversation, Message>} news The last message of each conversation that is yet to be reported.
 * @property {Set<string>} troubles The problems that have been shown.
 * @property {boolean} isEnding Whether a node has refused the session. */

const TITLE = "quorum-chat";
/** Time for reads in another window or on another device to become known. */
const ELSEWHERE_MS = 600;
/** Shown after a logout that reached no node. */
const STILL_THERE = "You're logged out of this page, but no server could be reached to remove the session cookie. " +
  "It stays in this browser until it expires.";
const nodes = new Nodes();
const session = new Session(nodes);
const auth = new Auth(session, enter);
/** @type {App | null} */
let app = null;

/** The person whose conversation is in the address, or "". */
function named() {
  const name = places.named();
  return nameProblem(name) ? "" : name;
}

function route() {
  if (!app) return;
  const name = named();
  const left = app.chat.conversation?.name;
  $("app").dataset.view = name ? "chat" : "people";
  if (name) {
    dismiss(name);
    app.chat.open(name);
    if (matchMedia("(pointer: fine)").matches) $("input").focus();
  } else app.chat.close();
  app.people.current(name);
  // The back button is hidden now.
  if (name || !left || (focused() !== document.body && focused() !== $("back"))) return;
  /** @type {HTMLElement | null} */
  const link = $("people").querySelector(`a[href="#/${left}"]`);
  link?.focus();
}

/** @param {string} name */
function go(name) {
  window.focus();
  location.hash = `#/${name}`;
}

function drawTitle() {
  const unread = app?.client.store.unread ?? 0;
  document.title = unread ? `(${unread}) ${TITLE}` : TITLE;
}

/** @param {import("./store.js").Arrival} arrival */
function onArrived(arrival) {
  if (!app || app.chat.arrived(arrival)) return;
  const { client, news } = app;
  if (!news.size) setTimeout(() => app?.client === client && tellOfNews(app), ELSEWHERE_MS);
  // The last message of a conversation stands for all.
  news.set(arrival.conversation, arrival.message);
}

/** @param {App} app */
function tellOfNews({ client, chat, news }) {
  for (const [conversation, { seq, sender, body, deleted }] of news) {
    if (deleted || seq <= conversation.readBy(client.me)) continue;
    if (document.hidden || !document.hasFocus()) notifications.show(sender, body, go);
    else if (conversation !== chat.conversation) toast(oneLine(body), { from: sender, onClick: () => go(sender) });
  }
  news.clear();
}

/** A problem that does not pass by itself is shown once.
 * @param {Failure} failure */
function onTrouble({ message }) {
  if (!app || app.troubles.has(message)) return;
  app.troubles.add(message);
  toast(`Some data couldn't be loaded: ${message}`, { isError: true });
}

function enter() {
  auth.hide();
  // A page may have been closed during a logout.
  session.leaving(null);
  $("app").hidden = false;
  $("me").textContent = session.name;
  const client = new Client(nodes, session, onLoggedOut);
  const people = new People(client);
  const chat = new Chat(client);
  const cluster = new Cluster(client);
  app = { client, people, chat, cluster, news: new Map(), troubles: new Set(), isEnding: false };
  const soon = eachFrame(() => {
    if (app?.client !== client) return;
    people.update();
    drawTitle();
  });
  client.sync.on("change", (conversation) => {
    chat.changed(conversation);
    soon();
  });
  client.outbox.on("change", (name) => {
    if (chat.conversation?.name === name) chat.soon();
    soon();
  });
  client.sync.on("ready", soon);
  client.sync.on("anew", () => {
    chat.reopen();
    soon();
  });
  client.sync.on("arrived", onArrived);
  client.sync.on("trouble", onTrouble);
  client.on("midnight", () => {
    chat.soon();
    soon();
  });
  client.on("status", () => {
    if (client.status === "online") app?.troubles.clear();
    chat.status();
    cluster.update();
  });
  client.watch.on("change", () => cluster.update());
  client.start();
  cluster.update();
  route();
}

async function onLoggedOut() {
  const ended = app;
  if (!ended || ended.isEnding) return;
  ended.isEnding = true;
  const left = await session.whyLeft();
  if (app !== ended) return;
  if (left) return leave(left);
  // Must precede the stop of the client, because nothing is kept after it.
  ended.chat.stop();
  ended.client.outbox.keepAll();
  leave({ notice: "Your session has expired. Log in again; unsent messages are kept." });
}

/** Returns to the login. It does not offer the name of a deleted account (`isGone`), which cannot be used again.
 * @param {Note} note */
function leave({ notice, isGone = false }) {
  const name = isGone ? "" : session.name;
  session.end();
  app?.client.stop();
  app?.people.stop();
  app?.chat.stop();
  app?.cluster.stop();
  app = null;
  clearToasts();
  /** @type {NodeListOf<HTMLDialogElement>} */
  const dialogs = document.querySelectorAll("dialog[open]");
  for (const dialog of dialogs) dialog.close();
  $("app").hidden = true;
  drawTitle();
  auth.show(notice, name);
}

/** @param {App} app */
async function logOut(app, everywhere = false) {
  const [waiting, drafts] = app.client.countUnsent();
  const parts = [waiting && count(waiting, "unsent message"), drafts && count(drafts, "draft")].filter(Boolean);
  const text = `${parts.join(" and ")} will be discarded.`;
  if (parts.length && !(await confirm({ title: "Log out?", text, action: "Log out" }))) return;
  const notice = everywhere ? "You've been logged out everywhere." : "You've been logged out.";
  await parting(app, () => app.client.logOut(everywhere), { notice }, () => {
    const here = "The servers can't be reached. You can log out of this browser, but your session stays open on the " +
      "servers until it expires.";
    return confirm({ title: "Log out here only?", text: here, action: "Log out here" });
  });
}

/** @param {App} app */
async function deleteAccount(app) {
  const text = "This deletes your account, sessions and the text of all your messages, for everyone. " +
    "It can't be undone, and the name can't be reused.";
  const password = await confirmWithPassword({ title: "Delete your account?", text, action: "Delete my account" });
  if (!password) return;
  const note = { notice: "Your account has been deleted.", isGone: true };
  await parting(app, () => app.client.deleteAccount(password), note);
}

/** Ends the session by `work`. If the cluster is unreachable, `anyway` decides whether to go on without it.
 * @param {App} parted @param {() => Promise<void>} work @param {Note} note */
async function parting(parted, work, note, anyway = async () => false) {
  const settings = $("settings-open", HTMLButtonElement);
  session.leaving(note);
  $("app").setAttribute("aria-busy", "true");
  // Prevents a second logout.
  settings.disabled = true;
  try {
    await work();
  } catch (cause) {
    const failure = /** @type {Failure} */ (cause);
    const isMeant = failure.passing && app === parted && (await anyway());
    if (app !== parted) return;
    if (!isMeant) {
      session.leaving(null);
      if (failure.reason === "PASSWORD_WRONG") return toast("Wrong password. Nothing was deleted.", { isError: true });
      if (failure.loggedOut) {
        return leave({ notice: "Your session had already expired, so nothing was deleted. Log in again." });
      }
      toast(`Something went wrong: ${failure.message}`, { isError: true });
      return;
    }
    parted.client.stop();
    if (!(await session.forget())) note = { ...note, notice: STILL_THERE };
    // Must be last, because the user may have typed meanwhile.
    parted.client.forget();
    if (app !== parted) return;
    session.leaving(note);
  } finally {
    $("app").removeAttribute("aria-busy");
    settings.disabled = false;
    if (app === parted) settings.focus();
  }
  if (app !== parted) return;
  places.toList();
  leave(note);
}

/** @returns {NodeListOf<HTMLInputElement>} */
const themes = () => document.querySelectorAll("input[name=theme]");

function drawTheme() {
  /** @type {string} */
  const theme = keep.get("theme") ?? "auto";
  document.documentElement.dataset.theme = theme;
  for (const choice of themes()) choice.checked = choice.value === theme;
}

function setUpSettings() {
  for (const choice of themes()) {
    choice.addEventListener("change", () => {
      keep.set("theme", choice.value);
      drawTheme();
    });
  }
  const wish = $("notify", HTMLInputElement);
  $("settings-open").addEventListener("click", async () => {
    if (!app) return;
    $("settings-me").textContent = session.name;
    wish.checked = notifications.on;
    wish.disabled = !notifications.possible;
    $("notify-why").textContent = notifications.possible ? "" : "Notifications need HTTPS (or localhost).";
    drawPrivacy(app.client.calls);
    const choice = await show($("settings", HTMLDialogElement));
    if (!app) return;
    if (choice === "password") changePassword(app.client.calls);
    else if (choice === "sessions") showSessions(app.client.calls, () => app && logOut(app, true));
    else if (choice === "logout") logOut(app);
    else if (choice === "delete") deleteAccount(app);
  });
  wish.addEventListener("change", async () => {
    const wanted = wish.checked;
    wish.checked = await notifications.turn(wanted);
    if (!wanted || wish.checked) return;
    $("notify-why").textContent = "Notifications are blocked. Allow them in your browser's settings for this site.";
  });
}

/** Starts the page. Called once, by boot.js. */
export function start() {
  drawTheme();
  setUpSettings();
  session.onLeft((note) => app && leave(note));
  notifications.onOpened((name) => app && !nameProblem(name) && go(name));
  places.arrived(true);
  addEventListener("hashchange", () => {
    places.arrived();
    route();
  });
  guardDrops({ onText: (text) => app?.chat.insert(text), onFiles: () => app && refuseFiles() });
  addEventListener("unhandledrejection", ({ reason }) => {
    toast(`Something went wrong: ${reason?.message ?? reason}`, { isError: true });
  });
  addEventListener("beforeunload", (event) => {
    if (app && !app.client.isKept) event.preventDefault();
  });
  $("back").addEventListener("click", places.toList);
  $("boot").remove();
  if (session.name) enter();
  else auth.show();
  // The visible page comes first.
  addEventListener("load", keepShell);
  if (document.readyState === "complete") keepShell();
}
