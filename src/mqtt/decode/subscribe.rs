//! SUBSCRIBE and UNSUBSCRIBE (MQTT 5.0 sections 3.8 and 3.10).

use super::{DecodeError, packet_id};
use crate::mqtt::packet::{
    QoS, RetainHandling, Subscribe, SubscribeFilter, SubscribeOptions, Unsubscribe, Version,
};
use crate::mqtt::property::{Place, Properties, Property};
use crate::mqtt::reason::Reason;
use crate::mqtt::wire::Reader;

pub(super) fn subscribe<'a>(version: Version, r: &mut Reader<'a>) -> Result<Subscribe<'a>, DecodeError> {
    let packet_id = packet_id(r)?;
    let mut subscription_id = None;
    let mut properties = Properties::default();
    if version.is_v5() {
        properties = Properties::read(r, Place::Subscribe, |p| {
            if let Property::SubscriptionIdentifier(id) = p {
                subscription_id = Some(id);
            }
        })?;
    }
    if r.is_empty() {
        return Err(r.err(Reason::ProtocolError, "SUBSCRIBE without a topic filter"));
    }
    let mut check = *r;
    while !check.is_empty() {
        let filter = check.string("topic filter goes beyond the packet")?;
        let here = check;
        let bits = check.u8("subscription options are missing")?;
        if version.is_v5() {
            check_options(&here, bits, filter)?;
        } else if bits > 2 {
            return Err(here.malformed("requested QoS is not 0, 1 or 2"));
        }
    }
    Ok(Subscribe { packet_id, subscription_id, properties, entries: r.rest() })
}

/// Section 3.8.3.1.
fn check_options(at: &Reader<'_>, bits: u8, filter: &str) -> Result<(), DecodeError> {
    if bits & 0xC0 != 0 {
        return Err(at.malformed("reserved bits of the subscription options"));
    }
    let what = match SubscribeOptions::from_bits(bits) {
        None if bits & 3 == 3 => "maximum QoS is 3",
        None => "retain handling is 3",
        Some(options) if options.no_local && filter.starts_with("$share/") => {
            "no local on a shared subscription"
        }
        Some(_) => return Ok(()),
    };
    Err(at.err(Reason::ProtocolError, what))
}

pub(super) fn unsubscribe<'a>(version: Version, r: &mut Reader<'a>) -> Result<Unsubscribe<'a>, DecodeError> {
    let packet_id = packet_id(r)?;
    let mut properties = Properties::default();
    if version.is_v5() {
        properties = Properties::read(r, Place::Unsubscribe, |_| ())?;
    }
    if r.is_empty() {
        return Err(r.err(Reason::ProtocolError, "UNSUBSCRIBE without a topic filter"));
    }
    let mut check = *r;
    while !check.is_empty() {
        check.string("topic filter goes beyond the packet")?;
    }
    Ok(Unsubscribe { packet_id, properties, entries: r.rest() })
}

impl<'a> Subscribe<'a> {
    /// The entries, in the order sent.
    pub fn filters(&self) -> impl Iterator<Item = SubscribeFilter<'a>> + use<'a> {
        let mut r = Reader::new(self.entries, 0);
        std::iter::from_fn(move || {
            // Validated in `subscribe`: ends only at the end.
            let filter = r.string("").ok()?;
            let bits = r.u8("").ok()?;
            let options = SubscribeOptions::from_bits(bits).unwrap_or(SubscribeOptions {
                qos: QoS::AtMostOnce,
                no_local: false,
                retain_as_published: false,
                retain_handling: RetainHandling::Send,
            });
            Some(SubscribeFilter { filter, options })
        })
    }
}

impl<'a> Unsubscribe<'a> {
    /// The topic filters, in the order sent. Valid UTF-8, not checked as filters.
    pub fn filters(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        let mut r = Reader::new(self.entries, 0);
        std::iter::from_fn(move || r.string("").ok())
    }
}
