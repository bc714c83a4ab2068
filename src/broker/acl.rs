//! Who may publish and subscribe where.
//!
//! Rules are read in order and the first that speaks about the act decides; if none does, the default for the kind of
//! client decides. A subscription is accepted only if one rule (or the default) covers its whole filter and no earlier
//! `deny` touches any part of it: what is delivered is then never filtered message by message.

use super::{AclError, Identity, topic};

/// What a rule allows or takes away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Access {
    /// Neither publish nor subscribe.
    Deny,
    /// Subscribe.
    Read,
    /// Publish.
    Write,
    /// Publish and subscribe.
    #[default]
    ReadWrite,
}

impl Access {
    const fn reads(self) -> bool {
        matches!(self, Access::Read | Access::ReadWrite)
    }

    const fn writes(self) -> bool {
        matches!(self, Access::Write | Access::ReadWrite)
    }
}

/// Whom a rule speaks about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Who {
    /// Every client.
    Everyone,
    /// Clients without a user name or certificate.
    Anonymous,
    /// Clients with a user name or certificate.
    Authenticated,
    /// Clients whose identity (certificate name, else user name) matches; `*` stands for any characters.
    Name(String),
}

impl Who {
    /// Reads `*`, `anonymous`, `authenticated` (with a `$` before the last two, since a user may be called so) or a name
    /// pattern: `$anonymous`, `$authenticated`, `scada-*`.
    pub fn parse(text: &str) -> Self {
        match text {
            "*" => Who::Everyone,
            "$anonymous" => Who::Anonymous,
            "$authenticated" => Who::Authenticated,
            name => Who::Name(name.to_owned()),
        }
    }

    fn is(&self, identity: &Identity) -> bool {
        match (self, identity.name()) {
            (Who::Everyone, _) => true,
            (Who::Anonymous, name) => name.is_none(),
            (Who::Authenticated, name) => name.is_some(),
            (Who::Name(pattern), Some(name)) => glob(pattern, name),
            (Who::Name(_), None) => false,
        }
    }
}

/// One line of the access list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AclRule {
    who: Who,
    access: Access,
    filter: String,
}

impl AclRule {
    /// A rule for `filter`, in which `%u` stands for the client's identity, `%n` for the part of it behind the last `:` (the
    /// id in `device:pump-1`) and `%c` for its client id, each as a whole level or part of one. A client whose identity or id has `/`, `+` or `#` never matches a filter with it.
    pub fn new(who: Who, access: Access, filter: &str) -> Result<Self, AclError> {
        if topic::valid_filter(&filter.replace("%u", "u").replace("%n", "n").replace("%c", "c")) {
            Ok(Self { who, access, filter: filter.to_owned() })
        } else {
            Err(AclError::Filter(filter.to_owned()))
        }
    }

    /// The filter for this client; `None` when the rule is not about it.
    fn filter_for(&self, identity: &Identity) -> Option<String> {
        if !self.who.is(identity) {
            return None;
        }
        let mut filter = self.filter.clone();
        let name = identity.name().unwrap_or_default();
        let last = name.rsplit(':').next().unwrap_or_default();
        for (mark, value) in [("%u", name), ("%n", last), ("%c", &*identity.client_id)] {
            if filter.contains(mark) {
                if value.is_empty() || value.contains(['/', '+', '#']) {
                    return None;
                }
                filter = filter.replace(mark, value);
            }
        }
        Some(filter)
    }
}

/// The whole access list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acl {
    /// Read in order; the first that speaks about an act decides.
    pub rules: Vec<AclRule>,
    /// What a client with an identity may do where no rule speaks.
    pub authenticated: Access,
    /// What a client without one may do where no rule speaks.
    pub anonymous: Access,
}

impl Default for Acl {
    /// No rules: everyone who gets in may publish and subscribe everywhere.
    fn default() -> Self {
        Self { rules: Vec::new(), authenticated: Access::ReadWrite, anonymous: Access::ReadWrite }
    }
}

/// The rules of one client, with its names put in. Made once per connection.
#[derive(Debug, Clone)]
pub(crate) struct ClientAcl {
    rules: Vec<(Access, String)>,
    default: Access,
}

impl Acl {
    /// The part of the list that concerns `identity`.
    pub(crate) fn client(&self, identity: &Identity) -> ClientAcl {
        let rules = self.rules.iter().filter_map(|r| Some((r.access, r.filter_for(identity)?))).collect();
        let default = if identity.name().is_some() { self.authenticated } else { self.anonymous };
        ClientAcl { rules, default }
    }
}

