//! Which addresses builds may reach.
//!
//! The public internet, and what the node's owner names. Not the machine itself, not the network that
//! it is in, not the services that clouds offer to their machines: who may ask for a build must not see
//! through the node's eyes. Decided for the address that is connected to, after names are resolved.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use serde::Deserialize;

use super::own::is_own;

/// All addresses that begin with the same bits, at every port or at one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct AddressRange {
    address: IpAddr,
    prefix: u8,
    port: Option<u16>,
}

impl AddressRange {
    /// The addresses whose first `prefix` bits are those of `address`, at every port; none where there are not as
    /// many.
    #[must_use]
    pub fn new(address: IpAddr, prefix: u8) -> Option<Self> {
        let port = None;
        (prefix <= bits(address)).then_some(Self {
            address,
            prefix,
            port,
        })
    }

    /// Whether it is one of these that is connected to.
    #[must_use]
    pub fn contains(&self, to: SocketAddr) -> bool {
        self.port.is_none_or(|port| port == to.port()) && self.has(to.ip())
    }

    /// Whether they are addresses of IPv6.
    pub(crate) fn is_ipv6(&self) -> bool {
        self.address.is_ipv6()
    }

    /// Whether an address is one of them, at whatever port.
    #[must_use]
    pub fn has(&self, address: IpAddr) -> bool {
        bits(self.address) == bits(address)
            && beginning(self.address, self.prefix) == beginning(address, self.prefix)
    }
}

/// How many an address has.
fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The first bits of an address, as a number; the rest of it is zero.
fn beginning(address: IpAddr, prefix: u8) -> u128 {
    let number = match address {
        IpAddr::V4(address) => u128::from(u32::from(address)) << 96,
        IpAddr::V6(address) => u128::from(address),
    };
    let rest = 128 - u32::from(prefix);
    number.checked_shr(rest).map_or(0, |first| first << rest)
}

impl fmt::Display for AddressRange {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            address,
            prefix,
            port,
        } = self;
        match (address, port) {
            (_, None) => write!(formatter, "{address}/{prefix}"),
            (IpAddr::V4(_), Some(port)) => write!(formatter, "{address}/{prefix}:{port}"),
            (IpAddr::V6(_), Some(port)) => write!(formatter, "[{address}]/{prefix}:{port}"),
        }
    }
}

/// `ADDRESS[/PREFIX][:PORT]`, as in `10.0.0.0/8`, `10.1.2.3:8080`, `fd00::/8` and `[fd00::1]:443`.
impl FromStr for AddressRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "'{text}' is not an address or a range of addresses, such as 10.0.0.0/8, 10.1.2.3:8080, fd00::/8 or \
                 [fd00::1]:443"
            )
        };
        let (address, rest) = match text.strip_prefix('[') {
            Some(inner) => {
                let (address, rest) = inner.split_once(']').ok_or_else(wrong)?;
                // What is in brackets is IPv6, and nothing else needs them.
                let address: Ipv6Addr = address.parse().map_err(|_| wrong())?;
                (IpAddr::V6(address), rest)
            }
            None => {
                let one_colon = text.matches(':').count() == 1;
                let end = text.find(|at| at == '/' || one_colon && at == ':');
                let (address, rest) = text.split_at(end.unwrap_or(text.len()));
                (address.parse().map_err(|_| wrong())?, rest)
            }
        };
        let (prefix, port) = match rest.split_once(':') {
            Some((prefix, port)) => (
                prefix,
                Some(number(port).filter(|port| *port > 0).ok_or_else(wrong)?),
            ),
            None => (rest, None),
        };
        let prefix = match (prefix, prefix.strip_prefix('/')) {
            ("", _) => bits(address),
            (_, Some(prefix)) => number(prefix)
                .and_then(|prefix| u8::try_from(prefix).ok())
                .filter(|prefix| *prefix <= bits(address))
                .ok_or_else(wrong)?,
            (_, None) => return Err(wrong()),
        };
        if address.to_canonical() != address {
            return Err(format!(
                "'{text}' is IPv4 in disguise: write it as {}",
                address.to_canonical()
            ));
        }
        let first = beginning(address, prefix);
        if first != beginning(address, bits(address)) {
            let first = match address {
                // The upper quarter is all that there is.
                IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::from((first >> 96) as u32)),
                IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from(first)),
            };
            return Err(format!(
                "'{text}' has bits after its first {prefix}: {first}/{prefix} is that network, {address} that address"
            ));
        }
        Ok(Self {
            address,
            prefix,
            port,
        })
    }
}

