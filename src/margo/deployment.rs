//! An ApplicationDeployment: what is to run where, with which parameters.
//!
//! The YAML is read within a budget ([`super::yaml`]), so that a document cannot cost more than it weighs.
//! Unknown fields are let pass; versions that YAML takes for numbers are read as the texts that they are.

use std::time::Duration;

use serde_json::Value;

use super::api::MAX_DEPLOYMENT;
use super::words::{DeploymentId, Target, WordError};
use super::yaml::{self, Zeros};

/// Most components and parameters.
const MAX_PARTS: usize = 100;

/// Why a deployment cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeploymentError {
    /// No YAML, or over the budget.
    #[error("the deployment is no YAML that can be read: {0}")]
    Yaml(String),
    /// A field is missing or wrong.
    #[error("`{field}` of the deployment {reason}")]
    Field {
        /// Path of the field.
        field: String,
        /// What is wrong.
        reason: String,
    },
    /// The id or the target.
    #[error("the deployment is refused: {0}")]
    Word(#[from] WordError),
}

/// Kinds of deployments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Profile {
    /// Helm charts (older: `helm.v3`).
    Helm,
    /// Compose files (drafts: `compose.v1`).
    Compose,
    /// What the supplier and the device agree on; here: see [`super::component`].
    Custom,
    /// Anything else.
    Other(String),
}

impl Profile {
    /// As the standard writes it.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Helm => "helm",
            Self::Compose => "compose",
            Self::Custom => "custom",
            Self::Other(name) => name,
        }
    }
}

/// One component.
#[derive(Debug, Clone, PartialEq)]
pub struct ComponentRef {
    /// Unique in the deployment.
    pub name: String,
    /// `oci://…`.
    pub repository: String,
    /// Tag, digest, or both (`1.2.0@sha256:…`).
    pub revision: String,
    /// How long it may take.
    pub timeout: Option<Duration>,
}

/// One parameter and where it goes.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameter {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: Value,
    /// Pointer and the components that it is for.
    pub targets: Vec<(String, Vec<String>)>,
}

/// A deployment that can be used.
#[derive(Debug, Clone, PartialEq)]
pub struct Deployment {
    /// `metadata.annotations.id`.
    pub id: DeploymentId,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.deviceId`; `None` means the device that the client is.
    pub target: Option<Target>,
    /// `spec.deploymentProfile.type`.
    pub profile: Profile,
    /// `spec.deploymentProfile.components`.
    pub components: Vec<ComponentRef>,
    /// `spec.parameters`.
    pub parameters: Vec<Parameter>,
}

impl Deployment {
    /// Only the id, which acceptance of the whole manifest hangs on.
    ///
    /// # Errors
    /// When the YAML cannot be read or has none.
    pub fn parse_id(bytes: &[u8]) -> Result<DeploymentId, DeploymentError> {
        id(&yaml(bytes)?)
    }

    /// Reads a deployment.
    ///
    /// # Errors
    /// [`DeploymentError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, DeploymentError> {
        let root = yaml(bytes)?;
        let id = id(&root)?;
        match root["kind"].as_str() {
            Some("ApplicationDeployment") => {}
            other => return Err(wrong("kind", format!("is {other:?}, not ApplicationDeployment"))),
        }
        let metadata = &root["metadata"];
        // Some servers write the target beside the other annotations.
        let target = metadata.get("deviceId").or_else(|| metadata["annotations"].get("deviceId"));
        let target = target.filter(|target| !target.is_null()).map(|target| Target::new(&text(target))).transpose()?;
        for (field, id) in [
            ("metadata.annotations.applicationId", &metadata["annotations"]["applicationId"]),
            ("spec.applicationId", &root["spec"]["applicationId"]),
        ] {
            if !id.is_null() && !is_application_id(&text(id)) {
                return Err(wrong(field, "is none: it is 1 to 200 of a-z 0-9 -"));
            }
        }
        let profile = &root["spec"]["deploymentProfile"];
        Ok(Self {
            id,
            name: text(&metadata["name"]),
            target,
            profile: match text(&profile["type"]).as_str() {
                "" => return Err(wrong("spec.deploymentProfile.type", "is missing")),
                "helm" | "helm.v3" => Profile::Helm,
                "compose" | "compose.v1" => Profile::Compose,
                "custom" => Profile::Custom,
                other => Profile::Other(other.to_owned()),
            },
            components: components(&profile["components"])?,
            parameters: parameters(&root["spec"]["parameters"])?,
        })
    }

    /// The names of the components, for a status.
    pub fn component_names(&self) -> impl Iterator<Item = &str> {
        self.components.iter().map(|component| component.name.as_str())
    }
}

/// `^[-a-z0-9]{1,200}$`.
fn is_application_id(text: &str) -> bool {
    let legal = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    (1..=200).contains(&text.len()) && text.bytes().all(legal)
}

fn wrong(field: &str, reason: impl Into<String>) -> DeploymentError {
    DeploymentError::Field { field: field.to_owned(), reason: reason.into() }
}

