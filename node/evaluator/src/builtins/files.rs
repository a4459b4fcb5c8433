//! Files: reading them, loading them, and putting them into the store.

use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use tvix_node_protocol::nix::hash::{CAHash, HashAlgorithm, NixHash};
use tvix_node_protocol::nix::store_path::{StorePath, build_ca_path, build_text_path};

use super::PrimOp;
use super::paths::in_store;
use crate::error::{ErrorKind, EvalError, Result};
use crate::evaluation::{ContextBuilder, Evaluation, files};
use crate::heap::{AttrsBuilder, ContextElement, Str, Value, View};
use crate::host::{FileKind, Ingestion, Source, Wanted};
use crate::pure::store_name;
use crate::syntax::position::Pos;
use crate::syntax::symbol::known;

pub(super) const TABLE: &[PrimOp] = &[
    PrimOp::new("import", 1, import).plain(),
    PrimOp::new("scopedImport", 2, scoped_import).plain().lazy(),
    PrimOp::new("pathExists", 1, path_exists),
    PrimOp::new("readFile", 1, read_file),
    PrimOp::new("readFileType", 1, read_file_type),
    PrimOp::new("readDir", 1, read_dir),
    PrimOp::new("toFile", 2, to_file),
    PrimOp::new("filterSource", 2, filter_source).lazy(),
    PrimOp::new("path", 1, path),
];

/// How far links in a path are followed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Follow {
    /// Not at all.
    No,
    /// All but a link that is the last component.
    Ancestors,
    /// All.
    All,
}

impl<'h> Evaluation<'h> {
    /// Makes things present, suspending this target until they are.
    pub(crate) fn realise(&self, wanted: &[Wanted], pos: Pos) -> Result<()> {
        let ticket = self
            .host
            .realise(wanted)
            .map_err(|error| self.host_error(pos, &error))?;
        let realised = self
            .switch
            .wait_for_ticket(self, ticket)
            .map_err(|error| error.at(pos))?;
        realised.map_err(|error| self.host_error(pos, &error))?;
        // What lies in the store now was perhaps looked for before.
        Ok(())
    }

    /// Makes everything present that a string refers to (import-from-derivation).
    pub(crate) fn realise_context(&self, context: ContextBuilder<'h>, pos: Pos) -> Result<()> {
        let mut wanted = Vec::new();
        for element in context.elements() {
            match element {
                ContextElement::Output(path, output) => {
                    let outputs = BTreeSet::from([(*output).to_owned()]);
                    match wanted.last_mut() {
                        Some(Wanted::Outputs {
                            drv_path,
                            outputs: more,
                        }) if *drv_path == **path => {
                            more.extend(outputs);
                        }
                        _ => wanted.push(Wanted::Outputs {
                            drv_path: (*path).clone(),
                            outputs,
                        }),
                    }
                }
                ContextElement::Opaque(path) | ContextElement::Deep(path) => {
                    // What this evaluation made is there, or will be when it is needed.
                    let own = self.derivations.get(path).is_some() || self.is_added(path);
                    if !own
                        && !self
                            .host
                            .is_valid(path)
                            .map_err(|error| self.host_error(pos, &error))?
                    {
                        wanted.push(Wanted::Path((*path).clone()));
                    }
                }
            }
        }
        match wanted.as_slice() {
            [] => Ok(()),
            wanted => self.realise(wanted, pos),
        }
    }

    /// The path that a value means, with everything it refers to made present.
    pub(super) fn realise_path(&self, value: Value<'h>, pos: Pos, follow: Follow) -> Result<Vec<u8>> {
        let mut context = ContextBuilder::default();
        let path = self.coerce_path(value, pos, &mut context, "while realising the context of a path")?;
        if !context.is_empty() {
            self.realise_context(context, pos).map_err(|error| {
                let path = files::show(&path);
                error.frame(pos, format!("while realising the context of path '{path}'"))
            })?;
        }
        match follow {
            Follow::No => Ok(path),
            Follow::Ancestors => self.resolve_ancestors(&path, pos),
            Follow::All => self.resolve(&path, pos),
        }
    }
}

fn import<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let path = evaluation.realise_path(arguments[0], pos, Follow::No)?;
    if let Some(value) = imported_derivation(evaluation, &path, pos)? {
        return Ok(value);
    }
    evaluation.import(&path, pos).map_err(|error| {
        error.frame(
            pos,
            format!("while evaluating the file '{}':", files::show(&path)),
        )
    })
}

fn scoped_import<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let path = evaluation.realise_path(arguments[1], pos, Follow::No)?;
    let scope = evaluation.attrs(
        arguments[0],
        pos,
        "while evaluating the first argument passed to builtins.scopedImport",
    )?;
    evaluation.scoped_import(scope, &path, pos)
}

