use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::fs::real::RealFileSystem;
use crate::fs::{read_exact_at, write_all_at};
use ferrisdb_core::{Random, SplitMix64};

mod model;

fn path(text: &str) -> &Path {
    Path::new(text)
}

/// A disk with one file `/f` that is durable and holds `bytes`.
fn disk_with(bytes: &[u8]) -> (SimFileSystem, Arc<dyn File>) {
    let disk = SimFileSystem::new();
    disk.write_raw("/f", bytes);
    let file = disk.open(path("/f"), OpenMode::ReadWrite).unwrap();
    (disk, file)
}

/// What `/f` may hold after crashes with many seeds.
fn outcomes(disk: &SimFileSystem, mode: impl Fn(u64) -> CrashMode) -> BTreeSet<Option<Vec<u8>>> {
    let seeds = 0..300;
    seeds
        .map(|seed| {
            let after = disk.fork_crashed(mode(seed));
            after.check();
            assert_eq!(after.unsynced_changes(), 0);
            after.read_raw("/f")
        })
        .collect()
}

fn random_subset(seed: u64) -> CrashMode {
    CrashMode::RandomSubset { seed }
}

fn oldest_first(seed: u64) -> CrashMode {
    CrashMode::OldestFirst { seed }
}

fn names(disk: &SimFileSystem) -> String {
    let files = disk.files();
    let files: Vec<String> = files.iter().map(|(name, len)| format!("{}:{len}", name.display())).collect();
    files.join(" ")
}

fn kinds_of(result: io::Result<()>) -> io::ErrorKind {
    result.unwrap_err().kind()
}

// What a crash takes.

/// Readers see unsynced bytes; a loss of power takes them, a dead process does not, and the sync makes the difference.
#[test]
fn only_a_sync_makes_bytes_durable() {
    let (disk, file) = disk_with(b"old");
    write_all_at(&*file, b"new!", 0).unwrap();
    assert_eq!(disk.read_raw("/f").unwrap(), b"new!");
    assert_eq!(disk.fork_crashed(CrashMode::UnsyncedLost).read_raw("/f").unwrap(), b"old");
    assert_eq!(disk.fork_crashed(CrashMode::NothingLost).read_raw("/f").unwrap(), b"new!");
    file.sync_data().unwrap();
    assert_eq!(disk.unsynced_changes(), 0);
    assert_eq!(disk.fork_crashed(CrashMode::UnsyncedLost).read_raw("/f").unwrap(), b"new!");
    disk.check();
}

/// After the process died, what it had not synced can still be lost by a later loss of power.
#[test]
fn a_process_crash_syncs_nothing() {
    let (disk, file) = disk_with(b"old");
    write_all_at(&*file, b"new", 0).unwrap();
    let next_process = disk.fork_crashed(CrashMode::NothingLost);
    assert_eq!(next_process.fork_crashed(CrashMode::UnsyncedLost).read_raw("/f").unwrap(), b"old");
}

/// A sync of a file says nothing about its name: that needs a sync of the directory.
#[test]
fn a_name_needs_a_sync_of_its_directory() {
    let disk = SimFileSystem::new();
    let file = disk.open(path("/f"), OpenMode::CreateNew).unwrap();
    write_all_at(&*file, b"x", 0).unwrap();
    file.sync_all().unwrap();
    assert_eq!(names(&disk.fork_crashed(CrashMode::UnsyncedLost)), "");
    disk.sync_dir(path("/")).unwrap();
    assert_eq!(names(&disk.fork_crashed(CrashMode::UnsyncedLost)), "/f:1");
}

/// A sync of the directory says nothing about the bytes: the file may come back empty.
#[test]
fn a_durable_name_may_stand_for_an_empty_file() {
    let disk = SimFileSystem::new();
    let file = disk.open(path("/f"), OpenMode::CreateNew).unwrap();
    write_all_at(&*file, b"x", 0).unwrap();
    disk.sync_dir(path("/")).unwrap();
    assert_eq!(names(&disk.fork_crashed(CrashMode::UnsyncedLost)), "/f:0");
}

/// A new directory's name is in its parent: without that sync it is lost with all that was synced in it.
#[test]
fn a_directory_is_lost_with_what_it_holds() {
    let disk = SimFileSystem::new();
    disk.create_dir_all(path("/a/b")).unwrap();
    disk.open(path("/a/b/f"), OpenMode::CreateNew).unwrap();
    disk.sync_dir(path("/a/b")).unwrap();
    disk.sync_dir(path("/")).unwrap();
    let after = disk.fork_crashed(CrashMode::UnsyncedLost);
    assert!(after.exists(path("/a")).unwrap() && !after.exists(path("/a/b")).unwrap());
    assert_eq!(names(&after), "");
    disk.sync_dir(path("/a")).unwrap();
    assert_eq!(names(&disk.fork_crashed(CrashMode::UnsyncedLost)), "/a/b/f:0");
    for seed in 0..100 {
        disk.fork_crashed(random_subset(seed)).check();
    }
}

