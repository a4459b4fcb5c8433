//! Bytes to code, piece by piece as it is evaluated.

use std::cell::{Cell, RefCell};

use super::bytes::Reader;
use super::*;
use crate::code::{
    Assert, AttrCode, AttrsCode, Binary, Call, Dynamic, DynamicAttr, Expr, Field, Formal, Formals, HasAttr,
    If, Interpolate, Lambda, Let, Logic, Name, Operands, Parameter, Scope, Select, Unary, With,
};
use crate::heap::{Heap, Str, Value};
use crate::syntax::position::Pos;
use crate::syntax::symbol::{Symbol, SymbolTable};

/// A file whose code is decoded as it is needed.
pub(crate) struct Loaded<'h> {
    start: Pos,
    /// Where each name ends, four bytes each; the names themselves.
    ends: &'h [u8],
    names: &'h [u8],
    /// Symbols of names that were needed, by number; 0 for those that were not.
    symbols: &'h [Cell<u32>],
    constants: &'h [Value<'h>],
    /// Where each piece begins, and its position; four bytes each.
    places: &'h [u8],
    code: &'h [u8],
    /// Pieces that were needed.
    pieces: &'h [Cell<Option<&'h Expr<'h>>>],
}

/// What loading needs of the evaluation.
#[derive(Clone, Copy)]
pub(crate) struct Loader<'h, 's> {
    pub(crate) heap: &'h Heap,
    pub(crate) symbols: &'s RefCell<SymbolTable>,
    pub(crate) empty_list: Value<'h>,
    pub(crate) empty_attrs: Value<'h>,
}

impl<'h> Loaded<'h> {
    /// Position of a piece of code, to be had without decoding it.
    pub(crate) fn pos(&self, number: u32) -> Pos {
        word(self.places, 2 * number as usize + 1).map_or(Pos::NONE, |offset| self.at(offset))
    }

    fn at(&self, offset: u32) -> Pos {
        match offset.checked_sub(1) {
            None => Pos::NONE,
            Some(offset) => Pos::from_u32(self.start.to_u32().wrapping_add(offset)),
        }
    }

    /// A piece of code; `None` where the bytes make no sense.
    #[inline]
    pub(crate) fn piece(&'h self, number: u32, loader: Loader<'h, '_>) -> Option<&'h Expr<'h>> {
        match self.pieces.get(number as usize)?.get() {
            Some(code) => Some(code),
            None => self.decode(number, loader),
        }
    }

    #[cold]
    fn decode(&'h self, number: u32, loader: Loader<'h, '_>) -> Option<&'h Expr<'h>> {
        let place = word(self.places, 2 * number as usize)?;
        let decoder = Decoder {
            loader,
            file: self,
            reader: Reader::new(self.code.get(place as usize..)?),
            depth: Cell::new(0),
        };
        let code = decoder.expr();
        if decoder.reader.failed() {
            return None;
        }
        let code: &'h Expr<'h> = loader.heap.alloc(code);
        self.pieces.get(number as usize)?.set(Some(code));
        Some(code)
    }
}

