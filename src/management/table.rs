//! State machines as data: rows of a table that code follows, tests check and `docs/device-management.md` draws.
//!
//! Promise: what a machine does is only what its rows say. An event without a row that fits is refused with the reason and
//! the events that would be taken. A table knows nothing of what its guards and effects mean.

use std::fmt::{self, Debug, Write};

/// States, events, guards or effects of a table: a closed list of names.
pub trait Word: Copy + Eq + Debug + Send + Sync + 'static {
    /// All of them.
    const ALL: &'static [Self];
    /// The name in messages, records and diagrams, such as `identity-changed`.
    fn as_str(self) -> &'static str;
    /// The word with this name.
    fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|word| word.as_str() == text)
    }
}

/// Declares an enum of words with their names.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$item_doc:meta])* $item:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
        pub enum $name { $($(#[$item_doc])* #[serde(rename = $text)] $item),+ }

        impl $crate::management::table::Word for $name {
            const ALL: &'static [Self] = &[$(Self::$item),+];
            fn as_str(self) -> &'static str {
                match self { $(Self::$item => $text),+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str($crate::management::table::Word::as_str(*self))
            }
        }
    };
}
pub(crate) use words;

/// One line: in state `from`, `event` leads to `to` and has `effects`, if `guard` holds.
#[derive(Debug, Clone, Copy)]
pub struct Row<S: 'static, E: 'static, G: 'static, F: 'static> {
    /// State before.
    pub from: S,
    /// What happens.
    pub event: E,
    /// Condition; `None` holds always.
    pub guard: Option<G>,
    /// State after.
    pub to: S,
    /// What is to be done, after the new state is durable.
    pub effects: &'static [F],
}

/// A state machine.
#[derive(Debug, Clone, Copy)]
pub struct Table<S: 'static, E: 'static, G: 'static, F: 'static> {
    /// Name in errors and headings.
    pub name: &'static str,
    /// States in which a life begins.
    pub initial: &'static [S],
    /// States in which it may end.
    pub terminal: &'static [S],
    /// The first row that fits is taken.
    pub rows: &'static [Row<S, E, G, F>],
}

/// Why an event was not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    table: &'static str,
    state: &'static str,
    event: &'static str,
    /// Guards that did not hold; empty when the event has no row in this state.
    pub failed: Vec<&'static str>,
    possible: Vec<&'static str>,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {}: ", self.table, self.state)?;
        if self.failed.is_empty() {
            write!(f, "`{}` is not possible now", self.event)?;
        } else {
            write!(f, "`{}` needs {}", self.event, self.failed.join(" or "))?;
        }
        match self.possible.is_empty() {
            true => write!(f, "; nothing is, this state is final"),
            false => write!(f, "; possible: {}", self.possible.join(", ")),
        }
    }
}

impl std::error::Error for Refused {}

