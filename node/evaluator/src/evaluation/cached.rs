//! Files whose code an earlier evaluation compiled.

use std::cell::OnceCell;
use std::path::Path;

use rustc_hash::FxHashMap;

use super::Evaluation;
use crate::cache::{CodeStore, Key, Loaded, Loader, encode};
use crate::code::Expr;
use crate::error::Result;
use crate::heap::Value;
use crate::host::MessageKind;
use crate::syntax::position::Pos;
use crate::syntax::symbol::{Symbol, known};

/// The cache of an evaluation.
pub(super) struct Cache {
    store: CodeStore,
    /// Names of constants by their address.
    constants: OnceCell<FxHashMap<usize, Symbol>>,
}

impl Cache {
    pub(super) fn open(folder: &Path) -> Self {
        Self {
            store: CodeStore::open(folder),
            constants: OnceCell::new(),
        }
    }
}

impl<'h> Evaluation<'h> {
    /// The key of a file's code, where there is a cache.
    pub(super) fn cache_key(&self, text: &[u8], folder: &[u8], home: Option<&[u8]>) -> Option<Key> {
        self.cache.as_ref()?;
        Some(Key::new(text, folder, home, self.options.reading))
    }

    /// The code of a file that begins at `start`, if it was kept.
    pub(super) fn find_compiled(&self, key: &Key, start: Pos) -> Option<&'h Expr<'h>> {
        let entry = self.cache.as_ref()?.store.get(key)?;
        self.loader().load(&entry, start, |name| self.constant(name))
    }

    /// Keeps the code of a file that begins at `start`.
    pub(super) fn keep_code(&self, key: Key, code: &Expr<'h>, start: Pos) {
        let Some(cache) = &self.cache else { return };
        let constants = cache.constants.get_or_init(|| self.constants());
        let entry = encode(code, start, &self.symbols.borrow(), constants);
        if let Some(entry) = entry {
            self.told(cache.store.put(key, entry));
        }
    }

    /// Writes what is to be kept for other evaluations.
    pub(crate) fn keep_compiled(&self) {
        if let Some(cache) = &self.cache {
            self.told(cache.store.write());
        }
    }

    fn told(&self, written: std::io::Result<()>) {
        if let Err(error) = written {
            let text = format!("the cache of compiled files cannot be written: {error}");
            self.host.message(MessageKind::Warning, &text);
        }
    }

    /// A piece of code out of the cache.
    #[inline]
    pub(super) fn decoded(&self, file: &'h Loaded<'h>, number: u32) -> Result<&'h Expr<'h>> {
        match file.piece(number, self.loader()) {
            Some(code) => Ok(code),
            None => Err(self.damaged(file.pos(number))),
        }
    }

    /// Entries are checked before they are used, so only a bug of the program that wrote it comes here.
    #[cold]
    fn damaged(&self, pos: Pos) -> crate::error::Error {
        self.error(
            pos,
            "the compiled code of this expression, kept by an earlier evaluation, cannot be read; \
             use --no-eval-cache",
        )
    }

    fn loader(&self) -> Loader<'h, '_> {
        Loader {
            heap: self.heap,
            symbols: &self.symbols,
            empty_list: self.empty_list,
            empty_attrs: self.empty_attrs,
        }
    }

    /// What is called so in `builtins`, or the set itself.
    fn constant(&self, name: Symbol) -> Option<Value<'h>> {
        let builtins = *self.globals().get(&known::BUILTINS)?;
        if name == known::BUILTINS {
            return Some(builtins);
        }
        let value = builtins.as_attrs()?.get(name)?.value();
        (!value.is_thunk()).then_some(value)
    }

    fn constants(&self) -> FxHashMap<usize, Symbol> {
        let mut constants = FxHashMap::default();
        let Some(builtins) = self.globals().get(&known::BUILTINS) else {
            return constants;
        };
        constants.insert(builtins.address(), known::BUILTINS);
        if let Some(attrs) = builtins.as_attrs() {
            let named = attrs.iter().filter(|attr| attr.value().is_in_heap());
            let named = named.filter(|attr| !attr.value().is_thunk());
            constants.extend(named.map(|attr| (attr.value().address(), attr.name)));
        }
        constants
    }
}
