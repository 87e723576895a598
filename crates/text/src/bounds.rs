//! Bounds what a chat template may cost: a model file's template is somebody else's program.
//!
//! minijinja counts instructions (its fuel) and nesting, but not bytes: `{% set x = x ~ x %}`
//! forty times over fills any memory within a thousand instructions. So every operation that
//! makes a value larger than its operands is replaced by one that first charges the bytes to
//! the render's [`Budget`]: operators and literals by exchanging their instructions for calls
//! (one for one, so jumps stay right; this is what minijinja's `unstable_machinery` is used
//! for), filters, tests and methods by wrapping them, printing by the formatter. What is not
//! wrapped here does not exist in a chat template. Literal text between tags is bounded by
//! less fuel the longer the template's longest literal is.

use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use minijinja::machinery::{self, CompiledTemplate, Instruction, Instructions, Token};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Rest, Value, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State, filters, functions, tests};

/// Bytes that one rendering may make in all: values, captured and printed text. What a value
/// takes in memory is at most a few times what it is charged.
pub(crate) const BYTES_MAX: u64 = 64 << 20;
/// Instructions of one rendering at most; some 5,000 messages of ordinary templates.
pub(crate) const FUEL_MAX: u64 = 1_000_000;
/// Namespaces of one rendering at most; templates use a handful.
const NAMESPACES_MAX: u64 = 64;
/// How deep lists and maps may nest; recursion over values stays this shallow.
const DEPTH_MAX: usize = 32;
/// What a value costs besides the bytes of its text.
const VALUE_BYTES: u64 = 24;

/// The operators' names as functions: with a space, so that no template can call them.
const ADD: &str = "+ operator";
const CONCAT: &str = "~ operator";
const MULTIPLY: &str = "* operator";
const SLICE: &str = "slice operator";
const EQUAL: &str = "== operator";
const UNEQUAL: &str = "!= operator";
const LESS: &str = "< operator";
const LESS_EQUAL: &str = "<= operator";
const GREATER: &str = "> operator";
const GREATER_EQUAL: &str = ">= operator";
const IN: &str = "in operator";
const LIST: &str = "list literal";
const MAP: &str = "map literal";

/// What a rendering has left.
#[derive(Debug)]
pub(crate) struct Budget {
    bytes: AtomicU64,
    namespaces: AtomicU64,
}

/// A bound was passed; travels as the source of a minijinja error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exceeded {
    pub(crate) what: &'static str,
    pub(crate) limit: u64,
}

impl fmt::Display for Exceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "more than {} {}", self.limit, self.what)
    }
}

impl std::error::Error for Exceeded {}

fn exceeded(what: &'static str, limit: u64) -> Error {
    Error::new(ErrorKind::InvalidOperation, "limit passed").with_source(Exceeded { what, limit })
}

impl Budget {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Budget {
            bytes: AtomicU64::new(BYTES_MAX),
            namespaces: AtomicU64::new(NAMESPACES_MAX),
        })
    }

    fn charge(&self, bytes: u64) -> Result<(), Error> {
        take(&self.bytes, bytes).map(|_| ()).ok_or_else(|| exceeded("bytes of values", BYTES_MAX))
    }

    /// Charges a value with all that it holds.
    fn charge_value(&self, value: &Value) -> Result<(), Error> {
        self.charge_nested(value, 0)
    }

    fn charge_nested(&self, value: &Value, depth: usize) -> Result<(), Error> {
        self.charge(VALUE_BYTES + value.as_str().map_or(0, |text| text.len() as u64))?;
        if !is_container(value) {
            return Ok(());
        }
        if depth == DEPTH_MAX {
            return Err(exceeded("levels of nested values", DEPTH_MAX as u64));
        }
        let is_map = value.kind() == ValueKind::Map;
        for item in value.try_iter()? {
            self.charge_nested(&item, depth + 1)?;
            if is_map {
                self.charge_nested(&value.get_item(&item)?, depth + 1)?;
            }
        }
        Ok(())
    }

    /// A value as Python prints it, charged as it grows.
    fn text(&self, value: &Value) -> Result<String, Error> {
        let mut out = Charged { budget: self, text: String::new(), error: None };
        let written = match value.kind() {
            ValueKind::Undefined => Ok(()),
            ValueKind::None => out.write_str("None"),
            ValueKind::Bool => out.write_str(if value.is_true() { "True" } else { "False" }),
            _ => match value.as_str() {
                Some(text) => out.write_str(text),
                None => {
                    self.charge_value(value)?;
                    write!(out, "{value}")
                }
            },
        };
        match (written, out.error) {
            (_, Some(error)) => Err(error),
            (Err(_), None) => Err(Error::new(ErrorKind::InvalidOperation, "cannot print a value")),
            (Ok(()), None) => Ok(out.text),
        }
    }
}

