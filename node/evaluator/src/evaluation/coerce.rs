//! Making strings and paths of values, and the context that strings carry.

use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use tvix_node_protocol::nix::store_path::StorePath;

use super::{Evaluation, files};
use crate::error::{Error, Result};
use crate::heap::{Context, ContextElement, Str, Value, View};
use crate::host::{Ingestion, Source};
use crate::syntax::position::Pos;
use crate::syntax::symbol::known;

/// How values become strings.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Coerce {
    /// Numbers, booleans, `null` and lists too.
    pub(crate) more: bool,
    /// Paths are copied to the store and become their store path.
    pub(crate) copy: bool,
}

impl Coerce {
    /// Strings, and paths as they are.
    pub(crate) const PLAIN: Self = Self {
        more: false,
        copy: false,
    };
    /// Strings, and paths as store paths: interpolation.
    pub(crate) const COPY: Self = Self {
        more: false,
        copy: true,
    };
    /// Everything that has a text: `toString`.
    pub(crate) const TO_STRING: Self = Self {
        more: true,
        copy: false,
    };
    /// Everything that has a text, paths as store paths: attributes of derivations.
    pub(crate) const ATTRIBUTE: Self = Self {
        more: true,
        copy: true,
    };
}

/// What a set stands for as a string.
pub(crate) struct Peeled<'h> {
    /// Evaluated; a set only if it has neither `__toString` nor `outPath`.
    pub(crate) value: Value<'h>,
    /// Where it comes from.
    pub(crate) pos: Pos,
    /// Whether a `__toString` was called on the way.
    pub(crate) called: bool,
    /// The way, for the trace.
    steps: Vec<(Pos, &'static str)>,
}

impl Peeled<'_> {
    /// Adds the way to the trace of an error about the value.
    #[cold]
    pub(crate) fn trace(&self, error: Error) -> Error {
        self.steps
            .iter()
            .rev()
            .fold(error, |error, (pos, text)| error.frame(*pos, *text))
    }
}

/// Collects what a string depends on.
#[derive(Default)]
pub(crate) struct ContextBuilder<'h> {
    first: Option<Context<'h>>,
    more: Vec<&'h ContextElement<'h>>,
}

impl<'h> ContextBuilder<'h> {
    /// Adds all of a context.
    #[inline]
    pub(crate) fn add(&mut self, context: Option<Context<'h>>) {
        let Some(context) = context else { return };
        match self.first {
            None => self.first = Some(context),
            Some(first) if first.same(context) => {}
            Some(_) => self.more.extend_from_slice(context.elements()),
        }
    }

    /// Adds one element.
    pub(crate) fn push(&mut self, element: &'h ContextElement<'h>) {
        self.more.push(element);
    }

    /// Whether nothing was added.
    pub(crate) fn is_empty(&self) -> bool {
        self.first.is_none() && self.more.is_empty()
    }

    /// All elements, sorted, each once.
    pub(crate) fn elements(mut self) -> Vec<&'h ContextElement<'h>> {
        if let Some(first) = self.first {
            self.more.extend_from_slice(first.elements());
        }
        self.more.sort();
        self.more.dedup();
        self.more
    }

