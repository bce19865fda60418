// Asks for a streamed answer as any program does: base URL and key come from the environment.
import OpenAI from "openai";

const client = new OpenAI({ maxRetries: 0 });
const messages = [{ role: "user", content: "Tell me a story." }];
try {
  const stream = await client.chat.completions.create({ model: "fake-model", stream: true, messages });
  for await (const chunk of stream) process.stdout.write(chunk.choices[0]?.delta?.content ?? "");
} catch (error) {
  process.stdout.write(`${error.constructor.name}: ${error.message}`);
}
