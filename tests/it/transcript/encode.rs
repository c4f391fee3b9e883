//! What a client says, from words to bytes.

use super::words::{Value, bytes, hex, number, reason};
use berth::mqtt::client::{self, AckKind, Connect, Publish, Will};
use berth::mqtt::packet::{RetainHandling, SubscribeOptions};
use berth::mqtt::{QoS, Reason, Version};

/// The words of one packet, taken apart. What is not taken is an error.
struct Args<'a> {
    plain: Vec<&'a str>,
    named: Vec<(&'a str, &'a str)>,
}

/// The version that the words of a CONNECT name.
pub fn version(words: &[String]) -> Option<Version> {
    words.iter().find_map(|w| match w.as_str() {
        "v3.1" => Some(Version::V31),
        "v3.1.1" => Some(Version::V311),
        "v5" => Some(Version::V5),
        _ => None,
    })
}

/// The bytes of a packet, given as words.
pub fn packet(version: Version, words: &[String]) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    let Some((kind, rest)) = words.split_first() else { return Err("no packet".to_owned()) };
    let mut args = Args::new(rest);
    match kind.as_str() {
        "HEX" => {
            for digits in args.plain.drain(..).filter(|w| !w.starts_with('v')) {
                out.extend(hex(digits)?);
            }
        }
        "CONNECT" => connect(&mut out, version, &mut args)?,
        "PUBLISH" => publish(&mut out, version, &mut args)?,
        "PUBACK" => ack(&mut out, version, AckKind::PubAck, &mut args)?,
        "PUBREC" => ack(&mut out, version, AckKind::PubRec, &mut args)?,
        "PUBREL" => ack(&mut out, version, AckKind::PubRel, &mut args)?,
        "PUBCOMP" => ack(&mut out, version, AckKind::PubComp, &mut args)?,
        "SUBSCRIBE" => subscribe(&mut out, version, &mut args)?,
        "UNSUBSCRIBE" => {
            let id = args.number("id", 1)?;
            let properties = args.properties("")?;
            let filters: Vec<&str> = args.plain.drain(..).collect();
            client::unsubscribe(&mut out, version, id, &properties, &filters);
        }
        "PINGREQ" => client::pingreq(&mut out),
        "DISCONNECT" => {
            let code = args.reason()?;
            let expiry = args.take("expiry").map(number).transpose()?;
            if version.is_v5() {
                client::disconnect(&mut out, code, None, None, expiry);
            } else {
                client::disconnect_plain(&mut out);
            }
        }
        "AUTH" => {
            let code = args.reason()?;
            let method = args.take("auth_method").unwrap_or("");
            let data = args.take("auth_data").map(|text| text.as_bytes());
            client::auth(&mut out, code, method, data, None);
        }
        other => return Err(format!("unknown packet {other}")),
    }
    args.finish()?;
    Ok(out)
}

fn connect(out: &mut Vec<u8>, version: Version, args: &mut Args<'_>) -> Result<(), String> {
    args.plain.retain(|w| !w.starts_with('v'));
    let clean_start = args.number::<u8>("clean", 1)? != 0;
    let keep_alive_s = args.number("keepalive", 0)?;
    let bridge = args.number::<u8>("bridge", 0)? != 0;
    let client_id = args.take("id").unwrap_or("");
    let username = args.take("username");
    let password = args.take("password").map(bytes).transpose()?;
    let will_at = args.take("will").map(|w| w.split_once(':').unwrap_or((w, "")));
    let qos = qos(args.number("will_qos", 0)?)?;
    let retain = args.number::<u8>("will_retain", 0)? != 0;
    let will_properties = args.properties("will_")?;
    let properties = args.properties("")?;
    let payload = will_at.map(|(_, p)| bytes(p)).transpose()?.unwrap_or_default();
    let will = will_at.map(|(topic, _)| Will {
        topic,
        payload: &payload,
        qos,
        retain,
        properties: &will_properties,
    });
    client::connect(
        out,
        &Connect {
            version,
            bridge,
            clean_start,
            keep_alive_s,
            properties: &properties,
            client_id,
            will,
            username,
            password: password.as_deref(),
        },
    );
    Ok(())
}