impl TryFrom<String> for AddressRange {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// Digits and nothing else.
fn number(text: &str) -> Option<u16> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| digits)
}

/// Why a place is not reachable for builds; none where it is.
pub(crate) fn denied(to: SocketAddr, allowed: &[AddressRange]) -> Option<&'static str> {
    let to = SocketAddr::new(to.ip().to_canonical(), to.port());
    if allowed.iter().any(|range| range.contains(to)) {
        return None;
    }
    class(to.ip())
}

/// Why builds are not even told that a name has an address; none where they are: something there is reachable.
pub(crate) fn hidden(address: IpAddr, allowed: &[AddressRange]) -> Option<&'static str> {
    let address = address.to_canonical();
    if allowed.iter().any(|range| range.has(address)) {
        return None;
    }
    class(address)
}

/// What an address is, where it is not one of the public internet.
fn class(address: IpAddr) -> Option<&'static str> {
    let class = match address {
        IpAddr::V4(address) => class_of_v4(address),
        IpAddr::V6(address) => class_of_v6(address),
    };
    class.or_else(|| is_own(address).then_some("this machine's own"))
}

/// What is not the public internet (IANA special-purpose address registry for IPv4). Ranges for
/// documentation and benchmarks are let through: nothing is there that could be harmed, except where a
/// transparent proxy of the machine's own answers in them.
fn class_of_v4(address: Ipv4Addr) -> Option<&'static str> {
    let [a, b, c, _] = address.octets();
    match (a, b, c) {
        (0, ..) => Some("of this network"),
        (127, ..) => Some("loopback"),
        (10, ..) | (172, 16..=31, _) | (192, 168, _) => Some("private"),
        (169, 254, _) => Some("link-local (cloud metadata included)"),
        (100, 64..=127, _) => Some("shared by a provider"),
        (192, 0, 0) => Some("reserved"),
        (192, 88, 99) => Some("reserved for relays"),
        (224..=239, ..) => Some("multicast"),
        (240..=255, ..) => Some("reserved"),
        _ => None,
    }
}