/// Two unsynced writes survive independently: neither, either, both. The second without the first is what a log must
/// expect of its tail.
#[test]
fn writes_are_lost_in_any_subset() {
    let (disk, file) = disk_with(&[0; 1024]);
    write_all_at(&*file, b"a", 0).unwrap();
    write_all_at(&*file, b"b", 512).unwrap();
    let seen: BTreeSet<(u8, u8)> =
        outcomes(&disk, random_subset).into_iter().flatten().map(|bytes| (bytes[0], bytes[512])).collect();
    assert_eq!(seen, BTreeSet::from([(0, 0), (0, b'b'), (b'a', 0), (b'a', b'b')]));
}

/// Within one write each sector survives or not; a lost one shows what was there before: old bytes in a recycled file.
#[test]
fn a_write_is_torn_at_sectors() {
    let (disk, file) = disk_with(&[1; 4 * 512]);
    write_all_at(&*file, &[2; 3 * 512], 256).unwrap();
    let mut seen = BTreeSet::new();
    for bytes in outcomes(&disk, random_subset).into_iter().flatten() {
        // The write covers half of the first sector, two whole ones, and half of the fourth.
        let parts = [&bytes[256..512], &bytes[512..1024], &bytes[1024..1536], &bytes[1536..1792]];
        assert!(parts.iter().all(|part| part.iter().all(|byte| *byte == part[0])), "torn inside a sector");
        assert!(bytes[..256].iter().chain(&bytes[1792..]).all(|&byte| byte == 1), "bytes beside the write changed");
        seen.insert(parts.map(|part| part[0]));
    }
    assert_eq!(seen.len(), 16, "every combination of the four sectors: {seen:?}");
}

/// An appended tail may be there with its length but without its bytes, as zeros; or cut; or whole.
#[test]
fn a_tail_may_be_zeros() {
    let (disk, file) = disk_with(b"");
    write_all_at(&*file, b"x", 0).unwrap();
    let seen = outcomes(&disk, random_subset);
    assert_eq!(seen, BTreeSet::from([Some(vec![]), Some(vec![0]), Some(vec![b'x'])]));
}

/// A length that was changed several times may come back as any of those it had, in the order of the changes.
#[test]
fn a_length_is_one_that_the_file_had() {
    let (disk, file) = disk_with(b"abcd");
    file.set_len(1).unwrap();
    file.allocate(3).unwrap();
    let seen = outcomes(&disk, random_subset);
    let expected = [&b"abcd"[..], b"a", b"a\0\0"];
    assert_eq!(seen, expected.into_iter().map(|bytes| Some(bytes.to_vec())).collect(), "what was cut is not undone");
}

/// Preallocated space reads as zeros, before and after a crash.
#[test]
fn preallocated_space_is_zeros() {
    let (disk, file) = disk_with(b"ab");
    file.allocate(10_000).unwrap();
    file.sync_data().unwrap();
    let bytes = disk.fork_crashed(CrashMode::UnsyncedLost).read_raw("/f").unwrap();
    assert!(bytes.len() == 10_000 && bytes.starts_with(b"ab") && bytes[2..].iter().all(|&byte| byte == 0));
}

/// Names come and go independently of each other.
#[test]
fn names_are_lost_in_any_subset() {
    let disk = SimFileSystem::new();
    disk.write_raw("/old", b"");
    disk.open(path("/new"), OpenMode::CreateNew).unwrap();
    disk.remove_file(path("/old")).unwrap();
    assert_eq!(names(&disk), "/new:0");
    let seen: BTreeSet<String> = (0..100).map(|seed| names(&disk.fork_crashed(random_subset(seed)))).collect();
    let expected = ["", "/new:0", "/old:0", "/new:0 /old:0"].map(str::to_owned);
    assert_eq!(seen, BTreeSet::from(expected));
}

/// A rename over an existing file: afterwards the name stands for the old file or the new one, never for none; and
/// the new one's old name may still be there.
#[test]
fn a_rename_leaves_the_old_or_the_new() {
    let disk = SimFileSystem::new();
    disk.write_raw("/CURRENT", b"1");
    disk.write_raw("/tmp", b"22");
    disk.rename(path("/tmp"), path("/CURRENT")).unwrap();
    assert_eq!(names(&disk), "/CURRENT:2");
    let seen: BTreeSet<String> = (0..100).map(|seed| names(&disk.fork_crashed(random_subset(seed)))).collect();
    let expected = ["/CURRENT:1 /tmp:2", "/CURRENT:2", "/CURRENT:2 /tmp:2"].map(str::to_owned);
    assert_eq!(seen, BTreeSet::from(expected));
    disk.sync_dir(path("/")).unwrap();
    assert_eq!(names(&disk.fork_crashed(CrashMode::UnsyncedLost)), "/CURRENT:2");
}

