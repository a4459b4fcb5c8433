//! Calling functions.

use super::Evaluation;
use crate::code::{Call, Expr, Formals, Lambda};
use crate::error::{Error, Result, Shown};
use crate::heap::{Attrs, Closure, Env, Partial, Value, View};
use crate::syntax::position::Pos;
use crate::syntax::symbol::{Symbol, known};

/// Most calls have at most this many arguments; theirs are kept on the stack.
const FEW: usize = 4;

impl<'h> Evaluation<'h> {
    pub(super) fn eval_call(&self, call: &'h Call<'h>, env: Env<'h>) -> Result<Value<'h>> {
        let function = self.eval(&call.function, env)?;
        let arguments = call.arguments;
        if let Some(closure) = function.as_closure() {
            let lambda = closure.lambda();
            if lambda.arity() == arguments.len() && lambda.formals.is_none() {
                // The common case: the arguments go straight into the function's scope.
                let scope = Env::filled(self.heap, Some(closure.env()), arguments.len(), |index| {
                    self.delay(&arguments[index], env)
                });
                return self.deeper(call.pos, || self.body(lambda, scope, call.pos));
            }
        }
        if let View::PrimOp(primop) = function.view()
            && primop.arity == arguments.len()
            && primop.strict
        {
            // It forces its first argument before all else, so no thunk is needed for it.
            return self.deeper(call.pos, || {
                let mut values = [Value::NULL; FEW];
                let values = &mut values[..arguments.len()];
                values[0] = self.eval(&arguments[0], env).map_err(|error| {
                    error.frame(call.pos, format!("while calling the '{}' builtin", primop.name))
                })?;
                for (value, code) in values.iter_mut().zip(arguments).skip(1) {
                    *value = self.delay(code, env);
                }
                self.call_primop(primop, values, call.pos)
            });
        }
        if arguments.len() <= FEW {
            let mut values = [Value::NULL; FEW];
            for (value, code) in values.iter_mut().zip(arguments) {
                *value = self.delay(code, env);
            }
            return self.call(function, &values[..arguments.len()], call.pos);
        }
        let values: Vec<Value<'h>> = arguments.iter().map(|code| self.delay(code, env)).collect();
        self.call(function, &values, call.pos)
    }

    /// Calls a function with one or more arguments. The result is never a thunk.
    pub(crate) fn call(&self, function: Value<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
        self.deeper(pos, || {
            let mut function = self.force_at(function, pos)?;
            let mut arguments = arguments;
            while !arguments.is_empty() {
                match function.view() {
                    View::Closure(closure) => {
                        let lambda = closure.lambda();
                        let Some((now, later)) = arguments.split_at_checked(lambda.arity()) else {
                            let partial = Partial::new(self.heap, function, &[], arguments);
                            return Ok(Value::partial(self.heap, partial));
                        };
                        function = self.call_closure(closure, now, pos)?;
                        arguments = later;
                    }
                    View::PrimOp(primop) => {
                        let Some((now, later)) = arguments.split_at_checked(primop.arity) else {
                            let partial = Partial::new(self.heap, function, &[], arguments);
                            return Ok(Value::partial(self.heap, partial));
                        };
                        function = self.call_primop(primop, now, pos)?;
                        arguments = later;
                    }
                    View::Partial(partial) => {
                        let first = partial.arguments();
                        let missing = arity(partial.function()) - first.len();
                        let Some((now, later)) = arguments.split_at_checked(missing) else {
                            let partial = Partial::new(self.heap, partial.function(), first, arguments);
                            return Ok(Value::partial(self.heap, partial));
                        };
                        function = self.call_whole(partial.function(), first, now, pos)?;
                        arguments = later;
                    }
                    View::Attrs(attrs) if let Some(functor) = attrs.get(known::FUNCTOR) => {
                        let (now, later) = arguments.split_at(1);
                        function = self
                            .call(functor.value(), &[function, now[0]], functor.pos)
                            .map_err(|error| {
                                error.frame(
                                    pos,
                                    "while calling a functor (an attribute set with a '__functor' attribute)",
                                )
                            })?;
                        arguments = later;
                    }
                    _ => {
                        let message = format!(
                            "attempt to call something which is not a function but {}: {}",
                            self.describe(function),
                            self.show(function)
                        );
                        return Err(self.error(pos, message));
                    }
                }
            }
            Ok(function)
        })
    }

    /// Calls a closure or builtin with all its arguments, in two parts.
    fn call_whole(
        &self,
        function: Value<'h>,
        first: &[Value<'h>],
        rest: &[Value<'h>],
        pos: Pos,
    ) -> Result<Value<'h>> {
        let len = first.len() + rest.len();
        let mut few = [Value::NULL; FEW];
        let many;
        let arguments = if len <= FEW {
            few[..first.len()].copy_from_slice(first);
            few[first.len()..len].copy_from_slice(rest);
            &few[..len]
        } else {
            many = [first, rest].concat();
            &many
        };
        match function.view() {
            View::Closure(closure) => self.call_closure(closure, arguments, pos),
            View::PrimOp(primop) => self.call_primop(primop, arguments, pos),
            _ => unreachable!("only closures and builtins are partially applied"),
        }
    }

    #[inline]
    fn call_primop(
        &self,
        primop: &'static crate::builtins::PrimOp,
        arguments: &[Value<'h>],
        pos: Pos,
    ) -> Result<Value<'h>> {
        // As in Nix, errors inside of a builtin have no position of their own: the trace says where it was called.
        match (primop.run)(self, arguments, Pos::NONE) {
            Ok(value) => {
                debug_assert!(!value.is_thunk(), "{} returned a thunk", primop.name);
                Ok(value)
            }
            Err(error) if primop.silent => Err(error),
            Err(error) => Err(error.frame(pos, format!("while calling the '{}' builtin", primop.name))),
        }
    }

    fn call_closure(&self, closure: Closure<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
        let lambda = closure.lambda();
        let Some(formals) = lambda.formals else {
            let scope = Env::filled(self.heap, Some(closure.env()), arguments.len(), |index| {
                arguments[index]
            });
            return self.body(lambda, scope, pos);
        };
        let (set, plain) = match arguments.split_last() {
            Some(split) => split,
            None => unreachable!("a function has parameters"),
        };
        let lambda_pos = lambda.parameters[lambda.arity() - 1].pos;
        let attrs = self
            .attrs(
                *set,
                lambda_pos,
                "while evaluating the value passed for the lambda argument",
            )
            .map_err(|error| {
                if pos.is_none() {
                    error
                } else {
                    error.frame(pos, "from call site")
                }
            })?;
        let scope = Env::new(self.heap, Some(closure.env()), lambda.slots as usize);
        let slots = scope.slots();
        for (slot, value) in slots.iter().zip(plain) {
            slot.set(*value);
        }
        if let Some(whole) = formals.whole {
            slots[whole as usize].set(*set);
        }
        let mut used = 0;
        for (formal, slot) in formals.formals.iter().zip(&slots[formals.first as usize..]) {
            if let Some(attr) = attrs.get(formal.name) {
                used += 1;
                slot.set(attr.value());
            } else if formal.default.is_none() {
                return Err(self.missing_argument(lambda, formal.name, lambda_pos, pos));
            }
        }
        // Defaults may refer to any of the formals, so they come when all others are set. (One that is only a
        // variable and refers to a later default is delayed, as its slot is not set yet.)
        if used < formals.formals.len() {
            for (formal, slot) in formals.formals.iter().zip(&slots[formals.first as usize..]) {
                if let Some(default) = &formal.default
                    && slot.get().is_unset()
                {
                    slot.set(self.delay(default, scope));
                }
            }
        }
        if !formals.ellipsis && used != attrs.len() {
            return Err(self.unexpected_argument(lambda, formals, attrs, lambda_pos, pos));
        }
        self.body(lambda, scope, pos)
    }

    #[inline]
    fn body(&self, lambda: &'h Lambda<'h>, scope: Env<'h>, pos: Pos) -> Result<Value<'h>> {
        match self.eval(&lambda.body, scope) {
            Ok(value) => Ok(value),
            Err(error) => Err(self.call_trace(error, lambda, pos)),
        }
    }

    #[cold]
    #[inline(never)]
    fn call_trace(&self, error: Error, lambda: &Lambda<'h>, pos: Pos) -> Error {
        let text = match lambda.name {
            Some(name) => format!("while calling '{}'", self.name(name)),
            None => "while calling anonymous lambda".to_owned(),
        };
        let error = error.frame_shown(lambda.parameters[lambda.arity() - 1].pos, text, Shown::Traced);
        match pos.is_none() {
            true => error,
            false => error.frame_shown(pos, "from call site", Shown::Traced),
        }
    }

    fn function_name(&self, lambda: &Lambda<'h>) -> String {
        lambda
            .name
            .map_or_else(|| "anonymous lambda".to_owned(), |name| self.name(name))
    }

    #[cold]
    #[inline(never)]
    fn missing_argument(&self, lambda: &Lambda<'h>, name: Symbol, at: Pos, pos: Pos) -> Error {
        let function = self.function_name(lambda);
        let name = self.name(name);
        self.error(
            at,
            format!("function '{function}' called without required argument '{name}'"),
        )
        .frame(pos, "from call site")
    }

    #[cold]
    #[inline(never)]
    fn unexpected_argument(
        &self,
        lambda: &Lambda<'h>,
        formals: &Formals<'h>,
        attrs: Attrs<'h>,
        at: Pos,
        pos: Pos,
    ) -> Error {
        let known = |name: Symbol| {
            formals
                .sorted
                .binary_search_by_key(&name, |index| formals.formals[*index as usize].name)
                .is_ok()
        };
        let unexpected = attrs.iter().find(|attr| !known(attr.name));
        let function = self.function_name(lambda);
        let name = unexpected.map_or_else(String::new, |attr| self.name(attr.name));
        let mut error = self.error(
            at,
            format!("function '{function}' called with unexpected argument '{name}'"),
        );
        let names: Vec<String> = formals
            .formals
            .iter()
            .map(|formal| self.name(formal.name))
            .collect();
        error.suggestions = super::nearest(&name, names.iter().map(String::as_str));
        error.frame(pos, "from call site")
    }

    /// Calls a function whose parameter is a set pattern with the arguments given for the whole evaluation, and
    /// gives back anything else as it is.
    ///
    /// # Errors
    /// A formal without default is not among the arguments.
    pub(crate) fn auto_call(&self, value: Value<'h>, arguments: Attrs<'h>) -> Result<Value<'h>> {
        let value = self.force(value)?;
        if let Some(attrs) = value.as_attrs()
            && let Some(functor) = attrs.get(known::FUNCTOR)
        {
            let called = self.call(functor.value(), &[value], functor.pos)?;
            return self.auto_call(called, arguments);
        }
        let Some(formals) = formals_of(value) else {
            return Ok(value);
        };
        let mut set = crate::heap::AttrsBuilder::with_capacity(formals.formals.len());
        if formals.ellipsis {
            for attr in arguments.iter() {
                set.insert_at(attr.name, attr.pos, attr.value());
            }
        } else {
            for formal in formals.formals {
                if let Some(attr) = arguments.get(formal.name) {
                    set.insert_at(attr.name, attr.pos, attr.value());
                }
            }
        }
        if let Some(formal) = formals
            .formals
            .iter()
            .find(|formal| formal.default.is_none() && arguments.get(formal.name).is_none())
        {
            let name = self.name(formal.name);
            return Err(self.error(
                formal.pos,
                format!(
                    "cannot evaluate a function that has an argument without a value ('{name}')\n\
                     Nix attempted to evaluate a function as a top level expression; in\n\
                     this case it must have its arguments supplied either by default\n\
                     values, or passed explicitly with '--arg' or '--argstr'. See\n\
                     https://nix.dev/manual/nix/stable/language/syntax.html#functions."
                ),
            ));
        }
        let set = Value::attrs(set.finish(self.heap));
        self.call(value, &[set], Pos::NONE)
    }
}

/// How many arguments a closure or builtin takes.
fn arity(function: Value<'_>) -> usize {
    match function.view() {
        View::Closure(closure) => closure.lambda().arity(),
        View::PrimOp(primop) => primop.arity,
        _ => unreachable!("only closures and builtins are partially applied"),
    }
}

/// The set pattern of a function whose *next* parameter is one.
pub(crate) fn formals_of<'h>(function: Value<'h>) -> Option<&'h Formals<'h>> {
    let (lambda, given) = match function.view() {
        View::Closure(closure) => (closure.lambda(), 0),
        View::Partial(partial) => (
            partial.function().as_closure()?.lambda(),
            partial.arguments().len(),
        ),
        _ => return None,
    };
    if given + 1 == lambda.arity() {
        lambda.formals
    } else {
        None
    }
}

/// Name of the next parameter of a function written in Nix.
pub(crate) fn parameter_of(function: Value<'_>) -> Option<Symbol> {
    match function.view() {
        View::Closure(closure) => closure.lambda().parameters[0].name,
        View::Partial(partial) => {
            partial.function().as_closure()?.lambda().parameters[partial.arguments().len()].name
        }
        _ => None,
    }
}

/// Where the next parameter of a function is, for functions written in Nix.
pub(crate) fn position_of(function: Value<'_>) -> Pos {
    match function.view() {
        View::Closure(closure) => closure.lambda().parameters[0].pos,
        View::Partial(partial) => match partial.function().as_closure() {
            Some(closure) => closure.lambda().parameters[partial.arguments().len()].pos,
            None => Pos::NONE,
        },
        _ => Pos::NONE,
    }
}

const _: () = assert!(size_of::<Expr<'_>>() == 16);
