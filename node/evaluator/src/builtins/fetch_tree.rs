//! `fetchGit`, `fetchMercurial` and `fetchTree`: trees with what is known of where they come from.
//!
//! Source of the behaviour: `fetchTree.cc`, `fetchMercurial.cc` and libfetchers of Nix 2.34. The input types that belong to flakes
//! (`github`, `gitlab`, `sourcehut`, `indirect`) are not there.

use std::collections::BTreeMap;
use std::path::PathBuf;

use tvix_node_protocol::nix::hash::NixHash;

use super::PrimOp;
use super::fetch::sha256;
use crate::error::Result;
use crate::evaluation::{Coerce, ContextBuilder, Evaluation, files};
use crate::fetch::{Fetch, Fetched, GitFetch, MercurialFetch};
use crate::heap::{AttrsBuilder, Value, View};
use crate::host::Ingestion;
use crate::options::Reading;
use crate::pure::date;
use crate::syntax::position::Pos;
use crate::syntax::symbol::known;

pub(super) const TABLE: &[PrimOp] = &[
    PrimOp::new("fetchGit", 1, |evaluation, arguments, pos| {
        fetch(evaluation, arguments[0], pos, Builtin::Git)
    })
    .plain(),
    PrimOp::new("fetchTree", 1, |evaluation, arguments, pos| {
        fetch(evaluation, arguments[0], pos, Builtin::Tree)
    })
    .plain(),
];

/// Which builtin was called.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Builtin {
    Git,
    Tree,
}

impl Builtin {
    const fn name(self) -> &'static str {
        match self {
            Self::Git => "fetchGit",
            Self::Tree => "fetchTree",
        }
    }
}

/// An attribute of an input.
enum Scalar {
    Text(String),
    Flag(bool),
    Number(u64),
}

/// What an expression says of an input: its type, and everything else by name.
struct Input {
    kind: String,
    attributes: BTreeMap<String, Scalar>,
}

/// Attributes that inputs of each type may have.
const GIT: &[&str] = &[
    "url",
    "ref",
    "rev",
    "shallow",
    "submodules",
    "lfs",
    "exportIgnore",
    "lastModified",
    "revCount",
    "narHash",
    "allRefs",
    "name",
    "dirtyRev",
    "dirtyShortRev",
];
const MERCURIAL: &[&str] = &["url", "ref", "rev", "revCount", "narHash", "name"];
const DOWNLOAD: &[&str] = &[
    "url",
    "narHash",
    "name",
    "unpack",
    "rev",
    "revCount",
    "lastModified",
];
const PATH: &[&str] = &["path", "rev", "revCount", "lastModified", "narHash"];

fn fetch<'h>(
    evaluation: &Evaluation<'h>,
    argument: Value<'h>,
    pos: Pos,
    builtin: Builtin,
) -> Result<Value<'h>> {
    let mut context = ContextBuilder::default();
    let input = input(evaluation, argument, pos, builtin, &mut context)?;
    if !context.is_empty() {
        evaluation.realise_context(context, pos)?;
    }
    let fetch = input.wanted(evaluation, pos, builtin)?;
    let fetched = evaluation.fetch(&fetch, pos)?;
    Ok(described(evaluation, &input, &fetched, pos, builtin))
}