fn take(counter: &AtomicU64, amount: u64) -> Option<u64> {
    counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(amount)).ok()
}

fn is_container(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::Iterable)
}

/// Text that charges before it grows.
struct Charged<'b> {
    budget: &'b Budget,
    text: String,
    error: Option<Error>,
}

impl fmt::Write for Charged<'_> {
    fn write_str(&mut self, more: &str) -> fmt::Result {
        if let Err(error) = self.budget.charge(more.len() as u64) {
            self.error = Some(error);
            return Err(fmt::Error);
        }
        self.text.push_str(more);
        Ok(())
    }
}

/// Refuses products of literals: the compiler would compute `'x' * 99999999` itself, before
/// anything is charged, as often as the template says it.
pub(crate) fn check_literals(source: &str, syntax: SyntaxConfig) -> Result<(), Error> {
    let mut left_may_be_literal = false;
    let mut after_product = false;
    for token in machinery::tokenize(source, false, syntax) {
        let token = token?.0;
        let number_or_text = matches!(
            token,
            Token::Str(_) | Token::String(_) | Token::Int(_) | Token::Int128(_) | Token::Float(_)
        );
        let opens = matches!(token, Token::ParenOpen | Token::BracketOpen | Token::Minus);
        if after_product && (number_or_text || opens) {
            return Err(Error::new(
                ErrorKind::SyntaxError,
                "products of literals are not supported",
            ));
        }
        after_product = left_may_be_literal && matches!(token, Token::Mul);
        left_may_be_literal =
            number_or_text || matches!(token, Token::ParenClose | Token::BracketClose);
    }
    Ok(())
}

/// Exchanges a compiled template's growing instructions for charged calls, and gives the fuel
/// that it may have.
pub(crate) fn bound_template(template: &mut CompiledTemplate<'_>) -> Result<u64, Error> {
    let mut longest = bound_instructions(&mut template.instructions)?;
    for block in template.blocks.values_mut() {
        longest = longest.max(bound_instructions(block)?);
    }
    Ok(FUEL_MAX.min(BYTES_MAX / longest.max(1)))
}

fn bound_instructions(instructions: &mut Instructions<'_>) -> Result<u64, Error> {
    let mut longest = 0;
    let mut index = 0;
    while let Some(instruction) = instructions.get_mut(index) {
        index += 1;
        let (name, arguments) = match instruction {
            Instruction::EmitRaw(text) => {
                longest = longest.max(text.len() as u64);
                continue;
            }
            Instruction::Add => (ADD, Some(2)),
            Instruction::StringConcat => (CONCAT, Some(2)),
            Instruction::Mul => (MULTIPLY, Some(2)),
            Instruction::Slice => (SLICE, Some(4)),
            Instruction::Eq => (EQUAL, Some(2)),
            Instruction::Ne => (UNEQUAL, Some(2)),
            Instruction::Lt => (LESS, Some(2)),
            Instruction::Lte => (LESS_EQUAL, Some(2)),
            Instruction::Gt => (GREATER, Some(2)),
            Instruction::Gte => (GREATER_EQUAL, Some(2)),
            Instruction::In => (IN, Some(2)),
            Instruction::BuildList(count) | Instruction::BuildTuple(count) => (LIST, *count),
            Instruction::BuildMap(pairs) => (MAP, Some(*pairs * 2)),
            Instruction::CompareAndPreserve(_) => {
                let problem = "chained comparisons (a < b < c) are not supported";
                return Err(Error::new(ErrorKind::SyntaxError, problem));
            }
            _ => continue,
        };
        let arguments = match arguments.map(u16::try_from) {
            None => None,
            Some(Ok(count)) => Some(count),
            Some(Err(_)) => {
                return Err(Error::new(ErrorKind::SyntaxError, "a literal has too many items"));
            }
        };
        *instruction = Instruction::CallFunction(name, arguments);
    }
    Ok(longest)
}

