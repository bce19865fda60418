// The chat page. The proxy holds what is true of the account, of the sessions and of the turns in
// other tabs; the page shows it, and reads it anew whenever it may have missed something.

import { Chat, Turn } from "./conversation.js";
import { arrange } from "./markdown.js";
import { Trouble, ask, call, listen } from "./server.js";

const $ = (id) => document.getElementById(id);

const tab = crypto.randomUUID();
const chats = new Map(); // by the id of their session; a new one has none
const turns = new Map(); // by id: all that are not among the messages of their chat
let chat = new Chat();
let sessions = [];
let hasMore = false;
let history = true; // whether the gateway keeps one
let account = null;
let models = { models: [], default: null };
let modelsKnown = false;
let held = false; // a question that was sent before there was a model to ask
let reading = new AbortController(); // of all that is being read

// What is shown

function turnsOf(it) {
  return [...turns.values()].filter(
    (turn) => turn.chat === it || (turn.session !== null && turn.session === it.id),
  );
}

function isRunning(turn) {
  return turn.end === null;
}

const items = new Map(); // by the id of the session; kept, so that no link loses the focus

function drawList() {
  const drawn = sessions.map(({ id, title }) => {
    if (!items.has(id)) {
      const item = document.createElement("li");
      item.append(document.createElement("a"));
      item.firstElementChild.href = addressOf(id);
      items.set(id, item);
    }
    const link = items.get(id).firstElementChild;
    link.textContent = title || "Untitled";
    if (id === chat.id) {
      link.setAttribute("aria-current", "page");
    } else {
      link.removeAttribute("aria-current");
    }
    return items.get(id);
  });
  arrange($("sessions"), drawn);
  $("older").hidden = !hasMore;
  $("no-history").hidden = history;
}

function drawChat() {
  const here = turnsOf(chat);
  chat.show($("conversation"), here);
  $("welcome").hidden = here.length > 0 || chat.messages.length > 0 || chat.id !== null;
  const name = chat.title || (chat.id === null ? "New chat" : "Untitled");
  document.title = name;
  $("heading").textContent = name;
  $("heading").className = chat.id === null ? "" : "unseen";
  $("title").hidden = $("delete").hidden = chat.id === null;
  if (document.activeElement !== $("title")) {
    $("title").value = chat.title;
  }
  drawComposer();
}

function drawComposer() {
  const running = turnsOf(chat).filter(isRunning);
  const own = running.some((turn) => turn.own);
  $("stop").hidden = !own;
  $("send").hidden = own;
  $("send").disabled = running.length > 0 || !$("question").value.trim();
  drawStatus(running);
}

function drawStatus(running) {
  const waits = running.map((turn) => turn.waits).find(Boolean);
  const signingIn = account?.epoch === null ? "signing in ..." : "signing in again ...";
  let words = "";
  if (waits?.reason === "refresh" || (running.length && account?.status === "authenticating")) {
    words = signingIn;
  } else if (waits?.reason === "rate_limit") {
    words = `the gateway is busy, going on in ${Math.ceil(waits.seconds)} s ...`;
  } else if (waits && performance.now() - waits.since < 300) {
    setTimeout(drawComposer, 300); // most are over by then, and not worth a word
  } else if (waits) {
    words = "connection lost, connecting again ...";
  } else if (running.some((turn) => !turn.own)) {
    words = "answering in another tab ...";
  }
  if ($("status").textContent !== words) {
    $("status").textContent = words;
  }
}

const ACCOUNT_WORDS = {
  authenticated: "Signed in",
  authenticating: "Signing in ...",
  unauthenticated: "Not signed in",
  error: "Sign-in failed",
};

function drawAccount() {
  const { status, epoch } = account;
  $("account").dataset.status = status;
  $("account-words").textContent = ACCOUNT_WORDS[status];
  const signIn = status === "authenticated" ? "Change key" : "Sign in again";
  $("open-sign-in").textContent = epoch === null ? "Sign in" : signIn;
  $("sign-out").hidden = epoch === null;
  $("welcome-words").textContent =
    epoch === null ? "Sign in to be answered." : "Ask something.";
  $("welcome-sign-in").hidden = epoch !== null;
  drawComposer();
}

