//! Reads a Nix archive from a stream into a tree.
//!
//! Not recursive, never reads past the end of the archive, and refuses whatever stock Nix refuses:
//! wrong words, padding that is not zero, names out of order or unfit for a directory, nesting deeper
//! than 64. An accepted archive is therefore the only one of its tree, so hashing it is hashing the
//! tree.

use std::io::{self, Read};

use tvix_node_protocol::limits::TREE_DEPTH;
use tvix_node_protocol::tree::{PathComponent, TreeError};

use crate::limits::{NAR_TOKEN, SMALL_FILE};
use crate::nar_framing::{MAGIC, padding};
use crate::nar_tap::NarTap;
use crate::tree_writer::{TreeWriteError, TreeWriter};

/// Why an archive was refused, and where.
#[derive(Debug, thiserror::Error)]
#[error("the archive (NAR) is refused at byte {offset}: {fault}")]
pub struct NarFault {
    /// Bytes from the start of the archive to where the fault was seen.
    pub offset: u64,
    /// What is wrong.
    #[source]
    pub fault: Fault,
}

/// What is wrong with an archive.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The stream could not be read.
    #[error("it cannot be read: {0}")]
    Read(#[from] io::Error),
    /// Cut short.
    #[error("it ends here, in the middle")]
    Ended,
    /// Another format.
    #[error("it does not begin as an archive")]
    Magic,
    /// A word that may not stand here.
    #[error("'{got}' stands where {wanted} should")]
    Word {
        /// What may stand here.
        wanted: &'static str,
        /// What does.
        got: String,
    },
    /// Fill bytes that are not zero.
    #[error("the bytes that fill up a token are not zero")]
    Padding,
    /// A name or target that is too long.
    #[error("a name or link target of {0} bytes")]
    Length(u64),
    /// A name or link target that no tree has.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// Names must ascend.
    #[error("the name '{name}' does not come after '{previous}'")]
    Order {
        /// The entry.
        name: PathComponent,
        /// The one before it.
        previous: PathComponent,
    },
    /// Too deep.
    #[error("it nests deeper than {TREE_DEPTH} directories")]
    Depth,
    /// Something follows.
    #[error("something follows the end of the archive")]
    Trailing,
}

/// Why reading an archive into a tree ended early.
#[derive(Debug)]
pub(crate) enum NarReadError {
    Fault(NarFault),
    Write(TreeWriteError),
}

impl From<TreeWriteError> for NarReadError {
    fn from(error: TreeWriteError) -> Self {
        Self::Write(error)
    }
}

/// Reads one archive from `input` through `tap` into `writer`.
pub(crate) fn read_nar(
    input: &mut impl Read,
    tap: &mut NarTap<'_>,
    writer: &mut TreeWriter<'_>,
) -> Result<(), NarReadError> {
    Reader { input, tap, writer }.archive()
}

/// Makes sure that nothing follows.
pub(crate) fn expect_end(input: &mut impl Read, tap: &mut NarTap<'_>) -> Result<(), NarReadError> {
    let offset = tap.position();
    let fault = |fault| NarReadError::Fault(NarFault { offset, fault });
    match tap.take(input, 1) {
        Ok([]) => Ok(()),
        Ok(_) => Err(fault(Fault::Trailing)),
        Err(error) => Err(fault(Fault::Read(error))),
    }
}

struct Reader<'a, 't, 'w, R> {
    input: &'a mut R,
    tap: &'a mut NarTap<'t>,
    writer: &'a mut TreeWriter<'w>,
}

/// Longer than any word of the format.
const WORD: usize = 16;

