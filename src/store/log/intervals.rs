//! A set of sequence numbers kept as ranges.

use crate::model::Seq;

/// Disjoint, non-adjoining ranges, ends included, in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Intervals(Vec<(Seq, Seq)>);

impl Intervals {
    /// Adds `first..=last`, merging what touches it.
    pub fn insert(&mut self, first: Seq, last: Seq) {
        if first > last {
            return;
        }
        let start = self.0.partition_point(|&(_, end)| end.saturating_add(1) < first);
        let stop = self.0.partition_point(|&(begin, _)| begin <= last.saturating_add(1));
        let merged = match self.0.get(start..stop) {
            Some([one]) => (first.min(one.0), last.max(one.1)),
            Some([head, .., tail]) => (first.min(head.0), last.max(tail.1)),
            _ => (first, last),
        };
        self.0.splice(start..stop, [merged]);
    }

    /// Whether `seq` is in the set.
    pub fn contains(&self, seq: Seq) -> bool {
        self.range_at(seq).is_some()
    }

    /// The range that holds `seq`.
    pub fn range_at(&self, seq: Seq) -> Option<(Seq, Seq)> {
        let at = self.0.partition_point(|&(_, end)| end < seq);
        self.0.get(at).copied().filter(|&(begin, _)| begin <= seq)
    }

    /// The first number of the set that is `seq` or greater.
    pub fn next_from(&self, seq: Seq) -> Option<Seq> {
        let at = self.0.partition_point(|&(_, end)| end < seq);
        self.0.get(at).map(|&(begin, _)| begin.max(seq))
    }

    /// Takes the first range out.
    pub fn pop_first(&mut self) -> Option<(Seq, Seq)> {
        if self.0.is_empty() { None } else { Some(self.0.remove(0)) }
    }

    /// The first range.
    pub fn first(&self) -> Option<(Seq, Seq)> {
        self.0.first().copied()
    }

    /// How many numbers of `first..=last` are in the set.
    pub fn covered(&self, first: Seq, last: Seq) -> u64 {
        let start = self.0.partition_point(|&(_, end)| end < first);
        self.0[start..]
            .iter()
            .take_while(|&&(begin, _)| begin <= last)
            .map(|&(begin, end)| end.min(last) - begin.max(first) + 1)
            .sum()
    }

    /// Number of ranges.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The ranges in order.
    pub fn iter(&self) -> impl Iterator<Item = (Seq, Seq)> + '_ {
        self.0.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_like_a_set(ops in proptest::collection::vec((1u64..60, 0u64..6), 0..40)) {
            let mut set = BTreeSet::new();
            let mut ranges = Intervals::default();
            for (first, more) in ops {
                set.extend(first..=first + more);
                ranges.insert(first, first + more);
            }
            for seq in 0..80 {
                prop_assert_eq!(ranges.contains(seq), set.contains(&seq));
                prop_assert_eq!(ranges.next_from(seq), set.range(seq..).next().copied());
                prop_assert_eq!(ranges.covered(seq, seq + 9), set.range(seq..=seq + 9).count() as u64);
            }
            let all: Vec<_> = ranges.iter().collect();
            prop_assert!(all.windows(2).all(|w| w[0].1 + 1 < w[1].0), "{:?}", all);
        }
    }
}
