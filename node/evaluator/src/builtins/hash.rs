//! Hashes.

use tvix_node_protocol::nix::hash::{HashAlgorithm, NixHash, hash_bytes};
use tvix_node_protocol::nix::nixbase32;

use super::PrimOp;
use super::files::Follow;
use crate::error::Result;
use crate::evaluation::Evaluation;
use crate::heap::Value;
use crate::syntax::position::Pos;

pub(super) const TABLE: &[PrimOp] = &[
    PrimOp::new("hashString", 2, hash_string),
    PrimOp::new("hashFile", 2, hash_file),
    PrimOp::new("convertHash", 1, convert_hash),
];

fn algorithm<'h>(
    evaluation: &Evaluation<'h>,
    value: Value<'h>,
    pos: Pos,
    trace: &'static str,
) -> Result<HashAlgorithm> {
    let name = evaluation.string_no_context(value, pos, trace)?;
    let name = String::from_utf8_lossy(name.bytes());
    name.parse().map_err(|_| {
        evaluation.error(
            pos,
            format!("unknown hash algorithm '{name}', expect 'blake3', 'md5', 'sha1', 'sha256', or 'sha512'"),
        )
    })
}

fn base16(hash: &NixHash) -> String {
    hash.digest_as_bytes()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn hash_string<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let trace = "while evaluating the first argument passed to builtins.hashString";
    let algorithm = algorithm(evaluation, arguments[0], pos, trace)?;
    let text = evaluation.string(
        arguments[1],
        pos,
        "while evaluating the second argument passed to builtins.hashString",
    )?;
    Ok(evaluation.text(base16(&hash_bytes(algorithm, text.bytes())).as_bytes()))
}

fn hash_file<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let trace = "while evaluating the first argument passed to builtins.hashFile";
    let algorithm = algorithm(evaluation, arguments[0], pos, trace)?;
    let path = evaluation.realise_path(arguments[1], pos, Follow::All)?;
    let contents = evaluation.read_file(&path, pos)?;
    Ok(evaluation.text(base16(&hash_bytes(algorithm, &contents)).as_bytes()))
}

fn convert_hash<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let attrs = evaluation.attrs(
        arguments[0],
        pos,
        "while evaluating the first argument passed to builtins.convertHash",
    )?;
    let text = evaluation.attribute(
        attrs,
        evaluation.symbol(b"hash"),
        "while locating the attribute 'hash'",
    )?;
    let text = evaluation.string_no_context(text.value(), pos, "while evaluating the attribute 'hash'")?;
    let wanted = match attrs.get(evaluation.symbol(b"hashAlgo")) {
        None => None,
        Some(attr) => Some(algorithm(
            evaluation,
            attr.value(),
            pos,
            "while evaluating the attribute 'hashAlgo'",
        )?),
    };
    let format = evaluation.attribute(
        attrs,
        evaluation.symbol(b"toHashFormat"),
        "while locating the attribute 'toHashFormat'",
    )?;
    let format = evaluation.string_no_context(
        format.value(),
        pos,
        "while evaluating the attribute 'toHashFormat'",
    )?;
    let text = String::from_utf8_lossy(text.bytes());
    let hash = crate::derivation::parse_hash(&text, wanted).map_err(|error| evaluation.error(pos, error))?;
    let converted = match format.bytes() {
        b"base16" => base16(&hash),
        b"nix32" => nixbase32::encode(hash.digest_as_bytes()),
        b"base32" => {
            evaluation.host.message(
                crate::host::MessageKind::Warning,
                "\"base32\" is a deprecated alias for hash format \"nix32\".",
            );
            nixbase32::encode(hash.digest_as_bytes())
        }
        b"sri" => hash.to_sri_string(),
        b"base64" => {
            let sri = hash.to_sri_string();
            sri.split_once('-')
                .map_or_else(String::new, |(_, digest)| digest.to_owned())
        }
        other => {
            let other = String::from_utf8_lossy(other);
            return Err(evaluation.error(
                pos,
                format!("unknown hash format '{other}', expect 'base16', 'base32', 'base64', or 'sri'"),
            ));
        }
    };
    Ok(evaluation.text(converted.as_bytes()))
}
