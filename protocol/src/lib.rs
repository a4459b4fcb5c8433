//! What goes over a wire or into a file.
//!
//! Every part of `tvix-node` speaks in the types of this crate: store paths and derivations as Nix
//! defines them ([`nix`]), file system objects named by their content ([`tree`], [`walk`], [`packed`], [`subtrees`]), what is known
//! of a store path ([`path_info`]), build requests and records ([`build`]), signed envelopes
//! ([`envelope`]), how a team begins ([`founding`]), what nodes of a swarm say to each other ([`roster`], [`ticket`], [`presence`],
//! [`messages`]), and what crosses the control socket ([`control`]).
//!
//! It is *not* a place for behaviour: there are no sockets here, no clock, no disk and no async
//! runtime, so everything can be tested by example and fuzzed.
//!
//! ```
//! use tvix_node_protocol::tree::{Directory, Node, PathComponent, Tree};
//!
//! let mut directory = Directory::default();
//! let name = PathComponent::new(b"greeting").expect("a valid name");
//! directory.insert(name, Node::file(b"hello\n", false)).expect("no such name yet");
//! let tree = Tree::Directory(directory);
//! // Equal content has an equal name, on every machine.
//! assert_eq!(tree.digest(), tree.clone().digest());
//! ```

pub mod build;
pub mod bytes;
pub mod cbor;
pub mod control;
mod digest;
pub mod envelope;
pub mod founding;
pub mod limits;
pub mod messages;
pub mod nix;
pub mod packed;
pub mod path_info;
pub mod presence;
pub mod roster;
pub mod subtrees;
pub mod ticket;
pub mod tree;
pub mod trust;
pub mod walk;

pub use nix::store_path::StorePath;
