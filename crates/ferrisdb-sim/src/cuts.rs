//! Which links of the network are cut, in which direction: [`Cuts`].
//!
//! Several faults may cut the same link at once; it is mended when the last of them is over. A loss of power mends all links of a machine in the simulated network, as a part of how it is simulated:
//! what was cut before is cut again.

use std::collections::BTreeMap;

use crate::world::World;

/// From a host to another one.
pub(crate) type Link = (String, String);

/// By link, how many faults cut it. Invariant: none is there with zero.
#[derive(Debug, Default)]
pub(crate) struct Cuts(BTreeMap<Link, u32>);

/// Which of the directions between two hosts are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Both,
    /// Nothing leaves the first one.
    Out,
    /// Nothing comes to the first one.
    In,
}

/// The links between `one` and each of the others, in these directions.
pub(crate) fn links(one: &str, others: &[String], way: Way) -> Vec<Link> {
    let there = others.iter().map(|other| (one.to_owned(), other.clone())).filter(|_| way != Way::In);
    let back = others.iter().map(|other| (other.clone(), one.to_owned())).filter(|_| way != Way::Out);
    there.chain(back).collect()
}

impl Cuts {
    /// One more fault cuts these.
    pub(crate) fn cut(&mut self, world: &World, links: &[Link]) {
        for (from, to) in links {
            *self.0.entry((from.clone(), to.clone())).or_default() += 1;
            world.network().partition_oneway(from.as_str(), to.as_str());
        }
    }

    /// One fault less cuts these.
    pub(crate) fn mend(&mut self, world: &World, links: &[Link]) {
        for link in links {
            let faults = self.0.get_mut(link).expect("what is mended was cut");
            *faults -= 1;
            if *faults == 0 {
                self.0.remove(link);
                world.network().repair_oneway(link.0.as_str(), link.1.as_str());
            }
        }
    }

    /// Cuts again what is cut of a host, after something else has mended it.
    pub(crate) fn renew(&self, world: &World, host: &str) {
        for (from, to) in self.0.keys().filter(|(from, to)| from == host || to == host) {
            world.network().partition_oneway(from.as_str(), to.as_str());
        }
    }

    /// True if a link of this host is cut.
    pub(crate) fn is_cut(&self, host: &str) -> bool {
        self.0.keys().any(|(from, to)| from == host || to == host)
    }

    /// True if a link between two of these is cut.
    pub(crate) fn is_any_between(&self, hosts: &[String]) -> bool {
        self.0.keys().any(|(from, to)| hosts.contains(from) && hosts.contains(to))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directions_are_those_of_the_first_one() {
        let others = ["b".to_owned(), "c".to_owned()];
        let told = |way| {
            let links = links("a", &others, way);
            links.iter().map(|(from, to)| format!("{from}>{to}")).collect::<Vec<_>>().join(" ")
        };
        assert_eq!([Way::Both, Way::Out, Way::In].map(told), ["a>b a>c b>a c>a", "a>b a>c", "b>a c>a"]);
    }
}
