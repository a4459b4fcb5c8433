//! Proxies that the environment names, read as curl reads them (curl(1), "ENVIRONMENT").
//!
//! `http_proxy` (in small letters alone), `https_proxy`, and `all_proxy` for either, name a proxy that is spoken to over
//! plain HTTP; `no_proxy` the hosts that are reached without one. What is on this machine always is: no proxy leads there.

use std::net::IpAddr;

use base64::Engine as _;
use hyper::header::HeaderValue;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use url::{Host, Url};

use super::http::is_localhost;
use crate::limits::PROXY_HEAD;
use crate::proxy::address::AddressRange;

/// Where a proxy listens whose URL does not say it, as for curl.
const PORT: u16 = 1080;

/// Which proxies are asked for what.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Proxies {
    http: Option<Proxy>,
    https: Option<Proxy>,
    without: Vec<Without>,
}

/// A proxy, as somebody named it.
#[derive(Debug, Clone, PartialEq)]
enum Proxy {
    /// One that can be spoken to.
    Http(HttpProxy),
    /// One that cannot: why, in words.
    Unusable(String),
}

/// A proxy that is spoken to over plain HTTP.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct HttpProxy {
    pub(crate) host: String,
    pub(crate) port: u16,
    /// What it is told of its user.
    pub(crate) authorization: Option<HeaderValue>,
}

/// Hosts that are reached without a proxy.
#[derive(Debug, Clone, PartialEq)]
enum Without {
    All,
    /// A host, and all in its domain.
    Domain(String),
    Addresses(AddressRange),
}

impl Proxies {
    /// Those of this process's environment.
    pub(crate) fn of_environment() -> Self {
        Self::read(|name| std::env::var(name).ok())
    }

    pub(super) fn read(variable: impl Fn(&str) -> Option<String>) -> Self {
        let named = |names: &[&'static str]| {
            let mut set = names.iter().filter_map(|name| Some((*name, variable(name)?)));
            // The first that is there counts, and says with nothing in it that there is none.
            set.next()
        };
        let proxy = |names: &[&'static str]| {
            let (name, value) = named(names).filter(|(_, value)| !value.trim().is_empty())?;
            Some(Proxy::parse(name, value.trim()))
        };
        let without = named(&["no_proxy", "NO_PROXY"]).map(|(_, hosts)| {
            let hosts = hosts.split([',', ' ']).map(str::trim);
            hosts
                .filter(|host| !host.is_empty())
                .map(Without::parse)
                .collect()
        });
        Self {
            // Servers that run programs put what a client says as `Proxy` into `HTTP_PROXY`.
            http: proxy(&["http_proxy", "all_proxy", "ALL_PROXY"]),
            https: proxy(&["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"]),
            without: without.unwrap_or_default(),
        }
    }

    /// The proxy that is asked for a URL; none where its host is reached directly.
    ///
    /// # Errors
    /// It cannot be spoken to, in words.
    pub(crate) fn of(&self, url: &Url) -> Result<Option<&HttpProxy>, String> {
        let proxy = match url.scheme() {
            "https" => self.https.as_ref(),
            _ => self.http.as_ref(),
        };
        match proxy {
            None => Ok(None),
            Some(_) if url.host().is_some_and(|host| self.is_without(&host)) => Ok(None),
            Some(Proxy::Http(proxy)) => Ok(Some(proxy)),
            Some(Proxy::Unusable(reason)) => Err(reason.clone()),
        }
    }

    fn is_without(&self, host: &Host<&str>) -> bool {
        let address: Option<IpAddr> = match host {
            Host::Ipv4(address) => Some((*address).into()),
            Host::Ipv6(address) => Some(address.to_canonical()),
            Host::Domain(_) => None,
        };
        let local = match host {
            Host::Domain(name) => is_localhost(name),
            _ => address.is_some_and(|address| address.is_loopback()),
        };
        local
            || self.without.iter().any(|without| match (without, host) {
                (Without::All, _) => true,
                (Without::Domain(domain), Host::Domain(name)) => {
                    let name = name.trim_end_matches('.');
                    name.strip_suffix(domain.as_str())
                        .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
                }
                (Without::Addresses(range), _) => address.is_some_and(|address| range.has(address)),
                _ => false,
            })
    }
}

