//! Attribute paths as the command line has them: `a.b.0."x.y"`.

use crate::error::{ErrorKind, EvalError, Result};
use crate::evaluation::{Evaluation, nearest};
use crate::heap::{Attrs, Value};
use crate::syntax::position::Pos;

/// Splits a path into names.
///
/// # Errors
/// A quote is not closed.
pub(crate) fn parse(path: &str) -> std::result::Result<Vec<String>, String> {
    let mut names = Vec::new();
    let mut name = String::new();
    let mut quoted = false;
    for char in path.chars() {
        match char {
            '"' => quoted = !quoted,
            '.' if !quoted => names.push(std::mem::take(&mut name)),
            char => name.push(char),
        }
    }
    if quoted {
        return Err(format!("missing closing quote in selection path '{path}'"));
    }
    if !path.is_empty() {
        names.push(name);
    }
    Ok(names)
}

impl<'h> Evaluation<'h> {
    /// The value at the end of an attribute path; functions on the way are called with `arguments`.
    ///
    /// # Errors
    /// A name is missing, or something on the way is neither a set nor a list.
    pub(crate) fn find_along(&self, root: Value<'h>, path: &str, arguments: Attrs<'h>) -> Result<Value<'h>> {
        let names = parse(path).map_err(|error| self.error(Pos::NONE, error))?;
        let mut value = root;
        for name in names {
            value = self.auto_call(value, arguments)?;
            if let Ok(index) = name.parse::<u32>() {
                let Some(list) = value.as_list() else {
                    return Err(self.not_selectable(path, "list", value));
                };
                value = list.get(index as usize).ok_or_else(|| {
                    EvalError::new(
                        ErrorKind::MissingAttribute,
                        Pos::NONE,
                        format!("list index {index} in selection path '{path}' is out of range"),
                    )
                })?;
                continue;
            }
            let Some(attrs) = value.as_attrs() else {
                return Err(self.not_selectable(path, "set", value));
            };
            if name.is_empty() {
                return Err(self.error(
                    Pos::NONE,
                    format!("empty attribute name in selection path '{path}'"),
                ));
            }
            let symbol = self.symbols.borrow().lookup(name.as_bytes());
            let Some(attr) = symbol.and_then(|symbol| attrs.get(symbol)) else {
                let mut error = EvalError::new(
                    ErrorKind::MissingAttribute,
                    Pos::NONE,
                    format!("attribute '{name}' in selection path '{path}' not found"),
                );
                let names: Vec<String> = attrs.iter().map(|attr| self.name(attr.name)).collect();
                error.suggestions = nearest(&name, names.iter().map(String::as_str));
                return Err(error);
            };
            value = self.force_slot(attr.slot()).map_err(|error| {
                let error = error.at(attr.pos);
                error.frame(attr.pos, format!("while evaluating the attribute '{path}'"))
            })?;
        }
        Ok(value)
    }

    fn not_selectable(&self, path: &str, wanted: &str, value: Value<'h>) -> crate::error::Error {
        let found = self.describe(value);
        self.error(
            Pos::NONE,
            format!(
                "the expression selected by the selection path '{path}' should be a {wanted} but is {found}"
            ),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn dots_in_quotes_do_not_separate() {
        assert_eq!(parse("a.b.0.\"x.y\"").expect("valid"), ["a", "b", "0", "x.y"]);
        assert_eq!(parse("").expect("valid"), Vec::<String>::new());
        assert!(parse("a.\"b").is_err());
    }
}
