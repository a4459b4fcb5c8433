//! A client of HTTP and HTTPS. That of builds connects only where builds may.

use std::collections::HashMap;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::SendRequest;
use hyper::header::{ETAG, HOST, HeaderValue, IF_NONE_MATCH, LOCATION, PROXY_AUTHORIZATION, USER_AGENT};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use url::{Host, Url};

use super::proxies::{HttpProxy, Proxies, tunnel};
use super::{failed, fetch_denied, fetch_failed, fetch_impossible};
use crate::config::{Config, default_certificates};
use crate::diagnosis::SandboxError;
use crate::error::Cause;
use crate::limits::{ANSWER_TIME, FETCH_TRIES, FETCH_WAIT, IDLE_CONNECTIONS, REDIRECTS, STALL_TIME};
use crate::proxy::address::AddressRange;
use crate::proxy::dial::{DialError, dial, judge};

/// Downloads files over HTTP and HTTPS.
pub struct Client {
    tls: TlsConnector,
    allowed: Arc<[AddressRange]>,
    /// Whether servers, and who answers for their names, are kept from leading it astray, see [`Client::for_caches`].
    wary: bool,
    /// Whom it asks instead of servers.
    proxies: Proxies,
    /// Connections that wait for the next small answer.
    idle: Mutex<HashMap<Place, Vec<Connection>>>,
    /// How long the next byte of a file is waited for.
    stall: Duration,
}

/// How a download ended that did not fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Downloaded {
    /// Whether the file was written; otherwise the server says that what the caller has is current.
    pub fresh: bool,
    /// What the server calls this version of the file (its entity tag).
    pub tag: Option<String>,
}

/// Why a try came to nothing.
enum Failure {
    /// Trying again may help.
    Passing(String),
    /// Here it does not.
    Lasting(Cause),
}

/// A connection, alive as long as this is.
struct Connection {
    sender: SendRequest<Empty<Bytes>>,
    _running: JoinSet<()>,
}

/// An answer, and the connection that it comes over.
struct Answer {
    response: Response<Incoming>,
    connection: Connection,
    /// Where the connection leads to.
    place: Place,
}

/// Scheme, host and port, and whether only the public internet counted.
type Place = (String, String, u16, bool);

impl Client {
    /// A client for somebody who may reach everything that this process reaches, the local network too: the user
    /// who evaluates, not a build. Trusts the machine's certificates where it has any, and asks the proxies that the
    /// environment names.
    ///
    /// # Errors
    /// The certificates cannot be read.
    pub fn unrestricted() -> Result<Self, Cause> {
        let client = Self::with(default_certificates().as_deref(), everything().into())?;
        Ok(client.asking(Proxies::of_environment()))
    }

    /// For servers that the user has named and does not have to believe in everything. A server whose name is an address
    /// (or `localhost`) may be there, and lead to other places there. All else must be on the public internet or among
    /// `private`, whatever names are resolved to at the time; and nobody leads from HTTPS to HTTP. Otherwise a cache, or who
    /// answers for its name, could have this node ask what is open to this machine alone: services on it, in its network,
    /// or its cloud's.
    ///
    /// Asks the proxies that the environment names, too. What a name stands for where the proxy is, is the proxy's
    /// business; a name that stands for something private here is not asked for there either.
    ///
    /// # Errors
    /// The certificates cannot be read.
    pub fn for_caches(private: Arc<[AddressRange]>) -> Result<Self, Cause> {
        let client = Self::with(default_certificates().as_deref(), private)?;
        let wary = true;
        Ok(Self { wary, ..client }.asking(Proxies::of_environment()))
    }

    pub(crate) fn asking(self, proxies: Proxies) -> Self {
        Self { proxies, ..self }
    }

    /// The client of builds, of the owner or [for others](crate::BuildSpec::for_another). It asks no proxy, since what a
    /// build may reach is judged by addresses.
    pub(crate) fn new(config: &Config, for_another: bool) -> Result<Self, Cause> {
        Self::with(config.ca_certificates.as_deref(), config.allowed(for_another))
    }

    /// Waits no longer than so many seconds for the next byte of a file.
    #[must_use]
    pub(crate) fn patient(mut self, seconds: Option<u64>) -> Self {
        let asked = seconds.map_or(STALL_TIME, Duration::from_secs);
        self.stall = self.stall.min(asked);
        self
    }

