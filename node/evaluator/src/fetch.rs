//! What expressions want fetched from elsewhere, as the [`Host`](crate::Host) is asked for it.

use std::path::PathBuf;

use tvix_node_protocol::nix::hash::NixHash;
use tvix_node_protocol::nix::store_path::StorePath;

use crate::host::Ingestion;

/// Something to be fetched into the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fetch {
    /// What a URL (`https`, `http` or `file`) names, as one file.
    File {
        /// The URL.
        url: String,
        /// Name of the store path to make.
        name: String,
        /// How the store path is named after the file: by its bytes (`fetchurl`) or by its archive (`fetchTree`).
        ingestion: Ingestion,
        /// The hash (SHA-256, of what `ingestion` says) that the expression demands.
        expected: Option<NixHash>,
    },
    /// The folder that an archive (`tar`, perhaps compressed) unpacks to; where it holds one folder and nothing
    /// else, that folder.
    Archive {
        /// The URL of the archive (`https`, `http` or `file`).
        url: String,
        /// Name of the store path to make.
        name: String,
        /// The hash of the folder's NAR that the expression demands.
        expected: Option<NixHash>,
    },
    /// A file or folder of this machine, as it is now.
    Path {
        /// Where it lies: an absolute logical path.
        path: PathBuf,
        /// Name of the store path to make.
        name: String,
        /// The hash of its NAR that the expression demands.
        expected: Option<NixHash>,
    },
    /// A tree of a Git repository.
    Git(GitFetch),
    /// A tree of a Mercurial repository.
    Mercurial(MercurialFetch),
}

/// A tree of a Mercurial repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MercurialFetch {
    /// The repository, in any form that `hg` takes; a `file:` URL is a local one.
    pub url: String,
    /// Name of the store path to make.
    pub name: String,
    /// Branch or tag; none: the branch `default`, or the work tree of a local repository where no revision is wanted
    /// either and it has changes.
    pub reference: Option<String>,
    /// The changeset, in hexadecimal digits.
    pub revision: Option<String>,
    /// The hash of the tree's NAR that the expression demands.
    pub expected: Option<NixHash>,
}

/// A tree of a Git repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GitFetch {
    /// The repository, in any form that `git` takes; an absolute path or a `file:` URL is a local one.
    pub url: String,
    /// Name of the store path to make.
    pub name: String,
    /// Branch, tag or full name (`refs/…`) of a reference; none: the repository's `HEAD`, or the work tree of a
    /// local one where no revision is wanted either.
    pub reference: Option<String>,
    /// The commit, in hexadecimal digits.
    pub revision: Option<String>,
    /// Whether all references are fetched, so that the commit may be in any of them.
    pub all_references: bool,
    /// Whether the commit alone is fetched, without its history.
    pub shallow: bool,
    /// Whether submodules are part of the tree.
    pub submodules: bool,
    /// Whether what `.gitattributes` calls `export-ignore` is left out.
    pub export_ignore: bool,
    /// The hash of the tree's NAR that the expression demands.
    pub expected: Option<NixHash>,
}

/// What was fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// Where it lies.
    pub path: StorePath,
    /// SHA-256 of its NAR.
    pub nar_hash: NixHash,
    /// When it was changed last, in seconds since 1970: the youngest file of an archive or folder, the date of a
    /// commit.
    pub last_modified: Option<u64>,
    /// What a Git repository says.
    pub git: Option<GitRevision>,
    /// What a Mercurial repository says.
    pub mercurial: Option<MercurialRevision>,
}

/// Which changeset a tree of a Mercurial repository is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MercurialRevision {
    /// The branch that it is on.
    pub branch: String,
    /// The changeset and its number in the copy of the repository. None for a work tree with changes that are not
    /// committed.
    pub changeset: Option<(String, u64)>,
}

/// Which commit a tree of a Git repository is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GitRevision {
    /// The commit. None for a work tree with changes that are not committed.
    pub revision: Option<String>,
    /// For a work tree with changes: the commit they were made on, if there is one.
    pub changed: Option<String>,
    /// Number of commits up to this one. None where changes are not committed, or the history was not fetched.
    pub count: Option<u64>,
}
