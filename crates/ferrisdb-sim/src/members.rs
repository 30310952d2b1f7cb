//! How the processes of a cluster stand, as each says itself, and what is wanted of them: [`Members`]. It is what someone has who looks after a cluster.
//!
//! Each process says every tenth of a second how it stands ([`Standing`]), and takes the [orders](Order) that were left for it; they reach the leader through it, as those of
//! `ferrisdb cluster` do. What they say is watched; in the end they also say all that they have.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use ferrisdb_core::key::{SYSTEM_END, key_after};
use ferrisdb_core::{Bytes, Code, KeyRange, KeyValue, Result, Version};
use ferrisdb_rpc::Answer;
use ferrisdb_rpc::api::{GetRangeRequest, Rows};
use ferrisdb_server::cluster::{self, ClusterNode, Order, Standing};

use crate::replicas::Inventory;
use crate::watcher::Watcher;
use crate::workloads::snapshots::MAY_END_LEASES;
use crate::world::trace::Trace;

/// The processes of a cluster, by their hosts. Cheap to clone; clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Members(Rc<RefCell<State>>);

#[derive(Debug, Default)]
struct State {
    standings: BTreeMap<String, Standing>,
    /// Orders that were left at a host, and not yet taken.
    left: BTreeMap<String, Vec<Order>>,
    watcher: Watcher,
    /// What the watcher has seen, and nobody has heard yet.
    contradiction: Option<String>,
    stock: Option<Stock>,
}

/// Who has what at a version: asked of all at once.
#[derive(Debug)]
struct Stock {
    version: Version,
    asked: BTreeSet<String>,
    told: BTreeMap<String, Inventory>,
    /// What the last one that could not say it said instead.
    trouble: Option<String>,
}

impl Members {
    /// True if each host's process has all that it is to have, there are at least two replicas of everything, and as many processes as can vote do: any one of them may be lost for good.
    pub fn may_lose_one(&self, hosts: &[String]) -> bool {
        self.are_whole(hosts) && self.all(|standing| standing.replicas > 1)
    }

    /// True if it is so for all that have said how they stand.
    pub fn all(&self, is_so: impl Fn(&Standing) -> bool) -> bool {
        self.0.borrow().standings.values().all(is_so)
    }

    /// True if each host's process is one of the cluster and has all that it is to have, nobody else is one, and as many as can vote do.
    pub fn are_whole(&self, hosts: &[String]) -> bool {
        let standings = &self.0.borrow().standings;
        let processes: BTreeSet<u64> = standings.values().map(|standing| standing.process).collect();
        let votes = processes.len().min(3);
        let is_whole = |standing: &Standing| {
            let group = &standing.group;
            // Half-way between two sets of voters, a majority of both is needed.
            standing.is_complete
                && standing.processes == processes
                && standing.excluded.is_empty()
                && group.changing_to.is_none()
                && group.voters.is_subset(&processes)
                && group.voters.len() == votes
        };
        processes.len() == hosts.len() && hosts.iter().all(|host| standings.get(host).is_some_and(is_whole))
    }

    /// How those stand that have said so, for a report of what is not as it should be.
    pub fn told(&self) -> String {
        let standings = &self.0.borrow().standings;
        let told = standings.iter().map(|(host, standing)| {
            let Standing { process, is_complete, leads, group, processes, excluded, replicas, log, .. } = standing;
            format!(
                "{host}: process {process}, complete {is_complete}, leads {leads}, processes {processes:?}, excluded {excluded:?}, replicas {replicas}, voters {:?}, changing to {:?}, \
                 epoch {}, applied {:?}",
                group.voters, group.changing_to, log.epoch.0, log.applied
            )
        });
        told.collect::<Vec<_>>().join("; ")
    }

    /// How a host's process stands, if it runs and has said so.
    pub fn standing(&self, host: &str) -> Option<Standing> {
        self.0.borrow().standings.get(host).cloned()
    }

    /// The hosts whose processes have said how they stand.
    pub fn hosts(&self) -> Vec<String> {
        self.0.borrow().standings.keys().cloned().collect()
    }

    /// Leaves an order at a host. It is lost if the process dies before it has taken it.
    pub fn order(&self, host: &str, order: Order) {
        self.0.borrow_mut().left.entry(host.to_owned()).or_default().push(order);
    }

    /// The process of a host has died, and says nothing any more.
    pub fn forget(&self, host: &str) {
        let mut state = self.0.borrow_mut();
        state.standings.remove(host);
        state.left.remove(host);
    }

    /// What replicas of the log have said that cannot be, if anything.
    pub fn take_contradiction(&self) -> Option<String> {
        self.0.borrow_mut().contradiction.take()
    }

    /// Has every process say what it has at the newest version that any of them knows: which one.
    pub(crate) fn take_stock(&self) -> Version {
        let mut state = self.0.borrow_mut();
        let version = state.standings.values().map(|standing| standing.log.last).max().unwrap_or_default();
        state.stock = Some(Stock { version, asked: BTreeSet::new(), told: BTreeMap::new(), trouble: None });
        version
    }

    /// What they have said, once all of these hosts' processes have.
    pub(crate) fn stock(&self, hosts: &[String]) -> Option<BTreeMap<String, Inventory>> {
        let state = self.0.borrow();
        state.stock.as_ref().map(|stock| &stock.told).filter(|told| told.len() == hosts.len()).cloned()
    }