    fn with(certificates: Option<&Path>, allowed: Arc<[AddressRange]>) -> Result<Self, Cause> {
        let mut roots = RootCertStore::empty();
        match certificates {
            Some(path) => {
                let certificates = CertificateDer::pem_file_iter(path)
                    .map_err(|error| unreadable(path, error.to_string()))?
                    // Bundles of the system have oddities now and then; the others still count.
                    .filter_map(Result::ok);
                roots.add_parsable_certificates(certificates);
            }
            None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| SandboxError::new("setting up TLS", std::io::Error::other(error)))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self {
            tls: TlsConnector::from(Arc::new(tls)),
            allowed,
            wary: false,
            proxies: Proxies::default(),
            idle: Mutex::default(),
            stall: STALL_TIME,
        })
    }

    /// A small resource of at most `most` bytes, asked for once, over a connection that is kept for the next
    /// one. None: the server does not have it.
    ///
    /// # Errors
    /// [`Cause::Fetch`] says why it cannot be had.
    pub async fn get(&self, url: &Url, most: usize) -> Result<Option<Vec<u8>>, Cause> {
        let failed = |failure| match failure {
            Failure::Passing(reason) => fetch_failed(url, reason),
            Failure::Lasting(cause) => cause,
        };
        let Answer {
            mut response,
            connection,
            place,
        } = self.follow(url, None).await.map_err(failed)?;
        let status = response.status();
        let mut bytes = Vec::new();
        while let Some(frame) = response.body_mut().frame().await {
            let frame = frame.map_err(|error| fetch_failed(url, format!("the answer broke off: {error}")))?;
            if let Some(data) = frame.data_ref() {
                bytes.extend_from_slice(data);
            }
            if bytes.len() > most {
                return Err(fetch_failed(
                    url,
                    format!("the answer has more than {most} bytes"),
                ));
            }
        }
        self.keep(place, connection);
        match status {
            StatusCode::OK => Ok(Some(bytes)),
            // Stores of objects that may not be listed say that what is not there is forbidden.
            StatusCode::NOT_FOUND | StatusCode::GONE | StatusCode::FORBIDDEN => Ok(None),
            status => Err(fetch_failed(url, format!("the server answered {status}"))),
        }
    }

    fn keep(&self, place: Place, connection: Connection) {
        if connection.sender.is_closed() {
            return;
        }
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = idle.values().map(Vec::len).sum::<usize>();
        if kept < IDLE_CONNECTIONS {
            idle.entry(place).or_default().push(connection);
        }
    }

    /// A connection that waited and is still good.
    async fn kept(&self, place: &Place) -> Option<Connection> {
        loop {
            let mut connection = {
                let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
                idle.get_mut(place)?.pop()?
            };
            if connection.sender.ready().await.is_ok() {
                return Some(connection);
            }
        }
    }

    /// Fetches a file of at most `most` bytes, and tries again where that may help; `tell` hears of it. Where
    /// `known` is given, the version of a file that the caller has, the server may say that it is current; nothing is
    /// written then.
    ///
    /// # Errors
    /// [`Cause::Fetch`] says why the file cannot be had, [`Cause::DiskTooLarge`] that it is larger than `most`.
    pub async fn download<F: Future<Output = ()>>(
        &self,
        url: &Url,
        target: &Path,
        most: u64,
        known: Option<&str>,
        tell: &impl Fn(String) -> F,
    ) -> Result<Downloaded, Cause> {
        let mut wait = FETCH_WAIT;
        for left in (0..FETCH_TRIES).rev() {
            let reason = match self.try_download(url, target, most, known).await {
                Ok(downloaded) => return Ok(downloaded),
                Err(Failure::Lasting(cause)) => return Err(cause),
                Err(Failure::Passing(reason)) if left == 0 => return Err(fetch_failed(url, reason)),
                Err(Failure::Passing(reason)) => reason,
            };
            tell(format!(
                "'{url}': {reason}; trying again in {} ms",
                wait.as_millis()
            ))
            .await;
            sleep(wait).await;
            wait *= 2;
        }
        Err(fetch_failed(url, "it was never tried".to_owned()))
    }

    async fn try_download(
        &self,
        url: &Url,
        target: &Path,
        most: u64,
        known: Option<&str>,
    ) -> Result<Downloaded, Failure> {
        let lasting = |cause: Cause| Failure::Lasting(cause);
        let mut answer = self.follow(url, known).await?;
        let status = answer.response.status();
        let tag = answer.response.headers().get(ETAG);
        let tag = tag.and_then(|tag| tag.to_str().ok()).map(str::to_owned);
        if status == StatusCode::NOT_MODIFIED && known.is_some() {
            return Ok(Downloaded { fresh: false, tag });
        }
        if status != StatusCode::OK {
            let reason = format!("the server answered {status}");
            let busy = [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS];
            let may_pass = status.is_server_error() || busy.contains(&status);
            return Err(match may_pass {
                true => Failure::Passing(reason),
                false => lasting(fetch_impossible(url, reason)),
            });
        }
        let mut file = new_file(target).map_err(|error| lasting(failed(target, "created")(error)))?;
        let mut written = 0u64;
        loop {
            let Ok(frame) = timeout(self.stall, answer.response.body_mut().frame()).await else {
                let seconds = self.stall.as_secs();
                return Err(Failure::Passing(format!("nothing came for {seconds} s")));
            };
            let Some(frame) = frame else { break };
            let frame =
                frame.map_err(|error| Failure::Passing(format!("the transfer broke off: {error}")))?;
            if let Some(data) = frame.data_ref() {
                written += data.len() as u64;
                if written > most {
                    return Err(lasting(Cause::DiskTooLarge(most)));
                }
                file.write_all(data)
                    .map_err(|error| lasting(failed(target, "written")(error)))?;
            }
        }
        Ok(Downloaded { fresh: true, tag })
    }

    /// Asks for a resource, wherever it has moved to.
    async fn follow(&self, url: &Url, known: Option<&str>) -> Result<Answer, Failure> {
        let (mut at, mut elsewhere) = (url.clone(), false);
        for _ in 0..=REDIRECTS {
            // For good: another host that leads back would choose what is asked of one that it cannot reach itself.
            elsewhere |= self.wary && at.host() != url.host();
            let answer = match timeout(ANSWER_TIME, self.ask(&at, known, elsewhere)).await {
                Ok(answer) => answer?,
                Err(_) => return Err(Failure::Passing(format!("'{at}' does not answer"))),
            };
            let next = match answer.response.status() {
                StatusCode::MOVED_PERMANENTLY
                | StatusCode::FOUND
                | StatusCode::SEE_OTHER
                | StatusCode::TEMPORARY_REDIRECT
                | StatusCode::PERMANENT_REDIRECT => answer.response.headers().get(LOCATION),
                _ => None,
            };
            let Some(next) = next else { return Ok(answer) };
            at = led_to(&at, next, self.wary).map_err(|reason| {
                Failure::Lasting(fetch_impossible(url, format!("'{at}' redirects to {reason}")))
            })?;
        }
        let reason = format!("it redirects more than {REDIRECTS} times");
        Err(Failure::Lasting(fetch_impossible(url, reason)))
    }

    /// `elsewhere`: a cache has led there, and the place is not the user's choice.
    async fn ask(&self, url: &Url, known: Option<&str>, elsewhere: bool) -> Result<Answer, Failure> {
        // Another machine may be allowed more, or have other certificates.
        let wrong = |reason: String| Failure::Lasting(fetch_denied(url, reason));
        let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else {
            return Err(wrong("it has no host".to_owned()));
        };
        let place = (url.scheme().to_owned(), host.to_owned(), port, elsewhere);
        let proxy = self.proxies.of(url).map_err(wrong)?;
        // What a proxy passes on itself it has to be told whole.
        let passed_on = proxy.filter(|_| url.scheme() == "http");
        if let Some(mut connection) = self.kept(&place).await {
            let request = request(url, known, passed_on)?;
            if let Ok(response) = connection.sender.send_request(request).await {
                return Ok(Answer {
                    response,
                    connection,
                    place,
                });
            }
            // The server had closed it; a new one says more.
        }
        // As names of hosts IPv6 addresses have no brackets.
        let name = host.trim_start_matches('[').trim_end_matches(']');
        let mut allowed = self.allowed.to_vec();
        if self.wary && !elsewhere {
            allowed.extend(named_by(url));
        }
        let refused = |error| match error {
            DialError::Denied { address, class, .. } if elsewhere => wrong(format!(
                "a cache leads there, and the address ({address}) is {class}: a cache may lead to its own host, to the \
                 public internet, and to what 'private-caches' in config.toml names"
            )),
            DialError::Denied { address, class, .. } if self.wary => wrong(format!(
                "the name {host} stands for {address} now, which is {class}: a cache that is called by a name must be on the \
                 public internet, or 'private-caches' in config.toml must name the address"
            )),
            DialError::Denied { .. } => wrong(error.to_string()),
            DialError::Resolve { .. } | DialError::Connect { .. } => Failure::Passing(error.to_string()),
        };
        let stream = match proxy {
            // Asked for each connection: who answers for a name may answer otherwise the next time.
            None => dial(name, port, &allowed).await.map_err(refused)?,
            Some(proxy) => {
                match judge(name, port, &allowed).await {
                    // A name that has no address here is the proxy's to judge, if the user has named it. Where a server leads,
                    // one with a certificate for that name must answer.
                    Err(DialError::Resolve { .. }) if elsewhere && passed_on.is_some() => {
                        return Err(wrong(format!(
                            "a cache leads there, and what the name {host} stands for cannot be told here, only by the proxy \
                             {}: a cache may lead to such names over HTTPS alone",
                            proxy.host
                        )));
                    }
                    Ok(()) | Err(DialError::Resolve { .. }) => {}
                    Err(denied) => return Err(refused(denied)),
                }
                // The user's choice, wherever it is.
                let stream = dial(&proxy.host, proxy.port, &everything()).await;
                let mut stream =
                    stream.map_err(|error| Failure::Passing(format!("no way by a proxy: {error}")))?;
                if passed_on.is_none() {
                    tunnel(proxy, &mut stream, host, port)
                        .await
                        .map_err(Failure::Passing)?;
                }
                stream
            }
        };
        let request = request(url, known, passed_on)?;
        if url.scheme() == "http" {
            return send(request, place, stream).await;
        }
        let server = ServerName::try_from(name.to_owned()).map_err(|error| wrong(error.to_string()))?;
        let secured = self.tls.connect(server, stream).await;
        let stream = secured.map_err(|error| wrong(format!("no secure connection to {host}: {error}")))?;
        send(request, place, stream).await
    }
}

