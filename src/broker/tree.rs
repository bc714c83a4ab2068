//! The subscription tree: from a topic name to everyone who asked for it.
//!
//! One node per level of a filter; a lookup visits each node at most once, so its cost is bounded by the tree and by the
//! topic, never by the number of clients. Empty nodes are pruned: nothing stays behind when a subscriber leaves.

use std::collections::HashMap;

/// Who gets the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Target {
    /// A client's session.
    Session(usize),
    /// A receiver inside this process.
    Local(usize),
}

/// One subscriber of a filter, with what it asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Subscriber<O> {
    pub target: Target,
    pub options: O,
}

#[derive(Debug)]
struct Leaf<O> {
    direct: Vec<Subscriber<O>>,
    groups: Vec<Group<O>>,
}

#[derive(Debug)]
struct Group<O> {
    name: Box<str>,
    members: Vec<Subscriber<O>>,
    next: usize,
}

#[derive(Debug)]
struct Node<O> {
    children: HashMap<Box<str>, Node<O>>,
    plus: Option<Box<Node<O>>>,
    exact: Leaf<O>,
    below: Leaf<O>,
}

impl<O> Default for Leaf<O> {
    fn default() -> Self {
        Self { direct: Vec::new(), groups: Vec::new() }
    }
}

impl<O> Default for Node<O> {
    fn default() -> Self {
        Self { children: HashMap::new(), plus: None, exact: Leaf::default(), below: Leaf::default() }
    }
}

/// Subscriptions by filter. `O` is what a subscriber asked for.
#[derive(Debug)]
pub(crate) struct Tree<O> {
    root: Node<O>,
}

impl<O> Default for Tree<O> {
    fn default() -> Self {
        Self { root: Node::default() }
    }
}

impl<O: Clone> Tree<O> {
    /// Adds or replaces the subscription of `target`; whether it is new. `filter` is valid and without `$share`.
    pub fn insert(&mut self, filter: &str, group: Option<&str>, target: Target, options: O) -> bool {
        let mut node = &mut self.root;
        let mut below = false;
        for level in filter.split('/') {
            match level {
                "#" => below = true,
                "+" => node = node.plus.get_or_insert_default(),
                name => node = node.children.entry(name.into()).or_default(),
            }
        }
        let leaf = if below { &mut node.below } else { &mut node.exact };
        leaf.insert(group, Subscriber { target, options })
    }

    /// Removes the subscription of `target`; whether there was one.
    pub fn remove(&mut self, filter: &str, group: Option<&str>, target: Target) -> bool {
        let levels: Vec<&str> = filter.split('/').collect();
        self.root.remove(&levels, group, target)
    }

    /// Calls `found` for each subscriber of `topic`; the same target comes once per matching filter. Of a shared group one
    /// member is chosen, in turn, among those for which `usable` holds (any member if it holds for none).
    pub fn matches(&mut self, topic: &str, usable: &dyn Fn(Target) -> bool, found: &mut dyn FnMut(&Subscriber<O>)) {
        let levels = &mut topic.split('/');
        self.root.matches(levels, !topic.starts_with('$'), usable, found);
    }

    #[cfg(test)]
    fn is_empty(&self) -> bool {
        self.root.is_empty()
    }
}

impl<O: Clone> Node<O> {
    fn is_empty(&self) -> bool {
        self.children.is_empty() && self.plus.is_none() && self.exact.is_empty() && self.below.is_empty()
    }

    fn remove(&mut self, levels: &[&str], group: Option<&str>, target: Target) -> bool {
        let Some((&first, rest)) = levels.split_first() else { return self.exact.remove(group, target) };
        if first == "#" {
            return self.below.remove(group, target);
        }
        if first == "+" {
            let Some(node) = self.plus.as_mut() else { return false };
            let removed = node.remove(rest, group, target);
            if node.is_empty() {
                self.plus = None;
            }
            return removed;
        }
        let Some(node) = self.children.get_mut(first) else { return false };
        let removed = node.remove(rest, group, target);
        if node.is_empty() {
            self.children.remove(first);
            self.children.shrink_to(2 * self.children.len());
        }
        removed
    }