impl<R: Read> Reader<'_, '_, '_, R> {
    fn archive(&mut self) -> Result<(), NarReadError> {
        let mut magic = [0; 24];
        let wanted = {
            let mut bytes = (MAGIC.len() as u64).to_le_bytes().to_vec();
            bytes.extend_from_slice(MAGIC);
            bytes.resize(magic.len(), 0);
            bytes
        };
        let start = self.tap.position();
        magic.copy_from_slice(self.bytes(24)?);
        if magic != *wanted {
            return Err(fault(start, Fault::Magic));
        }
        // The last name in each open directory.
        let mut previous: Vec<Option<PathComponent>> = Vec::new();
        let mut name = None;
        loop {
            if self.node(name.take())? {
                previous.push(None);
            }
            // Something ended: go up until a directory has another entry.
            loop {
                let Some(last) = previous.last_mut() else {
                    return Ok(());
                };
                let at = self.tap.position();
                let (word, length) = self.word()?;
                match &word[..length] {
                    b"entry" => {
                        self.expect(b"(", "'('")?;
                        self.expect(b"name", "'name'")?;
                        let entry = self.name()?;
                        if let Some(last) = last
                            && entry <= *last
                        {
                            let (name, previous) = (entry, last.clone());
                            return Err(fault(at, Fault::Order { name, previous }));
                        }
                        *last = Some(entry.clone());
                        self.expect(b"node", "'node'")?;
                        name = Some(entry);
                        break;
                    }
                    b")" => {
                        self.writer.close_directory()?;
                        previous.pop();
                        if !previous.is_empty() {
                            self.expect(b")", "')'")?;
                        }
                    }
                    other => return Err(unexpected(at, "'entry' or ')'", other)),
                }
            }
        }
    }

    /// Reads a node; true where it opened a directory, else it is complete.
    fn node(&mut self, name: Option<PathComponent>) -> Result<bool, NarReadError> {
        let at = self.tap.position();
        if self.writer.depth() >= TREE_DEPTH {
            return Err(fault(at, Fault::Depth));
        }
        self.expect(b"(", "'('")?;
        self.expect(b"type", "'type'")?;
        let named = name.is_some();
        let at = self.tap.position();
        let (word, length) = self.word()?;
        match &word[..length] {
            b"directory" => {
                self.writer.open_directory(name)?;
                return Ok(true);
            }
            b"regular" => self.file(name)?,
            b"symlink" => {
                self.expect(b"target", "'target'")?;
                let at = self.tap.position();
                let target = self.short()?;
                self.writer.symlink(name, &target).map_err(|error| match error {
                    TreeWriteError::Tree(error) => fault(at, error.into()),
                    error => error.into(),
                })?;
            }
            other => return Err(unexpected(at, "'regular', 'symlink' or 'directory'", other)),
        }
        self.expect(b")", "')'")?;
        if named {
            self.expect(b")", "')'")?;
        }
        Ok(false)
    }

    fn file(&mut self, name: Option<PathComponent>) -> Result<(), NarReadError> {
        let mut executable = false;
        let mut at = self.tap.position();
        let (mut word, mut length) = self.word()?;
        if &word[..length] == b"executable" {
            executable = true;
            self.expect(b"", "an empty word")?;
            at = self.tap.position();
            (word, length) = self.word()?;
        }
        if &word[..length] != b"contents" {
            return Err(unexpected(at, "'contents'", &word[..length]));
        }
        let size = self.length()?;
        match usize::try_from(size) {
            Ok(size) if size <= SMALL_FILE => {
                let offset = self.tap.position();
                let bytes = self.tap.take_exactly(self.input, size);
                let bytes = bytes.map_err(|error| read_fault(offset, error))?;
                self.writer.small_file(name, executable, bytes)?;
            }
            _ => {
                self.writer.open_file(name, executable, size)?;
                let begun = self.tap.begin_file(size);
                begun.map_err(|error| read_fault(self.tap.position(), error))?;
                let mut left = size;
                while left > 0 {
                    let bytes = match self.tap.take(self.input, left) {
                        Ok(bytes) => bytes,
                        Err(error) => return Err(read_fault(self.tap.position(), error)),
                    };
                    if bytes.is_empty() {
                        return Err(fault(self.tap.position(), Fault::Ended));
                    }
                    left -= bytes.len() as u64;
                    self.writer.write(bytes)?;
                }
                self.writer.close_file()?;
            }
        }
        self.padding(size)
    }

    fn name(&mut self) -> Result<PathComponent, NarReadError> {
        let at = self.tap.position();
        let bytes = self.short()?;
        PathComponent::new(&bytes).map_err(|error| fault(at, error.into()))
    }

    /// A token of at most [`NAR_TOKEN`] bytes.
    fn short(&mut self) -> Result<Vec<u8>, NarReadError> {
        let at = self.tap.position();
        let length = self.length()?;
        if length > NAR_TOKEN as u64 {
            return Err(fault(at, Fault::Length(length)));
        }
        let bytes = self.bytes(usize::try_from(length).unwrap_or(NAR_TOKEN))?.to_vec();
        self.padding(length)?;
        Ok(bytes)
    }

    fn expect(&mut self, wanted: &[u8], description: &'static str) -> Result<(), NarReadError> {
        let at = self.tap.position();
        let (word, length) = self.word()?;
        if &word[..length] == wanted {
            Ok(())
        } else {
            Err(unexpected(at, description, &word[..length]))
        }
    }

    /// A word of the format, in the first bytes of what is returned.
    fn word(&mut self) -> Result<([u8; WORD], usize), NarReadError> {
        let at = self.tap.position();
        let length = self.length()?;
        let short = usize::try_from(length).ok().filter(|&length| length <= WORD);
        let Some(short) = short else {
            let got = format!("a token of {length} bytes");
            let wanted = "a word of the format";
            return Err(fault(at, Fault::Word { wanted, got }));
        };
        let mut word = [0; WORD];
        word[..short].copy_from_slice(self.bytes(short)?);
        self.padding(length)?;
        Ok((word, short))
    }

    fn length(&mut self) -> Result<u64, NarReadError> {
        let mut length = [0; 8];
        length.copy_from_slice(self.bytes(8)?);
        Ok(u64::from_le_bytes(length))
    }

    fn padding(&mut self, length: u64) -> Result<(), NarReadError> {
        let at = self.tap.position();
        if self.bytes(padding(length))?.iter().any(|&byte| byte != 0) {
            return Err(fault(at, Fault::Padding));
        }
        Ok(())
    }

    fn bytes(&mut self, length: usize) -> Result<&[u8], NarReadError> {
        let offset = self.tap.position();
        let bytes = self.tap.take_exactly(self.input, length);
        bytes.map_err(|error| read_fault(offset, error))
    }
}

fn fault(offset: u64, fault: Fault) -> NarReadError {
    NarReadError::Fault(NarFault { offset, fault })
}

fn read_fault(offset: u64, error: io::Error) -> NarReadError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => fault(offset, Fault::Ended),
        _ => fault(offset, Fault::Read(error)),
    }
}

fn unexpected(offset: u64, wanted: &'static str, got: &[u8]) -> NarReadError {
    let got = got.escape_ascii().to_string();
    fault(offset, Fault::Word { wanted, got })
}