/// The changes of one name keep their order: a new file under the old name of a rename means that the rename is done.
/// Otherwise the renamed file would have neither name.
#[test]
fn the_changes_of_a_name_keep_their_order() {
    let disk = SimFileSystem::new();
    disk.write_raw("/a", b"1");
    disk.rename(path("/a"), path("/b")).unwrap();
    disk.open(path("/a"), OpenMode::CreateNew).unwrap();
    let seen: BTreeSet<String> = (0..200).map(|seed| names(&disk.fork_crashed(random_subset(seed)))).collect();
    let expected = ["/a:1", "/b:1", "/a:1 /b:1", "/a:0 /b:1"].map(str::to_owned);
    assert_eq!(seen, BTreeSet::from(expected));
}

/// A rename between directories is one transaction: a sync of either makes both ends durable, with what it builds on.
#[test]
fn a_rename_between_directories_is_one_step() {
    for synced in ["/a", "/b"] {
        let disk = SimFileSystem::new();
        disk.create_dir_all(path("/a")).unwrap();
        disk.create_dir_all(path("/b")).unwrap();
        disk.sync_everything();
        disk.open(path("/a/f"), OpenMode::CreateNew).unwrap();
        disk.rename(path("/a/f"), path("/b/f")).unwrap();
        disk.sync_dir(path(synced)).unwrap();
        disk.check();
        assert_eq!(names(&disk.fork_crashed(CrashMode::UnsyncedLost)), "/b/f:0", "after a sync of {synced}");
    }
}

/// If the disk wrote in order, what survives is a prefix over all files and names; the last write may be torn.
#[test]
fn oldest_first_keeps_a_prefix() {
    let (disk, file) = disk_with(&[0; 1024]);
    write_all_at(&*file, &[1; 1024], 0).unwrap();
    let other = disk.open(path("/g"), OpenMode::CreateNew).unwrap();
    write_all_at(&*other, b"gg", 0).unwrap();
    write_all_at(&*file, &[2], 0).unwrap();
    let mut seen = BTreeSet::new();
    for seed in 0..300 {
        let after = disk.fork_crashed(oldest_first(seed));
        let f = after.read_raw("/f").unwrap();
        seen.insert((f[0], f[512], after.read_raw("/g")));
    }
    let g = |bytes: &[u8]| Some(bytes.to_vec());
    let expected = [
        (0, 0, None),
        (1, 0, None),
        (1, 1, None),
        (1, 1, g(b"")),
        (1, 1, g(b"\0\0")),
        (1, 1, g(b"gg")),
        (2, 1, g(b"gg")),
    ];
    assert_eq!(seen, BTreeSet::from(expected));
}

/// The same seed takes the same, another seed something else.
#[test]
fn a_seed_decides_what_is_lost() {
    let (disk, file) = disk_with(&[1; 64 * 512]);
    write_all_at(&*file, &[2; 64 * 512], 0).unwrap();
    let hash = |seed| disk.fork_crashed(random_subset(seed)).state_hash();
    assert!((0..50).all(|seed| hash(seed) == hash(seed)));
    let seen: BTreeSet<u64> = (0..500).map(hash).collect();
    assert!(seen.len() > 100, "only {} outcomes", seen.len());
}

/// A crash in place frees locks and kills handles: the old process can change nothing any more.
#[test]
fn handles_and_locks_die_in_a_crash() {
    let (disk, file) = disk_with(b"x");
    let lock = disk.lock(path("/LOCK"), "me").unwrap();
    disk.crash(CrashMode::UnsyncedLost);
    assert!(write_all_at(&*file, b"y", 0).is_err() && file.sync_data().is_err() && file.len().is_err());
    let _second = disk.lock(path("/LOCK"), "you").unwrap();
    drop((lock, file));
    assert!(disk.lock(path("/LOCK"), "them").is_err(), "the dead process's guard freed the lock of the living");
    assert_eq!(disk.read_raw("/f").unwrap(), b"x");
}

/// A halted disk refuses everything, so that what an abandoned engine does on its way out cannot be seen.
#[test]
fn a_halted_disk_refuses_everything() {
    let (disk, file) = disk_with(b"x");
    disk.halt();
    assert!(write_all_at(&*file, b"y", 0).is_err() && disk.exists(path("/f")).is_err());
    disk.crash(CrashMode::NothingLost);
    assert_eq!(disk.open(path("/f"), OpenMode::Read).unwrap().len().unwrap(), 1);
}

// Forks.