/// Reads the argument.
fn input<'h>(
    evaluation: &Evaluation<'h>,
    argument: Value<'h>,
    pos: Pos,
    builtin: Builtin,
    context: &mut ContextBuilder<'h>,
) -> Result<Input> {
    let name = builtin.name();
    let argument = evaluation.force_at(argument, pos)?;
    let mut attributes = BTreeMap::new();
    let View::Attrs(attrs) = argument.view() else {
        if builtin == Builtin::Tree {
            let message = "passing a string argument to 'fetchTree' belongs to flakes, which are not supported yet; \
                           pass a set with a 'type'";
            return Err(evaluation.error(pos, message));
        }
        let trace = "while evaluating the first argument passed to 'fetchGit'";
        let url = evaluation.coerce(argument, pos, context, Coerce::PLAIN, trace)?;
        let url = String::from_utf8_lossy(url).into_owned();
        attributes.insert("url".to_owned(), Scalar::Text(url));
        let kind = "git".to_owned();
        return Ok(Input { kind, attributes });
    };
    let kind = match (builtin, attrs.get(known::TYPE)) {
        (Builtin::Git, None) => "git".to_owned(),
        (Builtin::Git, Some(_)) => return Err(evaluation.error(pos, "unexpected argument 'type'")),
        (Builtin::Tree, None) => {
            return Err(evaluation.error(pos, "argument 'type' is missing in call to 'fetchTree'"));
        }
        (Builtin::Tree, Some(attr)) => {
            let trace = "while evaluating the `type` argument passed to 'fetchTree'";
            let kind = evaluation.string_no_context(attr.value(), attr.pos, trace)?;
            String::from_utf8_lossy(kind.bytes()).into_owned()
        }
    };
    for attr in attrs.iter().filter(|attr| attr.name != known::TYPE) {
        let key = evaluation.name(attr.name);
        let value = evaluation.force_at(attr.value(), attr.pos)?;
        let scalar = match value.view() {
            View::Path(_) | View::Str(_) => {
                let text = evaluation.coerce(value, attr.pos, context, Coerce::PLAIN, "")?;
                Scalar::Text(String::from_utf8_lossy(text).into_owned())
            }
            View::Bool(flag) => Scalar::Flag(flag),
            View::Int(number) => Scalar::Number(u64::try_from(number).map_err(|_| {
                let message = format!("negative value given for '{name}' argument '{key}': {number}");
                evaluation.error(pos, message)
            })?),
            _ => {
                let found = evaluation.describe(value);
                let message = format!(
                    "argument '{key}' to '{name}' is {found} while a string, Boolean or integer is expected"
                );
                return Err(evaluation.error(attr.pos, message));
            }
        };
        attributes.insert(key, scalar);
    }
    if builtin == Builtin::Tree && attributes.contains_key("name") {
        return Err(evaluation.error(pos, "argument 'name' isn’t supported in call to 'fetchTree'"));
    }
    Ok(Input { kind, attributes })
}

impl Input {
    fn text(&self, evaluation: &Evaluation<'_>, name: &str, pos: Pos) -> Result<Option<String>> {
        match self.attributes.get(name) {
            None => Ok(None),
            Some(Scalar::Text(text)) => Ok(Some(text.clone())),
            Some(_) => Err(evaluation.error(pos, format!("input attribute '{name}' is not a string"))),
        }
    }

    fn required(&self, evaluation: &Evaluation<'_>, name: &str, pos: Pos) -> Result<String> {
        match self.text(evaluation, name, pos)? {
            Some(text) => Ok(text),
            None => Err(evaluation.error(pos, format!("input attribute '{name}' is missing"))),
        }
    }

    fn flag(&self, evaluation: &Evaluation<'_>, name: &str, pos: Pos) -> Result<Option<bool>> {
        match self.attributes.get(name) {
            None => Ok(None),
            Some(Scalar::Flag(flag)) => Ok(Some(*flag)),
            Some(_) => Err(evaluation.error(pos, format!("input attribute '{name}' is not a Boolean"))),
        }
    }

    fn number(&self, name: &str) -> Option<u64> {
        match self.attributes.get(name) {
            Some(Scalar::Number(number)) => Some(*number),
            _ => None,
        }
    }