    /// The context of a string that depends on all of it.
    pub(crate) fn finish(self, heap: &'h crate::heap::Heap) -> Option<Context<'h>> {
        if self.more.is_empty() {
            return self.first;
        }
        Context::new(heap, &self.elements())
    }
}

impl<'h> Evaluation<'h> {
    /// The text of a value; what it refers to is added to `context`.
    pub(crate) fn coerce(
        &self,
        value: Value<'h>,
        pos: Pos,
        context: &mut ContextBuilder<'h>,
        how: Coerce,
        trace: &'static str,
    ) -> Result<&'h [u8]> {
        let value = self.force_at(value, pos)?;
        match value.view() {
            View::Str(text) => {
                context.add(text.context());
                Ok(text.bytes())
            }
            View::Path(path) if how.copy => {
                let stored = self.copy_to_store(path.bytes(), pos)?;
                context.add(stored.context());
                Ok(stored.bytes())
            }
            View::Path(path) => Ok(path.bytes()),
            View::Attrs(_) => {
                let peeled = self.peel(value, pos)?;
                if peeled.value.as_attrs().is_some() {
                    return Err(peeled.trace(self.cannot_coerce(peeled.value).frame(pos, trace)));
                }
                self.deeper(pos, || self.coerce(peeled.value, pos, context, how, trace))
                    .map_err(|error| peeled.trace(error))
            }
            _ if !how.more => Err(self.cannot_coerce(value).frame(pos, trace)),
            View::Bool(true) => Ok(b"1"),
            View::Bool(false) | View::Null => Ok(b""),
            View::Int(int) => Ok(self.heap_bytes(int.to_string().as_bytes())),
            View::Float(float) => Ok(self.heap_bytes(crate::print::fixed_float(float).as_bytes())),
            View::List(list) => {
                let mut text = Vec::new();
                self.deeper(pos, || {
                    for (index, item) in list.iter().enumerate() {
                        let part = self
                            .coerce(
                                item,
                                pos,
                                context,
                                how,
                                "while evaluating one element of the list",
                            )
                            .map_err(|error| error.frame(pos, trace))?;
                        text.extend_from_slice(part);
                        // As in Nix, where an empty list in the middle leaves no second blank.
                        let empty = self.force(item)?.as_list().is_some_and(|list| list.is_empty());
                        if index + 1 < list.len() && !empty {
                            text.push(b' ');
                        }
                    }
                    Ok(())
                })?;
                Ok(self.heap_bytes(&text))
            }
            _ => Err(self.cannot_coerce(value).frame(pos, trace)),
        }
    }

