//! `fetchurl` and `fetchTarball`.

use tvix_node_protocol::nix::hash::{CAHash, HashAlgorithm, NixHash};
use tvix_node_protocol::nix::store_path::{StorePath, build_ca_path};

use super::PrimOp;
use super::paths::tarball_url;
use crate::error::Result;
use crate::evaluation::{Evaluation, files};
use crate::fetch::{Fetch, Fetched};
use crate::heap::{Value, View};
use crate::host::Ingestion;
use crate::options::Reading;
use crate::pure::store_name;
use crate::syntax::position::Pos;

pub(super) const TABLE: &[PrimOp] = &[
    PrimOp::new("fetchurl", 1, |evaluation, arguments, pos| {
        fetch(evaluation, arguments[0], pos, What::File)
    }),
    PrimOp::new("fetchTarball", 1, |evaluation, arguments, pos| {
        fetch(evaluation, arguments[0], pos, What::Archive)
    })
    .plain(),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    File,
    Archive,
}

/// What the argument says.
struct Wanted {
    url: String,
    name: Option<String>,
    hash: Option<NixHash>,
}

fn fetch<'h>(evaluation: &Evaluation<'h>, argument: Value<'h>, pos: Pos, what: What) -> Result<Value<'h>> {
    let (builtin, default_name) = match what {
        What::File => ("fetchurl", None),
        What::Archive => ("fetchTarball", Some("source")),
    };
    let argument = evaluation.force_at(argument, pos)?;
    let from_set = matches!(argument.view(), View::Attrs(_));
    let mut wanted = wanted(evaluation, argument, pos, builtin)?;
    if what == What::Archive && wanted.url.starts_with("channel:") {
        wanted.url = tarball_url(&wanted.url).unwrap_or(wanted.url);
    }
    evaluation.check_url(&wanted.url, pos)?;
    let named = wanted.name.is_some();
    let name = match wanted.name.as_deref().or(default_name) {
        None | Some("") => wanted.url.rsplit('/').find(|part| !part.is_empty()),
        name => name,
    };
    let name = name.unwrap_or_default().to_owned();
    if let Err(error) = store_name::check(&name) {
        let way_out = if named {
            format!("Please change the value for the 'name' attribute passed to '{builtin}'")
        } else if from_set {
            format!("Please add a valid 'name' attribute to the argument for '{builtin}'")
        } else {
            format!("Please pass an attribute set with 'url' and 'name' attributes to '{builtin}'")
        };
        let url = &wanted.url;
        return Err(evaluation.error(
            pos,
            format!(
                "invalid store path name when fetching URL '{url}': {error}. {way_out}, so that it can create a valid store path."
            ),
        ));
    }
    if evaluation.options.reading == Reading::Pure && wanted.hash.is_none() {
        let message = format!("in pure evaluation mode, '{builtin}' requires a 'sha256' argument");
        return Err(evaluation.error(pos, message));
    }
    if let Some(hash) = &wanted.hash {
        let content = match what {
            What::File => CAHash::Flat(hash.clone()),
            What::Archive => CAHash::Nar(hash.clone()),
        };
        let stored = build_ca_path(&name, &content, std::iter::empty(), false)
            .map_err(|error| evaluation.error(pos, error.to_string()))?;
        // What is there already has that hash: nothing is fetched, nobody is asked.
        if evaluation.is_there(&stored, pos)? {
            return Ok(Value::str(evaluation.store_path_str(&stored)));
        }
    }
    let (url, expected) = (wanted.url, wanted.hash);
    let wanted = match what {
        What::File => Fetch::File {
            url,
            name,
            ingestion: Ingestion::Flat,
            expected,
        },
        What::Archive => Fetch::Archive { url, name, expected },
    };
    let fetched = evaluation.fetch(&wanted, pos)?;
    Ok(Value::str(evaluation.store_path_str(&fetched.path)))
}

