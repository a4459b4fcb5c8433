//! How paths and trees relate: who needs whom and where, what differs, what takes how much space.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io::Read;

use tvix_node_protocol::StorePath;
use tvix_node_protocol::tree::{BlobDigest, Directory, Leaf, Node, Tree, TreeDigest};

use crate::disk::FileError;
use crate::limits::NAR_BUFFER;
use crate::read::{ReadError, file_error, open_file};
use crate::scan::Candidates;
use crate::store::Store;

/// What paths take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// How many paths.
    pub paths: u64,
    /// Bytes of their archives.
    pub archives: u64,
    /// Bytes of their different files: what is left where equal files exist once. A file that is there
    /// with and without executable bit counts twice.
    pub files: u64,
}

/// Where two trees differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Below the trees' roots, which are empty.
    pub place: Vec<u8>,
    /// What the first tree has there.
    pub before: Option<Node>,
    /// What the second one has.
    pub after: Option<Node>,
}

/// Takes a place in a tree and what is there; false where that was enough.
type See<'a> = dyn FnMut(&[u8], &Node) -> Result<bool, ReadError> + 'a;

impl Store {
    /// A shortest chain of references from one path to another, both included; nothing where the first
    /// does not need the second.
    ///
    /// # Errors
    /// [`ReadError::NotValid`] for the first path.
    pub fn why_depends(&self, from: &StorePath, to: &StorePath) -> Result<Option<Vec<StorePath>>, ReadError> {
        // Who led to each path that was reached; a layer of the graph at a time.
        let mut reached: HashMap<StorePath, Option<StorePath>> = HashMap::from([(from.clone(), None)]);
        let mut layer = BTreeSet::from([from.clone()]);
        while !layer.is_empty() && !reached.contains_key(to) {
            let records = self.inner.index.paths(&layer)?;
            let mut next = BTreeSet::new();
            for (path, record) in layer.into_iter().zip(records) {
                let record = record.ok_or_else(|| ReadError::NotValid(path.clone()))?;
                for reference in record.info.references {
                    if !reached.contains_key(&reference) {
                        reached.insert(reference.clone(), Some(path.clone()));
                        next.insert(reference);
                    }
                }
            }
            layer = next;
        }
        if !reached.contains_key(to) {
            return Ok(None);
        }
        let mut chain = vec![to.clone()];
        while let Some(Some(before)) = chain.last().and_then(|last| reached.get(last)) {
            chain.push(before.clone());
        }
        chain.reverse();
        Ok(Some(chain))
    }

    /// Where in the tree of a path the hash part of another one occurs: files whose content, and
    /// anything whose name or link target has it. At most `most`, in order.
    ///
    /// # Errors
    /// [`ReadError`]
    pub fn mentions(
        &self,
        path: &StorePath,
        mentioned: &StorePath,
        most: usize,
    ) -> Result<Vec<Vec<u8>>, ReadError> {
        let record = self.inner.index.path(path)?;
        let info = record.ok_or_else(|| ReadError::NotValid(path.clone()))?.info;
        let candidates = Candidates::new([mentioned]);
        let has = |bytes: &[u8]| {
            let mut scanner = candidates.scanner();
            scanner.scan(bytes);
            !candidates.found(&scanner).is_empty()
        };
        let mut found = Vec::new();
        let mut buffer = vec![0; NAR_BUFFER];
        self.walk(info.tree, &mut |place, node| {
            let name = place.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
            let mentions = has(name)
                || match node {
                    Node::Directory(_) => false,
                    Node::Symlink(target) => has(target.as_bytes()),
                    Node::File { .. } => self.file_mentions(path, place, &candidates, &mut buffer)?,
                };
            if mentions {
                found.push(place.to_vec());
            }
            Ok(found.len() < most)
        })?;
        Ok(found)
    }

    fn file_mentions(
        &self,
        path: &StorePath,
        place: &[u8],
        candidates: &Candidates,
        buffer: &mut [u8],
    ) -> Result<bool, ReadError> {
        let mut relative = path.to_basename().into_bytes();
        if !place.is_empty() {
            relative.push(b'/');
            relative.extend_from_slice(place);
        }
        let trees = &self.inner.trees;
        let shown = || trees.path().join(String::from_utf8_lossy(&relative).as_ref());
        let opened = open_file(trees.fd(), &relative);
        let mut file = opened.map_err(|error| file_error("open", shown(), error))?;
        let mut scanner = candidates.scanner();
        loop {
            match file.read(buffer) {
                Ok(0) => return Ok(!candidates.found(&scanner).is_empty()),
                Ok(read) => scanner.scan(&buffer[..read]),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(FileError::of_io("read", shown(), &error).into()),
            }
        }
    }