/// A fork and its origin go their own ways, in bytes, names, locks and counts; and it has no hook.
#[test]
fn a_fork_is_independent() {
    let (disk, file) = disk_with(b"both");
    let _lock = disk.lock(path("/LOCK"), "me").unwrap();
    disk.set_hook(|_, _| Verdict::Fail(DiskError::Io));
    let fork = disk.fork();
    disk.clear_hook();
    assert_eq!(fork.state_hash(), disk.state_hash());
    assert_eq!(fork.counts(), OpCounts::default());
    write_all_at(&*file, b"mine", 0).unwrap();
    let _other_lock = fork.lock(path("/LOCK"), "you").unwrap();
    let theirs = fork.open(path("/f"), OpenMode::ReadWrite).unwrap();
    write_all_at(&*theirs, b"that", 0).unwrap();
    fork.remove_file(path("/f")).unwrap();
    assert_eq!(disk.read_raw("/f").unwrap(), b"mine");
    assert_eq!(disk.lock_holder(path("/LOCK")).unwrap(), "me");
    assert_ne!(fork.state_hash(), disk.state_hash());
    disk.check();
    fork.check();
}

/// Forking and crashing costs what is unsynced, not what is stored: a fork shares the whole disk, a crash all clean
/// files. 100,000 crash points must cost seconds.
#[test]
fn forks_share_what_is_not_changed() {
    let (disk, file) = disk_with(&vec![7; 16 << 20]);
    write_all_at(&*file, &[8; 1000], 5000).unwrap();
    let pointer = |disk: &SimFileSystem| Arc::as_ptr(&disk.state().disk);
    assert_eq!(pointer(&disk.fork()), pointer(&disk), "a fork copied the disk");
    for number in 0..40 {
        disk.write_raw(format!("/{number}"), b"another");
    }
    let after = disk.fork_crashed(random_subset(1));
    let shared = |disk: &SimFileSystem, file: u64| Arc::as_ptr(&disk.state().disk.files[&file]);
    assert!((2..40).all(|file| shared(&after, file) == shared(&disk, file)), "a crash copied clean files");
}

/// The hook sees each operation before it happens, with running numbers, and may fork the disk at that moment.
#[test]
fn the_hook_sees_every_operation_first() {
    let disk = SimFileSystem::new();
    let log = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&log);
    disk.set_hook(move |disk, op| {
        let files = names(&disk.fork());
        let line = format!("{} {:?} {} {}+{} on [{files}]", op.number, op.kind, op.path.display(), op.offset, op.len);
        seen.lock().unwrap().push(line);
        Verdict::Pass
    });
    let file = disk.open(path("a"), OpenMode::CreateNew).unwrap();
    write_all_at(&*file, b"xyz", 7).unwrap();
    read_exact_at(&*file, &mut [0; 2], 1).unwrap();
    file.allocate(20).unwrap();
    file.sync_data().unwrap();
    disk.sync_dir(path("")).unwrap();
    disk.rename(path("a"), path("b")).unwrap();
    assert_eq!(
        log.lock().unwrap().join("\n"),
        "0 Create /a 0+0 on []\n\
         1 Write /a 7+3 on [/a:0]\n\
         0 Read /a 1+2 on [/a:10]\n\
         2 Allocate /a 0+20 on [/a:10]\n\
         3 Sync /a 0+0 on [/a:20]\n\
         4 SyncDir / 0+0 on [/a:20]\n\
         5 Rename /a 0+0 on [/a:20]"
    );
    assert_eq!(disk.mutations(), 6);
}

/// Operations are counted by kind, so that a test can say how many syncs a group of writes may cost.
#[test]
fn operations_are_counted_by_kind() {
    let (disk, file) = disk_with(b"abc");
    write_all_at(&*file, b"xyz", 0).unwrap();
    file.sync_data().unwrap();
    file.sync_all().unwrap();
    read_exact_at(&*file, &mut [0; 2], 1).unwrap();
    let expected =
        OpCounts { opens: 1, writes: 1, written_bytes: 3, syncs: 2, reads: 1, read_bytes: 2, ..OpCounts::default() };
    assert_eq!(disk.counts(), expected);
}

// Faults.

