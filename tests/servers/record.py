"""Records telemetry with paho-mqtt, a client that nobody here wrote, and judges it.

Prints `ready {json}` when its subscription is acknowledged. Commands on standard input, one line of JSON for each:

    report    everything below, since the start or the last `reset`
    count     the numbers of messages and samples only
    reset     forgets what was recorded

Against a plant of plant_common.py in `count` mode (`--counting`) every value names the read that it came from; the report
then says per point and in total how many reads are missing between the first and the last that arrived, how many came
twice, and how many came after a later one. Live and replayed (`historical`) samples are also looked at apart, because a
session may deliver live data first.

SIGUSR1 prints the report as well. The recorder ends when standard input closes.
"""

import argparse
import json
import signal
import sys
import threading
import time
from collections import Counter, defaultdict
from datetime import datetime

import paho.mqtt.client as mqtt
from plant_common import offset, say

EXAMPLES = 10


class Point:
    """What arrived of one point: the reads by number, in the order of arrival."""

    __slots__ = ("live", "reads", "replayed")

    def __init__(self):
        self.reads = []
        self.live = Order()
        self.replayed = Order()


class Order:
    """Counts what came after something later."""

    __slots__ = ("highest", "late")

    def __init__(self):
        self.highest = None
        self.late = 0

    def see(self, n):
        if self.highest is not None and n < self.highest:
            self.late += 1
        else:
            self.highest = n


