//! What must hold when all faults are over.

use super::*;
use crate::shards::holding::Holding;

impl World {
    /// All rows, if those who hold a shard have the same of it, and nobody has anything else.
    fn compare(
        &self,
        node: &ClusterNode,
        stored: &BTreeMap<ProcessId, Vec<KeyValue>>,
        holdings: &BTreeMap<ProcessId, Arc<Holding>>,
    ) -> Option<Vec<KeyValue>> {
        let map = node.life.shared().shards().expect("it is readable");
        map.check();
        let registry = node.life.shared().registry().expect("it is readable");
        let mut all = Vec::new();
        for (range, shard) in map.iter() {
            let wanted = registry.replicas().min(stored.len());
            if shard.team().len() < wanted || shard.moving.is_some() {
                self.fail(format!("at the end {range:?} has not its replicas: {shard:?}"));
            }
            let mut copies = shard.team().into_iter().filter_map(|tag| {
                let Some(storage) = registry.storage.get(&tag) else {
                    self.fail(format!("at the end {range:?} lies with {tag:?}, which is not in the registry"));
                    return None;
                };
                let process = storage.process;
                let Some(holding) = holdings.get(&process) else {
                    self.fail(format!("process {process}, which holds {range:?}, is not there"));
                    return None;
                };
                if !holding.covers(&range, Version::MAX) {
                    self.fail(format!("process {process} does not know that it holds {range:?}"));
                }
                // What cannot be read was said.
                let rows = stored.get(&process)?.iter().filter(|row| range.contains(&row.key));
                Some(rows.cloned().collect::<Vec<_>>())
            });
            let first = copies.next()?;
            if copies.any(|copy| copy != first) {
                self.fail(format!("those who hold {range:?} differ at the end"));
            }
            all.extend(first);
        }
        for (process, rows) in stored {
            let stray = rows.iter().find(|row| !holdings[process].has_now(&row.key));
            if let Some(row) = stray {
                self.fail(format!("process {process} has {row:?}, which it does not hold"));
            }
        }
        Some(all)
    }
    /// Nobody commits any more; then everything is compared.
    pub(in super::super) fn check_quiet(&self) {
        lock(&self.state).is_quiet = true;
        // Until the time keeper has written about the last commit, too: then nothing happens any more.
        self.run(Duration::from_secs(12));
        let nodes: Vec<(ProcessId, Arc<ClusterNode>)> = {
            let state = lock(&self.state);
            let nodes = state.hosts.values().filter_map(|host| host.node.clone());
            // By the numbers that the map of shards knows them by. A host may run another one than its own: those who join at once come in any order, and who has begun again as new has a new one.
            nodes.map(|node| (node.process(), node)).collect()
        };
        if nodes.len() != lock(&self.state).hosts.len() {
            self.fail("not every process is there at the end".to_owned());
        }
        for (process, node) in &nodes {
            if let Some(failure) = node.failure() {
                self.fail(format!("process {process}: {failure}"));
            }
        }
        let prints = || -> usize {
            let prints: BTreeSet<_> = nodes.iter().map(|(_, node)| node.life.shared().log.fingerprint()).collect();
            prints.len()
        };
        // What storage servers tell the log about once in a while may be under way just now.
        for _ in 0..20 {
            if prints() > 1 {
                self.run(Duration::from_millis(50));
            }
        }
        if prints() > 1 {
            self.fail("the replicas of the log differ at the end".to_owned());
        }
        let applied: Vec<Version> = nodes.iter().map(|(_, node)| node.storage().applied_version()).collect();
        let last = applied.iter().copied().max().unwrap_or_default();
        let mut stored = BTreeMap::new();
        let mut holdings = BTreeMap::new();
        for ((process, node), applied) in nodes.iter().zip(applied) {
            if applied != last {
                self.fail(format!("storage of process {process} has come to {applied} of {last}"));
                continue;
            }
            let range = KeyRange::new(Bytes::new(), Bytes::from_static(SYSTEM_END));
            let request = GetRangeRequest { range, version: last, limit: 0, target_bytes: 0, reverse: false };
            let answer = node.storage().get_range(request);
            let found = Arc::new(Mutex::new(None));
            let put = Arc::clone(&found);
            self.outside.spawn("compare", Box::pin(async move { *lock(&put) = Some(answer.await) }));
            self.run(Duration::from_secs(1));
            match lock(&found).take() {
                // What an answer cuts off would not be compared.
                Some(Ok(rows)) if rows.more => {
                    self.fail(format!("storage of process {process} has more than one answer"))
                }
                Some(Ok(rows)) => drop(stored.insert(*process, rows.rows)),
                other => self.fail(format!("storage of process {process} cannot be read: {other:?}")),
            }
            holdings.insert(*process, node.life.shared().keeper.holding());
        }
        if let Some(first) = self.compare(&nodes[0].1, &stored, &holdings) {
            let truth = lock(&self.truth);
            let mut wrong = Vec::new();
            let mut beyond = 0;
            for client in 1..CLIENTS {
                let key = format!("transfers/{client}");
                let row = first.iter().find(|row| row.key == key.as_bytes());
                let happened = row.map_or(0, |row| number(&row.value) as u64);
                let acknowledged = truth.transfers.get(&client).copied().unwrap_or_default();
                if happened < acknowledged {
                    wrong.push(format!(
                        "of {acknowledged} acknowledged transfers of client {client} {happened} are there"
                    ));
                }
                beyond += happened.saturating_sub(acknowledged);
            }
            if beyond > truth.unknown {
                wrong.push(format!(
                    "{beyond} transfers happened that nobody acknowledged, {} are unknown",
                    truth.unknown
                ));
            }
            drop(truth);
            wrong.into_iter().for_each(|what| self.fail(what));
        }
        let failures = lock(&self.truth).failures.clone();
        assert!(failures.is_empty(), "seed {}: {failures:#?}", self.seed);
    }
}
