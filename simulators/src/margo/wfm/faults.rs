//! Faults: what goes wrong, where, and how often.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Op;
use crate::margo::scripted::{field, strict};

/// One thing that goes wrong.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "fault", rename_all = "kebab-case")]
pub enum Fault {
    // The manifest. The artifacts stay right.
    /// The digest of one entry is another's.
    EntryDigest {
        /// Which, from 0.
        index: usize,
    },
    /// The digest of the bundle is another's.
    BundleDigest,
    /// Every digest is SHA-512, and right.
    Sha512,
    /// One entry's digest is SHA-512, the others' SHA-256.
    Sha512Entry {
        /// Which, from 0.
        index: usize,
    },
    /// An earlier manifest, with its content if it is still known.
    Rollback {
        /// How many versions back.
        by: u64,
    },
    /// The version of the last manifest with other content.
    SameVersion,
    /// This version, whatever it is.
    Version {
        /// The version.
        value: u64,
    },
    /// Every `sizeBytes` is off by so much.
    SizesLie {
        /// Bytes, negative for less.
        by: i64,
    },
    /// No `sizeBytes` anywhere; it is optional.
    SizesMissing,
    /// Fields nobody knows, at every level.
    UnknownFields,
    /// `bundle` is null though there are deployments.
    BundleNull,
    /// The body is no JSON.
    ManifestGarbage,
    /// `If-None-Match` is ignored: always 200.
    EtagIgnored,
    /// No `ETag`.
    EtagMissing,

    // The artifacts. The manifest is right about what it can be right about.
    /// One YAML is not what its digest says, alone and in the bundle.
    AlteredDeployment {
        /// Which, from 0.
        index: usize,
    },
    /// `metadata.annotations.id` of one YAML is another's.
    WrongId {
        /// Which, from 0.
        index: usize,
    },
    /// One YAML is no YAML.
    DeploymentGarbage {
        /// Which, from 0.
        index: usize,
    },
    /// The bundle holds a file that nobody refers to.
    ExtraFile,
    /// The bundle lacks one YAML.
    MissingFile {
        /// Which, from 0.
        index: usize,
    },
    /// The bundle holds one YAML twice.
    DuplicateFile,
    /// The YAMLs of the bundle lie in a folder.
    NestedFiles,
    /// The names in the bundle are these, one after the other, for path traversal.
    Names {
        /// Such as `../../etc/passwd`.
        names: Vec<String>,
    },
    /// The bundle holds a symbolic link.
    Symlink,
    /// The bundle unpacks to so much.
    Bomb {
        /// Mebibytes of zeros.
        mebibytes: usize,
    },
    /// The bundle is no archive.
    BundleGarbage,
    /// Artifacts are not there: 404.
    ArtifactMissing,

    // Answers.
    /// A problem document.
    Problem {
        /// Last segment of its type, such as `semantic-error`.
        name: String,
        /// HTTP status.
        status: u16,
        /// Root of its type.
        #[serde(default)]
        root: TypeRoot,
        /// `Retry-After`, seconds.
        #[serde(default)]
        retry_after: Option<u64>,
        /// `retryable`.
        #[serde(default)]
        retryable: Option<bool>,
        /// `retryAfterSeconds`.
        #[serde(default)]
        retry_after_seconds: Option<u64>,
        /// `backoffStrategy`.
        #[serde(default)]
        backoff: Option<String>,
    },
    /// `{"error": …}` as plain JSON.
    PlainJson {
        /// HTTP status.
        status: u16,
        /// `Retry-After`, seconds.
        #[serde(default)]
        retry_after: Option<u64>,
    },
    /// No body.
    Empty {
        /// HTTP status.
        status: u16,
        /// `Retry-After`, as it is written: seconds or a date.
        #[serde(default)]
        retry_after: Option<String>,
    },
    /// A page for people, as a proxy in between would send.
    Html {
        /// HTTP status.
        status: u16,
    },
    /// 403: the relationship between WFM and client is retired.
    Retired,

    // The connection.
    /// The answer comes later.
    Latency {
        /// Milliseconds.
        ms: u64,
    },
    /// The body comes in dribs.
    Dribble {
        /// Bytes at a time.
        bytes: usize,
        /// Milliseconds in between.
        every_ms: u64,
    },
    /// The body ends early.
    Truncate {
        /// After so many bytes.
        bytes: usize,
    },
    /// The connection closes before anything is done.
    HangUp,
    /// The connection is reset before anything is done.
    Reset,
    /// What was asked is done, and the answer is lost with the connection.
    LoseAnswer,
}

/// Root of a problem's type; all three are seen in documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TypeRoot {
    /// `https://docs.margo.org/specification/problem-types#…`
    #[default]
    ProblemTypes,
    /// `https://docs.margo.org/specification/problems/…`
    Problems,
    /// `https://margo.org/docs/errors/…`
    Errors,
}

impl TypeRoot {
    /// All three.
    pub const ALL: [Self; 3] = [Self::ProblemTypes, Self::Problems, Self::Errors];

    /// The type with that last segment.
    pub fn of(self, name: &str) -> String {
        match self {
            Self::ProblemTypes => format!("https://docs.margo.org/specification/problem-types#{name}"),
            Self::Problems => format!("https://docs.margo.org/specification/problems/{name}"),
            Self::Errors => format!("https://margo.org/docs/errors/{name}"),
        }
    }
}

impl Fault {
    /// A problem with the first type root and nothing said about retrying.
    pub fn problem(status: u16, name: &str) -> Self {
        Self::Problem {
            name: name.to_owned(),
            status,
            root: TypeRoot::default(),
            retry_after: None,
            retryable: None,
            retry_after_seconds: None,
            backoff: None,
        }
    }

