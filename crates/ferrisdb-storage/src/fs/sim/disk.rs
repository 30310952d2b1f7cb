//! The state of a simulated disk: what readers see, what is durable, and the changes between the two.
//!
//! # Invariants
//! - For a file: durable content + unsynced changes in order = visible content, except for writes that a failed sync
//!   dropped.
//! - For the names: durable names + unsynced name changes in order = visible names.
//! - Every file that a visible, durable or unsynced name stands for exists.
//!
//! # What a crash keeps
//! Of a file's unsynced writes any subset, in units of 512-byte sectors. Of its changes of length a prefix, since they
//! are metadata and journaled in order; what is grown over lost writes reads as zeros. Of the name changes any subset
//! in which a change is kept only if the earlier unsynced changes of the same names are: a directory entry has one
//! history. A kept rename may leave the old name too. A name in a lost directory is lost with it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use ferrisdb_core::{Random, SplitMix64};

use super::content::Content;

/// The unit in which a write reaches the disk or does not.
pub(super) const SECTOR_BYTES: u64 = 512;

/// What is lost when the machine stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CrashMode {
    /// The process died, the machine did not: everything written is there, and what was not synced may still be lost in
    /// a later crash.
    NothingLost,
    /// Power failed before anything unsynced reached the disk.
    UnsyncedLost,
    /// Power failed while the disk wrote in an order of its own: any subset of sectors and names.
    RandomSubset {
        /// Decides the subset.
        seed: u64,
    },
    /// Power failed while the disk wrote in the order of the operations: a prefix, whose last write may be torn.
    OldestFirst {
        /// Decides the length of the prefix.
        seed: u64,
    },
}

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Node {
    File(u64),
    Dir,
}

/// A whole disk. Cheap to clone: files and names are shared until changed.
#[derive(Debug, Clone, Default)]
pub(super) struct Disk {
    pub(super) files: BTreeMap<u64, Arc<FileState>>,
    pub(super) names: Arc<Names>,
    next_file: u64,
    /// Orders the unsynced changes of all files and names.
    next_change: u64,
}

/// A file without its names.
#[derive(Debug, Clone, Default)]
pub(super) struct FileState {
    pub(super) visible: Content,
    pub(super) durable: Content,
    unsynced: Vec<(u64, Change)>,
    /// A failed sync has dropped writes, so that `visible` says more than `durable` and `unsynced` together.
    has_dropped_writes: bool,
}

/// An unsynced change of a file.
#[derive(Debug, Clone)]
pub(super) enum Change {
    Write {
        offset: u64,
        data: Arc<[u8]>,
    },
    /// The length that a dropped write had given the file: data lost, metadata not.
    Grow {
        len: u64,
    },
    SetLen {
        len: u64,
    },
    Allocate {
        len: u64,
    },
}

/// The directory tree, flat: absolute paths. The root is not in it.
#[derive(Debug, Clone, Default)]
pub(super) struct Names {
    pub(super) visible: BTreeMap<Arc<Path>, Node>,
    pub(super) durable: BTreeMap<Arc<Path>, Node>,
    unsynced: Vec<NameChange>,
}

/// An unsynced change of one name, or for a rename of two at once.
#[derive(Debug, Clone)]
struct NameChange {
    number: u64,
    name: Arc<Path>,
    now: Option<Node>,
    /// The old name of a rename.
    cleared: Option<Arc<Path>>,
}

impl Change {
    fn apply(&self, content: &mut Content) {
        match self {
            Change::Write { offset, data } => content.write(*offset, data),
            Change::Grow { len } => content.set_len(content.len().max(*len)),
            Change::SetLen { len } => content.set_len(*len),
            Change::Allocate { len } => content.allocate(*len),
        }
    }

    /// The file's length after the change, if it was `len` before.
    fn len_after(&self, len: u64) -> u64 {
        match self {
            Change::Write { offset, data } => len.max(offset + data.len() as u64),
            Change::Grow { len: at_least } | Change::Allocate { len: at_least } => len.max(*at_least),
            Change::SetLen { len } => *len,
        }
    }
}

impl FileState {
    /// Carries out a change that is not yet durable.
    fn change(&mut self, number: u64, change: Change) {
        change.apply(&mut self.visible);
        self.unsynced.push((number, change));
    }