/// What is not the public internet (IANA special-purpose address registry for IPv6), and what leads to
/// such an IPv4 address.
fn class_of_v6(address: Ipv6Addr) -> Option<&'static str> {
    let segments = address.segments();
    let embedded = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        class_of_v4(Ipv4Addr::new(a, b, c, d))
    };
    match segments {
        [0, 0, 0, 0, 0, 0, 0, 0] => Some("unspecified"),
        [0, 0, 0, 0, 0, 0, 0, 1] => Some("loopback"),
        // IPv4-compatible, and the prefixes of translation (NAT64, RFC 6052 and 8215) and of 6to4.
        [0, 0, 0, 0, 0, 0, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => embedded(high, low),
        [0x64, 0xff9b, 1, ..] => Some("private"),
        [0x2002, high, low, ..] => embedded(high, low),
        // Teredo carries an IPv4 address in disguise.
        [0x2001, 0, ..] => Some("reserved for relays"),
        [0x100, 0, 0, 0, ..] => Some("reserved"),
        [0xfc00..=0xfdff, ..] => Some("private"),
        [0xfe80..=0xfebf, ..] => Some("link-local (cloud metadata included)"),
        [0xfec0..=0xfeff, ..] => Some("private"),
        [0xff00..=0xffff, ..] => Some("multicast"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> AddressRange {
        text.parse().unwrap()
    }

    fn denied(address: IpAddr, allowed: &[AddressRange]) -> Option<&'static str> {
        let class = super::denied(SocketAddr::new(address, 443), allowed);
        assert_eq!(hidden(address, allowed), class, "{address}");
        class
    }

    #[test]
    fn what_is_not_the_public_internet_is_denied() {
        for address in [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "127.255.255.255",
            "10.0.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "100.127.255.255",
            "192.0.0.1",
            "224.0.0.1",
            "239.1.1.1",
            "240.0.0.1",
            "255.255.255.255",
            "192.88.99.1",
            "::",
            "::1",
            "fe80::1",
            "febf::1",
            "fc00::1",
            "fd00:ec2::254",
            "fec0::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::10.0.0.1",
            "64:ff9b::10.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::1",
            "2002:7f00:1::",
            "2002:a9fe:a9fe::1",
            "2001::1",
            "100::1",
        ] {
            assert!(denied(address.parse().unwrap(), &[]).is_some(), "{address}");
        }
    }

    #[test]
    fn the_public_internet_is_not() {
        for address in [
            "1.1.1.1",
            "9.255.255.255",
            "11.0.0.1",
            "100.63.255.255",
            "100.128.0.1",
            "172.15.0.1",
            "172.32.0.1",
            "192.167.1.1",
            "169.253.1.1",
            "223.255.255.255",
            "2606:4700::1",
            "2001:4860:4860::8888",
            "64:ff9b::101:101",
            "2002:101:101::1",
            "::ffff:1.1.1.1",
        ] {
            assert_eq!(denied(address.parse().unwrap(), &[]), None, "{address}");
        }
    }

    #[test]
    fn what_the_owner_names_is_allowed() {
        let allowed = [range("10.1.0.0/16"), range("fd00::/8"), range("127.0.0.1")];
        for (address, open) in [
            ("10.1.255.1", true),
            ("10.2.0.1", false),
            ("fdff::1", true),
            ("fc00::1", false),
            ("127.0.0.1", true),
            ("::ffff:127.0.0.1", true),
            ("127.0.0.2", false),
        ] {
            assert_eq!(
                denied(address.parse().unwrap(), &allowed).is_none(),
                open,
                "{address}"
            );
        }
    }

    #[test]
    fn a_port_that_the_owner_names_opens_no_other() {
        let allowed = [range("10.1.0.0/16:80"), range("[fd00::1]:443")];
        for (to, open) in [
            ("10.1.2.3:80", true),
            ("10.1.2.3:443", false),
            ("10.2.2.3:80", false),
            ("[::ffff:10.1.2.3]:80", true),
            ("[fd00::1]:443", true),
            ("[fd00::1]:80", false),
            ("[fd00::2]:443", false),
        ] {
            let denied = super::denied(to.parse().unwrap(), &allowed);
            assert_eq!(denied.is_none(), open, "{to}");
        }
        // A name may be resolved to where something is open.
        assert_eq!(hidden("10.1.2.3".parse().unwrap(), &allowed), None);
        assert!(hidden("10.2.2.3".parse().unwrap(), &allowed).is_some());
    }

    #[test]
    fn ranges_are_read_and_written() {
        for text in [
            "10.0.0.0/8",
            "0.0.0.0/0",
            "::/0",
            "fd00::/8",
            "1.2.3.4/32",
            "::1/128",
            "10.0.0.0/8:80",
            "[fd00::]/8:65535",
        ] {
            assert_eq!(range(text).to_string(), text);
        }
        for (text, whole) in [
            ("1.2.3.4", "1.2.3.4/32"),
            ("1.2.3.4:80", "1.2.3.4/32:80"),
            ("fd00::1", "fd00::1/128"),
            ("[fd00::1]", "fd00::1/128"),
            ("[fd00::1]:80", "[fd00::1]/128:80"),
            ("[fd00::]/8", "fd00::/8"),
        ] {
            assert_eq!(range(text).to_string(), whole);
        }
        assert!(range("0.0.0.0/0").has("8.8.8.8".parse().unwrap()));
        assert!(!range("0.0.0.0/0").has("::1".parse().unwrap()));
        assert!(range("::/0").has("::1".parse().unwrap()));
        for text in [
            "",
            "10.0.0.0/33",
            "::/129",
            "10.0.0/8",
            "10.0.0.0/",
            "10.0.0.0/+8",
            "host",
            "host:80",
            "10.0.0.1:",
            "10.0.0.1:0",
            "10.0.0.1:65536",
            "10.0.0.1:+80",
            "10.0.0.0:80/8",
            "[10.0.0.1]:80",
            "[fd00::1]80",
            "[fd00::1",
            " 10.0.0.1",
        ] {
            let error = text.parse::<AddressRange>().unwrap_err();
            assert!(error.starts_with(&format!("'{text}' is not")), "{error}");
        }
        let error = "10.1.2.3/8".parse::<AddressRange>().unwrap_err();
        assert!(error.contains("10.0.0.0/8 is that network"), "{error}");
        let error = "fd00::1/8".parse::<AddressRange>().unwrap_err();
        assert!(error.contains("fd00::/8 is that network"), "{error}");
        let error = "::ffff:10.0.0.1".parse::<AddressRange>().unwrap_err();
        assert!(error.contains("write it as 10.0.0.1"), "{error}");
    }
}
