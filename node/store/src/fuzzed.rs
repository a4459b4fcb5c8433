//! Entries of the index, read from any bytes: for the fuzzer (`tests/fuzz`) and the test that replays what it kept.
//! Nothing that a user of the store needs.

use tvix_node_protocol::StorePath;

use crate::index::{DecodeError, PathRecord, path_from_key, path_key};

/// Reads a key of the index. The answer is how the path that it stands for is written.
///
/// # Errors
/// [`DecodeError`]
pub fn read_path_key(bytes: &[u8]) -> Result<Vec<u8>, DecodeError> {
    Ok(path_key(&path_from_key(bytes)?))
}

/// Reads what the index has of `path`. The answer is how that is written.
///
/// # Errors
/// [`DecodeError`]
pub fn read_path_record(path: &StorePath, bytes: &[u8]) -> Result<Vec<u8>, DecodeError> {
    Ok(PathRecord::decode(path.clone(), bytes)?.encode())
}
