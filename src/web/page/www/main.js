// Where the page starts, once boot.js has everything: decides between logging in and chatting, and ties the views to the client.
//
// From the bottom up: api.js (one call), nodes.js and calls.js (which node, again and again), feed.js (the stream), store.js (what is
// known), outbox.js and receipts.js (what the cluster has to be told), client.js (all of them, for one account); then the views,
// people.js, chat.js, messages.js, list.js, cluster.js, auth.js.

import { changePassword, drawPrivacy, showSessions } from "./account.js";
import { $, eachFrame } from "./dom.js";
import { confirm, show } from "./ask.js";
import { Auth, nameProblem } from "./auth.js";
import { Chat } from "./chat.js";
import { Client } from "./client.js";
import { Cluster } from "./cluster.js";
import { keep } from "./keep.js";
import { Nodes } from "./nodes.js";
import { People } from "./people.js";
import { Session } from "./session.js";
import { clearToasts, dismiss, notifications, toast } from "./toasts.js";
import { count, oneLine } from "./text.js";

const TITLE = "quorum-chat";
/** So long it takes until what was read elsewhere (another window, another device) is known to be read. */
const ELSEWHERE_MS = 600;
/** Of a logout that no node heard of. */
const STILL_THERE = "You are logged out of this page. But no node answered, and only one can have the browser forget your session: until it expires, it is there.";
const nodes = new Nodes();
const session = new Session(nodes);
const auth = new Auth(session, enter);
/** What there is while somebody is logged in. */
let app = null;