    /// Makes the visible content durable, except for dropped writes, which stay lost.
    fn sync(&mut self) {
        if self.has_dropped_writes {
            for (_, change) in self.unsynced.drain(..) {
                change.apply(&mut self.durable);
            }
            return;
        }
        // The two contents will be the same: share the changed pages, so that a sync costs what was written, not what
        // the file holds.
        for (_, change) in self.unsynced.drain(..) {
            match change {
                Change::Write { offset, data } => {
                    self.durable.share_pages(&self.visible, offset..offset + data.len() as u64);
                }
                // Whatever lies above the cut now was written after it, and is shared by those writes.
                Change::SetLen { len } => self.durable.set_len(self.durable.len().min(len)),
                Change::Grow { .. } | Change::Allocate { .. } => {}
            }
        }
        self.durable.share_shape(&self.visible);
    }

    /// Forgets unsynced writes but goes on showing them. Changes of length stay due.
    fn drop_unsynced_writes(&mut self) {
        for (_, change) in &mut self.unsynced {
            if let Change::Write { offset, data } = change {
                self.has_dropped_writes = true;
                *change = Change::Grow { len: *offset + data.len() as u64 };
            }
        }
    }

    /// What the file holds if the page cache forgets all clean pages.
    fn uncached(&self) -> Content {
        let mut content = self.durable.clone();
        self.unsynced.iter().for_each(|(_, change)| change.apply(&mut content));
        content
    }

    /// What is left after a loss of power.
    fn after_power_loss(&self, chance: &mut Chance) -> Content {
        let mut content = self.durable.clone();
        if chance.loses_everything() {
            return content;
        }
        let mut len = content.len();
        let mut lens = vec![(0, len)];
        for (number, change) in &self.unsynced {
            let after = change.len_after(len);
            if after != len {
                lens.push((*number, after));
            }
            len = after;
        }
        let (last_len_change, final_len) = chance.pick_len(&lens);
        for (number, change) in &self.unsynced {
            match change {
                Change::Write { offset, data } => {
                    let (offset, len) = (*offset, data.len() as u64);
                    let first = offset / SECTOR_BYTES;
                    let sectors = (offset + len).div_ceil(SECTOR_BYTES) - first;
                    for sector in chance.pick_sectors(*number, sectors) {
                        let start = ((first + sector) * SECTOR_BYTES).max(offset);
                        let end = ((first + sector + 1) * SECTOR_BYTES).min(offset + len);
                        let part = index(start - offset)..index(end - offset);
                        content.write(start, &data[part]);
                    }
                }
                _ if *number <= last_len_change => change.apply(&mut content),
                _ => {}
            }
        }
        content.set_len(final_len);
        content
    }

    fn is_clean(&self) -> bool {
        self.unsynced.is_empty() && !self.has_dropped_writes
    }
}

impl Names {
    fn apply(names: &mut BTreeMap<Arc<Path>, Node>, change: &NameChange) {
        if let Some(old) = &change.cleared {
            names.remove(old);
        }
        match change.now {
            Some(node) => names.insert(Arc::clone(&change.name), node),
            None => names.remove(&change.name),
        };
    }

    /// Makes the unsynced changes durable for which `is_due` holds for one of the names, and the earlier ones on which
    /// those build. A rename is one transaction: syncing either directory makes both names durable.
    fn sync_where(&mut self, is_due: impl Fn(&Path) -> bool) {
        let mut touched = BTreeSet::new();
        let mut due = vec![false; self.unsynced.len()];
        for (change, due) in self.unsynced.iter().zip(&mut due).rev() {
            *due = change.names().any(|name| is_due(name) || touched.contains(name));
            if *due {
                touched.extend(change.names().cloned());
            }
        }
        let mut due = due.into_iter();
        let durable = &mut self.durable;
        self.unsynced.retain(|change| {
            let due = due.next().expect("there is one flag for each change");
            if due {
                Names::apply(durable, change);
            }
            !due
        });
    }

