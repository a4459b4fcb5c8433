//! The heads of requests to a proxy (RFC 9110 and 9112): what is asked for, and what is passed on.

use crate::limits::PROXY_HEAD_BYTES;

/// What a client wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Request {
    /// A connection to a host, whatever goes over it.
    Tunnel { host: String, port: u16 },
    /// A resource, to be fetched with this head.
    Forward { host: String, port: u16, head: Vec<u8> },
}

/// Why a request is not served: a status line's end, and a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unserved {
    pub(super) status: &'static str,
    pub(super) reason: String,
}

fn unserved(status: &'static str, reason: impl Into<String>) -> Unserved {
    let reason = reason.into();
    Unserved { status, reason }
}

/// Where the head ends in what has been read so far. Too long a head is an error.
pub(super) fn head_end(read: &[u8]) -> Result<Option<usize>, Unserved> {
    let end = read.windows(4).position(|window| window == b"\r\n\r\n");
    match end {
        Some(end) if end <= PROXY_HEAD_BYTES => Ok(Some(end + 4)),
        None if read.len() <= PROXY_HEAD_BYTES => Ok(None),
        _ => Err(unserved(
            "431 Request Header Fields Too Large",
            format!("the head of the request has more than {PROXY_HEAD_BYTES} bytes"),
        )),
    }
}

/// Parses a complete head.
pub(super) fn parse(head: &[u8]) -> Result<Request, Unserved> {
    let malformed = || unserved("400 Bad Request", "not a request of HTTP/1.1 to a proxy");
    let text = std::str::from_utf8(head).map_err(|_| malformed())?;
    let mut lines = text.trim_end_matches("\r\n").split("\r\n");
    let mut words = lines.next().unwrap_or_default().split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(malformed());
    };
    let is_token = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    if !is_token(method) || !is_token(target) || !matches!(version, "HTTP/1.0" | "HTTP/1.1") {
        return Err(malformed());
    }
    if method == "CONNECT" {
        let (host, port) = authority(target, None).ok_or_else(malformed)?;
        return Ok(Request::Tunnel { host, port });
    }
    let Some(rest) = strip_scheme(target, "http://") else {
        return Err(unserved(
            "501 Not Implemented",
            format!("'{target}' cannot be fetched: builds reach the network over HTTP and HTTPS only"),
        ));
    };
    let at = rest.find(['/', '?']).unwrap_or(rest.len());
    let (place, resource) = rest.split_at(at);
    let (host, port) = authority(place, Some(80)).ok_or_else(malformed)?;
    let slash = if resource.starts_with('/') { "" } else { "/" };
    let mut passed_on = format!("{method} {slash}{resource} HTTP/1.1\r\n");
    let headers: Vec<(&str, &str)> = lines
        .map(|line| line.split_once(':').filter(|(name, _)| is_token(name)))
        .collect::<Option<_>>()
        .ok_or_else(malformed)?;
    let of_this_hop = headers
        .iter()
        .filter(|(name, _)| name.eq_ignore_ascii_case("connection"))
        .flat_map(|(_, value)| value.split(','))
        .map(str::trim)
        .collect::<Vec<_>>();
    for (name, value) in &headers {
        let dropped = HOP_HEADERS
            .iter()
            .chain(&of_this_hop)
            .any(|hop| hop.eq_ignore_ascii_case(name));
        if !dropped {
            passed_on.push_str(&format!("{name}:{value}\r\n"));
        }
    }
    // One request per connection: the end of the answer is the end of the connection.
    passed_on.push_str("Connection: close\r\n\r\n");
    let head = passed_on.into_bytes();
    Ok(Request::Forward { host, port, head })
}

/// What belongs to the connection to the proxy, and not to the request.
const HOP_HEADERS: &[&str] = &[
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authorization",
    "upgrade",
    "te",
];

fn strip_scheme<'a>(target: &'a str, scheme: &str) -> Option<&'a str> {
    let (start, rest) = target.split_at_checked(scheme.len())?;
    start.eq_ignore_ascii_case(scheme).then_some(rest)
}