/// Every address there is.
fn everything() -> Vec<AddressRange> {
    let all: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
    all.into_iter()
        .filter_map(|address| AddressRange::new(address, 0))
        .collect()
}

/// The addresses that a URL names itself: its host, where that is one, and this machine's own for `localhost`, which
/// nobody else can answer for (RFC 6761).
fn named_by(url: &Url) -> Vec<AddressRange> {
    let ranges = match url.host() {
        Some(Host::Ipv4(address)) => vec![AddressRange::new(address.into(), 32)],
        Some(Host::Ipv6(address)) => match address.to_canonical() {
            IpAddr::V4(address) => vec![AddressRange::new(address.into(), 32)],
            address => vec![AddressRange::new(address, 128)],
        },
        Some(Host::Domain(name)) if is_localhost(name) => vec![
            AddressRange::new(Ipv4Addr::new(127, 0, 0, 0).into(), 8),
            AddressRange::new(Ipv6Addr::LOCALHOST.into(), 128),
        ],
        _ => Vec::new(),
    };
    ranges.into_iter().flatten().collect()
}

/// Names of this machine that nobody else can answer for (RFC 6761).
pub(super) fn is_localhost(name: &str) -> bool {
    let name = name.trim_end_matches('.');
    name == "localhost" || name.ends_with(".localhost")
}