fn wanted<'h>(evaluation: &Evaluation<'h>, argument: Value<'h>, pos: Pos, builtin: &str) -> Result<Wanted> {
    let text = |value, pos, trace| -> Result<String> {
        let text = evaluation.string_no_context(value, pos, trace)?;
        Ok(String::from_utf8_lossy(text.bytes()).into_owned())
    };
    let View::Attrs(attrs) = argument.view() else {
        return Ok(Wanted {
            url: text(argument, pos, "while evaluating the url we should fetch")?,
            name: None,
            hash: None,
        });
    };
    let (mut url, mut name, mut hash) = (None, None, None);
    for attr in attrs.iter() {
        let value = attr.value();
        match evaluation.name(attr.name).as_str() {
            "url" => url = Some(text(value, attr.pos, "while evaluating the url we should fetch")?),
            "name" => {
                let trace = "while evaluating the name of the content we should fetch";
                name = Some(text(value, attr.pos, trace)?);
            }
            "sha256" => {
                let trace = "while evaluating the sha256 of the content we should fetch";
                hash = Some(sha256(evaluation, &text(value, attr.pos, trace)?, attr.pos)?);
            }
            other => {
                let message = format!("unsupported argument '{other}' to '{builtin}'");
                return Err(evaluation.error(pos, message));
            }
        }
    }
    match url {
        Some(url) => Ok(Wanted { url, name, hash }),
        None => Err(evaluation.error(pos, "'url' argument required")),
    }
}

/// A SHA-256 in any notation. An empty text stands for one that is not known yet: zeros.
pub(super) fn sha256(evaluation: &Evaluation<'_>, text: &str, pos: Pos) -> Result<NixHash> {
    if text.is_empty() {
        let hash = NixHash::Sha256([0; 32]);
        let message = format!("found empty hash, assuming '{}'", hash.to_sri_string());
        evaluation
            .host
            .message(crate::host::MessageKind::Warning, &message);
        return Ok(hash);
    }
    crate::derivation::parse_hash(text, Some(HashAlgorithm::Sha256))
        .map_err(|error| evaluation.error(pos, error))
}

impl<'h> Evaluation<'h> {
    /// Refuses URLs that a restricted evaluation must not fetch.
    pub(super) fn check_url(&self, url: &str, pos: Pos) -> Result<()> {
        if self.options.reading != Reading::Restricted {
            return Ok(());
        }
        let local = match url.strip_prefix("file://") {
            Some(path) => Some(path),
            None => url.starts_with('/').then_some(url),
        };
        match local {
            Some(path) => self.check_reading(&files::canonical(path.as_bytes()), pos),
            None => Err(self.error(
                pos,
                format!("access to URI '{url}' is forbidden in restricted mode"),
            )),
        }
    }

    /// Whether a store path is there, so that what it holds need not be fetched.
    pub(super) fn is_there(&self, path: &StorePath, pos: Pos) -> Result<bool> {
        let there = self
            .host
            .is_valid(path)
            .map_err(|error| self.host_error(pos, &error))?;
        if there {
            self.remember_added(path);
        }
        Ok(there)
    }

    /// Where the folder lies that an archive unpacks to, which the search path or a command names by its URL.
    pub(crate) fn fetch_archive(&self, url: &str, pos: Pos) -> Result<Vec<u8>> {
        let wanted = Fetch::Archive {
            url: tarball_url(url).unwrap_or_else(|| url.to_owned()),
            name: "source".to_owned(),
            expected: None,
        };
        let fetched = self.fetch(&wanted, pos)?;
        Ok(fetched.path.to_absolute_path().into_bytes())
    }

    /// Has the host fetch something, suspending this target until it is there.
    pub(crate) fn fetch(&self, wanted: &Fetch, pos: Pos) -> Result<Fetched> {
        let failed = |error| self.host_error(pos, &error);
        let fetched = match self.host.begin_fetch(wanted).map_err(failed)? {
            None => self.host.fetch(wanted),
            Some(ticket) => {
                let ended = self.switch.wait_for_ticket(self, ticket);
                ended.map_err(|error| error.at(pos))?.map_err(failed)?;
                self.host.fetched(ticket)
            }
        };
        let fetched = fetched.map_err(failed)?;
        self.remember_added(&fetched.path);
        Ok(fetched)
    }
}
