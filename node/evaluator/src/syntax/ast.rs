//! The syntax tree of a Nix expression, as the compile pass sees it.
//!
//! [`Expr`] is a small `Copy` value (24 bytes) that is stored *in place*: a list holds its elements, a call its
//! arguments, with no pointer between them. What does not fit lies in the arena of the parse (`bumpalo`), so the
//! whole tree is freed at once when the arena is. Nothing in it is shared or mutable; names are [`Symbol`]s and
//! positions are [`Pos`], both meaningful only with the tables the parser was given. Text (`&'a [u8]`) points into
//! the source where it needed no decoding, else into the arena, so source and arena both outlive the tree.
//!
//! The tree says what stock Nix's parser says (`src/libexpr/parser.y`): attribute paths are nested sets already,
//! sets that were written in pieces are merged, `let { … }` is a selection of `body` from a `rec` set, indented
//! strings are stripped, paths are absolute. It differs from stock Nix in these points, none of which changes the
//! value of an expression:
//!
//! * **Operators stay operators.** Stock Nix turns `-`, `*`, `/`, `<`, `>`, `<=`, `>=`, unary `-` into calls of
//!   *variables* named `__sub`, `__mul`, `__div`, `__lessThan`, which are looked up like any other variable, so
//!   `let __sub = a: b: 42; in 3 - 1` is 42 there. The compile pass gets that back by asking whether the name
//!   that [`BinaryOp::shadowing_name`] returns is bound by a `let`, `rec`, lambda or scope around the operator
//!   (`with` does not count), and compiles a call of it if so. The same holds for [`Expr::SearchPath`] with
//!   `__findFile` and `__nixPath`.
//! * **Chains are flat.** Three or more operands of one precedence and associativity (`a + b - c`, `a ++ b ++ c`)
//!   are one [`Chain`], so that a generated chain of 100,000 terms is not a tree 100,000 deep. The depth of the
//!   tree is bounded by [`MAX_DEPTH`](crate::syntax::limits::MAX_DEPTH), so a recursive walk needs no check of its
//!   own.
//! * **Adjacent literal parts of a string are one part.** `''a''$b''` is one literal here, three parts there.

use super::position::Pos;
use super::symbol::{Symbol, known};

