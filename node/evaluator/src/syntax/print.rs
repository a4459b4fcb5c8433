//! Prints a syntax tree as `nix-instantiate --parse` of current Nix does: one line, everything in parentheses, sets
//! sorted by name, operators that stock Nix desugars in their desugared form.

use std::io::Write;

use super::ast::{AttrName, AttrValue, BinaryOp, Bindings, Chain, Expr, Lambda, Param};
use super::symbol::{Symbol, SymbolTable};
use crate::pure::{escape, float_format};

/// An expression as text (bytes, because literals need not be UTF-8).
pub fn expr(expr: &Expr<'_>, symbols: &SymbolTable) -> Vec<u8> {
    let mut printer = Printer {
        out: Vec::new(),
        symbols,
    };
    printer.expr(expr);
    printer.out
}

/// An attribute path as text, as messages show it: `a."b c"."${d}"`.
pub fn attr_path(path: &[AttrName<'_>], symbols: &SymbolTable) -> Vec<u8> {
    let mut printer = Printer {
        out: Vec::new(),
        symbols,
    };
    printer.attr_path(path);
    printer.out
}

struct Printer<'s> {
    out: Vec<u8>,
    symbols: &'s SymbolTable,
}

/// What stands before, between and behind the operands of an operator in its desugared form.
fn notation(op: BinaryOp) -> (&'static str, String, &'static str) {
    match op {
        BinaryOp::Subtract => ("(__sub ", " ".into(), ")"),
        BinaryOp::Multiply => ("(__mul ", " ".into(), ")"),
        BinaryOp::Divide => ("(__div ", " ".into(), ")"),
        BinaryOp::Less | BinaryOp::Greater => ("(__lessThan ", " ".into(), ")"),
        BinaryOp::LessOrEqual | BinaryOp::GreaterOrEqual => ("(! (__lessThan ", " ".into(), "))"),
        other => ("(", format!(" {} ", other.as_str()), ")"),
    }
}

/// Whether stock Nix makes a call of the expression, so that arguments behind it go into that call.
fn is_desugared_to_call(expr: &Expr<'_>) -> bool {
    match expr {
        Expr::SearchPath { .. } | Expr::Negate { .. } => true,
        Expr::Binary { op, .. } => notation(*op).0.starts_with("(__"),
        Expr::Chain { inner, .. } => inner
            .rest
            .last()
            .is_some_and(|link| notation(link.op).0.starts_with("(__")),
        _ => false,
    }
}

