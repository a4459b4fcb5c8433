//! What the builtins compute without evaluating anything: bytes and numbers in, bytes and numbers out.
//!
//! Each file follows one piece of current Nix to the byte. Nothing here knows values, thunks or string contexts.

pub mod builder;
pub mod date;
pub mod escape;
pub mod float_format;
pub mod hash_text;
pub mod json_float;
pub mod json_parse;
pub mod limits;
pub mod regex;
pub mod store_name;
pub mod toml_parse;
pub mod version;
