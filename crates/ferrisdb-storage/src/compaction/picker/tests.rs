//! Levels drawn as text in, plans as text out.
//!
//! A line is a level: `L1: 4:a-f 64 t=50` are a table with number 4, the keys a to f (`a-f)` without f itself), 64 MiB, 50 tombstones
//! in 100 entries. Further words: `e=` entries, `t=` tombstones, `d=` range tombstones, `v=1-9` versions, `r=` L0 rank (the
//! number, unless given), `b=` the blob file it refers to.

use expect_test::{Expect, expect};
use ferrisdb_core::Version;

use super::*;

const MIB: u64 = 1 << 20;

fn v(number: u64) -> Version {
    Version::from_u64(number)
}

fn draw(text: &str) -> Levels<TableMeta> {
    let mut tables: Vec<(u8, Arc<TableMeta>)> = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (level, rest) = line.split_once(':').unwrap();
        let level: u8 = level.strip_prefix('L').unwrap().parse().unwrap();
        let mut words = rest.split_whitespace().peekable();
        while let Some(word) = words.next() {
            let (number, bounds) = word.split_once(':').unwrap();
            let (smallest, largest) = bounds.split_once('-').unwrap();
            let number: u64 = number.parse().unwrap();
            let mut meta = TableMeta {
                number: FileNumber(number),
                smallest: smallest.as_bytes().into(),
                largest: largest.trim_end_matches(')').as_bytes().into(),
                largest_exclusive: largest.ends_with(')'),
                smallest_version: v(number * 10),
                largest_version: v(number * 10 + 9),
                entries: 100,
                l0_rank: number,
                file_bytes: words.next().unwrap().parse::<u64>().unwrap() * MIB,
                ..TableMeta::default()
            };
            while let Some((name, value)) = words.peek().and_then(|word| word.split_once('=')) {
                match name {
                    "e" => meta.entries = value.parse().unwrap(),
                    "t" => meta.tombstones = value.parse().unwrap(),
                    "d" => meta.range_tombstones = value.parse().unwrap(),
                    "r" => meta.l0_rank = value.parse().unwrap(),
                    "b" => meta.blob_references = vec![(FileNumber(value.parse().unwrap()), 1)],
                    "v" => {
                        let (from, to) = value.split_once('-').unwrap();
                        meta.smallest_version = v(from.parse().unwrap());
                        meta.largest_version = v(to.parse().unwrap());
                    }
                    _ => panic!("{name}"),
                }
                words.next();
            }
            tables.push((level, Arc::new(meta)));
        }
    }
    let levels = Levels::new(tables);
    levels.check();
    levels
}

fn options() -> PickerOptions {
    PickerOptions { tombstones_min: 10, ..PickerOptions::default() }
}

/// Everything that would be started at once, one plan after the other, with a floor above every version.
fn plans(text: &str, hints: Hints<'_>) -> String {
    plans_with(&draw(text), &options(), &Retention::new(v(10_000), []), hints)
}

fn plans_with(levels: &Levels<TableMeta>, options: &PickerOptions, retention: &Retention, hints: Hints<'_>) -> String {
    let mut busy = Vec::new();
    while let Some(plan) = pick(levels, options, retention, &busy, hints) {
        busy.push(plan);
    }
    let lines: Vec<String> = busy.iter().map(|plan| format!("{plan}\n")).collect();
    if lines.is_empty() { "nothing\n".to_owned() } else { lines.concat() }
}

#[track_caller]
fn assert_plans(text: &str, expected: &Expect) {
    expected.assert_eq(&plans(text, Hints::default()));
}