fn yaml(bytes: &[u8]) -> Result<Value, DeploymentError> {
    yaml::read(bytes, MAX_DEPLOYMENT, Zeros::Decimal).map_err(DeploymentError::Yaml)
}

fn id(root: &Value) -> Result<DeploymentId, DeploymentError> {
    let id = root["metadata"]["annotations"]["id"].as_str();
    Ok(DeploymentId::new(id.ok_or_else(|| wrong("metadata.annotations.id", "is missing"))?)?)
}

/// A scalar as text: a revision `1.0` is a number to YAML.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Bool(bool) => bool.to_string(),
        _ => String::new(),
    }
}

fn components(value: &Value) -> Result<Vec<ComponentRef>, DeploymentError> {
    let list = value.as_array().map(Vec::as_slice).unwrap_or_default();
    if list.is_empty() || list.len() > MAX_PARTS {
        let reason = format!("has {} entries; it must have 1 to {MAX_PARTS}", list.len());
        return Err(wrong("spec.deploymentProfile.components", reason));
    }
    let mut components: Vec<ComponentRef> = Vec::with_capacity(list.len());
    for (i, item) in list.iter().enumerate() {
        let field = |name: &str| format!("spec.deploymentProfile.components[{i}].{name}");
        let (name, properties) = (text(&item["name"]), &item["properties"]);
        if name.is_empty() || name.len() > 200 || components.iter().any(|known| known.name == name) {
            return Err(wrong(&field("name"), "is missing, too long, or that of another component"));
        }
        let timeout =
            match text(&properties["timeout"]) {
                none if none.is_empty() => None,
                text => Some(duration(&text).ok_or_else(|| {
                    wrong(&field("properties.timeout"), format!("is {text:?}; write such as \"8m30s\""))
                })?),
            };
        let (repository, revision) = (text(&properties["repository"]), text(&properties["revision"]));
        components.push(ComponentRef { name, repository, revision, timeout });
    }
    Ok(components)
}

fn parameters(value: &Value) -> Result<Vec<Parameter>, DeploymentError> {
    let Some(map) = value.as_object() else { return Ok(Vec::new()) };
    if map.len() > MAX_PARTS {
        return Err(wrong("spec.parameters", format!("has {} entries, at most {MAX_PARTS} are taken", map.len())));
    }
    map.iter()
        .map(|(name, parameter)| {
            let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
            let targets = list(&parameter["targets"]).into_iter().map(|target| {
                let pointer = text(&target["pointer"]);
                (pointer, list(&target["components"]).iter().map(text).collect())
            });
            Ok(Parameter { name: name.clone(), value: parameter["value"].clone(), targets: targets.collect() })
        })
        .collect()
}