    fn heap_bytes(&self, bytes: &[u8]) -> &'h [u8] {
        Str::new(self.heap, bytes).bytes()
    }

    #[cold]
    fn cannot_coerce(&self, value: Value<'h>) -> Error {
        let (found, shown) = (self.describe(value), self.show(value));
        self.error(Pos::NONE, format!("cannot coerce {found} to a string: {shown}"))
    }

    /// As [`Self::coerce`], into a string with its context.
    pub(crate) fn coerce_str(
        &self,
        value: Value<'h>,
        pos: Pos,
        how: Coerce,
        trace: &'static str,
    ) -> Result<Str<'h>> {
        let value = self.force_at(value, pos)?;
        if let Some(text) = value.as_str() {
            return Ok(text);
        }
        let mut context = ContextBuilder::default();
        let text = self.coerce(value, pos, &mut context, how, trace)?;
        Ok(Str::with_context(self.heap, text, context.finish(self.heap)))
    }

    /// Follows `__toString` and `outPath` to what is not a set, or to a set that has neither.
    pub(crate) fn peel(&self, value: Value<'h>, pos: Pos) -> Result<Peeled<'h>> {
        let mut peeled = Peeled {
            value,
            pos,
            called: false,
            steps: Vec::new(),
        };
        for _ in 0..self.options.max_call_depth {
            let Some(attrs) = peeled.value.as_attrs() else {
                return Ok(peeled);
            };
            if let Some(attr) = attrs.get(known::TO_STRING) {
                peeled.value = self
                    .call(attr.value(), &[peeled.value], attr.pos)
                    .map_err(|error| {
                        peeled.trace(error.frame(attr.pos, "while calling the `__toString` attribute"))
                    })?;
                peeled
                    .steps
                    .push((attr.pos, "while using the result of the `__toString` attribute"));
                peeled.pos = attr.pos;
                peeled.called = true;
            } else if let Some(attr) = attrs.get(known::OUT_PATH) {
                peeled.value = self.force_at(attr.value(), attr.pos).map_err(|error| {
                    peeled.trace(error.frame(attr.pos, "while evaluating the `outPath` attribute"))
                })?;
                peeled
                    .steps
                    .push((attr.pos, "while using the `outPath` attribute"));
                peeled.pos = attr.pos;
            } else {
                return Ok(peeled);
            }
        }
        Err(crate::error::EvalError::new(
            crate::error::ErrorKind::StackOverflow,
            peeled.pos,
            "stack overflow; max-call-depth exceeded",
        ))
    }

    /// Copies a file or folder to the store (once) and returns its store path with the context for it.
    pub(crate) fn copy_to_store(&self, path: &[u8], pos: Pos) -> Result<Str<'h>> {
        if let Some(known) = self.added.borrow().get(path) {
            return Ok(*known);
        }
        let name = files::base_name(path);
        if name.ends_with(b".drv") {
            return Err(self.error(pos, "file names are not allowed to end in '.drv'"));
        }
        let name = std::str::from_utf8(name).map_err(|_| {
            self.error(
                pos,
                format!("the name of '{}' is not valid in the store", files::show(path)),
            )
        })?;
        let resolved = self.resolve_ancestors(path, pos)?;
        let stored = self.add_source(
            &Source {
                name,
                path: Path::new(files::os(&resolved)),
                ingestion: Ingestion::Nar,
                only: None,
                references: &BTreeSet::new(),
                expected: None,
            },
            pos,
        )?;
        self.remember_added(&stored);
        let text = self.store_path_str(&stored);
        self.added.borrow_mut().insert(path.to_vec(), text);
        Ok(text)
    }

    /// Has the host add a source.
    pub(crate) fn add_source(&self, source: &Source<'_>, pos: Pos) -> Result<StorePath> {
        self.host.add_source(source).map_err(|error| {
            let path = source.path.as_os_str().as_bytes();
            match self.lstat(path, pos) {
                Ok(None) => self.error(pos, format!("path '{}' does not exist", files::show(path))),
                _ => self.host_error(pos, &error),
            }
        })
    }

    /// The text of a store path, with the path as its context.
    pub(crate) fn store_path_str(&self, path: &StorePath) -> Str<'h> {
        let kept = self.intern_path(path);
        let context = self.context_of(ContextElement::Opaque(kept));
        Str::with_context(self.heap, path.to_absolute_path().as_bytes(), context)
    }

    /// An absolute path of a value: a path, or a string (or set that becomes one) that begins with `/`. What the
    /// string refers to is added to `context`.
    pub(crate) fn coerce_path(
        &self,
        value: Value<'h>,
        pos: Pos,
        context: &mut ContextBuilder<'h>,
        trace: &'static str,
    ) -> Result<Vec<u8>> {
        let value = self.force_at(value, pos)?;
        let peeled = self.peel(value, pos)?;
        if let View::Path(path) = peeled.value.view() {
            return Ok(path.bytes().to_vec());
        }
        self.absolute_path(peeled.value, pos, context, trace)
            .map_err(|error| peeled.trace(error))
    }

    fn absolute_path(
        &self,
        value: Value<'h>,
        pos: Pos,
        context: &mut ContextBuilder<'h>,
        trace: &'static str,
    ) -> Result<Vec<u8>> {
        let text = self.coerce(value, pos, context, Coerce::PLAIN, trace)?;
        if !text.starts_with(b"/") {
            let text = String::from_utf8_lossy(text);
            let message = format!("string '{text}' doesn't represent an absolute path");
            return Err(self.error(Pos::NONE, message).frame(pos, trace));
        }
        Ok(files::canonical(text))
    }
}

impl ContextElement<'_> {
    /// As Nix writes it in messages.
    pub(crate) fn display(&self) -> String {
        match self {
            Self::Opaque(path) => path.to_absolute_path(),
            Self::Deep(path) => format!("={}", path.to_absolute_path()),
            Self::Output(path, output) => format!("!{output}!{}", path.to_absolute_path()),
        }
    }
}
