//! What node and sandbox helper say to each other over their socket: one order down, reports up.
//!
//! A message is its length (four bytes, little-endian) and deterministic CBOR. The end of the node's
//! side of the stream, for whatever reason, means: kill the build.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tvix_node_protocol::cbor;

use crate::limits::MESSAGE_BYTES;

/// Bytes that travel as one byte string.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Bytes(#[serde(with = "tvix_node_protocol::bytes::vec")] pub(crate) Vec<u8>);

impl Bytes {
    pub(crate) fn path(path: &std::path::Path) -> Self {
        use std::os::unix::ffi::OsStrExt;
        Self(path.as_os_str().as_bytes().to_vec())
    }

    pub(crate) fn as_path(&self) -> &std::path::Path {
        use std::os::unix::ffi::OsStrExt;
        std::path::Path::new(std::ffi::OsStr::from_bytes(&self.0))
    }
}

/// What the helper is to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Order {
    /// The build's folder: absolute, empty, mode 0700.
    pub(crate) scratch: Bytes,
    /// The folder that the builds of one slot use one after another; need not be there.
    pub(crate) slot: Bytes,
    /// Host uid and gid of the build; none: the helper's own. Only root can use another.
    pub(crate) host_id: Option<u32>,
    /// What runs in the sandbox; none: only set it up.
    pub(crate) task: Option<Task>,
    /// Base name in the store, and where it lies.
    pub(crate) inputs: Vec<(String, Bytes)>,
    /// Files of the build folder: name and content.
    pub(crate) files: Vec<(String, Bytes)>,
    /// Paths of the machine to show.
    pub(crate) paths: Vec<HostPath>,
    /// Shows what fixed-output builds see in `/etc`.
    pub(crate) fixed_output: bool,
    /// Opens a listener for the proxy and passes it out.
    pub(crate) proxy: bool,
    /// Makes the interface of the user-mode network and passes it out.
    pub(crate) tunnel: bool,
    /// With IPv6, where the kernel has it.
    pub(crate) ipv6: bool,
    /// Shows `/dev/kvm`.
    pub(crate) kvm: bool,
    /// What it is worth beside the owner's own work, from 0 to 19.
    pub(crate) niceness: i32,
    /// Processes and threads at once.
    pub(crate) processes: u64,
    /// Bytes of memory of the whole build.
    pub(crate) memory: Option<u64>,
    /// The control group that bounds it; none: watch.
    pub(crate) memory_group: Option<JoinGroup>,
    /// `RLIMIT_FSIZE`.
    pub(crate) file_bytes: Option<u64>,
}

/// A control group, by its files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct JoinGroup {
    /// Where to write a process id.
    pub(crate) door: Bytes,
    /// Where the kernel counts kills.
    pub(crate) events: Bytes,
}

/// What runs in a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Task {
    Program(Program),
    UnpackChannel(UnpackChannel),
}

/// What `builtin:unpack-channel` is to do. Paths are those inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UnpackChannel {
    pub(crate) archive: Bytes,
    pub(crate) output: Bytes,
    /// What the one thing in the archive is to be called.
    pub(crate) name: String,
}

/// The builder program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Program {
    /// Its path inside.
    pub(crate) path: Bytes,
    /// All arguments, the name of the program first.
    pub(crate) arguments: Vec<Bytes>,
    /// `NAME=value`, sorted by name.
    pub(crate) environment: Vec<Bytes>,
    /// Run as on a 32-bit machine.
    pub(crate) thirty_two_bit: bool,
}

/// A path of the machine that a build sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HostPath {
    pub(crate) inside: Bytes,
    pub(crate) outside: Bytes,
    pub(crate) writable: bool,
}

/// What the helper reports. When it has closed its end, nothing of the build is alive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Report {
    /// The proxy's listener comes with this message.
    Listening,
    /// The interface of the user-mode network comes with this message.
    Tunnel {
        /// Why it has no IPv6 although it was to have it; none: it has what was asked for.
        no_ipv6: Option<String>,
    },
    /// There is none.
    NoTunnel { reason: String },
    /// The sandbox stands, the program is about to be executed.
    Started,
    /// A step of setting up failed.
    Failed {
        /// What was being done.
        step: String,
        /// The system's error number, where it was the system.
        errno: Option<i32>,
        /// The error in words.
        message: String,
        /// The input concerned.
        input: Option<String>,
    },
    /// The build was killed, because it used more memory than allowed.
    TooMuchMemory,
    /// The same, because it had more processes than allowed.
    TooManyProcesses,
    /// The program could not be executed.
    NotExecuted { errno: i32 },
    /// All processes of the build are dead.
    Ended { exit: Exit, usage: Usage },
}