/// `import` of a `.drv` file in the store gives a set of its outputs.
fn imported_derivation<'h>(evaluation: &Evaluation<'h>, path: &[u8], pos: Pos) -> Result<Option<Value<'h>>> {
    let Ok(stored) = StorePath::from_absolute_path(path) else {
        return Ok(None);
    };
    if !stored.name().ends_with(".drv") {
        return Ok(None);
    }
    let known = evaluation.derivation(&stored, pos)?;
    let heap = evaluation.heap;
    let kept = evaluation.intern_path(&stored);
    let string = |text: &str, element| {
        Value::str(Str::with_context(
            heap,
            text.as_bytes(),
            evaluation.context_of(element),
        ))
    };
    let name = stored.name().trim_end_matches(".drv");
    let mut attrs = AttrsBuilder::with_capacity(known.outputs.len() + 5);
    attrs.insert(known::TYPE, evaluation.text(b"derivation"));
    attrs.insert(known::NAME, evaluation.text(name.as_bytes()));
    attrs.insert(
        known::DRV_PATH,
        string(&stored.to_absolute_path(), ContextElement::Deep(kept)),
    );
    let outputs: Vec<Value<'h>> = known
        .outputs
        .iter()
        .map(|(output, _)| evaluation.text(output.as_bytes()))
        .collect();
    attrs.insert(
        known::OUTPUTS,
        Value::list(crate::heap::List::from_slice(heap, &outputs)),
    );
    for (output, path) in &known.outputs {
        let value = string(&path.to_absolute_path(), ContextElement::Output(kept, output));
        attrs.insert(evaluation.symbol(output.as_bytes()), value);
    }
    let described = Value::attrs(attrs.finish(heap));
    let function = evaluation.imported_derivation_function()?;
    evaluation.call(function, &[described], pos).map(Some)
}

fn path_exists<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let value = evaluation.force_at(arguments[0], pos)?;
    let must_be_folder = match value.view() {
        View::Str(text) => text.bytes().ends_with(b"/") || text.bytes().ends_with(b"/."),
        _ => false,
    };
    let follow = if must_be_folder {
        Follow::All
    } else {
        Follow::Ancestors
    };
    let path = evaluation.realise_path(value, pos, follow)?;
    if evaluation.check_reading(&path, pos).is_err() {
        return Ok(Value::FALSE);
    }
    let kind = evaluation.lstat(&path, pos)?;
    Ok(Value::bool(match kind {
        None => false,
        Some(kind) => !must_be_folder || kind == FileKind::Directory,
    }))
}

fn read_file<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let path = evaluation.realise_path(arguments[0], pos, Follow::All)?;
    let text = evaluation.read_file(&path, pos)?;
    if text.contains(&0) {
        let shown = files::show(&path);
        return Err(evaluation.error(
            pos,
            format!("the contents of the file '{shown}' cannot be represented as a Nix string"),
        ));
    }
    // A file in the store depends on those references of its store path whose hash part it mentions.
    let mut context = ContextBuilder::default();
    if let Some(stored) = in_store(&path) {
        for reference in evaluation.references_of(&stored, pos)? {
            let basename = reference.to_basename();
            if memchr::memmem::find(&text, &basename.as_bytes()[..32]).is_some() {
                let reference = evaluation.intern_path(&reference);
                context.push(evaluation.heap.alloc(ContextElement::Opaque(reference)));
            }
        }
    }
    let context = context.finish(evaluation.heap);
    Ok(Value::str(Str::with_context(evaluation.heap, &text, context)))
}

fn read_file_type<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let path = evaluation.realise_path(arguments[0], pos, Follow::Ancestors)?;
    evaluation.check_reading(&path, pos)?;
    match evaluation.lstat(&path, pos)? {
        Some(kind) => Ok(evaluation.name_value(evaluation.symbol(kind.nix_name().as_bytes()))),
        None => Err(evaluation.error(pos, format!("path '{}' does not exist", files::show(&path)))),
    }
}

fn read_dir<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let path = evaluation.realise_path(arguments[0], pos, Follow::All)?;
    evaluation.check_reading(&path, pos)?;
    let entries = evaluation.read_folder(&path, pos)?;
    let mut attrs = AttrsBuilder::with_capacity(entries.len());
    for (name, kind) in entries {
        let kind = evaluation.symbol(kind.nix_name().as_bytes());
        attrs.insert(evaluation.symbol(name.as_bytes()), evaluation.name_value(kind));
    }
    Ok(Value::attrs(attrs.finish(evaluation.heap)))
}