impl Printer<'_> {
    fn text(&mut self, text: &str) {
        self.out.extend_from_slice(text.as_bytes());
    }

    fn name(&mut self, name: Symbol) {
        escape::push_name(&mut self.out, self.symbols.bytes(name));
    }

    fn number(&mut self, number: impl std::fmt::Display) {
        // Writing to a vector cannot fail.
        let _ = write!(self.out, "{number}");
    }

    /// Expressions with something before, between and behind them.
    fn joined(&mut self, before: &str, exprs: &[Expr<'_>], between: &str, behind: &str) {
        self.text(before);
        for (index, expr) in exprs.iter().enumerate() {
            if index > 0 {
                self.text(between);
            }
            self.expr(expr);
        }
        self.text(behind);
    }

    fn expr(&mut self, expr: &Expr<'_>) {
        match *expr {
            Expr::Int { value, .. } => self.number(value),
            Expr::Float { value, .. } => self.text(&float_format::general(value)),
            Expr::Str { text, .. } => escape::push_string(&mut self.out, text),
            Expr::Interpolated { parts, .. } | Expr::InterpolatedPath { parts, .. } => {
                self.joined("(", parts, " + ", ")");
            }
            Expr::Path { text, .. } => self.out.extend_from_slice(text),
            Expr::SearchPath { text, .. } => {
                self.text("(__findFile __nixPath ");
                escape::push_string(&mut self.out, text);
                self.text(")");
            }
            Expr::Var { name, .. } => self.name(name),
            Expr::CurPos { .. } => self.text("__curPos"),
            Expr::List { items, .. } => {
                self.text("[ ");
                for item in items {
                    self.text("(");
                    self.expr(item);
                    self.text(") ");
                }
                self.text("]");
            }
            Expr::Attrs(bindings) => {
                self.text(if bindings.recursive { "rec { " } else { "{ " });
                self.bindings(bindings);
                self.text("}");
            }
            Expr::Let { inner, .. } => {
                self.text("(let ");
                self.bindings(&inner.bindings);
                self.joined("in ", &[inner.body], "", ")");
            }
            Expr::With { inner, .. } => self.joined("(with ", &[inner.scope, inner.body], "; ", ")"),
            Expr::Assert { inner, .. } => self.joined("assert ", &[inner.condition, inner.body], "; ", ""),
            Expr::If { inner, .. } => {
                self.joined("(if ", &[inner.condition], "", " then ");
                self.joined("", &[inner.consequence, inner.alternative], " else ", ")");
            }
            Expr::Lambda { inner, .. } => self.lambda(inner),
            Expr::Call { inner, .. } => {
                if is_desugared_to_call(&inner.function) {
                    self.expr(&inner.function);
                    self.out.pop();
                } else {
                    self.joined("(", &[inner.function], "", "");
                }
                self.joined(" ", inner.arguments, " ", ")");
            }
            Expr::Select { inner, .. } => {
                self.joined("(", &[inner.subject], "", ").");
                self.attr_path(inner.path);
                if let Some(default) = inner.default {
                    self.joined(" or (", &[default], "", ")");
                }
            }
            Expr::HasAttr { inner, .. } => {
                self.joined("((", &[inner.subject], "", ") ? ");
                self.attr_path(inner.path);
                self.text(")");
            }
            Expr::Not { operand, .. } => self.joined("(! ", &[*operand], "", ")"),
            Expr::Negate { operand, .. } => self.joined("(__sub 0 ", &[*operand], "", ")"),
            Expr::Binary {
                op,
                operands: &[left, right],
                ..
            } => {
                let (before, between, behind) = notation(op);
                let operands = match op {
                    BinaryOp::Greater | BinaryOp::LessOrEqual => [right, left],
                    _ => [left, right],
                };
                self.joined(before, &operands, &between, behind);
            }
            Expr::Chain { inner, .. } => self.chain(inner),
        }
    }

    fn chain(&mut self, chain: &Chain<'_>) {
        if chain.is_right_associative() {
            let mut left = &chain.first;
            for link in chain.rest {
                let (before, between, _) = notation(link.op);
                self.joined(before, &[*left], "", &between);
                left = &link.operand;
            }
            self.expr(left);
            for link in chain.rest.iter().rev() {
                self.text(notation(link.op).2);
            }
        } else {
            for link in chain.rest.iter().rev() {
                self.text(notation(link.op).0);
            }
            self.expr(&chain.first);
            for link in chain.rest {
                let (_, between, behind) = notation(link.op);
                self.joined(&between, &[link.operand], "", behind);
            }
        }
    }

    fn bindings(&mut self, bindings: &Bindings<'_>) {
        let mut attrs: Vec<_> = bindings.attrs.iter().collect();
        attrs.sort_by_key(|attr| self.symbols.bytes(attr.name));
        if attrs
            .iter()
            .any(|attr| matches!(attr.value, AttrValue::Inherited))
        {
            self.text("inherit");
            for attr in &attrs {
                if let AttrValue::Inherited = attr.value {
                    self.text(" ");
                    self.name(attr.name);
                }
            }
            self.text("; ");
        }
        for (index, from) in bindings.inherit_from.iter().enumerate() {
            let mut names = attrs
                .iter()
                .filter(
                    |attr| matches!(attr.value, AttrValue::InheritedFrom(other) if other as usize == index),
                )
                .peekable();
            if names.peek().is_none() {
                continue;
            }
            self.joined("inherit (", &[*from], "", ")");
            for attr in names {
                self.text(" ");
                self.name(attr.name);
            }
            self.text("; ");
        }
        for attr in &attrs {
            if let AttrValue::Plain(value) = attr.value {
                self.name(attr.name);
                self.joined(" = ", &[value], "", "; ");
            }
        }
        for attr in bindings.dynamic {
            self.joined("\"${", &[attr.name], "", "}\" = ");
            self.joined("", &[attr.value], "", "; ");
        }
    }

    fn lambda(&mut self, lambda: &Lambda<'_>) {
        self.text("(");
        match lambda.param {
            Param::Name(name) => self.name(name),
            Param::Formals {
                formals,
                ellipsis,
                whole,
            } => {
                let mut formals: Vec<_> = formals.iter().collect();
                formals.sort_by_key(|formal| self.symbols.bytes(formal.name));
                self.text("{ ");
                for (index, formal) in formals.iter().enumerate() {
                    if index > 0 {
                        self.text(", ");
                    }
                    self.name(formal.name);
                    if let Some(default) = formal.default {
                        self.joined(" ? ", &[default], "", "");
                    }
                }
                if ellipsis {
                    self.text(if formals.is_empty() { "..." } else { ", ..." });
                }
                self.text(" }");
                if let Some(whole) = whole {
                    self.text(" @ ");
                    self.name(whole);
                }
            }
        }
        self.joined(": ", &[lambda.body], "", ")");
    }

    fn attr_path(&mut self, path: &[AttrName<'_>]) {
        for (index, name) in path.iter().enumerate() {
            if index > 0 {
                self.text(".");
            }
            match name {
                AttrName::Static(name) => self.name(*name),
                AttrName::Dynamic(name) => self.joined("\"${", &[*name], "", "}\""),
            }
        }
    }
}
