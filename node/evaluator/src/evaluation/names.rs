//! Symbols, their text, and store paths in contexts.

use std::cell::RefCell;

use rustc_hash::{FxHashMap, FxHashSet};
use tvix_node_protocol::nix::store_path::StorePath;

use super::Evaluation;
use crate::heap::{Context, ContextElement, Str, Value};
use crate::syntax::position::Pos;
use crate::syntax::symbol::Symbol;

/// Store paths that strings refer to, each kept once for the whole evaluation.
#[derive(Default)]
pub(crate) struct Interned<'h> {
    paths: RefCell<FxHashMap<StorePath, &'h StorePath>>,
    outputs: RefCell<FxHashMap<String, &'h str>>,
    /// Store paths that this evaluation has added itself.
    added: RefCell<FxHashSet<StorePath>>,
}

impl<'h> Evaluation<'h> {
    /// The symbol of a name.
    pub(crate) fn symbol(&self, name: &[u8]) -> Symbol {
        self.symbols.borrow_mut().intern(name)
    }

    /// The text of a symbol, for messages.
    pub(crate) fn name(&self, symbol: Symbol) -> String {
        self.symbols.borrow().display(symbol).into_owned()
    }

    /// The string value of a symbol; every symbol has only one.
    pub(crate) fn name_value(&self, symbol: Symbol) -> Value<'h> {
        let mut names = self.names.borrow_mut();
        let index = symbol.index();
        if names.len() <= index {
            names.resize(index + 1, None);
        }
        *names[index]
            .get_or_insert_with(|| Value::str(Str::new(self.heap, self.symbols.borrow().bytes(symbol))))
    }

    /// Sorts things alphabetically by the name of a symbol.
    pub(crate) fn sort_by_name<T>(&self, items: &mut [T], symbol: impl Fn(&T) -> Symbol) {
        let symbols = self.symbols.borrow();
        items.sort_by(|a, b| symbols.bytes(symbol(a)).cmp(symbols.bytes(symbol(b))));
    }

    /// `file:line:column` of a position.
    pub(crate) fn location(&self, pos: Pos) -> String {
        match self.sources.borrow().resolve(pos) {
            Some(location) => location.to_string(),
            None => "«none»".to_owned(),
        }
    }

    /// A store path that lives as long as the heap.
    pub(crate) fn intern_path(&self, path: &StorePath) -> &'h StorePath {
        if let Some(known) = self.interned.paths.borrow().get(path) {
            return known;
        }
        let kept = self.heap.keep_path(path.clone());
        self.interned.paths.borrow_mut().insert(path.clone(), kept);
        kept
    }

    /// The name of an output, as long as the heap.
    pub(crate) fn intern_output(&self, output: &str) -> &'h str {
        if let Some(known) = self.interned.outputs.borrow().get(output) {
            return known;
        }
        let kept = self.heap.keep_text(output);
        self.interned.outputs.borrow_mut().insert(output.to_owned(), kept);
        kept
    }

    /// Notes that this evaluation has added a store path itself.
    pub(crate) fn remember_added(&self, path: &StorePath) {
        self.interned.added.borrow_mut().insert(path.clone());
    }

    /// Whether this evaluation has added a store path itself.
    pub(crate) fn is_added(&self, path: &StorePath) -> bool {
        self.interned.added.borrow().contains(path)
    }

    /// A context of one element.
    pub(crate) fn context_of(&self, element: ContextElement<'h>) -> Option<Context<'h>> {
        let element: &'h ContextElement<'h> = self.heap.alloc(element);
        Context::new(self.heap, &[element])
    }

    /// A string without context.
    pub(crate) fn text(&self, bytes: &[u8]) -> Value<'h> {
        Value::str(Str::new(self.heap, bytes))
    }
}
