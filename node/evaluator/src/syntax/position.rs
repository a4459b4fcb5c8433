//! Positions in source files, four bytes each, and the map that makes them readable.
//!
//! All files of an evaluation share one space of byte offsets: a file gets a range when it is added to the
//! [`SourceMap`], a [`Pos`] is an offset in it. Lines and columns are computed when somebody asks.

use std::fmt;
use std::sync::{Arc, OnceLock};

/// A position in some source file, or none. Meaningful only with the [`SourceMap`] it was made from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pos(u32);

impl Pos {
    /// No position.
    pub const NONE: Pos = Pos(0);

    /// The position some bytes behind this one, in the same file.
    #[inline]
    pub(super) fn plus(self, offset: u32) -> Pos {
        // The map refuses files that would take the sum past u32::MAX.
        Pos(self.0.wrapping_add(offset))
    }

    /// Whether this is [`Pos::NONE`].
    pub fn is_none(self) -> bool {
        self.0 == 0
    }

    /// The number behind the position, to store it elsewhere.
    pub fn to_u32(self) -> u32 {
        self.0
    }

    /// Back from [`Pos::to_u32`].
    pub fn from_u32(number: u32) -> Pos {
        Pos(number)
    }
}

/// Where a source text came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A file, by absolute path (bytes).
    File(Vec<u8>),
    /// Text given on the command line or by a caller (`--expr`).
    String,
    /// Standard input.
    Stdin,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::File(path) => f.write_str(&String::from_utf8_lossy(path)),
            Origin::String => f.write_str("«string»"),
            Origin::Stdin => f.write_str("«stdin»"),
        }
    }
}

/// A source text and its place among the positions.
#[derive(Clone, Debug)]
pub struct SourceFile {
    base: u32,
    origin: Origin,
    text: Arc<[u8]>,
    line_starts: OnceLock<Box<[u32]>>,
}

impl SourceFile {
    /// Where it came from.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The whole text.
    pub fn text(&self) -> &Arc<[u8]> {
        &self.text
    }

    /// Offsets of the first byte of every line. Lines end at LF, CR LF or a lone CR, as in stock Nix.
    fn line_starts(&self) -> &[u32] {
        self.line_starts.get_or_init(|| {
            let mut starts = vec![0];
            for (at, &byte) in self.text.iter().enumerate() {
                let ends_line = match byte {
                    b'\n' => true,
                    b'\r' => self.text.get(at + 1) != Some(&b'\n'),
                    _ => false,
                };
                if ends_line {
                    starts.push(at as u32 + 1);
                }
            }
            starts.into_boxed_slice()
        })
    }

    /// The text of a line (counted from 1) without its end; `None` past the last line.
    pub fn line(&self, number: u32) -> Option<&[u8]> {
        let starts = self.line_starts();
        let index = (number as usize).checked_sub(1)?;
        let start = *starts.get(index)? as usize;
        let end = starts
            .get(index + 1)
            .map_or(self.text.len(), |&next| next as usize);
        let mut line = &self.text[start..end];
        while let [rest @ .., b'\n' | b'\r'] = line {
            line = rest;
        }
        Some(line)
    }
}

/// What [`SourceMap::resolve`] finds.
#[derive(Clone, Copy, Debug)]
pub struct Location<'m> {
    /// The file.
    pub file: &'m SourceFile,
    /// The line, counted from 1.
    pub line: u32,
    /// The column in bytes, counted from 1.
    pub column: u32,
}

impl fmt::Display for Location<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file.origin, self.line, self.column)
    }
}

/// The source texts of an evaluation together would pass 4 GiB, the limit of what four-byte positions can tell apart.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "cannot load '{origin}' ({size} bytes): the source files of one evaluation may have 4 GiB together; \
     evaluate fewer targets at once"
)]
pub struct TooMuchSource {
    origin: Origin,
    size: usize,
}

/// The source texts of an evaluation. Grows only.
#[derive(Clone, Debug, Default)]
pub struct SourceMap {
    files: Vec<SourceFile>,
}

/// Which file of a [`SourceMap`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SourceId(u32);

impl SourceMap {
    /// An empty map.
    pub fn new() -> SourceMap {
        SourceMap::default()
    }

    /// Adds a text. The map keeps it, so that errors can show the line.
    ///
    /// # Errors
    ///
    /// When all texts together would pass 4 GiB.
    pub fn add(&mut self, origin: Origin, text: Arc<[u8]>) -> Result<SourceId, TooMuchSource> {
        let base = match self.files.last() {
            // One more than the length: the position of the end of a file is its own.
            Some(last) => last.base as u64 + last.text.len() as u64 + 1,
            None => 1,
        };
        if base + text.len() as u64 > u32::MAX as u64 {
            return Err(TooMuchSource {
                origin,
                size: text.len(),
            });
        }
        let id = SourceId(self.files.len() as u32);
        self.files.push(SourceFile {
            base: base as u32,
            origin,
            text,
            line_starts: OnceLock::new(),
        });
        Ok(id)
    }

