//! Named values that a model offers to devices, and takes from them.

/// Value of a signal, in engineering units.
#[derive(Debug, Clone, PartialEq)]
pub enum Signal {
    /// A state or an alarm.
    Bool(bool),
    /// A measured or set value.
    Number(f64),
    /// A counter that must not lose digits.
    Count(u64),
    /// A name or a serial number.
    Text(String),
}

impl Signal {
    /// The value as a number; `None` for text.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Signal::Bool(on) => Some(f64::from(u8::from(*on))),
            Signal::Number(number) => Some(*number),
            Signal::Count(count) => Some(*count as f64),
            Signal::Text(_) => None,
        }
    }

    /// The value as a state: true unless zero; `None` for text.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Signal::Count(count) => Some(*count != 0),
            other => other.as_f64().map(|number| number != 0.0),
        }
    }
}

/// A physical model: it moves on by fixed steps, and knows its signals by name.
pub trait Model: Send {
    /// Lets `dt` seconds pass.
    fn step(&mut self, dt: f64);

    /// The value of `name` now; `None` when the model has no such signal.
    fn read(&self, name: &str) -> Option<Signal>;

    /// Writes `name`. The text of an error says which values it takes.
    fn write(&mut self, name: &str, value: &Signal) -> Result<(), String>;

    /// Whether `name` may be written at all.
    fn is_writable(&self, name: &str) -> bool;
}