    /// Why somebody could not say what it has.
    pub(crate) fn trouble(&self) -> String {
        let state = self.0.borrow();
        let trouble = state.stock.as_ref().and_then(|stock| stock.trouble.clone());
        trouble.unwrap_or_else(|| "somebody says nothing".to_owned())
    }

    /// A host's process says how it stands, and takes the orders that were left for it.
    pub(crate) fn note(&self, host: &str, node: &ClusterNode, trace: &Trace) {
        let (orders, stock) = {
            let state = &mut *self.0.borrow_mut();
            if let Some(standing) = node.standing() {
                let dropped = state.watcher.dropped();
                let seen = state.watcher.see(host, &standing);
                // What such a storage server had of old versions nobody may have.
                trace.add(MAY_END_LEASES, (state.watcher.dropped() - dropped) as u64);
                if let Err(contradiction) = seen {
                    state.contradiction.get_or_insert(contradiction);
                }
                state.standings.insert(host.to_owned(), standing);
            }
            let stock =
                state.stock.as_mut().and_then(|stock| stock.asked.insert(host.to_owned()).then_some(stock.version));
            (state.left.remove(host).unwrap_or_default(), stock)
        };
        if let Some(version) = stock {
            drop(tokio::task::spawn_local(self.clone().say_all(host.to_owned(), version, node)));
        }
        for order in orders {
            let endpoint = node.endpoint().for_peers().expect("a process of a cluster has an endpoint for peers");
            let (host, trace) = (host.to_owned(), trace.clone());
            // It lives as long as the host's process does.
            drop(tokio::task::spawn_local(async move {
                let answer = cluster::order(endpoint.as_ref(), order, false).await;
                trace.note(format_args!("{host} was told {order:?}: {answer:?}"));
                trace.count(match answer {
                    Ok(ordered) if ordered.changes => "orders that were carried out",
                    Ok(_) => "orders for what was so already",
                    Err(error) if error.code() == Code::ClientInvalidOperation => "orders that were refused",
                    Err(_) => "orders that failed",
                });
            }));
        }
    }

    /// Reads all that the storage server of a process has, past what it holds, and says it; if it cannot, it is asked again.
    fn say_all(self, host: String, version: Version, node: &ClusterNode) -> impl Future<Output = ()> + use<> {
        let (process, shards) = (node.process(), node.shard_standings());
        let storage = node.storage();
        async move {
            let rows = all_rows(version, |request| storage.get_range(request)).await;
            let mut state = self.0.borrow_mut();
            let Some(stock) = state.stock.as_mut() else { return };
            if stock.version != version {
                return;
            }
            match rows {
                Ok(rows) => drop(stock.told.insert(host, Inventory { process, shards, rows })),
                Err(error) => {
                    stock.asked.remove(&host);
                    stock.trouble = Some(format!("{host}: {error}"));
                }
            }
        }
    }
}

/// All that a storage server has at a version: an answer has a bound, so question after question. What was cut off would look as if it were missing.
async fn all_rows(version: Version, ask: impl Fn(GetRangeRequest) -> Answer<Rows>) -> Result<Vec<KeyValue>> {
    let (mut all, mut begin) = (Vec::new(), Bytes::new());
    loop {
        let range = KeyRange::new(begin, Bytes::from_static(SYSTEM_END));
        let request = GetRangeRequest { range, version, limit: 0, target_bytes: 0, reverse: false };
        let rows = ask(request).await?;
        all.extend(rows.rows);
        match all.last() {
            Some(last) if rows.more => begin = key_after(&last.key),
            _ => return Ok(all),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_executor::block_on;

    use super::*;

    /// A storage server whose answers have at most so many rows, and that says of a full one that there may be more.
    fn answer(rows: &[KeyValue], most: usize, request: &GetRangeRequest) -> Rows {
        let asked = rows.iter().filter(|row| request.range.contains(&row.key));
        let rows: Vec<KeyValue> = asked.take(most).cloned().collect();
        Rows { more: rows.len() == most, rows }
    }

    /// A replica that lacks what lies behind the first answer would otherwise be equal to one that has it.
    #[test]
    fn a_replica_is_read_past_the_bound_of_one_answer() {
        let row =
            |number: u8| KeyValue { key: Bytes::from(vec![number / 3, number % 3]), value: Bytes::from(vec![number]) };
        let version = Version::from_u64(7);
        for count in 0..20 {
            let rows: Vec<KeyValue> = (0..count).map(row).collect();
            for most in 1..=21 {
                let all = block_on(all_rows(version, |request| {
                    assert_eq!(request.version, version, "all of it at one version");
                    Answer::now(Ok(answer(&rows, most, &request)))
                }));
                assert_eq!(all, Ok(rows.clone()), "{count} rows, {most} in an answer");
            }
        }
    }

    /// Whoever cannot say all says nothing.
    #[test]
    fn what_fails_half_way_is_no_replica() {
        let rows = [KeyValue { key: Bytes::from_static(b"a"), value: Bytes::new() }];
        let all = block_on(all_rows(Version::from_u64(7), |request| {
            if request.range.contains(b"a") {
                return Answer::now(Ok(answer(&rows, 1, &request)));
            }
            Answer::now(Err(Code::ProcessBehind.into()))
        }));
        assert_eq!(all.map_err(|error| error.code()), Err(Code::ProcessBehind));
    }
}