/// Three sorted runs in L0 are left alone; the fourth sends all to the bottom, which is the base as long as there is little data.
#[test]
fn l0_goes_to_the_base_level() {
    assert_plans(
        "L0: 3:a-z 34 2:a-z 34 1:a-z 34",
        &expect![[r#"
        nothing
    "#]],
    );
    assert_plans(
        "L0: 4:a-z 34 3:a-z 34 2:a-z 34 1:a-z 34",
        &expect![[r#"
        L0: rewrite L0 [4 3 2 1] → L6, bottom, 2 parts
    "#]],
    );
    assert_plans(
        "L0: 9:a-z 34 8:a-z 34 7:a-z 34 6:a-z 34\nL6: 1:a-f 60 2:g-m 60",
        &expect![[r#"
        L0: rewrite L0 [9 8 7 6] + L6 [1 2] → L6, bottom, 2 parts, split at g
    "#]],
    );
}

/// Many small runs over a large base are merged with each other, newest first, as long as each run removed costs no more than the
/// one before; once they amount to a quarter of what they would have rewritten, they go down.
#[test]
fn small_runs_do_not_rewrite_a_large_base() {
    assert_plans(
        "L0: 9:a-z 1 8:a-z 1 7:a-z 1 6:a-z 20\nL6: 1:a-f 60 2:g-m 60",
        &expect![[r#"
            intra-L0: rewrite L0 [9 8 7] → L0
        "#]],
    );
    assert_plans(
        "L0: 9:a-z 1 8:a-z 1 7:a-z 1 6:a-z 27\nL6: 1:a-f 60 2:g-m 60",
        &expect![[r#"
            L0: rewrite L0 [9 8 7 6] + L6 [1 2] → L6, bottom, 2 parts, split at g
        "#]],
    );
    // Only what they overlap counts.
    assert_plans(
        "L0: 9:a-c 1 8:a-c 1 7:a-c 1 6:a-c 1\nL6: 1:a-f 16 2:g-m 60",
        &expect![[r#"
            L0: rewrite L0 [9 8 7 6] + L6 [1] → L6, bottom
        "#]],
    );
}

/// Tables that come in key order move down without a byte being copied.
#[test]
fn sorted_loads_are_moved() {
    assert_plans(
        "L0: 4:j-k 60 3:g-h 60 2:d-e 60 1:a-b 60",
        &expect![[r#"
        L0: move L0 [1] → L6
    "#]],
    );
    // Not with tombstones that rewriting over nothing drops.
    assert_plans(
        "L0: 4:j-k 60 3:g-h 60 2:d-e 60 1:a-b 60 t=20",
        &expect![[r#"
        L0: rewrite L0 [1] → L6, bottom
    "#]],
    );
}

/// Above 256 MiB at the bottom, L0 goes to L5; above 2.5 GiB, to L4.
#[test]
fn the_base_level_follows_the_data() {
    let show = |text: &str| {
        let targets = targets(&draw(text), &options(), &[]);
        let bytes: Vec<String> = targets.bytes[1..6].iter().map(|bytes| (bytes / MIB).to_string()).collect();
        format!("base L{}, targets L1-L5 in MiB: {}", targets.base, bytes.join(" "))
    };
    expect!["base L6, targets L1-L5 in MiB: 0 0 0 0 0"].assert_eq(&show(""));
    expect!["base L6, targets L1-L5 in MiB: 0 0 0 0 0"].assert_eq(&show("L6: 1:a-b 256"));
    expect!["base L5, targets L1-L5 in MiB: 0 0 0 0 256"].assert_eq(&show("L6: 1:a-b 300"));
    expect!["base L4, targets L1-L5 in MiB: 0 0 0 256 900"].assert_eq(&show("L6: 1:a-b 9000"));
    expect!["base L3, targets L1-L5 in MiB: 0 0 256 900 9000"].assert_eq(&show("L6: 1:a-b 90000"));
    // Data that is left in L3 by a larger past must not be passed.
    expect!["base L3, targets L1-L5 in MiB: 0 0 0 0 0"].assert_eq(&show("L3: 2:a-b 1\nL6: 1:a-b 100"));
}

/// A level above its target gives what costs least: the table with the fewest bytes under it, or with many tombstones.
#[test]
fn the_cheapest_table_goes_down() {
    let below = "L6: 10:a-c 90 11:d-f 90 12:g-i 90 13:j-l 90 14:m-z 400";
    assert_plans(
        &format!("L5: 1:a-e 64 2:f-g 64 3:h-i 64 4:k-l 64 5:y-z 64\n{below}"),
        &expect![[r#"
        level size: rewrite L5 [3] + L6 [12] → L6, bottom, 2 parts, split at h
    "#]],
    );
    assert_plans(
        &format!("L5: 1:a-e 64 t=100 2:f-g 64 3:h-i 64 4:k-l 64 t=40 5:y-z 64\n{below}"),
        &expect![[r#"
        level size: rewrite L5 [4] + L6 [13] → L6, bottom, 2 parts, split at k
    "#]],
    );
}

/// A level that the targets have no use for is emptied.
#[test]
fn upper_levels_are_drained() {
    assert_plans(
        "L3: 2:a-b 1 3:d-e 1\nL6: 1:c-f 100",
        &expect![[r#"
        drain: move L3 [2] → L4
        drain: move L3 [3] → L4
    "#]],
    );
}

/// While the way down is taken, L0 is merged within itself, but only from two runs above the trigger, never the tables that are on
/// their way, and not a large old run for the sake of small new ones.
#[test]
fn intra_l0_when_the_base_is_busy() {
    let bottom = "L6: 1:a-z 200";
    assert_plans(
        &format!("L0: 14:a-z 30 13:a-z 30 12:a-z 30 11:a-z 30 10:a-z 30\n{bottom}"),
        &expect![[r#"
        L0: rewrite L0 [14 13 12 11 10] + L6 [1] → L6, bottom, 2 parts
    "#]],
    );
    let levels = draw(&format!(
        "L0: 18:a-z 30 17:a-z 30 16:a-z 30 15:a-z 30 14:a-z 200 13:a-z 30 12:a-z 30 11:a-z 30 10:a-z 30\n{bottom}"
    ));
    let retention = Retention::new(v(0), []);
    let four = PickerOptions { compaction_bytes_max: 120 * MIB, ..options() };
    expect![[r#"
        L0: rewrite L0 [13 12 11 10] + L6 [1] → L6, bottom, 2 parts
        intra-L0: rewrite L0 [18 17 16 15] → L0
    "#]]
    .assert_eq(&plans_with(&levels, &four, &retention, Hints::default()));
    // The outputs keep their place between newer and older tables.
    let busy: Vec<CompactionPlan> = pick(&levels, &four, &retention, &[], Hints::default()).into_iter().collect();
    let intra = pick(&levels, &four, &retention, &busy, Hints::default()).unwrap();
    assert_eq!((intra.reason, intra.output_rank), (Reason::IntraL0, 18));
    // Older tables in L0 keep it from being the bottom, even with nothing below L0.
    let levels = draw("L0: 16:a-z 30 15:a-z 30 14:a-z 30 13:a-z 30 12:a-z 30 11:a-z 30 10:a-c 30");
    let two = PickerOptions { compaction_bytes_max: 60 * MIB, ..options() };
    let busy: Vec<CompactionPlan> = pick(&levels, &two, &retention, &[], Hints::default()).into_iter().collect();
    let intra = pick(&levels, &two, &retention, &busy, Hints::default()).unwrap();
    expect!["L0: rewrite L0 [11 10] → L6, bottom; intra-L0: rewrite L0 [16 15 14 13 12] → L0"]
        .assert_eq(&format!("{}; {intra}", busy[0]));
    assert!(!intra.is_bottom_key(b"m") && !intra.is_bottom_range(b"y", b"z"));
}

/// L0 is not blocked for good by compactions within it: the oldest tables go down as soon as the base is free, even while newer
/// ones are being merged.
#[test]
fn intra_l0_does_not_block_the_way_down() {
    let levels = draw(
        "L0: 19:a-z 30 18:a-z 30 17:a-z 30 16:a-z 30 15:a-z 30 14:a-z 30 13:a-z 30 12:a-z 30 11:a-z 30\nL6: 1:a-z 200",
    );
    let retention = Retention::new(v(0), []);
    let four = PickerOptions { compaction_bytes_max: 120 * MIB, intra_l0_bytes_max: 120 * MIB, ..options() };
    let first = pick(&levels, &four, &retention, &[], Hints::default()).unwrap();
    let intra = pick(&levels, &four, &retention, std::slice::from_ref(&first), Hints::default()).unwrap();
    assert_eq!(intra.reason, Reason::IntraL0);
    let outputs =
        vec![TableMeta { number: FileNumber(30), ..draw("L6: 1:a-z 200").level(6).tables()[0].as_ref().clone() }];
    let open = |meta: &TableMeta, _| Ok::<_, ()>(Arc::new(meta.clone()));
    let after = levels.apply(&first.edit(&levels, outputs), open).unwrap();
    expect!["L0: rewrite L0 [15] + L6 [30] → L6, bottom, 2 parts"].assert_eq(
        &pick(&after, &PickerOptions { l0_runs: 1, ..four }, &retention, &[intra], Hints::default())
            .map_or_else(|| "nothing".to_owned(), |plan| plan.to_string()),
    );
}

/// Plans that run at once share no table and no keys of an output level.
#[test]
fn parallel_plans_stay_apart() {
    assert_plans(
        "L0: 30:a-c 40 29:a-c 40 28:a-c 40 27:x-z 40 26:x-z 40
         L5: 1:a-e 200 2:f-g 200 3:h-i 200 4:k-l 200 5:y-z 200
         L6: 10:a-c 400 11:d-f 400 12:g-i 400 13:j-l 400 14:m-z 400",
        &expect![[r#"
            level size: rewrite L5 [3] + L6 [12] → L6, bottom, 2 parts, split at h
            level size: rewrite L5 [4] + L6 [13] → L6, bottom, 2 parts, split at k
            level size: rewrite L5 [5] + L6 [14] → L6, bottom, 2 parts, split at y
            level size: rewrite L5 [1] + L6 [10 11] → L6, bottom, 2 parts, split at d
        "#]],
    );
}

/// A running plan keeps others out of its output keys and the base from sinking below its output, even where it shares no table with
/// them: an ingestion that is being placed, say.
#[test]
fn running_plans_keep_their_place() {
    let text = "L5: 1:a-e 200 2:m-p 200";
    let levels = draw(text);
    let retention = Retention::new(v(0), []);
    let mut running = pick(&draw("L5: 9:d-n 300"), &options(), &retention, &[], Hints::default()).unwrap();
    assert_eq!((running.output_level, &*running.span.smallest), (6, &b"d"[..]));
    expect![[r#"
        level size: move L5 [1] → L6
    "#]]
    .assert_eq(&plans(text, Hints::default()));
    assert_eq!(pick(&levels, &options(), &retention, std::slice::from_ref(&running), Hints::default()), None);
    assert_eq!(targets(&draw("L6: 1:a-b 10"), &options(), std::slice::from_ref(&running)).base, 6);
    running.output_level = 4;
    assert_eq!(targets(&draw("L6: 1:a-b 10"), &options(), &[running]).base, 4);
}

/// A table that is half tombstones, and not outnumbered by what is below, goes down although its level is small; at the bottom it is rewritten where it is, but only when
/// all its tombstones can go.
#[test]
fn dense_tables_are_compacted() {
    assert_plans(
        "L5: 2:a-c 10 t=51\nL6: 1:a-z 300",
        &expect![[r#"
        tombstone density: rewrite L5 [2] + L6 [1] → L6, bottom, 2 parts
    "#]],
    );
    // Over twice as many entries it would rewrite much to remove little.
    assert_plans(
        "L5: 2:a-z 10 t=90\nL6: 1:a-m 300 3:n-z 300",
        &expect![[r#"
        nothing
    "#]],
    );
    assert_plans(
        "L5: 2:a-c 10 t=49\nL6: 1:a-z 300",
        &expect![[r#"
        nothing
    "#]],
    );
    let bottom = draw("L6: 1:a-z 300 t=60 v=5-9");
    let at = |floor, pins: &[u64]| {
        let retention = Retention::new(v(floor), pins.iter().map(|&pin| v(pin)));
        plans_with(&bottom, &options(), &retention, Hints::default())
    };
    expect![[r#"
        tombstone density: rewrite L6 [1] → L6, bottom, 2 parts
    "#]]
    .assert_eq(&at(9, &[]));
    expect![[r#"
        nothing
    "#]]
    .assert_eq(&at(8, &[]));
    expect![[r#"
        nothing
    "#]]
    .assert_eq(&at(20, &[6]));
}

/// Where iterators had to skip tombstones, the table that has them goes down, from the top, before levels above their targets.
#[test]
fn ranges_full_of_tombstones_are_compacted() {
    let skipped = [SkippedRange { start: (*b"b").into(), end: (*b"c").into(), tombstones: 40 }];
    let hints = Hints { skipped: &skipped, ..Hints::default() };
    let with_hint = |text: &str| plans(text, hints);
    expect![[r#"
        skipped tombstones: rewrite L0 [9] + L5 [2 3] → L5, 2 parts, split at d
    "#]]
    .assert_eq(&with_hint("L0: 9:a-d 1 t=20\nL5: 2:a-c 300 t=12 3:d-f 300\nL6: 1:a-z 300"));
    expect![[r#"
        skipped tombstones: rewrite L6 [1] → L6, bottom, 2 parts
    "#]]
    .assert_eq(&with_hint("L6: 1:a-z 300 t=12"));
    expect![[r#"
        nothing
    "#]]
    .assert_eq(&with_hint("L6: 1:a-z 300 t=1"));
}

/// Tables wholly under a range tombstone go unread, unless a reader is left for whom they count.
#[test]
fn tables_under_a_range_tombstone_are_dropped() {
    let text = "L0: 9:b-c 10 d=1
                L5: 2:b-c 64 3:d-m) 64 4:l-n 64
                L6: 1:a-z 300";
    let text = text.replace("l-n", "m-n");
    let tombstones = [RangeTombstone::new(b"b", b"m", v(95))];
    let hints = Hints { range_tombstones: &tombstones, ..Hints::default() };
    let at = |floor, pins: &[u64]| {
        let retention = Retention::new(v(floor), pins.iter().map(|&pin| v(pin)));
        plans_with(&draw(&text), &options(), &retention, hints)
    };
    expect![[r#"
        range tombstone: drop L5 [2 3]
    "#]]
    .assert_eq(&at(95, &[]));
    expect![[r#"
        nothing
    "#]]
    .assert_eq(&at(94, &[]));
    expect![[r#"
        range tombstone: drop L5 [3]
    "#]]
    .assert_eq(&at(100, &[29]));
}

/// A range is compacted level by level until it is in one, and then rewritten there once.
#[test]
fn a_range_is_compacted_by_hand() {
    let mut levels = draw(
        "L0: 9:a-d 1 8:x-z 1
         L5: 2:a-c 10 3:e-f 10 4:w-z 10
         L6: 5:a-d 100 6:e-z 100",
    );
    let range = ManualRange {
        start: Some((*b"a").into()),
        end: Some((*b"g").into()),
        began: FileNumber(20),
        stale: BTreeSet::new(),
    };
    let retention = Retention::new(v(1000), []);
    let mut next = 20;
    let mut log = String::new();
    while let ManualStep::Plan(plan) = compact_range_step(&levels, &options(), &retention, &[], &range) {
        log += &format!("{plan}\n");
        let outputs = vec![TableMeta {
            number: FileNumber(next),
            smallest: plan.span.smallest.clone(),
            largest: plan.span.largest.clone(),
            file_bytes: plan.input_bytes,
            l0_rank: plan.output_rank,
            ..TableMeta::default()
        }];
        next += 1;
        let edit = plan.edit(&levels, outputs);
        levels = levels.apply(&edit, |meta, _| Ok::<_, ()>(Arc::new(meta.clone()))).unwrap();
        assert!(next < 40, "{log}");
    }
    expect![[r#"
        manual: rewrite L0 [9] + L5 [2] → L5
        manual: rewrite L5 [20] + L6 [5] → L6, bottom
        manual: rewrite L5 [3 4] + L6 [6] → L6, bottom
    "#]]
    .assert_eq(&log);
}

/// Debt is zero at rest and grows with what is above its target.
#[test]
fn debt() {
    let mib = |text: &str| pending_bytes(&draw(text), &options()) / MIB;
    assert_eq!(mib("L0: 2:a-z 30 1:a-z 30\nL6: 9:a-z 200"), 0);
    assert_eq!(mib("L0: 4:a-z 30 3:a-z 30 2:a-z 30 1:a-z 30\nL6: 9:a-z 200"), 320);
    // 64 MiB too many in L5, each with its share of 1000 / 320 below.
    assert_eq!(mib("L5: 1:a-z 320\nL6: 9:a-z 1000"), 64 + 200);
}

/// Parts of similar size at keys of the input tables.
#[test]
fn split_points() {
    let keys = |anchors: &[(&str, u64)], parts| {
        let anchors = anchors.iter().map(|&(key, bytes)| (key.as_bytes(), bytes)).collect();
        split_keys(anchors, parts)
            .iter()
            .map(|key| String::from_utf8_lossy(key).into_owned())
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(keys(&[("d", 10), ("a", 10), ("c", 10), ("b", 10)], 2), "c");
    assert_eq!(keys(&[("a", 10), ("b", 10), ("c", 10), ("d", 10)], 4), "b c d");
    assert_eq!(keys(&[("a", 100), ("b", 1), ("c", 1)], 2), "b");
    assert_eq!(keys(&[("a", 1), ("a", 1)], 4), "");
    assert_eq!(keys(&[], 4), "");
}

/// The load of the benchmark's data set: 232 MB of random puts make four flushed tables of half their size, which are compacted once,
/// and what follows stays in L0. So a byte loaded is written once into the WAL, half into L0 and less than half into the bottom.
#[test]
fn the_write_amplification_of_a_load() {
    // In units of 1 MiB; values compress to half.
    let (raw, flushed_raw) = (221u64, 55u64);
    let mut levels = Levels::<TableMeta>::default();
    let (mut written, mut loaded, mut number) = (0, 0, 0);
    while loaded < raw {
        loaded += flushed_raw;
        number += 1;
        let mut edit = crate::manifest::ManifestEdit::default();
        let table = draw(&format!("L0: {number}:a-z {}", flushed_raw * 55 / 100)).level(0).tables()[0].as_ref().clone();
        written += flushed_raw + table.file_bytes / MIB;
        edit.added.push((0, table));
        levels = levels.apply(&edit, |meta, _| Ok::<_, ()>(Arc::new(meta.clone()))).unwrap();
        while let Some(plan) =
            pick(&levels, &PickerOptions::default(), &Retention::new(v(0), []), &[], Hints::default())
        {
            number += 1;
            let mut out = draw(&format!("L6: {number}:a-z 1")).level(6).tables()[0].as_ref().clone();
            out.file_bytes = plan.input_bytes;
            written += plan.input_bytes / MIB;
            levels =
                levels.apply(&plan.edit(&levels, vec![out]), |meta, _| Ok::<_, ()>(Arc::new(meta.clone()))).unwrap();
        }
    }
    let amplification_percent = written * 100 / loaded;
    assert!(amplification_percent <= 210, "{amplification_percent} %");
}

/// A table that refers to a blob file that is mostly garbage is rewritten where it is, the deepest first and one at a time; after what
/// is due, unless it is urgent.
#[test]
fn tables_that_keep_garbage_alive_are_rewritten() {
    let idle = "L0: 9:a-f 64 b=3\n L6: 4:a-f 64 b=2 5:g-k 64 b=3 6:l-p 64 b=3";
    let dirty = [FileNumber(3), FileNumber(2)];
    let hints = Hints { dirty_blobs: &dirty, ..Hints::default() };
    let retention = Retention::new(v(0), []);
    let pick_from = |text: &str, busy: &[CompactionPlan], hints| {
        pick(&draw(text), &options(), &retention, busy, hints).map(|plan| plan.to_string())
    };
    assert_eq!(pick_from(idle, &[], hints).unwrap(), "blob garbage: rewrite L6 [5] → L6, bottom");
    let running = pick(&draw(idle), &options(), &retention, &[], hints).unwrap();
    assert_eq!(pick_from(idle, &[running], hints), None, "one at a time");
    let due = "L0: 9:a-f 64 12:a-f 64 13:a-f 64 14:a-f 64\n L6: 5:a-f 64 b=3";
    assert!(pick_from(due, &[], hints).unwrap().starts_with("L0: rewrite"));
    let urgent = Hints { dirty_blobs_urgent: true, ..hints };
    assert_eq!(pick_from(due, &[], urgent).unwrap(), "blob garbage: rewrite L6 [5] → L6, bottom");
}