/// `8m30s`, `90s`, `1h`.
fn duration(text: &str) -> Option<Duration> {
    let (mut rest, mut total) = (text, 0_u64);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).filter(|end| *end > 0)?;
        let (number, tail) = rest.split_at(digits);
        let unit = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        let factor = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return None,
        };
        total = total.checked_add(number.parse::<u64>().ok()?.checked_mul(factor)?)?;
        rest = tail;
    }
    (!text.is_empty()).then(|| Duration::from_millis(total))
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// A deployment with one component per name.
    pub(crate) fn example(id: &str, target: &str, components: &[(&str, &str)], parameters: &str) -> String {
        let component = |(name, revision): &(&str, &str)| {
            format!(
                "      - name: {name}\n        properties:\n          repository: oci://registry.example/{name}\n          revision: {revision}\n"
            )
        };
        let components: String = components.iter().map(component).collect();
        format!(
            "apiVersion: application.margo.org/v1alpha1\nkind: ApplicationDeployment\nmetadata:\n  annotations:\n    id: {id}\n    applicationId: com-acme-recipe\n  name: recipe\n  namespace: margo\n  deviceId: {target}\n  unknownField: {{a: 1}}\nspec:\n  deploymentProfile:\n    type: custom\n    components:\n{components}  parameters:{parameters}\n"
        )
    }

    const ID: &str = "6ba7b810-9dad-41d1-80b4-00c04fd430c8";

    #[test]
    fn a_deployment_is_read_with_target_components_and_parameters() {
        let parameters = "\n    speed:\n      value: 42\n      targets:\n        - pointer: /values/speed\n          components: [recipe]";
        let text = example(ID, "gw/pump-1", &[("recipe", "1.0")], parameters);
        let deployment = Deployment::parse(text.as_bytes()).unwrap();
        assert_eq!(deployment.id.as_str(), ID);
        assert_eq!(deployment.target, Some(Target::new("gw/pump-1").unwrap()));
        assert_eq!(deployment.profile, Profile::Custom);
        assert_eq!(deployment.components[0].revision, "1.0", "no number");
        let speed = Parameter {
            name: "speed".to_owned(),
            value: json!(42),
            targets: vec![("/values/speed".to_owned(), vec!["recipe".to_owned()])],
        };
        assert_eq!(deployment.parameters, [speed]);
        let star = Deployment::parse(example(ID, "gw/*", &[("a", "v1")], " {}").as_bytes()).unwrap();
        assert_eq!(star.target, Some(Target::new("gw/*").unwrap()));
    }

    #[test]
    fn deployments_that_cannot_be_used_say_which_field() {
        let good = example(ID, "gw", &[("a", "v1")], " {}");
        let cases = [
            ("type: custom", "type: ''", "spec.deploymentProfile.type"),
            ("kind: ApplicationDeployment", "kind: Pod", "kind"),
            ("- name: a", "- name: ''", "components[0].name"),
            ("          revision: v1", "          timeout: soon", "timeout"),
            ("applicationId: com-acme-recipe", "applicationId: Com.Acme", "metadata.annotations.applicationId"),
            ("spec:\n", "spec:\n  applicationId: ''\n", "spec.applicationId"),
        ];
        for (from, to, field) in cases {
            let error = Deployment::parse(good.replace(from, to).as_bytes()).unwrap_err().to_string();
            assert!(error.contains(field), "{error}");
        }
        assert!(matches!(Deployment::parse(good.replace(ID, "x").as_bytes()), Err(DeploymentError::Word(_))));
        assert!(matches!(
            Deployment::parse(good.replace("deviceId: gw", "deviceId: gw//x").as_bytes()),
            Err(DeploymentError::Word(_))
        ));
        assert!(matches!(Deployment::parse(b": : :"), Err(DeploymentError::Yaml(_))));
        let twice = example(ID, "gw", &[("a", "1"), ("a", "2")], " {}");
        assert!(matches!(Deployment::parse(twice.as_bytes()), Err(DeploymentError::Field { .. })));
    }

    #[test]
    fn an_application_id_is_1_to_200_lowercase_letters_digits_and_hyphens() {
        for good in ["a", "com-acme-recipe-2", "-", &"a".repeat(200)] {
            assert!(is_application_id(good), "{good}");
        }
        for bad in ["", "A", "a.b", "a_b", "ü", &"a".repeat(201)] {
            assert!(!is_application_id(bad), "{bad}");
        }
    }

    #[test]
    fn every_type_of_profile_is_known_and_the_older_helm_v3_is_helm() {
        let of = |name: &str| {
            let text = example(ID, "gw", &[("a", "v1")], " {}").replace("type: custom", &format!("type: {name}"));
            Deployment::parse(text.as_bytes()).unwrap().profile
        };
        assert_eq!((of("helm"), of("helm.v3"), of("compose")), (Profile::Helm, Profile::Helm, Profile::Compose));
        assert_eq!((of("custom"), of("wasm")), (Profile::Custom, Profile::Other("wasm".to_owned())));
    }

    #[test]
    fn optional_and_unknown_fields_are_let_pass() {
        let text = example(ID, "gw", &[("a", "1.2.0")], "")
            .replace("  namespace: margo\n", "  namespace: margo\n  labels: {line: '2'}\n")
            .replace("          revision", "          wait: true\n          timeout: 8m30s\n          revision")
            .replace("  parameters:", "    deviceConstraints: {cpus: [{cores: 1}]}\n  later: {b: [1]}");
        let deployment = Deployment::parse(text.as_bytes()).unwrap();
        assert_eq!(deployment.components[0].timeout, Some(Duration::from_secs(510)));
        assert!(deployment.parameters.is_empty());
        let without = text.replace("  deviceId: gw\n", "");
        assert_eq!(Deployment::parse(without.as_bytes()).unwrap().target, None, "the device that the client is");
    }

    #[test]
    fn a_document_cannot_cost_more_than_it_weighs() {
        let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
        for i in 1..12 {
            let refs = vec![format!("*a{}", i - 1); 10].join(",");
            bomb.push_str(&format!("a{i}: &a{i} [{refs}]\n"));
        }
        assert!(matches!(Deployment::parse_id(bomb.as_bytes()), Err(DeploymentError::Yaml(_))));
        let deep = format!("{}{}", "[".repeat(5_000), "]".repeat(5_000));
        assert!(matches!(Deployment::parse_id(deep.as_bytes()), Err(DeploymentError::Yaml(_))));
        assert!(matches!(Deployment::parse_id(&vec![b'a'; MAX_DEPLOYMENT + 1]), Err(DeploymentError::Yaml(_))));
    }

    #[test]
    fn timeouts_are_read() {
        for (text, ms) in [("8m30s", 510_000), ("90s", 90_000), ("1h", 3_600_000), ("250ms", 250)] {
            assert_eq!(duration(text), Some(Duration::from_millis(ms)), "{text}");
        }
        for bad in ["", "5", "s", "5x", "-5s", "99999999999999999999h"] {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = (Deployment::parse(&bytes), Deployment::parse_id(&bytes));
        }

        #[test]
        fn any_text_in_any_field_is_read_or_refused(a in "\\PC{0,30}", b in "\\PC{0,30}") {
            let text = example(ID, &a, &[(&b, "1")], " {}");
            let _ = Deployment::parse(text.as_bytes());
        }
    }
}
