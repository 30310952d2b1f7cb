//! What goes wrong, one scenario at a time, and what must be true meanwhile and afterwards.

use std::time::Duration;

use ferrisdb_core::{Random, SplitMix64};
use rustix::process::Signal;

use crate::Outcome;
use crate::load::Load;
use crate::network::Network;
use crate::processes::Cluster;

/// What is written while a disk is full: three segments of the log.
const MUCH_BYTES: usize = 48 << 20;

/// What is done to the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    KillLeader,
    CutOffLeader,
    KillAll,
    StopLeader,
    FullDiskOfLeader,
    CutLeaderOut,
    KillTwo,
    CutLeaderIn,
    KillFollower,
    CutOneLink,
    StopFollower,
    FullDiskOfFollower,
    StopLeaderLong,
    StopFollowerUntilGone,
}

impl Fault {
    /// In this order, so that a short time has some of each kind.
    pub(crate) const ALL: [Fault; 14] = [
        Fault::KillLeader,
        Fault::CutOffLeader,
        Fault::KillAll,
        Fault::StopLeader,
        Fault::FullDiskOfLeader,
        Fault::CutLeaderOut,
        Fault::KillTwo,
        Fault::CutLeaderIn,
        Fault::KillFollower,
        Fault::CutOneLink,
        Fault::StopFollower,
        Fault::FullDiskOfFollower,
        Fault::StopLeaderLong,
        Fault::StopFollowerUntilGone,
    ];

    pub(crate) fn name(&self) -> &'static str {
        match self {
            Fault::KillLeader => "kill -9 the leader",
            Fault::CutOffLeader => "cut the leader off",
            Fault::KillAll => "kill -9 all three",
            Fault::StopLeader => "stop the leader and let it go on",
            Fault::FullDiskOfLeader => "fill the leader's disk",
            Fault::CutLeaderOut => "lose what the leader sends",
            Fault::KillTwo => "kill -9 two, the leader among them",
            Fault::CutLeaderIn => "lose what is sent to the leader",
            Fault::KillFollower => "kill -9 a follower",
            Fault::CutOneLink => "cut the link between the leader and one follower",
            Fault::StopFollower => "stop a follower and let it go on",
            Fault::FullDiskOfFollower => "fill a follower's disk",
            Fault::StopLeaderLong => "stop the leader for longer than half a minute",
            Fault::StopFollowerUntilGone => "stop a follower until it counts as gone",
        }
    }

    pub(crate) fn needs_namespaces(self) -> bool {
        self.fills_disks()
            || matches!(self, Fault::CutOffLeader | Fault::CutLeaderOut | Fault::CutLeaderIn | Fault::CutOneLink)
    }

    /// How long it lasts, if `some` is how long faults last that may be of any length.
    pub(crate) fn lasts(self, some: Duration) -> Duration {
        match self {
            Fault::StopLeaderLong => Duration::from_secs(35),
            // A process counts as gone after a minute: then it loses its vote and its data, and comes back as a new one.
            Fault::StopFollowerUntilGone => Duration::from_secs(75),
            _ => some,
        }
    }

    /// It lasts long by itself.
    pub(crate) fn is_long(&self) -> bool {
        matches!(self, Fault::StopLeaderLong | Fault::StopFollowerUntilGone)
    }

    fn fills_disks(self) -> bool {
        matches!(self, Fault::FullDiskOfLeader | Fault::FullDiskOfFollower)
    }

    /// All clients go on meanwhile, also those of the process that is hit. Not so if that is cut off: as long as a client's connection to it lives, it stays.
    fn lets_all_go_on(self) -> bool {
        let is_cut = matches!(self, Fault::CutOffLeader | Fault::CutLeaderOut | Fault::CutLeaderIn | Fault::CutOneLink);
        self.leaves_a_majority() && !is_cut
    }

    /// A majority works and reaches each other meanwhile.
    fn leaves_a_majority(self) -> bool {
        !matches!(self, Fault::KillTwo | Fault::KillAll)
    }
}

/// How it is done.
pub(crate) struct Settings {
    pub(crate) seed: u64,
    /// How long a fault lasts.
    pub(crate) hold: Duration,
    pub(crate) rounds: u32,
}

/// Runs one scenario with a cluster of its own. Says what there was of it.
pub(crate) fn run(fault: Fault, settings: &Settings, network: Option<&Network>) -> Outcome<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let directory = tempfile::Builder::new().prefix("ferrisdb-chaos-").tempdir().map_err(|error| error.to_string())?;
    let outcome = runtime.block_on(scenario(fault, settings, network, directory.path()));
    if let Some(network) = network {
        network.heal()?;
    }
    outcome.map_err(|why| {
        let kept = directory.keep();
        format!("{why}; seed {}; logs and data are left in {}", settings.seed, kept.display())
    })
}

