//! Bounds of the builder, each with its reason.

use std::time::Duration;

/// Bytes of one line of log before it is cut into pieces. Longer lines do occur (minified
/// JavaScript, link commands), but nobody reads them; pieces keep memory bounded.
pub const LOG_LINE_BYTES: usize = 64 << 10;

/// Lines of log kept for the message of a failed build, as Nix shows them.
pub const LOG_TAIL_LINES: usize = 25;

/// Bytes of one line kept for that message. 25 lines of this length still fit on a screen.
pub const LOG_TAIL_LINE_BYTES: usize = 4 << 10;

/// Bytes read from the log at once: what a pseudoterminal hands over at most.
pub const LOG_READ_BYTES: usize = 64 << 10;

/// Bytes of one message between node and sandbox helper. The largest is the build's specification:
/// arguments, environment and files of a derivation, which itself is bounded to 64 MiB.
pub const MESSAGE_BYTES: usize = 256 << 20;

/// How long a killed sandbox may take to report before its helper is killed as well. The kernel needs
/// milliseconds; a process stuck in an unresponsive file system needs longer.
pub const KILL_GRACE: Duration = Duration::from_secs(5);

/// Share of memory that a build may use in `/dev/shm`, Nix's `sandbox-dev-shm-size`.
pub const SHARED_MEMORY: &str = "50%";

/// Added to a build's badness for the kernel's out-of-memory killer (of 1000), so that it takes the
/// build and not the node.
pub const OUT_OF_MEMORY_BADNESS: i32 = 500;

/// Niceness of a build that gives way: beside the owner's own work it gets a tenth of a core, so that it does not stand still for
/// hours either.
pub const NICENESS: i32 = 10;

/// Empty folders kept per build slot to mount inputs on. More inputs than this are rare, and then only
/// take a little longer.
pub const SPARE_FOLDERS: usize = 2048;

/// Bytes of the head of a request to the proxy: what common servers accept.
pub const PROXY_HEAD_BYTES: usize = 64 << 10;

/// Connections of one build through the proxy at once. Package managers use some tens; more wait.
pub const PROXY_CONNECTIONS: usize = 64;

/// Connections of one build through the user-mode network at once, those that are being opened included:
/// as through the proxy. More are tried again by the build's own kernel.
pub const NAT_CONNECTIONS: usize = 64;

/// Exchanges over UDP of one build at once, each between one port of it and one place: as many as connections. What a
/// build sends beyond that is lost, as UDP may be.
pub const NAT_EXCHANGES: usize = 64;

/// How long an exchange over UDP goes on when neither side says anything: what routers wait at least
/// (RFC 4787, requirement 5).
pub const NAT_EXCHANGE_IDLE: Duration = Duration::from_secs(120);

/// Datagrams of one exchange that may wait for the socket outside: 24 KiB of them, a burst of a transfer.
pub const NAT_DATAGRAMS: usize = 16;

/// Connections, exchanges and questions that are under way outside, those included that the build has left: their
/// servers are still taking what was said.
pub const NAT_TASKS: usize = 2 * NAT_CONNECTIONS + NAT_EXCHANGES + NAT_QUESTIONS;

/// Bytes of one such connection that wait in each direction: what an ordinary kernel begins with.
pub const NAT_BUFFER_BYTES: usize = 64 << 10;

/// Bytes of it that are handed on at once, and how many such pieces may wait for the socket outside, in each
/// direction. With the buffers a connection has a quarter of a megabyte at most.
pub const NAT_PIECE: usize = 16 << 10;
/// See [`NAT_PIECE`].
pub const NAT_PIECES: usize = 4;

/// Questions for names that are being answered at once. Who gets no answer asks again.
pub const NAT_QUESTIONS: usize = 32;

/// Bytes of one question or answer: what every program takes (RFC 1035, 4.2.1).
pub const NAT_QUESTION_BYTES: usize = 512;

/// Addresses of IPv4 in one answer: they fit beside a name of full length.
pub const NAT_ADDRESSES: usize = 14;

/// The same for the longer ones of IPv6.
pub const NAT_ADDRESSES_V6: usize = 8;

