//! Which addresses are this machine's own.
//!
//! The kernel is asked where it would send a packet to the address (rtnetlink(7), as `ip route get` does):
//! what it would take itself is its own. That counts what interfaces have, and ranges that are routed to
//! this machine as a whole. That one can bind to an address says less: with
//! `net.ipv4.ip_nonlocal_bind = 1` one can bind to any.

use std::io;
use std::net::{IpAddr, UdpSocket};

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// `RTM_GETROUTE`, `RTM_NEWROUTE` and `NLMSG_ERROR` of rtnetlink(7) and netlink(7).
const GET_ROUTE: u16 = 26;
const NEW_ROUTE: u16 = 24;
const ERROR: u16 = 2;

/// `NLM_F_REQUEST`.
const REQUEST: u16 = 1;

/// `RTA_DST`: the attribute that has the address.
const DESTINATION: u16 = 1;

/// Kinds of routes that end here: `RTN_LOCAL`, and `RTN_BROADCAST` and `RTN_ANYCAST`, which this machine takes too.
const ENDS_HERE: [u8; 3] = [2, 3, 4];

/// Bytes of the head of a message, of what describes a route, and of the head of an attribute.
const HEAD: usize = 16;
const ROUTE: usize = 12;
const ATTRIBUTE: usize = 4;

/// Bytes of an answer: a route with all its attributes has some hundred.
const ANSWER_BYTES: usize = 4096;

/// Whether this machine would take what is sent to the address itself.
pub(super) fn is_own(address: IpAddr) -> bool {
    ends_here(address).unwrap_or_else(|error| {
        tracing::debug!(%address, %error, "the kernel does not say where an address leads to");
        UdpSocket::bind((address, 0)).is_ok()
    })
}

/// What the kernel says.
///
/// # Errors
/// It says nothing that can be used: emulated kernels and filters on system calls.
fn ends_here(address: IpAddr) -> io::Result<bool> {
    let (family, bytes) = match address {
        IpAddr::V4(address) => (AddressFamily::INET, address.octets().to_vec()),
        IpAddr::V6(address) => (AddressFamily::INET6, address.octets().to_vec()),
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    rustix::net::send(&socket, &question(family, &bytes), SendFlags::empty())?;
    let mut answer = [0; ANSWER_BYTES];
    // The kernel has answered when the question is sent.
    let (length, _) = rustix::net::recv(&socket, &mut answer, RecvFlags::empty())?;
    let odd = || io::Error::new(io::ErrorKind::InvalidData, "an answer of another form");
    let answer = answer.get(..length).ok_or_else(odd)?;
    match answer.get(4..6).ok_or_else(odd)? {
        kind if kind == NEW_ROUTE.to_ne_bytes() => {
            let kind = answer.get(HEAD + 7).ok_or_else(odd)?;
            Ok(ENDS_HERE.contains(kind))
        }
        kind if kind == ERROR.to_ne_bytes() => {
            let number: [u8; 4] = answer
                .get(HEAD..HEAD + 4)
                .and_then(|bytes| bytes.try_into().ok())
                .ok_or_else(odd)?;
            match Errno::from_raw_os_error(i32::from_ne_bytes(number).saturating_neg()) {
                // It leads nowhere.
                Errno::NETUNREACH | Errno::HOSTUNREACH | Errno::ACCESS => Ok(false),
                error => Err(error.into()),
            }
        }
        _ => Err(odd()),
    }
}

/// Asks for the route to one address.
fn question(family: AddressFamily, address: &[u8]) -> Vec<u8> {
    let length = HEAD + ROUTE + ATTRIBUTE + address.len();
    let mut message = Vec::with_capacity(length);
    // Sizes are known: none is more than 48.
    message.extend((length as u32).to_ne_bytes());
    message.extend(GET_ROUTE.to_ne_bytes());
    message.extend(REQUEST.to_ne_bytes());
    message.extend([0; 8]);
    message.extend([family.as_raw() as u8, (address.len() * 8) as u8]);
    message.extend([0; ROUTE - 2]);
    message.extend(((ATTRIBUTE + address.len()) as u16).to_ne_bytes());
    message.extend(DESTINATION.to_ne_bytes());
    message.extend(address);
    message
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};
    use std::process::Command;

    use super::*;
    use crate::proxy::address::{denied, hidden};

    const PUBLIC: [IpAddr; 2] = [
        IpAddr::V4(Ipv4Addr::new(1, 1, 1, 1)),
        IpAddr::V6(Ipv6Addr::new(0x2606, 0x4700, 0, 0, 0, 0, 0, 1)),
    ];

    #[test]
    fn what_interfaces_have_is_own_and_the_internet_is_not() {
        assert!(is_own(Ipv4Addr::LOCALHOST.into()));
        assert!(is_own(Ipv4Addr::new(127, 1, 2, 3).into()));
        for address in PUBLIC {
            assert!(!is_own(address), "{address}");
        }
        // What this machine would speak to others with, where it has that.
        for (any, other) in [("0.0.0.0:0", "192.0.2.1:9"), ("[::]:0", "[2001:db8::1]:9")] {
            let socket = UdpSocket::bind(any).and_then(|socket| socket.connect(other).map(|()| socket));
            if let Ok(address) = socket.and_then(|socket| socket.local_addr()) {
                assert!(is_own(address.ip()), "{address}");
            }
        }
    }

    /// Set in the process that [`where_one_can_bind_to_any_address_the_internet_is_still_not_own`] starts.
    const INSIDE: &str = "TVIX_NODE_TEST_NONLOCAL_BIND";

    #[test]
    fn where_one_can_bind_to_any_address_the_internet_is_still_not_own() {
        let name = "where_one_can_bind_to_any_address_the_internet_is_still_not_own";
        let skipped = |reason: &str| println!("SKIPPED: {name}, because {reason}");
        if std::env::var_os(INSIDE).is_some() {
            assert!(
                UdpSocket::bind((PUBLIC[0], 0)).is_ok(),
                "the setting has no effect"
            );
            for address in PUBLIC {
                assert_eq!(hidden(address, &[]), None);
                assert_eq!(denied((address, 443).into(), &[]), None);
            }
            return;
        }
        if let Err(error) = ends_here(PUBLIC[0]) {
            return skipped(&format!(
                "the kernel does not say where addresses lead to: {error}"
            ));
        }
        // A network of its own, where the setting can be changed.
        let set = "cd /proc/sys/net && echo 1 >ipv4/ip_nonlocal_bind && echo 1 >ipv6/ip_nonlocal_bind";
        let unshare = || {
            let mut command = Command::new("unshare");
            command.args(["--user", "--map-root-user", "--net", "sh", "-c"]);
            command
        };
        match unshare().arg(set).output() {
            Ok(output) if output.status.success() => {}
            Ok(output) => return skipped(&String::from_utf8_lossy(&output.stderr)),
            Err(error) => return skipped(&format!("unshare does not run: {error}")),
        }
        let output = unshare()
            .arg(format!("{set} && exec \"$0\" \"$@\""))
            .arg(std::env::current_exe().unwrap())
            .args([
                "--exact",
                &format!("{}::{name}", module_path!().split_once("::").unwrap().1),
            ])
            .arg("--nocapture")
            .env(INSIDE, "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && said.contains("1 passed"),
            "{said}{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}