async fn scenario(
    fault: Fault,
    settings: &Settings,
    network: Option<&Network>,
    directory: &std::path::Path,
) -> Outcome<String> {
    let mut random = SplitMix64::new(settings.seed);
    let mut cluster = Cluster::start(directory, network, fault.fills_disks()).await?;
    let load = Load::start(&cluster, settings.seed).await?;
    let (mut pauses, mut repaired) = (Vec::new(), 0);
    for _ in 0..settings.rounds {
        load.goes_on("with everything whole").await?;
        let leader = cluster.leader().await?;
        let follower = (leader + 1 + usize::from(random.one_in(2))) % 3;
        let other = 3 - leader - follower;
        let hit = hit(fault, &mut cluster, network, leader, follower, other)?;
        if fault.leaves_a_majority() {
            pauses.push(load.goes_on_soon("while a majority is whole").await?);
        }
        if fault.fills_disks() {
            load.write_much(MUCH_BYTES).await?;
        }
        if fault.lets_all_go_on() {
            load.all_go_on("at the process that was hit, or at others").await?;
        }
        tokio::time::sleep(settings.hold).await;
        repaired += u32::from(mend(fault, &mut cluster, network, &hit).await?);
        let again = load.goes_on("after everything was whole again").await?;
        if !fault.leaves_a_majority() {
            pauses.push(again);
        }
        cluster.whole().await?;
    }
    let certificate = load.certify(&mut cluster).await?;
    let longest = pauses.iter().max().copied().unwrap_or_default();
    let repaired = match repaired {
        0 => String::new(),
        times => format!("; {times} times a process had to be started again"),
    };
    Ok(format!(
        "{} committed, of them {} without an answer, {} reads, the same at all three; {:.1} s at most until 20 more{repaired}",
        certificate.committed,
        certificate.committed_unknown,
        certificate.reads,
        longest.as_secs_f64()
    ))
}

/// Does it, and says to which processes.
fn hit(
    fault: Fault,
    cluster: &mut Cluster<'_>,
    network: Option<&Network>,
    leader: usize,
    follower: usize,
    other: usize,
) -> Outcome<Vec<usize>> {
    let cut = |links: &[(usize, usize)]| {
        let network = network.ok_or("scenarios of cuts run where there is a network")?;
        links.iter().try_for_each(|&(from, to)| network.cut(from, to))
    };
    let hit = match fault {
        Fault::KillLeader | Fault::StopLeader | Fault::StopLeaderLong | Fault::FullDiskOfLeader => vec![leader],
        Fault::KillFollower | Fault::StopFollower | Fault::StopFollowerUntilGone | Fault::FullDiskOfFollower => {
            vec![follower]
        }
        Fault::KillTwo => vec![leader, follower],
        Fault::KillAll => vec![follower, leader, other],
        Fault::CutOffLeader | Fault::CutLeaderOut | Fault::CutLeaderIn | Fault::CutOneLink => Vec::new(),
    };
    match fault {
        Fault::KillLeader | Fault::KillFollower | Fault::KillTwo | Fault::KillAll => {
            hit.iter().try_for_each(|&number| cluster.kill(number))?;
        }
        Fault::StopLeader | Fault::StopFollower | Fault::StopLeaderLong | Fault::StopFollowerUntilGone => {
            cluster.signal(hit[0], Signal::STOP)?;
        }
        Fault::FullDiskOfLeader | Fault::FullDiskOfFollower => cluster.fill_disk(hit[0])?,
        Fault::CutOffLeader => {
            cut(&[(leader, follower), (leader, other), (follower, leader), (other, leader)])?;
        }
        Fault::CutLeaderOut => cut(&[(leader, follower), (leader, other)])?,
        Fault::CutLeaderIn => cut(&[(follower, leader), (other, leader)])?,
        Fault::CutOneLink => cut(&[(leader, follower), (follower, leader)])?,
    }
    Ok(hit)
}

/// Makes everything whole again. True if a process had ended or was broken by it, and was started again as an operator would.
async fn mend(fault: Fault, cluster: &mut Cluster<'_>, network: Option<&Network>, hit: &[usize]) -> Outcome<bool> {
    match fault {
        Fault::KillLeader | Fault::KillFollower | Fault::KillTwo | Fault::KillAll => {
            hit.iter().try_for_each(|&number| cluster.start_one(number))?;
        }
        Fault::StopLeader | Fault::StopFollower | Fault::StopLeaderLong | Fault::StopFollowerUntilGone => {
            cluster.signal(hit[0], Signal::CONT)?;
        }
        Fault::FullDiskOfLeader | Fault::FullDiskOfFollower => {
            cluster.empty_disk(hit[0])?;
            return cluster.repair(hit[0]).await;
        }
        Fault::CutOffLeader | Fault::CutLeaderOut | Fault::CutLeaderIn | Fault::CutOneLink => {
            network.map_or(Ok(()), Network::heal)?;
        }
    }
    Ok(false)
}