fn to_file<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let name = evaluation.string_no_context(
        arguments[0],
        pos,
        "while evaluating the first argument passed to builtins.toFile",
    )?;
    let name = String::from_utf8_lossy(name.bytes()).into_owned();
    let contents = evaluation.string(
        arguments[1],
        pos,
        "while evaluating the second argument passed to builtins.toFile",
    )?;
    let mut references = BTreeSet::new();
    for element in contents.context().map_or(&[][..], |context| context.elements()) {
        match element {
            ContextElement::Opaque(path) => {
                references.insert((*path).clone());
            }
            other => {
                let shown = other.display();
                return Err(evaluation.error(
                    pos,
                    format!(
                        "files created by builtins.toFile may not reference derivations, but {name} references {shown}"
                    ),
                ));
            }
        }
    }
    store_name::check(&name).map_err(|error| evaluation.error(pos, error))?;
    let stored = build_text_path(&name, contents.bytes(), &references)
        .map_err(|error| evaluation.error(pos, format!("cannot make a store path for '{name}': {error}")))?;
    evaluation
        .host
        .add_text(&stored, contents.bytes(), &references)
        .map_err(|error| evaluation.host_error(pos, &error))?;
    evaluation.remember_added(&stored);
    Ok(Value::str(evaluation.store_path_str(&stored)))
}

fn filter_source<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let mut context = ContextBuilder::default();
    let path = evaluation.coerce_path(
        arguments[1],
        pos,
        &mut context,
        "while evaluating the second argument (the path to filter) passed to 'builtins.filterSource'",
    )?;
    let filter = evaluation.function(
        arguments[0],
        pos,
        "while evaluating the first argument passed to builtins.filterSource",
    )?;
    let name = files::base_name(&path).to_vec();
    let wanted = Added {
        name,
        filter: Some(filter),
        ingestion: Ingestion::Nar,
        expected: None,
    };
    add(evaluation, path, context, &wanted, pos)
}

fn path<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let attrs = evaluation.attrs(
        arguments[0],
        pos,
        "while evaluating the argument passed to 'builtins.path'",
    )?;
    let mut context = ContextBuilder::default();
    let mut path = None;
    let mut wanted = Added {
        name: Vec::new(),
        filter: None,
        ingestion: Ingestion::Nar,
        expected: None,
    };
    for attr in attrs.iter() {
        let name = evaluation.symbols.borrow().bytes(attr.name).to_vec();
        let value = attr.value();
        match name.as_slice() {
            b"path" => {
                path = Some(evaluation.coerce_path(
                    value,
                    attr.pos,
                    &mut context,
                    "while evaluating the 'path' attribute passed to 'builtins.path'",
                )?);
            }
            b"name" => {
                let trace = "while evaluating the `name` attribute passed to builtins.path";
                wanted.name = evaluation
                    .string_no_context(value, attr.pos, trace)?
                    .bytes()
                    .to_vec();
            }
            b"filter" => {
                let trace = "while evaluating the `filter` parameter passed to builtins.path";
                wanted.filter = Some(evaluation.function(value, attr.pos, trace)?);
            }
            b"recursive" => {
                let trace = "while evaluating the `recursive` attribute passed to builtins.path";
                wanted.ingestion = match evaluation.bool(value, attr.pos, trace)? {
                    true => Ingestion::Nar,
                    false => Ingestion::Flat,
                };
            }
            b"sha256" => {
                let trace = "while evaluating the `sha256` attribute passed to builtins.path";
                let text = evaluation.string_no_context(value, attr.pos, trace)?;
                let text = String::from_utf8_lossy(text.bytes());
                let hash = match text.as_ref() {
                    "" => NixHash::Sha256([0; 32]),
                    text => crate::derivation::parse_hash(text, Some(HashAlgorithm::Sha256))
                        .map_err(|error| evaluation.error(attr.pos, error))?,
                };
                wanted.expected = Some(hash);
            }
            _ => {
                let name = String::from_utf8_lossy(&name);
                return Err(evaluation.error(
                    attr.pos,
                    format!("unsupported argument '{name}' to 'builtins.path'"),
                ));
            }
        }
    }
    let Some(path) = path else {
        return Err(evaluation.error(
            pos,
            "missing required 'path' attribute in the first argument to 'builtins.path'",
        ));
    };
    if wanted.name.is_empty() {
        wanted.name = files::base_name(&path).to_vec();
    }
    add(evaluation, path, context, &wanted, pos)
}

