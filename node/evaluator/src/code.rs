//! Compiled code: what the compile pass makes of a syntax tree, and what is evaluated.
//!
//! A tree of 16-byte nodes in the heap. Variables are (scope, slot) pairs, constants are values, a call has all its
//! arguments, a curried function takes all its parameters at once, names of sets are sorted. Nothing is looked up
//! by name at run time except attributes and the variables of `with`.

use crate::cache::Loaded;
use crate::heap::Value;
use crate::syntax::position::Pos;
use crate::syntax::symbol::Symbol;

/// An expression.
#[derive(Clone, Copy)]
#[repr(align(8))]
pub(crate) enum Expr<'h> {
    /// A constant, evaluated.
    Value(Value<'h>),
    /// A variable of the innermost scope.
    Local { slot: u32, pos: Pos },
    /// A variable of a scope around it.
    Outer { depth: u16, slot: u32, pos: Pos },
    /// A variable that only a `with` can bind.
    Dynamic(&'h Dynamic<'h>),
    /// `subject.name`
    Field(&'h Field<'h>),
    /// `subject.path`, `subject.path or default`
    Select(&'h Select<'h>),
    /// `subject ? path`
    HasAttr(&'h HasAttr<'h>),
    /// A function.
    Lambda(&'h Lambda<'h>),
    /// A call with one or more arguments.
    Call(&'h Call<'h>),
    /// `[ … ]`, not empty.
    List(&'h &'h [Expr<'h>]),
    /// `{ … }`, not empty.
    Attrs(&'h AttrsCode<'h>),
    /// `rec { … }`
    Rec(&'h AttrsCode<'h>),
    /// `let … in …`
    Let(&'h Let<'h>),
    /// `with …; …`
    With(&'h With<'h>),
    /// `if … then … else …`
    If(&'h If<'h>),
    /// `assert …; …`
    Assert(&'h Assert<'h>),
    /// `!…`
    Not(&'h Unary<'h>),
    /// An operator of two operands that are both evaluated.
    Binary(&'h Binary<'h>),
    /// `a && b && …`, `a || b || …`
    Logic(&'h Logic<'h>),
    /// `a // b // …`
    Update(&'h Operands<'h>),
    /// `a ++ b ++ …`
    ConcatLists(&'h Operands<'h>),
    /// `a + b + c + …`
    Sum(&'h Operands<'h>),
    /// `"…${…}…"` (always a string), and paths with interpolation.
    Interpolate(&'h Interpolate<'h>),
    /// `__curPos`
    CurrentPosition(Pos),
    /// Code out of the cache that is not decoded yet.
    Later { number: u32, file: &'h Loaded<'h> },
}

/// A variable that only a `with` can bind.
pub(crate) struct Dynamic<'h> {
    pub(crate) name: Symbol,
    pub(crate) pos: Pos,
    /// How many scopes around this one each enclosing `with` is, innermost first.
    pub(crate) scopes: &'h [u32],
}

/// Selection of one attribute.
pub(crate) struct Field<'h> {
    pub(crate) subject: Expr<'h>,
    pub(crate) name: Symbol,
    pub(crate) pos: Pos,
}

/// Selection of a path of attributes.
pub(crate) struct Select<'h> {
    pub(crate) subject: Expr<'h>,
    pub(crate) path: &'h [Name<'h>],
    pub(crate) default: Option<Expr<'h>>,
    pub(crate) pos: Pos,
}

/// Whether a path of attributes is there.
pub(crate) struct HasAttr<'h> {
    pub(crate) subject: Expr<'h>,
    pub(crate) path: &'h [Name<'h>],
    pub(crate) pos: Pos,
}

/// One name of an attribute path.
pub(crate) enum Name<'h> {
    Static(Symbol),
    Computed(Expr<'h>, Pos),
}

/// A function: one or more plain parameters, the last of them perhaps a set pattern.
///
/// `a: b: { c, d ? c }@e: body` is one function of three parameters with one scope: `a b e c d`.
pub(crate) struct Lambda<'h> {
    /// Name of the binding that it is the value of.
    pub(crate) name: Option<Symbol>,
    /// The parameters; as many as it takes arguments.
    pub(crate) parameters: &'h [Parameter],
    /// Set pattern of the last parameter.
    pub(crate) formals: Option<&'h Formals<'h>>,
    /// Slots of its scope.
    pub(crate) slots: u32,
    pub(crate) body: Expr<'h>,
}

impl Lambda<'_> {
    /// How many arguments it takes.
    #[inline]
    pub(crate) fn arity(&self) -> usize {
        self.parameters.len()
    }
}

/// A parameter of a function.
#[derive(Clone, Copy)]
pub(crate) struct Parameter {
    /// Its name; a set pattern may have none.
    pub(crate) name: Option<Symbol>,
    /// Where it begins.
    pub(crate) pos: Pos,
}

/// The pattern `{ a, b ? 1, ... }@whole`.
pub(crate) struct Formals<'h> {
    /// In source order; they take the last slots of the scope in this order.
    pub(crate) formals: &'h [Formal<'h>],
    /// The same, as indexes sorted by symbol.
    pub(crate) sorted: &'h [u32],
    /// Whether further attributes are accepted.
    pub(crate) ellipsis: bool,
    /// Slot for the whole set, where it has a name.
    pub(crate) whole: Option<u32>,
    /// Slot of the first formal.
    pub(crate) first: u32,
}

/// One name of a set pattern.
pub(crate) struct Formal<'h> {
    pub(crate) name: Symbol,
    pub(crate) pos: Pos,
    pub(crate) default: Option<Expr<'h>>,
}