fn publish(out: &mut Vec<u8>, version: Version, args: &mut Args<'_>) -> Result<(), String> {
    let payload = bytes(args.take("payload").unwrap_or(""))?;
    let p = Publish {
        topic: args.take("t").unwrap_or(""),
        payload: &payload,
        qos: qos(args.number("qos", 0)?)?,
        retain: args.flag("retain"),
        dup: args.flag("dup"),
        packet_id: args.number("id", 0)?,
        properties: &args.properties("")?,
    };
    client::publish(out, version, &p);
    Ok(())
}

fn ack(out: &mut Vec<u8>, version: Version, kind: AckKind, args: &mut Args<'_>) -> Result<(), String> {
    let id = args.number("id", 0)?;
    let code = args.reason()?;
    client::ack(out, version, kind, id, code, None);
    Ok(())
}

/// `a/b:1,nl,rap,rh=2`: a filter, its QoS and its other options.
fn subscribe(out: &mut Vec<u8>, version: Version, args: &mut Args<'_>) -> Result<(), String> {
    let id = args.number("id", 1)?;
    let properties = args.properties("")?;
    let mut filters = Vec::new();
    for word in args.plain.drain(..) {
        let (filter, options) = word.rsplit_once(':').ok_or_else(|| format!("{word}: no QoS"))?;
        let mut o = SubscribeOptions {
            qos: QoS::AtMostOnce,
            no_local: false,
            retain_as_published: false,
            retain_handling: RetainHandling::Send,
        };
        for option in options.split(',') {
            match option {
                "nl" => o.no_local = true,
                "rap" => o.retain_as_published = true,
                "rh0" => o.retain_handling = RetainHandling::Send,
                "rh1" => o.retain_handling = RetainHandling::SendIfNew,
                "rh2" => o.retain_handling = RetainHandling::DoNotSend,
                n => o.qos = qos(number(n)?)?,
            }
        }
        filters.push((filter, o));
    }
    client::subscribe(out, version, id, &properties, &filters);
    Ok(())
}

fn qos(bits: u8) -> Result<QoS, String> {
    QoS::from_bits(bits).ok_or_else(|| format!("QoS {bits}"))
}

impl<'a> Args<'a> {
    fn new(words: &'a [String]) -> Args<'a> {
        let (mut plain, mut named) = (Vec::new(), Vec::new());
        for word in words {
            match word.split_once('=') {
                Some((name, value)) if !name.contains(['/', ':']) => named.push((name, value)),
                _ => plain.push(word.as_str()),
            }
        }
        Args { plain, named }
    }

    fn take(&mut self, name: &str) -> Option<&'a str> {
        let at = self.named.iter().position(|(n, _)| *n == name)?;
        Some(self.named.remove(at).1)
    }

    fn flag(&mut self, name: &str) -> bool {
        let before = self.plain.len();
        self.plain.retain(|w| *w != name);
        self.plain.len() < before
    }

    fn number<T: TryFrom<u64>>(&mut self, name: &str, default: T) -> Result<T, String> {
        self.take(name).map_or(Ok(default), number)
    }

    fn reason(&mut self) -> Result<Reason, String> {
        self.take("reason").map_or(Ok(Reason::Success), reason)
    }

    /// Takes all properties whose names begin with `prefix`, in order, as raw bytes.
    fn properties(&mut self, prefix: &str) -> Result<Vec<u8>, String> {
        let mut raw = Vec::new();
        let mut rest = Vec::new();
        for (name, value) in self.named.drain(..) {
            let short = name.strip_prefix(prefix).unwrap_or("");
            let kept = Value::new(value)?;
            match kept.property(short)? {
                Some(p) => client::put_property(&mut raw, &p),
                None => rest.push((name, value)),
            }
        }
        self.named = rest;
        Ok(raw)
    }

    fn finish(&self) -> Result<(), String> {
        if self.plain.is_empty() && self.named.is_empty() {
            return Ok(());
        }
        Err(format!("not understood: {:?} {:?}", self.plain, self.named))
    }
}
