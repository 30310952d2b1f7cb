//! Processes that are lost for good, disks that go back, and orders.

use super::super::super::orders::{Order, Ordered, order};
use super::*;

/// Disks as they were, and what befell them.
#[derive(Default)]
pub(super) struct Losses {
    images: BTreeMap<ProcessId, (Duration, SimFileSystem)>,
    lost: u64,
    set_back: u64,
    /// Hosts that have another address than at first.
    moved: BTreeSet<ProcessId>,
}

impl Losses {
    /// What a host's process says where it is.
    pub(super) fn address_of(&self, host: ProcessId) -> String {
        if self.moved.contains(&host) { format!("host{host}:2") } else { address(host) }
    }
}

/// An image is put back only if it is so old that the others were told of what it lacks, and wrote that down.
const IMAGE_OLD: Duration = Duration::from_secs(8);

impl World {
    /// How many processes were lost for good, and how many disks went back.
    pub(super) fn losses(&self) -> (u64, u64) {
        let losses = &lock(&self.state).losses;
        (losses.lost, losses.set_back)
    }

    /// True if every host's process is up, has all that it is to have, as many as can vote do, and nothing is wrong: the next loss is the only one.
    fn is_whole(&self) -> bool {
        let state = lock(&self.state);
        let nodes: Option<Vec<Arc<ClusterNode>>> = state.hosts.values().map(|host| host.node.clone()).collect();
        let is_disturbed = !state.links.is_whole();
        let is_paused = state.hosts.values().any(|host| host.life.as_ref().is_none_or(|life| life.is_paused()));
        drop(state);
        let Some(nodes) = nodes else { return false };
        let processes: BTreeSet<ProcessId> = nodes.iter().map(|node| node.process()).collect();
        let is_one = |node: &Arc<ClusterNode>| {
            let shared = node.life.shared();
            let registered: BTreeSet<ProcessId> = match shared.registry() {
                Ok(registry) => {
                    registry.processes.keys().copied().filter(|&process| registry.is_complete(process)).collect()
                }
                Err(_) => return false,
            };
            node.is_complete()
                && node.group().voters.is_subset(&processes)
                && node.group().voters.len() == processes.len().min(3)
                && node.group().changing_to.is_none()
                && registered == processes
                && shared.log.is_introduced()
        };
        !is_disturbed && !is_paused && nodes.iter().all(is_one)
    }

    /// Runs until everything is as it should be again.
    pub(in super::super) fn until_whole(&self, voters: usize) {
        for _ in 0..240 {
            let has_voters = {
                let state = lock(&self.state);
                state
                    .hosts
                    .values()
                    .all(|host| host.node.as_ref().is_some_and(|node| node.group().voters.len() == voters))
            };
            if has_voters && self.is_whole() {
                return;
            }
            self.run(Duration::from_millis(250));
        }
        self.fail(format!("the cluster is not whole again: {:#?}", self.states()));
    }

    fn states(&self) -> Vec<String> {
        let state = lock(&self.state);
        let told = |(number, host): (&ProcessId, &Host)| match &host.node {
            None => format!("host {number}: no process"),
            Some(node) => {
                let shared = node.life.shared();
                format!(
                    "host {number}: process {} complete {} introduced {} failure {:?} filling {:?} again {:?} registry {:?} group {:?} step {:?}",
                    node.process(),
                    node.is_complete(),
                    shared.log.is_introduced(),
                    node.failure(),
                    lock(&shared.moving),
                    lock(&shared.again),
                    shared.registry(),
                    node.group(),
                    shared.leading.step(),
                )
            }
        };
        state.hosts.iter().map(told).collect()
    }

    /// Remembers how a disk is now, if its process could be the only one that forgets something.
    pub(super) fn take_image(&self) {
        if !self.is_whole() {
            return;
        }
        let host = 1 + self.random(self.processes);
        let mut state = lock(&self.state);
        let now = self.clock.now();
        if state.losses.images.get(&host).is_none_or(|(at, _)| now > *at + 2 * IMAGE_OLD) {
            let image = state.hosts[&host].disk.fork_crashed(CrashMode::NothingLost);
            state.losses.images.insert(host, (now, image));
        }
    }

    /// A process and its disk are gone, and a new one comes in its place.
    pub(super) fn lose_for_good(&self, host: ProcessId, seed: u64) {
        if !self.is_whole() {
            return;
        }
        lock(&self.state).losses.lost += 1;
        self.kill(host, CrashMode::NothingLost);
        self.put_disk(host, SimFileSystem::new());
        self.run((100 + seed % 3_000) as u32 * MILLISECOND);
        self.start(host);
    }

