//! Code to bytes.
//!
//! ```text
//! u32 × 4         how many names, pieces and constants, and how many bytes of names
//! u32 × names     where each name ends
//! u32 × 2 × pieces where each piece of code begins, and its position
//! u32 × constants the name of each constant
//! names, code
//! ```
//!
//! The code of a large binding or function is a *piece* of its own, decoded when it is first evaluated: most of what
//! is in a file like `all-packages.nix` never is. The last piece is the whole file. Names are numbered within the
//! file, positions counted from its beginning.

use rustc_hash::FxHashMap;

use super::bytes::{push_number, push_text};
use super::*;
use crate::code::{AttrsCode, Expr, Formals, Lambda, Name, Operands, Scope};
use crate::heap::{Value, View};
use crate::syntax::position::Pos;
use crate::syntax::symbol::{Symbol, SymbolTable};

/// Code of at least so many bytes is a piece of its own. Less takes hardly longer to decode than to put off.
const PIECE: usize = 48;

/// Encodes the code of a file that begins at `start`. `constants` says under which name in `builtins` a constant is
/// found, by its address. `None` where the code cannot be kept.
pub(crate) fn encode(
    code: &Expr<'_>,
    start: Pos,
    symbols: &SymbolTable,
    constants: &FxHashMap<usize, Symbol>,
) -> Option<Vec<u8>> {
    let mut encoder = Encoder {
        start: start.to_u32(),
        constants,
        names: Vec::new(),
        numbers: FxHashMap::default(),
        used: Vec::new(),
        used_numbers: FxHashMap::default(),
        pieces: Vec::new(),
        code: Vec::new(),
        depth: 0,
    };
    let mut root = Vec::new();
    encoder.expr(&mut root, code)?;
    encoder.piece(&root, code.pos());
    encoder.finish(symbols)
}

struct Encoder<'c> {
    start: u32,
    constants: &'c FxHashMap<usize, Symbol>,
    names: Vec<Symbol>,
    numbers: FxHashMap<Symbol, u32>,
    /// Constants that the code refers to.
    used: Vec<Symbol>,
    used_numbers: FxHashMap<Symbol, u32>,
    /// Where pieces begin in `code`, and their position.
    pieces: Vec<(u32, u32)>,
    code: Vec<u8>,
    depth: u32,
}

