//! Whether the replicas of each shard are the same in the end, byte for byte: [`compare`], once they [are settled](are_settled).

use std::collections::{BTreeMap, BTreeSet};

use ferrisdb_core::{KeyRange, KeyValue, Version};
use ferrisdb_server::cluster::ShardStanding;

/// What a storage server holds at a version, and what its process knows of the shards.
#[derive(Debug, Clone)]
pub(crate) struct Inventory {
    pub(crate) process: u64,
    pub(crate) shards: Vec<ShardStanding>,
    /// All rows that its engine has, in order, whether it holds their shards or not.
    pub(crate) rows: Vec<KeyValue>,
}

/// Whether what they have at `version` can be compared, or what it waits for: that all know the same shards, which were there at that version, do not move, and have so many replicas, or one at
/// each process if there are fewer, in so many zones.
pub(crate) fn are_settled(
    all: &BTreeMap<String, Inventory>,
    (replicas, zones): (usize, usize),
    version: Version,
) -> Result<(), String> {
    let known = |of: &Inventory| -> Vec<_> {
        of.shards.iter().map(|shard| (shard.range.clone(), shard.team.clone(), shard.since)).collect()
    };
    let mut others = all.iter();
    let Some((first, any)) = others.next() else { return Ok(()) };
    for ShardStanding { range, team, since, is_moving, .. } in &any.shards {
        let processes = team.keys();
        if *is_moving {
            return Err(format!("{range:?} moves away from processes {processes:?}"));
        }
        if team.len() != replicas.min(all.len()) {
            return Err(format!("{range:?} is held by processes {processes:?}, not by {replicas}"));
        }
        let of_team: BTreeSet<&String> = team.values().filter(|zone| !zone.is_empty()).collect();
        if of_team.len() < zones {
            return Err(format!("{range:?} is held by processes {processes:?} in {of_team:?}, not in {zones} zones"));
        }
        if *since > version {
            return Err(format!("{range:?} has come to processes {processes:?} only at {since}, above {version}"));
        }
    }
    match others.find(|(_, other)| known(other) != known(any)) {
        Some((other, _)) => Err(format!("{first} and {other} know other shards")),
        None => Ok(()),
    }
}

/// What is wrong with replicas that are settled, if anything is.
pub(crate) fn compare(all: &BTreeMap<String, Inventory>) -> Result<(), String> {
    let Some(any) = all.values().next() else { return Ok(()) };
    for (number, shard) in any.shards.iter().enumerate() {
        let ShardStanding { range, team, .. } = shard;
        let mut first: Option<(u64, &[KeyValue])> = None;
        for process in team.keys() {
            let Some(of) = all.values().find(|of| of.process == *process) else {
                return Err(format!("process {process} holds {range:?}, and no host runs it"));
            };
            if !of.shards.get(number).is_some_and(|shard| shard.is_here) {
                return Err(format!("process {process} does not know that it holds {range:?}"));
            }
            let rows = rows_of(&of.rows, range);
            let (other, expected) = *first.get_or_insert((*process, rows));
            if let Some(difference) = difference(expected, rows) {
                return Err(format!("processes {other} and {process} differ in {range:?}: {difference}"));
            }
        }
    }
    for (host, of) in all {
        let elsewhere = of.shards.iter().filter(|shard| !shard.is_here);
        if let Some(row) = elsewhere.flat_map(|shard| rows_of(&of.rows, &shard.range)).next() {
            return Err(format!("{host} has {row:?}, and does not hold its shard"));
        }
    }
    Ok(())
}

fn rows_of<'a>(rows: &'a [KeyValue], range: &KeyRange) -> &'a [KeyValue] {
    let begin = rows.partition_point(|row| row.key < range.begin);
    let end = rows.partition_point(|row| row.key < range.end);
    &rows[begin..end.max(begin)]
}

/// The first row that is not the same.
fn difference(one: &[KeyValue], other: &[KeyValue]) -> Option<String> {
    let place = one.iter().zip(other).position(|(one, other)| one != other).unwrap_or(one.len().min(other.len()));
    (one.len().max(other.len()) > place).then(|| format!("{:?} and {:?}", one.get(place), other.get(place)))
}

#[cfg(test)]
mod tests {
    use ferrisdb_core::Bytes;

    use super::*;

    fn row(key: &str, value: &str) -> KeyValue {
        KeyValue { key: Bytes::copy_from_slice(key.as_bytes()), value: Bytes::copy_from_slice(value.as_bytes()) }
    }

    /// Two shards, the first one at processes 1 and 2, the second one at 2 and 3.
    fn cluster() -> BTreeMap<String, Inventory> {
        let shard = |begin: &str, end: &str, team: [u64; 2], process| ShardStanding {
            range: KeyRange::new(Bytes::copy_from_slice(begin.as_bytes()), Bytes::copy_from_slice(end.as_bytes())),
            team: team.map(|process| (process, String::new())).into(),
            since: Version::from_u64(5),
            is_moving: false,
            is_here: team.contains(&process),
        };
        let of = |process| {
            let shards = vec![shard("", "m", [1, 2], process), shard("m", "z", [2, 3], process)];
            let rows = [row("a", "1"), row("b", "2"), row("m", "3")];
            let held = |row: &KeyValue| shards.iter().any(|shard| shard.is_here && shard.range.contains(&row.key));
            let rows = rows.into_iter().filter(held).collect();
            (format!("host-{process}"), Inventory { process, shards, rows })
        };
        [of(1), of(2), of(3)].into()
    }

    type Change = fn(&mut BTreeMap<String, Inventory>);

    /// As it should be, and with one thing wrong at a time.
    #[test]
    fn what_is_wrong_is_said() {
        let right = cluster();
        let version = Version::from_u64(10);
        assert_eq!(are_settled(&right, (2, 0), version), Ok(()));
        assert_eq!(compare(&right), Ok(()));
        fn of(all: &mut BTreeMap<String, Inventory>, host: u64) -> &mut Inventory {
            all.get_mut(&format!("host-{host}")).expect("it is there")
        }
        let changes: [(Change, &str); 6] = [
            (|all| of(all, 1).rows[1] = row("b", "9"), "processes 1 and 2 differ"),
            (|all| drop(of(all, 2).rows.remove(0)), "processes 1 and 2 differ"),
            (|all| of(all, 2).rows.push(row("n", "1")), "processes 2 and 3 differ"),
            (|all| of(all, 1).rows.push(row("n", "1")), "host-1 has"),
            (|all| of(all, 3).shards[1].is_here = false, "process 3 does not know"),
            (|all| of(all, 3).process = 7, "process 3 holds"),
        ];
        for (change, what) in changes {
            let mut wrong = cluster();
            change(&mut wrong);
            let said = compare(&wrong).expect_err(what);
            assert!(said.starts_with(what), "{what}: {said}");
        }
        let mut moving = cluster();
        of(&mut moving, 1).shards[0].is_moving = true;
        assert!(are_settled(&moving, (2, 0), version).is_err_and(|what| what.contains("moves away")));
        assert!(are_settled(&right, (3, 0), version).is_err_and(|what| what.contains("not by 3")));
        assert!(are_settled(&right, (2, 2), version).is_err_and(|what| what.contains("not in 2 zones")));
        assert!(are_settled(&right, (2, 0), Version::from_u64(4)).is_err_and(|what| what.contains("only at")));
        let mut other = cluster();
        of(&mut other, 3).shards[0].team = [(1, String::new())].into();
        assert!(are_settled(&other, (2, 0), version).is_err_and(|what| what.contains("know other shards")));
    }
}
