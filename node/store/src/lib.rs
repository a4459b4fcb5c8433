//! The store of a node: trees (directories, files, links) under store paths, and what is known of them.
//!
//! A [`Store`] owns one home. The trees lie in `<home>/nix/store/<hash>-<name>`, where a
//! store of stock Nix has them (`--store <home>`; which of them are valid it does not know): read-only, with normalised metadata, equal files once. An index beside
//! them says which paths are valid; what the index does not name does not exist. After a crash at any
//! instant the store opens, everything that was reported as added is there, and nothing half-written
//! is.
//!
//! What goes in is either named by its content or checked against what somebody who is believed said of
//! it ([`Naming`]). *Who* is believed is not decided here: that is the caller's policy. There is no
//! network here, no evaluation and no building.
//!
//! With each path stands which of the node's teams may learn of it ([`Audience`]), never more than may learn of all that
//! it refers to.
//!
//! A [`FolderCache`] is another kind of place for paths: a binary cache in a folder, as stock Nix makes
//! and reads it. Paths go there from a store and come back checked.
//!
//! All calls block; a node makes them from threads of their own. A store can be used from any number of
//! threads at once.
//!
//! ```
//! use tvix_node_store::{ContentName, Naming, Store};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let folder = tempfile::tempdir()?;
//! let source = folder.path().join("source");
//! std::fs::create_dir(&source)?;
//! std::fs::write(source.join("greeting"), "hello\n")?;
//!
//! let store = Store::open(&folder.path().join("home"))?;
//! // While the lease is held, nothing added under it is collected.
//! let lease = store.lease();
//! let info = store.add_source(&source, Naming::Content(ContentName::source("greeter")), &lease)?;
//! assert_eq!(info.path.to_string(), "/nix/store/3p1jx8j06w6c5fa16v5dfb2djyndbsrz-greeter");
//! assert_eq!(std::fs::read(store.physical(&info.path).join("greeting"))?, b"hello\n");
//!
//! // The archive that stock Nix would make of it.
//! let mut archive = Vec::new();
//! assert_eq!(store.dump_nar(&info.path, &mut archive)?, info.nar_size);
//! # Ok(())
//! # }
//! ```

mod add;
mod around_cache;
mod arrived;
mod audience;
mod buffers;
mod commit;
mod disk;
mod exchange;
#[cfg(test)]
mod fault_tests;
#[cfg(test)]
mod faults;
mod file_copy;
mod folder_cache;
#[doc(hidden)]
pub mod fuzzed;
mod gc;
mod graph;
mod index;
mod intent;
mod leases;
pub mod limits;
mod listing;
mod logs;
mod naming;
mod nar_framing;
mod nar_reader;
mod nar_tap;
mod open;
mod pins;
mod processes;
mod read;
mod records;
mod registration;
mod relations;
mod repair;
mod roots;
mod running;
mod scan;
mod share;
mod source_walk;
mod sources;
mod store;
mod sync;
mod texts;
mod tree_writer;
mod trees;
mod unaccepted;
mod verify;

pub use add::{AddError, Prepared, ScratchOutput};
pub use arrived::{Arrived, ArrivedError, ArrivedFile, ComingFile};
pub use audience::Audience;
pub use disk::FileError;
pub use exchange::ImportError;
pub use folder_cache::{CacheError, Cached, FolderCache, PutReport, archive_file_bytes};
pub use gc::{GcError, GcOptions, GcReport};
pub use index::{DecodeError, IndexError, IndexFault};
pub use leases::Lease;
pub use logs::{LogError, LogWriter};
pub use naming::{ContentName, Method, Naming, NamingError};
pub use nar_reader::{Fault, NarFault};
pub use open::{OpenError, SCHEMA};
pub use pins::{Pin, PinError};
pub use read::ReadError;
pub use records::RecordError;
pub use relations::{Difference, Usage};
pub use repair::RepairError;
pub use roots::{Root, RootError};
pub use running::{ProgramUse, Running, RunningError};
pub use source_walk::SourceError;
pub use sources::SourceCacheError;
pub use store::Store;
pub use texts::Text;
pub use tree_writer::TreeWriteError;
pub use verify::{Damage, VerifyError, VerifyReport};
