"""What zigbee2mqtt and Home Assistant do with retained messages, by Eclipse Paho: `field_client.py 3|5 PORT[,PORT…] [SCENARIO…]`.

Who publishes, who listens and who comes later are on different nodes if there are several ports. Every set of messages is compared
as a whole. Exits with 0 if everything was as it should be.
"""

import json
import queue
import sys
import time

import paho.mqtt.client as mqtt

PATIENCE_S = 60
V5 = sys.argv[1] == "5"
PORTS = [int(port) for port in sys.argv[2].split(",")]
ENTITIES = 500
# The default of retained.max_payload.
PAYLOAD_MAX = 1 << 20
QUOTA_EXCEEDED = 0x97
# Retained; who looks subscribes to it last.
END = "field/end"


class Client:
    """A client of node `node`, whose network runs in a thread of its own; what comes is put into queues."""

    def __init__(self, name, node, will=None):
        version = mqtt.MQTTv5 if V5 else mqtt.MQTTv311
        self.client = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2, f"{name}-{sys.argv[1]}", protocol=version, reconnect_on_failure=False
        )
        self.connected, self.messages, self.granted, self.gone, self.answers = (queue.Queue() for _ in range(5))
        self.client.on_connect = lambda c, u, flags, reason, p: self.connected.put(reason)
        self.client.on_message = lambda c, u, message: self.messages.put(message)
        self.client.on_subscribe = lambda c, u, mid, reasons, p: self.granted.put([r.value for r in reasons])
        self.client.on_publish = lambda c, u, mid, reason, p: self.answers.put((reason.value, p))
        self.client.on_disconnect = lambda c, u, flags, reason, p: self.gone.put(reason)
        if will:
            self.client.will_set(*will, retain=True)
        self.client.connect("127.0.0.1", PORTS[node % len(PORTS)], 60)
        self.client.loop_start()
        reason = self.connected.get(timeout=PATIENCE_S)
        assert reason == 0, reason

    def subscribe(self, topic_filter, qos=1):
        self.client.subscribe(topic_filter, qos)
        assert self.granted.get(timeout=PATIENCE_S) == [qos]

    def retain(self, messages, qos):
        """Publishes all with RETAIN; waits until they are sent, or acknowledged."""
        sent = [self.client.publish(topic, payload, qos, True) for topic, payload in messages.items()]
        for info in sent:
            info.wait_for_publish(PATIENCE_S)
            assert info.is_published()
        for _ in sent:
            reason, _ = self.answers.get(timeout=PATIENCE_S)
            assert reason < 0x80, reason

    def next(self):
        return self.messages.get(timeout=PATIENCE_S)

    def expect(self, messages):
        """So many messages come, these, none of them as retained ones."""
        seen = [self.next() for _ in messages]
        assert not any(message.retain for message in seen)
        same({message.topic: message.payload for message in seen}, messages)

    def close(self):
        self.client.disconnect()
        self.client.loop_stop()

    def vanish(self):
        """Without DISCONNECT."""
        self.client._sock.close()
        self.client.loop_stop()


def encoded(messages):
    return {t: p if isinstance(p, bytes) else p.encode() for t, p in messages.items() if p}


def same(seen, wanted):
    """Compares contents; shows topics only, payloads may be long."""
    differ = [t for t in sorted({*seen, *wanted}) if seen.get(t) != wanted.get(t)]
    sizes = [(t, len(seen.get(t, b"")), len(wanted.get(t, b""))) for t in differ[:5]]
    assert not differ, f"{len(differ)} topics differ, such as (topic, size, wanted) {sizes}"


def look(node, topic_filter):
    """What a new subscription on a node is sent: all of it."""
    client, found = Client(f"looks-{node}", node), {}
    client.subscribe(topic_filter)
    client.subscribe(END)
    while (message := client.next()).topic != END:
        assert message.retain and message.topic not in found, message.topic
        found[message.topic] = message.payload
    client.close()
    return found


def becomes(topic_filter, wanted):
    """On every node a new subscription is sent this. At QoS 0 nobody says when other nodes have it."""
    wanted, deadline = encoded(wanted), time.monotonic() + PATIENCE_S
    for node in range(len(PORTS)):
        while (found := look(node, topic_filter)) != wanted and time.monotonic() < deadline:
            time.sleep(0.02)
        same(found, wanted)


def entity(number, revision):
    """The topic and the configuration of one entity, about 1 kB."""
    component = ["sensor", "binary_sensor", "light", "switch"][number % 4]
    device = f"0x{number // 4:016x}"
    config = {
        "availability": [{"topic": "zigbee2mqtt/bridge/state", "value_template": "{{ value_json.state }}"}],
        "availability_mode": "all",
        "device": {
            "configuration_url": f"http://zigbee2mqtt.local:8080/#/device/{device}/info",
            "identifiers": [f"zigbee2mqtt_{device}"],
            "manufacturer": "IKEA of Sweden",
            "model": "TRÅDFRI bulb E27, white spectrum, globe, opal, 1055 lm (LED2003G10)",
            "name": f"Lampe {number}",
            "sw_version": f"1.0.{revision}",
            "via_device": "zigbee2mqtt_bridge_0x00124b0024c2b2b1",
        },
        "entity_category": "diagnostic",
        "json_attributes_topic": f"zigbee2mqtt/Lampe {number}",
        "object_id": f"lampe_{number}_{component}",
        "origin": {"name": "Zigbee2MQTT", "sw": "2.1.1", "url": "https://www.zigbee2mqtt.io"},
        "state_topic": f"zigbee2mqtt/Lampe {number}",
        "unique_id": f"{device}_{component}_zigbee2mqtt",
        "value_template": "{{ value_json.linkquality }}",
    }
    text = json.dumps(config, ensure_ascii=False)
    return f"homeassistant/{component}/{device}/{component}_{number}/config", text.ljust(1000)