function announce(words) {
  $("announcements").textContent = words;
}

function complain(error) {
  if (error.name === "AbortError") {
    return;
  }
  if (!(error instanceof Trouble)) {
    throw error;
  }
  $("notice-words").textContent = error.message;
  $("notice-sign-in").hidden = !error.signIn;
  $("notice").hidden = false;
}

// The end of a conversation is followed unless its reader has scrolled up.

const scroller = $("scroller");
let following = true;
let lastTop = 0;

scroller.addEventListener("scroll", () => {
  const left = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight;
  if (left < 48) {
    following = true;
  } else if (scroller.scrollTop < lastTop) {
    following = false;
  }
  lastTop = scroller.scrollTop;
  $("to-end").hidden = following || left < 48;
});

function follow() {
  if (following) {
    scroller.scrollTop = scroller.scrollHeight;
  }
}

function goToEnd() {
  following = true;
  follow();
}

// Reading anew

function pathOf(id) {
  return `sessions/${encodeURIComponent(id)}`;
}

async function readSessions() {
  try {
    const read = await call("sessions", { signal: reading.signal });
    ({ history, sessions, more: hasMore } = read);
    $("notice").hidden = true;
    for (const { id, title } of sessions) {
      if (chats.has(id)) {
        chats.get(id).title = title;
      }
    }
    drawChat();
  } catch (error) {
    complain(error);
  }
  drawList();
}

async function readOlder() {
  try {
    const read = await call(`sessions?offset=${sessions.length}`);
    const known = new Set(sessions.map(({ id }) => id));
    sessions.push(...read.sessions.filter(({ id }) => !known.has(id)));
    hasMore = read.more;
  } catch (error) {
    complain(error);
  }
  drawList();
}

async function readChat() {
  // What is under way here is told when it is over; what is read before would lack it.
  if (chat.id === null || !chat.stale || turnsOf(chat).some(isRunning)) {
    return;
  }
  const it = chat;
  it.stale = false;
  it.readings += 1;
  const number = it.readings;
  try {
    const read = await call(pathOf(it.id), { signal: reading.signal });
    if (number === it.readings && !turnsOf(it).some(isRunning)) {
      if (it.messages.length === 0) {
        $("model").value = read.model ?? $("model").value;
      }
      it.read(read);
    } else {
      it.stale = true;
    }
  } catch (error) {
    it.stale = true;
    complain(error);
  }
  if (it === chat) {
    drawChat();
    follow();
  }
}

async function readModels() {
  try {
    models = await call("models", { signal: reading.signal });
  } catch (error) {
    complain(error);
    if (error.name !== "AbortError") {
      modelsKnown = true;
      release();
    }
    return;
  }
  $("models").replaceChildren(
    ...models.models.map((name) => {
      const option = document.createElement("option");
      option.value = name;
      return option;
    }),
  );
  chooseModel();
  modelsKnown = true;
  release();
}

function release() {
  if (held) {
    held = false;
    $("composer").requestSubmit();
  }
}

function chooseModel() {
  $("model").value ||= chat.model || models.default || sessions[0]?.model || models.models[0] || "";
}

/** Forget what is being read: one who waits for a key holds a connection that others need. */
function stopReading() {
  reading.abort();
  reading = new AbortController();
}

async function readAll() {
  stopReading();
  for (const it of chats.values()) {
    it.stale = true;
  }
  await readSessions();
  await readChat();
  await readModels();
}

// Going from chat to chat

function open(id) {
  closeDrawer();
  if (id === null) {
    chat = new Chat();
  } else {
    chat = chats.get(id) ?? new Chat(sessions.find((session) => session.id === id) ?? { id });
    chats.set(id, chat);
  }
  $("model").value = chat.model;
  chooseModel();
  drawList();
  drawChat();
  goToEnd();
  readChat();
}

function addressOf(id) {
  return `#${new URLSearchParams({ chat: id })}`;
}

