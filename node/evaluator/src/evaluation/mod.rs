//! The evaluation: code and values become values.
//!
//! [`Evaluation`] holds what one evaluation shares: heap, names, sources, caches, the host. The files beside this
//! one each add one subject to it: [`eval`](self::eval) walks code, `force` evaluates thunks, `call` calls
//! functions, `coerce` makes strings and paths, `equal` compares, `load` reads files, `names` hands out symbols.
//!
//! One rule for all of them, because a force may switch to another target in the middle: **no `RefCell` borrow is
//! held while something is forced**.

mod cached;
mod call;
mod coerce;
mod compare;
mod eval;
mod expect;
pub(crate) mod files;
mod force;
mod load;
mod names;
mod operators;
mod sets;
mod suggest;

use std::cell::{Cell, OnceCell, RefCell};

use rustc_hash::FxHashMap;

use crate::compile::Globals;
use crate::coroutine::Switch;
use crate::derivation::Known;
use crate::error::{Error, ErrorKind, EvalError};
use crate::heap::{Env, Heap, List, Thunk, Value};
use crate::host::Host;
use crate::options::Options;
use crate::pure::regex::RegexCache;
use crate::syntax::position::{Pos, SourceMap};
use crate::syntax::symbol::SymbolTable;

use cached::Cache;
pub(crate) use call::{formals_of, parameter_of, position_of};
pub(crate) use coerce::{Coerce, ContextBuilder};
pub(crate) use names::Interned;
pub(crate) use suggest::nearest;

/// Everything that one evaluation shares.
pub(crate) struct Evaluation<'h> {
    pub(crate) heap: &'h Heap,
    pub(crate) host: &'h dyn Host,
    pub(crate) options: &'h Options,
    pub(crate) symbols: RefCell<SymbolTable>,
    pub(crate) sources: RefCell<SourceMap>,
    /// Variables bound everywhere.
    globals: OnceCell<Globals<'h>>,
    /// The scope of files.
    pub(crate) base: Env<'h>,
    /// Nested calls.
    depth: Cell<u32>,
    /// The target that is running.
    pub(crate) current: Cell<u32>,
    /// Lowest address of the running stack that may still be used.
    pub(crate) stack_limit: Cell<usize>,
    /// The way to suspend the running target.
    pub(crate) switch: Switch<'h>,
    /// String values of symbols.
    names: RefCell<Vec<Option<Value<'h>>>>,
    /// Store paths and context elements, each once.
    pub(crate) interned: Interned<'h>,
    /// Files by their resolved path, loaded or being loaded.
    files: RefCell<FxHashMap<Vec<u8>, Thunk<'h>>>,
    /// What paths given to `import` resolve to.
    resolved: RefCell<FxHashMap<Vec<u8>, Vec<u8>>>,
    /// Results of looking up `<name>`.
    found: RefCell<FxHashMap<Vec<u8>, Option<Vec<u8>>>>,
    /// Directories known not to be links.
    plain: RefCell<rustc_hash::FxHashSet<Vec<u8>>>,
    /// Store paths of sources that were added.
    added: RefCell<FxHashMap<Vec<u8>, crate::heap::Str<'h>>>,
    /// Derivations instantiated or read.
    pub(crate) derivations: Known<'h>,
    pub(crate) empty_list: Value<'h>,
    pub(crate) empty_attrs: Value<'h>,
    /// The function behind `import` of `.drv` files, once it was needed.
    imported: OnceCell<Value<'h>>,
    /// Regular expressions, compiled once.
    pub(crate) regexes: RefCell<RegexCache>,
    /// Compiled files of earlier evaluations.
    cache: Option<Cache>,
}

impl<'h> Evaluation<'h> {
    /// A fresh evaluation on a heap.
    ///
    /// # Errors
    /// The embedded Nix code does not load, which is a bug.
    pub(crate) fn new(heap: &'h Heap, host: &'h dyn Host, options: &'h Options) -> Result<Self, Error> {
        let evaluation = Self {
            heap,
            host,
            options,
            symbols: RefCell::new(SymbolTable::new()),
            sources: RefCell::new(SourceMap::new()),
            globals: OnceCell::new(),
            base: Env::new(heap, None, 0),
            depth: Cell::new(0),
            current: Cell::new(0),
            stack_limit: Cell::new(0),
            switch: Switch::default(),
            names: RefCell::default(),
            interned: Interned::default(),
            files: RefCell::default(),
            resolved: RefCell::default(),
            found: RefCell::default(),
            plain: RefCell::default(),
            added: RefCell::default(),
            derivations: Known::default(),
            empty_list: Value::list(List::from_slice(heap, &[])),
            empty_attrs: Value::attrs(crate::heap::Attrs::from_sorted(heap, &[])),
            imported: OnceCell::new(),
            regexes: RefCell::default(),
            cache: options.code_cache.as_deref().map(Cache::open),
        };
        let globals = crate::builtins::globals(&evaluation)?;
        let _ = evaluation.globals.set(globals);
        Ok(evaluation)
    }

    /// Variables bound everywhere; only `builtins::globals` runs before they are there.
    pub(crate) fn globals(&self) -> &Globals<'h> {
        match self.globals.get() {
            Some(globals) => globals,
            None => unreachable!("globals are set when an evaluation is made"),
        }
    }

    /// What looking up `<name>` found so far.
    pub(crate) fn found(&self) -> &RefCell<FxHashMap<Vec<u8>, Option<Vec<u8>>>> {
        &self.found
    }

    /// The function that makes a set of an imported `.drv` file.
    pub(crate) fn imported_derivation_function(&self) -> Result<Value<'h>, Error> {
        if let Some(function) = self.imported.get() {
            return Ok(*function);
        }
        let function = crate::builtins::embedded(
            self,
            self.globals(),
            "imported-drv-to-derivation.nix",
            crate::derivation::IMPORTED_NIX,
        )?;
        Ok(*self.imported.get_or_init(|| function))
    }

    /// An error of the expression at a position.
    #[cold]
    #[inline(never)]
    pub(crate) fn error(&self, pos: Pos, message: impl Into<String>) -> Error {
        EvalError::new(ErrorKind::Evaluation, pos, message)
    }
}
