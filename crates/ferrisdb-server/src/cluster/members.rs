//! Who is there, as the leader hears it: [`Detector`].
//!
//! Each process says once a second that it is there, and how it is. Silent for a while, it is **suspected**: it may be slow, so nothing is taken from it, but nothing is
//! built on it either. Silent for long, it is **gone**. Deterministic: time is a parameter, of one process's monotonic clock. A detector lives as long as an epoch and begins with everybody just
//! heard of, so that a new leader gives everybody the whole time.
//!
//! Whoever stands still hears nobody, and that is not the others' silence: a process that was stopped, or had no processor, for a minute must not find the whole cluster gone when it goes on. So
//! time counts only as far as the process has heard its own beat, which comes as the others' do.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use ferrisdb_core::Version;

use super::control::Health;
use crate::coordinator::rate::{Lag, LogQueue};
use crate::log::replicated::ProcessId;

/// Marks of how much had been appended at which version; about ten minutes at one in 200 ms.
const MARKS_MAX: usize = 3_000;

/// When silence means what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberOptions {
    /// How often a process says that it is there. Default: 1 s.
    pub beat_interval: Duration,
    /// Silent for longer, it is suspected. Default: 3 s.
    pub suspected_after: Duration,
    /// Silent for longer, it is gone: others take its place. Default: 60 s.
    pub gone_after: Duration,
}

impl Default for MemberOptions {
    fn default() -> MemberOptions {
        MemberOptions {
            beat_interval: Duration::from_secs(1),
            suspected_after: Duration::from_secs(3),
            gone_after: Duration::from_secs(60),
        }
    }
}

/// How a process is, as far as one can hear.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Standing {
    Up,
    Suspected,
    Gone,
}

impl Standing {
    pub(super) fn name(self) -> &'static str {
        match self {
            Standing::Up => "up",
            Standing::Suspected => "suspected",
            Standing::Gone => "gone",
        }
    }
}

/// How a process says that it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Load {
    /// The last version that its storage server has applied.
    pub(super) applied: Version,
    /// The last version that is in its tables.
    pub(super) flushed: Version,
    /// The last entry that its replica of the log has applied.
    pub(super) log_applied: u64,
    /// Its storage server has everything and answers.
    pub(super) serves: bool,
    /// Its storage server waits for flushes or compactions.
    pub(super) is_stalled: bool,
    /// Its storage server has failed, and takes nothing until it is started again. (One whose replica of the log has failed says nothing.)
    pub(super) is_broken: bool,
    /// That is, or it counts as such, because files of it are not what was written: it empties itself when its tag was taken.
    pub(super) is_damaged: bool,
    /// Its replica of the log takes nothing until its disk has space.
    pub(super) log_is_full: bool,
    /// Its replica of the log has space for little more than what may be under way.
    pub(super) log_is_low: bool,
    /// Its storage server takes nothing until its disk has space.
    pub(super) is_full: bool,
    /// Bytes of the log that its replica keeps.
    pub(super) log_bytes: u64,
    /// Bytes that there is space for on the disk of its replica of the log.
    pub(super) free_bytes: u64,
    /// Bytes that this disk has in all.
    pub(super) disk_bytes: u64,
    /// Fetched in this life, of shards that came to it.
    pub(super) filled_rows: u64,
    pub(super) filled_bytes: u64,
    /// Of about so many bytes.
    pub(super) filling_bytes: u64,
}

#[derive(Debug, Clone, Copy)]
struct Heard {
    at: Duration,
    load: Option<Load>,
    /// Bytes that it had yet to apply then.
    backlog_bytes: u64,
    /// Since when it says that its storage server has failed, if it does.
    broken_since: Option<Duration>,
}

/// Who was heard when.
#[derive(Debug)]
pub(super) struct Detector {
    options: MemberOptions,
    heard: BTreeMap<ProcessId, Heard>,
    voters: BTreeSet<ProcessId>,
    /// Whose detector it is, and when its own beat came last.
    here: ProcessId,
    awake: Option<Duration>,
    /// Ascending: up to this version so many bytes had been appended.
    marks: VecDeque<(Version, u64)>,
}

impl Detector {
    pub(super) fn new(options: MemberOptions, here: ProcessId) -> Detector {
        let (heard, voters, marks) = (BTreeMap::new(), BTreeSet::new(), VecDeque::new());
        Detector { options, heard, voters, here, awake: None, marks }
    }