impl Encoder<'_> {
    fn finish(mut self, symbols: &SymbolTable) -> Option<Vec<u8>> {
        let constants: Vec<u32> = std::mem::take(&mut self.used)
            .into_iter()
            .map(|name| self.number_of(name))
            .collect();
        let size: usize = self.names.iter().map(|name| symbols.bytes(*name).len()).sum();
        let counts = [self.names.len(), self.pieces.len(), constants.len(), size];
        let mut bytes = Vec::with_capacity(size + self.code.len() + 4 * (4 + counts.iter().sum::<usize>()));
        let mut push = |number: u32| bytes.extend_from_slice(&number.to_le_bytes());
        for count in counts {
            push(u32::try_from(count).ok()?);
        }
        let mut end = 0;
        for name in &self.names {
            end += symbols.bytes(*name).len() as u32;
            push(end);
        }
        for (place, pos) in &self.pieces {
            push(*place);
            push(*pos);
        }
        for constant in constants {
            push(constant);
        }
        for name in &self.names {
            bytes.extend_from_slice(symbols.bytes(*name));
        }
        bytes.extend_from_slice(&self.code);
        Some(bytes)
    }

    fn number_of(&mut self, name: Symbol) -> u32 {
        let names = &mut self.names;
        *self.numbers.entry(name).or_insert_with(|| {
            names.push(name);
            names.len() as u32 - 1
        })
    }

    fn name(&mut self, out: &mut Vec<u8>, name: Symbol) {
        let number = self.number_of(name);
        push_number(out, u64::from(number));
    }

    fn maybe_name(&mut self, out: &mut Vec<u8>, name: Option<Symbol>) {
        match name {
            None => out.push(0),
            Some(name) => {
                let number = self.number_of(name);
                push_number(out, u64::from(number) + 1);
            }
        }
    }

    /// Positions are counted from the beginning of the file, from one on; none is zero.
    fn offset(&self, pos: Pos) -> u32 {
        match pos.is_none() {
            true => 0,
            false => pos.to_u32().wrapping_sub(self.start).wrapping_add(1),
        }
    }

    fn pos(&self, out: &mut Vec<u8>, pos: Pos) {
        push_number(out, u64::from(self.offset(pos)));
    }

    fn positions(&self, out: &mut Vec<u8>, positions: &[Pos]) {
        for pos in positions {
            self.pos(out, *pos);
        }
    }

    /// Adds a piece and gives its number.
    fn piece(&mut self, bytes: &[u8], pos: Pos) -> u64 {
        self.pieces.push((self.code.len() as u32, self.offset(pos)));
        self.code.extend_from_slice(bytes);
        self.pieces.len() as u64 - 1
    }

    /// Code that is perhaps never evaluated. Constants and functions stay where they are, because what evaluates a
    /// binding makes no thunks of them; the bodies of functions do not.
    fn later(&mut self, out: &mut Vec<u8>, code: &Expr<'_>) -> Option<()> {
        let begin = out.len();
        self.expr(out, code)?;
        if out.len() - begin >= PIECE && !matches!(code, Expr::Lambda(_) | Expr::Value(_)) {
            let number = self.piece(&out[begin..], code.pos());
            out.truncate(begin);
            out.push(LATER);
            push_number(out, number);
        }
        Some(())
    }

    fn exprs(&mut self, out: &mut Vec<u8>, codes: &[Expr<'_>]) -> Option<()> {
        push_number(out, codes.len() as u64);
        codes.iter().try_for_each(|code| self.expr(out, code))
    }

    fn path(&mut self, out: &mut Vec<u8>, path: &[Name<'_>]) -> Option<()> {
        push_number(out, path.len() as u64);
        for name in path {
            match name {
                Name::Static(name) => self.maybe_name(out, Some(*name)),
                Name::Computed(code, pos) => {
                    self.maybe_name(out, None);
                    self.expr(out, code)?;
                    self.pos(out, *pos);
                }
            }
        }
        Some(())
    }

    fn operands(&mut self, out: &mut Vec<u8>, tag: u8, code: &Operands<'_>) -> Option<()> {
        out.push(tag);
        self.pos(out, code.pos);
        self.exprs(out, code.operands)?;
        self.positions(out, code.positions);
        Some(())
    }

    fn expr(&mut self, out: &mut Vec<u8>, code: &Expr<'_>) -> Option<()> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return None;
        }
        match code {
            Expr::Value(value) => self.value(out, *value)?,
            Expr::Local { slot, pos } => {
                out.push(LOCAL);
                push_number(out, u64::from(*slot));
                self.pos(out, *pos);
            }
            Expr::Outer { depth, slot, pos } => {
                out.push(OUTER);
                push_number(out, u64::from(*depth));
                push_number(out, u64::from(*slot));
                self.pos(out, *pos);
            }
            Expr::Dynamic(code) => {
                out.push(DYNAMIC);
                self.name(out, code.name);
                self.pos(out, code.pos);
                push_number(out, code.scopes.len() as u64);
                for scope in code.scopes {
                    push_number(out, u64::from(*scope));
                }
            }
            Expr::Field(code) => {
                out.push(FIELD);
                self.expr(out, &code.subject)?;
                self.name(out, code.name);
                self.pos(out, code.pos);
            }
            Expr::Select(code) => {
                out.push(if code.default.is_some() { SELECT_OR } else { SELECT });
                self.expr(out, &code.subject)?;
                self.path(out, code.path)?;
                self.pos(out, code.pos);
                if let Some(default) = &code.default {
                    self.expr(out, default)?;
                }
            }
            Expr::HasAttr(code) => {
                out.push(HAS_ATTR);
                self.expr(out, &code.subject)?;
                self.path(out, code.path)?;
                self.pos(out, code.pos);
            }
            Expr::Lambda(code) => self.lambda(out, code)?,
            Expr::Call(code) => {
                out.push(CALL);
                self.pos(out, code.pos);
                self.expr(out, &code.function)?;
                self.exprs(out, code.arguments)?;
            }
            Expr::List(items) => {
                out.push(LIST);
                self.exprs(out, items)?;
            }
            Expr::Attrs(code) => {
                out.push(ATTRS);
                self.attrs(out, code)?;
            }
            Expr::Rec(code) => {
                out.push(REC);
                self.attrs(out, code)?;
            }
            Expr::Let(code) => {
                out.push(LET);
                push_number(out, code.values.len() as u64);
                for (value, scope) in code.values {
                    out.push(scope_number(*scope)?);
                    self.later(out, value)?;
                }
                self.expr(out, &code.body)?;
            }
            Expr::With(code) => {
                out.push(WITH);
                self.expr(out, &code.scope)?;
                self.expr(out, &code.body)?;
            }
            Expr::If(code) => {
                out.push(IF);
                self.pos(out, code.pos);
                self.expr(out, &code.condition)?;
                self.later(out, &code.consequence)?;
                self.later(out, &code.alternative)?;
            }
            Expr::Assert(code) => {
                out.push(ASSERT);
                self.pos(out, code.pos);
                push_text(out, code.shown);
                self.expr(out, &code.condition)?;
                self.expr(out, &code.body)?;
            }
            Expr::Not(code) => {
                out.push(NOT);
                self.pos(out, code.pos);
                self.expr(out, &code.operand)?;
            }
            Expr::Binary(code) => {
                out.push(BINARY);
                let number = OPERATORS.iter().position(|operator| *operator == code.operator)?;
                out.push(number as u8);
                self.pos(out, code.pos);
                self.positions(out, &code.operand_positions);
                self.expr(out, &code.left)?;
                self.expr(out, &code.right)?;
            }
            Expr::Logic(code) => {
                out.push(LOGIC);
                let number = LOGIC_OPERATORS
                    .iter()
                    .position(|operator| *operator == code.operator)?;
                out.push(number as u8);
                self.exprs(out, code.operands)?;
                self.positions(out, code.positions);
            }
            Expr::Update(code) => self.operands(out, UPDATE, code)?,
            Expr::ConcatLists(code) => self.operands(out, CONCAT_LISTS, code)?,
            Expr::Sum(code) => self.operands(out, SUM, code)?,
            Expr::Interpolate(code) => {
                out.push(INTERPOLATE);
                out.push(u8::from(code.path));
                self.pos(out, code.pos);
                push_number(out, code.parts.len() as u64);
                for (part, pos) in code.parts {
                    self.expr(out, part)?;
                    self.pos(out, *pos);
                }
            }
            Expr::CurrentPosition(pos) => {
                out.push(CURRENT_POSITION);
                self.pos(out, *pos);
            }
            // Code that was decoded is not encoded again.
            Expr::Later { .. } => return None,
        }
        self.depth -= 1;
        Some(())
    }

    fn value(&mut self, out: &mut Vec<u8>, value: Value<'_>) -> Option<()> {
        if let Some(name) = self.constants.get(&value.address()) {
            out.push(CONSTANT);
            let used = &mut self.used;
            let number = *self.used_numbers.entry(*name).or_insert_with(|| {
                used.push(*name);
                used.len() as u32 - 1
            });
            push_number(out, u64::from(number));
            return Some(());
        }
        match value.view() {
            View::Null => out.push(NULL),
            View::Bool(true) => out.push(TRUE),
            View::Bool(false) => out.push(FALSE),
            View::Int(int) => {
                out.push(INT);
                push_number(out, int as u64);
            }
            View::Float(float) => {
                out.push(FLOAT);
                push_number(out, float.to_bits());
            }
            View::Str(text) if text.context().is_none() => {
                out.push(STRING);
                push_text(out, text.bytes());
            }
            View::Path(path) => {
                out.push(PATH);
                push_text(out, path.bytes());
            }
            View::List(list) if list.is_empty() => out.push(EMPTY_LIST),
            View::Attrs(attrs) if attrs.is_empty() => out.push(EMPTY_ATTRS),
            _ => return None,
        }
        Some(())
    }

    fn lambda(&mut self, out: &mut Vec<u8>, code: &Lambda<'_>) -> Option<()> {
        out.push(LAMBDA);
        self.maybe_name(out, code.name);
        push_number(out, u64::from(code.slots));
        push_number(out, code.parameters.len() as u64);
        for parameter in code.parameters {
            self.maybe_name(out, parameter.name);
            self.pos(out, parameter.pos);
        }
        match code.formals {
            None => out.push(0),
            Some(formals) => {
                out.push(1 + u8::from(formals.ellipsis));
                self.formals(out, formals)?;
            }
        }
        self.later(out, &code.body)
    }

    fn formals(&mut self, out: &mut Vec<u8>, formals: &Formals<'_>) -> Option<()> {
        push_number(out, formals.whole.map_or(0, |slot| u64::from(slot) + 1));
        push_number(out, u64::from(formals.first));
        push_number(out, formals.formals.len() as u64);
        for formal in formals.formals {
            self.name(out, formal.name);
            self.pos(out, formal.pos);
            match &formal.default {
                None => out.push(0),
                Some(default) => {
                    out.push(1);
                    self.later(out, default)?;
                }
            }
        }
        Some(())
    }

    fn attrs(&mut self, out: &mut Vec<u8>, code: &AttrsCode<'_>) -> Option<()> {
        push_number(out, code.overrides.map_or(0, |slot| u64::from(slot) + 1));
        push_number(out, code.attrs.len() as u64);
        for attr in code.attrs {
            self.name(out, attr.name);
            self.pos(out, attr.pos);
            out.push(scope_number(attr.scope)?);
            push_number(out, u64::from(attr.slot));
            self.later(out, &attr.value)?;
        }
        push_number(out, code.dynamic.len() as u64);
        for attr in code.dynamic {
            self.expr(out, &attr.name)?;
            self.pos(out, attr.pos);
            self.later(out, &attr.value)?;
        }
        self.exprs(out, code.shared)
    }
}

fn scope_number(scope: Scope) -> Option<u8> {
    SCOPES
        .iter()
        .position(|other| *other == scope)
        .map(|number| number as u8)
}