impl<'h> Loader<'h, '_> {
    /// The code of a file that begins at `start`. `constant` finds what is called so in `builtins`. `None` where the
    /// bytes make no sense or a constant is not there.
    pub(crate) fn load(
        self,
        bytes: &[u8],
        start: Pos,
        constant: impl Fn(Symbol) -> Option<Value<'h>>,
    ) -> Option<&'h Expr<'h>> {
        let heap = self.heap;
        let bytes: &'h [u8] = Str::new(heap, bytes).bytes();
        let mut counts = [0; 4];
        for (index, count) in counts.iter_mut().enumerate() {
            *count = word(bytes, index)? as usize;
        }
        let [names, pieces, constants, size] = counts;
        let rest = bytes.get(16..)?;
        let (ends, rest) = rest.split_at_checked(names.checked_mul(4)?)?;
        let (places, rest) = rest.split_at_checked(pieces.checked_mul(8)?)?;
        let (constant_names, rest) = rest.split_at_checked(constants.checked_mul(4)?)?;
        let (name_bytes, code) = rest.split_at_checked(size)?;
        let symbols: &'h [Cell<u32>] = heap.alloc_slice(names, |_| Cell::new(0));
        let name_at = |number: u32| {
            let text = name_bytes_of(ends, name_bytes, number)?;
            Some(self.symbols.borrow_mut().intern(text))
        };
        let mut found = Vec::with_capacity(constants);
        for index in 0..constants {
            found.push(constant(name_at(word(constant_names, index)?)?)?);
        }
        let file: &'h Loaded<'h> = heap.alloc(Loaded {
            start,
            ends,
            names: name_bytes,
            symbols,
            constants: heap.alloc_slice(constants, |index| found[index]),
            places,
            code,
            pieces: heap.alloc_slice(pieces, |_| Cell::new(None)),
        });
        let root = u32::try_from(pieces).ok()?.checked_sub(1)?;
        file.piece(root, self)
    }
}

/// The number at an index of an array of numbers.
fn word(bytes: &[u8], index: usize) -> Option<u32> {
    let word = bytes.get(4 * index..)?.first_chunk()?;
    Some(u32::from_le_bytes(*word))
}

fn name_bytes_of<'a>(ends: &[u8], names: &'a [u8], number: u32) -> Option<&'a [u8]> {
    let end = word(ends, number as usize)?;
    let begin = match number.checked_sub(1) {
        None => 0,
        Some(before) => word(ends, before as usize)?,
    };
    names.get(begin as usize..end as usize)
}

struct Decoder<'h, 's> {
    loader: Loader<'h, 's>,
    file: &'h Loaded<'h>,
    reader: Reader<'h>,
    depth: Cell<u32>,
}