/// An environment in which everything charges `budget`.
pub(crate) fn environment(budget: &Arc<Budget>) -> Environment<'static> {
    let mut env = Environment::empty();
    env.set_debug(false);
    add_operators(&mut env, budget);
    add_filters(&mut env, budget);
    add_tests(&mut env, budget);
    let spent = Arc::clone(budget);
    env.set_formatter(move |out, _, value| {
        let text = spent.text(value)?;
        out.write_str(&text).map_err(Error::from)
    });
    let spent = Arc::clone(budget);
    env.set_unknown_method_callback(move |state, value, method, args| {
        let mut all = vec![value.clone()];
        all.extend_from_slice(args);
        charge_call(&spent, method, &all)?;
        let result =
            minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)?;
        spent.charge_value(&result)?;
        Ok(result)
    });
    env.add_function("range", functions::range);
    let spent = Arc::clone(budget);
    env.add_function("namespace", move |args: Rest<ValueOrKwargs>| {
        let args = args.into_values();
        take(&spent.namespaces, 1).ok_or_else(|| exceeded("namespaces", NAMESPACES_MAX))?;
        for arg in args.iter() {
            spent.charge_value(arg)?;
        }
        Value::from_function(functions::namespace)
            .call(&mut Environment::empty().empty_state(), &args)
    });
    let spent = Arc::clone(budget);
    env.add_function("dict", move |args: Rest<ValueOrKwargs>| {
        let args = args.into_values();
        for arg in args.iter() {
            spent.charge_value(arg)?;
        }
        Value::from_function(functions::dict).call(&mut Environment::empty().empty_state(), &args)
    });
    env
}

type Binary = fn(&Budget, &Value, &Value) -> Result<Value, Error>;

fn add_operators(env: &mut Environment<'static>, budget: &Arc<Budget>) {
    let binary: [(&'static str, Binary); 10] = [
        (ADD, add),
        (CONCAT, concat),
        (MULTIPLY, multiply),
        (EQUAL, |budget, a, b| Ok(Value::from(charge_pair(budget, a, b).map(|()| a == b)?))),
        (UNEQUAL, |budget, a, b| Ok(Value::from(charge_pair(budget, a, b).map(|()| a != b)?))),
        (LESS, |budget, a, b| Ok(Value::from(charge_pair(budget, a, b).map(|()| a < b)?))),
        (LESS_EQUAL, |budget, a, b| Ok(Value::from(charge_pair(budget, a, b).map(|()| a <= b)?))),
        (GREATER, |budget, a, b| Ok(Value::from(charge_pair(budget, a, b).map(|()| a > b)?))),
        (GREATER_EQUAL, |budget, a, b| {
            Ok(Value::from(charge_pair(budget, a, b).map(|()| a >= b)?))
        }),
        (IN, |budget, item, container| {
            budget.charge_value(container)?;
            plain("a in b", item, container)
        }),
    ];
    for (name, operator) in binary {
        let budget = Arc::clone(budget);
        env.add_function(name, move |a: Value, b: Value| operator(&budget, &a, &b));
    }
    let spent = Arc::clone(budget);
    env.add_function(SLICE, move |value: Value, start: Value, stop: Value, step: Value| {
        slice(&spent, &value, &start, &stop, &step)
    });
    let spent = Arc::clone(budget);
    env.add_function(LIST, move |items: Rest<Value>| -> Result<Value, Error> {
        let list = Value::from(items.to_vec());
        spent.charge_value(&list)?;
        Ok(list)
    });
    let spent = Arc::clone(budget);
    env.add_function(MAP, move |items: Rest<Value>| -> Result<Value, Error> {
        let pairs = items.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone()));
        let map = Value::from_pairs(pairs);
        spent.charge_value(&map)?;
        Ok(map)
    });
}

/// minijinja's own operator, for operands that cannot grow much.
fn plain(expression: &'static str, a: &Value, b: &Value) -> Result<Value, Error> {
    let env = Environment::empty();
    env.compile_expression(expression)?.eval(minijinja::context! { a, b })
}