impl Proxy {
    fn parse(variable: &str, value: &str) -> Self {
        let unusable = |reason: &str| {
            Self::Unusable(format!(
                "the variable {variable} names the proxy '{}', {reason}",
                without_password(value)
            ))
        };
        let text = match value.contains("://") {
            true => value.to_owned(),
            false => format!("http://{value}"),
        };
        let Ok(url) = Url::parse(&text) else {
            return unusable("which is no URL");
        };
        let Some(host) = url.host_str().filter(|_| url.scheme() == "http") else {
            return unusable("and only proxies that are spoken to over HTTP are supported");
        };
        // A URL does not keep the port that its scheme has anyway.
        let said = text.get("http://".len()..).unwrap_or_default();
        let said = said.split('/').next().unwrap_or_default();
        let port = url
            .port()
            .unwrap_or(if said.ends_with(":80") { 80 } else { PORT });
        let authorization = match (url.username(), url.password()) {
            ("", None) => None,
            (user, password) => {
                let plain = |text: &str| percent_decoded(text);
                let both = [plain(user), b":".to_vec(), plain(password.unwrap_or_default())].concat();
                let both = base64::engine::general_purpose::STANDARD.encode(both);
                let value = HeaderValue::from_str(&format!("Basic {both}"));
                value.ok().map(|mut value| {
                    // Not for logs.
                    value.set_sensitive(true);
                    value
                })
            }
        };
        Self::Http(HttpProxy {
            host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
            port,
            authorization,
        })
    }
}

impl Without {
    fn parse(host: &str) -> Self {
        if host == "*" {
            return Self::All;
        }
        match host.parse() {
            Ok(range) => Self::Addresses(range),
            Err(_) => {
                let domain = host.trim_start_matches("*.").trim_matches('.');
                // Ports are not told apart, as by curl.
                let domain = domain.split(':').next().unwrap_or(domain);
                Self::Domain(domain.to_ascii_lowercase())
            }
        }
    }
}

fn without_password(value: &str) -> String {
    match value.rsplit_once('@') {
        Some((_, host)) => format!("…@{host}"),
        None => value.to_owned(),
    }
}

/// `%40` and the like as what they stand for (RFC 3986, section 2.1).
fn percent_decoded(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let digits = after.get(..2).filter(|_| first == b'%');
        match digits.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    bytes
}