function openByAddress() {
  open(new URLSearchParams(location.hash.slice(1)).get("chat"));
}

function startOver() {
  for (const turn of turns.values()) {
    turn.controller.abort();
  }
  turns.clear();
  chats.clear();
  sessions = [];
  window.history.replaceState(null, "", "/");
  open(null);
}

// Turns

function mayAsk() {
  if (!$("model").value.trim()) {
    complain(new Trouble("Which model is to answer? Name one first."));
    $("model").focus();
    return false;
  }
  return !turnsOf(chat).some(isRunning);
}

async function begin(question) {
  const model = $("model").value.trim();
  chat.model = model;
  const turn = new Turn({
    id: crypto.randomUUID(),
    chat,
    session: chat.id,
    question,
    model,
    own: true,
    after: chat.messages.length,
  });
  $("notice").hidden = true;
  add(turn);
  goToEnd();
  announce("Answering.");
  const messages = chat.id === null ? chat.messages : [];
  try {
    const body = {
      turn: turn.id,
      tab,
      model,
      question,
      session: chat.id,
      remember: history,
      messages: messages.map(({ role, content }) => ({ role, content })),
    };
    for await (const news of ask(body, turn.controller.signal)) {
      take(turn, news);
    }
    if (isRunning(turn)) {
      throw new Trouble("The connection to the proxy broke.");
    }
  } catch (error) {
    if (error instanceof Trouble) {
      take(turn, { event: "error", message: error.message, sign_in: false });
    } else if (error.name !== "AbortError") {
      throw error;
    }
  }
}

function add(turn) {
  turns.set(turn.id, turn);
  turn.ondraw = follow;
  const { element } = turn.answer;
  element.querySelector(".sign-in").onclick = openSignIn;
  element.querySelector(".retry").onclick = () => {
    if (mayAsk()) {
      turns.delete(turn.id);
      $("question").focus();
      begin(turn.question);
    }
  };
  drawChat();
}

function take(turn, news) {
  const wasRunning = isRunning(turn);
  turn.take(news);
  if (!wasRunning || isRunning(turn)) {
    drawComposer();
    return;
  }
  if (turn.own) {
    announce({ finished: "The answer is complete.", stopped: "Stopped." }[news.event] ?? news.message);
  }
  const it = turn.chat ?? chats.get(turn.session);
  if (news.event === "finished" && !news.unsaved && it) {
    if (it.id === null && news.session !== null) {
      it.id = news.session;
      it.title = sessions.find(({ id }) => id === it.id)?.title ?? turn.question.slice(0, 60);
      chats.set(it.id, it);
      if (it === chat) {
        window.history.replaceState(null, "", addressOf(it.id));
        drawList();
      }
    }
    turns.delete(turn.id);
    it.keep(turn);
  } else if (!turn.own) {
    turns.delete(turn.id);
  }
  drawChat();
  follow();
  readChat();
}

function stop() {
  for (const turn of turnsOf(chat).filter((turn) => turn.own && isRunning(turn))) {
    turn.controller.abort();
    take(turn, { event: "stopped" });
    $("question").focus();
  }
}

// News from elsewhere

function told(news) {
  switch (news.event) {
    case "account":
      takeAccount(news);
      return;
    case "changed":
      for (const id of news.sessions) {
        if (chats.has(id)) {
          chats.get(id).stale = true;
        }
      }
      readSessions().then(readChat);
      return;
    case "asked": {
      const { turn: id, session, question, model } = news;
      add(new Turn({ id, chat: null, session, question, model, own: false, after: Infinity }));
      follow();
      return;
    }
  }
  const turn = turns.get(news.turn);
  if (!turn) {
    return;
  }
  if (!turn.own) {
    take(turn, news);
  } else if (!isRunning(turn) && news.event === "finished") {
    // It was complete before the proxy heard that we had left: then it is kept after all.
    turns.delete(turn.id);
    drawChat();
  }
}

