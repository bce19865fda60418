// Answers a question by OpenAI's SDK for Node, through `gz-trio proxy`, which looks after the key.
//
// npm install
// OPENAI_BASE_URL=http://127.0.0.1:8399/v1 OPENAI_API_KEY=... \
//   node chat.mjs gpt-4o-mini "How do stories begin?"
//
// The base URL and the local token, which serves as a key, are what the proxy prints.

import OpenAI from "openai";

const [model, question] = process.argv.slice(2);
const stream = await new OpenAI().chat.completions.create({
  model,
  messages: [{ role: "user", content: question }],
  stream: true,
});
for await (const chunk of stream) {
  process.stdout.write(chunk.choices[0]?.delta.content ?? "");
}