fn items(value: &Value) -> Result<Vec<Value>, Error> {
    Ok(value.try_iter()?.collect())
}

/// Items of a container that are about to be copied.
fn charge_items(budget: &Budget, value: &Value) -> Result<(), Error> {
    match value.len() {
        Some(count) => budget.charge(count as u64 * VALUE_BYTES),
        None => budget.charge_value(value),
    }
}

fn add(budget: &Budget, a: &Value, b: &Value) -> Result<Value, Error> {
    if let (Some(left), Some(right)) = (a.as_str(), b.as_str()) {
        budget.charge(VALUE_BYTES + (left.len() + right.len()) as u64)?;
        return Ok(Value::from([left, right].concat()));
    }
    let sequence = |value: &Value| matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable);
    if sequence(a) && sequence(b) {
        // At once, where minijinja is lazy: no chains of sequences to recurse over.
        charge_items(budget, a)?;
        charge_items(budget, b)?;
        let mut all = items(a)?;
        all.extend(items(b)?);
        return Ok(Value::from(all));
    }
    plain("a + b", a, b)
}

fn concat(budget: &Budget, a: &Value, b: &Value) -> Result<Value, Error> {
    let mut text = budget.text(a)?;
    text += &budget.text(b)?;
    Ok(Value::from(text))
}

fn multiply(budget: &Budget, a: &Value, b: &Value) -> Result<Value, Error> {
    if is_container(a) || is_container(b) {
        let problem = "lists cannot be multiplied in a chat template";
        return Err(Error::new(ErrorKind::InvalidOperation, problem));
    }
    for (text, count) in [(a, b), (b, a)] {
        if let (Some(text), Some(count)) = (text.as_str(), count.as_usize()) {
            budget.charge((text.len() as u64).saturating_mul(count as u64))?;
        }
    }
    plain("a * b", a, b)
}

fn charge_pair(budget: &Budget, a: &Value, b: &Value) -> Result<(), Error> {
    if is_container(a) && is_container(b) {
        budget.charge_value(a)?;
        budget.charge_value(b)?;
    }
    Ok(())
}

fn slice(
    budget: &Budget,
    value: &Value,
    start: &Value,
    stop: &Value,
    step: &Value,
) -> Result<Value, Error> {
    match value.as_str() {
        Some(text) => budget.charge(4 * text.len() as u64)?,
        None if is_container(value) => charge_items(budget, value)?,
        None => {}
    }
    let env = Environment::empty();
    let sliced = env
        .compile_expression("value[start:stop:step]")?
        .eval(minijinja::context! { value, start, stop, step })?;
    // At once, where minijinja is lazy.
    if is_container(&sliced) { Ok(Value::from(items(&sliced)?)) } else { Ok(sliced) }
}

/// Charges a filter, test or method for what it may make of its arguments.
fn charge_call(budget: &Budget, name: &str, args: &[Value]) -> Result<(), Error> {
    let length = |index: usize| args.get(index).and_then(Value::as_str).map_or(0, str::len) as u64;
    match name {
        // No larger than they are given, and templates ask for them in loops.
        "length" | "count" | "first" | "last" | "default" | "d" | "defined" | "undefined"
        | "none" | "boolean" | "string" | "number" | "mapping" | "iterable" | "sequence"
        | "true" | "false" | "get"
            if args.first().is_none_or(|value| value.kind() != ValueKind::Iterable) =>
        {
            return budget.charge(VALUE_BYTES);
        }
        "replace" => {
            let places = length(0) / length(1).max(1) + 1;
            budget.charge(places.saturating_mul(length(2)))?;
        }
        // 'x'.join(list) and list | join('x')
        "join" => {
            for (list, separator) in [(0, 1), (1, 0)] {
                let count = args.get(list).filter(|list| is_container(list)).and_then(Value::len);
                budget.charge((count.unwrap_or(0) as u64).saturating_mul(length(separator)))?;
            }
        }
        "indent" => {
            let width = args.get(1).and_then(Value::as_usize).unwrap_or(0) as u64;
            let lines = args.first().and_then(Value::as_str).map_or(0, |text| text.lines().count());
            budget.charge(width.saturating_mul(lines as u64 + 1))?;
        }
        // Widths in the format make it as long as it likes.
        "format" => {
            let problem = "format is not supported in a chat template";
            return Err(Error::new(ErrorKind::InvalidOperation, problem));
        }
        _ => {}
    }
    args.iter().try_for_each(|arg| budget.charge_value(arg))
}