/// Bytes of one packet: the usual size of a network interface.
pub const PACKET_BYTES: usize = 1500;

/// Packets that are taken from or given to a build before something else has its turn, and that may wait.
pub const PACKETS_AT_ONCE: usize = 64;

/// How long a name may take to resolve, and an address to answer.
pub const CONNECT_TIME: Duration = Duration::from_secs(30);

/// Addresses of one name that are tried.
pub const CONNECT_TRIES: usize = 8;

/// Bytes that `builtin:fetchurl` fetches and unpacks at most: far more than any source has.
pub const FETCH_BYTES: u64 = 64 << 30;

/// Memory that unpacking xz may take, in KiB: `xz -9` needs 65 MiB.
pub const XZ_MEMORY_KIB: u32 = 128 << 10;

/// How often a fetch is tried where trying again may help, as in Nix (`download-attempts`).
pub const FETCH_TRIES: u32 = 5;

/// How long the second try waits; each further one twice as long.
pub const FETCH_WAIT: Duration = Duration::from_millis(250);

/// How often an address may refer to another one.
pub const REDIRECTS: usize = 10;

/// Connections that a client keeps for its next small answer, to all servers together: as many as ask a binary
/// cache at once.
pub const IDLE_CONNECTIONS: usize = 64;

/// How long the next byte of a file may take: as Nix has it (`stalled-download-timeout`).
pub const STALL_TIME: Duration = Duration::from_secs(300);

/// How long a server may take from the connection to the head of its answer.
pub const ANSWER_TIME: Duration = Duration::from_secs(120);

/// Bytes of the head of a proxy's answer. It has a few lines.
pub const PROXY_HEAD: usize = 16 << 10;

/// Free bytes below which a disk is full for a build that failed: file systems keep some back, and what did not fit may be larger
/// than what is left.
pub const FULL_BYTES: u64 = 16 << 20;

/// Files that a file system can still have below which it is full, where it has a bound for them.
pub const FULL_FILES: u64 = 64;

/// How often the disk that a build uses is looked at, where it has a limit.
pub const DISK_LOOK: Duration = Duration::from_millis(500);

/// Looking takes at most one part in this of a processor.
pub const DISK_LOOK_SHARE: u32 = 20;

/// What a file, folder or link counts beside its content: about what it takes on disk, so that floods of
/// empty files are seen.
pub const DISK_ENTRY_BYTES: u64 = 256;

/// Folders in folders that are looked into, each with an open descriptor; the store refuses outputs half
/// as deep.
pub const DISK_DEPTH: usize = 128;

/// How often the processes of a build are counted, and its memory is looked at where it has a limit and no control group.
pub const PROCESS_LOOK: Duration = Duration::from_millis(250);

/// Descriptors of a build that are looked at at once, see [`DISK_LOOK`] and [`PROCESS_LOOK`]: some 30 milliseconds. Builds
/// have some hundreds; the next look goes on where there are more.
pub const DESCRIPTORS_AT_ONCE: usize = 8192;

/// Bytes of the list of a process's mappings that are read: 40,000 of them. A browser has a tenth of that.
pub const MAPPINGS_BYTES: u64 = 4 << 20;

/// What a file in memory counts beside its content: about what the kernel needs for it, so that floods of empty files are
/// seen.
pub const MEMORY_ENTRY_BYTES: u64 = 1 << 10;

/// IPC namespaces of a build whose shared memory is kept in sight with an open descriptor each: a build has one. More
/// are opened again for each look.
pub const IPC_NAMESPACES: usize = 16;

/// Copies of sockets of a build that wait to be closed together: a thread is started for that, and a process may have some
/// hundreds of descriptors.
pub const SOCKETS_AT_ONCE: usize = 64;

/// Namespaces that are bound to files in each other, and looked into at once: a build has none. More are hidden from sight.
pub const BOUND_NAMESPACES: usize = 64;

/// Differences told of one output: enough to see what kind of thing differs.
pub const DIFFERENCES: usize = 100;

/// Folders in folders that are compared, each with two open descriptors; the store refuses outputs that are
/// deeper.
pub const COMPARE_DEPTH: usize = 64;