/// Any operation can be made to fail, the n-th of its kind, once or for ever, with the error that the system would
/// give, and then changes nothing.
#[test]
fn the_nth_operation_fails() {
    let (disk, file) = disk_with(b"old");
    disk.inject(Injection::new(&[OpKind::Write], Verdict::Fail(DiskError::NoSpace)).after(1).once());
    write_all_at(&*file, b"1", 0).unwrap();
    assert_eq!(kinds_of(write_all_at(&*file, b"2", 0)), io::ErrorKind::StorageFull);
    write_all_at(&*file, b"3", 1).unwrap();
    assert_eq!(disk.read_raw("/f").unwrap(), b"13d");

    disk.inject(Injection::new(OpKind::MUTATING, Verdict::Fail(DiskError::ReadOnly)).path("f"));
    for _ in 0..3 {
        assert_eq!(kinds_of(write_all_at(&*file, b"4", 0)), io::ErrorKind::ReadOnlyFilesystem);
        assert_eq!(kinds_of(file.sync_data()), io::ErrorKind::ReadOnlyFilesystem);
        assert_eq!(kinds_of(disk.remove_file(path("/f"))), io::ErrorKind::ReadOnlyFilesystem);
    }
    disk.create_dir_all(path("/other")).unwrap();
    disk.clear_injections();
    write_all_at(&*file, b"5", 0).unwrap();
}

/// Each kind of operation passes through the door where faults strike: none can be forgotten.
#[test]
fn every_kind_of_operation_can_fail() {
    for &kind in OpKind::MUTATING.iter().chain(OpKind::READING) {
        let (disk, file) = disk_with(b"old");
        let before = disk.state_hash();
        disk.inject(Injection::new(&[kind], Verdict::Fail(DiskError::Access)));
        let (root, f) = (path("/"), path("/f"));
        let result = match kind {
            OpKind::Open => disk.open(f, OpenMode::Read).map(drop),
            OpKind::Create => disk.open(path("/g"), OpenMode::CreateNew).map(drop),
            OpKind::Remove => disk.remove_file(f),
            OpKind::Rename => disk.rename(f, path("/g")),
            OpKind::HardLink => disk.hard_link(f, path("/g")),
            OpKind::CreateDir => disk.create_dir_all(path("/d")),
            OpKind::List => disk.list(root).map(drop),
            OpKind::Stat => {
                assert!(disk.exists(f).is_err() && disk.len(f).is_err());
                file.len().map(drop)
            }
            OpKind::Read => file.read_at(&mut [0], 0).map(drop),
            OpKind::Write => file.write_at(b"x", 0).map(drop),
            OpKind::Sync => {
                assert!(file.sync_all().is_err());
                file.sync_data()
            }
            OpKind::SyncDir => disk.sync_dir(root),
            OpKind::Allocate => file.allocate(9),
            OpKind::SetLen => file.set_len(9),
            OpKind::Lock => disk.lock(path("/LOCK"), "me").map(drop),
            OpKind::AvailableSpace => disk.available_space(root).map(drop),
        };
        assert_eq!(kinds_of(result), io::ErrorKind::PermissionDenied, "{kind:?}");
        assert_eq!(disk.state_hash(), before, "{kind:?} failed and yet changed something");
    }
}

/// Short transfers and interruptions are what the helpers go on after.
#[test]
fn short_transfers_and_interruptions_are_survived() {
    let (disk, file) = disk_with(b"");
    disk.inject(Injection::new(&[OpKind::Write, OpKind::Read], Verdict::Fail(DiskError::Interrupted)).times(2));
    disk.inject(Injection::new(&[OpKind::Write, OpKind::Read], Verdict::Short(2)));
    write_all_at(&*file, b"seven b", 0).unwrap();
    let mut bytes = [0; 7];
    read_exact_at(&*file, &mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"seven b");
    assert_eq!((disk.counts().writes, disk.counts().reads), (6, 4));
}

/// A write may fail after a part of it was done.
#[test]
fn a_torn_write_fails_half_way() {
    let (disk, file) = disk_with(b"----");
    disk.inject(Injection::new(&[OpKind::Write], Verdict::Torn(2, DiskError::Io)));
    assert!(file.write_at(b"xxxx", 0).is_err());
    assert_eq!(disk.read_raw("/f").unwrap(), b"xx--");
}

/// A failed sync drops the data, readers still see it, the next sync succeeds without it, and the next crash or a
/// dropped cache shows the loss. Who retries a sync and acknowledges has lied.
#[test]
fn a_failed_sync_drops_the_data_and_then_lies() {
    let (disk, file) = disk_with(b"aaaa");
    write_all_at(&*file, b"lost+", 0).unwrap();
    disk.inject(Injection::new(&[OpKind::Sync], Verdict::FailAndDrop(DiskError::Io)).once());
    assert!(file.sync_data().is_err());
    assert_eq!(disk.read_raw("/f").unwrap(), b"lost+");
    write_all_at(&*file, b"!", 3).unwrap();
    file.sync_data().unwrap();
    disk.check();
    assert_eq!(disk.fork_crashed(CrashMode::NothingLost).read_raw("/f").unwrap(), b"los!+");
    assert_eq!(
        disk.fork_crashed(CrashMode::UnsyncedLost).read_raw("/f").unwrap(),
        b"aaa!\0",
        "the length was metadata"
    );
    disk.drop_caches();
    assert_eq!(disk.read_raw("/f").unwrap(), b"aaa!\0");
    disk.check();
}