    /// These are the processes there are. One that is new counts as heard of now.
    pub(super) fn observe(&mut self, now: Duration, processes: impl Iterator<Item = ProcessId> + Clone) {
        self.heard.retain(|number, _| processes.clone().any(|process| process == *number));
        for process in processes {
            self.heard.entry(process).or_insert(Heard { at: now, load: None, backlog_bytes: 0, broken_since: None });
        }
    }

    /// These have a vote in the log.
    pub(super) fn set_voters(&mut self, voters: BTreeSet<ProcessId>) {
        self.voters = voters;
    }

    /// Up to `version` so many bytes had been appended in this epoch.
    pub(super) fn mark(&mut self, version: Version, appended: u64) {
        if self.marks.back().is_none_or(|&(last, _)| last < version) {
            self.marks.push_back((version, appended));
        }
        if self.marks.len() > MARKS_MAX {
            self.marks.pop_front();
        }
    }

    /// A process says how it is; so much had been appended when it did.
    pub(super) fn heard(&mut self, now: Duration, process: ProcessId, load: Load, appended: u64) {
        if process == self.here {
            self.wake(now);
        }
        let backlog_bytes = appended.saturating_sub(self.appended_at(load.applied));
        // For the log it is as good as silent: nobody waits for it longer than for one that is.
        let before = self.heard.get(&process);
        let at = before.filter(|_| load.log_is_full).map_or(now, |before| before.at);
        let since = before.and_then(|before| before.broken_since).unwrap_or(now);
        let broken_since = load.is_broken.then_some(since);
        self.heard.insert(process, Heard { at, load: Some(load), backlog_bytes, broken_since });
    }

    /// Takes note of the own beat. If it comes late, the others' silence meanwhile does not count.
    fn wake(&mut self, now: Duration) {
        let slept = now.saturating_sub(self.present(now));
        for heard in self.heard.values_mut() {
            heard.at = (heard.at + slept).min(now);
            heard.broken_since = heard.broken_since.map(|since| (since + slept).min(now));
        }
        self.awake = Some(now);
    }

    /// Up to when others can have been heard, if anybody was: `now`, or a while after the own beat came last.
    fn present(&self, now: Duration) -> Duration {
        self.awake.map_or(now, |awake| now.min(awake + self.options.suspected_after))
    }

    /// About how much had been appended at `version`: in between two marks, its share.
    #[expect(clippy::cast_precision_loss, reason = "it is an estimate")]
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a number is not above it")]
    fn appended_at(&self, version: Version) -> u64 {
        let after = self.marks.partition_point(|&(marked, _)| marked <= version);
        match (after.checked_sub(1).map(|at| self.marks[at]), self.marks.get(after)) {
            (Some((_, bytes)), None) => bytes,
            (Some((from, low)), Some(&(to, high))) => {
                let share = (version.get() - from.get()) as f64 / (to.get() - from.get()) as f64;
                low + (high.saturating_sub(low) as f64 * share) as u64
            }
            // Older than all that was marked.
            (None, first) => first.map_or(0, |&(_, bytes)| bytes),
        }
    }

    /// How a process is; one that was never heard of is gone.
    pub(super) fn standing(&self, now: Duration, process: ProcessId) -> Standing {
        let Some(heard) = self.heard.get(&process) else { return Standing::Gone };
        match self.present(now).saturating_sub(heard.at) {
            silent if silent > self.options.gone_after => Standing::Gone,
            silent if silent > self.options.suspected_after => Standing::Suspected,
            _ => Standing::Up,
        }
    }

    /// How long ago a process was heard.
    pub(super) fn silent(&self, now: Duration, process: ProcessId) -> Option<Duration> {
        self.heard.get(&process).map(|heard| now.saturating_sub(heard.at))
    }

    /// Its storage server failed so long ago that it counts as gone, though its process is there.
    pub(super) fn has_lost_storage(&self, now: Duration, process: ProcessId) -> bool {
        let since = self.heard.get(&process).and_then(|heard| heard.broken_since);
        since.is_some_and(|since| self.present(now).saturating_sub(since) > self.options.gone_after)
    }

    /// It can be given shards: it was heard lately, and does not say that its storage server has failed.
    pub(super) fn can_take_shards(&self, now: Duration, process: ProcessId) -> bool {
        self.standing(now, process) == Standing::Up && self.load(process).is_none_or(|load| !load.is_broken)
    }

