//! Topic names and filters: what is legal, what matches, and what a filter covers.

/// Prefix of a shared subscription [MQTT 5, 4.8.2].
pub(crate) const SHARE: &str = "$share/";

/// Most levels of a name or filter, the same as mosquitto's: bounds the depth of the subscription tree.
const MAX_LEVELS: usize = 200;

/// Whether `topic` may be published to: not empty, no wildcard, at most 200 levels.
pub(crate) fn valid_name(topic: &str) -> bool {
    !topic.is_empty() && topic.len() <= 65_535 && !topic.contains(['+', '#', '\0']) && few_levels(topic)
}

/// Whether `filter` is a legal filter without the `$share` prefix [MQTT-4.7.1-1 to -3].
pub(crate) fn valid_filter(filter: &str) -> bool {
    if filter.is_empty() || filter.len() > 65_535 || filter.contains('\0') || !few_levels(filter) {
        return false;
    }
    let mut levels = filter.split('/').peekable();
    while let Some(level) = levels.next() {
        let wild = level.contains(['+', '#']);
        if wild && level.len() != 1 || level == "#" && levels.peek().is_some() {
            return false;
        }
    }
    true
}

fn few_levels(text: &str) -> bool {
    text.bytes().filter(|&b| b == b'/').count() < MAX_LEVELS
}

/// `$share/group/filter` taken apart; `Ok((None, filter))` for an ordinary filter, `Err` when it is neither.
pub(crate) fn split_share(filter: &str) -> Result<(Option<&str>, &str), ()> {
    let (group, inner) = match filter.strip_prefix(SHARE) {
        None => (None, filter),
        Some(rest) => {
            let (group, inner) = rest.split_once('/').ok_or(())?;
            if group.is_empty() || group.contains(['+', '#']) {
                return Err(());
            }
            (Some(group), inner)
        }
    };
    if valid_filter(inner) { Ok((group, inner)) } else { Err(()) }
}

/// Whether `filter` matches the name `topic`. Wildcards in the first level do not match names that begin with `$`
/// [MQTT-4.7.2-1].
pub(crate) fn matches(filter: &str, topic: &str) -> bool {
    covers(filter, topic)
}

/// Whether every name that `inner` matches is also matched by `outer`; both are filters, a name is a filter too.
pub(crate) fn covers(outer: &str, inner: &str) -> bool {
    if inner.starts_with('$') && outer.starts_with(['+', '#']) {
        return false;
    }
    let mut inner = inner.split('/');
    for level in outer.split('/') {
        if level == "#" {
            return true;
        }
        match inner.next() {
            None | Some("#") => return false,
            Some(_) if level == "+" => {}
            Some(name) if name == level => {}
            Some(_) => return false,
        }
    }
    inner.next().is_none()
}

/// Whether some name is matched by both filters.
pub(crate) fn overlaps(a: &str, b: &str) -> bool {
    let wild_first = |filter: &str| filter.starts_with(['+', '#']);
    if a.starts_with('$') && wild_first(b) || b.starts_with('$') && wild_first(a) {
        return false;
    }
    let (mut a, mut b) = (a.split('/'), b.split('/'));
    loop {
        match (a.next(), b.next()) {
            (Some("#"), _) | (_, Some("#")) => return true,
            (None, None) => return true,
            (None, Some(_)) | (Some(_), None) => return false,
            (Some(x), Some(y)) if x == y || x == "+" || y == "+" => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn matching_follows_the_examples_of_the_standard() {
        for (filter, topic, expected) in [
            ("sport/tennis/player1/#", "sport/tennis/player1", true),
            ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", true),
            ("sport/#", "sport", true),
            ("sport/tennis/+", "sport/tennis/player1/ranking", false),
            ("sport/+", "sport", false),
            ("sport/+", "sport/", true),
            ("+/+", "/finance", true),
            ("/+", "/finance", true),
            ("+", "/finance", false),
            ("#", "$SYS/uptime", false),
            ("+/monitor/Clients", "$SYS/monitor/Clients", false),
            ("$SYS/#", "$SYS/uptime", true),
            ("#", "a/b", true),
        ] {
            assert_eq!(matches(filter, topic), expected, "{filter} {topic}");
        }
    }

    #[test]
    fn filters_are_checked() {
        for good in ["#", "+", "a/+/b", "a/#", "/", "//", "+/+/#", "a b/ü"] {
            assert!(valid_filter(good), "{good}");
        }
        for bad in ["", "a#", "a/#/b", "a+/b", "##", "++", "a/b#"] {
            assert!(!valid_filter(bad), "{bad}");
        }
        assert!(valid_filter(&"/".repeat(199)) && !valid_filter(&"/".repeat(200)));
    }

    #[test]
    fn shares_are_taken_apart() {
        assert_eq!(split_share("$share/g/a/+"), Ok((Some("g"), "a/+")));
        assert_eq!(split_share("a"), Ok((None, "a")));
        for bad in ["$share/g", "$share//a", "$share/+/a", "$share/g/", "$share/g/a#"] {
            assert_eq!(split_share(bad), Err(()), "{bad}");
        }
    }

    #[test]
    fn a_deny_for_part_of_a_wildcard_is_seen() {
        assert!(overlaps("#", "secret/x") && overlaps("a/+", "+/b") && overlaps("a/#", "a"));
        assert!(!overlaps("a/b", "a/c") && !overlaps("#", "$SYS/x") && !overlaps("a/+", "a"));
    }

    fn level() -> impl Strategy<Value = String> {
        prop_oneof![Just("a".to_owned()), Just("b".to_owned()), Just("+".to_owned()), Just(String::new())]
    }
    prop_compose! {
        fn filter()(levels in prop::collection::vec(level(), 1..4), tail in any::<bool>()) -> String {
            let mut levels = levels;
            if tail { levels.push("#".to_owned()); }
            levels.join("/")
        }
    }
    prop_compose! {
        fn name()(levels in prop::collection::vec("[ab]?", 1..5)) -> String { levels.join("/") }
    }

    proptest! {
        #[test]
        fn cover_and_overlap_agree_with_matching(a in filter(), b in filter(), topic in name()) {
            let (ma, mb) = (matches(&a, &topic), matches(&b, &topic));
            if covers(&a, &b) && mb { prop_assert!(ma, "{a} covers {b} but not {topic}"); }
            if ma && mb { prop_assert!(overlaps(&a, &b)); }
        }
    }
}