    /// Where it happens when nothing else is said.
    fn fits(&self, op: Op) -> bool {
        match self {
            Self::ArtifactMissing => matches!(op, Op::Bundle | Op::Deployment),
            _ if self.is_content() => op == Op::Manifest,
            _ => true,
        }
    }

    /// Whether it spoils what a manifest says or refers to.
    pub(super) const fn is_content(&self) -> bool {
        !matches!(
            self,
            Self::ArtifactMissing
                | Self::Problem { .. }
                | Self::PlainJson { .. }
                | Self::Empty { .. }
                | Self::Html { .. }
                | Self::Retired
                | Self::Latency { .. }
                | Self::Dribble { .. }
                | Self::Truncate { .. }
                | Self::HangUp
                | Self::Reset
                | Self::LoseAnswer
        )
    }
}

/// A fault with its place and its number.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Map<String, Value>")]
pub struct Rule {
    /// What goes wrong.
    #[serde(flatten)]
    pub fault: Fault,
    /// In which request; none for all that it fits.
    pub on: Option<Op>,
    /// For which client; none for all.
    pub client: Option<String>,
    /// For which device or deployment (part of the path); none for all.
    pub path: Option<String>,
    /// So many requests that fit go well first.
    pub skip: u32,
    /// How often; none until it is cleared.
    pub times: Option<u32>,
}

impl TryFrom<Map<String, Value>> for Rule {
    type Error = serde_json::Error;

    fn try_from(mut fields: Map<String, Value>) -> Result<Self, Self::Error> {
        Ok(Self {
            on: field(&mut fields, "on")?,
            client: field(&mut fields, "client")?,
            path: field(&mut fields, "path")?,
            skip: field(&mut fields, "skip")?,
            times: field(&mut fields, "times")?,
            fault: strict(fields)?,
        })
    }
}

impl From<Fault> for Rule {
    fn from(fault: Fault) -> Self {
        Self { fault, on: None, client: None, path: None, skip: 0, times: None }
    }
}

impl Rule {
    /// Only so often.
    pub fn times(mut self, times: u32) -> Self {
        self.times = Some(times);
        self
    }

    /// Only there.
    pub fn on(mut self, op: Op) -> Self {
        self.on = Some(op);
        self
    }

    /// Only for that client.
    pub fn client(mut self, client: &str) -> Self {
        self.client = Some(client.to_owned());
        self
    }

    /// Only where the path holds this.
    pub fn path(mut self, part: &str) -> Self {
        self.path = Some(part.to_owned());
        self
    }

    /// Only after so many that go well.
    pub fn skip(mut self, skip: u32) -> Self {
        self.skip = skip;
        self
    }
}

/// The rules in force.
#[derive(Debug, Default)]
pub(super) struct Script {
    rules: Vec<Rule>,
}

impl Script {
    pub fn add(&mut self, rule: Rule) {
        self.rules.push(rule);
    }

    pub fn clear(&mut self) {
        self.rules.clear();
    }

    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// The faults of one request; each that happens is counted.
    pub fn take(&mut self, op: Op, client: &str, path: &str) -> Vec<Fault> {
        let mut found = Vec::new();
        for rule in &mut self.rules {
            let here = rule.on.map_or_else(|| rule.fault.fits(op), |on| on == op)
                && rule.client.as_deref().is_none_or(|wanted| wanted == client)
                && rule.path.as_deref().is_none_or(|part| path.contains(part));
            if !here || rule.times == Some(0) {
                continue;
            }
            if rule.skip > 0 {
                rule.skip -= 1;
                continue;
            }
            rule.times = rule.times.map(|times| times - 1);
            found.push(rule.fault.clone());
        }
        self.rules.retain(|rule| rule.times != Some(0));
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_happens_where_and_as_often_as_it_says() {
        let mut script = Script::default();
        script.add(Rule::from(Fault::HangUp).on(Op::Status).skip(1).times(2));
        script.add(Fault::Sha512.into());
        script.add(Rule::from(Fault::Retired).client("b"));
        let at = |script: &mut Script, op| script.take(op, "a", "/api/v1/x");
        assert!(at(&mut script, Op::Status).is_empty());
        assert_eq!(at(&mut script, Op::Manifest), [Fault::Sha512]);
        assert_eq!(at(&mut script, Op::Status), [Fault::HangUp]);
        assert_eq!(at(&mut script, Op::Status), [Fault::HangUp]);
        assert!(at(&mut script, Op::Status).is_empty());
        assert_eq!(script.take(Op::Bundle, "b", ""), [Fault::Retired]);
        assert_eq!(script.rules().len(), 2);
    }

    #[test]
    fn rules_are_written_flat() {
        let rule: Rule = toml::from_str("fault = \"entry-digest\"\nindex = 3\ntimes = 1\non = \"manifest\"").unwrap();
        assert_eq!(rule, Rule::from(Fault::EntryDigest { index: 3 }).times(1).on(Op::Manifest));
        let rule: Rule =
            serde_json::from_str(r#"{"fault":"problem","name":"busy","status":503,"root":"errors"}"#).unwrap();
        assert!(matches!(rule.fault, Fault::Problem { root: TypeRoot::Errors, status: 503, .. }));
        assert_eq!(serde_json::from_value::<Rule>(serde_json::to_value(&rule).unwrap()).unwrap(), rule);
        for misspelt in
            [r#"{"fault":"reset","time":1}"#, r#"{"fault":"rollback","by":1,"On":"manifest"}"#, r#"{"times":1}"#]
        {
            assert!(serde_json::from_str::<Rule>(misspelt).is_err(), "{misspelt}");
        }
    }
}