/// Where a server leads to from a place, if it may.
fn led_to(at: &Url, location: &HeaderValue, wary: bool) -> Result<Url, String> {
    let next = location.to_str().ok().and_then(|next| at.join(next).ok());
    match next {
        Some(next) if wary && at.scheme() == "https" && next.scheme() == "http" => {
            Err(format!("'{next}', which is not HTTPS any more"))
        }
        Some(next) if matches!(next.scheme(), "http" | "https") && next.host().is_some() => Ok(next),
        _ => Err("something that is not http or https".to_owned()),
    }
}

/// A file that its owner alone may write to, whatever this process's umask is.
fn new_file(target: &Path) -> std::io::Result<std::fs::File> {
    let file = std::fs::File::create(target)?;
    file.set_permissions(std::fs::Permissions::from_mode(0o644))?;
    Ok(file)
}

async fn send<S>(request: Request<Empty<Bytes>>, place: Place, stream: S) -> Result<Answer, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let passing = |error: hyper::Error| Failure::Passing(error.to_string());
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(passing)?;
    let mut running = JoinSet::new();
    running.spawn(async move {
        // What ends it early ends the transfer, which says so.
        let _ended = connection.await;
    });
    let response = sender.send_request(request).await.map_err(passing)?;
    let connection = Connection {
        sender,
        _running: running,
    };
    Ok(Answer {
        response,
        connection,
        place,
    })
}

