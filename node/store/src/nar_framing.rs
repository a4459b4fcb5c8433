//! The words of the Nix archive format around names and contents.
//!
//! Source: Nix manual, "Nix Archive (NAR) format". Every token is its length as 64-bit little-endian
//! number, its bytes, and zeros up to a multiple of 8.

use std::io::{self, Write};

/// First token of an archive.
pub(crate) const MAGIC: &[u8] = b"nix-archive-1";

/// Zeros after `length` bytes.
pub(crate) const fn padding(length: u64) -> usize {
    ((8 - length % 8) % 8) as usize
}

pub(crate) fn token(to: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    to.write_all(&(bytes.len() as u64).to_le_bytes())?;
    to.write_all(bytes)?;
    to.write_all(&[0; 8][..padding(bytes.len() as u64)])
}

fn tokens(to: &mut impl Write, all: &[&[u8]]) -> io::Result<()> {
    all.iter().try_for_each(|bytes| token(to, bytes))
}

/// What comes before a node: the magic for the root, else the entry's name.
pub(crate) fn before_node(to: &mut impl Write, name: Option<&[u8]>) -> io::Result<()> {
    match name {
        None => token(to, MAGIC),
        Some(name) => tokens(to, &[b"entry", b"(", b"name", name, b"node"]),
    }
}

/// What comes after a node: closes the entry, if it is one.
pub(crate) fn after_node(to: &mut impl Write, named: bool) -> io::Result<()> {
    if named { token(to, b")") } else { Ok(()) }
}

pub(crate) fn symlink(to: &mut impl Write, target: &[u8]) -> io::Result<()> {
    tokens(to, &[b"(", b"type", b"symlink", b"target", target, b")"])
}

pub(crate) fn open_directory(to: &mut impl Write) -> io::Result<()> {
    tokens(to, &[b"(", b"type", b"directory"])
}

pub(crate) fn close_directory(to: &mut impl Write) -> io::Result<()> {
    token(to, b")")
}

/// Up to where the `size` bytes of a file's content begin.
pub(crate) fn open_file(to: &mut impl Write, executable: bool, size: u64) -> io::Result<()> {
    tokens(to, &[b"(", b"type", b"regular"])?;
    if executable {
        tokens(to, &[b"executable", b""])?;
    }
    token(to, b"contents")?;
    to.write_all(&size.to_le_bytes())
}

/// From where a file's content ends.
pub(crate) fn close_file(to: &mut impl Write, size: u64) -> io::Result<()> {
    to.write_all(&[0; 8][..padding(size)])?;
    token(to, b")")
}
