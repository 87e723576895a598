//! Reads a request's fields one by one, with errors that name them.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::Invalid;

/// The fields of a JSON object that have not been read yet.
pub(crate) struct Fields {
    map: Map<String, Value>,
    /// `messages[0].`, in front of the names in errors.
    path: String,
}

impl Fields {
    /// The fields of a request's body.
    ///
    /// # Errors
    /// If it is no JSON (with line and column), nested too deeply, or no object.
    pub fn of_body(body: &[u8]) -> Result<Fields, Invalid> {
        let value: Value = serde_json::from_slice(body).map_err(|e| {
            Invalid::body(format!("We could not parse the JSON body of your request: {e}"))
        })?;
        match value {
            Value::Object(map) => Ok(Fields { map, path: String::new() }),
            other => Err(Invalid::body(format!(
                "The body of your request must be a JSON object, but it is {}.",
                name_of(&other)
            ))),
        }
    }

    /// The fields of an object inside a request; `path` is its own name.
    pub fn of_value(value: Value, path: &str) -> Result<Fields, Invalid> {
        match value {
            Value::Object(map) => Ok(Fields { map, path: format!("{path}.") }),
            other => Err(wrong_type(path, "an object", &other)),
        }
    }

    /// A field's name as errors have it.
    pub fn name(&self, key: &str) -> String {
        format!("{}{key}", self.path)
    }

    /// Takes a field; `null` is the same as absent.
    pub fn take(&mut self, key: &str) -> Option<Value> {
        self.map.remove(key).filter(|v| !v.is_null())
    }

    /// The names of what has not been taken.
    pub fn left(&self) -> impl Iterator<Item = &str> {
        self.map.keys().map(String::as_str)
    }

    /// Takes a field that must be there.
    pub fn require(&mut self, key: &str) -> Result<Value, Invalid> {
        self.take(key).ok_or_else(|| {
            let name = self.name(key);
            let message = format!("Missing required parameter: '{name}'.");
            Invalid::field(name, "missing_required_parameter", message)
        })
    }

    pub fn string(&mut self, key: &str) -> Result<Option<String>, Invalid> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(other) => Err(wrong_type(&self.name(key), "a string", &other)),
        }
    }

    pub fn boolean(&mut self, key: &str) -> Result<Option<bool>, Invalid> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(b)),
            Some(other) => Err(wrong_type(&self.name(key), "a boolean", &other)),
        }
    }

    pub fn decimal(&mut self, key: &str) -> Result<Option<f64>, Invalid> {
        let Some(value) = self.take(key) else { return Ok(None) };
        let number = value.as_f64().filter(|_| value.is_number());
        number.map(Some).ok_or_else(|| wrong_type(&self.name(key), "a decimal", &value))
    }

    /// A decimal within bounds, both allowed.
    pub fn decimal_in(
        &mut self,
        key: &str,
        bounds: RangeInclusive<f64>,
    ) -> Result<Option<f64>, Invalid> {
        let number = self.decimal(key)?;
        match number {
            Some(x) if x > *bounds.end() => {
                Err(past(self.name(key), "decimal", "<=", bounds.end(), x))
            }
            Some(x) if x < *bounds.start() => {
                Err(past(self.name(key), "decimal", ">=", bounds.start(), x))
            }
            fine => Ok(fine),
        }
    }

    /// An integer within bounds, both allowed.
    pub fn integer_in(
        &mut self,
        key: &str,
        bounds: RangeInclusive<u32>,
    ) -> Result<Option<u32>, Invalid> {
        let Some(value) = self.take(key) else { return Ok(None) };
        let name = self.name(key);
        let Some(x) = integer(&value) else {
            return Err(wrong_type(&name, "an integer", &value));
        };
        if x > i128::from(*bounds.end()) {
            return Err(past(name, "integer", "<=", bounds.end(), x));
        }
        if x < i128::from(*bounds.start()) {
            return Err(past(name, "integer", ">=", bounds.start(), x));
        }
        Ok(Some(x as u32))
    }

    /// Any integer of 64 bits, signed or not; a negative one keeps its bits.
    pub fn bits64(&mut self, key: &str) -> Result<Option<u64>, Invalid> {
        let Some(value) = self.take(key) else { return Ok(None) };
        let bits = value.as_u64().or_else(|| value.as_i64().map(|x| x as u64));
        bits.map(Some).ok_or_else(|| wrong_type(&self.name(key), "an integer of 64 bits", &value))
    }
}

/// An integral JSON number. `2.0` is not one, as with OpenAI.
fn integer(value: &Value) -> Option<i128> {
    value.as_u64().map(i128::from).or_else(|| value.as_i64().map(i128::from))
}

/// A token id.
pub(crate) fn token(value: &Value, name: &str) -> Result<u32, Invalid> {
    let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
    id.ok_or_else(|| wrong_type(name, "a token id", value))
}

pub(crate) fn wrong_type(name: &str, expected: &str, got: &Value) -> Invalid {
    let got = name_of(got);
    let message = format!("Invalid type for '{name}': expected {expected}, but got {got} instead.");
    Invalid::field(name, "invalid_type", message)
}

pub(crate) fn invalid_value(name: &str, problem: &str) -> Invalid {
    Invalid::field(name, "invalid_value", format!("Invalid value for '{name}': {problem}"))
}

pub(crate) fn too_long(name: &str, what: &str, max: usize, got: usize) -> Invalid {
    let message = format!(
        "Invalid '{name}': {what} too long. Expected a maximum length of {max}, but got one of \
         length {got} instead."
    );
    let code = if what == "array" { "array_above_max_length" } else { "string_above_max_length" };
    Invalid::field(name, code, message)
}

pub(crate) fn empty(name: &str, what: &str) -> Invalid {
    let message = format!("Invalid '{name}': empty {what}. Expected one of length 1 at least.");
    let code = if what == "array" { "empty_array" } else { "empty_string" };
    Invalid::field(name, code, message)
}

fn past(
    name: String,
    what: &str,
    sign: &str,
    bound: impl std::fmt::Display,
    got: impl std::fmt::Display,
) -> Invalid {
    let (side, code) = match (sign, what) {
        ("<=", "integer") => ("above maximum", "integer_above_max_value"),
        ("<=", _) => ("above maximum", "decimal_above_max_value"),
        (_, "integer") => ("below minimum", "integer_below_min_value"),
        (_, _) => ("below minimum", "decimal_below_min_value"),
    };
    let message = format!(
        "Invalid '{name}': {what} {side} value. Expected a value {sign} {bound}, but got {got} \
         instead."
    );
    Invalid::field(name, code, message)
}

pub(crate) fn name_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(n) if n.is_f64() => "a decimal",
        Value::Number(_) => "an integer",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