    /// A disk goes back to an earlier state.
    pub(super) fn set_back(&self, host: ProcessId, seed: u64) {
        let image = {
            let state = lock(&self.state);
            let now = self.clock.now();
            state.losses.images.get(&host).filter(|(at, _)| now > *at + IMAGE_OLD).map(|(_, image)| image.clone())
        };
        let Some(image) = image else { return };
        if !self.is_whole() {
            return;
        }
        lock(&self.state).losses.set_back += 1;
        self.kill(host, CrashMode::NothingLost);
        self.put_disk(host, image.fork_crashed(CrashMode::NothingLost));
        self.run((100 + seed % 3_000) as u32 * MILLISECOND);
        self.start(host);
    }

    /// What was wrong so far, which was meant to be.
    pub(in super::super) fn take_failures(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.truth).failures)
    }

    /// The process that a host has now.
    pub(in super::super) fn process_of(&self, host: ProcessId) -> ProcessId {
        self.node(host).expect("it runs").process()
    }

    /// True if a host's process is open.
    pub(in super::super) fn runs(&self, host: ProcessId) -> bool {
        self.node(host).is_some()
    }

    /// True if a host's process runs and has everything.
    pub(in super::super) fn is_complete(&self, host: ProcessId) -> bool {
        self.node(host).is_some_and(|node| node.is_complete())
    }

    /// True if anybody leads.
    pub(in super::super) fn has_leader(&self) -> bool {
        self.leading().is_some()
    }

    /// What the process of a host told whoever looks after it.
    pub(in super::super) fn notices(&self, host: ProcessId) -> Vec<String> {
        self.node(host).expect("it runs").take_notices()
    }

    /// True if a host's process says that something is wrong, by its name.
    pub(in super::super) fn says(&self, host: ProcessId, name: &str) -> bool {
        let status = self.status(host);
        status["cluster"]["messages"].as_array().expect("a list").iter().any(|message| message["name"] == name)
    }

    /// True if a host's replica of the log takes nothing because its disk is full.
    pub(in super::super) fn log_waits(&self, host: ProcessId) -> bool {
        self.node(host).expect("it runs").life.shared().log.waits_for_space()
    }

    /// True if a host's storage server takes nothing because its disk is full.
    pub(in super::super) fn stands_still(&self, host: ProcessId) -> bool {
        self.node(host).expect("it runs").life.shared().stands_still()
    }

    /// The document that a host's process gives about the cluster.
    pub(in super::super) fn status(&self, host: ProcessId) -> serde_json::Value {
        let status = self.node(host).expect("it runs").endpoint().status().try_now();
        serde_json::from_str(&status.expect("it is there at once").expect("it answers")).expect("it is JSON")
    }

    /// A host has another address when its process starts again.
    pub(in super::super) fn move_elsewhere(&self, host: ProcessId) -> String {
        let losses = &mut lock(&self.state).losses;
        losses.moved.insert(host);
        losses.address_of(host)
    }

    /// Where the log's leader sends a process its messages.
    pub(in super::super) fn log_address(&self, process: ProcessId) -> Option<String> {
        let group = self.node(self.leader()).expect("it leads").group();
        group.peers.get(&process).map(|peer| peer.address.clone())
    }

    /// A machine is gone, and nobody waits for it.
    pub(in super::super) fn remove(&self, host: ProcessId) {
        self.kill(host, CrashMode::NothingLost);
        lock(&self.state).hosts.remove(&host);
    }

    /// Nothing goes between two hosts, or everything again.
    pub(in super::super) fn cut(&self, one: ProcessId, other: ProcessId, is_cut: bool) {
        let links = &mut lock(&self.state).links;
        if is_cut { links.cut_off(one, [other]) } else { links.mend(one, other) }
    }

    /// Gives an order at a host, and waits for the answer.
    pub(in super::super) fn order(&self, host: ProcessId, wanted: Order, is_dry_run: bool) -> Result<Ordered> {
        let endpoint = self.node(host).expect("it runs").endpoint().for_peers().expect("a process has one");
        let told = Arc::new(Mutex::new(None));
        let tell = Arc::clone(&told);
        let ordering = async move {
            let answer = order(endpoint.as_ref(), wanted, is_dry_run).await;
            *lock(&tell) = Some(answer);
        };
        self.outside.spawn("order", Box::pin(ordering));
        for _ in 0..100 {
            self.run(100 * MILLISECOND);
            if let Some(answer) = lock(&told).take() {
                return answer;
            }
        }
        panic!("the order {wanted:?} is not answered");
    }

    /// Looks until it is so.
    pub(in super::super) fn until(&self, what: &str, is_so: impl Fn() -> bool) {
        for _ in 0..600 {
            if is_so() {
                return;
            }
            self.run(100 * MILLISECOND);
        }
        panic!("it never was so: {what}; {:#?}", self.states());
    }
}
