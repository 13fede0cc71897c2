"""
A web application with a pool of workers: FastAPI, served by uvicorn.

    uvicorn fastapi_app:app          then  curl http://127.0.0.1:8000/squares/7

The pool lives as long as the application does. A request that its client gives up is cancelled, and its task with it;
on SIGTERM the server ends its requests, and the pool its workers.
"""

import os
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request

import safespawn


def square(number):
    return {"square": number * number, "worker": os.getpid()}


@asynccontextmanager
async def lifespan(app):
    async with safespawn.AsyncPool(2, name="web") as app.state.pool:
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/squares/{number}")
async def squares(number: int, request: Request):
    return await request.app.state.pool.run(square, number)


@app.get("/uptime")
async def uptime():
    done = await safespawn.arun(["cat", "/proc/uptime"], capture_output=True, text=True, timeout=10)
    return {"seconds": float(done.stdout.split()[0])}