function takeAccount(news) {
  const before = account;
  account = news;
  if (before && before.epoch !== null && before.epoch !== news.epoch) {
    startOver(); // what is here may be another's
  }
  drawAccount();
  if (news.epoch === null) {
    release(); // nobody names the models
  }
  const isNew = before && (before.epoch !== news.epoch || before.status === "error");
  if (isNew && news.status === "authenticated") {
    readAll();
  }
}

function opened() {
  for (const turn of [...turns.values()].filter((turn) => !turn.own)) {
    turns.delete(turn.id); // those that still run are told again
  }
  drawChat();
  readAll();
}

// Signing in and out

function openSignIn() {
  closeDrawer();
  $("sign-in-title").textContent = account?.epoch === null ? "Sign in" : "Sign in again";
  $("whose").hidden = account?.epoch === null;
  $("sign-in-error").textContent = "";
  $("sign-in").showModal();
}

async function signIn(event) {
  event.preventDefault();
  const key = $("key").value;
  $("key").value = "";
  const another = !$("whose").hidden && $("whose").querySelector("[value=another]").checked;
  try {
    await call("sign-in", { method: "POST", body: { key, same_account: !another } });
    $("sign-in").close();
  } catch (error) {
    if (!(error instanceof Trouble)) {
      throw error;
    }
    $("sign-in-error").textContent = error.message;
  }
}

async function signOut() {
  try {
    await call("sign-out", { method: "POST" });
  } catch (error) {
    complain(error);
  }
}

// The chat's title, and its end

async function rename() {
  const title = $("title").value.trim();
  if (!title || title === chat.title) {
    $("title").value = chat.title;
    return;
  }
  chat.title = title;
  try {
    await call(pathOf(chat.id), { method: "PUT", body: { title } });
  } catch (error) {
    complain(error);
  }
  drawChat();
}

async function deleteChat() {
  const { id } = chat;
  try {
    await call(pathOf(id), { method: "DELETE" });
    for (const turn of turnsOf(chats.get(id))) {
      turn.controller.abort();
      turns.delete(turn.id);
    }
    chats.delete(id);
    location.hash = "#new";
  } catch (error) {
    complain(error);
  }
}

// The drawer, on a phone

function openDrawer() {
  document.body.classList.add("drawer");
  $("menu").setAttribute("aria-expanded", "true");
  $("scrim").hidden = false;
  $("main").inert = true;
  $("close").focus();
}

function closeDrawer() {
  if (document.body.classList.contains("drawer")) {
    document.body.classList.remove("drawer");
    $("menu").setAttribute("aria-expanded", "false");
    $("scrim").hidden = true;
    $("main").inert = false;
    $("menu").focus();
  }
}

// What the user does

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = $("question").value.trim();
  held = question && !$("model").value.trim() && !modelsKnown && account?.epoch !== null;
  if (question && !held && mayAsk()) {
    $("question").value = "";
    begin(question);
  }
});
$("question").addEventListener("input", drawComposer);
$("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("composer").requestSubmit();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !document.querySelector("dialog[open]")) {
    closeDrawer();
    stop();
  }
});
$("stop").onclick = stop;
$("to-end").onclick = goToEnd;
$("older").onclick = readOlder;
$("menu").onclick = openDrawer;
$("close").onclick = closeDrawer;
$("scrim").onclick = closeDrawer;
for (const id of ["open-sign-in", "welcome-sign-in", "notice-sign-in"]) {
  $(id).onclick = openSignIn;
}
$("sign-in").querySelector("form").addEventListener("submit", signIn);
$("sign-in-cancel").onclick = () => $("sign-in").close();
$("sign-in").addEventListener("close", () => ($("key").value = ""));
$("sign-out").onclick = signOut;
$("notice-close").onclick = () => ($("notice").hidden = true);
$("title").onchange = rename;
$("title").onkeydown = (event) => event.key === "Enter" && $("title").blur();
$("delete").onclick = () => {
  $("confirm").returnValue = "";
  $("confirm").showModal();
};
$("confirm").addEventListener("close", () => $("confirm").returnValue === "delete" && deleteChat());
window.addEventListener("hashchange", openByAddress);

openByAddress();
listen(tab, { opened, told, left: stopReading, shutOut: complain });
