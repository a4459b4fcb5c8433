//! Attribute sets and `assert`.

use super::Evaluation;
use crate::code::{Assert, AttrsCode, Expr, Operands, Operator, Scope};
use crate::error::{ErrorKind, EvalError, Result};
use crate::heap::{Attr, Attrs, AttrsBuilder, Env, Thunk, Value};
use crate::syntax::position::Pos;
use crate::syntax::symbol::known;

impl<'h> Evaluation<'h> {
    pub(super) fn eval_attrs(&self, code: &'h AttrsCode<'h>, env: Env<'h>) -> Result<Value<'h>> {
        let shared = match code.shared {
            [] => env,
            shared => Env::filled(self.heap, Some(env), shared.len(), |index| {
                self.delay(&shared[index], env)
            }),
        };
        let attrs = Attrs::new(self.heap, code.attrs.len(), |index| {
            let attr = &code.attrs[index];
            let scope = if attr.scope == Scope::Shared { shared } else { env };
            Attr::new(attr.name, attr.pos, self.delay(&attr.value, scope))
        });
        if code.dynamic.is_empty() {
            return Ok(Value::attrs(attrs));
        }
        self.dynamic_attrs(code, attrs, env)
    }

    pub(super) fn eval_rec(&self, code: &'h AttrsCode<'h>, around: Env<'h>) -> Result<Value<'h>> {
        let count = code.attrs.len();
        let env = Env::new(self.heap, Some(around), count + code.shared.len());
        let slots = env.slots();
        for (slot, source) in slots[count..].iter().zip(code.shared) {
            slot.set(self.delay(source, env));
        }
        for attr in code.attrs {
            let scope = if attr.scope == Scope::Around { around } else { env };
            // With `__overrides` every attribute is a thunk, as nothing may see a value before it is overridden.
            let value = match (code.overrides, attr.scope) {
                (Some(_), Scope::Inner) => Value::thunk(Thunk::suspended(self.heap, &attr.value, scope)),
                _ => self.delay(&attr.value, scope),
            };
            slots[attr.slot as usize].set(value);
        }
        let mut attrs = Attrs::new(self.heap, count, |index| {
            let attr = &code.attrs[index];
            Attr::new(attr.name, attr.pos, slots[attr.slot as usize].get())
        });
        if let Some(overrides) = code.overrides {
            let overrides = self.attrs(
                slots[overrides as usize].get(),
                Pos::NONE,
                "while evaluating the `__overrides` attribute",
            )?;
            for attr in overrides.iter() {
                if let Ok(index) = code.attrs.binary_search_by_key(&attr.name, |attr| attr.name) {
                    slots[code.attrs[index].slot as usize].set(attr.value());
                }
            }
            attrs = attrs.update(self.heap, overrides);
        }
        if code.dynamic.is_empty() {
            return Ok(Value::attrs(attrs));
        }
        self.dynamic_attrs(code, attrs, env)
    }

    #[inline(never)]
    fn dynamic_attrs(&self, code: &'h AttrsCode<'h>, fixed: Attrs<'h>, env: Env<'h>) -> Result<Value<'h>> {
        let mut added: Vec<Attr<'h>> = Vec::with_capacity(code.dynamic.len());
        for attr in code.dynamic {
            let name = self.eval(&attr.name, env)?;
            if matches!(name.view(), crate::heap::View::Null) {
                continue;
            }
            let text =
                self.string_no_context(name, attr.pos, "while evaluating the name of a dynamic attribute")?;
            let name = self.symbol(text.bytes());
            let first = match fixed.get(name) {
                Some(attr) => Some(attr.pos),
                None => added.iter().find(|attr| attr.name == name).map(|attr| attr.pos),
            };
            if let Some(first) = first {
                let shown = self.name(name);
                let place = self.location(first);
                return Err(self.error(
                    attr.pos,
                    format!("dynamic attribute '{shown}' already defined at {place}"),
                ));
            }
            let value = match &attr.value {
                // A function takes the name of its attribute.
                Expr::Lambda(lambda) if lambda.name.is_none() => {
                    let named = self.heap.alloc(crate::code::Lambda {
                        name: Some(name),
                        ..**lambda
                    });
                    Value::closure(crate::heap::Closure::new(self.heap, named, env))
                }
                value => self.delay(value, env),
            };
            added.push(Attr::new(name, attr.pos, value));
        }
        let mut all = AttrsBuilder::with_capacity(fixed.len() + added.len());
        for attr in fixed.iter() {
            all.insert_at(attr.name, attr.pos, attr.value());
        }
        for attr in &added {
            all.insert_at(attr.name, attr.pos, attr.value());
        }
        Ok(Value::attrs(all.finish(self.heap)))
    }

    /// `a // b // …`: operands are evaluated from the right, as in Nix.
    pub(super) fn update(&self, operands: &'h Operands<'h>, env: Env<'h>) -> Result<Value<'h>> {
        if let [left, right] = operands.operands {
            let right = self.update_operand(right, operands, env, "in the right operand of '//'")?;
            let left = self.update_operand(left, operands, env, "in the left operand of '//'")?;
            return Ok(Value::attrs(left.update(self.heap, right)));
        }
        let mut sets = Vec::with_capacity(operands.operands.len());
        for (index, operand) in operands.operands.iter().enumerate().rev() {
            let context = if index == 0 {
                "in the left operand of '//'"
            } else {
                "in the right operand of '//'"
            };
            sets.push(self.update_operand(operand, operands, env, context)?);
        }
        let mut sets = sets.into_iter().rev();
        let Some(mut result) = sets.next() else {
            unreachable!("an operator has operands")
        };
        for set in sets {
            result = result.update(self.heap, set);
        }
        Ok(Value::attrs(result))
    }

    #[inline]
    fn update_operand(
        &self,
        code: &'h Expr<'h>,
        operands: &Operands<'h>,
        env: Env<'h>,
        context: &'static str,
    ) -> Result<Attrs<'h>> {
        let value = match self.eval(code, env) {
            Ok(value) => value,
            Err(error) => return Err(error.frame(operands.pos, context)),
        };
        match value.as_attrs() {
            Some(attrs) => Ok(attrs),
            None => Err(self
                .expected(code.pos(), "a set", value)
                .frame(operands.pos, context)),
        }
    }

    pub(super) fn assert(&self, assert: &'h Assert<'h>, env: Env<'h>) -> Result<()> {
        let holds = self
            .eval_bool(&assert.condition, env)
            .map_err(|error| error.frame(assert.pos, "in the condition of the assert statement"))?;
        if holds {
            return Ok(());
        }
        let shown = String::from_utf8_lossy(assert.shown);
        if let Expr::Binary(equation) = &assert.condition
            && equation.operator == Operator::Equal
        {
            let left = self.eval(&equation.left, env)?;
            let right = self.eval(&equation.right, env)?;
            if let Err(error) = self.explain_difference(left, right, equation.pos) {
                return Err(error.frame(
                    assert.pos,
                    format!("while evaluating the condition of the assertion '{shown}'"),
                ));
            }
        }
        Err(EvalError::new(
            ErrorKind::Assertion,
            assert.pos,
            format!("assertion '{shown}' failed"),
        ))
    }

    /// The set `{ file, line, column }` of a position, `null` where there is none.
    pub(crate) fn position_value(&self, pos: crate::syntax::position::Pos) -> Value<'h> {
        let sources = self.sources.borrow();
        let Some(location) = sources.resolve(pos) else {
            return Value::NULL;
        };
        let crate::syntax::position::Origin::File(file) = location.file.origin() else {
            return Value::NULL;
        };
        let mut attrs = AttrsBuilder::with_capacity(3);
        attrs.insert(known::FILE, Value::str(crate::heap::Str::new(self.heap, file)));
        attrs.insert(known::LINE, Value::int(self.heap, i64::from(location.line)));
        attrs.insert(known::COLUMN, Value::int(self.heap, i64::from(location.column)));
        Value::attrs(attrs.finish(self.heap))
    }
}
