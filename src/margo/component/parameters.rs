//! Parameters of a deployment put into the payload of a component.

use serde_json::Value;

use super::format::{FormatError, check_recipe};
use super::{PointValue, Work};
use crate::margo::deployment::Parameter;

/// Why a parameter cannot be bound.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParameterError {
    /// Nothing is there.
    #[error("parameter {name} points at {pointer:?} of component {component}, which is not possible; {help}")]
    Pointer {
        /// Parameter.
        name: String,
        /// Its pointer.
        pointer: String,
        /// Component.
        component: String,
        /// What it could be.
        help: &'static str,
    },
    /// The result is none.
    #[error("with its parameters component {component} cannot be used: {reason}")]
    Result {
        /// Component.
        component: String,
        /// Why not.
        reason: FormatError,
    },
    /// A component that the deployment does not have.
    #[error("parameter {name} is for component {component:?}, which the deployment does not have")]
    Component {
        /// Parameter.
        name: String,
        /// Component.
        component: String,
    },
}

/// Puts every parameter that is for `component` into `work`.
///
/// # Errors
/// [`ParameterError`]; a parameter that goes nowhere is a mistake that somebody should see.
pub fn bind(mut work: Work, component: &str, parameters: &[Parameter]) -> Result<Work, ParameterError> {
    for parameter in parameters {
        for (pointer, components) in &parameter.targets {
            if !components.iter().any(|name| name == component) {
                continue;
            }
            let wrong = |help| ParameterError::Pointer {
                name: parameter.name.clone(),
                pointer: pointer.clone(),
                component: component.to_owned(),
                help,
            };
            match &mut work {
                Work::Configuration { document } => {
                    set(document, pointer, &parameter.value)
                        .ok_or_else(|| wrong("write a JSON pointer into the document"))?;
                }
                Work::Recipe { values } => {
                    let point =
                        pointer.strip_prefix("/values/").map(|point| point.strip_suffix("/value").unwrap_or(point));
                    let found = point.and_then(|point| values.iter_mut().find(|value| value.point == point));
                    let found: &mut PointValue = found.ok_or_else(|| wrong("write /values/<point>"))?;
                    found.value = parameter.value.clone();
                }
                Work::Firmware { .. } => return Err(wrong("firmware takes no parameters")),
                Work::Compose(project) => project.set(pointer, &parameter.value).map_err(wrong)?,
            }
        }
    }
    if let Work::Recipe { values } = &work {
        check_recipe(values).map_err(|reason| ParameterError::Result { component: component.to_owned(), reason })?;
    }
    Ok(work)
}

/// Sets what a JSON pointer points at; a new member of an existing object is made.
fn set(document: &mut Value, pointer: &str, value: &Value) -> Option<()> {
    if let Some(place) = document.pointer_mut(pointer).filter(|_| !pointer.is_empty()) {
        *place = value.clone();
        return Some(());
    }
    let (parent, name) = pointer.rsplit_once('/')?;
    let name = name.replace("~1", "/").replace("~0", "~");
    document.pointer_mut(parent)?.as_object_mut()?.insert(name, value.clone());
    Some(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parameter(pointer: &str, value: Value) -> Vec<Parameter> {
        let targets = vec![(pointer.to_owned(), vec!["a".to_owned()])];
        vec![Parameter { name: "p".to_owned(), value, targets }]
    }

    fn recipe() -> Work {
        Work::Recipe { values: vec![PointValue { point: "speed".to_owned(), value: json!(1) }] }
    }

    #[test]
    fn parameters_are_bound_to_their_components_only() {
        let speed = |work: Work| match work {
            Work::Recipe { values } => values[0].value.clone(),
            _ => panic!(),
        };
        assert_eq!(speed(bind(recipe(), "a", &parameter("/values/speed", json!(42))).unwrap()), json!(42));
        assert_eq!(speed(bind(recipe(), "b", &parameter("/values/speed", json!(42))).unwrap()), json!(1));
        let document = json!({ "points": { "level": { "deadband": 1 } } });
        let bound = bind(Work::Configuration { document }, "a", &parameter("/points/level/limit", json!(3))).unwrap();
        assert_eq!(
            bound,
            Work::Configuration { document: json!({ "points": { "level": { "deadband": 1, "limit": 3 } } }) }
        );
    }

    #[test]
    fn a_parameter_that_goes_nowhere_is_refused() {
        for (work, pointer, value) in [
            (recipe(), "/values/pressure", json!(1)),
            (recipe(), "speed", json!(1)),
            (recipe(), "/values/speed", json!(null)),
            (Work::Configuration { document: json!({}) }, "/a/b", json!(1)),
            (Work::Configuration { document: json!({}) }, "", json!(1)),
            (Work::Configuration { document: json!({}) }, "x", json!(1)),
        ] {
            assert!(bind(work, "a", &parameter(pointer, value)).is_err(), "{pointer}");
        }
    }

    #[test]
    fn the_effect_is_named_by_what_it_does() {
        assert_eq!(recipe().digest(), recipe().digest());
        let other = bind(recipe(), "a", &parameter("/values/speed", json!(2))).unwrap();
        assert_ne!(other.digest(), recipe().digest());
    }
}
