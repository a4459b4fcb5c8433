//! `.attrs.json` and `.attrs.sh` of derivations with structured attributes.
//!
//! As Nix 2.34 (`StructuredAttrs::prepareStructuredAttrs`, `writeShell`). Of our own, because the
//! parser crate refuses `exportReferencesGraph` and prints large numbers in the shell file otherwise
//! than Nix does.

use std::collections::BTreeMap;

use serde_json::{Map, Number, Value};
use tvix_node_protocol::nix::derivation::StructuredAttrs;

use crate::StorePath;
use crate::references_graph::{self, Closure};

/// The two files. Output placeholders in them are not replaced yet.
pub(crate) struct Written {
    pub(crate) json: String,
    pub(crate) shell: String,
}

/// Writes both files.
pub(crate) fn write(
    attrs: &StructuredAttrs,
    outputs: &BTreeMap<String, StorePath>,
    graphs: &BTreeMap<String, Closure<'_>>,
) -> Written {
    let mut object: BTreeMap<String, Value> = attrs
        .iter()
        .map(|(name, value)| (name.to_owned(), value.clone()))
        .collect();
    let paths: Map<String, Value> = outputs
        .iter()
        .map(|(name, path)| (name.clone(), Value::String(path.to_string())))
        .collect();
    object.insert("outputs".to_owned(), Value::Object(paths));
    for (name, closure) in graphs {
        object.insert(name.clone(), references_graph::to_json(closure));
    }
    let mut json = String::new();
    write_object(object.iter(), &mut json);
    Written {
        json,
        shell: shell(&object),
    }
}

/// Compact JSON with sorted keys, as the library writes it that Nix uses.
fn write_json(value: &Value, text: &mut String) {
    match value {
        Value::Object(entries) => {
            let sorted: BTreeMap<_, _> = entries.iter().collect();
            write_object(sorted.into_iter(), text);
        }
        Value::Array(values) => {
            text.push('[');
            for (index, value) in values.iter().enumerate() {
                if index > 0 {
                    text.push(',');
                }
                write_json(value, text);
            }
            text.push(']');
        }
        Value::Number(number) => text.push_str(&json_number(number)),
        // Strings, booleans and null have one form.
        other => text.push_str(&other.to_string()),
    }
}

fn write_object<'a>(entries: impl Iterator<Item = (&'a String, &'a Value)>, text: &mut String) {
    text.push('{');
    for (index, (key, value)) in entries.enumerate() {
        if index > 0 {
            text.push(',');
        }
        text.push_str(&Value::String(key.clone()).to_string());
        text.push(':');
        write_json(value, text);
    }
    text.push('}');
}

/// Integers as they are; others with the fewest digits that read back as the same number, written out
/// from 1e-4 to 1e15, else with an exponent of at least two digits.
fn json_number(number: &Number) -> String {
    let (false, Some(value)) = (number.is_i64() || number.is_u64(), number.as_f64()) else {
        return number.to_string();
    };
    if value == 0.0 {
        return if value.is_sign_negative() { "-0.0" } else { "0.0" }.to_owned();
    }
    let sign = if value < 0.0 { "-" } else { "" };
    // `{:e}` gives the fewest digits: d.ddde-7.
    let scientific = format!("{:e}", value.abs());
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let digits = mantissa.replace('.', "");
    let exponent: i32 = exponent.parse().unwrap_or_default();
    // The number is 0.digits times ten to this.
    let point = exponent + 1;
    let count = i32::try_from(digits.len()).unwrap_or(i32::MAX);
    let zeroes = |count: i32| "0".repeat(usize::try_from(count).unwrap_or_default());
    let body = if (1..=15).contains(&point) && count <= point {
        format!("{digits}{}.0", zeroes(point - count))
    } else if (1..=15).contains(&point) {
        let (whole, fraction) = digits.split_at(usize::try_from(point).unwrap_or_default());
        format!("{whole}.{fraction}")
    } else if (-3..=0).contains(&point) {
        format!("0.{}{digits}", zeroes(-point))
    } else {
        let (first, rest) = digits.split_at(1);
        let dot = if rest.is_empty() { "" } else { "." };
        let exponent_sign = if exponent < 0 { '-' } else { '+' };
        format!("{first}{dot}{rest}e{exponent_sign}{:02}", exponent.unsigned_abs())
    };
    format!("{sign}{body}")
}

fn shell(object: &BTreeMap<String, Value>) -> String {
    let mut text = String::new();
    for (name, value) in object.iter().filter(|(name, _)| is_shell_variable(name)) {
        if let Some(simple) = shell_value(value) {
            text.push_str(&format!("declare {name}={simple}\n"));
            continue;
        }
        match value {
            Value::Array(values) => {
                if let Some(values) = values.iter().map(shell_value).collect::<Option<Vec<_>>>() {
                    let values: String = values.iter().map(|value| format!("{value} ")).collect();
                    text.push_str(&format!("declare -a {name}=({values})\n"));
                }
            }
            Value::Object(entries) => {
                let sorted: BTreeMap<_, _> = entries.iter().collect();
                let entries: Option<String> = sorted
                    .into_iter()
                    .map(|(key, value)| Some(format!("[{}]={} ", quoted(key), shell_value(value)?)))
                    .collect();
                if let Some(entries) = entries {
                    text.push_str(&format!("declare -A {name}=({entries})\n"));
                }
            }
            _ => {}
        }
    }
    text
}

/// What is neither a list, an object, nor a fraction.
fn shell_value(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(quoted(text)),
        Value::Number(number) => shell_number(number),
        Value::Null => Some("''".to_owned()),
        Value::Bool(true) => Some("1".to_owned()),
        Value::Bool(false) => Some(String::new()),
        Value::Array(_) | Value::Object(_) => None,
    }
}

/// Nix looks at the number in single precision to see whether it is whole, and prints it as a C `int`:
/// of numbers that an `int` cannot hold, whatever its compiler makes of them on x86.
fn shell_number(number: &Number) -> Option<String> {
    let value = number.as_f64()?;
    let single = value as f32;
    if single.ceil() != single {
        return None;
    }
    let int = match (number.as_i64(), number.as_u64()) {
        (Some(value), _) => value as i32,
        (None, Some(value)) => value as i32,
        (None, None) if (-2_147_483_648.0..2_147_483_648.0).contains(&value) => value as i32,
        (None, None) => i32::MIN,
    };
    Some(int.to_string())
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// `[A-Za-z_][A-Za-z0-9_]*`
fn is_shell_variable(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes
        .next()
        .is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

#[cfg(test)]
#[path = "structured_attrs_tests.rs"]
mod tests;