    /// The file of that id.
    ///
    /// # Panics
    ///
    /// When the id is of another map.
    pub fn file(&self, id: SourceId) -> &SourceFile {
        &self.files[id.0 as usize]
    }

    /// The position of the first byte of a file.
    ///
    /// # Panics
    ///
    /// When the id is of another map.
    pub fn start(&self, id: SourceId) -> Pos {
        Pos(self.file(id).base)
    }

    /// The file of a position; `None` for [`Pos::NONE`].
    pub fn file_of(&self, pos: Pos) -> Option<&SourceFile> {
        if pos.is_none() {
            return None;
        }
        let index = self
            .files
            .partition_point(|file| file.base <= pos.0)
            .checked_sub(1)?;
        self.files.get(index)
    }

    /// File, line and column of a position; `None` for [`Pos::NONE`]. The first question about a file reads its
    /// text once.
    pub fn resolve(&self, pos: Pos) -> Option<Location<'_>> {
        let file = self.file_of(pos)?;
        let offset = pos.0 - file.base;
        let starts = file.line_starts();
        let line = starts.partition_point(|&start| start <= offset);
        let start = starts[line - 1];
        Some(Location {
            file,
            line: line as u32,
            column: offset - start + 1,
        })
    }
    /// The place of a position and the lines around it with a caret, as stock Nix shows them below a message:
    ///
    /// ```text
    ///        at «string»:1:9:
    ///             1| { a = 1 }
    ///              |         ^
    /// ```
    ///
    /// No line end at the end. `None` for [`Pos::NONE`].
    pub fn excerpt(&self, pos: Pos) -> Option<String> {
        let at = self.resolve(pos)?;
        let mut text = format!("       at {at}:");
        for number in at.line.saturating_sub(1)..=at.line + 1 {
            if let Some(line) = at.file.line(number) {
                let line = format!("\n        {number:>5}| {}", String::from_utf8_lossy(line));
                text.push_str(line.trim_end_matches(' '));
            }
            if number == at.line {
                text.push_str(&format!("\n             | {:>1$}", '^', at.column as usize));
            }
        }
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(text: &str) -> (SourceMap, Pos) {
        let mut map = SourceMap::new();
        let first = map.add(Origin::String, Arc::from(&b"first"[..])).unwrap();
        let second = map
            .add(Origin::File(b"/a.nix".to_vec()), Arc::from(text.as_bytes()))
            .unwrap();
        assert_ne!(first, second);
        let start = map.start(second);
        (map, start)
    }

    fn at(start: Pos, offset: u32) -> Pos {
        Pos::from_u32(start.to_u32() + offset)
    }

    #[test]
    fn positions_name_file_line_and_column() {
        let (map, start) = map("ab\ncd\r\ne\rf");
        let place = |offset| map.resolve(at(start, offset)).unwrap().to_string();
        assert_eq!(place(0), "/a.nix:1:1");
        assert_eq!(place(1), "/a.nix:1:2");
        assert_eq!(place(3), "/a.nix:2:1");
        assert_eq!(place(7), "/a.nix:3:1");
        assert_eq!(place(9), "/a.nix:4:1");
        assert_eq!(place(10), "/a.nix:4:2", "the end of the file has a position");
        assert_eq!(map.resolve(Pos::from_u32(1)).unwrap().to_string(), "«string»:1:1");
        assert!(map.resolve(Pos::NONE).is_none());
    }

    #[test]
    fn excerpts_show_the_line_and_its_neighbours() {
        let (map, start) = map("one\ntwo\n\nfour\n");
        assert_eq!(
            map.excerpt(at(start, 5)).unwrap(),
            "       at /a.nix:2:2:\n            1| one\n            2| two\n             |  ^\n            3|"
        );
    }

    #[test]
    fn sources_past_four_gib_are_refused() {
        let mut map = SourceMap::new();
        map.add(Origin::Stdin, Arc::from(&b"1"[..])).unwrap();
        map.files[0].base = u32::MAX - 10;
        assert!(map.add(Origin::Stdin, Arc::from(&b"1234567"[..])).is_ok());
        let error = map.add(Origin::Stdin, Arc::from(&b"1"[..])).unwrap_err();
        assert!(error.to_string().contains("«stdin»"), "{error}");
    }
}
