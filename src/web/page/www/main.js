// Where the page starts: decides between logging in and chatting, and ties the views to the client.
//
// From the bottom up: api.js (one call), nodes.js and calls.js (which node, again and again), feed.js (the stream), store.js (what is
// known), outbox.js and receipts.js (what the cluster has to be told), client.js (all of them, for one account); then the views,
// people.js, chat.js, messages.js, list.js, cluster.js, auth.js.

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
import { announce, dismiss, notifications, toast } from "./toasts.js";
import { count, oneLine } from "./text.js";

const TITLE = "quorum-chat";
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
  $("app").dataset.view = name ? "chat" : "people";
  if (name) {
    dismiss(name);
    app.chat.open(name);
    if (matchMedia("(pointer: fine)").matches) $("input").focus();
  } else app.chat.close();
  app.people.current(name);
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
  const { conversation, message } = arrival;
  if (app.chat.arrived(arrival)) return;
  const open = () => go(conversation.name);
  const isOpen = conversation === app.chat.conversation;
  if (document.hidden || !document.hasFocus()) notifications.show(message.sender, message.body, open);
  else if (!isOpen) {
    toast(oneLine(message.body), { from: message.sender, onClick: open });
    announce(`New message of ${message.sender}: ${oneLine(message.body)}`);
  }
}

function enter() {
  auth.hide();
  $("app").hidden = false;
  $("me").textContent = session.name;
  const client = new Client(nodes, session, () => leave("Your session has ended. Please log in again: what you have not sent yet is kept."));
  const people = new People(client);
  const chat = new Chat(client);
  const cluster = new Cluster(client);
  app = { client, people, chat, cluster };
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
  client.on("status", () => { chat.status(); cluster.update(); });
  client.on("cluster", () => cluster.update());
  client.start();
  cluster.update();
  route();
}

function leave(notice) {
  const { name } = session;
  session.end();
  for (const part of Object.values(app ?? {})) part.stop();
  app = null;
  for (const dialog of document.querySelectorAll("dialog[open]")) dialog.close();
  $("app").hidden = true;
  drawTitle();
  auth.show(notice, name ?? "");
}

async function logOut() {
  // With those of other tabs.
  app.client.outbox.adopt();
  const waiting = app.client.outbox.size;
  const text = `${count(waiting, "message")} ${waiting === 1 ? "is" : "are"} not sent yet and will be thrown away.`;
  if (waiting && !(await confirm({ title: "Log out?", text, action: "Log out" }))) return;
  await parting(() => app.client.logOut(false), "You are logged out.");
}

async function deleteAccount() {
  const text = "Your account, your sessions and the text of all your messages will be deleted, for everyone. This cannot be undone, and nobody can take the name again.";
  if (!(await confirm({ title: "Delete your account?", text, action: "Delete my account", type: session.name }))) return;
  await parting(() => app.client.deleteAccount(), "Your account is deleted.");
}

async function parting(work, notice) {
  try {
    await work();
  } catch (failure) {
    toast(`That did not work: ${failure.message}`, { isError: true });
    return;
  }
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
    const choice = await show($("settings"));
    if (choice === "logout") logOut();
    else if (choice === "delete") deleteAccount();
  });
  wish.addEventListener("change", async () => {
    const wanted = wish.checked;
    wish.checked = await notifications.turn(wanted);
    if (wanted && !wish.checked) $("notify-why").textContent = "The browser does not allow it. Its settings for this page do.";
  });
}

drawTheme();
setUpSettings();
addEventListener("hashchange", route);
addEventListener("unhandledrejection", (event) => toast(`Something went wrong in the page: ${event.reason?.message ?? event.reason}`, { isError: true }));
addEventListener("beforeunload", (event) => {
  const outbox = app?.client.outbox;
  if (outbox?.size && !outbox.isKept) event.preventDefault();
});
$("back").addEventListener("click", () => { location.hash = ""; });
$("boot").remove();
if (session.name) enter();
else auth.show();