impl Evaluation<'_> {
    /// What a store path refers to; nothing where it is not valid.
    fn references_of(&self, stored: &StorePath, pos: Pos) -> Result<BTreeSet<StorePath>> {
        let there = self.host.is_valid(stored);
        if !there.map_err(|error| self.host_error(pos, &error))? {
            return Ok(BTreeSet::new());
        }
        self.host
            .references(stored)
            .map_err(|error| self.host_error(pos, &error))
    }
}

/// What is to be added to the store, and how.
struct Added<'h> {
    name: Vec<u8>,
    filter: Option<Value<'h>>,
    ingestion: Ingestion,
    expected: Option<NixHash>,
}

fn add<'h>(
    evaluation: &Evaluation<'h>,
    path: Vec<u8>,
    context: ContextBuilder<'h>,
    wanted: &Added<'h>,
    pos: Pos,
) -> Result<Value<'h>> {
    let stored = add_to_store(evaluation, &path, context, wanted, pos).map_err(|error| {
        let path = files::show(&path);
        error.frame(Pos::NONE, format!("while adding path '{path}'"))
    })?;
    evaluation.remember_added(&stored);
    Ok(Value::str(evaluation.store_path_str(&stored)))
}

fn add_to_store<'h>(
    evaluation: &Evaluation<'h>,
    path: &[u8],
    context: ContextBuilder<'h>,
    wanted: &Added<'h>,
    pos: Pos,
) -> Result<StorePath> {
    let name = std::str::from_utf8(&wanted.name).map_err(|_| {
        evaluation.error(
            pos,
            format!(
                "the name '{}' is not valid in the store",
                files::show(&wanted.name)
            ),
        )
    })?;
    // A part of a store path that the expression depends on keeps what that store path refers to.
    let mut references = BTreeSet::new();
    if !context.is_empty() {
        evaluation.realise_context(context, pos)?;
        if let Some(stored) = in_store(path) {
            references = evaluation.references_of(&stored, pos)?;
        }
    }
    // What is demanded by hash and there already need not be looked at.
    let expected_path = match &wanted.expected {
        None => None,
        Some(hash) => {
            let content = match wanted.ingestion {
                Ingestion::Nar => CAHash::Nar(hash.clone()),
                Ingestion::Flat => CAHash::Flat(hash.clone()),
            };
            let stored = build_ca_path(name, &content, &references, false)
                .map_err(|error| evaluation.error(pos, error.to_string()))?;
            if evaluation.is_there(&stored, pos)? {
                return Ok(stored);
            }
            Some(stored)
        }
    };
    let resolved = evaluation.resolve(path, pos)?;
    evaluation.check_reading(&resolved, pos)?;
    let only = match wanted.filter {
        None => None,
        Some(filter) => {
            let mut kept = Vec::new();
            let kind = evaluation.lstat(&resolved, pos)?;
            let Some(kind) = kind else {
                return Err(evaluation.error(pos, format!("path '{}' does not exist", files::show(path))));
            };
            if kind == FileKind::Directory {
                walk(evaluation, &resolved, &PathBuf::new(), filter, &mut kept, pos)?;
            }
            Some(kept)
        }
    };
    let source = Source {
        name,
        path: Path::new(files::os(&resolved)),
        ingestion: wanted.ingestion,
        only: only.as_deref(),
        references: &references,
        expected: wanted.expected.as_ref(),
    };
    let stored = evaluation.add_source(&source, pos)?;
    match expected_path {
        Some(expected) if expected != stored => Err(EvalError::new(
            ErrorKind::Evaluation,
            pos,
            format!(
                "store path mismatch in (possibly filtered) path added from '{}'",
                files::show(path)
            ),
        )),
        _ => Ok(stored),
    }
}

/// Asks the filter about everything below a folder whose path has no links left; what it refuses is not entered.
fn walk<'h>(
    evaluation: &Evaluation<'h>,
    folder: &[u8],
    relative: &Path,
    filter: Value<'h>,
    kept: &mut Vec<PathBuf>,
    pos: Pos,
) -> Result<()> {
    let mut entries = evaluation.read_folder(folder, pos)?;
    entries.sort_by(|a, b| a.0.as_bytes().cmp(b.0.as_bytes()));
    for (name, kind) in entries {
        let path = files::join(folder, name.as_bytes());
        let kind_value = evaluation.name_value(evaluation.symbol(kind.nix_name().as_bytes()));
        let answer = evaluation.call(filter, &[evaluation.text(&path), kind_value], pos)?;
        if !evaluation.bool(
            answer,
            pos,
            "while evaluating the return value of the path filter function",
        )? {
            continue;
        }
        let relative = relative.join(&name);
        kept.push(relative.clone());
        if kind == FileKind::Directory {
            evaluation.check_stack(pos)?;
            walk(evaluation, &path, &relative, filter, kept, pos)?;
        }
    }
    Ok(())
}
