#!/usr/bin/env python3
"""Asks a model twice, with nothing but an AMQP client. docs/protocol.md explains every step.

    pip install aio-pika msgpack
    python producer_amqp.py amqp://guest:guest@127.0.0.1:5672/ MODEL INPUT_NAME '[[1,2,3,4],[5,6,7,8]]'

First MessagePack to a live inbox, then JSON to durable results. Each prints the outputs as one line of JSON.
"""
import asyncio, json, math, struct, sys, time, uuid

import aio_pika
import msgpack
from aio_pika.exceptions import ChannelNotFoundEntity, DeliveryError, PublishError

PATIENCE = 30  # seconds that an answer may take
FORMATS = {"BOOL": "?", "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q", "INT8": "b", "INT16": "h",
           "INT32": "i", "INT64": "q", "FP16": "e", "FP32": "f", "FP64": "d"}  # `struct` has none for BF16 and BYTES


class Refused(Exception):
    """The answer is an error: its code and its message."""


class UnknownModel(Exception):
    """No worker has ever served this model on this broker."""


async def submit(channel, model, reply_to, content_type, body):
    """Returns the request's id once the broker has stored the request."""
    request_id = str(uuid.uuid4())
    message = aio_pika.Message(
        body, content_type=content_type, message_id=request_id, delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        headers={
            "ce-id": request_id, "ce-source": "/examples/producer", "ce-specversion": "1.0",
            "ce-type": "sluice.inference.request", "sluice-reply-to": reply_to,
            "sluice-deadline": str(int((time.time() + PATIENCE) * 1000)),
        })
    exchange = await channel.get_exchange("sluice.infer")
    while True:
        try:
            # Mandatory: what no queue takes comes back, although the broker confirms it.
            await exchange.publish(message, f"infer.{model}.normal", mandatory=True, timeout=5)
            return request_id
        except PublishError:
            raise UnknownModel from None
        except DeliveryError:
            await asyncio.sleep(0.25)  # The queue is full: it takes more when something was answered.


def outputs(message):
    """Reads a reply; one without a content type is MessagePack."""
    is_json = message.content_type == "application/json"
    reply = json.loads(message.body) if is_json else msgpack.unpackb(message.body)
    if "sluice-error" in message.headers:
        raise Refused(f"{message.headers['sluice-error']}: {reply['error']}")
    for output in reply["outputs"]:
        if isinstance(output["data"], bytes):
            values = struct.iter_unpack("<" + FORMATS[output["datatype"]], output["data"])
            output["data"] = [value for (value,) in values]
    return reply["outputs"]


async def ask_live(connection, model, tensor):
    """MessagePack there and back. The inbox is listened to before the request is sent."""
    channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
    inbox = f"inbox.{connection.url.user}.{uuid.uuid4()}"  # with production's permissions, one's own begin so
    queue = await channel.declare_queue(exclusive=True)
    await queue.bind("sluice.inbox", inbox)
    async with queue.iterator(no_ack=True) as replies:
        packed = {**tensor, "data": struct.pack(f"<{len(tensor['data'])}f", *tensor["data"])}
        await submit(channel, model, f"inbox:{inbox}", "application/msgpack", msgpack.packb({"inputs": [packed]}))
        return outputs(await anext(replies))


async def results_of(connection, job):
    """The job's stream, once the first worker that answers has made it."""
    while True:
        channel = await connection.channel()  # one of its own: asking for what is not there closes it
        await channel.set_qos(prefetch_count=100)  # a stream wants one
        try:
            return await channel.get_queue(f"results.{job}")
        except ChannelNotFoundEntity:
            await asyncio.sleep(0.25)


async def ask_durable(connection, model, tensor):
    """JSON there and back. The answer is stored in the job's stream, and can be read later as well."""
    channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
    job = f"{connection.url.user}.example-{uuid.uuid4()}"
    body = json.dumps({"inputs": [tensor]}).encode()
    request_id = await submit(channel, model, f"results:{job}", "application/json", body)
    results = await results_of(connection, job)
    async with results.iterator(arguments={"x-stream-offset": "first"}) as replies:
        async for reply in replies:
            await reply.ack()  # asks for more; a stream forgets nothing by this
            if reply.headers["ce-id"] == request_id:
                return outputs(reply)


def fp32(name, values):
    """An input from nested lists: their lengths are its shape, the values in order its data."""
    shape = [len(values)]
    while isinstance(values[0], list):
        values = [value for row in values for value in row]
        shape.append(len(values) // math.prod(shape))
    return {"name": name, "datatype": "FP32", "shape": shape, "data": values}


async def run(url, model, name, rows):
    connection = await aio_pika.connect(url, timeout=PATIENCE)
    async with connection:
        for ask in (ask_live, ask_durable):
            answer = await asyncio.wait_for(ask(connection, model, fp32(name, json.loads(rows))), PATIENCE)
            print(json.dumps(answer))


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    try:
        asyncio.run(run(*sys.argv[1:]))
    except UnknownModel:
        sys.exit(f"there is no queue for model `{sys.argv[2]}`: no worker has served it on this broker")
    except asyncio.TimeoutError:
        sys.exit(f"no answer within {PATIENCE} s")
    except Refused as refused:
        print(refused, file=sys.stderr)
        sys.exit(2)
