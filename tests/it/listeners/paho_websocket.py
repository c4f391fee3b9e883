"""Eclipse Paho over WebSocket: `paho_websocket.py PORT 3|5 CA`; with a CA file over TLS. Exits with 0 if everything was as it should be."""

import queue
import sys

import paho.mqtt.client as mqtt

PATIENCE_S = 30
PORT, V5, CA = int(sys.argv[1]), sys.argv[2] == "5", sys.argv[3]


def client(name):
    version = mqtt.MQTTv5 if V5 else mqtt.MQTTv311
    made = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, name, protocol=version, transport="websockets")
    made.ws_set_options(path="/mqtt")
    if CA:
        made.tls_set(ca_certs=CA)
    made.connected, made.granted, made.messages, made.gone = (queue.Queue() for _ in range(4))
    made.on_connect = lambda c, u, flags, reason, p: c.connected.put(reason)
    made.on_subscribe = lambda c, u, mid, reasons, p: c.granted.put([r.value for r in reasons])
    made.on_message = lambda c, u, message: c.messages.put(message)
    made.on_disconnect = lambda c, u, flags, reason, p: c.gone.put(reason)
    made.connect("localhost", PORT, 30)
    made.loop_start()
    reason = made.connected.get(timeout=PATIENCE_S)
    assert reason == 0, reason
    return made


sub, pub = client("sub"), client("pub")
sub.subscribe([("t/+", 2)])
assert sub.granted.get(timeout=PATIENCE_S) == [2]
for length in (0, 10, 200, 70_000, 500_000):
    for qos in (0, 1, 2):
        payload = bytes(n % 251 for n in range(length))
        info = pub.publish(f"t/{qos}", payload, qos)
        info.wait_for_publish(PATIENCE_S)
        message = sub.messages.get(timeout=PATIENCE_S)
        assert (message.topic, message.payload, message.qos) == (f"t/{qos}", payload, qos), (message.topic, length)
    print(f"{length} bytes")
for one in (sub, pub):
    one.disconnect()
    one.gone.get(timeout=PATIENCE_S)
    one.loop_stop()
print("done")