/// A sync that lies says yes and makes nothing durable; an honest one later makes up for it.
#[test]
fn a_lying_sync_makes_nothing_durable() {
    let (disk, file) = disk_with(b"old");
    disk.inject(Injection::new(&[OpKind::Sync, OpKind::SyncDir], Verdict::Lie).times(2));
    write_all_at(&*file, b"new", 0).unwrap();
    disk.open(path("/g"), OpenMode::CreateNew).unwrap();
    file.sync_data().unwrap();
    disk.sync_dir(path("/")).unwrap();
    assert_eq!(names(&disk.fork_crashed(CrashMode::UnsyncedLost)), "/f:3");
    assert_eq!(disk.read_durable_raw("/f").unwrap(), b"old");
    file.sync_data().unwrap();
    disk.sync_dir(path("/")).unwrap();
    assert_eq!(names(&disk.fork_crashed(CrashMode::UnsyncedLost)), "/f:3 /g:0");
    assert_eq!(disk.read_durable_raw("/f").unwrap(), b"new");
}

/// Reads and writes that go astray: lost, stale, from and to another place. All report success.
#[test]
fn transfers_go_astray() {
    let (disk, file) = disk_with(b"0123456789");
    disk.write_raw("/other", b"abcde");
    let there = |offset| Verdict::Misdirect { path: "/other".into(), offset };
    let read = |len: usize, offset| {
        let mut bytes = vec![b'?'; len];
        read_exact_at(&*file, &mut bytes, offset).unwrap();
        String::from_utf8(bytes).unwrap()
    };
    disk.inject(Injection::new(&[OpKind::Read], there(1)).offset(4).once());
    assert_eq!((read(2, 0), read(2, 4), read(2, 4)), ("01".into(), "bc".into(), "45".into()));
    disk.inject(Injection::new(&[OpKind::Read], there(4)).once());
    assert_eq!(read(3, 0), "e\0\0", "as long as the right answer");
    disk.inject(Injection::new(&[OpKind::Write], Verdict::Lose).once());
    write_all_at(&*file, b"XX", 0).unwrap();
    assert_eq!(read(3, 0), "012");
    disk.inject(Injection::new(&[OpKind::Write], there(3)).once());
    write_all_at(&*file, b"YYY", 0).unwrap();
    assert_eq!((read(3, 0).as_bytes(), &disk.read_raw("/other").unwrap()[..]), (&b"012"[..], &b"abcYYY"[..]));
    write_all_at(&*file, b"new", 0).unwrap();
    disk.inject(Injection::new(&[OpKind::Read], Verdict::Stale).once());
    assert_eq!((read(3, 0), read(3, 0)), ("012".into(), "new".into()));
}

/// A verdict that cannot happen to an operation is a mistake in the test, not a fault that silently does nothing.
#[test]
#[should_panic(expected = "cannot happen to an operation of kind Write")]
fn an_impossible_verdict_panics() {
    Injection::new(&[OpKind::Write], Verdict::Lie);
}

/// Space runs out for writes and for preallocation, not for overwriting what is allocated; it comes back when a file is
/// removed and closed, cut, or the disk grows.
#[test]
fn space_runs_out_and_comes_back() {
    let (disk, file) = disk_with(b"");
    disk.set_capacity(3 * 4096);
    file.allocate(2 * 4096).unwrap();
    assert_eq!((disk.used_bytes(), disk.available_space(path("/")).unwrap()), (8192, 4096));
    assert_eq!(file.write_at(&[1; 8000], 4096).unwrap(), 8000, "the third page is free");
    assert_eq!(file.write_at(&[1; 8192], 8192).unwrap(), 4096, "a short write: the fourth is not");
    assert_eq!(kinds_of(write_all_at(&*file, b"x", 3 * 4096)), io::ErrorKind::StorageFull);
    assert_eq!(kinds_of(file.allocate(4 * 4096)), io::ErrorKind::StorageFull);
    write_all_at(&*file, &[2; 3 * 4096], 0).unwrap();

    let other = disk.open(path("/g"), OpenMode::CreateNew).unwrap();
    assert_eq!(kinds_of(write_all_at(&*other, b"x", 0)), io::ErrorKind::StorageFull);
    file.set_len(4097).unwrap();
    write_all_at(&*other, b"x", 0).unwrap();
    disk.remove_file(path("/f")).unwrap();
    assert_eq!(disk.used_bytes(), 3 * 4096, "an open file keeps its space");
    drop(file);
    assert_eq!(disk.used_bytes(), 4096);
    disk.set_capacity(0);
    assert_eq!(kinds_of(write_all_at(&*other, b"x", 5000)), io::ErrorKind::StorageFull);
    disk.set_capacity(1 << 20);
    write_all_at(&*other, b"x", 5000).unwrap();
    disk.check();
}

