"""Eclipse Paho against a broker: `paho_client.py PORT 3|5`. Exits with 0 if everything was as it should be."""

import queue
import sys
import time

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

PATIENCE_S = 30
PORT, V5 = int(sys.argv[1]), sys.argv[2] == "5"


class Client:
    """A client whose network runs in a thread of its own; what comes is put into queues."""

    def __init__(self, name, persistent=False, will=None):
        version = mqtt.MQTTv5 if V5 else mqtt.MQTTv311
        arguments = {} if V5 else {"clean_session": not persistent}
        self.client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, name, protocol=version, **arguments)
        self.connected, self.messages, self.granted, self.gone = (queue.Queue() for _ in range(4))
        self.client.on_connect = lambda c, u, flags, reason, p: self.connected.put((flags, reason, p))
        self.client.on_message = lambda c, u, message: self.messages.put(message)
        self.client.on_subscribe = lambda c, u, mid, reasons, p: self.granted.put([r.value for r in reasons])
        self.client.on_disconnect = lambda c, u, flags, reason, p: self.gone.put(reason)
        if will:
            properties = None
            if V5:
                properties = Properties(PacketTypes.WILLMESSAGE)
                properties.UserProperty = ("of", name)
            self.client.will_set(*will, properties=properties)
        options = {}
        if V5:
            options["clean_start"] = not persistent
            if persistent:
                options["properties"] = Properties(PacketTypes.CONNECT)
                options["properties"].SessionExpiryInterval = 3600
        self.client.connect("127.0.0.1", PORT, 30, **options)
        self.client.loop_start()
        flags, reason, self.properties = self.connected.get(timeout=PATIENCE_S)
        assert reason == 0, reason
        self.present = flags.session_present

    def subscribe(self, *filters):
        if V5:
            self.client.subscribe([(f, SubscribeOptions(qos=q)) for f, q in filters])
        else:
            self.client.subscribe(list(filters))
        granted = self.granted.get(timeout=PATIENCE_S)
        assert granted == [q for _, q in filters], granted

    def publish(self, topic, payload, qos, retain=False, properties=None):
        info = self.client.publish(topic, payload, qos, retain, properties)
        info.wait_for_publish(PATIENCE_S)
        assert info.is_published()

    def next(self):
        return self.messages.get(timeout=PATIENCE_S)

    def close(self):
        self.client.disconnect()
        self.client.loop_stop()

    def vanish(self):
        """Without DISCONNECT."""
        self.client._sock.close()
        self.client.loop_stop()


def all_qos(name):
    receiver, sender = Client(f"{name}-in"), Client(f"{name}-out")
    receiver.subscribe((f"{name}/0", 0), (f"{name}/1", 1), (f"{name}/2", 2))
    for n in range(30):
        for qos in range(3):
            sender.publish(f"{name}/{qos}", str(n), qos)
    seen = {}
    for _ in range(90):
        message = receiver.next()
        assert message.topic == f"{name}/{message.qos}"
        seen.setdefault(message.qos, []).append(int(message.payload))
    assert all(seen[qos] == list(range(30)) for qos in range(3)), seen
    receiver.close()
    sender.close()


def retained(name):
    sender = Client(f"{name}-out")
    sender.publish(f"{name}/a", "old", 1, True)
    sender.publish(f"{name}/a", "new", 2, True)
    sender.publish(f"{name}/b", "gone", 1, True)
    sender.publish(f"{name}/b", "", 1, True)
    receiver = Client(f"{name}-in")
    receiver.subscribe((f"{name}/#", 2))
    message = receiver.next()
    assert (message.topic, message.payload, message.retain) == (f"{name}/a", b"new", True)
    sender.publish(f"{name}/a", "live", 1)
    message = receiver.next()
    assert (message.payload, message.retain) == (b"live", False)
    sender.publish(f"{name}/a", "", 1, True)
    receiver.close()
    sender.close()


