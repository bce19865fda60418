// A chat on the page: messages that are kept, and turns that are under way or came to nothing.

import { Markdown, arrange, copy } from "./markdown.js";

function fromTemplate(name) {
  return document.getElementById(name).content.cloneNode(true).firstElementChild;
}

function questionElement(text) {
  const element = fromTemplate("question-template");
  element.querySelector(".words").textContent = text; // never HTML
  return element;
}

/** An answer in the conversation, as far as it has come. */
class Answer {
  constructor(text = "") {
    this.element = fromTemplate("answer-template");
    this.text = text;
    this.reasoning = "";
    this.markdown = new Markdown(this.part(".markdown"));
    this.part(".copy").onclick = (event) => copy(this.text, event.target);
    if (text) {
      this.markdown.settle(text);
    }
  }

  part(selector) {
    return this.element.querySelector(selector);
  }

  draw(whole) {
    if (whole) {
      this.markdown.settle(this.text);
    } else {
      this.markdown.grow(this.text);
    }
    this.part(".reasoning").hidden = !this.reasoning;
    this.part(".reasoning .words").textContent = this.reasoning;
  }
}

/** A message that the gateway's history holds, or this tab where the gateway has none. */
function message(role, content) {
  const element = role === "user" ? questionElement(content) : new Answer(content).element;
  return { role, content, element };
}

/** A question and its answer, until they are among the messages. */
export class Turn {
  #drawing = 0;

  /** `own`: asked in this tab. `after`: how many messages were there before it. */
  constructor({ id, chat, session, question, model, own, after }) {
    Object.assign(this, { id, chat, session, question, model, own, after });
    this.controller = new AbortController();
    this.waits = null;
    this.end = null;
    this.questionElement = questionElement(question);
    this.answer = new Answer();
    this.answer.element.classList.add("running");
    this.ondraw = () => {};
  }

  /** Take a piece of news of it; draws at most once a frame. */
  take(news) {
    if (this.end) {
      return;
    }
    switch (news.event) {
      case "delta":
        this.answer.text += news.text;
        this.answer.reasoning += news.reasoning;
        break;
      case "restarted":
        this.answer.text = this.answer.reasoning = "";
        this.answer.markdown.settle("");
        break;
      case "paused":
        this.waits = { ...news, since: performance.now() };
        break;
      case "resumed":
        this.waits = null;
        break;
      case "finished":
      case "stopped":
      case "error":
        this.#finish(news);
        return;
    }
    this.#drawing ||= requestAnimationFrame(() => this.#draw(false));
  }

  #finish(news) {
    this.end = news;
    this.waits = null;
    cancelAnimationFrame(this.#drawing);
    this.#draw(true);
    const { element } = this.answer;
    element.classList.remove("running");
    const [words, again] = this.#verdict(news);
    const note = element.querySelector(".note");
    note.hidden = !words;
    note.textContent = words;
    note.classList.toggle("bad", news.event === "error");
    element.querySelector(".retry").hidden = !(again && this.own);
    element.querySelector(".sign-in").hidden = !news.sign_in;
  }

  #verdict(news) {
    if (news.event === "stopped") {
      return ["Stopped. This is not kept in the chat.", true];
    }
    if (news.event === "error") {
      return [news.message, true];
    }
    if (news.unsaved) {
      return [`This could not be kept in the chat: ${news.unsaved}`, false];
    }
    const early = news.finish_reason && news.finish_reason !== "stop";
    return [early ? `The answer ended early: ${news.finish_reason}.` : "", false];
  }

  #draw(whole) {
    this.#drawing = 0;
    this.answer.draw(whole);
    this.ondraw();
  }
}

/** One chat: what the gateway keeps of it, once that is read. */
export class Chat {
  constructor({ id = null, title = "", model = "" } = {}) {
    Object.assign(this, { id, title, model });
    this.messages = [];
    this.readings = 0; // the last that was begun counts
    this.stale = id !== null; // whether it is to be read (again)
  }

  /** Take what the gateway holds; of equal messages the elements stay. */
  read({ title, model, messages }) {
    this.title = title;
    this.model = model ?? this.model;
    const shown = messages.filter(({ role }) => role === "user" || role === "assistant");
    this.messages = shown.map(({ role, content }, place) => {
      const there = this.messages[place];
      return there?.role === role && there.content === content ? there : message(role, content);
    });
  }

  /** Take a turn that is complete among the messages, as it is shown. */
  keep(turn) {
    this.messages.push(
      { role: "user", content: turn.question, element: turn.questionElement },
      { role: "assistant", content: turn.answer.text, element: turn.answer.element },
    );
  }

  /** Show it, with turns that are not among the messages where they were asked. */
  show(parent, turns) {
    const elements = [];
    for (let place = 0; place <= this.messages.length; place += 1) {
      for (const turn of turns) {
        if (Math.min(turn.after, this.messages.length) === place) {
          elements.push(turn.questionElement, turn.answer.element);
        }
      }
      if (place < this.messages.length) {
        elements.push(this.messages[place].element);
      }
    }
    arrange(parent, elements);
  }
}
