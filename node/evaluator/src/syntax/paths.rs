//! Path literals.

use super::ast::Expr;
use super::error::{SyntaxError, SyntaxErrorKind};
use super::lexer::Kind;
use super::parser::{Parser, Result};

/// Appends the components of a path to a canonical one, resolving `.`, `..` and doubled slashes by the text alone
/// (as `CanonPath` of stock Nix does). `out` is `/` or has no trailing slash, before and after.
fn append_components(out: &mut Vec<u8>, path: &[u8]) {
    if out.is_empty() {
        out.push(b'/');
    }
    for component in path.split(|&byte| byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => {
                let parent = out.iter().rposition(|&byte| byte == b'/').unwrap_or(0);
                out.truncate(parent.max(1));
            }
            name => {
                if out.len() > 1 {
                    out.push(b'/');
                }
                out.extend_from_slice(name);
            }
        }
    }
}

impl<'a> Parser<'a, '_> {
    /// A path, with all its interpolations. The current token is its first part.
    pub(super) fn path(&mut self) -> Result<Expr<'a>> {
        let first = self.token;
        let pos = self.pos();
        let literal = self.text_of(first);
        let mut absolute = std::mem::take(&mut self.bytes);
        absolute.clear();
        if first.kind == Kind::HomePath {
            let Some(home) = self.home else {
                let literal = String::from_utf8_lossy(literal).into_owned();
                return Err(self.error(pos, SyntaxErrorKind::NoHome(literal)));
            };
            append_components(&mut absolute, home);
            append_components(&mut absolute, &literal[1..]);
        } else {
            if !literal.starts_with(b"/") {
                append_components(&mut absolute, self.base_dir);
            }
            append_components(&mut absolute, literal);
        }
        let ends_in_slash = literal.ends_with(b"/");
        if ends_in_slash && absolute.len() > 1 {
            absolute.push(b'/');
        }
        let text = &*self.arena.alloc_slice_copy(&absolute);
        self.bytes = absolute;

        let mark = self.exprs.len();
        self.exprs.push(Expr::Path { pos, text });
        let mut at = first.end;
        let mut after_slash = ends_in_slash;
        let mut interpolated = false;
        // A literal part may come in several matches, as in `./${x}/a//b`.
        let mut part_start = at;
        loop {
            let end = self.lexer.path_part_end(at as usize) as u32;
            if end > at {
                if at > part_start && !interpolated {
                    return Err(self.doubled_slash(part_start));
                }
                after_slash = self.text[end as usize - 1] == b'/';
                at = end;
                continue;
            }
            let interpolation = self.text[at as usize..].starts_with(b"${");
            if at > part_start && (interpolated || interpolation) {
                let text = &self.text[part_start as usize..at as usize];
                self.exprs.push(Expr::Str {
                    pos: self.pos_at(part_start),
                    text,
                });
            }
            if interpolation {
                let (expr, end) = self.interpolation(at)?;
                self.exprs.push(expr);
                at = end;
                part_start = end;
                interpolated = true;
                after_slash = false;
            } else if after_slash {
                return Err(self.error(self.pos_at(at), SyntaxErrorKind::TrailingSlash));
            } else if at > part_start && !interpolated {
                // `./a//b`: stock Nix reads a second part and has no rule for it.
                return Err(self.error(
                    self.pos_at(part_start),
                    SyntaxErrorKind::Unexpected {
                        found: "'//'",
                        expected: "one slash between the parts of a path",
                    },
                ));
            } else {
                break;
            }
        }
        self.continue_at(at);
        if !interpolated {
            self.exprs.truncate(mark);
            return Ok(Expr::Path { pos, text });
        }
        let parts = self.exprs_since(mark);
        Ok(Expr::InterpolatedPath { pos, parts })
    }

    /// `./a//b`: stock Nix reads a second literal part and has no rule for it.
    #[cold]
    fn doubled_slash(&self, at: u32) -> Box<SyntaxError> {
        let expected = "one slash between the parts of a path";
        self.error(
            self.pos_at(at),
            SyntaxErrorKind::Unexpected {
                found: "'//'",
                expected,
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::append_components;

    #[test]
    fn components_are_resolved_by_the_text_alone() {
        let absolute = |base: &str, path: &str| {
            let mut out = Vec::new();
            append_components(&mut out, base.as_bytes());
            append_components(&mut out, path.as_bytes());
            String::from_utf8(out).unwrap()
        };
        assert_eq!(absolute("/a/b", "./c"), "/a/b/c");
        assert_eq!(absolute("/a/b", "../c/./d"), "/a/c/d");
        assert_eq!(absolute("/a/b", "../.."), "/");
        assert_eq!(absolute("/a/b", "../../../c"), "/c");
        assert_eq!(absolute("/", "c//d/"), "/c/d");
        assert_eq!(absolute("/a/", "."), "/a");
        assert_eq!(absolute("", "."), "/");
    }
}
