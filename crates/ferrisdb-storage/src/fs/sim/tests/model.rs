//! Random operations on the simulated disk and on a model that is too simple to be wrong: it keeps every content that a
//! file had, and every meaning that a name had, since the last sync.

#![expect(clippy::cast_possible_truncation, reason = "the random numbers are small")]

use std::collections::BTreeMap;

use super::*;

/// A file: all contents since the last sync, the durable one first, the visible one last.
#[derive(Debug, Clone)]
struct ModelFile {
    history: Vec<Vec<u8>>,
}

/// A name: all files that it stood for since the last sync of its directory, the durable one first, the visible one
/// last.
type ModelName = Vec<Option<usize>>;

#[derive(Debug, Default)]
struct Model {
    files: Vec<ModelFile>,
    names: BTreeMap<String, ModelName>,
}

impl Model {
    fn visible(&self, name: &str) -> Option<usize> {
        self.names.get(name).and_then(|name| *name.last().unwrap())
    }

    fn set_name(&mut self, name: &str, file: Option<usize>) {
        self.names.entry(name.to_owned()).or_insert_with(|| vec![None]).push(file);
    }

    fn change(&mut self, file: usize, change: impl FnOnce(&mut Vec<u8>)) {
        let mut content = self.files[file].history.last().unwrap().clone();
        change(&mut content);
        self.files[file].history.push(content);
    }

    fn sync(&mut self, file: usize) {
        let history = &mut self.files[file].history;
        history.drain(..history.len() - 1);
    }

    fn sync_dir(&mut self) {
        self.names.values_mut().for_each(|name| drop(name.drain(..name.len() - 1)));
    }

    /// What the disk must hold if every reader asked, or if all that is unsynced is lost.
    fn tree(&self, durable: bool) -> BTreeMap<String, Vec<u8>> {
        let pick = |len: usize| if durable { 0 } else { len - 1 };
        let file = |name: &ModelName| name[pick(name.len())];
        let content = |file: usize| {
            let history = &self.files[file].history;
            history[pick(history.len())].clone()
        };
        self.names.iter().filter_map(|(name, files)| Some((name.clone(), content(file(files)?)))).collect()
    }

    /// Checks a crashed disk: each name stands for a file that it stood for, each file has a length that it had, each
    /// byte is one that was there, or a zero.
    fn assert_allows(&self, tree: &BTreeMap<String, Vec<u8>>, seed: u64) {
        for (name, history) in &self.names {
            let allowed = history.iter().any(|file| match (file, tree.get(name)) {
                (None, None) => true,
                (Some(file), Some(bytes)) => self.files[*file].allows(bytes),
                _ => false,
            });
            assert!(allowed, "seed {seed}: {name} is {:?}, but was {history:?}", tree.get(name).map(Vec::len));
        }
        assert!(tree.keys().all(|name| self.names.contains_key(name)), "seed {seed}: a name from nowhere");
    }
}

impl ModelFile {
    fn allows(&self, bytes: &[u8]) -> bool {
        let byte_was_there = |(place, byte): (usize, &u8)| {
            // Zero is new only where the file grew over bytes that were lost.
            let grew = self.history.iter().any(|content| content.len() <= place);
            (*byte == 0 && grew) || self.history.iter().any(|content| content.get(place) == Some(byte))
        };
        self.history.iter().any(|content| content.len() == bytes.len()) && bytes.iter().enumerate().all(byte_was_there)
    }
}

fn tree(disk: &SimFileSystem) -> BTreeMap<String, Vec<u8>> {
    let files = disk.files();
    files.iter().map(|(name, _)| (name.to_str().unwrap().to_owned(), disk.read_raw(name).unwrap())).collect()
}

/// Runs random operations and compares after each. The seed of a failure replays it.
fn run(seed: u64) {
    let mut random = SplitMix64::new(seed);
    let mut disk = SimFileSystem::new();
    let mut model = Model::default();
    let names = ["/a", "/b", "/c", "/d"];
    for step in 0..120 {
        let name = names[random.below(4) as usize];
        let other = names[random.below(4) as usize];
        let offset = random.below(6000);
        let open = |name: &str| disk.open(path(name), OpenMode::ReadWrite);
        let Some(file) = model.visible(name) else {
            disk.open(path(name), OpenMode::CreateNew).unwrap();
            model.files.push(ModelFile { history: vec![Vec::new()] });
            model.set_name(name, Some(model.files.len() - 1));
            continue;
        };
        match random.below(16) {
            0..=5 => {
                let data = vec![random.below(255) as u8 + 1; random.below(2500) as usize + 1];
                write_all_at(&*open(name).unwrap(), &data, offset).unwrap();
                model.change(file, |content| {
                    let end = offset as usize + data.len();
                    content.resize(content.len().max(end), 0);
                    content[offset as usize..end].copy_from_slice(&data);
                });
            }
            6 => {
                open(name).unwrap().set_len(offset).unwrap();
                model.change(file, |content| content.resize(offset as usize, 0));
            }
            7 => {
                open(name).unwrap().allocate(offset).unwrap();
                model.change(file, |content| content.resize(content.len().max(offset as usize), 0));
            }
            8 | 9 => {
                open(name).unwrap().sync_data().unwrap();
                model.sync(file);
            }
            10 => {
                disk.sync_dir(path("/")).unwrap();
                model.sync_dir();
            }
            11 => {
                disk.remove_file(path(name)).unwrap();
                model.set_name(name, None);
            }
            12 => {
                disk.rename(path(name), path(other)).unwrap();
                if model.visible(other) != Some(file) {
                    model.set_name(other, Some(file));
                    model.set_name(name, None);
                }
            }
            13 if model.visible(other).is_none() => {
                disk.hard_link(path(name), path(other)).unwrap();
                model.set_name(other, Some(file));
            }
            14 if random.one_in(4) => {
                let crash_seed = random.next_u64();
                let mode = if random.one_in(2) { random_subset(crash_seed) } else { oldest_first(crash_seed) };
                disk = disk.fork_crashed(mode);
                let after = tree(&disk);
                model.assert_allows(&after, seed);
                // From here on the model is what the crash left. Hard links are parted in both.
                model = Model::default();
                for (name, bytes) in after {
                    disk.remove_raw(&name);
                    disk.write_raw(&name, &bytes);
                    model.files.push(ModelFile { history: vec![bytes] });
                    model.names.insert(name, vec![Some(model.files.len() - 1)]);
                }
            }
            _ => {
                let mut buffer = vec![0; 3000];
                let read = open(name).unwrap().read_at(&mut buffer, offset).unwrap();
                let content = model.files[file].history.last().unwrap();
                let expected = content.get(offset as usize..).unwrap_or(&[]);
                assert_eq!(&buffer[..read], &expected[..expected.len().min(3000)], "seed {seed} step {step}");
            }
        }
        disk.check();
        assert_eq!(tree(&disk), model.tree(false), "seed {seed} step {step}: what is visible");
        let lost = disk.fork_crashed(CrashMode::UnsyncedLost);
        assert_eq!(tree(&lost), model.tree(true), "seed {seed} step {step}: what is durable");
        for crash_seed in 0..2 {
            let crash_seed = seed * 1000 + step * 2 + crash_seed;
            for mode in [random_subset(crash_seed), oldest_first(crash_seed)] {
                let after = disk.fork_crashed(mode);
                after.check();
                model.assert_allows(&tree(&after), seed);
            }
        }
    }
}

/// The disk agrees with the model on what is visible and what is durable, and no crash leaves what was never there.
#[test]
fn the_disk_agrees_with_a_simple_model() {
    for seed in 0..50 {
        run(seed);
    }
}