    /// What is left after a loss of power.
    fn after_power_loss(&self, chance: &mut Chance) -> BTreeMap<Arc<Path>, Node> {
        let mut names = self.durable.clone();
        let mut lost_names = BTreeSet::new();
        for change in &self.unsynced {
            let builds_on_a_lost_one = change.names().any(|name| lost_names.contains(name));
            if builds_on_a_lost_one || !chance.keeps_name(change.number) {
                lost_names.extend(change.names());
                continue;
            }
            Names::apply(&mut names, change);
            if let (Some(old), Some(node)) = (&change.cleared, change.now)
                && chance.leaves_old_name()
            {
                names.insert(Arc::clone(old), node);
            }
        }
        // Sorted by path, a directory comes before what it holds.
        let mut kept: BTreeMap<Arc<Path>, Node> = BTreeMap::new();
        for (name, node) in names {
            let parent = name.parent().expect("the root is not among the names");
            if parent == Path::new("/") || kept.get(parent) == Some(&Node::Dir) {
                kept.insert(name, node);
            }
        }
        kept
    }
}

impl NameChange {
    fn names(&self) -> impl Iterator<Item = &Arc<Path>> {
        std::iter::once(&self.name).chain(self.cleared.as_ref())
    }
}

impl Disk {
    fn change_number(&mut self) -> u64 {
        self.next_change += 1;
        self.next_change
    }

    pub(super) fn file(&self, file: u64) -> &FileState {
        self.files.get(&file).expect("a file lives as long as a name or a handle")
    }

    fn file_mut(&mut self, file: u64) -> &mut FileState {
        Arc::make_mut(self.files.get_mut(&file).expect("a file lives as long as a name or a handle"))
    }

    pub(super) fn change_file(&mut self, file: u64, change: Change) {
        let number = self.change_number();
        self.file_mut(file).change(number, change);
    }

    pub(super) fn sync_file(&mut self, file: u64) {
        if !self.file(file).unsynced.is_empty() {
            self.file_mut(file).sync();
        }
    }

    pub(super) fn drop_unsynced_writes(&mut self, file: u64) {
        self.file_mut(file).drop_unsynced_writes();
    }

    pub(super) fn create_file(&mut self, name: Arc<Path>) -> u64 {
        self.next_file += 1;
        self.files.insert(self.next_file, Arc::default());
        self.change_name(name, Some(Node::File(self.next_file)), None);
        self.next_file
    }

    /// Gives `name` a meaning or takes it away, and takes `cleared` away in the same transaction.
    pub(super) fn change_name(&mut self, name: Arc<Path>, now: Option<Node>, cleared: Option<Arc<Path>>) {
        let change = NameChange { number: self.change_number(), name, now, cleared };
        let names = Arc::make_mut(&mut self.names);
        Names::apply(&mut names.visible, &change);
        names.unsynced.push(change);
    }

    pub(super) fn sync_dir(&mut self, directory: &Path) {
        if !self.names.unsynced.is_empty() {
            Arc::make_mut(&mut self.names).sync_where(|name| name.parent() == Some(directory));
        }
    }

    /// Makes one name durable, as if its whole directory had been synced for it alone.
    pub(super) fn sync_name(&mut self, name: &Path) {
        Arc::make_mut(&mut self.names).sync_where(|other| other == name);
    }

    pub(super) fn sync_all(&mut self) {
        Arc::make_mut(&mut self.names).sync_where(|_| true);
        let files: Vec<u64> = self.files.keys().copied().collect();
        files.into_iter().for_each(|file| self.sync_file(file));
    }

    /// Replaces a file's content, durably and without a trace of what was unsynced.
    pub(super) fn replace_content(&mut self, file: u64, content: Content) {
        *self.file_mut(file) = FileState { durable: content.clone(), visible: content, ..FileState::default() };
    }

    /// Inverts a bit of the file wherever it is kept: on the disk, in the page cache, and in writes on their way.
    pub(super) fn flip_bit(&mut self, file: u64, offset: u64, bit: u8) {
        let state = self.file_mut(file);
        state.visible.flip_bit(offset, bit);
        state.durable.flip_bit(offset, bit);
        for (_, change) in &mut state.unsynced {
            if let Change::Write { offset: start, data } = change
                && (*start..*start + data.len() as u64).contains(&offset)
            {
                let mut bytes = data.to_vec();
                bytes[index(offset - *start)] ^= 1 << bit;
                *data = bytes.into();
            }
        }
    }