def discovery(qos):
    """500 entities are announced, some change, some go. One listens from the beginning, others come later."""
    hears, says = Client("hears", 1), Client("says", 0)
    hears.subscribe("homeassistant/#")
    all_of_them = dict(entity(number, 0) for number in range(ENTITIES))
    assert len(all_of_them) == ENTITIES
    says.retain(all_of_them, qos)
    hears.expect(encoded(all_of_them))
    becomes("homeassistant/#", all_of_them)
    changed = dict(entity(number, 1) for number in range(0, ENTITIES, 5))
    removed = {topic: "" for topic in list(all_of_them)[1::10]}
    says.retain({**changed, **removed}, qos)
    hears.expect({**encoded(changed), **{topic: b"" for topic in removed}})
    becomes("homeassistant/#", {**all_of_them, **changed, **removed})
    says.retain({topic: "" for topic in all_of_them}, qos)
    hears.expect({topic: b"" for topic in all_of_them})
    becomes("homeassistant/#", {})
    assert hears.messages.empty()
    hears.close()
    says.close()


def devices(qos):
    """All devices in one message of 600 kB; a later one takes its place."""
    topic = "zigbee2mqtt/bridge/devices"

    def listed(revision):
        device = [{"ieee_address": f"0x{n:016x}", "definition": {"exposes": ["°C"] * 100}, "revision": revision} for n in range(600)]
        return json.dumps(device, ensure_ascii=False).ljust(600_000)

    hears, says = Client("hears", 1), Client("says", 0)
    hears.subscribe(topic)
    for revision in range(3):
        message = {topic: listed(revision)}
        assert 600_000 <= len(message[topic].encode()) <= PAYLOAD_MAX
        says.retain(message, qos)
        hears.expect(encoded(message))
        becomes("zigbee2mqtt/#", message)
    says.retain({topic: ""}, qos)
    hears.expect({topic: b""})
    becomes("zigbee2mqtt/#", {})
    hears.close()
    says.close()


def availability(qos):
    """Birth and will: whoever comes later knows whether the bridge lives."""
    topic = "zigbee2mqtt/bridge/state"
    online, offline = '{"state":"online"}', '{"state":"offline"}'
    hears = Client("hears", 1)
    hears.subscribe(topic)
    for _ in range(2):
        bridge = Client("bridge", 0, will=(topic, offline, qos))
        bridge.retain({topic: online}, qos)
        hears.expect({topic: online.encode()})
        becomes("zigbee2mqtt/#", {topic: online})
        bridge.vanish()
        hears.expect({topic: offline.encode()})
        becomes("zigbee2mqtt/#", {topic: offline})
    # Whoever says goodbye leaves no will.
    bridge = Client("bridge", 0, will=(topic, offline, qos))
    bridge.retain({topic: online}, qos)
    hears.expect({topic: online.encode()})
    bridge.close()
    says = Client("says", 0)
    becomes("zigbee2mqtt/#", {topic: online})
    says.retain({topic: ""}, qos)
    hears.expect({topic: b""})
    becomes("zigbee2mqtt/#", {})
    assert hears.messages.empty()
    hears.close()
    says.close()


def too_large(qos):
    """What is accepted and cannot be retained clears, what is refused leaves what was there."""
    topic = "zigbee2mqtt/bridge/logging"
    hears, says = Client("hears", 1), Client("says", 0)
    hears.subscribe(topic)
    says.retain({topic: "old"}, 1)
    hears.expect({topic: b"old"})
    becomes("zigbee2mqtt/#", {topic: "old"})
    large = b"x" * (PAYLOAD_MAX + 1)
    says.client.publish(topic, large, qos, True)
    if qos == 0:
        hears.expect({topic: large})
        becomes("zigbee2mqtt/#", {})
    elif V5:
        reason, properties = says.answers.get(timeout=PATIENCE_S)
        assert reason == QUOTA_EXCEEDED, reason
        said = properties.ReasonString
        assert "retained.max_payload" in said and str(PAYLOAD_MAX) in said and str(PAYLOAD_MAX + 1) in said, said
        becomes("zigbee2mqtt/#", {topic: "old"})
    else:
        says.gone.get(timeout=PATIENCE_S)
        assert says.answers.empty()
        becomes("zigbee2mqtt/#", {topic: "old"})
    says.close()
    clears = Client("clears", 2)
    clears.retain({topic: ""}, 1)
    hears.expect({topic: b""})
    becomes("zigbee2mqtt/#", {})
    assert hears.messages.empty()
    hears.close()
    clears.close()


first = Client("first", 0)
first.retain({END: "end"}, 1)
first.close()
for scenario in [discovery, devices, availability, too_large]:
    if len(sys.argv) > 3 and scenario.__name__ not in sys.argv[3:]:
        continue
    for quality in range(2):
        scenario(quality)
        print(scenario.__name__, quality, "ok", flush=True)