    /// What it said last.
    pub(super) fn load(&self, process: ProcessId) -> Option<Load> {
        self.heard.get(&process)?.load
    }

    /// Bytes that it had yet to apply when it last said how it is.
    pub(super) fn backlog_bytes(&self, process: ProcessId) -> u64 {
        self.heard.get(&process).map_or(0, |heard| heard.backlog_bytes)
    }

    /// It is up, has everything, and answers.
    pub(super) fn serves(&self, now: Duration, process: ProcessId) -> bool {
        self.standing(now, process) == Standing::Up
            && self.load(process).is_some_and(|load| load.serves && !load.is_broken && !load.is_full)
    }

    /// Those that are there and whose storage servers take nothing until there is space, except for `other`.
    fn full(&self, now: Duration, other: ProcessId) -> usize {
        let is_full = |&(&process, heard): &(&ProcessId, &Heard)| {
            process != other
                && self.standing(now, process) == Standing::Up
                && heard.load.is_some_and(|load| load.is_full)
        };
        self.heard.iter().filter(is_full).count()
    }

    /// True if the only storage server whose disk is full is that of `process`. Such a one limits nobody: the others have its data, and the log keeps what it has not taken. With
    /// two, the next log is the one that fills its disk.
    pub(super) fn is_spared(&self, now: Duration, process: ProcessId) -> bool {
        self.full(now, process) == 0
    }

    /// Both, for the controller.
    pub(super) fn health(&self, now: Duration, process: ProcessId) -> Health {
        Health {
            standing: self.standing(now, process),
            serves: self.serves(now, process),
            has_lost_storage: self.has_lost_storage(now, process),
        }
    }

    /// The one that is furthest behind, of those that serve and that `counts`: whoever is gone, or has not begun, limits nobody.
    pub(super) fn worst(&self, now: Duration, counts: impl Fn(ProcessId) -> bool) -> Option<Lag> {
        let is_limiting = |process| {
            let is_full = self.load(process).is_some_and(|load| load.is_full && load.serves && !load.is_broken);
            self.serves(now, process)
                || is_full && self.standing(now, process) == Standing::Up && !self.is_spared(now, process)
        };
        let lags = self.heard.iter().filter(|&(&process, _)| counts(process) && is_limiting(process));
        let lags = lags.map(|(&process, heard)| {
            let is_stalled = heard.load.is_some_and(|load| load.is_stalled);
            Lag { backlog_bytes: heard.backlog_bytes, is_stalled, process }
        });
        lags.max_by_key(|lag| lag.backlog_bytes)
    }

    /// If so few of the voters that are up have space for more of the log that they are no majority: those that have not. Of one that has said nothing yet nothing bad is known.
    pub(super) fn low_on_space(&self, now: Duration) -> Vec<ProcessId> {
        let is_low = |process: &ProcessId| self.load(*process).is_some_and(|load| load.log_is_low || load.log_is_full);
        let low: Vec<ProcessId> = self.voters.iter().copied().filter(is_low).collect();
        let is_there =
            |process: &ProcessId| self.heard.get(process).is_none_or(|_| self.standing(now, *process) == Standing::Up);
        let roomy = self.voters.iter().filter(|process| is_there(process) && !is_low(process)).count();
        if roomy > self.voters.len() / 2 { Vec::new() } else { low }
    }

