//! Requests as values: read from a method and an address by the server, written by the client.

use std::collections::BTreeSet;

use hyper::{Method, Uri};
use tvix_node_protocol::StorePath;
use tvix_node_protocol::control::{AddSource, AddedAs};

use super::query::{decode, encode};

/// What is asked for, bodies aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Route {
    Status,
    Down,
    OpenSession,
    Events(u64),
    Batch(u64),
    AddSource(u64, AddSource),
    FindSource(u64),
    Paths,
    Log(StorePath),
    Why(StorePath),
    Records(StorePath),
    AddRoot,
    Store,
    Archive(StorePath),
    Export,
    Import,
    Invite,
    Join,
    FounderKey,
    Team(Option<String>),
    Peers(Option<String>),
    Revoke,
    Renew,
    Leave,
    Owner,
}

/// Why an address or a method means nothing.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum RouteError {
    #[error(
        "there is nothing at '{0}'; the addresses are /v1/status, /v1/down, /v1/sessions, /v1/sessions/ID/events, /v1/sessions/ID/batch, /v1/sessions/ID/store, /v1/sessions/ID/sources, /v1/paths, /v1/log, /v1/why, /v1/record, /v1/roots, /v1/store, /v1/nar, /v1/export, /v1/import, /v1/owner, /v1/team and /v1/team/invite, join, founder-key, peers, revoke, renew and leave"
    )]
    NoSuchAddress(String),
    #[error("'{address}' is asked with {wanted}, not with {method}")]
    Method {
        address: String,
        method: Method,
        wanted: &'static str,
    },
    #[error("'{0}' in the address is not the number of a session")]
    Session(String),
    #[error("the address lacks '{0}=…' after its '?'")]
    Missing(&'static str),
    #[error("'{0}' in the address is not something that can be said here, or is said twice")]
    Unexpected(String),
    #[error("the value of '{key}' in the address is wrong: {reason}")]
    Value { key: &'static str, reason: String },
}

impl Route {
    /// Reads a request's first line.
    pub(super) fn parse(method: &Method, uri: &Uri) -> Result<Self, RouteError> {
        let address = uri.path();
        let unknown = || RouteError::NoSuchAddress(address.to_owned());
        let mut query = Query::parse(uri.query().unwrap_or(""))?;
        let segments: Vec<&str> = address
            .strip_prefix("/v1/")
            .ok_or_else(unknown)?
            .split('/')
            .collect();
        let (wanted, route) = match segments.as_slice() {
            ["status"] => ("GET", Self::Status),
            ["down"] => ("POST", Self::Down),
            ["sessions"] => ("POST", Self::OpenSession),
            ["sessions", id, what] => {
                let id = || id.parse().map_err(|_| RouteError::Session((*id).to_owned()));
                match *what {
                    "events" => ("GET", Self::Events(id()?)),
                    "batch" => ("POST", Self::Batch(id()?)),
                    "sources" => ("POST", Self::FindSource(id()?)),
                    "store" => ("PUT", Self::AddSource(id()?, query.source()?)),
                    _ => return Err(unknown()),
                }
            }
            ["paths"] => ("POST", Self::Paths),
            ["log"] => ("GET", Self::Log(query.path()?)),
            ["why"] => ("GET", Self::Why(query.path()?)),
            ["record"] => ("GET", Self::Records(query.path()?)),
            ["roots"] => ("POST", Self::AddRoot),
            ["store"] => ("POST", Self::Store),
            ["nar"] => ("GET", Self::Archive(query.path()?)),
            ["export"] => ("POST", Self::Export),
            ["import"] => ("PUT", Self::Import),
            ["owner"] => ("POST", Self::Owner),
            ["team"] => ("GET", Self::Team(query.take("team"))),
            ["team", what] => match *what {
                "peers" => ("GET", Self::Peers(query.take("team"))),
                "invite" => ("POST", Self::Invite),
                "join" => ("POST", Self::Join),
                "founder-key" => ("POST", Self::FounderKey),
                "revoke" => ("POST", Self::Revoke),
                "renew" => ("POST", Self::Renew),
                "leave" => ("POST", Self::Leave),
                _ => return Err(unknown()),
            },
            _ => return Err(unknown()),
        };
        query.finish()?;
        if method.as_str() == wanted {
            Ok(route)
        } else {
            Err(RouteError::Method {
                address: address.to_owned(),
                method: method.clone(),
                wanted,
            })
        }
    }

    /// Writes a request's method and address.
    pub(super) fn to_request(&self) -> (Method, String) {
        let get = |address: &str| (Method::GET, address.to_owned());
        let post = |address: String| (Method::POST, address);
        match self {
            Self::Status => get("/v1/status"),
            Self::Down => post("/v1/down".to_owned()),
            Self::OpenSession => post("/v1/sessions".to_owned()),
            Self::Events(id) => (Method::GET, format!("/v1/sessions/{id}/events")),
            Self::Batch(id) => post(format!("/v1/sessions/{id}/batch")),
            Self::FindSource(id) => post(format!("/v1/sessions/{id}/sources")),
            Self::AddSource(id, source) => {
                let method = match source.method {
                    AddedAs::Nar => "nar",
                    AddedAs::Flat => "flat",
                };
                let mut address = format!("/v1/sessions/{id}/store?method={method}&name=");
                encode(&source.name, &mut address);
                let optional = [
                    ("fingerprint", &source.fingerprint),
                    ("expected", &source.expected),
                ];
                for (key, value) in optional {
                    if let Some(value) = value {
                        address.push('&');
                        address.push_str(key);
                        address.push('=');
                        encode(value, &mut address);
                    }
                }
                if !source.references.is_empty() {
                    let names: Vec<String> = source.references.iter().map(StorePath::to_basename).collect();
                    address.push_str("&references=");
                    encode(&names.join(","), &mut address);
                }
                (Method::PUT, address)
            }
            Self::Paths => post("/v1/paths".to_owned()),
            Self::Log(path) => (Method::GET, with_path("/v1/log", path)),
            Self::Why(path) => (Method::GET, with_path("/v1/why", path)),
            Self::Records(path) => (Method::GET, with_path("/v1/record", path)),
            Self::AddRoot => post("/v1/roots".to_owned()),
            Self::Store => post("/v1/store".to_owned()),
            Self::Archive(path) => (Method::GET, with_path("/v1/nar", path)),
            Self::Export => post("/v1/export".to_owned()),
            Self::Import => (Method::PUT, "/v1/import".to_owned()),
            Self::Team(team) => (Method::GET, with_team("/v1/team", team.as_deref())),
            Self::Peers(team) => (Method::GET, with_team("/v1/team/peers", team.as_deref())),
            Self::Invite => post("/v1/team/invite".to_owned()),
            Self::Join => post("/v1/team/join".to_owned()),
            Self::FounderKey => post("/v1/team/founder-key".to_owned()),
            Self::Revoke => post("/v1/team/revoke".to_owned()),
            Self::Renew => post("/v1/team/renew".to_owned()),
            Self::Leave => post("/v1/team/leave".to_owned()),
            Self::Owner => post("/v1/owner".to_owned()),
        }
    }
}

fn with_path(address: &str, path: &StorePath) -> String {
    let mut address = format!("{address}?path=");
    encode(&path.to_basename(), &mut address);
    address
}

fn with_team(address: &str, team: Option<&str>) -> String {
    let mut address = address.to_owned();
    if let Some(team) = team {
        address.push_str("?team=");
        encode(team, &mut address);
    }
    address
}

/// The pairs after the `?`, each to be taken once.
struct Query(Vec<(String, String)>);

impl Query {
    fn parse(text: &str) -> Result<Self, RouteError> {
        let mut pairs: Vec<(String, String)> = Vec::new();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let unexpected = || RouteError::Unexpected(pair.to_owned());
            let (key, value) = pair.split_once('=').ok_or_else(unexpected)?;
            let value = decode(value).ok_or_else(unexpected)?;
            if pairs.iter().any(|(other, _)| other == key) {
                return Err(unexpected());
            }
            pairs.push((key.to_owned(), value));
        }
        Ok(Self(pairs))
    }

    fn take(&mut self, key: &str) -> Option<String> {
        let index = self.0.iter().position(|(other, _)| other == key)?;
        Some(self.0.swap_remove(index).1)
    }

    fn path(&mut self) -> Result<StorePath, RouteError> {
        let text = self.take("path").ok_or(RouteError::Missing("path"))?;
        let parsed = if text.starts_with('/') {
            StorePath::from_absolute_path(text.as_bytes())
        } else {
            StorePath::from_basename(text.as_bytes())
        };
        parsed.map_err(|error| RouteError::Value {
            key: "path",
            reason: format!("'{text}' is not a store path: {error}"),
        })
    }

    fn source(&mut self) -> Result<AddSource, RouteError> {
        let name = self.take("name").ok_or(RouteError::Missing("name"))?;
        let method = match self.take("method").ok_or(RouteError::Missing("method"))?.as_str() {
            "nar" => AddedAs::Nar,
            "flat" => AddedAs::Flat,
            other => {
                return Err(RouteError::Value {
                    key: "method",
                    reason: format!("'{other}' is neither 'nar' nor 'flat'"),
                });
            }
        };
        Ok(AddSource {
            name,
            method,
            fingerprint: self.take("fingerprint"),
            expected: self.take("expected"),
            references: self.references()?,
        })
    }

    /// Base names of store paths, with commas between them, which no name has.
    fn references(&mut self) -> Result<BTreeSet<StorePath>, RouteError> {
        let text = self.take("references").unwrap_or_default();
        let names = text.split(',').filter(|name| !name.is_empty());
        names
            .map(|name| {
                StorePath::from_basename(name.as_bytes()).map_err(|error| RouteError::Value {
                    key: "references",
                    reason: format!("'{name}' is not the name of a store path: {error}"),
                })
            })
            .collect()
    }

    fn finish(self) -> Result<(), RouteError> {
        match self.0.into_iter().next() {
            None => Ok(()),
            Some((key, _)) => Err(RouteError::Unexpected(key)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELLO: &str = "63sb9rkl0xr649vyriibhav510k5nq6d-gtk+-2.10.drv";

    fn parse(method: &str, address: &str) -> Result<Route, RouteError> {
        Route::parse(
            &Method::from_bytes(method.as_bytes()).unwrap(),
            &address.parse().unwrap(),
        )
    }

    #[test]
    fn what_the_client_writes_the_server_reads() {
        let path = StorePath::from_basename(HELLO.as_bytes()).unwrap();
        let source = |fingerprint: Option<&str>, expected: Option<&str>| AddSource {
            name: "we+ird?=name".to_owned(),
            method: AddedAs::Flat,
            fingerprint: fingerprint.map(str::to_owned),
            expected: expected.map(str::to_owned),
            references: BTreeSet::new(),
        };
        let mut referring = source(None, None);
        let other = StorePath::from_parts([7; 20], "o=?+").unwrap();
        referring.references = BTreeSet::from([path.clone(), other]);
        let routes = [
            Route::Status,
            Route::Down,
            Route::OpenSession,
            Route::Events(0),
            Route::Batch(u64::MAX),
            Route::AddSource(3, source(None, None)),
            Route::AddSource(3, source(Some("a&b"), Some("sha256-6zPPDz+/=="))),
            Route::AddSource(3, referring),
            Route::FindSource(7),
            Route::Paths,
            Route::Log(path.clone()),
            Route::Why(path.clone()),
            Route::Records(path.clone()),
            Route::Archive(path),
            Route::Export,
            Route::Import,
            Route::AddRoot,
            Route::Store,
            Route::Invite,
            Route::Join,
            Route::FounderKey,
            Route::Team(None),
            Route::Team(Some("ann's team".to_owned())),
            Route::Peers(None),
            Route::Peers(Some("3f2a91c0".to_owned())),
            Route::Revoke,
            Route::Renew,
            Route::Leave,
            Route::Owner,
        ];
        for route in routes {
            let (method, address) = route.to_request();
            assert_eq!(parse(method.as_str(), &address).as_ref(), Ok(&route));
        }
    }

    #[test]
    fn a_path_may_be_written_with_its_store_directory() {
        let path = StorePath::from_basename(HELLO.as_bytes()).unwrap();
        assert_eq!(
            parse("GET", &format!("/v1/log?path=/nix/store/{HELLO}")),
            Ok(Route::Log(path))
        );
    }

    #[test]
    fn what_means_nothing_is_refused_by_name() {
        use RouteError as E;
        type Is = fn(&E) -> bool;
        let cases: [(&str, &str, Is); 13] = [
            ("GET", "/", |e| matches!(e, E::NoSuchAddress(_))),
            ("GET", "/v1/team/secrets", |e| matches!(e, E::NoSuchAddress(_))),
            ("GET", "/v1/team/leave", |e| {
                matches!(e, E::Method { wanted: "POST", .. })
            }),
            ("GET", "/v1/record", |e| matches!(e, E::Missing("path"))),
            ("GET", "/v2/status", |e| matches!(e, E::NoSuchAddress(_))),
            ("GET", "/v1/sessions/1/other", |e| {
                matches!(e, E::NoSuchAddress(_))
            }),
            ("GET", "/v1/down", |e| {
                matches!(e, E::Method { wanted: "POST", .. })
            }),
            ("GET", "/v1/sessions/-1/events", |e| matches!(e, E::Session(_))),
            ("GET", "/v1/log", |e| matches!(e, E::Missing("path"))),
            ("GET", "/v1/log?path=hello", |e| {
                matches!(e, E::Value { key: "path", .. })
            }),
            ("PUT", "/v1/sessions/1/store?name=a&method=tar", |e| {
                matches!(e, E::Value { .. })
            }),
            ("GET", "/v1/status?verbose=1", |e| matches!(e, E::Unexpected(_))),
            ("PUT", "/v1/sessions/1/store?name=a&name=b&method=nar", |e| {
                matches!(e, E::Unexpected(_))
            }),
        ];
        for (method, address, is) in cases {
            let error = parse(method, address).expect_err(address);
            assert!(is(&error), "{method} {address}: {error}");
        }
    }
}
