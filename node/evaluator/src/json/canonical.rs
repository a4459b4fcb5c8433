//! JSON as Nix writes it down again: no spaces, members sorted, of several with one name the last.

use std::collections::BTreeMap;
use std::vec::Drain;

use super::push_string;
use crate::pure::builder::Builder;
use crate::pure::json_float;
use crate::pure::json_parse::{JsonError, parse};

/// A text that holds one JSON value, in canonical form.
///
/// # Errors
/// It is not JSON, or holds what Nix cannot hold.
pub(crate) fn canonical(text: &[u8]) -> Result<Vec<u8>, JsonError> {
    parse(text, &mut Texts)
}

/// Makes texts of what a text has.
struct Texts;

impl Builder for Texts {
    type Value = Vec<u8>;
    type Key = String;

    fn null(&mut self) -> Vec<u8> {
        b"null".to_vec()
    }

    fn boolean(&mut self, value: bool) -> Vec<u8> {
        value.to_string().into_bytes()
    }

    fn integer(&mut self, value: i64) -> Vec<u8> {
        value.to_string().into_bytes()
    }

    fn float(&mut self, value: f64) -> Vec<u8> {
        json_float::text(value).into_bytes()
    }

    fn string(&mut self, text: &str) -> Vec<u8> {
        let mut out = Vec::with_capacity(text.len() + 2);
        push_string(&mut out, text.as_bytes());
        out
    }

    fn key(&mut self, text: &str) -> String {
        text.to_owned()
    }

    fn list(&mut self, items: Drain<'_, Vec<u8>>) -> Vec<u8> {
        let items: Vec<Vec<u8>> = items.collect();
        [b"[".as_slice(), &items.join(&b","[..]), b"]"].concat()
    }

    fn object(&mut self, members: Drain<'_, (String, Vec<u8>)>) -> Vec<u8> {
        let sorted: BTreeMap<String, Vec<u8>> = members.collect();
        let mut out = b"{".to_vec();
        for (name, value) in sorted {
            if out.len() > 1 {
                out.push(b',');
            }
            push_string(&mut out, name.as_bytes());
            out.push(b':');
            out.extend_from_slice(&value);
        }
        out.push(b'}');
        out
    }
}

#[cfg(test)]
mod tests {
    use super::canonical;

    #[test]
    fn members_are_sorted_and_spaces_left_out() {
        for (text, expected) in [
            (r#"{ "b" : 1, "a":2 }"#, r#"{"a":2,"b":1}"#),
            (
                r#"{"a":1,"a":[1.50,null,true,"\u00e9\n"]}"#,
                "{\"a\":[1.5,null,true,\"é\\n\"]}",
            ),
            (r#"{"outPath":{"x":{}},"l":[]}"#, r#"{"l":[],"outPath":{"x":{}}}"#),
        ] {
            let found = canonical(text.as_bytes()).unwrap();
            assert_eq!(String::from_utf8(found).unwrap(), expected);
        }
        assert!(canonical(b"nojson").is_err());
    }
}
