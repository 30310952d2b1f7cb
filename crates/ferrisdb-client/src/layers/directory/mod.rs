//! [`DirectoryLayer`]: a tree of named subspaces with short prefixes, which can be moved without touching what they hold.
//!
//! Programs that share a database each take directories by name and get prefixes that nobody else has. Moving a directory changes a name in the tree and
//! no data. The keys are byte for byte those of FoundationDB's directory layer, version 1.0.0, so that its programs and ours share directories.
//!
//! # Keys, below the node subspace (`\xfe`)
//! A directory with prefix P has a node, the subspace (P,); the root's is (`\xfe`,).
//!   node, 0, name → prefix of the subdirectory `name`
//!   node, 'layer' → the layer's name, or ''
//!   root node, 'version' → three u32, little-endian: 1, 0, 0
//!   root node, 'hca', ... → the allocator, see `allocator.rs`
//!
//! # Partitions
//! A directory with the layer `partition` holds a whole directory layer of its own, at its prefix: everything below it lies in the partition, and a path leads on
//! into it. What is in a partition cannot be moved out, and the partition itself is not a subspace.

mod allocator;

use std::fmt;

use ferrisdb_core::key::{key_after, prefix_end, printable};
use ferrisdb_core::{Bytes, Code, Error, KeyRange, KeySelector, Result};

use crate::layers::Subspace;
use crate::layers::tuple::Element;
use crate::{RangeOptions, Transaction};
use allocator::Allocator;

/// The version of the layout; a database of a greater major one is not touched.
const VERSION: [u32; 3] = [1, 0, 0];
/// The layer of partitions.
pub const PARTITION: &[u8] = b"partition";
/// The element under which a node's subdirectories lie.
const SUBDIRECTORIES: i64 = 0;

/// A tree of directories. Every operation is part of the transaction that it is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryLayer {
    nodes: Subspace,
    content: Subspace,
    allows_manual_prefixes: bool,
    /// Where this tree hangs: empty, or the path of the partition.
    path: Vec<String>,
}

/// A directory: a subspace with a name and a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directory {
    path: Vec<String>,
    layer: Bytes,
    subspace: Subspace,
}

/// How a directory is created.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CreateOptions {
    /// What the directory is for: a name by which programs recognise their own. Empty: none, and any is accepted.
    pub layer: Bytes,
    /// A prefix chosen by the caller; `None` lets the layer choose a short one.
    pub prefix: Option<Bytes>,
}

impl CreateOptions {
    /// A directory of this layer, with a prefix of its own.
    pub fn layer(layer: impl Into<Bytes>) -> CreateOptions {
        CreateOptions { layer: layer.into(), prefix: None }
    }
}

impl Directory {
    /// Its path from the root.
    pub fn path(&self) -> &[String] {
        &self.path
    }

    /// Its layer; empty: none.
    pub fn layer(&self) -> &Bytes {
        &self.layer
    }

    /// True if it is a partition.
    pub fn is_partition(&self) -> bool {
        self.layer == PARTITION
    }

    /// Where its contents lie.
    ///
    /// # Errors
    /// `cannot_use_partition_as_subspace`: a partition's own prefix belongs to its tree.
    pub fn subspace(&self) -> Result<&Subspace> {
        if self.is_partition() {
            let detail = format!("'{}' is a partition: create a directory in it", self.path.join("/"));
            return Err(Error::with(Code::CannotUsePartitionAsSubspace, detail));
        }
        Ok(&self.subspace)
    }

    /// The tree within a partition.
    pub fn partition(&self) -> Option<DirectoryLayer> {
        self.is_partition().then(|| self.inner())
    }

    fn inner(&self) -> DirectoryLayer {
        let prefix = self.subspace.prefix();
        DirectoryLayer {
            nodes: Subspace::from_bytes(Bytes::from([prefix.as_ref(), b"\xfe"].concat())),
            content: self.subspace.clone(),
            allows_manual_prefixes: false,
            path: self.path.clone(),
        }
    }
}

/// What a path leads to.
struct Found {
    /// The node, if there is a directory.
    node: Option<Subspace>,
    layer: Bytes,
    /// How much of the path was gone: less than all of it if a partition or nothing came in between.
    depth: usize,
}

