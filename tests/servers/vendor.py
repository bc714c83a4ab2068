"""A vendor's device that takes firmware as chunks over MQTT, with paho-mqtt: a client that nobody here wrote.

Prints `ready {}` once it listens. Commands on standard input, one line of JSON for each:

    version    the version that runs, and how many chunks arrived

`--lose N` drops every Nth message; `--bad` finds every new image bad and stays with the old one.
"""

import argparse
import hashlib
import json
import sys
import threading

import paho.mqtt.client as mqtt


class Device:
    def __init__(self, arguments, client):
        self.base = arguments.topic + "/firmware/"
        self.lose, self.bad, self.client = arguments.lose, arguments.bad, client
        self.version, self.job, self.state, self.reason = "1.0.0", "", "idle", ""
        self.image, self.wanted = b"", {}
        self.seen = self.chunks = 0
        self.lock = threading.Lock()

    def on_message(self, _client, _data, message):
        with self.lock:
            self.seen += 1
            if self.lose and self.seen % self.lose == 0:
                return
            self.take(message.topic[len(self.base):], message.payload)
            ack = {
                "job": self.job,
                "state": self.state,
                "offset": len(self.image),
                "version": self.version,
                "reason": self.reason,
            }
        self.client.publish(self.base + "ack", json.dumps(ack), qos=1)

    def take(self, what, payload):
        if what == "begin":
            wanted = json.loads(payload)
            if wanted != self.wanted:
                self.wanted, self.image = wanted, b""
            self.job, self.state, self.reason = wanted["job"], "receiving", ""
        elif what.startswith("chunk/") and self.state == "receiving":
            self.chunks += 1
            if int(what[len("chunk/"):]) == len(self.image):
                self.image += payload
        elif what == "activate":
            self.activate()

    def activate(self):
        right = hashlib.sha256(self.image).hexdigest() == self.wanted.get("sha256")
        if self.state == "receiving" and right and not self.bad:
            self.version, self.state = self.wanted["version"], "idle"
        elif self.version != self.wanted.get("version"):
            self.state, self.reason = "failed", "the image is bad"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--lose", type=int, default=0)
    parser.add_argument("--bad", action="store_true")
    arguments = parser.parse_args()
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="vendor")
    device = Device(arguments, client)
    topics = [(device.base + name, 1) for name in ("begin", "chunk/+", "activate", "rollback", "query")]
    client.on_message = device.on_message
    client.on_connect = lambda *_: client.subscribe(topics)
    client.on_subscribe = lambda *_: print("ready {}", flush=True)
    client.reconnect_delay_set(min_delay=1, max_delay=1)
    client.connect("127.0.0.1", arguments.port)
    client.loop_start()
    for line in sys.stdin:
        if line.strip() == "version":
            with device.lock:
                print(json.dumps({"version": device.version, "chunks": device.chunks}), flush=True)


if __name__ == "__main__":
    main()