/// How the build's first process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Exit {
    Code(i32),
    Signal(i32),
}

/// What the build used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Usage {
    pub(crate) user_microseconds: u64,
    pub(crate) system_microseconds: u64,
    pub(crate) peak_memory: u64,
}

/// A message with its length before it.
pub(crate) fn frame<T: Serialize>(message: &T) -> io::Result<Vec<u8>> {
    let body = cbor::to_vec(message).map_err(io::Error::other)?;
    let length = u32::try_from(body.len())
        .ok()
        .filter(|&length| length as usize <= MESSAGE_BYTES)
        .ok_or_else(|| {
            io::Error::other(format!(
                "the build's specification has {} bytes, more than the {MESSAGE_BYTES} allowed",
                body.len()
            ))
        })?;
    let mut framed = Vec::with_capacity(body.len() + 4);
    framed.extend_from_slice(&length.to_le_bytes());
    framed.extend_from_slice(&body);
    Ok(framed)
}

/// The length that a frame's first bytes announce.
pub(crate) fn body_length(header: [u8; 4]) -> io::Result<usize> {
    let length = u32::from_le_bytes(header) as usize;
    if length > MESSAGE_BYTES {
        return Err(io::Error::other(format!(
            "a message of {length} bytes is announced, more than the {MESSAGE_BYTES} allowed"
        )));
    }
    Ok(length)
}

/// Parses the body of a frame.
pub(crate) fn parse<T: DeserializeOwned>(body: &[u8]) -> io::Result<T> {
    cbor::from_slice(body, MESSAGE_BYTES).map_err(io::Error::other)
}

/// Writes a message, blocking.
pub(crate) fn write<T: Serialize>(mut to: impl Write, message: &T) -> io::Result<()> {
    to.write_all(&frame(message)?)
}

/// Writes a small message together with a descriptor, blocking.
pub(crate) fn write_with<T: Serialize>(
    to: impl AsFd,
    message: &T,
    descriptor: BorrowedFd<'_>,
) -> io::Result<()> {
    let frame = frame(message)?;
    let descriptors = [descriptor];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut extra = SendAncillaryBuffer::new(&mut space);
    extra.push(SendAncillaryMessage::ScmRights(&descriptors));
    let sent = sendmsg(to, &[IoSlice::new(&frame)], &mut extra, SendFlags::empty())?;
    if sent == frame.len() {
        Ok(())
    } else {
        Err(io::ErrorKind::WriteZero.into())
    }
}

/// Reads what is there, at most `most` bytes, and the descriptors that came with it. An error of kind
/// `WouldBlock` where nothing is there and the socket does not block.
pub(crate) fn receive(
    from: impl AsFd,
    buffer: &mut Vec<u8>,
    most: usize,
    with: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut extra = RecvAncillaryBuffer::new(&mut space);
    let before = buffer.len();
    buffer.resize(before + most, 0);
    let received = recvmsg(
        from,
        &mut [IoSliceMut::new(&mut buffer[before..])],
        &mut extra,
        RecvFlags::CMSG_CLOEXEC,
    );
    buffer.truncate(before + received.as_ref().map_or(0, |received| received.bytes));
    for message in extra.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            with.extend(descriptors);
        }
    }
    Ok(received?.bytes)
}

/// Reads a message, blocking.
pub(crate) fn read<T: DeserializeOwned>(mut from: impl Read) -> io::Result<T> {
    let mut header = [0; 4];
    from.read_exact(&mut header)?;
    let mut body = vec![0; body_length(header)?];
    from.read_exact(&mut body)?;
    parse(&body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_so_many_bytes_and_no_more() {
        let announced = |length: usize| body_length(u32::try_from(length).unwrap().to_le_bytes());
        assert_eq!(announced(MESSAGE_BYTES).unwrap(), MESSAGE_BYTES);
        let error = announced(MESSAGE_BYTES + 1).unwrap_err().to_string();
        assert!(error.contains(&(MESSAGE_BYTES + 1).to_string()), "{error}");
        let frame = frame(&"hello").unwrap();
        assert_eq!(read::<String>(&frame[..]).unwrap(), "hello");
    }
}