/// An expression. Small and `Copy`; see the module's text for how trees are stored.
///
/// Every variant has the position where it begins, except where a variant says otherwise.
#[derive(Clone, Copy, Debug)]
pub enum Expr<'a> {
    /// An integer literal. Never negative (`-1` is a [`Negate`](Expr::Negate)).
    Int {
        /// Where it begins.
        pos: Pos,
        /// Its value.
        value: i64,
    },
    /// A floating-point literal. Never negative, never infinite or NaN.
    Float {
        /// Where it begins.
        pos: Pos,
        /// Its value.
        value: f64,
    },
    /// A string without interpolation, from any of the notations (`"…"`, `''…''`, URI), decoded. No NUL bytes.
    Str {
        /// Where it begins.
        pos: Pos,
        /// The bytes; not necessarily UTF-8.
        text: &'a [u8],
    },
    /// A string with interpolation: the parts are coerced to strings and concatenated (`ExprConcatStrings` with
    /// `forceString` in stock Nix). Literal parts are [`Expr::Str`], never empty. `"${x}"` has
    /// one part.
    Interpolated {
        /// Where the string begins.
        pos: Pos,
        /// The parts, at least one, at least one of them not literal.
        parts: &'a [Expr<'a>],
    },
    /// A path without interpolation.
    Path {
        /// Where it begins.
        pos: Pos,
        /// Absolute, without `.`, `..` and doubled slashes, without a trailing slash.
        text: &'a [u8],
    },
    /// A path with interpolation, `./a/${x}.nix` (`ExprConcatStrings` without `forceString` in stock Nix). The
    /// first part is an [`Expr::Path`], absolute as above but *with* its trailing slash where it was written with
    /// one; the others are [`Expr::Str`] or interpolated expressions. The result is a path.
    InterpolatedPath {
        /// Where the path begins.
        pos: Pos,
        /// The parts, at least two.
        parts: &'a [Expr<'a>],
    },
    /// `<nixpkgs/lib>`: the call `__findFile __nixPath "nixpkgs/lib"`, both names looked up as variables.
    SearchPath {
        /// Where it begins.
        pos: Pos,
        /// What stands between the angle brackets.
        text: &'a [u8],
    },
    /// A variable.
    Var {
        /// Where it stands.
        pos: Pos,
        /// Its name.
        name: Symbol,
    },
    /// `__curPos`: a set of `file`, `line` and `column` of this position.
    CurPos {
        /// Where it stands.
        pos: Pos,
    },
    /// `[ … ]`
    List {
        /// The opening bracket.
        pos: Pos,
        /// The elements.
        items: &'a [Expr<'a>],
    },
    /// `{ … }` and `rec { … }`. Positions are inside, see [`Bindings::pos`].
    Attrs(&'a Bindings<'a>),
    /// `let … in body`
    Let {
        /// The `let`.
        pos: Pos,
        /// Bindings and body.
        inner: &'a Let<'a>,
    },
    /// `with scope; body`
    With {
        /// The `with`.
        pos: Pos,
        /// Scope and body.
        inner: &'a With<'a>,
    },
    /// `assert condition; body`
    Assert {
        /// The `assert`.
        pos: Pos,
        /// Condition and body.
        inner: &'a Assert<'a>,
    },
    /// `if … then … else …`
    If {
        /// The `if`.
        pos: Pos,
        /// Condition and branches.
        inner: &'a If<'a>,
    },
    /// A function.
    Lambda {
        /// Where its parameter begins.
        pos: Pos,
        /// Parameter and body.
        inner: &'a Lambda<'a>,
    },
    /// `f x y`: one call with all its arguments. `(f x) y` is the same tree as `f x y`.
    Call {
        /// Where the function begins.
        pos: Pos,
        /// Function and arguments.
        inner: &'a Call<'a>,
    },
    /// `e.a.b` and `e.a.b or default`
    Select {
        /// Where `e` begins.
        pos: Pos,
        /// Subject, path, default.
        inner: &'a Select<'a>,
    },
    /// `e ? a.b`
    HasAttr {
        /// The `?`.
        pos: Pos,
        /// Subject and path.
        inner: &'a HasAttr<'a>,
    },
    /// `!e`
    Not {
        /// The `!`.
        pos: Pos,
        /// What is negated.
        operand: &'a Expr<'a>,
    },
    /// `-e`. Means `__sub 0 e`; see the module's text on shadowed operators.
    Negate {
        /// The `-`.
        pos: Pos,
        /// What is negated.
        operand: &'a Expr<'a>,
    },
    /// An operator with two operands.
    Binary {
        /// Which.
        op: BinaryOp,
        /// The operator (not the left operand), as in stock Nix.
        pos: Pos,
        /// Left and right operand.
        operands: &'a [Expr<'a>; 2],
    },
    /// Three or more operands at one level of precedence, flat.
    Chain {
        /// The first operator.
        pos: Pos,
        /// Operands and operators.
        inner: &'a Chain<'a>,
    },
}

/// A binary operator.
///
/// The order in which stock Nix forces the operands is observable through errors. It is left then right, except
/// for `>` and `<=`, which are `__lessThan` with the operands swapped and so force the *right* one first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BinaryOp {
    /// `->`, right associative: `!a || b`.
    Implies,
    /// `||`, left associative, lazy in the right operand.
    Or,
    /// `&&`, left associative, lazy in the right operand.
    And,
    /// `==`, not associative.
    Equal,
    /// `!=`, not associative.
    NotEqual,
    /// `<`, not associative: `__lessThan a b`.
    Less,
    /// `<=`, not associative: `!(__lessThan b a)`.
    LessOrEqual,
    /// `>`, not associative: `__lessThan b a`.
    Greater,
    /// `>=`, not associative: `!(__lessThan a b)`.
    GreaterOrEqual,
    /// `//`, right associative.
    Update,
    /// `+`, left associative: addition or concatenation, decided by the left operand (`ExprConcatStrings` without
    /// `forceString` in stock Nix).
    Add,
    /// `-`, left associative: `__sub a b`.
    Subtract,
    /// `*`, left associative: `__mul a b`.
    Multiply,
    /// `/`, left associative: `__div a b`.
    Divide,
    /// `++`, right associative.
    Concat,
}

impl BinaryOp {
    /// The variable that stock Nix calls for this operator, where it does: if an enclosing scope other than the
    /// base environment (and `with`) binds it, the operator means a call of that binding.
    pub fn shadowing_name(self) -> Option<Symbol> {
        match self {
            BinaryOp::Subtract => Some(known::SUB),
            BinaryOp::Multiply => Some(known::MUL),
            BinaryOp::Divide => Some(known::DIV),
            BinaryOp::Less | BinaryOp::LessOrEqual | BinaryOp::Greater | BinaryOp::GreaterOrEqual => {
                Some(known::LESS_THAN)
            }
            _ => None,
        }
    }

    /// Whether `a op b op c` means `a op (b op c)`. Matters for [`Chain`]s alone.
    pub fn is_right_associative(self) -> bool {
        matches!(self, BinaryOp::Implies | BinaryOp::Update | BinaryOp::Concat)
    }