impl<S: Word, E: Word, G: Word, F: Word> Table<S, E, G, F> {
    /// The row for `event` in state `from`.
    ///
    /// # Errors
    /// [`Refused`] when no row fits.
    pub fn decide(&self, from: S, event: E, holds: impl Fn(G) -> bool) -> Result<&'static Row<S, E, G, F>, Refused> {
        let mut failed = Vec::new();
        for row in self.rows.iter().filter(|r| r.from == from && r.event == event) {
            match row.guard {
                Some(guard) if !holds(guard) => failed.push(guard.as_str()),
                _ => return Ok(row),
            }
        }
        let mut possible: Vec<&'static str> = Vec::new();
        for row in self.rows.iter().filter(|r| r.from == from) {
            if !possible.contains(&row.event.as_str()) {
                possible.push(row.event.as_str());
            }
        }
        Err(Refused { table: self.name, state: from.as_str(), event: event.as_str(), failed, possible })
    }

    /// What is wrong with the table itself: states that cannot be reached or left, rows that are never taken.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut reached: Vec<S> = self.initial.to_vec();
        let mut next = 0;
        while next < reached.len() {
            let from = reached[next];
            for row in self.rows.iter().filter(|r| r.from == from) {
                if !reached.contains(&row.to) {
                    reached.push(row.to);
                }
            }
            next += 1;
        }
        for &state in S::ALL {
            if !reached.contains(&state) {
                problems.push(format!("{}: state {} cannot be reached", self.name, state.as_str()));
            }
            let left = self.rows.iter().any(|r| r.from == state && r.to != state);
            if !left && !self.terminal.contains(&state) {
                problems.push(format!("{}: state {} cannot be left", self.name, state.as_str()));
            }
        }
        for (i, row) in self.rows.iter().enumerate() {
            let shadowed = self.rows[..i]
                .iter()
                .any(|r| r.from == row.from && r.event == row.event && (r.guard.is_none() || r.guard == row.guard));
            if shadowed {
                problems.push(format!("{}: row {i} ({:?}, {:?}) is never taken", self.name, row.from, row.event));
            }
        }
        let unused = |all: &[&'static str], used: &dyn Fn(&str) -> bool, kind: &str, out: &mut Vec<String>| {
            out.extend(all.iter().filter(|w| !used(w)).map(|w| format!("{}: {kind} {w} is in no row", self.name)));
        };
        unused(&names::<E>(), &|w| self.rows.iter().any(|r| r.event.as_str() == w), "event", &mut problems);
        let guarded = |w: &str| self.rows.iter().any(|r| r.guard.is_some_and(|g| g.as_str() == w));
        unused(&names::<G>(), &guarded, "guard", &mut problems);
        let done = |w: &str| self.rows.iter().any(|r| r.effects.iter().any(|f| f.as_str() == w));
        unused(&names::<F>(), &done, "effect", &mut problems);
        problems
    }

    /// A mermaid state diagram, and the rows as a table below it.
    pub fn markdown(&self) -> String {
        let mut out = String::from("```mermaid\nstateDiagram-v2\n");
        let id = |s: S| s.as_str().replace('-', "_");
        let mut put = |line: fmt::Arguments<'_>| writeln!(out, "{line}").expect("writing to a String does not fail");
        for &state in S::ALL {
            put(format_args!("    {} : {}", id(state), state.as_str()));
        }
        for &state in self.initial {
            put(format_args!("    [*] --> {}", id(state)));
        }
        for row in self.rows.iter().filter(|r| r.from != r.to) {
            let guard = row.guard.map_or_else(String::new, |g| format!(" [{}]", g.as_str()));
            put(format_args!("    {} --> {} : {}{guard}", id(row.from), id(row.to), row.event.as_str()));
        }
        for &state in self.terminal {
            put(format_args!("    {} --> [*]", id(state)));
        }
        put(format_args!("```\n\n| in state | event | only if | next state | then |\n|---|---|---|---|---|"));
        for row in self.rows {
            let effects: Vec<_> = row.effects.iter().map(|f| f.as_str()).collect();
            let guard = row.guard.map_or("", |g| g.as_str());
            let (from, event, to) = (row.from.as_str(), row.event.as_str(), row.to.as_str());
            put(format_args!("| {from} | {event} | {guard} | {to} | {} |", effects.join(", ")));
        }
        out
    }
}

fn names<W: Word>() -> Vec<&'static str> {
    W::ALL.iter().map(|w| w.as_str()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    words!(
        /// S
        S { /// a
            A = "a", /// b
            B = "b-b", /// c
            C = "c" }
    );
    words!(
        /// E
        E { /// go
            Go = "go" }
    );
    words!(
        /// G
        G { /// g
            Ready = "ready" }
    );
    words!(
        /// F
        F { /// f
            Ring = "ring" }
    );

    const T: Table<S, E, G, F> = Table {
        name: "bell",
        initial: &[S::A],
        terminal: &[S::B],
        rows: &[Row { from: S::A, event: E::Go, guard: Some(G::Ready), to: S::B, effects: &[F::Ring] }],
    };

    #[test]
    fn a_refusal_names_what_is_missing() {
        assert_eq!(T.decide(S::A, E::Go, |_| true).unwrap().to, S::B);
        assert_eq!(
            T.decide(S::A, E::Go, |_| false).unwrap_err().to_string(),
            "bell is a: `go` needs ready; possible: go"
        );
        let last = T.decide(S::B, E::Go, |_| true).unwrap_err().to_string();
        assert_eq!(last, "bell is b-b: `go` is not possible now; nothing is, this state is final");
    }

    #[test]
    fn unreachable_states_are_found() {
        assert_eq!(T.problems(), ["bell: state c cannot be reached", "bell: state c cannot be left"]);
        assert!(T.markdown().contains("    a --> b_b : go [ready]"));
    }
}