impl Found {
    fn is_partition(&self) -> bool {
        self.node.is_some() && self.layer == PARTITION
    }

    /// True if the rest of the path lies in a partition.
    fn leads_into_partition(&self, path: &[String]) -> bool {
        self.is_partition() && self.depth < path.len()
    }
}

impl Default for DirectoryLayer {
    fn default() -> DirectoryLayer {
        DirectoryLayer::new(&b"\xfe"[..], &b""[..], false)
    }
}

impl DirectoryLayer {
    /// A tree whose nodes lie at one prefix and whose directories' contents at another. The default tree, which programs share, is
    /// [`DirectoryLayer::default`].
    pub fn new(nodes: impl Into<Bytes>, content: impl Into<Bytes>, allows_manual_prefixes: bool) -> DirectoryLayer {
        DirectoryLayer {
            nodes: Subspace::from_bytes(nodes),
            content: Subspace::from_bytes(content),
            allows_manual_prefixes,
            path: Vec::new(),
        }
    }

    /// Opens a directory, creating it and its parents where they are missing.
    ///
    /// # Errors
    /// `mismatched_layer`, `cannot_open_root_directory`, `manual_prefixes_not_enabled`, `directory_prefix_in_use`, and those of reading.
    pub async fn create_or_open<P: AsRef<str>>(
        &self,
        tx: &Transaction,
        path: &[P],
        options: CreateOptions,
    ) -> Result<Directory> {
        self.open_internal(tx, owned(path), options, true, true).await
    }

    /// Creates a directory, and its parents where they are missing.
    ///
    /// # Errors
    /// `directory_already_exists`, and those of [`create_or_open`](Self::create_or_open).
    pub async fn create<P: AsRef<str>>(
        &self,
        tx: &Transaction,
        path: &[P],
        options: CreateOptions,
    ) -> Result<Directory> {
        self.open_internal(tx, owned(path), options, true, false).await
    }

    /// Opens a directory that exists.
    ///
    /// # Errors
    /// `directory_does_not_exist`, and those of [`create_or_open`](Self::create_or_open).
    pub async fn open<P: AsRef<str>>(
        &self,
        tx: &Transaction,
        path: &[P],
        layer: impl Into<Bytes>,
    ) -> Result<Directory> {
        self.open_internal(tx, owned(path), CreateOptions::layer(layer), false, true).await
    }

    /// True if there is such a directory.
    ///
    /// # Errors
    /// Those of reading.
    pub async fn exists<P: AsRef<str>>(&self, tx: &Transaction, path: &[P]) -> Result<bool> {
        let path = owned(path);
        self.check_version(tx, false).await?;
        let (tree, path) = self.descend(tx, path, false).await?;
        Ok(tree.find(tx, &path).await?.node.is_some())
    }

    /// The names of the directories within one, ascending.
    ///
    /// # Errors
    /// `directory_does_not_exist`, and those of reading.
    pub async fn list<P: AsRef<str>>(&self, tx: &Transaction, path: &[P]) -> Result<Vec<String>> {
        let path = owned(path);
        self.check_version(tx, false).await?;
        let (tree, path) = self.descend(tx, path, true).await?;
        let node = tree.find(tx, &path).await?.node.ok_or_else(|| tree.missing(&path))?;
        Ok(tree.subdirectories(tx, &node).await?.into_iter().map(|(name, _)| name).collect())
    }