    /// Checks everything, and says what is to be fetched.
    fn wanted(&self, evaluation: &Evaluation<'_>, pos: Pos, builtin: Builtin) -> Result<Fetch> {
        let error = |message: String| evaluation.error(pos, message);
        let allowed = match self.kind.as_str() {
            "git" => GIT,
            "tarball" | "file" => DOWNLOAD,
            "path" => PATH,
            "github" | "gitlab" | "sourcehut" | "indirect" => {
                let kind = &self.kind;
                let message =
                    format!("inputs of type '{kind}' belong to flakes, which are not supported yet");
                return Err(error(message));
            }
            "hg" => MERCURIAL,
            kind => return Err(error(format!("cannot fetch unsupported input of type '{kind}'"))),
        };
        for name in self.attributes.keys() {
            let kind = &self.kind;
            if matches!(
                name.as_str(),
                "verifyCommit" | "keytype" | "publicKey" | "publicKeys"
            ) && kind == "git"
            {
                let message = format!("input attribute '{name}': verified fetches are not supported");
                return Err(error(message));
            }
            if !allowed.contains(&name.as_str()) {
                let message = format!("input attribute '{name}' not supported by scheme '{kind}'");
                return Err(error(message));
            }
        }
        for name in ["lastModified", "revCount"] {
            if self.attributes.contains_key(name) && self.number(name).is_none() {
                return Err(error(format!("input attribute '{name}' is not an integer")));
            }
        }
        let revision = self.text(evaluation, "rev", pos)?;
        if let Some(revision) = &revision
            && !is_revision(revision)
        {
            let message = format!("'{revision}' is not a commit: 40 or 64 hexadecimal digits are expected");
            return Err(error(message));
        }
        let expected = match self.text(evaluation, "narHash", pos)? {
            None => None,
            Some(text) => Some(sha256(evaluation, &text, pos)?),
        };
        let place = if self.kind == "path" { "path" } else { "url" };
        let place = self.required(evaluation, place, pos)?;
        let locked = expected.is_some() || (matches!(self.kind.as_str(), "git" | "hg") && revision.is_some());
        if evaluation.options.reading == Reading::Pure && !locked {
            let message = format!(
                "in pure evaluation mode, '{}' doesn't fetch unlocked input '{place}'",
                builtin.name()
            );
            return Err(error(message));
        }
        match self.kind.as_str() {
            "git" => self.git(evaluation, pos, builtin, place, expected),
            "hg" => {
                evaluation.check_url(&place, pos)?;
                let reference = self.text(evaluation, "ref", pos)?;
                Ok(Fetch::Mercurial(MercurialFetch {
                    reference: checked_reference(evaluation, reference, pos)?,
                    url: place,
                    name: self
                        .text(evaluation, "name", pos)?
                        .unwrap_or_else(|| SOURCE.to_owned()),
                    revision,
                    expected,
                }))
            }
            "path" => {
                if !place.starts_with('/') {
                    let message = format!("cannot fetch input '{place}' because it uses a relative path");
                    return Err(error(message));
                }
                let path = evaluation.resolve(&files::canonical(place.as_bytes()), pos)?;
                evaluation.check_reading(&path, pos)?;
                Ok(Fetch::Path {
                    path: PathBuf::from(files::os(&path)),
                    name: SOURCE.to_owned(),
                    expected,
                })
            }
            kind => {
                evaluation.check_url(&place, pos)?;
                let (url, name) = (place, SOURCE.to_owned());
                Ok(match kind {
                    "file" => Fetch::File {
                        url,
                        name,
                        ingestion: Ingestion::Nar,
                        expected,
                    },
                    _ => Fetch::Archive { url, name, expected },
                })
            }
        }
    }

    fn git(
        &self,
        evaluation: &Evaluation<'_>,
        pos: Pos,
        builtin: Builtin,
        url: String,
        expected: Option<NixHash>,
    ) -> Result<Fetch> {
        // `git+https` is how other places of Nix say that a URL is a repository's.
        let url = match url.strip_prefix("git+") {
            Some(rest) => rest.to_owned(),
            None => url,
        };
        evaluation.check_url(&url, pos)?;
        let flag = |name| self.flag(evaluation, name, pos);
        let reference = self.text(evaluation, "ref", pos)?;
        if let Some(reference) = &reference
            && !is_reference(reference)
        {
            return Err(evaluation.error(pos, format!("invalid Git branch/tag name '{reference}'")));
        }
        if flag("lfs")? == Some(true) {
            return Err(evaluation.error(pos, "input attribute 'lfs': Git LFS is not supported"));
        }
        let submodules = flag("submodules")?.unwrap_or(false);
        let is_fetch_git = builtin == Builtin::Git;
        let export_ignore = flag("exportIgnore")?.unwrap_or(is_fetch_git && !submodules);
        if submodules && export_ignore {
            let message = "exportIgnore and submodules are not supported together yet";
            return Err(evaluation.error(pos, message));
        }
        Ok(Fetch::Git(GitFetch {
            url,
            name: self
                .text(evaluation, "name", pos)?
                .unwrap_or_else(|| SOURCE.to_owned()),
            reference,
            revision: self.text(evaluation, "rev", pos)?,
            all_references: flag("allRefs")?.unwrap_or(false),
            shallow: flag("shallow")?.unwrap_or(!is_fetch_git),
            submodules,
            export_ignore,
            expected,
        }))
    }
}

/// The name of a tree's store path where nothing else is said.
pub(super) const SOURCE: &str = "source";

/// How many digits of a commit its short form has.
const SHORT_REVISION: usize = 7;

/// The commit of a tree that is none, as `fetchGit` has always called it.
pub(super) const NO_REVISION: &str = "0000000000000000000000000000000000000000";