    fn matches(
        &mut self,
        levels: &mut std::str::Split<'_, char>,
        wild: bool,
        usable: &dyn Fn(Target) -> bool,
        found: &mut dyn FnMut(&Subscriber<O>),
    ) {
        if wild {
            self.below.each(usable, found);
        }
        let Some(level) = levels.next() else { return self.exact.each(usable, found) };
        if wild && let Some(plus) = &mut self.plus {
            plus.matches(&mut levels.clone(), true, usable, found);
        }
        if let Some(child) = self.children.get_mut(level) {
            child.matches(levels, true, usable, found);
        }
    }
}

impl<O: Clone> Leaf<O> {
    fn is_empty(&self) -> bool {
        self.direct.is_empty() && self.groups.is_empty()
    }

    fn insert(&mut self, group: Option<&str>, subscriber: Subscriber<O>) -> bool {
        let list = match group {
            None => &mut self.direct,
            Some(name) => {
                let at = self.groups.iter().position(|g| &*g.name == name).unwrap_or_else(|| {
                    self.groups.push(Group { name: name.into(), members: Vec::new(), next: 0 });
                    self.groups.len() - 1
                });
                &mut self.groups[at].members
            }
        };
        match list.iter_mut().find(|s| s.target == subscriber.target) {
            Some(old) => {
                *old = subscriber;
                false
            }
            None => {
                list.push(subscriber);
                true
            }
        }
    }

    fn remove(&mut self, group: Option<&str>, target: Target) -> bool {
        let list = match group {
            None => &mut self.direct,
            Some(name) => match self.groups.iter_mut().find(|g| &*g.name == name) {
                Some(group) => &mut group.members,
                None => return false,
            },
        };
        let before = list.len();
        list.retain(|s| s.target != target);
        let removed = list.len() < before;
        self.groups.retain(|g| !g.members.is_empty());
        removed
    }

    fn each(&mut self, usable: &dyn Fn(Target) -> bool, found: &mut dyn FnMut(&Subscriber<O>)) {
        self.direct.iter().for_each(&mut *found);
        for group in &mut self.groups {
            let count = group.members.len();
            let turn = group.next % count;
            let chosen =
                (0..count).map(|i| (turn + i) % count).find(|&i| usable(group.members[i].target)).unwrap_or(turn);
            group.next = chosen + 1;
            found(&group.members[chosen]);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::broker::topic;

    fn found(tree: &mut Tree<u8>, topic: &str) -> BTreeSet<usize> {
        let mut all = BTreeSet::new();
        tree.matches(topic, &|_| true, &mut |s| {
            if let Target::Session(id) = s.target {
                all.insert(id);
            }
        });
        all
    }

    #[test]
    fn a_group_gets_each_message_once_in_turn_and_skips_who_is_away() {
        let mut tree = Tree::default();
        for id in 0..3 {
            tree.insert("a/+", Some("g"), Target::Session(id), 0u8);
        }
        let mut order = Vec::new();
        for _ in 0..6 {
            tree.matches("a/b", &|t| t != Target::Session(1), &mut |s| order.push(s.target));
        }
        let expected = [0, 2, 0, 2, 0, 2].map(Target::Session);
        assert_eq!(order, expected);
    }

    fn filter() -> impl Strategy<Value = String> {
        prop::collection::vec(prop_oneof![Just("a"), Just("b"), Just("+"), Just(""), Just("$x")], 1..4)
            .prop_flat_map(|levels| any::<bool>().prop_map(move |tail| levels.join("/") + if tail { "/#" } else { "" }))
    }

    proptest! {
        #[test]
        fn agrees_with_a_linear_search_and_leaves_nothing_behind(
            filters in prop::collection::vec(filter(), 0..12),
            topics in prop::collection::vec("[ab$x]{0,2}(/[ab]?){0,3}", 1..6),
        ) {
            let mut tree = Tree::default();
            for (id, filter) in filters.iter().enumerate() {
                prop_assert!(tree.insert(filter, None, Target::Session(id), 0));
                prop_assert!(!tree.insert(filter, None, Target::Session(id), 1));
            }
            for topic in topics.iter().filter(|t| topic::valid_name(t)) {
                let expected: BTreeSet<usize> =
                    filters.iter().enumerate().filter(|(_, f)| topic::matches(f, topic)).map(|(id, _)| id).collect();
                prop_assert_eq!(found(&mut tree, topic), expected, "{}", topic);
            }
            for (id, filter) in filters.iter().enumerate() {
                prop_assert!(tree.remove(filter, None, Target::Session(id)));
                prop_assert!(!tree.remove(filter, None, Target::Session(id)));
            }
            prop_assert!(tree.is_empty());
        }
    }
}