    /// Moves a directory, with all that is in it: its prefix stays, and no data is touched.
    ///
    /// # Errors
    /// `directory_does_not_exist`, `directory_already_exists`, `parent_directory_does_not_exist`, `invalid_destination_directory` (into itself),
    /// `cannot_move_directory_between_partitions`, `cannot_modify_root_directory`.
    pub async fn move_to<P: AsRef<str>, Q: AsRef<str>>(
        &self,
        tx: &Transaction,
        from: &[P],
        to: &[Q],
    ) -> Result<Directory> {
        let (from, to) = (owned(from), owned(to));
        self.check_version(tx, true).await?;
        if from.is_empty() || to.is_empty() {
            return Err(Code::CannotModifyRootDirectory.into());
        }
        if to.starts_with(&from) {
            let detail = format!("'{}' cannot be moved into itself, to '{}'", from.join("/"), to.join("/"));
            return Err(Error::with(Code::InvalidDestinationDirectory, detail));
        }
        let (tree, old_path) = self.descend(tx, from, false).await?;
        let (other, new_path) = self.descend(tx, to, false).await?;
        let old = tree.find(tx, &old_path).await?;
        let Some(old_node) = old.node else { return Err(tree.missing(&old_path)) };
        if tree != other {
            let detail =
                format!("'{}' and '{}' are in different partitions", tree.shown(&old_path), other.shown(&new_path));
            return Err(Error::with(Code::CannotMoveDirectoryBetweenPartitions, detail));
        }
        if tree.find(tx, &new_path).await?.node.is_some() {
            return Err(Error::with(Code::DirectoryAlreadyExists, format!("'{}' exists", tree.shown(&new_path))));
        }
        let (name, parents) = new_path.split_last().ok_or(Error::new(Code::CannotModifyRootDirectory))?;
        let Some(parent) = tree.find(tx, parents).await?.node else {
            let detail = format!("'{}' does not exist", tree.shown(parents));
            return Err(Error::with(Code::ParentDirectoryDoesNotExist, detail));
        };
        tx.set(subdirectory(&parent, name), tree.prefix_of(&old_node)?);
        tree.remove_from_parent(tx, &old_path).await?;
        tree.directory(&old_node, &new_path, old.layer)
    }

    /// Removes a directory, all directories in it, and everything that they hold. Whoever still has it open writes into a prefix that may be
    /// given to another.
    ///
    /// # Errors
    /// `directory_does_not_exist`, `cannot_modify_root_directory`.
    pub async fn remove<P: AsRef<str>>(&self, tx: &Transaction, path: &[P]) -> Result<()> {
        if self.remove_if_exists(tx, path).await? { Ok(()) } else { Err(self.missing(&owned(path))) }
    }

    /// Removes a directory if there is one, and says whether there was.
    ///
    /// # Errors
    /// `cannot_modify_root_directory`.
    pub async fn remove_if_exists<P: AsRef<str>>(&self, tx: &Transaction, path: &[P]) -> Result<bool> {
        let path = owned(path);
        self.check_version(tx, true).await?;
        if path.is_empty() {
            return Err(Code::CannotModifyRootDirectory.into());
        }
        let (tree, path) = self.descend(tx, path, false).await?;
        let Some(node) = tree.find(tx, &path).await?.node else { return Ok(false) };
        let mut doomed = vec![node];
        while let Some(node) = doomed.pop() {
            doomed.extend(tree.subdirectories(tx, &node).await?.into_iter().map(|(_, node)| node));
            let prefix = tree.prefix_of(&node)?;
            let contents = KeyRange::prefix(&prefix);
            tx.clear_range(&contents.begin, &contents.end);
            let metadata = node.range();
            tx.clear_range(&metadata.begin, &metadata.end);
        }
        tree.remove_from_parent(tx, &path).await?;
        Ok(true)
    }

