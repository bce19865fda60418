// Markdown that grows while it is shown. What a model says becomes HTML only here: HTML in it is
// shown as text, what marked makes of the rest goes through DOMPurify, and nothing is ever loaded.

import { Marked } from "./marked.esm.js";
import "./purify.min.js"; // which is no module: it makes the global DOMPurify

const { DOMPurify } = globalThis;

const ESCAPES = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };

function escape(text) {
  return text.replace(/[&<>"']/g, (character) => ESCAPES[character]);
}

const marked = new Marked({
  gfm: true,
  breaks: true, // a model that breaks a line means it: verses, addresses
  renderer: {
    html: ({ text }) => escape(text),
    image: ({ href, text }) => `<a href="${escape(href)}">${escape(text || "image")}</a>`,
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
  },
});

const ALLOWED = {
  ALLOWED_TAGS: [
    ..."a blockquote br code del em h1 h2 h3 h4 h5 h6 hr li ol p pre strong".split(" "),
    ..."table tbody td th thead tr ul #text".split(" "),
  ],
  ALLOWED_ATTR: ["align", "class", "href", "start"], // `class` is of code, for its language
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  ALLOW_ARIA_ATTR: false,
  ALLOW_DATA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};

const codeTemplate = document.getElementById("code-template");

/** Copies text, and says so on the button for a moment. */
export async function copy(text, button) {
  const words = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Not allowed";
  }
  setTimeout(() => (button.textContent = words), 1500);
}

function elementOf(token) {
  const fragment = DOMPurify.sanitize(marked.parser([token]), ALLOWED);
  for (const link of fragment.querySelectorAll("a")) {
    link.target = "_blank";
    link.rel = "noopener noreferrer";
  }
  for (const code of fragment.querySelectorAll("pre > code")) {
    const pre = code.parentElement;
    const figure = codeTemplate.content.cloneNode(true).firstElementChild;
    figure.querySelector(".language").textContent =
      /^language-([\w+#.-]{1,24})$/.exec(code.className)?.[1] ?? "";
    figure.querySelector("button").onclick = (event) => copy(code.textContent, event.target);
    code.removeAttribute("class");
    pre.replaceWith(figure);
    pre.tabIndex = 0; // it scrolls within itself, by the keyboard too
    figure.append(pre);
  }
  for (const table of fragment.querySelectorAll("table")) {
    const box = document.createElement("div");
    box.className = "table";
    box.tabIndex = 0;
    table.replaceWith(box);
    box.append(table);
  }
  const block = document.createElement("div");
  block.append(fragment);
  return block;
}

/** Markdown in an element, block by block: what has not changed is not touched. */
export class Markdown {
  #element;
  #blocks = []; // { raw, element }: the element is null for blank lines

  constructor(element) {
    this.#element = element;
  }

  /** Show a text that begins as the one before did. Only its last block can have changed. */
  grow(text) {
    const last = this.#blocks.findLastIndex((block) => block.element !== null);
    const kept = this.#blocks.slice(0, Math.max(last, 0));
    const offset = kept.reduce((sum, block) => sum + block.raw.length, 0);
    this.#show([...kept, ...marked.lexer(normal(text).slice(offset))]);
  }

  /** Show a text that is whole: what its end says of its beginning counts too. */
  settle(text) {
    const tokens = marked.lexer(normal(text));
    if (Object.keys(tokens.links).length) {
      this.#show([]); // links whose targets are named elsewhere
    }
    this.#show(tokens);
  }

  #show(tokens) {
    const blocks = tokens.map((token, place) => {
      const block = this.#blocks[place];
      if (token === block || token.raw === block?.raw) {
        return block;
      }
      return { raw: token.raw, element: token.type === "space" ? null : elementOf(token) };
    });
    this.#blocks = blocks;
    arrange(
      this.#element,
      blocks.flatMap((block) => block.element ?? []),
    );
  }
}

function normal(text) {
  return text.replace(/\r\n?/g, "\n"); // as marked reads it, so that places in it are the same
}

/** Make these the children of an element; those that are where they belong are not touched. */
export function arrange(parent, children) {
  const wanted = new Set(children);
  for (const child of [...parent.children]) {
    if (!wanted.has(child)) {
      child.remove();
    }
  }
  children.forEach((child, place) => {
    if (parent.children[place] !== child) {
      parent.insertBefore(child, parent.children[place] ?? null);
    }
  });
}