impl ClientAcl {
    /// Nothing is allowed: for a client that is on its way out.
    pub fn nothing() -> Self {
        Self { rules: Vec::new(), default: Access::Deny }
    }

    /// Whether the client may publish to `topic`. Names that begin with `$` are the broker's own.
    pub fn may_publish(&self, topic: &str) -> bool {
        if topic.starts_with('$') {
            return false;
        }
        let rule = self
            .rules
            .iter()
            .find(|(access, filter)| (access.writes() || *access == Access::Deny) && topic::matches(filter, topic));
        rule.map_or(self.default, |(access, _)| *access).writes()
    }

    /// Whether the client may subscribe to the whole of `wanted` (without `$share`).
    pub fn may_subscribe(&self, wanted: &str) -> bool {
        for (access, filter) in &self.rules {
            if *access == Access::Deny && topic::overlaps(filter, wanted) {
                return false;
            }
            if access.reads() && topic::covers(filter, wanted) {
                return true;
            }
        }
        self.default.reads()
    }
}

/// Whether `name` matches `pattern`, in which `*` stands for any characters.
fn glob(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.len() >= last.len() && rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(user: Option<&str>, client: &str) -> Identity {
        Identity { client_id: client.into(), user: user.map(str::to_owned), ..Identity::default() }
    }

    fn rule(who: &str, access: Access, filter: &str) -> AclRule {
        AclRule::new(Who::parse(who), access, filter).unwrap()
    }

    #[test]
    fn the_first_rule_that_speaks_decides() {
        let acl = Acl {
            rules: vec![
                rule("eve", Access::Deny, "#"),
                rule("*", Access::Deny, "plant/+/secret/#"),
                rule("scada-*", Access::Read, "plant/#"),
                rule("*", Access::ReadWrite, "clients/%c/#"),
                rule("*", Access::Write, "users/%u/in"),
            ],
            authenticated: Access::Deny,
            anonymous: Access::Deny,
        };
        let scada = acl.client(&identity(Some("scada-7"), "c1"));
        assert!(scada.may_subscribe("plant/a/telemetry") && scada.may_subscribe("plant/a/points/+"));
        assert!(!scada.may_subscribe("plant/#") && !scada.may_subscribe("plant/a/+"), "part of it is denied");
        assert!(!scada.may_subscribe("plant/a/secret/x") && !scada.may_subscribe("#") && !scada.may_subscribe("other"));
        assert!(!scada.may_publish("plant/a/telemetry"), "read is not write");
        assert!(scada.may_publish("clients/c1/x") && !scada.may_publish("clients/c2/x"));
        assert!(scada.may_publish("users/scada-7/in") && !scada.may_publish("users/eve/in"));
        let eve = acl.client(&identity(Some("eve"), "c9"));
        assert!(!eve.may_publish("clients/c9/x") && !eve.may_subscribe("clients/c9/x"));
        let anonymous = acl.client(&identity(None, "c3"));
        assert!(anonymous.may_publish("clients/c3/x") && !anonymous.may_publish("users//in"));
    }

    #[test]
    fn names_with_wildcards_never_widen_a_rule() {
        let acl = Acl {
            rules: vec![rule("*", Access::ReadWrite, "clients/%c/#")],
            authenticated: Access::Deny,
            anonymous: Access::Deny,
        };
        for id in ["+", "#", "a/b", ""] {
            assert!(!acl.client(&identity(None, id)).may_subscribe("clients/other/x"), "{id}");
        }
    }

    #[test]
    fn without_rules_everything_but_system_topics_may_be_written() {
        let open = Acl::default().client(&identity(None, "c"));
        assert!(open.may_publish("a") && open.may_subscribe("#") && open.may_subscribe("$SYS/#"));
        assert!(!open.may_publish("$SYS/broker/uptime"));
    }

    #[test]
    fn patterns() {
        assert!(
            glob("*", "") && glob("a*", "abc") && glob("*c", "abc") && glob("a*b*c", "a-b-b-c") && glob("abc", "abc")
        );
        assert!(!glob("abc", "abcd") && !glob("a*bc*c", "abc") && !glob("", "a"));
        assert!(!glob("ab*ba", "aba"));
    }
}
