#!/bin/sh
# Answers a question by curl, through `gz-trio proxy`, which looks after the key: the events come as
# the model writes, and stop for a while when the key is replaced.
#
# OPENAI_BASE_URL=http://127.0.0.1:8399/v1 OPENAI_API_KEY=... sh examples/curl.sh gpt-4o-mini
#
# The base URL and the local token, which serves as a key, are what the proxy prints. The token goes
# to curl through a pipe: the arguments of a program are there for everybody to see.
set -eu

printf 'Authorization: Bearer %s\n' "$OPENAI_API_KEY" |
  curl --no-buffer --silent --show-error --fail-with-body --header @- --json "{
    \"model\": \"$1\",
    \"messages\": [{\"role\": \"user\", \"content\": \"How do stories begin?\"}],
    \"stream\": true
  }" "$OPENAI_BASE_URL/chat/completions"
