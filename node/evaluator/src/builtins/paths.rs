//! Paths as values, and looking up `<name>`.

use tvix_node_protocol::nix::store_path::{StorePath, hash_placeholder};

use super::PrimOp;
use crate::derivation::{COREPKGS, corepkgs_file};
use crate::error::{ErrorKind, EvalError, Result};
use crate::evaluation::{Coerce, ContextBuilder, Evaluation, files};
use crate::heap::{AttrsBuilder, ContextElement, List, Str, Value, View};
use crate::host::MessageKind;
use crate::options::Reading;
use crate::syntax::position::Pos;
use crate::syntax::symbol::known;

pub(super) const TABLE: &[PrimOp] = &[
    PrimOp::new("placeholder", 1, placeholder).plain(),
    PrimOp::new("toPath", 1, to_path),
    PrimOp::new("storePath", 1, store_path),
    PrimOp::new("baseNameOf", 1, base_name_of).plain(),
    PrimOp::new("dirOf", 1, dir_of).plain(),
    PrimOp::new("findFile", 2, find_file),
    PrimOp::new("getEnv", 1, get_env),
];

fn placeholder<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let output = evaluation.string_no_context(
        arguments[0],
        pos,
        "while evaluating the first argument passed to builtins.placeholder",
    )?;
    let text = hash_placeholder(&String::from_utf8_lossy(output.bytes()));
    Ok(evaluation.text(text.as_bytes()))
}

fn to_path<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let mut context = ContextBuilder::default();
    let path = evaluation.coerce_path(
        arguments[0],
        pos,
        &mut context,
        "while evaluating the first argument passed to builtins.toPath",
    )?;
    let context = context.finish(evaluation.heap);
    Ok(Value::str(Str::with_context(evaluation.heap, &path, context)))
}

/// The store path that a path lies in or is, if any.
pub(super) fn in_store(path: &[u8]) -> Option<StorePath> {
    let rest = path.strip_prefix(b"/nix/store/")?;
    let name = rest.split(|byte| *byte == b'/').next()?;
    StorePath::from_basename(name).ok()
}

fn store_path<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    if evaluation.options.reading == Reading::Pure {
        return Err(evaluation.error(pos, "'builtins.storePath' is not allowed in pure evaluation mode"));
    }
    let mut context = ContextBuilder::default();
    let mut path = evaluation.coerce_path(
        arguments[0],
        pos,
        &mut context,
        "while evaluating the first argument passed to 'builtins.storePath'",
    )?;
    if StorePath::from_absolute_path(&path).is_err() {
        path = evaluation.resolve(&path, pos)?;
    }
    let Some(stored) = in_store(&path) else {
        let shown = files::show(&path);
        return Err(evaluation.error(pos, format!("path '{shown}' is not in the Nix store")));
    };
    let valid = evaluation
        .host
        .is_valid(&stored)
        .map_err(|error| evaluation.host_error(pos, &error))?;
    if !valid {
        evaluation.realise(&[crate::host::Wanted::Path(stored.clone())], pos)?;
    }
    let stored = evaluation.intern_path(&stored);
    context.push(evaluation.heap.alloc(ContextElement::Opaque(stored)));
    let context = context.finish(evaluation.heap);
    Ok(Value::str(Str::with_context(evaluation.heap, &path, context)))
}

fn base_name_of<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let text = evaluation.coerce_str(
        arguments[0],
        pos,
        Coerce::PLAIN,
        "while evaluating the first argument passed to builtins.baseNameOf",
    )?;
    // One trailing slash does not count, a second one leaves an empty name, as in Nix.
    let bytes = match text.bytes() {
        [rest @ .., b'/'] if !rest.is_empty() => rest,
        bytes => bytes,
    };
    let name = files::base_name(bytes);
    let name = if bytes == b"/" { b"" } else { name };
    Ok(Value::str(Str::with_context(
        evaluation.heap,
        name,
        text.context(),
    )))
}

fn dir_of<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let value = evaluation.force_at(arguments[0], pos)?;
    if let View::Path(path) = value.view() {
        let parent = files::parent(path.bytes());
        return Ok(Value::path(evaluation.heap, Str::new(evaluation.heap, parent)));
    }
    let text = evaluation.coerce_str(
        value,
        pos,
        Coerce::PLAIN,
        "while evaluating the first argument passed to 'builtins.dirOf'",
    )?;
    let folder: &[u8] = match text.bytes().iter().rposition(|byte| *byte == b'/') {
        None => b".",
        Some(0) => b"/",
        Some(slash) => &text.bytes()[..slash],
    };
    Ok(Value::str(Str::with_context(
        evaluation.heap,
        folder,
        text.context(),
    )))
}

fn get_env<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let name = evaluation.string_no_context(
        arguments[0],
        pos,
        "while evaluating the first argument passed to builtins.getEnv",
    )?;
    let value = match evaluation.options.reading {
        Reading::Impure => evaluation.host.variable(&String::from_utf8_lossy(name.bytes())),
        Reading::Restricted | Reading::Pure => None,
    };
    let value = value.unwrap_or_default();
    Ok(evaluation.text(std::os::unix::ffi::OsStrExt::as_bytes(value.as_os_str())))
}

/// The value of `builtins.nixPath`.
pub(super) fn search_path_value<'h>(evaluation: &Evaluation<'h>) -> Value<'h> {
    let heap = evaluation.heap;
    let entries = &evaluation.options.search_path;
    Value::list(List::new(heap, entries.len(), |index| {
        let mut attrs = AttrsBuilder::with_capacity(2);
        attrs.insert(known::PATH, evaluation.text(entries[index].location.as_bytes()));
        attrs.insert(known::PREFIX, evaluation.text(entries[index].prefix.as_bytes()));
        Value::attrs(attrs.finish(heap))
    }))
}

