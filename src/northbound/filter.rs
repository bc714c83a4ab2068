//! Which devices, points and lanes a consumer wants.

use crate::model::Lane;

/// A name pattern: `*` stands for any text, `?` for one character, everything else for itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    /// A pattern; every text is one.
    pub fn new(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// Whether `name` fits.
    pub fn matches(&self, name: &str) -> bool {
        let (pattern, name) = (self.0.as_bytes(), name.as_bytes());
        let (mut p, mut n) = (0, 0);
        let mut star: Option<(usize, usize)> = None;
        while n < name.len() {
            match pattern.get(p) {
                Some(b'*') => {
                    star = Some((p, n));
                    p += 1;
                }
                Some(&c) if c == b'?' || c == name[n] => {
                    p += 1;
                    n += 1;
                }
                _ => match star {
                    // The last star takes one more character.
                    Some((at, taken)) => {
                        star = Some((at, taken + 1));
                        p = at + 1;
                        n = taken + 1;
                    }
                    None => return false,
                },
            }
        }
        pattern[p..].iter().all(|&c| c == b'*')
    }
}

/// What a consumer wants. Empty lists mean everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// Devices wanted; an event of the gateway itself always passes.
    pub devices: Vec<Pattern>,
    /// Points wanted.
    pub points: Vec<Pattern>,
    /// Lanes wanted; records of other lanes are confirmed unsent.
    pub lanes: Vec<Lane>,
}

impl Default for Filter {
    fn default() -> Self {
        Self { devices: Vec::new(), points: Vec::new(), lanes: Lane::ALL.to_vec() }
    }
}

impl Filter {
    /// Whether records of this device are wanted.
    pub fn wants_device(&self, device: &str) -> bool {
        device.is_empty() || self.devices.is_empty() || self.devices.iter().any(|p| p.matches(device))
    }

    /// Whether this point is wanted.
    pub fn wants_point(&self, point: &str) -> bool {
        self.points.is_empty() || self.points.iter().any(|p| p.matches(point))
    }

    /// Whether records of this lane are wanted.
    pub fn wants_lane(&self, lane: Lane) -> bool {
        self.lanes.contains(&lane)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The obvious definition, exponential and easy to believe.
    fn naive(pattern: &[u8], name: &[u8]) -> bool {
        match (pattern.split_first(), name.split_first()) {
            (None, None) => true,
            (Some((b'*', rest)), _) => naive(rest, name) || (!name.is_empty() && naive(pattern, &name[1..])),
            (Some((&c, rest)), Some((&d, tail))) => (c == b'?' || c == d) && naive(rest, tail),
            _ => false,
        }
    }

    #[test]
    fn stars_and_question_marks() {
        for (pattern, name, fits) in [
            ("pump-*", "pump-1", true),
            ("pump-?", "pump-12", false),
            ("*", "", true),
            ("a*c", "abbc", true),
            ("a", "b", false),
        ] {
            assert_eq!(Pattern::new(pattern).matches(name), fits, "{pattern} {name}");
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_definition(pattern in "[ab*?]{0,8}", name in "[ab]{0,8}") {
            prop_assert_eq!(Pattern::new(&pattern).matches(&name), naive(pattern.as_bytes(), name.as_bytes()));
        }
    }
}