/// The set that the builtins return.
fn described<'h>(
    evaluation: &Evaluation<'h>,
    input: &Input,
    fetched: &Fetched,
    pos: Pos,
    builtin: Builtin,
) -> Value<'h> {
    let mut attrs = AttrsBuilder::with_capacity(10);
    let mut put = |name: &str, value: Value<'h>| {
        attrs.insert_at(evaluation.symbol(name.as_bytes()), pos, value);
    };
    let text = |text: &str| evaluation.text(text.as_bytes());
    let number = |number: u64| Value::int(evaluation.heap, i64::try_from(number).unwrap_or(i64::MAX));
    put("outPath", Value::str(evaluation.store_path_str(&fetched.path)));
    put("narHash", text(&fetched.nar_hash.to_sri_string()));
    if input.kind == "git" {
        let submodules = matches!(input.attributes.get("submodules"), Some(Scalar::Flag(true)));
        put("submodules", Value::bool(submodules));
    }
    let git = fetched.git.as_ref();
    let said = match input.attributes.get("rev") {
        Some(Scalar::Text(revision)) => Some(revision.as_str()),
        _ => None,
    };
    // `fetchGit` has always had a commit and a count, zero where there are none.
    let lacking = builtin == Builtin::Git;
    let changeset = fetched
        .mercurial
        .as_ref()
        .and_then(|mercurial| mercurial.changeset.as_ref());
    let revision = git.and_then(|git| git.revision.as_deref());
    let revision = revision
        .or(changeset.map(|(revision, _)| revision.as_str()))
        .or(said);
    if let Some(revision) = revision.or(lacking.then_some(NO_REVISION)) {
        put("rev", text(revision));
        put("shortRev", text(&revision[..SHORT_REVISION]));
    }
    let count = input
        .number("revCount")
        .or(git.and_then(|git| git.count))
        .or(changeset.map(|(_, count)| *count));
    if let Some(count) = count.or(lacking.then_some(0)) {
        put("revCount", number(count));
    }
    if let Some(changed) = git.and_then(|git| git.changed.as_deref()) {
        put("dirtyRev", text(&format!("{changed}-dirty")));
        put(
            "dirtyShortRev",
            text(&format!("{}-dirty", &changed[..SHORT_REVISION])),
        );
    }
    if let Some(time) = input.number("lastModified").or(fetched.last_modified) {
        put("lastModified", number(time));
        put("lastModifiedDate", text(&date::compact(time)));
    }
    Value::attrs(attrs.finish(evaluation.heap))
}

/// Whether a text is a commit: a SHA-1 or SHA-256 in hexadecimal digits.
pub(super) fn is_revision(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Refuses what names no branch or tag of Mercurial, which would take some of it for options or expressions.
pub(super) fn checked_reference(
    evaluation: &Evaluation<'_>,
    reference: Option<String>,
    pos: Pos,
) -> Result<Option<String>> {
    let wrong = reference.as_ref().filter(|reference| {
        let first = reference.bytes().next();
        let starts_well = first.is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'@');
        let good = |byte: u8| byte.is_ascii_alphanumeric() || b"_./@+-".contains(&byte);
        !starts_well || !reference.bytes().all(good)
    });
    match wrong {
        Some(wrong) => Err(evaluation.error(pos, format!("invalid Mercurial branch/tag name '{wrong}'"))),
        None => Ok(reference),
    }
}

/// Whether a text can name a branch, a tag or another reference: `git check-ref-format`.
fn is_reference(name: &str) -> bool {
    let part = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.ends_with(".lock");
    name != "@"
        && !name.starts_with('-')
        && !name.ends_with('.')
        && !name.contains("..")
        && !name.contains("@{")
        && !name
            .bytes()
            .any(|byte| byte <= b' ' || byte == 0x7f || b"~^:?*[\\".contains(&byte))
        && name.split('/').all(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_what_git_takes() {
        for name in ["main", "HEAD", "refs/heads/a/b", "v1.0", "a-b_c+d", "ünï"] {
            assert!(is_reference(name), "{name}");
        }
        for name in [
            "", "@", "-x", "a..b", "a b", "a/", "/a", "a//b", ".a", "a/.b", "x.lock", "a.", "a^", "a@{1}",
        ] {
            assert!(!is_reference(name), "{name}");
        }
    }
}