    pub(super) fn drop_caches(&mut self) {
        for file in self.files.values_mut().filter(|file| file.has_dropped_writes) {
            let content = file.uncached();
            let file = Arc::make_mut(file);
            file.visible = content;
            file.has_dropped_writes = false;
        }
    }

    /// Space taken by the files that have a visible name or are open, in bytes.
    pub(super) fn used_bytes(&self, is_open: impl Fn(u64) -> bool) -> u64 {
        let mut named: BTreeSet<Node> = BTreeSet::new();
        named.extend(self.names.visible.values());
        let in_use = |file: u64| named.contains(&Node::File(file)) || is_open(file);
        let files = self.files.iter().filter(|(file, _)| in_use(**file));
        files.fold(0, |sum, (_, file)| sum.saturating_add(file.visible.used_bytes()))
    }

    /// The number of changes that a crash could lose.
    pub(super) fn unsynced_changes(&self) -> usize {
        self.names.unsynced.len() + self.files.values().map(|file| file.unsynced.len()).sum::<usize>()
    }

    /// Drops the files that no name stands for and that are not `open`.
    pub(super) fn collect_garbage(&mut self, is_open: impl Fn(u64) -> bool) {
        let mut named = BTreeSet::new();
        let pending = self.names.unsynced.iter().filter_map(|change| change.now.as_ref());
        for node in self.names.visible.values().chain(self.names.durable.values()).chain(pending) {
            if let Node::File(file) = node {
                named.insert(*file);
            }
        }
        self.files.retain(|file, _| named.contains(file) || is_open(*file));
    }

    /// The disk as the next process or the next boot finds it. No file is open.
    pub(super) fn crashed(&self, mode: CrashMode) -> Disk {
        let mut after = self.clone();
        if mode != CrashMode::NothingLost {
            let mut chance = Chance::new(mode, self);
            if !self.names.unsynced.is_empty() {
                let names = self.names.after_power_loss(&mut chance);
                after.names = Arc::new(Names { visible: names.clone(), durable: names, unsynced: Vec::new() });
            }
            for file in after.files.values_mut().filter(|file| !file.is_clean()) {
                let content = file.after_power_loss(&mut chance);
                *file = Arc::new(FileState { durable: content.clone(), visible: content, ..FileState::default() });
            }
        }
        after.collect_garbage(|_| false);
        after
    }

    pub(super) fn hash_into(&self, hasher: &mut xxhash_rust::xxh3::Xxh3) {
        let names = &self.names;
        hasher.update(format!("{:?} {:?} {:?}", names.visible, names.durable, names.unsynced).as_bytes());
        for (number, file) in &self.files {
            hasher.update(format!("file {number} {}", file.has_dropped_writes).as_bytes());
            file.visible.hash_into(hasher);
            if file.is_clean() {
                continue;
            }
            file.durable.hash_into(hasher);
            for (number, change) in &file.unsynced {
                let (kind, place, data) = match change {
                    Change::Write { offset, data } => (0, *offset, &data[..]),
                    Change::Grow { len } => (1, *len, &[][..]),
                    Change::SetLen { len } => (2, *len, &[][..]),
                    Change::Allocate { len } => (3, *len, &[][..]),
                };
                [*number, kind, place, data.len() as u64].iter().for_each(|part| hasher.update(&part.to_le_bytes()));
                hasher.update(data);
            }
        }
    }

    /// Panics if an invariant of this module does not hold.
    pub(super) fn check(&self) {
        let mut names = self.names.durable.clone();
        self.names.unsynced.iter().for_each(|change| Names::apply(&mut names, change));
        assert_eq!(names, self.names.visible, "durable names and unsynced changes do not give the visible names");
        for node in self.names.visible.values().chain(self.names.durable.values()) {
            assert!(!matches!(node, Node::File(file) if !self.files.contains_key(file)), "a name without its file");
        }
        for (number, file) in &self.files {
            file.visible.check();
            file.durable.check();
            let uncached = file.uncached();
            assert_eq!(uncached.len(), file.visible.len(), "length of file {number}");
            let explained = file.has_dropped_writes || uncached.same_bytes(&file.visible);
            assert!(explained, "durable content and unsynced changes of file {number} do not give what is visible");
        }
    }
}