/** The person whose conversation the address names. */
function named() {
  const name = location.hash.replace(/^#\/?/, "");
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
  // The button that led back is hidden now.
  if (!name && left && [document.body, $("back")].includes(document.activeElement)) $("people").querySelector(`a[href="#/${left}"]`)?.focus();
}

function go(name) {
  window.focus();
  location.hash = `#/${name}`;
}

function drawTitle() {
  const unread = app?.client.store.unread ?? 0;
  document.title = unread ? `(${unread}) ${TITLE}` : TITLE;
}

function onArrived(arrival) {
  if (app.chat.arrived(arrival)) return;
  const { client, news } = app;
  if (!news.size) setTimeout(() => app?.client === client && tellOfNews(), ELSEWHERE_MS);
  // The last of a conversation stands for all.
  news.set(arrival.conversation, arrival.message);
}

function tellOfNews() {
  const { client, chat, news } = app;
  for (const [conversation, { seq, sender, body, deleted }] of news) {
    if (deleted || seq <= conversation.readBy(client.me)) continue;
    const open = () => go(conversation.name);
    if (document.hidden || !document.hasFocus()) notifications.show(sender, body, open);
    else if (conversation !== chat.conversation) toast(oneLine(body), { from: sender, onClick: open });
  }
  news.clear();
}

/** What does not get better by itself is told once. */
function onTrouble({ message }) {
  const { troubles } = app;
  if (troubles.has(message)) return;
  troubles.add(message);
  toast(`Not all can be loaded: ${message}`, { isError: true });
}

function enter() {
  auth.hide();
  // A page may have been closed in the middle of leaving.
  session.leaving(null);
  $("app").hidden = false;
  $("me").textContent = session.name;
  const client = new Client(nodes, session, onLoggedOut);
  const people = new People(client);
  const chat = new Chat(client);
  const cluster = new Cluster(client);
  app = { client, people, chat, cluster, news: new Map(), troubles: new Set() };
  const soon = eachFrame(() => {
    if (app?.client !== client) return;
    people.update();
    drawTitle();
  });
  client.on("change", (conversation) => { chat.changed(conversation); soon(); });
  client.outbox.on("change", (name) => { if (chat.conversation?.name === name) chat.soon(); soon(); });
  client.on("ready", soon);
  client.on("anew", () => { chat.reopen(); soon(); });
  client.on("arrived", onArrived);
  client.on("trouble", onTrouble);
  client.on("midnight", () => { chat.soon(); soon(); });
  client.on("status", () => {
    if (client.status === "online") app?.troubles.clear();
    chat.status();
    cluster.update();
  });
  client.on("cluster", () => cluster.update());
  client.start();
  cluster.update();
  route();
}

function onLoggedOut() {
  const { left } = session;
  if (left !== null) return leave(left);
  // Before the client has stopped: after that nothing is kept any more.
  app.chat.stop();
  app.client.outbox.keepAll();
  leave("Your session has ended. Please log in again: what you have not sent yet is kept.");
}

function leave(notice) {
  const { name } = session;
  session.end();
  const { client, people, chat, cluster } = app;
  for (const part of [client, people, chat, cluster]) part.stop();
  app = null;
  clearToasts();
  for (const dialog of document.querySelectorAll("dialog[open]")) dialog.close();
  $("app").hidden = true;
  drawTitle();
  auth.show(notice, name ?? "");
}

async function logOut() {
  const [waiting, drafts] = app.client.countUnsent();
  const unsent = [waiting && count(waiting, "message that waits", "messages that wait"), drafts && count(drafts, "draft")].filter(Boolean).join(" and ");
  if (unsent && !(await confirm({ title: "Log out?", text: `Not sent yet, and thrown away: ${unsent}.`, action: "Log out" }))) return;
  await parting(() => app.client.logOut(false), "You are logged out.", async () => {
    const text = "The cluster cannot be told at the moment. This browser can forget you all the same; the session stays open at the cluster until it expires.";
    return confirm({ title: "Log out here only?", text, action: "Log out here" });
  });
}

async function deleteAccount() {
  const text = "Your account, your sessions and the text of all your messages will be deleted, for everyone. This cannot be undone, and nobody can take the name again.";
  const password = await confirm({ title: "Delete your account?", text, action: "Delete my account", password: true });
  if (!password) return;
  await parting(() => app.client.deleteAccount(password), "Your account is deleted.");
}

/** Ends the session by `work`. When the cluster cannot be told, `anyway` decides whether that is done without. */
async function parting(work, notice, anyway = async () => false) {
  const parted = app;
  session.leaving(notice);
  $("app").setAttribute("aria-busy", "true");
  // One leaves once.
  $("settings-open").disabled = true;
  try {
    await work();
  } catch (failure) {
    const isMeant = failure.passing && app === parted && (await anyway());
    if (app !== parted) return;
    if (!isMeant) {
      session.leaving(null);
      if (failure.reason === "PASSWORD_WRONG") return toast("The password is wrong. Nothing was deleted.", { isError: true });
      if (failure.loggedOut) return leave("Your session had ended before, and nothing was deleted. Please log in again.");
      toast(`That did not work: ${failure.message}`, { isError: true });
      return;
    }
    parted.client.stop();
    if (!(await session.forget())) notice = STILL_THERE;
    // Only now: meanwhile somebody may have gone on typing.
    parted.client.forget();
    if (app !== parted) return;
    session.leaving(notice);
  } finally {
    $("app").removeAttribute("aria-busy");
    $("settings-open").disabled = false;
    if (app === parted) $("settings-open").focus();
  }
  if (app !== parted) return;
  location.hash = "";
  leave(notice);
}

function drawTheme() {
  const theme = keep.get("theme") ?? "auto";
  document.documentElement.dataset.theme = theme;
  for (const choice of document.querySelectorAll("input[name=theme]")) choice.checked = choice.value === theme;
}

function setUpSettings() {
  for (const choice of document.querySelectorAll("input[name=theme]")) {
    choice.addEventListener("change", () => { keep.set("theme", choice.value); drawTheme(); });
  }
  const wish = $("notify");
  $("settings-open").addEventListener("click", async () => {
    $("settings-me").textContent = session.name;
    wish.checked = notifications.on;
    wish.disabled = !notifications.possible;
    $("notify-why").textContent = notifications.possible ? "" : "This browser has them only for pages that came over TLS or from this machine.";
    drawPrivacy(app.client.calls);
    const choice = await show($("settings"));
    if (choice === "password") changePassword(app.client.calls);
    else if (choice === "sessions") showSessions(app.client.calls);
    else if (choice === "logout") logOut();
    else if (choice === "delete") deleteAccount();
  });
  wish.addEventListener("change", async () => {
    const wanted = wish.checked;
    wish.checked = await notifications.turn(wanted);
    if (wanted && !wish.checked) $("notify-why").textContent = "The browser does not allow it. Its settings for this page do.";
  });
}

/** Brings the page up. Once: boot.js calls it. */
export function start() {
  drawTheme();
  setUpSettings();
  session.onLeft((notice) => app && leave(notice));
  addEventListener("hashchange", route);
  addEventListener("unhandledrejection", (event) => toast(`Something went wrong in the page: ${event.reason?.message ?? event.reason}`, { isError: true }));
  addEventListener("beforeunload", (event) => {
    if (app && !app.client.isKept) event.preventDefault();
  });
  $("back").addEventListener("click", () => { location.hash = ""; });
  $("boot").remove();
  if (session.name) enter();
  else auth.show();
}
