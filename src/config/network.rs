//! Networks of IP addresses, as options, rules and bans name them.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// An address, or all addresses that begin with the same bits (`10.0.0.0/8`). An IPv4 address that comes mapped into IPv6 is the
/// IPv4 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

/// A text that is no network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected an IP address or a network, such as 192.0.2.7, 10.0.0.0/8 or 2001:db8::/32")]
pub struct NotANetwork;

impl FromStr for Network {
    type Err = NotANetwork;

    fn from_str(text: &str) -> Result<Network, NotANetwork> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => {
                let digits = !bits.is_empty() && bits.bytes().all(|b| b.is_ascii_digit());
                (address, Some(bits.parse::<u8>().ok().filter(|_| digits).ok_or(NotANetwork)?))
            }
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| NotANetwork)?;
        let all = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.unwrap_or(all);
        if bits > all {
            return Err(NotANetwork);
        }
        let (address, bits) = match (address.to_canonical(), address) {
            (mapped @ IpAddr::V4(_), IpAddr::V6(_)) if bits >= 96 => (mapped, bits - 96),
            _ => (address, bits),
        };
        Ok(Network { address: masked(address, bits), bits })
    }
}

impl Network {
    /// Whether an address belongs to it.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.address.is_ipv4() && masked(address, self.bits) == self.address
    }
}

/// An address with only its first `bits` bits.
fn masked(address: IpAddr, bits: u8) -> IpAddr {
    match address {
        IpAddr::V4(ip) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            IpAddr::V4((u32::from(ip) & mask).into())
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            IpAddr::V6((u128::from(ip) & mask).into())
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = if self.address.is_ipv4() { 32 } else { 128 };
        if self.bits == all { self.address.fmt(f) } else { write!(f, "{}/{}", self.address, self.bits) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks() {
        // Network, how it is shown, an address in it, an address outside.
        let table = [
            ("192.0.2.7", "192.0.2.7", "192.0.2.7", "192.0.2.8"),
            ("192.0.2.7/32", "192.0.2.7", "::ffff:192.0.2.7", "::1"),
            ("10.1.2.3/8", "10.0.0.0/8", "10.255.0.1", "11.0.0.0"),
            ("0.0.0.0/0", "0.0.0.0/0", "255.255.255.255", "::1"),
            ("::/0", "::/0", "2001:db8::1", "1.2.3.4"),
            ("2001:db8::/32", "2001:db8::/32", "2001:db8:ffff::1", "2001:db9::1"),
            ("::1", "::1", "::1", "::2"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8", "10.9.9.9", "9.9.9.9"),
        ];
        for (text, shown, inside, outside) in table {
            let network: Network = text.parse().unwrap();
            assert_eq!(network.to_string(), shown, "{text}");
            assert_eq!(shown.parse(), Ok(network), "{text}");
            assert!(network.contains(inside.parse().unwrap()), "{inside} in {text}");
            assert!(!network.contains(outside.parse().unwrap()), "{outside} in {text}");
        }
        for text in [
            "",
            "10",
            "10.0.0.0/",
            "10.0.0.0/33",
            "::/129",
            "10.0.0.0/+8",
            "10.0.0.0/8/8",
            "host",
            "10.0.0.0 ",
        ] {
            assert_eq!(text.parse::<Network>(), Err(NotANetwork), "{text:?}");
        }
    }
}
