#!/usr/bin/env python3
"""Asks a model twice, with nothing but a NATS client. docs/protocol.md explains every step.

    pip install nats-py msgpack
    python producer_nats.py nats://127.0.0.1:4222 MODEL INPUT_NAME '[[1,2,3,4],[5,6,7,8]]'

First MessagePack to a live inbox, then JSON to durable results. Each prints the outputs as one line of JSON.
"""
import asyncio, json, math, struct, sys, time, uuid
from urllib.parse import urlsplit

import msgpack
import nats
from nats.errors import TimeoutError as NatsTimeout
from nats.js.errors import APIError, NoStreamResponseError, NotFoundError

PATIENCE = 30  # seconds that an answer may take
FORMATS = {"BOOL": "?", "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q", "INT8": "b", "INT16": "h",
           "INT32": "i", "INT64": "q", "FP16": "e", "FP32": "f", "FP64": "d"}  # `struct` has none for BF16 and BYTES


class Refused(Exception):
    """The answer is an error: its code and its message."""


async def submit(js, model, reply_to, content_type, body):
    """Returns the request's id once the broker has stored the request."""
    request_id = str(uuid.uuid4())
    headers = {
        "ce-id": request_id, "ce-source": "/examples/producer", "ce-specversion": "1.0",
        "ce-type": "sluice.inference.request", "content-type": content_type, "sluice-reply-to": reply_to,
        "sluice-deadline": str(int((time.time() + PATIENCE) * 1000)),
        "Nats-Msg-Id": str(uuid.uuid4()),  # a repeated publish is stored once; nobody else can guess it
    }
    while True:
        try:
            await js.publish(f"infer.{model}.normal", body, timeout=5, headers=headers)
            return request_id
        except NatsTimeout:
            pass  # The acknowledgement is lost, perhaps the request too: the same Nats-Msg-Id makes repeating safe.
        except APIError as error:
            if error.err_code != 10077:  # The queue is full: it takes more when something was answered.
                raise
            await asyncio.sleep(0.25)


def outputs(headers, body):
    """Reads a reply; one without a content type is MessagePack."""
    reply = json.loads(body) if headers.get("content-type") == "application/json" else msgpack.unpackb(body)
    if "sluice-error" in headers:
        raise Refused(f"{headers['sluice-error']}: {reply['error']}")
    for output in reply["outputs"]:
        if isinstance(output["data"], bytes):
            values = struct.iter_unpack("<" + FORMATS[output["datatype"]], output["data"])
            output["data"] = [value for (value,) in values]
    return reply["outputs"]


async def ask_live(nc, js, model, tensor):
    """MessagePack there and back. The inbox is listened to before the request is sent."""
    inbox = nc.new_inbox()
    replies = await nc.subscribe(inbox)
    packed = {**tensor, "data": struct.pack(f"<{len(tensor['data'])}f", *tensor["data"])}
    await submit(js, model, f"inbox:{inbox}", "application/msgpack", msgpack.packb({"inputs": [packed]}))
    reply = await replies.next_msg(timeout=PATIENCE)
    return outputs(reply.headers, reply.data)


async def ask_durable(nc, js, model, tensor):
    """JSON there and back. The answer is stored under the job and the id, and can be fetched later as well."""
    owner = f"{user_of(nc.connected_url.geturl())}." if user_of(nc.connected_url.geturl()) else ""
    job = f"{owner}example-{uuid.uuid4()}"  # a user reads only the results that it owns
    body = json.dumps({"inputs": [tensor]}).encode()
    request_id = await submit(js, model, f"results:{job}", "application/json", body)
    while True:
        try:
            reply = await js.get_last_msg("RESULTS", f"results.{job}.{request_id}", direct=True)
            return outputs(reply.headers, reply.data)
        except NotFoundError:
            await asyncio.sleep(0.05)  # not yet


def fp32(name, values):
    """An input from nested lists: their lengths are its shape, the values in order its data."""
    shape = [len(values)]
    while isinstance(values[0], list):
        values = [value for row in values for value in row]
        shape.append(len(values) // math.prod(shape))
    return {"name": name, "datatype": "FP32", "shape": shape, "data": values}


def user_of(url):
    """Who logs in by name; a lone name is a token."""
    return urlsplit(url).username if urlsplit(url).password else None


async def jetstream(nc):
    """JetStream's API: the account's own, or what another account lends to it (broker-config/nats/roles.conf)."""
    info = json.loads((await nc.request("$JS.API.INFO", timeout=5)).data)
    no_streams_here = info.get("error", {}).get("err_code") == 10039
    return nc.jetstream(prefix="sluice.api") if no_streams_here else nc.jetstream()


async def run(url, model, name, rows):
    async def complain(error):
        print(f"nats: {error}", file=sys.stderr)

    # A user may listen only to inboxes under its own name: see broker-config/nats/roles.conf.
    prefix = f"_INBOX.{user_of(url)}" if user_of(url) else "_INBOX"
    nc = await asyncio.wait_for(nats.connect(url, inbox_prefix=prefix, error_cb=complain), PATIENCE)
    try:
        js = await jetstream(nc)
        for ask in (ask_live, ask_durable):
            answer = await asyncio.wait_for(ask(nc, js, model, fp32(name, json.loads(rows))), PATIENCE)
            print(json.dumps(answer))
    finally:
        await nc.close()


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    try:
        asyncio.run(run(*sys.argv[1:]))
    except NoStreamResponseError:
        sys.exit(f"there is no queue for model `{sys.argv[2]}`: no worker has served it on this broker")
    except (asyncio.TimeoutError, NatsTimeout):
        sys.exit(f"no answer within {PATIENCE} s")
    except Refused as refused:
        print(refused, file=sys.stderr)
        sys.exit(2)
