use ferrisdb_core::{Random, SplitMix64};

use super::*;

fn table(number: u64, smallest: &[u8], largest: &[u8], largest_exclusive: bool) -> Arc<TableMeta> {
    Arc::new(TableMeta {
        number: FileNumber(number),
        file_bytes: number,
        smallest: smallest.into(),
        largest: largest.into(),
        largest_exclusive,
        l0_rank: number,
        ..TableMeta::default()
    })
}

fn numbers<'a>(tables: impl IntoIterator<Item = &'a Arc<TableMeta>>) -> Vec<u64> {
    tables.into_iter().map(|table| table.number.0).collect()
}

/// L0 is kept newest first, deeper levels by key, whatever order tables come in.
#[test]
fn tables_are_sorted() {
    let levels = Levels::new([
        (0, table(3, b"a", b"z", false)),
        (0, table(7, b"a", b"z", false)),
        (0, table(5, b"a", b"z", false)),
        (2, table(1, b"m", b"n", false)),
        (2, table(2, b"a", b"m", true)),
    ]);
    levels.check();
    assert_eq!(numbers(levels.level(0).tables()), [7, 5, 3]);
    assert_eq!(numbers(levels.level(2).tables()), [2, 1]);
    assert_eq!((levels.level(0).bytes(), levels.bytes()), (15, 18));
}

/// What breaks an invariant is named.
#[test]
fn broken_levels_are_told() {
    let problem = |tables: Vec<(u8, Arc<TableMeta>)>| Levels::new(tables).problem().unwrap_or_default();
    assert_eq!(
        problem(vec![(1, table(1, b"a", b"c", false)), (1, table(2, b"c", b"d", false))]),
        "L1: tables 000001 and 000002 overlap"
    );
    assert_eq!(problem(vec![(1, table(1, b"a", b"c", true)), (1, table(2, b"c", b"d", false))]), "");
    assert_eq!(
        problem(vec![(1, table(1, b"c", b"a", false))]),
        "L1: table 000001: table meta: the largest key lies before the smallest"
    );
    assert_eq!(
        problem(vec![(1, table(4, b"a", b"b", false)), (3, table(4, b"a", b"b", false))]),
        "table 000004 is there twice"
    );
    let same_rank = |number, smallest: &[u8], largest: &[u8]| {
        Arc::new(TableMeta { l0_rank: 9, ..TableMeta::clone(&table(number, smallest, largest, false)) })
    };
    assert_eq!(problem(vec![(0, same_rank(1, b"a", b"c")), (0, same_rank(2, b"d", b"e"))]), "");
    assert_eq!(
        problem(vec![(0, same_rank(1, b"a", b"d")), (0, same_rank(2, b"d", b"e"))]),
        "L0: tables 000002 and 000001 overlap and have the same rank"
    );
}

/// An edit leaves untouched levels as they are, in memory too, and hands the open handle of a moved table on.
#[test]
fn an_edit_shares_what_it_does_not_touch() {
    let moved = table(2, b"a", b"b", false);
    let levels = Levels::new([(0, table(1, b"a", b"b", false)), (0, moved.clone()), (6, table(3, b"a", b"b", false))]);
    let edit = ManifestEdit {
        removed: vec![(0, FileNumber(2))],
        added: vec![(1, TableMeta::clone(&moved)), (1, TableMeta::clone(&table(4, b"c", b"d", false)))],
        ..ManifestEdit::default()
    };
    let mut opened = Vec::new();
    let next = levels
        .apply(&edit, |meta, before| {
            opened.push((meta.number.0, before.is_some()));
            Ok::<_, ()>(before.unwrap_or_else(|| Arc::new(meta.clone())))
        })
        .unwrap();
    assert_eq!(opened, [(2, true), (4, false)]);
    assert_eq!((numbers(next.level(0).tables()), numbers(next.level(1).tables())), (vec![1], vec![2, 4]));
    assert!(Arc::ptr_eq(&next.level(1).tables()[0], &moved));
    assert!(Arc::ptr_eq(&next.levels[6], &levels.levels[6]));
    assert_eq!(numbers(levels.level(0).tables()), [2, 1], "the old set is what it was");
    let failed = levels.apply(&edit, |_, _| Err::<Arc<TableMeta>, _>("cannot open"));
    assert_eq!(failed.err(), Some("cannot open"));
}

/// Searching, against looking at every table, on keys that share long prefixes, tie in their heads, and are short or empty.
#[test]
fn searching_equals_looking_at_every_table() {
    for seed in 0..400 {
        let mut random = SplitMix64::new(seed);
        let prefix = vec![b'p'; random.below(12) as usize];
        let letters = 1 + random.below(4);
        let key = |random: &mut SplitMix64| {
            let mut key = if random.one_in(8) {
                prefix[..random.below(prefix.len() as u64 + 1) as usize].to_vec()
            } else {
                prefix.clone()
            };
            let len = random.below(12);
            key.extend((0..len).map(|_| b'o' + random.below(letters) as u8));
            key
        };
        let mut bounds: Vec<Vec<u8>> = (0..random.below(24)).map(|_| key(&mut random)).collect();
        bounds.sort();
        bounds.dedup();
        let mut tables = Vec::new();
        let mut rest = &bounds[..];
        while let [first, second, ..] = rest {
            let (kind, used) = (random.below(3), tables.len() as u64);
            match kind {
                0 => tables.push(table(used, first, first, false)),
                1 => tables.push(table(used, first, second, false)),
                // An exclusive end may be where the next table begins.
                _ => tables.push(table(used, first, second, true)),
            }
            rest = &rest[if kind == 1 { 2 } else { 1 }..];
        }
        let levels = Levels::new(tables.iter().map(|table| (3, table.clone())));
        levels.check();
        let flat = Levels::new(tables.iter().map(|table| (0, table.clone())));
        for _ in 0..40 {
            let (a, b) = (key(&mut random), key(&mut random));
            let a = if random.one_in(2) { bounds.get(random.below(24) as usize).cloned().unwrap_or(a) } else { a };
            let expected = tables.iter().find(|table| table.covers(&a)).map(|table| table.number);
            assert_eq!(levels.find(3, &a).map(|table| table.number), expected, "seed {seed}: {a:?} in {tables:?}");
            let bound = |random: &mut SplitMix64, key: Vec<u8>| match random.below(3) {
                0 => Bound::Unbounded,
                1 => Bound::Included(key),
                _ => Bound::Excluded(key),
            };
            let (start, end) = (bound(&mut random, a.clone().min(b.clone())), bound(&mut random, a.max(b)));
            let (start, end) = (start.as_ref().map(Vec::as_slice), end.as_ref().map(Vec::as_slice));
            let mut inside = numbers(flat.overlapping(0, start, end));
            inside.reverse();
            assert_eq!(
                numbers(levels.overlapping(3, start, end)),
                inside,
                "seed {seed}: {start:?}..{end:?} in {tables:?}"
            );
        }
    }
}
