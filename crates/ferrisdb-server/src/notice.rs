//! What `status` can say is wrong: [`Notice`]. Programs read the name, people the description; the operations guide has each name with what to do about it, and a test here compares
//! the two lists.

use serde_json::{Value, json};

macro_rules! notices {
    ($($(#[$doc:meta])* $kind:ident = $name:literal,)*) => {
        /// One kind of thing that is wrong.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Notice {
            $($(#[$doc])* $kind,)*
        }

        impl Notice {
            /// All of them.
            #[cfg(test)]
            pub(crate) const ALL: &[Notice] = &[$(Notice::$kind,)*];

            /// Its name in the status document.
            pub(crate) fn name(self) -> &'static str {
                match self {
                    $(Notice::$kind => $name,)*
                }
            }
        }
    };
}

notices! {
    /// The process that is asked has failed.
    Broken = "broken",
    /// The storage server of another one has.
    ProcessBroken = "process_broken",
    /// Bytes in the tables are not what was written.
    StorageDamaged = "storage_damaged",
    /// The disk of a process has no space.
    DiskFull = "disk_full",
    /// So many have none that nothing is committed.
    CommitsHeld = "commits_held",
    /// The process that is asked begins again as a new one.
    JoinsAgain = "joins_again",
    /// The last attempt to fetch a shard did not go well.
    Moving = "moving",
    /// Nobody leads.
    WithoutLeader = "without_leader",
    /// The process that is asked does not take part yet.
    NotIntroduced = "not_introduced",
    /// The leader has said nothing for a while.
    NotSeen = "not_seen",
    /// A process is silent.
    Suspected = "suspected",
    /// A process has been silent for long.
    Gone = "gone",
    /// A process that was excluded still has something.
    Draining = "draining",
    /// A process that was excluded has nothing any more.
    Excluded = "excluded",
    /// The log has fewer voters than it takes to lose one.
    FewVoters = "few_voters",
    /// One key has more load than a shard is to have.
    HotKey = "hot_key",
}

impl Notice {
    /// How the status document says it.
    pub(crate) fn document(self, description: impl Into<String>) -> Value {
        json!({ "name": self.name(), "description": description.into() })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::Notice;
    use crate::coordinator::rate::Reason;

    const GUIDE: &str = include_str!("../../../docs/cluster.md");

    /// The names in the first column of the guide's table that has this head, of those rows that say what to do.
    fn names_in(head: &str) -> BTreeSet<&'static str> {
        let table = GUIDE.split_once(head).expect("the guide has the table").1;
        let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
        let cells = rows.map(|row| row.split(" | ").collect::<Vec<_>>());
        let told = cells.inspect(|cells| assert!(cells.len() == 3 && cells[2].len() > 3, "{cells:?}"));
        told.flat_map(|cells| cells[0].split('`').skip(1).step_by(2).collect::<Vec<_>>()).collect()
    }

    #[test]
    fn the_guide_has_every_message_and_no_other() {
        let all: BTreeSet<_> = Notice::ALL.iter().map(|notice| notice.name()).collect();
        assert_eq!(names_in("| message | what it means | what to do |"), all);
        assert_eq!(all.len(), Notice::ALL.len());
    }

    #[test]
    fn the_guide_has_every_reason_for_a_limit_and_no_other() {
        let all: BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(names_in("| name | what it means | what to do |"), all);
    }
}
