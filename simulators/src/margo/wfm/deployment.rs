//! Deployments: what the fleet manager wants on a device, and its YAML.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::margo::MargoSimError;
use crate::margo::schema::is_device_id;
use crate::margo::tools::{is_uuid, uuid};

/// A deployment as a test or a scenario states it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Deployment {
    /// UUID; empty makes a random one.
    pub id: String,
    /// A device id, which may end in `/*`.
    pub target: String,
    /// `^[-a-z0-9]{1,200}$`.
    pub application: String,
    /// Name for people; empty takes the application's.
    pub name: String,
    /// `custom`, `compose` or `helm`.
    pub kind: String,
    /// Its components.
    #[serde(rename = "component")]
    pub components: Vec<Component>,
    /// Its parameters.
    #[serde(rename = "parameter")]
    pub parameters: Vec<Parameter>,
}

impl Default for Deployment {
    fn default() -> Self {
        Self {
            id: String::new(),
            target: String::new(),
            application: "application".to_owned(),
            name: String::new(),
            kind: "custom".to_owned(),
            components: Vec::new(),
            parameters: Vec::new(),
        }
    }
}

/// A component.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Component {
    /// Unique in the deployment.
    pub name: String,
    /// `oci://…`.
    #[serde(default)]
    pub repository: String,
    /// Tag or digest.
    #[serde(default)]
    pub revision: String,
    /// Whatever else stands in `properties`, such as `wait` or `timeout`.
    #[serde(default)]
    pub properties: Map<String, Value>,
}

/// A parameter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parameter {
    /// Unique in the deployment.
    pub name: String,
    /// Any value.
    pub value: Value,
    /// Where it goes in the components.
    pub pointer: String,
    /// Names of components.
    pub components: Vec<String>,
}

/// A deployment with its YAML.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Document {
    /// UUID.
    pub id: String,
    /// A device id, which may end in `/*`.
    pub target: String,
    /// Names of its components.
    pub components: Vec<String>,
    /// What clients are given.
    pub yaml: String,
}

impl Deployment {
    /// A deployment of `custom` components to a target, with a random id.
    pub fn custom(target: &str, application: &str) -> Self {
        Self { id: uuid(), target: target.to_owned(), application: application.to_owned(), ..Self::default() }
    }

    /// With another component.
    pub fn component(mut self, name: &str, repository: &str, revision: &str) -> Self {
        self.components.push(Component {
            name: name.to_owned(),
            repository: repository.to_owned(),
            revision: revision.to_owned(),
            properties: Map::new(),
        });
        self
    }

    /// With another parameter, for one component.
    pub fn parameter(mut self, name: &str, value: impl Into<Value>, pointer: &str, component: &str) -> Self {
        self.parameters.push(Parameter {
            name: name.to_owned(),
            value: value.into(),
            pointer: pointer.to_owned(),
            components: vec![component.to_owned()],
        });
        self
    }

    /// The `ApplicationDeployment`.
    pub fn document(&self) -> Result<Document, MargoSimError> {
        let id = if self.id.is_empty() { uuid() } else { self.id.clone() };
        let fail = |problem: &str| MargoSimError::Deployment { id: id.clone(), problem: problem.to_owned() };
        if !is_uuid(&id) {
            return Err(fail("its id must be a UUID"));
        }
        if !is_device_id(self.target.strip_suffix("/*").unwrap_or(&self.target)) {
            return Err(fail(&format!("`{}` is no device id; it may end in `/*`", self.target)));
        }
        if self.components.is_empty() {
            return Err(fail("it needs a component"));
        }
        let components: Vec<Value> = self.components.iter().map(Component::value).collect();
        let mut parameters = Map::new();
        for parameter in &self.parameters {
            let targets = json!([{ "pointer": parameter.pointer, "components": parameter.components }]);
            parameters.insert(parameter.name.clone(), json!({ "value": parameter.value, "targets": targets }));
        }
        let name = if self.name.is_empty() { &self.application } else { &self.name };
        let document = json!({
            "apiVersion": "application.margo.org/v1alpha1",
            "kind": "ApplicationDeployment",
            "metadata": {
                "annotations": { "applicationId": self.application, "id": id },
                "name": name,
                "namespace": "margo",
                "deviceId": self.target,
            },
            "spec": {
                "applicationId": self.application,
                "deploymentProfile": { "type": self.kind, "components": components },
                "parameters": parameters,
            },
        });
        let components = self.components.iter().map(|component| component.name.clone()).collect();
        Ok(Document { id, target: self.target.clone(), components, yaml: yaml(&document) })
    }
}