    /// How the operator is written.
    pub fn as_str(self) -> &'static str {
        match self {
            BinaryOp::Implies => "->",
            BinaryOp::Or => "||",
            BinaryOp::And => "&&",
            BinaryOp::Equal => "==",
            BinaryOp::NotEqual => "!=",
            BinaryOp::Less => "<",
            BinaryOp::LessOrEqual => "<=",
            BinaryOp::Greater => ">",
            BinaryOp::GreaterOrEqual => ">=",
            BinaryOp::Update => "//",
            BinaryOp::Add => "+",
            BinaryOp::Subtract => "-",
            BinaryOp::Multiply => "*",
            BinaryOp::Divide => "/",
            BinaryOp::Concat => "++",
        }
    }
}

/// `first op₀ operand₀ op₁ operand₁ …`, all operators of one precedence and associativity: `+` and `-` mixed, `*`
/// and `/` mixed, or one of `++`, `//`, `&&`, `||`, `->` alone.
///
/// If the operators are left associative the chain means `((first op₀ operand₀) op₁ operand₁) …`, else
/// `first op₀ (operand₀ op₁ (operand₁ …))`; see [`Chain::is_right_associative`].
#[derive(Clone, Copy, Debug)]
pub struct Chain<'a> {
    /// The leftmost operand.
    pub first: Expr<'a>,
    /// The rest, at least two.
    pub rest: &'a [ChainLink<'a>],
}

impl Chain<'_> {
    /// Whether the chain nests to the right.
    pub fn is_right_associative(&self) -> bool {
        self.rest
            .first()
            .is_some_and(|link| link.op.is_right_associative())
    }
}

/// An operator of a [`Chain`] and its right operand.
#[derive(Clone, Copy, Debug)]
pub struct ChainLink<'a> {
    /// The operator.
    pub op: BinaryOp,
    /// Where the operator stands.
    pub pos: Pos,
    /// What stands right of it.
    pub operand: Expr<'a>,
}

/// The bindings of `{ … }`, `rec { … }` or `let … in`, with attribute paths nested and parts merged as stock Nix
/// does, so that every name is there once.
#[derive(Clone, Copy, Debug)]
pub struct Bindings<'a> {
    /// The opening brace or the `rec`; [`Pos::NONE`] for sets that came to be by an attribute path (`a.b = 1`),
    /// and for the bindings of a `let`.
    pub pos: Pos,
    /// `rec { … }`: the values of *plain* and *inherited-from* attributes see the attributes. (For a `let` this is
    /// `false`, though its bindings see each other all the same.)
    pub recursive: bool,
    /// The attributes with names known at parse time, unique, in the order of their first mention.
    pub attrs: &'a [Attr<'a>],
    /// `${e} = …` and `"a${b}" = …`, in source order. Their names are evaluated in the scope of the values (so
    /// inside a `rec` they see the static attributes). Empty in a `let`.
    pub dynamic: &'a [DynamicAttr<'a>],
    /// The `e` of each `inherit (e) …`, in source order: evaluated at most once each, in the scope of the values
    /// (inside a `rec` or `let` they see the attributes). [`AttrValue::InheritedFrom`] refers to them by index.
    pub inherit_from: &'a [Expr<'a>],
}

/// One attribute with a static name.
#[derive(Clone, Copy, Debug)]
pub struct Attr<'a> {
    /// Its name.
    pub name: Symbol,
    /// Where it is defined, as `builtins.unsafeGetAttrPos` says it: the first name of the attribute path, or the
    /// name in the `inherit`.
    pub pos: Pos,
    /// Its value.
    pub value: AttrValue<'a>,
}

/// Where the value of an [`Attr`] comes from.
#[derive(Clone, Copy, Debug)]
pub enum AttrValue<'a> {
    /// `a = e;`
    Plain(Expr<'a>),
    /// `inherit a;`: the variable of that name in the scope *around* the bindings.
    Inherited,
    /// `inherit (e) a;`: the attribute of that name in `inherit_from[index]`.
    InheritedFrom(u32),
}

/// One attribute with a computed name. If the name evaluates to `null` the attribute is left out.
#[derive(Clone, Copy, Debug)]
pub struct DynamicAttr<'a> {
    /// The name.
    pub name: Expr<'a>,
    /// Where the attribute path begins.
    pub pos: Pos,
    /// The value.
    pub value: Expr<'a>,
}

/// `let … in body`
#[derive(Clone, Copy, Debug)]
pub struct Let<'a> {
    /// The bindings; they see each other. No dynamic attributes.
    pub bindings: Bindings<'a>,
    /// What the expression means.
    pub body: Expr<'a>,
}