/// `host:port`, where the host may be an IPv6 address in brackets. Names and passwords are refused.
fn authority(text: &str, default_port: Option<u16>) -> Option<(String, u16)> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']')?;
            host.parse::<std::net::Ipv6Addr>().ok()?;
            (host, port)
        }
        None => match text.find(':') {
            Some(at) => text.split_at(at),
            None => (text, ""),
        },
    };
    let port = match port.strip_prefix(':') {
        Some(port) => port.parse().ok()?,
        None if port.is_empty() => default_port?,
        None => return None,
    };
    let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~%:".contains(&byte);
    (!host.is_empty() && host.len() <= 255 && port != 0 && host.bytes().all(is_host))
        .then(|| (host.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tunnels_are_asked_for_by_host_and_port() {
        let tunnel = |host: &str, port| {
            let host = host.to_owned();
            Ok(Request::Tunnel { host, port })
        };
        assert_eq!(
            parse(b"CONNECT example.org:443 HTTP/1.1\r\nHost: x\r\n\r\n"),
            tunnel("example.org", 443)
        );
        assert_eq!(
            parse(b"CONNECT [2001:db8::1]:80 HTTP/1.0\r\n\r\n"),
            tunnel("2001:db8::1", 80)
        );
        for wrong in [
            "example.org",
            "example.org:",
            "example.org:0",
            "example.org:99999",
            ":443",
            "[::1:443",
            "a b:1",
            "u@h:1",
            "[x]:1",
        ] {
            let request = format!("CONNECT {wrong} HTTP/1.1\r\n\r\n");
            assert!(parse(request.as_bytes()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_passed_on_is_the_request_without_what_was_for_the_proxy() {
        let head = "GET http://example.org:8080/a/b?c=d HTTP/1.1\r\nHost: example.org:8080\r\nAccept: */*\r\n\
                    Proxy-Connection: keep-alive\r\nProxy-Authorization: secret\r\nConnection: X-Mine, close\r\nX-Mine: 1\r\n\r\n";
        let Ok(Request::Forward { host, port, head }) = parse(head.as_bytes()) else {
            panic!("not understood");
        };
        assert_eq!((host.as_str(), port), ("example.org", 8080));
        let expected =
            "GET /a/b?c=d HTTP/1.1\r\nHost: example.org:8080\r\nAccept: */*\r\nConnection: close\r\n\r\n";
        assert_eq!(String::from_utf8(head).unwrap(), expected);
    }

    #[test]
    fn a_resource_may_be_left_out() {
        for (target, line) in [("HTTP://h", "GET / HTTP/1.1"), ("http://h?x", "GET /?x HTTP/1.1")] {
            let request = format!("GET {target} HTTP/1.1\r\n\r\n");
            let Ok(Request::Forward { port: 80, head, .. }) = parse(request.as_bytes()) else {
                panic!("{target}");
            };
            assert!(head.starts_with(line.as_bytes()), "{target}");
        }
    }

    #[test]
    fn other_schemes_and_nonsense_are_refused() {
        let status = |request: &str| parse(request.as_bytes()).unwrap_err().status;
        assert_eq!(status("GET ftp://h/x HTTP/1.1\r\n\r\n"), "501 Not Implemented");
        assert_eq!(
            status("GET /x HTTP/1.1\r\nHost: h\r\n\r\n"),
            "501 Not Implemented"
        );
        for nonsense in [
            "\r\n\r\n",
            "GET\r\n\r\n",
            "GET http://h/ HTTP/2.0\r\n\r\n",
            "GET http://h/ HTTP/1.1 x\r\n\r\n",
            "GET http://user:pass@h/ HTTP/1.1\r\n\r\n",
            "GET http:///x HTTP/1.1\r\n\r\n",
            "GET http://h/ HTTP/1.1\r\nno colon\r\n\r\n",
            "GET http://h/ HTTP/1.1\r\nA : b\r\n\r\n",
        ] {
            assert_eq!(status(nonsense), "400 Bad Request", "{nonsense:?}");
        }
        assert!(parse(b"GET http://h/\xff HTTP/1.1\r\n\r\n").is_err());
    }

    #[test]
    fn heads_end_and_are_bounded() {
        assert_eq!(head_end(b"GET x\r\n").unwrap(), None);
        assert_eq!(head_end(b"GET x\r\n\r\nbody").unwrap(), Some(9));
        assert!(head_end(&vec![b'x'; PROXY_HEAD_BYTES]).unwrap().is_none());
        assert!(head_end(&vec![b'x'; PROXY_HEAD_BYTES + 1]).is_err());
    }
}