    /// How the log is with the majority of its voters that is best off, of those that are up. Nothing is known of it before a majority has said how it is, and without one nothing is
    /// committed.
    pub(super) fn log_queue(&self, now: Duration) -> LogQueue {
        let is_up = |process: &ProcessId| self.standing(now, *process) == Standing::Up;
        let loads = self.voters.iter().filter(|process| is_up(process));
        let loads: Vec<(ProcessId, Load)> = loads.filter_map(|&process| Some((process, self.load(process)?))).collect();
        // The last one of a majority, once they are in order.
        let last = self.voters.len() / 2;
        let mut bytes: Vec<u64> = loads.iter().map(|(_, load)| load.log_bytes).collect();
        let mut free: Vec<_> =
            loads.iter().map(|&(process, load)| (load.free_bytes, process, load.disk_bytes)).collect();
        bytes.sort_unstable();
        free.sort_unstable_by_key(|&(free, ..)| std::cmp::Reverse(free));
        match (bytes.get(last), free.get(last)) {
            (Some(&bytes), Some(&(free_bytes, fullest, disk_bytes))) => {
                LogQueue { bytes, free_bytes, disk_bytes, fullest }
            }
            _ => LogQueue::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whose detector it is: one that has not heard itself, unless a test says so.
    const HERE: ProcessId = 9;

    fn second(second: u64) -> Duration {
        Duration::from_secs(second)
    }

    fn serving(applied: u64) -> Load {
        Load { applied: Version::from_u64(applied), serves: true, ..Load::default() }
    }

    #[test]
    fn silence_is_suspected_first() {
        let mut detector = Detector::new(MemberOptions::default(), HERE);
        detector.observe(second(10), [1, 2].into_iter());
        assert_eq!(detector.standing(second(13), 1), Standing::Up, "a new leader gives everybody the whole time");
        assert_eq!(detector.standing(second(14), 1), Standing::Suspected);
        assert!(!detector.serves(second(13), 1), "it has not said that it does");
        detector.heard(second(60), 1, serving(1), 0);
        assert_eq!([1, 2].map(|process| detector.standing(second(70), process)), [Standing::Suspected; 2]);
        assert_eq!([1, 2].map(|process| detector.standing(second(71), process)), [Standing::Suspected, Standing::Gone]);
        // A process that comes later is not gone before it was there.
        detector.observe(second(1000), [1, 3].into_iter());
        assert_eq!(detector.standing(second(1000), 3), Standing::Up);
        assert_eq!(detector.standing(second(1000), 2), Standing::Gone, "it belongs no more");
    }

    /// Storage that has failed counts as gone after the time of one that is silent, from when it was first said on; started again it is well.
    #[test]
    fn failed_storage_is_gone_after_a_while() {
        let mut detector = Detector::new(MemberOptions::default(), HERE);
        let broken = Load { is_broken: true, ..serving(1) };
        for at in 10..=71 {
            detector.heard(second(at), 1, if at < 11 { serving(1) } else { broken }, 0);
            assert_eq!(detector.standing(second(at), 1), Standing::Up);
            assert!(!detector.has_lost_storage(second(at), 1), "{at}");
            assert_eq!(detector.can_take_shards(second(at), 1), at < 11);
        }
        assert!(detector.has_lost_storage(second(72), 1));
        detector.heard(second(72), 1, serving(1), 0);
        detector.heard(second(73), 1, broken, 0);
        assert!(!detector.has_lost_storage(second(74), 1), "it was well in between");
    }

    /// Who is behind is told by bytes; who is silent, not begun or broken limits nobody.
    #[test]
    fn the_furthest_behind_limits() {
        let mut detector = Detector::new(MemberOptions::default(), HERE);
        for (version, appended) in [(100, 0), (200, 1000), (300, 5000)] {
            detector.mark(Version::from_u64(version), appended);
        }
        for (process, applied) in [(1, 300), (2, 250), (3, 50)] {
            detector.heard(second(1), process, serving(applied), 5000);
        }
        assert_eq!([1, 2, 3].map(|process| detector.backlog_bytes(process)), [0, 2000, 5000]);
        let worst = |detector: &Detector, at| detector.worst(second(at), |process| process != 3);
        assert_eq!(worst(&detector, 2).map(|lag| (lag.process, lag.backlog_bytes)), Some((2, 2000)));
        assert_eq!(detector.worst(second(2), |_| true).map(|lag| lag.process), Some(3));
        assert_eq!(worst(&detector, 10), None, "they are silent");
        detector.heard(second(11), 2, Load { serves: false, ..serving(1) }, 5000);
        assert_eq!(worst(&detector, 11), None, "it has not begun");
    }

    /// Whose log waits for space is as silent as it was, and one whose storage server does limits nobody, unless it has company.
    #[test]
    fn a_full_disk_is_no_silence_and_no_limit() {
        let mut detector = Detector::new(MemberOptions::default(), HERE);
        detector.mark(Version::from_u64(100), 0);
        let full = |applied| Load { is_full: true, ..serving(applied) };
        detector.heard(second(1), 1, serving(100), 5000);
        detector.heard(second(1), 2, Load { log_is_full: true, ..serving(100) }, 5000);
        for at in 2..=70 {
            detector.heard(second(at), 2, Load { log_is_full: true, ..serving(100) }, 5000);
        }
        assert_eq!(detector.standing(second(4), 2), Standing::Up);
        assert_eq!(detector.standing(second(70), 2), Standing::Gone, "it was never well");
        detector.heard(second(70), 3, full(50), 5000);
        assert!(detector.standing(second(70), 3) == Standing::Up && !detector.serves(second(70), 3));
        let worst = |detector: &Detector| detector.worst(second(70), |_| true).map(|lag| lag.process);
        assert_eq!(worst(&detector), None);
        detector.heard(second(70), 4, full(50), 5000);
        assert!(worst(&detector).is_some(), "two of them");
    }

    /// The log is as it is with the majority that is best off: one voter alone, or one that is silent, limits nobody.
    #[test]
    fn the_log_is_as_a_majority_has_it() {
        let mut detector = Detector::new(MemberOptions::default(), HERE);
        let load = |log_bytes, free_bytes| Load { log_bytes, free_bytes, ..serving(1) };
        let told = |detector: &Detector, at| {
            let LogQueue { bytes, free_bytes, fullest, .. } = detector.log_queue(second(at));
            (bytes, free_bytes, fullest)
        };
        let unknown = (0, u64::MAX, 0);
        detector.set_voters([1, 2, 3].into());
        detector.heard(second(1), 1, load(10, 500), 0);
        assert_eq!(told(&detector, 1), unknown, "one of three is no majority");
        detector.heard(second(1), 4, load(99, 1), 0);
        assert_eq!(told(&detector, 1), unknown, "it has no vote");
        detector.heard(second(1), 2, load(30, 400), 0);
        assert_eq!(told(&detector, 1), (30, 400, 2));
        detector.heard(second(1), 3, load(20, 5), 0);
        assert_eq!(told(&detector, 1), (20, 400, 2), "the third is full, and two are not");
        detector.heard(second(9), 2, load(30, 400), 0);
        detector.heard(second(9), 3, load(20, 5), 0);
        assert_eq!(told(&detector, 9), (30, 5, 3), "the first is silent");
    }

    /// Who stood still for two minutes finds nobody gone, neither before its own beat comes again nor after; then silence counts as ever.
    #[test]
    fn an_own_standstill_is_nobodys_silence() {
        let mut detector = Detector::new(MemberOptions::default(), HERE);
        for at in 1..=10 {
            detector.heard(second(at), HERE, serving(1), 0);
            detector.heard(second(at), 1, serving(1), 0);
            if at <= 8 {
                detector.heard(second(at), 2, serving(1), 0);
            }
        }
        let standings = |detector: &Detector, at| [1, 2].map(|process| detector.standing(second(at), process));
        assert_eq!(standings(&detector, 10), [Standing::Up; 2]);
        // It goes on after 120 s, and looks before any beat came.
        assert_eq!(standings(&detector, 130), [Standing::Up, Standing::Suspected]);
        detector.heard(second(130), HERE, serving(1), 0);
        assert_eq!(standings(&detector, 130), [Standing::Up, Standing::Suspected]);
        for at in 131..=187 {
            detector.heard(second(at), HERE, serving(1), 0);
            assert_ne!(detector.standing(second(at), 1), Standing::Gone, "{at}");
        }
        (188..=195).for_each(|at| detector.heard(second(at), HERE, serving(1), 0));
        assert_eq!(standings(&detector, 195), [Standing::Gone; 2]);
    }

    /// Commits have to stop when so few voters have space that they are no majority, and somebody else's space would make one.
    #[test]
    fn who_is_low_is_named_when_no_majority_is_left() {
        let mut detector = Detector::new(MemberOptions::default(), HERE);
        let low = Load { log_is_low: true, ..serving(1) };
        detector.set_voters([1, 2, 3].into());
        assert!(detector.low_on_space(second(1)).is_empty(), "nothing is known");
        detector.heard(second(1), 1, serving(1), 0);
        detector.heard(second(1), 2, low, 0);
        detector.heard(second(1), 3, serving(1), 0);
        assert!(detector.low_on_space(second(1)).is_empty(), "two have space");
        detector.heard(second(2), 3, Load { log_is_full: true, ..serving(1) }, 0);
        assert_eq!(detector.low_on_space(second(2)), [2, 3]);
        detector.heard(second(3), 3, serving(1), 0);
        assert!(detector.low_on_space(second(3)).is_empty());
        detector.heard(second(9), 1, serving(1), 0);
        detector.heard(second(9), 2, low, 0);
        assert_eq!(detector.low_on_space(second(9)), [2], "the third is silent, so the second is needed");
        detector.heard(second(10), 2, serving(1), 0);
        assert!(detector.low_on_space(second(10)).is_empty(), "it is for the network to be mended, not for disks");
    }
}