    /// What these paths take, without what they refer to.
    ///
    /// # Errors
    /// [`ReadError::NotValid`] names the first that is not there.
    pub fn usage<'p>(&self, paths: impl IntoIterator<Item = &'p StorePath>) -> Result<Usage, ReadError> {
        let paths: BTreeSet<&StorePath> = paths.into_iter().collect();
        let records = self.inner.index.paths(paths.iter().copied())?;
        let mut usage = Usage::default();
        let mut files: HashSet<(BlobDigest, bool)> = HashSet::new();
        let mut seen: HashSet<TreeDigest> = HashSet::new();
        for (path, record) in paths.into_iter().zip(records) {
            let info = record.ok_or_else(|| ReadError::NotValid(path.clone()))?.info;
            usage.paths += 1;
            usage.archives += info.nar_size;
            let mut count = |node: &Node| {
                if let Node::File {
                    blob,
                    size,
                    executable,
                } = node
                    && files.insert((*blob, *executable))
                {
                    usage.files += size;
                }
            };
            let mut pending = vec![info.tree];
            while let Some(digest) = pending.pop() {
                if !seen.insert(digest) {
                    continue;
                }
                match self.object(digest)? {
                    Tree::Directory(directory) => {
                        for (_, node) in directory.entries() {
                            count(node);
                            if let Node::Directory(child) = node {
                                pending.push(*child);
                            }
                        }
                    }
                    leaf => count(&leaf.into()),
                }
            }
        }
        Ok(usage)
    }

    /// Where two trees differ, in order. Of what only one has, the top alone is named.
    ///
    /// # Errors
    /// [`ReadError`]
    pub fn diff(&self, before: TreeDigest, after: TreeDigest) -> Result<Vec<Difference>, ReadError> {
        let mut differences = Vec::new();
        let (before, after) = (self.root_node(before)?, self.root_node(after)?);
        let mut pending = vec![(Vec::new(), Some(before), Some(after))];
        while let Some((place, before, after)) = pending.pop() {
            match (before, after) {
                (before, after) if before == after => {}
                (Some(Node::Directory(before)), Some(Node::Directory(after))) => {
                    let (before, after) = (self.directory(before)?, self.directory(after)?);
                    let names = before.entries().chain(after.entries()).map(|(name, _)| name);
                    for name in names.collect::<BTreeSet<_>>() {
                        let mut place = place.clone();
                        if !place.is_empty() {
                            place.push(b'/');
                        }
                        place.extend_from_slice(name.as_bytes());
                        pending.push((place, before.get(name).cloned(), after.get(name).cloned()));
                    }
                }
                (before, after) => differences.push(Difference { place, before, after }),
            }
        }
        differences.sort_unstable_by(|a, b| a.place.cmp(&b.place));
        Ok(differences)
    }

    /// Shows everything in a tree, each directory before what is in it, until `see` says that it is
    /// enough. The root has an empty place.
    fn walk(&self, root: TreeDigest, see: &mut See<'_>) -> Result<(), ReadError> {
        let mut pending = vec![(Vec::new(), self.root_node(root)?)];
        while let Some((place, node)) = pending.pop() {
            if !see(&place, &node)? {
                return Ok(());
            }
            if let Node::Directory(digest) = node {
                let directory = self.directory(digest)?;
                let entries: Vec<_> = directory.entries().collect();
                for (name, node) in entries.into_iter().rev() {
                    let mut below = place.clone();
                    if !below.is_empty() {
                        below.push(b'/');
                    }
                    below.extend_from_slice(name.as_bytes());
                    pending.push((below, node.clone()));
                }
            }
        }
        Ok(())
    }

    fn root_node(&self, digest: TreeDigest) -> Result<Node, ReadError> {
        Ok(match self.object(digest)? {
            Tree::Directory(_) => Node::Directory(digest),
            leaf @ Tree::Leaf(Leaf::File { .. } | Leaf::Symlink(_)) => leaf.into(),
        })
    }

    fn directory(&self, digest: TreeDigest) -> Result<Directory, ReadError> {
        match self.object(digest)? {
            Tree::Directory(directory) => Ok(directory),
            Tree::Leaf(_) => Err(ReadError::NoObject(digest)),
        }
    }

    fn object(&self, digest: TreeDigest) -> Result<Tree, ReadError> {
        self.inner.index.node(digest)?.ok_or(ReadError::NoObject(digest))
    }
}
