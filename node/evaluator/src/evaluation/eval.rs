//! Walking code.

use super::Evaluation;
use crate::code::{Dynamic, Expr, Field, HasAttr, Let, LogicOperator, Name, Scope, Select};
use crate::error::{Error, ErrorKind, EvalError, Result};
use crate::heap::{Attrs, Closure, Env, List, Thunk, Value};
use crate::syntax::position::Pos;
use crate::syntax::symbol::Symbol;

impl<'h> Evaluation<'h> {
    /// Evaluates code; the result is never a thunk.
    pub(crate) fn eval(&self, code: &'h Expr<'h>, env: Env<'h>) -> Result<Value<'h>> {
        let mut code = code;
        let mut env = env;
        // The bodies of `let`, `with`, `assert` and the branches of `if` are gone on with in this loop, so that
        // they take no stack.
        loop {
            match code {
                Expr::Value(value) => return Ok(*value),
                Expr::Local { slot, pos } => return self.variable(env, *slot, *pos),
                Expr::Outer { depth, slot, pos } => {
                    return self.variable(env.up(u32::from(*depth)), *slot, *pos);
                }
                Expr::Field(field) => return self.field(field, env),
                Expr::Call(call) => return self.eval_call(call, env),
                Expr::Lambda(lambda) => return Ok(Value::closure(Closure::new(self.heap, lambda, env))),
                Expr::Select(select) => match self.select(select, env)? {
                    Some(value) => return Ok(value),
                    None => match &select.default {
                        Some(default) => code = default,
                        None => unreachable!("a selection without default answers or fails"),
                    },
                },
                Expr::If(branch) => {
                    code = match self.eval_bool(&branch.condition, env) {
                        Ok(true) => &branch.consequence,
                        Ok(false) => &branch.alternative,
                        Err(error) => {
                            return Err(error.frame(branch.pos, "while evaluating a branch condition"));
                        }
                    };
                }
                Expr::Let(inner) => {
                    env = self.let_scope(inner, env);
                    code = &inner.body;
                }
                Expr::With(with) => {
                    env = Env::one(self.heap, env, self.delay(&with.scope, env));
                    code = &with.body;
                }
                Expr::Assert(assert) => {
                    self.assert(assert, env)?;
                    code = &assert.body;
                }
                Expr::List(items) => {
                    return Ok(Value::list(List::new(self.heap, items.len(), |index| {
                        self.delay(&items[index], env)
                    })));
                }
                Expr::Attrs(attrs) => return self.eval_attrs(attrs, env),
                Expr::Rec(attrs) => return self.eval_rec(attrs, env),
                Expr::HasAttr(has) => return self.has_attr(has, env).map(Value::bool),
                Expr::Not(not) => {
                    return match self.eval_bool(&not.operand, env) {
                        Ok(value) => Ok(Value::bool(!value)),
                        Err(error) => Err(error.frame(not.pos, "in the argument of '!'")),
                    };
                }
                Expr::Binary(binary) => return self.binary(binary, env),
                Expr::Logic(logic) => {
                    return self
                        .logic(logic.operator, logic.operands, logic.positions, env)
                        .map(Value::bool);
                }
                Expr::Update(operands) => return self.update(operands, env),
                Expr::ConcatLists(operands) => return self.concat_lists(operands, env),
                Expr::Sum(operands) => return self.sum(operands, env),
                Expr::Interpolate(parts) => return self.interpolate(parts, env),
                Expr::Dynamic(dynamic) => return self.dynamic(dynamic, env),
                Expr::Later { number, file } => code = self.decoded(file, *number)?,
                Expr::CurrentPosition(pos) => return Ok(self.position_value(*pos)),
            }
        }
    }

    /// What stands for an expression that is perhaps never needed: its value where that costs nothing, else a thunk.
    #[inline]
    pub(crate) fn delay(&self, code: &'h Expr<'h>, env: Env<'h>) -> Value<'h> {
        let slot = match code {
            Expr::Value(value) => return *value,
            Expr::Local { slot, .. } => env.slot(*slot).get(),
            Expr::Outer { depth, slot, .. } => env.up(u32::from(*depth)).slot(*slot).get(),
            Expr::Lambda(lambda) => return Value::closure(Closure::new(self.heap, lambda, env)),
            _ => return Value::thunk(Thunk::suspended(self.heap, code, env)),
        };
        if slot.is_unset() {
            // A sibling in a recursive scope that has not got its value yet.
            return Value::thunk(Thunk::suspended(self.heap, code, env));
        }
        if let Some(thunk) = slot.as_thunk()
            && let Some(result) = thunk.result()
            && !result.keeps_its_thunk()
        {
            return result;
        }
        slot
    }

    #[inline]
    fn variable(&self, env: Env<'h>, slot: u32, pos: Pos) -> Result<Value<'h>> {
        match self.force_slot(env.slot(slot)) {
            Ok(value) => Ok(value),
            Err(error) => Err(error.at(pos)),
        }
    }

    #[inline]
    fn let_scope(&self, inner: &'h Let<'h>, around: Env<'h>) -> Env<'h> {
        let env = Env::new(self.heap, Some(around), inner.values.len());
        for (slot, (value, scope)) in env.slots().iter().zip(inner.values) {
            slot.set(self.delay(value, if *scope == Scope::Around { around } else { env }));
        }
        env
    }

    /// Evaluates a condition.
    #[inline]
    pub(super) fn eval_bool(&self, code: &'h Expr<'h>, env: Env<'h>) -> Result<bool> {
        let value = self.eval(code, env)?;
        match value.as_bool() {
            Some(value) => Ok(value),
            None => Err(self.expected(code.pos(), "a Boolean", value)),
        }
    }

    fn logic(
        &self,
        operator: LogicOperator,
        operands: &'h [Expr<'h>],
        positions: &'h [Pos],
        env: Env<'h>,
    ) -> Result<bool> {
        let (stop, result, name) = match operator {
            LogicOperator::And => (false, false, "&&"),
            LogicOperator::Or => (true, true, "||"),
            LogicOperator::Implies => (false, true, "->"),
        };
        let (last, first) = match operands.split_last() {
            Some(split) => split,
            None => unreachable!("an operator has operands"),
        };
        for (index, operand) in first.iter().enumerate() {
            let value = self.eval_bool(operand, env).map_err(|error| {
                let pos = positions.get(index).copied().unwrap_or(Pos::NONE);
                error.frame(pos, format!("in the left operand of '{name}'"))
            })?;
            if value == stop {
                return Ok(result);
            }
        }
        self.eval_bool(last, env).map_err(|error| {
            let pos = positions.last().copied().unwrap_or(Pos::NONE);
            error.frame(pos, format!("in the right operand of '{name}'"))
        })
    }

    #[inline]
    fn field(&self, field: &'h Field<'h>, env: Env<'h>) -> Result<Value<'h>> {
        let subject = match self.eval(&field.subject, env) {
            Ok(subject) => subject,
            Err(error) => return Err(error.frame(field.pos, "while selecting an attribute")),
        };
        if let Some(attrs) = subject.as_attrs() {
            if let Some(attr) = attrs.get(field.name) {
                return match self.force_slot(attr.slot()) {
                    Ok(value) => Ok(value),
                    Err(error) => Err(self.attribute_trace(error, &[field.name], attr.pos, field.pos)),
                };
            }
            return Err(self.missing(attrs, field.name, &[field.name], field.pos));
        }
        let error = self.expected(Pos::NONE, "a set", subject);
        let error = error.frame(field.pos, "while selecting an attribute");
        Err(self.attribute_trace(error, &[field.name], Pos::NONE, field.pos))
    }

    /// The attribute at the end of a path; `None` where it is missing and there is a default.
    fn select(&self, select: &'h Select<'h>, env: Env<'h>) -> Result<Option<Value<'h>>> {
        let mut value = match self.eval(&select.subject, env) {
            Ok(value) => value,
            Err(error) => return Err(error.frame(select.pos, "while selecting an attribute")),
        };
        let mut names = Names::default();
        for name in select.path {
            let name = match self.attribute_name(name, env) {
                Ok(name) => name,
                Err(error) => {
                    return Err(self.attribute_trace(error, names.as_slice(), Pos::NONE, select.pos));
                }
            };
            names.push(name);
            let Some(attrs) = value.as_attrs() else {
                if select.default.is_some() {
                    return Ok(None);
                }
                let error = self.expected(Pos::NONE, "a set", value);
                let error = error.frame(select.pos, "while selecting an attribute");
                return Err(self.attribute_trace(error, names.as_slice(), Pos::NONE, select.pos));
            };
            let Some(attr) = attrs.get(name) else {
                if select.default.is_some() {
                    return Ok(None);
                }
                return Err(self.missing(attrs, name, names.as_slice(), select.pos));
            };
            value = match self.force_slot(attr.slot()) {
                Ok(value) => value,
                Err(error) => {
                    return Err(self.attribute_trace(error, names.as_slice(), attr.pos, select.pos));
                }
            };
        }
        Ok(Some(value))
    }

    fn has_attr(&self, has: &'h HasAttr<'h>, env: Env<'h>) -> Result<bool> {
        let mut value = match self.eval(&has.subject, env) {
            Ok(value) => value,
            Err(error) => return Err(error.frame(has.pos, "in the argument of '?'")),
        };
        let (last, first) = match has.path.split_last() {
            Some(split) => split,
            None => unreachable!("a path has at least one name"),
        };
        for name in first {
            let name = self.attribute_name(name, env)?;
            let Some(attr) = value.as_attrs().and_then(|attrs| attrs.get(name)) else {
                return Ok(false);
            };
            value = self.force_slot(attr.slot())?;
        }
        let name = self.attribute_name(last, env)?;
        Ok(value.as_attrs().is_some_and(|attrs| attrs.get(name).is_some()))
    }

    #[inline]
    fn attribute_name(&self, name: &'h Name<'h>, env: Env<'h>) -> Result<Symbol> {
        match name {
            Name::Static(name) => Ok(*name),
            Name::Computed(code, pos) => {
                let value = self.eval(code, env)?;
                let text = self.string_no_context(value, *pos, "while evaluating an attribute name")?;
                Ok(self.symbol(text.bytes()))
            }
        }
    }

    #[inline(never)]
    fn dynamic(&self, dynamic: &'h Dynamic<'h>, env: Env<'h>) -> Result<Value<'h>> {
        for scope in dynamic.scopes {
            let attrs = self
                .force_slot(env.up(*scope).slot(0))
                .and_then(|value| match value.as_attrs() {
                    Some(attrs) => Ok(attrs),
                    None => Err(self.expected(dynamic.pos, "a set", value)),
                });
            let attrs = attrs.map_err(|error| {
                error.at(dynamic.pos).frame(
                    dynamic.pos,
                    "while evaluating the first subexpression of a with expression",
                )
            })?;
            if let Some(attr) = attrs.get(dynamic.name) {
                return match self.force_slot(attr.slot()) {
                    Ok(value) => Ok(value),
                    Err(error) => Err(error.at(dynamic.pos)),
                };
            }
        }
        Err(self.error(
            dynamic.pos,
            format!("undefined variable '{}'", self.name(dynamic.name)),
        ))
    }

    #[cold]
    #[inline(never)]
    fn missing(&self, attrs: Attrs<'h>, name: Symbol, path: &[Symbol], pos: Pos) -> Error {
        let mut error = EvalError::new(
            ErrorKind::Evaluation,
            Pos::NONE,
            format!("attribute '{}' missing", self.name(name)),
        );
        let names: Vec<String> = attrs.iter().map(|attr| self.name(attr.name)).collect();
        error.suggestions = super::nearest(&self.name(name), names.iter().map(String::as_str));
        self.attribute_trace(error, path, Pos::NONE, pos)
    }

    #[cold]
    #[inline(never)]
    fn attribute_trace(&self, error: Error, path: &[Symbol], defined: Pos, selected: Pos) -> Error {
        let shown: Vec<String> = path.iter().map(|name| self.name(*name)).collect();
        let shown = shown.join(".");
        let error = error.at(if defined.is_none() { selected } else { defined });
        let error = match defined.is_none() {
            true => error,
            false => error.frame(defined, format!("from the definition of '{shown}'")),
        };
        error.frame(selected, format!("while evaluating the attribute '{shown}'"))
    }
}

/// The names of a selection so far, for its error; most are short.
#[derive(Default)]
struct Names {
    first: [Option<Symbol>; 4],
    len: usize,
    all: Vec<Symbol>,
}

impl Names {
    #[inline]
    fn push(&mut self, name: Symbol) {
        if let Some(place) = self.first.get_mut(self.len) {
            *place = Some(name);
        }
        self.len += 1;
    }

    #[cold]
    fn as_slice(&mut self) -> &[Symbol] {
        self.all = self.first.iter().flatten().copied().collect();
        &self.all
    }
}
