"""Answers a question by LangChain, through `gz-trio proxy`, which looks after the key.

OPENAI_BASE_URL=http://127.0.0.1:8399/v1 OPENAI_API_KEY=... \
    python examples/langchain_chat.py gpt-4o-mini "How do stories begin?"

It needs the package langchain-openai. The base URL and the local token, which serves as a key, are
what the proxy prints. `astream` does as well as `stream`, on asyncio: LangChain does not run on
Trio.
"""

import sys

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI


def main(model: str, question: str) -> None:
    prompt = ChatPromptTemplate.from_messages([("user", "{question}")])
    chain = prompt | ChatOpenAI(model=model) | StrOutputParser()
    for text in chain.stream({"question": question}):
        print(text, end="", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