class Record:
    def __init__(self, counting, out):
        self.lock = threading.Lock()
        self.counting = counting
        self.out = out
        self.reset()

    def reset(self):
        self.started = time.time()
        self.messages = 0
        self.samples = 0
        self.historical = 0
        self.broken = 0
        self.quality = Counter()
        self.reasons = Counter()
        self.sequences = Counter()
        self.points = defaultdict(Point)
        self.latency = []

    def message(self, payload, topic):
        now = time.time()
        try:
            body = json.loads(payload)
            points = body.get("points", [])
        except (ValueError, AttributeError):
            with self.lock:
                self.broken += 1
            return
        with self.lock:
            if self.out:
                self.out.write(json.dumps({"at": round(now, 6), "topic": topic, "body": body}) + "\n")
            historical = body.get("historical", False)
            self.messages += 1
            self.samples += len(points)
            self.historical += len(points) if historical else 0
            if "seq" in body:
                self.sequences[int(body["seq"])] += 1
            if not historical and "time" in body:
                self.latency.append(now - datetime.fromisoformat(body["time"]).timestamp())
            device = body.get("device", "")
            for point in points:
                self.sample(device, point, historical)

    def sample(self, device, point, historical):
        quality = point.get("quality", "")
        self.quality[quality] += 1
        if point.get("reason"):
            self.reasons[point["reason"]] += 1
        if not self.counting or quality != "GOOD":
            return
        name = point["name"]
        seen = self.points[device, name]
        step = int(point["value"]) - offset(int(device.rsplit("-", 1)[1]), int(name[1:]))
        # n modulo 65536; the whole number is the one nearest to what was last seen.
        last = seen.reads[-1] if seen.reads else 0
        n = last + (step - last + 32768) % 65536 - 32768 if seen.reads else step % 65536
        seen.reads.append(n)
        (seen.replayed if historical else seen.live).see(n)

    def counts(self):
        with self.lock:
            return {"messages": self.messages, "samples": self.samples, "historical": self.historical}

    def report(self):
        with self.lock:
            if self.out:
                self.out.flush()
            latency = sorted(self.latency)
            at = lambda share: round(latency[min(len(latency) - 1, int(share * len(latency)))], 6) if latency else None
            report = {
                "elapsed": round(time.time() - self.started, 3),
                "messages": self.messages,
                "samples": self.samples,
                "historical": self.historical,
                "broken": self.broken,
                "quality": dict(self.quality),
                "reasons": dict(self.reasons),
                "repeated_seq": sum(times - 1 for times in self.sequences.values()),
                # From the batch's own time to its arrival: only meaningful on one machine.
                "latency": {"p50": at(0.5), "p99": at(0.99), "max": at(1.0)},
            }
            if self.counting:
                report.update(self.judge())
            return report

    def judge(self):
        total, examples, spans = Counter(), [], {}
        for (device, name), point in sorted(self.points.items()):
            reads = set(point.reads)
            late = Order()
            for n in point.reads:
                late.see(n)
            found = {
                "missing": max(reads) - min(reads) + 1 - len(reads),
                "duplicate": len(point.reads) - len(reads),
                "out_of_order": late.late,
                "out_of_order_live": point.live.late,
                "out_of_order_replayed": point.replayed.late,
            }
            total.update(found)
            total["reads"] += len(reads)
            first, last = spans.get(device, (min(reads), max(reads)))
            spans[device] = (min(first, min(reads)), max(last, max(reads)))
            if any(found.values()) and len(examples) < EXAMPLES:
                gaps = [n for n in range(min(reads), max(reads)) if n not in reads][:EXAMPLES]
                examples.append({"device": device, "point": name, "first_missing": gaps, **found})
        return {
            "points": len(self.points),
            "judged": dict(total),
            "examples": examples,
            "spans": {device: {"first": first, "last": last} for device, (first, last) in sorted(spans.items())},
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=1883)
    parser.add_argument("--topic", default="fieldgate/v1/+/devices/+/telemetry")
    parser.add_argument("--qos", type=int, choices=[0, 1], default=1)
    parser.add_argument("--protocol", choices=["3.1.1", "5"], default="3.1.1")
    parser.add_argument("--client-id", default="")
    parser.add_argument("--persistent", action="store_true", help="keep the session over reconnects; needs --client-id")
    parser.add_argument("--user")
    parser.add_argument("--password")
    parser.add_argument("--counting", action="store_true", help="the values come from a plant in count mode")
    parser.add_argument("--out", help="file for every message as a line of JSON")
    args = parser.parse_args()

    record = Record(args.counting, open(args.out, "w") if args.out else None)
    subscribed = threading.Event()
    protocol = mqtt.MQTTv5 if args.protocol == "5" else mqtt.MQTTv311
    options = {} if args.protocol == "5" else {"clean_session": not args.persistent}
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, args.client_id, protocol=protocol, **options)
    if args.user:
        client.username_pw_set(args.user, args.password)

    def on_connect(client, _userdata, _flags, reason, _properties):
        if reason.is_failure:
            say({"error": f"the broker refused: {reason}"})
        else:
            client.subscribe(args.topic, args.qos)

    def on_subscribe(_client, _userdata, _mid, reasons, _properties):
        if any(reason.is_failure for reason in reasons):
            say({"error": f"the broker refused the subscription: {reasons}"})
        else:
            subscribed.set()

    client.on_connect = on_connect
    client.on_subscribe = on_subscribe
    client.on_message = lambda _client, _userdata, message: record.message(message.payload, message.topic)
    client.reconnect_delay_set(1, 1)
    start = {}
    if args.protocol == "5":
        properties = mqtt.Properties(mqtt.PacketTypes.CONNECT)
        properties.SessionExpiryInterval = 3600 if args.persistent else 0
        start = {"clean_start": not args.persistent, "properties": properties}
    client.connect(args.host, args.port, keepalive=20, **start)
    client.loop_start()
    if not subscribed.wait(15):
        say({"error": "no subscription within 15 s"})
        sys.exit(1)
    signal.signal(signal.SIGUSR1, lambda *_: say(record.report()))
    print("ready {}", flush=True)
    for line in sys.stdin:
        match line.strip():
            case "report":
                say(record.report())
            case "count":
                say(record.counts())
            case "reset":
                with record.lock:
                    record.reset()
                say({"ok": True})
            case other:
                say({"error": f"commands are report, count and reset, not {other!r}"})
    client.disconnect()
    client.loop_stop()


main()