    /// Boxed, because creating a directory creates its parents.
    fn open_internal<'a>(
        &'a self,
        tx: &'a Transaction,
        path: Vec<String>,
        options: CreateOptions,
        may_create: bool,
        may_open: bool,
    ) -> BoxFutureIn<'a, Result<Directory>> {
        Box::pin(async move {
            self.check_version(tx, false).await?;
            if path.is_empty() {
                return Err(Code::CannotOpenRootDirectory.into());
            }
            let (tree, path) = self.descend(tx, path, false).await?;
            if options.prefix.is_some() && !tree.allows_manual_prefixes {
                let code = if tree.path.is_empty() { Code::ManualPrefixesNotEnabled } else { Code::PrefixInPartition };
                return Err(code.into());
            }
            let found = tree.find(tx, &path).await?;
            if let Some(node) = &found.node {
                if !may_open {
                    return Err(Error::with(Code::DirectoryAlreadyExists, format!("'{}' exists", tree.shown(&path))));
                }
                if !options.layer.is_empty() && options.layer != found.layer {
                    let (has, wanted) = (printable(&found.layer), printable(&options.layer));
                    let detail = format!("'{}' has the layer '{has}', not '{wanted}'", tree.shown(&path));
                    return Err(Error::with(Code::MismatchedLayer, detail));
                }
                return tree.directory(node, &path, found.layer);
            }
            if !may_create {
                return Err(tree.missing(&path));
            }
            tree.check_version(tx, true).await?;
            let prefix = tree.choose_prefix(tx, options.prefix).await?;
            let (name, parents) = path.split_last().expect("an empty path was refused");
            let parent = if parents.is_empty() {
                tree.root()
            } else {
                let parent = tree.open_internal(tx, parents.to_vec(), CreateOptions::default(), true, true).await?;
                tree.node(parent.subspace.prefix())
            };
            let node = tree.node(&prefix);
            tx.set(subdirectory(&parent, name), &prefix);
            tx.set(layer_key(&node), &options.layer);
            tree.directory(&node, &path, options.layer)
        })
    }

    async fn choose_prefix(&self, tx: &Transaction, manual: Option<Bytes>) -> Result<Bytes> {
        if let Some(prefix) = manual {
            return if self.is_prefix_free(tx, &prefix, false).await? {
                Ok(prefix)
            } else {
                let detail = format!("the prefix '{}' is in use", printable(&prefix));
                Err(Error::with(Code::DirectoryPrefixInUse, detail))
            };
        }
        let allocated = Allocator::new(&self.root().subspace((&b"hca"[..],))).allocate(tx).await?;
        let prefix = Bytes::from([self.content.prefix().as_ref(), &allocated].concat());
        let stored = tx.get_range(RangeOptions::prefix(&prefix).limit(1)).await?;
        if let Some(row) = stored.rows.first() {
            let detail = format!(
                "the prefix '{}' was chosen, but there is the key '{}'",
                printable(&prefix),
                printable(&row.key)
            );
            return Err(Error::with(Code::DirectoryPrefixNotEmpty, detail));
        }
        if !self.is_prefix_free(tx, &prefix, true).await? {
            let detail = format!("the prefix '{}' was chosen, but a manual one meets it", printable(&prefix));
            return Err(Error::with(Code::DirectoryPrefixInUse, detail));
        }
        Ok(prefix)
    }

    /// True if no directory's prefix begins with this one, and this one with none's.
    async fn is_prefix_free(&self, tx: &Transaction, prefix: &Bytes, snapshot: bool) -> Result<bool> {
        if prefix.is_empty() || prefix.starts_with(self.nodes.prefix()) {
            return Ok(false);
        }
        let first = |options: RangeOptions| async move {
            let chunk = if snapshot { tx.snapshot().get_range(options) } else { tx.get_range(options) }.await?;
            Ok::<_, Error>(chunk.rows.into_iter().next())
        };
        let range = self.nodes.range();
        let up_to = key_after(&self.nodes.pack((prefix.clone(),)));
        let below = RangeOptions::new(
            KeySelector::first_greater_or_equal(range.begin),
            KeySelector::first_greater_or_equal(up_to),
        );
        if let Some(row) = first(below.limit(1).reverse(true)).await? {
            let before = self.prefix_in(&row.key)?;
            if prefix.starts_with(&before) {
                return Ok(false);
            }
        }
        let Some(end) = prefix_end(prefix) else { return Ok(false) };
        let within = KeyRange::new(self.nodes.pack((prefix.clone(),)), self.nodes.pack((end,)));
        Ok(first(RangeOptions::from(within).limit(1)).await?.is_none())
    }

    /// The tree and the path within it that a path leads to, through all partitions. A path that ends at a partition stays
    /// outside, unless `enter` says otherwise.
    async fn descend(&self, tx: &Transaction, path: Vec<String>, enter: bool) -> Result<(DirectoryLayer, Vec<String>)> {
        let (mut tree, mut path) = (self.clone(), path);
        loop {
            let found = tree.find(tx, &path).await?;
            let goes_on = found.leads_into_partition(&path) || (enter && found.is_partition());
            let Some(node) = found.node.filter(|_| goes_on) else { return Ok((tree, path)) };
            let rest = path.split_off(found.depth);
            tree = tree.directory(&node, &path, found.layer)?.inner();
            path = rest;
        }
    }

    async fn find(&self, tx: &Transaction, path: &[String]) -> Result<Found> {
        let mut found = Found { node: Some(self.root()), layer: Bytes::new(), depth: 0 };
        for name in path {
            let Some(parent) = &found.node else { break };
            if found.is_partition() {
                break;
            }
            let prefix = tx.get(subdirectory(parent, name)).await?;
            let node = prefix.map(|prefix| self.node(&prefix));
            let layer = match &node {
                Some(node) => tx.get(layer_key(node)).await?.unwrap_or_default(),
                None => Bytes::new(),
            };
            found = Found { node, layer, depth: found.depth + 1 };
        }
        Ok(found)
    }

    async fn subdirectories(&self, tx: &Transaction, node: &Subspace) -> Result<Vec<(String, Subspace)>> {
        let all = node.subspace((SUBDIRECTORIES,));
        let rows = tx.get_ranges(RangeOptions::from(all.range())).collect().await?;
        rows.iter()
            .map(|row| match all.unpack(&row.key)?.into_elements().pop() {
                Some(Element::String(name)) => Ok((name, self.node(&row.value))),
                _ => Err(damaged("the name of a directory is not a string")),
            })
            .collect()
    }

    async fn remove_from_parent(&self, tx: &Transaction, path: &[String]) -> Result<()> {
        let (name, parents) = path.split_last().expect("the root is never removed");
        if let Some(parent) = self.find(tx, parents).await?.node {
            tx.clear(subdirectory(&parent, name));
        }
        Ok(())
    }

    async fn check_version(&self, tx: &Transaction, will_write: bool) -> Result<()> {
        let key = self.root().pack((&b"version"[..],));
        let Some(version) = tx.get(&key).await? else {
            if will_write {
                tx.set(&key, VERSION.map(u32::to_le_bytes).concat());
            }
            return Ok(());
        };
        let number =
            |at: usize| version.get(at..at + 4).map(|bytes| u32::from_le_bytes(bytes.try_into().expect("four")));
        let (Some(major), Some(minor), Some(micro)) = (number(0), number(4), number(8)) else {
            return Err(damaged("the version of the directory layer has not twelve bytes"));
        };
        if major > VERSION[0] || (will_write && minor > VERSION[1]) {
            let detail = format!("the directories have the version {major}.{minor}.{micro}; this client knows 1.0.0");
            return Err(Error::with(Code::IncompatibleDirectoryVersion, detail));
        }
        Ok(())
    }

    fn root(&self) -> Subspace {
        self.node(self.nodes.prefix())
    }

    fn node(&self, prefix: &Bytes) -> Subspace {
        self.nodes.subspace((prefix.clone(),))
    }

    fn prefix_of(&self, node: &Subspace) -> Result<Bytes> {
        self.prefix_in(node.prefix())
    }

    /// The prefix whose node a key belongs to.
    fn prefix_in(&self, key: &[u8]) -> Result<Bytes> {
        match self.nodes.unpack(key)?.into_elements().into_iter().next() {
            Some(Element::Bytes(prefix)) => Ok(prefix),
            _ => Err(damaged("a node of the directory layer does not begin with a prefix")),
        }
    }

    fn directory(&self, node: &Subspace, path: &[String], layer: Bytes) -> Result<Directory> {
        let path = [&self.path, path].concat();
        Ok(Directory { path, layer, subspace: Subspace::from_bytes(self.prefix_of(node)?) })
    }

    fn shown(&self, path: &[String]) -> String {
        [&self.path, path].concat().join("/")
    }

    fn missing(&self, path: &[String]) -> Error {
        Error::with(Code::DirectoryDoesNotExist, format!("there is no directory '{}'", self.shown(path)))
    }
}

/// A future that borrows.
type BoxFutureIn<'a, T> = std::pin::Pin<Box<dyn Future<Output = T> + Send + 'a>>;

fn owned<P: AsRef<str>>(path: &[P]) -> Vec<String> {
    path.iter().map(|name| name.as_ref().to_owned()).collect()
}

fn subdirectory(node: &Subspace, name: &str) -> Bytes {
    node.pack((SUBDIRECTORIES, name))
}

fn layer_key(node: &Subspace) -> Bytes {
    node.pack((&b"layer"[..],))
}

fn damaged(what: &str) -> Error {
    Error::with(Code::InvalidDirectoryLayerMetadata, what)
}

impl fmt::Display for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", self.path.join("/"))
    }
}