/// A flipped bit is there for readers, after a sync and after a crash; elsewhere nothing changes.
#[test]
fn a_flipped_bit_stays_flipped() {
    let (disk, file) = disk_with(b"aaaa");
    write_all_at(&*file, b"bb", 2).unwrap();
    disk.flip_bit("/f", 0, 1);
    disk.flip_bit("/f", 3, 0);
    disk.flip_bit("/f", 99, 0);
    disk.check();
    assert_eq!(disk.read_raw("/f").unwrap(), b"cabc");
    assert_eq!(disk.fork_crashed(CrashMode::UnsyncedLost).read_raw("/f").unwrap(), b"caa`");
    file.sync_data().unwrap();
    assert_eq!(disk.fork_crashed(CrashMode::UnsyncedLost).read_raw("/f").unwrap(), b"cabc");
}

/// Files can be replaced, cut, removed and swapped behind the engine's back, durably.
#[test]
fn files_change_behind_the_engines_back() {
    let (disk, file) = disk_with(b"first");
    write_all_at(&*file, b"unsynced", 0).unwrap();
    disk.write_raw("/g", b"second");
    disk.write_raw("/h", b"third");
    disk.truncate_raw("/g", 3);
    disk.swap_raw("/f", "/g");
    disk.remove_raw("/h");
    disk.check();
    for disk in [disk.fork(), disk.fork_crashed(CrashMode::NothingLost)] {
        assert_eq!(names(&disk), "/f:3 /g:8");
    }
    let after = disk.fork_crashed(CrashMode::UnsyncedLost);
    assert_eq!((after.read_raw("/f").unwrap(), after.read_raw("/g").unwrap()), (b"sec".to_vec(), b"first".to_vec()));
    disk.write_raw("/g", b"replaced");
    let mut bytes = [0; 8];
    read_exact_at(&*file, &mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"replaced", "a handle follows its file");
}

/// A removed file lives until its last handle is gone, and its name can be used again.
#[test]
fn a_removed_file_lives_while_it_is_open() {
    let (disk, file) = disk_with(b"x");
    disk.remove_file(path("/f")).unwrap();
    disk.sync_dir(path("/")).unwrap();
    let _new = disk.open(path("/f"), OpenMode::CreateNew).unwrap();
    let mut byte = [0];
    read_exact_at(&*file, &mut byte, 0).unwrap();
    assert_eq!((&byte, disk.state().disk.files.len()), (b"x", 2));
    drop(file);
    assert_eq!(disk.state().disk.files.len(), 1, "the bytes are gone with the last handle");
}

