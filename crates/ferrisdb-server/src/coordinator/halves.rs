//! How many of those who wait go with a group that its own task syncs: [`half`], a pure function.
//!
//! A group that is alone blocks the driver's task for one sync, and those that it answers then ask again. If it takes all who wait, everybody comes in step: while the disk works
//! nobody has anything to do, and while clients and connections work the disk has nothing. If it takes half of them, the other half is there when it is durable, and goes to the disk
//! before the first half is even woken. So both work all the time. By themselves the clients fall into two groups as well, but any two: one of 60 and one of 4, and the small one
//! costs as much as the large one.
//!
//! It is the opposite of what is best where a group is dear and costs the same whatever is in it ([`Company`](super::company::Company)): there all go together.

use super::driver::ALONE_REQUESTS_MAX;

/// A sync is worth so many: with fewer in all than twice that, halves would cost more syncs than they give the disk to do.
const HALF_MIN: usize = 32;

/// At most so many of `queued` go with the next group, while the `answered` of the last one are on their way back. No limit where half of them are too many for a group that is
/// alone: those go to the log's task, and the next group is made meanwhile anyway.
pub(super) fn half(queued: usize, answered: usize) -> usize {
    let half = (queued + answered).div_ceil(2).max(HALF_MIN);
    if half > ALONE_REQUESTS_MAX { usize::MAX } else { half }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sizes of the groups of clients that ask again as soon as they are answered: all that were answered are back when the next group is durable.
    fn groups(clients: usize, first: usize) -> Vec<usize> {
        let (mut queued, mut answered) = (clients - first, first);
        let mut groups = vec![first];
        for _ in 0..20 {
            let group = queued.min(half(queued, answered));
            groups.push(group);
            queued = queued - group + answered;
            answered = group;
        }
        groups
    }

    /// However they fell, they go in halves after a few groups.
    #[test]
    fn clients_fall_into_halves() {
        for clients in [64, 65, 96, 100, 127, 128] {
            for first in [1, 4, clients / 2, clients] {
                let groups = groups(clients, first);
                let (least, most) = (clients / 2, clients.div_ceil(2));
                assert!(groups[5..].iter().all(|group| (least..=most).contains(group)), "{clients}: {groups:?}");
            }
        }
    }

    /// A few clients go as they come, and so do many: a limit would cost them syncs.
    #[test]
    fn few_and_many_are_not_halved() {
        for clients in 1..=HALF_MIN {
            assert!(half(clients, 0) >= clients);
        }
        for clients in [129, 256, 512, 100_000] {
            assert_eq!(half(clients, 0), usize::MAX);
            assert_eq!(half(1, clients), usize::MAX);
        }
        assert_eq!(half(0, 0), HALF_MIN, "a group may have at least one");
    }
}