fn find_file<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let list = evaluation.list(
        arguments[0],
        pos,
        "while evaluating the first argument passed to builtins.findFile",
    )?;
    let mut entries: Vec<(Vec<u8>, Vec<u8>)> = Vec::with_capacity(list.len());
    for item in list.iter() {
        let attrs = evaluation.attrs(
            item,
            pos,
            "while evaluating an element of the list passed to builtins.findFile",
        )?;
        let prefix = match attrs.get(known::PREFIX) {
            None => Vec::new(),
            Some(attr) => evaluation
                .string_no_context(
                    attr.value(),
                    pos,
                    "while evaluating the `prefix` attribute of an element of the list passed to builtins.findFile",
                )?
                .bytes()
                .to_vec(),
        };
        let path = evaluation.attribute(attrs, known::PATH, "in an element of the __nixPath")?;
        let mut context = ContextBuilder::default();
        let path = evaluation.coerce(
            path.value(),
            pos,
            &mut context,
            Coerce::PLAIN,
            "while evaluating the `path` attribute of an element of the list passed to builtins.findFile",
        )?;
        evaluation.realise_context(context, pos)?;
        entries.push((prefix, path.to_vec()));
    }
    let name = evaluation.string_no_context(
        arguments[1],
        pos,
        "while evaluating the second argument passed to builtins.findFile",
    )?;
    let path = evaluation.find_file(&entries, name.bytes(), pos)?;
    Ok(Value::path(evaluation.heap, Str::new(evaluation.heap, &path)))
}

impl<'h> Evaluation<'h> {
    /// The search path of the options, as [`Self::find_file`] wants it.
    pub(crate) fn search_path(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let entries = self.options.search_path.iter();
        entries
            .map(|entry| {
                (
                    entry.prefix.clone().into_bytes(),
                    entry.location.clone().into_bytes(),
                )
            })
            .collect()
    }

    /// Looks up `<name>` in a search path.
    ///
    /// # Errors
    /// No entry has it.
    pub(crate) fn find_file(&self, entries: &[(Vec<u8>, Vec<u8>)], name: &[u8], pos: Pos) -> Result<Vec<u8>> {
        for (prefix, location) in entries {
            let suffix = match prefix.as_slice() {
                b"" => name,
                prefix => match name.strip_prefix(prefix) {
                    Some(b"") => b"",
                    Some([b'/', rest @ ..]) => rest,
                    _ => continue,
                },
            };
            let Some(base) = self.search_location(location, pos)? else {
                continue;
            };
            let candidate = match suffix {
                b"" => base,
                suffix => files::join(&base, suffix),
            };
            let resolved = self.resolve(&files::canonical(&candidate), pos)?;
            if self.lstat(&resolved, pos)?.is_some() {
                return Ok(resolved);
            }
        }
        if let Some(rest) = name.strip_prefix(b"nix/") {
            let path = files::join(COREPKGS, rest);
            if corepkgs_file(&path).is_some() {
                return Ok(path);
            }
        }
        let name = String::from_utf8_lossy(name);
        let message = match self.options.reading {
            Reading::Pure => {
                format!("cannot look up '<{name}>' in pure evaluation mode (use '--impure' to override)")
            }
            _ => format!("file '{name}' was not found in the Nix search path (add it using $NIX_PATH or -I)"),
        };
        Err(EvalError::new(ErrorKind::Throw, pos, message))
    }

    /// Where an entry of the search path lies; `None` where it does not exist.
    fn search_location(&self, location: &[u8], pos: Pos) -> Result<Option<Vec<u8>>> {
        if let Some(known) = self.found().borrow().get(location) {
            return Ok(known.clone());
        }
        let text = String::from_utf8_lossy(location).into_owned();
        let found = if let Some(url) = tarball_url(&text) {
            match self.fetch_archive(&url, pos) {
                Ok(path) => Some(path),
                Err(error) => {
                    let message = format!(
                        "Nix search path entry '{text}' cannot be downloaded, ignoring: {}",
                        error.message
                    );
                    self.host.message(MessageKind::Warning, &message);
                    None
                }
            }
        } else {
            let base = std::os::unix::ffi::OsStrExt::as_bytes(self.options.base.as_os_str());
            let path = match location.starts_with(b"/") {
                true => files::canonical(location),
                false => files::canonical(&files::join(base, location)),
            };
            let resolved = self.resolve(&path, pos)?;
            match self.lstat(&resolved, pos)? {
                Some(_) => Some(path),
                None => {
                    let message = format!("Nix search path entry '{text}' does not exist, ignoring");
                    self.host.message(MessageKind::Warning, &message);
                    None
                }
            }
        };
        self.found().borrow_mut().insert(location.to_vec(), found.clone());
        Ok(found)
    }
}

/// The URL that an entry of the search path (or a file argument) stands for, if it is one.
pub(crate) fn tarball_url(text: &str) -> Option<String> {
    if let Some(channel) = text.strip_prefix("channel:") {
        return Some(format!("https://channels.nixos.org/{channel}/nixexprs.tar.xz"));
    }
    let (scheme, _) = text.split_once("://")?;
    matches!(
        scheme,
        "http" | "https" | "file" | "channel" | "git" | "s3" | "ssh"
    )
    .then(|| text.to_owned())
}
