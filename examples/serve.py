"""Serves a sparse model over HTTP, as a client of OpenAI's completions expects it, with FastAPI.

python examples/serve.py my-sparse-model --port 8000
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import fastapi
import pydantic
import torch
import transformers
import uvicorn

import blast


class Request(pydantic.BaseModel):
    """The keys of a request that are read; others are ignored."""

    prompt: str
    max_tokens: int = pydantic.Field(default=50, ge=1, le=4096)
    temperature: float = pydantic.Field(default=0.0, ge=0, le=2)


def serving(folder: str) -> fastapi.FastAPI:
    """The server of one model; it answers one request at a time."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = blast.fuse(blast.load(folder, device=device))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    name = Path(folder).resolve().name
    server = fastapi.FastAPI(title=name)

    @server.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": name, "object": "model"}]}

    # `async`: requests wait for each other, because a fused model decodes one at a time.
    @server.post("/v1/completions")
    async def completions(request: Request) -> dict[str, Any]:
        tokens = tokenizer(request.prompt, return_tensors="pt", return_token_type_ids=False).to(device)
        if tokens["input_ids"].shape[1] == 0:
            raise fastapi.HTTPException(422, "the prompt has no token; give some text")
        drawn = {"do_sample": True, "temperature": request.temperature} if request.temperature else {"do_sample": False}
        with torch.inference_mode():
            made = model.generate(**tokens, max_new_tokens=request.max_tokens, **drawn)
        new = made[0, tokens["input_ids"].shape[1] :]
        usage = {"prompt_tokens": tokens["input_ids"].shape[1], "completion_tokens": len(new)}
        text = tokenizer.decode(new, skip_special_tokens=True)
        choice = {"index": 0, "text": text, "finish_reason": "stop" if len(new) < request.max_tokens else "length"}
        return {"object": "text_completion", "model": name, "choices": [choice], "usage": usage}

    return server


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="folder of blast.save or `blast prune`, with its tokenizer")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    uvicorn.run(serving(options.folder), host=options.host, port=options.port, log_level="warning")