/// Asks a proxy for a way to a host (RFC 9110, section 9.3.6). What is then said over the stream is said to the host.
///
/// # Errors
/// In words.
pub(crate) async fn tunnel<S: AsyncRead + AsyncWrite + Unpin>(
    proxy: &HttpProxy,
    stream: &mut S,
    host: &str,
    port: u16,
) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("the proxy {} broke off: {error}", proxy.host);
    let mut request = format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n").into_bytes();
    if let Some(authorization) = &proxy.authorization {
        request.extend_from_slice(b"Proxy-Authorization: ");
        request.extend_from_slice(authorization.as_bytes());
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"\r\n");
    stream.write_all(&request).await.map_err(failed)?;
    let mut head = Vec::new();
    // Byte by byte: what follows the head is the host's.
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() == PROXY_HEAD {
            return Err(format!(
                "the proxy {} answers with something else than HTTP",
                proxy.host
            ));
        }
        head.push(stream.read_u8().await.map_err(failed)?);
    }
    let head = String::from_utf8_lossy(&head);
    let first = head.lines().next().unwrap_or_default();
    match first.split(' ').nth(1) {
        Some(status) if status.len() == 3 && status.starts_with('2') => Ok(()),
        _ => Err(format!(
            "the proxy {} does not lead to {host}:{port}: it answered '{}'",
            proxy.host,
            first.escape_debug()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(variables: &[(&str, &str)]) -> Proxies {
        Proxies::read(|name| {
            let mut found = variables.iter().filter(|(known, _)| *known == name);
            found.next().map(|(_, value)| (*value).to_owned())
        })
    }

    fn of(proxies: &Proxies, url: &str) -> Option<(String, u16)> {
        let proxy = proxies.of(&Url::parse(url).unwrap()).unwrap()?;
        Some((proxy.host.clone(), proxy.port))
    }

    #[test]
    fn variables_are_read_as_curl_reads_them() {
        let at = |host: &str, port| Some((host.to_owned(), port));
        let some = proxies(&[
            ("http_proxy", "http://a:3128/"),
            ("HTTPS_PROXY", "b"),
            ("all_proxy", "http://c:80"),
        ]);
        assert_eq!(of(&some, "http://x/"), at("a", 3128));
        assert_eq!(of(&some, "https://x/"), at("b", 1080));
        // The capital form of this one is what a client of a web server says.
        assert_eq!(of(&proxies(&[("HTTP_PROXY", "a:1")]), "http://x/"), None);
        let all = proxies(&[("ALL_PROXY", "http://[fd00::1]:80")]);
        assert_eq!(of(&all, "http://x/"), at("fd00::1", 80));
        assert_eq!(of(&all, "https://x/"), at("fd00::1", 80));
        let none = proxies(&[("https_proxy", ""), ("all_proxy", "c:1")]);
        assert_eq!(of(&none, "https://x/"), None);
        assert_eq!(of(&none, "http://x/"), at("c", 1));
    }

    #[test]
    fn some_hosts_are_reached_without_one() {
        let some = proxies(&[
            ("all_proxy", "p:1"),
            (
                "no_proxy",
                "example.org, .lan,*.corp.test,10.0.0.0/8,fd00::1,cache.test:8080",
            ),
        ]);
        for (url, without) in [
            ("http://example.org/", true),
            ("http://a.example.org./", true),
            ("http://notexample.org/", false),
            ("http://example.org.evil.test/", false),
            ("http://cache.lan/", true),
            ("http://x.corp.test/", true),
            ("http://cache.test/", true),
            ("http://10.1.2.3/", true),
            ("http://11.1.2.3/", false),
            ("http://[fd00::1]/", true),
            ("http://[fd00::2]/", false),
            // No proxy leads back here.
            ("http://localhost:1/", true),
            ("http://127.0.0.1:1/", true),
            ("http://[::1]/", true),
            ("http://[::ffff:127.0.0.1]/", true),
        ] {
            assert_eq!(of(&some, url).is_none(), without, "{url}");
        }
        assert_eq!(
            of(&proxies(&[("http_proxy", "p:1"), ("NO_PROXY", "*")]), "http://x/"),
            None
        );
    }

    #[tokio::test]
    async fn a_way_is_asked_for_and_what_follows_is_the_host_s() {
        let proxy = HttpProxy {
            host: "p".to_owned(),
            port: 1,
            authorization: Some(HeaderValue::from_static("Basic x")),
        };
        let asked = "CONNECT x.test:443 HTTP/1.1\r\nHost: x.test:443\r\nProxy-Authorization: Basic x\r\n\r\n";
        let ask = async |answer: &[u8]| {
            let (mut here, mut there) = tokio::io::duplex(1 << 16);
            there.write_all(answer).await.unwrap();
            let led = tunnel(&proxy, &mut here, "x.test", 443).await;
            drop(there.shutdown().await);
            let (mut rest, mut seen) = (String::new(), vec![0; asked.len()]);
            there.read_exact(&mut seen).await.unwrap();
            assert_eq!(String::from_utf8(seen).unwrap(), asked);
            here.read_to_string(&mut rest).await.unwrap();
            led.map(|()| rest)
        };
        let led = ask(b"HTTP/1.1 200 Connection established\r\nX: y\r\n\r\nhello").await;
        assert_eq!(led.unwrap(), "hello");
        let error = ask(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
            .await
            .unwrap_err();
        assert!(
            error.contains("x.test:443") && error.contains("407 Proxy"),
            "{error}"
        );
        let error = ask(&[b'x'; PROXY_HEAD + 1]).await.unwrap_err();
        assert!(error.contains("something else than HTTP"), "{error}");
    }

    #[test]
    fn what_cannot_be_spoken_to_is_named_without_its_password() {
        let some = proxies(&[("all_proxy", "socks5://me:secret@p:1")]);
        let error = some.of(&Url::parse("http://x/").unwrap()).unwrap_err();
        assert!(
            error.contains("all_proxy") && error.contains("'…@p:1'") && !error.contains("secret"),
            "{error}"
        );
        assert_eq!(of(&some, "http://127.0.0.1/"), None);
        assert!(
            proxies(&[("http_proxy", "http://")])
                .of(&Url::parse("http://x/").unwrap())
                .is_err()
        );
        let some = proxies(&[("http_proxy", "http://me%40home:a%3Ab@p")]);
        let url = Url::parse("http://x/").unwrap();
        let authorization = some.of(&url).unwrap().unwrap().authorization.clone().unwrap();
        // me@home:a:b
        assert_eq!(authorization, "Basic bWVAaG9tZTphOmI=");
        assert!(!format!("{some:?}").contains("bWVA"));
    }
}