impl<'h> Decoder<'h, '_> {
    fn name(&self) -> Symbol {
        self.name_numbered(self.reader.small())
    }

    fn maybe_name(&self) -> Option<Symbol> {
        let number = self.reader.small().checked_sub(1)?;
        Some(self.name_numbered(number))
    }

    fn name_numbered(&self, number: u32) -> Symbol {
        let known = self.file.symbols.get(number as usize);
        if let Some(symbol) = known.and_then(|known| Symbol::from_u32(known.get())) {
            return symbol;
        }
        let text = name_bytes_of(self.file.ends, self.file.names, number).unwrap_or_else(|| {
            self.reader.fail();
            b""
        });
        let symbol = self.loader.symbols.borrow_mut().intern(text);
        if let Some(known) = known {
            known.set(symbol.to_u32());
        }
        symbol
    }

    fn pos(&self) -> Pos {
        self.file.at(self.reader.small())
    }

    fn positions(&self, count: usize) -> &'h [Pos] {
        self.loader.heap.alloc_slice(count, |_| self.pos())
    }

    fn exprs(&self) -> &'h [Expr<'h>] {
        let count = self.reader.count();
        self.loader.heap.alloc_slice(count, |_| self.expr())
    }

    fn path(&self) -> &'h [Name<'h>] {
        let count = self.reader.count();
        self.loader.heap.alloc_slice(count, |_| match self.maybe_name() {
            Some(name) => Name::Static(name),
            None => {
                let code = self.expr();
                Name::Computed(code, self.pos())
            }
        })
    }

    fn scope(&self) -> Scope {
        *SCOPES.get(self.reader.byte() as usize).unwrap_or_else(|| {
            self.reader.fail();
            &SCOPES[0]
        })
    }

    fn operands(&self) -> &'h Operands<'h> {
        let pos = self.pos();
        let operands = self.exprs();
        let positions = self.positions(operands.len());
        if operands.is_empty() {
            self.reader.fail();
        }
        self.loader.heap.alloc(Operands {
            operands,
            pos,
            positions,
        })
    }

    /// An expression; any one where the reader failed.
    fn expr(&self) -> Expr<'h> {
        let depth = self.depth.get() + 1;
        if depth > MAX_DEPTH {
            self.reader.fail();
            return Expr::Value(Value::NULL);
        }
        self.depth.set(depth);
        let expr = self.expr_inside();
        self.depth.set(depth - 1);
        expr
    }

    fn expr_inside(&self) -> Expr<'h> {
        let (reader, heap) = (&self.reader, self.loader.heap);
        match reader.byte() {
            NULL => Expr::Value(Value::NULL),
            TRUE => Expr::Value(Value::TRUE),
            FALSE => Expr::Value(Value::FALSE),
            INT => Expr::Value(Value::int(heap, reader.number() as i64)),
            FLOAT => Expr::Value(Value::float(heap, f64::from_bits(reader.number()))),
            STRING => Expr::Value(Value::str(Str::new(heap, reader.text()))),
            PATH => Expr::Value(Value::path(heap, Str::new(heap, reader.text()))),
            EMPTY_LIST => Expr::Value(self.loader.empty_list),
            EMPTY_ATTRS => Expr::Value(self.loader.empty_attrs),
            CONSTANT => match self.file.constants.get(reader.small() as usize) {
                Some(value) => Expr::Value(*value),
                None => self.wrong(),
            },
            LOCAL => Expr::Local {
                slot: reader.small(),
                pos: self.pos(),
            },
            OUTER => Expr::Outer {
                depth: u16::try_from(reader.small()).unwrap_or_else(|_| {
                    reader.fail();
                    0
                }),
                slot: reader.small(),
                pos: self.pos(),
            },
            DYNAMIC => {
                let (name, pos) = (self.name(), self.pos());
                let count = reader.count();
                let scopes = heap.alloc_slice(count, |_| reader.small());
                Expr::Dynamic(heap.alloc(Dynamic { name, pos, scopes }))
            }
            FIELD => Expr::Field(heap.alloc(Field {
                subject: self.expr(),
                name: self.name(),
                pos: self.pos(),
            })),
            tag @ (SELECT | SELECT_OR) => Expr::Select(heap.alloc(Select {
                subject: self.expr(),
                path: self.path(),
                pos: self.pos(),
                default: (tag == SELECT_OR).then(|| self.expr()),
            })),
            HAS_ATTR => {
                let (subject, path, pos) = (self.expr(), self.path(), self.pos());
                if path.is_empty() {
                    return self.wrong();
                }
                Expr::HasAttr(heap.alloc(HasAttr { subject, path, pos }))
            }
            LAMBDA => self.lambda(),
            CALL => Expr::Call(heap.alloc(Call {
                pos: self.pos(),
                function: self.expr(),
                arguments: self.exprs(),
            })),
            LIST => Expr::List(heap.alloc(self.exprs())),
            ATTRS => Expr::Attrs(self.attrs()),
            REC => Expr::Rec(self.attrs()),
            LET => {
                let count = reader.count();
                let values = heap.alloc_slice(count, |_| {
                    let scope = self.scope();
                    (self.expr(), scope)
                });
                let body = self.expr();
                Expr::Let(heap.alloc(Let { values, body }))
            }
            WITH => Expr::With(heap.alloc(With {
                scope: self.expr(),
                body: self.expr(),
            })),
            IF => Expr::If(heap.alloc(If {
                pos: self.pos(),
                condition: self.expr(),
                consequence: self.expr(),
                alternative: self.expr(),
            })),
            ASSERT => Expr::Assert(heap.alloc(Assert {
                pos: self.pos(),
                shown: reader.text(),
                condition: self.expr(),
                body: self.expr(),
            })),
            NOT => Expr::Not(heap.alloc(Unary {
                pos: self.pos(),
                operand: self.expr(),
            })),
            BINARY => match OPERATORS.get(reader.byte() as usize) {
                Some(operator) => Expr::Binary(heap.alloc(Binary {
                    operator: *operator,
                    pos: self.pos(),
                    operand_positions: [self.pos(), self.pos()],
                    left: self.expr(),
                    right: self.expr(),
                })),
                None => self.wrong(),
            },
            LOGIC => {
                let Some(operator) = LOGIC_OPERATORS.get(reader.byte() as usize) else {
                    return self.wrong();
                };
                let operands = self.exprs();
                let positions = self.positions(operands.len());
                if operands.is_empty() {
                    return self.wrong();
                }
                Expr::Logic(heap.alloc(Logic {
                    operator: *operator,
                    operands,
                    positions,
                }))
            }
            UPDATE => Expr::Update(self.operands()),
            CONCAT_LISTS => Expr::ConcatLists(self.operands()),
            SUM => Expr::Sum(self.operands()),
            INTERPOLATE => {
                let path = reader.byte() != 0;
                let pos = self.pos();
                let count = reader.count();
                let parts = heap.alloc_slice(count, |_| {
                    let part = self.expr();
                    (part, self.pos())
                });
                Expr::Interpolate(heap.alloc(Interpolate { parts, path, pos }))
            }
            CURRENT_POSITION => Expr::CurrentPosition(self.pos()),
            LATER => {
                let number = reader.small();
                if number as usize >= self.file.pieces.len() {
                    return self.wrong();
                }
                Expr::Later {
                    number,
                    file: self.file,
                }
            }
            _ => self.wrong(),
        }
    }

    #[cold]
    fn wrong(&self) -> Expr<'h> {
        self.reader.fail();
        Expr::Value(Value::NULL)
    }

    fn lambda(&self) -> Expr<'h> {
        let (reader, heap) = (&self.reader, self.loader.heap);
        let name = self.maybe_name();
        let slots = reader.small();
        let count = reader.count();
        let parameters: &'h [Parameter] = heap.alloc_slice(count, |_| Parameter {
            name: self.maybe_name(),
            pos: self.pos(),
        });
        if parameters.is_empty() {
            return self.wrong();
        }
        let formals = match reader.byte() {
            0 => None,
            kind => Some(self.formals(kind == 2)),
        };
        let body = self.expr();
        Expr::Lambda(heap.alloc(Lambda {
            name,
            parameters,
            formals,
            slots,
            body,
        }))
    }

    fn formals(&self, ellipsis: bool) -> &'h Formals<'h> {
        let (reader, heap) = (&self.reader, self.loader.heap);
        let whole = reader.small().checked_sub(1);
        let first = reader.small();
        let count = reader.count();
        let formals: &'h [Formal<'h>] = heap.alloc_slice(count, |_| Formal {
            name: self.name(),
            pos: self.pos(),
            default: (reader.byte() != 0).then(|| self.expr()),
        });
        let mut sorted: Vec<u32> = (0..formals.len() as u32).collect();
        sorted.sort_unstable_by_key(|index| formals[*index as usize].name);
        heap.alloc(Formals {
            formals,
            sorted: heap.alloc_slice(sorted.len(), |index| sorted[index]),
            ellipsis,
            whole,
            first,
        })
    }

    fn attrs(&self) -> &'h AttrsCode<'h> {
        let (reader, heap) = (&self.reader, self.loader.heap);
        let overrides = reader.small().checked_sub(1);
        let count = reader.count();
        let attr = |_| {
            let (name, pos) = (self.name(), self.pos());
            let scope = self.scope();
            AttrCode {
                name,
                pos,
                scope,
                slot: reader.small(),
                value: self.expr(),
            }
        };
        // Symbols have another order in each evaluation.
        let mut attrs: Vec<AttrCode<'h>> = (0..count).map(attr).collect();
        if !attrs.is_sorted_by(|a, b| a.name < b.name) {
            attrs.sort_unstable_by_key(|attr| attr.name);
        }
        let count = reader.count();
        let dynamic = heap.alloc_slice(count, |_| DynamicAttr {
            name: self.expr(),
            pos: self.pos(),
            value: self.expr(),
        });
        heap.alloc(AttrsCode {
            attrs: heap.alloc_slice(attrs.len(), |index| attrs[index]),
            dynamic,
            shared: self.exprs(),
            overrides,
        })
    }
}
