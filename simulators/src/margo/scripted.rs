//! Faults that happen so often, for the simpler services.

use serde::{Deserialize, Serialize};

/// A fault and how often it happens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Times<F> {
    /// What goes wrong.
    #[serde(flatten)]
    pub fault: F,
    /// How often; none until it is cleared.
    #[serde(default = "Option::default")]
    pub times: Option<u32>,
}

impl<F> From<F> for Times<F> {
    fn from(fault: F) -> Self {
        Self { fault, times: None }
    }
}

impl<F> Times<F> {
    /// Only so often.
    pub const fn only(fault: F, times: u32) -> Self {
        Self { fault, times: Some(times) }
    }
}

#[derive(Debug)]
pub(crate) struct Scripted<F>(Vec<Times<F>>);

impl<F> Default for Scripted<F> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<F: Clone> Scripted<F> {
    pub fn add(&mut self, fault: Times<F>) {
        self.0.push(fault);
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }

    pub fn all(&self) -> &[Times<F>] {
        &self.0
    }

    /// The faults of a request; those that fit are counted.
    pub fn take(&mut self, fits: impl Fn(&F) -> bool) -> Vec<F> {
        let mut found = Vec::new();
        for rule in self.0.iter_mut().filter(|rule| rule.times != Some(0) && fits(&rule.fault)) {
            rule.times = rule.times.map(|times| times - 1);
            found.push(rule.fault.clone());
        }
        self.0.retain(|rule| rule.times != Some(0));
        found
    }
}