/// Many threads on one disk: no deadlock, no lost write.
#[test]
fn the_disk_can_be_shared_by_threads() {
    let (disk, file) = disk_with(b"");
    let writes = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..4u8 {
            let (disk, file, writes) = (&disk, &file, &writes);
            scope.spawn(move || {
                for number in 0..200u64 {
                    write_all_at(&**file, &[thread + 1], number * 4 + u64::from(thread)).unwrap();
                    file.sync_data().unwrap();
                    disk.fork_crashed(random_subset(number)).check();
                    writes.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(writes.into_inner(), 800);
    assert_eq!(disk.read_durable_raw("/f").unwrap(), [1, 2, 3, 4].repeat(200));
}

// The same answers as the real file system.

/// One script, two file systems, one transcript: values and kinds of errors.
#[test]
fn the_simulated_disk_answers_like_the_real_one() {
    let directory = tempfile::tempdir().unwrap();
    let real = transcript(&RealFileSystem::new(), directory.path());
    let disk = SimFileSystem::new();
    disk.create_dir_all(path("/base")).unwrap();
    let simulated = transcript(&disk, path("/base"));
    assert_eq!(simulated, real);
    assert!(real.lines().count() > 45);
    disk.check();
}

fn transcript(fs: &dyn FileSystem, base: &Path) -> String {
    let mut lines = Vec::new();
    let at = |name: &str| base.join(name);
    macro_rules! say {
        ($what:expr, $result:expr) => {
            lines.push(match $result {
                Ok(value) => format!("{}: {:?}", $what, value),
                Err(error) => format!("{}: {:?}", $what, error.kind()),
            })
        };
    }
    say!("open missing", fs.open(&at("a"), OpenMode::Read).map(drop));
    say!("open missing for writing", fs.open(&at("a"), OpenMode::ReadWrite).map(drop));
    say!("create in missing directory", fs.open(&at("no/a"), OpenMode::CreateNew).map(drop));
    let file = fs.open(&at("a"), OpenMode::CreateNew).unwrap();
    say!("create existing", fs.open(&at("a"), OpenMode::CreateNew).map(drop));
    say!("create under a file", fs.open(&at("a/b"), OpenMode::CreateNew).map(drop));
    say!("open under a file", fs.open(&at("a/b"), OpenMode::Read).map(drop));
    say!("exists under a file", fs.exists(&at("a/b")));
    say!("empty", file.is_empty());
    say!("write", file.write_at(b"hello", 3));
    say!("write nothing far away", file.write_at(b"", 99));
    say!("length", file.len());
    let mut buffer = [b'?'; 10];
    say!("read", file.read_at(&mut buffer, 1));
    say!("bytes", Ok::<_, io::Error>(buffer));
    say!("read at the end", file.read_at(&mut buffer, 8));
    say!("read beyond the end", file.read_at(&mut buffer, 80));
    say!("read too much", read_exact_at(&*file, &mut buffer, 0));
    say!("allocate", file.allocate(10_000));
    say!("allocate less", file.allocate(10));
    say!("allocate nothing", file.allocate(0));
    say!("length", fs.len(&at("a")));
    say!("cut", file.set_len(5));
    say!("extend", file.set_len(9));
    say!("read", file.read_at(&mut buffer, 0));
    say!("bytes", Ok::<_, io::Error>(buffer));
    say!("sync", file.sync_data());
    say!("sync all", file.sync_all());
    let reader = fs.open(&at("a"), OpenMode::Read).unwrap();
    say!("write through a reader", reader.write_at(b"x", 0));
    say!("create directories", fs.create_dir_all(&at("d/e")));
    say!("create directories again", fs.create_dir_all(&at("d/e")));
    say!("create a directory over a file", fs.create_dir_all(&at("a")));
    say!("create a directory under a file", fs.create_dir_all(&at("a/x")));
    say!("open a directory", fs.open(&at("d"), OpenMode::Read).map(drop));
    say!("open a directory for writing", fs.open(&at("d"), OpenMode::ReadWrite).map(drop));
    say!("create over a directory", fs.open(&at("d"), OpenMode::CreateNew).map(drop));
    say!("remove a directory", fs.remove_file(&at("d")).map_err(|_| io::Error::from(io::ErrorKind::Other)));
    say!("length of a directory", fs.len(&at("d")));
    say!("rename", fs.rename(&at("a"), &at("d/b")));
    say!("rename missing", fs.rename(&at("a"), &at("c")));
    say!("rename into a missing directory", fs.rename(&at("d/b"), &at("no/c")));
    say!("rename over a directory", fs.rename(&at("d/b"), &at("d/e")));
    say!("link", fs.hard_link(&at("d/b"), &at("c")));
    say!("link again", fs.hard_link(&at("d/b"), &at("c")));
    say!("link missing", fs.hard_link(&at("x"), &at("y")));
    say!("write after the rename", file.write_at(b"W", 0));
    say!("the link sees it", fs.open(&at("c"), OpenMode::Read).unwrap().read_at(&mut buffer, 0));
    say!("bytes", Ok::<_, io::Error>(buffer));
    say!("rename to a link of itself", fs.rename(&at("c"), &at("d/b")));
    say!("both are still there", Ok::<_, io::Error>((fs.exists(&at("c")).unwrap(), fs.exists(&at("d/b")).unwrap())));
    for name in ["z", "B", "10", "9"] {
        fs.open(&at(name), OpenMode::CreateNew).unwrap();
    }
    say!("rename over a file", fs.rename(&at("z"), &at("9")));
    say!("list", fs.list(base));
    say!("list inside", fs.list(&at("d")));
    say!("list missing", fs.list(&at("no")));
    say!("list a file", fs.list(&at("c")));
    say!("remove", fs.remove_file(&at("c")));
    say!("remove again", fs.remove_file(&at("c")));
    say!("removed and open", reader.read_at(&mut buffer, 0));
    say!("sync directory", fs.sync_dir(base));
    say!("sync missing directory", fs.sync_dir(&at("no")));
    say!("sync a file as a directory", fs.sync_dir(&at("9")));
    let lock = fs.lock(&at("LOCK"), "holder one");
    say!("lock", lock.as_ref().map(|_| ()).map_err(|error| io::Error::from(error.kind())));
    say!("lock again", fs.lock(&at("LOCK"), "holder two").map(drop));
    say!("holder", fs.lock_holder(&at("LOCK")));
    drop(lock);
    say!("lock after release", fs.lock(&at("LOCK"), "three").map(drop));
    say!("holder", fs.lock_holder(&at("LOCK")));
    say!("lock in a missing directory", fs.lock(&at("no/LOCK"), "x").map(drop));
    say!("lock a directory", fs.lock(&at("d"), "x").map(drop));
    lines.join("\n")
}