/// Decides what a loss of power takes.
struct Chance {
    mode: CrashMode,
    random: SplitMix64,
    /// For a random subset: how many of eight unsynced changes survive, for writes and for names. Drawn once for each
    /// crash, so that a few seeds show crashes that lose nearly nothing and crashes that lose nearly all.
    writes_kept_of_8: u64,
    names_kept_of_8: u64,
    /// For a prefix: changes below this number survive; a write of this number is torn.
    cut: u64,
}

impl Chance {
    fn new(mode: CrashMode, disk: &Disk) -> Chance {
        let seed = match mode {
            CrashMode::RandomSubset { seed } | CrashMode::OldestFirst { seed } => seed,
            CrashMode::NothingLost | CrashMode::UnsyncedLost => 0,
        };
        let mut random = SplitMix64::new(seed);
        const KEPT_OF_8: [u64; 3] = [1, 4, 7];
        let writes_kept_of_8 = KEPT_OF_8[index(random.below(3))];
        let names_kept_of_8 = KEPT_OF_8[index(random.below(3))];
        let mut cut = 0;
        if matches!(mode, CrashMode::OldestFirst { .. }) {
            let changes = disk.files.values().flat_map(|file| file.unsynced.iter().map(|(number, _)| *number));
            let mut numbers: Vec<u64> = changes.chain(disk.names.unsynced.iter().map(|change| change.number)).collect();
            numbers.sort_unstable();
            let kept = index(random.below(numbers.len() as u64 + 1));
            cut = numbers.get(kept).copied().unwrap_or(u64::MAX);
        }
        Chance { mode, random, writes_kept_of_8, names_kept_of_8, cut }
    }

    fn loses_everything(&self) -> bool {
        self.mode == CrashMode::UnsyncedLost
    }

    fn keeps_name(&mut self, number: u64) -> bool {
        match self.mode {
            CrashMode::NothingLost => true,
            CrashMode::UnsyncedLost => false,
            CrashMode::RandomSubset { .. } => self.random.below(8) < self.names_kept_of_8,
            CrashMode::OldestFirst { .. } => number < self.cut,
        }
    }

    fn leaves_old_name(&mut self) -> bool {
        matches!(self.mode, CrashMode::RandomSubset { .. }) && self.random.one_in(4)
    }

    /// Picks one of the lengths that a file went through, with the number of the change that gave it that length.
    fn pick_len(&mut self, lens: &[(u64, u64)]) -> (u64, u64) {
        let last = lens.len() - 1;
        let picked = match self.mode {
            CrashMode::NothingLost => last,
            CrashMode::UnsyncedLost => 0,
            CrashMode::RandomSubset { .. } => match self.random.below(3) {
                0 => 0,
                1 => last,
                _ => index(self.random.below(lens.len() as u64)),
            },
            CrashMode::OldestFirst { .. } => {
                let whole = lens.iter().take_while(|(number, _)| *number < self.cut).count() - 1;
                // The length that belongs to the torn write may have been written first.
                let torn_too = whole < last && lens[whole + 1].0 == self.cut && self.random.one_in(2);
                whole + usize::from(torn_too)
            }
        };
        lens[picked]
    }

    /// Which of a write's sectors survive.
    fn pick_sectors(&mut self, number: u64, sectors: u64) -> Vec<u64> {
        match self.mode {
            CrashMode::NothingLost => (0..sectors).collect(),
            CrashMode::UnsyncedLost => Vec::new(),
            CrashMode::RandomSubset { .. } if self.random.below(8) < self.writes_kept_of_8 => (0..sectors).collect(),
            CrashMode::RandomSubset { .. } => match self.random.below(3) {
                0 => Vec::new(),
                1 => (0..self.random.below(sectors + 1)).collect(),
                _ => (0..sectors).filter(|_| self.random.one_in(2)).collect(),
            },
            CrashMode::OldestFirst { .. } if number == self.cut => (0..self.random.below(sectors)).collect(),
            CrashMode::OldestFirst { .. } => (0..if number < self.cut { sectors } else { 0 }).collect(),
        }
    }
}

fn index(number: u64) -> usize {
    usize::try_from(number).expect("it is below the length of a slice")
}