/// Registers minijinja's filters under a name that no template can write, and the charged
/// ones, which call them, under their own.
fn add_filters(env: &mut Environment<'static>, budget: &Arc<Budget>) {
    let mut names = Vec::new();
    macro_rules! filters {
        ($($name:literal => $filter:path),* $(,)?) => {
            $(env.add_filter(concat!("plain ", $name), $filter); names.push($name);)*
        };
    }
    filters! {
        "abs" => filters::abs, "attr" => filters::attr, "bool" => filters::bool,
        "capitalize" => filters::capitalize, "count" => filters::length, "d" => filters::default,
        "default" => filters::default, "dictsort" => filters::dictsort, "first" => filters::first,
        "float" => filters::float, "indent" => filters::indent, "int" => filters::int,
        "items" => filters::items, "join" => filters::join, "last" => filters::last,
        "length" => filters::length, "list" => filters::list, "lower" => filters::lower,
        "map" => filters::map, "max" => filters::max, "min" => filters::min,
        "reject" => filters::reject, "rejectattr" => filters::rejectattr,
        "replace" => filters::replace, "reverse" => filters::reverse, "round" => filters::round,
        "safe" => filters::safe, "select" => filters::select, "selectattr" => filters::selectattr,
        "sort" => filters::sort, "split" => filters::split, "string" => filters::string,
        "sum" => filters::sum, "title" => filters::title, "tojson" => crate::tojson::tojson,
        "trim" => filters::trim, "unique" => filters::unique, "upper" => filters::upper,
    }
    for name in names {
        let budget = Arc::clone(budget);
        env.add_filter(name, move |state: &mut State, args: Rest<ValueOrKwargs>| {
            let args = args.into_values();
            charge_call(&budget, name, &args)?;
            let result = state.apply_filter(&format!("plain {name}"), &args)?;
            let same = matches!(name, "default" | "d" | "first" | "last");
            if !same {
                budget.charge_value(&result)?;
            }
            // At once, where minijinja is lazy.
            if result.kind() == ValueKind::Iterable {
                Ok(Value::from(items(&result)?))
            } else {
                Ok(result)
            }
        });
    }
}

fn add_tests(env: &mut Environment<'static>, budget: &Arc<Budget>) {
    let mut names = Vec::new();
    macro_rules! tests {
        ($($name:literal => $test:path),* $(,)?) => {
            $(env.add_test(concat!("plain ", $name), $test); names.push($name);)*
        };
    }
    tests! {
        "boolean" => tests::is_boolean, "defined" => tests::is_defined,
        "divisibleby" => tests::is_divisibleby, "endingwith" => tests::is_endingwith,
        "eq" => tests::is_eq, "equalto" => tests::is_eq, "even" => tests::is_even,
        "false" => tests::is_false, "float" => tests::is_float, "ge" => tests::is_ge,
        "gt" => tests::is_gt, "in" => tests::is_in, "integer" => tests::is_integer,
        "iterable" => tests::is_iterable, "le" => tests::is_le, "lower" => tests::is_lower,
        "lt" => tests::is_lt, "mapping" => tests::is_mapping, "ne" => tests::is_ne,
        "none" => tests::is_none, "number" => tests::is_number, "odd" => tests::is_odd,
        "sameas" => tests::is_sameas, "sequence" => tests::is_sequence,
        "startingwith" => tests::is_startingwith, "string" => tests::is_string,
        "true" => tests::is_true, "undefined" => tests::is_undefined, "upper" => tests::is_upper,
    }
    for name in names {
        let budget = Arc::clone(budget);
        env.add_test(
            name,
            move |state: &mut State, args: Rest<ValueOrKwargs>| -> Result<bool, Error> {
                let args = args.into_values();
                charge_call(&budget, name, &args)?;
                state.perform_test(&format!("plain {name}"), &args)
            },
        );
    }
}