def offline(name):
    receiver = Client(f"{name}-in", persistent=True)
    assert not receiver.present
    receiver.subscribe((f"{name}/#", 2))
    receiver.close()
    sender = Client(f"{name}-out")
    for n in range(200):
        sender.publish(f"{name}/{n % 3}", str(n), 1 + n % 2)
    sender.close()
    receiver = Client(f"{name}-in", persistent=True)
    assert receiver.present
    seen = [receiver.next() for _ in range(200)]
    for qos in (1, 2):
        assert [int(m.payload) for m in seen if m.qos == qos] == [n for n in range(200) if 1 + n % 2 == qos]
    receiver.close()


def wills(name):
    watcher = Client(f"{name}-watch")
    watcher.subscribe((f"{name}/#", 1))
    Client(f"{name}-clean", will=(f"{name}/clean", "no", 1)).close()
    Client(f"{name}-lost", will=(f"{name}/lost", "yes", 1)).vanish()
    message = watcher.next()
    assert (message.topic, message.payload) == (f"{name}/lost", b"yes"), message.topic
    if V5:
        assert message.properties.UserProperty == [("of", f"{name}-lost")]
    watcher.close()


def shared(name):
    members = [Client(f"{name}-{n}") for n in range(3)]
    for member in members:
        member.subscribe((f"$share/group/{name}/t", 1))
    sender = Client(f"{name}-out")
    for n in range(90):
        sender.publish(f"{name}/t", str(n), 1)
    deadline = time.monotonic() + PATIENCE_S
    while sum(m.messages.qsize() for m in members) < 90 and time.monotonic() < deadline:
        time.sleep(0.005)
    seen = [[int(m.messages.get().payload) for _ in range(m.messages.qsize())] for m in members]
    assert sorted(sum(seen, [])) == list(range(90)), seen
    assert all(seen), seen
    for client in [*members, sender]:
        client.close()


def large(name):
    receiver, sender = Client(f"{name}-in"), Client(f"{name}-out")
    receiver.subscribe((f"{name}/t", 1))
    # The default limits.max_packet_size, less what surrounds the payload.
    payload = bytes(range(256)) * 4096
    payload = payload[: 1024 * 1024 - 64]
    sender.publish(f"{name}/t", payload, 1)
    assert receiver.next().payload == payload
    receiver.close()
    sender.close()


def properties(name):
    receiver, sender = Client(f"{name}-in"), Client(f"{name}-out")
    options = Properties(PacketTypes.SUBSCRIBE)
    options.SubscriptionIdentifier = 77
    receiver.client.subscribe(f"{name}/t", options=SubscribeOptions(qos=2), properties=options)
    receiver.granted.get(timeout=PATIENCE_S)
    sent = Properties(PacketTypes.PUBLISH)
    sent.PayloadFormatIndicator = 1
    sent.ContentType = "text/plain"
    sent.ResponseTopic = "answer/here"
    sent.CorrelationData = b"\x00\xff"
    sent.MessageExpiryInterval = 300
    sent.UserProperty = [("a", "1"), ("b", "2"), ("a", "3")]
    for qos in range(3):
        sender.publish(f"{name}/t", "x", qos, properties=sent)
        got = receiver.next().properties
        assert (got.PayloadFormatIndicator, got.ContentType) == (1, "text/plain")
        assert (got.ResponseTopic, got.CorrelationData) == ("answer/here", b"\x00\xff")
        assert got.UserProperty == [("a", "1"), ("b", "2"), ("a", "3")]
        assert got.SubscriptionIdentifier == [77]
        assert 290 <= got.MessageExpiryInterval <= 300
    assert receiver.properties.ReceiveMaximum > 0
    receiver.close()
    sender.close()


for scenario in [all_qos, retained, offline, wills, shared, large] + ([properties] if V5 else []):
    scenario(f"paho-{sys.argv[2]}-{scenario.__name__}")
    print(scenario.__name__, "ok", flush=True)