/// A call.
pub(crate) struct Call<'h> {
    pub(crate) function: Expr<'h>,
    pub(crate) arguments: &'h [Expr<'h>],
    pub(crate) pos: Pos,
}

/// The bindings of a set.
pub(crate) struct AttrsCode<'h> {
    /// Attributes with static names, sorted by symbol.
    pub(crate) attrs: &'h [AttrCode<'h>],
    /// Attributes with computed names, in source order.
    pub(crate) dynamic: &'h [DynamicAttr<'h>],
    /// Sources of `inherit (…)` that are worth sharing; in a set without `rec` they make a scope of their own.
    pub(crate) shared: &'h [Expr<'h>],
    /// In a `rec` set: slot of `__overrides`.
    pub(crate) overrides: Option<u32>,
}

/// An attribute with a static name.
#[derive(Clone, Copy)]
pub(crate) struct AttrCode<'h> {
    pub(crate) name: Symbol,
    pub(crate) pos: Pos,
    pub(crate) value: Expr<'h>,
    pub(crate) scope: Scope,
    /// In a `rec` set: its slot in the scope.
    pub(crate) slot: u32,
}

/// The scope in which a binding is evaluated.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// The scope of the bindings themselves (for sets without `rec`: the one around).
    Inner,
    /// The scope around the bindings: `inherit a;`.
    Around,
    /// The scope of the shared `inherit` sources of a set without `rec`.
    Shared,
}

/// An attribute with a computed name.
pub(crate) struct DynamicAttr<'h> {
    pub(crate) name: Expr<'h>,
    pub(crate) pos: Pos,
    pub(crate) value: Expr<'h>,
}

/// `let … in body`. Slots: bindings, then shared sources of `inherit (…)`.
pub(crate) struct Let<'h> {
    pub(crate) values: &'h [(Expr<'h>, Scope)],
    pub(crate) body: Expr<'h>,
}

/// `with scope; body`
pub(crate) struct With<'h> {
    pub(crate) scope: Expr<'h>,
    pub(crate) body: Expr<'h>,
}

/// `if condition then consequence else alternative`
pub(crate) struct If<'h> {
    pub(crate) condition: Expr<'h>,
    pub(crate) consequence: Expr<'h>,
    pub(crate) alternative: Expr<'h>,
    pub(crate) pos: Pos,
}

/// `assert condition; body`
pub(crate) struct Assert<'h> {
    pub(crate) condition: Expr<'h>,
    pub(crate) body: Expr<'h>,
    pub(crate) pos: Pos,
    /// The condition as Nix prints it in the error.
    pub(crate) shown: &'h [u8],
}

/// An operator of one operand.
pub(crate) struct Unary<'h> {
    pub(crate) operand: Expr<'h>,
    pub(crate) pos: Pos,
}

/// An operator of two operands.
pub(crate) struct Binary<'h> {
    pub(crate) operator: Operator,
    pub(crate) left: Expr<'h>,
    pub(crate) right: Expr<'h>,
    pub(crate) pos: Pos,
    /// Where the operands are.
    pub(crate) operand_positions: [Pos; 2],
}

/// Operators that evaluate both operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Add,
    Subtract,
    Multiply,
    Divide,
}

/// A chain of `&&`, `||` or `->`.
pub(crate) struct Logic<'h> {
    pub(crate) operator: LogicOperator,
    pub(crate) operands: &'h [Expr<'h>],
    pub(crate) positions: &'h [Pos],
}

/// Operators that may leave operands unevaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogicOperator {
    And,
    Or,
    Implies,
}

/// Operands of a chain of one operator.
pub(crate) struct Operands<'h> {
    pub(crate) operands: &'h [Expr<'h>],
    pub(crate) pos: Pos,
    /// Where each operand is.
    pub(crate) positions: &'h [Pos],
}

/// A string or path with interpolated parts.
pub(crate) struct Interpolate<'h> {
    pub(crate) parts: &'h [(Expr<'h>, Pos)],
    /// Whether it is a path (then the first part is one).
    pub(crate) path: bool,
    pub(crate) pos: Pos,
}

impl Expr<'_> {
    /// Where it is in the source, [`Pos::NONE`] if that is not kept.
    pub(crate) fn pos(&self) -> Pos {
        match self {
            Self::Local { pos, .. } | Self::Outer { pos, .. } | Self::CurrentPosition(pos) => *pos,
            Self::Dynamic(code) => code.pos,
            Self::Field(code) => code.pos,
            Self::Select(code) => code.pos,
            Self::HasAttr(code) => code.pos,
            Self::Lambda(code) => code.parameters[0].pos,
            Self::Call(code) => code.pos,
            Self::Let(code) => code.body.pos(),
            Self::With(code) => code.body.pos(),
            Self::If(code) => code.pos,
            Self::Assert(code) => code.pos,
            Self::Not(code) => code.pos,
            Self::Binary(code) => code.pos,
            Self::Logic(code) => code.positions.first().copied().unwrap_or(Pos::NONE),
            Self::Update(code) | Self::ConcatLists(code) | Self::Sum(code) => code.pos,
            Self::Interpolate(code) => code.pos,
            Self::Later { number, file } => file.pos(*number),
            Self::Value(_) | Self::List(_) | Self::Attrs(_) | Self::Rec(_) => Pos::NONE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_stay_small() {
        assert_eq!(size_of::<Expr<'_>>(), 16);
    }
}
