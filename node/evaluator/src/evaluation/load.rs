//! Loading files: reading, parsing, compiling, each once.

use std::sync::Arc;

use bumpalo::Bump;

use super::{Evaluation, files};
use crate::compile::{Compiler, Globals, Names};
use crate::error::{Error, ErrorKind, EvalError, Result};
use crate::heap::{Attrs, Env, Thunk, Value};
use crate::host::FileKind;
use crate::syntax::position::{Origin, Pos};
use crate::syntax::{Source, SyntaxError, parse};

impl<'h> Evaluation<'h> {
    /// The value of a file, or of the `default.nix` of a folder.
    pub(crate) fn import(&self, path: &[u8], pos: Pos) -> Result<Value<'h>> {
        let thunk = self.import_lazily(path, pos)?;
        self.force(thunk)
    }

    /// As [`Self::import`]: loads the file, but does not evaluate it yet.
    pub(crate) fn import_lazily(&self, path: &[u8], pos: Pos) -> Result<Value<'h>> {
        let known = self.resolved.borrow().get(path).cloned();
        let resolved = match known {
            Some(resolved) => resolved,
            None => {
                let resolved = self.resolve_expression(path, pos)?;
                self.resolved.borrow_mut().insert(path.to_vec(), resolved.clone());
                resolved
            }
        };
        if let Some(thunk) = self.files.borrow().get(&resolved) {
            return Ok(Value::thunk(*thunk));
        }
        let (code, env) = self.load(&resolved, None, pos)?;
        let thunk = Thunk::suspended(self.heap, code, env);
        self.files.borrow_mut().insert(resolved, thunk);
        Ok(Value::thunk(thunk))
    }

    /// The value of a file in whose scope further variables are bound. Not shared between calls.
    pub(crate) fn scoped_import(&self, scope: Attrs<'h>, path: &[u8], pos: Pos) -> Result<Value<'h>> {
        let resolved = self.resolve_expression(path, pos)?;
        let (code, env) = self.load(&resolved, Some(scope), pos)?;
        self.eval(code, env)
    }

    /// The file that a path means in `import`: links followed, `default.nix` added to folders.
    pub(crate) fn resolve_expression(&self, path: &[u8], pos: Pos) -> Result<Vec<u8>> {
        let mut path = path.to_vec();
        for _ in 0..crate::limits::MAX_LINKS {
            if path == b"/" {
                break;
            }
            let here = self.resolve_ancestors(&path, pos)?;
            match self.lstat(&here, pos)? {
                Some(FileKind::Symlink) => {
                    let target = self.read_link(&here, pos)?;
                    path = match target.starts_with(b"/") {
                        true => files::canonical(&target),
                        false => files::canonical(&files::join(files::parent(&path), &target)),
                    };
                }
                Some(FileKind::Directory) => return Ok(files::join(&path, b"default.nix")),
                Some(_) => return Ok(path),
                None => return Err(self.error(pos, format!("path '{}' does not exist", files::show(&path)))),
            }
        }
        Err(self.error(
            pos,
            format!(
                "too many symbolic links encountered while traversing the path '{}'",
                files::show(&path)
            ),
        ))
    }

    fn load(
        &self,
        path: &[u8],
        scope: Option<Attrs<'h>>,
        pos: Pos,
    ) -> Result<(&'h crate::code::Expr<'h>, Env<'h>)> {
        let real = self.resolve(path, pos)?;
        let text = self.read_file(&real, pos)?;
        let (origin, folder) = (Origin::File(path.to_vec()), files::parent(path));
        // Code in a scope of its own depends on what is in that scope.
        match scope {
            None => Ok((self.load_text(origin, text, folder)?, self.base)),
            Some(_) => self.compile_text(origin, text, folder, scope),
        }
    }

    /// The code of a file: out of the cache, or compiled and kept there.
    fn load_text(&self, origin: Origin, text: Vec<u8>, folder: &[u8]) -> Result<&'h crate::code::Expr<'h>> {
        let text: Arc<[u8]> = text.into();
        let start = self.add_text(origin, &text)?;
        let home = self.tilde();
        let key = self.cache_key(&text, folder, home.as_deref());
        if let Some(key) = &key
            && let Some(code) = self.find_compiled(key, start)
        {
            return Ok(code);
        }
        let (code, _) = self.compile_added(&text, start, folder, home.as_deref(), None, self.globals())?;
        if let Some(key) = key {
            self.keep_code(key, code, start);
        }
        Ok(code)
    }

    /// Compiles a text.
    pub(crate) fn compile_text(
        &self,
        origin: Origin,
        text: Vec<u8>,
        base: &[u8],
        scope: Option<Attrs<'h>>,
    ) -> Result<(&'h crate::code::Expr<'h>, Env<'h>)> {
        self.compile_with(origin, text, base, scope, self.globals())
    }

    /// As [`Self::compile_text`], with other variables bound everywhere.
    pub(crate) fn compile_with(
        &self,
        origin: Origin,
        text: Vec<u8>,
        base: &[u8],
        scope: Option<Attrs<'h>>,
        globals: &Globals<'h>,
    ) -> Result<(&'h crate::code::Expr<'h>, Env<'h>)> {
        let text: Arc<[u8]> = text.into();
        let start = self.add_text(origin, &text)?;
        let home = self.tilde();
        self.compile_added(&text, start, base, home.as_deref(), scope, globals)
    }

    /// Gives a text its place among the positions.
    fn add_text(&self, origin: Origin, text: &Arc<[u8]>) -> Result<Pos> {
        let mut sources = self.sources.borrow_mut();
        let id = sources
            .add(origin, text.clone())
            .map_err(|error| self.error(Pos::NONE, error.to_string()))?;
        Ok(sources.start(id))
    }

    /// What `~` means in paths.
    fn tilde(&self) -> Option<Vec<u8>> {
        match self.options.reading {
            crate::options::Reading::Pure => None,
            _ => Some(std::os::unix::ffi::OsStringExt::into_vec(
                self.host.variable("HOME")?,
            )),
        }
    }

    fn compile_added(
        &self,
        text: &[u8],
        start: Pos,
        base: &[u8],
        home: Option<&[u8]>,
        scope: Option<Attrs<'h>>,
        globals: &Globals<'h>,
    ) -> Result<(&'h crate::code::Expr<'h>, Env<'h>)> {
        let arena = Bump::new();
        let source = Source {
            text,
            start,
            base_dir: base,
            home,
        };
        let tree = parse(&arena, &source, &mut self.symbols.borrow_mut())
            .map_err(|error| self.syntax_error(&error))?;
        let names = scope.map(|scope| {
            Names::new(
                scope
                    .iter()
                    .enumerate()
                    .map(|(slot, attr)| (attr.name, slot as u32))
                    .collect(),
            )
        });
        let env = match scope {
            None => self.base,
            Some(scope) => {
                let mut attrs = scope.iter();
                Env::filled(self.heap, None, scope.len(), |_| match attrs.next() {
                    Some(attr) => attr.value(),
                    None => unreachable!("a set has as many attributes as it says"),
                })
            }
        };
        let symbols = self.symbols.borrow();
        let compiled = Compiler::new(self.heap, globals, &symbols).file(&tree, names.as_ref());
        match compiled {
            Ok(code) => Ok((code, env)),
            Err(undefined) => {
                let name = symbols.display(undefined.name);
                Err(self.error(undefined.pos, format!("undefined variable '{name}'")))
            }
        }
    }

    #[cold]
    fn syntax_error(&self, error: &SyntaxError) -> Error {
        EvalError::new(
            ErrorKind::Evaluation,
            error.pos,
            error.message(&self.sources.borrow()),
        )
    }
}
