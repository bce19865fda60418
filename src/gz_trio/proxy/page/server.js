// What the page asks its proxy, and how it is told of news.

/** Something that went wrong, in words for the user. */
export class Trouble extends Error {
  constructor(message, signIn = false) {
    super(message);
    this.signIn = signIn;
  }
}

const LOST = "The proxy does not answer. Is it still running?";
const LOCKED = "The proxy does not let this page in any more. Open the link that it prints when it starts.";

async function request(path, options) {
  let response;
  try {
    response = await fetch(`/page/${path}`, options);
  } catch (error) {
    throw error.name === "AbortError" ? error : new Trouble(LOST);
  }
  if (!response.ok) {
    throw new Trouble(response.status === 401 ? LOCKED : `The proxy refused: ${await response.text()}`);
  }
  return response;
}

function withBody(method, body, signal) {
  const headers = { "Content-Type": "application/json" };
  return { method, headers, body: JSON.stringify(body), signal };
}

/** Ask for something: what the answer holds. Raises `Trouble`, or `AbortError`. */
export async function call(path, { method = "GET", body, signal } = {}) {
  const response = await request(
    path,
    body === undefined ? { method, signal } : withBody(method, body, signal),
  );
  const answer = await response.json();
  if (answer?.error) {
    throw new Trouble(answer.error, answer.sign_in);
  }
  return answer;
}

/** Ask a question: the news of its turn, as they come. Raises `Trouble`, or `AbortError`. */
export async function* ask(question, signal) {
  const response = await request("turns", withBody("POST", question, signal));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let line = "";
  for (;;) {
    let chunk;
    try {
      chunk = await reader.read();
    } catch (error) {
      throw error.name === "AbortError" ? error : new Trouble("The connection to the proxy broke.");
    }
    if (chunk.done) {
      return;
    }
    const lines = (line + chunk.value).split("\n");
    line = lines.pop();
    for (const each of lines) {
      yield JSON.parse(each);
    }
  }
}

/**
 * Hear of what happens elsewhere, while the page is looked at. A browser has few connections to one
 * host for all its tabs, so those in the background leave theirs to others.
 */
export function listen(tab, { opened, told, left, shutOut }) {
  let source = null;
  function update() {
    if (document.hidden) {
      source?.close();
      source = null;
      left();
    } else if (source === null) {
      source = new EventSource(`/page/events?tab=${tab}`);
      source.onopen = opened;
      source.onmessage = (message) => told(JSON.parse(message.data));
      source.onerror = () => {
        if (source?.readyState === EventSource.CLOSED) {
          source = null;
          shutOut(new Trouble(LOCKED));
        }
      };
    }
  }
  document.addEventListener("visibilitychange", update);
  update();
}