impl Component {
    fn value(&self) -> Value {
        let mut properties = self.properties.clone();
        for (key, text) in [("repository", &self.repository), ("revision", &self.revision)] {
            if !text.is_empty() {
                properties.insert(key.to_owned(), json!(text));
            }
        }
        json!({ "name": self.name, "properties": properties })
    }
}

impl Document {
    /// Takes YAML as it is, however odd; what must be known about it is read from it.
    pub fn from_yaml(text: &str) -> Result<Self, MargoSimError> {
        let fail = |problem: String| MargoSimError::Deployment { id: String::new(), problem };
        let value: Value = serde_saphyr::from_str(text).map_err(|error| fail(format!("no YAML: {error}")))?;
        let string = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        let id = string("/metadata/annotations/id").ok_or_else(|| fail("no metadata.annotations.id".to_owned()))?;
        let target = string("/metadata/deviceId").ok_or_else(|| fail("no metadata.deviceId".to_owned()))?;
        let components = value.pointer("/spec/deploymentProfile/components").and_then(Value::as_array);
        let names = components.into_iter().flatten().filter_map(|one| one.get("name")?.as_str());
        Ok(Self { id, target, components: names.map(str::to_owned).collect(), yaml: text.to_owned() })
    }

    /// First segment of the target.
    pub fn root(&self) -> &str {
        self.target.split('/').next().unwrap_or_default()
    }
}

/// Block style; strings in double quotes, whose escapes JSON and YAML share.
fn yaml(value: &Value) -> String {
    let mut text = String::new();
    block(value, 0, &mut text);
    text
}

fn block(value: &Value, depth: usize, text: &mut String) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(object) if !object.is_empty() => {
            for (key, value) in object {
                text.push_str(&format!("{indent}{}:", quoted(key)));
                nested(value, depth, text);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                text.push_str(&format!("{indent}-"));
                nested(item, depth, text);
            }
        }
        other => text.push_str(&format!("{indent}{other}\n")),
    }
}

fn nested(value: &Value, depth: usize, text: &mut String) {
    let has_block = match value {
        Value::Object(object) => !object.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => false,
    };
    if has_block {
        text.push('\n');
        block(value, depth + 1, text);
    } else {
        text.push_str(&format!(" {value}\n"));
    }
}

fn quoted(key: &str) -> String {
    let plain = key.starts_with(|c: char| c.is_ascii_alphabetic())
        && key.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b))
        && !["true", "false", "null", "yes", "no", "on", "off", "y", "n"].contains(&key.to_lowercase().as_str());
    if plain { key.to_owned() } else { Value::from(key).to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_yaml_reads_back_as_what_was_written() {
        let deployment = Deployment::custom("gw/*", "recipe-mixer")
            .component("recipe", "oci://registry.example/recipes/mixer", "1.2.0")
            .parameter("speed", 1450.5, "setpoints.speed", "recipe")
            .parameter("on", json!({ "deep": ["a: b", "- c", "é\"\n"], "empty": [], "none": null }), "x", "recipe");
        let document = deployment.document().unwrap();
        let read: Value = serde_saphyr::from_str(&document.yaml).unwrap();
        assert_eq!(read["metadata"]["deviceId"], "gw/*");
        assert_eq!(read["metadata"]["annotations"]["id"], document.id);
        assert_eq!(read["spec"]["parameters"]["speed"]["value"], 1450.5);
        assert_eq!(read["spec"]["parameters"]["on"]["value"]["deep"][2], "é\"\n");
        assert_eq!(Document::from_yaml(&document.yaml).unwrap(), document);
    }

    #[test]
    fn a_deployment_that_no_client_could_take_is_refused() {
        let good = Deployment::custom("gw", "a").component("c", "oci://r/x", "1.0.0");
        assert!(good.document().is_ok());
        assert!(Deployment { id: "no-uuid".to_owned(), ..good.clone() }.document().is_err());
        assert!(Deployment { target: "gw/*/x".to_owned(), ..good.clone() }.document().is_err());
        assert!(Deployment { components: Vec::new(), ..good }.document().is_err());
    }
}