/// `by`: the proxy that passes it on.
fn request(url: &Url, known: Option<&str>, by: Option<&HttpProxy>) -> Result<Request<Empty<Bytes>>, Failure> {
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    let mut resource = url[url::Position::BeforePath..url::Position::AfterQuery].to_owned();
    if by.is_some() {
        let host = url.host_str().unwrap_or_default();
        resource = format!("{}://{host}{port}{resource}", url.scheme());
    }
    let mut request = Request::get(resource)
        .header(HOST, format!("{}{port}", url.host_str().unwrap_or_default()))
        .header(USER_AGENT, concat!("tvix-node/", env!("CARGO_PKG_VERSION")))
        .body(Empty::<Bytes>::new())
        .map_err(|error| Failure::Lasting(fetch_failed(url, error.to_string())))?;
    if let Some(known) = known.and_then(|known| HeaderValue::from_str(known).ok()) {
        request.headers_mut().insert(IF_NONE_MATCH, known);
    }
    if let Some(authorization) = by.and_then(|by| by.authorization.clone()) {
        request.headers_mut().insert(PROXY_AUTHORIZATION, authorization);
    }
    Ok(request)
}

fn unreadable(path: &Path, error: String) -> Cause {
    SandboxError::new(
        format!("reading certificates from '{}'", path.display()),
        std::io::Error::other(error),
    )
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_url_names_itself_is_an_address_and_not_what_a_name_stands_for() {
        for (url, addresses) in [
            ("http://10.1.2.3:80/", &["10.1.2.3/32"][..]),
            ("http://127.1/", &["127.0.0.1/32"]),
            ("http://[fd00::1]/", &["fd00::1/128"]),
            ("http://[::ffff:10.1.2.3]/", &["10.1.2.3/32"]),
            ("http://localhost/", &["127.0.0.0/8", "::1/128"]),
            ("http://cache.localhost./", &["127.0.0.0/8", "::1/128"]),
            ("http://localhost.example.org/", &[]),
            ("http://cache.lan/", &[]),
        ] {
            let named = named_by(&Url::parse(url).unwrap());
            let named: Vec<String> = named.iter().map(ToString::to_string).collect();
            assert_eq!(named, addresses, "{url}");
        }
    }

    #[test]
    fn nobody_is_led_from_https_to_http_who_is_wary() {
        let led = |from: &str, to: &'static str, wary| {
            let from = Url::parse(from).unwrap();
            led_to(&from, &HeaderValue::from_static(to), wary).map(String::from)
        };
        for (from, to, open, wary) in [
            ("https://a/x", "https://b/y", true, true),
            ("https://a/x", "y", true, true),
            ("https://a/x", "//b/y", true, true),
            ("https://a/x", "http://a/y", true, false),
            ("https://a/x", "HTTP://b/y", true, false),
            ("http://a/x", "http://b/y", true, true),
            ("http://a/x", "https://b/y", true, true),
            ("https://a/x", "file:///y", false, false),
            ("https://a/x", "ftp://a/y", false, false),
        ] {
            assert_eq!(led(from, to, false).is_ok(), open, "{from} to {to}");
            assert_eq!(led(from, to, true).is_ok(), wary, "{from} to {to}");
        }
    }
}