/// `with scope; body`
#[derive(Clone, Copy, Debug)]
pub struct With<'a> {
    /// The set whose attributes come into scope, behind all lexically bound names.
    pub scope: Expr<'a>,
    /// What the expression means.
    pub body: Expr<'a>,
}

/// `assert condition; body`
#[derive(Clone, Copy, Debug)]
pub struct Assert<'a> {
    /// What must be true.
    pub condition: Expr<'a>,
    /// What the expression means.
    pub body: Expr<'a>,
}

/// `if condition then consequence else alternative`
#[derive(Clone, Copy, Debug)]
pub struct If<'a> {
    /// The condition.
    pub condition: Expr<'a>,
    /// The value where the condition is true.
    pub consequence: Expr<'a>,
    /// The value where it is false.
    pub alternative: Expr<'a>,
}

/// A function of one parameter.
///
/// Stock Nix names a function after the binding it is the value of (`f = x: y: …` names both functions `f`); the
/// compile pass can do that, it sees the binding.
#[derive(Clone, Copy, Debug)]
pub struct Lambda<'a> {
    /// The parameter.
    pub param: Param<'a>,
    /// The body.
    pub body: Expr<'a>,
}

/// The parameter of a [`Lambda`].
#[derive(Clone, Copy, Debug)]
pub enum Param<'a> {
    /// `x: …`
    Name(Symbol),
    /// `{ a, b ? 1, ... }: …`, with a name for the whole set if there is an `@`.
    Formals {
        /// The formals, unique, in source order.
        formals: &'a [Formal<'a>],
        /// Whether `...` allows other attributes.
        ellipsis: bool,
        /// `args@{ … }` and `{ … }@args`.
        whole: Option<Symbol>,
    },
}

/// One formal of a set pattern.
#[derive(Clone, Copy, Debug)]
pub struct Formal<'a> {
    /// Its name.
    pub name: Symbol,
    /// Where the name stands.
    pub pos: Pos,
    /// `? default`, evaluated in the scope of all formals.
    pub default: Option<Expr<'a>>,
}

/// `function arguments…`
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// What is called; never a [`Call`] itself.
    pub function: Expr<'a>,
    /// At least one.
    pub arguments: &'a [Expr<'a>],
}

/// `subject.path` and `subject.path or default`
#[derive(Clone, Copy, Debug)]
pub struct Select<'a> {
    /// What is selected from.
    pub subject: Expr<'a>,
    /// At least one name.
    pub path: &'a [AttrName<'a>],
    /// The value where any name of the path is missing (or its holder is not a set).
    pub default: Option<Expr<'a>>,
}

/// `subject ? path`
#[derive(Clone, Copy, Debug)]
pub struct HasAttr<'a> {
    /// What is asked.
    pub subject: Expr<'a>,
    /// At least one name.
    pub path: &'a [AttrName<'a>],
}

/// One name of an attribute path in a [`Select`] or [`HasAttr`].
#[derive(Clone, Copy, Debug)]
pub enum AttrName<'a> {
    /// `a`, `"a"`, `${"a"}`
    Static(Symbol),
    /// `${e}`, `"a${e}"`: must evaluate to a string.
    Dynamic(Expr<'a>),
}

impl<'a> Expr<'a> {
    /// The position of the expression, as errors about it should show it. [`Pos::NONE`] for sets that came to be
    /// by an attribute path.
    pub fn pos(&self) -> Pos {
        match *self {
            Expr::Int { pos, .. }
            | Expr::Float { pos, .. }
            | Expr::Str { pos, .. }
            | Expr::Interpolated { pos, .. }
            | Expr::Path { pos, .. }
            | Expr::InterpolatedPath { pos, .. }
            | Expr::SearchPath { pos, .. }
            | Expr::Var { pos, .. }
            | Expr::CurPos { pos }
            | Expr::List { pos, .. }
            | Expr::Let { pos, .. }
            | Expr::With { pos, .. }
            | Expr::Assert { pos, .. }
            | Expr::If { pos, .. }
            | Expr::Lambda { pos, .. }
            | Expr::Call { pos, .. }
            | Expr::Select { pos, .. }
            | Expr::HasAttr { pos, .. }
            | Expr::Not { pos, .. }
            | Expr::Negate { pos, .. }
            | Expr::Binary { pos, .. }
            | Expr::Chain { pos, .. } => pos,
            Expr::Attrs(bindings) => bindings.pos,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_stay_small() {
        assert_eq!(size_of::<Expr<'_>>(), 24);
        assert_eq!(size_of::<AttrName<'_>>(), 24);
        assert_eq!(size_of::<AttrValue<'_>>(), 24);
        assert_eq!(size_of::<Attr<'_>>(), 32);
        assert_eq!(size_of::<Option<Symbol>>(), 4);
    }
}
